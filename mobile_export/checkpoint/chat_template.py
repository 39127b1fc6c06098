"""A checkpoint's chat template: rendered, and told in a few plain strings where it is no more than those."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mobile_export.checkpoint.tokenizer import chat_template_in, tokenizer_settings
from mobile_export.checkpoint.vocab_and_merges import token_text
from mobile_export.manifest import Chat

SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
FILES = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
SYSTEM, TURNS = "Salz", ("Mehl", "Hefe", "Zucker")  # words no template has of its own
# What a template that looks into texts, or counts them, would render otherwise.
CHECKED = (
    ("Where is the sea?",),
    ('1. naïve "quotes" & <tags>\n\n{{ braces }}', "It's: 'so'\n\t- and so", "好吗? 🙂"),
    ("a", "b", "a", "b", "a"),
    ("What does [INST] mean?", "Nothing.", "And </s>, <|im_end|>?", "Nothing.", "why", "none", "x"),
)
CHECKED_SYSTEM = "You are brief.\nUse 'no' \"words\", über & über."


class Unrenderable(Exception):
    """A template refused some messages, or is broken; str() is what it said."""


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template and the texts of the special tokens it may name."""

    source: str
    special: Mapping[str, str]

    def render(self, turns: Sequence[str], system: str | None = None) -> str:
        """The prompt for texts of the user and the assistant in turn, as transformers renders it.

        The date is not told to it: a template that would give one gives what it gives without.

        Raises:
            Unrenderable: the template refuses these messages, or fails.
        """
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(message: str) -> None:
            raise jinja2.TemplateError(message)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = refuse
        messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        try:
            return environment.from_string(self.source).render(
                messages=messages, add_generation_prompt=True, tools=None, documents=None, **self.special
            )
        except Exception as error:  # a program of somebody else's: it may raise anything  # noqa: BLE001
            raise Unrenderable(str(error) or type(error).__name__) from None


def read_chat_template(folder: Path) -> ChatTemplate | None:
    """The chat template among the tokenizer's files in a folder; None where they have none.

    Raises:
        InputError: a file is no JSON object.
    """
    files = {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}
    settings = tokenizer_settings(files)
    source = chat_template_in(files, settings)
    return None if source is None else ChatTemplate(source, {name: token_text(settings.get(name)) or "" for name in SPECIAL})


def as_strings(template: ChatTemplate) -> Chat | None:
    """The template as plain strings, where those render all of CHECKED as it does; None where it does more."""
    try:
        plain = _plain(template)
    except Unrenderable:
        return None
    if plain is None or not _renders_alike(template, plain, None):
        return None
    try:
        around = _split(template.render(TURNS[:1], SYSTEM), SYSTEM, TURNS[0])
    except Unrenderable:
        return plain
    if around is None or around[-1] != plain.answer:
        return plain
    with_system = Chat(plain.opening, (around[0], around[1]), plain.assistant, plain.answer)
    return with_system if _renders_alike(template, with_system, CHECKED_SYSTEM) else plain


def _plain(template: ChatTemplate) -> Chat | None:
    """The strings that render two turns."""
    parts = _split(template.render(TURNS), *TURNS)
    return None if parts is None else Chat(parts[0], None, (parts[1], parts[2]), parts[3])


def _split(rendered: str, *texts: str) -> list[str] | None:
    """What lies around texts; None where they are not all there once and in this order."""
    if any(rendered.count(text) != 1 for text in texts):
        return None
    parts = []
    for text in texts:
        before, found, rendered = rendered.partition(text)
        if not found:
            return None
        parts.append(before)
    return [*parts, rendered]


def _renders_alike(template: ChatTemplate, chat: Chat, system: str | None) -> bool:
    try:
        return all(template.render(turns, system) == chat.prompt(turns, system) for turns in CHECKED)
    except Unrenderable:
        return False
