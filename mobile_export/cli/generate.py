"""`mobile-export generate`: let the format's own stock runner speak from the artifact folder alone."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mobile_export.cli.options import JsonOption
from mobile_export.cli.say import done, say, without_noise, without_stdout
from mobile_export.manifest import Manifest, folder_of, read_manifest

if TYPE_CHECKING:
    from mobile_export.verify.prompt import Generated


def generate(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="An artifact folder, or the file in it.")],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="Text to go on from.")],
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Most tokens to add.")] = 48,
    temperature: Annotated[float, typer.Option("--temperature", min=0, max=1, help="0 is greedy.")] = 0.0,
    chat: Annotated[bool, typer.Option("--chat", help="Put PROMPT through the checkpoint's chat template.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Generate text with the stock runner (ExecuTorch's TextLLMRunner, or onnxruntime-genai), from the folder alone.

    ONNX models that keep a running state have no stock runner, and Core ML's runs on Apple's systems alone: for them plain
    onnxruntime and our interpreter of the package are looped over; the interpreter takes its time.

    Example: mobile-export generate out "The capital of France is"
    """
    manifest = read_manifest(artifact)
    folder = folder_of(artifact)
    say("loading")
    with without_noise(), without_stdout():
        found = _runner(folder, manifest)(folder, manifest, prompt, max_new_tokens, temperature, chat=chat)
    done()
    said = found.new_text.strip() if chat else found.text
    typer.echo(json.dumps(dataclasses.asdict(found)) if as_json else said)
    return 0


def _runner(folder: Path, manifest: Manifest) -> Callable[..., Generated]:
    """The stock runner of an artifact, or our own loop over its runtime where it has none here."""
    if manifest.pte and not manifest.package:
        from mobile_export.verify.executorch_runner import generate_text

        return generate_text
    if manifest.onnx and manifest.onnx.runs_in_genai:
        from mobile_export.verify.genai_runner import generate_text

        return generate_text
    from mobile_export.cli.verify import runtime_of
    from mobile_export.verify.own_loop import generate_text as continue_text

    return functools.partial(continue_text, runtime_of(folder / manifest.file, manifest))
