"""Bad input end to end: one line on stderr, nothing on stdout, the exit code, and nothing written or run."""

import json
import pickle
import struct
import sys

import pytest
import torch
from safetensors.torch import save_file
from tiny_checkpoints import llama_tensors, write_gguf, write_llama, write_mobilellm, write_weights

from mobile_export.cli import run


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def fails(capsys):
    """Run a command that must fail: its exit code and the one line it said, without "error: "."""

    def ran(*arguments):
        code = run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: "), err
        assert err.endswith("\n")
        assert err.count("\n") == 1, err
        return code, err.removeprefix("error: ").removesuffix("\n")

    return ran


@pytest.fixture
def nobody_is_asked(monkeypatch):
    class Nobody:
        def __getattr__(self, name):
            raise AssertionError(f"asked on the terminal ({name})")

    monkeypatch.setattr(sys, "stdin", Nobody())


# --- damaged and hostile files -----------------------------------------------------------------------------------------


def write_index(folder, shard):
    """An index that leads out of the folder, to a file that is there and is good."""
    write_llama(folder, form="sharded")
    save_file(llama_tensors(), folder.parent / "outside.safetensors")
    index = folder / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    values["weight_map"] = dict.fromkeys(values["weight_map"], shard)
    index.write_text(json.dumps(values))
    return folder


def with_header(folder, change):
    write_llama(folder)
    path = folder / "model.safetensors"
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    return folder


def overlap(header):
    q, k = (f"model.layers.0.self_attn.{n}_proj.weight" for n in "kv")
    header[q]["data_offsets"] = header[k]["data_offsets"]


def truncated(folder):
    write_llama(folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return folder


def with_length(folder, length):
    write_llama(folder)
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    return folder


def without(folder, *lost, extra=()):
    tensors = {name: tensor for name, tensor in llama_tensors().items() if name not in lost}
    write_llama(folder)
    write_weights(folder, tensors | {name: torch.ones(3) for name in extra})
    return folder


def missing_shard(folder):
    write_llama(folder, form="sharded")
    (folder / "model-00002-of-00002.safetensors").unlink()
    return folder


DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("write", "line"),
    [
        (lambda f: write_index(f, "../outside.safetensors"),
         "model.safetensors.index.json: names '../outside.safetensors', which is not a file of this folder; "),
        (lambda f: write_index(f, str(f.parent / "outside.safetensors")), "model.safetensors.index.json: names '/"),
        (missing_shard, "model-00002-of-00002.safetensors: missing, and model.safetensors.index.json needs it; "),
        (truncated, "model.safetensors: tensors need "),
        (lambda f: with_length(f, 10**9), "model.safetensors: header of 1,000,000,000 bytes: "),
        (lambda f: with_length(f, 10**8), "model.safetensors: header needs 100,000,000 bytes, the file has "),
        (lambda f: with_header(f, overlap), "model.safetensors: model.layers.0.self_attn."),
        (lambda f: without(f, DOWN), "FOLDER: tensor model.layers.1.mlp.down_proj.weight is missing, "),
        (lambda f: without(f, extra=["model.layers.2.mlp.up_proj.weight"]),
         "FOLDER: family 'llama' has no place for model.layers.2.mlp.up_proj.weight; "),
        (lambda f: edit_config(write_llama(f), intermediate_size=127),
         "model.safetensors: model.layers.0.mlp.gate_proj.weight: shape is [128, 64], config.json implies [127, 64]; "),
        (lambda f: edit_config(write_llama(f), hidden_size=10**12, head_dim=16),
         "model.safetensors: model.embed_tokens.weight: shape is [96, 64], config.json implies [96, 1000000000000]; "),
        (lambda f: edit_config(write_llama(f), num_hidden_layers=3),
         "FOLDER: tensor model.layers.2.input_layernorm.weight is missing, "),
        (lambda f: edit_config(write_llama(f), model_type="lama"), "config.json: model_type 'lama' is not supported; "),
        (lambda f: edit_config(write_llama(f), quantization_config={"quant_method": "gptq"}),
         "config.json: weights are already quantized (gptq); "),
        (lambda f: edit_config(write_llama(f, tokenizer=None), eos_token_id=96), "FOLDER: special token id 96 is outside"),
    ],
)  # fmt: skip
def test_a_checkpoint_that_cannot_be_used(fails, tmp_path, write, line):
    folder = write(tmp_path / "model")
    code, said = fails("inspect", folder)
    assert said.startswith(line.replace("FOLDER", str(folder)))
    assert code == 3


def test_a_vocabulary_larger_than_the_embedding(fails, tmp_path):
    folder = write_llama(tmp_path / "model")
    edit_config(folder, vocab_size=48)
    write_weights(folder, llama_tensors(vocab=48))
    code, line = fails("inspect", folder)
    assert code == 3
    assert line.startswith(f"{folder}: the tokenizer gives ids up to ")
    assert ", the embedding has 48 rows; " in line


