"""The manifest of a written artifact: what every format says of it."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from mobile_export import __version__
from mobile_export.checkpoint.chat_template import as_strings, read_chat_template
from mobile_export.emit.card import card
from mobile_export.manifest import (
    NAME,
    SCHEMA_VERSION,
    CalibrationFacts,
    Chat,
    CoreMlGraph,
    FileDigest,
    KvCacheSize,
    Manifest,
    OnnxGraph,
    Part,
    PteGraph,
    digest_of,
    to_json,
)
from mobile_export.quantize.sizes import executed_parameters, stored_parameters
from mobile_export.quantize.weights import ModelWeights

NO_STRINGS = "chat template: does more than to put texts between its own, so apps without Jinja cannot chat with this model"
FORMAT_OF = {PteGraph: "pte", OnnxGraph: "onnx", CoreMlGraph: "coreml"}


def describe(
    folder: Path,
    files: Sequence[str],
    weights: ModelWeights,
    graph: PteGraph | OnnxGraph | CoreMlGraph,
    *,
    max_context: int,
    kv_cache: KvCacheSize,
    parts: Mapping[str, int],
    predicted: Mapping[str, int],
    tokenizer_files: Sequence[str],
    packages: Sequence[str],
    requested_schedule: str | None,
    warnings: Sequence[str] = (),
) -> Manifest:
    """The manifest of an artifact whose files lie in a folder.

    Args:
        files: names, the one a runtime is given first.
        graph: what only this format has.
        parts, predicted: bytes by part, as written and as said beforehand.
        packages: those whose versions decide what was written.
        warnings: of the emitter, beside the checkpoint's and the plan's.
    """
    checkpoint, plan = weights.checkpoint, weights.plan
    chat, chat_warnings = _chat(folder)
    matrix_bytes = sum(size for part, size in predicted.items() if part != "norms")
    return Manifest(
        schema_version=SCHEMA_VERSION,
        tool=f"mobile-export {__version__}",
        format=FORMAT_OF[type(graph)],
        files=[digest_of(folder / name, name) for name in files],
        source=checkpoint.source,
        source_files=source_files(weights),
        licence=checkpoint.licence,
        spec=_plain(weights.recognised.spec),
        sharing=_plain(plan),
        recipe=_plain(weights.recipe),
        requested_schedule=requested_schedule,
        max_context=max_context,
        stored_parameters=stored_parameters(weights),
        executed_parameters=executed_parameters(weights),
        bits_per_weight=8 * matrix_bytes / sum(matrix.parameters for matrix in weights.matrices.values()),
        parts=[Part(name, size, predicted.get(name)) for name, size in parts.items()],
        kv_cache=kv_cache,
        matrices={name: str(matrix.precision) for name, matrix in weights.matrices.items()},
        pte=graph if isinstance(graph, PteGraph) else None,
        onnx=graph if isinstance(graph, OnnxGraph) else None,
        coreml=graph if isinstance(graph, CoreMlGraph) else None,
        tokenizer_files=sorted(tokenizer_files),
        bos_id=checkpoint.bos_id,
        adds_bos=checkpoint.tokenizer is not None and checkpoint.tokenizer.adds_bos,
        eos_ids=list(checkpoint.eos_ids),
        chat=chat,
        versions={name: importlib.metadata.version(name) for name in packages},
        warnings=[*checkpoint.warnings, *plan.warnings, *warnings, *chat_warnings],
        verification=None,
        calibration=_calibration(weights),
    )


def _chat(folder: Path) -> tuple[Chat | None, list[str]]:
    """The chat template of the written tokenizer in plain strings, and a warning where it is more than those."""
    template = read_chat_template(folder)
    chat = as_strings(template) if template else None
    lost = template is not None and chat is None
    return chat, [NO_STRINGS] if lost else []


def _calibration(weights: ModelWeights) -> CalibrationFacts | None:
    made = weights.calibrated
    if made is None:
        return None
    left = [name for name, matrix in weights.matrices.items() if matrix.precision.bits < 32 and name not in made.matrices]
    return CalibrationFacts(made.text, made.tokens, made.sha256, left)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json and README.md.

    Raises:
        OSError: the folder cannot be written.
    """
    (folder / NAME).write_text(to_json(manifest), encoding="utf-8")
    (folder / "README.md").write_text(card(manifest), encoding="utf-8")


def export_id(weights: ModelWeights, options: object) -> str:
    """SHA-256 of all an artifact is made from: the source's files, sharing, recipe, calibration and options."""
    made_of = (*source_files(weights), weights.plan, weights.recipe, _calibration(weights), options)
    facts = [_plain(value) for value in made_of if value is not None]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def source_files(weights: ModelWeights) -> list[FileDigest]:
    """The checkpoint's files that were read."""
    return [digest_of(path) for path in weights.checkpoint.files]


def _plain(value: object) -> dict[str, object]:
    """A dataclass as JSON has it: tuples as lists."""
    return json.loads(json.dumps(dataclasses.asdict(value)))  # type: ignore[call-overload]
