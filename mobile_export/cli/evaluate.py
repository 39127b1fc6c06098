"""`mobile-export eval`: what quantization cost, measured on the artifact itself."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mobile_export.cli.options import JsonOption, percentage
from mobile_export.cli.say import done, say, without_noise
from mobile_export.errors import EXIT_NO, EXIT_YES, InputError, UsageError
from mobile_export.manifest import Manifest, folder_of, read_manifest

if TYPE_CHECKING:
    import torch

    from mobile_export.quantize.weights import ModelWeights
    from mobile_export.verify.quality import Quality
    from mobile_export.verify.zero_shot import ZeroShot

WINDOW = 512  # tokens read at a stretch, unless the context is shorter
CHUNK = 128  # tokens in one call, where a model gives the logits of all


def evaluate(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="An artifact folder, or the file in it.")],
    text: Annotated[
        Path | None,
        typer.Option("--text", help="UTF-8 text, or JSON lines with a text each under the key 'text'.", show_default=False),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            "--tasks",
            metavar="NAME,...",
            help="lm-eval's tasks, a task's .yaml file, or paper: the eight of MobileLLM's.",
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        str | None, typer.Option("--against", metavar="CHECKPOINT", help="The float checkpoint to compare with.")
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", min=2, help="Most tokens of the text to use.")] = 2048,
    max_perplexity_increase: Annotated[
        str | None, typer.Option("--max-perplexity-increase", help="Exit code 1 above it, e.g. 3%.", show_default=False)
    ] = None,
    max_kl: Annotated[
        float | None, typer.Option("--max-kl", min=0, help="Exit code 1 above it, in nats.", show_default=False)
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Most questions of a task.", show_default=False)] = None,
    max_accuracy_drop: Annotated[
        float | None,
        typer.Option("--max-accuracy-drop", min=0, help="Exit code 1 above it, in points, e.g. 0.5.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Measure ARTIFACT in its runtime, and against CHECKPOINT what was lost.

    Over a text: perplexity, its increase, KL divergence and agreement. On tasks: accuracy (needs the extra `eval`; data
    sets are taken from this machine). A Core ML package is run by our interpreter, which is slow: begin with few --tokens,
    a small --limit.

    Example: mobile-export eval out --text notes.txt --against smollm2-135m --max-perplexity-increase 3%
    """
    option = "--max-perplexity-increase"
    increase = None if max_perplexity_increase is None else percentage(option, max_perplexity_increase)
    gates = {"--max-perplexity-increase": max_perplexity_increase, "--max-kl": max_kl}
    of_tasks = {"--limit": limit, "--max-accuracy-drop": max_accuracy_drop}
    _check_question(text, tasks, gates, of_tasks)
    unmeasured = [option for option, value in {**gates, **of_tasks}.items() if value is not None and option != "--limit"]
    if against is None and unmeasured:
        raise UsageError(", ".join(unmeasured), "compare with a checkpoint", "add --against CHECKPOINT")
    manifest, folder = read_manifest(artifact), folder_of(artifact)
    if tasks is not None:
        from mobile_export.cli import zero_shot

        with without_noise():
            scores = zero_shot.measure_tasks(folder, manifest, tasks, against, limit)
        broken = zero_shot.lost_more(scores, max_accuracy_drop)
        return _tell(scores, broken, as_json, lambda: zero_shot.page(scores, folder / manifest.file, against, broken))
    assert text is not None, "one of the two was asked for"
    held = _read_text(text)
    with without_noise():
        say("loading")
        found = _measure(folder, manifest, held, against, tokens)
    broken = _broken(found, increase, max_kl)
    return _tell(found, broken, as_json, lambda: _page(found, folder / manifest.file, text, broken))


def _check_question(
    text: Path | None, tasks: str | None, of_text: Mapping[str, object], of_tasks: Mapping[str, object]
) -> None:
    """Refuse what is neither of the two questions, and an option of the other one."""
    if (text is None) == (tasks is None):
        raise UsageError("--text, --tasks", "one of them says what to measure", "give --text FILE or --tasks NAME,...")
    asked, foreign = ("--tasks", of_text) if tasks is not None else ("--text", of_tasks)
    strays = [option for option, value in foreign.items() if value is not None]
    if strays:
        raise UsageError(strays[0], f"does not go with {asked}", "leave it out")


