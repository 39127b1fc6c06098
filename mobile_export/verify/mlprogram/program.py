"""The protobuf of an ML program -> Program: functions, their operations, what they take and give. Checked once, here.

Only coremltools' message classes are used, neither its converter nor its loader.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from mobile_export.emit.coreml.toolchain import coremltools
from mobile_export.errors import InputError
from mobile_export.verify.mlprogram.blob import WeightFile
from mobile_export.verify.mlprogram.package import AGAIN, Package, read_package
from mobile_export.verify.mlprogram.values import Constant, TensorType, constant, number_type, tensor_type

VERSIONS = {
    6: "CoreML5",
    7: "CoreML6",
    8: "CoreML7",
    9: "CoreML8",
}  # specification version -> newest operator set (iOS 15 to 18)


@dataclass(frozen=True)
class Input:
    """What a function takes. A dimension that may vary is None in `type.shape` and says how in one of the other two."""

    name: str
    type: TensorType
    ranges: tuple[tuple[int, int | None], ...] = ()  # (smallest, largest) of every dimension; None: no limit
    enumerated: tuple[tuple[int, ...], ...] = ()  # the shapes allowed, if only some are

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Whether a value of `shape` may be given."""
        if not self.type.allows(shape) or (self.enumerated and shape not in self.enumerated):
            return False
        limits = zip(shape, self.ranges, strict=False)
        return all(least <= size and (most is None or size <= most) for size, (least, most) in limits)

    def spoken(self) -> str:
        """Type and limits in words: "int32[1, ?], 1 to 1, 1 to 64"."""
        shapes = [str(list(shape)) for shape in self.enumerated]
        limits = [f"{least} to {'any' if most is None else most}" for least, most in self.ranges]
        return ", ".join([str(self.type), *(shapes or limits if None in self.type.shape else [])])


@dataclass(frozen=True)
class Operation:
    """One operation; its attributes (the older way to write constants) are among its inputs."""

    type: str
    name: str  # of its first output; of its state where it only writes one
    inputs: Mapping[str, tuple[str | Constant, ...]]  # parameter -> names of values, or constants written in place
    outputs: tuple[tuple[str, TensorType], ...]


@dataclass(frozen=True)
class Function:
    """One function of a program: its values are named once and in the order of `operations`."""

    name: str
    opset: str  # "CoreML8": iOS 18
    inputs: tuple[Input, ...]
    states: Mapping[str, TensorType]
    operations: tuple[Operation, ...]
    outputs: Mapping[str, TensorType]
    types: Mapping[str, TensorType] = field(repr=False)  # of every value

    @cached_property
    def producers(self) -> Mapping[str, Operation]:
        """Value -> the operation that gives it."""
        return {name: operation for operation in self.operations for name, _ in operation.outputs}

    @cached_property
    def constants(self) -> Mapping[str, Constant]:
        """Names of the values that are written in the program or its weight file as they are."""
        return {op.name: op.inputs["val"][0] for op in self.operations if op.type == "const"}  # type: ignore[misc]

    @cached_property
    def compressed(self) -> Mapping[str, Operation]:
        """Names of the values stored as codes and scales, or codes and tables: what `constexpr_...` operations give."""
        return {op.name: op for op in self.operations if op.type.startswith("constexpr_")}


