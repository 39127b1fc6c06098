"""What each family reads in config.json and in the file: every row once, defaults, ties, and each refusal's whole line."""

import math
from collections import defaultdict

import pytest
import torch
from tiny_families import FAMILIES, LONGROPE, POSITIONS, write_family, written

from mobile_export.checkpoint import open_checkpoint
from mobile_export.cli import run
from mobile_export.errors import InputError
from mobile_export.families import Rows, Take, recognise, settle
from mobile_export.model.attention_rule import AttentionRule, alibi_bias, alibi_slopes
from mobile_export.sharing import plan_sharing

BY_TYPE = {tiny.model_type: name for name, tiny in FAMILIES.items()}
TIED_BY_DEFAULT = {"gpt2", "opt", "gpt_neo", "bloom", "falcon", "smollm3", "gemma3_text", "lfm2"}
COMPARE = "compare it with the config.json the checkpoint was trained with"


def recognised(folder):
    return recognise(open_checkpoint(str(folder)))


def refusal(folder):
    """The line `recognise` refuses a checkpoint with."""
    checkpoint = open_checkpoint(str(folder))
    with pytest.raises(InputError) as error:
        recognise(checkpoint)
    assert error.value.exit_code == 3
    return str(error.value)


# --- every row of every tensor -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_row_of_every_tensor_is_taken_exactly_once(tmp_path, name, old):
    """Save for one norm that serves attention and feed-forward: it is taken whole by both."""
    checkpoint = open_checkpoint(str(write_family(tmp_path, name, old=old)))
    found = recognise(checkpoint)
    rows = defaultdict(list)
    for source in found.weights.values():
        for (tensor, take), shape in zip(source.parts(), source.shapes, strict=True):
            assert shape == checkpoint.tensors[tensor].shape
            index = torch.arange(shape[0]).float().view(-1, *[1] * (len(shape) - 1)).expand(shape)
            taken = take.of(index)
            assert tuple(taken.shape) == take.shape(shape)
            rows[tensor] += sorted({*taken.flatten().tolist()}) if take.value == "stored" else range(shape[0])
    assert set(rows) | set(found.ignored) == set(checkpoint.tensors)
    assert not set(rows) & set(found.ignored)
    serving_both = ("input_layernorm",) if name in ("phi2", "phi-qk-norm", "falcon-7b", "falcon-11b") else ()
    for tensor, taken in rows.items():
        times = 2 if any(part in tensor for part in serving_both) else 1
        assert sorted(taken) == sorted(times * list(range(checkpoint.tensors[tensor].shape[0]))), tensor


@pytest.mark.parametrize(
    ("name", "buffers"),
    [
        ("gpt2-lamini", {"transformer.h.0.attn.bias": (1, 1, 64, 64), "transformer.h.1.attn.masked_bias": ()}),
        ("gpt-neo", {"transformer.h.0.attn.attention.bias": (1, 1, 64, 64)}),
        ("pythia", {"gpt_neox.layers.0.attention.bias": (1, 1, 64, 64), "gpt_neox.layers.1.attention.masked_bias": (),
                    "gpt_neox.layers.1.attention.rotary_emb.inv_freq": (2,)}),
        ("falcon-7b", {"transformer.h.0.self_attention.rotary_emb.inv_freq": (8,)}),
        ("phi2", {"model.layers.0.self_attn.rotary_emb.inv_freq": (4,)}),
        ("qwen2", {"model.layers.0.self_attn.rotary_emb.inv_freq": (8,)}),
    ],
)  # fmt: skip
def test_masks_and_tables_of_old_files_are_no_weights(tmp_path, name, buffers):
    def add(tensors):
        tensors.update({key: torch.ones(shape) for key, shape in buffers.items()})

    found = recognised(write_family(tmp_path, name, edit=add))
    assert set(found.ignored) == set(buffers)
    assert found.weights == recognised(written(name)).weights


