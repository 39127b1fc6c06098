"""The phones a budget is checked for: phones.toml and files like it, every value with its source and a confidence."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import pydantic

from mobile_export.budget.interval import Interval, exactly
from mobile_export.errors import InputError, UsageError

PACKAGED = "phones.toml"
DOUBT = {"high": 0.0, "medium": 0.1, "low": 0.25}  # how far a single value is widened to both sides


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True)


Positive = Annotated[float, pydantic.Field(gt=0, lt=1e6, strict=False)]  # 8 is a float, too


class Value(_Strict):
    """A number, or the two ends it lies between, with where it comes from.

    source: a key of the file's [sources]. confidence: high: the maker's word or a measurement; medium: press and
    databases; low: derived, disputed or a leak.
    """

    value: Positive | None = None
    low: Positive | None = None
    high: Positive | None = None
    source: str
    confidence: Literal["high", "medium", "low"]

    @pydantic.model_validator(mode="after")
    def _one_form(self) -> Value:
        ends = self.low is not None and self.high is not None
        if (self.value is None) != ends or (self.low is None) != (self.high is None):
            raise ValueError("give either value, or low and high")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError("low is above high")
        return self

    @property
    def interval(self) -> Interval:
        """What it may be: a single value widened by the doubt its confidence leaves."""
        if self.low is not None and self.high is not None:
            return Interval(self.low, (self.low + self.high) / 2, self.high)
        assert self.value is not None
        doubt = DOUBT[self.confidence]
        return Interval(self.value * (1 - doubt), self.value, self.value * (1 + doubt))


class Soc(_Strict):
    """A chip. memory: type and rate of the DRAM it drives, e.g. "LPDDR5X-8400".

    bandwidth_gb_s: theoretical peak, 10**9 bytes a second. cache_mib: big cores' L2, L3 and system-level cache together,
    None where no public value was found. big_cores: those above the efficiency cores.
    """

    memory: str
    bandwidth_gb_s: Value
    cache_mib: Value | None = None
    big_cores: Value


class PhoneRow(_Strict):
    """A phone as its file has it. dram_gib: as sold, 2**30 bytes.

    os_reserve_mib: what the system keeps to itself. app_limit_mib: most dirty memory it grants an app.
    """

    name: str
    year: Annotated[int, pydantic.Field(ge=2015, le=2035)]
    os: Literal["Android", "iOS"]
    soc: str
    dram_gib: Value
    os_reserve_mib: Value | None = None
    app_limit_mib: Value | None = None


class PhoneFile(_Strict):
    """A whole file. sources: key -> page."""

    sources: dict[str, str]
    soc: dict[str, Soc] = {}
    phone: list[PhoneRow]


class Phone(_Strict):
    """A phone with its chip and the pages behind its values."""

    row: PhoneRow
    chip: Soc
    sources: dict[str, str]

    @property
    def name(self) -> str:
        return self.row.name

    @property
    def dram_bytes(self) -> Interval:
        """DRAM in bytes. It is sold in a few sizes only, so a single value is never widened."""
        given = self.row.dram_gib
        return (exactly(given.value) if given.value is not None else given.interval).times(2**30)

    @cached_property
    def values(self) -> dict[str, Value]:
        """Every value that is known, by name."""
        named = {
            "dram_gib": self.row.dram_gib,
            "bandwidth_gb_s": self.chip.bandwidth_gb_s,
            "cache_mib": self.chip.cache_mib,
            "big_cores": self.chip.big_cores,
            "os_reserve_mib": self.row.os_reserve_mib,
            "app_limit_mib": self.row.app_limit_mib,
        }
        return {name: value for name, value in named.items() if value is not None}


def packaged_phones() -> Path:
    """The file that comes with the tool."""
    return Path(str(resources.files("mobile_export.budget"))) / PACKAGED


def read_phones(more: Iterable[Path] = ()) -> dict[str, Phone]:
    """Name -> phone, of the packaged file and of others after it; a later file replaces phones and chips by their names.

    Raises:
        InputError: no file, not TOML, an unknown key, a value out of range, a chip or source that is not there.
    """
    phones: dict[str, Phone] = {}
    chips: dict[str, Soc] = {}
    sources: dict[str, str] = {}
    for path in (packaged_phones(), *more):
        held = _read(path)
        chips |= held.soc
        sources |= held.sources
        for row in held.phone:
            if row.soc not in chips:
                close = difflib.get_close_matches(row.soc, chips, n=1)
                then = f"did you mean {close[0]!r}?" if close else f'add [soc."{row.soc}"]'
                raise InputError(str(path), f"phone {row.name!r}: no soc {row.soc!r}", then)
            phone = Phone(row=row, chip=chips[row.soc], sources={})
            missing = sorted({value.source for value in phone.values.values()} - sources.keys())
            if missing:
                what = f"phone {row.name!r}: source {missing[0]!r} is not among [sources]"
                raise InputError(str(path), what, "add it there, with the page it stands for")
            used = {value.source: sources[value.source] for value in phone.values.values()}
            phones[row.name] = phone.model_copy(update={"sources": used})
    return phones


def find_phones(names: Iterable[str], phones: dict[str, Phone], option: str = "--phone ") -> list[Phone]:
    """The phones of some names, in any case; "all" for every one. option: what stands before a name, in errors.

    Raises:
        UsageError: a name no phone has; the nearest are named.
    """
    by_name = {name.casefold(): phone for name, phone in phones.items()}
    found: dict[str, Phone] = {}
    for name in names:
        if name.casefold() == "all":
            found |= phones
            continue
        phone = by_name.get(name.casefold())
        if phone is None:
            raise UsageError(f"{option}{name}", "no such phone", f"{_nearest(name, phones)}`phones` lists them")
        found[phone.name] = phone
    return list(found.values())


def _nearest(name: str, phones: dict[str, Phone]) -> str:
    inside = [known for known in phones if name.casefold() in known.casefold()]
    lower = {known.casefold(): known for known in phones}
    close = inside or [lower[found] for found in difflib.get_close_matches(name.casefold(), lower, n=3, cutoff=0.5)]
    return f"did you mean {' or '.join(repr(known) for known in close[:3])}? " if close else ""


def _read(path: Path) -> PhoneFile:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror}", "name a TOML file of phones") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(str(path), f"not TOML: {error}", "see docs/budget.md for an example") from None
    try:
        return PhoneFile.model_validate(values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        what = f"{place or 'file'}: {first['msg'].removeprefix('Value error, ')}"
        raise InputError(str(path), what, "see docs/budget.md for what each key takes") from None
