"""config.json -> DecoderSpec and weight map: every dialect, every tensor once, and what is refused with which line."""

import contextlib
import json
import math
import resource
import signal
from collections import Counter

import pytest
import torch
from tiny_checkpoints import llama_tensors, write_gguf, write_llama, write_mobilellm, write_weights

from mobile_export.checkpoint import open_checkpoint
from mobile_export.errors import InputError
from mobile_export.families import BlockSpec, DecoderSpec, SharingFlags, recognise

GONE = object()  # a key to take out of config.json
LLAMA_3_2 = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
}


def recognised(folder):
    return recognise(open_checkpoint(str(folder)))


def refusal(folder):
    """The line `recognise` refuses a checkpoint with; that it can be opened at all is not in question."""
    checkpoint = open_checkpoint(str(folder))
    with pytest.raises(InputError) as error:
        recognise(checkpoint)
    assert error.value.exit_code == 3
    return str(error.value)


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    config = {key: value for key, value in config.items() if value is not GONE}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_tensors(folder, tensors):
    """A tiny llama's folder with other tensors in it."""
    write_llama(folder)
    write_weights(folder, tensors)
    return folder


# --- the spec ------------------------------------------------------------------------------------------------------


def test_every_field_of_the_spec_comes_from_its_own_key(tmp_path):
    folder = write_llama(tmp_path, blocks=3, hidden=48, heads=6, kv_heads=3, head_dim=12, ffn=80, vocab=97, max_positions=123)
    edit_config(folder, rms_norm_eps=0.25, hidden_act="relu", rope_theta=50.0)
    spec = recognised(folder).spec
    assert spec == DecoderSpec(
        family="llama",
        vocab_size=97,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=12,
        intermediate_size=80,
        max_position_embeddings=123,
        norm_eps=0.25,
        hidden_act="relu",
        ropes=spec.ropes,
        blocks=(BlockSpec(),) * 3,
    )
    assert spec.ropes[0].inverse_frequencies == pytest.approx([50.0 ** (-i / 6) for i in range(6)], rel=1e-6)
    assert (spec.qkv_size, spec.attended_size) == (12 * 12, 6 * 12)


def test_what_an_old_config_leaves_out_has_the_defaults_of_llama(tmp_path):
    folder = edit_config(
        write_llama(tmp_path, heads=4, kv_heads=4),
        num_key_value_heads=GONE,
        max_position_embeddings=GONE,
        rms_norm_eps=GONE,
        hidden_act=GONE,
        rope_theta=GONE,
        rope_scaling=GONE,
    )
    from transformers import LlamaConfig

    default, spec = LlamaConfig(), recognised(folder).spec
    assert spec.num_key_value_heads == 4
    assert spec.head_dim == 16
    assert (spec.max_position_embeddings, spec.norm_eps, spec.hidden_act) == (
        default.max_position_embeddings,
        default.rms_norm_eps,
        default.hidden_act,
    )
    assert spec.ropes[0].inverse_frequencies == pytest.approx([10_000 ** (-i / 8) for i in range(8)], rel=1e-6)


@pytest.mark.parametrize(("attention_bias", "mlp_bias"), [(False, False), (True, False), (False, True), (True, True)])
def test_biases_are_decided_from_the_tensors(tmp_path, attention_bias, mlp_bias):
    folder = write_llama(tmp_path, attention_bias=attention_bias, mlp_bias=mlp_bias)
    edit_config(folder, attention_bias=not attention_bias, mlp_bias=GONE)
    spec = recognised(folder).spec
    assert (spec.qkv_bias, spec.o_bias, spec.ffn_bias) == (attention_bias, attention_bias, mlp_bias)


def test_query_key_value_biases_without_one_on_the_output(tmp_path):
    tensors = {n: t for n, t in llama_tensors(attention_bias=True).items() if not n.endswith("o_proj.bias")}
    spec = recognised(write_tensors(tmp_path, tensors)).spec
    assert (spec.qkv_bias, spec.o_bias) == (True, False)


# --- MobileLLM's two dialects ----------------------------------------------------------------------------------------


