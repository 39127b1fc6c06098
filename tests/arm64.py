"""Runs arm64 programs on this machine, under qemu. What they compute is compared; how long they take says nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from runner_operators import caller_sources

from mobile_export.errors import MissingTool
from mobile_export.measure.bundle import COMPILER, Bundle, arm64_bundle, build_bundle

QEMU = "qemu-aarch64-static"
CPU = "cortex-a76"  # qemu's own default has SME, and XNNPACK's SME kernels give wrong int8 results there
ALL_TESTS = bool(os.environ.get("MOBILE_EXPORT_ALL_TESTS"))  # set by CI: what is missing there is a failure
MISSING = [program for program in (COMPILER, "cmake", QEMU) if shutil.which(program) is None]

needs_arm64 = pytest.mark.skipif(
    bool(MISSING) and not ALL_TESTS,
    reason=f"needs {', '.join(MISSING)}: apt install g++-aarch64-linux-gnu libc6-dev-arm64-cross cmake qemu-user-static",
)


def runner_bundle() -> Bundle:
    """The bundle a phone gets."""
    return _or_skip(lambda: arm64_bundle(lambda _: None, download=True))


def caller_bundle() -> Bundle:
    """The program that calls operators, for arm64."""
    sources, target, definitions = caller_sources()
    return _or_skip(lambda: build_bundle(sources, target, lambda _: None, download=True, **definitions))


def emulated(bundle: Bundle, folder: Path | None = None) -> list[str]:
    """The bundle's command under qemu, for any current folder. folder: where its files were copied to."""
    place = folder or bundle.folder
    return [QEMU, "-cpu", CPU, *(str(place / part) if part.startswith(".") else part for part in bundle.command)]


def _or_skip(make: Callable[[], Bundle]) -> Bundle:
    """A bundle; without a network, and where nothing is kept from before, the test is skipped."""
    try:
        return make()
    except MissingTool as error:
        if error.where == "pip" and not ALL_TESTS:
            pytest.skip(str(error))
        raise
