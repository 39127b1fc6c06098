"""One tensor's values as float32, and how many bytes a checkpoint stores."""

import pytest
import torch
from tiny_checkpoints import write_gguf, write_llama

from mobile_export.checkpoint import open_checkpoint, read_float32, stored_bytes
from mobile_export.checkpoint.contents import StoredTensor
from mobile_export.errors import InputError


def stored(values: torch.Tensor, dtype: str = "F32") -> StoredTensor:
    return StoredTensor("w", tuple(values.shape), dtype, "f.bin: w", ("f.bin", 0), lambda: values, lambda: values)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_any_float_becomes_contiguous_float32(dtype):
    values = torch.randn(3, 4).to(dtype)
    read = read_float32(stored(values.T))
    assert read.dtype == torch.float32
    assert read.is_contiguous()
    assert torch.equal(read, values.T.to(torch.float32))


@pytest.mark.parametrize(
    ("value", "dtype"), [(float("nan"), torch.float16), (float("-inf"), torch.float32), (1e300, torch.float64)]
)
def test_a_value_that_is_not_finite_in_float32(value, dtype):
    values = torch.zeros(3, 4, dtype=dtype)
    values[1, 2] = values[2, 0] = value
    with pytest.raises(InputError) as error:
        read_float32(stored(values))
    assert str(error.value) == (
        "f.bin: w: 2 values of 12 not finite, the first at (1, 2); "
        "the checkpoint is damaged or its training diverged: use another one"
    )


def test_integers_are_not_weights():
    with pytest.raises(InputError) as error:
        read_float32(stored(torch.zeros(2, dtype=torch.int8), "I8"))
    assert str(error.value) == ("f.bin: w: holds I8, not floating-point weights; export the unquantized checkpoint")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stored_bytes_are_those_of_the_tensors(tmp_path, dtype):
    checkpoint = open_checkpoint(str(write_llama(tmp_path, dtype=dtype)))
    assert stored_bytes(checkpoint) == sum(tensor.raw().numel() for tensor in checkpoint.tensors.values())


def test_shared_storage_counts_once(tmp_path):
    plain = open_checkpoint(str(write_llama(tmp_path / "a", form="bin")))
    shared = open_checkpoint(str(write_llama(tmp_path / "b", form="bin", duplicate_schedule=(0, 1, 0, 1), share_storage=True)))
    assert stored_bytes(shared) == stored_bytes(plain)


@pytest.mark.parametrize("weight_type", ["F32", "Q8_0", "Q4_1"])
def test_quantized_tensors_count_as_stored(tmp_path, weight_type):
    checkpoint = open_checkpoint(str(write_gguf(tmp_path / "a.gguf", weight_type=weight_type)))
    assert stored_bytes(checkpoint) == sum(tensor.raw().numel() for tensor in checkpoint.tensors.values())
