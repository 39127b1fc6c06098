"""What of a function does not depend on its inputs, done once: checks, constants, arguments, the order values are dropped.

An operator or input this interpreter does not know, or a declared dtype that cannot be, is found here, before anything runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from mobile_export.errors import InputError
from mobile_export.verify.mlprogram.arguments import FAILURES, Parameter, first_line, parameters_of
from mobile_export.verify.mlprogram.elementwise import CASTS
from mobile_export.verify.mlprogram.in_place import READ, WRITE, plan_states
from mobile_export.verify.mlprogram.operators import Operator, operator_of
from mobile_export.verify.mlprogram.package import AGAIN
from mobile_export.verify.mlprogram.program import Function, Operation
from mobile_export.verify.mlprogram.shapes import slice_update_in_place
from mobile_export.verify.mlprogram.values import Constant, TensorType
from mobile_export.verify.mlprogram.weights import Weights


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument that depends on the inputs."""

    name: str
    parameter: Parameter
    values: tuple[str | Tensor, ...]  # names of values, and constants among them


@dataclass(frozen=True, slots=True)
class Step:
    """One operation, ready to run."""

    where: str  # for errors
    operation: Operation
    run: Callable[..., Any] | None  # None: it reads or writes a state
    fixed: Mapping[str, Any]  # arguments that are the same in every run
    varying: tuple[Argument, ...] = ()
    computes: bool = False  # its result is new numbers, not those of its inputs moved
    settled: bool = False  # it writes a state that was updated in place
    dropped: tuple[str, ...] = ()  # values nothing needs afterwards


@dataclass(frozen=True)
class Prepared:
    """A function, ready to run."""

    steps: tuple[Step, ...]
    constants: Mapping[str, Tensor]  # outputs that are the same in every run


def prepare(where: str, function: Function, weights: Weights) -> Prepared:
    """Resolve what can be resolved.

    Raises:
        InputError: an operator or input we do not know, one missing, a dtype that cannot be, a damaged constant.
    """
    plan = plan_states(function)
    known: dict[str, Tensor | str] = {}
    expansions: dict[str, Step] = {}  # of weights that are not kept: made anew before every use
    steps: list[Step] = []
    for index, operation in enumerate(function.operations):
        here = f"{where}: {operation.type} {operation.name}"
        if not operation.type.startswith("constexpr_"):
            steps += _expansions(expansions, [value for given in operation.inputs.values() for value in given])
        if operation.type == "const":
            known[operation.name] = _constant(here, operation, weights)
        elif operation.type in (READ, WRITE):
            _check_state(here, operation, function)
            steps.append(Step(here, operation, None, {}, settled=index in plan.settled))
        else:
            operator = _checked(here, operation, function, known)
            if operation.type.startswith("constexpr_"):
                if weights.kept:
                    known[operation.name] = weights.expanded(here, function, operation)
                else:
                    expand = partial(weights.expanded, here, function, operation)
                    expansions[operation.name] = Step(here, operation, expand, {})
                continue
            run = slice_update_in_place if operation.name in plan.in_place else operator.run
            fixed, varying = _arguments(here, operation, operator, known, weights)
            steps.append(Step(here, operation, run, fixed, varying, computes=not operator.moves))
    steps += _expansions(expansions, list(function.outputs))
    constants = {name: value for name in function.outputs if isinstance(value := known.get(name), Tensor)}
    return Prepared(_with_drops(steps, function), constants)


def _expansions(expansions: Mapping[str, Step], taken: Sequence[str | Constant]) -> list[Step]:
    names = dict.fromkeys(value for value in taken if isinstance(value, str))
    return [expansions[name] for name in names if name in expansions]


def _constant(here: str, operation: Operation, weights: Weights) -> Tensor | str:
    value = operation.inputs.get("val", ("",))[0]
    if set(operation.inputs) != {"val"} or not isinstance(value, Constant):
        raise InputError(here, f"holds {', '.join(operation.inputs) or 'nothing'}, not a value", AGAIN)
    if value.type != operation.outputs[0][1]:
        raise InputError(here, f"is {value.type}, declared as {operation.outputs[0][1]}", AGAIN)
    return weights.constant(here, value)