def test_the_hub_dialect_of_mobilellm(tmp_path):
    found = recognised(write_mobilellm(tmp_path, dialect="hub", layer_sharing=True))
    assert found.spec.family == "mobilellm"
    assert found.flags == SharingFlags(("share_embedding: true", True), False, 2, "layer_sharing: true")


def test_the_github_dialect_of_mobilellm_is_a_llama_that_says_nothing_of_sharing(tmp_path):
    found = recognised(write_mobilellm(tmp_path, dialect="github"))
    assert found.spec.family == "llama"
    assert found.flags == SharingFlags(("tie_word_embeddings: false", False))


def test_both_dialects_of_one_checkpoint_are_one_network(tmp_path):
    hub, github = (recognised(write_mobilellm(tmp_path / d, dialect=d)) for d in ("hub", "github"))
    assert vars(hub.spec) | {"family": ""} == vars(github.spec) | {"family": ""}
    assert hub.weights == github.weights


@pytest.mark.parametrize(
    ("dialect", "keys", "flags"),
    [
        ("hub", {"share_embedding": GONE}, SharingFlags(("share_embedding: true", True), False)),
        ("hub", {"share_embedding": False}, SharingFlags(("share_embedding: false", False))),
        ("hub", {"layer_sharing": GONE}, SharingFlags(("share_embedding: true", True), False)),
        ("hub", {"layer_sharing": None}, SharingFlags(("share_embedding: true", True), False)),
        ("github", {"share_embedding": True}, SharingFlags(("share_embedding: true", True), False)),
        (
            "github",
            {"share_embedding": True, "layer_sharing": True},
            SharingFlags(("share_embedding: true", True), False, 2, "layer_sharing: true"),
        ),
    ],
)
def test_sharing_flags_by_key(tmp_path, dialect, keys, flags):
    folder = edit_config(write_mobilellm(tmp_path, dialect=dialect), **keys)
    found = recognised(folder)
    assert found.flags == flags
    assert found.spec.family == "mobilellm"


@pytest.mark.parametrize("key", ["share_embedding", "layer_sharing"])
def test_a_sharing_flag_that_is_neither_true_nor_false(tmp_path, key):
    folder = edit_config(write_mobilellm(tmp_path), **{key: "yes"})
    assert refusal(folder) == f"config.json: {key} is 'yes'; write true or false"


# --- the weight map --------------------------------------------------------------------------------------------------


def write_without_prefix(folder):
    tensors = llama_tensors(tied=False)
    return write_tensors(folder, {name.removeprefix("model."): tensor for name, tensor in tensors.items()})


@pytest.mark.parametrize(
    "write",
    [
        write_llama,
        write_mobilellm,
        write_without_prefix,
        lambda folder: write_llama(folder, tied=False, attention_bias=True, mlp_bias=True, form="sharded"),
        lambda folder: write_llama(folder, duplicate_schedule=(0, 0, 1, 1)),
        lambda folder: write_mobilellm(folder, redundant_head="different", layer_sharing=True),
        lambda folder: write_gguf(folder / "m.gguf", tied=False, attention_bias=True),
    ],
)
def test_every_tensor_of_the_file_is_used_exactly_once(tmp_path, write):
    path = write(tmp_path)
    checkpoint = open_checkpoint(str(path))
    found = recognise(checkpoint)
    used = Counter(tensor for source in found.weights.values() for tensor in source.tensors)
    assert used == dict.fromkeys(checkpoint.tensors, 1)
    assert found.ignored == ()


def test_a_file_without_the_model_prefix_is_the_same_network(tmp_path):
    bare, whole = recognised(write_without_prefix(tmp_path / "bare")), recognised(write_llama(tmp_path / "m", tied=False))
    assert bare.spec == whole.spec
    assert {name: [tensor.removeprefix("model.") for tensor in source.tensors] for name, source in whole.weights.items()} == {
        name: list(source.tensors) for name, source in bare.weights.items()
    }


def test_query_key_and_value_are_stacked_in_this_order(tmp_path):
    source = recognised(write_llama(tmp_path)).weights["blocks.1.attention.qkv.weight"]
    attention = "model.layers.1.self_attn."
    assert source.tensors == tuple(f"{attention}{n}_proj.weight" for n in "qkv")
    assert source.shapes == ((64, 64), (32, 64), (32, 64))


