"""What a budget knows of a model: the same from an artifact's manifest as from the checkpoint, for every family."""

import dataclasses
import functools
import json

import pytest
from exported import artifact, checkpoint, onnx_artifact, weights_of

from benchmarks.models import MODELS
from benchmarks.models import weights_of as weights_of_model
from mobile_export.budget.changes import candidates
from mobile_export.budget.facts import facts_of_manifest, facts_of_weights
from mobile_export.budget.matrix_shapes import matrix_shape
from mobile_export.budget.phones import read_phones
from mobile_export.budget.verdict import Limits, Use, judge, target_of_phone
from mobile_export.errors import InputError
from mobile_export.manifest import read_manifest
from mobile_export.quantize.recipe import read_recipe

SHIPPED = {model["name"]: model for model in MODELS}


@functools.cache
def shipped(name):
    """Weights of names and shapes alone."""
    return weights_of_model(SHIPPED[name], "w8-fast")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_matrix_has_the_shape_its_name_and_the_spec_say(name):
    found = shipped(name).recognised
    shapes = {name: source.shape for name, source in found.weights.items() if len(source.shape) == 2}
    assert {name: matrix_shape(name, found.spec) for name in shapes} == shapes
    assert matrix_shape("blocks.0.attention.nothing.weight", found.spec) is None
    assert matrix_shape("nothing.weight", found.spec) is None


@pytest.mark.parametrize("name", SHIPPED)
def test_every_family_is_judged_in_every_format(name):
    weights = shipped(name)
    phone = target_of_phone(read_phones()["Pixel 6a"])
    for form in ("pte", "onnx", "coreml"):
        facts = facts_of_weights(weights, form, max_context=256)
        verdict = judge(facts, phone, Limits(), Use())
        assert verdict.memory.peak.low > 0.8 * sum(matrix.code_bytes for matrix in facts.multiplied), form
        assert 0 < verdict.rates.decode_tokens_per_s.low < verdict.rates.decode_tokens_per_s.high, form
        assert candidates(facts, [read_recipe("w4-all-fast")])[0].facts == facts


def test_a_manifest_gives_what_the_checkpoint_gave():
    folder = artifact(checkpoint("llama"), "--kv", "int8", "--schedule", "immediate")
    got = facts_of_manifest(read_manifest(folder), folder)
    weights = weights_of(checkpoint("llama"), "w4-fast", "immediate")
    expected = facts_of_weights(weights, "pte", max_context=got.max_context)
    recipe = dataclasses.replace(expected.recipe, kv=got.recipe.kv)
    measured = {"kv_dtype": "int8", "recipe": recipe, "prompt_chunk": got.prompt_chunk, "graph_bytes": got.graph_bytes}
    assert got == dataclasses.replace(expected, **measured)
    assert got.kv_bytes(got.max_context) == read_manifest(folder).kv_cache.bytes_at_max_context


@pytest.mark.parametrize("options", [(), ("--kv", "int8"), ("--activations", "float16"), ("--portable",), ("--all-logits",)])
def test_an_onnx_manifest_is_understood(options):
    folder = onnx_artifact(checkpoint("llama"), *options)
    manifest = read_manifest(folder)
    facts = facts_of_manifest(manifest, folder)
    assert facts.kv_bytes(facts.max_context) == manifest.kv_cache.bytes_at_max_context
    assert (facts.portable, facts.all_logits) == ("--portable" in options, "--all-logits" in options)
    assert facts.parameters == sum(m.parameters for m in weights_of(checkpoint("llama")).matrices.values())


def test_a_shared_block_is_stored_once_and_runs_twice():
    plain, shared = (weights_of(checkpoint("llama"), "w4-fast", schedule) for schedule in (None, "immediate"))
    one, two = (facts_of_weights(weights, "pte", max_context=64) for weights in (plain, shared))
    assert [m.uses for m in two.multiplied if "blocks" in m.name] == [2] * len(
        [m for m in one.multiplied if "blocks" in m.name]
    )
    assert (two.stored_blocks, len(two.schedule), two.slots) == (one.stored_blocks, 2 * len(one.schedule), 2 * one.slots)
    assert one.work == two.work


def test_rwkv_has_no_cache_that_grows():
    facts = facts_of_weights(shipped("RWKV/rwkv-4-169m-pile"), "onnx", max_context=1024)
    assert (facts.kv_bytes(1024), facts.slots) == (0, 0)
    assert facts.state_bytes == 12 * 5 * 768 * 4


BROKEN = {
    "spec: a field that is no number": (("spec", "hidden_size"), "wide", "spec.hidden_size: "),
    "spec: a field that is missing": (("spec", "vocab_size"), None, "spec.vocab_size: "),
    "a schedule of blocks that are not there": (("sharing", "schedule"), [0, 7], "sharing: the schedule does not run"),
    "no schedule": (("sharing", "schedule"), None, "sharing: no schedule, blocks and tied in it"),
    "another recipe": (("recipe", "linear"), {"bits": 8}, "is 4-bit, group 32, the recipe beside it says 8-bit"),
    "a cache of another size": (
        ("kv_cache", "bytes_at_max_context"),
        17,
        "kv_cache.bytes_at_max_context is 17, its spec gives ",
    ),
    "another width": (("spec", "hidden_size"), 72, "inputs, which groups of 32 do not divide"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_manifest_that_contradicts_itself(tmp_path, case):
    (part, key), value, said = BROKEN[case]
    values = json.loads((onnx_artifact(checkpoint("llama")) / "manifest.json").read_text())
    if value is None:
        del values[part][key]
    else:
        values[part][key] = value
    (tmp_path / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(InputError) as error:
        facts_of_manifest(read_manifest(tmp_path), tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'manifest.json'}: ")
    assert said in str(error.value)


def test_a_matrix_no_graph_has(tmp_path):
    values = json.loads((onnx_artifact(checkpoint("llama")) / "manifest.json").read_text())
    values["matrices"]["blocks.0.attention.gate.weight"] = "4-bit, group 32"
    (tmp_path / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"no graph has 'blocks\.0\.attention\.gate\.weight'"):
        facts_of_manifest(read_manifest(tmp_path), tmp_path)
