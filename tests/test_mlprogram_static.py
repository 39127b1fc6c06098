"""Packages looked at without running them: what is found, what is not, and what coremltools says of types and versions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import get_new_symbol, types
from coremltools.proto import Model_pb2
from mlprograms import save

from mobile_export.errors import InputError
from mobile_export.verify.mlprogram.neural_engine import PATTERNS, lint
from mobile_export.verify.mlprogram.program import Program
from mobile_export.verify.mlprogram.static_checks import static_checks

INT4 = types.nptype_from_builtin(types.int4)
MODEL = "Data/com.apple.CoreML/model.mlmodel"


def weight(rows: int, columns: int, groups: int) -> Any:
    codes, scales = np.ones((rows, columns), INT4), np.full((rows, groups), 0.5, np.float16)
    return mb.constexpr_blockwise_shift_scale(data=codes, scale=scales)


def matrix(rows: int, columns: int) -> np.ndarray:
    return np.ones((rows, columns), np.float16)


def rotated(x: Any) -> Any:
    """What torch.cat([-x2, x1], -1) becomes."""
    first, second = mb.split(x=x, num_splits=2, axis=-1)
    return mb.concat(values=[mb.mul(x=second, y=np.float16(-1)), first], axis=-1)


def swapped(x: Any) -> Any:
    first, second = mb.split(x=x, num_splits=2, axis=-1)
    return mb.concat(values=[second, first], axis=-1)


def window(x: Any, first: Any) -> Any:
    begin = mb.concat(values=[first, np.int32([0, 0, 0])], axis=0)
    end = mb.concat(values=[mb.add(x=first, y=np.int32(1)), np.int32([2, 3, 8])], axis=0)
    return mb.slice_by_index(x=x, begin=begin, end=end)


# noun of a pattern -> (how it is built from x [1, 2, 3, 8] and at [1], how it is built so that nothing is found)
Build = Callable[[Any, Any], Any]
BUILDS: dict[str, tuple[Build, Build]] = {
    "tile": (lambda x, at: mb.tile(x=x, reps=[1, 3, 1, 1]), lambda x, at: mb.tile(x=x, reps=[1, 1, 3, 1])),
    "weight": (
        lambda x, at: mb.matmul(x=x, y=weight(4, 8, 2), transpose_y=True),
        lambda x, at: mb.matmul(x=x, y=weight(4, 8, 1), transpose_y=True),
    ),
    "product": (
        lambda x, at: mb.matmul(x=x, y=matrix(8, 16385)),
        lambda x, at: mb.matmul(x=x, y=matrix(8, 16384)),
    ),
    "lookup": (
        lambda x, at: mb.gather(x=weight(4, 8, 1), indices=at, axis=0),
        lambda x, at: mb.gather(x=matrix(4, 8), indices=at, axis=0),
    ),
    "rotation": (lambda x, _: rotated(x), lambda x, _: swapped(x)),
    "slice": (
        window,
        lambda x, at: mb.slice_by_index(x=x, begin=[0, 1, 0, 0], end=[1, 2, 3, 8]),
    ),
    "linear layer": (
        lambda x, at: mb.linear(x=mb.squeeze(x=x, axes=[0]), weight=matrix(4, 8)),
        lambda x, at: mb.matmul(x=x, y=matrix(8, 4)),
    ),
}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Program]:
    """One program with everything to be found, twice; one with its harmless neighbours."""

    def build(which: int) -> Callable[[Any, Any], Any]:
        def built(x: Any, at: Any) -> Any:
            # twice each, so that counting shows
            return tuple(mb.cast(x=pair[which](x, at), dtype="fp32") for pair in BUILDS.values() for _ in range(2))

        return built

    specs = mb.TensorSpec((1, 2, 3, 8), types.fp16), mb.TensorSpec((1,), types.int32)
    folder = tmp_path_factory.mktemp("static")
    return {
        name: Program.open(save(folder / f"{name}.mlpackage", build(which), *specs))
        for which, name in enumerate(("found", "harmless"))
    }


def test_every_pattern_is_found_and_counted(programs: dict[str, Program]) -> None:
    found = {finding.noun: finding for finding in lint(programs["found"])}
    # the weight of the lookup is not quantized in blocks; the compressed table is a lookup in it
    assert Counter({noun: finding.count for noun, finding in found.items()}) == dict.fromkeys(BUILDS, 2)
    assert {finding.level for finding in found.values()} == {"warning"}
    assert found["lookup"].sentence() == (
        "warning: main: 2 lookups in a compressed table: it may be expanded whole, or run on the CPU; "
        "leave the table in float16, or look tokens up outside the model"
    )


def test_a_neighbour_is_not_found(programs: dict[str, Program]) -> None:
    assert lint(programs["harmless"]) == []


def test_every_pattern_has_a_case() -> None:
    assert {pattern.noun for pattern in PATTERNS} == {*BUILDS, "input"}


def test_an_input_of_any_length_is_found(tmp_path: Path) -> None:
    spec = mb.TensorSpec((1, get_new_symbol()), types.fp16)
    program = Program.open(save(tmp_path / "ranged.mlpackage", lambda x: mb.relu(x=x), spec))
    assert [(finding.noun, finding.count) for finding in lint(program)] == [("input", 1)]


# --- coremltools' own definitions --------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path) -> Path:
    def build(x: Any) -> Any:
        return mb.slice_update(x=x, update=mb.relu(x=np.ones((1, 3), np.float16), name="update"), begin=[0, 0], end=[1, 3])

    return save(tmp_path / "small.mlpackage", build, mb.TensorSpec((2, 3), types.fp16))


def edit(package: Path, change: Callable[[Any], Any]) -> Path:
    model = Model_pb2.Model()
    model.ParseFromString((package / MODEL).read_bytes())
    change(model)
    (package / MODEL).write_bytes(model.SerializeToString())
    return package


def body(model: Any) -> Any:
    return model.mlProgram.functions["main"].block_specializations["CoreML8"]


def operation(model: Any, kind: str) -> Any:
    return next(found for found in body(model).operations if found.type == kind)


def test_nothing_is_found_in_a_sound_package(package: Path) -> None:
    assert static_checks(package) == []


def test_types_are_inferred_anew(package: Path) -> None:
    def declare_otherwise(model: Any) -> None:
        operation(model, "relu").outputs[0].type.tensorType.dimensions[1].constant.size = 4

    (finding,) = static_checks(edit(package, declare_otherwise))
    assert (finding.level, finding.check) == ("error", "types")
    assert finding.sentence() == (
        "error: main: 1 function does not load again (Mismatch between var types in specification vs PyMIL); export it again"
    )


def test_an_operator_of_a_later_ios(package: Path) -> None:
    def age(model: Any) -> None:
        main = model.mlProgram.functions["main"]
        main.block_specializations["CoreML7"].CopyFrom(main.block_specializations["CoreML8"])
        del main.block_specializations["CoreML8"]
        main.opset, model.specificationVersion = "CoreML7", 8

    findings = static_checks(edit(package, age))
    assert [finding.check for finding in findings] == ["types", "availability"]
    assert findings[1].sentence() == (
        "error: main: 1 slice_update in a function for iOS 17: the operator exists from iOS 18 on; export it for a later iOS"
    )


def test_an_operator_nobody_knows(package: Path) -> None:
    findings = static_checks(edit(package, lambda model: setattr(operation(model, "relu"), "type", "relu7")))
    assert findings[1].sentence() == (
        "error: main: 1 relu7 in a function for iOS 18: the operator is not known to coremltools; export it for a later iOS"
    )


def test_a_function_newer_than_its_package(package: Path) -> None:
    findings = static_checks(edit(package, lambda model: setattr(model, "specificationVersion", 8)))
    assert "error: main: 1 function written for iOS 18 in a package for iOS 17; export it for one of them" in [
        finding.sentence() for finding in findings
    ]


def test_what_is_no_package_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        static_checks(tmp_path / "nothing.mlpackage")
