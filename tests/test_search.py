"""`mobile-export search`: what matrices cost at 4 bits, which are chosen, and the recipe that comes of it."""

import contextlib
import dataclasses
import functools
import io
import itertools
import json
import math
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from exported import ROOM, checkpoint, coreml_artifact, onnx_artifact, weights_of
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, ImageColor
from safetensors.torch import load_file, save_file
from test_coreml_one_copy import matrices
from test_onnx_one_copy import MATRICES, onnx_matrices, pte_matrices
from tiny_checkpoints import write_llama
from tiny_families import written

from benchmarks import quality_plot
from mobile_export.cli import run
from mobile_export.errors import InputError
from mobile_export.measure.drawing import BLUE, COLORS
from mobile_export.measure.drawing_png import png_of
from mobile_export.measure.sensitivity_drawing import draw
from mobile_export.quantize import calibrated_apart, sensitivity
from mobile_export.quantize.calibrated_apart import calibrate_apart
from mobile_export.quantize.fold import Factor
from mobile_export.quantize.gptq import damped
from mobile_export.quantize.mixed import EIGHT, FOUR, mixed_recipe, to_toml
from mobile_export.quantize.recipe import EMBEDDING, HEAD, Calibration, Override, read_recipe
from mobile_export.quantize.selection import cheapest
from mobile_export.quantize.sensitivity import Sensitivity, candidates, saved_bytes, sensitivities
from mobile_export.quantize.sizes import bits_per_weight
from mobile_export.quantize.weights import ModelWeights
from mobile_export.verify.reference import float_activations, reference_logits, reference_model

TEXTS = list(torch.randint(3, 90, (3, 16), generator=torch.Generator().manual_seed(1)))
HEARD = list(torch.randint(3, 90, (8, 32), generator=torch.Generator().manual_seed(2)))
# One of each way a model is put together, and every order a shared block can run in.
MODELS = [
    ("llama", None),
    ("llama-untied", None),
    ("llama", "immediate"),
    ("llama", "reverse"),
    ("llama", "0,1,0,0"),
    ("opt-350m", None),  # projections beside a narrow table, learned positions
    ("bloom", None),
    ("falcon-11b", None),
    ("gemma3", None),
    ("lfm2-biased", None),
    ("rwkv4-narrow", None),
]


def silent(_):
    pass


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def folder_of(model):
    return checkpoint(blocks=2, tied=model == "llama") if model.startswith("llama") else written(model)


def at_4_bits(weights, name):
    """The same weights, this matrix at 4 bits and all others at 8."""
    recipe = dataclasses.replace(read_recipe("w8-fast"), override=[Override(name, FOUR)])
    if name in (EMBEDDING, HEAD):
        assert recipe.precision_of(name) == FOUR
    return ModelWeights(weights.checkpoint, weights.recognised, weights.plan, recipe)


# --- what a matrix costs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "schedule"), MODELS)
def test_a_cost_is_what_the_whole_model_at_that_recipe_diverges_by(model, schedule):
    """Brute force: the reference model of the recipe with the one override, run from the first token, in double precision."""
    weights = weights_of(folder_of(model), "w8-fast", schedule)
    found = {s.name: s.kl for s in sensitivities(weights, TEXTS, [], silent)}
    picked = [name for name in found if not name.startswith("blocks.") or name.startswith("blocks.1.")]
    assert len(picked) >= 5
    base = log_probabilities(weights)
    for name in picked:
        check_cost(found[name], base, log_probabilities(at_4_bits(weights, name)))


