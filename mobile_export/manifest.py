"""manifest.json: everything about an artifact a later step or a person may ask. Written by emit, read by every other step."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydantic
from pydantic.dataclasses import dataclass

from mobile_export.errors import InputError

SCHEMA_VERSION = 5
FORMATS = ("pte", "onnx", "coreml")
NAME = "manifest.json"
SAMPLED = "sampled from the model"  # in a file name's place
PACKAGE = ".mlpackage"  # a folder that is one file to a user
STRICT = pydantic.ConfigDict(extra="forbid")


@dataclass(frozen=True, config=STRICT)
class FileDigest:
    """A file, of the checkpoint or of the artifact."""

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
    """What is kept of the text: keys and values, one slot per execution, and a state that does not grow.

    rows: of every slot, in the order of execution; fewer than the context where the tokens see no further back than a window.
    bytes_per_token: of one row in every slot that holds the whole context: what a longer context costs.
    bytes_at_max_context: of all rows.
    state_bytes: columns of short convolutions, RWKV's rows.
    """

    dtype: str
    slots: int
    rows: list[int]
    bytes_per_token: int
    bytes_at_max_context: int
    state_bytes: int


@dataclass(frozen=True, config=STRICT)
class CalibrationFacts:
    """What a calibrated recipe was calibrated with.

    text: SAMPLED, or a file's name. tokens: how many were used. sha256: of the codes and scales that came out.
    left: quantized matrices each rounded by itself, as without calibration.
    """

    text: str
    tokens: int
    sha256: str
    left: list[str]


@dataclass(frozen=True, config=STRICT)
class Chat:
    """A chat template as plain strings, for apps without Jinja. Texts go in without white space around them.

    opening: all before the first user text. system: instead of it, around a system text; None where there may be none.
    assistant: around an assistant's text, from the user text before it to the one after it.
    answer: after the last user text; the model goes on there.
    """

    opening: str
    system: tuple[str, str] | None
    assistant: tuple[str, str]
    answer: str

    def prompt(self, turns: Sequence[str], system: str | None = None) -> str:
        """The text a model is given.

        >>> Chat("<s>", None, (">", "<"), ">").prompt(["2 + 2?", "4", "+ 1?"])
        '<s>2 + 2?>4<+ 1?>'

        Args:
            turns: of the user and the assistant in turn, the user's first and last.
            system: only where the template takes one.
        """
        assert len(turns) % 2, "ends with a user text"
        if system is None:
            head = self.opening
        else:
            assert self.system is not None, "takes no system text"
            head = system.join(self.system)
        said = "".join(part if i % 2 == 0 else part.join(self.assistant) for i, part in enumerate(turns))
        return head + said + self.answer


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
class CoreMlGraph:
    """What only a Core ML package has.

    layout: "stock" (swift-transformers), "functions" (calls of fixed shape) or "delegate" (in a .pte).
    max_prompt: tokens in a call of `prefill`, or the most in a delegate's; None where a call takes any number.
    palettes: 4-bit codes are indices into sixteen values.
    deployment_target: the oldest system that loads it.
    operators: function -> operator -> how often.
    export_id: what the package's own metadata carries, so that it cannot be taken for another's.
    advice: patterns a processor of the phone may not take, each with the cure.
    """

    layout: str
    max_prompt: int | None
    palettes: bool
    deployment_target: str
    operators: dict[str, dict[str, int]]
    export_id: str
    advice: list[str]


@dataclass(frozen=True, config=STRICT)
class PteGraph:
    """What only a .pte has.

    max_prompt: most tokens in one call. attention: "custom", "core" or "none".
    outside_delegates: operator -> calls a step, as the program lists them.
    delegates: entries in the file; delegate_calls: calls a step.
    metadata: constant method -> value.
    core_ml: the package its one delegate is, where it was made for the Core ML backend; None for XNNPACK's.
    """

    max_prompt: int
    attention: str
    outside_delegates: dict[str, int]
    delegates: int
    delegate_calls: int
    metadata: dict[str, Any]
    core_ml: CoreMlGraph | None = None


@dataclass(frozen=True, config=STRICT)
class OnnxGraph:
    """What only an ONNX model has.

    activations: "float32" or "float16". all_logits: of every position, not of the last alone.
    portable: operators of the ONNX standard alone.
    operators: operator -> nodes.
    runs_in_genai: onnxruntime-genai runs the folder as it is; it knows no state beside keys and values.
    minimum_onnxruntime: the first version that runs it; one_copy_onnxruntime: that packs a shared block once, too.
    """

    activations: str
    all_logits: bool
    portable: bool
    operators: dict[str, int]
    minimum_onnxruntime: str
    one_copy_onnxruntime: str
    runs_in_genai: bool


@dataclass(frozen=True, config=STRICT)
class Manifest:
    """One artifact.

    format: "pte", "onnx" or "coreml". files: the artifact's files within its folder, the one to load first.
    source: the checkpoint as named by the user; source_files what was read of it.
    spec, sharing, recipe: DecoderSpec, SharingPlan and Recipe as plain values.
    requested_schedule: --schedule, where the user gave one.
    max_context: most positions of a text.
    bits_per_weight: bits of all codes and scales over stored parameters.
    matrices: graph name -> precision in words, for every matrix.
    pte, onnx, coreml: what only that format has; None for the others.
    adds_bos: a text that is no chat turn begins with bos_id.
    chat: the chat template in a few strings; None where there is none, or none that is so simple.
    verification: None where it was skipped.
    calibration: None where the recipe has none.
    """

    schema_version: int
    tool: str
    format: str
    files: list[FileDigest]
    source: str
    source_files: list[FileDigest]
    licence: str | None
    spec: dict[str, Any]
    sharing: dict[str, Any]
    recipe: dict[str, Any]
    requested_schedule: str | None
    max_context: int
    stored_parameters: int
    executed_parameters: int
    bits_per_weight: float
    parts: list[Part]
    kv_cache: KvCacheSize
    matrices: dict[str, str]
    pte: PteGraph | None
    onnx: OnnxGraph | None
    coreml: CoreMlGraph | None
    tokenizer_files: list[str]
    bos_id: int | None
    adds_bos: bool
    eos_ids: list[int]
    chat: Chat | None
    versions: dict[str, str]
    warnings: list[str]
    verification: Verified | None
    calibration: CalibrationFacts | None

    def __post_init__(self) -> None:
        if not self.files:
            raise ValueError("files is empty")
        held = [name for name in FORMATS if getattr(self, name) is not None]
        if held != [self.format]:
            raise ValueError(f"format {self.format!r} does not go with facts of {held}")

    @property
    def file(self) -> str:
        """The file, or the package folder, a runtime is given."""
        return self.files[0].name.partition("/")[0]

    @property
    def package(self) -> CoreMlGraph | None:
        """The Core ML package it is, or has for a delegate."""
        return self.pte.core_ml if self.pte else self.coreml

    @property
    def bytes(self) -> int:
        """Bytes of all the artifact's files."""
        return sum(file.bytes for file in self.files)


