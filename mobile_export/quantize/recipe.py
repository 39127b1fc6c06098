"""A recipe: which weights go to how many bits. Read from TOML, refused where a key is unknown."""

from __future__ import annotations

import difflib
import fnmatch
import functools
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic.dataclasses import dataclass

from mobile_export.errors import InputError, UsageError

STRICT = pydantic.ConfigDict(extra="forbid", strict=True)
EMBEDDING, HEAD, POSITIONS = "embedding.weight", "head.linear.weight", "positions.weight"


@dataclass(frozen=True, config=STRICT)
class Precision:
    """How one weight matrix is stored.

    bits: 4 or 8 for signed codes, 32 for float32.
    group_size: inputs that share a scale, only with 4 bits; None for one scale per output channel.
    """

    bits: Literal[4, 8, 32]
    group_size: int | None = None

    def __post_init__(self) -> None:
        if self.bits != 4 and self.group_size is not None:
            raise ValueError("8 and 32 bits take no group_size")
        if self.group_size is not None and (self.group_size < 32 or self.group_size % 32):
            raise ValueError("group_size is a multiple of 32: what the runtimes' 4-bit kernels take")

    def __str__(self) -> str:
        if self.bits == 32:
            return "float32"
        return f"{self.bits}-bit, " + (f"group {self.group_size}" if self.group_size else "per channel")


@dataclass(frozen=True, config=STRICT)
class Override:
    """Another precision for the matrices a glob names, e.g. match = "blocks.0.ffn.*" or "blocks.{0,12}.ffn.down.weight"."""

    match: str
    precision: Precision

    def globs(self) -> tuple[str, ...]:
        """What `match` stands for, one for each alternative in braces."""
        return _alternatives(self.match)

    def names(self, matrix: str) -> bool:
        """Whether it names a matrix of the graph."""
        return any(fnmatch.fnmatchcase(matrix, glob) for glob in self.globs())


@functools.cache
def _alternatives(match: str) -> tuple[str, ...]:
    """Braces written out, as a shell does it.

    >>> _alternatives("blocks.{0,12}.ffn.{up,down}.*")[:3]
    ('blocks.0.ffn.up.*', 'blocks.0.ffn.down.*', 'blocks.12.ffn.up.*')
    """
    braces = re.search(r"\{([^{}]*)\}", match)
    if braces is None:
        return (match,)
    before, after = match[: braces.start()], match[braces.end() :]
    return tuple(f"{before}{each}{rest}" for each in braces[1].split(",") for rest in _alternatives(after))


@dataclass(frozen=True, config=STRICT)
class KvCache:
    """How the KV cache is kept: float32, or int8 with one scale per token and head."""

    dtype: Literal["float32", "int8"] = "float32"


@dataclass(frozen=True, config=STRICT)
class Calibration:
    """How much text a calibrated quantizer sees: so many sequences, of so many tokens each."""

    sequences: Annotated[int, pydantic.Field(ge=1)] = 160
    tokens: Annotated[int, pydantic.Field(ge=32)] = 256


