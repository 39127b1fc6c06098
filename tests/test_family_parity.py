"""Every family's Decoder against its own class in transformers, in float32: whole, cached, old dialects, shared blocks.

The mutations at the end undo one feature each: where the error stayed small, the tests above could not have seen it.
"""

import copy
import dataclasses
import json
import math

import pytest
import torch
from tiny_families import FAMILIES, LONGROPE, TOKENS, VOCAB, reference, reference_logits, write_family, written

from mobile_export.checkpoint import open_checkpoint
from mobile_export.cli import run
from mobile_export.families import recognise
from mobile_export.model.attention import PlainAttention
from mobile_export.model.attention_rule import AttentionRule
from mobile_export.quantize.recipe import read_recipe
from mobile_export.quantize.weights import ModelWeights
from mobile_export.sharing import plan_sharing
from mobile_export.verify.oracle import float32_oracle, written_out
from mobile_export.verify.reference import reference_logits as logits_of
from mobile_export.verify.reference import reference_model

LIMIT = 1e-5  # of the largest logit; transformers' own cached decode differs from its prefill by up to 1.7e-6
CONTEXT = 64
HEADS = {"embed_out.weight", "head.weight", "lm_head.weight"}  # each family has one of them
ONE_OF_EACH = list({tiny.model_type: name for name, tiny in FAMILIES.items()}.values())


def weights_of(folder, schedule=None, recipe="fp32", mutate=lambda found: found):
    checkpoint = open_checkpoint(str(folder))
    found = mutate(recognise(checkpoint))
    return ModelWeights(checkpoint, found, plan_sharing(checkpoint, found, schedule), read_recipe(recipe))


def error(got, expected):
    """Largest difference over the largest logit, whatever the position."""
    assert got.shape == expected.shape == (len(TOKENS), VOCAB)
    return ((got - expected).abs().max() / expected.abs().max()).item()


def ours(weights):
    return logits_of(reference_model(weights, CONTEXT), TOKENS)


def cached(weights, chunks):
    """Logits of every position, fed in chunks after one another; an earlier sequence has left something behind."""
    model = reference_model(weights, CONTEXT)
    logits_of(model, TOKENS[::-1])
    start, found = 0, []
    with torch.no_grad():
        for length in chunks:
            stream = model.hidden(torch.tensor([TOKENS[start : start + length]]), torch.tensor([start]))
            found.append(model.head(stream)[0])
            start += length
    return torch.cat(found)


def transformers_logits(model):
    with torch.no_grad():
        return model(torch.tensor([TOKENS]), use_cache=False).logits[0]


# --- the same logits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_computes_what_transformers_computes(name):
    assert error(ours(weights_of(written(name))), reference_logits(name)) < LIMIT


@pytest.mark.parametrize("chunks", [[1] * 40, [17, 8, *[1] * 15], [3, 30, 7]], ids=["steps", "mixed", "chunks"])
@pytest.mark.parametrize("name", FAMILIES)
def test_cached_decode_is_the_uncached_forward_of_transformers(name, chunks):
    assert error(cached(weights_of(written(name)), chunks), reference_logits(name)) < LIMIT


@pytest.mark.parametrize("name", FAMILIES)
def test_an_old_config_is_the_same_network(tmp_path, name):
    weights = weights_of(write_family(tmp_path, name, old=True))
    assert weights.recognised.spec == recognise(open_checkpoint(str(written(name)))).spec
    assert error(ours(weights), reference_logits(name)) < LIMIT


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_base_model_saved_by_itself_is_the_same_network(tmp_path, name):
    prefix = f"{reference(name).base_model_prefix}."

    def strip(tensors):
        for key in [key for key in tensors if key.startswith(prefix)]:
            tensors[key.removeprefix(prefix)] = tensors.pop(key)

    assert error(ours(weights_of(write_family(tmp_path, name, edit=strip))), reference_logits(name)) < LIMIT


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["gemma3", "pythia", "gpt2-cerebras"])
def test_half_precision_files_compute_in_float32(tmp_path, name, dtype):
    """1 + w too: in bfloat16 it would lose what w has below 2 ** -8."""

    def halve(tensors):
        tensors.update({key: tensor.to(dtype) for key, tensor in tensors.items()})

    folder = write_family(tmp_path, name, edit=halve)
    model = copy.deepcopy(reference(name))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype).float())
    assert error(ours(weights_of(folder)), transformers_logits(model)) < LIMIT


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_head_that_differs_from_the_embedding_counts_whatever_the_flag_says(tmp_path, name):
    model = copy.deepcopy(reference(name))
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(model.get_input_embeddings().weight + 0.05)

    def store(tensors):
        stored = HEADS & set(tensors) or {"lm_head.weight"}
        tensors[stored.pop()] = head.weight.detach().clone()

    for flag in (True, False, None):
        weights = weights_of(write_family(tmp_path / str(flag), name, edit=store, tie_word_embeddings=flag))
        assert not weights.plan.tied
        assert error(ours(weights), transformers_logits(model)) < LIMIT


