"""Checkpoints trained to be rounded: their own codes and scales arrive in every artifact, and nothing else does.

The oracle is the training code itself, as torchao carries ParetoQ's and its own, on the checkpoint's weights.
"""

import dataclasses
import functools
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from exported import CONTEXT, ROOM, artifact, coreml_artifact, manifest, onnx_artifact, weights_of
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_checkpoints import llama_tensors, write_llama
from torchao.prototype.paretoq.models.utils_quant import LsqBinaryTernaryExtension, StretchedElasticQuant
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
from torchao.quantization import Int8DynamicActivationIntxWeightConfig, IntxWeightOnlyConfig, PerAxis, PerGroup, quantize_
from torchao.quantization.qat import QATConfig
from transformers import LlamaConfig, LlamaForCausalLM, TorchAoConfig

from mobile_export.checkpoint import open_checkpoint, read_float32
from mobile_export.checkpoint.paretoq import paretoq_codes
from mobile_export.cli import run
from mobile_export.cli.verify import runtime_of
from mobile_export.errors import InputError
from mobile_export.manifest import read_manifest
from mobile_export.quantize.recipe import Override, Precision
from mobile_export.quantize.weights import ModelWeights
from mobile_export.verify.onnx_runtime import OnnxRuntime
from mobile_export.verify.oracle import float32_oracle
from mobile_export.verify.reference import float_activations, reference_decoder, reference_logits

DOWN = "model.layers.0.mlp.down_proj"
TEXT = torch.randint(3, 96, (30,), generator=torch.Generator().manual_seed(1)).tolist()
CLOSE = 2e-6  # of the largest logit: float32 sums of the same products in another order


def released(weight, clip, bits):
    """What the released training code multiplies with."""
    kind = StretchedElasticQuant if bits in (0, 2) else LsqBinaryTernaryExtension
    return kind.apply(weight, clip, bits, False).detach()


def initial_scale(weight, bits):
    """Of the released `train.py`, moved off it as training would."""
    largest, mean = weight.abs().amax(dim=1, keepdim=True), weight.abs().mean(dim=1, keepdim=True)
    scale = {0: largest, 1: mean, 2: largest, 3: largest / 3, 4: largest / 7}[bits]
    generator = torch.Generator().manual_seed(3)
    return scale * (0.7 + 0.2 * torch.rand(scale.shape, generator=generator))


@functools.cache
def paretoq(bits, dtype=torch.float32):
    """A checkpoint folder with a weight_clip_val beside every matrix of its blocks."""
    folder = Path(tempfile.mkdtemp(dir=ROOM.name))
    write_llama(folder, dtype=dtype, config_extra={"w_bits": bits})
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("proj.weight")]:
        tensors[name.replace("weight", "weight_clip_val")] = initial_scale(tensors[name].float(), bits).to(dtype)
    save_file(tensors, folder / "model.safetensors")
    return folder


def model_on_grid(folder, bits):
    """transformers' Llama over the weights the training code multiplies with, float32."""
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("weight_clip_val")]:
        owner = name.replace("weight_clip_val", "weight")
        tensors[owner] = released(tensors[owner], tensors.pop(name), bits)
    model = LlamaForCausalLM(LlamaConfig(**json.loads((folder / "config.json").read_text())))
    missing, unexpected = model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    return lambda tokens: model(torch.tensor([tokens]), use_cache=False).logits[0].detach()


CONFIGS = {
    "w4": Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, weight_granularity=PerGroup(32)),
    "channels": Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, weight_granularity=PerAxis(0)),
    "int3": IntxWeightOnlyConfig(weight_dtype=torch.int3, granularity=PerAxis(0)),
    "w8": Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int8, weight_granularity=PerAxis(0)),
}


@functools.cache
def torchao(kind, dtype=torch.float32, table=None):
    """A checkpoint folder as torchao's QAT ends: prepared, converted, taken apart, saved; and the model it was.

    table: config of the embedding, or None for a float one.
    """
    folder = Path(tempfile.mkdtemp(dir=ROOM.name))
    write_llama(folder, dtype=dtype, tied=table is None)
    config = json.loads((folder / "config.json").read_text())
    model = LlamaForCausalLM(LlamaConfig(**config)).to(dtype)
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    model.tie_weights()
    only = [(CONFIGS[kind], lambda module, name: isinstance(module, torch.nn.Linear) and "proj" in name)]
    if table is not None:
        only.append((CONFIGS[table], lambda module, name: isinstance(module, torch.nn.Embedding)))
    for chosen, modules in only:
        if isinstance(chosen, IntxWeightOnlyConfig):
            quantize_(model, chosen, modules)
            continue
        for step in ("prepare", "convert"):
            quantize_(model, QATConfig(chosen, step=step), modules if step == "prepare" else None)
    state = {name: tensor.detach() for name, tensor in model.state_dict().items() if table or name != "lm_head.weight"}
    tensors, metadata = flatten_tensor_state_dict(state)
    save_file(tensors, folder / "model.safetensors", metadata={**metadata, "format": "pt"})
    return folder, state


