"""Run an export in a process of its own, and say what the whole process cost: start to exit, imports included.

A child's peak RSS begins at that of the process it was forked from, so the parent imports nothing heavy.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import ROOT


@dataclass(frozen=True)
class ExportCost:
    """wall_s: start to exit. cpu_s: user and system time; far below wall_s, the machine was busy with other work.

    peak_rss_mb: ru_maxrss, in MB (10**6 bytes).
    """

    wall_s: float
    cpu_s: float
    peak_rss_mb: float


def mobile_export_program() -> list[str]:
    """The installed command beside this Python or on PATH, else the package in this checkout."""
    beside = Path(sys.executable).parent
    found = shutil.which("mobile-export", path=f"{beside}{os.pathsep}{os.environ.get('PATH', '')}")
    return [found] if found else [sys.executable, "-m", "mobile_export"]


def pte_command(checkpoint: str, folder: Path, *, recipe: str = "w4-fast", schedule: str | None = None) -> list[str]:
    """The command a user would type to export a .pte, verification apart."""
    return [*_export_command("pte", checkpoint, folder, recipe, schedule, 512), "--max-prompt", "128", "--no-verify"]


def onnx_command(
    checkpoint: str,
    folder: Path,
    *,
    recipe: str = "w4-fast",
    schedule: str | None = None,
    max_context: int = 512,
    options: Sequence[str] = (),
    verify: bool = False,
) -> list[str]:
    """The command a user would type to export a model.onnx. options: further ones, as typed."""
    command = [*_export_command("onnx", checkpoint, folder, recipe, schedule, max_context), *options]
    return command if verify else [*command, "--no-verify"]


def coreml_command(checkpoint: str, folder: Path, *, recipe: str = "w4-all-fast", schedule: str | None = None) -> list[str]:
    """The command a user would type to export a Core ML package, verification apart."""
    return [*_export_command("coreml", checkpoint, folder, recipe, schedule, 512), "--no-verify"]


def _export_command(verb: str, checkpoint: str, folder: Path, recipe: str, schedule: str | None, max_context: int) -> list[str]:
    command = [*mobile_export_program(), verb, checkpoint, "--recipe", recipe, "--out", str(folder)]
    command += ["--max-context", str(max_context)]
    return command + (["--schedule", schedule] if schedule else [])


def stock_command(checkpoint: str, file: Path) -> list[str]:
    """The command of the stock path, same model and lengths."""
    return [sys.executable, "-m", "benchmarks.stock_path", checkpoint, "--out", str(file)]


def run_export(command: Sequence[str], environment: Mapping[str, str] | None = None) -> ExportCost:
    """Run an export to its end.

    Args:
        environment: variables set for it beside our own.
    Raises:
        SystemExit: it failed; its last lines are the message.
    """
    began = time.perf_counter()
    child = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
    )
    assert child.stdout is not None
    said = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    wall_s = time.perf_counter() - began
    child.returncode = os.waitstatus_to_exitcode(status)  # or Popen would wait for it again
    if child.returncode:
        last = said.decode(errors="replace").strip()[-1500:]
        sys.exit(f"error: {' '.join(command)}: exit code {child.returncode}:\n{last}")
    return ExportCost(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6)
