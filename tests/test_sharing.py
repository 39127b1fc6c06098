"""SharingPlan: every order from every kind of evidence, the config's flags, --schedule, and whether the head is tied."""

import json
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_checkpoints import in_schedule, llama_tensors, write_gguf, write_llama, write_mobilellm, write_weights

from mobile_export.checkpoint import open_checkpoint
from mobile_export.errors import UsageError
from mobile_export.families import recognise
from mobile_export.sharing import ORDERS, SharingPlan, name_order, order_blocks, parse_schedule, plan_sharing

MATRICES = 7  # of a llama's block: q, k, v, o, gate, up, down


def plan(path, schedule=None):
    checkpoint = open_checkpoint(str(path))
    return plan_sharing(checkpoint, recognise(checkpoint), schedule)


def edit_config(folder, **changes):
    """None takes a key out."""
    config = json.loads((folder / "config.json").read_text()) | changes
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def by_first_appearance(order):
    """The same sharing, its blocks numbered as they first run."""
    numbers = {}
    return tuple(numbers.setdefault(block, len(numbers)) for block in order)


def write_saved_by_safetensors(folder, tensors, blocks):
    """The file safetensors' own `save_model` writes of a module that runs blocks twice."""
    from safetensors.torch import save_model

    write_llama(folder, config_extra={"num_hidden_layers": blocks})
    save_model(SimpleNamespace(state_dict=lambda: dict(tensors)), str(folder / "model.safetensors"))
    return folder


# --- every order, from every kind of evidence ------------------------------------------------------------------------

SCHEDULES = {
    (0, 0, 1, 1): "immediate",
    (0, 0, 0, 1, 1, 1): "immediate",
    (0, 0): "immediate",
    (0, 0, 0): "immediate",
    (0, 1, 0, 1): "repeat-all-over",
    (0, 1, 0, 1, 0, 1): "repeat-all-over",
    (0, 1, 1, 0): "reverse",
    (0, 1, 1, 0, 0, 1): "reverse",
    (0, 1, 2, 2, 1, 0): "reverse",
    (0, 1, 0): "arbitrary",
    (0, 0, 1): "arbitrary",
    (0, 1, 2, 0, 2): "arbitrary",
    (0, 1, 2): "none",
    (0,): "none",
}


def first_places(schedule):
    return tuple(schedule.index(block) for block in range(max(schedule) + 1))


@pytest.mark.parametrize(("schedule", "order"), SCHEDULES.items())
@pytest.mark.parametrize(
    ("written", "evidence"),
    [("shared .bin", "same storage"), ("cloned safetensors", "equal values"), ("cloned .bin", "equal values"),
     ("sharded", "equal values"), ("save_model", "named in the safetensors metadata")],
)  # fmt: skip
def test_an_order_is_found_however_it_was_written(tmp_path, schedule, order, written, evidence):
    blocks = max(schedule) + 1
    if written == "save_model":
        tensors = in_schedule(llama_tensors(blocks=blocks), schedule, share_storage=True)
        write_saved_by_safetensors(tmp_path, tensors, len(schedule))
    else:
        form = {"shared .bin": "bin", "cloned .bin": "bin", "sharded": "sharded"}.get(written, "safetensors")
        shared = written == "shared .bin"
        write_llama(tmp_path, blocks=blocks, duplicate_schedule=schedule, form=form, share_storage=shared)
    assert plan(tmp_path) == SharingPlan(
        blocks=first_places(schedule),
        schedule=schedule,
        order=order,
        tied=True,
        tied_evidence="no head tensor in the file",
        schedule_evidence="all blocks differ" if order == "none" else f"repeated blocks: {evidence}",
        warnings=(),
    )


def test_old_pickles_share_storage_too(tmp_path):
    write_llama(tmp_path, duplicate_schedule=(0, 1, 1, 0), form="legacy-bin", share_storage=True)
    found = plan(tmp_path)
    assert (found.order, found.schedule_evidence) == ("reverse", "repeated blocks: same storage")


def test_blocks_of_a_gguf_are_compared_as_they_are_stored(tmp_path):
    """As Q4_0: nothing is dequantized to see that all three differ."""
    found = plan(write_gguf(tmp_path / "m.gguf", blocks=3, weight_type="Q4_0"))
    assert (found.order, found.schedule_evidence, found.warnings) == ("none", "all blocks differ", ())


