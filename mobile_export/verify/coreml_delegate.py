"""The Core ML package inside a .pte, as ExecuTorch's backend would find it."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mobile_export.errors import InputError
from mobile_export.verify.mlprogram.program import Program

BACKEND, ROOT = "CoreMLBackend", "lowered_module"
AGAIN = "export it again"


@contextlib.contextmanager
def delegated_package(path: Path) -> Iterator[Path]:
    """Unpack the payload of a .pte's one delegate for a while, and give the package in it.

    Raises:
        InputError: no .pte, damaged, of another backend, or with names its package does not have.
    """
    from executorch.backends.apple.coreml import executorchcoreml

    payload = _payload(path)
    with tempfile.TemporaryDirectory() as room:
        if not executorchcoreml.unflatten_directory_contents(payload, room):
            raise InputError(str(path), "the delegate's payload is damaged", AGAIN)
        root = Path(room) / ROOT
        package = root / "model.mlpackage"
        _check_names(path, Program.open(package), root / "metadata.json")
        yield package


def _payload(path: Path) -> bytes:
    from executorch.exir._serialize._program import deserialize_pte_binary

    try:
        program = deserialize_pte_binary(path.read_bytes()).program
        delegates: list[Any] = [delegate for plan in program.execution_plan for delegate in plan.delegates]
        backends = [delegate.id for delegate in delegates]
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror}", AGAIN) from None
    except Exception as error:  # noqa: BLE001 - the library asserts, and raises what its flatbuffer reader does
        raise InputError(str(path), f"is no .pte, or a damaged one: {error}", AGAIN) from None
    if backends != [BACKEND]:
        raise InputError(str(path), f"its delegates are {backends}, a Core ML program has one of {BACKEND}", AGAIN)
    return bytes(program.backend_delegate_data[delegates[0].processed.index].data)


def _check_names(path: Path, program: Program, metadata: Path) -> None:
    """The backend hands tensors over by these names: a wrong one is an error on the device alone."""
    (function,) = program.functions.values()
    try:
        given = json.loads(metadata.read_text(encoding="utf-8"))
        names = given["inputNames"], given["outputNames"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(str(path), "the delegate's metadata.json is damaged", AGAIN) from None
    has = [value.name for value in function.inputs], list(function.outputs)
    if list(names) != list(has):
        raise InputError(str(path), f"the backend is told of {names}, the package has {has}", AGAIN)
