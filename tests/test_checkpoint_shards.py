"""Which weight files are read, and an index that says what its shards do not hold."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import llama_tensors, refusal, write_llama

from mobile_export.checkpoint import open_checkpoint

INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def sharded(tmp_path):
    return write_llama(tmp_path, form="sharded")


def rewrite_index(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize("form", ["safetensors", "bin", "legacy-bin", "sharded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_form_gives_the_tensors_that_were_written(tmp_path, form, dtype):
    tensors = open_checkpoint(str(write_llama(tmp_path, form=form, dtype=dtype, seed=3))).tensors
    written = {name: tensor.to(dtype) for name, tensor in llama_tensors(seed=3).items()}
    assert set(tensors) == set(written)
    for name, tensor in written.items():
        assert tensors[name].name == name
        assert tensors[name].shape == tuple(tensor.shape)
        assert tensors[name].dtype == {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}[str(dtype)[6:]]
        assert tensors[name].where.endswith(f": {name}")
        assert torch.equal(tensors[name].read(), tensor)
        assert torch.equal(tensors[name].raw(), tensor.reshape(-1).view(torch.uint8))
    assert len({tensor.storage for tensor in tensors.values()}) == len(written)


def test_safetensors_are_preferred_to_a_pickle(tmp_path):
    write_llama(tmp_path, form="bin", seed=1)
    write_llama(tmp_path, form="safetensors", seed=2)
    read = open_checkpoint(str(tmp_path)).tensors["model.norm.weight"].read()
    assert torch.equal(read, llama_tensors(seed=2)["model.norm.weight"])


def test_a_folder_without_weights(tmp_path):
    (write_llama(tmp_path) / "model.safetensors").unlink()
    assert refusal(tmp_path) == (
        f"{tmp_path}: has no model.safetensors, model.safetensors.index.json, pytorch_model.bin, "
        "pytorch_model.bin.index.json or .pt file; put the weights beside config.json, under one of these names"
    )


def test_a_missing_shard_is_named(sharded):
    (sharded / SECOND).unlink()
    assert refusal(sharded) == f"{SECOND}: missing, and {INDEX} needs it; download the shard"


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/x.safetensors", "a/x.safetensors", "..\\x.bin", "..", ""])
def test_an_index_that_leads_out_of_the_folder(sharded, name):
    (sharded.parent / "x.safetensors").write_bytes((sharded / SECOND).read_bytes())
    rewrite_index(sharded, lambda weight_map: weight_map.update({"model.norm.weight": name}))
    assert refusal(sharded) == f"{INDEX}: names {name!r}, which is not a file of this folder; download it again"


def test_an_index_that_names_a_file_of_another_kind(sharded):
    rewrite_index(sharded, lambda weight_map: weight_map.update({"model.norm.weight": "config.json"}))
    assert refusal(sharded) == (f"{INDEX}: names 'config.json', which is neither .safetensors nor .bin; download it again")


def test_symlinks_that_the_folder_holds_are_followed_as_in_a_hub_cache(sharded, tmp_path_factory):
    blobs = tmp_path_factory.mktemp("blobs")
    for name in (FIRST, SECOND, "config.json"):
        (sharded / name).rename(blobs / name)
        (sharded / name).symlink_to(blobs / name)
    assert len(open_checkpoint(str(sharded)).tensors) == 20


def test_a_tensor_the_index_promises_and_the_shard_lacks(sharded):
    rewrite_index(sharded, lambda weight_map: weight_map.update({"lm_head.weight": FIRST}))
    assert refusal(sharded) == f"{FIRST}: lacks lm_head.weight, which {INDEX} says it holds; download it again"


def test_a_tensor_the_index_puts_into_the_wrong_shard(sharded):
    rewrite_index(sharded, lambda weight_map: weight_map.update({"model.norm.weight": FIRST}))
    assert refusal(sharded) == f"{FIRST}: lacks model.norm.weight, which {INDEX} says it holds; download it again"


def test_a_tensor_in_two_shards(sharded):
    both = load_file(sharded / SECOND)
    save_file(both | {"model.embed_tokens.weight": torch.zeros(96, 64)}, sharded / SECOND)
    assert refusal(sharded) == f"{SECOND}: model.embed_tokens.weight: is also in {FIRST}; download it again"


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {"a": 1}}])
def test_an_index_without_a_weight_map(sharded, index):
    (sharded / INDEX).write_text(json.dumps(index))
    assert refusal(sharded) == (f"{INDEX}: weight_map does not map tensor names to file names; download it again")
