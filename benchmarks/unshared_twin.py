"""The unshared twin of a checkpoint: twice the blocks, no two of them equal, everything else the same.

What a model whose blocks each run twice would be without sharing: as many executions, twice the stored blocks.

    python -m benchmarks.unshared_twin smollm2-135m work/unshared-checkpoint
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.hf_folder import write_words

if TYPE_CHECKING:
    import torch

    from mobile_export.checkpoint import Checkpoint

BLOCK = "model.layers."
RELATIVE_NOISE = 0.02  # of a tensor's root mean square: far above bfloat16's step, so no quantized group stays equal


def write_unshared_twin(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a Hugging Face folder with blocks 0..N-1 as they are and N..2N-1 as the same ones, seeded noise added.

    Stored as bfloat16 in two shards, one for each half. The noise keeps
    the values a trained model's, which random weights would not be: scales and clipping stay as they are.
    """
    import torch
    from safetensors.torch import save_file

    from mobile_export.checkpoint import read_float32

    folder.mkdir(parents=True, exist_ok=True)
    blocks = int(checkpoint.config["num_hidden_layers"])
    generator = torch.Generator().manual_seed(0)
    first: dict[str, torch.Tensor] = {}
    second: dict[str, torch.Tensor] = {}
    for name, tensor in checkpoint.tensors.items():
        values = read_float32(tensor)
        first[name] = values.to(torch.bfloat16)
        if name.startswith(BLOCK):
            number, rest = name.removeprefix(BLOCK).split(".", 1)
            noise = torch.randn(values.shape, generator=generator) * values.square().mean().sqrt() * RELATIVE_NOISE
            second[f"{BLOCK}{int(number) + blocks}.{rest}"] = (values + noise).to(torch.bfloat16)
    files: dict[str, str] = {}
    total = 0
    for part, tensors in enumerate((first, second), start=1):
        file = f"model-{part:05d}-of-00002.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        files.update(dict.fromkeys(tensors, file))
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    write_words(checkpoint, folder, {"num_hidden_layers": 2 * blocks})


def main() -> None:
    """Write the twin of the checkpoint named on the command line."""
    from mobile_export.checkpoint import open_checkpoint

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    write_unshared_twin(open_checkpoint(asked.checkpoint), asked.folder)


if __name__ == "__main__":
    main()
