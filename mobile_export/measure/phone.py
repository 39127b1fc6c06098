"""What a profile says of the phone it was made on. Whatever the phone does not tell is None."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from mobile_export.measure.measurement import STRICT

SEVERE = 3  # of Android's thermal statuses: from here on clocks are cut
THERMAL = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")


@dataclass(frozen=True, config=STRICT)
class Core:
    """A core. max_mhz: its highest clock. capacity: as the scheduler rates it, of 1024."""

    number: int
    max_mhz: int | None
    capacity: int | None


@dataclass(frozen=True, config=STRICT)
class Phone:
    """A phone, as its system describes it.

    model: with its maker. sdk: Android's API level. build: the fingerprint. kernel: release and machine.
    abis: the best first. page_bytes: of memory. dram_mib: what the kernel was given, less than is sold;
    available_mib: of it, before anything ran. free_mib: room for files. emulated: no phone at all.
    """

    serial: str
    model: str | None
    android: str | None
    sdk: int | None
    build: str | None
    soc: str | None
    kernel: str | None
    abis: list[str]
    page_bytes: int | None
    dram_mib: float | None
    available_mib: float | None
    free_mib: float | None
    cores: list[Core]
    emulated: bool

    @property
    def name(self) -> str:
        """The model, or the serial number of a phone that tells none."""
        return self.model or self.serial

    def big_cores(self) -> list[int]:
        """Numbers of the cores above the slowest kind; all, where there is one kind or nothing is told of it."""
        for values in ([core.capacity for core in self.cores], [core.max_mhz for core in self.cores]):
            known = [value for value in values if value is not None]
            if len(known) == len(self.cores) and len(set(known)) > 1:
                return [core.number for core, value in zip(self.cores, known, strict=True) if value > min(known)]
        return [core.number for core in self.cores]


@dataclass(frozen=True, config=STRICT)
class Conditions:
    """How a phone was when it was measured.

    cores: the runner stayed on; empty: all. fixed_clocks: Android's fixed-performance mode was on. rest_s: before each run.
    thermal_*: 0, none, to 6, shutdown. battery_*: before the runs. powered: from a cable.
    watts: what the whole phone drew while the runner ran, where it may be read and no cable feeds the phone.
    """

    cores: list[int]
    fixed_clocks: bool
    rest_s: float
    thermal_before: int | None
    thermal_after: int | None
    battery_percent: int | None
    battery_celsius: float | None
    powered: bool | None
    watts: float | None


@dataclass(frozen=True, config=STRICT)
class Agreement:
    """The phone's logits of fixed tokens beside this machine's: largest difference over the largest logit."""

    difference: float
    limit: float
    same_argmax: bool

    @property
    def agrees(self) -> bool:
        return self.difference <= self.limit
