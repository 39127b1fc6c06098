"""A package looked at without running it: do its types hold, can its operators run where it says, what may slow it down.

Beside the interpreter, which knows only the operators it runs, this asks coremltools' own definitions.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mobile_export.emit.coreml.toolchain import coremltools
from mobile_export.verify.mlprogram.arguments import first_line
from mobile_export.verify.mlprogram.findings import Finding
from mobile_export.verify.mlprogram.neural_engine import lint
from mobile_export.verify.mlprogram.package import Package, read_package
from mobile_export.verify.mlprogram.program import VERSIONS, Program

IOS = {6: "iOS 15", 7: "iOS 16", 8: "iOS 17", 9: "iOS 18"}  # by specification version
WRITES = "write_state"  # coremltools knows it under another name; it came with read_state


def static_checks(path: Path) -> list[Finding]:
    """Errors first. An empty list says that nothing was found, not that a device was asked.

    Raises:
        InputError: no package, or one that cannot be read at all, as Program.open.
    """
    coremltools()  # quietly
    package = read_package(path)
    program = Program.of(package)
    return [*_types(package), *_availability(program), *lint(program)]


def _types(package: Package) -> Iterator[Finding]:
    """Load the program with coremltools, which infers every type anew and compares it with what is declared."""
    from coremltools.converters.mil.frontend.milproto.load import load
    from coremltools.proto import Model_pb2

    assert package.folder is not None  # read_package names it
    model = Model_pb2.Model()
    model.ParseFromString(bytes(package.specification))
    for name in list(model.mlProgram.functions):
        alone = Model_pb2.Model()
        alone.CopyFrom(model)
        for other in set(model.mlProgram.functions) - {name}:
            del alone.mlProgram.functions[other]
        try:
            load(alone, model.specificationVersion, str(package.folder / "weights"))
        except Exception as error:  # noqa: BLE001 - it raises whatever its definitions do
            yield Finding(
                "error", "types", name, 1, "function", f"does not load again ({first_line(error)})", "export it again"
            )


def _availability(program: Program) -> Iterator[Finding]:
    """Operators newer than the operator set of their function, and functions newer than their program."""
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    versions = {opset: version for version, opset in VERSIONS.items()}
    for function in program.functions.values():
        own = versions[function.opset]
        if own > program.version:
            what = f"written for {IOS[own]} in a package for {IOS[program.version]}"
            yield Finding("error", "availability", function.name, 1, "function", what, "export it for one of them")
        counts: dict[tuple[str, str], int] = {}
        for operation in function.operations:
            known: Any = SSAOpRegistry.core_ops.get("read_state" if operation.type == WRITES else operation.type, {})
            since = int(min(known)) if known else None
            if since is None or since > own:
                when = f"exists from {IOS.get(since, 'a later version')} on" if since else "is not known to coremltools"
                counts[operation.type, when] = counts.get((operation.type, when), 0) + 1
        for (kind, when), count in counts.items():
            what = f"in a function for {IOS[own]}: the operator {when}"
            yield Finding("error", "availability", function.name, count, kind, what, "export it for a later iOS")
