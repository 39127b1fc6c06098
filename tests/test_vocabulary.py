"""config.json, table, head and tokenizer that count the vocabulary differently: what is settled, what is refused."""

import json

import pytest
import torch
from test_families import edit_config
from tiny_checkpoints import BOS, bpe_vocabulary, llama_tensors, write_gguf, write_llama, write_weights
from tiny_families import write_family

from mobile_export.checkpoint import decode, encode, open_checkpoint
from mobile_export.cli import run
from mobile_export.errors import InputError
from mobile_export.families import recognise, settle

SOFT = "<image_soft_token>"


def settled(folder):
    checkpoint = settle(open_checkpoint(str(folder)))
    return checkpoint, recognise(checkpoint)


def refusal(folder):
    with pytest.raises(InputError) as error:
        settled(folder)
    assert error.value.exit_code == 3
    return str(error.value)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("said", "rows"), [(96, 97), (97, 96), (4000, 96)])
def test_the_tensors_count_where_table_and_head_agree(tmp_path, tied, said, rows):
    folder = edit_config(write_llama(tmp_path, vocab=96, tied=tied), vocab_size=said)
    write_weights(folder, llama_tensors(vocab=rows, tied=tied))
    checkpoint, found = settled(folder)
    assert found.spec.vocab_size == checkpoint.config["vocab_size"] == rows
    both = "the embedding has" if tied else "embedding and head have"
    assert checkpoint.warnings == (f"config.json: vocab_size is {said}, {both} {rows} rows: the tensors count",)


@pytest.mark.parametrize("name", ["gpt2-lamini", "opt-350m", "phi2", "bloom", "rwkv4", "pythia", "gemma3"])
def test_in_any_family(tmp_path, name):
    def grow(tensors):
        for key, tensor in tensors.items():
            if tensor.shape[0] == 96 and ("emb" in key or "wte" in key or "head" in key) and "layer" not in key:
                tensors[key] = torch.cat([tensor, tensor[:1]])

    checkpoint, found = settled(write_family(tmp_path, name, edit=grow))
    assert found.spec.vocab_size == 97
    assert [warning for warning in checkpoint.warnings if "the tensors count" in warning]


def test_in_a_gguf_file(tmp_path):
    path = write_gguf(tmp_path / "a.gguf", vocab=96, metadata_extra={"llama.rope.scaling.finetuned": False})
    path.write_bytes(
        path.read_bytes().replace(b"llama.vocab_size\x04\x00\x00\x00\x60", b"llama.vocab_size\x04\x00\x00\x00\x5f")
    )
    checkpoint, found = settled(path)
    assert found.spec.vocab_size == 96
    assert checkpoint.warnings[-1] == "config.json: vocab_size is 95, the embedding has 96 rows: the tensors count"


def test_a_right_checkpoint_comes_back_as_it_is(tmp_path):
    checkpoint = open_checkpoint(str(write_llama(tmp_path)))
    assert settle(checkpoint) == checkpoint


def test_table_and_head_of_different_rows(tmp_path):
    folder = write_llama(tmp_path, vocab=96, tied=False)
    tensors = llama_tensors(vocab=97, tied=False)
    write_weights(folder, {**tensors, "lm_head.weight": tensors["lm_head.weight"][:96].clone()})
    assert refusal(folder) == (
        "model.safetensors: lm_head.weight: has 96 rows, the embedding has 97; "
        "give both the rows of the tokenizer: model.resize_token_embeddings"
    )


def test_a_heads_bias_of_other_rows(tmp_path):
    folder = write_family(tmp_path, "phi2", edit=lambda tensors: tensors.update({"lm_head.bias": torch.zeros(95)}))
    assert refusal(folder).startswith("model.safetensors: lm_head.bias: has 95 rows, the embedding has 96; ")


def test_a_table_of_another_width_is_refused_as_ever(tmp_path):
    folder = write_llama(tmp_path, vocab=96)
    write_weights(folder, {**llama_tensors(), "model.embed_tokens.weight": torch.zeros(97, 32)})
    assert "model.embed_tokens.weight: shape is [97, 32], config.json implies [96, 64]; " in refusal(folder)


def test_an_end_of_text_beyond_the_table(tmp_path):
    folder = edit_config(write_llama(tmp_path, vocab=96), eos_token_id=96)
    write_weights(folder, llama_tensors(vocab=96))
    assert "special token id 96 is outside the embedding's 96 rows" in refusal(folder)


def test_a_grown_table_is_exported_and_verified(tmp_path):
    """The oracle builds transformers' model from the config: it must be the settled one."""
    folder = edit_config(write_llama(tmp_path / "model", vocab=96), vocab_size=90)
    assert run(["onnx", str(folder), "--recipe", "w8-fast", "--out", str(tmp_path / "out")]) == 0
    assert run(["verify", str(tmp_path / "out"), "--against", str(folder)]) == 0
    warning = "config.json: vocab_size is 90, the embedding has 96 rows: the tensors count"
    assert warning in json.loads((tmp_path / "out" / "manifest.json").read_text())["warnings"]


# --- added tokens --------------------------------------------------------------------------------------------------------


ROWS = len(bpe_vocabulary(96)[0])  # the tokenizer's own ids end where the table does


