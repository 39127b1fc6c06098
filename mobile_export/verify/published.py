"""Zero-shot accuracies others published, to hold one's own row beside: published.toml, every row with its source."""

from __future__ import annotations

import json
import tomllib
from importlib import resources

import pydantic
from pydantic.dataclasses import dataclass

TASKS = {  # lm-eval's names -> the paper's
    "arc_easy": "ARC-e",
    "arc_challenge": "ARC-c",
    "boolq": "BoolQ",
    "piqa": "PIQA",
    "social_iqa": "SIQA",
    "hellaswag": "HellaSwag",
    "openbookqa": "OBQA",
    "winogrande": "WinoGrande",
}
STRICT = pydantic.ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, config=STRICT)
class Source:
    """A publication. where: its number, or the commit that was read."""

    name: str
    title: str
    where: str


@dataclass(frozen=True, config=STRICT)
class Row:
    """A model's accuracies in per cent, by lm-eval's names of the tasks. average: as printed."""

    model: str
    parameters: str
    source: str
    accuracy: dict[str, float]
    average: float


@dataclass(frozen=True, config=STRICT)
class Published:
    """The file."""

    sources: list[Source]
    rows: list[Row]


def published() -> Published:
    """What published.toml holds."""
    text = resources.files("mobile_export.verify").joinpath("published.toml").read_text(encoding="utf-8")
    return pydantic.TypeAdapter(Published).validate_json(json.dumps(tomllib.loads(text)))  # strict, and JSON has no classes
