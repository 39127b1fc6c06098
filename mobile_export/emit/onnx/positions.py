"""What attention needs to know of positions, as nodes from the attention mask alone: the caller numbers nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import torch

from mobile_export.emit.onnx.graph import GraphWriter
from mobile_export.families.spec import DecoderSpec
from mobile_export.model.attention_rule import AttentionRule, alibi_bias, temperature

MASKED = -1e4  # added to a score that is not attended to: far below any score, and float16 holds it


class Positions:
    """Nodes about positions, each written when it is first asked for.

    tokens: input_ids, int64 [batch, T]. mask: attention_mask, int64 [batch, total], 1 where a row is valid.
    """

    def __init__(self, writer: GraphWriter, spec: DecoderSpec, context: int, tokens: ir.Value, mask: ir.Value) -> None:
        self.writer, self.spec, self.context = writer, spec, context
        self._tokens, self._mask = tokens, mask
        self._made: dict[str, ir.Value] = {}

    def last_row(self) -> ir.Value:
        """Last valid row of each batch entry, int32 [batch]."""
        return self._once("last_row", lambda name: self._cast(self._last_row(), name, ir.DataType.INT32))

    def rows(self) -> ir.Value:
        """Rows of the cache and the new tokens, int32 scalar."""
        return self._once("rows", lambda name: self._cast(self._total(), name, ir.DataType.INT32))

    def ids(self) -> ir.Value:
        """The position of every new token, int64 [batch, T]."""
        return self._once("ids", self._write_ids)

    def tables(self, rope: int) -> tuple[ir.Value, ir.Value]:
        """cos and sin of every position, float [context, rotated / 2]."""
        given = self.spec.ropes[rope]
        angle = torch.outer(torch.arange(self.context).float(), torch.tensor(given.inverse_frequencies))
        cos, sin = (table.numpy() * np.float32(given.attention_factor) for table in (angle.cos(), angle.sin()))
        return (
            self.writer.floats(f"positions.rope.{rope}.cos", cos, "positions"),
            self.writer.floats(f"positions.rope.{rope}.sin", sin, "positions"),
        )

    def temperature(self, rule: AttentionRule) -> ir.Value:
        """What the query of every new token is multiplied with, float [batch, T, 1]."""
        name = f"positions.temperature.{rule.query_temperature}"
        table = temperature(rule, torch.arange(self.context)).view(-1, 1).numpy()
        held = self.writer.floats(f"{name}.table", table, "positions")
        return self._once(name, lambda name: self.writer.node("Gather", (held, self.ids()), name, {"axis": 0}))

    def bias(self, rule: AttentionRule, *, causal: bool) -> ir.Value | None:
        """What is added to scores: float [1 or batch, 1 or heads, T, total]; None where it would be nothing.

        Args:
            causal: the past and the window are masked here, too, and not by the attention operator itself.
        """
        masks = causal or rule.chunk is not None
        if not masks and rule.alibi == "none":
            return None
        name = f"positions.bias.{rule.window if causal else None}.{rule.chunk}"
        masked = self._once(name, lambda name: self._write_mask(rule, name, causal)) if masks else None
        if rule.alibi == "none":
            return masked
        return self._once("positions.bias", lambda name: self._write_alibi(rule, name, masked))

    def _write_ids(self, name: str) -> ir.Value:
        write = self.writer
        shape = write.node("Shape", (self._tokens,), f"{name}.tokens", {"start": 1})
        length = write.node("Squeeze", (shape,), f"{name}.length")
        first = write.node("Sub", (self._count(), length), f"{name}.first")
        start = write.node("Unsqueeze", (first, self._int("one", [1])), f"{name}.start")
        offsets = write.node("Range", (self._int("zero", 0), length, self._int("step", 1)), f"{name}.offsets")
        return write.node("Add", (start, offsets), name)

    def _write_mask(self, rule: AttentionRule, name: str, causal: bool) -> ir.Value:
        write = self.writer
        row = write.node("Unsqueeze", (self.ids(), self._int("row_axes", [1, 3])), f"{name}.row")
        key = write.node("Range", (self._int("zero", 0), self._total(), self._int("step", 1)), f"{name}.key")
        seen = write.node("LessOrEqual", (key, row), f"{name}.past")
        if causal and rule.window is not None:
            beyond = write.node("Sub", (row, self._int(f"window.{rule.window}", rule.window)), f"{name}.beyond")
            near = write.node("Greater", (key, beyond), f"{name}.near")
            seen = write.node("And", (seen, near), f"{name}.window")
        if rule.chunk is not None:
            size = self._int(f"chunk.{rule.chunk}", rule.chunk)
            chunks = [write.node("Div", (of, size), f"{name}.{what}_chunk") for what, of in (("row", row), ("key", key))]
            same = write.node("Equal", chunks, f"{name}.same_chunk")
            seen = write.node("And", (seen, same), f"{name}.chunk")
        zero = write.floats("positions.seen", np.zeros((), np.float32), "graph")
        masked = write.floats("positions.masked", np.array(MASKED, np.float32), "graph")
        return write.node("Where", (seen, zero, masked), name)

    def _write_alibi(self, rule: AttentionRule, name: str, masked: ir.Value | None) -> ir.Value:
        write, spec = self.writer, self.spec
        table = alibi_bias(rule, spec.num_attention_heads, torch.arange(self.context))[None].numpy()
        held = write.floats("positions.alibi.table", table, "positions")
        total = write.node("Unsqueeze", (self._total(), self._int("row_axis", [0])), f"{name}.total")
        ends = (self._int("slice_from", [0]), total, self._int("slice_axis", [3]))
        keys = write.node("Slice", (held, *ends), f"{name}.alibi")
        if masked is not None:
            return write.node("Add", (keys, masked), name)
        length = write.node("Shape", (self._tokens,), f"{name}.tokens", {"start": 1})
        fixed = self._int("alibi_shape", [1, spec.num_attention_heads])
        shape = write.node("Concat", (fixed, length, total), f"{name}.shape", {"axis": 0})
        return write.node("Expand", (keys, shape), name)

    def _count(self) -> ir.Value:
        return self._once(
            "count", lambda name: self.writer.node("ReduceSum", (self._mask, self._int("one", [1])), name, {"keepdims": 0})
        )

    def _last_row(self) -> ir.Value:
        return self._once("last_row.int64", lambda name: self.writer.node("Sub", (self._count(), self._int("one", [1])), name))

    def _total(self) -> ir.Value:
        def write(name: str) -> ir.Value:
            shape = self.writer.node("Shape", (self._mask,), f"{name}.shape", {"start": 1})
            return self.writer.node("Squeeze", (shape,), name)

        return self._once("total", write)

    def _cast(self, value: ir.Value, name: str, dtype: ir.DataType) -> ir.Value:
        return self.writer.node("Cast", (value,), name, {"to": dtype})

    def _int(self, name: str, value: int | list[int]) -> ir.Value:
        return self.writer.constant(f"positions.{name}", np.array(value, np.int64))

    def _once(self, name: str, write: Callable[[str], ir.Value]) -> ir.Value:
        named = name if name.startswith("positions.") else f"positions.{name}"
        if named not in self._made:
            self._made[named] = write(named)
        return self._made[named]