class Hostile:
    """Unpickling it runs a command."""

    def __init__(self, marker):
        self.command = f"touch {marker}"

    def __reduce__(self):
        import os

        return os.system, (self.command,)


@pytest.mark.parametrize("form", ["zip", "legacy", "raw"])
def test_a_hostile_pickle_is_never_executed(fails, tmp_path, form, nobody_is_asked):
    folder, marker = write_llama(tmp_path / "model"), tmp_path / "ran"
    (folder / "model.safetensors").unlink()
    hostile = {"model.embed_tokens.weight": Hostile(marker)}
    if form == "raw":
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(hostile))
    else:
        torch.save(hostile, folder / "pytorch_model.bin", _use_new_zipfile_serialization=form == "zip")
    code, line = fails("inspect", folder)
    assert code == 3
    assert line.startswith("pytorch_model.bin: refused: ")
    assert "safetensors" in line
    assert not marker.exists()
    with (folder / "pytorch_model.bin").open("rb") as file:  # that it would have run, were it let
        if form == "raw":
            pickle.load(file)
        else:
            torch.load(file, weights_only=False)
    assert marker.exists()


def test_code_in_the_folder_is_neither_imported_nor_asked_about(capsys, tmp_path, nobody_is_asked):
    folder, marker = write_mobilellm(tmp_path / "model", layer_sharing=True), tmp_path / "ran"
    for module in ("configuration_mobilellm", "modeling_mobilellm", "sitecustomize", "torch", "conftest"):
        (folder / f"{module}.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    assert run(["inspect", str(folder), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["sharing"]["schedule"] == [0, 0, 1, 1]
    assert err == (
        "warning: config.json: auto_map names Python code (configuration_mobilellm.MobileLLMConfig, "
        "modeling_mobilellm.MobileLLMForCausalLM): never imported\n"
    )
    assert not marker.exists()
    assert not any("mobilellm" in name and "mobile_export" not in name for name in sys.modules)


# --- what the command line asks for ------------------------------------------------------------------------------------


def recipe(folder, group_size):
    path = folder / "mine.toml"
    path.write_text(
        f'name = "mine"\ndescription = ""\nlinear = {{ bits = 4, group_size = {group_size} }}\n'
        "embedding = { bits = 8 }\nhead = { bits = 8 }\n"
    )
    return path


@pytest.mark.parametrize("verb", ["inspect", "pte"])
def test_a_group_size_that_does_not_divide(fails, tmp_path, verb):
    folder = write_llama(tmp_path / "model")
    out = () if verb == "inspect" else ("--out", tmp_path / "out")
    assert fails(verb, folder, "--recipe", recipe(tmp_path, 128), *out) == (
        3,
        "model.safetensors: model.layers.0.self_attn.q_proj.weight: 64 inputs do not divide into groups of 128; "
        "use group_size 64",
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["inspect", "pte"])
@pytest.mark.parametrize(
    ("option", "value", "code", "line"),
    [
        ("--recipe", "w44", 2, "--recipe w44: no such recipe or file; did you mean 'w4'? recipes: "),
        ("--schedule", "sideways", 2, "--schedule sideways: neither an order nor block numbers; write one of none, "),
        ("--schedule", "0,2", 2, "--schedule 0,2: block 2 does not exist; the checkpoint stores blocks 0 to 1"),
        ("--schedule", "0,0", 2, "--schedule 0,0: block 1 never runs; name every stored block at least once"),
    ],
)
def test_an_option_of_both_verbs_that_cannot_be(fails, tmp_path, monkeypatch, verb, option, value, code, line):
    monkeypatch.chdir(tmp_path)
    folder = write_llama(tmp_path / "model")
    said = fails(verb, folder, f"{option}={value}")
    assert said[0] == code
    assert said[1].startswith(line)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("options", "code", "line"),
    [
        (["--attention", "flash"], 2, "--attention flash: no such attention; write custom or core"),
        (["--kv", "int4"], 2, "--kv int4: no such cache; write float32 or int8"),
        (["--max-context", "257"], 3, "--max-context: 257 positions, the model was trained for 256; use at most 256"),
        (["--max-context", "1"], 2, "mobile-export pte: Invalid value for '--max-context': "),
        (["--max-prompt", "0"], 2, "mobile-export pte: Invalid value for '--max-prompt': "),
        (["--max-context", "many"], 2, "mobile-export pte: Invalid value for '--max-context': "),
        (["--zzz"], 2, "mobile-export pte: No such option: --zzz"),
    ],
)
def test_an_option_of_pte_that_cannot_be(fails, tmp_path, options, code, line):
    said = fails("pte", write_llama(tmp_path / "model", max_positions=256), "--out", tmp_path / "out", *options)
    assert said[0] == code
    assert said[1].startswith(line)
    assert not (tmp_path / "out").exists()


