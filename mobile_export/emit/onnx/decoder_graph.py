"""The decoder as an ONNX graph, written node by node: nothing is traced.

Every execution of the schedule has nodes and a KV slot of its own; stored blocks are initializers, named by all their
executions. Values are named so that onnxruntime-genai binds them: input_ids, attention_mask, past_key_values.N.key ...
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
import torch

from mobile_export.emit.onnx.graph import MICROSOFT, Attribute, GraphWriter
from mobile_export.emit.onnx.matrices import Matrices
from mobile_export.quantize.weights import ModelWeights

OPSET = 23  # RMSNormalization is a standard operator from here on
FLOATS = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16}


@dataclass(frozen=True)
class OnnxOptions:
    """What a model.onnx is built for.

    max_context: rows of the rotary tables, and so the longest sequence.
    all_logits: logits of every position, not of the last one alone.
    activations: "float32", or "float16" for processors that compute in it.
    """

    max_context: int
    all_logits: bool = False
    activations: Literal["float32", "float16"] = "float32"


@dataclass(frozen=True)
class KvScales:
    """What int8 keys and values of one slot are multiplied with: float32 (kv_heads * head_dim,) each."""

    key: np.ndarray
    value: np.ndarray


@dataclass(frozen=True)
class _Stream:
    """The residual stream; `added` is a sublayer's output not summed yet: the next norm does it on the way."""

    residual: ir.Value
    added: ir.Value | None = None


@dataclass(frozen=True)
class _Positions:
    """What every attention node takes of the sequence: last valid row of each batch entry, rows in all, rotary tables."""

    last_row: ir.Value
    rows: ir.Value
    cos: ir.Value
    sin: ir.Value


