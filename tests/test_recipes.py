"""Recipes: the packaged ones, and the line each mistake in a TOML file gets."""

import dataclasses
import json

import pytest
from tiny_checkpoints import write_llama

from mobile_export.checkpoint import open_checkpoint
from mobile_export.errors import InputError, UsageError
from mobile_export.families import recognise
from mobile_export.quantize.recipe import (
    Calibration,
    KvCache,
    Override,
    Precision,
    Recipe,
    packaged_recipes,
    read_recipe,
    recipe_from,
)
from mobile_export.quantize.weights import ModelWeights
from mobile_export.sharing import plan_sharing

W4, W8, FLOAT = Precision(4, 32), Precision(8), Precision(32)
SEE = "see docs/recipes.md for what each key takes"
GOOD = """
name = "mine"
description = "for a test"
linear = { bits = 4, group_size = 32 }
embedding = { bits = 8 }
head = { bits = 8 }
"""


def read(folder, text):
    path = folder / "mine.toml"
    path.write_text(text)
    return read_recipe(str(path))


def refusal(folder, text):
    """What follows the file's name in the error line."""
    with pytest.raises(InputError) as error:
        read(folder, text)
    assert error.value.exit_code == 3
    line = str(error.value)
    assert line.startswith(f"{folder / 'mine.toml'}: ")
    return line.removeprefix(f"{folder / 'mine.toml'}: ")


def weights_under(folder, text, **llama):
    checkpoint = open_checkpoint(str(write_llama(folder / "model", **llama)))
    recognised = recognise(checkpoint)
    return ModelWeights(checkpoint, recognised, plan_sharing(checkpoint, recognised), read(folder, text))


# --- the packaged ones -----------------------------------------------------------------------------------------------


def test_the_packaged_recipes_are_these():
    assert {name: read_recipe(name) for name in packaged_recipes()} == {
        "fp32": Recipe("fp32", "the reference: nothing is quantized", FLOAT, FLOAT, FLOAT, "float32"),
        "trained": Recipe(
            "trained", "the codes the checkpoint was trained to have; 8 bits where it has none", W8, W8, W8, own_codes=True
        ),
        "w4": Recipe(
            "w4",
            "4-bit linears in groups of 32, calibrated; 8-bit table",
            W4,
            W8,
            W8,
            quantizer="gptq",
            calibration=Calibration(160, 256),
        ),
        "w4-all": Recipe(
            "w4-all",
            "4 bits everywhere, the table too, calibrated",
            W4,
            W4,
            W4,
            quantizer="gptq",
            calibration=Calibration(160, 256),
        ),
        "w4-all-fast": Recipe("w4-all-fast", "4 bits everywhere, the table too, not calibrated", W4, W4, W4),
        "w4-fast": Recipe("w4-fast", "4-bit linears in groups of 32, not calibrated; 8-bit table", W4, W8, W8),
        "w8": Recipe(
            "w8",
            "8 bits everywhere, one scale per output channel, calibrated",
            W8,
            W8,
            W8,
            quantizer="gptq",
            calibration=Calibration(32, 256),
        ),
        "w8-fast": Recipe("w8-fast", "8 bits everywhere, one scale per output channel, not calibrated", W8, W8, W8),
    }


@pytest.mark.parametrize("name", ["fp32", "trained", "w4", "w4-all", "w4-all-fast", "w4-fast", "w8", "w8-fast"])
def test_a_recipe_goes_through_the_manifest_unchanged(name):
    recipe = read_recipe(name)
    values = json.loads(json.dumps(dataclasses.asdict(recipe)))
    assert recipe_from(values, "manifest.json") == recipe


# --- a file ----------------------------------------------------------------------------------------------------------


def test_packaged_recipes_are_listed_by_name():
    assert list(packaged_recipes()) == sorted(packaged_recipes())


def test_what_a_file_leaves_out(tmp_path):
    assert read(tmp_path, GOOD) == Recipe("mine", "for a test", W4, W8, W8, "int8", KvCache("float32"), [])


