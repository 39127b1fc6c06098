"""Run a command in a process of its own and read the JSON object it prints."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import ROOT


class ChildError(SystemExit):
    """The command failed. Ends a script with its message; one to which a failure is a finding catches it."""

    def __init__(self, command: Sequence[str], code: int, stderr: str) -> None:
        super().__init__(f"error: {' '.join(command)}: exit code {code}: {stderr.strip()[-1500:]}")
        self.stderr = stderr

    def in_short(self) -> str:
        """Beginning and end of the last line it wrote."""
        last = (self.stderr.strip() or str(self)).splitlines()[-1]
        return last if len(last) <= 240 else f"{last[:100]} ... {last[-130:]}"


def run_for_json(
    command: Sequence[str], environment: Mapping[str, str] | None = None, *, accepted: Sequence[int] = (0,)
) -> Any:
    """Run a command from the repository's root; gives what it printed.

    Args:
        environment: variables set for the child beside our own.
        accepted: exit codes that are answers.
    Raises:
        ChildError: it failed; the end of its stderr is the message.
    """
    child = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **(environment or {})}, capture_output=True, text=True, check=False
    )
    if child.returncode not in accepted:
        raise ChildError(command, child.returncode, child.stderr)
    return json.loads(child.stdout)
