"""Writes model.mlpackage: the functions joined over one weight file, what it says of itself, and what its bytes are for."""

from __future__ import annotations

import contextlib
import errno
import functools
import math
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobile_export.emit.coreml.convert import convert
from mobile_export.emit.coreml.decoder import parameter_of
from mobile_export.emit.coreml.layouts import DECODE, MAIN, CoreMlOptions, functions
from mobile_export.emit.coreml.toolchain import coremltools
from mobile_export.quantize.weights import PARTS, ModelWeights

FILE = "model.mlpackage"
CONTENTS = tuple(f"{FILE}/{name}" for name in (
    "Manifest.json", "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin"
))  # fmt: skip
MODEL = CONTENTS[1]
CONVERSION_DATE = "com.github.apple.coremltools.conversion_date"
SUFFIX = re.compile(r"(_codes)?(_to_fp16|_cast_fp16)?$")  # what the passes and put_matrices add to a weight's name


@dataclass(frozen=True)
class CoreMlProgram:
    """What was written.

    operators: function -> operator -> how often, constants left out.
    parts: bytes of the package by part; they add up to its files.
    warnings: what a user should know of it.
    """

    operators: dict[str, dict[str, int]]
    parts: dict[str, int]
    warnings: list[str]


def write_package(
    folder: Path, weights: ModelWeights, options: CoreMlOptions, about: Mapping[str, str], say: Callable[[str], None]
) -> CoreMlProgram:
    """Write model.mlpackage into a folder.

    Args:
        about: what is written into the package's own metadata, "license" and "short_description" into its fields.
    Raises:
        InputError: a weight that cannot be read, is not finite, or is beyond float16.
        OSError: the folder cannot be written.
    """
    ct = coremltools()
    with _told_of_a_full_disk(), tempfile.TemporaryDirectory(dir=folder) as room:
        written: dict[str, Path] = {}
        forms = functions(options)
        # Quantizing is most of the work, and each function asks for every matrix.
        quantized = functools.cache(weights.quantized) if len(forms) > 1 else weights.quantized
        for name, function in forms.items():
            say(f"converting {name}" if name != MAIN else "converting")
            written[name] = Path(room) / f"{name}.mlpackage"
            model, warnings = convert(function, weights, options, quantized)  # the same for every function
            model.save(str(written[name]))
        say("writing the package")
        joined = written[MAIN] if MAIN in written else _joined(written, Path(room) / "joined.mlpackage")
        model = ct.models.MLModel(str(joined), skip_model_load=True)
        about = dict(about)
        model.license, model.short_description = about.pop("license", ""), about.pop("short_description", "")
        model.user_defined_metadata.pop(CONVERSION_DATE, None)  # the same input says the same on any day
        model.user_defined_metadata.update(about)
        model.save(str(folder / FILE))
        spec = ct.utils.load_spec(str(folder / FILE))
        (folder / MODEL).write_bytes(spec.SerializeToString(deterministic=True))  # maps in the same order in any process
    total = sum((folder / name).stat().st_size for name in CONTENTS)
    return CoreMlProgram(_operators(spec), _parts(spec, weights, total), warnings)


@contextlib.contextmanager
def _told_of_a_full_disk() -> Iterator[None]:
    """Raise the OSError a full disk is, where coremltools' copy of a folder gives a list of what went wrong."""
    try:
        yield
    except shutil.Error as error:
        if os.strerror(errno.ENOSPC) in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise


def _joined(written: Mapping[str, Path], to: Path) -> Path:
    """Packages of one function each as one package of all, equal constants laid down once."""
    ct = coremltools()
    descriptor = ct.utils.MultiFunctionDescriptor()
    for name, package in written.items():
        descriptor.add_function(str(package), MAIN, name)
    descriptor.default_function_name = DECODE
    ct.utils.save_multifunction(descriptor, str(to))
    return to


def _blocks(spec: Any) -> Iterator[tuple[str, Any]]:
    for name, function in spec.mlProgram.functions.items():
        yield name, function.block_specializations[function.opset]


def _operators(spec: Any) -> dict[str, dict[str, int]]:
    counts = {name: Counter(operation.type for operation in block.operations) for name, block in _blocks(spec)}
    return {name: {kind: n for kind, n in count.most_common() if kind != "const"} for name, count in counts.items()}


def _parts(spec: Any, weights: ModelWeights, total: int) -> dict[str, int]:
    """Bytes by part: each payload of the weight file once, under the name of the constant it is; the rest is graph."""
    part_of = {parameter_of(name).replace(".", "_"): weights.part_of(name) for name in weights.sources}
    parts = dict.fromkeys((*PARTS, "positions", "graph"), 0)
    billed: set[int] = set()
    for _, block in _blocks(spec):
        for operation in block.operations:
            name = SUFFIX.sub("", operation.outputs[0].name) if operation.outputs else ""
            part = part_of.get(name, "positions" if name.startswith(("rotary_", "attend_")) else "graph")
            values = [*operation.attributes.values(), *(a.value for i in operation.inputs.values() for a in i.arguments)]
            for value in values:
                offset = value.blobFileValue.offset
                if value.WhichOneof("value") == "blobFileValue" and offset not in billed:
                    billed.add(offset)
                    parts[part] += _bytes(value.type.tensorType)
    parts["graph"] += total - sum(parts.values())
    return parts


def _bytes(tensor: Any) -> int:
    """Bytes of a tensor of constant shape."""
    from coremltools.proto import MIL_pb2

    (bits,) = re.findall(r"\d+", MIL_pb2.DataType.Name(tensor.dataType))
    return math.ceil(math.prod(d.constant.size for d in tensor.dimensions) * int(bits) / 8)
