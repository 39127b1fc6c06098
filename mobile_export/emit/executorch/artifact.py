"""Lays a finished program into its folder: model.pte and the tokenizer; gives the manifest."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mobile_export.emit.describe import describe
from mobile_export.emit.executorch.program import PteOptions, PteProgram
from mobile_export.emit.executorch.scales import rounded_scales
from mobile_export.emit.pte_methods import constant_methods
from mobile_export.emit.pte_tokenizer import for_executorch
from mobile_export.manifest import KvCacheSize, Manifest, PteGraph
from mobile_export.quantize.sizes import kv_bytes, kv_rows, state_bytes
from mobile_export.quantize.weights import ModelWeights

FILE = "model.pte"
PACKAGES = ("torch", "torchao", "executorch")


def write_artifact(
    folder: Path, program: PteProgram, weights: ModelWeights, options: PteOptions, requested_schedule: str | None
) -> Manifest:
    """Write model.pte and the tokenizer's files; give the manifest, which `write_manifest` lays beside them.

    Raises:
        OSError: the folder cannot be written.
    """
    (folder / FILE).write_bytes(program.file)
    checkpoint, plan, spec = weights.checkpoint, weights.plan, weights.recognised.spec
    tokenizer_files = for_executorch(checkpoint.tokenizer.files) if checkpoint.tokenizer else {}
    for name, content in tokenizer_files.items():
        (folder / name).write_bytes(content)
    options = dataclasses.replace(options, attention=program.attention)
    graph = PteGraph(
        max_prompt=options.max_prompt,
        attention=options.attention,
        outside_delegates=program.outside,
        delegates=program.delegates,
        delegate_calls=program.calls,
        metadata=constant_methods(spec, plan, options, checkpoint.bos_id, checkpoint.eos_ids),
    )
    rows = list(kv_rows(weights.recognised, plan, options.max_context, options.max_prompt).values())
    dtype = weights.recipe.kv.dtype
    kv_cache = KvCacheSize(
        dtype=dtype,
        slots=len(rows),
        rows=rows,
        bytes_per_token=kv_bytes(spec, rows.count(options.max_context), dtype),
        bytes_at_max_context=kv_bytes(spec, sum(rows), dtype),
        state_bytes=state_bytes(weights.recognised, plan),
    )
    return describe(
        folder,
        (FILE,),
        weights,
        graph,
        max_context=options.max_context,
        kv_cache=kv_cache,
        parts=program.parts,
        predicted=weights.predicted_bytes(),
        tokenizer_files=tuple(tokenizer_files),
        packages=PACKAGES,
        requested_schedule=requested_schedule,
        warnings=rounded_scales(weights),
    )