def _tell(found: Quality | ZeroShot, broken: list[str], as_json: bool, page: Callable[[], str]) -> int:
    """Print the figures, and say by the exit code whether every limit holds."""
    done()
    typer.echo(json.dumps({**dataclasses.asdict(found), "passed": not broken}) if as_json else page())
    return EXIT_NO if broken else EXIT_YES


def _measure(folder: Path, manifest: Manifest, text: str, against: str | None, tokens: int) -> Quality:
    from mobile_export.cli.verify import weights_for
    from mobile_export.verify.oracle import float32_oracle
    from mobile_export.verify.prompt import read_tokenizer
    from mobile_export.verify.quality import measure_quality, windows_of

    ids = read_tokenizer(folder).encode(text, add_special_tokens=False).ids[:tokens]
    window = min(WINDOW, manifest.max_context)
    windows = list(windows_of(ids, window, manifest.bos_id if manifest.adds_bos else None))
    if not windows:
        raise InputError("--text", "has no two tokens to predict one from another", "give a longer text")
    reference = None
    if against is not None:
        weights: ModelWeights = weights_for(folder, manifest, against)
        _, reference = float32_oracle(weights, window)
    return measure_quality(windows, _logits(folder, manifest), reference, say)


def _logits(folder: Path, manifest: Manifest) -> Callable[[list[int]], torch.Tensor]:
    """Logits of every position of a window, in the artifact's runtime."""
    import torch

    from mobile_export.cli.verify import runtime_of
    from mobile_export.verify.continuations import gives_all_logits
    from mobile_export.verify.coreml_runtime import CoreMlRuntime
    from mobile_export.verify.onnx_runtime import OnnxRuntime

    runtime = runtime_of(folder / manifest.file, manifest)
    if gives_all_logits(manifest) and isinstance(runtime, OnnxRuntime | CoreMlRuntime):
        chunks = runtime.logits
        return lambda window: torch.cat([chunks(window[at : at + CHUNK], at) for at in range(0, len(window), CHUNK)])
    return lambda window: torch.stack([runtime.step([token], at) for at, token in enumerate(window)])


def _read_text(path: Path) -> str:
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"--text {path}", f"cannot be read: {error.strerror}", "name a text file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"--text {path}", f"is not UTF-8: byte {error.start}", "convert it to UTF-8") from None
    if path.suffix != ".jsonl":
        return content
    texts = []
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            held = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"--text {path}", f"line {number} is not JSON: {error}", "write one object a line") from None
        if not isinstance(held, dict) or not isinstance(held.get("text"), str):
            raise InputError(f"--text {path}", f"line {number} has no text under 'text'", 'write {"text": "..."}')
        texts.append(held["text"])
    return "\n\n".join(texts)


def _broken(found: Quality, limit: float | None, max_kl: float | None) -> list[str]:
    """The limits that do not hold, a phrase each. NaN holds none."""
    broken = []
    if limit is not None and found.perplexity_increase is not None and not found.perplexity_increase <= limit:
        broken.append(f"perplexity increase {100 * found.perplexity_increase:.2f} %, limit {100 * limit:g} %")
    if max_kl is not None and found.kl is not None and not found.kl <= max_kl:
        broken.append(f"KL {found.kl:.4f}, limit {max_kl:g}")
    return broken


def _page(found: Quality, file: Path, text: Path, broken: list[str]) -> str:
    lines = [
        f"{file} on {found.tokens:,} tokens of {text}",
        f"perplexity {found.perplexity:.3f} +- {found.perplexity_error:.3f}",
    ]
    if found.perplexity_increase is not None:
        assert found.perplexity_increase_error is not None
        lines += [
            f"increase   {100 * found.perplexity_increase:+.2f} % +- {100 * found.perplexity_increase_error:.2f} %, "
            f"from {found.reference_perplexity:.3f} in float32",
            f"KL         {found.kl:.4f} +- {found.kl_error:.4f} nats, 99th percentile {found.kl_p99:.3f}",
            f"top-1      {100 * (found.top1 or 0):.1f} % of tokens agree",
        ]
    return "\n".join([*lines, *(f"over limit {phrase}" for phrase in broken)])