def test_rows_and_values_worked_by_hand():
    stored = torch.arange(24.0).view(12, 2)
    assert Take(rows=Rows(1, 3, period=6)).of(stored).tolist() == [[2, 3], [4, 5], [14, 15], [16, 17]]
    assert Take(rows=Rows(10, 12)).of(stored).tolist() == [[20, 21], [22, 23]]
    assert Take(transposed=True, rows=Rows(1, 2)).of(stored).tolist() == [list(range(1, 24, 2))]
    assert Take(flattened=True).of(stored[:1, None]).tolist() == [0, 1]
    assert Take(value="plus_one").of(torch.tensor([0.25])).tolist() == [1.25]
    assert Take(value="minus_exp").of(torch.tensor([0.0, 1.0])).tolist() == pytest.approx([-1, -math.e])


# --- positions -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 6, 8, 12, 16, 25, 32])
def test_alibi_slopes_are_those_of_transformers(heads):
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor as bloom
    from transformers.models.falcon.modeling_falcon import build_alibi_tensor as falcon

    mask, keys = torch.ones(1, 300), torch.arange(300)
    got = alibi_bias(AttentionRule(1.0, alibi="bloom"), heads, keys)
    assert torch.allclose(got, bloom(mask, heads, torch.float32), rtol=1e-6, atol=0)
    rounded = alibi_bias(AttentionRule(0.25, alibi="falcon"), heads, keys)
    assert torch.equal(rounded, falcon(mask.long(), heads, torch.float32) / 4)
    assert len(alibi_slopes(heads)) == heads


def test_a_position_table_sets_the_context():
    for name in ("gpt2-lamini", "gpt-neo"):
        spec = recognised(written(name)).spec
        assert (spec.max_position_embeddings, spec.learned_positions, spec.position_offset) == (POSITIONS, POSITIONS, 0)
    spec = recognised(written("opt-125m")).spec
    assert (spec.max_position_embeddings, spec.learned_positions, spec.position_offset) == (POSITIONS, POSITIONS + 2, 2)


def test_blooms_context_is_its_sequence_length(tmp_path):
    assert recognised(written("bloom")).spec.max_position_embeddings == 2048
    assert recognised(write_family(tmp_path, "bloom", seq_length=100)).spec.max_position_embeddings == 100


def test_longrope_serves_its_original_context_by_its_short_factors(tmp_path, capsys):
    spec = recognised(written("phi4-mini")).spec
    assert spec.max_position_embeddings == POSITIONS
    plain = [10_000 ** (-i / 6) for i in range(6)]
    expected = [slow / factor for slow, factor in zip(plain, LONGROPE["short_factor"], strict=True)]
    assert spec.ropes[0].inverse_frequencies == pytest.approx(expected, rel=1e-6)
    assert spec.ropes[0].attention_factor == pytest.approx(math.sqrt(1 + math.log(4) / math.log(POSITIONS)))
    assert run(["pte", str(written("phi4-mini")), "--out", str(tmp_path / "out"), "--max-context", "65"]) == 3
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("warning: config", "error: "))]
    assert said == [
        "warning: config.json: beyond 64 of 256 positions longrope rotates by its long factors; "
        "a graph holds one set, the short one: 64 positions are all it serves",
        "error: --max-context: 65 positions, the model was trained for 64; use at most 64",
    ]


@pytest.mark.parametrize(("name", "changes"), [("phi3", {}), ("phi4-mini", {"max_position_embeddings": POSITIONS})])
def test_a_context_that_is_served_whole_is_not_remarked_upon(tmp_path, name, changes):
    assert settle(open_checkpoint(str(write_family(tmp_path, name, **changes)))).warnings == (
        f"{tmp_path}: has no tokenizer.json, tokenizer.model or vocab.json with merges.txt, so the artifact will have none",
    )


