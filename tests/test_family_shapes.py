"""The models people compare and ship at their sizes: no weight exists, only names and shapes, as transformers has them.

The same models make docs/models.md, which is held here to what its script prints.
"""

import math
from pathlib import Path

import pytest
from tiny_families import FAMILIES

from benchmarks.models import MODELS, page, weights_of
from mobile_export.quantize.sizes import stored_parameters

ROOT = Path(__file__).parents[1]
OF_LLAMAS_KIND = {"llama", "mobilellm"}  # their tiny checkpoints have tests of their own (tiny_checkpoints.py)


@pytest.mark.parametrize("recipe", ["w4-fast", "w8-fast"])
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model["name"])
def test_a_shipped_size_is_recognised_and_takes_every_recipe(model, recipe):
    """No weight is read; every tensor has its place, and every matrix divides into the recipe's groups."""
    weights = weights_of(model, recipe)
    parameters = stored_parameters(weights)
    assert parameters == sum(math.prod(tensor.shape) for tensor in weights.checkpoint.tensors.values())
    assert parameters == model.get("published_parameters", parameters)
    bits = 8 * sum(weights.predicted_bytes().values()) / parameters
    assert bits < (8.2 if recipe == "w8-fast" else 7.1)  # BLOOM's and Gemma's table of 8 bits is near half of all


def test_layer_sharing_runs_each_stored_block_twice():
    shared = [weights_of(model).plan for model in MODELS if "layer-share" in model["name"]]
    assert [(len(plan.blocks), len(plan.schedule), plan.order) for plan in shared] == [
        (30, 60, "immediate"),
        (32, 64, "immediate"),
    ]


def test_docs_models_is_what_the_script_prints():
    """Otherwise: python -m benchmarks.models > docs/models.md."""
    assert (ROOT / "docs" / "models.md").read_text(encoding="utf-8") == page()


def test_every_model_says_where_its_config_was_read_and_what_it_is_held_against():
    assert {model["tiny"] for model in MODELS} <= FAMILIES.keys() | OF_LLAMAS_KIND
    assert all(model["read"] for model in MODELS)
    assert len({model["name"] for model in MODELS}) == len(MODELS)
    assert sum("published_parameters" in model for model in MODELS) >= 3
