"""Run an export in a process of its own, and say what the whole process cost: start to exit, imports included.

A child's peak RSS begins at that of the process it was forked from, so the parent imports nothing heavy.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


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


def pte_command(checkpoint: str, folder: Path, *, recipe: str = "w4", schedule: str | None = None) -> list[str]:
    """The command a user would type to export a .pte, verification apart."""
    command = [*mobile_export_program(), "pte", checkpoint, "--recipe", recipe, "--out", str(folder), "--no-verify"]
    command += ["--max-context", "512", "--max-prompt", "128"]
    return command + (["--schedule", schedule] if schedule else [])


def stock_command(checkpoint: str, file: Path) -> list[str]:
    """The command of the stock path, same model and lengths."""
    return [sys.executable, "-m", "benchmarks.stock_path", checkpoint, "--out", str(file)]


def run_export(command: Sequence[str]) -> ExportCost:
    """Run an export to its end.

    Raises:
        SystemExit: it failed; its last lines are the message.
    """
    began = time.perf_counter()
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    assert child.stdout is not None
    said = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    wall_s = time.perf_counter() - began
    child.returncode = os.waitstatus_to_exitcode(status)  # or Popen would wait for it again
    if child.returncode:
        last = said.decode(errors="replace").strip()[-1500:]
        sys.exit(f"error: {' '.join(command)}: exit code {child.returncode}:\n{last}")
    return ExportCost(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6)
