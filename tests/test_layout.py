"""The folder is the pipeline: imports point backwards, names say what is inside, `--help` is instant.

The walker below is given a small wrong package first, so that a walker that sees nothing cannot pass.
"""

from __future__ import annotations

import ast
import itertools
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mobile_export"
STEPS = ["checkpoint", "families", "sharing", "model", "quantize", "emit", "verify", "audit", "measure", "budget", "cli"]
BESIDE = {"audit"}  # shares its number with the step before it
FOR_ALL = {"errors", "units", "cache", "manifest"}  # what every step may import, and which import no step
VAGUE = {"utils", "common", "base", "helpers", "misc", "util", "helper"}
HEAVY = {"torch", "torchao", "executorch", "coremltools", "transformers", "onnx", "onnxruntime", "gguf", "numpy"}
VERBS = {"pte", "inspect", "verify", "generate"}  # at least these


# --- who imports whom ----------------------------------------------------------------------------------------------


def imports_of(source: str) -> set[str]:
    """Full names of what a module imports, inside functions too: "from a.b import c" gives "a.b.c"."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {"." * node.level + f"{node.module}.{alias.name}" for alias in node.names}
    return names


def forbidden_imports(package: Path) -> list[str]:
    """One line for every import that points to a later step, or from one emitter to another."""
    found = []
    emitters = {path.name for path in (package / "emit").iterdir() if path.is_dir()}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        for name in sorted(imports_of(path.read_text(encoding="utf-8"))):
            if name.startswith("."):
                found.append(f"{'/'.join(parts)} imports {name}: write the full name")
            target = name.split(".")
            if target[0] != package.name or len(target) < 2 or target[1] not in STEPS:
                continue
            if not may_import(parts, target[1:], emitters):
                found.append(f"{'/'.join(parts)} imports {name}")
    return found


def may_import(importer: tuple[str, ...], target: list[str], emitters: set[str]) -> bool:
    """Whether a module, as its path inside the package, may import a step's module."""
    if importer[0] == "__main__":
        return True
    if importer[0] not in STEPS or STEPS.index(importer[0]) < STEPS.index(target[0]):
        return False
    in_emit = importer[0] == target[0] == "emit" and len(target) > 1  # its own modules serve every emitter
    return not in_emit or importer[1] == target[1] or not {importer[1], target[1]} <= emitters


def test_the_walker_sees_what_is_forbidden(tmp_path: Path) -> None:
    package = tmp_path / "pkg"
    sources = {
        "checkpoint/read.py": "def f():\n    from pkg.emit.onnx import write\n",
        "emit/onnx/write.py": "import pkg.emit.executorch.lowering\nfrom pkg.model import decoder\n",
        "emit/onnx/graph.py": "from pkg.emit.onnx.write import write\nfrom pkg.emit.card import card\n",
        "emit/executorch/lowering.py": "import pkg.emit\n",
        "emit/card.py": "from pkg.emit import onnx\n",
        "sharing.py": "from pkg import quantize, units\n",
        "units.py": "from pkg.checkpoint import read\n",
        "cli/pte.py": "from pkg.budget.memory import check\nfrom . import inspect\n",
        "__main__.py": "from pkg.cli import main\n",
    }
    for name, source in sources.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(source)
    assert forbidden_imports(package) == [
        "checkpoint/read imports pkg.emit.onnx.write",
        "cli/pte imports .None.inspect: write the full name",
        "emit/onnx/write imports pkg.emit.executorch.lowering",
        "sharing imports pkg.quantize",
        "units imports pkg.checkpoint.read",
    ]


def test_every_step_imports_earlier_steps_only() -> None:
    assert forbidden_imports(PACKAGE) == []


# --- names and docstrings ------------------------------------------------------------------------------------------


def test_every_module_is_named_by_its_idea_and_says_it() -> None:
    modules = sorted(PACKAGE.rglob("*.py"))
    assert [path.name for path in modules if path.stem in VAGUE] == []
    silent = [path for path in modules if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]
    assert [str(path.relative_to(ROOT)) for path in silent] == []


