"""Ring slots of a .pte: what a window's rows hold, over texts many times as long, against slots of the whole context."""

from __future__ import annotations

import dataclasses
import functools
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from executorch.exir._serialize._program import deserialize_pte_binary
from executorch.exir.schema import KernelCall
from exported import CONTEXT, PROMPT, ROOM
from hypothesis import given
from hypothesis import strategies as st
from tiny_families import FAMILIES, VOCAB, reference, write_family, written

from mobile_export.cli import run
from mobile_export.cli.report import report
from mobile_export.cli.steps import prepare
from mobile_export.emit.card import card
from mobile_export.emit.executorch import attention, program
from mobile_export.emit.executorch.artifact import write_artifact
from mobile_export.emit.executorch.program import PteOptions, PteProgram, build_program
from mobile_export.model.attention_rule import AttentionRule, seen
from mobile_export.quantize.sizes import kv_rows
from mobile_export.quantize.weights import ModelWeights
from mobile_export.verify.pte_runtime import PteRuntime

NAME, WINDOW = "gemma3", FAMILIES["gemma3"].config["sliding_window"]  # blocks: a window, the whole past, a window
RING = WINDOW + PROMPT - 1
TEXT = torch.randint(3, VOCAB, (CONTEXT,), generator=torch.Generator().manual_seed(9)).tolist()
KINDS = {"custom": ("custom", "float32"), "int8": ("custom", "int8"), "core": ("core", "float32")}
LIMIT = 2e-5  # of the largest logit: the same products summed in another order came to 2e-6
STEP = 1e-3  # now and then that moves a key or value to its neighbouring int8 code, which came to 7e-5
BYTES = {1: 1, 6: 4}  # of schema.ScalarType: int8 and float32


def weights(kv: str) -> ModelWeights:
    return prepare(str(written(NAME)), "fp32", None, kv)


def whole(recognised, plan, context, max_prompt):
    """kv_rows, with no slot a ring."""
    return dict.fromkeys(kv_rows(recognised, plan, context, max_prompt), context)


@functools.cache
def built(kind: str) -> PteProgram:
    named, kv = KINDS[kind]
    return build_program(weights(kv), PteOptions(CONTEXT, PROMPT, named), 1, (2,))


def runtime_of(made: PteProgram, name: str) -> PteRuntime:
    path = Path(ROOM.name) / f"{name}.pte"
    path.write_bytes(made.file)
    return PteRuntime(path)


def chunks(seed: int) -> Iterator[tuple[int, int]]:
    """Three texts cut into calls of 1 to PROMPT tokens: (begin, end), the later texts beginning anew."""
    draw = random.Random(seed)
    for length in (CONTEXT, RING + 2, CONTEXT):
        begin = 0
        while begin < length:
            end = min(length, begin + draw.choice((1, 2, PROMPT - 1, PROMPT)))
            yield begin, end
            begin = end


CALLS = [call for seed in (0, 1) for call in chunks(seed)]
ENDS = [end - 1 for _, end in CALLS]


def over_texts(runtime: PteRuntime) -> torch.Tensor:
    """Logits after every call."""
    return torch.stack([runtime.step(TEXT[begin:end], begin) for begin, end in CALLS])


@pytest.fixture(scope="module")
def expected() -> torch.Tensor:
    """transformers' logits of every position, no cache."""
    with torch.no_grad():
        return reference(NAME)(torch.tensor([TEXT]), use_cache=False).logits[0]


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_rings_agree_with_whole_slots_in_any_chunks_of_any_text(monkeypatch, expected, kind):
    """Texts four times as long as the ring, calls that wrap, and texts begun where an older one's rows still lie."""
    got = over_texts(runtime_of(built(kind), f"ring-{kind}"))
    monkeypatch.setattr(program, "kv_rows", whole)
    unringed = runtime_of(built.__wrapped__(kind), f"whole-{kind}")
    want = over_texts(unringed)
    by_call = (got - want).abs().amax(dim=1) / want.abs().max()
    assert by_call.median() < LIMIT
    assert by_call.max() < (STEP if kind == "int8" else LIMIT)
    if kind != "int8":
        assert error(got, expected[ENDS]) < LIMIT


def one_less(recognised, plan, context, max_prompt):
    return {slot: rows - (rows < context) for slot, rows in kv_rows(recognised, plan, context, max_prompt).items()}


def another_window(change):
    right = attention._within

    def within(rule, context):
        rule = right(rule, context)
        return rule if rule.window is None else dataclasses.replace(rule, window=rule.window + change)

    return within


def unwrapped(rule, rows, positions, start, length):
    """The mask of a slot whose rows are positions."""
    return attention.unseen(rule, positions, start, length)[:, :rows]


def of_any_text(rule, rows, positions, start, length):
    """The mask of a position that has a whole window before it."""
    at = positions.narrow(0, start, length)[:, None]
    return torch.where(torch.remainder(at + rows - positions[:rows], rows) < rule.window, 0.0, attention.UNSEEN)


