"""What goes into a stock runner and what comes out, whatever the format: prompts, chat templates, generated text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from mobile_export.checkpoint.chat_template import Unrenderable, read_chat_template
from mobile_export.errors import InputError, UsageError
from mobile_export.manifest import Manifest


@dataclass(frozen=True)
class Generated:
    """What a runner said. text: prompt and continuation; new_text: the continuation alone.

    new_tokens counts the end-of-sequence token, too, where it stopped at one.
    """

    text: str
    new_text: str
    prompt_tokens: int
    new_tokens: int
    stopped_at_eos: bool


def prompt_text(folder: Path, prompt: str, *, chat: bool) -> str:
    """The text a runner is given: the prompt, or the prompt in the folder's chat template.

    Raises:
        UsageError: an empty prompt, or chat without a template.
    """
    if not prompt:
        raise UsageError("PROMPT", "is empty", "write at least one character")
    return chat_prompt(folder, prompt) if chat else prompt


def find_tokenizer(folder: Path, names: Sequence[str]) -> Path:
    """The first of the named tokenizer files that lies in a folder.

    Raises:
        InputError: none does.
    """
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        then = "copy the checkpoint's tokenizer into it, or export a checkpoint that has one"
        raise InputError(str(folder), f"holds no {' or '.join(names)}", then)
    return found


def read_tokenizer(folder: Path) -> Tokenizer:
    """The folder's tokenizer.json.

    Raises:
        InputError: there is none, or it is damaged.
    """
    path = find_tokenizer(folder, ("tokenizer.json",))
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - the library raises no narrower type
        raise InputError(str(path), f"cannot be read: {error}", "export it again") from None


def room_after(tokens: list[int], manifest: Manifest) -> int:
    """How many tokens may follow a prompt.

    Raises:
        InputError: none.
    """
    room = manifest.max_context - len(tokens)
    if room < 1:
        raise InputError("PROMPT", f"is {len(tokens)} tokens long", f"leave room in a context of {manifest.max_context}")
    return room


def begin(tokens: list[int], manifest: Manifest, *, chat: bool) -> list[int]:
    """Tokens with BOS in front where the checkpoint wants it, once; a chat template writes its own."""
    bos = manifest.bos_id
    if bos is None:
        return tokens
    if chat:
        return tokens[1:] if tokens[:2] == [bos, bos] else tokens
    return [bos, *tokens] if manifest.adds_bos and tokens[:1] != [bos] else tokens


def chat_prompt(folder: Path, message: str) -> str:
    """One user message through the folder's chat template, ready for the answer.

    Raises:
        UsageError: no template in the folder, or one that cannot be rendered.
        InputError: a tokenizer file is damaged.
    """
    template = read_chat_template(folder)
    if template is None:
        raise UsageError("--chat", f"{folder} holds no chat template", "leave --chat out: this is no chat model")
    try:
        return template.render([message])
    except Unrenderable as error:
        raise UsageError("--chat", f"the chat template fails: {error}", "leave --chat out and write the prompt whole") from None
