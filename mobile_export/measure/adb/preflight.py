"""Asks a phone what it is and how it feels, in one call. Sources differ and may be denied: what is not told is None."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from mobile_export.measure.adb.transport import Answer, Device
from mobile_export.measure.phone import Core, Phone

ROOM = "/data/local/tmp"  # where the user `shell` may write and run programs
CPU, POWER = "/sys/devices/system/cpu", "/sys/class/power_supply/battery"
THERMAL = "dumpsys thermalservice"
DF = f"df -k {ROOM} || df {ROOM}"
COMMANDS = {
    "properties": "getprop",
    "kernel": "uname -r; uname -m",
    "memory": "cat /proc/meminfo",
    "room": DF,
    "page": "getconf PAGE_SIZE",
    "cores": f"cd {CPU}&&echo cpu[0-9]*&&grep -H . cpu[0-9]*/cpufreq/cpuinfo_max_freq cpu[0-9]*/cpu_capacity",
    "thermal": THERMAL,
    "battery": "dumpsys battery",
    "draw": f"cat {POWER}/current_now {POWER}/voltage_now",
}
POWERED = ("AC", "USB", "Wireless", "Dock")


@dataclass(frozen=True)
class Battery:
    """The battery. powered: from a cable. readable: its current and voltage may be read."""

    percent: int | None
    celsius: float | None
    powered: bool | None
    readable: bool


@dataclass(frozen=True)
class Found:
    """What a phone is, and how it is now. thermal: Android's status, 0 to 6."""

    phone: Phone
    battery: Battery
    thermal: int | None


def preflight(device: Device) -> Found:
    """Ask a phone everything.

    Raises:
        MissingTool: it cannot be asked.
    """
    return read_answers(device.serial, device.ask("asking what phone it is", COMMANDS, timeout_s=device.adb.patience_s))


def read_answers(serial: str, answers: Mapping[str, Answer]) -> Found:
    """What the answers to COMMANDS say."""
    text = {name: answer.text for name, answer in answers.items()}
    known = dict(re.findall(r"^\[(.+?)\]: \[(.+)\]$", text["properties"], re.MULTILINE))
    dram, available = (_number(rf"^{name}:\s+(\d+) kB", text["memory"]) for name in ("MemTotal", "MemAvailable"))
    free = free_kib(text["room"])
    abis = known.get("ro.product.cpu.abilist") or known.get("ro.product.cpu.abi") or ""
    kernel = text["kernel"].split() if answers["kernel"].code == 0 else []
    phone = Phone(
        serial=serial,
        model=_model(known.get("ro.product.manufacturer"), known.get("ro.product.model")),
        android=known.get("ro.build.version.release"),
        sdk=_number(r"^(\d+)$", known.get("ro.build.version.sdk", "")),
        build=known.get("ro.build.fingerprint"),
        soc=_soc(known),
        kernel=" ".join(kernel) or None,
        abis=[abi for abi in abis.split(",") if abi],
        page_bytes=_number(r"^(\d+)$", text["page"]),
        dram_mib=None if dram is None else dram / 1024,
        available_mib=None if available is None else available / 1024,
        free_mib=None if free is None else free / 1024,
        cores=_cores(text["cores"]),
        emulated="1" in (known.get("ro.kernel.qemu"), known.get("ro.boot.qemu")),
    )
    return Found(phone, _battery(text["battery"], text["draw"]), thermal_status(text["thermal"]))


def thermal_status(dumped: str) -> int | None:
    """Android's thermal status in what `dumpsys thermalservice` prints, from Android 10 on.

    >>> thermal_status("IsStatusOverride: false\\nThermal Status: 2\\nCached temperatures:")
    2
    """
    status = _number(r"^\s*Thermal Status: (\d+)", dumped)
    return status if status is not None and status <= 6 else None


def _model(maker: str | None, model: str | None) -> str | None:
    """ "Google Pixel 8"; makers who write their name before it are not named twice."""
    if maker and model and not model.casefold().startswith(maker.casefold()):
        return f"{maker} {model}"
    return model or None


def _soc(known: Mapping[str, str]) -> str | None:
    """The chip: told from Android 12 on; before, the name of its platform."""
    told = [known[key] for key in ("ro.soc.manufacturer", "ro.soc.model") if known.get(key)]
    return " ".join(told) or known.get("ro.board.platform") or known.get("ro.hardware")


def free_kib(said: str) -> int | None:
    """Column "Available", KiB, of the last line of df; a long name of a device breaks it in two. Before Android 6: "1.2G"."""
    lines = said.strip().splitlines()
    if len(lines) < 2 or "Avail" not in said:
        return None
    fields = lines[-1].split()
    at = next((place for place, field in enumerate(fields) if re.fullmatch(r"\d+%", field)), None)
    return int(fields[at - 1]) if at and fields[at - 1].isdigit() else None


def _cores(said: str) -> list[Core]:
    """Names of all cores on a line; then lines "cpu0/cpufreq/cpuinfo_max_freq:2914000", kHz, and "cpu0/cpu_capacity:1024"."""
    numbers = sorted({int(number) for number in re.findall(r"\bcpu(\d{1,4})(?=\s)", said)})
    khz, capacity = (
        {int(number): int(value) for number, value in re.findall(rf"^cpu(\d{{1,4}})/{name}:(\d{{1,9}})$", said, re.MULTILINE)}
        for name in ("cpufreq/cpuinfo_max_freq", "cpu_capacity")
    )
    return [Core(number, khz[number] // 1000 if number in khz else None, capacity.get(number)) for number in numbers]


def _battery(said: str, draw: str) -> Battery:
    powered = re.findall(rf"^\s*(?:{'|'.join(POWERED)}) powered: (true|false)", said, re.MULTILINE)
    tenths = _number(r"^\s*temperature: (\d+)", said)
    return Battery(
        percent=_number(r"^\s*level: (\d+)", said),
        celsius=None if tenths is None else tenths / 10,
        powered="true" in powered if powered else None,
        readable=re.fullmatch(r"\s*-?\d{1,9}\s+\d{1,9}\s*", draw) is not None,
    )


def _number(pattern: str, text: str) -> int | None:
    found = re.search(pattern, text, re.MULTILINE)
    return int(found[1]) if found and len(found[1]) < 16 else None
