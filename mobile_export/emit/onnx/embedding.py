"""From tokens to rows of their table."""

from __future__ import annotations

import onnx_ir as ir

from mobile_export.emit.onnx.graph import GraphWriter
from mobile_export.emit.onnx.operators import Products
from mobile_export.quantize.recipe import EMBEDDING
from mobile_export.quantize.weights import ModelWeights


def embedded(tokens: ir.Value, writer: GraphWriter, products: Products, weights: ModelWeights) -> ir.Value:
    """The rows of tokens, int64 [batch, T] -> [batch, T, columns]; unfolded where the table is folded for the head."""
    rows, unfold = products.gather(EMBEDDING, tokens, "embedding"), weights.unfold()
    if unfold is None:
        return rows
    factor = writer.floats("embedding.unfold", unfold.numpy(), "graph")
    return writer.node("Mul", (rows, factor), "embedding.unfolded")
