"""Lays a finished program into its folder: model.pte, the tokenizer, manifest.json and the card."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
from pathlib import Path

from mobile_export import __version__
from mobile_export.emit.card import card
from mobile_export.emit.executorch.metadata import constant_methods
from mobile_export.emit.executorch.program import PteOptions, PteProgram
from mobile_export.manifest import NAME, SCHEMA_VERSION, KvCacheSize, Manifest, Part, SourceFile, to_json
from mobile_export.quantize.sizes import bits_per_weight, executed_parameters, kv_bytes_per_token, stored_parameters
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
    checkpoint, plan, spec = weights.checkpoint, weights.plan, weights.recognised.decoder
    tokenizer_files = dict(checkpoint.tokenizer.files) if checkpoint.tokenizer else {}
    for name, content in tokenizer_files.items():
        (folder / name).write_bytes(content)
    predicted = weights.predicted_bytes()
    per_token = kv_bytes_per_token(spec, len(plan.schedule), weights.recipe.kv.dtype)
    return Manifest(
        schema_version=SCHEMA_VERSION,
        tool=f"mobile-export {__version__}",
        format="pte",
        file=FILE,
        file_bytes=len(program.file),
        file_sha256=hashlib.sha256(program.file).hexdigest(),
        source=checkpoint.source,
        source_files=[_source_file(path) for path in checkpoint.files],
        licence=checkpoint.licence,
        spec=_plain(spec),
        sharing=_plain(plan),
        recipe=_plain(weights.recipe),
        requested_schedule=requested_schedule,
        max_context=options.max_context,
        max_prompt=options.max_prompt,
        attention=options.attention,
        stored_parameters=stored_parameters(weights),
        executed_parameters=executed_parameters(weights),
        bits_per_weight=bits_per_weight(weights),
        parts=[Part(name, size, predicted.get(name)) for name, size in program.parts.items()],
        kv_cache=KvCacheSize(weights.recipe.kv.dtype, len(plan.schedule), per_token, per_token * options.max_context),
        matrices={name: str(matrix.precision) for name, matrix in weights.matrices.items()},
        outside_delegates=program.outside,
        delegates=program.delegates,
        delegate_calls=program.calls,
        metadata=constant_methods(spec, plan, options, checkpoint.bos_id, checkpoint.eos_ids),
        tokenizer_files=sorted(tokenizer_files),
        bos_id=checkpoint.bos_id,
        adds_bos=checkpoint.tokenizer is not None and checkpoint.tokenizer.adds_bos,
        eos_ids=list(checkpoint.eos_ids),
        versions={name: importlib.metadata.version(name) for name in PACKAGES},
        warnings=[*checkpoint.warnings, *plan.warnings],
        verification=None,
    )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json and README.md.

    Raises:
        OSError: the folder cannot be written.
    """
    (folder / NAME).write_text(to_json(manifest), encoding="utf-8")
    (folder / "README.md").write_text(card(manifest), encoding="utf-8")


def _source_file(path: Path) -> SourceFile:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return SourceFile(path.name, path.stat().st_size, digest)


def _plain(value: object) -> dict[str, object]:
    """A dataclass as JSON has it: tuples as lists."""
    return json.loads(json.dumps(dataclasses.asdict(value)))  # type: ignore[call-overload]
