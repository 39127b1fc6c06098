"""How fast a machine streams and computes, by the micro-benchmark in the C++ runner: no model is needed for it.

What it gives is the object "calibration" of a profile, from which `check --profile` predicts the speed of any model.
"""

from __future__ import annotations

import dataclasses
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydantic
from pydantic.dataclasses import dataclass

from mobile_export.errors import MissingTool
from mobile_export.measure.measurement import STRICT

SECONDS = 120.0  # after so long it hangs
CALLS_US = 6.0  # what ExecuTorch takes for two delegates and five operators; on x86-64 (benchmarks/decode_prediction.py)
COPIES_US = 0.6  # and to copy a token's values from operator to operator, on one thread
EIGHT_BIT, FOUR_BIT = 1028 / 1024, 0.5625  # bytes a value of the benchmark's weights, scales included
PROMPT = 128  # tokens
KEPT = 1.3  # times as fast as from memory: then a cache has kept the weights
BLOCK_MIB, MATRIX_MIB = 2.0, 0.5  # of weights: what a block of the models this tool is for has, and one of its matrices
BLOCK_VALUES = 12 * 512 + 4 * 1536  # of the benchmark's block, as budget/latency.py counts them
BLOCK_OPERATIONS = 2 * (2 * 512 * 512 + 3 * 512 * 1536)
LEAST = 0.05  # of a block's time, for what is not products: where noise leaves nothing of it


@dataclass(frozen=True, config=STRICT)
class AtSize:
    """A rate, over memory or weights of so many MiB."""

    mib: float
    rate: float


@dataclass(frozen=True, config=STRICT)
class MachineSpeed:
    """What a number of threads does.

    stream: 10**9 bytes a second that are read and nothing else. decode_*: 10**9 operations a second, a multiplication and an
    addition being two, of a product with one token, by the size of its weights; cold_*: of one among others, its weights
    coming from memory; again_*: of one that ran just before. prefill_4_bit_gops: of 128 tokens. attention_gops,
    prefill_attention_gops: of one token, and of 128, over float32 keys and values from memory. *block*_us: of a block of 512
    by 1536, without its attention, for one token, and for 128.
    """

    runtime: str
    threads: int
    stream: list[AtSize]
    decode_8_bit: list[AtSize]
    decode_4_bit: list[AtSize]
    cold_8_bit: list[AtSize]
    again_8_bit: list[AtSize]
    cold_4_bit: list[AtSize]
    again_4_bit: list[AtSize]
    prefill_4_bit_gops: float
    attention_gops: float
    prefill_attention_gops: float
    block_4_bit_us: float
    prefill_block_8_bit_us: float
    prefill_block_4_bit_us: float

    def calibration(self) -> dict[str, float]:
        """The numbers a prediction needs, by the names docs/budget.md explains."""
        cold_8_bit, cold_4_bit = (_near(MATRIX_MIB, rates) for rates in (self.cold_8_bit, self.cold_4_bit))
        pairs = zip(self.again_4_bit, self.cold_4_bit, strict=True)
        kept = [again.mib for again, cold in pairs if again.rate > KEPT * cold.rate]
        prompt_us = PROMPT * BLOCK_OPERATIONS / self.prefill_4_bit_gops / 1e3
        between_us = max(self.prefill_block_4_bit_us - prompt_us, LEAST * self.prefill_block_4_bit_us)
        return {
            "stream_gb_s": cold_8_bit * EIGHT_BIT / 2,
            "stream_4_bit_gb_s": cold_4_bit * FOUR_BIT / 2,
            "decode_gops_8_bit": _near(BLOCK_MIB, self.again_8_bit),
            "decode_gops_4_bit": _near(BLOCK_MIB, self.again_4_bit),
            "prefill_gops_8_bit": PROMPT * BLOCK_OPERATIONS / max(self.prefill_block_8_bit_us - between_us, between_us) / 1e3,
            "prefill_gops_4_bit": self.prefill_4_bit_gops,
            "attention_gops": self.attention_gops,
            "prefill_attention_gops": self.prefill_attention_gops,
            "activations_g_s": PROMPT * BLOCK_VALUES / (between_us + PROMPT * COPIES_US) / 1e3,
            "overhead_us": max(self.block_4_bit_us - BLOCK_OPERATIONS / cold_4_bit / 1e3, 0) + CALLS_US,
            "cache_mib": max(kept, default=self.again_4_bit[0].mib / 2),
        }


def _near(mib: float, rates: Sequence[AtSize]) -> float:
    return min(rates, key=lambda at: abs(at.mib - mib)).rate


_SPEED = pydantic.TypeAdapter(MachineSpeed)


def measure_speed(runner: Path, threads: int, *, processes: int, timeout_s: float = SECONDS) -> MachineSpeed:
    """The medians of some processes.

    Args:
        runner: the C++ one, or another that takes --calibrate and --threads and prints the fields of MachineSpeed.
        processes: how many; each takes some ten seconds.
    Raises:
        MissingTool: it does not start, fails, hangs, or prints something else.
    """
    return typical([_run(runner, threads, timeout_s) for _ in range(processes)])


def typical(runs: Sequence[MachineSpeed]) -> MachineSpeed:
    """The median of everything: what else a machine does, and its neighbours, is part of how fast a model will be."""

    def median(name: str) -> Any:
        values = [getattr(run, name) for run in runs]
        if not isinstance(values[0], list):
            return statistics.median(values)
        return [AtSize(at[0].mib, statistics.median(one.rate for one in at)) for at in zip(*values, strict=True)]

    measured = [field.name for field in dataclasses.fields(MachineSpeed) if field.name not in ("runtime", "threads")]
    return dataclasses.replace(runs[0], **{name: median(name) for name in measured})


def _run(runner: Path, threads: int, timeout_s: float) -> MachineSpeed:
    command = [str(runner), "--calibrate", "--threads", str(threads)]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False)
    except OSError as error:
        raise MissingTool(str(runner), f"does not start: {error.strerror}", "name an executable file") from None
    except subprocess.TimeoutExpired:
        raise MissingTool(str(runner), f"did not finish within {timeout_s:g} s", "try fewer threads") from None
    if done.returncode:
        said = (done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1][:300]
        raise MissingTool(str(runner), f"exit code {done.returncode}: {said}", "report it with --debug")
    try:
        return _SPEED.validate_json(done.stdout)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        what = f"{place}: {first['msg']}" if place else "printed no measurement"
        raise MissingTool(str(runner), what, "name a runner of this version of mobile-export") from None
