"""What every test shares: one thread per operator, and phones only on request."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from hypothesis import settings

# Two test processes on two cores. ExecuTorch's attention (OpenMP) and XNNPACK's pool would fight for them on top.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is first imported, which is after this file

# A deadline measures the neighbour's load, not our code; CI draws the same examples for the same commit.
settings.register_profile("mobile-export", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("mobile-export")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", action="store_true", help="run the tests that need an Android phone on adb")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--device"):
        return
    for item in items:
        if item.get_closest_marker("device"):
            item.add_marker(pytest.mark.skip(reason="needs an Android phone on adb; run with --device"))


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run a command that must fail: its exit code and the one line it said, without "error: "."""
    from mobile_export.cli import run

    def ran(*arguments: object) -> tuple[int, str]:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: "), err
        assert err.count("\n") == 1, err
        return code, err.removeprefix("error: ").removesuffix("\n")

    return ran
