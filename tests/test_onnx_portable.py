"""`--portable`: the same networks in operators of the ONNX standard alone, and what onnxruntime makes of them."""

from __future__ import annotations

import onnx
import onnxruntime
import pytest
import torch
from exported import checkpoint, manifest, onnx_artifact, onnx_file, weights_of
from test_onnx_parity import ANY_VERSION, CHUNKS, LIMIT, errors, in_chunks
from tiny_families import FAMILIES, TOKENS, reference_logits, written

from mobile_export.audit import audit_artifact
from mobile_export.cli import run
from mobile_export.verify.onnx_runtime import OnnxRuntime
from mobile_export.verify.reference import float_activations, onnxruntime_arithmetic, reference_model
from mobile_export.verify.reference import reference_logits as logits_in_pytorch


def nodes_of(path):
    return onnx.load(path, load_external_data=False).graph.node


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_computes_what_transformers_computes(name):
    path = onnx_file(weights_of(written(name), "fp32"), portable=True, all_logits=True)
    assert {node.domain for node in nodes_of(path)} == {""}
    got = in_chunks(OnnxRuntime(path, ANY_VERSION), TOKENS, CHUNKS["mixed"])
    assert errors(got, reference_logits(name)).max() <= LIMIT


@pytest.mark.parametrize("recipe", ["w8-fast", "w4-all-fast"])
@pytest.mark.parametrize("name", ["gpt2-cerebras", "bloom", "qwen3", "gemma3", "lfm2", "rwkv4"])
def test_quantized_weights_are_the_same_codes_in_pytorch(name, recipe):
    """The packed table gathered from, too: 4-bit rows are picked out of bytes that hold two of them."""
    weights = weights_of(written(name), recipe)
    path = onnx_file(weights, portable=True, all_logits=True)
    got = in_chunks(OnnxRuntime(path, ANY_VERSION, float_activations=True), TOKENS, CHUNKS["mixed"])
    model = reference_model(weights, len(TOKENS), onnxruntime_arithmetic(lambda _: None))
    with float_activations(model):
        want = logits_in_pytorch(model, TOKENS)
    assert errors(got, want).max() <= LIMIT


@pytest.mark.parametrize("recipe", ["w4-fast", "w8-fast", "w4-all-fast"])
def test_onnxruntime_fuses_every_product_of_a_shared_model(tmp_path, recipe):
    """A DequantizeLinear that is left would make float weights at every step, forty times slower."""
    path = onnx_file(weights_of(checkpoint("mobilellm", layer_sharing=True), recipe), portable=True)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    before = [node.op_type for node in nodes_of(path)]
    after = [node.op_type for node in nodes_of(tmp_path / "optimized.onnx")]
    assert "MatMul" not in after, "what dequantization is left is that of gathered rows"
    assert after.count("MatMulNBits") == before.count("MatMul") == 21
    levels = {a.i for node in nodes_of(tmp_path / "optimized.onnx") for a in node.attribute if a.name == "accuracy_level"}
    assert levels == {4}


def test_every_use_names_its_bytes_anew_and_the_file_holds_them_once():
    base, shared = (
        onnx_file(weights_of(checkpoint(blocks=2), "w4-all-fast", schedule), portable=True) for schedule in (None, "immediate")
    )
    sizes = [path.with_name("model.onnx.data").stat().st_size for path in (base, shared)]
    assert sizes[0] == sizes[1]
    codes = [node.input[0] for node in nodes_of(shared) if node.op_type == "DequantizeLinear" and node.name != "embedding"]
    assert len(codes) == len(set(codes)) == 21, "4 executions of 5 products, and the head"
    audit = audit_artifact(shared)
    assert audit.clean
    assert audit.distinct == audit_artifact(base).distinct


def test_the_folder_says_what_it_is_and_runs_in_the_stock_runtime(capsys):
    folder = onnx_artifact(checkpoint(), "--recipe", "w4-all-fast", "--portable")
    found = manifest(folder)
    assert found["onnx"]["portable"]
    assert "MatMulNBits" not in found["onnx"]["operators"]
    assert found["verification"]["passed"]
    assert (folder / "genai_config.json").read_text().count('"past_present_share_buffer": false') == 1
    capsys.readouterr()
    assert run(["generate", str(folder), "the quick", "--max-new-tokens", "5", "--json"]) == 0


def test_an_odd_vocabulary_at_four_bits_is_refused(capsys, tmp_path):
    folder = checkpoint(vocab=97)
    out = str(tmp_path / "out")
    assert run(["onnx", str(folder), "--recipe", "w4-all-fast", "--portable", "--out", out]) == 3
    line = capsys.readouterr().err
    assert line.endswith(
        "model.embed_tokens.weight: an odd number of rows, 97, at 4 bits cannot be written for --portable; "
        "give it 8 bits, or leave --portable out\n"
    )
    assert run(["onnx", str(folder), "--recipe", "w4-fast", "--portable", "--out", out, "--max-context", "64"]) == 0


@pytest.mark.parametrize("other", [("--kv", "int8"), ("--activations", "float16")])
def test_what_needs_onnxruntimes_own_operators_does_not_go_with_it(capsys, other):
    assert run(["onnx", str(checkpoint()), "--portable", *other]) == 2
    line = capsys.readouterr().err
    assert line == f"error: --portable: {' '.join(other)} needs operators of onnxruntime's own; leave one of the two out\n"


def test_a_recipe_with_an_int8_cache_does_not_go_with_it_either(capsys, tmp_path):
    recipe = tmp_path / "small.toml"
    lines = ['name = "small"', 'description = "d"', *(f"{part} = {{ bits = 8 }}" for part in ("linear", "embedding", "head"))]
    recipe.write_text("\n".join([*lines, "[kv]", 'dtype = "int8"']))
    assert run(["onnx", str(checkpoint()), "--portable", "--recipe", str(recipe)]) == 2
    assert capsys.readouterr().err.endswith("which needs operators of onnxruntime's own; add --kv float32\n")


# --- models onnxruntime-genai has no loop for --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rwkv4", "lfm2"])
def test_a_model_with_a_state_speaks_by_plain_onnxruntime(tmp_path, capsys, name):
    source = written(name)
    folder = tmp_path / name
    folder.mkdir()
    for file in (*source.iterdir(), checkpoint(vocab=96) / "tokenizer.json"):
        (folder / file.name).write_bytes(file.read_bytes())
    out = tmp_path / "out"
    assert run(["onnx", str(folder), "--recipe", "w8-fast", "--max-context", "64", "--out", str(out)]) == 0
    assert not (out / "genai_config.json").exists()
    capsys.readouterr()
    said = []
    for arguments in (["--max-new-tokens", "6"], ["--max-new-tokens", "6"], ["--max-new-tokens", "6", "--temperature", "1.0"]):
        assert run(["generate", str(out), "the quick brown", "--json", *arguments]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert torch.tensor(said[0] != said[2])
    assert run(["onnx", str(folder), "--kv", "int8", "--out", str(tmp_path / "other")]) == 3
    assert "keeps states beside keys and values, an int8 cache covers only those; use --kv float32" in capsys.readouterr().err
