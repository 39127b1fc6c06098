"""ExecuTorch's own TextLLMRunner on an artifact folder: proof that a stock app can run it."""

from __future__ import annotations

import json
from pathlib import Path

from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  the llama operators
from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner
from executorch.kernels import quantized  # noqa: F401  the quantized embedding

from mobile_export.errors import InputError
from mobile_export.manifest import Manifest
from mobile_export.verify.prompt import Generated, find_tokenizer, prompt_text


def generate_text(
    folder: Path, manifest: Manifest, prompt: str, max_new_tokens: int, temperature: float, *, chat: bool = False
) -> Generated:
    """Let the stock runner continue a prompt from the files of an artifact folder.

    Args:
        chat: put the prompt through the folder's chat template first.
    Raises:
        InputError: no tokenizer, or the runner refuses program, tokenizer or prompt.
        UsageError: an empty prompt, or chat without a template.
    """
    tokenizer = find_tokenizer(folder, ("tokenizer.json", "tokenizer.model"))
    text = prompt_text(folder, prompt, chat=chat)
    pieces: list[str] = []
    counts: list[int] = []
    config = GenerationConfig(
        echo=False,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        num_bos=0 if chat else int(manifest.adds_bos),  # a chat template writes its own
    )
    try:
        runner = TextLLMRunner(str(folder / manifest.file), str(tokenizer))
        runner.generate(text, config, pieces.append, lambda stats: counts.append(stats.num_prompt_tokens))
    except RuntimeError as error:
        what = f"ExecuTorch's runner refuses: {str(error).splitlines()[0]}"
        raise InputError(str(folder), what, f"the prompt must leave room in a context of {manifest.max_context}") from None
    prompt_tokens, new_tokens = counts[-1], len(pieces)
    at_eos = new_tokens < max_new_tokens and prompt_tokens + new_tokens < manifest.max_context
    if pieces and pieces[-1] in _eos_texts(folder, manifest.eos_ids):
        pieces.pop()
    new_text = "".join(pieces)
    return Generated(prompt + new_text, new_text, prompt_tokens, new_tokens, at_eos)


def _eos_texts(folder: Path, eos_ids: list[int]) -> set[str]:
    """How the end-of-sequence tokens are written: the runner hands the last one on as text."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return {"</s>"}
    added = json.loads(path.read_text(encoding="utf-8")).get("added_tokens") or []
    return {token["content"] for token in added if token["id"] in eos_ids}