def test_a_file_that_says_everything(tmp_path):
    recipe = read(
        tmp_path,
        GOOD
        + """
        activations = "int8"
        [[override]]
        match = "blocks.0.*"
        precision = { bits = 8 }
        [[override]]
        match = "*.down.weight"
        precision = { bits = 4, group_size = 64 }
        [kv]
        dtype = "int8"
        """,
    )
    overrides = [Override("blocks.0.*", W8), Override("*.down.weight", Precision(4, 64))]
    assert (recipe.kv, recipe.override) == (KvCache("int8"), overrides)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (GOOD + "activation = 'int8'", "unknown key 'activation'; did you mean 'activations'?"),
        (GOOD + "zzz = 1", "unknown key 'zzz'; known keys: name, description, linear, embedding, head, activations, "
                           "kv, override, quantizer, calibration, own_codes"),
        (GOOD.replace("group_size", "groupsize"), "unknown key 'linear.groupsize'; did you mean 'group_size'?"),
        (GOOD.replace("embedding = { bits = 8 }", "embedding = { bits = 8, zzz = 1 }"),
         "unknown key 'embedding.zzz'; known keys: bits, group_size"),
        (GOOD + "[kv]\ndtyp = 'int8'", "unknown key 'kv.dtyp'; did you mean 'dtype'?"),
        (GOOD + "[[override]]\nmatch = '*'\nprecision = { bits = 8 }\npath = 1",
         "unknown key 'override.0.path'; did you mean 'match'?"),
        (GOOD + "[[override]]\nmatch = '*'\nprecision = { bitz = 8 }",
         "unknown key 'override.0.precision.bitz'; did you mean 'bits'?"),
        (GOOD + "quantizer = 'gptq'\n[calibration]\nsequence = 8",
         "unknown key 'calibration.sequence'; did you mean 'sequences'?"),
        (GOOD.replace("linear =", "linera ="), "unknown key 'linera'; did you mean 'linear'?"),
    ],
)  # fmt: skip
def test_an_unknown_key_is_refused_and_the_nearest_named(tmp_path, text, line):
    assert refusal(tmp_path, text) == line


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (GOOD.replace('"mine"', "3"), "name: "),
        (GOOD + "quantizer = 'awq'", "quantizer: "),
        (GOOD + "quantizer = 'gptq'\n[calibration]\ntokens = 8", "calibration.tokens: "),
        (GOOD + "[calibration]\ntokens = 64", "recipe: calibration goes with quantizer"),
        (GOOD.replace("bits = 4", "bits = 5"), "linear.bits: "),
        (GOOD.replace("bits = 4", "bits = '4'"), "linear.bits: "),
        (GOOD.replace("bits = 4", "bits = true"), "linear.bits: "),
        (GOOD.replace("group_size = 32", "group_size = '32'"), "linear.group_size: "),
        (GOOD.replace("group_size = 32", "group_size = 32.0"), "linear.group_size: "),
        (GOOD.replace("{ bits = 4, group_size = 32 }", "4"), "linear: "),
        (GOOD.replace("head = { bits = 8 }", ""), "head: "),
        (GOOD.replace("{ bits = 4, group_size = 32 }", "{ group_size = 32 }"), "linear.bits: "),
        (GOOD + "activations = 'int4'", "activations: "),
        (GOOD + "kv = 'int8'", "kv: "),
        (GOOD + "[kv]\ndtype = 'int4'", "kv.dtype: "),
        (GOOD + "override = { match = '*' }", "override: "),
        (GOOD + "[[override]]\nmatch = '*'", "override.0.precision: "),
        (GOOD + "activations = 2024-01-01", "activations: "),
        (GOOD.replace("bits = 4", "bits = 10:00:00"), "linear.bits: "),
        (GOOD.replace("bits = 4", "bits = nan"), "linear.bits: "),
        (GOOD.replace("bits = 4", "bits = inf"), "linear.bits: "),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_kind_is_named_by_its_place(tmp_path, text, place):
    line = refusal(tmp_path, text)
    assert line.startswith(place)
    assert line.endswith(f"; {SEE}")


BOTH = "8 and 32 bits take no group_size"
MULTIPLE = "group_size is a multiple of 32: what the runtimes' 4-bit kernels take"
FLOATS = "float32 weights go with float32 activations, quantized ones with int8 activations"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (GOOD.replace("embedding = { bits = 8 }", "embedding = { bits = 8, group_size = 32 }"), f"embedding: {BOTH}"),
        (GOOD.replace("head = { bits = 8 }", "head = { bits = 32, group_size = 32 }"), f"head: {BOTH}"),
        (GOOD.replace("group_size = 32", "group_size = 48"), f"linear: {MULTIPLE}"),
        (GOOD.replace("group_size = 32", "group_size = 16"), f"linear: {MULTIPLE}"),
        (GOOD.replace("group_size = 32", "group_size = 0"), f"linear: {MULTIPLE}"),
        (GOOD.replace("group_size = 32", "group_size = -32"), f"linear: {MULTIPLE}"),
        (GOOD + "activations = 'float32'", f"recipe: {FLOATS}"),
        (GOOD.replace("head = { bits = 8 }", "head = { bits = 32 }"), f"recipe: {FLOATS}"),
        (GOOD + "[[override]]\nmatch = '*'\nprecision = { bits = 32 }", f"recipe: {FLOATS}"),
    ],
)
def test_values_that_contradict_each_other(tmp_path, text, line):
    assert refusal(tmp_path, text) == f"{line}; {SEE}"