def test_both_kinds_of_evidence_are_named(tmp_path):
    tensors = in_schedule(llama_tensors(), (0, 0, 1, 1), share_storage=True)
    tensors["model.layers.3.mlp.up_proj.weight"] = tensors["model.layers.3.mlp.up_proj.weight"].clone()
    write_llama(tmp_path, duplicate_schedule=(0, 0, 1, 1))
    (tmp_path / "model.safetensors").unlink()
    write_weights(tmp_path, tensors, "bin")
    assert plan(tmp_path).schedule_evidence == "repeated blocks: equal values, same storage"


@pytest.mark.parametrize("at", [0, 1, -1])
@pytest.mark.parametrize("name", ["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"])
def test_one_element_changed_is_not_a_shared_block(tmp_path, name, at):
    """Wherever it lies: the sample of bytes that is compared first does not see most of them."""
    tensors = in_schedule(llama_tensors(), (0, 0, 1, 1), share_storage=False)
    tensors[f"model.layers.1.{name}.weight"].view(-1)[at] += 1e-6
    write_llama(tmp_path, duplicate_schedule=(0, 0, 1, 1))
    write_weights(tmp_path, tensors)
    found = plan(tmp_path)
    assert (found.blocks, found.schedule, found.order) == ((0, 1, 2), (0, 1, 2, 2), "arbitrary")
    assert found.warnings == (
        f"blocks 0 and 1 share {MATRICES - 1} of {MATRICES} matrices: not one block, so each is stored whole",
    )


def test_a_norm_of_its_own_is_not_a_shared_block(tmp_path):
    tensors = in_schedule(llama_tensors(), (0, 0), share_storage=False)
    tensors["model.layers.1.input_layernorm.weight"][5] += 1e-6
    write_llama(tmp_path, duplicate_schedule=(0, 0), blocks=1)
    write_weights(tmp_path, tensors)
    found = plan(tmp_path)
    assert found.schedule == (0, 1)
    assert found.warnings == ("blocks 0 and 1 share 7 of 7 matrices: not one block, so each is stored whole",)


def test_sharing_of_some_matrices_in_several_blocks_is_one_warning(tmp_path):
    tensors = llama_tensors(blocks=3)
    for block in (1, 2):
        for name in ("gate", "up", "down"):
            target, source = (f"model.layers.{i}.mlp.{name}_proj.weight" for i in (block, 0))
            tensors[target] = tensors[source].clone()
    write_llama(tmp_path, blocks=3)
    write_weights(tmp_path, tensors)
    found = plan(tmp_path)
    assert found.schedule == (0, 1, 2)
    assert found.warnings == (
        "blocks 0 and 1 share 3 of 7 matrices (and 2 more pairs): not one block, so each is stored whole",
    )


def test_fresh_norms_of_ones_alone_are_no_sharing(tmp_path):
    tensors = {n: torch.ones_like(t) if t.dim() == 1 else t for n, t in llama_tensors(blocks=3).items()}
    write_llama(tmp_path, blocks=3)
    write_weights(tmp_path, tensors)
    found = plan(tmp_path)
    assert (found.order, found.schedule_evidence, found.warnings) == ("none", "all blocks differ", ())


def test_equal_bytes_of_another_type_are_not_equal_values(tmp_path):
    """A float16 matrix and a bfloat16 one of the same bits hold different numbers."""
    tensors = {name: tensor.half() for name, tensor in in_schedule(llama_tensors(), (0, 0), share_storage=False).items()}
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].view(torch.bfloat16)
    write_llama(tmp_path, duplicate_schedule=(0, 0), blocks=1)
    write_weights(tmp_path, tensors)
    assert plan(tmp_path).schedule == (0, 1)


# --- the config's flag -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["bin", "safetensors"])
@pytest.mark.parametrize("dialect", ["hub", "github"])
def test_layer_sharing_runs_each_stored_block_twice_in_a_row(tmp_path, form, dialect):
    write_mobilellm(tmp_path, blocks=3, layer_sharing=True, form=form, dialect=dialect)
    edit_config(tmp_path, layer_sharing=True, share_embedding=True)
    assert plan(tmp_path) == SharingPlan(
        blocks=(0, 1, 2),
        schedule=(0, 0, 1, 1, 2, 2),
        order="immediate",
        tied=True,
        tied_evidence="no head tensor in the file",
        schedule_evidence="layer_sharing: true",
        warnings=(),
    )


