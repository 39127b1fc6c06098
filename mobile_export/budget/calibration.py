"""How fast a phone streams and computes: as a profile states it, or, with wide intervals, as the phone table lets expect.

The shares of the peak that the table's rates assume hold two published runs of ExecuTorch on the CPU: a OnePlus 12 reads
0.87 GB of Llama 3.2 1B 50 times a second and takes 260 prompt tokens (57 % of its bandwidth, 107 G operations a big core);
a Galaxy S22 decodes SmolLM2-135M at 202 tokens/s (ExecuTorch's and optimum-executorch's READMEs).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pydantic

from mobile_export.budget.interval import Interval, exactly
from mobile_export.budget.phones import Phone
from mobile_export.errors import InputError

STREAM_SHARE = Interval(0.35, 0.6, 0.8)  # of the theoretical bandwidth, with all big cores
DECODE_GOPS_A_CORE = Interval(15, 40, 100)  # one token: int8 activations, 8- or 4-bit weights
PREFILL_GOPS_A_CORE = Interval(40, 100, 200)  # many tokens at once, what lies between products included
ATTENTION_GOPS_A_CORE = Interval(3, 10, 30)  # one token over a cache of floats: 10 in ExecuTorch's operator on x86-64
PREFILL_ATTENTION_GOPS_A_CORE = Interval(10, 40, 100)
ACTIVATIONS_G_S_A_CORE = Interval(1, 4, 10)
OVERHEAD_US = Interval(10, 40, 110)  # an execution: its calls and small operators
MEASURED_SPREAD = 0.2  # how far a rate predicted from measured ones may be off (benchmarks/decode_prediction.py)


@dataclass(frozen=True)
class Calibration:
    """What a phone does, with all threads that are to be used.

    stream_gb_s, stream_4_bit_gb_s: 10**9 bytes a second of weights from DRAM while they are multiplied with; keys and values
    like 8 bits. decode_gops_*: 10**9 operations a second, a multiplication and an addition being two, of one token with weights
    in a cache; prefill_gops_*: of many tokens. attention_gops, prefill_attention_gops: of one token, and of many, over keys and
    values. activations_g_s: 10**9 values a second between products. overhead_us: of one execution of a block. cache_mib: the
    last level a block may stay in between two executions. source: what it was made from, in words.
    """

    stream_gb_s: Interval
    stream_4_bit_gb_s: Interval
    decode_gops_8_bit: Interval
    decode_gops_4_bit: Interval
    prefill_gops_8_bit: Interval
    prefill_gops_4_bit: Interval
    attention_gops: Interval
    prefill_attention_gops: Interval
    activations_g_s: Interval
    overhead_us: Interval
    cache_mib: Interval
    source: str

    def slowest(self) -> Speeds:
        """Every rate at its lowest, every delay at its longest."""
        return self._at("low", "high")

    def likely(self) -> Speeds:
        """Every rate as it is likely."""
        return self._at("likely", "likely")

    def fastest(self) -> Speeds:
        """Every rate at its highest, every delay at its shortest."""
        return self._at("high", "low")

    def _at(self, rate: str, delay: str) -> Speeds:
        return Speeds(
            stream=1e9 * getattr(self.stream_gb_s, rate),
            stream_4_bit=1e9 * getattr(self.stream_4_bit_gb_s, rate),
            ops_8_bit=1e9 * getattr(self.decode_gops_8_bit, rate),
            ops_4_bit=1e9 * getattr(self.decode_gops_4_bit, rate),
            prefill_ops_8_bit=1e9 * getattr(self.prefill_gops_8_bit, rate),
            prefill_ops_4_bit=1e9 * getattr(self.prefill_gops_4_bit, rate),
            attention_ops=1e9 * getattr(self.attention_gops, rate),
            prefill_attention_ops=1e9 * getattr(self.prefill_attention_gops, rate),
            activations=1e9 * getattr(self.activations_g_s, rate),
            overhead_s=1e-6 * getattr(self.overhead_us, delay),
            cache_bytes=2**20 * getattr(self.cache_mib, rate),
        )


@dataclass(frozen=True)
class Speeds:
    """One point of a calibration: bytes, operations and values a second, seconds, bytes."""

    stream: float
    stream_4_bit: float
    ops_8_bit: float
    ops_4_bit: float
    prefill_ops_8_bit: float
    prefill_ops_4_bit: float
    attention_ops: float
    prefill_attention_ops: float
    activations: float
    overhead_s: float
    cache_bytes: float


def calibration_of_phone(phone: Phone) -> Calibration:
    """What the table says of a phone, in wide intervals. A cache nobody published may hold nothing, or much."""
    peak, cores = phone.chip.bandwidth_gb_s.interval, phone.chip.big_cores.interval
    cache = phone.chip.cache_mib.interval if phone.chip.cache_mib else Interval(0, 4, 16)
    stream, decode, prefill = (
        _product(STREAM_SHARE, peak),
        _product(DECODE_GOPS_A_CORE, cores),
        _product(PREFILL_GOPS_A_CORE, cores),
    )
    return Calibration(
        stream_gb_s=stream,
        stream_4_bit_gb_s=stream,
        decode_gops_8_bit=decode,
        decode_gops_4_bit=decode,
        prefill_gops_8_bit=prefill,
        prefill_gops_4_bit=prefill,
        attention_gops=_product(ATTENTION_GOPS_A_CORE, cores),
        prefill_attention_gops=_product(PREFILL_ATTENTION_GOPS_A_CORE, cores),
        activations_g_s=_product(ACTIVATIONS_G_S_A_CORE, cores),
        overhead_us=OVERHEAD_US,
        cache_mib=cache,
        source=f"the phone table: {phone.row.soc}",
    )


Rate = Annotated[float, pydantic.Field(gt=0, lt=1e7)]
Quantity = Rate | tuple[Rate, Rate]


class ProfileCalibration(pydantic.BaseModel):
    """The object "calibration" of a profile: what a micro-benchmark on the phone measured, numbers or [low, high]."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)
    stream_gb_s: Quantity
    stream_4_bit_gb_s: Quantity
    decode_gops_8_bit: Quantity
    decode_gops_4_bit: Quantity
    prefill_gops_8_bit: Quantity
    prefill_gops_4_bit: Quantity
    attention_gops: Quantity
    prefill_attention_gops: Quantity
    activations_g_s: Quantity
    overhead_us: Quantity
    cache_mib: Quantity


