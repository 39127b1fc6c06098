"""What the tables of measured ONNX models show, row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.measure_onnx import OnnxMeasurement
from benchmarks.rounds import Row, print_comparison
from mobile_export.units import counted

Runs = dict[str, list[OnnxMeasurement]]  # model -> one measurement a round

DIRTY_AFTER_LOAD = Row[OnnxMeasurement]("dirty after load, MiB", lambda m: m.after_load.dirty_mib, 1)
PREFILL = Row[OnnxMeasurement]("prefill, tokens/s", lambda m: m.steps.prefill_tokens_per_s, 0)
DECODE = Row[OnnxMeasurement]("decode, tokens/s", lambda m: m.steps.decode_tokens_per_s, 1)
PREFILL_CPU = Row[OnnxMeasurement]("prefill, tokens/CPU s", lambda m: m.steps.prefill_tokens_per_cpu_s, 0)
DECODE_CPU = Row[OnnxMeasurement]("decode, tokens/CPU s", lambda m: m.steps.decode_tokens_per_cpu_s, 1)
RATES = (PREFILL, DECODE, PREFILL_CPU, DECODE_CPU)
ROWS = (
    Row[OnnxMeasurement]("files, MB", lambda m: m.file_bytes / 1e6, 2),
    Row[OnnxMeasurement]("load, s", lambda m: m.load_ms / 1e3, 2),
    DIRTY_AFTER_LOAD,
    Row[OnnxMeasurement]("dirty at the end, MiB", lambda m: m.at_end.dirty_mib, 1),
    Row[OnnxMeasurement]("of it KV cache, MiB", lambda m: m.kv_mib, 1),
    Row[OnnxMeasurement]("clean at the end, MiB", lambda m: m.at_end.clean_mib, 1),
    Row[OnnxMeasurement]("peak, MiB", lambda m: m.peak_mib, 1),
    Row[OnnxMeasurement]("first token, ms", lambda m: m.steps.first_token_ms, 0),
    *RATES,
)


def print_onnx_tables(by_threads: Mapping[int, Runs], against: str, *, markdown: bool) -> None:
    """A table for each number of threads; none without rounds."""
    for threads, runs in by_threads.items():
        if runs[against]:
            first = runs[against][0]
            title = (
                f"{first.runtime}, {counted(threads, 'thread')}: prompt {first.steps.prompt_tokens}, "
                f"{first.steps.new_tokens} new tokens, KV cache of {first.kv_rows} tokens; "
                f"median (least to largest) of {counted(len(runs[against]), 'round')}"
            )
            print_comparison(title, ROWS, runs, against, markdown=markdown)


def dirty_mb_above(measured: Sequence[OnnxMeasurement], base: Sequence[OnnxMeasurement]) -> list[float]:
    """Round by round, dirty memory after load above another model's, in MB (10**6 bytes) as the limits are."""
    return [(DIRTY_AFTER_LOAD.value(m) - DIRTY_AFTER_LOAD.value(b)) * 2**20 / 1e6 for m, b in zip(measured, base, strict=True)]
