"""A phone that answers what no phone should: shortened, lengthened, swapped or random bytes, drawn from a seed."""

from __future__ import annotations

import random
import struct
import threading
from dataclasses import dataclass
from typing import Literal, get_args

Level = Literal["messages", "payloads"]
Kind = Literal["truncated", "oversized", "wrong order", "random"]
LEVELS: tuple[Level, ...] = get_args(Level)
KINDS: tuple[Kind, ...] = get_args(Kind)
LENGTHS_AT = {"messages": (12,), "payloads": (1, 4)}  # bytes before the length: a transport message; shell v2 and sync
LENGTHS = (0, 1, 1 << 16, (1 << 20) + 1, (1 << 31) - 1, (1 << 32) - 1)


@dataclass(frozen=True)
class Fuzz:
    """What is mangled.

    Args:
        level: whole transport messages, or the bytes that services write into their streams.
        kind: cut short; a length that lies, and more bytes than there should be; two swapped, or one twice; random bytes.
        share: of what is sent, mangled.
        unharmed: how many pass before the first is mangled.
    """

    level: Level
    kind: Kind
    seed: int = 0
    share: float = 0.3
    unharmed: int = 0


class Mangler:
    """Mangles what one phone sends; safe to use from several threads."""

    def __init__(self, fuzz: Fuzz) -> None:
        self.mangled = 0  # how many were
        self._fuzz = fuzz
        self._random = random.Random(fuzz.seed)
        self._passed = 0
        self._held: bytes | None = None  # to be sent after the next one
        self._lock = threading.Lock()

    def mangle(self, level: Level, data: bytes) -> list[bytes]:
        """What to send in place of `data`."""
        if level != self._fuzz.level or not data:
            return [data]
        with self._lock:
            self._passed += 1
            held, self._held = self._held, None
            after = [] if held is None else [held]
            if self._passed <= self._fuzz.unharmed or self._random.random() >= self._fuzz.share:
                return [data, *after]
            self.mangled += 1
            if self._fuzz.kind == "wrong order" and self._random.random() < 0.5 and held is None:
                self._held = data
                return []
            return [*self._pieces(data), *after]

    def _pieces(self, data: bytes) -> list[bytes]:
        draw = self._random
        if self._fuzz.kind == "truncated":
            return [data[: draw.randrange(len(data))]]
        if self._fuzz.kind == "oversized":
            at = draw.choice(LENGTHS_AT[self._fuzz.level])
            lying = data[:at] + struct.pack("<I", draw.choice(LENGTHS)) + data[at + 4 :]
            return [lying + draw.randbytes(draw.randrange(1 << 12))]
        if self._fuzz.kind == "wrong order":
            return [data, data]
        return [draw.randbytes(draw.randrange(1, 2 * len(data)))]
