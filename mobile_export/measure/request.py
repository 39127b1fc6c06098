"""What is to be measured of an artifact, and what of it contradicts the artifact, wherever it runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mobile_export.errors import UsageError
from mobile_export.manifest import Manifest

Cores = Literal["all", "big"] | tuple[int, ...]


@dataclass(frozen=True)
class Request:
    """What to measure.

    threads: numbers to try; none given: 1, 2, 4 and so on up to the cores there are.
    weights: "plain"; "cache", equal weights packed once by XNNPACK's weight cache; "file", packed weights mapped from a file.
    runner: "auto"; here "cpp" or "python", on a phone "bundle" or "app"; or an executable that takes `Job.arguments`.
    download: the runner for phones may fetch what it is built from.
    cores: to stay on. rest_s: pause before each run, so that what is hot may cool. timeout_s: of each process.
    """

    threads: tuple[int, ...] = ()
    prompt_tokens: int = 128
    new_tokens: int = 64
    runs: int = 5
    weights: str = "plain"
    runner: str = "auto"
    download: bool = False
    cores: Cores = "all"
    cold: bool = True
    operators: bool = False
    curve: bool = False
    rest_s: float = 0
    timeout_s: float = 600


def check_request(request: Request, manifest: Manifest, artifact: Path) -> None:
    """Hold a request against an artifact.

    Raises:
        UsageError: it asks for what this artifact does not have.
    """
    if manifest.package:
        what = "Core ML runs on Apple's systems alone, and our interpreter's times say nothing of them"
        raise UsageError(str(artifact), what, "`mobile-export check` predicts what it keeps in memory")
    tokens = request.prompt_tokens + request.new_tokens
    if tokens > manifest.max_context:
        what = f"{tokens} tokens, the artifact's context is {manifest.max_context}"
        raise UsageError("--prompt-tokens, --new-tokens", what, "ask for fewer")
    if manifest.pte is None and request.weights != "plain":
        raise UsageError(f"--weights {request.weights}", "is an option of XNNPACK, for .pte files", "leave it out")
    if manifest.pte is None and request.operators:
        raise UsageError("--ops", "reads ExecuTorch's trace, this is no .pte", "leave it out")