# --- ties ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", BY_TYPE)
def test_a_missing_tie_flag_is_what_transformers_takes_it_for(tmp_path, model_type):
    from transformers import AutoConfig

    name = BY_TYPE[model_type]
    default = AutoConfig.for_model(model_type).tie_word_embeddings
    assert default == (model_type in TIED_BY_DEFAULT)
    found = recognised(write_family(tmp_path, name, tie_word_embeddings=None))
    assert found.flags.tied == (f"tie_word_embeddings: {str(default).lower()} by default", default)


@pytest.mark.parametrize("flag", [True, False, None])
@pytest.mark.parametrize("model_type", BY_TYPE)
def test_the_tensors_decide_the_tie(tmp_path, model_type, flag):
    name = BY_TYPE[model_type]
    table = recognised(written(name)).weights["embedding.weight"].tensors[0]

    def head(values):
        def edit(tensors):
            for key in ("lm_head.weight", "embed_out.weight", "head.weight"):
                tensors.pop(key, None)
            if values is not None:
                tensors["head.weight" if model_type == "rwkv" else "lm_head.weight"] = values(tensors[table])

        return edit

    for case, values, tied in (
        ("absent", None, True),
        ("equal", lambda t: t.clone(), True),
        ("different", lambda t: t + torch.eye(*t.shape), False),
    ):
        folder = write_family(tmp_path / case, name, edit=head(values), tie_word_embeddings=flag)
        checkpoint = open_checkpoint(str(folder))
        plan = plan_sharing(checkpoint, recognise(checkpoint))
        assert plan.tied == tied
        said = flag if flag is not None else model_type in TIED_BY_DEFAULT
        assert len(plan.warnings) == (said != tied)
        assert "MobileLLM" not in "".join(plan.warnings)


def test_lfm2s_own_word_for_the_tie(tmp_path):
    folder = write_family(tmp_path, "lfm2", tie_word_embeddings=None, tie_embedding=False)
    assert recognised(folder).flags.tied == ("tie_embedding: false", False)


# --- what a config may leave out ---------------------------------------------------------------------------------------------


def test_windows_count_only_where_they_are_switched_on(tmp_path):
    """Every Qwen config names a window."""
    folder = write_family(tmp_path / "q", "qwen2", sliding_window=7, max_window_layers=0, layer_types=None)
    assert [kind.window for kind in recognised(folder).spec.blocks] == [None, None]
    folder = write_family(
        tmp_path / "w", "qwen2", use_sliding_window=True, sliding_window=7, max_window_layers=1, layer_types=None
    )
    assert [kind.window for kind in recognised(folder).spec.blocks] == [None, 7]


def test_head_dim_of_qwen3_is_128_where_it_is_left_out(tmp_path):
    assert "[128, 64], config.json implies [512, 64]" in refusal(write_family(tmp_path, "qwen3", head_dim=None))


def test_r1s_keys_of_other_families_change_nothing(tmp_path):
    folder = write_family(tmp_path, "llama4-r1", sliding_window=512, query_pre_attn_scalar=256, layer_types=None)
    spec = recognised(folder).spec
    assert {kind.window for kind in spec.blocks} == {None}
    assert spec.attention_scale is None
    assert [kind.rope for kind in spec.blocks] == [0, 0, 0]


@pytest.mark.parametrize(
    ("written_as", "size"),
    [
        ({"block_ff_dim": 6656, "block_multiple_of": 256}, 4608),
        ({"block_ff_dim": 100, "block_multiple_of": 32, "block_ffn_dim_multiplier": 1.5}, 128),
        ({"intermediate_size": 4608, "block_auto_adjust_ff_dim": False}, 4608),
    ],
    ids=str,
)
def test_lfm2s_width_follows_from_the_block_keys(tmp_path, written_as, size):
    changes = {"intermediate_size": None, "block_multiple_of": None, **written_as}
    assert f"config.json implies [{size}, 64]" in refusal(write_family(tmp_path, "lfm2", **changes))


