"""A matrix of the model as onnxruntime multiplies with it or gathers from it: packing and nodes.

Source: onnxruntime's contrib operators `MatMulNBits` and `GatherBlockQuantized`: codes unsigned, 8 or 128 stands for zero,
of two 4-bit codes the first in the low half.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mobile_export.emit.onnx.blocks import block_size
from mobile_export.emit.onnx.float_matrices import FloatMatrices
from mobile_export.emit.onnx.graph import GraphWriter
from mobile_export.emit.packing import four_bit_pairs
from mobile_export.errors import InputError
from mobile_export.quantize.clip_search import QuantizedWeight
from mobile_export.quantize.recipe import EMBEDDING
from mobile_export.quantize.weights import ModelWeights

INT8_ACTIVATIONS = 4  # accuracy_level; where it is missing, 8-bit weights have no kernel and run 25 times slower


class Matrices:
    """Every matrix of a model, written on first use; each later use names the same bytes."""

    def __init__(self, writer: GraphWriter, weights: ModelWeights) -> None:
        self.writer, self.weights, self.floats = writer, weights, FloatMatrices(writer, weights)
        self._table: tuple[np.ndarray, np.ndarray] | None = None

    def linear(self, x: ir.Value, place: str, name: str, *, bias: bool = False) -> ir.Value:
        """x [..., K] times the matrix at a place of the graph, plus its bias.

        Args:
            place: without ".weight", e.g. "blocks.3.ffn.down".
            name: of the node.
        """
        source = self.weights.source_of(f"{place}.weight")
        matrix = self.weights.matrices[source]
        added = self._bias(f"{place}.bias") if bias else None
        if matrix.precision.bits == 32:
            return self._float_linear(x, source, name, added)
        codes, scales = f"{source}.codes", f"{source}.scales"
        rows, columns = matrix.shape
        blocks = columns // block_size(matrix)
        inputs = [x, *self._initializers(source, codes, scales, (rows, blocks, matrix.code_bytes // rows // blocks))]
        attributes = {
            "K": columns,
            "N": rows,
            "bits": matrix.precision.bits,
            "block_size": block_size(matrix),
            "accuracy_level": INT8_ACTIVATIONS,
        }
        bias_input = [None, None, added] if added else []
        return self.writer.node("MatMulNBits", [*inputs, *bias_input], name, attributes, f"{source}, {matrix.precision}")

    def gather(self, table: str, rows: ir.Value, name: str) -> ir.Value:
        """Rows, int64 [batch, T], of a table named as a weight -> [batch, T, columns]."""
        matrix = self.weights.matrices[table]
        if matrix.precision.bits == 32:
            return self.floats.gather(table, rows, name)
        count = matrix.shape[0]
        # A name of its own for the bytes the head multiplies with: a Reshape would be folded into a copy in memory.
        codes, scales = self._initializers(table, f"{table}.rows", f"{table}.scales", (count, matrix.code_bytes // count))
        attributes = {
            "bits": matrix.precision.bits,
            "block_size": block_size(matrix),
            "gather_axis": 0,
            "quantize_axis": 1,
        }
        doc = f"{table}, {matrix.precision}"
        return self.writer.node("GatherBlockQuantized", (codes, rows, scales), name, attributes, doc)

    def _initializers(self, source: str, codes: str, scales: str, shape: tuple[int, ...]) -> tuple[ir.Value, ir.Value]:
        """A matrix's codes under a name and a shape, and its scales [N, blocks]."""
        known = self.writer.initializers
        if codes not in known:
            packed, of_blocks = self._packed(source)
            part = self.weights.part_of(source)
            with np.errstate(over="ignore"):  # infinity is another value, too
                lossy = (of_blocks.astype(self.writer.float_type.numpy()) != of_blocks).any()
            if lossy:
                what = "a scale is too small or too large for float16"
                raise InputError(self.weights.where(source), what, "leave --activations float16 out")
            self.writer.constant(codes, packed.reshape(shape), part)
            self.writer.floats(scales, of_blocks, part)
        return known[codes], known[scales]

    def _packed(self, source: str) -> tuple[np.ndarray, np.ndarray]:
        """Packed codes uint8 and scales float32 (N, blocks); a tied table's are kept for its second use."""
        if source == EMBEDDING and self._table is not None:
            return self._table
        weight = self.weights.quantized(source)
        blocks = weight.codes.shape[1] // block_size(self.weights.matrices[source])
        made = packed_codes(weight), weight.scales.repeat_interleave(blocks // weight.scales.shape[1], dim=1).numpy()
        if source == EMBEDDING and self.weights.plan.tied:
            self._table = made
        return made

    def _bias(self, name: str) -> ir.Value:
        return self.writer.floats(name, self.weights.float32(name).numpy(), self.weights.part_of(name))

    def _float_linear(self, x: ir.Value, source: str, name: str, bias: ir.Value | None) -> ir.Value:
        if source == EMBEDDING:
            product = self.writer.node("FusedMatMul", (x, self.floats.table(source)), name, {"transB": 1}, source)
        else:
            product = self.floats.product(x, source, name)
        return self.writer.node("Add", (product, bias), f"{name}.bias") if bias else product


def packed_codes(weight: QuantizedWeight) -> np.ndarray:
    """uint8: 8-bit codes plus 128, or 4-bit codes plus 8, two to a byte."""
    if weight.precision.bits == 4:
        return four_bit_pairs(weight.codes).numpy()
    return weight.codes.numpy().view(np.uint8) ^ 128  # wraps: -128 is stored as 0
