"""The runner's operators against the Python wheel's, and against the formula in float64, which shares code with neither."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
from arm64 import caller_bundle, emulated, needs_arm64
from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  the reference
from runner_operators import call, needs_compiler

from mobile_export.measure import build
from mobile_export.measure.bundle import COMPILER

pytestmark = needs_compiler

CONTEXT = 320
EXACT = 1e-6  # of the largest output: float32 summed in another order
FLOAT32 = 5e-6  # of the same: scores rounded to float32, then their exponentials; the wheel is as far from float64
LENGTHS = [(1, 0), (1, 37), (1, CONTEXT - 1), (7, 0), (7, 90), (128, 0), (128, 150)]  # tokens, start
HEADS = [(9, 3, 64), (4, 4, 16), (6, 1, 80), (16, 1, 40)]  # heads, kv heads, head_dim


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tensors(length, heads, kv_heads, head_dim, seed=1):
    """Query, keys and values. The cache beyond the last token holds what an earlier sequence left there."""
    shapes = [(1, length, heads, head_dim), (1, CONTEXT, kv_heads, head_dim), (1, CONTEXT, kv_heads, head_dim)]
    return [normal(*shape, seed=seed + i) for i, shape in enumerate(shapes)]


def window_mask(length, start, window=24):
    """What a sliding window adds to the scores: [T, context]."""
    rows, columns = torch.arange(start, start + length)[:, None], torch.arange(CONTEXT)
    return torch.where((columns <= rows) & (columns > rows - window), 0.0, -1e9)


def by_formula(query, keys, values, start, mask, causal, scale):
    """softmax(scale q k^T + mask) v in float64, one head at a time."""
    length, heads, head_dim = query.shape[1:]
    out = torch.empty(query.shape, dtype=torch.float64)
    groups = heads // keys.shape[2]
    end = CONTEXT if mask is not None else start + length
    for head in range(heads):
        q, k, v = query[0, :, head].double(), keys[0, :end, head // groups].double(), values[0, :end, head // groups].double()
        scores = q @ k.T * (head_dim**-0.5 if scale is None else scale)
        if mask is not None:
            scores = scores + mask.double()
        if causal:
            later = torch.arange(end)[None] > torch.arange(start, start + length)[:, None]
            scores = scores.masked_fill(later, float("-inf"))
        out[0, :, head] = scores.softmax(-1) @ v
    return out


def error(ours, reference):
    """The largest difference, over the largest value."""
    return ((ours.double() - reference.double()).abs().max() / reference.abs().max()).item()


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), HEADS)
@pytest.mark.parametrize(("length", "start"), LENGTHS)
def test_custom_sdpa(length, start, heads, kv_heads, head_dim):
    query, keys, values = tensors(length, heads, kv_heads, head_dim)
    masks = window_mask(length, start), normal(length, CONTEXT, seed=9)  # the latter sees what lies beyond the last token
    settings = [(None, True, None), (None, True, 0.05), (None, False, None), *((mask, False, None) for mask in masks)]
    for attn_mask, causal, scale in settings:
        wheel = torch.ops.llama.custom_sdpa(query, keys, values, start, attn_mask, 0.0, causal, scale)
        formula = by_formula(query, keys, values, start, attn_mask, causal, scale)
        for threads in (1, 2, 5):
            out = torch.full_like(query, 7.0)
            ours = call(
                "llama::custom_sdpa.out", query, keys, values, start, attn_mask, 0.0, causal, scale, out, threads=threads
            )
            assert error(ours, wheel) < EXACT
            assert error(ours, formula) < FLOAT32


@pytest.mark.parametrize("start", [CONTEXT - 3, CONTEXT, 3 * CONTEXT + 5])
def test_a_mask_lets_positions_lie_beyond_the_rows(start):
    """A ring has fewer rows than there are positions, and its mask alone says which are seen."""
    query, keys, values = tensors(7, 6, 3, 16)
    mask = normal(7, CONTEXT, seed=9)
    wheel = torch.ops.llama.custom_sdpa(query, keys, values, start, mask, 0.0, False, None)
    assert error(float_call(query, keys, values, start, mask, causal=False), wheel) < EXACT
    held = [quantized(x, seed) for seed, x in enumerate((query, keys, values))]
    codes, parameters = [codes for codes, _, _ in held], [x for _, scales, zeros in held for x in (zeros, scales)]
    arguments = (*codes, start, mask, 0.0, False, None, *parameters, False)
    wheel = torch.ops.llama.custom_quantized_sdpa(*arguments)
    assert error(call("llama::custom_quantized_sdpa.out", *arguments, torch.zeros(query.shape)), wheel) < EXACT


def quantized(x, seed):
    """int8 codes, scales and zero points per row; codes use the whole range, whatever x is."""
    scales = x.abs().amax(-1, keepdim=True) / 100
    zeros = torch.randint(-20, 20, scales.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.int8)
    codes = (x / scales).round().add(zeros).clamp(-128, 127).to(torch.int8)
    return codes, scales, zeros


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), HEADS)
@pytest.mark.parametrize(("length", "start"), LENGTHS)
def test_custom_quantized_sdpa(length, start, heads, kv_heads, head_dim):
    held = [quantized(x, seed) for seed, x in enumerate(tensors(length, heads, kv_heads, head_dim))]
    (query, q_scale, q_zero), (keys, k_scale, k_zero), (values, v_scale, v_zero) = held
    floats = [(codes.float() - zeros.float()) * scales for codes, scales, zeros in held]
    parameters = (q_zero, q_scale, k_zero, k_scale, v_zero, v_scale)
    for attn_mask, causal, scale in ((None, True, None), (window_mask(length, start), False, 0.05)):
        arguments = (query, keys, values, start, attn_mask, 0.0, causal, scale, *parameters, False)
        wheel = torch.ops.llama.custom_quantized_sdpa(*arguments)
        formula = by_formula(*floats, start, attn_mask, causal, scale)
        for threads in (1, 2):
            ours = call("llama::custom_quantized_sdpa.out", *arguments, torch.full(query.shape, 7.0), threads=threads)
            assert error(ours, wheel) < EXACT
            assert error(ours, formula) < FLOAT32


@needs_arm64
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), HEADS)
@pytest.mark.parametrize(("length", "start"), [(1, 37), (7, 90), (128, 150)])
def test_attention_on_arm64(length, start, heads, kv_heads, head_dim):
    """Vectors of four there, of more here: the same sums in another order."""
    command = emulated(caller_bundle())
    query, keys, values = tensors(length, heads, kv_heads, head_dim)
    for attn_mask, causal, threads in ((None, True, 1), (window_mask(length, start), False, 2)):
        settings = (start, attn_mask, 0.0, causal, None)
        arguments = (query, keys, values, *settings, torch.full_like(query, 7.0))
        ours = call("llama::custom_sdpa.out", *arguments, threads=threads, command=command)
        assert error(ours, call("llama::custom_sdpa.out", *arguments, threads=threads)) < EXACT
        assert error(ours, by_formula(query, keys, values, start, attn_mask, causal, None)) < FLOAT32
        held = [quantized(x, seed) for seed, x in enumerate((query, keys, values))]
        codes = [codes for codes, _, _ in held]
        parameters = list(itertools.chain.from_iterable((zeros, scales) for _, scales, zeros in held))
        arguments = (*codes, *settings, *parameters, False, torch.full_like(query, 7.0))
        ours = call("llama::custom_quantized_sdpa.out", *arguments, threads=threads, command=command)
        assert error(ours, call("llama::custom_quantized_sdpa.out", *arguments, threads=threads)) < EXACT


def test_positions_in_the_third_dimension():
    """is_seq_at_dim_2: [1, heads, positions, head_dim] gives what [1, positions, heads, head_dim] does, transposed."""
    held = [quantized(x, seed) for seed, x in enumerate(tensors(7, 6, 2, 32))]
    codes, parameters = [codes for codes, _, _ in held], [x for _, scales, zeros in held for x in (zeros, scales)]
    settings = (5, None, 0.0, True, None)
    plain = call("llama::custom_quantized_sdpa.out", *codes, *settings, *parameters, False, torch.zeros(1, 7, 6, 32))
    turned = [[x.transpose(1, 2).contiguous() for x in group] for group in (codes, parameters)]
    out = torch.zeros(1, 6, 7, 32)
    ours = call("llama::custom_quantized_sdpa.out", *turned[0], *settings, *turned[1], True, out)
    assert torch.equal(ours.transpose(1, 2), plain)


@pytest.mark.parametrize("make", [torch.Tensor.float, lambda x: (x * 40).to(torch.int8)], ids=["float32", "int8"])
@pytest.mark.parametrize(("length", "start"), [(1, 0), (1, CONTEXT - 1), (7, 90), (128, 150)])
def test_update_cache(make, length, start):
    value, cache = make(normal(1, length, 3, 16, seed=1)), make(normal(1, CONTEXT, 3, 16, seed=2))
    ours = call("llama::update_cache.out", value, cache, start, torch.empty(1), result=1)
    wheel = cache.clone()
    torch.ops.llama.update_cache(value, wheel, start)
    assert torch.equal(ours, wheel)
    assert not torch.equal(ours, cache)


def test_update_cache_with_indices():
    value, cache = normal(1, 4, 3, 16, seed=1), normal(1, CONTEXT, 3, 16, seed=2)
    indices = torch.tensor([[7, 0, CONTEXT - 1, 8]])
    ours = call("llama::update_cache_with_indices.out", value, cache, 0, indices, torch.empty(1), result=1)
    wheel = cache.clone()
    torch.ops.llama.update_cache_with_indices(value, wheel, 0, indices)
    assert torch.equal(ours, wheel)


# --- what cannot be is refused, not read past the end ---------------------------------------------------------------------


def float_call(query, keys, values, start, mask=None, causal=True):
    return call("llama::custom_sdpa.out", query, keys, values, start, mask, 0.0, causal, None, torch.zeros_like(query))


REFUSED = "error 18"  # InvalidArgument


@pytest.mark.parametrize(
    ("change", "start"),
    [
        ({}, CONTEXT - 6),  # the last token beyond the cache
        ({}, -1),
        ({"query": normal(1, 7, 5, 16, seed=1)}, 0),  # 5 heads over 3
        ({"query": normal(1, 7, 6, 20, seed=1)}, 0),
        ({"values": normal(1, CONTEXT - 1, 3, 16, seed=1)}, 0),
        ({"keys": torch.zeros(1, CONTEXT, 3, 16, dtype=torch.int8)}, 0),
        ({"mask": torch.zeros(7, CONTEXT)}, 0),  # a mask, and causal
        ({"mask": torch.zeros(6, CONTEXT), "causal": False}, 0),
        ({"mask": torch.zeros(7, CONTEXT - 1), "causal": False}, 0),
    ],
)
def test_custom_sdpa_refuses_what_does_not_fit(change, start):
    query, keys, values = tensors(7, 6, 3, 16)
    fits = {"query": query, "keys": keys, "values": values}
    assert not isinstance(float_call(**fits, start=0), str)
    assert float_call(**{**fits, **change}, start=start) == REFUSED


@pytest.mark.parametrize("missing", range(6))
def test_custom_quantized_sdpa_refuses_missing_scales(missing):
    held = [quantized(x, seed) for seed, x in enumerate(tensors(7, 6, 3, 16))]
    parameters = list(itertools.chain.from_iterable((zeros, scales) for _, scales, zeros in held))
    parameters[missing] = None
    codes = [codes for codes, _, _ in held]
    out = torch.zeros(1, 7, 6, 16)
    assert call("llama::custom_quantized_sdpa.out", *codes, 0, None, 0.0, True, None, *parameters, False, out) == REFUSED


@pytest.mark.parametrize(
    ("value", "start"),
    [
        (torch.zeros(1, 7, 3, 16), CONTEXT - 6),
        (torch.zeros(1, 7, 3, 16), -1),
        (torch.zeros(1, 7, 2, 16), 0),
        (torch.zeros(1, 7, 3, 8), 0),
        (torch.zeros(1, 7, 3, 16, dtype=torch.int8), 0),
    ],
)
def test_update_cache_refuses_what_does_not_fit(value, start):
    cache = torch.zeros(1, CONTEXT, 3, 16)
    assert call("llama::update_cache.out", value, cache, start, torch.empty(1), result=1) == REFUSED


@pytest.mark.parametrize("index", [-1, CONTEXT])
def test_update_cache_with_indices_refuses_positions_beyond_the_cache(index):
    value, cache = torch.zeros(1, 1, 3, 16), torch.zeros(1, CONTEXT, 3, 16)
    indices = torch.tensor([[index]])
    assert call("llama::update_cache_with_indices.out", value, cache, 0, indices, torch.empty(1), result=1) == REFUSED


# --- what a phone's speed depends on ---------------------------------------------------------------------------------------


@needs_arm64
def test_every_simd_loop_is_vectorized_for_arm64(tmp_path):
    """GCC says which loops it vectorized; the wheel's headers are not needed for its opinion, so the host's do."""
    tools = build.host_toolchain()
    settings = ["CMAKE_SYSTEM_NAME=Linux", "RUNNER_ARCH=", f"CMAKE_CXX_COMPILER={COMPILER}", "CMAKE_EXPORT_COMPILE_COMMANDS=ON"]
    configure = [tools.cmake, "-S", build.SOURCES, "-B", tmp_path, f"-DCMAKE_PREFIX_PATH={tools.executorch}"]
    subprocess.run([*configure, *(f"-D{setting}" for setting in settings)], check=True, capture_output=True)
    commands = {
        Path(each["file"]).name: each["command"] for each in json.loads((tmp_path / "compile_commands.json").read_text())
    }
    compile_it = [*shlex.split(commands["attention.cpp"]), "-fopt-info-vec-optimized", "-o", "/dev/null"]
    said = subprocess.run(compile_it, cwd=tmp_path, check=True, capture_output=True, text=True).stderr
    vectorized = {int(line) for line in re.findall(r"attention\.cpp:(\d+):\d+: optimized: *loop vectorized using 16", said)}
    source = (build.SOURCES / "attention.cpp").read_text().splitlines()
    loops = [number for number, line in enumerate(source, 1) if line.startswith("#pragma omp simd")]
    assert len(loops) >= 5
    assert [number for number in loops if not vectorized & {number, number + 1, number + 2}] == []