_MANIFEST = pydantic.TypeAdapter(Manifest)


def to_json(manifest: Manifest) -> str:
    """The manifest as indented JSON."""
    return json.dumps(dataclasses.asdict(manifest), indent=2) + "\n"


def folder_of(artifact: Path) -> Path:
    """The folder of an artifact named by its folder, its file or its package."""
    return artifact if artifact.is_dir() and artifact.suffix != PACKAGE else artifact.parent


def read_manifest(artifact: Path) -> Manifest:
    """The manifest of an artifact folder, or of the folder an artifact file lies in.

    Raises:
        InputError: no such artifact, no manifest, or one this version cannot read.
    """
    folder = folder_of(artifact)
    path = folder / NAME
    if not artifact.exists():
        then = "make one: mobile-export pte (or onnx, coreml) CHECKPOINT --out FOLDER"
        raise InputError(str(artifact), "no such artifact", then)
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
        raise InputError(
            str(path), f"{place}: {first['msg']}" if place else first["msg"], "export the artifact again"
        ) from None


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(path: Path, name: str | None = None) -> FileDigest:
    """A file, under its own name or another."""
    return FileDigest(name or path.name, path.stat().st_size, sha256(path))


def check_files(folder: Path, manifest: Manifest) -> None:
    """Hold every file against its digest.

    Raises:
        InputError: one is missing or was changed.
    """
    for held in manifest.files:
        path = folder / held.name
        if not path.is_file():
            raise InputError(str(path), "the manifest names it and it is not there", "export the artifact again")
        digest = sha256(path)
        if digest != held.sha256:
            what = f"SHA-256 {digest[:12]}..., the manifest says {held.sha256[:12]}..."
            raise InputError(str(path), what, "export the artifact again, or restore the file it was written with")
