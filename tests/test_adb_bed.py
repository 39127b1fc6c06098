"""The emulated phone, seen by real adb clients: Debian's, and the newer one that adbutils carries."""

from __future__ import annotations

import filecmp
import os
import random
import re
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from adb_device.arm64 import program
from adb_device.bed import Bed, Phone
from adb_device.faults import Faults
from adb_device.fuzz import KINDS, LEVELS, Fuzz, Kind, Level
from adb_device.needs import ALL_TESTS, bundled_adb, needs_bed

pytestmark = [needs_bed, pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")]
TMP = "/data/local/tmp"
MIB = 1 << 20
Adb = Callable[..., subprocess.CompletedProcess[str]]
MakePhone = Callable[..., tuple[Adb, Phone]]


@pytest.fixture(scope="module", params=["debian", "bundled"])
def bed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    """One server of each client for all tests here; every test has a phone of its own."""
    client: str | Path | None = "adb" if request.param == "debian" else bundled_adb()
    if client is None and not ALL_TESTS:
        pytest.skip("no second adb client; pip install --no-deps adbutils")
    assert client is not None
    with Bed(tmp_path_factory.mktemp("bed"), client) as bed:
        yield bed


@pytest.fixture
def with_faults(bed: Bed) -> MakePhone:
    """A phone, and adb for it: `with_faults(slow_link=1000)`, `with_faults(fixture="nexus5x")`."""

    def made(fixture: str = "pixel8", **faults: object) -> tuple[Adb, Phone]:
        phone = bed.phone(fixture, Faults(**faults))  # type: ignore[arg-type]
        return partial(bed.adb, "-s", phone.serial), phone

    return made


@pytest.fixture
def adb_and_phone(with_faults: MakePhone) -> tuple[Adb, Phone]:
    return with_faults()


@pytest.fixture
def adb(adb_and_phone: tuple[Adb, Phone]) -> Adb:
    return adb_and_phone[0]


@pytest.fixture
def phone(adb_and_phone: tuple[Adb, Phone]) -> Phone:
    return adb_and_phone[1]


@pytest.fixture
def three_mib(tmp_path: Path) -> Path:
    """A file that fills neither its last chunk nor its last message."""
    path = tmp_path / "sent"
    path.write_bytes(random.Random(0).randbytes(3 * MIB + 17))
    return path


def said(ran: subprocess.CompletedProcess[str]) -> str:
    """Debian's client says what became of a push on stdout, the newer one on stderr."""
    return ran.stdout + ran.stderr


def output(bed: Bed, phone: Phone, *arguments: str, given: bytes = b"") -> bytes:
    command, environment = [bed.client, "-s", phone.serial, *arguments], os.environ | bed.environment
    return subprocess.run(command, input=given, stdout=subprocess.PIPE, env=environment, timeout=30, check=True).stdout


def state(bed: Bed, phone: Phone) -> str | None:
    found = re.search(rf"^{phone.serial}\t(\w+)$", bed.adb("devices").stdout, re.MULTILINE)
    return found[1] if found else None


def eventually(holds: Callable[[], bool], seconds: float = 10) -> bool:
    """Whether it holds within the time; a bound, not a measure."""
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


# A phone without faults.


def test_the_shell_keeps_output_errors_and_exit_code_apart(adb: Adb) -> None:
    ran = adb("shell", "echo out; echo err >&2; exit 7")
    assert (ran.stdout, ran.stderr, ran.returncode) == ("out\n", "err\n", 7)


def test_the_shell_passes_input_and_binary_output(bed: Bed, phone: Phone) -> None:
    sent = random.Random(0).randbytes(200_000)
    command = [bed.client, "-s", phone.serial]
    environment = os.environ | bed.environment
    echoed = subprocess.run(
        [*command, "shell", "cat"], input=sent, stdout=subprocess.PIPE, env=environment, timeout=30, check=True
    )
    assert echoed.stdout == sent
    raw = subprocess.run(
        [*command, "exec-out", "head -c 200000 /dev/zero"], stdout=subprocess.PIPE, env=environment, check=True
    )
    assert raw.stdout == bytes(200_000)


def test_a_pushed_and_pulled_file_is_the_same(adb: Adb, phone: Phone, three_mib: Path, tmp_path: Path) -> None:
    three_mib.chmod(0o750)
    os.utime(three_mib, (1_700_000_000, 1_700_000_000))
    assert adb("push", three_mib, f"{TMP}/new/folder/sent").returncode == 0
    assert adb("pull", f"{TMP}/new/folder/sent", tmp_path / "back").returncode == 0
    assert filecmp.cmp(three_mib, tmp_path / "back", shallow=False)
    arrived = (phone.data / "new/folder/sent").stat()
    assert (arrived.st_mode & 0o777, arrived.st_mtime) == (0o777, 1_700_000_000)  # everybody gets what the owner may


def test_folders_and_empty_files_are_pushed_and_pulled(adb: Adb, tmp_path: Path) -> None:
    sent = {f"file {number}": bytes(range(number)) for number in range(20)}
    (tmp_path / "folder/below").mkdir(parents=True)
    for name, content in sent.items():
        (tmp_path / "folder/below" / name).write_bytes(content)
    assert adb("push", tmp_path / "folder", TMP).returncode == 0
    assert adb("shell", f"ls '{TMP}/folder/below'").stdout.splitlines() == sorted(sent)
    assert adb("pull", f"{TMP}/folder", tmp_path / "back").returncode == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "back/below").iterdir()} == sent