# --- the numbers -------------------------------------------------------------------------------------------------------


@given(st.integers(0, 4), st.integers(0, 2**31), st.sampled_from([torch.float32, torch.bfloat16]))
def test_codes_times_scales_is_what_the_released_code_multiplies_with(bits, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 64, generator=generator).to(dtype)
    clip = (torch.rand(5, 1, generator=generator) * 3 - 0.3).to(dtype)  # a few below the least scale
    codes, scales = paretoq_codes(weight, clip, bits)
    assert codes.dtype == torch.int8
    assert -8 <= codes.min() <= codes.max() <= 7
    assert (scales > 0).all()
    wanted, found = released(weight, clip, bits).float(), codes * scales
    if dtype == torch.float32 or bits in (0, 1):
        assert torch.equal(found, wanted)
    else:  # training rounds the product to bfloat16: half a unit of its 8 bits
        assert torch.equal(found.to(torch.bfloat16).float(), wanted)


@pytest.mark.parametrize("bits", [0, 1, 2, 3, 4])
def test_a_paretoq_checkpoint_is_the_network_it_was_trained_to_be(bits):
    weights = weights_of(paretoq(bits), "trained")
    assert weights.matrices["blocks.1.attention.qkv.weight"].precision == Precision(4)
    assert weights.matrices["embedding.weight"].precision == Precision(8)
    wanted = model_on_grid(paretoq(bits), bits)(TEXT)
    limit = CLOSE * float(wanted.abs().max())
    _, oracle = float32_oracle(weights, CONTEXT)
    assert float((oracle(TEXT) - wanted).abs().max()) < limit
    table = torch.equal(weights.float32("embedding.weight"), weights.quantized("embedding.weight").dequantized())
    assert not table, "the float table is the recipe's to round"
    decoder = reference_decoder(weights_of(paretoq(bits), "trained"), CONTEXT)
    exact = weights.float32("embedding.weight")
    decoder.embedding = torch.nn.Embedding.from_pretrained(exact)
    decoder.head.linear = torch.nn.Linear(64, 96, bias=False)
    decoder.head.linear.weight = torch.nn.Parameter(exact)
    with float_activations(decoder):
        assert float((reference_logits(decoder, TEXT) - wanted).abs().max()) < limit


def test_rounding_again_would_move_it():
    """What is at stake: the recipe's own search on the same values chooses other scales."""
    weights = weights_of(paretoq(4), "trained")
    name = "blocks.0.ffn.down.weight"
    untrained = dataclasses.replace(weights.checkpoint.tensors[f"{DOWN}.weight"], trained=None)
    tensors = {**weights.checkpoint.tensors, f"{DOWN}.weight": untrained}
    again = type(weights)(
        dataclasses.replace(weights.checkpoint, tensors=tensors), weights.recognised, weights.plan,
        dataclasses.replace(weights.recipe, own_codes=True, linear=Precision(4)),
    )  # fmt: skip
    assert torch.equal(weights.quantized(name).dequantized(), weights.float32(name))
    assert not torch.equal(again.quantized(name).dequantized(), again.float32(name))


@pytest.mark.parametrize(("kind", "precision"), [("w4", Precision(4, 32)), ("channels", Precision(4)), ("int3", Precision(4)),
                                                 ("w8", Precision(8))])  # fmt: skip
def test_torchaos_codes_and_scales_are_taken_as_they_are(kind, precision):
    folder, state = torchao(kind)
    weights = weights_of(folder, "trained")
    held = state[f"{DOWN}.weight"]
    found = weights.quantized("blocks.0.ffn.down.weight")
    assert found.precision == precision
    assert torch.equal(found.codes, held.qdata)
    assert torch.equal(found.scales, held.scale)
    assert torch.equal(found.dequantized(), held.dequantize())
    parts = [state[f"model.layers.1.self_attn.{part}_proj.weight"] for part in "qkv"]
    qkv = weights.quantized("blocks.1.attention.qkv.weight")
    assert torch.equal(qkv.codes, torch.cat([part.qdata for part in parts]))
    assert torch.equal(qkv.dequantized(), torch.cat([part.dequantize() for part in parts]))
    assert torch.equal(weights.float32("blocks.1.attention.qkv.weight"), qkv.dequantized())