def test_the_package_docstring_lists_the_pipeline() -> None:
    listing = ast.get_docstring(ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))) or ""
    numbered = re.findall(r"^(\w+)(?:/|\.py) +(\d) ", listing, re.MULTILINE)
    numbers = itertools.accumulate(int(step not in BESIDE) for step in STEPS[:-1])
    assert numbered == [(step, str(number)) for step, number in zip(STEPS[:-1], numbers, strict=True)]
    folders = {path.name + "/" for path in PACKAGE.iterdir() if any(path.glob("*.py"))}
    modules = {path.name for path in PACKAGE.glob("*.py") if not path.name.startswith("__")}
    assert sorted(name for name in folders | modules if not re.search(rf"(^|[ ,]){name}", listing, re.MULTILINE)) == []
    stray = {name.removesuffix(".py").rstrip("/") for name in folders | modules} - FOR_ALL - set(STEPS)
    assert stray == set(), "neither a step nor what every step may import"


# --- speed and help ------------------------------------------------------------------------------------------------


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False)


def seconds(*arguments: str) -> float:
    """Median of three runs. Processor time, not the clock: the other test process keeps both cores busy."""
    taken = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert python(*arguments).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(taken)


@cache
def help_of(*verb: str) -> tuple[str, set[str]]:
    """What `mobile-export VERB --help` prints, and the top-level packages it imports."""
    done = python("-X", "importtime", "-m", "mobile_export", *verb, "--help")
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, {line.rsplit("|", 1)[1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}


def verbs() -> list[str]:
    """The names under "Commands:" of the top-level help."""
    commands = help_of()[0].split("Commands:\n")[1]
    found = re.findall(r"^  ([a-z][\w-]*)", commands, re.MULTILINE)
    assert set(found) >= VERBS
    return found


def test_the_package_imports_at_once() -> None:
    assert seconds("-c", "import mobile_export") < 0.2


def test_help_is_instant_and_imports_nothing_heavy() -> None:
    for verb in ([], *([name] for name in verbs())):
        imported = help_of(*verb)[1]
        assert "typer" in imported  # else nothing was seen
        assert imported & HEAVY == set(), verb
        assert seconds("-m", "mobile_export", *verb, "--help") < 0.5, verb


def test_every_help_text_holds_a_line_to_paste() -> None:
    missing = [verb for verb in verbs() if not re.search(rf"Example:\s+mobile-export {verb}\b", help_of(verb)[0])]
    assert missing == []


# --- the wheel -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel built from a copy of the sources, without a network."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for name in ("mobile_export", "recipes"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    done = python("-m", "pip", "wheel", "--quiet", *offline, "--wheel-dir", str(out), str(source))
    assert done.returncode == 0, done.stderr[-2000:]
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_a_wheel_holds_every_module_recipe_and_source(wheel: zipfile.ZipFile) -> None:
    sources = [path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".toml", ".cpp", ".h", ".txt")]
    expected = {path.relative_to(ROOT).as_posix() for path in sources}
    expected |= {f"mobile_export/recipes/{path.name}" for path in (ROOT / "recipes").glob("*.toml")}
    assert len(expected) > 20
    assert expected - set(wheel.namelist()) == set()
    top_level = {name.split("/")[0] for name in wheel.namelist()}
    assert sorted(name for name in top_level if not name.endswith(".dist-info")) == ["mobile_export"]


def test_an_installed_package_finds_its_recipes(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    code = "import json; from mobile_export.quantize.recipe import packaged_recipes; print(*packaged_recipes().values())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True, env={"PATH": ""}
    )
    found = [Path(name) for name in done.stdout.split()]
    assert {path.parent for path in found} == {tmp_path / "mobile_export" / "recipes"}
    assert {path.name for path in found} == {path.name for path in (ROOT / "recipes").glob("*.toml")}
