"""What goes wrong with a phone, chosen by a test."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from adb_device.fuzz import Fuzz


@dataclass(frozen=True)
class Faults:
    """Faults of one phone; none by default. Sizes are bytes, times are seconds.

    A fault in a shell strikes the commands whose text contains the given string ("" strikes every command).
    """

    # The connection
    unauthorized: bool = False  # nobody taps "Allow": state `unauthorized`
    allowed_after: float | None = None  # somebody taps "Allow" after so many seconds
    offline: bool = False  # the phone stops answering once connected: state `offline`
    slow_link: int | None = None  # bytes per second, each way
    # Pushing and pulling
    disk_full_after: int | None = None  # of one push: "No space left on device"
    cut_push_after: int | None = None  # the connection breaks
    hang_push_after: int | None = None  # the phone reads no further and says nothing
    rubbish_pull: bool = False  # a pulled file's bytes are others, and their number too
    # The shell
    no_shell_v2: bool = False  # as before Android 7: no exit codes, stderr in stdout
    cut_shell: str | None = None  # the connection breaks after the first output, or half a second
    hang_shell: str | None = None  # the command is accepted and never answers
    rubbish_shell: str | None = None  # random bytes in place of what the command printed
    # The phone
    wrong_abi: bool = False  # a 32-bit phone: it says so, and cannot run arm64 programs
    killed: str | None = None  # programs with this text in their arguments get SIGKILL, as from lmkd
    not_writable: bool = False  # /data/local/tmp
    free_kib: int | None = None  # what `df` says
    clock_jump: int = 0  # from the third command on, `date` is off by so many seconds
    missing_tools: tuple[str, ...] = ()  # of /system/bin, for example "sha256sum"
    missing_services: tuple[str, ...] = ()  # `dumpsys NAME` knows no such service
    denied: tuple[str, ...] = ()  # paths (with * and ?) that `shell` may not read, and services it may not dump
    heats_to: int | None = None  # Android's thermal status from the third command on
    # What it answers
    fuzz: Fuzz | None = None
    # For all that break the connection, hang or print rubbish
    times: int | None = None  # how often they strike, all together; None: always
    seed: int = 0  # of everything random


class Strikes:
    """Counts how often the faults of one phone have struck."""

    def __init__(self, times: int | None) -> None:
        self._left = times
        self._lock = threading.Lock()

    def strike(self) -> bool:
        """Whether a fault may strike now; asking uses one of its times."""
        with self._lock:
            if self._left is None:
                return True
            self._left -= 1
            return self._left >= 0