@dataclass(frozen=True)
class Program:
    """A whole program. Weights are read when asked for."""

    where: str
    version: int  # specification version, as VERSIONS
    functions: Mapping[str, Function]
    default_function: str
    weights: Mapping[str, WeightFile] = field(repr=False)
    metadata: Mapping[str, str] = field(repr=False)  # what the author wrote beside the program

    @staticmethod
    def open(path: Path) -> Program:
        """Read an .mlpackage folder.

        Raises:
            InputError: not such a folder, damaged, not an ML program, of another version, or of types we do not know.
        """
        return Program.of(read_package(path))

    @staticmethod
    def of(package: Package) -> Program:
        """Read a program wherever its bytes come from. Raises as `open`."""
        coremltools()  # quietly; of it only the protobuf's classes are used
        from coremltools.proto import Model_pb2
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

        where, model = package.where, Model_pb2.Model()
        try:
            model.ParseFromString(bytes(package.specification))
        except (DecodeError, RecursionError):
            raise InputError(where, "its model is no Core ML protobuf, or cut off", AGAIN) from None
        kind = model.WhichOneof("Type")
        if kind != "mlProgram":
            raise InputError(where, f"holds {_article(kind)}, not an ML program", "convert it with convert_to='mlprogram'")
        if model.specificationVersion not in VERSIONS:
            what = f"has specification version {model.specificationVersion}"
            raise InputError(where, what, f"export it for iOS 15 to 18 (versions {min(VERSIONS)} to {max(VERSIONS)})")
        described, default = _descriptions(where, model.description)
        if set(described) != set(model.mlProgram.functions):
            raise InputError(where, f"describes {sorted(described)}, holds {sorted(model.mlProgram.functions)}", AGAIN)
        functions = {
            name: _function(f"{where}: {name}", name, proto, described[name])
            for name, proto in model.mlProgram.functions.items()
        }
        weights = {name: WeightFile(f"{where}: {name}", data) for name, data in package.files.items()}
        metadata = dict(model.description.metadata.userDefined)
        return Program(where, model.specificationVersion, functions, default, weights, metadata)

    def constant(self, function: str, name: str) -> torch.Tensor:
        """A constant as it is stored, by the name of its value: float16 stays float16, int4 comes as int8.

        Raises:
            InputError: no such function or constant, or what it points to is damaged.
        """
        constants = self.function(function).constants
        if name not in constants:
            raise InputError(f"{self.where}: {function}", f"no constant {name}", f"there are {len(constants):,}")
        return self.tensor(f"{self.where}: {function}: {name}", constants[name])

    def codes(self, function: str, name: str) -> dict[str, torch.Tensor]:
        """What a compressed constant is stored as, by the name of its value; dtypes as `constant` gives them.

        Returns:
            By the operator's parameters: `data`, `scale` and perhaps `offset` of constexpr_blockwise_shift_scale,
            `indices` and `lut` of constexpr_lut_to_dense. Those that are compressed themselves are left out.
        Raises:
            InputError: no such function or constant, or what it points to is damaged.
        """
        compressed = self.function(function).compressed
        if name not in compressed:
            raise InputError(f"{self.where}: {function}", f"no compressed constant {name}", f"there are {len(compressed):,}")
        where = f"{self.where}: {function}: {name}"
        stored = {parameter: given[0] for parameter, given in compressed[name].inputs.items()}
        named = self.function(function).constants
        resolved = {parameter: named.get(value) if isinstance(value, str) else value for parameter, value in stored.items()}
        return {
            parameter: self.tensor(where, value)
            for parameter, value in resolved.items()
            if value is not None and value.type.dtype != "string"
        }

    def function(self, name: str) -> Function:
        """A function by its name.

        Raises:
            InputError: no such function.
        """
        if name not in self.functions:
            raise InputError(self.where, f"no function {name}", f"it has {', '.join(self.functions)}")
        return self.functions[name]

    def tensor(self, where: str, value: Constant) -> torch.Tensor:
        """A constant as it is stored.

        Raises:
            InputError: its place in the weight file is damaged.
        """
        if isinstance(value.immediate, torch.Tensor):
            return value.immediate
        if value.immediate is not None:
            raise InputError(where, "is text where a tensor is expected", AGAIN)
        if value.file not in self.weights:
            raise InputError(where, f"is in {value.file or 'no file'}, which the package does not hold", AGAIN)
        return self.weights[value.file].read(where, value.offset, value.type)


def _descriptions(where: str, description: Any) -> tuple[dict[str, Any], str]:
    """Function -> its description, and the default one: a package of one function describes it without naming it."""
    if not description.functions:
        return {"main": description}, "main"
    functions = {function.name: function for function in description.functions}
    if description.defaultFunctionName not in functions:
        raise InputError(where, f"no function {description.defaultFunctionName!r}, its default", AGAIN)
    return functions, description.defaultFunctionName


def _function(where: str, name: str, proto: Any, description: Any) -> Function:
    if proto.opset not in VERSIONS.values():
        raise InputError(where, f"is written in the operator set {proto.opset!r}", "export it for iOS 15 to 18")
    if proto.opset not in proto.block_specializations:
        raise InputError(where, f"has no body for {proto.opset}, its operator set", AGAIN)
    block = proto.block_specializations[proto.opset]
    inputs, states, types = {}, {}, {}
    for given in proto.inputs:
        if given.type.WhichOneof("type") == "stateType":
            states[given.name] = types[given.name] = _state(f"{where}: {given.name}", given.type.stateType.wrappedType)
        else:
            inputs[given.name] = types[given.name] = number_type(f"{where}: {given.name}", given.type)
    if len(types) < len(proto.inputs):
        raise InputError(where, "takes two inputs of one name", AGAIN)
    operations = []
    for message in block.operations:
        operation = _operation(where, message)
        _check_names(where, operation, types, states)
        types |= dict(operation.outputs)
        operations.append(operation)
    missing = [output for output in block.outputs if output not in types or output in states]
    if missing:
        raise InputError(where, f"gives {missing[0]}, which no operation computes", AGAIN)
    features = {feature.name: feature for feature in description.input}
    outputs = {output: types[output] for output in block.outputs}
    for what, described, real in (
        ("inputs", features, inputs),
        ("outputs", {feature.name for feature in description.output}, outputs),
        ("states", {feature.name for feature in description.state}, states),
    ):
        if set(described) != set(real):
            raise InputError(where, f"describes the {what} {sorted(described)}, has {sorted(real)}", AGAIN)
    taken = tuple(_input(where, given, type_, features[given]) for given, type_ in inputs.items())
    return Function(name, proto.opset, taken, states, tuple(operations), outputs, types)


