"""The baseline: the same model and numbers through ExecuTorch's stock path, as its users export today.

The whole decoder is traced and handed to `to_edge_transform_and_lower` with `XnnpackPartitioner`: no pieces, no
templates, no merging, the table once for the gather and once for the head, norms as they are written (their means fall
out of the delegates). Weights are our own codes and scales, so both files hold the same numbers. Query, key and value
stay one product as in our decoder, which spares the stock path 60 of its 210 linears' calls.

    python -m benchmarks.stock_path smollm2-135m --out stock.pte             (about five minutes)
    python -m benchmarks.stock_path smollm2-135m --out stock.pte --blocks 2  (to try it)

Prints one JSON object, the fields of `StockExport`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import operator
import resource
import sys
import time
import warnings
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from executorch.exir import EdgeProgramManager
    from torch import nn

    from mobile_export.checkpoint import Checkpoint
    from mobile_export.emit.executorch.program import PteOptions
    from mobile_export.quantize.weights import ModelWeights


@dataclass(frozen=True)
class StockExport:
    """What the stock path cost and gave. export_s, lowering_s and emit_s are its stages; wall_s holds imports, too."""

    wall_s: float
    export_s: float
    lowering_s: float
    emit_s: float
    peak_rss_mb: float
    file_bytes: int
    delegates: int
    outside: dict[str, int]


def export_stock(weights: ModelWeights, options: PteOptions, out: Path) -> StockExport:
    """Write the stock path's .pte of a model. Embedding of 8 bits, float32 KV cache, custom attention."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower
    from executorch.exir.passes import MemoryPlanningPass
    from executorch.exir.passes.sym_shape_eval_pass import ConstraintBasedSymShapeEvalPass

    from mobile_export.emit.executorch.lowering import EDGE
    from mobile_export.emit.pte_methods import constant_methods

    decoder = build_stock_decoder(weights, options)
    tokens, start = torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    dynamic = {1: torch.export.Dim("tokens", min=1, max=options.max_prompt)}
    began = time.perf_counter()
    with torch.no_grad():
        program = torch.export.export(decoder, (tokens, start), dynamic_shapes=(dynamic, {}), strict=False)
    exported = time.perf_counter()
    methods = constant_methods(weights.recognised.decoder, weights.plan, options, None, ())
    edge = to_edge_transform_and_lower(
        program, partitioner=[XnnpackPartitioner()], compile_config=EDGE, constant_methods=methods
    )
    lowered = time.perf_counter()
    delegates, outside = _count_calls(edge)
    manager = edge.to_executorch(
        ExecutorchBackendConfig(
            memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False),
            sym_shape_eval_pass=ConstraintBasedSymShapeEvalPass(),
            do_quant_fusion_and_const_prop=True,
        )
    )
    with out.open("wb") as file:
        manager.write_to_file(file)
    return StockExport(
        wall_s=0.0,
        export_s=exported - began,
        lowering_s=lowered - exported,
        emit_s=time.perf_counter() - lowered,
        peak_rss_mb=0.0,
        file_bytes=out.stat().st_size,
        delegates=delegates,
        outside=outside,
    )


def build_stock_decoder(weights: ModelWeights, options: PteOptions) -> nn.Module:
    """The decoder whole, every linear a torchao weight of our codes and scales, no piece lowered yet."""
    import torch

    from mobile_export.emit.executorch.attention import CustomAttention
    from mobile_export.emit.executorch.embedding import Gather8Bit
    from mobile_export.model.decoder import AttentionInput, Block, Decoder, FeedForward, Head
    from mobile_export.model.rotary import RotaryTables
    from mobile_export.quantize.recipe import EMBEDDING, HEAD

    spec, plan = weights.recognised.decoder, weights.plan
    with torch.device("meta"):
        blocks = [Block(AttentionInput(spec), FeedForward(spec)) for _ in plan.blocks]
        head = Head(spec)
    for number, block in enumerate(blocks):
        for name, _ in list(block.named_parameters()):
            _fill(block, name, weights, f"blocks.{number}.{name}")
    for name, _ in list(head.named_parameters()):
        graph_name = f"head.{name}"
        _fill(head, name, weights, EMBEDDING if graph_name == HEAD and plan.tied else graph_name)
    decoder = Decoder(
        spec,
        plan.schedule,
        options.max_context,
        embedding=Gather8Bit(weights.quantized(EMBEDDING)),
        blocks=blocks,
        rotary=[RotaryTables(rope, options.max_context) for rope in spec.ropes],
        attend=CustomAttention(spec, len(plan.schedule), options.max_context),
        head=head,
    )
    return decoder.eval().requires_grad_(False)


def _fill(module: nn.Module, name: str, weights: ModelWeights, graph_name: str) -> None:
    from mobile_export.emit.executorch.lowering import put_weight

    matrix = graph_name in weights.matrices
    put_weight(module, name, weights.quantized(graph_name) if matrix else weights.float32(graph_name))


def _count_calls(edge: EdgeProgramManager) -> tuple[int, dict[str, int]]:
    """Delegate calls, and the operators left outside them, most frequent first."""
    names: Counter[str] = Counter()
    for node in edge.exported_program().graph.nodes:
        if node.op == "call_function" and node.target is not operator.getitem:
            names[str(node.target).removeprefix("edge.").split("::")[-1]] += 1
    return names.pop("executorch_call_delegate", 0), dict(names.most_common())


def keep_blocks(checkpoint: Checkpoint, blocks: int) -> Checkpoint:
    """The same checkpoint cut after its first `blocks` blocks."""
    tensors = {
        name: tensor
        for name, tensor in checkpoint.tensors.items()
        if not name.startswith("model.layers.") or int(name.split(".")[2]) < blocks
    }
    return dataclasses.replace(checkpoint, config={**checkpoint.config, "num_hidden_layers": blocks}, tensors=tensors)


def main() -> None:
    """Export the checkpoint named on the command line."""
    began = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="the .pte to write")
    parser.add_argument("--recipe", default="w4-fast", help="one with an 8-bit table: w4-fast or w8")
    parser.add_argument("--blocks", type=int, help="keep only the first of them, to try the script")
    parser.add_argument("--max-context", type=int, default=512)
    parser.add_argument("--max-prompt", type=int, default=128)
    asked = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)

    from mobile_export.checkpoint import open_checkpoint
    from mobile_export.emit.executorch.program import PteOptions
    from mobile_export.families import recognise
    from mobile_export.quantize.recipe import read_recipe
    from mobile_export.quantize.weights import ModelWeights
    from mobile_export.sharing import plan_sharing

    checkpoint = open_checkpoint(asked.checkpoint)
    if asked.blocks:
        checkpoint = keep_blocks(checkpoint, asked.blocks)
    recognised = recognise(checkpoint)
    weights = ModelWeights(checkpoint, recognised, plan_sharing(checkpoint, recognised), read_recipe(asked.recipe))
    if weights.recipe.embedding.bits != 8:
        sys.exit(f"error: --recipe {asked.recipe}: the table is not 8-bit; use w4-fast or w8")
    cost = export_stock(weights, PteOptions(asked.max_context, asked.max_prompt), asked.out)
    peak_rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    print(json.dumps(asdict(dataclasses.replace(cost, wall_s=time.perf_counter() - began, peak_rss_mb=peak_rss_mb))))


if __name__ == "__main__":
    main()
