"""Codes and scales: nearest, never worse than absmax, exact in bfloat16, and the same however the work is cut up.

What a model weighs under a recipe is held against sums written out by hand.
"""

import math
import struct
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from tiny_checkpoints import in_schedule, llama_tensors, write_llama, write_mobilellm, write_weights

from mobile_export.checkpoint import open_checkpoint
from mobile_export.errors import InputError
from mobile_export.families import recognise
from mobile_export.quantize import clip_search, sizes
from mobile_export.quantize.clip_search import TINY, quantize_weight
from mobile_export.quantize.recipe import EMBEDDING, HEAD, Precision, read_recipe
from mobile_export.quantize.weights import ModelWeights
from mobile_export.sharing import plan_sharing

W4, W8 = Precision(4, 32), Precision(8)
CODES = {4: (-8, 7), 8: (-127, 127)}
PRECISIONS = st.sampled_from([W4, W8, Precision(4, 64)])


def floats(least, largest):
    """Finite float32 of either sign within magnitudes, and zeros."""
    magnitude = st.floats(least, largest, width=32)
    return st.one_of(magnitude, magnitude.map(lambda x: -x), st.just(0.0))


def matrices(least=2.0**-24, largest=2.0**16, most_rows=4):
    """A few rows of 64 inputs. Magnitudes as trained weights have them, and far beyond on both sides."""
    rows = st.integers(1, most_rows)
    shape = st.tuples(rows, st.just(64))
    values = npst.arrays(np.float32, shape, elements=floats(least, largest), fill=st.nothing())
    gaussian = st.builds(
        lambda n, seed, size: np.random.default_rng(seed).normal(0, size, (n, 64)).astype(np.float32),
        rows,
        st.integers(0, 2**32 - 1),
        st.sampled_from([1e-3, 0.05, 1.0, 300.0]),
    )
    return st.one_of(values, gaussian).map(torch.from_numpy)