@pytest.mark.parametrize(
    ("schedule", "order"),
    [((0, 0, 1, 1), "immediate"), ((0, 1, 0, 1), "repeat-all-over"), ((0, 1, 1, 0), "reverse"), ((0, 1, 0), "arbitrary")],
)
def test_flag_and_repeated_blocks_together_go_by_the_file(tmp_path, schedule, order):
    """Obeying both would run each block four times."""
    write_mobilellm(tmp_path, layer_sharing=True, duplicate_schedule=schedule, share_storage=True)
    found = plan(tmp_path)
    assert (found.blocks, found.schedule) == (first_places(schedule), schedule)
    assert found.schedule_evidence == "repeated blocks: same storage"
    assert found.warnings == (
        f"layer_sharing: true, and the file repeats blocks itself ({order}): "
        "the file's order is used; obeying both would run each block four times",
    )


# --- --schedule ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "schedule", "order"),
    [
        ("none", (0, 1), "none"),
        ("immediate", (0, 0, 1, 1), "immediate"),
        ("repeat-all-over", (0, 1, 0, 1), "repeat-all-over"),
        ("reverse", (0, 1, 1, 0), "reverse"),
        ("0,1,1", (0, 1, 1), "arbitrary"),
        ("1,0", (1, 0), "arbitrary"),
        ("0,0,0,1,1,1", (0, 0, 0, 1, 1, 1), "immediate"),
    ],
)
def test_a_schedule_on_the_command_line(tmp_path, asked, schedule, order):
    found = plan(write_llama(tmp_path), asked)
    assert (found.blocks, found.schedule, found.order) == ((0, 1), schedule, order)
    assert found.schedule_evidence == f"--schedule {asked}"
    assert found.warnings == ()  # the checkpoint said nothing to the contrary


@pytest.mark.parametrize("asked", ["none", "repeat-all-over", "0,1,1,0"])
def test_a_schedule_that_overrides_the_flag_says_so(tmp_path, asked):
    found = plan(write_mobilellm(tmp_path, layer_sharing=True), asked)
    assert found.schedule == parse_schedule(asked, 2)
    assert found.warnings == (
        f"--schedule {asked} overrides immediate, which layer_sharing: true says: "
        "the result computes something other than what was trained unless you know better",
    )


def test_a_schedule_that_overrides_the_files_order_says_so(tmp_path):
    found = plan(write_llama(tmp_path, duplicate_schedule=(0, 1, 1, 0)), "immediate")
    assert (found.blocks, found.schedule) == ((0, 1), (0, 0, 1, 1))
    assert found.warnings == (
        "--schedule immediate overrides reverse, which repeated blocks: equal values says: "
        "the result computes something other than what was trained unless you know better",
    )


@pytest.mark.parametrize("asked", ["immediate", "0,0,1,1"])
def test_a_schedule_that_agrees_with_the_checkpoint_warns_of_nothing(tmp_path, asked):
    assert plan(write_mobilellm(tmp_path, layer_sharing=True), asked).warnings == ()


NEITHER = "neither an order nor block numbers; write one of none, immediate, repeat-all-over, reverse, or 0,0,1,1"


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ("sideways", NEITHER),
        ("Immediate", NEITHER),
        ("", NEITHER),
        ("0,,1", NEITHER),
        ("0,1,", NEITHER),
        ("0;1", NEITHER),
        ("0.0,1", NEITHER),
        ("0,2", "block 2 does not exist; the checkpoint stores blocks 0 to 1"),
        ("0,1,-1", "block -1 does not exist; the checkpoint stores blocks 0 to 1"),
        ("0,0", "block 1 never runs; name every stored block at least once"),
        ("1,1,1", "block 0 never runs; name every stored block at least once"),
    ],
)
def test_a_schedule_that_cannot_be(tmp_path, asked, line):
    with pytest.raises(UsageError) as error:
        plan(write_llama(tmp_path), asked)
    assert str(error.value) == " ".join(f"--schedule {asked}: {line}".split())
    assert error.value.exit_code == 2


