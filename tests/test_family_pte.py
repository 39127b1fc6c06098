"""Families and the .pte emitter: what it lowers agrees with transformers, what it does not is refused before any work."""

import pytest
import torch
from exported import CONTEXT, artifact, program_file, weights_of
from tiny_families import FAMILIES, TOKENS, VOCAB, reference, reference_logits, write_family, written

from mobile_export.cli import run
from mobile_export.emit.executorch.lowerable import check_lowerable
from mobile_export.errors import InputError
from mobile_export.families import recognise
from mobile_export.verify.pte_runtime import PteRuntime

LIMIT = 1e-4  # of the largest logit: float32 in another order
LOWERED = ("qwen2",)
REFUSED = {
    "gpt2-cerebras": "adds learned positions",
    "opt-350m": "adds learned positions",
    "gpt-neo": "adds learned positions",
    "pythia": "adds attention and feed-forward in parallel",
    "neox-sequential": "uses LayerNorm",
    "bloom": "adds ALiBi",
    "falcon-rw": "adds ALiBi",
    "falcon-7b": "adds attention and feed-forward in parallel",
    "qwen2-window": "attends within a window",
    "qwen3": "norms query and key",
    "smollm3": "leaves blocks without a rotation",
    "gemma3": "attends within a window",
    "phi2": "adds attention and feed-forward in parallel",
    "phi3": "attends within a window",
    "phi4-mini": "rotates part of a head",
    "llama4-r1": "norms query and key",
    "llama4-chunks": "attends within chunks",
    "rwkv4": "is recurrent",
    "lfm2": "mixes by a short convolution",
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_lowered_or_refused_by_name(name):
    spec = recognise_written(name)
    if name in LOWERED:
        check_lowerable(spec, CONTEXT)
        return
    with pytest.raises(InputError) as error:
        check_lowerable(spec, CONTEXT)
    assert error.value.exit_code == 3
    start, end = (
        f"config.json: family {spec.family!r} ",
        ", which the .pte emitter does not lower yet; try `mobile-export onnx`",
    )
    line = str(error.value)
    assert line.startswith(start)
    assert line.endswith(end)
    feature = line.removeprefix(start).removesuffix(end)
    assert feature == REFUSED.get(name, feature)


def recognise_written(name):
    from mobile_export.checkpoint import open_checkpoint

    return recognise(open_checkpoint(str(written(name)))).spec


def test_a_refusal_comes_before_any_work_and_writes_nothing(tmp_path, capsys, monkeypatch):
    def never(*_):
        raise AssertionError("work was done")

    monkeypatch.setattr("mobile_export.emit.executorch.program.lower_pieces", never)
    out = tmp_path / "out"
    assert run(["pte", str(written("bloom")), "--out", str(out)]) == 3
    assert capsys.readouterr().err.strip().splitlines()[-1] == (
        "error: config.json: family 'bloom' adds ALiBi, which the .pte emitter does not lower yet; try `mobile-export onnx`"
    )
    assert not out.exists()


def test_a_window_no_shorter_than_the_context_is_none():
    spec = recognise_written("qwen2-window")
    check_lowerable(spec, 7)
    with pytest.raises(InputError):
        check_lowerable(spec, 8)


def test_a_qwen2_pte_computes_what_transformers_computes(tmp_path):
    """Its bias on query, key and value alone is all that sets it apart from a Llama."""
    assert reference("qwen2").model.layers[0].self_attn.q_proj.bias.abs().max() > 0.1
    weights = weights_of(written("qwen2"), recipe="fp32")
    runtime = PteRuntime(program_file(weights, tmp_path / "m.pte"))
    want = reference_logits("qwen2")
    got = torch.stack([runtime.step([token], at).view(VOCAB) for at, token in enumerate(TOKENS)])
    assert (got - want).abs().max() / want.abs().max() < LIMIT


def test_a_quantized_qwen2_passes_its_verification(tmp_path):
    assert (artifact(write_family(tmp_path, "qwen2"), "--recipe", "w4") / "model.pte").is_file()