def test_a_table_that_was_trained_to_have_codes():
    folder, state = torchao("w4", table="int3")
    weights = weights_of(folder, "trained")
    found = weights.quantized("embedding.weight")
    assert torch.equal(found.codes, state["model.embed_tokens.weight"].qdata)
    assert weights.matrices["head.linear.weight"].precision == Precision(8)
    assert {name: weights.recipe.precision_of(name) for name in weights.matrices} == {
        name: matrix.precision for name, matrix in weights.matrices.items()
    }


def test_codes_that_transformers_saved_in_shards(tmp_path):
    """A matrix's codes and scales may lie in different files."""
    folder, state = torchao("w4")
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    (tmp_path / "model.safetensors").unlink()
    shards = {"model-00001-of-00002.safetensors": [], "model-00002-of-00002.safetensors": []}
    for name in tensors:
        shards["model-00002-of-00002.safetensors" if name.endswith("_scale") else "model-00001-of-00002.safetensors"].append(
            name
        )
    for shard, names in shards.items():
        save_file({name: tensors[name] for name in names}, tmp_path / shard, metadata=metadata)
    index = {"metadata": {}, "weight_map": {name: shard for shard, names in shards.items() for name in names}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    found = open_checkpoint(str(tmp_path)).tensors
    assert torch.equal(read_float32(found[f"{DOWN}.weight"]), state[f"{DOWN}.weight"].dequantize())
    assert not [name for name in found if "._weight_" in name]


def test_a_folder_as_transformers_saves_it(tmp_path):
    """Its config.json says torchao, and the reference that verification asks is transformers itself."""
    plain = write_llama(tmp_path / "plain")
    chosen = TorchAoConfig(CONFIGS["w4"])
    model = LlamaForCausalLM.from_pretrained(plain, quantization_config=chosen, dtype=torch.float32)
    model.save_pretrained(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["quantization_config"]["quant_method"] == "torchao"
    weights = weights_of(tmp_path / "model")
    held = model.model.layers[0].mlp.down_proj.weight
    assert torch.equal(weights.quantized("blocks.0.ffn.down.weight").dequantized(), held.dequantize())
    out = onnx_artifact(tmp_path / "model")
    assert run(["verify", str(out), "--against", str(tmp_path / "model")]) == 0
    for module in [module for module in model.modules() if isinstance(module, torch.nn.Linear)]:
        if hasattr(module.weight, "dequantize") and type(module.weight) is not torch.nn.Parameter:
            module.weight = torch.nn.Parameter(module.weight.dequantize(), requires_grad=False)  # no int8 activations
    wanted = model(torch.tensor([TEXT]), use_cache=False).logits[0].detach()
    assert float((float32_oracle(weights, CONTEXT)[1](TEXT) - wanted).abs().max()) < CLOSE * float(wanted.abs().max())


# --- the artifacts -----------------------------------------------------------------------------------------------------


def stored_in_onnx(folder, name):
    """Codes and scales of a matrix as the file has them."""
    model = onnx.load(folder / "model.onnx")
    held = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    codes, scales = held[f"{name}.codes"], held[f"{name}.scales"]
    pairs = codes.reshape(codes.shape[0], -1)
    return np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(len(pairs), -1).astype(np.int8) - 8, scales


@pytest.mark.parametrize(("kind", "groups"), [("paretoq", 1), ("torchao", 4)])
def test_the_onnx_file_holds_the_trained_codes_and_scales(kind, groups):
    folder = paretoq(4) if kind == "paretoq" else torchao("w4")[0]
    out = onnx_artifact(folder, "--recipe", "trained")
    name = "blocks.0.ffn.down.weight"
    wanted = weights_of(folder, "trained").quantized(name)
    codes, scales = stored_in_onnx(out, name)
    assert np.array_equal(codes, wanted.codes.numpy())
    assert wanted.scales.shape[1] == groups
    assert np.array_equal(scales.reshape(64, -1), np.repeat(wanted.scales.numpy(), scales[0].size // groups, axis=1))
    assert not torch.equal(wanted.scales.to(torch.bfloat16).float(), wanted.scales), "else rounding them would go unseen"


@pytest.mark.parametrize("bits", [0, 4])
def test_an_onnx_model_without_int8_activations_is_the_trained_network(bits):
    """Its table apart: that has the recipe's 8 bits, so the oracle is given the same."""
    folder = paretoq(bits)
    out = onnx_artifact(folder, "--recipe", "trained")
    runtime = OnnxRuntime(out / "model.onnx", "1.24", float_activations=True)
    on_grid = load_file(folder / "model.safetensors")
    table = weights_of(folder, "trained").quantized("embedding.weight").dequantized()
    copy = Path(tempfile.mkdtemp(dir=ROOM.name))
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    save_file({**on_grid, "model.embed_tokens.weight": table}, copy / "model.safetensors")
    wanted = model_on_grid(copy, bits)(TEXT)[-1]
    assert float((runtime.step(TEXT, 0) - wanted).abs().max()) < 10 * CLOSE * float(wanted.abs().max())


@pytest.mark.parametrize("kind", ["paretoq", "torchao"])
def test_the_pte_holds_the_trained_codes(kind):
    """Its verification passed: it computes with the same codes, and the scales it can hold."""
    folder = paretoq(4) if kind == "paretoq" else torchao("w4")[0]
    out = artifact(folder, "--recipe", "trained")
    weights, content = weights_of(folder, "trained"), (out / "model.pte").read_bytes()
    said = [line for line in manifest(out)["warnings"] if "bfloat16" in line]
    for name in ("blocks.0.ffn.down.weight", "blocks.1.attention.qkv.weight"):
        held = weights.quantized(name)
        nibbles = held.codes.numpy().view(np.uint8) + 8
        assert (nibbles[:, 1::2] << 4 | nibbles[:, ::2] & 15).tobytes() in content
        exact = held.scales.numpy().tobytes() in content
        rounded = held.scales.to(torch.bfloat16).view(torch.int16).numpy().tobytes() in content
        assert (exact, rounded) == ((True, False) if kind == "paretoq" else (False, True))
    assert len(said) == (kind == "torchao")
    assert (
        kind == "paretoq" or "scales of 4-bit groups are not bfloat16, as a .pte holds them, and are rounded, by 0." in said[0]
    )


def test_bfloat16_scales_of_groups_are_exact_everywhere():
    folder, _ = torchao("w4", torch.bfloat16)
    out = artifact(folder, "--recipe", "w4-fast")  # rounds nothing anew: it was trained to be this
    assert not [line for line in manifest(out)["warnings"] if "scale" in line]
    held = weights_of(folder, "w4-fast").quantized("blocks.0.ffn.down.weight")
    assert held.scales.to(torch.bfloat16).view(torch.int16).numpy().tobytes() in (out / "model.pte").read_bytes()


def test_core_ml_rounds_float32_scales_to_float16_and_says_so(capsys):
    out = coreml_artifact(paretoq(4), "--recipe", "trained")  # its verification passed: codes equal, scales as float16
    said = [line for line in manifest(out)["warnings"] if "float16" in line]
    assert said
    assert all("scales are not what float16 holds exactly, and are rounded" in line for line in said)
    exact = coreml_artifact(paretoq(4, torch.bfloat16), "--recipe", "trained")
    assert not [line for line in manifest(exact)["warnings"] if "float16" in line]


def test_fp32_holds_the_trained_values():
    out = onnx_artifact(paretoq(2), "--recipe", "fp32")
    wanted = model_on_grid(paretoq(2), 2)(TEXT)[-1]
    found = runtime_of(out / "model.onnx", read_manifest(out)).step(TEXT, 0)
    assert float((found - wanted).abs().max()) < 10 * CLOSE * float(wanted.abs().max())


def test_its_manifest_and_its_warning(capsys):
    out = artifact(paretoq(4), "--recipe", "trained")
    held = manifest(out)
    assert held["matrices"]["blocks.0.ffn.down.weight"] == "4-bit, per channel"
    assert (held["recipe"]["own_codes"], held["recipe"]["linear"]) == (True, {"bits": 4, "group_size": None})
    assert (held["recipe"]["embedding"]["bits"], held["recipe"]["override"]) == (8, [])
    assert held["warnings"] == [
        "config.json: w_bits 4: trained with rounded weights and float activations, as ParetoQ does; an artifact's activations "
        "are int8"
    ]
    predicted = {part["name"]: part["predicted_bytes"] for part in held["parts"]}
    assert [part["bytes"] for part in held["parts"] if part["name"] == "blocks"] == [predicted["blocks"]]
    assert run(["check", str(out), "--dram", "6GB"]) == 0, "the recipe beside the matrices says what they are"
    assert run(["verify", str(out), "--against", str(paretoq(4))]) == 0
    assert run(["verify", str(out), "--against", str(paretoq(3))]) == 1, "the same shape, other codes"


# --- what is refused ---------------------------------------------------------------------------------------------------


def refusal(capsys, folder, *arguments, verb="inspect"):
    assert run([verb, str(folder), *arguments]) == 3
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
    return line.removeprefix("error: ")


def test_a_recipe_that_would_calibrate_it(capsys, tmp_path):
    recipe = tmp_path / "own.toml"
    recipe.write_text(
        'name = "own"\ndescription = "of its precision, but fitted"\nlinear = { bits = 4 }\nembedding = { bits = 8 }\n'
        'head = { bits = 8 }\nquantizer = "gptq"\n'
    )
    line = refusal(capsys, paretoq(4), "--recipe", str(recipe))
    assert ": was trained to be 4-bit, per channel, recipe own calibrates it; use --recipe trained, " in line


@pytest.mark.parametrize(
    ("recipe", "made"), [("w4-fast", "4-bit, group 32"), ("w8", "8-bit, per channel"), ("w4-all", "4-bit, group 32")]
)
def test_a_recipe_that_would_round_it_again(capsys, recipe, made):
    line = refusal(capsys, paretoq(4), "--recipe", recipe)
    assert line == (
        "model.safetensors: model.layers.0.self_attn.q_proj.weight: was trained to be 4-bit, per channel, "
        f"recipe {recipe} makes it {made}; use --recipe trained, which keeps the checkpoint's own codes"
    )


@pytest.mark.parametrize(("source", "line"), [
    (lambda: paretoq(4), "was trained to be 4-bit, per channel, recipe w8-fast makes it 8-bit, per channel; use "),
    (lambda: torchao("w8")[0], "was trained to be rounded, so there is nothing to choose; export it with --recipe trained"),
])  # fmt: skip
def test_a_search_for_other_precisions(capsys, source, line):
    assert line in refusal(capsys, source(), "--target-bits", "6", verb="search")


def test_the_trained_recipe_without_trained_codes(capsys, tmp_path):
    line = refusal(capsys, write_llama(tmp_path), "--recipe", "trained")
    assert line == (
        "recipe trained: no matrix of the checkpoint was trained to have codes; choose another: `recipes` lists them"
    )


def changed(tmp_path, source, tensors=None, config=None, metadata=None):
    """A copy of a checkpoint folder, parts of it replaced."""
    folder = shutil.copytree(source, tmp_path / "model")
    path = folder / "model.safetensors"
    with safe_open(path, "pt") as file:
        said = {**(file.metadata() or {}), **(metadata or {})}
    save_file({**load_file(path), **(tensors or {})}, path, metadata=said)
    given = json.loads((folder / "config.json").read_text()) | (config or {})
    (folder / "config.json").write_text(json.dumps(given))
    return folder


@pytest.mark.parametrize(
    ("tensors", "config", "says"),
    [
        ({}, {"w_bits": None}, "config.json: w_bits is None, and the weights have scales (weight_clip_val) that mean "),
        ({}, {"w_bits": 5}, "config.json: w_bits is 5, and "),
        ({}, {"w_bits": True}, "config.json: w_bits is True, and "),
        ({f"{DOWN}.weight_clip_val": torch.ones(1, 1)}, {},
         f"model.safetensors: {DOWN}.weight_clip_val: has shape [1, 1], and {DOWN}.weight has shape [64, 128]; "),
        ({"model.stray.weight_clip_val": torch.ones(1, 1)}, {},
         "model.safetensors: model.stray.weight_clip_val: has shape [1, 1], and model.stray.weight is missing; "),
    ],
)  # fmt: skip
def test_a_paretoq_checkpoint_that_is_not_whole(capsys, tmp_path, tensors, config, says):
    assert refusal(capsys, changed(tmp_path, paretoq(4), tensors, config)).startswith(says)


def test_a_paretoq_scale_that_is_not_finite(capsys, tmp_path):
    folder = changed(tmp_path, paretoq(4), {f"{DOWN}.weight_clip_val": torch.full((64, 1), torch.inf)})
    with pytest.raises(InputError, match=r"down_proj\.weight_clip_val: a scale or a weight is not finite; "):
        weights_of(folder, "trained").quantized("blocks.0.ffn.down.weight")


def described(**changes):
    data = {"target_dtype": {"_type": "torch.dtype", "_data": "int4"}, "block_size": [1, 32], "activation_quantization": None}
    return json.dumps({"_type": "IntxUnpackedToInt8Tensor", "_data": {**data, **changes}, "_tensor_data_names": []})


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ('{"_type": "Int4Tensor", "_data": {}}', f"{DOWN}.weight: is stored as torchao's Int4Tensor, which is not supported; "),
        ("{", f"{DOWN}.weight: the file's metadata does not describe it: "),
        (described(block_size=[1, 64]), "codes [64, 128] of int4 with scales [64, 4] in blocks of [1, 64]: not one scale per "),
        (described(block_size=[32, 1]), "not one scale per output channel, or per group of its inputs; "),
        (described(target_dtype={"_data": "uint4"}), "not one scale per output channel"),
        (described(target_dtype={"_data": "int8"}), "int8 codes in groups of 32: artifacts hold 8 bits per channel only; "),
    ],
)
def test_what_torchao_says_of_a_matrix_is_not_taken_on_trust(capsys, tmp_path, said, says):
    assert says in refusal(capsys, changed(tmp_path, torchao("w4")[0], metadata={f"{DOWN}.weight": said}))


@pytest.mark.parametrize(
    ("part", "value", "says"),
    [
        ("zero_point", torch.ones(64, 4, dtype=torch.int8), "zero points that are not 0; train with MappingType.SYMMETRIC"),
        ("scale", torch.zeros(64, 4), "a scale is not finite or not above 0; "),
        ("qdata", torch.full((64, 128), 9, dtype=torch.int8), "codes are not int4; "),
    ],
)
def test_damaged_codes(tmp_path, part, value, says):
    folder = changed(tmp_path, torchao("w4")[0], {f"{DOWN}._weight_{part}": value})
    with pytest.raises(InputError) as error:
        weights_of(folder, "trained").quantized("blocks.0.ffn.down.weight")
    assert f"{DOWN}._weight_{part}: {says}" in str(error.value)


def test_a_part_that_is_missing(capsys, tmp_path):
    folder = shutil.copytree(torchao("w4")[0], tmp_path / "model")
    with safe_open(folder / "model.safetensors", "pt") as file:
        said = file.metadata()
    tensors = load_file(folder / "model.safetensors")
    del tensors[f"{DOWN}._weight_scale"]
    save_file(tensors, folder / "model.safetensors", metadata=said)
    assert refusal(capsys, folder).startswith(f"{DOWN}.weight: {DOWN}._weight_scale is missing; ")


def test_a_pickle_of_torchaos_tensors(capsys, tmp_path):
    """torch reads its class where torchao was imported, as here; elsewhere the pickle is refused for asking for it."""
    folder, state = torchao("w4")
    folder = shutil.copytree(folder, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    line = refusal(capsys, folder)
    assert "is a IntxUnpackedToInt8Tensor, of which only its own library knows the layout; save it as safetensors, " in line


def test_query_key_and_value_trained_apart(capsys, tmp_path):
    folder = shutil.copytree(paretoq(4), tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.self_attn.k_proj.weight_clip_val"]
    save_file(tensors, folder / "model.safetensors")
    line = refusal(capsys, folder, "--recipe", "trained")
    assert line.startswith(
        "model.safetensors: model.layers.1.self_attn.k_proj.weight: is not trained to have codes, "
        "model.layers.1.self_attn.q_proj.weight is 4-bit, per channel; train those of blocks.1.attention.qkv.weight alike"
    )


def test_a_block_that_was_left_in_float(tmp_path):
    """The recipe says of every matrix what it is stored as, also where training left some out; said twice it is the same."""
    folder = shutil.copytree(paretoq(4), tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors[f"{DOWN}.weight_clip_val"]
    save_file(tensors, folder / "model.safetensors")
    weights = weights_of(folder, "trained")
    assert weights.recipe.linear == Precision(4)
    assert weights.recipe.override == [Override("blocks.0.ffn.down.weight", Precision(8))]
    again = ModelWeights(weights.checkpoint, weights.recognised, weights.plan, weights.recipe)
    assert (again.recipe, again.matrices) == (weights.recipe, weights.matrices)


def test_a_tensor_without_codes_is_as_before():
    assert open_checkpoint(str(paretoq(4))).tensors["model.norm.weight"].trained is None
    assert llama_tensors().keys() == set(open_checkpoint(str(paretoq(4))).tensors)
