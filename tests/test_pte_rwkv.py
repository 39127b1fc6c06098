"""RWKV-4 in the .pte: a recurrence over calls of any length, against transformers; what it keeps, and who runs it."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path

import pytest
import torch
from executorch.exir._serialize._program import deserialize_pte_binary
from executorch.exir.schema import KernelCall
from exported import CONTEXT, PROMPT, artifact, manifest, program_file, weights_of
from tiny_checkpoints import write_tokenizer_json
from tiny_families import TOKENS, VOCAB, reference, reference_logits, written

from mobile_export.checkpoint import decode, encode, open_checkpoint
from mobile_export.cli import run
from mobile_export.emit.executorch import rwkv
from mobile_export.emit.executorch.program import PteOptions, PteProgram, build_program
from mobile_export.verify.pte_runtime import PteRuntime

NAME = "rwkv4-narrow"  # its key and value are half as wide as the stream
LIMIT = 2e-5  # of the largest logit: float32 in another order came to 6e-7
CALLS = ([1] * 40, [PROMPT] * 5, [3, 1, 1, PROMPT, 2, 7, 1, 4, 6, 1, 5, 1], [5])  # each cut of the text begins it anew


@functools.cache
def built(max_prompt: int = PROMPT) -> PteProgram:
    return build_program(weights_of(written(NAME), recipe="fp32"), PteOptions(CONTEXT, max_prompt), 1, (2,))


def worst(runtime: PteRuntime, cuts=CALLS) -> float:
    """Largest difference from transformers over the largest logit, after every call of every cut."""
    want, errors = reference_logits(NAME), []
    for cut in cuts:
        at = 0
        for length in cut:
            got = runtime.step(TOKENS[at : at + length], at).view(VOCAB)
            at += length
            errors.append((got - want[at - 1]).abs().max() / want.abs().max())
    return float(torch.stack(errors).max())


def test_a_text_cut_anyhow_gives_what_transformers_gives(tmp_path):
    (tmp_path / "m.pte").write_bytes(built().file)
    assert worst(PteRuntime(tmp_path / "m.pte")) < LIMIT


def test_one_token_a_call_needs_no_dynamic_shape(tmp_path):
    (tmp_path / "m.pte").write_bytes(built(1).file)
    runtime = PteRuntime(tmp_path / "m.pte")
    assert runtime.metadata()["enable_dynamic_shape"] is False
    assert worst(runtime, CALLS[:1]) < LIMIT


def test_a_piece_is_one_delegate_and_the_recurrence_is_listed_once():
    """Four calls a block, one for the embedding's norm, one for the head; operators of a scan are run for each token.

    A norm's delegate holds no weight: that of the embedding and those of both blocks are one.
    """
    program = built()
    assert (program.calls, program.delegates) == (4 * 2 + 2, 4 * 2 + 2 - 2)
    assert program.outside["aten::exp"] == 4 * 2, "four a token, in the body of each execution's scan"
    assert sum(program.outside.values()) - program.outside["executorch_prim::add"] == 4 + 2 * 54, program.outside
    assert program.attention == "none"


@pytest.mark.parametrize(("name", "recipe"), [("rwkv4", "w8-fast"), (NAME, "w4-fast")])
def test_a_quantized_one_passes_its_verification(name, recipe):
    folder = artifact(written(name), "--recipe", recipe)
    found = manifest(folder)
    assert found["verification"]["passed"]
    errors = {check["name"]: check["measured"] for check in found["verification"]["checks"]}
    assert errors["two tokens one by one, the best agreement"] <= 1e-5
    assert errors["two tokens in one call, the best agreement"] <= 1e-5
    assert all(part["bytes"] == part["predicted_bytes"] for part in found["parts"] if part["predicted_bytes"] is not None)
    assert run(["inspect", str(folder), "--strict"]) == 0


def test_a_repeated_block_is_stored_and_packed_once_and_has_a_state_for_each_execution():
    """`pte` holds it against transformers with every execution's block written out."""
    folder = artifact(written(NAME), "--recipe", "fp32", "--schedule", "immediate")
    once, twice = built(), manifest(folder)
    assert twice["verification"]["oracle"] == "transformers in float32"
    assert (twice["pte"]["delegates"], twice["pte"]["delegate_calls"]) == (once.delegates, 4 * 4 + 2)
    parts = {part["name"]: part["bytes"] for part in twice["parts"]}
    assert [parts[name] for name in ("blocks", "norms")] == [once.parts[name] for name in ("blocks", "norms")]
    assert twice["kv_cache"]["state_bytes"] == 4 * 4 * (2 * 64 + 3 * 32)