@pytest.mark.parametrize(("model", "schedule"), [("llama", None), ("llama", "reverse"), ("lfm2-biased", None), ("rwkv4", None)])
def test_a_calibrated_matrix_is_measured_by_itself_in_the_folded_model(model, schedule, monkeypatch):
    weights, made = weights_of(folder_of(model), "w8-fast", schedule), []
    real = sensitivity.calibrate_apart
    monkeypatch.setattr(sensitivity, "calibrate_apart", lambda *given: made.append(real(*given)) or made[0])
    found = {s.name: s.kl for s in sensitivities(weights, HEARD, HEARD, silent)}
    (calibrated, factors) = made[0]
    multiplied = ("blocks.", "head.", *(["embedding."] if weights.plan.tied else []))
    assert set(calibrated) == {name for name in found if name.startswith(multiplied)}
    base = log_probabilities(weights.folded_by(factors), HEARD)
    for name in [*calibrated][-5:]:
        changed = at_4_bits(weights, name).folded_by(factors)
        changed.quantized = lambda asked, name=name, other=changed.quantized: (
            calibrated[name] if asked == name else other(asked)
        )
        check_cost(found[name], base, log_probabilities(changed, HEARD))
    clipped = {s.name: s.kl for s in sensitivities(weights, HEARD, [], silent)}
    assert sum(found[name] for name in calibrated) < 0.9 * sum(clipped[name] for name in calibrated)


@pytest.mark.parametrize("schedule", ["none", "immediate", "reverse", "0,1,0,0"])
def test_a_shared_block_is_calibrated_for_the_inputs_of_all_its_executions(schedule, monkeypatch):
    weights, given = weights_of(folder_of("llama"), "w8-fast", schedule), {}
    real = calibrated_apart.gptq
    monkeypatch.setattr(
        calibrated_apart,
        "gptq",
        lambda w, inputs, precision: given.setdefault(w.shape, inputs) is None or real(w, inputs, precision),
    )
    with ThreadPoolExecutor(1) as pool:
        _, factors = calibrate_apart(weights, [f"blocks.0.{name}.weight" for name in MATRICES], TEXTS, pool, silent)
    decoder, seen = reference_model(weights.in_float32(), 64), []
    decoder.blocks[0].attention.qkv.register_forward_pre_hook(lambda _, x: seen.append(x[0][0]))
    for text in TEXTS:
        reference_logits(decoder, text.tolist())
    assert len(seen) == len(TEXTS) * weights.plan.schedule.count(0)
    columns = factors.get("blocks.0.attention.qkv.weight", Factor()).columns
    columns = torch.ones(64) if columns is None else columns
    x = torch.cat(seen) / columns
    inputs = given[weights.shape("blocks.0.attention.qkv.weight")]
    wanted = damped(x.t() @ x, columns)[inputs.order][:, inputs.order].float()
    assert torch.allclose(inputs.hessian, wanted, rtol=1e-4, atol=1e-3)


def check_cost(found, base, changed):
    wanted = float((base.exp() * (base - changed)).sum(-1).mean())
    # float32 through a model: an error of 1e-6 in each log-probability
    assert found == pytest.approx(wanted, rel=2e-3, abs=1e-6)
    assert wanted > 3e-6, "else the test could not fail"


def log_probabilities(weights, texts=TEXTS):
    model = reference_model(weights, 64)
    with float_activations(model):
        return torch.cat([reference_logits(model, text.tolist()).double().log_softmax(-1) for text in texts])


@pytest.mark.parametrize(("model", "schedule"), MODELS)
def test_what_a_matrix_saves_is_what_the_files_prediction_shrinks_by(model, schedule):
    """So a shared block is counted once, however often it runs; its executions are counted."""
    weights = weights_of(folder_of(model), "w8-fast", schedule)
    whole = sum(weights.predicted_bytes().values())
    for matrix in candidates(weights):
        assert whole - sum(at_4_bits(weights, matrix.name).predicted_bytes().values()) == saved_bytes(matrix) > 0
        if schedule and matrix.name.startswith("blocks.0."):
            assert matrix.uses == {"immediate": 2, "reverse": 2, "0,1,0,0": 3}[schedule]


def test_a_matrix_groups_do_not_divide_and_learned_positions_stay_at_8_bits():
    narrow = {matrix.name for matrix in candidates(weights_of(checkpoint(blocks=2, hidden=72, heads=2, kv_heads=1), "w8-fast"))}
    assert narrow == {"blocks.0.ffn.down.weight", "blocks.1.ffn.down.weight"}
    assert "positions.weight" not in {matrix.name for matrix in candidates(weights_of(written("opt-350m"), "w8-fast"))}


