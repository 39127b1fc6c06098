"""RWKV-4 as an ONNX graph: products over all tokens at once, and a Scan that carries the state from token to token.

Source: arXiv:2305.13048, section 3 and appendix D; the same arithmetic as model/rwkv.py.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from mobile_export.emit.onnx.embedding import embedded
from mobile_export.emit.onnx.graph import MICROSOFT, GraphWriter
from mobile_export.emit.onnx.norms import Norms
from mobile_export.emit.onnx.operators import OPSET, Products
from mobile_export.families.spec import RwkvSpec
from mobile_export.model.rwkv import NOTHING_YET
from mobile_export.quantize.weights import ModelWeights

STATE = ("time_input", "channel_input", "numerator", "denominator", "maximum")


class RwkvGraph:
    """Writes one network; `build` gives the finished graph. A state of zeros begins a text."""

    def __init__(self, writer: GraphWriter, weights: ModelWeights, products: Products, *, all_logits: bool) -> None:
        assert isinstance(weights.recognised.spec, RwkvSpec)
        self.writer, self.weights, self.products, self.all_logits = writer, weights, products, all_logits
        self.spec, self.plan = weights.recognised.spec, weights.plan
        self.norms = Norms(writer, weights, "layer")

    def build(self, say: Callable[[str], None]) -> ir.Graph:
        """Write every node; weights are read, quantized and written to the weights file one by one.

        Args:
            say: told what is under way, a line at a time.
        Raises:
            InputError: a weight that cannot be read or is not finite.
        """
        tokens = self.writer.input("input_ids", ir.DataType.INT64, ("batch", "tokens"))
        x = embedded(tokens, self.writer, self.products, self.weights)
        x = self.norms.over_stream(x, "embedding.norm", "embedding.norm")
        past: list[ir.Value] = []
        present: list[ir.Value] = []
        for slot, stored in enumerate(self.plan.schedule):
            say(f"writing execution {slot + 1} of {len(self.plan.schedule)}")
            state = self._state("past_state", slot)
            mixed, kept = self._time_mix(x, slot, stored, state)
            x = self.writer.node("Add", (x, mixed), f"execution.{slot}.attention.sum")
            fed, newest = self._channel_mix(x, slot, stored, state[1])
            x = self.writer.node("Add", (x, fed), f"execution.{slot}.ffn.sum")
            for value, like in zip((kept[0], newest, *kept[1:]), self._state("present_state", slot), strict=True):
                value.name, value.type, value.shape = like.name, like.type, like.shape
                present.append(value)
            past += state
        return ir.Graph(
            [tokens, *past],
            [self._head(x), *present],
            nodes=self.writer.nodes,
            initializers=self.writer.used_initializers(),
            opset_imports={"": OPSET, MICROSOFT: 1},
            name=self.spec.family,
            doc_string=f"{len(self.plan.blocks)} stored blocks in {len(self.plan.schedule)} executions ({self.plan.order})",
        )

    def _state(self, name: str, slot: int) -> list[ir.Value]:
        """What a slot hands from call to call: two rows of the stream, three of the attention's width."""
        rows, wide = ("batch", 1, self.spec.hidden_size), ("batch", self.spec.attention_hidden_size)
        shapes = (rows, rows, wide, wide, wide)
        return [
            self.writer.input(f"{name}.{slot}.{part}", self.writer.float_type, shape)
            for part, shape in zip(STATE, shapes, strict=True)
        ]

    def _time_mix(self, x: ir.Value, slot: int, stored: int, state: list[ir.Value]) -> tuple[ir.Value, list[ir.Value]]:
        """What is added to the stream; the newest normed row, and the sums after the last token."""
        write, block, here = self.writer, f"blocks.{stored}.attention", f"execution.{slot}.attention"
        now = self.norms.over_stream(x, f"{block}.norm", f"{here}.norm")
        before, newest = self._shifted(now, state[0], here)
        key, value, receptance = (
            self.products.linear(self._share(now, before, block, here, part), f"{block}.{part}", f"{here}.{part}")
            for part in ("key", "value", "receptance")
        )
        gate = write.node("Sigmoid", (receptance,), f"{here}.gate")
        numerator, denominator, maximum = state[2:]
        begun = write.node("Greater", (denominator, self._scalar("nothing", 0)), f"{here}.begun")
        nothing_yet = max(NOTHING_YET, float(np.finfo(write.float_type.numpy()).min))  # float16 ends at -65504
        top = write.node("Where", (begun, maximum, self._scalar("nothing_yet", nothing_yet)), f"{here}.maximum")
        names = [f"{here}.scan.{part}" for part in (*STATE[2:], "mean")]
        inputs = (numerator, denominator, top, key, value)
        *sums, mean = self._scan(inputs, block, here, names)
        gated = write.node("Mul", (gate, mean), f"{here}.gated")
        return self.products.linear(gated, f"{block}.output", here), [newest, *sums]

    def _scan(self, inputs: tuple[ir.Value, ...], block: str, here: str, names: list[str]) -> tuple[ir.Value, ...]:
        """Numerator, denominator and maximum after the last token, and the decayed mean at every token."""
        body = GraphWriter(self.writer.weights_file, self.writer.float_type)
        wide = ("batch", self.spec.attention_hidden_size)
        above, below, top, key, value = (
            body.input(f"{here}.token.{part}", body.float_type, wide) for part in (*STATE[2:], "key", "value")
        )
        bonus, decay = (self._vector(f"{block}.{part}") for part in ("bonus", "decay"))
        favoured = body.node("Add", (key, bonus), f"{here}.token.favoured")
        weighed = self._weigh(body, top, favoured, (above, below), value, f"{here}.token.now")
        mean = body.node("Div", weighed[:2], f"{here}.token.mean")
        faded = body.node("Add", (top, decay), f"{here}.token.faded")
        kept = self._weigh(body, faded, key, (above, below), value, f"{here}.token.kept")
        graph = ir.Graph((above, below, top, key, value), (*kept, mean), nodes=body.nodes, name=f"{here}.token")
        for output in graph.outputs:
            output.type, output.shape = ir.TensorType(body.float_type), ir.Shape(wide)
        return tuple(self.writer.scan(inputs, graph, here, names, states=3, axis=1))

    def _weigh(
        self,
        body: GraphWriter,
        past: ir.Value,
        newest: ir.Value,
        sums: tuple[ir.Value, ir.Value],
        value: ir.Value,
        name: str,
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Both sums with the newest value in, over exp of the new maximum; and that maximum."""
        top = body.node("Max", (past, newest), f"{name}.maximum")
        of_past, of_newest = (
            body.node("Exp", (body.node("Sub", (x, top), f"{name}.{what}.log"),), f"{name}.{what}")
            for x, what in ((past, "past"), (newest, "newest"))
        )
        above, below = (body.node("Mul", (of_past, held), f"{name}.{i}.past") for i, held in enumerate(sums))
        added = body.node("Mul", (of_newest, value), f"{name}.value")
        return (
            body.node("Add", (above, added), f"{name}.numerator"),
            body.node("Add", (below, of_newest), f"{name}.denominator"),
            top,
        )

    def _channel_mix(self, x: ir.Value, slot: int, stored: int, before: ir.Value) -> tuple[ir.Value, ir.Value]:
        """What is added to the stream, and the newest normed row."""
        write, block, here = self.writer, f"blocks.{stored}.ffn", f"execution.{slot}.ffn"
        now = self.norms.over_stream(x, f"{block}.norm", f"{here}.norm")
        shifted, newest = self._shifted(now, before, here)
        key, receptance = (
            self.products.linear(self._share(now, shifted, block, here, part), f"{block}.{part}", f"{here}.{part}")
            for part in ("key", "receptance")
        )
        relu = write.node("Relu", (key,), f"{here}.relu")
        value = self.products.linear(write.node("Mul", (relu, relu), f"{here}.square"), f"{block}.value", f"{here}.value")
        gate = write.node("Sigmoid", (receptance,), f"{here}.gate")
        return write.node("Mul", (gate, value), here), newest

    def _shifted(self, now: ir.Value, first: ir.Value, here: str) -> tuple[ir.Value, ir.Value]:
        """Every position's predecessor, and the last position."""
        write = self.writer
        newest = write.node("Gather", (now, self._ints("last", [-1])), f"{here}.newest", {"axis": 1})
        bounds = (self._ints("begin", [0]), self._ints("last", [-1]), self._ints("axis", [1]))
        rest = write.node("Slice", (now, *bounds), f"{here}.rest")
        return write.node("Concat", (first, rest), f"{here}.before", {"axis": 1}), newest

    def _share(self, now: ir.Value, before: ir.Value, block: str, here: str, part: str) -> ir.Value:
        """Each channel's share of this position and the rest of the one before."""
        write, name = self.writer, f"{here}.mix_{part}"
        difference = write.node("Sub", (now, before), f"{name}.difference")
        scaled = write.node("Mul", (difference, self._vector(f"{block}.mix_{part}")), f"{name}.share")
        return write.node("Add", (before, scaled), name)

    def _head(self, x: ir.Value) -> ir.Value:
        if not self.all_logits:
            x = self.writer.node("Gather", (x, self._ints("last", [-1])), "last_token", {"axis": 1})
        normed = self.norms.over_stream(x, "head.norm", "head.norm", self.spec.final_norm_eps)
        logits = self.products.linear(normed, "head.linear", "head.linear")
        return self.writer.logits(logits, "tokens" if self.all_logits else 1, self.spec.vocab_size)

    def _vector(self, name: str) -> ir.Value:
        return self.writer.floats(name, self.weights.float32(name).numpy(), "norms")

    def _scalar(self, name: str, value: float) -> ir.Value:
        return self.writer.floats(f"state.{name}", np.array(value, np.float32), "graph")

    def _ints(self, name: str, values: list[int]) -> ir.Value:
        return self.writer.constant(f"tokens.{name}", np.array(values, np.int64))
