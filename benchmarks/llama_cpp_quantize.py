"""Store a .gguf anew in another of llama.cpp's kinds: Q4_0, its fastest four bits, or Q4_K_M, its usual ones.

    python -m benchmarks.llama_cpp_quantize Q4_0 model.Q4_1.gguf model.Q4_0.gguf

llama.cpp quantizes the numbers the source stands for: the same float weights mobile-export reads of it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import llama_cpp

KINDS = {"Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, "Q4_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M}


def main() -> int:
    """Quantize the file named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    asked = parser.parse_args()
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = KINDS[asked.kind]
    parameters.allow_requantize = True
    beside = asked.out.with_suffix(".new")
    status = llama_cpp.llama_model_quantize(str(asked.source).encode(), str(beside).encode(), parameters)
    if status:
        print(f"error: {asked.source}: llama.cpp does not quantize it: {status}", file=sys.stderr)
        return 1
    beside.replace(asked.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