@pytest.mark.parametrize(
    ("target", "reason"), [("/system/bin/x", "Read-only file system"), ("/x", "Read-only"), ("/data/x", "Permission denied")]
)
def test_nothing_is_pushed_where_shell_may_not_write(adb: Adb, phone: Phone, tmp_path: Path, target: str, reason: str) -> None:
    (tmp_path / "x").write_text("x")
    ran = adb("push", tmp_path / "x", target)
    assert ran.returncode == 1
    assert reason in said(ran)
    assert adb("shell", f"echo x > {target}").returncode == 1
    assert not (phone.root / target.lstrip("/")).exists()


def test_a_path_does_not_lead_out_of_the_phone(adb: Adb, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    up = "/.." * 20
    assert adb("shell", f"ln -s {up}{tmp_path}/secret {TMP}/link").returncode == 0
    for path in (f"{TMP}{up}{tmp_path}/secret", f"{TMP}/link"):
        assert "No such file" in said(adb("pull", path, tmp_path / "stolen"))


def test_forward_reaches_a_port(bed: Bed, adb: Adb, tmp_path: Path) -> None:
    (tmp_path / "page").write_text("hello")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = adb("forward", "tcp:0", f"tcp:{server.server_port}").stdout.strip()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/page", timeout=10) as page:
        assert page.read() == b"hello"
    server.shutdown()


def test_an_arm64_program_runs(adb: Adb, tmp_path: Path) -> None:
    (tmp_path / "hello").write_bytes(program("hello from arm64\n", 42))
    (tmp_path / "hello").chmod(0o755)
    assert adb("push", tmp_path / "hello", TMP).returncode == 0
    ran = adb("shell", f"cd {TMP} && ./hello")
    assert (ran.stdout, ran.returncode) == ("hello from arm64\n", 42)


def test_when_the_client_leaves_only_its_shell_is_told(adb: Adb, phone: Phone) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        adb("shell", "sleep 71 & sleep 72", timeout=1)  # mksh hands the signal to its foreground job
    assert eventually(lambda: "sleep 72" not in phone.processes().values())
    assert "sleep 71" in phone.processes().values()


def test_processes_of_the_phone_and_no_others_are_seen_and_killed(adb: Adb, phone: Phone) -> None:
    ours = subprocess.Popen(["sleep", "73"])
    started = "n=73; sleep $n & until pgrep -f 'sleep 7[3]'; do true; done"  # it is a shell for a moment
    ran = adb("shell", f"{started}; ps -A; pkill -9 -f 'sleep 7[3]'; wait $!; echo $?")
    lines = ran.stdout.splitlines()
    assert f"{lines[0]} sleep 73" in lines
    assert (ran.stdout.count("sleep 73\n"), lines[-1]) == (1, "137")
    assert ours.poll() is None
    ours.kill()
    ours.wait()


def test_every_service_that_was_asked_for_is_on_record(adb: Adb, phone: Phone) -> None:
    adb("shell", "true")
    assert phone.requests[-1].endswith(":true")


FACTS = {  # model, API level, cores, MemTotal in kB, free KiB, chip, part of the last core, thermal status, battery level
    "pixel8": ["Pixel 8", "34", "9", "7826652", "68157440", "Google Tensor G3", "0xd4e", "Thermal Status: 0", "level: 87"],
    "galaxy-a54": ["SM-A546B", "34", "8", "5579532", "12582912", "Samsung s5e8835", "0xd41", "Thermal Status: 0", "level: 46"],
    "nexus5x": ["Nexus 5X", "23", "", "1857404", "3145728", "", "0xd07", "", "level: 100"],
}
ASKED = """getprop ro.product.model
getprop ro.build.version.sdk
nproc 2>/dev/null || echo
sed -n 's/MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo
df -k /data/local/tmp | tail -1 | tr -s ' ' | cut -d ' ' -f 4
echo $(getprop ro.soc.manufacturer) $(getprop ro.soc.model)
grep part /proc/cpuinfo | tail -1 | sed 's/.*: //'
dumpsys thermalservice 2>/dev/null | grep Status: || echo
dumpsys battery | grep level | sed 's/ *//'"""


@pytest.mark.parametrize("fixture", list(FACTS))
def test_a_phone_tells_what_its_fixture_says(with_faults: MakePhone, fixture: str) -> None:
    adb, _ = with_faults(fixture)
    assert adb("shell", ASKED).stdout.splitlines() == FACTS[fixture]


def test_the_old_phone_has_crlf_no_exit_code_and_no_separate_errors(bed: Bed, with_faults: MakePhone) -> None:
    adb, phone = with_faults("nexus5x")
    ran = adb("shell", "echo out; echo err >&2; exit 7")
    assert (ran.stdout, ran.stderr, ran.returncode) == ("out\nerr\n", "", 0)
    assert output(bed, phone, "shell", "echo out") == b"out\r\n"


def test_what_is_denied_says_so(with_faults: MakePhone, tmp_path: Path) -> None:
    adb, _ = with_faults(denied=("thermalservice", "/proc/meminfo"))
    assert "Permission Denial" in adb("shell", "dumpsys thermalservice").stdout
    for path in ("/proc/meminfo", "/sys/class/thermal/thermal_zone0/temp"):
        assert "Permission denied" in adb("shell", f"cat {path}").stderr
        assert "Permission denied" in said(adb("pull", path, tmp_path / "x"))


def test_what_is_set_is_remembered_for_the_test(adb: Adb, phone: Phone, with_faults: MakePhone) -> None:
    assert phone.state("fixed_performance") is None
    assert adb("shell", "cmd power set-fixed-performance-mode-enabled true").returncode == 0
    assert phone.state("fixed_performance") == "true"
    assert adb("shell", "taskset 100 echo pinned").stdout == "pinned\n"
    assert phone.state("taskset") == "100"
    assert adb("shell", "taskset 200 echo pinned").returncode == 1  # nine cores: 0 to 8
    other, _ = with_faults("galaxy-a54")
    assert other("shell", "cmd power set-fixed-performance-mode-enabled true").returncode == 255


def test_many_commands_at_once(adb: Adb) -> None:
    with ThreadPoolExecutor(10) as pool:
        ran = list(pool.map(lambda number: adb("shell", f"sleep 0.2; echo {number}; exit {number}"), range(10)))
    assert [(each.stdout, each.returncode) for each in ran] == [(f"{number}\n", number) for number in range(10)]


# Faults.


def test_unauthorized(bed: Bed) -> None:
    phone = bed.phone(faults=Faults(unauthorized=True))
    assert state(bed, phone) == "unauthorized"
    ran = bed.adb("-s", phone.serial, "shell", "true")
    assert ran.returncode == 1
    assert "device unauthorized" in ran.stderr


def test_allowed_after_a_while(bed: Bed) -> None:
    phone = bed.phone(faults=Faults(allowed_after=0.5))
    assert state(bed, phone) == "unauthorized"
    assert eventually(lambda: state(bed, phone) == "device")


def test_offline(bed: Bed) -> None:
    phone = bed.phone(faults=Faults(offline=True))
    assert eventually(lambda: state(bed, phone) == "offline")
    assert not eventually(lambda: state(bed, phone) == "device", seconds=1)
    ran = bed.adb("-s", phone.serial, "shell", "true")
    assert ran.returncode == 1
    assert "device offline" in ran.stderr


def test_a_full_disk_is_told_and_leaves_no_half_file(with_faults: MakePhone, three_mib: Path) -> None:
    adb, phone = with_faults(disk_full_after=MIB)
    ran = adb("push", three_mib, TMP)
    assert ran.returncode == 1
    assert "No space left on device" in said(ran)
    assert list(phone.data.iterdir()) == []


def test_a_folder_that_is_not_writable(with_faults: MakePhone, three_mib: Path) -> None:
    adb, _ = with_faults(not_writable=True)
    assert "Permission denied" in said(adb("push", three_mib, TMP))
    assert "Permission denied" in adb("shell", f"mkdir {TMP}/x").stderr


def test_a_push_that_is_cut_fails_once_and_then_works(bed: Bed, with_faults: MakePhone, three_mib: Path) -> None:
    adb, phone = with_faults(cut_push_after=MIB, times=1)
    ran = adb("push", three_mib, TMP)
    assert ran.returncode == 1
    assert re.search("couldn't read from device|failed to read copy response", said(ran))
    assert list(phone.data.iterdir()) == []
    assert eventually(lambda: state(bed, phone) == "device")  # the server reconnects by itself
    assert phone.connections == 2
    assert adb("push", three_mib, TMP).returncode == 0


def test_a_push_that_hangs(with_faults: MakePhone, three_mib: Path) -> None:
    adb, _ = with_faults(hang_push_after=MIB)
    with pytest.raises(subprocess.TimeoutExpired):
        adb("push", three_mib, TMP, timeout=1)


def test_a_shell_that_is_cut_leaves_the_program_running(bed: Bed, with_faults: MakePhone) -> None:
    adb, phone = with_faults(cut_shell="sleep")
    ran = adb("shell", "echo before; sleep 74 & sleep 1; echo after")
    assert ran.stdout == "before\n"
    assert ran.returncode in (0, 255)  # Debian's client takes the end of the connection for success
    assert "sleep 74" in phone.processes().values()


def test_a_shell_that_hangs_once(with_faults: MakePhone) -> None:
    adb, _ = with_faults(hang_shell="one", times=1)
    with pytest.raises(subprocess.TimeoutExpired):
        adb("shell", "echo one", timeout=1)
    assert adb("shell", "echo one").stdout == "one\n"


def test_no_shell_v2(with_faults: MakePhone) -> None:
    adb, _ = with_faults(no_shell_v2=True)
    ran = adb("shell", "echo out; echo err >&2; exit 7")
    assert (ran.stdout, ran.stderr, ran.returncode) == ("out\nerr\n", "", 0)


def test_a_killed_program_gives_137_and_its_shell_goes_on(with_faults: MakePhone, tmp_path: Path) -> None:
    adb, _ = with_faults(killed="runner")
    (tmp_path / "runner").write_bytes(program("started\n", 0, seconds=60))
    (tmp_path / "runner").chmod(0o755)
    adb("push", tmp_path / "runner", TMP)
    assert adb("shell", f"{TMP}/runner >/dev/null; echo $?").stdout == "137\n"


def test_rubbish_in_place_of_output(with_faults: MakePhone, three_mib: Path, tmp_path: Path) -> None:
    adb, _ = with_faults(rubbish_shell="getprop", rubbish_pull=True)
    assert adb("shell", "echo yes").stdout == "yes\n"
    assert "Pixel" not in adb("shell", "getprop").stdout
    adb("push", three_mib, TMP)
    assert adb("pull", f"{TMP}/sent", tmp_path / "back").returncode == 0
    assert not filecmp.cmp(three_mib, tmp_path / "back", shallow=False)


def test_the_clock_jumps_and_the_phone_heats_up_after_two_commands(with_faults: MakePhone) -> None:
    adb, _ = with_faults(clock_jump=-86_400, heats_to=4)
    asked = "date +%s; dumpsys thermalservice | grep Status:"
    before, _, after = (adb("shell", asked).stdout.splitlines() for _ in range(3))
    assert int(after[0]) - int(before[0]) == pytest.approx(-86_400, abs=60)
    assert (before[1], after[1]) == ("Thermal Status: 0", "Thermal Status: 4")


def test_a_phone_that_cannot_run_arm64(with_faults: MakePhone, tmp_path: Path) -> None:
    adb, _ = with_faults(wrong_abi=True)
    assert adb("shell", "getprop ro.product.cpu.abi; uname -m").stdout == "armeabi-v7a\narmv8l\n"
    (tmp_path / "hello").write_bytes(program("hello\n", 0))
    (tmp_path / "hello").chmod(0o755)
    adb("push", tmp_path / "hello", TMP)
    ran = adb("shell", f"{TMP}/hello")
    assert ran.returncode != 0
    assert "not executable: 64-bit ELF file" in ran.stderr


def test_missing_tools_and_services(with_faults: MakePhone) -> None:
    adb, _ = with_faults(missing_tools=("sha256sum", "pkill"), missing_services=("thermalservice",), free_kib=1000)
    for tool in ("sha256sum", "pkill"):
        assert "not found" in adb("shell", tool).stderr
    assert "Can't find service" in adb("shell", "dumpsys thermalservice").stderr
    assert adb("shell", f"df -k {TMP}").stdout.split()[-3] == "1000"


def test_a_slow_link(with_faults: MakePhone, three_mib: Path) -> None:
    adb, _ = with_faults(slow_link=2 * MIB)
    started = time.monotonic()
    assert adb("push", three_mib, TMP).returncode == 0
    assert time.monotonic() - started >= 1.4  # 3 MiB at 2 MiB a second


# Answers that are none.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", LEVELS)
def test_mangled_answers_end_in_an_answer_or_a_limit_and_harm_no_other_phone(
    bed: Bed, with_faults: MakePhone, level: Level, kind: Kind, tmp_path: Path
) -> None:
    (tmp_path / "small").write_bytes(bytes(100_000))
    adb, phone = with_faults(fuzz=Fuzz(level, kind, share=0.5))
    for arguments in (
        ("shell", "getprop; exit 3"),
        ("push", tmp_path / "small", TMP),
        ("pull", f"{TMP}/small", tmp_path / "back"),
    ):
        try:
            adb(*arguments, timeout=0.5)
        except subprocess.TimeoutExpired:
            continue  # the client waits for ever; our own limit is what ends it
    assert phone.mangled > 0
    healthy, _ = with_faults()
    assert healthy("shell", "echo well; exit 3").returncode == 3
