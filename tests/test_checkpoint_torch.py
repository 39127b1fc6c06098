"""Pickled weights: never executed, mapped where they can be, and shared storage seen as shared."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from tiny_checkpoints import llama_tensors, refusal, write_llama

from mobile_export.checkpoint import open_checkpoint

CONVERT = "convert it to safetensors on a machine where you trust it, or ask its author for safetensors"


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def weights(tmp_path):
    """A folder's pytorch_model.bin, to be replaced."""
    return write_llama(tmp_path / "model", form="bin") / "pytorch_model.bin"


def hostile_raw(path, marker):
    path.write_bytes(pickle.dumps(Hostile(marker), protocol=2))


def hostile_legacy(path, marker):
    torch.save({"a": Hostile(marker)}, path, _use_new_zipfile_serialization=False)


def hostile_zip(path, marker):
    torch.save({"a": torch.zeros(2), "b": Hostile(marker)}, path)


@pytest.mark.parametrize("write", [hostile_raw, hostile_legacy, hostile_zip])
def test_a_hostile_pickle_is_refused_and_not_run(weights, tmp_path, write):
    marker = tmp_path / "was-run"
    write(weights, marker)
    line = refusal(weights.parent)
    assert not marker.exists()
    assert line == (
        "pytorch_model.bin: refused: the pickle asks for posix.system, and a checkpoint is never allowed to run code; "
        f"{CONVERT}"
    )
    torch.load(weights, weights_only=False) if write is not hostile_raw else pickle.loads(weights.read_bytes())
    assert marker.exists()  # the file would have done it


def test_a_hostile_pickle_of_a_later_protocol(weights, tmp_path):
    weights.write_bytes(pickle.dumps(Hostile(tmp_path / "was-run"), protocol=4))
    assert refusal(weights.parent) == (
        f"pytorch_model.bin: refused: not a readable pickle of tensors (Unsupported operand 149); {CONVERT}"
    )
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a pickle", b"\x80\x04."])
def test_a_damaged_file(weights, content):
    weights.write_bytes(content)
    line = refusal(weights.parent)
    assert line.startswith("pytorch_model.bin: refused: not a readable pickle of tensors (")
    assert line.endswith(f"; {CONVERT}")


def test_a_truncated_file(weights):
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert refusal(weights.parent).startswith("pytorch_model.bin: refused: not a readable pickle of tensors (")


@pytest.mark.parametrize(
    ("contents", "line"),
    [
        ([torch.zeros(2)], "pytorch_model.bin: holds a list, not named tensors; save model.state_dict()"),
        (
            {"state_dict": {"a": torch.zeros(2)}},
            "pytorch_model.bin: state_dict: is a dict, not a named tensor; save model.state_dict() alone",
        ),
        ({3: torch.zeros(2)}, "pytorch_model.bin: 3: is a Tensor, not a named tensor; save model.state_dict() alone"),
        (
            {"a": torch.zeros(2, dtype=torch.complex64)},
            "pytorch_model.bin: a: is stored as complex64, strided, which is not supported; "
            "convert the checkpoint to BF16, F16 or F32",
        ),
        (
            {"a": torch.zeros(2).to(torch.float8_e4m3fn)},
            "pytorch_model.bin: a: is stored as float8_e4m3fn, strided, which is not supported; "
            "convert the checkpoint to BF16, F16 or F32",
        ),
    ],
)
def test_contents_that_are_not_named_tensors(weights, contents, line):
    torch.save(contents, weights)
    assert refusal(weights.parent) == line


def test_the_old_pickle_form_warns_that_it_is_read_whole(tmp_path):
    checkpoint = open_checkpoint(str(write_llama(tmp_path, form="legacy-bin")))
    assert checkpoint.warnings == (
        "pytorch_model.bin: old pickle form, so all 0.32 MB of it are in memory; safetensors would be mapped",
    )


def test_the_zip_form_is_mapped(tmp_path):
    checkpoint = open_checkpoint(str(write_llama(tmp_path, form="bin")))
    values = checkpoint.tensors["model.embed_tokens.weight"].read()
    maps = Path("/proc/self/maps").read_text().splitlines()
    ranges = [line.split()[0].split("-") for line in maps if "pytorch_model.bin" in line]
    assert any(int(begin, 16) <= values.data_ptr() < int(end, 16) for begin, end in ranges)


@pytest.mark.parametrize("form", ["bin", "legacy-bin"])
@pytest.mark.parametrize("share_storage", [True, False])
def test_blocks_over_one_storage_are_told_from_equal_copies(tmp_path, form, share_storage):
    folder = write_llama(tmp_path, form=form, duplicate_schedule=(0, 0, 1), share_storage=share_storage)
    tensors = open_checkpoint(str(folder)).tensors
    first, copy, other = (tensors[f"model.layers.{block}.mlp.up_proj.weight"] for block in range(3))
    assert torch.equal(first.read(), copy.read())
    assert (first.storage == copy.storage) is share_storage
    assert first.storage != other.storage


def test_two_views_of_one_storage_are_not_the_same_tensor(weights):
    whole = torch.randn(4, 4)
    torch.save({"top": whole[:2], "bottom": whole[2:], "turned": whole.T, "whole": whole}, weights)
    tensors = open_checkpoint(str(weights.parent)).tensors
    assert len({tensor.storage for tensor in tensors.values()}) == 4
    assert torch.equal(tensors["turned"].read(), whole.T)
    assert torch.equal(tensors["turned"].raw(), whole.T.contiguous().reshape(-1).view(torch.uint8))


def test_a_parameter_is_a_tensor(weights):
    torch.save({"a": torch.nn.Parameter(torch.ones(2))}, weights)
    assert not open_checkpoint(str(weights.parent)).tensors["a"].read().requires_grad


def test_shards_of_pickles(weights):
    tensors = llama_tensors()
    names = sorted(tensors)
    torch.save({name: tensors[name] for name in names[:5]}, weights.parent / "a.bin")
    torch.save({name: tensors[name] for name in names[5:]}, weights.parent / "b.bin")
    weights.unlink()
    entries = ", ".join(f'"{name}": "{"a" if name in names[:5] else "b"}.bin"' for name in names)
    (weights.parent / "pytorch_model.bin.index.json").write_text(f'{{"weight_map": {{{entries}}}}}')
    read = open_checkpoint(str(weights.parent)).tensors
    assert all(torch.equal(read[name].read(), tensors[name]) for name in names)