class DecoderGraph:
    """Writes one decoder; `build` gives the finished graph."""

    def __init__(self, writer: GraphWriter, weights: ModelWeights, options: OnnxOptions) -> None:
        self.writer, self.weights, self.options = writer, weights, options
        self.spec, self.plan = weights.recognised.spec, weights.plan
        self.matrices = Matrices(writer, weights)

    def build(self, kv_scales: Sequence[KvScales] | None, say: Callable[[str], None]) -> ir.Graph:
        """Write every node; weights are read, quantized and written to the weights file one by one.

        Args:
            kv_scales: one per slot for an int8 KV cache, None for a float one.
            say: told what is under way, a line at a time.
        Raises:
            InputError: a weight that cannot be read or is not finite.
        """
        tokens = self.writer.input("input_ids", ir.DataType.INT64, ("batch", "tokens"))
        mask = self.writer.input("attention_mask", ir.DataType.INT64, ("batch", "total"))
        positions = self._positions(mask)
        stream = _Stream(self.matrices.gather(tokens, "embedding"))
        past: list[ir.Value] = []
        present: list[ir.Value] = []
        for slot, stored in enumerate(self.plan.schedule):
            say(f"writing execution {slot + 1} of {len(self.plan.schedule)}")
            cache = [self._cache("past_key_values", slot, kind, "past", kv_scales is not None) for kind in ("key", "value")]
            scales = kv_scales[slot] if kv_scales else None
            attended, stream = self._attention(stream, slot, stored, positions, cache, scales)
            for value, kind in zip(attended[1:], ("key", "value"), strict=True):
                shape = self._cache("present", slot, kind, "present", kv_scales is not None)
                value.type, value.shape = shape.type, shape.shape
            if slot + 1 == len(self.plan.schedule) and not self.options.all_logits:
                last, stream = self._last_token(attended[0], stream)
                attended = (last, *attended[1:])
            stream = self._feed_forward(attended[0], stream, slot, stored)
            past += cache
            present += attended[1:]
        return ir.Graph(
            [tokens, mask, *past],
            [self._head(stream), *present],
            nodes=self.writer.nodes,
            initializers=list(self.writer.initializers.values()),
            opset_imports={"": OPSET, MICROSOFT: 1},
            name=self.spec.family,
            doc_string=f"{len(self.plan.blocks)} stored blocks in {len(self.plan.schedule)} executions ({self.plan.order})",
        )

    def _positions(self, mask: ir.Value) -> _Positions:
        """From the mask alone, so that the caller need not number positions."""
        write = self.writer
        one = write.constant("positions.one", np.array([1], np.int64))
        count = write.node("ReduceSum", (mask, one), "positions.count", {"keepdims": 0})
        last = write.node("Sub", (count, one), "positions.last_row.int64")
        total = write.node("Shape", (mask,), "positions.total", {"start": 1})
        scalar = write.node("Squeeze", (total,), "positions.rows.int64")
        rope = self.spec.rope
        angle = torch.outer(torch.arange(self.options.max_context).float(), torch.tensor(rope.inverse_frequencies))
        cos, sin = (table.numpy() * np.float32(rope.attention_factor) for table in (angle.cos(), angle.sin()))
        return _Positions(
            write.node("Cast", (last,), "positions.last_row", {"to": ir.DataType.INT32}),
            write.node("Cast", (scalar,), "positions.rows", {"to": ir.DataType.INT32}),
            write.floats("positions.cos", cos, "positions"),
            write.floats("positions.sin", sin, "positions"),
        )

    def _attention(
        self,
        stream: _Stream,
        slot: int,
        stored: int,
        positions: _Positions,
        cache: Sequence[ir.Value],
        scales: KvScales | None,
    ) -> tuple[tuple[ir.Value, ...], _Stream]:
        """Attended values with the slot's new key and value; the stream."""
        spec, write, block, here = self.spec, self.writer, f"blocks.{stored}.attention", f"execution.{slot}.attention"
        x, stream = self._norm(stream, f"{block}.norm", f"{here}.norm")
        joined = self.matrices.linear(x, f"{block}.qkv", f"{here}.qkv", bias=spec.qkv_bias)
        attributes: dict[str, Attribute] = {
            "num_heads": spec.num_attention_heads,
            "kv_num_heads": spec.num_key_value_heads,
            "scale": spec.head_dim**-0.5,
            "do_rotary": 1,
            "rotary_interleaved": 0,
        }
        inputs = [joined, None, None, *cache, positions.last_row, positions.rows, positions.cos, positions.sin]
        if scales:
            inputs += [None, None, None, *(self._kv_scale(slot, kind, scales) for kind in ("key", "value"))]
            attributes |= {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
        outputs = (here, f"present.{slot}.key", f"present.{slot}.value")
        doc = f"stored block {stored}, KV slot {slot}"
        return tuple(write.node_of_many("GroupQueryAttention", inputs, here, outputs, attributes, doc)), stream

    def _feed_forward(self, attended: ir.Value, stream: _Stream, slot: int, stored: int) -> _Stream:
        spec, block, here = self.spec, f"blocks.{stored}.ffn", f"execution.{slot}.ffn"
        o = self.matrices.linear(attended, f"{block}.o", f"{here}.o", bias=spec.o_bias)
        x, stream = self._norm(_Stream(stream.residual, o), f"{block}.norm", f"{here}.norm")
        gate = self.matrices.linear(x, f"{block}.gate", f"{here}.gate", bias=spec.ffn_bias)
        up = self.matrices.linear(x, f"{block}.up", f"{here}.up", bias=spec.ffn_bias)
        product = self.writer.node("Mul", (self._activation(gate, here), up), f"{here}.product")
        return _Stream(stream.residual, self.matrices.linear(product, f"{block}.down", f"{here}.down", bias=spec.ffn_bias))

    def _head(self, stream: _Stream) -> ir.Value:
        x, _ = self._norm(stream, "head.norm", "head.norm")
        logits = self.matrices.linear(x, "head.linear", "head.linear")
        if self.writer.float_type != ir.DataType.FLOAT:
            logits = self.writer.node("Cast", (logits,), "head.float32", {"to": ir.DataType.FLOAT})
        logits.name = "logits"
        logits.type = ir.TensorType(ir.DataType.FLOAT)
        logits.shape = ir.Shape(("batch", "tokens" if self.options.all_logits else 1, self.spec.vocab_size))
        return logits

    def _norm(self, stream: _Stream, place: str, name: str) -> tuple[ir.Value, _Stream]:
        """The normed sum of a stream, and the stream summed."""
        weight = self.writer.floats(f"{place}.weight", self.weights.float32(f"{place}.weight").numpy(), "norms")
        if stream.added is None:
            attributes: dict[str, Attribute] = {"axis": -1, "epsilon": self.spec.norm_eps}
            return self.writer.node("RMSNormalization", (stream.residual, weight), name, attributes), stream
        outputs = (name, "", "", f"{name}.sum")
        inputs = (stream.residual, stream.added, weight)
        normed, _, _, total = self.writer.node_of_many(
            "SkipSimplifiedLayerNormalization", inputs, name, outputs, {"epsilon": self.spec.norm_eps}
        )
        return normed, _Stream(total)

    def _activation(self, x: ir.Value, here: str) -> ir.Value:
        name = f"{here}.activation"
        if self.spec.hidden_act == "relu":
            return self.writer.node("Relu", (x,), name)
        if self.spec.hidden_act == "gelu":
            return self.writer.node("Gelu", (x,), name)
        sigmoid = self.writer.node("Sigmoid", (x,), f"{name}.sigmoid")
        return self.writer.node("Mul", (x, sigmoid), name)

    def _last_token(self, attended: ir.Value, stream: _Stream) -> tuple[ir.Value, _Stream]:
        """What follows the last attention is computed for the last token alone: nobody asks for the others."""
        last = self.writer.constant("positions.last", np.array([-1], np.int64))
        picked, residual = (
            self.writer.node("Gather", (value, last), f"last_token.{name}", {"axis": 1})
            for value, name in ((attended, "attended"), (stream.residual, "stream"))
        )
        return picked, _Stream(residual)

    def _cache(self, name: str, slot: int, kind: str, rows: str, quantized: bool) -> ir.Value:
        dtype = ir.DataType.INT8 if quantized else self.writer.float_type
        shape = ("batch", self.spec.num_key_value_heads, rows, self.spec.head_dim)
        return self.writer.input(f"{name}.{slot}.{kind}", dtype, shape)

    def _kv_scale(self, slot: int, kind: str, scales: KvScales) -> ir.Value:
        values = scales.key if kind == "key" else scales.value
        return self.writer.constant(f"execution.{slot}.attention.{kind}_scale", values, "positions")
