"""The shape of every matrix of a graph from its name and the spec: a manifest names its matrices and gives no shapes."""

from __future__ import annotations

from mobile_export.families.spec import DecoderSpec, RwkvSpec
from mobile_export.quantize.recipe import EMBEDDING, HEAD, POSITIONS


def matrix_shape(name: str, spec: DecoderSpec | RwkvSpec) -> tuple[int, int] | None:
    """(out_features, in_features) of a matrix by its graph name, e.g. "blocks.3.ffn.down.weight".

    None for a name no graph of ours has.
    """
    hidden, wide, table = spec.hidden_size, spec.intermediate_size, spec.table_size
    whole = {EMBEDDING: (spec.vocab_size, table), HEAD: (spec.vocab_size, table)}
    if isinstance(spec, RwkvSpec):
        inner = spec.attention_hidden_size
        place = {
            "attention.key": (inner, hidden),
            "attention.value": (inner, hidden),
            "attention.receptance": (inner, hidden),
            "attention.output": (hidden, inner),
            "ffn.key": (wide, hidden),
            "ffn.receptance": (hidden, hidden),
            "ffn.value": (hidden, wide),
        }
    else:
        whole |= {
            POSITIONS: (spec.learned_positions, hidden),
            "embedding.project.weight": (hidden, table),
            "head.project.weight": (table, hidden),
        }
        block = name.split(".")[1] if name.startswith("blocks.") else ""
        conv = block.isdigit() and int(block) < len(spec.blocks) and spec.blocks[int(block)].mixer == "conv"
        place = {
            "attention.qkv": (spec.qkv_size, hidden),
            "conv.in": (3 * hidden, hidden),
            "ffn.o": (hidden, hidden if conv else spec.attended_size),
            "ffn.gate": (wide, hidden),
            "ffn.up": (wide, hidden),
            "ffn.down": (hidden, wide),
        }
    if not name.startswith("blocks."):
        return whole.get(name)
    return place.get(name.split(".", 2)[2].removesuffix(".weight"))