def test_block_numbers_on_the_command_line_are_those_of_stored_blocks(tmp_path):
    """Of six blocks in the file two are stored: 2 is not a block there any more."""
    folder = write_llama(tmp_path, duplicate_schedule=(0, 0, 0, 1, 1, 1))
    assert plan(folder, "0,1").blocks == (0, 3)
    with pytest.raises(UsageError, match="block 2 does not exist; the checkpoint stores blocks 0 to 1"):
        plan(folder, "0,1,2")


# --- laws of schedules -----------------------------------------------------------------------------------------------


@st.composite
def schedules(draw, most_blocks=4, longest=7):
    """Execution orders in which every stored block runs, numbered by first appearance."""
    return by_first_appearance(draw(st.lists(st.integers(0, most_blocks - 1), min_size=1, max_size=longest)))


@given(st.lists(st.integers(0, 11), min_size=1, max_size=24).map(by_first_appearance))
def test_a_schedule_written_out_reads_back(schedule):
    assert parse_schedule(",".join(map(str, schedule)), max(schedule) + 1) == schedule


@given(schedules(most_blocks=5, longest=10))
def test_a_name_means_its_order_and_arbitrary_means_none_of_them(schedule):
    stored = max(schedule) + 1
    possible = {order: order_blocks(order, stored, len(schedule) // stored) for order in ORDERS}
    name = name_order(schedule)
    if name == "none":
        assert schedule == tuple(range(stored))
    elif name == "arbitrary":
        assert schedule not in possible.values()
        assert schedule != tuple(range(stored))
    else:
        assert schedule == possible[name]
        assert len(schedule) > stored


@given(st.sampled_from(ORDERS), st.integers(1, 6), st.integers(2, 4))
def test_an_order_is_named_by_its_name(order, stored, repeats):
    schedule = order_blocks(order, stored, repeats)
    assert name_order(schedule) == ("immediate" if stored == 1 else order)
    assert sorted(schedule) == sorted([*range(stored)] * repeats)


@given(st.integers(1, 6), st.integers(2, 4))
def test_what_each_order_does(stored, repeats):
    immediate, over, reverse = (order_blocks(order, stored, repeats) for order in ORDERS)
    assert list(immediate) == sorted(immediate)
    laps = range(0, stored * repeats, stored)
    assert {over[lap : lap + stored] for lap in laps} == {tuple(range(stored))}
    assert all(reverse[i] == reverse[i - 1] for i in laps[1:])  # each lap begins where the one before it ended


@given(st.sampled_from(ORDERS), st.integers(1, 6))
def test_an_order_by_name_is_that_order_with_two_runs_each(order, stored):
    assert parse_schedule(order, stored) == order_blocks(order, stored, 2)


@settings(max_examples=25, deadline=None)
@example((0, 1, 2, 1, 0, 2), "bin", False)
@given(schedules(), st.sampled_from(["safetensors", "bin"]), st.booleans())
def test_a_checkpoint_written_in_any_order_gives_that_order_back(schedule, form, share_storage):
    shared = share_storage and form == "bin"
    with tempfile.TemporaryDirectory() as folder:
        write_llama(
            Path(folder),
            blocks=max(schedule) + 1,
            hidden=32,
            ffn=32,
            duplicate_schedule=schedule,
            form=form,
            share_storage=shared,
            tokenizer=None,
        )
        found = plan(folder)
    assert found.schedule == schedule
    assert found.blocks == first_places(schedule)
    assert found.warnings == ()


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=6))
def test_how_the_blocks_were_numbered_before_does_not_matter(order):
    """Blocks 2, 0, 2 of some training run are stored blocks 0, 1, 0."""
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"blocks": 4, "hidden": 32, "ffn": 32}
        write_llama(Path(folder), **sizes, duplicate_schedule=order, tokenizer=None)
        assert plan(folder).schedule == by_first_appearance(order)


# --- the head --------------------------------------------------------------------------------------------------------


def write_head(folder, head, tie):
    """A llama with no head tensor, an equal or a different one, and what its config says of it."""
    write_llama(folder, tied=True, tokenizer=None)
    tensors = llama_tensors()
    if head != "none":
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    if head == "different":
        tensors["lm_head.weight"][-1, -1] += 1e-6
    write_weights(folder, tensors)
    return edit_config(folder, tie_word_embeddings=tie)


EQUAL, DIFFERS = "lm_head.weight equal values", "lm_head.weight differs from the embedding"
NO_HEAD = "no head tensor in the file"