def _check_state(here: str, operation: Operation, function: Function) -> None:
    """A state is read and written whole, in its own type."""
    wanted = {"input"} if operation.type == READ else {"input", "data"}
    if set(operation.inputs) != wanted or len(operation.outputs) != (operation.type == READ):
        raise InputError(here, f"takes {', '.join(operation.inputs)}, should take {', '.join(sorted(wanted))}", AGAIN)
    state = function.states[str(operation.inputs["input"][0])]
    data = operation.outputs[0][1] if operation.type == READ else _type_of(operation.inputs["data"][0], function)
    if data != state:
        raise InputError(here, f"moves {data}, the state is {state}", AGAIN)


def _checked(here: str, operation: Operation, function: Function, known: Mapping[str, Tensor | str]) -> Operator:
    """The operator, which takes these inputs and may give what is declared."""
    operator = operator_of(operation.type, operation.inputs)
    if operator is None:
        raise InputError(here, "is an operator this interpreter does not know", "export without it, or report it")
    parameters = parameters_of(operator.run)
    unknown = [name for name in operation.inputs if name not in parameters]
    if unknown:
        raise InputError(here, f"has the input {unknown[0]}, which this interpreter does not know", "report it")
    missing = [name for name, parameter in parameters.items() if parameter.required and name not in operation.inputs]
    if missing:
        raise InputError(here, f"lacks its input {missing[0]}", AGAIN)
    several = [name for name, given in operation.inputs.items() if len(given) > 1 and not parameters[name].many]
    if several:
        raise InputError(here, f"is given several values for {several[0]}", AGAIN)
    if not operation.outputs:
        raise InputError(here, "gives nothing", AGAIN)
    wanted = _dtype(operator, operation, function, known)
    declared = operation.outputs[0][1]
    if declared.dtype != wanted:
        raise InputError(here, f"gives {wanted}, declared as {declared}", AGAIN)
    return operator


def _dtype(operator: Operator, operation: Operation, function: Function, known: Mapping[str, Tensor | str]) -> str:
    """The dtype an operation's first result must have."""
    if operator.dtype:
        return operator.dtype
    parameter = operator.named_by or operator.like or next(iter(parameters_of(operator.run)))
    if parameter not in operation.inputs:
        return operator.default
    value = operation.inputs[parameter][0]
    if not operator.named_by:
        return _type_of(value, function).dtype
    name = value.immediate if isinstance(value, Constant) else known.get(value)
    return CASTS.get(name, name) if isinstance(name, str) else "a dtype named in the program"


def _type_of(value: str | Constant, function: Function) -> TensorType:
    return value.type if isinstance(value, Constant) else function.types[value]


def _arguments(
    here: str, operation: Operation, operator: Operator, known: Mapping[str, Tensor | str], weights: Weights
) -> tuple[dict[str, Any], tuple[Argument, ...]]:
    parameters = parameters_of(operator.run)
    fixed, varying = {}, []
    for name, given in operation.inputs.items():
        parameter = parameters[name]
        values = [weights.constant(here, value) if isinstance(value, Constant) else known.get(value, value) for value in given]
        if all(isinstance(value, Constant) or value in known for value in given):
            try:
                fixed[name] = parameter.convert(values if parameter.many else values[0])
            except FAILURES as error:
                raise InputError(here, f"{name} cannot be used ({first_line(error)})", AGAIN) from error
        else:
            varying.append(Argument(name, parameter, tuple(values)))
    return fixed, tuple(varying)


def _with_drops(steps: list[Step], function: Function) -> tuple[Step, ...]:
    """Every step told which values nothing needs after it."""
    needed, told = set(function.outputs), []
    for step in reversed(steps):
        taken = {value for argument in step.varying for value in argument.values if isinstance(value, str)}
        if step.operation.type == WRITE:
            taken = {value for value in step.operation.inputs["data"] if isinstance(value, str)}
        gives = {name for name, _ in step.operation.outputs}
        told.append(replace(step, dropped=tuple((taken | gives) - needed)))
        needed = (needed - gives) | taken
    return tuple(reversed(told))
