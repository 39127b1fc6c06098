"""Models of real shape as `check` knows them: sizes alone, no file and no weight."""

from __future__ import annotations

from typing import Any

from mobile_export.budget.facts import ModelFacts
from mobile_export.families.spec import BlockSpec, DecoderSpec, RopeSpec
from mobile_export.quantize.matrix_plan import MatrixPlan, uses
from mobile_export.quantize.recipe import read_recipe

SMOLLM2_135M = {"hidden": 576, "heads": 9, "kv_heads": 3, "ffn": 1536, "vocab": 49_152}
MOBILELLM_350M = {"hidden": 960, "heads": 15, "kv_heads": 5, "ffn": 2560, "vocab": 32_000}


def model(
    shape: dict[str, int],
    blocks: int,
    *,
    recipe: str = "w4-fast",
    context: int = 512,
    repeats: int = 1,
    tied: bool = True,
    form: Any = "pte",
    kv_dtype: str = "float32",
    **more: Any,
) -> ModelFacts:
    """A Llama of some shape; repeats: each block so often in a row. more: fields of ModelFacts."""
    hidden, heads, kv_heads, ffn, vocab = (shape[key] for key in ("hidden", "heads", "kv_heads", "ffn", "vocab"))
    head_dim = hidden // heads
    spec = DecoderSpec(
        family="llama",
        vocab_size=vocab,
        hidden_size=hidden,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=ffn,
        max_position_embeddings=8192,
        norm_eps=1e-5,
        hidden_act="silu",
        ropes=(RopeSpec((1.0,) * (head_dim // 2)),),
        blocks=(BlockSpec(),) * blocks,
    )
    schedule = tuple(block for block in range(blocks) for _ in range(repeats))
    shapes = {"embedding.weight": (vocab, hidden)} | ({} if tied else {"head.linear.weight": (vocab, hidden)})
    for block in range(blocks):
        at = f"blocks.{block}."
        shapes |= {
            f"{at}attention.qkv.weight": ((heads + 2 * kv_heads) * head_dim, hidden),
            f"{at}ffn.o.weight": (hidden, hidden),
            f"{at}ffn.gate.weight": (ffn, hidden),
            f"{at}ffn.up.weight": (ffn, hidden),
            f"{at}ffn.down.weight": (hidden, ffn),
        }
    stored = read_recipe(recipe)
    matrices = tuple(
        MatrixPlan(name, size, stored.precision_of(name), uses(name, schedule, tied=tied)) for name, size in shapes.items()
    )
    values: dict[str, Any] = {
        "format": form,
        "spec": spec,
        "recipe": stored,
        "matrices": matrices,
        "blocks": tuple(range(blocks)),
        "schedule": schedule,
        "tied": tied,
        "slots": len(schedule),
        "kv_dtype": kv_dtype,
        "state_bytes": 0,
        "max_context": context,
        "prompt_chunk": min(128, context),
        "float_bytes": 4 * hidden * (2 * blocks + 1),
        "graph_bytes": 20_000 + 10_000 * len(schedule),
        "trained_context": 8192,
    }
    return ModelFacts(**{**values, **more})


__all__ = ["MOBILELLM_350M", "SMOLLM2_135M", "model"]