def test_a_file_that_is_not_toml(tmp_path):
    line = refusal(tmp_path, "name: mine")
    assert line.startswith("not TOML: ")
    assert line.endswith("; see docs/recipes.md for an example")


def test_a_file_that_is_not_text(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes(b"name = '\xff'")
    with pytest.raises(InputError, match=r"mine\.toml: not TOML: "):
        read_recipe(str(path))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("w44", "did you mean 'w4'? "),
        ("w4-gptq", "did you mean 'w4'? "),  # its name in earlier versions
        ("W4", ""),
        ("int8", ""),
        ("w4.toml", ""),
        ("nowhere/w4", ""),
    ],
)
def test_a_recipe_there_is_not(tmp_path, monkeypatch, name, hint):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as error:
        read_recipe(name)
    assert error.value.exit_code == 2
    line = str(error.value)
    assert line.startswith(f"--recipe {name}: no such recipe or file; ")
    assert line.endswith(f"; {hint}recipes: {', '.join(packaged_recipes())}")


def test_a_folder_is_no_recipe(tmp_path):
    with pytest.raises(UsageError, match="no such recipe or file"):
        read_recipe(str(tmp_path))


# --- a recipe against a model ----------------------------------------------------------------------------------------


def test_every_matrix_has_the_precision_its_place_asks_for(tmp_path):
    found = weights_under(
        tmp_path,
        GOOD.replace("head = { bits = 8 }", "head = { bits = 4, group_size = 64 }")
        + "[[override]]\nmatch = 'blocks.1.ffn.*'\nprecision = { bits = 8 }\n"
        + "[[override]]\nmatch = '*.down.weight'\nprecision = { bits = 4, group_size = 128 }\n",
        tied=False,
    )
    first = {f"blocks.0.{name}.weight": W4 for name in ("attention.qkv", "ffn.o", "ffn.gate", "ffn.up")}
    second = {f"blocks.1.ffn.{name}.weight": W8 for name in ("o", "gate", "up")}
    assert {name: matrix.precision for name, matrix in found.matrices.items()} == {
        "embedding.weight": W8,
        **first,
        **second,
        "blocks.1.attention.qkv.weight": W4,
        "blocks.0.ffn.down.weight": Precision(4, 128),
        "blocks.1.ffn.down.weight": Precision(4, 128),  # the later override wins
        "head.linear.weight": Precision(4, 64),
    }


@pytest.mark.parametrize("match", ["blocks.2.*", "lm_head.weight", "blocks.0.ffn", "BLOCKS.*", "head.linear.weight"])
def test_an_override_that_names_no_matrix(tmp_path, match):
    """The tied head among them: it is the embedding that would have to be named."""
    with pytest.raises(InputError) as error:
        weights_under(tmp_path, GOOD + f"[[override]]\nmatch = '{match}'\nprecision = {{ bits = 8 }}")
    assert str(error.value) == f"recipe mine: override {match!r} names no matrix; `inspect` lists their names"
    assert error.value.exit_code == 3


@pytest.mark.parametrize(
    ("group", "sizes", "line"),
    [
        (128, {}, "model.layers.0.self_attn.q_proj.weight: 64 inputs do not divide into groups of 128; use group_size 64"),
        (64, {"hidden": 96}, "model.layers.0.self_attn.q_proj.weight: 96 inputs do not divide into groups of 64; "
                             "use group_size 32"),
        (64, {"ffn": 96}, "model.layers.0.mlp.down_proj.weight: 96 inputs do not divide into groups of 64; "
                          "use group_size 32"),
        (32, {"hidden": 72}, "model.layers.0.self_attn.q_proj.weight: 72 inputs do not divide into groups of 32; "
                             "give blocks.0.attention.qkv.weight 8 bits by an [[override]]"),
    ],
)  # fmt: skip
def test_a_group_size_that_does_not_divide_is_an_error_with_the_next_step(tmp_path, group, sizes, line):
    with pytest.raises(InputError) as error:
        weights_under(tmp_path, GOOD.replace("group_size = 32", f"group_size = {group}"), **sizes)
    assert str(error.value) == f"model.safetensors: {line}"
    assert error.value.exit_code == 3


def test_the_next_step_it_names_works(tmp_path):
    text = GOOD + "[[override]]\nmatch = 'blocks.?.*'\nprecision = { bits = 8 }"
    assert weights_under(tmp_path, text, hidden=72).matrices["blocks.0.attention.qkv.weight"].precision == W8
