"""`mobile-export generate`: let the format's own stock runner speak from the artifact folder alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from mobile_export.cli.options import JsonOption
from mobile_export.cli.say import done, say, without_noise, without_stdout
from mobile_export.manifest import read_manifest


def generate(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="An artifact folder, or the file in it.")],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="Text to go on from.")],
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Most tokens to add.")] = 48,
    temperature: Annotated[float, typer.Option("--temperature", min=0, max=1, help="0 is greedy.")] = 0.0,
    chat: Annotated[bool, typer.Option("--chat", help="Put PROMPT through the checkpoint's chat template.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Generate text with the stock runner (ExecuTorch's TextLLMRunner, or onnxruntime-genai), from the folder alone.

    Models that keep a state beside keys and values have no stock runner; for them plain onnxruntime is looped over.

    Example: mobile-export generate out "The capital of France is"
    """
    manifest = read_manifest(artifact)
    folder = artifact if artifact.is_dir() else artifact.parent
    say("loading")
    with without_noise(), without_stdout():
        if manifest.onnx and not manifest.onnx.runs_in_genai:
            from mobile_export.verify.onnx_loop import generate_text
        elif manifest.onnx:
            from mobile_export.verify.genai_runner import generate_text
        else:
            from mobile_export.verify.executorch_runner import generate_text

        found = generate_text(folder, manifest, prompt, max_new_tokens, temperature, chat=chat)
    done()
    said = found.new_text.strip() if chat else found.text
    typer.echo(json.dumps(dataclasses.asdict(found)) if as_json else said)
    return 0
