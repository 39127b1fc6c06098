"""Calibration of whole models: sampled text, blocks that run several times, every family, and what is kept of it."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from exported import artifact, checkpoint, manifest, onnx_artifact, weights_of
from safetensors.torch import load_file, save_file
from tiny_checkpoints import write_llama
from tiny_families import FAMILIES, written

from mobile_export.cache import cache_folder
from mobile_export.cli import run
from mobile_export.errors import InputError
from mobile_export.quantize import calibrated, calibration
from mobile_export.quantize.activations import quantize_dequantize_rows
from mobile_export.quantize.calibrated_apart import calibrate_apart
from mobile_export.quantize.clip_search import quantize_weight
from mobile_export.quantize.recipe import Calibration, read_recipe
from mobile_export.quantize.sampling import sample_texts
from mobile_export.quantize.weights import ModelWeights
from mobile_export.verify.reference import reference_logits, reference_model

RECIPE = """
name = "small"
description = "w4 on little text"
linear = { bits = 4, group_size = 32 }
embedding = { bits = 8 }
head = { bits = 8 }
quantizer = "gptq"
calibration = { sequences = 8, tokens = 32 }
"""
# One of each way a block is put together: norms with and without bias, before and after, parallel, gated or not, conv, RWKV.
BLOCKS = ["gpt2-lamini", "opt-350m", "pythia", "bloom", "falcon-11b", "gemma3", "phi-qk-norm", "lfm2-biased", "rwkv4-narrow"]
SCHEDULES = ["none", "immediate", "repeat-all-over", "reverse", "0,0,1,0"]


def silent(_):
    pass


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def small(tmp_path):
    """The recipe's file."""
    (tmp_path / "small.toml").write_text(RECIPE)
    return str(tmp_path / "small.toml")


def mean_divergence(model, reference, texts):
    """Of a model's distributions from the reference's, over every position of the texts."""
    total = 0.0
    for text in texts:
        found, wanted = (reference_logits(one, text.tolist()).double().log_softmax(-1) for one in (model, reference))
        total += float((wanted.exp() * (wanted - found)).sum(-1).mean())
    return total / len(texts)


# --- sampled text ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_texts_sampled_side_by_side_are_what_the_model_says_of_each_alone(name, monkeypatch):
    """The likeliest token instead of a drawn one: the text must be the one the model by itself goes on with."""
    monkeypatch.setattr("mobile_export.quantize.sampling._drawn", lambda logits, _: logits.argmax(dim=1, keepdim=True))
    weights = weights_of(written(name), "fp32")
    texts = sample_texts(weights, 3, 12, silent)
    alone = reference_model(weights, 64)
    ends = list(weights.checkpoint.eos_ids)
    assert len({tuple(text) for text in texts.tolist()}) == 3
    for text in texts.tolist():
        logits = reference_logits(alone, text)
        logits[:, ends] = -torch.inf
        assert text[0] == weights.checkpoint.bos_id
        assert text[2:] == logits[1:-1].argmax(dim=1).tolist()


def test_sampled_text_is_the_models_and_the_same_every_time():
    weights = weights_of(checkpoint(blocks=2), "fp32")
    texts = sample_texts(weights, 32, 48, silent)
    assert texts.equal(sample_texts(weights, 32, 48, silent))
    assert texts.shape == (32, 48)
    assert not (texts == 2).any()  # no text ends
    model, random = reference_model(weights, 64), torch.randint(96, texts.shape, generator=torch.Generator().manual_seed(0))
    likely = [sum(_log_probability(model, text) for text in some) for some in (texts, random)]
    assert likely[0] > likely[1] + 32 * 46 * 0.1


def test_texts_sampled_a_few_at_a_time_differ_and_are_as_many(monkeypatch):
    monkeypatch.setattr("mobile_export.quantize.sampling.BESIDE", 3)
    told = []
    texts = sample_texts(weights_of(checkpoint(blocks=2), "fp32"), 7, 12, told.append)
    assert texts.shape == (7, 12)
    assert len({tuple(text) for text in texts.tolist()}) == 7
    assert told[-1] == "sampling text from the model: 77 of 77 tokens"


