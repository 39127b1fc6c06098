"""The norms of a graph, and the weights that go into them."""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx_ir as ir

from mobile_export.emit.onnx.graph import Attribute, GraphWriter
from mobile_export.quantize.weights import ModelWeights


class Norms:
    """RMS and layer norms by the standard's operators; a norm without weights gets ones and zeros."""

    def __init__(self, writer: GraphWriter, weights: ModelWeights, form: Literal["rms", "layer"]) -> None:
        """
        Args:
            form: of the norms over the residual stream.
        """
        self.writer, self.weights, self.form = writer, weights, form
        self.size, self.eps = weights.recognised.spec.hidden_size, weights.recognised.spec.norm_eps

    def stream_inputs(self, place: str) -> tuple[ir.Value, ...]:
        """Weight, and bias of a layer norm, of a norm over the residual stream."""
        return self._inputs(place, self.form, self.size)

    def over_stream(self, x: ir.Value, place: str, name: str, eps: float | None = None) -> ir.Value:
        """A norm over [batch, T, hidden]. eps: where it is not the spec's norm_eps."""
        return self._write(x, self.stream_inputs(place), self.form, name, eps or self.eps)

    def over_heads(self, x: ir.Value, place: str, kind: str, heads: int, size: int, name: str) -> ir.Value:
        """A norm over each head of [batch, T, heads * size]. kind: BlockSpec's qk_norm other than "none"."""
        apart = self.writer.constant(f"norms.{heads}_heads", np.array([0, 0, heads, size], np.int64))
        joined = self.writer.constant("norms.joined_heads", np.array([0, 0, -1], np.int64))
        form = "layer" if kind == "layer" else "rms"
        split = self.writer.node("Reshape", (x, apart), f"{name}.heads")
        normed = self._write(split, self._inputs(place, form, size), form, name, self.eps)
        return self.writer.node("Reshape", (normed, joined), f"{name}.joined")

    def _inputs(self, place: str, form: str, size: int) -> tuple[ir.Value, ...]:
        parts = ("weight", "bias") if form == "layer" else ("weight",)
        return tuple(self._weight(f"{place}.{part}", size) for part in parts)

    def _weight(self, name: str, size: int) -> ir.Value:
        if name in self.weights.sources:
            return self.writer.floats(name, self.weights.float32(name).numpy(), "norms")
        ones = name.endswith(".weight")
        return self.writer.floats(f"norms.{size}_{'ones' if ones else 'zeros'}", np.full(size, ones, np.float32), "graph")

    def _write(self, x: ir.Value, inputs: tuple[ir.Value, ...], form: str, name: str, eps: float) -> ir.Value:
        attributes: dict[str, Attribute] = {"axis": -1, "epsilon": eps}
        return self.writer.node("LayerNormalization" if form == "layer" else "RMSNormalization", (x, *inputs), name, attributes)