@pytest.mark.parametrize(
    ("head", "tie", "tied", "evidence", "warning"),
    [
        ("none", True, True, NO_HEAD, None),
        ("none", None, True, NO_HEAD, None),
        ("none", False, True, NO_HEAD,
         "tie_word_embeddings: false, but the file holds no head tensor: the embedding serves as the head "
        "(so MobileLLM saves it; one trained with layer sharing needs --schedule immediate besides)"),
        ("equal", True, True, EQUAL, None),
        ("equal", None, True, EQUAL, None),
        ("equal", False, True, EQUAL,
         "tie_word_embeddings: false, but lm_head.weight equals the embedding: stored once"),
        ("different", True, False, DIFFERS,
         "tie_word_embeddings: true, but lm_head.weight differs from the embedding: both are kept"),
        ("different", None, False, DIFFERS, None),
        ("different", False, False, DIFFERS, None),
    ],
)  # fmt: skip
def test_a_llamas_head_is_tied_or_not_by_its_tensors(tmp_path, head, tie, tied, evidence, warning):
    found = plan(write_head(tmp_path, head, tie))
    assert (found.tied, found.tied_evidence) == (tied, evidence)
    assert found.warnings == (() if warning is None else (warning,))


def test_a_head_over_the_embeddings_storage(tmp_path):
    tensors = llama_tensors()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    write_llama(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    write_weights(tmp_path, tensors, "bin")
    found = plan(tmp_path)
    assert (found.tied, found.tied_evidence, found.warnings) == (True, "lm_head.weight same storage", ())


def test_a_head_that_save_model_left_out_by_name(tmp_path):
    tensors = llama_tensors()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    found = plan(write_saved_by_safetensors(tmp_path, tensors, blocks=2))
    assert found.tied
    assert found.tied_evidence == "lm_head.weight named in the safetensors metadata"


@pytest.mark.parametrize(
    ("share", "head", "tied", "evidence", "warning"),
    [
        (True, None, True, NO_HEAD, None),
        (True, "equal", True, "share_embedding: true", None),
        (True, "different", True, "share_embedding: true",
         "share_embedding: true, but lm_head.weight differs from the embedding: the released code builds no head, "
         "so the stored one is ignored"),
        (False, "equal", True, EQUAL, "share_embedding: false, but lm_head.weight equals the embedding: stored once"),
        (False, "different", False, DIFFERS, None),
    ],
)  # fmt: skip
def test_mobilellms_share_embedding_builds_no_head(tmp_path, share, head, tied, evidence, warning):
    folder = write_mobilellm(tmp_path, share_embedding=True, redundant_head=head)
    found = plan(edit_config(folder, share_embedding=share))
    assert (found.tied, found.tied_evidence) == (tied, evidence)
    assert found.warnings == (() if warning is None else (warning,))


def test_mobilellm_without_share_embedding_and_without_a_head(tmp_path):
    found = plan(edit_config(write_mobilellm(tmp_path), share_embedding=False))
    assert found.tied
    assert found.warnings == (
        "share_embedding: false, but the file holds no head tensor: the embedding serves as the head "
        "(so MobileLLM saves it; one trained with layer sharing needs --schedule immediate besides)",
    )


def test_a_hub_mobilellm_that_leaves_the_flag_out_shares(tmp_path):
    """The Hub's MobileLLMConfig defaults to true; tie_word_embeddings says false there and means nothing."""
    found = plan(edit_config(write_mobilellm(tmp_path, redundant_head="different"), share_embedding=None))
    assert (found.tied, found.tied_evidence) == (True, "share_embedding: true")


def test_the_github_dialect_goes_by_the_tensors(tmp_path):
    """1.5B's file: a llama config that says nothing of sharing, and a head of its own, which counts."""
    found = plan(write_mobilellm(tmp_path, dialect="github", redundant_head="different"))
    assert (found.tied, found.tied_evidence, found.warnings) == (False, DIFFERS, ())


def test_a_flag_the_config_does_not_hold_is_not_quoted(tmp_path):
    """layer_sharing alone, and a tie as any llama states it: there is no disagreement to warn of."""
    folder = edit_config(write_llama(tmp_path), layer_sharing=True)
    found = plan(folder)
    assert (found.tied, found.order) == (True, "immediate")
    assert found.warnings == ()
