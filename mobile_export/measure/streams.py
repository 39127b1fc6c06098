"""Keeps a library's own output apart from ours. Standard library alone: memory is measured above what a process imports."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def stdout_on_stderr() -> Iterator[None]:
    """ExecuTorch's C++ logs go to file descriptor 1: send it to stderr, so stdout holds the JSON alone."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)
