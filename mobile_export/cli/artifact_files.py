"""The files of an artifact are those its manifest was written with."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mobile_export.errors import InputError
from mobile_export.manifest import Manifest


def check_files(folder: Path, manifest: Manifest) -> None:
    """Hold every file against its digest.

    Raises:
        InputError: one is missing or was changed.
    """
    for held in manifest.files:
        path = folder / held.name
        if not path.is_file():
            raise InputError(str(path), "the manifest names it and it is not there", "export the artifact again")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != held.sha256:
            what = f"SHA-256 {digest[:12]}..., the manifest says {held.sha256[:12]}..."
            raise InputError(str(path), what, "export the artifact again, or restore the file it was written with")
