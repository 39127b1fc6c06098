"""Which phones a command line means, of those adb sees."""

from __future__ import annotations

import os
from collections.abc import Callable

from mobile_export.errors import MissingTool
from mobile_export.measure.adb.failures import failure
from mobile_export.measure.adb.transport import NETWORK, Adb

ALL = "all"
PATIENCE_S = 30  # for what should be answered at once, by a phone that is busy


def serials_in(text: str) -> str | tuple[str, ...] | None:
    """What --adb was given.

    >>> serials_in(""), serials_in("all"), serials_in("a, b")
    (None, 'all', ('a', 'b'))
    """
    return ALL if text == ALL else tuple(part.strip() for part in text.split(",") if part.strip()) or None


def chosen(adb: Adb, wanted: str | tuple[str, ...] | None, warn: Callable[[str], None]) -> list[str]:
    """Serial numbers of phones that can be used.

    Args:
        wanted: None: the only phone there is, or $ANDROID_SERIAL; ALL; or serial numbers.
    Raises:
        MissingTool: none, several where one is wanted, or one that cannot be used.
    """
    states = adb.devices()
    if wanted is None and os.environ.get("ANDROID_SERIAL"):
        wanted = (os.environ["ANDROID_SERIAL"],)
    if isinstance(wanted, tuple):
        return [_reached(adb, serial, states.get(serial)) for serial in dict.fromkeys(wanted)]
    if not states:
        raise MissingTool("--adb", "no phone is connected", "plug one in with USB debugging on, or: adb connect HOST:PORT")
    if wanted != ALL:
        if len(states) > 1:
            then = f"name one of {', '.join(sorted(states))}, or write --adb all"
            raise MissingTool("--adb", f"{len(states)} phones are connected", then)
        return [_reached(adb, *next(iter(states.items())))]
    usable = sorted(serial for serial, state in states.items() if state == "device")
    for serial in sorted(states.keys() - set(usable)):
        warn(str(_unusable(serial, states[serial])))
    if not usable:
        raise _unusable(*next(iter(states.items())))
    return usable


def _reached(adb: Adb, serial: str, state: str | None) -> str:
    """The phone, connected to where it is on the network."""
    if state in (None, "offline") and NETWORK.fullmatch(serial):
        state = adb.connect(serial)
    if state != "device":
        raise _unusable(serial, state)
    return serial


def _unusable(serial: str, state: str | None) -> MissingTool:
    return failure(serial, "looking for phones", "device not found" if state in (None, "not found") else f"device {state}")
