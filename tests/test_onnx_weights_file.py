"""The laws of what goes into model.onnx.data: packing, block sizes, and where payloads lie."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from exported import CONTEXT, checkpoint, onnx_file, weights_of
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mobile_export.emit.onnx import program
from mobile_export.emit.onnx.blocks import block_size
from mobile_export.emit.onnx.decoder_graph import OnnxOptions
from mobile_export.emit.onnx.matrices import packed_codes
from mobile_export.emit.onnx.program import write_program
from mobile_export.emit.onnx.weights_file import ALIGNMENT, WeightsFile
from mobile_export.emit.packing import four_bit_pairs
from mobile_export.quantize.clip_search import QuantizedWeight
from mobile_export.quantize.matrix_plan import MatrixPlan
from mobile_export.quantize.recipe import Precision
from mobile_export.verify.onnx_runtime import OnnxRuntime

# --- codes -------------------------------------------------------------------------------------------------------------


def codes(low: int, high: int) -> st.SearchStrategy[np.ndarray]:
    shapes = st.tuples(st.integers(1, 5), st.integers(1, 6).map(lambda pairs: 2 * pairs))
    return arrays.arrays(np.int8, shapes, elements=st.integers(low, high))


def unpacked(byte: int) -> tuple[int, int]:
    """The codes of a byte, worked in integers: the low half first, 8 stands for zero."""
    return byte % 16 - 8, byte // 16 - 8


@given(codes(-8, 7))
@example(np.array([[-8, 7, 0, -1]], np.int8))
def test_two_4_bit_codes_to_a_byte_come_back(values):
    packed = four_bit_pairs(torch.from_numpy(values))
    assert packed.dtype == torch.uint8
    assert packed.shape == (values.shape[0], values.shape[1] // 2)
    assert [[code for byte in row for code in unpacked(byte)] for row in packed.tolist()] == values.tolist()


def weight(values: np.ndarray, bits: int) -> QuantizedWeight:
    precision = Precision(4, 32) if bits == 4 else Precision(8)
    return QuantizedWeight(torch.from_numpy(values), torch.ones(values.shape[0], 1), precision)


@given(codes(-128, 127))
@example(np.array([[-128, 127, 0, -1]], np.int8))
def test_8_bit_codes_come_back(values):
    packed = packed_codes(weight(values, 8))
    assert packed.dtype == np.uint8
    assert [[byte - 128 for byte in row] for row in packed.tolist()] == values.tolist()


@given(codes(-8, 7))
def test_packing_leaves_the_codes_as_they_were(values):
    before = values.copy()
    packed_codes(weight(values, 4))
    packed_codes(weight(values, 8))
    assert (values == before).all()


@settings(max_examples=25)
@given(st.sampled_from([4, 8]), st.sampled_from([16, 32, 64, 128, 256]), st.integers(0, 2**32 - 1))
def test_the_runtimes_own_kernels_read_the_codes_and_scales_so(bits, block, seed):
    """MatMulNBits under float activations against codes times scales in scalars: order of halves, offset, blocks."""
    random = np.random.default_rng(seed)
    rows, blocks = 16, 2
    values = random.integers(-8, 8, (rows, blocks * block)) if bits == 4 else random.integers(-128, 128, (rows, blocks * block))
    scales = random.uniform(0.5, 2, (rows, blocks)).astype(np.float32)
    packed = packed_codes(weight(values.astype(np.int8), bits)).reshape(rows, blocks, -1)
    x = random.standard_normal((1, blocks * block)).astype(np.float32)
    tensors = [onnx.numpy_helper.from_array(packed, "codes"), onnx.numpy_helper.from_array(scales, "scales")]
    sizes = {"K": blocks * block, "N": rows, "bits": bits, "block_size": block}
    inputs = ["x", "codes", "scales"]
    node = onnx.helper.make_node("MatMulNBits", inputs, ["y"], domain="com.microsoft", accuracy_level=1, **sizes)
    got = run_node(node, tensors, x, (1, rows))
    want = (values.reshape(rows, blocks, block) * scales[..., None].astype(np.float64)).reshape(rows, -1) @ x[0]
    assert np.abs(got[0] - want).max() <= 1e-5 * np.abs(want).max()


def run_node(node: onnx.NodeProto, tensors: list[onnx.TensorProto], x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    import onnxruntime

    given, gives = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, size) for name, size in (("x", x.shape), ("y", shape))
    )
    graph = onnx.helper.make_graph([node], "g", [given], [gives], initializer=tensors)
    imports = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})[0]


# --- block sizes -------------------------------------------------------------------------------------------------------


@given(st.integers(1, 300), st.integers(0, 9))
def test_one_scale_a_channel_goes_into_the_widest_block_that_divides(odd, twos):
    assume(odd % 2)
    columns = odd << twos
    block = block_size(MatrixPlan("w", (4, columns), Precision(8), 1))
    assert columns % block == 0
    assert block in [1 << n for n in range(9)]
    assert block == 256 or columns % (2 * block), "no wider one divides"


@given(st.integers(1, 8), st.integers(1, 5))
def test_a_recipes_group_is_the_block(groups, width):
    matrix = MatrixPlan("w", (4, groups * 32 * width), Precision(4, 32 * width), 1)
    assert block_size(matrix) == 32 * width


# --- where payloads lie ------------------------------------------------------------------------------------------------

ARRAYS = arrays.arrays(
    st.sampled_from([np.dtype("uint8"), np.dtype("float32"), np.dtype("int64"), np.dtype("float16")]),
    arrays.array_shapes(max_dims=3, max_side=9),
    elements=st.integers(0, 2),
)


@given(st.lists(ARRAYS, min_size=1, max_size=12))
def test_ranges_are_aligned_disjoint_and_equal_bytes_share_one(values):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data"
        file = WeightsFile(path)
        ranges = [file.add(array, "blocks") for array in values]
        assert file.close() == path.stat().st_size
        content = path.read_bytes()
    for array, found in zip(values, ranges, strict=True):
        assert found.offset % ALIGNMENT == 0
        assert found.length == array.nbytes
        assert content[found.offset : found.offset + found.length] == array.tobytes()
    for a, first in zip(values, ranges, strict=True):
        for b, second in zip(values, ranges, strict=True):
            assert (a.tobytes() == b.tobytes()) == (first == second)
    end = 0
    for found in sorted(set(ranges), key=lambda found: found.offset):
        assert 0 <= found.offset - end < ALIGNMENT
        assert not any(content[end : found.offset])
        end = found.offset + found.length
    assert end == len(content)
    assert sum(file.parts.values()) == len(content)
    assert file.parts["blocks"] == sum(found.length for found in set(ranges))


def test_values_that_do_not_lie_row_by_row_are_written_so(tmp_path):
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    file = WeightsFile(tmp_path / "data")
    transposed, plain = file.add(values.T, "blocks"), file.add(np.arange(12, dtype=np.float32).reshape(4, 3), "blocks")
    file.close()
    content = (tmp_path / "data").read_bytes()
    assert content[transposed.offset :][:48] == values.T.tobytes()
    assert content[plain.offset :][:48] == np.arange(12, dtype=np.float32).tobytes()


# --- beyond 2 and 4 GiB ------------------------------------------------------------------------------------------------


def start_at(monkeypatch: pytest.MonkeyPatch, begin: int) -> None:
    """Let every data file begin with a hole, which takes no space on the disk."""

    class Far(WeightsFile):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            self._file.seek(begin)
            self._size = begin

    monkeypatch.setattr(program, "WeightsFile", Far)


@pytest.mark.parametrize("recipe", ["w4-fast", "fp32"])
@pytest.mark.parametrize("border", [2**31, 2**32], ids=["2GiB", "4GiB"])
def test_weights_on_both_sides_of_a_border_are_found_by_the_runtime(tmp_path, monkeypatch, border, recipe):
    weights = weights_of(checkpoint(), recipe)
    tokens = [5, 17, 40, 3, 88]
    near = OnnxRuntime(onnx_file(weights), "1.0").step(tokens, 0)
    start_at(monkeypatch, border - 20_000)
    write_program(tmp_path, weights, OnnxOptions(CONTEXT))
    held = (tmp_path / "model.onnx.data").stat()
    assert held.st_size > border
    if held.st_blocks * 512 > 2**24:
        pytest.skip("needs a file system with holes")
    tensors = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph.initializer
    offsets = [int(entry.value) for tensor in tensors for entry in tensor.external_data if entry.key == "offset"]
    assert min(offsets) < border < max(offsets)
    runtime = OnnxRuntime(tmp_path / "model.onnx", "1.0")
    assert torch.equal(runtime.step(tokens, 0), near)
