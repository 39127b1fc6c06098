"""Builds the C++ runner against the executorch wheel, once for each version of its sources, the wheel, compiler and CPU.

The result lies in the user's cache folder ($XDG_CACHE_HOME or ~/.cache): it may use every instruction of this CPU, so it is
never shipped.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mobile_export.cache import cache_folder
from mobile_export.errors import MissingTool

SOURCES = Path(__file__).parent / "runner"
SECONDS = 600  # after so long a build hangs
THEN = "install a C++17 compiler and CMake 3.19 or newer (Debian: apt install g++ cmake), or pass --runner python"


@dataclass(frozen=True)
class Toolchain:
    """What a build needs. executorch: folder of the wheel's package."""

    compiler: str
    cmake: str
    executorch: Path


def find_toolchain() -> Toolchain:
    """The compiler ($CXX, else c++), cmake and the wheel.

    Raises:
        MissingTool: one of them is not there.
    """
    wanted = os.environ.get("CXX") or "c++"
    compiler, cmake = shutil.which(wanted), shutil.which("cmake")
    if compiler is None:
        raise MissingTool(wanted, "no C++ compiler of this name", THEN)
    if cmake is None:
        raise MissingTool("cmake", "is not installed", THEN)
    spec = importlib.util.find_spec("executorch")
    folder = next((Path(place) for place in (spec and spec.submodule_search_locations) or ()), None)
    if folder is None or not (folder / "share/cmake/executorch-config.cmake").is_file():
        raise MissingTool("executorch", "its wheel with the C++ package is not installed", "pip install executorch")
    return Toolchain(compiler, cmake, folder)


def build_runner() -> Path:
    """The runner's executable, built if it is not there yet.

    Raises:
        MissingTool: no compiler, no cmake, or they fail.
    """
    return build(SOURCES, "runner")


def build(sources: Path, target: str, **definitions: str) -> Path:
    """An executable made by the CMakeLists.txt in a folder, from the cache if it was made before.

    Args:
        definitions: CMake variables.
    Raises:
        MissingTool: no compiler, no cmake, or they fail.
    """
    tools = find_toolchain()
    made = cache_folder() / f"{target}-{_key(tools, sources, definitions)}" / target
    if not made.is_file():
        made.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=made.parent) as room:
            _compile(tools, sources, target, Path(room), definitions)
            (Path(room) / target).replace(made)  # at once: another process may be about to run it
    return made


@functools.cache
def cpu() -> str:
    """This CPU, as far as code generation and packed weights depend on it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:  # not Linux
        return f"{platform.machine()} {platform.processor()}"
    kept = {line for line in lines if line.split("\t")[0] in ("model name", "flags", "Features", "CPU part")}
    return "\n".join([platform.machine(), *sorted(kept)])


def _compile(tools: Toolchain, sources: Path, target: str, folder: Path, definitions: dict[str, str]) -> None:
    configure = [tools.cmake, "-S", str(sources), "-B", str(folder), f"-DCMAKE_PREFIX_PATH={tools.executorch}"]
    configure += [f"-DCMAKE_CXX_COMPILER={tools.compiler}", *(f"-D{name}={value}" for name, value in definitions.items())]
    for command in (configure, [tools.cmake, "--build", str(folder), "--target", target, "--parallel", "2"]):
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            raise MissingTool(tools.cmake, f"the runner was not built within {SECONDS} s", "pass --runner python") from None
        if done.returncode:
            said = (done.stderr or done.stdout).splitlines()
            error = next((line for line in said if "error" in line.lower()), said[-1] if said else "no message")
            raise MissingTool(tools.compiler, f"the runner does not build: {error.strip()[:300]}", "pass --runner python")


def _key(tools: Toolchain, sources: Path, definitions: dict[str, str]) -> str:
    """What the executable depends on, as 16 hexadecimal digits."""
    version = subprocess.run([tools.compiler, "--version"], capture_output=True, text=True, timeout=60, check=False).stdout
    digest = hashlib.sha256()
    for part in (importlib.metadata.version("executorch"), str(tools.executorch), tools.compiler, version, cpu()):
        digest.update(f"{part}\0".encode())
    for folder in {sources, SOURCES, *(Path(value) for value in definitions.values())}:
        for path in sorted(folder.iterdir()):
            digest.update(f"{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]