def test_what_was_measured_is_kept(monkeypatch):
    weights = weights_of(checkpoint(blocks=2), "w8-fast")
    first = sensitivities(weights, TEXTS, [], silent)
    monkeypatch.setattr(sensitivity, "_measure", None)
    assert sensitivities(weights_of(checkpoint(blocks=2), "w8-fast"), TEXTS, [], silent) == first
    for other in [
        (weights_of(checkpoint(blocks=2), "w8-fast", "immediate"), TEXTS, []),
        (weights, TEXTS[:2], []),
        (weights, TEXTS, HEARD),
    ]:
        with pytest.raises(TypeError):
            sensitivities(*other, silent)


# --- which are chosen ------------------------------------------------------------------------------------------------

ITEMS = st.lists(st.tuples(st.floats(0, 1), st.integers(1, 60)), min_size=1, max_size=8)


def named(items):
    return [Sensitivity(str(number), kl, saved, 1) for number, (kl, saved) in enumerate(items)]


def cost(items, chosen):
    return sum(item.kl for item in items if item.name in chosen)


def saving(items, chosen):
    return sum(item.saved_bytes for item in items if item.name in chosen)


@example([(0.1, 10), (0.15, 14), (1.0, 100)], 0.19)  # the cheapest a byte falls short, and the next alone would do
@given(ITEMS, st.floats(0, 1))
def test_no_other_set_that_saves_enough_costs_less(items, share):
    items = named(items)
    must_save = round(share * sum(item.saved_bytes for item in items))
    chosen = cheapest(items, must_save)
    assert saving(items, chosen) >= must_save
    every = itertools.chain.from_iterable(itertools.combinations(items, count) for count in range(len(items) + 1))
    least = min(sum(item.kl for item in some) for some in every if sum(item.saved_bytes for item in some) >= must_save)
    assert cost(items, chosen) == pytest.approx(least, abs=1e-12)


@given(ITEMS, st.floats(0, 1), st.floats(0, 1))
def test_a_larger_size_never_costs_more(items, share, other):
    items = named(items)
    whole = sum(item.saved_bytes for item in items)
    less, more = sorted(round(part * whole) for part in (share, other))
    assert cost(items, cheapest(items, less)) <= cost(items, cheapest(items, more)) + 1e-12


