"""A phone as data: fixtures/NAME/phone.toml, build.prop, meminfo, dumpsys/SERVICE.txt."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

FIXTURES = Path(__file__).parent / "fixtures"


@dataclass(frozen=True)
class Core:
    """One core, as /proc/cpuinfo and /sys show it."""

    part: int  # of Arm Ltd.: 0xd46 is a Cortex-A510
    min_khz: int
    max_khz: int
    capacity: int  # 1024 is the fastest core of the phone; 0: the kernel does not tell


@dataclass(frozen=True)
class Fixture:
    """What is told apart about a phone. Sizes are in the unit of their name."""

    folder: Path
    features: tuple[str, ...]  # in the banner: what its adbd can do
    crlf: bool  # `shell:` runs in a terminal: Android 6 and older
    kernel: str  # its release
    page_size: int  # bytes
    data_kib: int  # size of /data
    free_kib: int  # of it
    governor: str  # of the cores' clocks
    fixed_performance: bool  # whether `cmd power set-fixed-performance-mode-enabled` works
    battery_ua: int  # current in microampere; a minus: out of it
    battery_uv: int  # voltage in microvolt
    missing_tools: tuple[str, ...]  # of those that toybox has
    denied: tuple[str, ...]  # paths, with * and ?, that `shell` may not read
    cores: tuple[Core, ...]
    properties: dict[str, str]


def read_fixture(name: str) -> Fixture:
    """The phone of fixtures/`name`; a wrong or missing key is a TypeError or KeyError."""
    folder = FIXTURES / name
    told = tomllib.loads((folder / "phone.toml").read_text())
    cores = tuple(Core(**group) for group in told.pop("cores") for _ in range(group.pop("count")))
    lists = {key: tuple(value) if isinstance(value, list) else value for key, value in told.items()}
    return Fixture(folder=folder, cores=cores, properties=_properties(folder / "build.prop"), **lists)


def _properties(path: Path) -> dict[str, str]:
    lines = (line.partition("=") for line in path.read_text().splitlines() if line and not line.startswith("#"))
    return {key: value for key, _, value in lines}
