"""From the values an operation is given to the arguments of our function for it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from mobile_export.verify.mlprogram.operators import Operator

FAILURES = (RuntimeError, ValueError, IndexError, TypeError, OverflowError, KeyError)  # what wrong arguments raise in torch

# As what a function takes a value, by the annotation of its parameter.
CONVERTERS: Mapping[str, Callable[[Any], Any]] = {
    "Tensor": lambda value: value,
    "list[Tensor]": lambda value: value,
    "int": lambda value: int(value.item()),
    "float": lambda value: float(value.item()),
    "bool": lambda value: bool(value.item()),
    "str": lambda value: value,
    "list[int]": lambda value: value.reshape(-1).tolist(),
    "list[bool]": lambda value: value.reshape(-1).tolist(),
}


@dataclass(frozen=True)
class Parameter:
    """One parameter of an operator's function."""

    kind: str  # a key of CONVERTERS
    required: bool

    @property
    def many(self) -> bool:
        """Whether it takes several values."""
        return self.kind == "list[Tensor]"

    def convert(self, value: Any) -> Any:
        """A tensor or text (or a list of tensors) as the function takes it.

        Raises:
            ValueError: text where a tensor is taken, or the other way round, or a fraction where there can be none.
        """
        if isinstance(value, str) != (self.kind == "str"):
            raise ValueError("text and numbers are mixed up")
        return CONVERTERS[self.kind](value)


@cache
def parameters_of(run: Callable[..., Any]) -> Mapping[str, Parameter]:
    """The parameters of an operator's function, in order."""
    return {
        name: Parameter(str(found.annotation).removesuffix(" | None"), found.default is inspect.Parameter.empty)
        for name, found in inspect.signature(run).parameters.items()
    }


def converted(operator: Operator, values: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of an operator's function.

    Raises:
        ValueError: text and numbers are mixed up.
    """
    parameters = parameters_of(operator.run)
    return {name: parameters[name].convert(value) for name, value in values.items()}


def first_line(error: Exception) -> str:
    """What an error says, short enough for one line."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