@pytest.mark.parametrize("name", FAMILIES)
def test_the_map_and_the_modules_agree_on_every_name_and_shape(name):
    """A mapped weight no module takes would be lost without a word."""
    weights = weights_of(written(name))
    model = reference_model(weights, CONTEXT)
    places = {}
    for place, parameter in model.named_parameters():
        graph_name = place.replace("entry.positions", "positions").replace("entry.", "embedding.")
        graph_name = graph_name if not graph_name.startswith("norm.") else f"embedding.{graph_name}"  # RWKV's
        places[weights.source_of(graph_name)] = tuple(parameter.shape)
    assert places == {graph_name: weights.shape(graph_name) for graph_name in weights.sources}


# --- the oracle the tool itself asks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_tools_oracle_is_the_model_itself(tmp_path, name, old):
    weights = weights_of(write_family(tmp_path, name, old=old))
    said, logits = float32_oracle(weights, CONTEXT)
    assert said == "transformers in float32"
    assert error(logits(TOKENS), reference_logits(name)) < LIMIT


@pytest.mark.parametrize("name", FAMILIES)
def test_a_schedule_runs_every_block_by_its_own_rule(name):
    """Against transformers with every execution written out: a window, a rotation or a mixer stays with its block."""
    blocks = len(recognise(open_checkpoint(str(written(name)))).kinds)
    schedule = "1,0,0,1" if blocks == 2 else "0,2,1,1,2"
    weights = weights_of(written(name), schedule)
    got = ours(weights)
    assert error(got, transformers_logits(written_out(weights))) < LIMIT
    assert error(got, reference_logits(name)) > 100 * LIMIT


def test_the_oracle_leaves_the_checkpoints_config_as_it_was(tmp_path):
    """transformers writes defaults into nested settings."""
    weights = weights_of(write_family(tmp_path, "phi4-mini", rope_parameters=LONGROPE))
    before = copy.deepcopy(weights.checkpoint.config)
    written_out(weights)
    assert weights.checkpoint.config == before


def test_the_oracle_misses_what_the_file_lacks(tmp_path):
    weights = weights_of(written("opt-125m"))
    lacking = {key: tensor for key, tensor in weights.checkpoint.tensors.items() if "layers.1.fc1.bias" not in key}
    weights.checkpoint = dataclasses.replace(weights.checkpoint, tensors=lacking)
    with pytest.raises(RuntimeError, match=r"layers\.1\.fc1\.bias"):
        written_out(weights)


# --- blocks that repeat in the file --------------------------------------------------------------------------------------


def repeat(first, second):
    """Write block `second` of a file as a copy of block `first`."""

    def edit(tensors):
        for key in list(tensors):
            if f".{second}." in key:
                tensors[key] = tensors[key.replace(f".{second}.", f".{first}.")].clone()

    return edit


@pytest.mark.parametrize("name", ["pythia", "gpt2-cerebras", "phi3", "falcon-new", "bloom", "phi2"])
def test_blocks_with_fused_tensors_are_found_equal(tmp_path, name):
    weights = weights_of(write_family(tmp_path, name, edit=repeat(0, 1)))
    assert (weights.plan.blocks, weights.plan.schedule) == ((0,), (0, 0))
    assert error(ours(weights), transformers_logits(written_out(weights))) < LIMIT


@pytest.mark.parametrize("name", ["gemma3", "smollm3-window", "gpt-neo"])
def test_equal_tensors_under_another_rule_are_another_block(tmp_path, name):
    """One sees a window or rotates, the other does not: run as one block, the model would be another."""
    weights = weights_of(write_family(tmp_path, name, edit=repeat(0, 1)))
    assert weights.plan.blocks[:2] == (0, 1)
    assert error(ours(weights), transformers_logits(written_out(weights))) < LIMIT


def test_blocks_of_different_structure_are_compared_with_their_like(tmp_path):
    weights = weights_of(write_family(tmp_path, "lfm2", edit=repeat(0, 2)))
    assert (weights.plan.blocks, weights.plan.schedule) == ((0, 1), (0, 1, 0))
    assert error(ours(weights), transformers_logits(written_out(weights))) < LIMIT


