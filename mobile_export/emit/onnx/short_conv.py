"""LFM2's mixer as nodes: a gated causal convolution over a few positions, as model/short_conv.py computes it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mobile_export.emit.onnx.graph import Attribute, GraphWriter
from mobile_export.emit.onnx.operators import Execution
from mobile_export.families.spec import DecoderSpec
from mobile_export.quantize.weights import ModelWeights


class ShortConvolutions:
    """(B, C, x) -> C * conv(B * x), each channel by itself; a slot keeps the last columns of B * x."""

    def __init__(self, writer: GraphWriter, weights: ModelWeights, spec: DecoderSpec) -> None:
        self.writer, self.weights, self.spec = writer, weights, spec

    def mix(self, joined: ir.Value, execution: Execution) -> tuple[ir.Value, ir.Value]:
        """Joined projections [batch, T, 3 * hidden] -> mixed [batch, T, hidden], and the columns to keep."""
        write, block, here = self.writer, f"blocks.{execution.stored}.conv", f"{execution.name}.conv"
        names = [f"{here}.{part}" for part in ("before", "after", "value")]
        before, after, value = write.node_of_many("Split", (joined,), f"{here}.split", names, {"axis": -1, "num_outputs": 3})
        new = write.node("Mul", (before, value), f"{here}.new")
        columns = write.node("Concat", (*execution.cache, new), f"{here}.columns", {"axis": 1})
        limits = (("from", 1 - self.spec.conv_kernel), ("to", np.iinfo(np.int64).max), ("axis", 1))
        bounds = (write.constant(f"conv.{name}", np.array([limit], np.int64)) for name, limit in limits)
        kept = write.node("Slice", (columns, *bounds), f"{here}.kept")
        channels_first = write.node("Transpose", (columns,), f"{here}.channels_first", {"perm": [0, 2, 1]})
        parameters = ("kernel", "bias") if self.spec.conv_bias else ("kernel",)
        held = (write.floats(f"{block}.{of}", self.weights.float32(f"{block}.{of}").numpy(), "norms") for of in parameters)
        attributes: dict[str, Attribute] = {"group": self.spec.hidden_size, "kernel_shape": [self.spec.conv_kernel]}
        convolved = write.node("Conv", (channels_first, *held), f"{here}.convolved", attributes)
        rows = write.node("Transpose", (convolved,), f"{here}.rows", {"perm": [0, 2, 1]})
        return write.node("Mul", (after, rows), here), kept
