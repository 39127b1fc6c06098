"""How fast a machine streams and computes, by the micro-benchmark in the C++ runner: no model is needed for it.

What it gives is the object "calibration" of a profile, from which `check --profile` predicts the speed of any model.
"""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pydantic
from pydantic.dataclasses import dataclass

from mobile_export.errors import MissingTool
from mobile_export.measure.measurement import STRICT

SECONDS = 120.0  # after so long it hangs
PROCESSES = 3
# ExecuTorch calls two delegates and five operators in an execution of a block, and every operator of a delegate meets wider
# values than the micro-benchmark's: measured on x86-64, one thread (benchmarks/decode_prediction.py).
CALLS_US = 8.0
EIGHT_BIT_ROW = 1028 / 1024  # bytes a value of the benchmark's 8-bit weights, scales included


@dataclass(frozen=True, config=STRICT)
class AtSize:
    """A rate, over memory or weights of so many MiB."""

    mib: float
    rate: float


@dataclass(frozen=True, config=STRICT)
class MachineSpeed:
    """What a number of threads does.

    stream: 10**9 bytes a second that are read and nothing else. decode_*: 10**9 operations a second, a multiplication and an
    addition being two, of a product with one token, by the size of its weights. prefill_*: the same of 128 tokens.
    attention_gops: of one token over float32 keys and values. execution_us: a block's calls and small operators in XNNPACK.
    """

    runtime: str
    threads: int
    stream: list[AtSize]
    decode_8_bit: list[AtSize]
    decode_4_bit: list[AtSize]
    prefill_8_bit_gops: float
    prefill_4_bit_gops: float
    attention_gops: float
    execution_us: float

    def calibration(self) -> dict[str, float]:
        """The numbers a prediction needs, by the names docs/budget.md explains."""
        eight, four = self.decode_8_bit, self.decode_4_bit
        largest = max(eight, key=lambda at: at.mib)
        streamed = largest.rate / 2 * EIGHT_BIT_ROW
        cached = max(at.rate for at in eight) / 2 * EIGHT_BIT_ROW
        held = [at.mib for at in eight if at.rate / 2 * EIGHT_BIT_ROW > (streamed * cached) ** 0.5]
        return {
            "stream_gb_s": streamed,
            "decode_gops_8_bit": max(at.rate for at in eight),
            "decode_gops_4_bit": max(at.rate for at in four),
            "prefill_gops": (self.prefill_8_bit_gops * self.prefill_4_bit_gops) ** 0.5,
            "attention_gops": self.attention_gops,
            "overhead_us": self.execution_us + CALLS_US,
            "cache_mib": max(held),
        }


_SPEED = pydantic.TypeAdapter(MachineSpeed)


def measure_speed(runner: Path, threads: int, *, processes: int = PROCESSES, timeout_s: float = SECONDS) -> MachineSpeed:
    """The fastest of some processes in everything: what else a machine does only ever slows one down.

    Args:
        runner: the C++ one, or another that takes --calibrate and --threads and prints the fields of MachineSpeed.
    Raises:
        MissingTool: it does not start, fails, hangs, or prints something else.
    """
    return fastest([_run(runner, threads, timeout_s) for _ in range(processes)])


def fastest(runs: Sequence[MachineSpeed]) -> MachineSpeed:
    """The best of every rate, and the shortest execution."""

    def best(sizes: Sequence[list[AtSize]]) -> list[AtSize]:
        return [AtSize(at[0].mib, max(one.rate for one in at)) for at in zip(*sizes, strict=True)]

    return dataclasses.replace(
        runs[0],
        stream=best([run.stream for run in runs]),
        decode_8_bit=best([run.decode_8_bit for run in runs]),
        decode_4_bit=best([run.decode_4_bit for run in runs]),
        prefill_8_bit_gops=max(run.prefill_8_bit_gops for run in runs),
        prefill_4_bit_gops=max(run.prefill_4_bit_gops for run in runs),
        attention_gops=max(run.attention_gops for run in runs),
        execution_us=min(run.execution_us for run in runs),
    )


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