def _log_probability(model, text):
    logits = reference_logits(model, text.tolist()).log_softmax(-1)
    return float(logits[1:-1].gather(1, text[2:, None]).sum())


# --- blocks ----------------------------------------------------------------------------------------------------------


def calibrated_of(weights):
    """The matrices that activations are multiplied with."""
    kinds = ("blocks", "head", *(["embedding.weight"] if weights.plan.tied else []))
    return {matrix for matrix in weights.matrices if matrix.startswith(kinds)}


@pytest.mark.parametrize("name", BLOCKS)
def test_every_matrix_of_every_kind_of_block_is_calibrated_and_it_pays(name):
    """Measured: a half to a tenth of the divergence, on the text it was calibrated on."""
    weights, plain = weights_of(written(name)), weights_of(written(name), "fp32")
    texts = list(sample_texts(plain, 8, 32, silent))
    found, factors = calibrated.calibrate(weights, texts, silent)
    assert set(found) == calibrated_of(weights)
    exact, clipped = reference_model(plain, 64), reference_model(weights, 64)
    before = mean_divergence(clipped, exact, texts)
    folded = weights.folded_by(factors)
    folded.quantized = lambda name, other=folded.quantized: found[name] if name in found else other(name)
    after = mean_divergence(reference_model(folded, 64), exact, texts)
    assert after < 0.6 * before


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_shared_block_is_quantized_once_for_the_inputs_of_all_its_executions(schedule, monkeypatch):
    """The sums are held against inputs worked out here, by blocks called one after the other."""
    weights = weights_of(checkpoint(blocks=2), "w4-fast", schedule)
    texts = list(sample_texts(weights_of(checkpoint(blocks=2), "fp32", schedule), 4, 32, silent))
    given = []
    monkeypatch.setattr(
        calibrated, "damped", lambda moments, *rest, real=calibrated.damped: given.append(moments) or real(moments, *rest)
    )
    found, factors = calibrated.calibrate(weights, texts, silent)
    assert set(found) == calibrated_of(weights)
    assert len(given) == 4 * len(weights.plan.blocks) + 1  # gate and up have one input; the head comes last
    order = weights.plan.schedule
    folding = factors.get("blocks.0.attention.qkv.weight")
    columns = torch.ones(64) if folding is None or folding.columns is None else folding.columns
    expected = sum(_qkv_inputs_of_block_0(weights, text, order, columns) for text in texts)
    assert torch.allclose(given[0], expected, rtol=1e-4, atol=1e-4 * float(expected.max()))
    once = weights_of(checkpoint(blocks=2), "w4-fast", "none")
    alone = sum(_qkv_inputs_of_block_0(once, text, once.plan.schedule, columns) for text in texts)
    assert torch.allclose(given[0], alone, rtol=1e-2) == (order.count(0) == 1)


def _qkv_inputs_of_block_0(weights, text, order, columns):
    """Sum of x x^T over block 0's normed, folded, rounded inputs in a decoder of float32 blocks."""
    plain = ModelWeights(weights.checkpoint, weights.recognised, weights.plan, read_recipe("fp32"))
    total = torch.zeros(64, 64)
    decoder, seen = reference_model(plain, 64), []
    decoder.blocks[0].attention.qkv.register_forward_pre_hook(lambda _, given: seen.append(given[0][0]))
    reference_logits(decoder, text.tolist())
    at_once = next((i for i, stored in enumerate(order) if stored != 0), len(order))
    for i, x in enumerate(seen):
        # What was looked ahead to was rounded before it was folded: the factors come later.
        rounded = quantize_dequantize_rows(x / columns) if i < at_once else quantize_dequantize_rows(x) / columns
        total += rounded.t() @ rounded
    return total


