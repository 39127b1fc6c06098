"""A checkpoint that computes the same and is harder to quantize: channels rescaled between norms, linears and each other.

Scales that cancel go between a norm and the linears behind it, between value and output projection, and between up and
down projection. SmolLM2-135M's packaged weights were rounded to a 4-bit grid once before, which flatters every 4-bit
quantizer; here that grid is gone, and magnitudes are spread more than training would spread them.

    python -m benchmarks.rescaled smollm2-135m work/rescaled
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.hf_folder import LLAMA, write_words

if TYPE_CHECKING:
    import torch

    from mobile_export.checkpoint import Checkpoint

SPREAD = 0.5  # a channel's scale is exp(U(-SPREAD, SPREAD))


def write_rescaled(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the Hugging Face folder of a Llama without biases, float32."""
    from safetensors.torch import save_file

    from mobile_export.checkpoint import read_float32

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: read_float32(tensor).clone() for name, tensor in checkpoint.tensors.items()}
    rescale(tensors, int(checkpoint.config["num_attention_heads"]), int(checkpoint.config["num_key_value_heads"]))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_words(checkpoint, folder, LLAMA)


def rescale(tensors: dict[str, torch.Tensor], heads: int, kv_heads: int) -> None:
    """Rescale every block in place; seeded."""
    import torch

    generator = torch.Generator().manual_seed(5)

    def scales(count: int) -> torch.Tensor:
        return torch.exp((2 * torch.rand(count, generator=generator) - 1) * SPREAD)

    for prefix in sorted({name[: name.index("self_attn.")] for name in tensors if "self_attn." in name}):
        for norm, linears in (
            ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            by = scales(len(tensors[f"{prefix}{norm}.weight"]))
            tensors[f"{prefix}{norm}.weight"] /= by
            for linear in linears:
                tensors[f"{prefix}{linear}.weight"] *= by
        value, up = tensors[f"{prefix}self_attn.v_proj.weight"], tensors[f"{prefix}mlp.up_proj.weight"]
        by = scales(len(value))
        value /= by[:, None]
        each = by.view(kv_heads, -1).repeat_interleave(heads // kv_heads, dim=0)  # a value head serves several query heads
        tensors[f"{prefix}self_attn.o_proj.weight"] *= each.flatten()
        by = scales(len(up))
        up /= by[:, None]
        tensors[f"{prefix}mlp.down_proj.weight"] *= by


def main() -> None:
    """Write the folder of the checkpoint named on the command line."""
    from mobile_export.checkpoint import open_checkpoint

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    write_rescaled(open_checkpoint(asked.checkpoint), asked.folder)


if __name__ == "__main__":
    main()