def groups_of(weight, quantized):
    """(values, codes, scale) of every group, as Python numbers."""
    rows, columns = weight.shape
    size = quantized.precision.group_size or columns
    for row in range(rows):
        for at in range(0, columns, size):
            span = slice(at, at + size)
            yield weight[row, span].tolist(), quantized.codes[row, span].tolist(), quantized.scales[row, at // size].item()


def bfloat16_by_hand(value):
    """Round to nearest, ties to even, on the bits of a float32."""
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    kept, dropped = bits >> 16, bits & 0xFFFF
    kept += dropped > 0x8000 or (dropped == 0x8000 and kept & 1)
    return struct.unpack("<f", struct.pack("<I", kept << 16))[0]


def absmax_by_hand(group, bits):
    """Plain absmax scaling of one group in scalars: codes and scale."""
    top = 2 ** (bits - 1) - 1
    scale = bfloat16_by_hand(np.float32(max(map(abs, group))) * np.float32(1 / top))
    return [max(CODES[bits][0], min(top, round(value / scale))) for value in group], scale


def squared_error(group, codes, scale):
    return math.fsum((value - code * scale) ** 2 for value, code in zip(group, codes, strict=True))


# --- laws of one matrix ----------------------------------------------------------------------------------------------


@given(matrices(), PRECISIONS)
def test_shapes_types_and_ranges(weight, precision):
    got = quantize_weight(weight, precision)
    low, high = CODES[precision.bits]
    assert got.precision == precision
    assert (got.codes.dtype, got.scales.dtype) == (torch.int8, torch.float32)
    assert got.codes.shape == weight.shape
    assert got.scales.shape == (len(weight), 64 // (precision.group_size or 64))
    assert low <= got.codes.min() <= got.codes.max() <= high


@given(matrices(least=2.0**-120, largest=2.0**120), PRECISIONS)
def test_scales_are_positive_and_exact_in_bfloat16(weight, precision):
    for _, _, scale in groups_of(weight, quantize_weight(weight, precision)):
        assert 0 < scale < math.inf
        assert struct.unpack("<I", struct.pack("<f", scale))[0] & 0xFFFF == 0


@given(matrices(least=2.0**-120, largest=2.0**120), PRECISIONS)
def test_every_code_is_the_nearest_for_the_scale_that_is_stored(weight, precision):
    low, high = CODES[precision.bits]
    for group, codes, scale in groups_of(weight, quantize_weight(weight, precision)):
        for value, code in zip(group, codes, strict=True):
            around = {max(low, min(high, math.floor(value / scale) + step)) for step in (0, 1)}
            nearest = min(abs(value - other * scale) for other in around)
            # The quotient is rounded to float32, so of two codes equally far to seven digits either may be taken.
            assert abs(value - code * scale) <= nearest + abs(value) * 2.0**-22


@example(torch.linspace(-1, 1, 64).reshape(1, 64), W4)
@example(torch.cat((torch.full((1, 63), 0.01), torch.ones(1, 1)), dim=1), W4)
@given(matrices(), PRECISIONS)
def test_no_group_is_worse_than_absmax_scaling_worked_by_hand(weight, precision):
    for group, codes, scale in groups_of(weight, quantize_weight(weight, precision)):
        if max(map(abs, group)) < TINY:
            continue
        plain = squared_error(group, *absmax_by_hand(group, precision.bits))
        # The errors are compared in float32: codes * scale and the sum of squares are each off by a few 2**-24.
        noise = 1e-5 * plain + 4 * math.fsum((value * 2.0**-23) ** 2 for value in group)
        assert squared_error(group, codes, scale) <= plain + noise


@settings(max_examples=20, phases=[Phase.generate])  # shrinking 64 values says nothing more and takes a minute
@given(matrices(least=2.0**66, largest=2.0**120), PRECISIONS)
def test_huge_weights_are_no_worse_than_absmax_scaling(weight, precision):
    """Their squares are beyond float32, and must not decide for a scale that says nothing of them."""
    for group, codes, scale in groups_of(weight, quantize_weight(weight, precision)):
        if max(map(abs, group)) < TINY:
            continue
        ours, plain = squared_error(group, codes, scale), squared_error(group, *absmax_by_hand(group, precision.bits))
        assert ours <= 1.00001 * plain + (max(map(abs, group)) * 2.0**-20) ** 2  # float32, as above


@pytest.mark.parametrize(("precision", "most"), [(W4, 0.85), (W8, 1.0)])
def test_the_search_pays_on_gaussian_weights(precision, most):
    """Measured: 0.79 and 0.997 of absmax's squared error."""
    weight = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0))
    got = quantize_weight(weight, precision)
    ours = plain = 0.0
    for group, codes, scale in groups_of(weight, got):
        ours += squared_error(group, codes, scale)
        plain += squared_error(group, *absmax_by_hand(group, precision.bits))
    assert ours < most * plain


@given(
    npst.arrays(np.float32, (3, 64), elements=floats(2.0**-149, 2.0**-101)).map(torch.from_numpy),
    PRECISIONS,
)
def test_zero_and_vanishing_groups_become_exactly_zero(weight, precision):
    """Subnormal ones among them: their scale would be subnormal too, which kernels flush to 0 and divide by."""
    got = quantize_weight(weight, precision)
    assert not got.codes.any()
    assert (got.scales == 1).all()


def test_a_zero_group_beside_others():
    weight = torch.cat((torch.zeros(1, 32), torch.ones(1, 32)), dim=1)
    got = quantize_weight(weight, W4)
    assert got.codes[0, :32].tolist() == [0] * 32
    assert got.dequantized()[0, 32:].tolist() == pytest.approx([1] * 32, rel=2.0**-8)  # bfloat16's scale


@given(matrices(), PRECISIONS)
def test_dequantized_is_code_times_scale(weight, precision):
    got = quantize_weight(weight, precision)
    expected = [[np.float32(c) * np.float32(scale) for c in codes] for _, codes, scale in groups_of(weight, got)]
    assert got.dequantized().flatten().tolist() == np.concatenate(expected).tolist()