def calibration_given(where: str, given: ProfileCalibration, source: str) -> Calibration:
    """A calibration from the numbers a profile states.

    Raises:
        InputError: an interval whose ends are the wrong way round.
    """
    return Calibration(**{name: _measured(where, name, value) for name, value in given}, source=source)


def exact_calibration(
    *,
    stream_gb_s: float,
    decode_gops: float,
    prefill_gops: float,
    attention_gops: float,
    activations_g_s: float,
    overhead_us: float,
    cache_mib: float,
    source: str,
) -> Calibration:
    """A calibration without doubt, for predictions that are held against measurements."""
    decode = exactly(decode_gops)
    return Calibration(
        stream_gb_s=exactly(stream_gb_s),
        stream_4_bit_gb_s=exactly(stream_gb_s),
        decode_gops_8_bit=decode,
        decode_gops_4_bit=decode,
        prefill_gops_8_bit=exactly(prefill_gops),
        prefill_gops_4_bit=exactly(prefill_gops),
        attention_gops=exactly(attention_gops),
        prefill_attention_gops=exactly(attention_gops),
        activations_g_s=exactly(activations_g_s),
        overhead_us=exactly(overhead_us),
        cache_mib=exactly(cache_mib),
        source=source,
    )


def _measured(where: str, name: str, value: Quantity) -> Interval:
    if isinstance(value, tuple):
        low, high = value
        if low > high:
            raise InputError(where, f"calibration.{name}: {low:g} is above {high:g}", "write the lower end first")
        return Interval(low, (low + high) / 2, high)
    return Interval((1 - MEASURED_SPREAD) * value, value, (1 + MEASURED_SPREAD) * value)


def _product(a: Interval, b: Interval) -> Interval:
    return Interval(a.low * b.low, a.likely * b.likely, a.high * b.high)
