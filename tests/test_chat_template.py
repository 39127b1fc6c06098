"""Chat templates as plain strings: what known models say, whatever is said; and none where a template does more."""

from __future__ import annotations

import datetime
import json
import re

import pytest
from chat_templates import KNOWN, MORE_THAN_STRINGS
from exported import checkpoint, manifest, onnx_artifact
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from mobile_export.checkpoint.chat_template import ChatTemplate, as_strings
from mobile_export.manifest import Chat, read_manifest
from mobile_export.verify.prompt import chat_prompt

SMOL = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
HEADER, EOT = "<|start_header_id|>{}<|end_header_id|>\n\n", "<|eot_id|>"
USER, ASSISTANT, SYSTEM = (HEADER.format(role) for role in ("user", "assistant", "system"))
DATED = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
STRINGS = {
    "smollm2": Chat(
        f"<|im_start|>system\n{SMOL}<|im_end|>\n<|im_start|>user\n",
        ("<|im_start|>system\n", "<|im_end|>\n<|im_start|>user\n"),
        ("<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>\n<|im_start|>user\n"),
        "<|im_end|>\n<|im_start|>assistant\n",
    ),
    "llama2": Chat("<s>[INST] ", ("<s>[INST] <<SYS>>\n", "\n<</SYS>>\n\n"), (" [/INST] ", " </s><s>[INST] "), " [/INST]"),
    "llama3": Chat(
        f"<|begin_of_text|>{USER}",
        (f"<|begin_of_text|>{SYSTEM}", f"{EOT}{USER}"),
        (f"{EOT}{ASSISTANT}", f"{EOT}{USER}"),
        f"{EOT}{ASSISTANT}",
    ),
    "gemma": Chat(
        "<bos><start_of_turn>user\n",
        None,
        ("<end_of_turn>\n<start_of_turn>model\n", "<end_of_turn>\n<start_of_turn>user\n"),
        "<end_of_turn>\n<start_of_turn>model\n",
    ),
    "gemma3": Chat(
        "<bos><start_of_turn>user\n",
        ("<bos><start_of_turn>user\n", "\n\n"),
        ("<end_of_turn>\n<start_of_turn>model\n", "<end_of_turn>\n<start_of_turn>user\n"),
        "<end_of_turn>\n<start_of_turn>model\n",
    ),
    "zephyr": Chat(
        "<|user|>\n",
        ("<|system|>\n", "</s>\n<|user|>\n"),
        ("</s>\n<|assistant|>\n", "</s>\n<|user|>\n"),
        "</s>\n<|assistant|>\n",
    ),
    "phi3": Chat(
        "<|user|>\n",
        ("<|system|>\n", "<|end|>\n<|user|>\n"),
        ("<|end|>\n<|assistant|>\n", "<|end|>\n<|user|>\n"),
        "<|end|>\n<|assistant|>\n",
    ),
    "mistral": Chat("<s>[INST] ", None, (" [/INST]", "</s>[INST] "), " [/INST]"),
    "mistral3": Chat("<s>[INST] ", None, ("[/INST] ", "</s>[INST] "), "[/INST]"),
    "llama3.2": Chat(
        f"<|begin_of_text|>{SYSTEM}{DATED}{EOT}{USER}",
        (f"<|begin_of_text|>{SYSTEM}{DATED}", f"{EOT}{USER}"),
        (f"{EOT}{ASSISTANT}", f"{EOT}{USER}"),
        f"{EOT}{ASSISTANT}",
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_template_in_plain_strings(name):
    assert as_strings(KNOWN[name]) == STRINGS[name]


def by_transformers(template: ChatTemplate, turns: list[str], system: str | None) -> str:
    """What transformers renders."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    messages = [{"role": "system", "content": system}, *messages] if system is not None else messages
    rendered, _ = render_jinja_template([messages], None, None, template.source, add_generation_prompt=True, **template.special)
    # It tells the date, which we do not: the strings of today must not change tomorrow.
    return re.sub(datetime.datetime.now().strftime("Today Date: %d %b %Y"), "Today Date: 26 Jul 2024", rendered[0])


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).map(str.strip).filter(len)
CONVERSATIONS = st.integers(0, 3).flatmap(lambda answers: st.lists(TEXTS, min_size=2 * answers + 1, max_size=2 * answers + 1))


@pytest.mark.parametrize("name", KNOWN)
@given(CONVERSATIONS, st.none() | TEXTS)
@settings(max_examples=50)
def test_the_strings_say_what_transformers_renders(name, turns, system):
    chat = STRINGS[name]
    system = system if chat.system else None
    assert chat.prompt(turns, system) == by_transformers(KNOWN[name], turns, system)


@pytest.mark.parametrize("kind", MORE_THAN_STRINGS)
def test_a_template_has_no_strings_that(kind):
    assert as_strings(ChatTemplate(MORE_THAN_STRINGS[kind], {})) is None


def with_template(tmp_path, template: ChatTemplate):
    """The artifact of a tiny checkpoint with a chat template."""
    source = tmp_path / "source"
    source.mkdir()
    for path in checkpoint().iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    (source / "chat_template.jinja").write_text(template.source)
    beside = source / "tokenizer_config.json"
    held = json.loads(beside.read_text()) if beside.is_file() else {}
    beside.write_text(json.dumps(held | dict(template.special)))
    return onnx_artifact(source, "--no-verify")


@pytest.mark.parametrize("name", ["smollm2", "llama2"])
def test_the_manifest_has_the_strings_and_generate_says_the_same(tmp_path, name):
    folder = with_template(tmp_path, KNOWN[name])
    chat = read_manifest(folder).chat
    assert chat == STRINGS[name]
    assert chat.prompt(["What is a phone?"]) == chat_prompt(folder, "What is a phone?")
    assert not [line for line in manifest(folder)["warnings"] if "chat" in line]


def test_a_template_that_does_more_is_warned_of(tmp_path):
    folder = with_template(tmp_path, ChatTemplate(MORE_THAN_STRINGS["counts the turns"], {}))
    assert manifest(folder)["chat"] is None
    line = "chat template: does more than to put texts between its own, so apps without Jinja cannot chat with this model"
    assert line in manifest(folder)["warnings"]
    assert chat_prompt(folder, "a") == "[user 1]a[assistant]"


def test_a_model_without_a_template_is_not():
    held = manifest(onnx_artifact(checkpoint(), "--no-verify"))
    assert held["chat"] is None
    assert not [line for line in held["warnings"] if "chat" in line]
