"""manifest.json: everything about an artifact a later step or a person may ask. Written by emit, read by every other step."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pydantic
from pydantic.dataclasses import dataclass

from mobile_export.errors import InputError

SCHEMA_VERSION = 1
NAME = "manifest.json"
STRICT = pydantic.ConfigDict(extra="forbid")


@dataclass(frozen=True, config=STRICT)
class SourceFile:
    """A file the artifact was made from."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, config=STRICT)
class Part:
    """A part of the artifact's file. predicted_bytes: what `inspect` says before the export; None where it says nothing."""

    name: str
    bytes: int
    predicted_bytes: int | None


@dataclass(frozen=True, config=STRICT)
class KvCacheSize:
    """The KV cache: one slot per execution."""

    dtype: str
    slots: int
    bytes_per_token: int
    bytes_at_max_context: int


@dataclass(frozen=True, config=STRICT)
class VerifiedCheck:
    """One check of the verification, as it came out."""

    name: str
    measured: float
    limit: float
    reason: str
    passed: bool


@dataclass(frozen=True, config=STRICT)
class Verified:
    """What the artifact was held against, and the outcome."""

    oracle: str
    passed: bool
    checks: list[VerifiedCheck]


@dataclass(frozen=True, config=STRICT)
class Manifest:
    """One artifact.

    file: the artifact's file within its folder; file_sha256 its digest.
    source: the checkpoint as named by the user; source_files what was read of it.
    spec, sharing, recipe: DecoderSpec, SharingPlan and Recipe as plain values.
    requested_schedule: --schedule, where the user gave one.
    bits_per_weight: bits of all codes and scales over stored parameters.
    matrices: graph name -> precision in words, for every matrix.
    outside_delegates: operator -> calls a step, as the program lists them.
    delegates: entries in the file; delegate_calls: calls a step.
    adds_bos: a text that is no chat turn begins with bos_id.
    verification: None where it was skipped.
    """

    schema_version: int
    tool: str
    format: str
    file: str
    file_bytes: int
    file_sha256: str
    source: str
    source_files: list[SourceFile]
    licence: str | None
    spec: dict[str, Any]
    sharing: dict[str, Any]
    recipe: dict[str, Any]
    requested_schedule: str | None
    max_context: int
    max_prompt: int
    attention: str
    stored_parameters: int
    executed_parameters: int
    bits_per_weight: float
    parts: list[Part]
    kv_cache: KvCacheSize
    matrices: dict[str, str]
    outside_delegates: dict[str, int]
    delegates: int
    delegate_calls: int
    metadata: dict[str, Any]
    tokenizer_files: list[str]
    bos_id: int | None
    adds_bos: bool
    eos_ids: list[int]
    versions: dict[str, str]
    warnings: list[str]
    verification: Verified | None


_MANIFEST = pydantic.TypeAdapter(Manifest)


def to_json(manifest: Manifest) -> str:
    """The manifest as indented JSON."""
    return json.dumps(dataclasses.asdict(manifest), indent=2) + "\n"


def read_manifest(artifact: Path) -> Manifest:
    """The manifest of an artifact folder, or of the folder an artifact file lies in.

    Raises:
        InputError: no such artifact, no manifest, or one this version cannot read.
    """
    folder = artifact if artifact.is_dir() else artifact.parent
    path = folder / NAME
    if not artifact.exists():
        raise InputError(str(artifact), "no such artifact", "make one: mobile-export pte CHECKPOINT --out FOLDER")
    if not path.is_file():
        raise InputError(str(artifact), f"no {NAME} beside it", "name a folder that mobile-export wrote")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(str(path), f"not JSON: {error}", "export the artifact again") from None
    version = values.get("schema_version") if isinstance(values, dict) else None
    if version != SCHEMA_VERSION:
        then = "export the artifact again with this version of mobile-export"
        raise InputError(str(path), f"schema_version {version!r}, this version reads {SCHEMA_VERSION}", then)
    try:
        return _MANIFEST.validate_python(values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(str(path), f"{place}: {first['msg']}", "export the artifact again") from None
