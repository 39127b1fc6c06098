"""Matrices that stay float32: written once, whichever operators the rest of the graph is made of."""

from __future__ import annotations

import onnx_ir as ir

from mobile_export.emit.onnx.graph import GraphWriter
from mobile_export.quantize.weights import ModelWeights


class FloatMatrices:
    """Tables as they are gathered from, [rows, columns], and other matrices as MatMul takes them, [inputs, outputs]."""

    def __init__(self, writer: GraphWriter, weights: ModelWeights) -> None:
        self.writer, self.weights = writer, weights

    def table(self, name: str) -> ir.Value:
        """A table's initializer. A head tied to it multiplies with it as it lies: a Transpose would be folded into a copy."""
        known = self.writer.initializers
        return known.get(name) or self.writer.constant(name, self.weights.float32(name).numpy(), self.weights.part_of(name))

    def gather(self, table: str, rows: ir.Value, name: str) -> ir.Value:
        """Rows, int64 [batch, T], of a table -> [batch, T, columns]."""
        return self.writer.node("Gather", (self.table(table), rows), name, {"axis": 0}, table)

    def product(self, x: ir.Value, source: str, name: str) -> ir.Value:
        """x [..., inputs] times a matrix that is no table."""
        known = self.writer.initializers
        if source not in known:
            self.writer.constant(source, self.weights.float32(source).numpy().T, self.weights.part_of(source))
        return self.writer.node("MatMul", (x, known[source]), name, doc=source)