def test_rotary_tables_of_old_files_are_no_weights(tmp_path):
    old = "model.layers.0.self_attn.rotary_emb.inv_freq"
    found = recognised(write_tensors(tmp_path, llama_tensors() | {old: torch.ones(8)}))
    assert found.ignored == (old,)
    assert old not in {tensor for source in found.weights.values() for tensor in source.tensors}


# --- tensors against config ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lost",
    ["model.embed_tokens.weight", "model.norm.weight", "model.layers.1.mlp.down_proj.weight",
     "model.layers.0.self_attn.k_proj.weight", "model.layers.1.input_layernorm.weight"],
)  # fmt: skip
def test_a_missing_tensor_is_named(tmp_path, lost):
    tensors = llama_tensors()
    del tensors[lost]
    assert refusal(write_tensors(tmp_path, tensors)) == (
        f"{tmp_path}: tensor {lost} is missing, and config.json implies it; "
        "is the download complete, and the config this checkpoint's?"
    )


def test_a_bias_that_one_block_lacks(tmp_path):
    tensors = llama_tensors(attention_bias=True)
    del tensors["model.layers.1.self_attn.v_proj.bias"]
    assert "tensor model.layers.1.self_attn.v_proj.bias is missing" in refusal(write_tensors(tmp_path, tensors))


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (["model.layers.0.self_attn.q_norm.weight"], "model.layers.0.self_attn.q_norm.weight"),
        (["d", "b", "a", "c"], "a, b, c and 1 more"),
        (["c", "b", "a"], "a, b, c"),
    ],
)
def test_extra_tensors_are_named(tmp_path, extra, named):
    folder = write_tensors(tmp_path, llama_tensors() | {name: torch.ones(2) for name in extra})
    assert refusal(folder) == (
        f"{tmp_path}: family 'llama' has no place for {named}; "
        "check num_hidden_layers and model_type, or remove what is not a weight"
    )


def test_a_config_of_fewer_blocks_than_the_file_has(tmp_path):
    folder = edit_config(write_llama(tmp_path, blocks=3), num_hidden_layers=2)
    assert "has no place for model.layers.2.input_layernorm.weight, " in refusal(folder)


@pytest.mark.parametrize(
    ("name", "shape", "line"),
    [
        ("model.layers.1.mlp.up_proj.weight", (128, 63), "shape is [128, 63], config.json implies [128, 64]"),
        ("model.layers.0.self_attn.k_proj.weight", (64, 64), "shape is [64, 64], config.json implies [32, 64]"),
        ("model.layers.0.mlp.down_proj.weight", (128, 64), "shape is [128, 64], config.json implies [64, 128]"),
        ("model.norm.weight", (64, 1), "shape is [64, 1], config.json implies [64]"),
        ("lm_head.weight", (95, 64), "shape is [95, 64], config.json implies [96, 64]"),
    ],
)
def test_a_misshapen_tensor_is_named_with_both_shapes(tmp_path, name, shape, line):
    tensors = llama_tensors(tied=False) | {name: torch.ones(shape)}
    assert refusal(write_tensors(tmp_path, tensors)) == (
        f"model.safetensors: {name}: {line}; use the config.json this checkpoint was saved with"
    )


@contextlib.contextmanager
def within(seconds, mebibytes):
    """Fail what takes longer, or more address space on top of what this process has: before it takes the machine."""

    def late(*_):
        raise TimeoutError(f"still at work after {seconds} s")

    with open("/proc/self/statm") as statm:  # noqa: PTH123
        taken = int(statm.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (taken + mebibytes * 2**20, before[1]))
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize(
    "asked",
    [
        {"vocab_size": 10**12},
        {"hidden_size": 4 * 10**11},
        {"hidden_size": 4 * 10**11, "head_dim": 16},
        {"intermediate_size": 10**13},
        {"num_hidden_layers": 10**9},
        {"head_dim": 10**12},
        {"num_attention_heads": 10**12, "head_dim": 16},
        {"num_attention_heads": 10**9, "num_key_value_heads": 10**9, "head_dim": 2},
    ],
    ids=str,
)
def test_a_config_that_asks_for_terabytes_is_refused_before_anything_is_allocated(tmp_path, asked):
    folder = edit_config(write_llama(tmp_path), **asked)
    checkpoint = open_checkpoint(str(folder))
    torch.arange(4).float()  # what torch allocates on first use is not the config's doing
    with within(seconds=2, mebibytes=512), pytest.raises(InputError) as error:  # it takes milliseconds
        recognise(checkpoint)
    assert "config.json" in str(error.value)