def test_inputs_come_from_blocks_that_are_quantized_already(monkeypatch):
    """With a first block rounded to nothing, the second one must see what is left of the stream."""
    weights = weights_of(checkpoint(blocks=2))
    texts, given, rounded = list(sample_texts(weights_of(checkpoint(blocks=2), "fp32"), 2, 16, silent)), [], []
    gptq, damped = calibrated.gptq, calibrated.damped

    def crossed_out(weight, inputs, precision):
        rounded.append(weight)
        return gptq(weight * (len(rounded) > 2 * 5), inputs, precision)  # each matrix in two parts

    monkeypatch.setattr(calibrated, "gptq", crossed_out)
    monkeypatch.setattr(calibrated, "damped", lambda moments, columns: given.append(moments) or damped(moments, columns))
    factors = calibrated.calibrate(weights, texts, silent)[1]
    table = weights.float32("embedding.weight")  # tied: it is rounded last
    norm = weights.folded_by(factors).float32("blocks.1.attention.norm.weight")
    x = table[torch.cat(texts)]
    x = quantize_dequantize_rows(x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * norm)
    assert torch.allclose(given[4], x.t() @ x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_is_calibrated_for_what_the_quantized_blocks_give_it(tied, monkeypatch):
    weights, given = weights_of(checkpoint(blocks=2, tied=tied), "w4-all-fast"), []
    texts = list(sample_texts(weights_of(checkpoint(blocks=2, tied=tied), "fp32"), 4, 32, silent))
    damped = calibrated.damped
    monkeypatch.setattr(calibrated, "damped", lambda moments, columns: given.append(moments) or damped(moments, columns))
    found, factors = calibrated.calibrate(weights, texts, silent)
    name = "embedding.weight" if tied else "head.linear.weight"
    assert list(found)[-1] == name
    folded = weights.folded_by(factors)
    folded.quantized = lambda name, other=weights.quantized: found[name] if name.startswith("blocks.") else other(name)
    decoder, seen = reference_model(folded, 64), []
    if tied:
        decoder.embedding = torch.nn.Embedding.from_pretrained(weights.float32(name))
    decoder.head.linear.register_forward_pre_hook(lambda _, x: seen.append(x[0][0]))
    for text in texts:
        reference_logits(decoder, text.tolist())
    x = quantize_dequantize_rows(torch.cat(seen))
    assert torch.allclose(given[-1], x.t() @ x, rtol=1e-3, atol=1e-2)
    clipped = quantize_weight(weights.float32(name), weights.matrices[name].precision)
    off = [(x @ (rounded.dequantized() - weights.float32(name)).t()).square().mean() for rounded in (found[name], clipped)]
    assert off[0] < 0.6 * off[1]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("apart", [False, True])
def test_a_head_whose_inputs_differ_in_size_is_folded(tied, apart, tmp_path):
    """Every eighth channel of what the last norm gives is thirty times the others."""
    folder = write_llama(tmp_path, blocks=1, tied=tied)
    held = load_file(folder / "model.safetensors")
    held["model.norm.weight"][::8] *= 30
    save_file(held, folder / "model.safetensors")
    weights, name = weights_of(folder, "w8-fast"), "embedding.weight" if tied else "head.linear.weight"
    texts = list(sample_texts(weights, 4, 32, silent))
    with ThreadPoolExecutor(1) as pool:
        found, factors = (
            calibrate_apart(weights, [name], texts, pool, silent) if apart else calibrated.calibrate(weights, texts, silent)
        )
    columns = factors[name].columns
    assert columns[::8].min() > 1.5 * columns.median()
    assert torch.allclose(factors["head.norm.weight"].rows * columns, torch.ones_like(columns))
    table = weights.float32(name) * columns
    assert (found[name].dequantized() - table).norm() < (0.2 if apart else 0.02) * table.norm()


def test_only_matrices_no_wider_than_the_stream_aim_at_the_exact_one(monkeypatch):
    """And an error while the texts wait leaves none of their threads behind."""
    weights, fitted, threads = weights_of(checkpoint(blocks=2)), [], threading.active_count()
    texts = list(sample_texts(weights_of(checkpoint(blocks=2), "fp32"), 4, 32, silent))
    real = calibrated.fitted
    monkeypatch.setattr(calibrated, "fitted", lambda weight, *rest: fitted.append(weight.shape[1]) or real(weight, *rest))
    found, _ = calibrated.calibrate(weights, texts, silent)
    hidden = weights.recognised.spec.hidden_size
    assert set(fitted) == {hidden}
    assert len(fitted) == len(found) - 3  # the down projections, and the table
    assert threading.active_count() == threads
    monkeypatch.setattr(calibrated, "gptq", None)
    with pytest.raises(TypeError):
        calibrated.calibrate(weights, texts, silent)
    assert threading.active_count() == threads


@pytest.mark.parametrize("columns", [64, 384, 385, 1000])
def test_sums_of_products_are_the_same_in_parts(columns):
    x = torch.randn(50, columns, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(calibrated._gram(x.t().contiguous()), x.t() @ x, rtol=1e-5, atol=1e-4)


def test_activations_beyond_float32_are_refused(tmp_path):
    tensors = {"model.layers.0.mlp.up_proj.weight": 1e30, "model.layers.0.mlp.gate_proj.weight": 1e30}
    folder = write_llama(tmp_path, blocks=2)
    held = load_file(folder / "model.safetensors")
    save_file({name: tensor * tensors.get(name, 1) for name, tensor in held.items()}, folder / "model.safetensors")
    with pytest.raises(InputError) as error:
        calibrated.calibrate(weights_of(folder), [torch.arange(32)], silent)
    assert "inputs go beyond float32 on the calibration text; use a recipe without calibration" in str(error.value)


# --- what is kept ----------------------------------------------------------------------------------------------------


def kept():
    return {path.name: path.read_bytes() for path in cache_folder().glob("*.safetensors")}


def test_calibration_is_done_once_and_the_same_when_done_again(small, monkeypatch):
    def made():
        weights = weights_of(checkpoint(blocks=2), small)
        return {name: weights.quantized(name) for name in weights.matrices}

    first, files = made(), kept()
    assert sorted(name.split("-")[0] for name in files) == ["calibrated", "sampled"]
    for path in cache_folder().iterdir():
        path.unlink()
    made()
    assert kept() == files
    monkeypatch.setattr(calibrated, "calibrate", None)  # what is kept is not made again
    again = made()
    for name, matrix in first.items():
        assert matrix.codes.equal(again[name].codes)
        assert matrix.scales.equal(again[name].scales)


@pytest.mark.parametrize("other", ["schedule", "recipe", "weights"])
def test_another_schedule_recipe_or_checkpoint_is_calibrated_anew(small, tmp_path, other):
    weights_of(checkpoint(blocks=2), small).quantized("blocks.0.ffn.o.weight")
    before = set(kept())
    if other == "recipe":
        (tmp_path / "small.toml").write_text(RECIPE.replace("sequences = 8", "sequences = 6"))
    folder = checkpoint(blocks=2, seed=1) if other == "weights" else checkpoint(blocks=2)
    weights_of(folder, small, "immediate" if other == "schedule" else None).quantized("blocks.0.ffn.o.weight")
    assert len(set(kept()) - before) == 2


def test_the_recipes_name_does_not_count(small, tmp_path):
    weights_of(checkpoint(blocks=2), small).quantized("blocks.0.ffn.o.weight")
    before = set(kept())
    (tmp_path / "small.toml").write_text(RECIPE.replace('"small"', '"renamed"'))
    weights_of(checkpoint(blocks=2), small).quantized("blocks.0.ffn.o.weight")
    assert set(kept()) == before


def test_a_damaged_file_and_a_folder_that_cannot_be_written(small, tmp_path, monkeypatch):
    weights_of(checkpoint(blocks=2), small).quantized("blocks.0.ffn.o.weight")
    path = next(cache_folder().glob("calibrated-*"))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"is damaged: .*; remove it, it will be made again"):
        weights_of(checkpoint(blocks=2), small).quantized("blocks.0.ffn.o.weight")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match="cannot be written: Not a directory; set XDG_CACHE_HOME to a folder with room"):
        weights_of(checkpoint(blocks=2), small).quantized("blocks.0.ffn.o.weight")


