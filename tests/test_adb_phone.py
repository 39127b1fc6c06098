"""What phones answer, as other makers, versions and permissions have it, and what is made of it. No phone, no daemon."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mobile_export.errors import MissingTool, UsageError
from mobile_export.manifest import FileDigest
from mobile_export.measure.adb.client import find_adb
from mobile_export.measure.adb.conditions import affinity_on, check_heat, threads_on, watts
from mobile_export.measure.adb.failures import failure
from mobile_export.measure.adb.folder import folder_for
from mobile_export.measure.adb.phones import agreement
from mobile_export.measure.adb.preflight import COMMANDS, Found, read_answers, thermal_status
from mobile_export.measure.adb.runner import PhoneRunner, check_abi
from mobile_export.measure.adb.transport import Answer
from mobile_export.measure.measurement import Logits
from mobile_export.measure.phone import Core

PIXEL = {
    "properties": "[ro.product.manufacturer]: [Google]\n[ro.product.model]: [Pixel 8]\n[ro.build.version.release]: [14]\n"
    "[ro.build.version.sdk]: [34]\n[ro.build.fingerprint]: [google/shiba/shiba:14/UD1A/1:user/release-keys]\n"
    "[ro.soc.manufacturer]: [Google]\n[ro.soc.model]: [Tensor G3]\n[ro.product.cpu.abilist]: [arm64-v8a,armeabi-v7a]\n"
    "[persist.sys.locale]: []\n",
    "kernel": "5.15.110-android14-11\naarch64\n",
    "memory": "MemTotal:        7826416 kB\nMemFree:          410244 kB\nMemAvailable:    3984712 kB\n",
    "room": "Filesystem       1K-blocks     Used Available Use% Mounted on\n"
    "/dev/block/dm-50 113246208 45088768  68157440  40% /data\n",
    "page": "16384\n",
    "cores": "cpu0 cpu1 cpu2\ncpu0/cpufreq/cpuinfo_max_freq:1704000\ncpu1/cpufreq/cpuinfo_max_freq:2367000\n"
    "grep: cpu2/cpufreq/cpuinfo_max_freq: Permission denied\ncpu0/cpu_capacity:158\ncpu1/cpu_capacity:563\n"
    "cpu2/cpu_capacity:1024\n",
    "thermal": "IsStatusOverride: false\nThermal Status: 1\nCached temperatures:\n",
    "battery": "Current Battery Service state:\n  AC powered: false\n  USB powered: true\n  Wireless powered: false\n"
    "  level: 87\n  temperature: 263\n",
    "draw": "-432000\n4213000\n",
}


def found(**changes: str) -> Found:
    """What is made of the answers of a Pixel 8, changed; a change to "" is a command that failed."""
    told = {**PIXEL, **changes}
    assert told.keys() == COMMANDS.keys()
    return read_answers("SERIAL", {name: Answer(0 if text else 1, text) for name, text in told.items()})


def test_everything_a_phone_tells_is_read():
    phone, battery = found().phone, found().battery
    assert (phone.serial, phone.model, phone.android, phone.sdk, phone.soc) == (
        "SERIAL", "Google Pixel 8", "14", 34, "Google Tensor G3",
    )  # fmt: skip
    assert phone.build == "google/shiba/shiba:14/UD1A/1:user/release-keys"
    assert (phone.kernel, phone.abis) == ("5.15.110-android14-11 aarch64", ["arm64-v8a", "armeabi-v7a"])
    assert phone.page_bytes == 16384
    assert (phone.dram_mib, phone.available_mib) == (7826416 / 1024, 3984712 / 1024)
    assert phone.free_mib == 66560
    assert phone.cores == [Core(0, 1704, 158), Core(1, 2367, 563), Core(2, None, 1024)]
    assert not phone.emulated
    assert (battery.percent, battery.celsius, battery.powered, battery.readable) == (87, 26.3, True, True)
    assert found().thermal == 1


def test_nothing_told_is_none_and_no_crash():
    told = found(**dict.fromkeys(PIXEL, ""))
    phone = told.phone
    assert [value for name, value in vars(phone).items() if name not in ("serial", "abis", "cores", "emulated")] == [None] * 10
    assert (phone.abis, phone.cores, phone.name) == ([], [], "SERIAL")
    assert (told.thermal, told.battery.percent, told.battery.powered, told.battery.readable) == (None, None, None, False)


@pytest.mark.parametrize("name", PIXEL)
@pytest.mark.parametrize("rubbish", ["\x00\xff\ufffd", "9" * 5000, "cpu" * 99, ":" * 3000, "[ro.x]: [", "MemTotal: x kB\n"])
def test_rubbish_from_a_source_is_no_crash(name, rubbish):
    found(**{name: rubbish})
    found(**{name: PIXEL[name] + rubbish})


@pytest.mark.parametrize(
    ("room", "free_mib"),
    [
        ("Filesystem 1K-blocks Used Available Use% Mounted on\n/dev/block/very-long-name\n 1048576 1 2048 1% /data\n", 2),
        (
            "Filesystem    Size     Used     Free   Blksize\n/data        10.5G     8.1G     2.4G   4096\n",
            None,
        ),
        ("df: /data/local/tmp: Permission denied\n", None),
        ("Filesystem 1K-blocks Used Available Use% Mounted on\n", None),
    ],
    ids=["two lines", "before Android 6", "denied", "header alone"],
)
def test_room_as_different_tools_print_it(room, free_mib):
    assert found(room=room).phone.free_mib == free_mib


def test_makers_are_named_once_and_chips_by_what_is_told_of_them():
    said = "[ro.product.manufacturer]: [OnePlus]\n[ro.product.model]: [OnePlus 11]\n[ro.board.platform]: [kalama]\n"
    phone = found(properties=said).phone
    assert (phone.model, phone.soc, phone.sdk, phone.abis) == ("OnePlus 11", "kalama", None, [])
    assert found(properties="[ro.product.cpu.abi]: [armeabi-v7a]\n[ro.boot.qemu]: [1]\n").phone.emulated


@pytest.mark.parametrize(
    ("said", "status"),
    [("Thermal Status: 3\n", 3), ("Thermal Status: 9\n", None), ("Can't find service: thermalservice", None), ("", None)],
)
def test_thermal_status(said, status):
    assert thermal_status(said) == status


# --- cores and heat ------------------------------------------------------------------------------------------------------


def test_big_cores_are_those_above_the_slowest_kind():
    phone = found().phone
    assert phone.big_cores() == [1, 2]
    assert affinity_on(phone, "all") == ()
    assert affinity_on(phone, "big") == (1, 2)
    assert affinity_on(phone, (0, 2)) == (0, 2)
    assert [threads_on(phone, affinity) for affinity in ((), (1, 2), (0,), (0, 1, 2))] == [2, 2, 1, 2]
    with pytest.raises(UsageError, match=r"--cores 3: Google Pixel 8 has no such core; name some of \[0, 1, 2\]"):
        affinity_on(phone, (3,))


def test_cores_by_clock_where_no_capacity_is_told_and_all_where_nothing_is():
    clocks = "cpu0 cpu1 cpu2\n" + "".join(
        f"cpu{n}/cpufreq/cpuinfo_max_freq:{khz}\n" for n, khz in enumerate((9000, 9000, 8000))
    )
    assert found(cores=clocks).phone.big_cores() == [0, 1]
    assert found(cores="cpu0 cpu1\n").phone.big_cores() == [0, 1]
    assert threads_on(found(cores="").phone, ()) == 4


@pytest.mark.parametrize("status", [None, 0, 2])
def test_warm_is_not_too_hot(status):
    check_heat("phone", status)


@pytest.mark.parametrize(("status", "word"), [(3, "severe"), (6, "shutdown")])
def test_too_hot(status, word):
    with pytest.raises(MissingTool, match=f"phone: is too hot to be measured: thermal status {word}; let it cool"):
        check_heat("phone", status)


def test_watts_are_told_only_where_they_can_be():
    assert watts("-500000\n4000000\n-500000\n4000000\n-500000\n") == pytest.approx(2)
    assert [watts(text) for text in ("", "cat: denied\n", "-432\n4213\n", "500000\n")] == [None] * 4


# --- what goes wrong -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (
            "error: device unauthorized.\nThis adb server's $ADB_VENDOR_KEYS is not set",
            "P: it has not allowed this computer (x); ",
        ),
        ("adb: device offline", "P: is offline (x); "),
        ("error: device 'emulator-5554' not found", "P: is not connected (x); "),
        ("adb: no devices/emulators found", "P: is not connected (x); "),
        (
            "device no permissions (user in plugdev group; are your udev rules wrong?)",
            "P: this user may not open the USB device",
        ),
        ("adb: error: failed to copy 'a' to 'b': remote couldn't write: No space left on device", "P: has no room left for"),
        (
            "adb: error: failed to copy 'a' to 'b': remote couldn't create file: Permission denied",
            "P: does not let us write there",
        ),
        ("adb: error: failed to copy 'a' to 'b': couldn't read from device", "P: the connection was cut (x); "),
        ("error: closed", "P: the connection was cut (x); "),
        ("error: protocol fault (couldn't read status): Connection reset by peer", "P: the connection was cut (x); "),
        ("/system/bin/sh: ./runner: can't execute: Permission denied", "P: does not let us run this program (x); "),
        ("sh: ./runner: not executable: 64-bit ELF file", "P: cannot run this program, which is for another processor (x); "),
        ("cannot connect to daemon at tcp:5037: Connection refused", "P: adb's server does not start (x); "),
        ("out of luck", "P: x failed: out of luck; run it again, and report it with --debug"),
        ("", "P: x failed: adb said nothing; "),
    ],
)
def test_complaints_of_adb_become_one_line(said, line):
    error = failure("P", "x", said)
    assert str(error).startswith(line)
    assert error.exit_code == 4


def test_a_runner_for_another_processor():
    runner = PhoneRunner("r", {}, ("./r",), "x86_64")
    with pytest.raises(MissingTool, match="P: runs arm64-v8a, armeabi-v7a, the runner is for x86_64; "):
        check_abi("P", runner, found().phone)
    check_abi("P", runner, found(properties="").phone)  # who tells nothing may try


def test_a_folder_is_named_by_what_it_holds(tmp_path):
    def folder(name: str, sha256: str) -> str:
        return folder_for({tmp_path / "x": FileDigest(name, 1, sha256)}).path

    assert folder("a", "1").startswith("/data/local/tmp/mobile-export/")
    assert len({folder("a", "1"), folder("a", "2"), folder("b", "1")}) == 3
    assert folder("a", "1") == folder("a", "1")


# --- logits --------------------------------------------------------------------------------------------------------------


def test_logits_agree_within_the_limit_and_only_there():
    expected = Logits([3], 3, 2, 0.0, [1.0, -10.0, 5.0])
    same = agreement(expected, expected)
    assert (same.difference, same.agrees, same.same_argmax) == (0, True, True)
    near = agreement(Logits([3], 3, 0, 0.0, [3.0, -10.0, 5.0]), expected)
    assert (near.difference, near.agrees, near.same_argmax) == (pytest.approx(0.2), True, False)
    assert not agreement(Logits([3], 3, 2, 0.0, [3.1, -10.0, 5.0]), expected).agrees
    assert not agreement(Logits([3], 4, 2, 0.0, [1.0, -10.0, 5.0]), expected).agrees  # another vocabulary
    assert agreement(Logits([3], 3, 2, 0.0, [1.0]), expected).agrees  # a runner that tells the first alone


# --- the client ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """A machine without adb."""
    for name in ("ADB", "ANDROID_HOME", "ANDROID_SDK_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setattr("mobile_export.measure.adb.client._carried", list)
    return tmp_path


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_where_adb_is_looked_for_and_in_which_order(nowhere, monkeypatch):
    with pytest.raises(MissingTool, match=r"adb: is not installed; pip install 'mobile-export\[adb\]'"):
        find_adb()
    carried, on_path, sdk, named, given = (
        program(nowhere / name) for name in ("c/adb", "p/adb", "sdk/platform-tools/adb", "n/adb", "g/adb")
    )
    monkeypatch.setattr("mobile_export.measure.adb.client._carried", lambda: [str(carried)])
    assert find_adb() == carried
    monkeypatch.setenv("PATH", str(on_path.parent), prepend=os.pathsep)
    assert find_adb() == on_path
    monkeypatch.setenv("ANDROID_HOME", str(nowhere / "sdk"))
    assert find_adb() == sdk
    monkeypatch.setenv("ADB", str(named))
    assert find_adb() == named
    assert find_adb(str(given)) == given
    with pytest.raises(UsageError, match="is no program; name the adb"):
        find_adb(str(nowhere / "none"))
    monkeypatch.setenv("ADB", str(nowhere / "none"))
    with pytest.raises(MissingTool, match=r"\$ADB .*none: is no program; "):
        find_adb()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--keep"], "--keep: is for phones; add --adb"),
        (["--download"], "--download: is for phones; add --adb"),
        (["--adb-path", "adb"], "--adb-path: is for phones; "),
        (["--no-fixed-clocks"], "--no-fixed-clocks: is for phones; "),
        (["--runner", "bundle"], "--runner bundle: is for phones; add --adb, or write cpp"),
        (["--cores", "big"], "--cores big: which cores are big is known of phones alone; "),
    ],
)
def test_options_that_only_phones_have(fails, options, line):
    from exported import artifact, checkpoint

    code, said = fails("profile", artifact(checkpoint()), *options, "--prompt-tokens", "8", "--new-tokens", "8")
    assert code == 2
    assert said.startswith(line)


def test_without_adb_on_the_machine(fails, nowhere):
    from exported import artifact, checkpoint

    code, said = fails("profile", artifact(checkpoint()), "--prompt-tokens", "8", "--new-tokens", "8", "--adb")
    assert (code, said) == (4, "adb: is not installed; pip install 'mobile-export[adb]', or name it with --adb-path")


def test_a_program_that_is_no_adb(fails, nowhere):
    from exported import artifact, checkpoint

    broken = program(nowhere / "adb")
    broken.write_bytes(b"\x7fELF nonsense")
    arguments = ("profile", artifact(checkpoint()), "--prompt-tokens", "8", "--new-tokens", "8", "--adb", "--adb-path", broken)
    assert fails(*arguments) == (4, f"{broken}: does not start: Exec format error; install another adb")
    broken.write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    code, said = fails(*arguments, "--timeout", "0.3")
    assert (code, said.split(";")[0]) == (4, f"{broken}: no answer within 0.3 s (start-server)")
