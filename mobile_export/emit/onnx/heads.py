"""Query, key and value apart, normed and rotated by nodes of their own, where the attention operator does not do it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mobile_export.emit.onnx.graph import Attribute, GraphWriter
from mobile_export.emit.onnx.norms import Norms
from mobile_export.emit.onnx.operators import Execution
from mobile_export.emit.onnx.positions import Positions


class Heads:
    """Takes the joined projection apart."""

    def __init__(self, writer: GraphWriter, norms: Norms, positions: Positions) -> None:
        self.writer, self.norms, self.positions, self.spec = writer, norms, positions, positions.spec

    def apart(self, joined: ir.Value, execution: Execution, *, rotate: bool) -> tuple[ir.Value, ir.Value, ir.Value]:
        """[batch, T, qkv_size] -> query [batch, T, attended_size], key and value [batch, T, kv_heads * head_dim].

        Args:
            rotate: here, not by the attention operator; a norm after the rotation needs it so.
        """
        spec, kind, here = self.spec, execution.kind, f"{execution.name}.attention"
        kv_size = spec.num_key_value_heads * spec.head_dim
        sizes = self.writer.constant("heads.sizes", np.array([spec.attended_size, kv_size, kv_size], np.int64))
        names = [f"{here}.{part}" for part in ("query", "key", "value")]
        query, key, value = self.writer.node_of_many("Split", (joined, sizes), f"{here}.split", names, {"axis": -1})
        if kind.qk_norm != "l2":
            query, key = self._norm(query, key, execution)
        if rotate and kind.rope is not None:
            query = self._rotate(query, kind.rope, spec.num_attention_heads, f"{here}.query.rotated")
            key = self._rotate(key, kind.rope, spec.num_key_value_heads, f"{here}.key.rotated")
        if kind.qk_norm == "l2":
            query, key = self._norm(query, key, execution)
        if execution.rule.query_temperature:
            factor = self.positions.temperature(execution.rule)
            query = self.writer.node("Mul", (query, factor), f"{here}.query.tempered")
        return query, key, value

    def _norm(self, query: ir.Value, key: ir.Value, execution: Execution) -> tuple[ir.Value, ir.Value]:
        kind, here, place = execution.kind.qk_norm, f"{execution.name}.attention", f"blocks.{execution.stored}.attention"
        if kind == "none":
            return query, key
        heads, kv_heads, size = self.spec.num_attention_heads, self.spec.num_key_value_heads, self.spec.head_dim
        return (
            self.norms.over_heads(query, f"{place}.q_norm", kind, heads, size, f"{here}.q_norm"),
            self.norms.over_heads(key, f"{place}.k_norm", kind, kv_heads, size, f"{here}.k_norm"),
        )

    def _rotate(self, x: ir.Value, rope: int, heads: int, name: str) -> ir.Value:
        given = self.spec.ropes[rope]
        rotated = 2 * len(given.inverse_frequencies)
        attributes: dict[str, Attribute] = {"num_heads": heads, "interleaved": int(given.interleaved)}
        if rotated < self.spec.head_dim:
            attributes["rotary_embedding_dim"] = rotated
        inputs = (x, *self.positions.tables(rope), self.positions.ids())
        return self.writer.node("RotaryEmbedding", inputs, name, attributes)
