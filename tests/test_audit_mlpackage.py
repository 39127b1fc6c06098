"""The audit of Core ML packages: copies, floats and gaps are found in anyone's package, and none in ours."""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from exported import ROOM, checkpoint, coreml_artifact

from mobile_export.audit import audit_artifact
from mobile_export.cli import run
from mobile_export.emit.coreml.toolchain import coremltools
from mobile_export.errors import InputError

RANDOM = np.random.default_rng(0)
FIRST, SECOND = (RANDOM.standard_normal((64, 64)).astype(np.float16) for _ in range(2))


@functools.cache
def package(second: str = "other") -> Path:
    """A package of another's making: two products, float16. second: "other" values, or the "same" with one bit changed."""
    ct = coremltools()
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    @mb.program(input_specs=[mb.TensorSpec((1, 64), types.fp16)], opset_version=ct.target.iOS18)
    def program(x):
        x = mb.linear(x=x, weight=mb.const(val=FIRST, name="first"))
        return mb.linear(x=x, weight=mb.const(val=SECOND, name="second"))

    model = ct.convert(program, minimum_deployment_target=ct.target.iOS18, skip_model_load=True)
    path = Path(tempfile.mkdtemp(dir=ROOM.name)) / "other.mlpackage"
    model.save(str(path))
    if second == "same":
        weights = path / "Data/com.apple.CoreML/weights/weight.bin"
        weights.write_bytes(weights.read_bytes().replace(SECOND.tobytes(), FIRST.tobytes()))
    return path


@pytest.mark.parametrize(
    "arguments", [(), ("--layout", "functions"), ("--palettes",), ("--schedule", "immediate"), ("--recipe", "fp32")]
)
def test_our_own_hold_everything_once(arguments):
    folder = coreml_artifact(checkpoint(), *arguments)
    audit = audit_artifact(folder / "model.mlpackage")
    assert audit.clean, audit.lines()
    assert audit.unread == ()
    assert bool(audit.float_matrices) == ("fp32" in arguments)
    assert run(["inspect", str(folder), "--strict"]) == 0
    assert run(["inspect", str(folder / "model.mlpackage"), "--strict"]) == 0


def test_float_matrices_are_expected_where_nothing_is_quantized():
    audit = audit_artifact(package())
    assert audit.clean
    assert {matrix.shape for matrix in audit.float_matrices} == {(64, 64)}
    assert not audit_artifact(package(), float_expected=False).clean


def test_a_payload_stored_twice_is_found(capsys):
    audit = audit_artifact(package("same"))
    (twice,) = audit.duplicates
    assert twice.wasted_bytes == FIRST.nbytes
    assert not audit.clean
    assert run(["inspect", str(package("same")), "--strict"]) == 1
    assert "no manifest beside it" in capsys.readouterr().out


def test_bytes_nothing_refers_to_are_found(tmp_path):
    path = tmp_path / "longer.mlpackage"
    weights = path / "Data/com.apple.CoreML/weights/weight.bin"
    shutil.copytree(package(), path)
    weights.write_bytes(weights.read_bytes() + bytes(200_000))
    (gap,) = audit_artifact(path).unused
    assert gap.bytes >= 200_000


@pytest.mark.parametrize("size", [0, 10, 2000])
def test_a_truncated_weight_file_is_refused(tmp_path, size):
    path = tmp_path / "cut.mlpackage"
    shutil.copytree(package(), path)
    weights = path / "Data/com.apple.CoreML/weights/weight.bin"
    weights.write_bytes(weights.read_bytes()[:size])
    with pytest.raises(InputError):
        audit_artifact(path)
