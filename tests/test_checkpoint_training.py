"""A .pt or .pth file straight from a training script: where the model lies in it, and what wrappers put before its names."""

import pickle
import re
import zipfile
from pathlib import Path

import pytest
import torch
from test_checkpoint_torch import CONVERT, hostile_zip
from tiny_checkpoints import llama_tensors, refusal, write_llama

from mobile_export.checkpoint import open_checkpoint
from mobile_export.checkpoint.training_file import WRAPPED, common_prefix
from mobile_export.families import recognise
from mobile_export.sharing import plan_sharing


@pytest.fixture
def folder(tmp_path):
    """A folder with config.json and tokenizer, and no weights yet."""
    written = write_llama(tmp_path / "run")
    (written / "model.safetensors").unlink()
    return written


def renamed(prefix, **arguments):
    return {prefix + name: tensor for name, tensor in llama_tensors(**arguments).items()}


@pytest.mark.parametrize("name", ["step-1000.pt", "last.pth"])
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("key", [None, *WRAPPED])
def test_the_state_dict_is_found_alone_and_under_each_key(folder, name, legacy, key):
    state = llama_tensors(tied=False, seed=3)
    optimizer = {"state": {0: {"exp_avg": torch.ones(4)}}, "param_groups": [{"lr": 1e-3}]}
    contents = state if key is None else {"optimizer": optimizer, key: state, "epoch": 3, "loss": 0.5}
    torch.save(contents, folder / name, _use_new_zipfile_serialization=not legacy)
    for source in (folder, folder / name):
        checkpoint = open_checkpoint(str(source))
        assert checkpoint.source == str(source)
        assert checkpoint.files[1] == folder / name
        assert {n: (t.name, t.where) for n, t in checkpoint.tensors.items()} == {n: (n, f"{name}: {n}") for n in state}
        assert all(torch.equal(checkpoint.tensors[n].read(), state[n]) for n in state)
        assert len(checkpoint.warnings) == int(legacy)
        recognise(checkpoint)


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "_forward_module.model.", "_fsdp_wrapped_module.",
     "model."],
)  # fmt: skip
@pytest.mark.parametrize("tied", [True, False])
def test_what_wrappers_put_before_every_name_is_taken_off(folder, prefix, tied):
    torch.save({"state_dict": renamed(prefix, tied=tied)}, folder / "last.pt")
    checkpoint = open_checkpoint(str(folder))
    found = recognise(checkpoint)
    values = llama_tensors(tied=tied)
    for sources in found.weights.values():
        for name in sources.tensors:
            original = checkpoint.tensors[name].where.removeprefix(f"last.pt: {prefix}")
            assert torch.equal(checkpoint.tensors[name].read(), values[original])
    assert len(checkpoint.tensors) == len(values)


def test_a_prefix_that_one_tensor_lacks_stays(folder):
    state = renamed("module.")
    state["norm.weight"] = state.pop("module.model.norm.weight")
    torch.save(state, folder / "last.pt")
    assert set(open_checkpoint(str(folder)).tensors) == set(state)
    assert common_prefix([]) == common_prefix(["a", "module.a"]) == ""
    assert common_prefix(["module.model.a", "module.lm_head.a"]) == "module."


@pytest.mark.parametrize("legacy", [False, True])
def test_ties_and_shared_blocks_are_seen_by_their_storage(folder, legacy):
    state = renamed("_orig_mod.")
    state["_orig_mod.lm_head.weight"] = state["_orig_mod.model.embed_tokens.weight"]
    for name in list(state):
        if ".layers.1." in name:
            state[name] = state[name.replace(".layers.1.", ".layers.0.")]
    torch.save({"model": state}, folder / "last.pt", _use_new_zipfile_serialization=not legacy)
    checkpoint = open_checkpoint(str(folder))
    plan = plan_sharing(checkpoint, recognise(checkpoint))
    assert (plan.tied, plan.tied_evidence) == (True, "lm_head.weight same storage")
    assert (plan.schedule, plan.schedule_evidence) == ((0, 0), "repeated blocks: same storage")


def test_the_optimizers_storages_are_mapped_and_not_read(folder):
    """64 MiB of moments: the most memory that was ever resident does not grow by them."""

    def peak():
        return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

    torch.save({"model": llama_tensors(), "optimizer": {"exp_avg": torch.ones(2**24)}}, folder / "last.pt")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = peak()
    assert len(open_checkpoint(str(folder)).tensors) == 20
    assert peak() - before < 2**25


def test_weights_that_are_left_out_are_named(folder):
    state = llama_tensors()
    torch.save({"model": renamed("module."), "ema": state, "best": {"loss": torch.ones(1)}, "step": 1}, folder / "last.pt")
    assert open_checkpoint(str(folder)).warnings == (
        "last.pt: ema holds weights of the same names, which are not used: save model.state_dict() alone to export them",
    )


