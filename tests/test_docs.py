"""README.md and docs/ can fail: their commands are run, what they show is compared, doctests are run.

A ```console block is a terminal session. In it

- a line that starts with "$ " is a command, run by bash; "\\" at its end continues it on the next line;
- `# exit 3` at a command's end is the exit code it must have; without, 0;
- the lines up to the next command are its output (stdout and stderr). None shown: only the exit code is checked.
  Shown, it must match to the end: `...` alone on a line stands for any lines (also none), `...` in a line for any
  text, and `~12.3` for any number, because times and sizes differ between machines;
- the output of a `--help` is compared letter by letter. `make docs` pastes it, nobody types it.

A page that says `<!-- phones: pixel8 -->` has these phones of tests/adb_device on adb: emulated ones, whose times say nothing.
`pixel8+app` has the demo app: its core on the JVM.

The commands of one file run in order in one copy of the repository, so a later one sees the artifact of an earlier
one. What installs, or would run this test within itself, is recognised by `NOT_RUN` and only read: `.ci/run` does it.
"""

from __future__ import annotations

import doctest
import importlib
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import android_tools
import arm64
import pytest
from adb_device.bed import Bed
from adb_device.needs import ALL_TESTS, MISSING

from mobile_export.cache import cache_folder
from mobile_export.measure.adb.app import APP

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOT_RUN = re.compile(
    r"(make \w+|git clone \S+|cd mobile-export|(python3? -m )?pip install .*|python3? -m venv \S+|source \S+/activate)"
)
PHONES = re.compile(r"^<!-- phones: ([\w +-]+) -->$", re.MULTILINE)
NOT_COPIED = shutil.ignore_patterns(".git", ".venv", "build", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info")
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OTHER_SHELL = re.compile(r"^```(sh|bash|shell|zsh|shell-session)\b", re.MULTILINE)


@dataclass(frozen=True)
class Command:
    """One command of a page; `shown` is the output under it, from character `start` to `end` of the page."""

    line: int
    text: str
    exit_code: int
    shown: str
    start: int
    end: int

    @property
    def asks_for_help(self) -> bool:
        return self.text.startswith("mobile-export") and self.text.endswith("--help")

    @property
    def is_run(self) -> bool:
        return not all(NOT_RUN.fullmatch(part) for part in self.text.split(" && "))


def commands_of(page: str) -> list[Command]:
    """The commands in a page's console blocks, in order."""
    found = []
    for block in BLOCK.finditer(page):
        for session in re.finditer(r"^\$ ((?:.*\\\n)*.*\n)((?:(?!\$ ).*\n)*)", block[1], re.MULTILINE):
            text, _, code = session[1].rstrip().partition("  # exit ")
            start, end = (block.start(1) + place for place in session.span(2))
            line = page.count("\n", 0, block.start(1) + session.start()) + 1
            found.append(Command(line, text.rstrip(), int(code or 0), session[2], start, end))
    return found


def matches(shown: str, printed: str) -> bool:
    """Whether an output is the one shown, by the rules above. Spaces at the end of a line do not count."""
    pattern = ""
    for line in shown.rstrip().split("\n"):
        if line.strip() == "...":
            pattern += r"(?:.*\n)*?"
            continue
        parts = re.split(r"(\.\.\.|~[\d.,]*\d)", line.rstrip())
        wild = {".": ".*?", "~": r"~?[\d.,]*\d"}
        pattern += "".join(wild[part[0]] if place % 2 else re.escape(part) for place, part in enumerate(parts)) + "\n"
    lines = "".join(line.rstrip() + "\n" for line in printed.rstrip().split("\n"))
    return re.fullmatch(pattern, lines) is not None


@contextmanager
def phones_of(page: str, room: Path) -> Iterator[dict[str, str]]:
    """The phones that a page asks for, and the environment in which adb sees them and no others."""
    names = PHONES.search(page)
    if names is None:
        yield {}
        return
    with_app = android_tools.MISSING if "+app" in names[1] else []
    if (missing := [*MISSING, *arm64.MISSING, *with_app]) and not ALL_TESTS:
        pytest.skip(f"needs {', '.join(missing)}")
    arm64.runner_bundle()  # or the page is skipped: there is no network
    with Bed(room) as made:
        for name in names[1].split():
            fixture, _, app = name.partition("+")
            phone = made.phone(fixture)
            if app:
                phone.install(APP, android_tools.benchmark_command)
        yield {**made.environment, "XDG_CACHE_HOME": str(cache_folder().parent)}


def run(command: Command, folder: Path, environment: Mapping[str, str] = MappingProxyType({})) -> tuple[int, str]:
    """Exit code and output, with the commands of this Python's environment found first."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command.text],
        cwd=folder,
        env={**os.environ, "PATH": path, "COLUMNS": "80", "NO_COLOR": "1", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
    )
    return done.returncode, done.stdout


# --- the rules themselves ------------------------------------------------------------------------------------------

PAGE = """\
# A page

```console
$ make demo
$ mobile-export pte x \\
    --out y
wrote y (~88.4 MB)
...
done
$ mobile-export check y  # exit 1
```
```python
$ no command
```
"""


def test_commands_are_found_with_line_output_and_exit_code() -> None:
    demo, pte, check = commands_of(PAGE)
    assert (demo.line, demo.text, demo.exit_code, demo.shown) == (4, "make demo", 0, "")
    assert (pte.line, pte.text) == (5, "mobile-export pte x \\\n    --out y")
    assert pte.shown == PAGE[pte.start : pte.end] == "wrote y (~88.4 MB)\n...\ndone\n"
    assert (check.line, check.text, check.exit_code) == (10, "mobile-export check y", 1)
    assert [each.is_run for each in (demo, pte, check)] == [False, True, True]


def test_what_installs_is_not_run_but_anything_after_it_is() -> None:
    page = "```console\n$ git clone URL && cd mobile-export\n$ make demo && mobile-export recipes\n$ cd build\n```\n"
    assert [each.is_run for each in commands_of(page)] == [False, True, True]


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a\nb\n", "a\nb\n", True),
        ("a\nb\n", "a\n", False),
        ("a\n", "a\nb\n", False),
        ("a\n...\nd\n", "a\nb\nc\nd\n", True),
        ("a\n...\nd\n", "a\nd\n", True),
        ("a\n...\nd\n", "a\nb\nc\n", False),
        ("a ... d\n", "a b c d\n", True),
        ("a ... d\n", "a b\nc d\n", False),
        ("in ~3.1 s\n", "in 12 s\n", True),
        ("in ~3.1 s\n", "in a s\n", False),
        ("in 3.1 s\n", "in 3.2 s\n", False),
        ("in 3.1 s\n", "in 3x1 s\n", False),
        ("a\n\n  b\n", "a  \n\n  b\n\n", True),
    ],
)
def test_output_is_compared_by_the_rules(shown: str, printed: str, same: bool) -> None:
    assert matches(shown, printed) is same


# --- the pages -----------------------------------------------------------------------------------------------------


def test_every_shell_block_is_a_console_block() -> None:
    assert [str(page.relative_to(ROOT)) for page in PAGES if OTHER_SHELL.search(page.read_text(encoding="utf-8"))] == []
    readme = commands_of(PAGES[0].read_text(encoding="utf-8"))
    assert {"make demo", "make test"} <= {command.text for command in readme}
    assert any(command.is_run for command in readme)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_shows_what_its_commands_print(page: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mobile-export"
    shutil.copytree(ROOT, folder, ignore=NOT_COPIED)
    text = page.read_text(encoding="utf-8")
    with phones_of(text, tmp_path) as environment:
        for command in commands_of(text):
            if not command.is_run:
                continue
            exit_code, printed = run(command, folder, environment)
            said = f"{page.name}:{command.line}: $ {command.text}\n{textwrap.indent(printed, '  ')}"
            assert exit_code == command.exit_code, said
            if command.asks_for_help:
                assert printed == command.shown, f"{said}\nmake docs pastes it"
            elif command.shown.strip():
                assert matches(command.shown, printed), f"{said}\nis not what the page shows:\n{command.shown}"


# --- doctests ------------------------------------------------------------------------------------------------------


def test_the_examples_in_docstrings_are_true() -> None:
    files = sorted((ROOT / "mobile_export").rglob("*.py"))
    with_examples = [path for path in files if ">>> " in path.read_text(encoding="utf-8")]
    assert len(with_examples) >= 2
    for path in with_examples:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        result = doctest.testmod(importlib.import_module(name))
        assert result.attempted > 0, name
        assert result.failed == 0, name


# --- make docs -----------------------------------------------------------------------------------------------------


def paste_help(page: Path) -> None:
    """Replace what a page shows under each `--help` by what is printed now."""
    text = page.read_text(encoding="utf-8")
    for command in reversed(commands_of(text)):
        if command.asks_for_help:
            exit_code, printed = run(command, ROOT)
            if exit_code:
                raise SystemExit(f"{page.name}:{command.line}: {command.text}: exit {exit_code}\n{printed}")
            text = text[: command.start] + printed + text[command.end :]
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    for each in PAGES:
        paste_help(each)