def test_nothing_is_calibrated_to_inspect(small, monkeypatch, capsys):
    monkeypatch.setattr(calibration, "calibrated", None)
    assert run(["inspect", str(checkpoint(blocks=2)), "--recipe", small]) == 0


# --- a text of the user's --------------------------------------------------------------------------------------------


def test_a_users_text_is_cut_into_texts_that_begin_with_bos(tmp_path):
    weights = weights_of(checkpoint(blocks=2), "fp32")
    (tmp_path / "notes.txt").write_text("the quick brown fox " * 100)
    texts = calibration._texts_of(weights, tmp_path / "notes.txt", Calibration(20, 32))
    whole = calibration._texts_of(weights, tmp_path / "notes.txt", Calibration(1, 512))[0]
    begins = [1] if weights.checkpoint.tokenizer.adds_bos else []
    assert {len(text) for text in texts[:-1]} == {32}
    assert all(text[: len(begins)].tolist() == begins for text in texts)
    assert torch.cat([text[len(begins) :] for text in texts])[:60].equal(whole[len(begins) :][:60])


@pytest.mark.parametrize(
    ("content", "line"),
    [(None, "cannot be read: No such file or directory; name a text file"),
     (b"\xff\xfe", "is not UTF-8: byte 0; convert it to UTF-8"),
     (b"the quick", "tokens; give at least 256; the recipe takes 256")],
)  # fmt: skip
def test_a_text_that_cannot_be_used(small, tmp_path, fails, content, line):
    file = tmp_path / "notes.txt"
    if content is not None:
        file.write_bytes(content)
    arguments = ("onnx", checkpoint(blocks=2), "--recipe", small, "--out", tmp_path / "out", "--calibration", file)
    code, said = fails(*arguments)
    assert code == 3
    assert said.startswith(f"--calibration {file}: ")
    assert said.endswith(line)


