"""The norms of a graph, and the weights that go into them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mobile_export.emit.onnx.graph import Attribute, GraphWriter
from mobile_export.quantize.weights import ModelWeights


class Norms:
    """RMS and layer norms by the standard's operators; a norm without weights gets ones and zeros."""

    def __init__(self, writer: GraphWriter, weights: ModelWeights) -> None:
        self.writer, self.weights, self.spec = writer, weights, weights.recognised.spec

    def stream_inputs(self, place: str) -> tuple[ir.Value, ...]:
        """Weight, and bias of a layer norm, of a norm over the residual stream."""
        return self._inputs(place, self.spec.norm, self.spec.hidden_size)

    def over_stream(self, x: ir.Value, place: str, name: str) -> ir.Value:
        """A norm over [batch, T, hidden]."""
        return self._write(x, self.stream_inputs(place), self.spec.norm, name)

    def over_heads(self, x: ir.Value, place: str, kind: str, heads: int, name: str) -> ir.Value:
        """A norm over each head of [batch, T, heads * head_dim]. kind: BlockSpec's qk_norm other than "none"."""
        size = self.spec.head_dim
        apart = self.writer.constant(f"norms.{heads}_heads", np.array([0, 0, heads, size], np.int64))
        joined = self.writer.constant("norms.joined_heads", np.array([0, 0, -1], np.int64))
        form = "layer" if kind == "layer" else "rms"
        split = self.writer.node("Reshape", (x, apart), f"{name}.heads")
        normed = self._write(split, self._inputs(place, form, size), form, name)
        return self.writer.node("Reshape", (normed, joined), f"{name}.joined")

    def _inputs(self, place: str, form: str, size: int) -> tuple[ir.Value, ...]:
        parts = ("weight", "bias") if form == "layer" else ("weight",)
        return tuple(self._weight(f"{place}.{part}", size) for part in parts)

    def _weight(self, name: str, size: int) -> ir.Value:
        if name in self.weights.sources:
            return self.writer.floats(name, self.weights.float32(name).numpy(), "norms")
        ones = name.endswith(".weight")
        return self.writer.floats(f"norms.{size}_{'ones' if ones else 'zeros'}", np.full(size, ones, np.float32), "graph")

    def _write(self, x: ir.Value, inputs: tuple[ir.Value, ...], form: str, name: str) -> ir.Value:
        attributes: dict[str, Attribute] = {"axis": -1, "epsilon": self.spec.norm_eps}
        return self.writer.node("LayerNormalization" if form == "layer" else "RMSNormalization", (x, *inputs), name, attributes)