# --- however the work is cut up --------------------------------------------------------------------------------------


def assert_equal(a, b):
    assert torch.equal(a.codes, b.codes)
    assert torch.equal(a.scales, b.scales)


@given(matrices(), matrices(), PRECISIONS)
def test_stacking_rows_before_or_after_is_the_same(a, b, precision):
    """What makes a joined query, key and value projection hold the numbers of the three."""
    whole = quantize_weight(torch.cat((a, b)), precision)
    parts = [quantize_weight(part, precision) for part in (a, b)]
    assert torch.equal(whole.codes, torch.cat([part.codes for part in parts]))
    assert torch.equal(whole.scales, torch.cat([part.scales for part in parts]))


@given(matrices(most_rows=9), PRECISIONS, st.sampled_from([1, 32, 64, 100, 129, 1 << 17]))
def test_the_chunks_it_works_in_do_not_show(weight, precision, chunk):
    with mock.patch.object(clip_search, "CHUNK", chunk):
        cut = quantize_weight(weight, precision)
    assert_equal(cut, quantize_weight(weight, precision))


@pytest.mark.parametrize("precision", [W4, W8])
def test_a_matrix_of_several_chunks(precision):
    weight = torch.randn(300, 960, generator=torch.Generator().manual_seed(1))
    assert weight.numel() > 2 * clip_search.CHUNK
    whole = quantize_weight(weight, precision)
    rows = [quantize_weight(row[None], precision) for row in weight]
    assert torch.equal(whole.codes, torch.cat([row.codes for row in rows]))
    assert torch.equal(whole.scales, torch.cat([row.scales for row in rows]))


@pytest.mark.parametrize("precision", [W4, W8])
def test_the_number_of_threads_does_not_show(precision):
    weight = torch.randn(24, 8192, generator=torch.Generator().manual_seed(2))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = quantize_weight(weight, precision)
        torch.set_num_threads(2)
        assert_equal(quantize_weight(weight, precision), alone)
    finally:
        torch.set_num_threads(before)


@settings(max_examples=20)
@given(matrices(), PRECISIONS)
def test_the_weight_itself_is_left_alone(weight, precision):
    """It may be the checkpoint's file, mapped."""
    before = weight.clone()
    assert_equal(quantize_weight(weight, precision), quantize_weight(weight, precision))
    assert torch.equal(weight, before)


# --- the weights of a model ------------------------------------------------------------------------------------------


def weights_of(path, recipe="w4-fast", schedule=None):
    checkpoint = open_checkpoint(str(path))
    recognised = recognise(checkpoint)
    return ModelWeights(checkpoint, recognised, plan_sharing(checkpoint, recognised, schedule), read_recipe(recipe))