def test_a_text_for_a_recipe_that_takes_none(tmp_path, fails):
    code, said = fails(
        "onnx", checkpoint(blocks=2), "--recipe", "w4-fast", "--calibration", "notes.txt", "--out", tmp_path / "out"
    )
    assert code == 2
    assert said == "--calibration notes.txt: recipe w4-fast is not calibrated; leave it out, or choose a recipe that is"


# --- artifacts -------------------------------------------------------------------------------------------------------


def test_an_artifact_says_what_it_was_calibrated_with_and_verifies_again(small, tmp_path, fails, capsys):
    source = checkpoint(blocks=2, tied=False)
    (tmp_path / "notes.txt").write_text("the quick brown fox jumps over the lazy dog " * 40)
    text = ("--calibration", str(tmp_path / "notes.txt"))
    out = onnx_artifact(source, "--recipe", small, *text)
    facts = manifest(out)["calibration"]
    assert (facts["text"], facts["tokens"]) == ("notes.txt", 256)
    assert facts["left"] == ["embedding.weight"]
    said = "Calibrated on 256 tokens of `notes.txt`; rounded without it: `embedding.weight`."
    assert said in (out / "README.md").read_text()
    assert run(["verify", str(out), "--against", str(source), *text]) == 0
    assert fails("verify", out, "--against", source) == (
        3,
        "manifest.json: the text it was calibrated with is notes.txt, not sampled from the model; "
        "give that file: --calibration notes.txt",
    )
    (tmp_path / "notes.txt").write_text("the lazy dog jumps over the quick brown fox " * 40)
    code, said = fails("verify", out, "--against", source, *text)
    assert code == 3
    assert said.startswith("manifest.json: calibration gives other numbers here: from another text")


def test_a_pte_and_an_onnx_model_hold_the_same_calibrated_codes(small, capsys):
    """Each export verifies itself against the codes and scales of ModelWeights."""
    source = checkpoint("mobilellm", blocks=2)
    facts = [manifest(made(source, "--recipe", small))["calibration"] for made in (artifact, onnx_artifact)]
    assert facts[0] == facts[1]
    assert facts[0]["text"] == "sampled from the model"
    assert manifest(onnx_artifact(source, "--recipe", "w4-fast"))["calibration"] is None
