"""Measures an artifact on this machine."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from mobile_export.cache import cache_folder
from mobile_export.errors import MissingTool, UsageError
from mobile_export.manifest import FileDigest, Manifest, check_files, folder_of, read_manifest
from mobile_export.measure import build
from mobile_export.measure.launch import launch
from mobile_export.measure.measurement import Job, Logits, Measurement
from mobile_export.measure.profile import Machine, Profile
from mobile_export.measure.request import Request, check_request
from mobile_export.measure.series import Place, logits_job, profile_at


def profile_artifact(artifact: Path, request: Request, say: Callable[[str], None], warn: Callable[[str], None]) -> Profile:
    """Measure an artifact.

    Args:
        artifact: its folder, or the file in it.
    Raises:
        UsageError: the request contradicts the artifact or itself.
        InputError: no artifact, its file is not the manifest's, or the runtime refuses it.
        MissingTool: the runner asked for cannot be had, crashed, hangs or prints rubbish.
    """
    manifest = read_manifest(artifact)
    folder = folder_of(artifact).resolve()
    check_request(request, manifest, artifact)
    affinity = _affinity(request)
    if request.runner == "python" and (request.operators or request.weights != "plain"):
        option = "--ops" if request.operators else f"--weights {request.weights}"
        raise UsageError(option, "ExecuTorch's Python runtime has no such option", "leave out --runner python")
    check_files(folder, manifest)  # reading them brings them into the page cache
    command = _runner(request, manifest, say, warn)
    packed = _packed_weights(manifest.files[0])
    if request.weights == "file":
        packed.parent.mkdir(parents=True, exist_ok=True)

    def measure(job: Job) -> Measurement:
        time.sleep(request.rest_s)
        return launch(command, job, timeout_s=request.timeout_s)

    with tempfile.TemporaryDirectory() as room:
        place = Place(
            machine=this_machine(),
            measure=measure,
            affinity=affinity,
            threads=len(affinity or os.sched_getaffinity(0)),
            files=tuple(folder / file.name for file in manifest.files),
            packed_weights=packed,
            trace=Path(room) / "trace.etdp",
            fetch=lambda path: path,
        )
        return profile_at(place, artifact, manifest, request, say)


def logits_here(artifact: Path, manifest: Manifest, warn: Callable[[str], None], *, timeout_s: float) -> Logits:
    """All logits of the fixed tokens on this machine: what a phone must give, too.

    Raises:
        MobileExportError: as `profile_artifact`.
    """
    command = _runner(Request(), manifest, lambda _: None, warn)
    job = logits_job(folder_of(artifact).resolve() / manifest.file, manifest)
    logits = launch(command, job, timeout_s=timeout_s).logits
    assert logits is not None, "our runners tell the logits they are asked for"
    return logits


def this_machine() -> Machine:
    """What profile.json says of where it was measured."""
    import psutil

    lines = build.cpu().splitlines()
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    return Machine(system, name or "unknown", len(os.sched_getaffinity(0)), psutil.virtual_memory().total / 2**20)


def _affinity(request: Request) -> tuple[int, ...]:
    if request.cores == "all":
        return ()
    if request.cores == "big":
        raise UsageError("--cores big", "which cores are big is known of phones alone", "name them: --cores 0,1")
    beyond = [core for core in request.cores if core not in os.sched_getaffinity(0)]
    if beyond:
        raise UsageError(f"--cores {beyond[0]}", "no such core here", f"name some of {sorted(os.sched_getaffinity(0))}")
    return request.cores


def _runner(request: Request, manifest: Manifest, say: Callable[[str], None], warn: Callable[[str], None]) -> list[str]:
    """The command of the runner."""
    if request.runner not in ("auto", "cpp", "python"):
        return [request.runner]
    if manifest.onnx:
        return [sys.executable, "-m", "mobile_export.measure.onnx_runner"]
    if request.runner != "python":
        say("building the runner, once")
        try:
            return [str(build.build_runner())]
        except MissingTool as error:
            if request.runner == "cpp" or request.operators or request.weights != "plain":
                raise
            warn(f"{error.where}: {error.what}; measuring in ExecuTorch's Python runtime, whose attention is slower")
    return [sys.executable, "-m", "mobile_export.measure.pte_runner"]


def _packed_weights(model: FileDigest) -> Path:
    """Where packed weights are kept: they belong to one model, one runtime and one CPU."""
    belongs = f"{model.sha256}\0{importlib.metadata.version('executorch')}\0{build.cpu()}"
    folder = cache_folder() / "packed"
    return folder / f"{hashlib.sha256(belongs.encode()).hexdigest()[:16]}.xnnpack"
