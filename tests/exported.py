"""Exports for tests, each made once a session: a lowering costs seconds, whatever the size of the model."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiny_checkpoints import write_llama, write_mobilellm

from mobile_export.cli import run
from mobile_export.emit.coreml.layouts import CoreMlOptions
from mobile_export.emit.coreml.package import FILE as PACKAGE
from mobile_export.emit.coreml.package import write_package
from mobile_export.emit.executorch.program import PteOptions, build_program
from mobile_export.emit.onnx.decoder_graph import OnnxOptions
from mobile_export.emit.onnx.operators import KvScales
from mobile_export.emit.onnx.program import FILE, write_program
from mobile_export.manifest import CoreMlGraph
from mobile_export.quantize.weights import ModelWeights
from mobile_export.verify.coreml_runtime import CoreMlRuntime

CONTEXT, PROMPT = 64, 8
ROOM = tempfile.TemporaryDirectory(prefix="mobile-export-tests-")


def with_recipe(arguments: Sequence[str]) -> Sequence[str]:
    """The arguments, with the recipe that calibrates nothing where they name none: calibration costs seconds each time."""
    return arguments if "--recipe" in arguments else ("--recipe", "w4-fast", *arguments)


@functools.cache
def checkpoint(kind: str = "llama", **options: Any) -> Path:
    """A tiny checkpoint folder, written once for each set of options."""
    write = {"llama": write_llama, "mobilellm": write_mobilellm}[kind]
    folder = Path(tempfile.mkdtemp(dir=ROOM.name)) / kind
    folder.mkdir()
    return write(folder, **options)


@functools.cache
def artifact(folder: Path, *arguments: str) -> Path:
    """The artifact `mobile-export pte` makes of a checkpoint folder; its verification passed."""
    out = Path(tempfile.mkdtemp(dir=ROOM.name)) / "out"
    sizes = ("--max-context", str(CONTEXT), "--max-prompt", str(PROMPT))
    assert run(["pte", str(folder), "--out", str(out), *sizes, *with_recipe(arguments)]) == 0
    return out


@functools.cache
def onnx_artifact(folder: Path, *arguments: str) -> Path:
    """The artifact `mobile-export onnx` makes of a checkpoint folder; its verification passed."""
    out = Path(tempfile.mkdtemp(dir=ROOM.name)) / "out"
    context = () if "--max-context" in arguments else ("--max-context", str(CONTEXT))
    assert run(["onnx", str(folder), "--out", str(out), *context, *with_recipe(arguments)]) == 0
    return out


@functools.cache
def coreml_artifact(folder: Path, *arguments: str) -> Path:
    """The artifact `mobile-export coreml` makes of a checkpoint folder; its verification passed, if it was asked for."""
    out = Path(tempfile.mkdtemp(dir=ROOM.name)) / "out"
    context = () if "--max-context" in arguments else ("--max-context", str(CONTEXT))
    assert run(["coreml", str(folder), "--out", str(out), *context, *with_recipe(arguments)]) == 0
    return out


def manifest(folder: Path) -> dict[str, Any]:
    """An artifact's manifest, as any JSON reader sees it."""
    return json.loads((folder / "manifest.json").read_text())


def weights_of(folder: Path, recipe: str = "w4-fast", schedule: str | None = None) -> ModelWeights:
    """A checkpoint folder under a recipe and a schedule."""
    from mobile_export.cli.steps import prepare

    return prepare(str(folder), recipe, schedule)


def program_file(weights: ModelWeights, path: Path, context: int = CONTEXT, attention: str = "custom") -> Path:
    """A .pte without its folder and its verification: what a mutated build needs."""
    options = PteOptions(context, PROMPT, attention)
    path.write_bytes(build_program(weights, options, 1, (2,)).file)
    return path


def onnx_file(weights: ModelWeights, kv_scales: Sequence[KvScales] | None = None, **options: Any) -> Path:
    """A model.onnx in a folder of its own, without what an artifact has beside it. options: of OnnxOptions."""
    folder = Path(tempfile.mkdtemp(dir=ROOM.name))
    write_program(folder, weights, OnnxOptions(**{"max_context": CONTEXT, **options}), kv_scales)
    return folder / FILE


def coreml_file(weights: ModelWeights, **options: Any) -> Path:
    """A model.mlpackage in a folder of its own, without what an artifact has beside it. options: of CoreMlOptions."""
    folder = Path(tempfile.mkdtemp(dir=ROOM.name))
    chosen = CoreMlOptions(**{"max_context": CONTEXT, "max_prompt": PROMPT, **options})
    write_package(folder, weights, chosen, {}, lambda _: None)
    return folder / PACKAGE


def coreml_runtime(package: Path, layout: str = "stock", **options: Any) -> CoreMlRuntime:
    """A package of coreml_file in our interpreter. options: of CoreMlRuntime."""
    chunk = PROMPT if layout == "functions" else None
    return CoreMlRuntime(package, CoreMlGraph(layout, chunk, False, "iOS 18", {}, "", []), **options)


__all__ = [
    "CONTEXT",
    "PROMPT",
    "artifact",
    "checkpoint",
    "coreml_artifact",
    "coreml_file",
    "coreml_runtime",
    "manifest",
    "onnx_artifact",
    "onnx_file",
    "program_file",
    "weights_of",
    "with_recipe",
]
