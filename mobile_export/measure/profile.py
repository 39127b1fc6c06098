"""profile.json: how fast an artifact loads and runs on one machine, and what it keeps resident. Written by `profile`."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import pydantic
from pydantic.dataclasses import dataclass

from mobile_export.errors import InputError
from mobile_export.manifest import FileDigest
from mobile_export.measure.measurement import STRICT, Logits
from mobile_export.measure.phone import Agreement, Conditions, Phone

SCHEMA_VERSION = 2


@dataclass(frozen=True, config=STRICT)
class Spread:
    """A quantity over runs."""

    median: float
    least: float
    largest: float


@dataclass(frozen=True, config=STRICT)
class Machine:
    """Where it was measured. memory_mib: DRAM the system sees; None where a phone does not tell."""

    system: str
    cpu: str
    cores: int
    memory_mib: float | None


@dataclass(frozen=True, config=STRICT)
class Memory:
    """Resident MiB of the process above what it held before it touched the model, medians over runs.

    dirty_mib: anonymous pages, what a phone kills for. clean_mib: pages of files, which it drops and reads again.
    after_init: weights packed, nothing run. at_end: after prompts and single tokens.
    pss_at_end_mib, peak_rss_mib: of the whole process.
    """

    dirty_after_load_mib: float
    dirty_after_init_mib: float
    dirty_at_end_mib: float
    clean_at_end_mib: float
    pss_at_end_mib: float
    peak_rss_mib: float


@dataclass(frozen=True, config=STRICT)
class AtThreads:
    """What a number of threads gave, over runs of a process each; every file in the page cache.

    load_s: file mapped, header read. init_s: weights packed. first_token_s: the first prompt ever.
    prefill: the prompt again. decode: 1 / median seconds of a run's single tokens.
    slow_token_s: the 99th percentile of a run's single tokens.
    """

    threads: int
    load_s: Spread
    init_s: Spread
    first_token_s: Spread
    prefill_tokens_per_s: Spread
    decode_tokens_per_s: Spread
    slow_token_s: Spread
    memory: Memory


@dataclass(frozen=True, config=STRICT)
class ColdStart:
    """The first start after the files were dropped from the page cache, seconds."""

    load_s: float
    init_s: float
    first_token_s: float


@dataclass(frozen=True, config=STRICT)
class OperatorTime:
    """An operator, or all the calls into delegates that share a name, in one single-token step.

    calls: a step. milliseconds: a step, median over steps. share: of all operators' milliseconds.
    """

    name: str
    delegate: bool
    calls: int
    milliseconds: float
    share: float


@dataclass(frozen=True, config=STRICT)
class CurvePoint:
    """Decode rate with so many tokens in the cache."""

    context: int
    decode_tokens_per_s: float


@dataclass(frozen=True, config=STRICT)
class Profile:
    """One artifact on one machine.

    artifact: as the user named it. files: what was measured, to the byte.
    runtime: what ran it, and which runner. weights: "packed at load", "weight cache" or "packed file".
    best_threads: of by_threads, the fastest at decode. operators, curve: where they were asked for.
    logits: at the best number of threads, of tokens that are always the same: what another machine must also give.
    phone, conditions, agreement: where it was measured on a phone.
    """

    schema_version: int
    tool: str
    artifact: str
    format: str
    recipe: str
    files: list[FileDigest]
    machine: Machine
    runtime: str
    weights: str
    prompt_tokens: int
    new_tokens: int
    runs: int
    by_threads: list[AtThreads]
    best_threads: int
    cold: ColdStart | None
    operators: list[OperatorTime] | None
    curve: list[CurvePoint] | None
    logits: Logits | None
    phone: Phone | None = None
    conditions: Conditions | None = None
    agreement: Agreement | None = None

    def __post_init__(self) -> None:
        if self.best_threads not in [each.threads for each in self.by_threads]:
            raise ValueError(f"best_threads {self.best_threads} was not measured")

    @property
    def best(self) -> AtThreads:
        """What the best number of threads gave."""
        return next(each for each in self.by_threads if each.threads == self.best_threads)


_PROFILE = pydantic.TypeAdapter(Profile)


def spread(values: Sequence[float]) -> Spread:
    """Median, least and largest.

    >>> spread([3.0, 1.0, 2.0])
    Spread(median=2.0, least=1.0, largest=3.0)
    """
    return Spread(statistics.median(values), min(values), max(values))


def to_json(profile: Profile) -> str:
    """The profile as indented JSON."""
    return json.dumps(dataclasses.asdict(profile), indent=2) + "\n"


def read_profile(path: Path) -> Profile:
    """A profile that `profile --out` wrote.

    Raises:
        InputError: no such file, or none this version reads.
    """
    then = "write it with mobile-export profile ARTIFACT --out FILE"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror}", then) from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(str(path), f"not JSON: {error}", then) from None
    version = values.get("schema_version") if isinstance(values, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(str(path), f"schema_version {version!r}, this version reads {SCHEMA_VERSION}", then)
    try:
        return _PROFILE.validate_python(values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(str(path), f"{place}: {first['msg']}" if place else first["msg"], then) from None
