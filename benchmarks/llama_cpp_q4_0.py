"""Store a .gguf anew as Q4_0, llama.cpp's fastest kind of four bits.

    python -m benchmarks.llama_cpp_q4_0 model.Q4_1.gguf model.Q4_0.gguf

From numbers that were quantized before: what is measured of the file is speed and memory, never quality.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import llama_cpp


def main() -> int:
    """Quantize the file named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    asked = parser.parse_args()
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
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
