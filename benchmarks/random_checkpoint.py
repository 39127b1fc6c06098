"""A checkpoint of one of the models of docs/models.md at its full size, with seeded random weights, float16, no tokenizer.

python -m benchmarks.random_checkpoint facebook/opt-125m work/opt-125m
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.models import MODELS, weightless

SPREAD = 0.04  # of a matrix's values; a vector's lie around 1


def write_random(model: Mapping[str, Any], folder: Path) -> None:
    """Write a Hugging Face folder; the config last: a folder that has one is whole."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, tensor in weightless(model["config"]).tensors.items():
        values = torch.randn(tensor.shape, generator=generator) * SPREAD
        tensors[name] = (values + 1 if len(tensor.shape) == 1 else values).to(torch.float16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(model["config"], indent=1))


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=[model["name"] for model in MODELS])
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    write_random(next(model for model in MODELS if model["name"] == asked.name), asked.folder)


if __name__ == "__main__":
    main()