@dataclass(frozen=True, config=STRICT)
class Recipe:
    """What to quantize and how; says nothing of packing or backend.

    linear: every matrix in the blocks. embedding: the token table, and the head where the two are tied.
    head: a head of its own. activations: int8 per token at run time, or float32.
    quantizer: "clip": each matrix by itself (clip_search.py); "gptq": those of blocks and head for the inputs they get
        (gptq.py), on as much text as `calibration` says.
    own_codes: a matrix that was trained to have codes is stored at their precision, whatever the recipe says of others.
    """

    name: str
    description: str
    linear: Precision
    embedding: Precision
    head: Precision
    activations: Literal["int8", "float32"] = "int8"
    kv: KvCache = field(default_factory=KvCache)
    override: list[Override] = field(default_factory=list)
    quantizer: Literal["clip", "gptq"] = "clip"
    calibration: Calibration | None = None
    own_codes: bool = False

    def __post_init__(self) -> None:
        if self.calibration is not None and self.quantizer == "clip":
            raise ValueError('calibration goes with quantizer = "gptq"')
        if self.quantizer == "gptq" and self.linear.bits == 32:
            raise ValueError('quantizer = "gptq" goes with 4 or 8 bits')
        for precision in (self.linear, self.head, *(o.precision for o in self.override)):
            if (precision.bits == 32) != (self.activations == "float32"):
                raise ValueError("float32 weights go with float32 activations, quantized ones with int8 activations")

    def precision_of(self, matrix: str) -> Precision:
        """How a matrix of the graph is stored; of the overrides that name it, the last one decides.

        A position table is small, and nothing is multiplied with it, so it never goes below 8 bits by itself.
        """
        positions = Precision(32) if self.embedding.bits == 32 else Precision(8)
        usual = {EMBEDDING: self.embedding, HEAD: self.head, POSITIONS: positions}.get(matrix, self.linear)
        return next((o.precision for o in reversed(self.override) if o.names(matrix)), usual)


_RECIPE = pydantic.TypeAdapter(Recipe)


def recipe_folder() -> Path:
    """Where the packaged recipes lie: recipes/ of a checkout, or inside an installed package."""
    installed = Path(str(resources.files("mobile_export"))) / "recipes"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "recipes"


def packaged_recipes() -> dict[str, Path]:
    """Name -> file of every packaged recipe, sorted by name."""
    return {path.stem: path for path in sorted(recipe_folder().glob("*.toml"), key=lambda path: path.stem)}


def read_recipe(name_or_file: str) -> Recipe:
    """Read a packaged recipe by name, or a TOML file by path.

    Raises:
        UsageError: no such recipe or file.
        InputError: not TOML, an unknown key, or a value out of range.
    """
    packaged = packaged_recipes()
    path = packaged.get(name_or_file, Path(name_or_file))
    if not path.is_file():
        begins = [name for name in packaged if name_or_file.startswith(f"{name}-")]  # w4-gptq, the former name of w4
        close = difflib.get_close_matches(name_or_file, packaged, n=1) or begins
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UsageError(f"--recipe {name_or_file}", "no such recipe or file", f"{hint}recipes: {', '.join(packaged)}")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(str(path), f"not TOML: {error}", "see docs/recipes.md for an example") from None
    return recipe_from(values, str(path))


def recipe_from(values: Mapping[str, Any], where: str) -> Recipe:
    """A recipe from plain values, as TOML or a manifest holds them.

    Raises:
        InputError: an unknown key, or a value out of range.
    """
    try:
        return _RECIPE.validate_json(json.dumps(values, default=str))  # strict, and only JSON may turn dicts into dataclasses
    except pydantic.ValidationError as error:
        raise InputError(where, *_explain(error)) from None


def _explain(error: pydantic.ValidationError) -> tuple[str, str]:
    unknown = ("unexpected_keyword_argument", "extra_forbidden")
    first = min(error.errors(), key=lambda found: found["type"] not in unknown)  # a misspelt key explains a missing one
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] in unknown:
        parent, key = first["loc"][:-1], str(first["loc"][-1])
        known = _fields_at(tuple(str(part) for part in parent))
        close = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
        return f"unknown key {place!r}", hint
    return (
        f"{place or 'recipe'}: {first['msg'].removeprefix('Value error, ')}",
        "see docs/recipes.md for what each key takes",
    )


def _fields_at(place: tuple[str, ...]) -> list[str]:
    named = {"linear": Precision, "embedding": Precision, "head": Precision, "precision": Precision}
    kinds: dict[str, type] = {**named, "kv": KvCache, "override": Override, "calibration": Calibration}
    names = [part for part in place if part in kinds]
    return list(pydantic.TypeAdapter(kinds[names[-1]] if names else Recipe).json_schema()["properties"])
