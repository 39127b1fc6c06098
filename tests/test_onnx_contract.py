"""What an ONNX artifact promises whoever loads it: names, shapes, dtypes, attributes, and what its options change."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from exported import CONTEXT, checkpoint, manifest, onnx_artifact, onnx_file, weights_of
from tiny_checkpoints import llama_tensors, write_llama, write_weights
from tiny_families import FAMILIES, TOKENS, VOCAB, written

from mobile_export.cli import run
from mobile_export.emit.onnx import calibrate
from mobile_export.emit.onnx.decoder_graph import OnnxOptions
from mobile_export.errors import InputError
from mobile_export.families.spec import DecoderSpec
from mobile_export.verify.onnx_runtime import OnnxRuntime

LIMIT = 1e-5  # of the largest logit: float32 summed in another order
ANY_VERSION = "1.0"
GENAI = [name for name, tiny in FAMILIES.items() if tiny.model_type not in ("lfm2", "rwkv")]
SHARED = ("--schedule", "0,1,1,0")


def runtime(folder: Path) -> OnnxRuntime:
    return OnnxRuntime(folder / "model.onnx" if folder.is_dir() else folder, ANY_VERSION)


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    assert got.shape == want.shape
    return float((got - want).abs().max() / want.abs().max())


def attributes(node: onnx.NodeProto) -> dict[str, object]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


# --- a valid graph -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["fp32", "w8-fast"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_checker_and_shape_inference_pass(name, recipe):
    """full_check infers shapes by the standard's rules and compares them with what the graph says of its values."""
    path = onnx_file(weights_of(written(name), recipe), all_logits=recipe == "w8-fast")
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path, load_external_data=False)
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    assert [size(value) for value in inferred.graph.output] == [size(value) for value in model.graph.output]
    assert all(size(value) is not None for value in model.graph.output)


def size(value: onnx.ValueInfoProto) -> list[int | str] | None:
    shape = value.type.tensor_type.shape if value.type.tensor_type.HasField("shape") else None
    return None if shape is None else [part.dim_param or part.dim_value for part in shape.dim]


def test_a_wrong_type_would_be_seen(tmp_path):
    """As far as the standard's own operators go: the checker knows nothing of com.microsoft."""
    model = onnx.load(onnx_file(weights_of(checkpoint(), "fp32")), load_external_data=True)
    model.graph.input[1].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises((onnx.shape_inference.InferenceError, onnx.checker.ValidationError)):
        onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)


# --- names, shapes, dtypes ---------------------------------------------------------------------------------------------


def described(values: list[onnxruntime.NodeArg]) -> dict[str, tuple[str, list[int | str]]]:
    return {value.name: (value.type.removeprefix("tensor(").removesuffix(")"), value.shape) for value in values}


