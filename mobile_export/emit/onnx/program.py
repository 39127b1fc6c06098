"""From spec, plan and weights to model.onnx and model.onnx.data, streamed: one weight in memory at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from mobile_export import __version__
from mobile_export.emit.onnx.blocks import check_blocks
from mobile_export.emit.onnx.decoder_graph import FLOATS, DecoderGraph, OnnxOptions
from mobile_export.emit.onnx.graph import GraphWriter
from mobile_export.emit.onnx.matrices import Matrices
from mobile_export.emit.onnx.operators import KvScales, Products
from mobile_export.emit.onnx.rwkv_graph import RwkvGraph
from mobile_export.emit.onnx.standard import StandardProducts
from mobile_export.emit.onnx.weights_file import WeightsFile
from mobile_export.families.spec import RwkvSpec
from mobile_export.quantize.weights import PARTS, ModelWeights

FILE, WEIGHTS_FILE = "model.onnx", "model.onnx.data"
IR_VERSION = 11


@dataclass(frozen=True)
class OnnxProgram:
    """A written model.

    parts: bytes of both files by part; "graph" is model.onnx and what aligns the payloads.
    operators: operator -> nodes, most frequent first.
    """

    parts: dict[str, int]
    operators: dict[str, int]


def write_program(
    folder: Path,
    weights: ModelWeights,
    options: OnnxOptions,
    kv_scales: Sequence[KvScales] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> OnnxProgram:
    """Write model.onnx and model.onnx.data into a folder.

    Args:
        kv_scales: one per KV slot for an int8 cache.
    Raises:
        InputError: a weight that cannot be read or is not finite, or one no kernel of onnxruntime takes.
        OSError: the folder cannot be written.
    """
    check_blocks(weights)
    data = WeightsFile(folder / WEIGHTS_FILE)
    try:
        writer = GraphWriter(data, FLOATS[options.activations])
        products: Products = (StandardProducts if options.portable else Matrices)(writer, weights)
        if isinstance(weights.recognised.spec, RwkvSpec):
            graph = RwkvGraph(writer, weights, products, all_logits=options.all_logits).build(say)
        else:
            graph = DecoderGraph(writer, weights, products, options).build(kv_scales, say)
    finally:
        data.close()
    model = ir.Model(graph, ir_version=IR_VERSION, producer_name="mobile-export", producer_version=__version__)
    proto = ir.to_proto(model)
    (folder / FILE).write_bytes(proto.SerializeToString())
    say("checking the graph")
    onnx.checker.check_model(str(folder / FILE))
    parts = dict.fromkeys((*PARTS, "positions", "graph"), 0) | data.parts
    parts["graph"] += (folder / FILE).stat().st_size
    operators = Counter(node.op_type for node in graph)
    return OnnxProgram(parts, dict(operators.most_common()))
