"""What goes to the terminal: progress and warnings on stderr, tables on stdout, and known noise of libraries nowhere."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence

# Warnings of libraries about their own insides; a user can do nothing with them.
WARNINGS = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # torch copies its own deprecated class
    r"_check_is_size will be removed",  # executorch's operators against torch 2.13
    r"Mutation on a buffer in the model is detected",  # true of every KV cache, and meant
)

# Lines libraries print that mean nothing to a user, each with its reason. Anything else they print is passed on.
NOISE = tuple(
    re.compile(pattern)
    for pattern in (
        rb"^Failed to load .*torchao/_C.*\.so: Could not load this library",  # torchao probes GPU kernels it lacks
        rb"^\[cpuinfo_utils\.cpp:\d+\] ",  # ExecuTorch tries arm64's files for the core count first
        rb"^W\d{4} .*_pytree\.py:\d+\] ",  # torchao registers types torch.export already knows
        rb"^\[(llm_runner_helper|text_llm_runner|text_prefiller|text_token_generator)\.\w+:\d+\] ",  # the stock runner's log
        rb"^\[stats\.h:\d+\] |^PyTorchObserver ",  # and its timings
        rb"^I tokenizers:",
        rb"^Reached to the end of generation$",
    )
)


def say(line: str, *, last: bool = False) -> None:
    """Progress: one line that the next replaces, only on a terminal."""
    stream = _terminal
    if stream is not None:
        os.write(stream, f"\r\x1b[K{line[: _width() - 1]}".encode() + (b"\r\x1b[K" if last else b""))


def done() -> None:
    """Clear the progress line."""
    say("", last=True)


def warn(line: str) -> None:
    """A warning on stderr."""
    done()
    print(f"warning: {line}", file=sys.stderr, flush=True)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Columns aligned by spaces, the first `left` to the left and the others to the right.

    >>> print(table(("part", "bytes"), (("head", "12"), ("blocks", "3,400"))))
    part    bytes
    head       12
    blocks  3,400
    """
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    text = (
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
    return "\n".join(text)


@contextlib.contextmanager
def without_noise() -> Iterator[None]:
    """Drop the lines of NOISE from stderr, whoever writes them, C++ too; everything else passes in order."""
    sys.stderr.flush()
    real = os.dup(2)
    read, write = os.pipe()
    os.dup2(write, 2)
    os.close(write)
    passer = threading.Thread(target=_pass_on, args=(read, real), daemon=True)
    passer.start()
    try:
        with warnings.catch_warnings():
            for message in WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        sys.stderr.flush()
        os.dup2(real, 2)  # the pipe's last writer is gone: the thread reads its end and stops
        passer.join(timeout=5)
        os.close(real)


@contextlib.contextmanager
def without_stdout() -> Iterator[None]:
    """Drop what C++ writes to stdout: the stock runner prints every token there by itself."""
    sys.stdout.flush()
    real = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(real, 1)
        os.close(real)


def _pass_on(read: int, real: int) -> None:
    with os.fdopen(read, "rb") as lines:
        for line in lines:
            if not any(pattern.search(line) for pattern in NOISE):
                os.write(real, line)


def _width() -> int:
    return os.get_terminal_size(_terminal).columns if _terminal is not None else 80


_terminal = os.dup(2) if sys.stderr is not None and sys.stderr.isatty() else None  # stays itself while fd 2 is filtered
