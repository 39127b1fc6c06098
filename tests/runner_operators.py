"""Calls the C++ runner's operators with torch tensors, through a small executable built beside it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from mobile_export.measure.build import SOURCES, build

CODES = {torch.float32: "f", torch.int8: "b", torch.int64: "l"}
Argument = torch.Tensor | int | float | bool | None

needs_compiler = pytest.mark.skipif(
    shutil.which("c++") is None or shutil.which("cmake") is None, reason="needs a C++ compiler and cmake to build the runner"
)


def caller_sources() -> tuple[Path, str, dict[str, str]]:
    """The folder of the executable that calls operators, its name, and the CMake variables it needs."""
    return Path(__file__).parent / "call_operator", "call_operator", {"RUNNER_SOURCES": str(SOURCES)}


def call(
    name: str, *arguments: Argument, result: int = -1, threads: int = 1, command: Sequence[str] = ()
) -> torch.Tensor | str:
    """One argument as the operator left it (the last: `out`), or the line that says it refused.

    command: starts the executable; none: the one for this machine.
    """
    if not command:
        sources, target, definitions = caller_sources()
        command = [str(build(sources, target, **definitions))]
    index = result % len(arguments)
    lines = [f"call {name} {index}\n".encode(), *(_encoded(argument) for argument in arguments), b"end\n"]
    done = subprocess.run([*command, str(threads)], input=b"".join(lines), capture_output=True, timeout=120, check=True)
    said, _, data = done.stdout.partition(b"\n")
    if said.startswith(b"error"):
        return said.decode()
    like = arguments[index]
    assert isinstance(like, torch.Tensor)
    assert said.decode() == f"ok {like.nbytes}"
    return torch.from_numpy(np.frombuffer(data, like.numpy().dtype).reshape(like.shape).copy())


def _encoded(argument: Argument) -> bytes:
    if isinstance(argument, torch.Tensor):
        sizes = " ".join(str(size) for size in argument.shape)
        return f"tensor {CODES[argument.dtype]} {sizes}\n".encode() + argument.contiguous().numpy().tobytes()
    if argument is None:
        return b"none\n"
    kind = {bool: "bool", int: "int", float: "float"}[type(argument)]
    return f"{kind} {int(argument) if kind == 'bool' else repr(argument)}\n".encode()
