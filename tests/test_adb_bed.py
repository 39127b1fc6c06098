"""The emulated phone, seen by real adb clients: Debian's and the one in adbutils."""

from __future__ import annotations

import filecmp
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from adb_device.bed import Bed, Phone
from adb_device.faults import Faults
from adb_device.needs import ALL_TESTS, bundled_adb, needs_bed

pytestmark = [needs_bed, pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")]
TMP = "/data/local/tmp"


@pytest.fixture(scope="module", params=["debian", "bundled"])
def bed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    """One server of each client for all tests here; every test has its own phone."""
    client: str | Path | None = "adb" if request.param == "debian" else bundled_adb()
    if client is None and not ALL_TESTS:
        pytest.skip("no second adb client; pip install --no-deps adbutils")
    assert client is not None
    with Bed(tmp_path_factory.mktemp("bed"), client) as bed:
        yield bed


Adb = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def phone(bed: Bed) -> Phone:
    return bed.phone()


@pytest.fixture
def adb(bed: Bed, phone: Phone) -> Adb:
    """Run the client on the test's phone."""
    return lambda *arguments, **options: bed.adb("-s", phone.serial, *arguments, **options)


def said(ran: subprocess.CompletedProcess[str]) -> str:
    """Debian's client prints what became of a push on stdout, the newer one on stderr."""
    return ran.stdout + ran.stderr


def test_the_shell_keeps_output_errors_and_exit_code_apart(adb: Adb) -> None:
    ran = adb("shell", "echo out; echo err >&2; exit 7")
    assert (ran.stdout, ran.stderr, ran.returncode) == ("out\n", "err\n", 7)


def test_a_pushed_and_pulled_file_is_the_same(adb: Adb, phone: Phone, tmp_path: Path) -> None:
    sent, back = tmp_path / "sent", tmp_path / "back"
    sent.write_bytes(random.Random(0).randbytes((3 << 20) + 17))  # neither whole chunks nor whole messages
    sent.chmod(0o750)
    os.utime(sent, (1_700_000_000, 1_700_000_000))
    assert adb("push", sent, f"{TMP}/new/folder/sent").returncode == 0
    assert adb("pull", f"{TMP}/new/folder/sent", back).returncode == 0
    assert filecmp.cmp(sent, back, shallow=False)
    arrived = (phone.data / "new/folder/sent").stat()
    assert (arrived.st_mode & 0o777, arrived.st_mtime) == (0o777, 1_700_000_000)


def test_a_full_disk_is_told_and_leaves_no_half_file(bed: Bed, tmp_path: Path) -> None:
    phone = bed.phone(faults=Faults(disk_full_after=1 << 20))
    sent = tmp_path / "sent"
    sent.write_bytes(bytes(3 << 20))
    ran = bed.adb("-s", phone.serial, "push", sent, TMP)
    assert ran.returncode == 1
    assert "No space left on device" in said(ran)
    assert list(phone.data.iterdir()) == []