def state_bytes(file: bytes) -> int:
    """Bytes of the program's float32 tensors that a step both takes its state from and writes it to."""
    plan = deserialize_pte_binary(file).program.execution_plan[0]
    calls = [
        (plan.operators[call.op_index].name, call.args)
        for chain in plan.chains
        for instruction in chain.instructions
        if isinstance(call := instruction.instr_args, KernelCall)
    ]
    taken = {args[1] for name, args in calls if name == "aten::where"}
    put = {args[0] for name, args in calls if name == "aten::copy_"}
    return sum(4 * torch.Size(plan.values[value].val.sizes).numel() for value in taken & put)


def test_a_manifest_counts_the_state_the_program_has(capsys):
    folder = artifact(written(NAME), "--recipe", "w4-fast")
    kept = manifest(folder)["kv_cache"]
    assert (kept["slots"], kept["rows"], kept["bytes_per_token"], kept["bytes_at_max_context"]) == (0, [], 0, 0)
    assert kept["state_bytes"] == 2 * 4 * (2 * 64 + 3 * 32) == state_bytes((folder / "model.pte").read_bytes())
    card = (folder / "README.md").read_text()
    assert "\nState: 1,792 bytes, whatever the length of the text.\n" in card
    assert "KV cache" not in card
    capsys.readouterr()
    assert run(["inspect", str(folder)]) == 0
    page = capsys.readouterr().out
    assert "\nstate    1,792 bytes, whatever the length of the text\n" in page
    assert "kv cache" not in page


def test_the_stock_runner_cuts_a_prompt_and_continues_it(tmp_path, capsys):
    """The tokens are those that transformers' logits choose."""
    source = Path(shutil.copytree(written(NAME), tmp_path / "source"))
    write_tokenizer_json(source)
    folder = artifact(source, "--recipe", "fp32", "--no-verify")
    tokenizer = open_checkpoint(str(source)).tokenizer
    assert tokenizer is not None
    prompt = "a b c d e f g h i j k"
    tokens, said = encode(tokenizer, prompt), []
    assert len(tokens) > PROMPT
    for _ in range(5):
        with torch.no_grad():
            logits = reference(NAME)(torch.tensor([[*tokens, *said]]), use_cache=False).logits[0, -1]
        said.append(int(logits.argmax()))
    capsys.readouterr()
    assert run(["generate", str(folder), prompt, "--max-new-tokens", "5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["prompt_tokens"], found["new_tokens"]) == (len(tokens), 5)
    assert found["new_text"].strip() == decode(tokenizer, said).strip()
    assert len(set(said)) > 1


def test_a_cache_it_has_not_cannot_be_int8(tmp_path, capsys):
    assert run(["pte", str(written(NAME)), "--kv", "int8", "--out", str(tmp_path / "out")]) == 3
    line = "config.json: family 'rwkv' keeps a state and no KV cache, so none can be int8; use --kv float32"
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {line}"


def never_begun_anew(self, slot, begun):
    return right_before(self, slot, torch.ones_like(begun))


def unshifted(now, first):
    return now, right_shifted(now, first)[1]


def without(place):
    def __init__(self, *arguments):
        values = [torch.zeros_like(value) if number == place else value for number, value in enumerate(arguments)]
        right_block(self, *values)

    return __init__


right_before, right_shifted, right_block = rwkv.PteStates.before, rwkv.shifted, rwkv.PteRwkvBlock.__init__
MUTATIONS = {
    "a state not written back": (rwkv.PteStates, "keep", lambda self, slot, state: None),
    "the state of the text before": (rwkv.PteStates, "before", never_begun_anew),
    "the slot of another execution": (rwkv.PteStates, "keep", lambda self, slot, state: right_keep(self, 0, state)),
    "no shift": (rwkv, "shifted", unshifted),
    "no decay": (rwkv.PteRwkvBlock, "__init__", without(2)),
    "no bonus": (rwkv.PteRwkvBlock, "__init__", without(3)),
}
right_keep = rwkv.PteStates.keep


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_state_that_is_wrong_would_show(tmp_path, monkeypatch, mutation):
    monkeypatch.setattr(*MUTATIONS[mutation])
    path = program_file(weights_of(written(NAME), recipe="fp32"), tmp_path / "m.pte")
    assert worst(PteRuntime(path)) > 100 * LIMIT