def _state(where: str, proto: Any) -> TensorType:
    type_ = number_type(where, proto)
    if None in type_.shape:
        raise InputError(where, f"is a state of unknown shape ({type_})", AGAIN)
    return type_


def _operation(where: str, message: Any) -> Operation:
    type_of = tensor_type if message.type == "const" else number_type
    outputs = tuple((output.name, type_of(f"{where}: {output.name}", output.type)) for output in message.outputs)
    inputs: dict[str, tuple[str | Constant, ...]] = {}
    name = outputs[0][0] if outputs else _state_of(message)
    here = f"{where}: {message.type} {name}"
    for parameter, argument in message.inputs.items():
        inputs[parameter] = tuple(_binding(f"{here}: {parameter}", binding) for binding in argument.arguments)
    for parameter, value in message.attributes.items():
        if parameter == "name":
            continue
        if parameter in inputs:
            raise InputError(here, f"{parameter} is given twice", AGAIN)
        inputs[parameter] = (constant(f"{here}: {parameter}", value),)
    if message.blocks:
        raise InputError(here, "has blocks of its own, which this interpreter does not run", "export without branches or loops")
    empty = [parameter for parameter, given in inputs.items() if not given]
    if empty:
        raise InputError(here, f"{empty[0]} is given no value", AGAIN)
    return Operation(message.type, name, inputs, outputs)


def _binding(where: str, binding: Any) -> str | Constant:
    kind = binding.WhichOneof("binding")
    if kind == "name":
        return str(binding.name)
    if kind == "value":
        return constant(where, binding.value)
    raise InputError(where, "is given nothing", AGAIN)


def _state_of(message: Any) -> str:
    bindings = message.inputs["input"].arguments if "input" in message.inputs else ()
    return str(bindings[0].name) if bindings else ""


def _check_names(where: str, operation: Operation, types: Mapping[str, TensorType], states: Iterable[str]) -> None:
    """Every value is named once, before it is used; a state is used by its two operators alone."""
    here = f"{where}: {operation.type} {operation.name}"
    for parameter, given in operation.inputs.items():
        reads_state = operation.type in ("read_state", "write_state") and parameter == "input"
        for value in given:
            if isinstance(value, str) and value not in types:
                raise InputError(here, f"{parameter} is {value}, which nothing before it computes", AGAIN)
            if (isinstance(value, str) and value in states) != reads_state:
                raise InputError(here, f"{parameter} {'is no state' if reads_state else 'is a state'}", AGAIN)
    names = [name for name, _ in operation.outputs]
    if len(set(names)) < len(names) or any(name in types for name in names):
        raise InputError(here, "gives a value whose name is taken", AGAIN)


def _input(where: str, name: str, type_: TensorType, feature: Any) -> Input:
    kind = feature.type.WhichOneof("Type")
    if kind != "multiArrayType":
        raise InputError(f"{where}: {name}", f"is described as {kind}, not as an array", AGAIN)
    array = feature.type.multiArrayType
    if array.WhichOneof("ShapeFlexibility") == "enumeratedShapes":
        shapes = tuple(tuple(shape.shape) for shape in array.enumeratedShapes.shapes)
        if not shapes or not all(type_.allows(shape) for shape in shapes):
            raise InputError(f"{where}: {name}", f"is {type_} and described by the shapes {shapes}", AGAIN)
        return Input(name, type_, enumerated=shapes)
    if array.WhichOneof("ShapeFlexibility") == "shapeRange":
        sizes = array.shapeRange.sizeRanges
        ranges = tuple((int(size.lowerBound), int(size.upperBound) if size.upperBound >= 0 else None) for size in sizes)
    else:
        ranges = tuple((int(size), int(size)) for size in array.shape)
    fixed = [size is None or pair == (size, size) for size, pair in zip(type_.shape, ranges, strict=False)]
    if len(ranges) != len(type_.shape) or not all(fixed):
        raise InputError(f"{where}: {name}", f"is {type_} and described by the ranges {ranges}", AGAIN)
    return Input(name, type_, ranges)


def _article(kind: str | None) -> str:
    return f"a {kind}" if kind else "nothing we know"
