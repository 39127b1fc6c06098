"""A Hugging Face folder: config.json, the ids of bos and eos, the licence, and folders that are not what they seem."""

import json

import pytest
from tiny_checkpoints import refusal, write_llama, write_mobilellm

from mobile_export.checkpoint import open_checkpoint


@pytest.fixture
def folder(tmp_path):
    return write_llama(tmp_path / "model")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"{", "is not JSON (line 1: Expecting property name enclosed in double quotes)"),
        (b"[1]", "holds a JSON list, not an object"),
        (b'"llama"', "holds a JSON str, not an object"),
        (b'{"a": 1, "a": 2}', "is not usable JSON (key 'a' twice)"),
        (b'{"b": {"a": 1, "a": 1}}', "is not usable JSON (key 'a' twice)"),
        (b'{"a": NaN}', "is not usable JSON (NaN is not a JSON number)"),
        (b'{"a": -Infinity}', "is not usable JSON (-Infinity is not a JSON number)"),
        (b'{"a": 1e999}', "is not usable JSON (1e999 is too large)"),
        (b"[" * 100_000, "is not usable JSON (nested too deeply)"),
        (b"\xff{}", "is not UTF-8 text (byte 0)"),
    ],
)
def test_a_config_that_is_not_a_json_object(folder, content, line):
    (folder / "config.json").write_bytes(content)
    assert refusal(folder) == f"config.json: {line}; download it again"


@pytest.mark.parametrize("config", [{}, {"model_type": None}, {"model_type": 3}])
def test_a_config_without_model_type(folder, config):
    (folder / "config.json").write_text(json.dumps(config))
    assert refusal(folder) == "config.json: has no model_type; take config.json from the original model"


@pytest.mark.parametrize(
    ("extra", "method"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        ({"quantization_config": {"load_in_4bit": True}}, "unnamed"),
        ({"compression_config": {"quant_method": "sparseml"}}, "sparseml"),
    ],
)
def test_weights_quantized_by_another_tool_are_refused_by_name(tmp_path, extra, method):
    assert refusal(write_llama(tmp_path, config_extra=extra)) == (
        f"config.json: weights are already quantized ({method}); export the unquantized original instead"
    )


def test_custom_code_is_noted_and_never_imported(tmp_path):
    checkpoint = open_checkpoint(str(write_mobilellm(tmp_path)))  # its modules raise when they are imported
    assert checkpoint.warnings == (
        "config.json: auto_map names Python code (configuration_mobilellm.MobileLLMConfig, "
        "modeling_mobilellm.MobileLLMForCausalLM): never imported",
    )


def test_generation_config_decides_before_config_before_tokenizer(tmp_path):
    def ids(folder):
        checkpoint = open_checkpoint(str(folder))
        return checkpoint.bos_id, checkpoint.eos_ids

    folder = write_llama(tmp_path, config_extra={"bos_token_id": 11, "eos_token_id": [12, 13]})
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 21, "eos_token_id": [22, 23]}))
    assert ids(folder) == (21, (22, 23))
    (folder / "generation_config.json").write_text("{}")
    assert ids(folder) == (11, (12, 13))
    write_llama(tmp_path, config_extra={"bos_token_id": None, "eos_token_id": None})
    assert ids(folder) == (1, (2,))
    write_llama(tmp_path / "bare", config_extra={"bos_token_id": None, "eos_token_id": None}, tokenizer=None)
    assert ids(tmp_path / "bare") == (None, ())


@pytest.mark.parametrize("value", ["</s>", -1, True, [2, None], 2.0])
def test_an_eos_that_is_not_a_token_id(folder, value):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    assert refusal(folder) == f"generation_config.json: eos_token_id is {value!r}, not a token id; correct the file"


def test_every_file_that_decides_the_result_is_listed(tmp_path):
    folder = write_llama(tmp_path, form="sharded")
    (folder / "generation_config.json").write_text("{}")
    (folder / "LICENSE").write_text("MIT")
    assert [path.name for path in open_checkpoint(str(folder)).files] == [
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    ]


@pytest.mark.parametrize(
    ("files", "licence"),
    [
        ({"README.md": "---\ntags: [a]\nlicense: cc-by-nc-4.0  # why\n---\n# Model\nlicense: mit\n"}, "cc-by-nc-4.0"),
        ({"README.md": "---\nlicense: other\nlicense_name: fair-nc\n---\n"}, "fair-nc"),
        ({"README.md": '---\r\nlicense: "apache-2.0"\r\n---\r\n'}, "apache-2.0"),
        ({"README.md": "---\nlicense: mit\n---\n", "LICENSE": "GPL"}, "mit"),
        ({"README.md": "# Model\nlicense: mit\n", "LICENSE": "\n# FAIR Noncommercial\nv1\n"}, "FAIR Noncommercial"),
        ({"LICENSE.txt": ""}, "LICENSE.txt"),
        ({}, None),
    ],
)
def test_the_licence_comes_from_the_card_or_the_licence_file(folder, files, licence):
    for name, text in files.items():
        (folder / name).write_bytes(text.encode())
    assert open_checkpoint(str(folder)).licence == licence