# --- what every verb asks of every family --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_inspect_counts_every_parameter_once(name, capsys):
    assert run(["inspect", str(written(name)), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters_stored"] == sum(parameter.numel() for parameter in reference(name).parameters())
    assert facts["parameters_stored"] == sum(part["parameters"] for part in facts["parts"])
    assert ("positions.weight" in facts["matrices"]) == ("positions" in [part["name"] for part in facts["parts"]])
    assert run(["inspect", str(written(name))]) == 0


@pytest.mark.parametrize(
    ("name", "kv", "state"),
    [
        ("qwen2", 2 * 2 * 2 * 16 * 4, 0),  # key and value, blocks, heads, head_dim, float32
        ("lfm2", 2 * 1 * 2 * 16 * 4, 2 * 2 * 64 * 4),  # one block attends; two keep two columns of the stream
        ("lfm2-biased", 2 * 2 * 2 * 16 * 4, 1 * 3 * 64 * 4),
        ("rwkv4-narrow", 0, 2 * (2 * 64 + 3 * 32) * 4),
    ],
)
def test_what_executions_keep_of_the_text(name, kv, state, capsys):
    assert run(["inspect", str(written(name)), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kv_bytes_per_token"]["float32"], facts["state_bytes"]) == (kv, state)
    assert run(["inspect", str(written(name))]) == 0
    page = capsys.readouterr().out
    assert ("kv cache" in page, "\nstate  " in page) == (kv > 0, state > 0)


def attended_by_hand(rule, query, key, value):
    """One head in scalars: each query over the keys it sees."""
    rows = []
    for p, q in enumerate(query):
        seen = [j for j in range(p + 1) if j > p - (rule.window or 99) and j // (rule.chunk or 99) == p // (rule.chunk or 99)]
        floor, scale = rule.query_temperature or (1, 0)
        heat = rule.scale * (1 + scale * math.log1p((p + 1) // floor))
        scores = [heat * sum(a * b for a, b in zip(q, key[j], strict=True)) for j in seen]
        if rule.softcap:
            scores = [rule.softcap * math.tanh(s / rule.softcap) for s in scores]
        if rule.alibi == "bloom":
            scores = [s + 2**-8 * j for s, j in zip(scores, seen, strict=True)]
        total = sum(map(math.exp, scores))
        weights = [math.exp(s) / total for s in scores]
        rows.append([sum(w * value[j][c] for w, j in zip(weights, seen, strict=True)) for c in range(len(value[0]))])
    return rows


@pytest.mark.parametrize(
    "rule",
    [
        AttentionRule(0.5),
        AttentionRule(2.0, softcap=0.7),
        AttentionRule(2.0, softcap=0.7, alibi="bloom"),
        AttentionRule(0.5, window=1),
        AttentionRule(0.5, window=3, query_temperature=(2.0, 0.3)),
        AttentionRule(0.5, chunk=4, window=3),
    ],
    ids=str,
)
def test_attention_worked_by_hand(rule):
    query, key, value = torch.randn(3, 1, 9, 1, 4, generator=torch.Generator().manual_seed(0))
    attend = PlainAttention([AttentionRule(9.0), rule])
    got = [attend(1, query[:, a:b], key[:, a:b], value[:, a:b], a) for a, b in ((0, 5), (5, 6), (6, 9))]
    want = attended_by_hand(rule, *(x[0, :, 0].tolist() for x in (query, key, value)))
    assert torch.allclose(torch.cat(got, dim=1)[0, :, 0], torch.tensor(want), atol=1e-6)


@pytest.mark.parametrize("recipe", ["w4-fast", "w4-all-fast", "w8-fast"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_quantized_reference_stays_near_float32(name, recipe):
    """Every matrix has codes, and its own: 8 bits turn the logits by a few degrees, 4 bits by 45, a wrong weight by 90."""
    weights = weights_of(written(name), recipe=recipe)
    table = weights.matrices.get("positions.weight")
    assert table is None or table.precision.bits == 8
    assert all(matrix.precision.bits < 32 for matrix in weights.matrices.values())
    got, want = ours(weights), reference_logits(name)
    cosine = torch.nn.functional.cosine_similarity(got, want).mean()
    assert cosine > (0.99 if recipe == "w8-fast" else 0.7)


# --- mutations -------------------------------------------------------------------------------------------------------------


def spec(**changes):
    return lambda found: dataclasses.replace(found, spec=dataclasses.replace(found.spec, **changes))


def kinds(**changes):
    """Every block with a feature changed, where it has it."""

    def mutate(found):
        blocks = tuple(
            dataclasses.replace(kind, **{key: value for key, value in changes.items() if getattr(kind, key) is not None})
            for kind in found.spec.blocks
        )
        return dataclasses.replace(found, spec=dataclasses.replace(found.spec, blocks=blocks))

    return mutate


def rope(**changes):
    def mutate(found):
        ropes = tuple(dataclasses.replace(rope, **changes) for rope in found.spec.ropes)
        return dataclasses.replace(found, spec=dataclasses.replace(found.spec, ropes=ropes))

    return mutate


def sources(change):
    """change: graph name, WeightSource -> WeightSource."""
    return lambda found: dataclasses.replace(found, weights={n: change(n, s) for n, s in found.weights.items()})


def rotating_all(found):
    blocks = tuple(dataclasses.replace(kind, rope=0) for kind in found.spec.blocks)
    return dataclasses.replace(found, spec=dataclasses.replace(found.spec, blocks=blocks))


def swapped(first, second):
    def mutate(found):
        weights = dict(found.weights)
        for name in found.weights:
            if first in name:
                other = name.replace(first, second)
                if other not in found.weights:
                    continue
                weights[name], weights[other] = found.weights[other], found.weights[name]
        return dataclasses.replace(found, weights=weights)

    return mutate


def key_before_query(name, source):
    if ".qkv." not in name or len(source.takes) != 3:
        return source
    query, key, value = source.takes
    return dataclasses.replace(source, takes=(key, query, value))


def as_stored(_, source):
    return dataclasses.replace(source, takes=())


def as_stored_values(_, source):
    takes = tuple(dataclasses.replace(take, value="stored") for take in source.takes)
    return dataclasses.replace(source, takes=takes)


@pytest.mark.parametrize(
    ("name", "mutate"),
    [
        ("opt-125m", spec(position_offset=0)),
        ("opt-125m", spec(position_offset=1)),
        ("opt-125m", spec(ffn_bias=False)),
        ("opt-350m", swapped("ffn.o_norm", "ffn.down_norm")),
        ("galactica", spec(final_norm=False)),
        ("galactica-bare", spec(norm_eps=1e-2)),
        ("gpt2-cerebras", spec(hidden_act="gelu_tanh")),
        ("gpt2-lamini", spec(hidden_act="gelu")),
        ("gpt2-unscaled", spec(attention_scale=None)),
        ("gpt2-cerebras", swapped("attention.norm", "ffn.norm")),
        ("gpt-neo", spec(attention_scale=None)),
        ("gpt-neo", kinds(window=None)),
        ("gpt-neo", kinds(window=6)),
        ("gpt-neo", kinds(window=8)),
        ("gpt-neo", spec(o_bias=False)),
        ("pythia", spec(parallel_residual=False)),
        ("pythia", rope(interleaved=True)),
        ("pythia", sources(key_before_query)),
        ("neox-sequential", spec(parallel_residual=True)),
        ("bloom", spec(alibi="none")),
        ("bloom", spec(alibi="falcon")),
        ("bloom", spec(embedding_norm=False)),
        ("bloom", sources(key_before_query)),
        ("falcon-rw", spec(alibi="bloom")),
        ("falcon-new", sources(key_before_query)),
        ("falcon-new", swapped("attention.norm", "ffn.norm")),
        ("qwen2", spec(qkv_bias=False)),
        ("qwen2-window", kinds(window=None)),
        ("qwen2-window", kinds(window=8)),
        ("qwen3", kinds(qk_norm="none")),
        ("qwen3", swapped("q_norm", "k_norm")),
        ("smollm3", rotating_all),
        ("smollm3-window", kinds(window=None)),
        ("gemma3", sources(as_stored)),
        ("gemma3", spec(embedding_scale=1.0)),
        ("gemma3", spec(attention_scale=None)),
        ("gemma3", kinds(window=None)),
        ("gemma3", kinds(rope=0)),
        ("gemma3", kinds(rope=1)),
        ("gemma3", swapped("o_norm", "down_norm")),
        ("gemma3-scaled", spec(logit_softcap=None)),
        ("phi2", spec(head_bias=False)),
        ("phi2", spec(parallel_residual=False)),
        ("phi-qk-norm", kinds(qk_norm="none")),
        ("phi3", kinds(window=None)),
        ("phi3", swapped("ffn.gate", "ffn.up")),
        ("phi4-mini", rope(attention_factor=1.0)),
        ("llama4-r1", rope(interleaved=False)),
        ("llama4-r1", kinds(qk_norm="none")),
        ("llama4-chunks", kinds(chunk=None)),
        ("llama4-chunks", kinds(chunk=10)),
        ("llama4-chunks", kinds(query_temperature=None)),
        ("llama4-chunks", rotating_all),
        ("lfm2", kinds(qk_norm="none")),
        ("lfm2-biased", spec(conv_bias=False)),
        ("rwkv4", sources(as_stored_values)),
        ("rwkv4", swapped("mix_key", "mix_value")),
        ("rwkv4", swapped("attention.norm", "ffn.norm")),
        ("rwkv4", spec(final_norm_eps=1e-2)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_feature_undone_is_another_network(name, mutate):
    weights = weights_of(written(name), mutate=mutate)
    assert error(ours(weights), reference_logits(name)) > 3 * LIMIT