def with_added(folder, *texts, tokenizer=None, config=None):
    """A folder whose table has ROWS rows and whose tokenizer has more tokens, from id ROWS on."""
    edit_config(write_llama(folder, vocab=96), vocab_size=ROWS)
    write_weights(folder, llama_tensors(vocab=ROWS))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": ROWS + place, "content": text, **flags} for place, text in enumerate(texts)]
    for name, change in (
        ("tokenizer.json", lambda whole: whole["added_tokens"].extend(added) or whole.update(tokenizer or {})),
        ("tokenizer_config.json", lambda whole: whole.update(config or {})),
    ):
        whole = json.loads((folder / name).read_text())
        change(whole)
        (folder / name).write_text(json.dumps(whole))
    return folder


def test_gemmas_image_token_is_left_out(tmp_path):
    said = {
        "added_tokens_decoder": {"1": {"content": "<s>"}, str(ROWS): {"content": SOFT, "special": True}},
        "image_token": SOFT,
        "boi_token": "<s>",
        "extra_special_tokens": {"image_token": SOFT, "boi_token": "<s>"},
        "additional_special_tokens": [SOFT, "<s>", {"content": SOFT}],
    }
    folder = with_added(tmp_path, SOFT, config=said)
    before = open_checkpoint(str(folder)).tokenizer
    checkpoint, _ = settled(folder)
    after = checkpoint.tokenizer
    assert checkpoint.warnings == (f"tokenizer.json: {SOFT} (id {ROWS}) left out: the embedding has {ROWS} rows",)
    assert (before.vocab_size, after.vocab_size) == (ROWS + 1, ROWS)
    assert encode(before, f"the{SOFT}fox") != encode(after, f"the{SOFT}fox")
    assert max(encode(after, f"the{SOFT}fox")) < ROWS
    for text in ("the quick fox", "<s>the</s>"):
        assert encode(after, text) == encode(before, text)
        assert decode(after, encode(after, text)) == decode(before, encode(after, text))
    config = json.loads(after.files["tokenizer_config.json"])
    assert SOFT not in json.dumps(config)
    assert config["added_tokens_decoder"] == {"1": {"content": "<s>"}}
    assert (config["boi_token"], config["additional_special_tokens"]) == ("<s>", ["<s>"])
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert set(after.files) == set(before.files)


def test_transformers_appends_nothing_to_what_is_left(tmp_path):
    from transformers import AutoTokenizer

    said = {"added_tokens_decoder": {str(ROWS): {"content": SOFT, "special": True}}, "image_token": SOFT}
    checkpoint, _ = settled(with_added(tmp_path / "model", SOFT, config=said))
    (tmp_path / "out").mkdir()
    for name, content in checkpoint.tokenizer.files.items():
        (tmp_path / "out" / name).write_bytes(content)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "model")) == ROWS + 1
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == ROWS


def test_padding_with_a_token_that_is_left_out(tmp_path):
    padding = {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": ROWS,
               "pad_type_id": 0, "pad_token": "[PAD]"}  # fmt: skip
    folder = with_added(tmp_path, "[PAD]", *(f"<{i}>" for i in range(4)), tokenizer={"padding": padding})
    checkpoint, _ = settled(folder)
    assert json.loads(checkpoint.tokenizer.files["tokenizer.json"])["padding"] is None
    named = ", ".join(f"{text} (id {ROWS + place})" for place, text in enumerate(["[PAD]", "<0>", "<1>"]))
    assert checkpoint.warnings == (f"tokenizer.json: {named} and 2 more left out: the embedding has {ROWS} rows",)


AROUND = {
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": 'the "end"', "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {'the "end"': {"id": 'the "end"', "ids": [ROWS], "tokens": ['the "end"']}},
    }
}


@pytest.mark.parametrize(
    "needed",
    [
        {"config": {"eos_token": 'the "end"'}},
        {"config": {"bos_token": 'the "end"'}},
        {"config": {"chat_template": 'a {{ x }} the "end"'}},
        {"tokenizer": AROUND},
    ],
)
def test_a_token_the_prompt_needs_is_not_left_out(tmp_path, needed):
    folder = with_added(tmp_path, 'the "end"', **needed)
    assert refusal(folder) == (
        f"{folder}: the tokenizer gives ids up to {ROWS}, the embedding has {ROWS} rows; "
        "resize the embedding, or use the tokenizer it was trained with"
    )


def test_a_vocabulary_that_reaches_beyond_the_table_is_refused_whole(tmp_path):
    folder = with_added(tmp_path, SOFT)
    edit_config(folder, vocab_size=ROWS - 1)
    write_weights(folder, llama_tensors(vocab=ROWS - 1))
    assert f"the tokenizer gives ids up to {ROWS}, the embedding has {ROWS - 1} rows" in refusal(folder)


def test_a_token_the_library_numbers_anew_beyond_the_table(tmp_path):
    """The file says id 1 for a token its vocabulary lacks; the library appends it."""
    folder = with_added(tmp_path)
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["model"]["vocab"]["other"] = whole["model"]["vocab"].pop("<s>")
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    assert f"the tokenizer gives ids up to {ROWS}, the embedding has {ROWS} rows" in refusal(folder)


def test_a_sentencepiece_vocabulary_beyond_the_table(tmp_path):
    folder = edit_config(write_llama(tmp_path, vocab=96, tokenizer="sentencepiece"), vocab_size=BOS + 60)
    write_weights(folder, llama_tensors(vocab=BOS + 60))
    assert "the tokenizer gives ids up to 95, the embedding has 61 rows" in refusal(folder)