# --- refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "line"),
    [
        ("gpt2-lamini", {"scale_attn_by_inverse_layer_idx": True},
         "config.json: scale_attn_by_inverse_layer_idx is true, which is not supported; use a checkpoint trained without it"),
        ("gpt2-lamini", {"activation_function": "gelu_10"},
         "config.json: activation_function 'gelu_10' is not supported; "
         "supported: silu, swish, relu, gelu, gelu_new, gelu_pytorch_tanh, gelu_fast"),
        ("gpt2-lamini", {"n_embd": None}, f"config.json: n_embd is missing; {COMPARE}"),
        ("gpt2-lamini", {"n_head": 5}, "config.json: n_embd 64 is not a multiple of n_head 5; check both"),
        ("gpt2-lamini", {"n_positions": 128},
         "model.safetensors: transformer.wpe.weight: shape is [64, 64], config.json implies [128, 64]; "
         "use the config.json this checkpoint was saved with"),
        ("opt-125m", {"max_position_embeddings": 66},
         "model.safetensors: model.decoder.embed_positions.weight: shape is [66, 64], config.json implies [68, 64]; "
         "use the config.json this checkpoint was saved with"),
        ("bloom", {"apply_residual_connection_post_layernorm": True},
         "config.json: apply_residual_connection_post_layernorm is true, which is not supported; "
         "use a checkpoint trained without it"),
        ("gpt-neo", {"attention_types": [[["global", "local"], 1]]},
         f"config.json: attention_types has 2 values for 3 blocks; {COMPARE}"),
        ("gpt-neo", {"attention_types": [[["global", "sparse"], 2]]},
         "config.json: attention_types holds 'sparse', which this family does not compute; supported: global, local"),
        ("gpt-neo", {"attention_types": "global"},
         f"config.json: attention_types is 'global', not runs of kinds; {COMPARE}"),
        ("pythia", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.2}},
         "config.json: partial_rotary_factor 0.2 of head_dim 16 are 3 channels; check both: channels are rotated in pairs"),
        ("pythia", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 2.0}},
         "config.json: partial_rotary_factor 2.0 of head_dim 16 are 32 channels; check both: channels are rotated in pairs"),
        ("qwen2-window", {"sliding_window": 0}, f"config.json: sliding_window is 0, not a positive integer; {COMPARE}"),
        ("qwen2", {"layer_types": ["full_attention", "sliding_attention"]},
         f"config.json: sliding_window is missing; {COMPARE}"),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": "1", "layer_types": None},
         f"config.json: max_window_layers is '1', not a block's number; {COMPARE}"),
        ("qwen2", {"layer_types": ["full_attention"]}, f"config.json: layer_types has 1 values for 2 blocks; {COMPARE}"),
        ("smollm3", {"no_rope_layers": [1, 2, 1]},
         "config.json: no_rope_layers holds 2, which this family does not compute; supported: 0, 1"),
        ("gemma3", {"use_bidirectional_attention": True},
         "config.json: use_bidirectional_attention is true, which is not supported; use a causal checkpoint"),
        ("gemma3", {"attn_logit_softcapping": 50.0},
         "config.json: attn_logit_softcapping is set, which no Gemma 3 was trained with; write null"),
        ("gemma3", {"rope_parameters": {"rope_type": "default"}},
         "config.json: rope_parameters is not one object for each kind of block; write full_attention, sliding_attention"),
        ("phi4-mini", {"rope_parameters": {**LONGROPE, "short_factor": [1.0]}},
         "config.json: rope_type 'longrope' has 1 short_factor values for 6 frequencies; check rope_scaling"),
        ("phi4-mini", {"original_max_position_embeddings": None, "rope_parameters": LONGROPE},
         f"config.json: original_max_position_embeddings is missing; {COMPARE}"),
        ("phi3", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "short_mscale": 1.2}},
         "config.json: rope_parameters holds short_mscale, which is not supported; use a dense Phi-3"),
        ("phi3", {"rope_parameters": {"rope_type": "llama3"}},
         "config.json: rope_type 'llama3' is not supported; supported: default, longrope"),
        ("pythia", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 1e308}},
         "config.json: partial_rotary_factor 1e+308 of head_dim 16 are 1600 channels; "
         "check both: channels are rotated in pairs"),
        ("phi4-mini", {"original_max_position_embeddings": 1},
         "config.json: original_max_position_embeddings is 1, from which no context grows; check rope_scaling"),
        ("qwen3", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 1e-300}},
         "config.json: a rotary frequency is not finite in float32; check rope_theta and rope_scaling"),
        ("lfm2", {"block_ffn_dim_multiplier": 1e308},
         f"config.json: block_ffn_dim_multiplier is 1e+308, not a plausible factor; {COMPARE}"),
        ("llama4-r1", {"moe_layers": [1]},
         "config.json: moe_layers is [1]: a mixture of experts, which is not supported; use a dense model"),
        ("llama4-r1", {"moe_layers": None},
         "config.json: interleave_moe_layer_step is 1: a mixture of experts, which is not supported; use a dense model"),
        ("llama4-r1", {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
         "config.json: layer_types holds 'sliding_attention', which this family does not compute; "
         "supported: full_attention, chunked_attention"),
        ("llama4-r1", {"use_qk_norm": "yes"}, "config.json: use_qk_norm is 'yes'; write true or false"),
        ("lfm2", {"layer_types": ["conv", "mamba", "conv"]},
         "config.json: layer_types holds 'mamba', which this family does not compute; supported: full_attention, conv"),
        ("rwkv4", {"hidden_size": None}, f"config.json: hidden_size is missing; {COMPARE}"),
        ("falcon-new", {"num_kv_heads": 3},
         "config.json: num_attention_heads 4 is not a multiple of num_kv_heads 3; "
         "check both against the checkpoint's own config.json"),
    ],
)  # fmt: skip
def test_a_config_that_is_not_understood(tmp_path, name, changes, line):
    assert refusal(write_family(tmp_path, name, old=False, **changes)) == line


