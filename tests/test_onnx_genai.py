"""onnxruntime-genai runs an artifact folder as it is: the tokens of our own loop, and `generate` on top of it."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path

import onnxruntime_genai
import pytest
import torch
from exported import CONTEXT, ROOM, checkpoint, manifest, onnx_artifact
from tiny_checkpoints import write_llama, write_mobilellm, write_tokenizer_json
from tiny_families import FAMILIES, TOKENS, reference, written

from mobile_export.checkpoint import decode, encode, open_checkpoint
from mobile_export.cli import run
from mobile_export.verify.onnx_runtime import OnnxRuntime

PROMPT, NEW = TOKENS[:9], 20


def by_genai(folder: Path, prompt: list[int], count: int) -> list[int]:
    """As an app calls the stock runtime, with nothing of ours."""
    model = onnxruntime_genai.Model(str(folder))
    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(prompt) + count, do_sample=False)
    generator = onnxruntime_genai.Generator(model, parameters)
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)[len(prompt) :]]


def by_hand(folder: Path, prompt: list[int], count: int, eos: int | None = 2) -> list[int]:
    """Greedy, token by token, over onnxruntime alone; the token it stops at is not given."""
    runtime = OnnxRuntime(folder / "model.onnx", "1.0")
    said, at = [int(runtime.step(prompt, 0).argmax())], len(prompt)
    while said[-1] != eos and len(said) < count:
        said.append(int(runtime.step(said[-1:], at).argmax()))
        at += 1
    return said[:-1] if said[-1] == eos else said


# --- the same tokens ---------------------------------------------------------------------------------------------------


def talkative() -> Path:
    """A tiny Llama that does not fall silent: with a tied table, and with most seeds, it says one token for ever."""
    return checkpoint(tied=False, seed=4)


SHARED = ("--schedule", "0,1,1,0")
FORMS = {
    "w4-fast": (),
    "w4-all-fast": ("--recipe", "w4-all-fast"),
    "fp32": ("--recipe", "fp32"),
    "int8-cache": ("--recipe", "w8-fast", "--kv", "int8"),
    "float16": ("--recipe", "w8-fast", "--activations", "float16"),
    "all-logits": ("--all-logits",),
}


@pytest.mark.parametrize("schedule", [(), SHARED], ids=["base", "shared"])
@pytest.mark.parametrize("arguments", FORMS.values(), ids=FORMS)
def test_the_stock_runtime_says_the_tokens_our_loop_says(arguments, schedule):
    folder = onnx_artifact(talkative(), "--no-verify", *arguments, *schedule)
    want = by_hand(folder, PROMPT, NEW)
    assert by_genai(folder, PROMPT, NEW) == want
    assert len(set(want)) > 4, "no model that repeats itself"


def test_base_and_shared_say_different_things():
    base, shared = (onnx_artifact(talkative(), "--no-verify", *schedule) for schedule in ((), SHARED))
    assert by_hand(base, PROMPT, NEW) != by_hand(shared, PROMPT, NEW)


@pytest.mark.parametrize("name", [name for name, tiny in FAMILIES.items() if tiny.model_type not in ("lfm2", "rwkv")])
def test_every_family_runs_in_the_stock_runtime(name):
    """The runtime hands attention one buffer of the whole context for past and present."""
    folder = onnx_artifact(written(name), "--recipe", "fp32", "--no-verify")
    want = by_hand(folder, PROMPT, 40)
    assert by_genai(folder, PROMPT, 40) == want
    assert want


# --- generate ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def generate(capsys):
    """Run `generate --json` and give what it printed."""

    def ran(folder: Path, prompt: str, *arguments: str) -> dict:
        capsys.readouterr()
        assert run(["generate", str(folder), prompt, "--json", *arguments]) == 0
        return json.loads(capsys.readouterr().out)

    return ran


def tokenizer_of(source: Path):
    tokenizer = open_checkpoint(str(source)).tokenizer
    assert tokenizer is not None
    return tokenizer


def with_bos(folder: Path, *, adds: bool) -> Path:
    """A checkpoint whose tokenizer.json puts BOS before a text, or does not."""
    write_llama(folder)
    path = folder / "tokenizer.json"
    whole = json.loads(path.read_text())
    if adds:
        bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
        text = {"Sequence": {"id": "A", "type_id": 0}}
        special = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
        pair = [bos, text, bos, {"Sequence": {"id": "B", "type_id": 1}}]
        whole["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [bos, text],
            "pair": pair,
            "special_tokens": special,
        }
    path.write_text(json.dumps(whole))
    return folder


def sentencepiece(folder: Path, *, adds: bool) -> Path:
    write_mobilellm(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"add_bos_token": adds}))
    return folder


@pytest.mark.parametrize("adds", [True, False], ids=["adds-bos", "without-bos"])
@pytest.mark.parametrize("written_by", [with_bos, sentencepiece], ids=["tokenizer.json", "tokenizer.model"])
def test_generate_says_what_our_loop_says_and_begins_as_the_checkpoint_does(tmp_path, generate, written_by, adds):
    source = written_by(tmp_path / "source", adds=adds)
    folder = onnx_artifact(source, "--no-verify")
    assert manifest(folder)["adds_bos"] == adds
    prompt = "the quick brown"
    tokens = [token for token in encode(tokenizer_of(source), prompt) if token != 1]
    begun = [1, *tokens] if adds else tokens
    want = by_hand(folder, begun, 6)
    assert by_hand(folder, tokens if adds else [1, *tokens], 6) != want, "a BOS more or less would show"
    found = generate(folder, prompt, "--max-new-tokens", "6")
    assert found["prompt_tokens"] == len(begun)
    assert found["text"] == prompt + found["new_text"]
    assert found["new_text"].strip() == decode(tokenizer_of(source), want).strip()
    assert (found["new_tokens"], found["stopped_at_eos"]) == (6, False)


@functools.cache
def stopping() -> tuple[Path, list[int], str]:
    """An artifact that stops at the fourth token it would say, what it says before, and to which prompt."""
    prompt, source = "the lazy dog", checkpoint()
    said = by_hand(onnx_artifact(source, "--no-verify"), encode(tokenizer_of(source), prompt), 12)
    at = next(i for i in range(3, 12) if said[i] not in said[:i])
    folder = onnx_artifact(checkpoint(config_extra=_Frozen(eos_token_id=[2, said[at]])), "--no-verify")
    return folder, said[: at + 1], prompt


class _Frozen(dict):
    def __hash__(self) -> int:
        return hash(repr(sorted(self.items())))


def test_generate_stops_at_any_of_the_checkpoints_ends(generate):
    folder, said, prompt = stopping()
    found = generate(folder, prompt, "--max-new-tokens", "12")
    assert (found["new_tokens"], found["stopped_at_eos"]) == (len(said), True)
    before = decode(tokenizer_of(checkpoint()), said[:-1])
    assert found["new_text"].strip() == before.strip(), "without the token it stopped at"
    assert by_genai(folder, encode(tokenizer_of(checkpoint()), prompt), 12) == said[:-1], "an app stops there, too"


def test_generate_that_is_cut_off_did_not_stop_at_an_end(generate):
    folder, said, prompt = stopping()
    found = generate(folder, prompt, "--max-new-tokens", str(len(said) - 1))
    assert (found["new_tokens"], found["stopped_at_eos"]) == (len(said) - 1, False)
    found = generate(folder, prompt, "--max-new-tokens", str(len(said)))
    assert (found["new_tokens"], found["stopped_at_eos"]) == (len(said), True)


def test_generate_prints_the_text_where_no_json_is_asked(capsys):
    folder, said, prompt = stopping()
    capsys.readouterr()
    assert run(["generate", str(folder / "model.onnx"), prompt, "--max-new-tokens", "12"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(prompt)
    assert out.removeprefix(prompt).strip() == decode(tokenizer_of(checkpoint()), said[:-1]).strip()
    assert err == ""


TEMPLATE = "{% for message in messages %}{{ bos_token }}{{ message.role }}: {{ message.content }}\n{% endfor %}the answer:"


@pytest.mark.parametrize("adds", [True, False], ids=["adds-bos", "without-bos"])
def test_a_chat_turn_goes_through_the_template_and_has_one_bos(tmp_path, generate, adds):
    source = with_bos(tmp_path / "source", adds=adds)
    settings = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": TEMPLATE}))
    folder = onnx_artifact(source, "--no-verify")
    tokens = [token for token in encode(tokenizer_of(source), "user: what time\nthe answer:") if token != 1]
    want = by_hand(folder, [1, *tokens], 6)
    found = generate(folder, "what time", "--chat", "--max-new-tokens", "6")
    assert found["prompt_tokens"] == 1 + len(tokens)
    assert found["new_text"].strip() == decode(tokenizer_of(source), want).strip()
    assert found["new_text"] != generate(folder, "what time", "--max-new-tokens", "6")["new_text"]


def test_chat_without_a_template_is_refused(fails):
    folder = onnx_artifact(checkpoint(), "--no-verify")
    line = f"--chat: {folder} holds no chat template; leave --chat out: this is no chat model"
    assert fails("generate", folder, "a b c", "--chat") == (2, line)


def test_an_empty_prompt_is_refused(fails):
    folder = onnx_artifact(checkpoint(), "--no-verify")
    assert fails("generate", folder, "") == (2, "PROMPT: is empty; write at least one character")


@functools.cache
def recurrent() -> Path:
    """An RWKV with a tokenizer, which `generate` runs by our own loop; do not write into it."""
    source = Path(ROOM.name) / "rwkv4-with-tokenizer"
    shutil.copytree(written("rwkv4"), source)
    write_tokenizer_json(source)
    return source


@pytest.mark.parametrize("source", [checkpoint, recurrent], ids=["stock", "own-loop"])
def test_a_prompt_as_long_as_the_context_is_refused(fails, generate, source):
    folder = onnx_artifact(source(), "--no-verify")
    letters = "xyzw" * (CONTEXT // 4)
    assert len(encode(tokenizer_of(source()), letters)) == CONTEXT
    line = f"PROMPT: is {CONTEXT} tokens long; leave room in a context of {CONTEXT}"
    assert fails("generate", folder, letters) == (3, line)
    found = generate(folder, letters[:-1], "--max-new-tokens", "9")
    assert (found["prompt_tokens"], found["new_tokens"]) == (CONTEXT - 1, 1), "as much as there is room for"


def test_an_artifact_without_tokenizer_cannot_speak(fails, capsys):
    folder = onnx_artifact(checkpoint(tokenizer=None), "--no-verify")
    assert "tokenizer" in capsys.readouterr().err
    then = "copy the checkpoint's tokenizer into it, or export a checkpoint that has one"
    assert fails("generate", folder, "a") == (3, f"{folder}: holds no tokenizer.json; {then}")


def test_what_the_stock_runtime_cannot_load_is_said_in_one_line(tmp_path, fails):
    folder = Path(shutil.copytree(onnx_artifact(checkpoint(), "--no-verify"), tmp_path / "copy"))
    for name in ("model.onnx", "tokenizer.json", "genai_config.json"):
        kept = (folder / name).read_bytes()
        (folder / name).write_bytes(b"nothing of the kind")
        code, line = fails("generate", folder, "a")
        assert code == 3
        assert line.startswith(f"{folder}: onnxruntime-genai refuses: ")
        assert line.endswith("; export it again, or try a newer onnxruntime-genai")
        (folder / name).write_bytes(kept)


def test_what_our_own_loop_cannot_load_is_said_in_one_line(tmp_path, fails):
    folder = Path(shutil.copytree(onnx_artifact(recurrent(), "--no-verify"), tmp_path / "copy"))
    for name in ("model.onnx", "tokenizer.json"):
        kept = (folder / name).read_bytes()
        (folder / name).write_bytes(b"nothing of the kind")
        code, line = fails("generate", folder, "a")
        assert code == 3
        assert line.startswith(f"{folder}/{name}: ")
        assert line.endswith("; export it again")
        (folder / name).write_bytes(kept)


@pytest.mark.parametrize("name", ["lfm2", "rwkv4"])
def test_what_the_stock_runtime_has_no_state_for_speaks_by_our_own_loop(tmp_path, generate, name):
    """`generate` all the same; the tokens are those that transformers' logits choose."""
    source = Path(shutil.copytree(written(name), tmp_path / "source"))
    write_tokenizer_json(source)
    folder = onnx_artifact(source, "--recipe", "fp32", "--no-verify")
    prompt = "the quick brown"
    tokens = encode(tokenizer_of(source), prompt)
    said: list[int] = []
    for _ in range(6):
        with torch.no_grad():
            logits = reference(name)(torch.tensor([[*tokens, *said]]), use_cache=False).logits[0, -1]
        said.append(int(logits.argmax()))
    found = generate(folder, prompt, "--max-new-tokens", "6")
    assert (found["prompt_tokens"], found["new_tokens"]) == (len(tokens), 6)
    assert found["new_text"].strip() == decode(tokenizer_of(source), said).strip()
    assert len(set(said)) > 2
