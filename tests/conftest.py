"""What every test shares: one thread per operator, and phones only on request."""

from __future__ import annotations

import os

import pytest

# Two test processes on two cores. ExecuTorch's attention (OpenMP) and XNNPACK's pool would fight for them on top.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is first imported, which is after this file


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", action="store_true", help="run the tests that need an Android phone on adb")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--device"):
        return
    for item in items:
        if item.get_closest_marker("device"):
            item.add_marker(pytest.mark.skip(reason="needs an Android phone on adb; run with --device"))