# One block of the tiny llama (hidden 64, 4 heads of 16, 2 for key and value, feed-forward 128), one copy:
# qkv 128 x 64, o 64 x 64, gate and up 128 x 64, down 64 x 128 = 36,864 parameters in 512 rows.
BLOCK, ROWS, NORMS = 36_864, 128 + 64 + 128 + 128 + 64, 2 * 64
TABLE = 96 * 64
BLOCK_BYTES = {"w4-fast": BLOCK // 2 + BLOCK // 32 * 2, "w8-fast": BLOCK + ROWS * 4, "fp32": 4 * BLOCK}
TABLE_BYTES = {
    "w4-fast": TABLE + 96 * 4,
    "w8-fast": TABLE + 96 * 4,
    "fp32": 4 * TABLE,
    "w4-all-fast": TABLE // 2 + TABLE // 32 * 2,
}
BLOCK_BYTES["w4-all-fast"] = BLOCK_BYTES["w4-fast"]
SCALES_AGAIN = TABLE // 32 * 2  # of a tied 4-bit table: float16 for the gather, bfloat16 for the matmul


@pytest.mark.parametrize("recipe", ["w4-fast", "w4-all-fast", "w8-fast", "fp32"])
@pytest.mark.parametrize("tied", [True, False])
def test_predicted_bytes_are_the_sum_written_out(tmp_path, recipe, tied):
    weights = weights_of(write_llama(tmp_path, tied=tied), recipe)
    assert weights.predicted_bytes() == {
        "embedding": TABLE_BYTES[recipe] + (SCALES_AGAIN if tied and recipe == "w4-all-fast" else 0),
        "head": 0 if tied else TABLE_BYTES[recipe],
        "blocks": 2 * BLOCK_BYTES[recipe],
        "norms": 4 * (2 * NORMS + 64),
    }


def test_biases_are_billed_with_the_norms(tmp_path):
    weights = weights_of(write_llama(tmp_path, attention_bias=True, mlp_bias=True))
    biases = (64 + 32 + 32) + 64 + 128 + 128 + 64
    assert weights.predicted_bytes()["norms"] == 4 * (2 * (NORMS + biases) + 64)
    assert weights.part_of("blocks.0.attention.qkv.bias") == "norms"


@pytest.mark.parametrize("how", ["flag", "file", "schedule"])
def test_a_shared_block_is_stored_once_and_executed_twice(tmp_path, how):
    if how == "flag":
        weights = weights_of(write_mobilellm(tmp_path, layer_sharing=True))
    elif how == "file":
        weights = weights_of(write_llama(tmp_path, duplicate_schedule=(0, 1, 1, 0)))
    else:
        weights = weights_of(write_llama(tmp_path), schedule="repeat-all-over")
    assert weights.predicted_bytes()["blocks"] == 2 * BLOCK_BYTES["w4-fast"]
    assert sizes.stored_parameters(weights) == TABLE + 2 * (BLOCK + NORMS) + 64
    assert sizes.executed_parameters(weights) == 2 * TABLE + 4 * (BLOCK + NORMS) + 64
    assert {weights.matrices[f"blocks.{i}.ffn.up.weight"].uses for i in (0, 1)} == {2}


def test_executions_are_counted_block_by_block(tmp_path):
    weights = weights_of(write_llama(tmp_path, tied=False), schedule="0,1,1,1")
    assert sizes.executed_parameters(weights) == 2 * TABLE + 4 * (BLOCK + NORMS) + 64
    assert [weights.matrices[f"blocks.{i}.ffn.o.weight"].uses for i in (0, 1)] == [1, 3]
    assert (weights.matrices[EMBEDDING].uses, weights.matrices[HEAD].uses) == (1, 1)


def test_a_tied_head_is_not_stored(tmp_path):
    """Not even where the file holds a head of its own that share_embedding rules out."""
    weights = weights_of(write_mobilellm(tmp_path, redundant_head="different"))
    assert HEAD not in weights.sources
    assert HEAD not in weights.matrices
    assert weights.source_of(HEAD) == EMBEDDING
    assert weights.matrices[EMBEDDING].uses == 2
    assert torch.equal(weights.float32(weights.source_of(HEAD)), llama_tensors()["model.embed_tokens.weight"])


def test_an_untied_head_is_its_own(tmp_path):
    weights = weights_of(write_llama(tmp_path, tied=False))
    assert weights.source_of(HEAD) == HEAD
    assert torch.equal(weights.float32(HEAD), llama_tensors(tied=False)["lm_head.weight"])


def test_stored_blocks_are_renumbered_and_hold_their_own_values(tmp_path):
    weights = weights_of(write_llama(tmp_path, duplicate_schedule=(0, 0, 0, 1)))
    assert weights.plan.blocks == (0, 3)
    assert not any(name.startswith("blocks.2") for name in weights.sources)
    expected = in_schedule(llama_tensors(), (0, 1), share_storage=True)["model.layers.1.mlp.down_proj.weight"]
    assert torch.equal(weights.float32("blocks.1.ffn.down.weight"), expected)


@pytest.mark.parametrize("recipe", ["w4-fast", "w8-fast"])
def test_the_joined_projection_holds_the_codes_of_its_three_parts(tmp_path, recipe):
    weights = weights_of(write_llama(tmp_path), recipe)
    got = weights.quantized("blocks.1.attention.qkv.weight")
    tensors = llama_tensors()
    parts = [quantize_weight(tensors[f"model.layers.1.self_attn.{n}_proj.weight"], got.precision) for n in ("q", "k", "v")]
    assert torch.equal(got.codes, torch.cat([part.codes for part in parts]))
    assert torch.equal(got.scales, torch.cat([part.scales for part in parts]))
    assert_equal(got, weights.quantized("blocks.1.attention.qkv.weight"))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_not_finite_is_named(tmp_path, value):
    tensors = llama_tensors()
    tensors["model.layers.1.self_attn.k_proj.weight"][3, 5] = value
    write_llama(tmp_path)
    write_weights(tmp_path, tensors)
    weights = weights_of(tmp_path)
    with pytest.raises(InputError) as error:
        weights.quantized("blocks.1.attention.qkv.weight")
    assert str(error.value).startswith(
        "model.safetensors: model.layers.1.self_attn.k_proj.weight: 1 value of 2,048 not finite, the first at (3, 5); "
    )


# --- the inspection's sums -------------------------------------------------------------------------------------------


def test_the_columns_of_the_inspection(tmp_path):
    parts = {part.name: part for part in sizes.part_sizes(weights_of(write_llama(tmp_path), "w8-fast"))}
    assert list(parts) == ["embedding", "blocks", "norms"]
    blocks, table = parts["blocks"], parts["embedding"]
    assert (blocks.parameters, blocks.bytes_fp16) == (2 * BLOCK, 4 * BLOCK)
    assert (blocks.bytes_8_bit, blocks.bytes_4_bit) == (2 * BLOCK_BYTES["w8-fast"], 2 * BLOCK_BYTES["w4-fast"])
    assert blocks.bytes_recipe == blocks.bytes_8_bit
    assert (table.bytes_8_bit, table.bytes_4_bit) == (TABLE_BYTES["w8-fast"], TABLE_BYTES["w4-all-fast"] + SCALES_AGAIN)
    assert set(vars(parts["norms"]).values()) == {"norms", 2 * NORMS + 64, 4 * (2 * NORMS + 64)}


def test_a_width_that_groups_of_32_do_not_divide_has_no_4_bit_column(tmp_path):
    parts = sizes.part_sizes(weights_of(write_llama(tmp_path, hidden=72), "w8-fast"))
    assert [part.bytes_4_bit for part in parts if part.name != "norms"] == [None, None]


@pytest.mark.parametrize(("tied", "tables"), [(True, 1), (False, 2)])
def test_the_embeddings_share(tmp_path, tied, tables):
    weights = weights_of(write_llama(tmp_path, tied=tied))
    held = tables * TABLE
    assert sizes.embedding_share(weights.recognised, weights) == held / (held + 2 * (BLOCK + NORMS) + 64)


def test_bits_per_weight_count_scales(tmp_path):
    found = sizes.bits_per_weight(weights_of(write_llama(tmp_path), "w4-fast"))
    assert found == 8 * (TABLE_BYTES["w4-fast"] + 2 * BLOCK_BYTES["w4-fast"]) / (TABLE + 2 * BLOCK)
    assert sizes.bits_per_weight(weights_of(tmp_path, "fp32")) == 32


def test_kv_bytes_of_one_token(tmp_path):
    """Key and value, 2 heads of 16, a slot per execution; int8 adds a float32 scale and an int8 zero point a row."""
    weights = weights_of(write_mobilellm(tmp_path, layer_sharing=True))
    slots = len(weights.plan.schedule)
    assert slots == 4
    assert sizes.kv_bytes(weights.recognised.spec, slots, "float32") == 4 * 2 * 2 * 16 * 4
    assert sizes.kv_bytes(weights.recognised.spec, slots, "int8") == 4 * 2 * 2 * (16 + 4 + 1)
