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

from mobile_export.emit.onnx.contrib import ContribOperators
from mobile_export.emit.onnx.embedding import embedded
from mobile_export.emit.onnx.graph import MICROSOFT, GraphWriter
from mobile_export.emit.onnx.operators import OPSET, Execution, KvScales, Operators, Products
from mobile_export.emit.onnx.positions import Positions
from mobile_export.emit.onnx.short_conv import ShortConvolutions
from mobile_export.emit.onnx.standard import StandardOperators
from mobile_export.families.spec import BlockSpec
from mobile_export.model.attention_rule import attention_rules
from mobile_export.quantize.recipe import POSITIONS
from mobile_export.quantize.weights import ModelWeights

FLOATS = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16}


@dataclass(frozen=True)
class OnnxOptions:
    """What a model.onnx is built for.

    max_context: rows of the position tables, and so the longest sequence.
    all_logits: logits of every position, not of the last one alone.
    activations: "float32", or "float16" for processors that compute in it.
    portable: operators of the ONNX standard alone; float32 activations and cache.
    """

    max_context: int
    all_logits: bool = False
    activations: Literal["float32", "float16"] = "float32"
    portable: bool = False


@dataclass(frozen=True)
class _Stream:
    """The residual stream; `added` is a sublayer's output not summed yet: the next norm does it on the way."""

    residual: ir.Value
    added: ir.Value | None = None