def test_a_layer_type_that_is_no_text(tmp_path):
    assert "layer_types holds ['conv']" in refusal(write_family(tmp_path, "lfm2", layer_types=[["conv"], "conv", "conv"]))
    assert "full_attn_idxs is 1" in refusal(write_family(tmp_path / "2", "lfm2", layer_types=None, full_attn_idxs=1))


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        (BY_TYPE[kind], {key: 10**12})
        for kind, keys in {
            "gpt2": ("n_layer", "n_embd", "n_positions", "n_inner"),
            "opt": ("num_hidden_layers", "hidden_size", "max_position_embeddings", "word_embed_proj_dim"),
            "gpt_neo": ("num_layers", "max_position_embeddings"),
            "bloom": ("n_layer", "n_head"),
            "falcon": ("num_hidden_layers", "hidden_size"),
            "gemma3_text": ("num_hidden_layers", "head_dim"),
            "lfm2": ("num_hidden_layers", "conv_L_cache", "intermediate_size"),
            "llama4_text": ("num_hidden_layers", "intermediate_size_mlp"),
            "rwkv": ("num_hidden_layers", "hidden_size", "attention_hidden_size", "intermediate_size"),
        }.items()
        for key in keys
    ],
    ids=str,
)
def test_a_config_that_asks_for_terabytes_is_refused_at_once(tmp_path, name, asked):
    from test_families import within

    folder = write_family(tmp_path, name, layer_types=None, no_rope_layers=None, attention_types=None, **asked)
    checkpoint = open_checkpoint(str(folder))
    torch.arange(4).float()
    with within(seconds=2, mebibytes=512), pytest.raises(InputError) as error:
        recognise(checkpoint)
    assert "config.json" in str(error.value)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_tensor_of_another_family_is_named(tmp_path, name):
    def add(tensors):
        tensors["model.layers.0.self_attn.rel_pos.weight"] = torch.ones(3)

    line = refusal(write_family(tmp_path, name, edit=add))
    assert f"family {FAMILIES[name].model_type!r} has no place for model.layers.0.self_attn.rel_pos.weight; " in line
