"""Program + inputs + state -> outputs, one operation after the other, in float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from mobile_export.errors import InputError
from mobile_export.verify.mlprogram.arguments import FAILURES, first_line
from mobile_export.verify.mlprogram.in_place import READ
from mobile_export.verify.mlprogram.package import AGAIN
from mobile_export.verify.mlprogram.prepare import Prepared, Step, prepare
from mobile_export.verify.mlprogram.program import Function, Input, Program
from mobile_export.verify.mlprogram.values import DTYPES
from mobile_export.verify.mlprogram.weights import Weights

COMPUTE = {name: dtype.memory for name, dtype in DTYPES.items()} | {
    "float16": torch.float32
}  # dtype of a value while a program runs
LARGE, LARGEST_TOGETHER = 1 << 24, 1 << 31  # elements: of a value worth counting; of all values alive (8 GiB)
State = dict[str, Tensor]
Rounding = Literal["float32", "float16"]


class Interpreter:
    """Runs a program's functions. Weights are expanded to float32."""

    def __init__(self, program: Program, rounding: Rounding = "float32", *, keep_weights: bool = True) -> None:
        """Nothing is read yet.

        Args:
            rounding: "float32" computes float16 values in float32 and rounds nothing between operators; "float16"
                rounds every float16 result, overflow becoming infinite: roughly, not exactly, what a phone does.
            keep_weights: expand compressed weights once, at four bytes for each from then on; or whenever one is
                used, for models that would not fit: slow.
        """
        self.program, self.rounding = program, rounding
        self._weights = Weights(program, rounded=rounding == "float16", kept=keep_weights)
        self._prepared: dict[str, Prepared] = {}

    def new_state(self, function: str) -> State:
        """A function's states before anything, by name: zeros, float32 where the program has float16."""
        states = self.program.function(function).states
        return {name: torch.zeros(type_.sizes, dtype=COMPUTE[type_.dtype]) for name, type_ in states.items()}

    @torch.no_grad()
    def run(self, function: str, feeds: Mapping[str, Tensor], state: State | None = None) -> dict[str, Tensor]:
        """Run a function.

        Args:
            feeds: every input by its name: any float for a float input, any integers that fit for an integer one.
            state: as new_state gives it; updated, and of no use after an error. Functions with the same states may share it.
        Returns:
            Outputs by name; float16 ones as float32.
        Raises:
            InputError: an operator or input we do not know, a result that is not of its declared type, a damaged
                constant, feeds or states that are not as the function takes them.
        """
        called = self.program.function(function)
        where = f"{self.program.where}: {function}"
        state = {} if state is None else state
        _check_state(where, called, state)
        values = {given.name: self._fed(f"{where}: {given.name}", given, feeds) for given in called.inputs}
        if len(feeds) > len(values):
            raise InputError(where, f"takes {', '.join(values)}", f"leave out {', '.join(sorted(set(feeds) - set(values)))}")
        if function not in self._prepared:
            self._prepared[function] = prepare(where, called, self._weights)
        prepared = self._prepared[function]
        values |= prepared.constants
        for step in prepared.steps:
            if step.run is None:
                _move_state(step, values, state)
            else:
                self._compute(step, values)
            for name in step.dropped:
                del values[name]
        return {name: values[name].clone() for name in called.outputs}

    def _compute(self, step: Step, values: dict[str, Tensor]) -> None:
        assert step.run is not None  # else it moves a state
        try:
            arguments = dict(step.fixed)
            for argument in step.varying:
                taken = [values[value] if isinstance(value, str) else value for value in argument.values]
                arguments[argument.name] = argument.parameter.convert(taken if argument.parameter.many else taken[0])
            result: Any = step.run(**arguments)
        except FAILURES as error:
            raise InputError(step.where, f"cannot be run ({first_line(error)})", AGAIN) from error
        results = result if isinstance(result, list) else [result]
        declared = step.operation.outputs
        if len(results) != len(declared):
            raise InputError(step.where, f"gives {len(results)} values, declared as {len(declared)}", AGAIN)
        for (name, type_), value in zip(declared, results, strict=True):
            if value.dtype != COMPUTE[type_.dtype] or not type_.allows(value.shape):
                raise InputError(step.where, f"gives {_spoken(value)}, declared as {type_}", AGAIN)
            if value.numel() > LARGE and sum(held.numel() for held in values.values()) > LARGEST_TOGETHER:
                raise InputError(step.where, "would hold more values than this interpreter allows", "run fewer tokens at once")
            rounds = step.computes and self.rounding == type_.dtype == "float16"
            values[name] = value.half().float() if rounds else value

    def _fed(self, where: str, given: Input, feeds: Mapping[str, Tensor]) -> Tensor:
        """One input, checked, as the program computes with it."""
        if given.name not in feeds:
            raise InputError(where, "is an input that is not given", f"it takes {given.type}")
        value = feeds[given.name]
        if not given.takes(tuple(value.shape)):
            raise InputError(where, f"has the shape {list(value.shape)}", f"it takes {given.spoken()}")
        dtype = COMPUTE[given.type.dtype]
        if dtype.is_floating_point != value.dtype.is_floating_point:
            raise InputError(where, f"is given as {_name(value.dtype)}", f"it takes {given.type.dtype}")
        converted = value.to(dtype)
        if not dtype.is_floating_point and not torch.equal(converted.to(value.dtype), value):
            raise InputError(where, f"holds a number that does not fit {given.type.dtype}", "check what is given")
        return converted.half().float() if self.rounding == given.type.dtype == "float16" else converted


def _move_state(step: Step, values: dict[str, Tensor], state: State) -> None:
    operation = step.operation
    name = str(operation.inputs["input"][0])
    if operation.type == READ:
        values[operation.name] = state[name]  # its memory, not a copy: in_place.py shows when nobody can tell
    elif not step.settled:
        state[name] = values[str(operation.inputs["data"][0])].clone()


def _check_state(where: str, function: Function, state: State) -> None:
    for name, type_ in function.states.items():
        if name not in state:
            raise InputError(where, f"needs the state {name}", "make one with new_state")
        if state[name].dtype != COMPUTE[type_.dtype] or not type_.allows(tuple(state[name].shape)):
            raise InputError(where, f"the state {name} is {_spoken(state[name])}, not {type_}", "make one with new_state")


def _spoken(value: Tensor) -> str:
    return f"{_name(value.dtype)}{list(value.shape)}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