@pytest.mark.parametrize(
    ("contents", "line"),
    [
        (
            {"model": {"a": torch.ones(1)}, "state_dict": {"a": torch.ones(1)}},
            "last.pt: holds a state dict in model and in state_dict; save model.state_dict() alone",
        ),
        (
            {"weights": {"a": torch.ones(1)}, "epoch": 3},
            "last.pt: holds epoch, weights, and no state dict in model, state_dict, model_state_dict or module; "
            "save model.state_dict() alone",
        ),
        ({}, "last.pt: holds nothing, and no state dict in model, state_dict, model_state_dict or module; "
             "save model.state_dict() alone"),
        (
            {"model": {"a": torch.ones(1), "b": None}},
            "last.pt: b: is a NoneType, not a named tensor; save model.state_dict() alone",
        ),
        ([torch.ones(1)], "last.pt: holds a list, not named tensors; save model.state_dict()"),
        (
            {"a": torch.ones(1).expand(2**40)},
            "last.pt: a: shape (1099511627776,) repeats stored values; save it with .contiguous()",
        ),
    ],
)  # fmt: skip
def test_a_file_whose_model_cannot_be_told(folder, contents, line):
    torch.save(contents, folder / "last.pt")
    assert refusal(folder / "last.pt") == line


def test_several_files_and_none_named(folder):
    for name in ("b.pt", "a.pth", "c.pt"):
        torch.save(llama_tensors(), folder / name)
    assert refusal(folder) == f"{folder}: holds a.pth and b.pt and 1 more; name the file: {folder / 'a.pth'}"
    assert open_checkpoint(str(folder / "c.pt")).files[1] == folder / "c.pt"


def test_weights_under_huggingfaces_name_come_first_and_a_named_file_before_them(folder):
    write_llama(folder, seed=1, tied=False)
    torch.save(llama_tensors(seed=2, tied=False), folder / "other.pt")
    for source, seed in ((folder, 1), (folder / "other.pt", 2)):
        read = open_checkpoint(str(source)).tensors["lm_head.weight"].read()
        assert torch.equal(read, llama_tensors(seed=seed, tied=False)["lm_head.weight"])


def test_a_file_without_config(folder):
    (folder / "config.json").unlink()
    torch.save(llama_tensors(), folder / "last.pt")
    file = folder / "last.pt"
    assert refusal(file) == f"{file}: has no config.json beside it; put the model's config.json there"


def test_a_hostile_file_is_refused_and_not_run(folder, tmp_path):
    hostile_zip(folder / "last.pt", tmp_path / "was-run")
    assert refusal(folder).startswith("last.pt: refused: the pickle asks for posix.system, and a checkpoint is never allowed")
    assert not (tmp_path / "was-run").exists()


def test_a_whole_module_is_code_too(folder):
    torch.save(torch.nn.Linear(2, 2), folder / "last.pt")
    line = refusal(folder)
    assert line.startswith("last.pt: refused: the pickle asks for torch.nn.modules.linear.Linear")
    assert line.endswith(CONVERT)


def test_a_compressed_archive_is_refused_before_it_is_unpacked(folder):
    with zipfile.ZipFile(folder / "last.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": "x" * 10**8}))
    assert (folder / "last.pt").stat().st_size < 10**6
    assert refusal(folder) == f"last.pt: refused: a compressed archive, which torch.save never writes; {CONVERT}"


class Inflated:
    """Unpickled: as many zero bytes as it says, from a few bytes of pickle."""

    def __reduce__(self):
        return bytearray, (10**12,)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_asks_for_much_memory_is_refused_before_it_is_unpickled(folder, legacy):
    torch.save({"a": torch.zeros(2), "b": Inflated()}, folder / "last.pt", _use_new_zipfile_serialization=not legacy)
    assert refusal(folder) == f"last.pt: refused: the pickle asks for bytearray, which no state dict holds; {CONVERT}"


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "float32, nested"),
        (torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged), "float32, nested"),
        (torch.eye(3).to_sparse_csr(), "float32, sparse_csr"),
        (torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "qint8, strided"),
        (torch.ones(3, device="meta"), "float32, strided"),
        (torch.ones(3, dtype=torch.complex64).conj().imag, "float32, strided"),
    ],
)
def test_a_tensor_that_is_not_plain_values(folder, tensor, kind):
    torch.save({"a": tensor}, folder / "last.pt")
    assert refusal(folder) == (
        f"last.pt: a: is stored as {kind}, which is not supported; convert the checkpoint to BF16, F16 or F32"
    )


def test_a_nanogpt_shaped_file(folder):
    """Lists, numbers and settings beside the weights are no code."""
    torch.save(
        {"model": renamed("_orig_mod."), "optimizer": torch.optim.AdamW([torch.ones(2)]).state_dict(),
         "model_args": {"n_layer": 2}, "iter_num": 100, "best_val_loss": torch.tensor(1.0), "config": {"out_dir": "out"}},
        folder / "ckpt.pt",
    )  # fmt: skip
    assert len(recognise(open_checkpoint(str(folder))).weights) == 2 + 2 * 7


def test_a_training_file_goes_through_to_an_artifact_named_after_it(folder, tmp_path, monkeypatch):
    from mobile_export.cli import run

    torch.save({"model": renamed("module.")}, folder / "last.pt")
    monkeypatch.chdir(tmp_path)
    assert run(["onnx", str(folder / "last.pt"), "--recipe", "w8-fast"]) == 0
    assert (tmp_path / "last-w8-fast-onnx" / "model.onnx").is_file()
