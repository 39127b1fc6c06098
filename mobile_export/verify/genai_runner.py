"""onnxruntime-genai on an artifact folder: proof that a stock app can run it."""

from __future__ import annotations

from pathlib import Path

import onnxruntime_genai

from mobile_export.errors import InputError
from mobile_export.manifest import Manifest
from mobile_export.verify.onnx_runtime import check_version
from mobile_export.verify.prompt import Generated, begin, find_tokenizer, prompt_text, room_after


def generate_text(
    folder: Path, manifest: Manifest, prompt: str, max_new_tokens: int, temperature: float, *, chat: bool = False
) -> Generated:
    """Let the stock runtime continue a prompt from the files of an artifact folder.

    Args:
        chat: put the prompt through the folder's chat template first.
    Raises:
        MissingTool: onnxruntime is too old.
        InputError: no tokenizer, or the runtime refuses model, tokenizer or prompt.
        UsageError: an empty prompt, or chat without a template.
    """
    assert manifest.onnx, "a manifest has its format's facts"
    text = prompt_text(folder, prompt, chat=chat)
    check_version(folder / manifest.file, manifest.onnx.minimum_onnxruntime)
    find_tokenizer(folder, ("tokenizer.json",))
    try:
        model = onnxruntime_genai.Model(str(folder))
        tokenizer = onnxruntime_genai.Tokenizer(model)
        tokens = begin(tokenizer.encode(text).tolist(), manifest, chat=chat)
        new, at_eos = _generate(model, tokens, min(max_new_tokens, room_after(tokens, manifest)), temperature)
        new_text = tokenizer.decode(tokens + new).removeprefix(tokenizer.decode(tokens))
    except RuntimeError as error:
        what = f"onnxruntime-genai refuses: {str(error).strip().splitlines()[0]}"
        raise InputError(str(folder), what, "export it again, or try a newer onnxruntime-genai") from None
    return Generated(prompt + new_text, new_text, len(tokens), len(new) + at_eos, at_eos)


def _generate(model: onnxruntime_genai.Model, tokens: list[int], count: int, temperature: float) -> tuple[list[int], bool]:
    """Up to `count` new tokens, and whether an end-of-sequence token, which is not among them, ended them."""
    parameters = onnxruntime_genai.GeneratorParams(model)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    parameters.set_search_options(max_length=len(tokens) + count, **sampling)
    generator = onnxruntime_genai.Generator(model, parameters)
    generator.append_tokens(tokens)
    while not generator.is_done():
        generator.generate_next_token()
    new = [int(token) for token in generator.get_sequence(0)[len(tokens) :]]
    return new, len(new) < count  # the runtime drops the token it stopped at
