"""Artifacts of real form, after tests/golden/manifests, whose program is no program: to be carried about, made in no time."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

MANIFESTS = Path(__file__).parent / "golden/manifests"
CARRIED_BYTES = 300_000  # of each file


def carried_artifact(folder: Path, seed: int = 0, manifest: str = "llama-w4-fast") -> Path:
    """The folder, with an artifact in it. seed: of what stands for the program."""
    folder.mkdir(exist_ok=True)
    held = json.loads((MANIFESTS / f"{manifest}.json").read_text(encoding="utf-8"))
    for file in held["files"]:
        content = hashlib.shake_128(bytes([seed])).digest(CARRIED_BYTES)
        (folder / file["name"]).parent.mkdir(parents=True, exist_ok=True)
        (folder / file["name"]).write_bytes(content)
        file |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    for name in held["tokenizer_files"]:
        (folder / name).write_text(name)
    (folder / "manifest.json").write_text(json.dumps(held))
    return folder


__all__ = ["CARRIED_BYTES", "MANIFESTS", "carried_artifact"]