class DecoderGraph:
    """Writes one decoder; `build` gives the finished graph."""

    def __init__(self, writer: GraphWriter, weights: ModelWeights, products: Products, options: OnnxOptions) -> None:
        self.writer, self.weights, self.products, self.options = writer, weights, products, options
        self.spec, self.plan = weights.recognised.decoder, weights.plan
        self.tokens = writer.input("input_ids", ir.DataType.INT64, ("batch", "tokens"))
        self.mask = writer.input("attention_mask", ir.DataType.INT64, ("batch", "total"))
        self.positions = Positions(writer, self.spec, options.max_context, self.tokens, self.mask)
        operators = StandardOperators if options.portable else ContribOperators
        self.use: Operators = operators(writer, weights, self.positions)
        self.convolutions = ShortConvolutions(writer, weights, self.spec)

    def build(self, kv_scales: Sequence[KvScales] | None, say: Callable[[str], None]) -> ir.Graph:
        """Write every node; weights are read, quantized and written to the weights file one by one.

        Args:
            kv_scales: one per slot for an int8 KV cache, None for a float one.
            say: told what is under way, a line at a time.
        Raises:
            InputError: a weight that cannot be read or is not finite.
        """
        stream = _Stream(self._entry())
        past: list[ir.Value] = []
        present: list[ir.Value] = []
        for execution in self._executions(kv_scales):
            say(f"writing execution {execution.slot + 1} of {len(self.plan.schedule)}")
            attended, stream, kept = self._mix(stream, execution)
            past += execution.cache
            present += kept
            if execution.slot + 1 == len(self.plan.schedule) and not self.options.all_logits:
                attended, stream = self._last_token(attended, stream)
            stream = self._feed_forward(attended, stream, execution)
        return ir.Graph(
            [self.tokens, self.mask, *past],
            [self._head(stream), *present],
            nodes=self.writer.nodes,
            initializers=self.writer.used_initializers(),
            opset_imports={"": OPSET, MICROSOFT: 1},
            name=self.spec.family,
            doc_string=f"{len(self.plan.blocks)} stored blocks in {len(self.plan.schedule)} executions ({self.plan.order})",
        )

    def _executions(self, kv_scales: Sequence[KvScales] | None) -> list[Execution]:
        rules = attention_rules(self.spec, self.plan.blocks, self.plan.schedule)
        kinds = [self.spec.blocks[self.plan.blocks[stored]] for stored in self.plan.schedule]
        scales = [kv_scales[slot] if kv_scales else None for slot in range(len(kinds))]
        caches = [self._cache("past", slot, kind, scale) for slot, (kind, scale) in enumerate(zip(kinds, scales, strict=True))]
        return [
            Execution(slot, stored, kinds[slot], rules[slot], caches[slot], scales[slot])
            for slot, stored in enumerate(self.plan.schedule)
        ]

    def _cache(
        self, kind: Literal["past", "present"], slot: int, block: BlockSpec, scales: KvScales | None
    ) -> tuple[ir.Value, ...]:
        """What a slot keeps: key and value as onnxruntime-genai names them, or the last columns of a convolution."""
        write, spec = self.writer, self.spec
        if block.mixer == "conv":
            return (write.input(f"{kind}_conv.{slot}", write.float_type, ("batch", spec.conv_kernel - 1, spec.hidden_size)),)
        dtype = ir.DataType.INT8 if scales else write.float_type
        shape = ("batch", spec.num_key_value_heads, kind, spec.head_dim)
        name = "past_key_values" if kind == "past" else kind
        return tuple(write.input(f"{name}.{slot}.{part}", dtype, shape) for part in ("key", "value"))

    def _entry(self) -> ir.Value:
        """Tokens to residual stream: the table's rows, scaled, projected, moved by their positions, normed."""
        spec = self.spec
        x = embedded(self.tokens, self.writer, self.products, self.weights)
        if spec.embedding_scale != 1:
            x = self._times(x, spec.embedding_scale, "embedding.scaled")
        if spec.table_size != spec.hidden_size:
            x = self.products.linear(x, "embedding.project", "embedding.project")
        if spec.learned_positions:
            # The quantized gather gives zeros for a row that is not there; this one refuses a position beyond the context.
            of_position = np.arange(self.options.max_context, dtype=np.int64) + spec.position_offset
            table_rows = self.writer.constant("positions.rows_of_the_table", of_position, "positions")
            rows = self.writer.node("Gather", (table_rows, self.positions.ids()), "positions.table_row", {"axis": 0})
            x = self.writer.node("Add", (x, self.products.gather(POSITIONS, rows, "positions")), "embedding.placed")
        return self.use.norm(x, None, "embedding.norm", "embedding.norm")[0] if spec.embedding_norm else x

    def _mix(self, stream: _Stream, execution: Execution) -> tuple[ir.Value, _Stream, Sequence[ir.Value]]:
        """What is mixed over positions, the stream, and what the slot keeps."""
        spec, conv = self.spec, execution.kind.mixer == "conv"
        block, here = (f"{of}.{execution.kind.mixer}" for of in (f"blocks.{execution.stored}", execution.name))
        x = stream.residual
        if spec.norm_placement != "post":
            x, stream = self._norm(stream, f"{block}.norm", f"{here}.norm")
        if conv:
            joined = self.products.linear(x, f"{block}.in", f"{here}.in", bias=spec.conv_bias)
            mixed, *kept = self.convolutions.mix(joined, execution)
        else:
            joined = self.products.linear(x, f"{block}.qkv", f"{here}.qkv", bias=spec.qkv_bias)
            mixed, *kept = self.use.attention(joined, execution)
        like = self._cache("present", execution.slot, execution.kind, execution.kv_scales)
        for value, shaped in zip(kept, like, strict=True):
            value.name, value.type, value.shape = shaped.name, shaped.type, shaped.shape
        return mixed, stream, kept

    def _feed_forward(self, attended: ir.Value, stream: _Stream, execution: Execution) -> _Stream:
        block, here = f"blocks.{execution.stored}.ffn", f"{execution.name}.ffn"
        conv = execution.kind.mixer == "conv"
        o = self.products.linear(attended, f"{block}.o", f"{here}.o", bias=self.spec.conv_bias if conv else self.spec.o_bias)
        if self.spec.parallel_residual:
            x, stream = self._norm(stream, f"{block}.norm", f"{here}.norm")
            both = self.writer.node("Add", (o, self._feed(x, block, here)), f"{here}.both")
            return _Stream(stream.residual, both)
        stream = self._add(stream, o, f"{block}.o_norm", f"{here}.o_norm")
        if self.spec.norm_placement == "post":
            x = stream.residual
        else:
            x, stream = self._norm(stream, f"{block}.norm", f"{here}.norm")
        return self._add(stream, self._feed(x, block, here), f"{block}.down_norm", f"{here}.down_norm")

    def _add(self, stream: _Stream, y: ir.Value, place: str, name: str) -> _Stream:
        """Add to the residual stream; a norm is on the sum, or in a sandwich on what is added."""
        if self.spec.norm_placement == "post":
            return _Stream(self.use.norm(stream.residual, y, place, name)[0])
        return _Stream(stream.residual, self.use.norm(y, None, place, name)[0] if self.spec.norm_placement == "sandwich" else y)

    def _feed(self, x: ir.Value, block: str, here: str) -> ir.Value:
        bias = self.spec.ffn_bias
        up = self.products.linear(x, f"{block}.up", f"{here}.up", bias=bias)
        if self.spec.gated:
            gate = self.products.linear(x, f"{block}.gate", f"{here}.gate", bias=bias)
            up = self.writer.node("Mul", (self._activation(gate, here), up), f"{here}.product")
        else:
            up = self._activation(up, here)
        return self.products.linear(up, f"{block}.down", f"{here}.down", bias=bias)

    def _activation(self, x: ir.Value, here: str) -> ir.Value:
        name, act = f"{here}.activation", self.spec.hidden_act
        if act == "silu":  # onnxruntime fuses the two
            return self.writer.node("Mul", (x, self.writer.node("Sigmoid", (x,), f"{name}.sigmoid")), name)
        if act == "relu":
            return self.writer.node("Relu", (x,), name)
        return self.writer.node("Gelu", (x,), name, {"approximate": "tanh" if act == "gelu_tanh" else "none"})

    def _last_token(self, attended: ir.Value, stream: _Stream) -> tuple[ir.Value, _Stream]:
        """What follows the last attention is computed for the last token alone: nobody asks for the others."""
        last = self.writer.constant("last_token.index", np.array([-1], np.int64))

        def pick(value: ir.Value, name: str) -> ir.Value:
            return self.writer.node("Gather", (value, last), f"last_token.{name}", {"axis": 1})

        added = None if stream.added is None else pick(stream.added, "added")
        return pick(attended, "attended"), _Stream(pick(stream.residual, "stream"), added)

    def _head(self, stream: _Stream) -> ir.Value:
        spec = self.spec
        if spec.final_norm:
            x, _ = self._norm(stream, "head.norm", "head.norm")
        else:
            x = self._summed(stream, "head.stream")
        if spec.table_size != spec.hidden_size:
            x = self.products.linear(x, "head.project", "head.project")
        logits = self.products.linear(x, "head.linear", "head.linear", bias=spec.head_bias)
        if spec.logit_scale != 1:
            logits = self._times(logits, spec.logit_scale, "head.scaled")
        if spec.logit_softcap is not None:
            capped = self.writer.node("Tanh", (self._times(logits, 1 / spec.logit_softcap, "head.divided"),), "head.tanh")
            logits = self._times(capped, spec.logit_softcap, "head.capped")
        return self.writer.logits(logits, "tokens" if self.options.all_logits else 1, spec.vocab_size)

    def _norm(self, stream: _Stream, place: str, name: str) -> tuple[ir.Value, _Stream]:
        """The normed sum of a stream, and the stream summed."""
        normed, total = self.use.norm(stream.residual, stream.added, place, name)
        return normed, _Stream(total)

    def _summed(self, stream: _Stream, name: str) -> ir.Value:
        return stream.residual if stream.added is None else self.writer.node("Add", (stream.residual, stream.added), name)

    def _times(self, x: ir.Value, factor: float, name: str) -> ir.Value:
        held = self.writer.floats(f"{name}.factor", np.array(factor, np.float32), "graph")
        return self.writer.node("Mul", (x, held), name)