# --- values of config.json -------------------------------------------------------------------------------------------

COMPARE = "compare it with the config.json the checkpoint was trained with"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of num_key_value_heads 3; "
                                     "check both against the checkpoint's own config.json"),
        ({"num_key_value_heads": 8}, "num_attention_heads 4 is not a multiple of num_key_value_heads 8; "
                                     "check both against the checkpoint's own config.json"),
        ({"hidden_size": 66}, "hidden_size 66 is not a multiple of num_attention_heads 4 and head_dim is not given; "
                              "add head_dim"),
        ({"hidden_act": "swish2"}, "hidden_act 'swish2' is not supported; supported: silu, swish, relu, gelu, gelu_new, "
                                       "gelu_pytorch_tanh, gelu_fast"),
        ({"hidden_act": ["silu"]}, "hidden_act ['silu'] is not supported; supported: silu, swish, relu, gelu, gelu_new, "
                                       "gelu_pytorch_tanh, gelu_fast"),
        ({"head_dim": 15}, "head_dim 15 is odd, so channels cannot be rotated in pairs; check head_dim"),
        ({"hidden_size": GONE}, f"hidden_size is missing; {COMPARE}"),
        ({"hidden_size": None}, f"hidden_size is missing; {COMPARE}"),
        ({"vocab_size": GONE}, f"vocab_size is missing; {COMPARE}"),
        ({"num_hidden_layers": 0}, f"num_hidden_layers is 0, not a positive integer; {COMPARE}"),
        ({"num_attention_heads": -4}, f"num_attention_heads is -4, not a positive integer; {COMPARE}"),
        ({"intermediate_size": "128"}, f"intermediate_size is '128', not a positive integer; {COMPARE}"),
        ({"intermediate_size": 128.0}, f"intermediate_size is 128.0, not a positive integer; {COMPARE}"),
        ({"num_hidden_layers": True}, f"num_hidden_layers is True, not a positive integer; {COMPARE}"),
        ({"rms_norm_eps": 0}, f"rms_norm_eps is 0, not a number above 0; {COMPARE}"),
        ({"rms_norm_eps": "1e-5"}, f"rms_norm_eps is '1e-5', not a number above 0; {COMPARE}"),
        ({"rope_theta": -1.0}, f"rope_theta is -1.0, not a number above 0; {COMPARE}"),
        ({"rope_theta": False}, f"rope_theta is False, not a number above 0; {COMPARE}"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1; write true or false"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false'; write true or false"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be(tmp_path, changes, line):
    assert refusal(edit_config(write_llama(tmp_path), **changes)) == f"config.json: {line}"


@pytest.mark.parametrize(
    ("asked", "then"),
    [
        ("lama", "did you mean 'llama'? "),
        ("mobile-llm", "did you mean 'mobilellm'? "),
        ("whisper", ""),
    ],
)
def test_an_unknown_model_type_lists_what_is_supported(tmp_path, asked, then):
    folder = edit_config(write_llama(tmp_path), model_type=asked)
    supported = (
        "supported: RefinedWeb, RefinedWebModel, bloom, falcon, gemma3_text, gpt2, gpt_neo, gpt_neox, lfm2, llama, "
        "llama4_text, mobilellm, opt, phi, phi3, qwen2, qwen3, rwkv, smollm3"
    )
    assert refusal(folder) == f"config.json: model_type {asked!r} is not supported; {then}{supported}"


def test_a_tokenizer_larger_than_the_embedding(tmp_path):
    """Its tokens beyond the table would be gathered from whatever lies behind it on the phone."""
    folder = write_llama(tmp_path, vocab=96)
    size = open_checkpoint(str(folder)).tokenizer.vocab_size
    rows = size - 1
    edit_config(folder, vocab_size=rows)
    write_weights(folder, llama_tensors(vocab=rows))
    assert refusal(folder) == (
        f"{tmp_path}: the tokenizer gives ids up to {rows}, the embedding has {rows} rows; "
        "resize the embedding, or use the tokenizer it was trained with"
    )


def test_a_tokenizer_that_just_fits_the_embedding(tmp_path):
    folder = write_llama(tmp_path, vocab=96)
    rows = open_checkpoint(str(folder)).tokenizer.vocab_size
    edit_config(folder, vocab_size=rows)
    write_weights(folder, llama_tensors(vocab=rows))
    assert recognised(folder).spec.vocab_size == rows


@pytest.mark.parametrize("key", ["eos_token_id", "bos_token_id"])
@pytest.mark.parametrize(("value", "beyond"), [(96, 96), (128009, 128009)])
def test_a_special_token_outside_the_embedding(tmp_path, key, value, beyond):
    folder = edit_config(write_llama(tmp_path, vocab=96, tokenizer=None), **{key: value})
    assert refusal(folder) == (
        f"{tmp_path}: special token id {beyond} is outside the embedding's 96 rows; "
        "correct bos_token_id and eos_token_id in config.json"
    )


def test_one_of_several_end_tokens_outside_the_embedding(tmp_path):
    folder = edit_config(write_llama(tmp_path, vocab=96), eos_token_id=[2, 95, 97])
    assert "special token id 97 is outside" in refusal(folder)


# --- rotary frequencies ----------------------------------------------------------------------------------------------


def frequencies_of_transformers(config):
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rotary = LlamaRotaryEmbedding(LlamaConfig(**config))
    assert rotary.attention_scaling == 1
    return tuple(rotary.inv_freq.tolist())


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 10_000.0},
        {"rope_theta": 100_000},  # SmolLM2
        {"rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0}},
        {"rope_theta": 10_000.0, "rope_scaling": {"type": "linear", "factor": 2.5}},
        {"rope_theta": 10_000.0, "rope_scaling": {"rope_type": "linear", "factor": 2.5}},
        {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 20_000.0}},
        {"rope_theta": 500_000.0, "rope_scaling": {"rope_type": "llama3", **LLAMA_3_2}},  # Llama 3.2's file
        {"rope_theta": 500_000.0, "rope_scaling": {"type": "llama3", **LLAMA_3_2}},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500_000.0, **LLAMA_3_2}},
        {"rope_theta": 500_000.0, "rope_scaling": {"rope_type": "llama3", **LLAMA_3_2, "factor": 8.0}},  # Llama 3.1's
    ],
    ids=str,
)
@pytest.mark.parametrize("head_dim", [64, 20])
def test_frequencies_are_those_of_transformers_to_the_bit(tmp_path, rope, head_dim):
    folder = write_llama(tmp_path, heads=2, kv_heads=2, head_dim=head_dim, max_positions=131_072)
    edit_config(folder, rope_theta=GONE, rope_scaling=GONE)
    edit_config(folder, **rope)
    spec = recognised(folder).spec
    config = {"hidden_size": 64, "num_attention_heads": 2, "head_dim": head_dim, "max_position_embeddings": 131_072}
    assert spec.ropes[0].inverse_frequencies == frequencies_of_transformers(config | rope)
    assert spec.ropes[0].attention_factor == 1
    assert len(spec.ropes[0].inverse_frequencies) == head_dim // 2


