"""A decoder in onnxruntime's own operators: quantized products, grouped-query attention, sums folded into norms."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from mobile_export.emit.onnx.graph import Attribute, GraphWriter
from mobile_export.emit.onnx.heads import Heads
from mobile_export.emit.onnx.norms import Norms
from mobile_export.emit.onnx.operators import Execution, KvScales
from mobile_export.emit.onnx.positions import Positions
from mobile_export.quantize.weights import ModelWeights


class ContribOperators:
    """Operators of the domain com.microsoft wherever they are faster."""

    def __init__(self, writer: GraphWriter, weights: ModelWeights, positions: Positions) -> None:
        self.writer, self.positions, self.spec = writer, positions, positions.spec
        self.norms = Norms(writer, weights, positions.spec.norm)
        self.heads = Heads(writer, self.norms, positions)

    def norm(self, x: ir.Value, added: ir.Value | None, place: str, name: str) -> tuple[ir.Value, ir.Value]:
        """The norm at a place over x, or over its sum with `added`; and that sum."""
        if added is None:
            return self.norms.over_stream(x, place, name), x
        operator = "SkipLayerNormalization" if self.spec.norm == "layer" else "SkipSimplifiedLayerNormalization"
        inputs = (x, added, *self.norms.stream_inputs(place))
        normed, _, _, total = self.writer.node_of_many(
            operator, inputs, name, (name, "", "", f"{name}.sum"), {"epsilon": self.spec.norm_eps}
        )
        return normed, total

    def attention(self, joined: ir.Value, execution: Execution) -> Sequence[ir.Value]:
        """Joined query, key and value -> attended values, present key, present value."""
        spec, kind, rule, here = self.spec, execution.kind, execution.rule, f"{execution.name}.attention"
        attributes: dict[str, Attribute] = {
            "num_heads": spec.num_attention_heads,
            "kv_num_heads": spec.num_key_value_heads,
            "scale": rule.scale,
        }
        if rule.softcap is not None:
            attributes["softcap"] = rule.softcap
        if rule.window is not None:
            attributes["local_window_size"] = rule.window
        inputs: list[ir.Value | None] = [joined, None, None]
        rope = None if kind.qk_norm == "l2" or not self._rotates(kind.rope) else kind.rope  # what the operator itself does
        if kind.qk_norm != "none" or rule.query_temperature or rope != kind.rope:
            inputs = list(self.heads.apart(joined, execution, rotate=rope is None))
        cos = sin = None
        if rope is not None:
            cos, sin = self.positions.tables(rope)
            attributes |= {"do_rotary": 1, "rotary_interleaved": int(spec.ropes[rope].interleaved)}
        bias = self.positions.bias(rule, causal=False)
        inputs += [*execution.cache, self.positions.last_row(), self.positions.rows(), cos, sin, None, bias]
        if execution.kv_scales:
            scales = execution.kv_scales
            inputs += [None, self._kv_scale(here, "key", scales), self._kv_scale(here, "value", scales)]
            attributes |= {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
        while inputs[-1] is None:
            inputs.pop()
        outputs = (here, f"present.{execution.slot}.key", f"present.{execution.slot}.value")
        doc = f"stored block {execution.stored}, KV slot {execution.slot}"
        return self.writer.node_of_many("GroupQueryAttention", inputs, here, outputs, attributes, doc)

    def _rotates(self, rope: int | None) -> bool:
        """Whether the attention operator takes heads and rotations of this width; it asks for multiples of 16."""
        return rope is not None and self.spec.head_dim % 16 == 0 and len(self.spec.ropes[rope].inverse_frequencies) % 8 == 0

    def _kv_scale(self, here: str, part: str, scales: KvScales) -> ir.Value:
        values = scales.key if part == "key" else scales.value
        return self.writer.constant(f"{here}.{part}_scale", values, "positions")
