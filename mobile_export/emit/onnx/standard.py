"""A decoder in operators of the ONNX standard alone, for runtimes that lack onnxruntime's own (`--portable`).

onnxruntime fuses DequantizeLinear with MatMul when it loads the model, and only where the codes have no other reader: so
every use of a matrix names its bytes anew. Then each use is packed by itself, and a shared block costs memory once more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from mobile_export.emit.onnx.blocks import block_size
from mobile_export.emit.onnx.float_matrices import FloatMatrices
from mobile_export.emit.onnx.graph import Attribute, GraphWriter
from mobile_export.emit.onnx.heads import Heads
from mobile_export.emit.onnx.norms import Norms
from mobile_export.emit.onnx.operators import Execution
from mobile_export.emit.onnx.positions import Positions
from mobile_export.emit.packing import four_bit_pairs
from mobile_export.errors import InputError
from mobile_export.quantize.recipe import EMBEDDING
from mobile_export.quantize.weights import ModelWeights


class StandardProducts:
    """Products with dequantized matrices. Codes lie [inputs, outputs], as MatMul takes them."""

    def __init__(self, writer: GraphWriter, weights: ModelWeights) -> None:
        self.writer, self.weights, self.floats = writer, weights, FloatMatrices(writer, weights)
        self._uses: Counter[str] = Counter()

    def linear(self, x: ir.Value, place: str, name: str, *, bias: bool = False) -> ir.Value:
        """x [..., inputs] times the matrix at a place of the graph, plus its bias."""
        source = self.weights.source_of(f"{place}.weight")
        matrix = self.weights.matrices[source]
        if matrix.precision.bits == 32:
            product = self._float_product(x, source, name)
        else:
            codes, scales = self._initializers(source)
            attributes: dict[str, Attribute] = {"axis": 0, "block_size": block_size(matrix)}
            doc = f"{source}, {matrix.precision}"
            weight = self.writer.node("DequantizeLinear", (codes, scales), f"{name}.weight", attributes, doc)
            product = self.writer.node("MatMul", (x, weight), name)
        if not bias:
            return product
        added = self.writer.floats(f"{place}.bias", self.weights.float32(f"{place}.bias").numpy(), "norms")
        return self.writer.node("Add", (product, added), f"{name}.bias")

    def gather(self, table: str, rows: ir.Value, name: str) -> ir.Value:
        """Rows, int64 [batch, T], of a table named as a weight -> [batch, T, columns].

        The table is the head's, [columns, rows], so a row is a column of it; 4-bit codes are picked out of their bytes.
        """
        matrix, write = self.weights.matrices[table], self.writer
        if matrix.precision.bits == 32:
            return self.floats.gather(table, rows, name)
        held, scales = self._initializers(table)
        if matrix.precision.bits == 4:
            codes = self._four_bit_columns(held, matrix.shape, rows, name)
        else:
            codes = write.node("Gather", (held, rows), f"{name}.codes", {"axis": 1})
        factors = write.node("Gather", (scales, rows), f"{name}.scales", {"axis": 1})
        last = [write.node("Transpose", (v,), f"{v.name}.last", {"perm": [1, 2, 0]}) for v in (codes, factors)]
        attributes: dict[str, Attribute] = {"axis": 2, "block_size": block_size(matrix)}
        return write.node("DequantizeLinear", last, name, attributes, f"{table}, {matrix.precision}")

    def _four_bit_columns(self, held: ir.Value, shape: tuple[int, int], rows: ir.Value, name: str) -> ir.Value:
        """4-bit codes [columns, batch, T] of the rows, int8, from pairs of neighbouring rows in one byte."""
        write = self.writer
        count, columns = shape
        pairs = write.same_bytes(held, f"{held.name}.pairs", ir.DataType.UINT8, (columns, count // 2))
        two = self._ints("two", [2])
        byte = write.node("Gather", (pairs, write.node("Div", (rows, two), f"{name}.pair")), f"{name}.bytes", {"axis": 1})
        odd = write.node("Mod", (rows, two), f"{name}.odd")
        odd = write.node("Cast", (odd,), f"{name}.odd.uint8", {"to": ir.DataType.UINT8})
        named = (("four", 4), ("low", 15), ("sign", 8))
        four, low, sign = (write.constant(f"nibbles.{what}", np.array(value, np.uint8)) for what, value in named)
        shift = write.node("Mul", (odd, four), f"{name}.shift")
        moved = write.node("BitShift", (byte, shift), f"{name}.moved", {"direction": "RIGHT"})
        nibble = write.node("BitwiseAnd", (moved, low), f"{name}.nibble")
        flipped = write.node("BitwiseXor", (nibble, sign), f"{name}.flipped")  # two's complement: (n ^ 8) - 8
        wide = write.node("Cast", (flipped,), f"{name}.wide", {"to": ir.DataType.INT8})
        return write.node("Sub", (wide, write.constant("nibbles.eight", np.array(8, np.int8))), f"{name}.codes")

    def _initializers(self, source: str) -> tuple[ir.Value, ir.Value]:
        """Codes [inputs, outputs] and scales [blocks, outputs], under names of this use's own."""
        use, known, matrix = self._uses[source], self.writer.initializers, self.weights.matrices[source]
        self._uses[source] += 1
        names = f"{source}.codes", f"{source}.scales"
        rows, columns = matrix.shape
        blocks = columns // block_size(matrix)
        if use:
            dtype = ir.DataType.INT4 if matrix.precision.bits == 4 else ir.DataType.INT8
            codes = self.writer.same_bytes(known[names[0]], f"{names[0]}.{use}", dtype, (columns, rows))
            return codes, self.writer.same_bytes(known[names[1]], f"{names[1]}.{use}", self.writer.float_type, (blocks, rows))
        part, weight = self.weights.part_of(source), self.weights.quantized(source)
        turned = weight.codes.T.contiguous()
        scales = weight.scales.repeat_interleave(blocks // weight.scales.shape[1], dim=1).T.contiguous().numpy()
        if matrix.precision.bits == 4:
            if rows % 2:
                what = f"an odd number of rows, {rows}, at 4 bits cannot be written for --portable"
                raise InputError(self.weights.where(source), what, "give it 8 bits, or leave --portable out")
            packed = (four_bit_pairs(turned) ^ 0x88).numpy()  # standard int4 is two's complement
            codes = self.writer.packed(names[0], packed, ir.DataType.INT4, (columns, rows), part)
        else:
            codes = self.writer.constant(names[0], turned.numpy(), part)
        return codes, self.writer.floats(names[1], scales, part)

    def _float_product(self, x: ir.Value, source: str, name: str) -> ir.Value:
        if source != EMBEDDING:
            return self.floats.product(x, source, name)
        write = self.writer
        flat = write.node("Flatten", (x,), f"{name}.flat", {"axis": 2})
        product = write.node("Gemm", (flat, self.floats.table(source)), f"{name}.product", {"transB": 1}, source)
        lead = write.node("Shape", (x,), f"{name}.lead", {"end": 2})
        shape = write.node("Concat", (lead, self._ints("vocabulary", [-1])), f"{name}.shape", {"axis": 0})
        return write.node("Reshape", (product, shape), name)

    def _ints(self, name: str, values: list[int]) -> ir.Value:
        key = f"table.{name}.{'.'.join(map(str, values))}"
        return self.writer.constant(key, np.array(values, np.int64))


class StandardOperators:
    """Norms over written sums, rotations and masks by nodes of their own, the standard's Attention."""

    def __init__(self, writer: GraphWriter, weights: ModelWeights, positions: Positions) -> None:
        self.writer, self.positions, self.spec = writer, positions, positions.spec
        self.norms = Norms(writer, weights, positions.spec.norm)
        self.heads = Heads(writer, self.norms, positions)

    def norm(self, x: ir.Value, added: ir.Value | None, place: str, name: str) -> tuple[ir.Value, ir.Value]:
        """The norm at a place over x, or over its sum with `added`; and that sum."""
        total = x if added is None else self.writer.node("Add", (x, added), f"{name}.sum")
        return self.norms.over_stream(total, place, name), total

    def attention(self, joined: ir.Value, execution: Execution) -> Sequence[ir.Value]:
        """Joined query, key and value -> attended values, present key, present value."""
        spec, rule, here = self.spec, execution.rule, f"{execution.name}.attention"
        attributes: dict[str, Attribute] = {
            "q_num_heads": spec.num_attention_heads,
            "kv_num_heads": spec.num_key_value_heads,
            "scale": rule.scale,
        }
        if rule.softcap is not None:
            attributes["softcap"] = rule.softcap
        heads = self.heads.apart(joined, execution, rotate=True)
        inputs = (*heads, self.positions.bias(rule, causal=True), *execution.cache)
        outputs = (here, f"present.{execution.slot}.key", f"present.{execution.slot}.value")
        doc = f"stored block {execution.stored}, KV slot {execution.slot}"
        return self.writer.node_of_many("Attention", inputs, here, outputs, attributes, doc)
