"""What one process measures of one model, and the line of JSON it prints: the C++ runner, and the Python ones beside it.

Every runner takes the options of `Job.arguments` and prints the fields of `Measurement`.
"""

from __future__ import annotations

from dataclasses import dataclass as plain_dataclass
from pathlib import Path

import pydantic
from pydantic.dataclasses import dataclass

STRICT = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)


@plain_dataclass(frozen=True)
class Job:
    """What a runner is to do: a prompt, the prompt again and new_tokens single tokens, that once a sequence.

    sequences: measured ones; warm_up come before them. affinity: cores, by number; none given: all.
    weight_cache: XNNPACK packs equal weights once. packed_weights: a file for packed weights, made where it is not there.
    etdump: a file for ExecuTorch's trace of the last sequence's single tokens.
    logits_of: tokens whose last logits are to be told; logits_values: how many of them.
    drop: files to drop from the page cache first, as far as the system does when asked.
    """

    model: Path
    threads: int = 1
    prompt_tokens: int = 128
    new_tokens: int = 64
    sequences: int = 1
    warm_up: int = 1
    affinity: tuple[int, ...] = ()
    weight_cache: bool = False
    packed_weights: Path | None = None
    etdump: Path | None = None
    logits_of: tuple[int, ...] = ()
    logits_values: int = 8
    drop: tuple[Path, ...] = ()

    def arguments(self) -> list[str]:
        """The command line of a runner."""
        options = {
            "--model": str(self.model),
            "--threads": str(self.threads),
            "--prompt-tokens": str(self.prompt_tokens),
            "--new-tokens": str(self.new_tokens),
            "--sequences": str(self.sequences),
            "--warm-up": str(self.warm_up),
            "--affinity": ",".join(map(str, self.affinity)),
            "--packed-weights": str(self.packed_weights or ""),
            "--etdump": str(self.etdump or ""),
            "--logits-of": ",".join(map(str, self.logits_of)),
            "--logits-values": str(self.logits_values) if self.logits_of else "",
        }
        given = [part for name, value in options.items() if value for part in (name, value)]
        given += [part for path in self.drop for part in ("--drop", str(path))]
        return given + (["--weight-cache"] if self.weight_cache else [])


@dataclass(frozen=True, config=STRICT)
class Resident:
    """Resident memory of a process, KiB.

    rss_anon_kib: anonymous pages, what a phone kills for. rss_file_kib: pages of files, which it drops and reads again.
    pss_kib: all of them, shared ones counted in part.
    """

    rss_anon_kib: int
    rss_file_kib: int
    pss_kib: int


@dataclass(frozen=True, config=STRICT)
class Logits:
    """What the model made of fixed tokens: the first values, the place of the largest, and the sum of all `count`."""

    tokens: list[int]
    count: int
    argmax: int
    sum: float
    values: list[float]


@dataclass(frozen=True, config=STRICT)
class Measurement:
    """What one process measured. Seconds are wall time.

    load_s: file mapped, its header read; onnxruntime does that with the next. init_s: weights packed, memory planned.
    first_token_s: the first prompt ever. prefill_s: the prompt again, one a sequence.
    decode_s: single tokens after it, sequence by sequence.
    at_start: before the model is touched; at_end: after all sequences. peak_rss_kib: VmHWM, the most ever resident.
    """

    runtime: str
    threads: int
    backends: list[str]
    load_s: float
    init_s: float
    first_token_s: float
    prompt_tokens: int
    prefill_s: list[float]
    decode_s: list[list[float]]
    at_start: Resident
    after_load: Resident
    after_init: Resident
    at_end: Resident
    peak_rss_kib: int
    logits: Logits | None


MEASUREMENT = pydantic.TypeAdapter(Measurement)
