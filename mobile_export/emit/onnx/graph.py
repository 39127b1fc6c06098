"""An ONNX graph while it is written: nodes in the order they run, initializers by name, weights in the file beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from mobile_export.emit.onnx.weights_file import Range, WeightsFile
from mobile_export.errors import InputError

MICROSOFT = "com.microsoft"
CONTRIB = frozenset(
    {
        "FusedMatMul",
        "GatherBlockQuantized",
        "GroupQueryAttention",
        "MatMulNBits",
        "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization",
    }
)
INLINE_BYTES = 1024  # what is smaller lies in the graph itself, where shape inference can read it

Attribute = int | float | str | Sequence[int]


class GraphWriter:
    """Nodes and initializers of a graph. A weight that several nodes use is one initializer."""

    def __init__(self, weights_file: WeightsFile, float_type: ir.DataType) -> None:
        """
        Args:
            float_type: of activations, and of every scale, norm and bias beside them: FLOAT or FLOAT16.
        """
        self.weights_file, self.float_type = weights_file, float_type
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}

    def node(
        self,
        operator: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        attributes: Mapping[str, Attribute] | None = None,
        doc: str | None = None,
    ) -> ir.Value:
        """Append a node of one output; the output has the node's name."""
        return self.node_of_many(operator, inputs, name, (name,), attributes, doc)[0]

    def node_of_many(
        self,
        operator: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        outputs: Sequence[str],
        attributes: Mapping[str, Attribute] | None = None,
        doc: str | None = None,
    ) -> Sequence[ir.Value]:
        """Append a node; `outputs` names what it gives, "" for what nobody asks for."""
        domain = MICROSOFT if operator in CONTRIB else ""
        given = ir.convenience.convert_attributes(dict(attributes or {}))
        node = ir.Node(domain, operator, inputs, given, num_outputs=len(outputs), name=name, doc_string=doc)
        for value, output in zip(node.outputs, outputs, strict=True):
            value.name = output
        self.nodes.append(node)
        return node.outputs

    def scan(
        self, inputs: Sequence[ir.Value], body: ir.Graph, name: str, outputs: Sequence[str], *, states: int, axis: int
    ) -> Sequence[ir.Value]:
        """Append a Scan: `body` once for each slice of the inputs beyond `states` along an axis, the states handed on."""
        sliced, stacked = len(inputs) - states, len(outputs) - states
        given = [
            ir.AttrGraph("body", body),
            *ir.convenience.convert_attributes(
                {"num_scan_inputs": sliced, "scan_input_axes": [axis] * sliced, "scan_output_axes": [axis] * stacked}
            ),
        ]
        node = ir.Node("", "Scan", inputs, given, num_outputs=len(outputs), name=f"{name}.scan")
        for value, output in zip(node.outputs, outputs, strict=True):
            value.name = output
        self.nodes.append(node)
        return node.outputs

    def logits(self, logits: ir.Value, tokens: int | str, vocab_size: int) -> ir.Value:
        """Make a value the graph's output `logits`, float32 [batch, tokens, vocab]."""
        if self.float_type != ir.DataType.FLOAT:
            logits = self.node("Cast", (logits,), "head.float32", {"to": ir.DataType.FLOAT})
        logits.name, logits.type = "logits", ir.TensorType(ir.DataType.FLOAT)
        logits.shape = ir.Shape(("batch", tokens, vocab_size))
        return logits

    def constant(self, name: str, values: np.ndarray, part: str = "graph") -> ir.Value:
        """An initializer, made on first use of the name: small ones lie in the graph, others in the weights file."""
        if name not in self.initializers:
            if values.nbytes < INLINE_BYTES:
                tensor = ir.tensor(values, name=name)
                self.initializers[name] = ir.Value(
                    name=name, shape=ir.Shape(values.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
                )
            else:
                dtype = ir.DataType.from_numpy(values.dtype)
                self.place(name, self.weights_file.add(values, part), dtype, values.shape)
        return self.initializers[name]

    def packed(self, name: str, values: np.ndarray, dtype: ir.DataType, shape: Sequence[int], part: str) -> ir.Value:
        """An initializer of a type narrower than a byte, from its bytes; it always lies in the weights file."""
        return self.place(name, self.weights_file.add(values, part), dtype, shape)

    def same_bytes(self, value: ir.Value, name: str, dtype: ir.DataType, shape: Sequence[int]) -> ir.Value:
        """An initializer's bytes under another name, and so for another reader."""
        held = value.const_value
        if name not in self.initializers:
            if isinstance(held, ir.ExternalTensor):
                assert held.offset is not None
                assert held.length is not None
                self.place(name, Range(held.offset, held.length), dtype, shape)
            else:
                assert held is not None
                self.constant(name, held.numpy().reshape(shape))
        return self.initializers[name]

    def floats(self, name: str, values: np.ndarray, part: str) -> ir.Value:
        """An initializer in the graph's float type. values: float32, finite.

        Raises:
            InputError: a value beyond float16, where that is the type.
        """
        with np.errstate(over="ignore"):  # said below
            held = values.astype(self.float_type.numpy())
        if np.isinf(held).any():
            raise InputError(name, "a value is too large for float16", "leave --activations float16 out")
        return self.constant(name, held, part)

    def place(self, name: str, where: Range, dtype: ir.DataType, shape: Sequence[int]) -> ir.Value:
        """An initializer over bytes the weights file holds already; several names may share them."""
        path = self.weights_file.path
        tensor = ir.ExternalTensor(
            path.name, where.offset, where.length, dtype, shape=ir.Shape(shape), name=name, base_dir=path.parent
        )
        self.initializers[name] = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype), const_value=tensor)
        return self.initializers[name]

    def used_initializers(self) -> list[ir.Value]:
        """Those a node reads: bytes may have been placed under a name only to give them a second one."""
        return [value for value in self.initializers.values() if value.uses()]

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
        """A value the caller gives; names stand for sizes that differ from call to call."""
        return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
