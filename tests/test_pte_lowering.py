"""The lowering's claims one by one, and the verification's: each mutated build must be found out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from exported import CONTEXT, PROMPT, artifact, checkpoint, program_file, weights_of

from mobile_export.cli import run
from mobile_export.emit.executorch import attention, program, segments
from mobile_export.emit.executorch.delegable import for_xnnpack
from mobile_export.emit.executorch.lowering import instantiate, lower, lower_template, put_weight
from mobile_export.emit.executorch.pieces import constants_of, random_weight
from mobile_export.emit.executorch.program import PteOptions
from mobile_export.emit.pte_methods import constant_methods
from mobile_export.manifest import PteGraph
from mobile_export.model.decoder import FeedForward
from mobile_export.quantize import clip_search
from mobile_export.quantize.recipe import Precision
from mobile_export.quantize.weights import ModelWeights
from mobile_export.verify.pte import verify_pte
from mobile_export.verify.verdict import Verification

W4 = Precision(4, 32)


def verification(path: Path, weights: ModelWeights) -> Verification:
    methods = constant_methods(weights.recognised.spec, weights.plan, PteOptions(CONTEXT, PROMPT), 1, (2,))
    return verify_pte(path, weights, PteGraph(PROMPT, "custom", {}, 0, 0, methods), CONTEXT)


@pytest.mark.parametrize("precision", [W4, Precision(8), Precision(32)], ids=str)
def test_an_instantiated_payload_is_the_stock_lowering_to_the_byte(precision):
    """A block lowered by itself, and the template with this block's constants: same payload, same named bytes."""
    spec = weights_of(checkpoint()).recognised.spec

    def piece():
        with torch.device("meta"):
            empty = FeedForward(spec)
        return for_xnnpack(empty)

    names = {f"{name}.weight": precision for name in ("o", "gate", "up", "down")}
    template = lower_template(piece(), names, ((64,), (4, 16)), ((64,),), PROMPT)
    generator = torch.Generator().manual_seed(7)
    alone = piece()
    values = {}
    for name, parameter in list(alone.named_parameters()):
        quantized = name in names and precision.bits < 32
        values[name] = (
            random_weight(parameter.shape, precision, generator)
            if quantized
            else torch.randn(parameter.shape, generator=generator)
        )
        put_weight(alone, name, values[name])
    stock, order = lower(alone, ((64,), (4, 16)), PROMPT)
    mine = instantiate(template, {name: constants_of(value) for name, value in values.items()})
    assert mine.order == order
    assert mine.lowered.processed_bytes == stock.processed_bytes
    stored, made = (m.named_data_store_output for m in (stock, mine.lowered))
    assert {k: stored.buffers[e.buffer_index] for k, e in stored.pte_data.items()} == {
        k: made.buffers[e.buffer_index] for k, e in made.pte_data.items()
    }


def test_blocks_of_equal_weights_and_all_ones_norms_lower(tmp_path):
    """Constants that are equal bytes share a name; the template's own never are, so nothing is mixed up."""
    from tiny_checkpoints import llama_tensors, write_llama, write_weights

    folder = write_llama(tmp_path)
    tensors = llama_tensors()
    for name in tensors:
        if name.endswith("norm.weight"):
            tensors[name] = torch.ones_like(tensors[name])
        if "up_proj" in name:
            tensors[name] = tensors[name.replace("up_proj", "gate_proj")].clone()
    write_weights(folder, tensors)
    weights = weights_of(folder)
    assert verification(program_file(weights, tmp_path / "model.pte"), weights).passed


def test_another_checkpoint_is_found_out(capsys):
    other = checkpoint(seed=1)
    assert run(["verify", str(artifact(checkpoint())), "--against", str(other)]) == 1
    assert "verified FAILED" in capsys.readouterr().out


def test_a_dropped_schedule_is_found_out():
    once = artifact(checkpoint()) / "model.pte"
    found = verification(once, weights_of(checkpoint(), schedule="immediate"))
    assert not found.passed
    assert any(check.name.startswith("two tokens") and not check.passed for check in found.checks)


def test_executions_that_share_a_slot_are_found_out(tmp_path, monkeypatch):
    right = attention.CustomAttention.forward
    monkeypatch.setattr(attention.CustomAttention, "forward", lambda self, slot, *rest: right(self, slot // 2, *rest))
    weights = weights_of(checkpoint(), schedule="immediate")
    assert not verification(program_file(weights, tmp_path / "model.pte"), weights).passed


def test_scales_that_bfloat16_does_not_hold_are_found_out(tmp_path, monkeypatch):
    right = clip_search._search
    monkeypatch.setattr(clip_search, "_search", lambda *a: right(*a) * 1.001)
    weights = weights_of(checkpoint())
    found = verification(program_file(weights, tmp_path / "model.pte"), weights)
    assert [check.name for check in found.checks if not check.passed], "codes for one scale, stored beside another"


def test_a_wrong_position_is_found_out(tmp_path, monkeypatch):
    right = program.Decoder.hidden

    def one_late(self, tokens, start):
        return right(self, tokens, start + 1)

    monkeypatch.setattr(program.Decoder, "hidden", one_late)
    weights = weights_of(checkpoint())
    path = program_file(weights, tmp_path / "model.pte")
    monkeypatch.undo()
    assert not verification(path, weights).passed


def test_unmerged_delegates_would_show(tmp_path, monkeypatch):
    """Without the merge every call has an entry, and so a packed copy, of its own."""
    weights = weights_of(checkpoint(), schedule="immediate")
    options = PteOptions(CONTEXT, PROMPT)
    merged = program.build_program(weights, options, 1, (2,))
    monkeypatch.setattr(segments, "merge_equal_delegates", lambda plan: None)
    unmerged = program.build_program(weights, options, 1, (2,))
    assert (merged.delegates, merged.calls, unmerged.delegates) == (5, 9, 9)


@pytest.mark.parametrize("damage", ["truncated", "header", "empty"])
def test_a_damaged_program_is_refused_in_one_line(tmp_path, capsys, damage):
    source = artifact(checkpoint())
    folder = tmp_path / "out"
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    whole = (folder / "model.pte").read_bytes()
    (folder / "model.pte").write_bytes({"truncated": whole[:-1000], "header": b"x" * 64 + whole[64:], "empty": b""}[damage])
    assert run(["verify", str(folder), "--against", str(checkpoint())]) == 3
    error = capsys.readouterr().err
    assert error.startswith(f"error: {folder}/model.pte: SHA-256 ")
    assert error.count("\n") == 1


def test_a_program_that_is_none_does_not_load(tmp_path):
    from mobile_export.errors import InputError
    from mobile_export.verify.pte_runtime import PteRuntime

    (tmp_path / "model.pte").write_bytes(b"ET12" * 1000)
    with pytest.raises(InputError, match="ExecuTorch does not load it"):
        PteRuntime(tmp_path / "model.pte")


@pytest.mark.parametrize("recipe", ["fp32", "w4-fast"])
def test_without_transformers_the_float32_oracle_is_our_own_decoder_and_says_so(monkeypatch, recipe):
    from mobile_export.verify import oracle

    weights = weights_of(checkpoint(), recipe=recipe)
    named, stock = oracle.float32_oracle(weights, CONTEXT)
    assert named == "transformers in float32"
    monkeypatch.setattr(oracle.importlib.util, "find_spec", lambda name: None)
    said, own = oracle.float32_oracle(weights, CONTEXT)
    assert "transformers is not installed" in said
    tokens = [5, 17, 40, 3]
    assert (own(tokens) - stock(tokens)).abs().max() <= 1e-5 * stock(tokens).abs().max()
