"""Exports for tests, each made once a session: a lowering costs seconds, whatever the size of the model."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

from tiny_checkpoints import write_llama, write_mobilellm

from mobile_export.cli import run
from mobile_export.emit.executorch.program import PteOptions, build_program
from mobile_export.quantize.weights import ModelWeights

CONTEXT, PROMPT = 64, 8
ROOM = tempfile.TemporaryDirectory(prefix="mobile-export-tests-")


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
    assert run(["pte", str(folder), "--out", str(out), *sizes, *arguments]) == 0
    return out


def manifest(folder: Path) -> dict[str, Any]:
    """An artifact's manifest, as any JSON reader sees it."""
    return json.loads((folder / "manifest.json").read_text())


def weights_of(folder: Path, recipe: str = "w4", schedule: str | None = None) -> ModelWeights:
    """A checkpoint folder under a recipe and a schedule."""
    from mobile_export.cli.steps import prepare

    return prepare(str(folder), recipe, schedule)


def program_file(weights: ModelWeights, path: Path, context: int = CONTEXT, attention: str = "custom") -> Path:
    """A .pte without its folder and its verification: what a mutated build needs."""
    options = PteOptions(context, PROMPT, attention)
    path.write_bytes(build_program(weights, options, 1, (2,)).file)
    return path


__all__ = ["CONTEXT", "PROMPT", "artifact", "checkpoint", "manifest", "program_file", "weights_of"]
