"""Where the bytes of an ML program come from: an .mlpackage folder, or a protobuf and weight files held by another file."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mobile_export.checkpoint.strict_json import parse_object
from mobile_export.errors import InputError

AGAIN = "export or copy it again"
MODEL_FOLDER = "@model_path"  # what a program calls the folder its protobuf lies in


@dataclass(frozen=True)
class Package:
    """A program's protobuf and what its constants point to."""

    where: str  # for errors
    specification: memoryview | bytes  # Model.proto, serialized
    files: Mapping[str, memoryview]  # weight files by the names the program uses: "@model_path/weights/weight.bin"
    folder: Path | None = None  # what "@model_path" is on disk, if it is there


def read_package(path: Path) -> Package:
    """Map the files an .mlpackage folder lists in its Manifest.json.

    Raises:
        InputError: not such a folder, or its Manifest.json lists what is not there.
    """
    where = path.name
    if not path.is_dir():
        what = "is a file, not a folder" if path.exists() else "no such folder"
        raise InputError(str(path), what, "name an .mlpackage folder")
    manifest_where = f"{where}/Manifest.json"
    manifest = parse_object(manifest_where, map_file(path / "Manifest.json", manifest_where).tobytes(), AGAIN)
    entries, root = manifest.get("itemInfoEntries"), manifest.get("rootModelIdentifier")
    if not isinstance(entries, dict) or not isinstance(root, str) or root not in entries:
        raise InputError(manifest_where, "names no model (rootModelIdentifier)", AGAIN)
    paths = {name: _item_path(manifest_where, name, entry) for name, entry in entries.items()}
    data = path / "Data"
    for item in paths.values():
        if not (data / item).exists():
            raise InputError(where, f"Manifest.json lists Data/{item}, which is not there", AGAIN)
    model = paths[root]
    specification = map_file(data / model, f"{where}/Data/{model}")
    files = {}
    for item in paths.values():
        if item == model or not item.is_relative_to(model.parent):
            continue  # what a program can name lies beside its protobuf
        for file in _files_below(data / item):
            name = file.relative_to(data / model.parent).as_posix()
            files[f"{MODEL_FOLDER}/{name}"] = map_file(file, f"{where}/Data/{model.parent / name}")
    return Package(where, specification, files, (data / model).parent)


def map_file(path: Path, where: str) -> memoryview:
    """A regular file's bytes, read-only. Unmapped when the last view of them is gone.

    Raises:
        InputError: no such file, not a regular one, empty, or not readable.
    """
    try:
        if not path.is_file():
            raise InputError(where, "is not a file" if path.exists() else "no such file", AGAIN)
        if path.stat().st_size == 0:
            raise InputError(where, "is empty", AGAIN)
        with path.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise InputError(where, f"cannot be read ({error.strerror})", "check its permissions") from None


def _item_path(where: str, name: str, entry: object) -> PurePosixPath:
    """An item's path, relative to Data/."""
    path = entry.get("path") if isinstance(entry, dict) else None
    if not isinstance(path, str) or not path or "\0" in path:
        raise InputError(where, f"item {name[:80]} has no path", AGAIN)
    item = PurePosixPath(path)
    if item.is_absolute() or ".." in item.parts:
        raise InputError(where, f"item {name[:80]} leads out of the package", AGAIN)
    return item


def _files_below(item: Path) -> list[Path]:
    return sorted(path for path in item.rglob("*") if path.is_file()) if item.is_dir() else [item]
