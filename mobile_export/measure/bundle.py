"""Builds the runner for arm64 phones, and puts beside it all it loads: a folder that runs on any arm64 Linux kernel.

No NDK and no source build of ExecuTorch: our C++ sources, cross-compiled against the executorch wheel for arm64 Linux, whose
libraries travel along with the loader and the libraries of glibc and GCC. A phone has another C library (bionic), so
the program is started through this loader. Run under emulation by the tests, never yet on a phone.

GCC only: runner and wheel exchange std::string and std::vector, which clang's libc++ (`zig c++`) lays out otherwise than the
libstdc++ the wheel was compiled against.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pydantic

from mobile_export.cache import cache_folder
from mobile_export.manifest import FileDigest, digest_of, sha256
from mobile_export.measure.arm64_wheel import pinned_wheel, unpack_arm64_wheel
from mobile_export.measure.build import (
    SOURCES,
    Toolchain,
    compile_program,
    find_program,
    key,
    room_in_cache,
    run_tool,
    version_of,
)
from mobile_export.measure.needed_libraries import needed_libraries

COMPILER = "aarch64-linux-gnu-g++"
LOADER = "ld-linux-aarch64.so.1"  # its name in the platform's ABI
THEN = "Debian: apt install g++-aarch64-linux-gnu libc6-dev-arm64-cross cmake; or pass --runner PATH"
# RUNNER_ARCH: the baseline, armv8-a, which has all of NEON that the runner uses. -s: symbols stay here.
SETTINGS = (
    "CMAKE_SYSTEM_NAME=Linux",
    "CMAKE_SYSTEM_PROCESSOR=aarch64",
    "CMAKE_SKIP_RPATH=ON",
    "CMAKE_EXE_LINKER_FLAGS=-s",
    "RUNNER_ARCH=",
)
ASSEMBLY = (Path(__file__), Path(__file__).with_name("needed_libraries.py"))  # what decides which files travel
DIGESTS = "digests.json"  # in the folder, and not one of the files
FILES = pydantic.TypeAdapter(tuple[FileDigest, ...])


@dataclass(frozen=True)
class Bundle:
    """A program for arm64 Linux with everything it loads. command: starts it, where `folder` is the current one."""

    folder: Path
    files: tuple[FileDigest, ...]
    command: tuple[str, ...]


def arm64_bundle(say: Callable[[str], None], *, download: bool) -> Bundle:
    """The runner for arm64 phones, from the cache folder if it was made before.

    Args:
        download: whether pip may fetch what it is built from.
    Raises:
        MissingTool: no cross compiler, no cmake, no wheel, or they fail; no room.
    """
    return build_bundle(SOURCES, "runner", say, download=download)


def build_bundle(sources: Path, target: str, say: Callable[[str], None], *, download: bool, **definitions: str) -> Bundle:
    """An executable for arm64 made by the CMakeLists.txt in a folder, with what it loads; from the cache if made before.

    Args:
        definitions: CMake variables, each the path of a folder it reads.
    Raises:
        MissingTool: no cross compiler, no cmake, no wheel, or they fail; no room.
    """
    wheel = pinned_wheel()
    compiler = find_program(COMPILER, "no cross compiler for arm64", THEN)
    cmake = find_program("cmake", "is not installed", THEN)
    parts = (wheel.sha256, version_of(compiler), *map(sha256, ASSEMBLY))
    made = cache_folder() / f"{target}-arm64-{key(parts, sources, definitions)}"
    bundle = _whole(made, target)
    if bundle is None:
        with room_in_cache() as room:
            tools = Toolchain(compiler, cmake, unpack_arm64_wheel(wheel, room, say, download=download), SETTINGS, THEN)
            say(f"building the {target} for arm64, once")
            program = compile_program(tools, sources, target, room / "build", definitions)
            _assemble(program, tools, room / "bundle")
            if _whole(made, target) is None:  # else another process was faster, and may be using it
                if made.exists():
                    made.rename(room / "damaged")
                (room / "bundle").rename(made)
        bundle = _whole(made, target)
        assert bundle, f"{made}: not what was written there"
    return bundle


def _assemble(program: Path, tools: Toolchain, folder: Path) -> None:
    """Copy a program and all it loads into a new folder, with their digests."""

    def find(name: str) -> Path | None:
        ours = tools.executorch / "lib" / name
        return ours if ours.is_file() else _of_compiler(tools, "file", name)

    readelf = _of_compiler(tools, "prog", "readelf")
    libraries = needed_libraries(program, str(readelf or "readelf"), find)
    folder.mkdir()
    for name, path in {program.name: program, **libraries}.items():
        shutil.copyfile(path, folder / name)
    for name in (program.name, LOADER):
        (folder / name).chmod(0o755)
    files = tuple(digest_of(path) for path in sorted(folder.iterdir()))
    (folder / DIGESTS).write_bytes(FILES.dump_json(files, indent=1))


def _of_compiler(tools: Toolchain, kind: str, name: str) -> Path | None:
    """Where the compiler has a "file" or a "prog" of this name; it repeats the name of what it does not have."""
    command = [tools.compiler, f"-print-{kind}-name={name}"]
    said = run_tool(command, tools.compiler, f"cannot say where {name} is", tools.otherwise).strip()
    return None if said == name else Path(said)


def _whole(folder: Path, target: str) -> Bundle | None:
    """The bundle in a folder, None where there is none or a file is not what was written."""
    try:
        files = FILES.validate_json((folder / DIGESTS).read_bytes())
        if any(sha256(folder / file.name) != file.sha256 for file in files):
            return None
    except (FileNotFoundError, NotADirectoryError, pydantic.ValidationError):
        return None
    return Bundle(folder, files, (f"./{LOADER}", "--library-path", ".", f"./{target}"))