def test_llama_3_2s_frequencies_worked_by_hand(tmp_path):
    """Against the paper's three cases in float64, so that an error shared with transformers would show."""
    scaling = {"rope_type": "llama3", **LLAMA_3_2}
    folder = write_llama(tmp_path, heads=1, kv_heads=1, head_dim=64, rope_scaling=scaling)
    edit_config(folder, rope_theta=500_000.0)
    expected, cases = [], set()
    for i in range(32):
        plain = 500_000.0 ** (-2 * i / 64)
        turns = 8192 * plain / (2 * math.pi)  # of the old context
        blend = min(1.0, max(0.0, (turns - 1) / (4 - 1)))
        cases.add(0 if blend == 0 else 1 if blend == 1 else 0.5)
        expected.append(plain * blend + plain / 32 * (1 - blend))
    assert cases == {0, 0.5, 1}
    assert recognised(folder).spec.ropes[0].inverse_frequencies == pytest.approx(expected, rel=2e-6)  # float32, five steps


def llama_cpp_factors(head_dim, theta):
    """What convert_hf_to_gguf.py writes as rope_freqs.weight for Llama 3.2."""
    factor, low, high, old = 32.0, 1.0, 4.0, 8192
    factors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * theta ** (i / head_dim)
        if wavelength < old / high:
            factors.append(1.0)
        elif wavelength > old / low:
            factors.append(factor)
        else:
            smooth = (old / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors


def test_a_ggufs_frequency_factors_are_llama3_rope(tmp_path):
    factors = llama_cpp_factors(64, 10_000.0)
    assert any(1 < factor < 32 for factor in factors)
    write_gguf(tmp_path / "m.gguf", heads=1, kv_heads=1, head_dim=64, rope_factors=factors)
    folder = write_llama(tmp_path / "m", heads=1, kv_heads=1, head_dim=64, rope_scaling={"type": "llama3", **LLAMA_3_2})
    from_factors = recognised(tmp_path / "m.gguf").spec.ropes[0].inverse_frequencies
    assert from_factors == pytest.approx(recognised(folder).spec.ropes[0].inverse_frequencies, rel=1e-6)  # float32, five steps


@pytest.mark.parametrize("count", [1, 7, 9])
def test_a_gguf_with_another_number_of_factors_than_frequencies(tmp_path, count):
    path = write_gguf(tmp_path / "m.gguf", head_dim=16, rope_factors=[2.0] * count)
    assert "factors" in refusal(path)


def test_a_gguf_that_rotates_part_of_a_head_only(tmp_path):
    """Rotating all of it would be another network, computed without a word."""
    path = write_gguf(tmp_path / "m.gguf", head_dim=16)
    whole = path.read_bytes()
    key = b"llama.rope.dimension_count"
    at = whole.index(key) + len(key) + 4  # past the value's type
    path.write_bytes(whole[:at] + (8).to_bytes(4, "little") + whole[at + 4 :])
    assert "partial_rotary_factor" in refusal(path)


@pytest.mark.parametrize(
    ("scaling", "line"),
    [
        ({"rope_type": "yarn", "factor": 4.0}, "rope_type 'yarn' is not supported; supported: default, linear, llama3"),
        ({"type": "dynamic", "factor": 2.0}, "rope_type 'dynamic' is not supported; supported: default, linear, llama3"),
        ({"type": "linear"}, f"factor is missing; {COMPARE}"),
        ({"type": "linear", "factor": 0}, f"factor is 0, not a number above 0; {COMPARE}"),
        ({"rope_type": "llama3", "factor": 8.0}, f"original_max_position_embeddings is missing; {COMPARE}"),
        ({"rope_type": "llama3", **LLAMA_3_2, "high_freq_factor": 1.0},
         "high_freq_factor 1.0 is not above low_freq_factor 1.0; check rope_scaling"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_rope_scaling_that_is_not_understood(tmp_path, scaling, line, key):
    assert refusal(edit_config(write_llama(tmp_path), **{key: scaling})) == f"config.json: {line}"


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("value", ["linear", [1], 3.0, {"rope_type": "frequency_factors"}], ids=str)
def test_rope_scaling_of_another_kind(tmp_path, key, value):
    """Named, as the user's mistake; `frequency_factors` is a word of ours that no config.json says."""
    assert refusal(edit_config(write_llama(tmp_path), **{key: value})).startswith("config.json: ")


def test_a_number_beyond_float64(tmp_path):
    assert refusal(edit_config(write_llama(tmp_path), rope_theta=10**400)).startswith("config.json: rope_theta ")
