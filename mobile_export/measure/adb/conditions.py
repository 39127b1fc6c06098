"""What a phone's clocks and heat do to a measurement, as far as `adb shell` may see and set it."""

from __future__ import annotations

import re
import statistics

from mobile_export.errors import MissingTool, UsageError
from mobile_export.measure.adb.transport import Device
from mobile_export.measure.phone import SEVERE, THERMAL, Phone
from mobile_export.measure.request import Cores

FIXED_CLOCKS_SDK = 30  # Android 11
_FIXED = "cmd power set-fixed-performance-mode-enabled"
USUAL_CORES = 4  # worth a thread, where a phone tells nothing of its cores
WATTS = (0.05, 50.0)  # what a phone may draw; else the driver counts in other units


def fix_clocks(device: Device, phone: Phone, undo: list[str]) -> bool:
    """Ask for clocks the phone can hold; whether it has them.

    Args:
        undo: commands to run at the end, to which one is added.
    Raises:
        MissingTool: the phone cannot be asked.
    """
    if phone.sdk is not None and phone.sdk < FIXED_CLOCKS_SDK:
        return False
    undo.append(f"{_FIXED} false")  # before: nobody knows what a call did that was cut
    answer = device.ask("fixing its clocks", {"fix": f"{_FIXED} true"}, timeout_s=device.adb.patience_s)["fix"]
    return answer.code == 0 and not re.search(r"fail|exception|unknown|not found", answer.text, re.IGNORECASE)


def check_heat(where: str, status: int | None) -> None:
    """Raises:
    MissingTool: the phone is so hot that it cuts its clocks.
    """
    if status is not None and status >= SEVERE:
        what = f"is too hot to be measured: thermal status {THERMAL[status]}"
        raise MissingTool(where, what, "let it cool, or give it longer rests with --rest")


def affinity_on(phone: Phone, cores: Cores) -> tuple[int, ...]:
    """Cores for the runner to stay on; none: all.

    Raises:
        UsageError: the phone has no such core.
    """
    if cores == "all":
        return ()
    known = [core.number for core in phone.cores]
    if cores == "big":
        return tuple(phone.big_cores())
    beyond = [core for core in cores if core not in known]
    if known and beyond:
        raise UsageError(f"--cores {beyond[0]}", f"{phone.name} has no such core", f"name some of {known}")
    return cores


def threads_on(phone: Phone, affinity: tuple[int, ...]) -> int:
    """Most threads worth trying: one for each core it may use, and of those the small ones only slow a step down."""
    return len(set(affinity) & set(phone.big_cores()) or affinity or phone.big_cores()) or USUAL_CORES


def watts(samples: str) -> float | None:
    """Mean of what the battery gave: pairs of lines, microampere (of either sign) and microvolt.

    >>> watts("-500000\\n4000000\\n-700000\\n4000000\\n")
    2.4
    """
    values = [int(line) for line in samples.split() if re.fullmatch(r"-?\d{1,9}", line)]
    pairs = list(zip(values[::2], values[1::2], strict=False))
    if not pairs:
        return None
    mean = statistics.mean(abs(current) * voltage for current, voltage in pairs) * 1e-12
    return mean if WATTS[0] <= mean <= WATTS[1] else None
