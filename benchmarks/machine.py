"""What a number was measured on, as one line: a figure without it means nothing."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks import ROOT

PTE_PACKAGES = ("executorch", "torch", "torchao")
ONNX_PACKAGES = ("onnx", "onnx-ir", "onnxruntime", "onnxruntime-genai", "torch")


def describe_machine(packages: Sequence[str] = PTE_PACKAGES) -> str:
    """CPU, cores, memory, system, versions of `packages`, load and commit of this run."""
    cores, memory_gib = len(os.sched_getaffinity(0)), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    parts = [
        f"{_cpu_model()}, {cores} cores, {memory_gib:.0f} GiB",
        f"{platform.system()} {platform.release()} {platform.machine()}",
        f"Python {platform.python_version()}",
        *(f"{name} {_version(name)}" for name in dict.fromkeys(packages)),
        f"load {os.getloadavg()[0]:.1f} at the start",
        f"commit {_commit()}",
    ]
    return "; ".join(parts)


def _cpu_model() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _commit() -> str:
    """The short hash of HEAD, with "+ changes" where the tree differs from it."""
    head = _git("rev-parse", "--short=10", "HEAD")
    return "none yet" if not head else head + (" + changes" if _git("status", "--porcelain") else "")


def _git(*arguments: str) -> str:
    run = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return run.stdout.strip() if run.returncode == 0 else ""
