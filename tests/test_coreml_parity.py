"""Every family's Core ML package: in float against transformers, quantized against the same codes in PyTorch.

A package keeps weights and tables in float16. So the models here are ones whose weights float16 holds exactly, and what is
left is the rotary tables' rounding: 2**-12 of a cosine or sine at most.
"""

from __future__ import annotations

import copy
import functools
import itertools
from pathlib import Path

import pytest
import torch
from exported import CONTEXT, PROMPT, checkpoint, coreml_artifact, coreml_file, coreml_runtime, manifest, weights_of
from test_pte import SHARED, duplicated_llama, logits_of
from test_pte import TOKENS as FEW
from tiny_families import FAMILIES, ROOM, TOKENS, VOCAB, reference, reference_logits, written

from mobile_export.verify.coreml_runtime import CoreMlRuntime
from mobile_export.verify.float16_numbers import float16_decoder
from mobile_export.verify.parity import EXACT
from mobile_export.verify.reference import reference_logits as logits_in_pytorch

LIMIT = 1e-5  # of the largest logit: float32 summed in another order, measured 3e-6 at most
TABLES = 2e-3  # of the largest logit: what float16 makes of cosines and sines, measured 1.6e-3 at most (phi4-mini)
CHUNKS = {"prefill": [40], "steps": [1] * 40, "mixed": [17, 8, 1, 1, 1, 5, 7]}
NAMES = [name for name, tiny in FAMILIES.items() if tiny.model_type != "rwkv"]
UNROTATED = ("gpt2", "opt", "gpt-neo", "galactica", "bloom", "falcon-rw")
LONG = [*TOKENS, *TOKENS[:-25:-1]]  # as many tokens as the context has rows
assert all(sum(chunks) == len(TOKENS) for chunks in CHUNKS.values())
assert len(LONG) == CONTEXT


@functools.cache
def in_float16(name: str) -> tuple[Path, torch.nn.Module]:
    """A family's checkpoint with every weight rounded to float16, and transformers' model of it."""
    model = copy.deepcopy(reference(name))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half().float())
    folder = Path(ROOM.name) / f"{name}-in-float16"
    model.save_pretrained(folder)
    return folder, model


@functools.cache
def package_of(name: str, layout: str = "stock") -> Path:
    return coreml_file(weights_of(in_float16(name)[0], "fp32"), layout=layout)


def limit_of(name: str) -> float:
    return LIMIT if name.startswith(UNROTATED) else TABLES


def in_chunks(runtime: CoreMlRuntime, tokens: list[int], chunks: list[int]) -> torch.Tensor:
    """Logits of every position, fed in chunks."""
    found, start = [], 0
    for length in chunks:
        found.append(runtime.logits(tokens[start : start + length], start))
        start += length
    return torch.cat(found)


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Largest, over the largest logit."""
    assert got.shape == want.shape
    return float((got - want).abs().max() / want.abs().max())


# --- float -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_family_computes_what_transformers_computes(name):
    """In one call, one by one and mixed; under masks as long as the text, and one longer as swift-transformers sends them."""
    folder, model = in_float16(name)
    want = logits_of(model, TOKENS)
    runtime = coreml_runtime(package_of(name))
    own = logits_in_pytorch(float16_decoder(weights_of(folder, "fp32"), CONTEXT), TOKENS)
    for runtime.mask_surplus, chunks in itertools.product((0, 1), CHUNKS.values()):
        got = in_chunks(runtime, TOKENS, chunks)
        assert got.shape == (len(TOKENS), VOCAB)
        assert error(got, want) <= limit_of(name)
        assert error(got, own) <= LIMIT, "the tables' rounding is all that the limit above is for"


@pytest.mark.parametrize(("kind", "options", "arguments", "schedule"), SHARED)
def test_a_shared_model_computes_what_the_duplicated_llama_computes(kind, options, arguments, schedule):
    """A Llama with each execution's block written out, from the raw tensors in float16."""
    folder = coreml_artifact(checkpoint(kind, **options), "--recipe", "fp32", *arguments)
    assert tuple(manifest(folder)["sharing"]["schedule"]) == schedule
    want = logits_of(duplicated_llama(schedule).half().float(), FEW)
    runtime = coreml_runtime(folder / "model.mlpackage")
    for chunks in ([12], [1] * 12, [5, 1, 1, 3, 2]):
        assert error(in_chunks(runtime, FEW, chunks), want) <= TABLES


