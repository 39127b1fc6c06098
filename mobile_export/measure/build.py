"""Builds C++ programs of ours against the executorch wheel, once for each version of sources, wheel, compiler and CPU.

The result lies in the user's cache folder ($XDG_CACHE_HOME or ~/.cache). What is built for this machine may use every
instruction of its CPU, so it is never shipped; bundle.py builds the same sources for phones.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from mobile_export.cache import cache_folder
from mobile_export.errors import MissingTool

SOURCES = Path(__file__).parent / "runner"
SECONDS = 600  # after so long a tool hangs
THEN = "install a C++17 compiler and CMake 3.19 or newer (Debian: apt install g++ cmake), or pass --runner python"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
TELLING = ("cannot find ", "error: ", "error")  # of a tool's lines, the most telling first
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


@dataclass(frozen=True)
class Toolchain:
    """What a build needs. executorch: folder of the wheel's package. settings: of CMake. otherwise: what to do if it fails."""

    compiler: str
    cmake: str
    executorch: Path
    settings: tuple[str, ...] = ()
    otherwise: str = "pass --runner python"


def host_toolchain() -> Toolchain:
    """The compiler ($CXX, else c++), cmake and the wheel of this machine.

    Raises:
        MissingTool: one of them is not there.
    """
    compiler = find_program(os.environ.get("CXX") or "c++", "no C++ compiler of this name", THEN)
    cmake = find_program("cmake", "is not installed", THEN)
    spec = importlib.util.find_spec("executorch")
    folder = next((Path(place) for place in (spec and spec.submodule_search_locations) or ()), None)
    if folder is None or not (folder / "share/cmake/executorch-config.cmake").is_file():
        raise MissingTool("executorch", "its wheel with the C++ package is not installed", "pip install executorch")
    return Toolchain(compiler, cmake, folder)


def build_runner() -> Path:
    """The runner's executable for this machine, built if it is not there yet.

    Raises:
        MissingTool: no compiler, no cmake, or they fail; no room.
    """
    return build(SOURCES, "runner")


def build(sources: Path, target: str, **definitions: str) -> Path:
    """An executable for this machine made by the CMakeLists.txt in a folder, from the cache if it was made before.

    Args:
        definitions: CMake variables, each the path of a folder it reads.
    Raises:
        MissingTool: no compiler, no cmake, or they fail; no room.
    """
    tools = host_toolchain()
    parts = (importlib.metadata.version("executorch"), str(tools.executorch), version_of(tools.compiler), cpu())
    made = cache_folder() / f"{target}-{key(parts, sources, definitions)}" / target
    if not made.is_file():
        with room_in_cache() as room:
            built = compile_program(tools, sources, target, room, definitions)
            made.parent.mkdir(exist_ok=True)
            built.replace(made)  # at once: another process may be about to run it
    return made


def compile_program(tools: Toolchain, sources: Path, target: str, room: Path, definitions: dict[str, str]) -> Path:
    """The executable, within `room`.

    Raises:
        MissingTool: the tools fail.
    """
    configure = [tools.cmake, "-S", str(sources), "-B", str(room), f"-DCMAKE_PREFIX_PATH={tools.executorch}"]
    configure += [f"-DCMAKE_CXX_COMPILER={tools.compiler}", *(f"-D{setting}" for setting in tools.settings)]
    configure += [f"-D{name}={value}" for name, value in definitions.items()]
    for command in (configure, [tools.cmake, "--build", str(room), "--target", target, "--parallel", "2"]):
        run_tool(command, tools.compiler, f"the {target} does not build", tools.otherwise)
    return room / target


def key(parts: Sequence[str], sources: Path, definitions: dict[str, str]) -> str:
    """What an executable is made of, as 16 hexadecimal digits: parts, and the files of all folders it is compiled from."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part}\0".encode())
    for folder in sorted({sources, SOURCES, *(Path(value) for value in definitions.values())}):
        for path in sorted(folder.iterdir()):
            digest.update(f"{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def version_of(compiler: str) -> str:
    """Where the compiler is, and its version.

    Raises:
        MissingTool: it does not start.
    """
    then = "name one that works in CXX, or install another"
    return compiler + "\n" + run_tool([compiler, "--version"], compiler, "the compiler does not start", then)


@contextlib.contextmanager
def room_in_cache() -> Iterator[Path]:
    """A folder to build in, gone afterwards. What is finished is renamed into the cache folder, which is on the same disk.

    Raises:
        MissingTool: the disk is full, or the cache folder cannot be written.
    """
    cache = cache_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        for left in cache.glob(".building-*-*"):
            if not psutil.pid_exists(int(left.name.split("-")[1])):  # killed
                shutil.rmtree(left)
        with tempfile.TemporaryDirectory(prefix=f".building-{os.getpid()}-", dir=cache) as room:
            yield Path(room)
    except OSError as error:
        then = "free some, or name another folder in XDG_CACHE_HOME"
        if error.errno in NO_ROOM:
            raise MissingTool(str(cache), "no space left on the disk to build in", then) from None
        if error.errno in UNWRITABLE:
            raise MissingTool(str(cache), f"cannot be written: {error.strerror}", then.partition(", or ")[2]) from None
        raise


def find_program(name: str, what: str, then: str) -> str:
    """The path of a program.

    Raises:
        MissingTool: there is none of this name.
    """
    path = shutil.which(name)
    if path is None:
        raise MissingTool(name, what, then)
    return path


def run_tool(command: Sequence[str], where: str, what: str, then: str) -> str:
    """What a tool printed, in English.

    Raises:
        MissingTool: it fails or hangs; `what` and its first error.
        OSError: it found the disk full.
    """
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=SECONDS,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired:
        raise MissingTool(where, f"{what}: not within {SECONDS} s", then) from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
        if any(os.strerror(errno.ENOSPC) in line for line in said):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        # CMake says first that a compiler is broken, and further down what the compiler said
        telling = (line for words in TELLING for line in said if words in line.lower())
        error = next(telling, said[-1])
        raise MissingTool(where, f"{what}: {error.strip()[:300]}", then)
    return done.stdout


@functools.cache
def cpu() -> str:
    """This CPU, as far as code generation and packed weights depend on it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:  # not Linux
        return f"{platform.machine()} {platform.processor()}"
    kept = {line for line in lines if line.split("\t")[0] in ("model name", "flags", "Features", "CPU part")}
    return "\n".join([platform.machine(), *sorted(kept)])
