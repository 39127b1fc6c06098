"""Constants of a program as the interpreter computes with them: float16 as float32, compressed ones expanded, each once."""

from __future__ import annotations

from torch import Tensor

from mobile_export.errors import InputError
from mobile_export.verify.mlprogram.arguments import FAILURES, converted, first_line
from mobile_export.verify.mlprogram.operators import operator_of
from mobile_export.verify.mlprogram.package import AGAIN
from mobile_export.verify.mlprogram.program import Function, Operation, Program
from mobile_export.verify.mlprogram.values import Constant

Key = tuple[object, ...]  # equal for equal places in the weight file, or equal values written in the program


class Weights:
    """The constants of one program in memory. What lies in one place of the weight file is held once."""

    def __init__(self, program: Program, *, rounded: bool, kept: bool) -> None:
        """Nothing is read yet.

        Args:
            rounded: expanded float16 weights are rounded to float16; the products of codes and scales otherwise.
            kept: expanded weights are held from then on.
        """
        self.program, self.rounded, self.kept = program, rounded, kept
        self._held: dict[Key, Tensor] = {}

    def constant(self, where: str, value: Constant) -> Tensor | str:
        """A constant, float16 as float32.

        Raises:
            InputError: its place in the weight file is damaged.
        """
        if isinstance(value.immediate, str):
            return value.immediate
        key = _key(value)
        if value.immediate is not None or key not in self._held:
            stored = self.program.tensor(where, value)
            stored = stored.float() if value.type.dtype == "float16" else stored
            if value.immediate is not None:
                return stored
            self._held[key] = stored
        return self._held[key]

    def expanded(self, where: str, function: Function, operation: Operation) -> Tensor:
        """The weight a `constexpr_...` operation gives.

        Raises:
            InputError: its parameters are not constants, damaged, or do not fit each other or the declared type.
        """
        key = self._key_of(where, function, operation)
        if key not in self._held:
            operator = operator_of(operation.type, operation.inputs)
            assert operator is not None  # checked before
            arguments = {}
            for parameter, (value, *_) in operation.inputs.items():
                arguments[parameter] = self._parameter(where, function, value)
            try:
                weight = operator.run(**converted(operator, arguments))
            except FAILURES as error:
                raise InputError(where, f"cannot be expanded ({first_line(error)})", AGAIN) from error
            ((_, declared),) = operation.outputs
            if not declared.allows(weight.shape):
                raise InputError(where, f"gives the shape {list(weight.shape)}, declared as {declared}", AGAIN)
            if self.rounded and declared.dtype == "float16":
                weight = weight.half().float()
            if not self.kept:
                return weight
            self._held[key] = weight
        return self._held[key]

    def _parameter(self, where: str, function: Function, value: str | Constant) -> Tensor | str:
        if isinstance(value, Constant):
            return self.program.tensor(where, value) if not isinstance(value.immediate, str) else value.immediate
        producer = function.producers.get(value)
        if producer is not None and producer.type == "const":
            return self._parameter(where, function, producer.inputs["val"][0])
        if producer is not None and producer.type.startswith("constexpr_"):
            return self.expanded(f"{where}: {value}", function, producer)
        raise InputError(where, f"{value} is no constant", AGAIN)

    def _key_of(self, where: str, function: Function, operation: Operation) -> Key:
        keys: list[object] = [operation.type, operation.outputs[0][1]]
        for parameter, (value, *_) in sorted(operation.inputs.items(), key=lambda item: item[0]):
            producer = function.producers.get(value) if isinstance(value, str) else None
            if isinstance(value, Constant):
                keys.append((parameter, _key(value)))
            elif producer is not None and producer.type == "const":
                keys.append((parameter, _key(function.constants[value])))
            elif producer is not None and producer.type.startswith("constexpr_"):
                keys.append((parameter, self._key_of(where, function, producer)))
            else:
                raise InputError(where, f"{parameter} is no constant", AGAIN)
        return tuple(keys)


def _key(value: Constant) -> Key:
    if value.immediate is None:
        return value.file, value.offset, value.type
    return (value.immediate if isinstance(value.immediate, str) else tuple(value.immediate.reshape(-1).tolist()), value.type)
