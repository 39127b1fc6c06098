"""Whatever is done to a checkpoint's files, it gives a valid result or one line with exit code 3, in little memory and time.

Each file is damaged byte by byte; JSON is also damaged as JSON, and a pickle inside its archive, since most other damage
ends at the first brace or the archive's checksum. A result is used as an export uses it, down to float32 weights.
"""

from __future__ import annotations

import copy
import io
import json
import re
import resource
import time
import zipfile
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_checkpoint_vocab_merges import QWEN, learned
from tiny_checkpoints import llama_tensors, write_gguf, write_llama
from tiny_families import FAMILIES, write_family

from mobile_export.checkpoint import decode, encode, open_checkpoint, with_tokenizer_json
from mobile_export.errors import InputError
from mobile_export.families import recognise, settle
from mobile_export.quantize.recipe import read_recipe
from mobile_export.quantize.weights import ModelWeights
from mobile_export.sharing import plan_sharing

EXAMPLES = 100
MOST_BYTES = 64 * 2**20  # the tiny checkpoints have less than one
MOST_SECONDS = 5  # a damaged file takes milliseconds; the rest is for a machine that does other things
LONGEST_LINE = 1000

# --- damage --------------------------------------------------------------------------------------------------------------

NUMBERS = (0, 1, 127, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
VALUES = (
    None, True, 0, -1, 1, 2, 10**18, 2**64, -(2**63), 1e308, 5e-324, 1.5, "", "x", "\0", "../x", "9" * 5000, "half \ud800",
    [], [[]], [None], ["a"], [1] * 50, {}, {"a": 1}, {"0": "a"}, {"content": "x"}, {"content": ["x"]},
    {"rope_type": "linear", "factor": 1e-300},
)  # fmt: skip
PLACE = st.floats(0, 1, exclude_max=True)
EDIT = st.one_of(
    st.tuples(st.just("over"), PLACE, st.binary(min_size=1, max_size=8)),
    st.tuples(st.just("over"), PLACE, st.sampled_from(NUMBERS).map(lambda number: number.to_bytes(8, "little"))),
    st.tuples(st.just("into"), PLACE, st.binary(min_size=1, max_size=8)),
    st.tuples(st.just("out"), PLACE, st.integers(1, 200)),
    st.tuples(st.just("from"), PLACE, PLACE),
    st.tuples(st.just("cut"), PLACE, st.none()),
)
EDITS = st.lists(EDIT, min_size=1, max_size=3)
CHANGE = st.tuples(
    st.lists(PLACE, min_size=1, max_size=6), st.sampled_from(("set", "copy", "drop", "add")), st.sampled_from(VALUES)
)
CHANGES = st.lists(CHANGE, min_size=1, max_size=3)


def damaged_bytes(content, edits, begin=1.0):
    """Edits of a file, most of them in its first `begin` (a share of it), where its header is."""
    for kind, place, with_what in edits:
        at = int(place * len(content) * begin)
        if kind == "over":
            content = content[:at] + with_what + content[at + len(with_what) :]
        elif kind == "into":
            content = content[:at] + with_what + content[at:]
        elif kind == "out":
            content = content[:at] + content[at + with_what :]
        elif kind == "from":
            other = int(with_what * len(content))
            content = content[:at] + content[other : other + 16] + content[at + 16 :]
        else:
            content = content[:at]
    return content


def damaged_json(content, changes):
    """Values set, taken out, added, and put where another one was."""
    whole = {"": json.loads(content)}
    for path, kind, value in changes:
        parent, key = whole, ""
        for step in path:
            inner = parent[key]
            if not isinstance(inner, (dict, list)) or not inner:
                break
            parent = inner
            key = list(parent)[int(step * len(parent))] if isinstance(parent, dict) else int(step * len(parent))
        if kind == "drop" and parent is not whole:
            del parent[key]
        elif kind == "add" and isinstance(parent, dict) and parent is not whole:
            parent["added"] = copy.deepcopy(value)
        elif kind == "copy":
            parent[key] = copy.deepcopy(next(iter(parent.values())) if isinstance(parent, dict) else parent[0])
        else:
            parent[key] = copy.deepcopy(value)
        if "" not in whole:
            break
    return json.dumps(whole[""]).encode()


def damaged_pickle(content, edits):
    """A .pt file whose archive is good and whose pickle is not."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as good, zipfile.ZipFile(out, "w") as bad:
        for entry in good.infolist():
            inner = good.read(entry)
            bad.writestr(entry.filename, damaged_bytes(inner, edits) if entry.filename.endswith("data.pkl") else inner)
    return out.getvalue()


# --- what is damaged, and what must hold ---------------------------------------------------------------------------------


def used(source):
    """The checkpoint as an export uses it."""
    checkpoint = settle(open_checkpoint(str(source)))
    recognised = recognise(checkpoint)
    weights = ModelWeights(checkpoint, recognised, plan_sharing(checkpoint, recognised), read_recipe("w8-fast"))
    for name in weights.stored():
        assert weights.float32(name).shape == weights.shape(name)
    if checkpoint.tokenizer:
        for text in ("the quick fox 12é", "<s>\n", ""):
            ids = encode(checkpoint.tokenizer, text)
            assert all(0 <= index < recognised.spec.vocab_size for index in ids)
            decode(checkpoint.tokenizer, ids)
        with_tokenizer_json(checkpoint.tokenizer)


def peak_bytes():
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def check(source, path, content):
    """Use `source` with `content` in the place of `path`, and put back what was there."""
    original = path.read_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, started = peak_bytes(), time.perf_counter()
    path.write_bytes(content)
    refused = None
    try:
        used(source)
    except InputError as error:
        refused = error
    finally:
        path.write_bytes(original)
    if refused:
        assert refused.exit_code == 3
        assert "\n" not in str(refused)
        assert len(str(refused)) <= LONGEST_LINE
    assert time.perf_counter() - started < MOST_SECONDS
    assert peak_bytes() - before < MOST_BYTES


@pytest.fixture(scope="module", autouse=True)
def little_room():
    """An allocation of gigabytes fails, even one that is never touched: a MemoryError is no InputError."""
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    data = int(re.search(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (data + 2**30, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, limits)


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def write_training_file(folder, legacy):
    """A small one, so that the pickle is most of it."""
    sizes = {"hidden": 16, "heads": 2, "kv_heads": 1, "ffn": 16, "blocks": 1}
    write_llama(folder, **sizes, form="bin")
    (folder / "pytorch_model.bin").unlink()
    tensors = {f"module.{name}": tensor for name, tensor in llama_tensors(**sizes).items()}
    contents = {"model": tensors, "epoch": 1, "args": {"lr": [1e-3, "x"]}}
    torch.save(contents, folder / "last.pt", _use_new_zipfile_serialization=not legacy)
    return folder, folder / "last.pt"


def write_vocabulary(folder, name):
    write_llama(folder, vocab=512, tokenizer=None)
    vocabulary, merges = learned()
    qwen = name == "tokenizer_config.json"
    for file, text in (
        ("vocab.json", json.dumps(vocabulary)),
        ("merges.txt", "#version: 0.2\n" + "\n".join(merges)),
        ("added_tokens.json", "{}" if qwen else '{"[PAD]": 400}'),
        ("tokenizer_config.json", json.dumps(QWEN if qwen else {"tokenizer_class": "GPT2Tokenizer"})),
    ):
        (folder / file).write_text(text)
    return folder, folder / name


def write_settings(folder, name, **arguments):
    write_llama(folder, tokenizer="sentencepiece" if name == "tokenizer.model" else "json", **arguments)
    (folder / "generation_config.json").write_text('{"bos_token_id": 1, "eos_token_id": [2, 3]}')
    if name == "tokenizer_config.json":
        said = json.loads((folder / name).read_text())
        said |= {"chat_template": [{"name": "default", "template": "x"}], "additional_special_tokens": ["<s>"]}
        (folder / name).write_text(json.dumps(said))
    return folder, folder / name


def write_gguf_file(folder, **arguments):
    folder.mkdir(parents=True)
    path = write_gguf(folder / "a.gguf", **arguments)
    return path, path


BINARY = {
    # name -> what writes it, and the share of the file where its header is
    "model.safetensors": (lambda folder: write_settings(folder, "model.safetensors", tied=False), 0.01),
    "gguf": (lambda folder: write_gguf_file(folder, weight_type="Q8_0", rope_scaling={"type": "linear", "factor": 2.0}), 0.05),
    "gguf of sentencepiece": (lambda folder: write_gguf_file(folder, tokenizer="llama", vocab=400), 0.05),
    "gguf with rope factors": (lambda folder: write_gguf_file(folder, rope_factors=[1.0] * 8, tokenizer=None), 0.01),
    "last.pt": (lambda folder: write_training_file(folder, False), 1.0),
    "last.pt of the old form": (lambda folder: write_training_file(folder, True), 0.2),
    "tokenizer.model": (lambda folder: write_settings(folder, "tokenizer.model"), 1.0),
    "merges.txt": (lambda folder: write_vocabulary(folder, "merges.txt"), 1.0),
    "config.json": (lambda folder: write_settings(folder, "config.json"), 1.0),
    "tokenizer.json": (lambda folder: write_settings(folder, "tokenizer.json"), 1.0),
}
IN_JSON = {
    "model.safetensors.index.json": lambda folder: write_settings(folder, "model.safetensors.index.json", form="sharded"),
    **{
        name: lambda folder, name=name: write_settings(folder, name)
        for name in (
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
        )
    },
    **{
        f"{name} of a vocabulary": lambda folder, name=name: write_vocabulary(folder, name)
        for name in ("vocab.json", "added_tokens.json", "tokenizer_config.json")
    },
}

FAMILY_WRITERS = {
    name: lambda folder, name=name: (write_family(folder, name, old=True), folder / "config.json") for name in FAMILIES
}


@cache
def written(room, name, write):
    source, path = write(room / re.sub(r"\W", "-", name) / "model")
    used(source)  # undamaged
    return source, path, path.read_bytes()


@pytest.mark.parametrize("name", BINARY)
def test_bytes_damaged_anywhere(room, name):
    write, begin = BINARY[name]
    source, path, content = written(room, name, write)

    @settings(max_examples=EXAMPLES)
    @given(EDITS, st.sampled_from((begin, begin, 1.0)))
    def damage(edits, share):
        check(source, path, damaged_bytes(content, edits, share))

    damage()


@pytest.mark.parametrize("name", IN_JSON)
def test_values_of_json_damaged(room, name):
    source, path, content = written(room, f"json {name}", IN_JSON[name])

    @settings(max_examples=EXAMPLES)
    @given(CHANGES)
    def damage(changes):
        check(source, path, damaged_json(content, changes))

    damage()


def test_a_pickle_damaged_within_its_archive(room):
    source, path, content = written(room, "pickle", lambda folder: write_training_file(folder, False))

    @settings(max_examples=2 * EXAMPLES)
    @given(EDITS)
    def damage(edits):
        check(source, path, damaged_pickle(content, edits))

    damage()


@settings(max_examples=3 * EXAMPLES)
@given(st.sampled_from(sorted({tiny.model_type: name for name, tiny in FAMILIES.items()}.values())), CHANGES)
def test_the_config_of_any_family_damaged(room, name, changes):
    source, path, content = written(room, name, FAMILY_WRITERS[name])
    check(source, path, damaged_json(content, changes))


# --- what it found -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("tokenizer_config.json", {"chat_template": [{"name": ["default"], "template": "x"}]}),
        ("tokenizer_config.json", {"bos_token": "half \ud800"}),
        ("config.json", {"hidden_size": "9" * 5000}),
        ("config.json", {"x" * 5000: 1, "rope_scaling": {"rope_type": "x" * 5000}}),
    ],
)
def test_what_it_found_in_json(room, name, change):
    source, path, content = written(room, f"json {name}", IN_JSON[name])
    check(source, path, json.dumps({**json.loads(content), **change}).encode())


def test_a_piece_that_is_not_utf8_is_named(room):
    write, _ = BINARY["tokenizer.model"]
    source, path, content = written(room, "tokenizer.model", write)
    check(source, path, content.replace("▁quick".encode(), b"\xff\xff\xff" + b"quick", 1))


@pytest.mark.parametrize("content", [b"X\x00\x00\x00>", b"X\xff\xff\xff\xff", b"\x80\x02X\xff\xff\xff\x7f"])
def test_a_text_of_gigabytes_in_a_pickle_is_not_made_room_for(room, content):
    source, path, original = written(room, "last.pt of the old form", BINARY["last.pt of the old form"][0])
    check(source, path, content + original[len(content) :])


def test_half_a_character_is_refused(room):
    source, path, content = written(room, "json config.json", IN_JSON["config.json"])
    for spelled, fits in ((r"\ud83d\ude00", True), (r"\ud83d", False), (r"\\ud83d", True)):
        path.write_text(content.decode().replace('"llama"', f'"llama", "note": "{spelled}"', 1))
        if fits:
            used(source)
        else:
            with pytest.raises(InputError) as error:
                used(source)
            assert str(error.value) == (
                "config.json: is not usable JSON (half a surrogate pair in a string); download it again"
            )
    path.write_bytes(content)
