"""A checkpoint with fewer words: the first rows of its table, everything else the same, no tokenizer.

python -m benchmarks.narrow_vocabulary smollm2-135m 32000 work/checkpoint
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.hf_folder import LLAMA

if TYPE_CHECKING:
    from mobile_export.checkpoint import Checkpoint

TABLES = ("model.embed_tokens.weight", "lm_head.weight")


def write_narrowed(checkpoint: Checkpoint, rows: int, folder: Path) -> None:
    """Write a Hugging Face folder, float16. The checkpoint must be a Llama in all but name."""
    import torch
    from safetensors.torch import save_file

    from mobile_export.checkpoint import read_float32

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: read_float32(tensor) for name, tensor in checkpoint.tensors.items()}
    kept = {name: values[:rows] if name in TABLES else values for name, values in tensors.items()}
    halves = {name: values.to(torch.float16).contiguous() for name, values in kept.items()}
    save_file(halves, folder / "model.safetensors", metadata={"format": "pt"})
    config = {**checkpoint.config, **LLAMA, "vocab_size": rows}
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def main() -> None:
    """Write the folder."""
    from mobile_export.checkpoint import open_checkpoint

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("rows", type=int)
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    write_narrowed(open_checkpoint(asked.checkpoint), asked.rows, asked.folder)


if __name__ == "__main__":
    main()
