"""Checkpoints of real shape and little depth: random weights in the sizes people ship, with as few blocks as one asks for.

Memory and rates depend on shapes and counts, not on values, and a few blocks export in seconds.

    python -m benchmarks.real_shapes mobilellm-350m 4 work/mobilellm-350m-4
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes, as config.json spells them; the head is tied, as in all of these."""

    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    vocab_size: int


SHAPES = {
    "smollm2-135m": Shape(576, 9, 3, 1536, 49_152),
    "mobilellm-350m": Shape(960, 15, 5, 2560, 32_000),  # arXiv:2402.14905, appendix, and the released config.json
}


def write_real_shape(shape: Shape, blocks: int, folder: Path) -> None:
    """Write a Hugging Face folder in bfloat16, without a tokenizer; the config last: a folder that has one is whole."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    head_dim = shape.hidden_size // shape.num_attention_heads
    queries, keys = shape.num_attention_heads * head_dim, shape.num_key_value_heads * head_dim

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return (torch.randn(rows, columns, generator=generator) * 0.04).to(torch.bfloat16)

    ones = torch.ones(shape.hidden_size, dtype=torch.bfloat16)
    tensors = {"model.embed_tokens.weight": matrix(shape.vocab_size, shape.hidden_size), "model.norm.weight": ones}
    for block in range(blocks):
        at = f"model.layers.{block}."
        tensors |= {
            f"{at}input_layernorm.weight": ones.clone(),
            f"{at}post_attention_layernorm.weight": ones.clone(),
            f"{at}self_attn.q_proj.weight": matrix(queries, shape.hidden_size),
            f"{at}self_attn.k_proj.weight": matrix(keys, shape.hidden_size),
            f"{at}self_attn.v_proj.weight": matrix(keys, shape.hidden_size),
            f"{at}self_attn.o_proj.weight": matrix(shape.hidden_size, queries),
            f"{at}mlp.gate_proj.weight": matrix(shape.intermediate_size, shape.hidden_size),
            f"{at}mlp.up_proj.weight": matrix(shape.intermediate_size, shape.hidden_size),
            f"{at}mlp.down_proj.weight": matrix(shape.hidden_size, shape.intermediate_size),
        }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": blocks,
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_key_value_heads,
        "intermediate_size": shape.intermediate_size,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def main() -> None:
    """Write the shape named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("blocks", type=int)
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    write_real_shape(SHAPES[asked.shape], asked.blocks, asked.folder)


if __name__ == "__main__":
    main()