@pytest.mark.parametrize(
    ("arguments", "floats"),
    [((), "float"), (("--activations", "float16"), "float16"), (("--kv", "int8"), "int8")],
    ids=["w4-fast", "float16", "int8"],
)
def test_inputs_and_outputs_are_what_onnxruntime_genai_binds(arguments, floats):
    session = runtime(onnx_artifact(checkpoint(), "--no-verify", *SHARED, *arguments)).session
    slots = [f"{slot}.{part}" for slot in range(4) for part in ("key", "value")]
    assert described(session.get_inputs()) == {
        "input_ids": ("int64", ["batch", "tokens"]),
        "attention_mask": ("int64", ["batch", "total"]),
        **{f"past_key_values.{slot}": (floats, ["batch", 2, "past", 16]) for slot in slots},
    }
    assert described(session.get_outputs()) == {
        "logits": ("float", ["batch", 1, 96]),
        **{f"present.{slot}": (floats, ["batch", 2, "present", 16]) for slot in slots},
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_the_last_tokens_logits_are_the_last_row_of_all_logits(name):
    weights = weights_of(written(name), "fp32")
    last, every = (runtime(onnx_file(weights, all_logits=all_logits)) for all_logits in (False, True))
    rows = every.logits(TOKENS[:11], 0)
    assert rows.shape == (11, VOCAB)
    assert every.session.get_outputs()[0].shape == ["batch", "tokens", VOCAB]
    assert last.session.get_outputs()[0].shape == ["batch", 1, VOCAB]
    assert last.logits(TOKENS[:11], 0).shape == (1, VOCAB)
    assert error(last.step(TOKENS[:11], 0), rows[-1]) <= LIMIT
    assert error(last.step(TOKENS[11:14], 11), every.step(TOKENS[11:14], 11)) <= LIMIT
    assert error(rows[-1], rows[-2]) > 100 * LIMIT, "a row picked wrongly would show"


def in_batch(runner: OnnxRuntime, texts: list[list[int]], chunks: list[int]) -> torch.Tensor:
    """Logits [texts, vocab] of the last token, the texts fed side by side."""
    start = 0
    kept = [array.repeat(len(texts), axis=0) for array in empty(runner)]
    for length in chunks:
        feed = {"input_ids": np.array([text[start : start + length] for text in texts], np.int64)}
        if runner.masked:
            feed["attention_mask"] = np.ones((len(texts), start + length), np.int64)
        feed |= dict(zip([value.name for value in runner.kept], kept, strict=True))
        logits, *kept = runner.session.run(None, feed)
        start += length
    return torch.from_numpy(logits[:, -1])


def empty(runner: OnnxRuntime) -> list[np.ndarray]:
    """A cache of no rows, or a state of zeros."""
    shapes = [[1, *(part if isinstance(part, int) else 0 for part in value.shape[1:])] for value in runner.kept]
    return [np.zeros(shape, np.float32) for shape in shapes]


@pytest.mark.parametrize("name", FAMILIES)
def test_texts_side_by_side_do_not_mix(name):
    """Two equal texts and one other in a batch, each as if it ran alone.

    A second chunk of several tokens is what onnxruntime's attention refuses of a batch.
    """
    runner = runtime(onnx_file(weights_of(written(name), "fp32")))
    texts = [TOKENS[:12], TOKENS[:12], TOKENS[20:32]]
    got = in_batch(runner, texts, [9, 1, 1, 1])
    assert error(got[0], got[1]) <= LIMIT
    for row, text in zip(got, texts, strict=True):
        assert error(row, runner.step(text, 0)) <= LIMIT
    assert error(got[0], got[2]) > 100 * LIMIT


# --- what the nodes say ------------------------------------------------------------------------------------------------


def test_every_quantized_product_asks_for_int8_activations():
    for recipe in ("w4-fast", "w8-fast", "w4-all-fast"):
        graph = onnx.load(onnx_artifact(checkpoint(), "--no-verify", "--recipe", recipe) / "model.onnx").graph
        products = [attributes(node) for node in graph.node if node.op_type == "MatMulNBits"]
        assert [found["accuracy_level"] for found in products] == [4] * 11
        assert {found["bits"] for found in products} == {"w4-fast": {4, 8}, "w8-fast": {8}, "w4-all-fast": {4}}[recipe]


def test_the_graph_tells_block_and_execution():
    """What a viewer such as Netron shows."""
    graph = onnx.load(onnx_artifact(checkpoint(), "--no-verify", *SHARED) / "model.onnx").graph
    assert graph.name == "llama"
    assert graph.doc_string == "2 stored blocks in 4 executions (reverse)"
    names = [node.name for node in graph.node]
    assert all(names)
    assert len(names) == len(set(names))
    docs = {node.name: node.doc_string for node in graph.node}
    for slot, stored in enumerate((0, 1, 1, 0)):
        here = [name for name in names if name.startswith(f"execution.{slot}.")]
        assert docs[f"execution.{slot}.attention"] == f"stored block {stored}, KV slot {slot}"
        assert docs[f"execution.{slot}.ffn.down"] == f"blocks.{stored}.ffn.down.weight, 4-bit, group 32"
        assert {name.split(".")[2] for name in here} == {"attention", "ffn"}
    outside = {name.split(".")[0] for name in names if not name.startswith("execution.")}
    assert outside == {"embedding", "positions", "last_token", "head"}
    assert (docs["embedding"], docs["head.linear"]) == ("embedding.weight, 8-bit, per channel",) * 2


def test_genai_config_is_complete():
    folder = onnx_artifact(checkpoint(), "--no-verify", *SHARED)
    assert json.loads((folder / "genai_config.json").read_text()) == {
        "model": {
            "bos_token_id": 1,
            "eos_token_id": [2],
            "pad_token_id": 2,
            "context_length": CONTEXT,
            "vocab_size": 96,
            "type": "llama",
            "decoder": {
                "filename": "model.onnx",
                "head_size": 16,
                "hidden_size": 64,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "num_hidden_layers": 4,
                "session_options": {
                    "log_id": "onnxruntime-genai",
                    "session.intra_op.allow_spinning": "0",
                    "provider_options": [],
                },
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {"do_sample": False, "max_length": CONTEXT, "past_present_share_buffer": True},
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_what_the_stock_runtime_cannot_run_has_no_config_of_its(name):
    """It knows keys and values; nothing of a convolution's columns or RWKV's state."""
    folder = onnx_artifact(written(name), "--no-verify", "--recipe", "fp32")
    assert (folder / "genai_config.json").is_file() == manifest(folder)["onnx"]["runs_in_genai"] == (name in GENAI)


# --- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2-lamini", "qwen3", "gemma3", "llama4-chunks"])
def test_int8_cache_scales_stand_above_every_key_and_value_the_calibration_saw(tmp_path, monkeypatch, name):
    sampled = []
    monkeypatch.setattr(calibrate, "_sample", lambda *given, real=calibrate._sample: sampled.append(real(*given)) or sampled[0])
    weights = weights_of(written(name), "w8-fast")
    assert isinstance(weights.recognised.spec, DecoderSpec)
    found = calibrate.calibrate_kv(tmp_path, weights, OnnxOptions(CONTEXT), lambda _: None)
    assert list(tmp_path.iterdir()) == [], "the model it sampled with is gone"
    (caches,) = sampled
    assert len(caches) == 2 * len(found)
    for cache, scale in zip(caches, [values for pair in found for values in (pair.key, pair.value)], strict=True):
        texts, heads, rows, width = cache.shape
        assert texts * rows >= 8 * CONTEXT
        largest = np.array([[np.abs(cache[:, head, :, at]).max() for at in range(width)] for head in range(heads)])
        assert scale.dtype == np.float32
        assert (127 * scale > 1.4 * largest.reshape(-1)).all(), "room for what the calibration did not see"
        assert (127 * scale < 1.6 * largest.reshape(-1)).all(), "and no more: codes would be wasted"


def test_an_int8_cache_is_a_quarter_of_the_bytes_and_its_scales_lie_in_the_graph():
    float32, int8 = (onnx_artifact(checkpoint(), "--no-verify", *kv) for kv in ((), ("--kv", "int8")))
    sizes = [manifest(folder)["kv_cache"] for folder in (float32, int8)]
    assert sizes[0]["bytes_per_token"] == 4 * sizes[1]["bytes_per_token"] == 2 * 2 * 32 * 4
    assert [size["dtype"] for size in sizes] == ["float32", "int8"]
    assert sizes[1]["bytes_at_max_context"] == CONTEXT * sizes[1]["bytes_per_token"]
    graph = onnx.load(int8 / "model.onnx").graph
    held = {tensor.name: tensor for tensor in graph.initializer}
    attention = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    assert len(attention) == 2
    for node in attention:
        given = attributes(node)
        assert (given["k_quant_type"], given["v_quant_type"], given["kv_cache_bit_width"]) == (b"PER_CHANNEL",) * 2 + (8,)
        scales = [onnx.numpy_helper.to_array(held[name]) for name in node.input[12:14]]
        assert [scale.shape for scale in scales] == [(32,), (32,)], "one for each channel of each head"
        assert all(len(np.unique(scale)) == 32 for scale in scales)


def test_an_int8_cache_costs_what_its_steps_cost():
    """Against the float cache, everything else being equal: near it, and not the same."""
    tokens = TOKENS[:20]
    float32, int8 = (
        runtime(onnx_artifact(checkpoint(), "--recipe", "w8-fast", "--no-verify", *kv)) for kv in ((), ("--kv", "int8"))
    )
    want, got = ([each.step([token], at) for at, token in enumerate(tokens)] for each in (float32, int8))
    apart = [error(a, b) for a, b in zip(got, want, strict=True)]
    assert 1e-4 < max(apart) < 0.05, "half a step is 1/170 of a channel's largest value"


@pytest.mark.parametrize("name", ["gpt2-lamini", "bloom", "qwen3", "lfm2", "rwkv4"])
def test_float16_activations_agree_with_float32_ones_to_float16(name):
    """2 ** -11 a rounding, some tens of them in a row."""
    weights = weights_of(written(name), "w8-fast")
    float32, float16 = (onnx_file(weights, activations=kind) for kind in ("float32", "float16"))
    plain = [OnnxRuntime(path, ANY_VERSION, float_activations=True) for path in (float32, float16)]
    want, got = (torch.stack([each.step([token], at) for at, token in enumerate(TOKENS[:12])]) for each in plain)
    assert got.dtype == torch.float32
    assert 1e-5 < error(got, want) < 8 * 2.0**-10
    tensors = onnx.load(float16, load_external_data=False).graph.initializer
    assert onnx.TensorProto.FLOAT not in {tensor.data_type for tensor in tensors}
    assert onnx.TensorProto.FLOAT16 in {tensor.data_type for tensor in tensors}


def test_float16_activations_halve_the_cache_and_the_scales():
    float32, float16 = (onnx_artifact(checkpoint(), "--no-verify", *a) for a in ((), ("--activations", "float16")))
    assert manifest(float32)["kv_cache"]["bytes_per_token"] == 2 * manifest(float16)["kv_cache"]["bytes_per_token"]
    scales = 2 * (128 * 64 + 64 * 64 + 3 * 128 * 64) // 32  # in both blocks, each block's 4-bit groups
    blocks = [next(part["bytes"] for part in manifest(f)["parts"] if part["name"] == "blocks") for f in (float32, float16)]
    assert blocks[0] - blocks[1] >= scales


def test_float16_activations_need_quantized_weights(tmp_path, fails):
    out = tmp_path / "out"
    arguments = ("onnx", checkpoint(), "--recipe", "fp32", "--activations", "float16", "--out", out)
    line = "--activations float16: recipe fp32 keeps embedding.weight in float32; choose a quantized recipe, or leave it out"
    assert fails(*arguments) == (2, line)
    assert not out.exists()


def mixed_recipe(folder: Path) -> Path:
    """Quantized linears beside a float table, which is the head's, too."""
    path = folder / "mixed.toml"
    parts = {"linear": 8, "embedding": 32, "head": 8}
    lines = ['name = "mixed"', 'description = "d"', *(f"{part} = {{ bits = {bits} }}" for part, bits in parts.items())]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_a_float_table_beside_float16_activations_is_refused(tmp_path, fails):
    options = ("--recipe", mixed_recipe(tmp_path), "--activations", "float16", "--out", tmp_path / "out")
    then = "recipe mixed keeps embedding.weight in float32; choose a quantized recipe, or leave it out"
    assert fails("onnx", checkpoint(), *options) == (2, f"--activations float16: {then}")


@pytest.mark.parametrize("form", [(), ("--portable",)])
def test_a_float_table_beside_quantized_linears(tmp_path, capsys, form):
    options = ("--recipe", str(mixed_recipe(tmp_path)), "--max-context", "64", "--out", str(tmp_path / "out"), *form)
    assert run(["onnx", str(checkpoint()), *options]) == 0
    assert "verified passed" in capsys.readouterr().out
    assert run(["inspect", str(tmp_path / "out"), "--strict"]) == 0, "the manifest says that it is meant"


def test_bits_a_weight_count_a_learned_table_of_positions():
    """Every matrix has 64 or 96 inputs, so blocks of 64 or 32, each with a float32 scale."""
    found = manifest(onnx_artifact(written("gpt2-cerebras"), "--recipe", "w8-fast", "--no-verify"))
    assert "positions.weight" in found["matrices"]
    assert 8 + 32 / 64 <= found["bits_per_weight"] <= 8 + 32 / 32


def test_no_such_activations(tmp_path, fails):
    arguments = ("onnx", checkpoint(), "--activations", "bfloat16", "--out", tmp_path / "out")
    assert fails(*arguments) == (2, "--activations bfloat16: no such type; write float32 or float16")


@pytest.mark.parametrize("factor", [1e-6, 1e8], ids=["small", "large"])
def test_a_scale_float16_cannot_hold_is_refused_naming_the_tensor(tmp_path, fails, factor):
    source = write_llama(tmp_path / "source")
    tensors = llama_tensors()
    tensors["model.layers.1.mlp.up_proj.weight"] *= factor
    write_weights(source, tensors)
    code, line = fails("onnx", source, "--recipe", "w4-fast", "--activations", "float16", "--out", tmp_path / "out")
    assert code == 3
    assert line == (
        "model.safetensors: model.layers.1.mlp.up_proj.weight: a scale is too small or too large for float16; "
        "leave --activations float16 out"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("verify", [(), ("--no-verify",)], ids=["verified", "not-verified"])
def test_a_norm_float16_cannot_hold_is_refused_naming_it(tmp_path, fails, verify):
    source = write_llama(tmp_path / "source")
    tensors = llama_tensors()
    tensors["model.layers.1.input_layernorm.weight"][5] = 70_000
    write_weights(source, tensors)
    code, line = fails("onnx", source, "--recipe", "w4-fast", "--activations", "float16", "--out", tmp_path / "out", *verify)
    then = "leave --activations float16 out"
    assert (code, line) == (3, f"blocks.1.attention.norm.weight: a value is too large for float16; {then}")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


ENDS = {
    "llama": "rotary tables in the attention operator",
    "pythia": "rotary tables",
    "bloom": "ALiBi",
    "gpt2-lamini": "learned",
}


@pytest.mark.parametrize("recipe", ["fp32", "w8-fast"])  # the quantized gather by itself would give zeros
@pytest.mark.parametrize("name", ENDS, ids=ENDS.values())
def test_a_text_longer_than_the_context_is_refused_by_the_runtime_in_one_line(name, recipe):
    """The tables end there; a stock app gets an error, not a wrong text."""
    source = checkpoint() if name == "llama" else written(name)
    runner = runtime(onnx_artifact(source, "--recipe", recipe, "--no-verify"))
    tokens = (TOKENS * 2)[:CONTEXT]
    want = runner.step(tokens, 0)
    with pytest.raises(InputError) as refused:
        runner.step([5], CONTEXT)
    with pytest.raises(InputError) as at_once:
        runner.step([*tokens, 5], 0)
    assert "running 1 tokens at 64 failed: " in str(refused.value)
    assert "running 65 tokens at 0 failed: " in str(at_once.value)
    assert all("\n" not in str(raised.value) for raised in (refused, at_once))
    assert error(runner.step(tokens, 0), want) == 0, "and it can be used on"


def test_max_context_is_how_many_rows_the_position_tables_have():
    for context in (CONTEXT, 17):
        folder = onnx_artifact(checkpoint(), "--recipe", "fp32", "--no-verify", "--max-context", str(context))
        graph = onnx.load(folder / "model.onnx").graph
        tables = [list(tensor.dims) for tensor in graph.initializer if tensor.name.startswith("positions.rope.")]
        assert tables == [[context, 8]] * 2
        assert manifest(folder)["max_context"] == context
        assert json.loads((folder / "genai_config.json").read_text())["search"]["max_length"] == context