def test_sizes_without_a_common_divisor_are_never_exceeded_and_all_are_taken_for_the_last_byte(monkeypatch):
    monkeypatch.setattr("mobile_export.quantize.selection.STEPS", 1000)  # a coarse step, so that rounding the other way shows
    generator = torch.Generator().manual_seed(3)
    saved = torch.randint(400_000, 900_000, (150,), generator=generator) | 1
    costs = torch.rand(150, generator=generator)
    items = named(zip(costs.tolist(), saved.tolist(), strict=True))
    whole = sum(item.saved_bytes for item in items)
    for must_save in (-5, 0, 1, *range(whole // 20, whole, whole // 20), whole - 1, whole):
        assert saving(items, cheapest(items, must_save)) >= must_save
    assert cheapest(items, 0) == frozenset()
    assert len(cheapest(items, whole)) == 150


# --- the recipe ------------------------------------------------------------------------------------------------------

NAMES = [
    EMBEDDING,
    HEAD,
    "embedding.project.weight",
    *(f"blocks.{block}.{part}.weight" for block in (0, 1, 2, 10) for part in ("attention.qkv", "ffn.o", "ffn.down")),
]


@example({EMBEDDING}, True, '"\\ \x7f\n\u00e9')  # what TOML will not have as it is
@given(st.sets(st.sampled_from(NAMES)), st.booleans(), st.text(max_size=20))
def test_a_recipe_gives_each_matrix_what_was_chosen_and_comes_back_from_its_file(tmp_path_factory, four, calibrated, said):
    recipe = mixed_recipe("mine", said, NAMES, four, Calibration(8, 32) if calibrated else None)
    assert {name for name in NAMES if recipe.precision_of(name) == FOUR} == four
    assert {recipe.precision_of(name) for name in NAMES} <= {FOUR, EIGHT}
    path = tmp_path_factory.getbasetemp() / "mine.toml"
    path.write_text(to_toml(recipe, ["a remark"]), encoding="utf-8")
    assert read_recipe(str(path)) == recipe


@pytest.mark.parametrize("name", ["fp32", "trained", "w4", "w4-all", "w4-all-fast", "w4-fast", "w8", "w8-fast"])
def test_a_packaged_recipe_written_anew_is_the_same(name, tmp_path):
    (tmp_path / "again.toml").write_text(to_toml(read_recipe(name)))
    assert read_recipe(str(tmp_path / "again.toml")) == read_recipe(name)


# --- the command -----------------------------------------------------------------------------------------------------


@functools.cache
def searched(*arguments, model="llama"):
    """What the command says as JSON, and the recipe's path; `own_cache` does not hold for what is kept here."""
    out = Path(ROOM.name) / f"searched-{len(list(Path(ROOM.name).glob('searched-*')))}.toml"
    return run_for_json("search", folder_of(model), *arguments, "--out", out), out


def run_for_json(*arguments):
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert run([*map(str, arguments), "--json"]) == 0
    return json.loads(said.getvalue())


def test_the_recipe_fits_the_size_and_costs_what_was_predicted():
    found, out = searched("--target-bits", "6", "--quantizer", "clip")
    weights = weights_of(folder_of("llama"), str(out))
    assert found["bytes"] == sum(weights.predicted_bytes().values())
    assert found["bits_per_weight"] == bits_per_weight(weights) <= 6
    assert {c["name"]: c["bits"] for c in found["matrices"]} == {
        name: matrix.precision.bits for name, matrix in weights.matrices.items()
    }
    assert {c["bits"] for c in found["matrices"]} == {4, 8}
    cost = sum(c["kl"] for c in found["matrices"] if c["bits"] == 4)
    assert found["kl_predicted"] == pytest.approx(found["kl_8_bits"] + cost)
    assert found["kl_measured"] == pytest.approx(found["kl_predicted"], rel=0.3)  # they add up, roughly
    assert found["kl_measured"] > 3 * found["kl_8_bits"]


def test_a_calibrated_recipe_is_measured_as_it_will_be_exported(tmp_path, monkeypatch, capsys):
    real = Calibration
    monkeypatch.setattr("mobile_export.quantize.recipe.Calibration", lambda *given: real(*(given or (8, 32))))
    limit = sum(weights_of(folder_of("llama"), "w4-fast").predicted_bytes().values())
    clipped, _ = searched("--target-size", f"{limit}B", "--quantizer", "clip")
    arguments = ["search", str(folder_of("llama")), "--target-size", f"{limit}B", "--out", str(tmp_path / "mine.toml")]
    assert run([*arguments, "--plot", str(tmp_path / "mine.png")]) == 0
    *rows, _, chosen, size, divergence = capsys.readouterr().out.splitlines()
    assert rows[0].split() == ["matrix", "bits", "KL", "at", "4", "bits", "saves", "KL", "a", "MB", "runs"]
    assert len(rows) == 1 + 2 * 5 + 1
    recipe = read_recipe(str(tmp_path / "mine.toml"))
    assert (recipe.name, recipe.quantizer, recipe.calibration) == ("mine", "gptq", Calibration(8, 32))
    weights = weights_of(folder_of("llama"), str(tmp_path / "mine.toml"))
    assert sum(weights.predicted_bytes().values()) <= limit
    four = sum(matrix.precision.bits == 4 for matrix in weights.matrices.values())
    assert chosen == f"{tmp_path / 'mine.toml'}: {four} of 11 matrices at 4 bits, the others at 8"
    assert size.startswith("size  ")
    numbers = re.fullmatch(r"KL    ([.\d]+) nats predicted, ([.\d]+) measured; ([.\d]+) with everything at 8 bits", divergence)
    predicted, measured, at_8_bits = map(float, numbers.groups())
    assert 2 * at_8_bits < measured < 1.3 * predicted  # calibrated together, each makes good what came before
    assert predicted < 0.8 * clipped["kl_predicted"]
    assert run([*arguments, "--no-verify"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"KL    {numbers[1]} nats predicted, not measured; ")
    assert Image.open(tmp_path / "mine.png").size == (1280, 720)


@pytest.mark.parametrize("model", ["rwkv4-narrow", "lfm2-biased", "opt-350m"])
def test_other_families_are_served(model):
    found, out = searched("--target-bits", "6.5", "--quantizer", "clip", model=model)
    assert bits_per_weight(weights_of(folder_of(model), str(out))) == found["bits_per_weight"] <= 6.5


def test_all_three_formats_hold_the_recipes_codes():
    out = str(searched("--target-bits", "6", "--quantizer", "clip")[1])
    weights = weights_of(checkpoint(), out)
    onnx = onnx_matrices(onnx_artifact(checkpoint(), "--recipe", out, "--no-verify"))
    products, table = pte_matrices(out, True)
    package = matrices(coreml_artifact(checkpoint(), "--recipe", out, "--no-verify"), "main")
    assert table.bits == onnx["embedding"].bits == package["embedding_weight"].bits
    multiplied = set()
    for block, name in itertools.product(range(2), MATRICES):
        made = weights.quantized(f"blocks.{block}.{name}.weight")
        wanted = (tuple(made.codes.shape), made.codes.numpy().tobytes(), made.scales.numpy().tobytes())
        assert onnx[f"execution.{block}.{name}"].bits == wanted
        assert package[f"blocks_{block}_{name.replace('.', '_')}_weight"].bits == wanted
        multiplied.add(wanted)
    assert multiplied < {matrix.bits for matrix in products}


# --- the plot --------------------------------------------------------------------------------------------------------


def test_every_matrix_has_its_dot_higher_the_more_it_costs():
    names = ["blocks.0.ffn.up.weight", "blocks.1.ffn.up.weight", "blocks.1.ffn.down.weight", "embedding.weight"]
    items = [Sensitivity(name, kl, 100, 1) for name, kl in zip(names, (0.001, 0.01, 0.1, 0.0), strict=True)]
    drawing = draw(items, {"blocks.1.ffn.up.weight"}, "a title")
    first, second, third, fourth = drawing.dots
    assert first.x < second.x == third.x < fourth.x
    assert fourth.y > first.y > second.y > third.y
    assert first.y - second.y == pytest.approx(second.y - third.y, abs=0.2)  # a decade each
    heights = {label.text: label.y - 4 for label in drawing.labels if label.anchor == "end"}
    assert [first.y, second.y, third.y] == pytest.approx([heights[text] for text in ("0.001", "0.01", "0.1")])
    assert [dot.color for dot in drawing.dots] == [BLUE, BLUE, *COLORS[1:3]]
    assert [dot.filled for dot in drawing.dots] == [True, False, True, True]
    image = Image.open(io.BytesIO(png_of(drawing))).convert("RGB")
    inside = [image.getpixel((round(2 * dot.x), round(2 * dot.y))) for dot in drawing.dots]
    assert inside == [ImageColor.getrgb(dot.color if dot.filled else "white") for dot in drawing.dots]


def test_a_benchmarks_artifacts_lie_by_size_and_divergence_and_are_named():
    rows = [
        ("plain", "w4-fast", "onnx", 95, 0.3),
        ("plain", "w8-fast", "onnx", 138, 0.02),
        ("rescaled", "w4-fast", "pte", 89, 0.15),
    ]
    keys = ("subject", "recipe", "format", "bytes", "kl")
    drawing = quality_plot.draw([dict(zip(keys, (*row[:3], row[3] * 10**6, row[4]), strict=True)) for row in rows])
    first, second, third = drawing.dots
    assert third.x < first.x < second.x
    assert second.y > third.y > first.y
    assert first.color == second.color != third.color
    lines = {label.text: label for label in drawing.labels}
    assert lines["0.5"].y < first.y < lines["0.2"].y
    low, high = lines["0.1"].y - 4, lines["0.2"].y - 4
    assert third.y == pytest.approx(low + math.log2(1.5) * (high - low), abs=0.1)
    assert lines["90"].x < first.x < lines["100"].x
    assert [label.text for label in drawing.labels if label.color == third.color] == ["rescaled, pte", "w4-fast"]


# --- what cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        ([], 2, "--target-size, --target-bits: one of them says what to fit; give --target-size 80MB, for example"),
        (["--target-size", "1MB", "--target-bits", "5"], 2, "--target-size, --target-bits: one of them says what to fit; "),
        (["--target-size", "80"], 2, "--target-size 80: no number with a unit; "),
        (["--target-bits", "3"], 3, "--target-bits 3: is out of reach: with 4 and 8 bits a matrix it is 4.539 to 8.448 bits a "
                                    "weight; aim higher"),
        (["--target-bits", "9"], 3, "--target-bits 9: is out of reach: with 4 and 8 bits a matrix it is 4.539 to 8.448 bits a "
                                    "weight; use --recipe w8, or aim lower"),
        (["--target-size", "1kB"], 3, "--target-size 1.0 kB: is out of reach: with 4 and 8 bits a matrix it is "),
        (["--target-bits", "5", "--quantizer", "awq"], 2, "--quantizer awq: no such quantizer; write gptq or clip"),
        (["--target-bits", "5", "--out", "nowhere/mine.toml"], 2, "--out nowhere/mine.toml: its folder does not exist; "),
        (["--target-bits", "5", "--out", "mine"], 2, "--out mine: is not written in that form; name a file that ends in .toml"),
        (["--target-bits", "5", "--plot", "a.svg"], 2, "--plot a.svg: is not written in that form; "),
        (["--target-bits", "5", "--schedule", "0,5"], 2, "--schedule 0,5: block 5 does not exist; "),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_for(fails, tmp_path, monkeypatch, arguments, code, line):
    monkeypatch.chdir(tmp_path)
    got, said = fails("search", checkpoint(), *arguments)
    assert got == code
    assert said.startswith(line)
    assert list(tmp_path.iterdir()) == []


def test_activations_beyond_float32(tmp_path, fails):
    folder, large = write_llama(tmp_path, blocks=2), "model.layers.0.mlp.{}_proj.weight"
    tensors = load_file(folder / "model.safetensors")
    for name in (large.format("up"), large.format("gate")):
        tensors[name] *= 1e30
    save_file(tensors, folder / "model.safetensors")
    weights = weights_of(folder, "w8-fast")
    with pytest.raises(InputError, match=r"mlp.down_proj.weight: its inputs go beyond float32 .*; add --quantizer clip"):
        sensitivities(weights, TEXTS, HEARD, silent)
    with pytest.raises(InputError, match="with it at 4 bits and all others at 8, what the model says is no number; "):
        sensitivities(weights, TEXTS, [], silent)
    code, said = fails("search", folder, "--target-bits", "6", "--out", tmp_path / "mine.toml")
    assert code == 3
    assert "what the model says in float32 is no number, so no text can be sampled from it; " in said
    assert not (tmp_path / "mine.toml").exists()


def test_inputs_of_the_head_beyond_float32(tmp_path):
    folder = write_llama(tmp_path, blocks=2)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] *= 1e25  # its square is beyond, what the model says is not
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"embed_tokens.weight: its inputs go beyond float32 .*; add --quantizer clip"):
        sensitivities(weights_of(folder, "w8-fast"), TEXTS, HEARD, silent)


def test_the_ends_of_what_is_in_reach_are_in_reach():
    for bits, wanted in (("4.539", {4}), ("8.448", {4, 8})):  # the upper one rounded down
        found, _ = searched("--target-bits", bits, "--quantizer", "clip")
        assert {choice["bits"] for choice in found["matrices"]} == wanted
