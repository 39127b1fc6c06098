"""ML programs built with coremltools' Builder and saved as packages, for the tests of the interpreter."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import coremltools as ct
import torch
from coremltools.converters.mil import Builder as mb

from mobile_export.verify.mlprogram.interpreter import Interpreter, Rounding
from mobile_export.verify.mlprogram.program import Function, Program

IOS18 = ct.target.iOS18


def save(path: Path, build: Callable[..., Any], *specs: Any, target: Any = IOS18) -> Path:
    """Save what `build` makes of its parameters (named as the inputs are to be, typed by `specs`), operator for operator."""
    program = mb.program(input_specs=list(specs), opset_version=target)(build)
    model = ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=target,
        compute_precision=ct.precision.FLOAT32,
        pass_pipeline=ct.PassPipeline.EMPTY,
        skip_model_load=True,
    )
    model.save(str(path))
    return path


def only(program: Program, output: str) -> Program:
    """The program with what one output of its main function needs, and nothing else."""
    main = program.functions["main"]
    needed, kept = {output}, []
    for operation in reversed(main.operations):
        if needed & {name for name, _ in operation.outputs}:
            kept.append(dataclasses.replace(operation, inputs=dict(operation.inputs)))  # a copy to change
            needed |= {value for given in operation.inputs.values() for value in given if isinstance(value, str)}
    function = Function(
        name="main",
        opset=main.opset,
        inputs=tuple(given for given in main.inputs if given.name in needed),
        states=main.states,
        operations=tuple(reversed(kept)),
        outputs={output: main.types[output]},
        types=main.types,
    )
    return dataclasses.replace(program, functions={"main": function})


def run(program: Program, feeds: Mapping[str, torch.Tensor], rounding: Rounding = "float32") -> dict[str, torch.Tensor]:
    """Outputs of the main function, once."""
    main = program.functions["main"]
    interpreter = Interpreter(program, rounding)
    return interpreter.run("main", {given.name: feeds[given.name] for given in main.inputs}, interpreter.new_state("main"))
