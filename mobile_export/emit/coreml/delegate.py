"""A .pte whose one delegate is a Core ML package: the whole model in ExecuTorch's Core ML backend.

The stock partitioner traces the model anew for it, leaves calls of one token out of the range and quantizes by rules of
its own. So the package is the one our converter makes, laid into the delegate's payload in that backend's form.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim, export

from mobile_export.emit.coreml.artifact import (
    PACKAGES,
    about,
    kv_cache,
    package_facts,
    predicted_bytes,
    tokenizer_files,
    write_files,
)
from mobile_export.emit.coreml.layouts import LOGITS, POSITION, TOKENS, CoreMlOptions
from mobile_export.emit.coreml.package import FILE as PACKAGE
from mobile_export.emit.coreml.package import write_package
from mobile_export.emit.coreml.toolchain import coremltools
from mobile_export.emit.describe import describe
from mobile_export.emit.pte_methods import constant_methods
from mobile_export.emit.pte_tokenizer import for_executorch
from mobile_export.manifest import Manifest, PteGraph
from mobile_export.quantize.weights import ModelWeights

FILE = "model.pte"
BACKEND = "CoreMLBackend"
ROOT, METADATA = "lowered_module", "metadata.json"  # what the backend looks for in its payload
ATTENTION = "coreml"


def write_artifact(
    folder: Path,
    weights: ModelWeights,
    options: CoreMlOptions,
    requested_schedule: str | None,
    say: Callable[[str], None] = lambda _: None,
) -> Manifest:
    """Write model.pte and the tokenizer; give the manifest, which `write_manifest` lays beside them.

    Raises:
        InputError: a weight that cannot be read, is not finite, or is beyond float16.
        OSError: the folder cannot be written.
    """
    checkpoint, plan, spec = weights.checkpoint, weights.plan, weights.recognised.decoder
    with tempfile.TemporaryDirectory(dir=folder) as room:
        root = Path(room) / ROOT
        root.mkdir()
        package = write_package(root, weights, options, about(weights, options), say)
        facts = package_facts(package, weights, options)
        payload = _payload(root, facts.export_id)
    say("writing the program")
    calls = _Calls(options.max_context, options.max_prompt)
    methods = constant_methods(spec, plan, calls, checkpoint.bos_id, checkpoint.eos_ids)
    file = _program(payload, spec.vocab_size, options.max_prompt, methods)
    (folder / FILE).write_bytes(file)
    graph = PteGraph(options.max_prompt, ATTENTION, {}, delegates=1, delegate_calls=1, metadata=methods, core_ml=facts)
    parts = dict(package.parts)
    parts["graph"] += len(file) - sum(parts.values())
    return describe(
        folder,
        (FILE,),
        weights,
        graph,
        max_context=options.max_context,
        kv_cache=kv_cache(weights, options.max_context),
        parts=parts,
        predicted=predicted_bytes(weights),
        tokenizer_files=write_files(folder, for_executorch(tokenizer_files(weights))),
        packages=(*PACKAGES, "executorch"),
        requested_schedule=requested_schedule,
        warnings=package.warnings,
    )


@dataclasses.dataclass(frozen=True)
class _Calls:
    """pte_methods.Calls of a package."""

    max_context: int
    max_prompt: int
    attention: str = ATTENTION


def _payload(root: Path, identifier: str) -> bytes:
    """The delegate's bytes: a folder, flattened by the backend's own function.

    identifier: what the backend keeps the compiled model under on the device.
    """
    from executorch.backends.apple.coreml import executorchcoreml

    metadata = {"inputNames": [TOKENS, POSITION], "outputNames": [LOGITS], "identifier": f"mobile_export_{identifier}"}
    (root / METADATA).write_text(json.dumps(metadata), encoding="utf-8")
    flattened = executorchcoreml.flatten_directory_contents(str(root))
    assert flattened, f"{PACKAGE} was written there"
    return bytes(flattened)


class _LogitsShape(nn.Module):
    """Takes a call's tensors, gives one of the logits' shape: what tracing the outer program evaluates."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size

    def forward(self, tokens: torch.Tensor, start: torch.Tensor) -> tuple[torch.Tensor]:
        return (torch.zeros(1, 1, self.vocab_size),)


class _Delegated(nn.Module):
    """The outer program: one call."""

    def __init__(self, lowered: nn.Module) -> None:
        super().__init__()
        self.lowered = lowered

    def forward(self, tokens: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        return self.lowered(tokens, start)[0]


def _program(payload: bytes, vocab_size: int, max_prompt: int, methods: dict[str, object]) -> bytes:
    """A .pte that takes tokens int64 [1, T] and start int64 [1] and hands both to its one delegate."""
    from executorch.backends.apple.coreml.compiler import CoreMLBackend
    from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge
    from executorch.exir.lowered_backend_module import LoweredBackendModule
    from executorch.exir.passes import MemoryPlanningPass
    from executorch.exir.passes.sym_shape_eval_pass import ConstraintBasedSymShapeEvalPass

    ct = coremltools()
    length = min(2, max_prompt)
    example = (torch.zeros(1, length, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    dynamic: tuple[dict[int, Dim], ...] = ({1: Dim("tokens", min=1, max=max_prompt)} if max_prompt > 1 else {}, {})
    specs = CoreMLBackend.generate_compile_specs(minimum_deployment_target=ct.target.iOS18)
    shape_only = export(_LogitsShape(vocab_size), example, dynamic_shapes=dynamic, strict=False)
    lowered = LoweredBackendModule(shape_only, BACKEND, payload, specs)
    traced = export(_Delegated(lowered), example, dynamic_shapes=dynamic, strict=False)
    edge = to_edge(
        traced, compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True), constant_methods=methods
    )
    manager = edge.to_executorch(
        ExecutorchBackendConfig(
            memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False),
            sym_shape_eval_pass=ConstraintBasedSymShapeEvalPass(),
        )
    )
    return manager.buffer
