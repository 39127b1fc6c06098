"""A function that stops on its way, hands out what it has reached, and goes on when it is asked to.

A block is quantized stage by stage, each for what reaches it through those before. So every text's execution waits in front of
a stage until that is quantized, and is run once. A module's forward can be no generator; a thread of its own can stop anywhere.
While a thread runs, who resumed it waits: how many run side by side is decided by how many are resumed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

_own = threading.local()


class Paused:
    """A function in a thread of its own, begun at the first `resume`."""

    def __init__(self, function: Callable[[], torch.Tensor]) -> None:
        self._function: Callable[[], torch.Tensor] | None = function
        self._abandoned = False
        self._thread = ThreadPoolExecutor(1, initializer=self._enter)
        self._turn, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._reached: torch.Tensor | None = None
        self._returned: Future[torch.Tensor] | None = None

    def resume(self) -> torch.Tensor:
        """Go on to the next `pause`, and give what was handed out there; after the last one, what the function returns."""
        if self._function is not None:
            function, self._function = self._function, None
            self._returned = self._thread.submit(function)
            self._returned.add_done_callback(lambda _: self._stopped.release())
        else:
            self._turn.release()
        self._stopped.acquire()
        assert self._returned is not None
        if self._returned.done():
            return self._returned.result()
        reached, self._reached = self._reached, None
        assert reached is not None
        return reached

    def abandon(self) -> None:
        """End it where it stands, if it has not ended, and let go of what it held."""
        self._abandoned = True
        self._turn.release()
        self._thread.shutdown()
        self._function = self._returned = self._reached = None  # its thread's executor keeps it till garbage is collected

    def _enter(self) -> None:
        _own.running = self
        torch.set_num_threads(1)  # torch counts an operator's threads by the thread that calls it

    def _pause(self, reached: torch.Tensor) -> None:
        self._reached = reached
        self._stopped.release()
        self._turn.acquire()
        if self._abandoned:
            raise _Abandoned


class _Abandoned(Exception):
    """Nobody will ask this function to go on."""


def pause(reached: torch.Tensor) -> None:
    """Stop the Paused function that calls this, and give `reached` to who resumed it."""
    _own.running._pause(reached)
