"""Measures an artifact on Android phones: one, several of them, or all that adb sees, each in a thread of its own."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mobile_export.errors import InputError, MobileExportError
from mobile_export.manifest import FileDigest, Manifest, check_files, folder_of, read_manifest
from mobile_export.measure.adb.app import RUNS, STOP, check_installed, run_in_app
from mobile_export.measure.adb.chosen import ALL, PATIENCE_S, chosen
from mobile_export.measure.adb.client import find_adb
from mobile_export.measure.adb.conditions import affinity_on, check_heat, fix_clocks, threads_on, watts
from mobile_export.measure.adb.folder import TRACE, folder_for, on_phone
from mobile_export.measure.adb.preflight import preflight
from mobile_export.measure.adb.runner import PhoneRunner, check_abi, phone_runner
from mobile_export.measure.adb.runs import run_once
from mobile_export.measure.adb.transport import Adb, Device
from mobile_export.measure.host import logits_here
from mobile_export.measure.measurement import Job, Logits, Measurement
from mobile_export.measure.phone import Agreement, Conditions, Phone
from mobile_export.measure.profile import Machine, Profile
from mobile_export.measure.request import Request, check_request
from mobile_export.measure.series import Place, logits_job, profile_at

# Two correct programs differ by up to 16 % of the largest logit where an int8 activation falls on an edge (decision 0002).
LIMIT = 0.2


@dataclass(frozen=True)
class Phones:
    """Which phones, and how they are treated.

    serials: None: the only one there is, or $ANDROID_SERIAL; "all"; or serial numbers. adb: the client; None: looked for.
    fixed_clocks: ask for clocks the phone can hold. keep: leave the pushed files there.
    """

    serials: str | tuple[str, ...] | None = None
    adb: str | None = None
    fixed_clocks: bool = True
    keep: bool = False

    @property
    def several(self) -> bool:
        """Whether more than one may be measured, and what is told is of each."""
        return self.serials == ALL or (self.serials is not None and len(self.serials) > 1)


@dataclass(frozen=True)
class _Load:
    """What every phone gets and is held against."""

    artifact: Path
    manifest: Manifest
    runner: PhoneRunner
    files: dict[Path, FileDigest]
    expected: Future[Logits]


def profile_on_phones(
    artifact: Path, request: Request, phones: Phones, say: Callable[[str], None], warn: Callable[[str], None]
) -> tuple[list[Profile], list[MobileExportError]]:
    """Measure an artifact on phones.

    Returns:
        A profile of each phone that could be measured, and why others could not.
    Raises:
        UsageError: the request contradicts the artifact or itself.
        InputError: no artifact, or its file is not the manifest's.
        MissingTool: no adb, no phone, several where one was asked for, or the runner cannot be had.
    """
    manifest = read_manifest(artifact)
    check_request(request, manifest, artifact)
    adb = Adb(find_adb(phones.adb), min(PATIENCE_S, request.timeout_s))
    folder = folder_of(artifact)
    check_files(folder, manifest)
    within = next((file.name for file in manifest.files if Path(file.name).name != file.name), None)
    if within:
        raise InputError(str(artifact), f"{within}: lies in another folder than the manifest", "export the artifact again")
    say("looking for phones")
    adb.start()
    serials = chosen(adb, phones.serials, warn)
    runner = phone_runner(request, manifest, say, warn)
    files = {**runner.files, **{(folder / file.name).resolve(): file for file in manifest.files}}
    with ThreadPoolExecutor(len(serials) + 1) as pool:
        expected = pool.submit(logits_here, artifact, manifest, warn, timeout_s=request.timeout_s)
        load = _Load(artifact, manifest, runner, files, expected)

        def started(serial: str) -> Future[Profile]:
            def tell(line: str) -> None:
                say(line if len(serials) == 1 else f"{serial}: {line}")

            return pool.submit(_profile_on_phone, Device(adb, serial), load, request, phones, tell, warn)

        running = [started(serial) for serial in serials]
        profiles, errors = [], []
        try:
            for each in running:
                try:
                    profiles.append(each.result())
                except MobileExportError as error:
                    errors.append(error)
        except BaseException:  # Ctrl-C, or a fault of ours: every thread cleans up its phone and ends
            adb.stop()
            raise
    return profiles, errors


def _profile_on_phone(
    device: Device, load: _Load, request: Request, phones: Phones, say: Callable[[str], None], warn: Callable[[str], None]
) -> Profile:
    say("asking what phone it is")
    found = preflight(device)
    phone = found.phone
    device.name = f"{device.serial} ({phone.model})" if phone.model else device.serial
    if phone.emulated:
        warn(f"{device.name}: is an emulator, whose times say nothing of a phone")
    in_app = not load.runner.command
    if in_app:
        check_installed(device)
    check_abi(device.name, load.runner, phone)
    check_heat(device.name, found.thermal)
    affinity = affinity_on(phone, request.cores)
    folder = folder_for(load.files)
    sample = found.battery.readable and found.battery.powered is False
    thermal, draw = [found.thermal], [""]

    def measure(job: Job) -> Measurement:
        check_heat(device.name, thermal[-1])
        device.adb.rest(request.rest_s)
        if in_app:
            run = run_in_app(device, folder.path, job, timeout_s=request.timeout_s, sample=sample)
        else:
            run = run_once(device, folder.path, load.runner.command, job, timeout_s=request.timeout_s, sample=sample)
        thermal.append(run.thermal)
        draw.append(run.draw)
        return run.measured

    with (
        tempfile.TemporaryDirectory() as room,
        on_phone(device, folder, free_mib=phone.free_mib, keep=phones.keep, say=say, warn=warn) as undo,
    ):

        def fetch(path: Path) -> Path:
            device.pull(str(path), Path(room) / path.name)
            return Path(room) / path.name

        if in_app:
            undo.append(f"{STOP};rm -rf {RUNS}")
        fixed = phones.fixed_clocks and fix_clocks(device, phone, undo)
        there = Path(folder.path)
        say("comparing logits with this machine's")
        agreement = _agreement(device, measure(logits_job(there / load.manifest.file, load.manifest)).logits, load, warn)
        draw.clear()
        place = Place(
            machine=_machine(phone),
            measure=measure,
            affinity=affinity,
            threads=threads_on(phone, affinity),
            files=tuple(there / file.name for file in load.manifest.files),
            packed_weights=there / "packed.xnnpack",
            trace=there / TRACE,
            fetch=fetch,
        )
        profile = profile_at(place, load.artifact, load.manifest, request, say)
    conditions = Conditions(
        cores=list(affinity),
        fixed_clocks=fixed,
        rest_s=request.rest_s,
        thermal_before=found.thermal,
        thermal_after=thermal[-1],
        battery_percent=found.battery.percent,
        battery_celsius=found.battery.celsius,
        powered=found.battery.powered,
        watts=watts("\n".join(draw)) if sample else None,
    )
    return dataclasses.replace(profile, phone=phone, conditions=conditions, agreement=agreement)


def _agreement(device: Device, logits: Logits | None, load: _Load, warn: Callable[[str], None]) -> Agreement | None:
    """The phone's logits beside this machine's; whoever differs is warned of, not refused: the times are still true."""
    try:
        expected = load.expected.result()
    except MobileExportError as error:
        warn(f"{device.name}: logits are not compared with this machine's: {error}")
        return None
    if logits is None:
        warn(f"{device.name}: the runner tells no logits, so nobody knows whether it computes the model")
        return None
    found = agreement(logits, expected)
    if not found.agrees:
        warn(
            f"{device.name}: logits differ from this machine's by {100 * found.difference:.0f} % of the largest, "
            f"{100 * found.limit:.0f} % are explained by rounding: a kernel there may be wrong"
        )
    return found


def agreement(logits: Logits, expected: Logits) -> Agreement:
    """How far logits are from others of the same tokens. A runner may tell fewer of them.

    >>> agreement(Logits([3], 3, 1, 5.0, [1.0, 4.0]), Logits([3], 3, 1, 5.0, [1.0, 5.0, -1.0])).difference
    0.2
    """
    count = min(len(logits.values), len(expected.values))
    if count == 0 or logits.count != expected.count:
        return Agreement(float(max(logits.count, expected.count)), LIMIT, False)
    largest = max(abs(value) for value in expected.values)
    apart = max(abs(a - b) for a, b in zip(logits.values[:count], expected.values[:count], strict=True))
    return Agreement(apart / largest if largest else apart, LIMIT, logits.argmax == expected.argmax)


def _machine(phone: Phone) -> Machine:
    system = f"Android {phone.android or '(version unknown)'}, {phone.kernel or 'kernel unknown'}"
    return Machine(system, f"{phone.name}, {phone.soc or 'chip unknown'}", len(phone.cores), phone.dram_mib)
