"""safetensors headers, checked against the safetensors library on every damage hypothesis can think of."""

import json
import struct

import psutil
import pytest
import safetensors
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save, save_file, save_model
from tiny_checkpoints import refusal, write_llama

from mobile_export.checkpoint.safetensors_file import read_safetensors
from mobile_export.errors import InputError

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.arange(4, dtype=torch.bfloat16),
    "empty": torch.zeros(0, 4),
    "scalar": torch.tensor(7, dtype=torch.int64),
}
TINY = save(TENSORS)
HEADER_END = 8 + struct.unpack("<Q", TINY[:8])[0]


def as_file(header, data: bytes) -> bytes:
    """Header and data; a header given as a dict is padded to 8 bytes, as every writer does."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    if not isinstance(header, bytes):
        text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def entry(begin, end, shape=(1,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def bytes_of(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.fixture
def refused(tmp_path):
    """The line a folder with these bytes as model.safetensors is refused with."""

    def refuse(content: bytes) -> str:
        (write_llama(tmp_path) / "model.safetensors").write_bytes(content)
        return refusal(tmp_path)

    return refuse


def test_every_dtype_reads_back(tmp_path):
    dtypes = ["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"]
    names = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8"]
    names += ["uint64", "uint32", "uint16", "uint8", "bool"]
    written = {code: torch.tensor([[1, 0, 1]]).to(getattr(torch, name)) for code, name in zip(dtypes, names, strict=True)}
    save_file(written, tmp_path / "all.safetensors")
    for tensor in read_safetensors(tmp_path / "all.safetensors"):
        assert tensor.dtype == tensor.name
        assert tensor.read().dtype == written[tensor.name].dtype
        assert torch.equal(tensor.read(), written[tensor.name])


@pytest.mark.parametrize("padding", range(4))
def test_a_header_that_leaves_its_data_unaligned(tmp_path, padding):
    header = json.dumps({"x": entry(0, 8, (2,))}).encode() + b" " * padding
    (tmp_path / "x.safetensors").write_bytes(as_file(header, struct.pack("<2f", 1.5, -2)))
    values = read_safetensors(tmp_path / "x.safetensors")[0].read()
    assert values.tolist() == [1.5, -2]
    assert values.data_ptr() % 4 == 0


@settings(max_examples=400, deadline=None)
@given(
    st.one_of(
        st.integers(0, len(TINY) - 1).map(lambda end: TINY[:end]),
        st.tuples(st.integers(0, HEADER_END), st.binary(max_size=3), st.integers(0, 3)).map(
            lambda edit: TINY[: edit[0]] + edit[1] + TINY[edit[0] + edit[2] :]
        ),
        st.binary(max_size=40).map(lambda text: as_file(text, b"")),
    )
)
@example(TINY)
@example(as_file({"a": entry(0, 4), "b": entry(0, 4)}, bytes(4)))  # overlapping offsets
@example(as_file(b'{"a":' * 20_000, b""))
@example(as_file({"a": entry(0, 0, (0, 2**62, 2**62))}, b""))
@example(as_file({"a": entry(0, 4, (True,))}, bytes(4)))
def test_damage_is_refused_or_harmless(tmp_path_factory, content):
    """What we accept, the library accepts with the same bytes; nothing but InputError is ever raised."""
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    path.write_bytes(content)
    try:
        ours = {tensor.name: tensor.read() for tensor in read_safetensors(path) if tensor.alias_of is None}
    except InputError:
        assert content != TINY
        return
    reference = load(content)
    assert set(ours) == set(reference)
    for name, tensor in reference.items():
        assert (ours[name].shape, ours[name].dtype) == (tensor.shape, tensor.dtype)
        assert bytes_of(ours[name]) == bytes_of(tensor)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"abc", "model.safetensors: 3 bytes: too short to be safetensors; download it again"),
        (
            struct.pack("<Q", 10**9) + b"{}",
            "model.safetensors: header of 1,000,000,000 bytes: this is not a safetensors file; check what it is",
        ),
        (
            struct.pack("<Q", 500) + b"{}",
            "model.safetensors: header needs 500 bytes, the file has 2 after its length; "
            "the download or copy is incomplete: fetch it again",
        ),
        (
            as_file({"a": entry(0, 4), "b": entry(4, 8)}, bytes(6)),
            "model.safetensors: tensors need 144 bytes, the file has 142; the download or copy is incomplete: fetch it again",
        ),
        (
            as_file({"a": entry(0, 4)}, bytes(5)),
            "model.safetensors: tensors need 76 bytes, the file has 77; download it again",
        ),
        (
            as_file({"a": entry(0, 4), "b": entry(2, 6)}, bytes(6)),
            "model.safetensors: b: overlaps the tensor before it by 2 bytes; download it again",
        ),
        (
            as_file({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)),
            "model.safetensors: b: leaves 4 bytes before it unused; download it again",
        ),
        (
            as_file({"a": entry(0, 4, (2,))}, bytes(4)),
            "model.safetensors: a: shape (2,) in F32 needs 8 bytes, data_offsets give 4; download it again",
        ),
        (
            as_file({"a": entry(0, 1, dtype="F8_E4M3")}, bytes(1)),
            "model.safetensors: a: stored as F8_E4M3, which is not supported; convert the checkpoint to BF16, F16 or "
            "F32 (e.g. model.to(torch.bfloat16).save_pretrained)",
        ),
        (
            as_file({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)),
            "model.safetensors: a: header entry is not {dtype, shape, data_offsets}; download it again",
        ),
        (
            as_file({"a": entry(0, 4, (-1,))}, bytes(4)),
            "model.safetensors: a: shape or data_offsets is not a list of counts; download it again",
        ),
        (
            as_file({"__metadata__": {"format": 1}}, b""),
            "model.safetensors: header: __metadata__ does not map strings to strings; download it again",
        ),
        (
            as_file(b'{"a": 1, "a": 2}', b""),
            "model.safetensors: header: is not usable JSON (key 'a' twice); download it again",
        ),
    ],
)
def test_each_kind_of_damage_is_named(refused, content, line):
    assert refused(content) == line


def test_the_sizes_checked_here_are_those_the_library_checks():
    with pytest.raises(safetensors.SafetensorError):
        load(as_file({"a": entry(0, 4), "b": entry(2, 6)}, bytes(6)))


def test_a_name_dropped_by_save_model_comes_back_as_an_alias(tmp_path):
    model = torch.nn.Module()
    model.embed, model.head = torch.nn.Embedding(8, 4), torch.nn.Linear(4, 8, bias=False)
    model.head.weight = model.embed.weight
    save_model(model, str(tmp_path / "m.safetensors"), metadata={"format": "pt", "author": "embed"})
    tensors = {tensor.name: tensor for tensor in read_safetensors(tmp_path / "m.safetensors")}
    assert set(tensors) == {"embed.weight", "head.weight"}
    (dropped,) = [tensor for tensor in tensors.values() if tensor.alias_of]
    kept = tensors[dropped.alias_of]
    assert dropped.name != kept.name
    assert kept.alias_of is None
    assert dropped.storage == kept.storage
    assert torch.equal(dropped.read(), model.embed.weight)


def test_opening_and_reading_a_large_file_costs_no_memory(tmp_path):
    size = 200_000_000
    path = tmp_path / "large.safetensors"
    header = as_file({"small": entry(0, 4096, (1024,)), "large": entry(4096, size, ((size - 4096) // 4,))}, b"")
    path.write_bytes(header)
    with path.open("r+b") as file:
        file.truncate(len(header) + size)  # sparse: nothing is written
    process = psutil.Process()
    before = process.memory_info().rss
    tensors = {tensor.name: tensor for tensor in read_safetensors(path)}
    large = tensors["large"].read()
    assert large[::10_000_000].tolist() == [0.0] * 5  # touches five pages
    assert process.memory_info().rss - before < 8 * 2**20
    large.sum()
    assert process.memory_info().rss - before > 100 * 2**20  # the measurement sees pages that are touched
    del large
    assert process.memory_info().rss - before < 8 * 2**20  # and they are given back with the values


def test_a_file_that_shrinks_after_it_was_opened(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(save({"x": torch.zeros(4000)}))
    (tensor,) = read_safetensors(path)
    path.write_bytes(b"gone")
    with pytest.raises(InputError, match=r"x\.safetensors: changed since it was opened .*; run the command again"):
        tensor.read()
