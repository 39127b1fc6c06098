"""A calibration from one profile of any model: what the phone did with that model says what it would do with others.

The profile gives two rates. The balance between streaming, computing and calling is the phone table's, or a usual one; all
three are scaled together until the model that was profiled decodes as fast as it did, then the rates of a prompt alone.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import pydantic

from mobile_export.budget.calibration import Calibration, ProfileCalibration, Speeds, calibration_given
from mobile_export.budget.facts import ModelFacts
from mobile_export.budget.interval import Interval, exactly
from mobile_export.budget.latency import decode_seconds, prefill_seconds
from mobile_export.errors import InputError, UsageError

MODEL_ERROR = 0.2  # how far a rate predicted from another model's may be off
USUAL = Calibration(  # of a big core or two, where no phone is named
    stream_gb_s=Interval(10, 20, 40),
    stream_4_bit_gb_s=Interval(8, 16, 32),
    decode_gops_8_bit=Interval(40, 80, 160),
    decode_gops_4_bit=Interval(50, 100, 200),
    prefill_gops_8_bit=Interval(150, 300, 600),
    prefill_gops_4_bit=Interval(125, 250, 500),
    attention_gops=Interval(5, 10, 20),
    prefill_attention_gops=Interval(20, 40, 80),
    activations_g_s=Interval(2, 4, 8),
    overhead_us=Interval(20, 50, 100),
    cache_mib=Interval(4, 8, 16),
    source="a usual core",
)
DECODE_RATES = ("stream", "stream_4_bit", "ops_8_bit", "ops_4_bit", "attention_ops", "activations")
PREFILL_RATES = ("prefill_ops_8_bit", "prefill_ops_4_bit", "prefill_attention_ops")

Positive = Annotated[float, pydantic.Field(gt=0, lt=1e9)]
IGNORED = pydantic.ConfigDict(extra="ignore", frozen=True)  # a profile says much that is not asked here


class Rate(pydantic.BaseModel):
    """A quantity over runs."""

    model_config = IGNORED
    median: Positive


class AtThreads(pydantic.BaseModel):
    """What a number of threads gave."""

    model_config = IGNORED
    threads: int
    prefill_tokens_per_s: Rate
    decode_tokens_per_s: Rate


class ProfiledFile(pydantic.BaseModel):
    """A file that was measured."""

    model_config = IGNORED
    sha256: str


class ProfiledPhone(pydantic.BaseModel):
    """The phone it was measured on. dram_mib: what its kernel was given, less than is sold."""

    model_config = IGNORED
    serial: str
    model: str | None
    dram_mib: Positive | None

    @property
    def dram(self) -> Interval | None:
        """In bytes."""
        return None if self.dram_mib is None else exactly(self.dram_mib * 2**20)


class ProfiledRates(pydantic.BaseModel):
    """What of profile.json says how fast a phone is: two rates of one model, or a calibration of its own."""

    model_config = IGNORED
    files: list[ProfiledFile] = []
    prompt_tokens: Annotated[int, pydantic.Field(gt=0)] = 1
    new_tokens: Annotated[int, pydantic.Field(ge=0)] = 0
    by_threads: list[AtThreads] = []
    best_threads: int = 0
    calibration: ProfileCalibration | None = None
    phone: ProfiledPhone | None = None

    @pydantic.model_validator(mode="after")
    def _something(self) -> ProfiledRates:
        if self.calibration is None and self.best_threads not in [each.threads for each in self.by_threads]:
            raise ValueError("neither a calibration nor the rates of best_threads in it")
        return self

    @property
    def best(self) -> AtThreads:
        return next(each for each in self.by_threads if each.threads == self.best_threads)

    def is_of(self, sha256s: list[str]) -> bool:
        """Whether it is of the artifact with these files."""
        return [file.sha256 for file in self.files] == sha256s


def read_rates(path: Path) -> ProfiledRates:
    """The rates in a profile.

    Raises:
        InputError: no such file, not JSON, or nothing of speed in it.
    """
    again = f"make it with: mobile-export profile ARTIFACT --out {path.name}"
    try:
        held: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror}", again) from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(str(path), f"not JSON: {error}", again) from None
    try:
        return ProfiledRates.model_validate(held)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if "float" not in str(part))  # a union names its arms, too
        what = first["msg"].removeprefix("Value error, ")
        raise InputError(str(path), f"{place}: {what}" if place else what, again) from None


def calibration_of_profile(path: Path, rates: ProfiledRates, profiled: ModelFacts | None, start: Calibration) -> Calibration:
    """What a profile says of a phone's speed.

    Args:
        profiled: the model it is of; None where nobody knows, which is enough for a calibration of its own.
        start: whose balance between streaming, computing and calling is kept.
    Raises:
        UsageError: rates of a model that nobody named.
    """
    if rates.calibration is not None:
        return calibration_given(str(path), rates.calibration, f"profile {path.name}")
    if profiled is None:
        what = "is of another artifact than the one that is checked"
        raise UsageError(f"--profile {path}", what, "name that artifact with --profiled")
    position = rates.prompt_tokens + rates.new_tokens // 2
    likely = start.likely()
    decode = decode_seconds(profiled, likely, position) * rates.best.decode_tokens_per_s.median
    scaled = _faster(likely, DECODE_RATES, decode)
    scaled = dataclasses.replace(scaled, overhead_s=likely.overhead_s / decode)
    measured_s = rates.prompt_tokens / rates.best.prefill_tokens_per_s.median
    low, high = 1 / 1000, 1000.0
    for _ in range(60):  # a faster rate is never slower, so halving finds it
        middle = (low * high) ** 0.5
        slower = prefill_seconds(profiled, _faster(scaled, PREFILL_RATES, middle), rates.prompt_tokens) > measured_s
        low, high = (middle, high) if slower else (low, middle)
    scaled = _faster(scaled, PREFILL_RATES, high)
    return Calibration(
        stream_gb_s=_about(scaled.stream / 1e9),
        stream_4_bit_gb_s=_about(scaled.stream_4_bit / 1e9),
        decode_gops_8_bit=_about(scaled.ops_8_bit / 1e9),
        decode_gops_4_bit=_about(scaled.ops_4_bit / 1e9),
        prefill_gops_8_bit=_about(scaled.prefill_ops_8_bit / 1e9),
        prefill_gops_4_bit=_about(scaled.prefill_ops_4_bit / 1e9),
        attention_gops=_about(scaled.attention_ops / 1e9),
        prefill_attention_gops=_about(scaled.prefill_attention_ops / 1e9),
        activations_g_s=_about(scaled.activations / 1e9),
        overhead_us=_about(scaled.overhead_s * 1e6),
        cache_mib=start.cache_mib,
        source=f"profile {path.name}",
    )


def _faster(speeds: Speeds, rates: Sequence[str], factor: float) -> Speeds:
    return dataclasses.replace(speeds, **{rate: factor * getattr(speeds, rate) for rate in rates})


def _about(value: float) -> Interval:
    return Interval((1 - MODEL_ERROR) * value, value, (1 + MODEL_ERROR) * value)
