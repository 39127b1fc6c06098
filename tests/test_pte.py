"""`pte` end to end on tiny checkpoints: what is in the file, what the runtime makes of it, what a stock app finds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from exported import CONTEXT, PROMPT, artifact, checkpoint, manifest, weights_of
from tiny_checkpoints import llama_tensors
from transformers import LlamaConfig, LlamaForCausalLM

from mobile_export.cli import run
from mobile_export.emit.executorch.pieces import constants_of
from mobile_export.quantize.recipe import EMBEDDING
from mobile_export.verify.pte_runtime import PteRuntime

TOKENS = [5, 17, 40, 3, 88, 61, 9, 12, 33, 70, 21, 50]


def duplicated_llama(schedule: tuple[int, ...], **options: int) -> torch.nn.Module:
    """transformers' Llama with every execution's block written out, from the raw tensors; shares no code with ours."""
    tensors = llama_tensors(**options)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=len(schedule),
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    state = {name: value for name, value in tensors.items() if ".layers." not in name}
    for execution, stored in enumerate(schedule):
        prefix = f"model.layers.{stored}."
        for name, value in tensors.items():
            if name.startswith(prefix):
                state[f"model.layers.{execution}.{name.removeprefix(prefix)}"] = value
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert missing in ([], ["lm_head.weight"])
    assert not unexpected
    model.tie_weights()
    return model


def logits_of(model: torch.nn.Module, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([tokens]), use_cache=False).logits[0]


SHARED = [
    pytest.param("mobilellm", {"layer_sharing": True, "form": "bin"}, (), (0, 0, 1, 1), id="ls-hub-bin"),
    pytest.param(
        "mobilellm",
        {"dialect": "github", "form": "safetensors"},
        ("--schedule", "immediate"),
        (0, 0, 1, 1),
        id="ls-github-safetensors",
    ),
    pytest.param("llama", {}, ("--schedule", "repeat-all-over"), (0, 1, 0, 1), id="repeat-all-over"),
    pytest.param("llama", {"duplicate_schedule": (0, 1, 1, 0)}, (), (0, 1, 1, 0), id="reverse-found-in-the-file"),
]


@pytest.mark.parametrize(("kind", "options", "arguments", "schedule"), SHARED)
def test_a_shared_model_computes_what_the_duplicated_llama_computes(kind, options, arguments, schedule):
    """Limit: float32 summed in another order, 1e-4 of the largest logit; a wrong block or slot is off by its size."""
    folder = artifact(checkpoint(kind, **options), "--recipe", "fp32", *arguments)
    assert tuple(manifest(folder)["sharing"]["schedule"]) == schedule
    want = logits_of(duplicated_llama(schedule), TOKENS)
    runtime = PteRuntime(folder / "model.pte")
    for at, token in enumerate(TOKENS):
        assert (runtime.step([token], at) - want[at]).abs().max() <= 1e-4 * want[at].abs().max()
    assert (runtime.step(TOKENS[:PROMPT], 0) - want[PROMPT - 1]).abs().max() <= 1e-4 * want.abs().max()


@pytest.mark.parametrize(
    "arguments",
    [(), ("--recipe", "w8-fast"), ("--recipe", "w4-all-fast"), ("--kv", "int8"), ("--attention", "core")],
    ids=lambda arguments: "-".join(arguments).replace("--", "") or "w4-fast",
)
def test_every_recipe_cache_and_attention_agrees_with_the_same_numbers_in_pytorch(arguments):
    """`pte` verifies before it writes, so an artifact that is there agreed; here the figures are looked at."""
    found = manifest(artifact(checkpoint(), *arguments))["verification"]
    assert found["passed"]
    errors = {check["name"]: check["measured"] for check in found["checks"]}
    assert errors["two tokens one by one, the best agreement"] <= 1e-5
    assert errors["text token by token, median"] <= 1e-5, "two blocks are shallow enough to agree on most of a text"


def test_sizes_are_what_inspect_predicts_and_add_up_to_the_file(capsys):
    folder = artifact(checkpoint())
    found = manifest(folder)
    capsys.readouterr()
    assert run(["inspect", str(checkpoint()), "--json"]) == 0
    predicted = {part["name"]: part["bytes_recipe"] for part in json.loads(capsys.readouterr().out)["parts"]}
    measured = {part["name"]: part["bytes"] for part in found["parts"]}
    assert sum(measured.values()) == found["files"][0]["bytes"] == (folder / "model.pte").stat().st_size
    assert {name: measured[name] for name in predicted} == predicted


def test_every_matrix_is_accounted_for():
    assert set(manifest(artifact(checkpoint()))["matrices"]) == {
        EMBEDDING,
        *(f"blocks.{i}.{name}.weight" for i in (0, 1) for name in ("attention.qkv", "ffn.o", "ffn.gate", "ffn.up", "ffn.down")),
    }


@pytest.mark.parametrize("recipe", ["w4-fast", "w4-all-fast", "w8-fast", "fp32"])
def test_every_payload_lies_in_the_file_once(recipe):
    """The tied table serves the gather and the head from one place; blocks run twice are stored once."""
    source = checkpoint("mobilellm", layer_sharing=True, form="bin") if recipe == "fp32" else checkpoint()
    file = (artifact(source, "--recipe", recipe) / "model.pte").read_bytes()
    weights = weights_of(source, recipe)
    for name in weights.matrices:
        values = weights.float32(name) if recipe == "fp32" else weights.quantized(name)
        assert file.count(constants_of(values)[0].data) == 1, name


def test_a_head_of_its_own_is_stored_beside_the_embedding():
    source = checkpoint(tied=False)
    folder = artifact(source)
    parts = {part["name"]: part["bytes"] for part in manifest(folder)["parts"]}
    assert parts["head"] == parts["embedding"] == 96 * 64 + 96 * 4
    weights, file = weights_of(source), (folder / "model.pte").read_bytes()
    assert {file.count(constants_of(weights.quantized(name))[0].data) for name in (EMBEDDING, "head.linear.weight")} == {1}


RESIDENT = """
import sys, torch
torch.set_num_threads(1)
from mobile_export.verify.pte_runtime import PteRuntime
def anonymous(): return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("RssAnon"))
before = anonymous()
runtime = PteRuntime(sys.argv[1])
runtime.step([1, 2, 3], 0)
print(anonymous() - before)
"""


def resident_bytes(folder: Path) -> int:
    """Anonymous memory a process gains by loading and running an artifact once."""
    command = [sys.executable, "-c", RESIDENT, str(folder / "model.pte")]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def test_shared_blocks_are_stored_and_packed_once():
    """Law of one copy: base, shared (each block four times) and an unshared twin with as many executions."""
    wide = {"hidden": 512, "heads": 8, "kv_heads": 2, "ffn": 1536}
    base = artifact(checkpoint(**wide), "--no-verify")
    shared = artifact(checkpoint(**wide), "--no-verify", "--schedule", "0,0,0,0,1,1,1,1")
    unshared = artifact(checkpoint(**wide, blocks=8), "--no-verify")
    sizes = {f: manifest(f)["files"][0]["bytes"] for f in (base, shared, unshared)}
    block = next(part["bytes"] for part in manifest(base)["parts"] if part["name"] == "blocks") // 2
    graph = {f: next(p["bytes"] for p in manifest(f)["parts"] if p["name"] == "graph") for f in sizes}
    assert sizes[shared] - sizes[base] == graph[shared] - graph[base] < 60_000, "nothing but graph nodes"
    assert sizes[unshared] - sizes[base] > 6 * block
    assert manifest(shared)["pte"]["delegates"] == manifest(base)["pte"]["delegates"] == 5
    assert manifest(shared)["pte"]["delegate_calls"] == 17
    slots = manifest(shared)["kv_cache"]["bytes_at_max_context"] - manifest(base)["kv_cache"]["bytes_at_max_context"]
    resident = {f: resident_bytes(f) for f in (base, shared, unshared)}
    assert resident[shared] - resident[base] <= slots + 2_000_000
    assert resident[unshared] - resident[base] >= 4 * block, "the twin does hold its blocks, so the measure can tell"


def test_the_stock_runner_generates_from_the_folder_alone_and_stops_at_eos(tmp_path, capsys):
    source = checkpoint()
    first = artifact(source)
    moved = first.rename(tmp_path / "moved")
    capsys.readouterr()
    try:
        assert run(["generate", str(moved), "a b c d", "--max-new-tokens", "6", "--json"]) == 0
        free = json.loads(capsys.readouterr().out)
        assert (free["new_tokens"], free["stopped_at_eos"]) == (6, False)
    finally:
        moved.rename(first)
    prompt = _prompt_tokens(source, "a b c d")
    runtime = PteRuntime(first / "model.pte")
    said = [int(runtime.step(prompt, 0).argmax())]
    said.append(int(runtime.step(said, len(prompt)).argmax()))
    stopping = checkpoint(config_extra=_frozen({"eos_token_id": said[1]}))
    stops = artifact(stopping, "--no-verify")
    capsys.readouterr()
    assert run(["generate", str(stops), "a b c d", "--max-new-tokens", "6", "--json"]) == 0
    stopped = json.loads(capsys.readouterr().out)
    assert stopped["new_tokens"] < 6, "the metadata's own eos id, not the tokenizer's, is where it stops"


def test_the_stock_runner_cuts_a_prompt_longer_than_one_call(capsys):
    prompt = "a b c d e f g h " * 3
    folder = artifact(checkpoint())
    tokens = _prompt_tokens(checkpoint(), prompt)
    assert PROMPT < len(tokens) < CONTEXT - 3
    capsys.readouterr()
    assert run(["generate", str(folder), prompt, "--max-new-tokens", "1", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["new_text"]
    runtime = PteRuntime(folder / "model.pte")
    for start in range(0, len(tokens), PROMPT):
        logits = runtime.step(tokens[start : start + PROMPT], start)
    from mobile_export.checkpoint import decode, open_checkpoint

    tokenizer = open_checkpoint(str(checkpoint())).tokenizer
    assert tokenizer is not None
    assert said.strip() == decode(tokenizer, [int(logits.argmax())]).strip()


def test_metadata_methods_are_what_the_stock_runner_reads():
    runtime = PteRuntime(artifact(checkpoint("mobilellm", layer_sharing=True, form="bin"), "--recipe", "fp32") / "model.pte")
    assert runtime.metadata() == {
        "get_max_seq_len": PROMPT,
        "get_max_context_len": CONTEXT,
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": True,
        "enable_dynamic_shape": True,
        "get_vocab_size": 96,
        "get_n_layers": 2,
        "get_n_executions": 4,
        "get_head_dim": 16,
        "get_n_kv_heads": 2,
        "get_eos_ids": [2],
        "get_bos_id": 1,
    }


def test_a_sentencepiece_only_checkpoint_generates(capsys):
    folder = artifact(checkpoint("mobilellm", layer_sharing=True, form="bin"), "--recipe", "fp32")
    assert "tokenizer.model" in manifest(folder)["tokenizer_files"]
    assert manifest(folder)["adds_bos"], "LlamaTokenizer's own default"
    assert not manifest(artifact(checkpoint()))["adds_bos"], "the tiny tokenizer.json has no post-processor"
    capsys.readouterr()
    assert run(["generate", str(folder), "a", "--max-new-tokens", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["new_tokens"] <= 3


def test_the_tokenizer_beside_it_has_no_step_that_executorch_gets_wrong():
    before, after = (json.loads((each / "tokenizer.json").read_text()) for each in (checkpoint(), artifact(checkpoint())))
    assert before["normalizer"] == {"type": "NFC"}
    assert after == {**before, "normalizer": None}


def test_a_checkpoint_without_tokenizer_exports_with_a_warning_and_cannot_speak(capsys):
    folder = artifact(checkpoint(tokenizer=None), "--no-verify")
    assert "tokenizer" in " ".join(manifest(folder)["warnings"])
    capsys.readouterr()
    assert run(["generate", str(folder), "a"]) == 3
    assert "holds no tokenizer.json or tokenizer.model" in capsys.readouterr().err


def _prompt_tokens(source: Path, text: str) -> list[int]:
    from mobile_export.checkpoint import encode, open_checkpoint

    tokenizer = open_checkpoint(str(source)).tokenizer
    assert tokenizer is not None
    return encode(tokenizer, text)


class _frozen(dict):
    def __hash__(self) -> int:
        return hash(tuple(sorted(self.items())))
