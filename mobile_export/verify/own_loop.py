"""Our own loop over a runtime, where no stock runner can be run here: ONNX models with a running state, Core ML packages."""

from __future__ import annotations

from pathlib import Path

import torch

from mobile_export.manifest import Manifest
from mobile_export.verify.parity import Runtime
from mobile_export.verify.prompt import Generated, begin, prompt_text, read_tokenizer, room_after


def generate_text(
    runtime: Runtime,
    folder: Path,
    manifest: Manifest,
    prompt: str,
    max_new_tokens: int,
    temperature: float,
    *,
    chat: bool = False,
) -> Generated:
    """Continue a prompt from the files of an artifact folder.

    Args:
        runtime: with the folder's artifact loaded.
        chat: put the prompt through the folder's chat template first.
    Raises:
        InputError: no tokenizer, or the runtime refuses model or prompt.
        UsageError: an empty prompt, or chat without a template.
    """
    text = prompt_text(folder, prompt, chat=chat)
    tokenizer = read_tokenizer(folder)
    tokens = begin(tokenizer.encode(text).ids, manifest, chat=chat)
    count = min(max_new_tokens, room_after(tokens, manifest))
    new = continue_tokens(runtime, tokens, count, manifest.eos_ids, temperature)
    at_eos = bool(new) and new[-1] in manifest.eos_ids
    said = tokenizer.decode(tokens + new[: len(new) - at_eos])
    new_text = said.removeprefix(tokenizer.decode(tokens))
    return Generated(prompt + new_text, new_text, len(tokens), len(new), at_eos)


def continue_tokens(runtime: Runtime, tokens: list[int], count: int, eos_ids: list[int], temperature: float = 0.0) -> list[int]:
    """Up to `count` new tokens, an end-of-sequence token included; greedy where the temperature is 0, else seeded."""
    generator = torch.Generator().manual_seed(0)
    new: list[int] = []
    logits = runtime.step(tokens, 0)
    while len(new) < count:
        if temperature > 0:
            chosen = torch.multinomial((logits / temperature).softmax(dim=-1), 1, generator=generator)
        else:
            chosen = logits.argmax()
        new.append(int(chosen))
        if new[-1] in eos_ids or len(new) == count:
            break
        logits = runtime.step(new[-1:], len(tokens) + len(new) - 1)
    return new
