"""What `mobile-export eval` says of an artifact, of a .gguf in llama.cpp: perplexity, KL and top-1 against the checkpoint.

In:  a .gguf of the checkpoint's network and vocabulary; llama-cpp-python in this Python, beside mobile-export.
Out: a line of JSON, the fields of mobile_export.verify.quality.Quality, `bytes` and `bits_per_weight`, both of the whole file.

    python -m benchmarks.llama_cpp_quality model.Q4_K_M.gguf --text novel.txt --against smollm2-135m
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import llama_cpp
import torch

from mobile_export.checkpoint import encode
from mobile_export.cli.evaluate import WINDOW
from mobile_export.cli.steps import prepare
from mobile_export.verify.oracle import float32_oracle
from mobile_export.verify.quality import measure_quality, windows_of


def main() -> None:
    """Evaluate the file named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--against", required=True, help="the float checkpoint")
    parser.add_argument("--tokens", type=int, default=3072)
    asked = parser.parse_args()
    weights = prepare(asked.against, "fp32", None)
    assert weights.checkpoint.tokenizer, f"{asked.against}: has no tokenizer"
    tokens = encode(weights.checkpoint.tokenizer, asked.text.read_text(encoding="utf-8"))[: asked.tokens]
    begin = weights.checkpoint.bos_id if weights.checkpoint.tokenizer.adds_bos else None
    model = llama_cpp.Llama(str(asked.gguf), n_ctx=WINDOW, n_batch=WINDOW, logits_all=True, verbose=False)

    def logits(window: list[int]) -> torch.Tensor:
        model.reset()
        model.eval(window)
        return torch.from_numpy(model.scores[: len(window)].copy())

    _, reference = float32_oracle(weights, WINDOW)
    found = measure_quality(list(windows_of(tokens, WINDOW, begin)), logits, reference, lambda _: None)
    size, parameters = asked.gguf.stat().st_size, sum(matrix.parameters for matrix in weights.matrices.values())
    print(json.dumps({**dataclasses.asdict(found), "bytes": size, "bits_per_weight": 8 * size / parameters}))


if __name__ == "__main__":
    main()