MUTATIONS = {
    "a window one longer": (attention, "_within", another_window(1)),
    "a window one shorter": (attention, "_within", another_window(-1)),
    "a ring one row short": (program, "kv_rows", one_less),
    "a mask that does not wrap": (attention, "unseen_in_ring", unwrapped),
    "what was there before the text": (attention, "unseen_in_ring", of_any_text),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_ring_that_is_wrong_by_a_row_would_show(monkeypatch, expected, mutation):
    monkeypatch.setattr(*MUTATIONS[mutation])
    got = over_texts(runtime_of(built.__wrapped__("custom"), "mutated"))
    assert error(got, expected[ENDS]) > 100 * LIMIT


@given(st.integers(1, 9), st.booleans(), st.integers(1, 9), st.lists(st.integers(1, 9), max_size=30))
def test_a_mask_lets_through_what_the_rule_sees_and_nothing_else(bound, chunked, max_prompt, calls):
    """Against rows written one by one, in a ring just as long as any call needs."""
    rule = AttentionRule(1.0, chunk=bound) if chunked else AttentionRule(1.0, window=bound)
    rows, positions = bound + max_prompt - 1, torch.arange(300)
    held, start = dict.fromkeys(range(rows)), 0
    for length in (min(call, max_prompt) for call in calls):
        held |= {position % rows: position for position in range(start, start + length)}
        visible = attention.unseen_in_ring(rule, rows, positions, start, length) == 0
        for row, sees in enumerate(visible.tolist(), start):
            wanted = seen(rule, torch.tensor([row]), positions)[0].nonzero().flatten().tolist()
            assert sorted(held[place] for place in range(rows) if sees[place]) == wanted
        start += length


def cache_bytes(file: bytes) -> int:
    """Bytes of the program's tensors that a cache is written into: the second argument of the operators that write."""
    plan = deserialize_pte_binary(file).program.execution_plan[0]
    written_to = {
        call.args[1]
        for chain in plan.chains
        for instruction in chain.instructions
        if isinstance(call := instruction.instr_args, KernelCall)
        and plan.operators[call.op_index].name.startswith("llama::update_cache")
    }
    tensors = [plan.values[value].val for value in written_to]
    return sum(BYTES[int(tensor.scalar_type)] * torch.Size(tensor.sizes).numel() for tensor in tensors)


@pytest.mark.parametrize(("kind", "head"), [("custom", 4 * 24), ("int8", 24 + 5)])
def test_a_manifest_counts_the_rows_the_program_has(tmp_path, kind, head):
    """Key and value of 2 heads, a row of `head` bytes; two slots of a window's rows, one of the context's."""
    made, kv = built(kind), KINDS[kind][1]
    manifest = write_artifact(tmp_path, made, weights(kv), PteOptions(CONTEXT, PROMPT), None)
    found = manifest.kv_cache
    assert (found.dtype, found.slots, found.rows) == (kv, 3, [RING, CONTEXT, RING])
    assert found.bytes_per_token == 2 * 2 * head
    assert found.bytes_at_max_context == 2 * 2 * head * (CONTEXT + 2 * RING) == cache_bytes(made.file)
    assert f"It holds {RING} rows in 2 of 3 slots, whose tokens see no further back.\n" in card(manifest)
    assert "not at a position between" in card(manifest)
    line = next(line for line in report(manifest, tmp_path).splitlines() if line.startswith("kv cache"))
    assert line.endswith(f" MiB at context {CONTEXT}; {RING} rows in 2 of 3 slots")


@pytest.mark.parametrize(
    ("context", "max_prompt", "rows"),
    [(64, 8, [15, 64, 15]), (15, 8, [15, 15, 15]), (14, 8, [14, 14, 14]), (64, 1, [8, 64, 8])],
)
def test_a_slot_is_no_longer_than_the_context(context, max_prompt, rows):
    held = weights("float32")
    assert list(kv_rows(held.recognised, held.plan, context, max_prompt).values()) == rows


def test_a_page_says_what_windows_spare(tmp_path, capsys):
    """At 1,024 tokens, in calls of 128: a slot of the context's rows, and two of 8 + 127; key and value, 2 heads of 24."""
    long = write_family(tmp_path, NAME, max_position_embeddings=4096)
    assert run(["inspect", str(long)]) == 0
    kept = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("kv cache", "windows"))]
    float32, int8 = (2 * 2 * head * (1024 + 2 * 135) / 2**20 for head in (4 * 24, 24 + 5))
    assert kept == [
        "kv cache   1,152 bytes a token in float32, 348 in int8; at 1,024 tokens 1.1 MiB and 0.3 MiB",
        f"windows    2 of 3 slots; a .pte holds no more than they see: {float32:.1f} MiB and {int8:.1f} MiB",
    ]
    assert run(["inspect", str(long), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kv_reach"] == [WINDOW, None, WINDOW]
    assert run(["inspect", str(written("qwen2"))]) == 0
    assert "windows" not in capsys.readouterr().out