def test_another_order_of_the_blocks_would_show():
    """What the test above would see: the four orders of two blocks are four networks."""
    found = [logits_of(duplicated_llama(order), FEW) for order in ((0, 1), (0, 0, 1, 1), (0, 1, 0, 1), (0, 1, 1, 0))]
    assert min(error(a, b) for a, b in itertools.combinations(found, 2)) > 10 * TABLES


# --- functions of fixed shape ------------------------------------------------------------------------------------------

FIXED = ["qwen3", "bloom", "gemma3", "lfm2"]  # tied, without rotations, with windows, with columns beside keys


def fixed_runtime(name: str) -> CoreMlRuntime:
    return coreml_runtime(package_of(name, "functions"), "functions")


@pytest.mark.parametrize("name", FIXED)
def test_prompts_around_the_chunk_and_up_to_the_end_of_the_context(name):
    want = logits_of(in_float16(name)[1], LONG)
    runtime = fixed_runtime(name)
    for length in (1, 2, PROMPT - 1, PROMPT, PROMPT + 1, 3 * PROMPT - 1, CONTEXT - 1, CONTEXT):
        assert error(runtime.step(LONG[:length], 0), want[length - 1]) <= limit_of(name), length


@pytest.mark.parametrize("name", FIXED)
def test_a_padded_chunk_leaves_nothing_behind(name):
    """Its padding wrote rows that later tokens overwrite; at the end of the context there is no room for a whole chunk."""
    want = logits_of(in_float16(name)[1], LONG)
    runtime = fixed_runtime(name)
    for chunks in ([3, 1, 1, 5, 1, 9, 44], [1] * CONTEXT, [CONTEXT - 2, 2]):
        start = 0
        for length in chunks:
            start += length
            assert error(runtime.step(LONG[start - length : start], start - length), want[start - 1]) <= limit_of(name), start


def test_a_shared_model_in_functions_of_fixed_shape():
    schedule = (0, 0, 1, 1)
    package = coreml_file(weights_of(checkpoint(), "fp32", "immediate"), layout="functions")
    want = logits_of(duplicated_llama(schedule).half().float(), FEW)
    runtime = coreml_runtime(package, "functions")
    for length in (PROMPT - 1, PROMPT, PROMPT + 1, len(FEW)):
        assert error(runtime.step(FEW[:length], 0), want[length - 1]) <= TABLES
    for at, token in enumerate(FEW):
        assert error(runtime.step([token], at), want[at]) <= TABLES


# --- quantized ---------------------------------------------------------------------------------------------------------

# What differs between families where weights are quantized: fused, split and biased products, tables, projections, ties.
QUANTIZED = [
    ("w4-fast", "gpt2-cerebras"),
    ("w8-fast", "opt-350m"),
    ("w8-fast", "falcon-new"),
    ("w4-fast", "bloom"),
    ("w4-fast", "gemma3-scaled"),
    ("w8-fast", "llama4-chunks"),
    ("w4-fast", "lfm2-biased"),
]


@pytest.mark.parametrize(("recipe", "name"), QUANTIZED)
def test_a_quantized_family_is_the_same_codes_in_pytorch(recipe, name):
    """`coreml` verifies before it writes, so a package that is there agreed; here the figures are looked at."""
    found = manifest(coreml_artifact(written(name), "--recipe", recipe))["verification"]
    errors = {check["name"]: check["measured"] for check in found["checks"]}
    assert found["passed"]
    assert errors.pop("float16 throughout, token by token") > LIMIT, "something was rounded"
    assert errors.pop("float16 throughout, prompt") > LIMIT
    assert len(errors) == 7
    assert max(errors.values()) <= LIMIT < EXACT
    assert errors["matrices stored with other codes or scales"] == 0
    folder = coreml_artifact(written(name), "--recipe", recipe)
    moved = error(coreml_runtime(folder / "model.mlpackage").logits(TOKENS, 0), reference_logits(name))
    assert moved > 1e-3, "and they are not the checkpoint's own weights"