def test_what_out_names_is_looked_at_before_the_long_work(fails, tmp_path):
    (tmp_path / "out").write_text("mine")
    code, line = fails("pte", tmp_path / "no checkpoint", "--out", tmp_path / "out")
    assert (code, line) == (2, f"--out {tmp_path / 'out'}: is a file; name a folder")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["inspect"], "mobile-export inspect: Missing argument 'CHECKPOINT|ARTIFACT'"),
        (["pte"], "mobile-export pte: Missing argument 'CHECKPOINT'"),
        (["export", "x"], "mobile-export: No such command 'export'"),
        (["inspect", "a", "b"], "mobile-export inspect: Got unexpected extra argument"),
        (["verify", "out"], "mobile-export verify: Missing option '--against'"),
    ],
)
def test_a_command_line_that_is_not_one(fails, arguments, line):
    code, said = fails(*arguments)
    assert code == 2
    assert said.startswith(line)
    assert said.endswith(" --help")


def test_no_command_at_all_prints_the_help(capsys):
    assert run([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Usage: mobile-export ")
    assert "pte" in err


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "interrupted; nothing was written"),
        (ValueError("first\nsecond"), 70,
         "bug: ValueError: first; please report it, with the output of the same command and --debug"),
        (ValueError(), 70, "bug: ValueError: ; please report it, with the output of the same command and --debug"),
    ],
)  # fmt: skip
def test_what_nobody_explained(fails, monkeypatch, raised, code, line):
    def raises(*_):
        raise raised

    monkeypatch.setattr("mobile_export.cli.steps.prepare", raises)
    assert fails("inspect", "model") == (code, line)


def test_debug_shows_where_an_error_came_from(capsys, tmp_path):
    assert run(["inspect", str(tmp_path / "nowhere")], debug=True) == 3
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1].startswith(f"error: {tmp_path / 'nowhere'}: no such file or folder; ")


def test_a_checkpoint_there_is_not(fails, tmp_path):
    code, line = fails("inspect", tmp_path / "nowhere")
    assert code == 3
    assert line.startswith(f"{tmp_path / 'nowhere'}: no such file or folder; ")


def test_a_folder_without_a_config(fails, tmp_path):
    code, line = fails("inspect", tmp_path)
    assert code == 3
    assert line.startswith(f"{tmp_path}: has no config.json; ")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\0\0\0" + b"\xff" * 16])
def test_a_damaged_gguf(fails, tmp_path, content):
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    code, line = fails("inspect", path)
    assert code == 3
    assert line.startswith("m.gguf: ")


def test_a_truncated_gguf(fails, tmp_path):
    path = write_gguf(tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes()[:-1000])
    code, line = fails("inspect", path)
    assert code == 3
    assert line.startswith("m.gguf: ")


@pytest.mark.parametrize("settings", [{"rope_scaling": "linear"}, {"rope_scaling": {"rope_type": "yarn"}}], ids=str)
def test_nothing_in_a_config_is_a_bug_of_ours(fails, tmp_path, settings):
    code, line = fails("inspect", edit_config(write_llama(tmp_path / "model"), **settings))
    assert code == 3
    assert line.startswith("config.json: ")


# --- numbers that are not ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["model.layers.0.self_attn.k_proj.weight", "model.layers.0.input_layernorm.weight"])
def test_a_weight_that_is_not_finite_ends_the_export_before_anything_is_lowered(fails, tmp_path, monkeypatch, name, value):
    from mobile_export.emit.executorch import delegates

    def lowered(*_):
        raise AssertionError("lowering, which takes half a minute, began before the weight was read")

    monkeypatch.setattr(delegates, "_template", lowered)
    tensors = llama_tensors()
    tensors[name].view(-1)[7] = value
    folder = write_llama(tmp_path / "model")
    write_weights(folder, tensors)
    code, line = fails("pte", folder, "--recipe", "w4-fast", "--out", tmp_path / "out")
    assert line.startswith(f"model.safetensors: {name}: 1 value of ")
    assert " not finite, the first at (" in line
    assert code == 3
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight", "model.embed_tokens.weight"])
def test_a_weight_further_on_that_is_not_finite(fails, tmp_path, monkeypatch, name):
    """However late it is read, nothing is written. The lowering before it is left out: it takes seconds."""
    from mobile_export.emit.executorch import delegates

    monkeypatch.setattr(delegates, "_template", lambda *_: None)
    monkeypatch.setattr(delegates, "instantiate", lambda *_: torch.nn.Identity())
    tensors = llama_tensors()
    tensors[name].view(-1)[0] = float("nan")
    folder = write_llama(tmp_path / "model")
    write_weights(folder, tensors)
    code, line = fails("pte", folder, "--recipe", "w4-fast", "--out", tmp_path / "out")
    assert line.startswith(f"model.safetensors: {name}: 1 value of ")
    assert code == 3
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
