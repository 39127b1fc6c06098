"""Blocks that are run in stages: what their matrices are handed, and executions that wait for them in front of a matrix.

A stage are matrices that are handed the same tensor: query, key and value in one, or gate and up.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from typing import cast

import torch
from torch import nn

from mobile_export.quantize.paused import Paused, pause
from mobile_export.quantize.pieces import Linears

Stages = tuple[tuple[str, ...], ...]  # a block's matrices in the order they are reached, those of one input together


def stages_of(block: nn.Module, execution: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Stages:
    """A block's Linears in the order they are called, those that are handed the same tensor together."""
    calls: list[tuple[str, torch.Tensor]] = []
    with listening(block, linears_of(block), lambda name, x: calls.append((name, x))):
        execution(x)
    stages: list[list[str]] = []
    given: torch.Tensor | None = None
    for name, x in calls:
        if x is given:
            stages[-1].append(name)
        else:
            stages.append([name])
        given = x
    return tuple(tuple(stage) for stage in stages)


def linears_of(block: nn.Module) -> list[str]:
    """The names of a block's matrices."""
    return [name for name, module in block.named_modules() if isinstance(module, nn.Linear)]


class listening:
    """While entered, `hear` is told the name and the input of each named module that is called."""

    def __init__(self, block: nn.Module, names: Sequence[str], hear: Callable[[str, torch.Tensor], None]) -> None:
        self.block, self.names, self.hear = block, names, hear

    def __enter__(self) -> None:
        self.hooks = [
            self.block.get_submodule(name).register_forward_pre_hook(lambda _, given, name=name: self.hear(name, given[0]))
            for name in self.names
        ]

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()


class _Place(nn.Module):
    """Where a matrix stands in a block that is being quantized; executions may wait in front of it."""

    bias: torch.Tensor | None

    def __init__(self, bias: torch.Tensor | None, *, waits: bool) -> None:
        super().__init__()
        self.register_buffer("bias", bias)
        self.waits = waits
        self.settled: nn.Module | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.waits:
            pause(x.flatten(0, -2))
        assert self.settled is not None, "run before its matrix is there"
        return cast("torch.Tensor", self.settled(x))


class Places:
    """The places of a block's matrices. Executions wait in front of some: the first of each stage."""

    def __init__(self, waiting: Iterable[str]) -> None:
        self.waiting, self._places = frozenset(waiting), dict[str, _Place]()

    def place(self, name: str, bias: torch.Tensor | None) -> nn.Module:
        """A new place, as Linears."""
        return self._places.setdefault(name, _Place(bias, waits=name in self.waiting))

    def settle(self, name: str, linear: Linears) -> None:
        """Put what multiplies with a matrix in its place."""
        place = self._places[name]
        place.settled = linear(name, place.bias)


@contextlib.contextmanager
def waiting(pool: Executor, runs: Sequence[Callable[[], torch.Tensor]]) -> Iterator[Callable[[], list[torch.Tensor]]]:
    """Functions that pause on their way. Gives what lets all go on to the next stop; it returns what each hands out there."""
    many = [Paused(run) for run in runs]
    try:
        yield lambda: list(pool.map(Paused.resume, many))
    finally:
        for one in many:
            one.abandon()
