"""What a Core ML package promises its hosts: swift-transformers' LanguageModel, written here from its behaviour, and others.

The behaviour (Sources/Models/LanguageModel.swift): the lengths a model takes are those of the last axis of `inputIds`, and
must be a range. States `keyCache` and `valueCache` are both there, or the cache is not used. After a reset the first call
carries all tokens, every later one the newest token alone. `causalMask` is float16 zeros of one row, one column longer than
the text, even for a whole prompt. `logits` has three axes, and the row of the call's last token is the answer.
"""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path

import pytest
import torch
from coremltools.models.utils import load_spec
from coremltools.proto import FeatureTypes_pb2 as types
from exported import CONTEXT, PROMPT, checkpoint, coreml_artifact, manifest, weights_of
from test_coreml_parity import error, in_float16, limit_of, package_of
from test_pte import logits_of
from tiny_families import TOKENS, VOCAB, reference

from mobile_export.emit.coreml.artifact import EXPORT_ID, HUB_NAME
from mobile_export.errors import InputError
from mobile_export.verify.mlprogram.interpreter import Interpreter
from mobile_export.verify.mlprogram.program import Program

IOS_18 = 9  # the specification version of its packages
KNOWN_TOKENIZERS = (  # Tokenizer.swift, knownTokenizers; "Fast" at a name's end does not count
    *("BertTokenizer", "CodeGenTokenizer", "CodeLlamaTokenizer", "CohereTokenizer", "DistilbertTokenizer"),
    *("DistilBertTokenizer", "FalconTokenizer", "GemmaTokenizer", "GPT2Tokenizer", "LlamaTokenizer", "RobertaTokenizer"),
    *("T5Tokenizer", "TokenizersBackend", "PreTrainedTokenizer", "Qwen2Tokenizer", "WhisperTokenizer"),
    *("XLMRobertaTokenizer", "Xlm-RobertaTokenizer"),
)
# Without rotations, with positions that count (tables, ALiBi, chunks, temperatures), with windows, with columns to keep.
HOSTED = ["qwen2", "gpt2-lamini", "opt-125m", "bloom", "falcon-rw", "llama4-chunks", "qwen2-window", "lfm2"]


@functools.cache
def interpreter_of(package: Path) -> Interpreter:
    return Interpreter(Program.open(package))


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape)


class SwiftHost:
    """LanguageModelWithStatefulKVCache, call for call, over our interpreter."""

    def __init__(self, package: Path) -> None:
        description = load_spec(str(package)).description
        inputs = {feature.name: feature.type.multiArrayType for feature in description.input}
        lengths = inputs["inputIds"].shapeRange.sizeRanges[-1]
        assert lengths.upperBound - lengths.lowerBound > 1, "Expecting ranged query sequence length."
        states = {feature.name for feature in description.state}
        assert {"keyCache", "valueCache"} <= states, "Invalid model configuration, expecting KV cache for states"
        self.masks = [name for name in ("attentionMask", "causalMask") if name in inputs]
        self.interpreter, self.state, self.prefilling = interpreter_of(package), None, True

    def reset_state(self) -> None:
        self.state, self.prefilling = self.interpreter.new_state("main"), True

    def predict_next_token_scores(self, tokens: list[int]) -> torch.Tensor:
        assert self.state is not None, "Encountered uninitialized `state`."
        new = tokens if self.prefilling else tokens[-1:]
        self.prefilling = False
        feeds = {"inputIds": torch.tensor([new], dtype=torch.int32)}
        feeds |= {name: zeros(1, 1, 1, len(tokens) + 1) for name in self.masks}
        scores = self.interpreter.run("main", feeds, self.state)["logits"]
        assert scores.dim() == 3
        return scores[0, len(new) - 1]


class Host:
    """A host written after Apple's example: it makes the mask it likes."""

    def __init__(self, package: Path) -> None:
        self.interpreter = interpreter_of(package)
        self.state = self.interpreter.new_state("main")

    def logits(self, tokens: list[int], mask: torch.Tensor) -> torch.Tensor:
        feeds = {"inputIds": torch.tensor([tokens], dtype=torch.int32), "causalMask": mask}
        return self.interpreter.run("main", feeds, self.state)["logits"][0]


def causal(rows: int, end: int) -> torch.Tensor:
    return torch.full((rows, end), -math.inf).triu(end - rows + 1)[None, None]


@functools.cache
def wanted(name: str) -> torch.Tensor:
    return logits_of(in_float16(name)[1], TOKENS)


# --- what LanguageModel looks for --------------------------------------------------------------------------------------


def test_names_ranks_types_and_ranges():
    spec = load_spec(str(package_of("qwen2")))
    assert spec.specificationVersion == IOS_18
    assert spec.WhichOneof("Type") == "mlProgram"
    inputs = {feature.name: feature.type.multiArrayType for feature in spec.description.input}
    assert list(inputs) == ["inputIds", "causalMask"]
    assert [array.dataType for array in inputs.values()] == [types.ArrayFeatureType.INT32, types.ArrayFeatureType.FLOAT16]
    ranges = {
        name: [(size.lowerBound, size.upperBound) for size in array.shapeRange.sizeRanges] for name, array in inputs.items()
    }
    assert ranges == {
        "inputIds": [(1, 1), (1, CONTEXT)],
        "causalMask": [(1, 1), (1, 1), (1, CONTEXT), (1, CONTEXT)],
    }
    states = {feature.name: feature.type.stateType.arrayType for feature in spec.description.state}
    assert list(states) == ["keyCache", "valueCache"]
    assert [array.dataType for array in states.values()] == [types.ArrayFeatureType.FLOAT16] * 2
    assert [list(array.shape) for array in states.values()] == [[2, 2, CONTEXT, 16]] * 2, "a row for every execution"
    (output,) = spec.description.output
    assert (output.name, output.type.multiArrayType.dataType) == ("logits", types.ArrayFeatureType.FLOAT16)
    assert not {"presentKeys", "presentValues", "attentionMask"} & {*inputs, output.name}


@pytest.mark.parametrize("length", [1, 2, 5, CONTEXT - 1])
def test_logits_have_a_row_for_every_token_of_the_call(length):
    host = Host(package_of("qwen2"))
    assert host.logits(([3] * length), zeros(1, 1, 1, length)).shape == (length, VOCAB)


def test_what_the_fixed_functions_take():
    spec = load_spec(str(package_of("qwen3", "functions")))
    assert spec.description.defaultFunctionName == "decode"
    described = {
        function.name: {feature.name: list(feature.type.multiArrayType.shape) for feature in function.input}
        for function in spec.description.functions
    }
    assert described == {
        "prefill": {"inputIds": [1, PROMPT], "position": [1], "count": [1]},
        "decode": {"inputIds": [1, 1], "position": [1]},
    }
    for function in spec.description.functions:
        assert not any(feature.type.multiArrayType.WhichOneof("ShapeFlexibility") for feature in function.input)
        assert {feature.type.multiArrayType.dataType for feature in function.input} == {types.ArrayFeatureType.INT32}
        assert [feature.name for feature in function.state] == ["keyCache", "valueCache"]
        (output,) = function.output
        assert (output.name, list(output.type.multiArrayType.shape)) == ("logits", [1, 1, VOCAB])


# --- what it does ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTED)
def test_as_swift_transformers_calls_it_every_position_is_the_uncached_one(name):
    """Its masks are a column too long, so slot 0 stays empty: that must neither be seen nor count as a position."""
    host, want = SwiftHost(package_of(name)), wanted(name)
    for prompt in (1, 2, 17, len(TOKENS)):
        host.reset_state()
        for length in range(prompt, len(TOKENS) + 1):
            assert error(host.predict_next_token_scores(TOKENS[:length]), want[length - 1]) <= limit_of(name), (prompt, length)


@pytest.mark.parametrize("name", HOSTED)
def test_a_host_that_sends_the_exact_length_is_right_too(name):
    host, want = Host(package_of(name)), wanted(name)
    assert error(host.logits(TOKENS[:9], zeros(1, 1, 1, 9)), want[:9]) <= limit_of(name)
    assert error(host.logits(TOKENS[9:10], zeros(1, 1, 1, 10)), want[9:10]) <= limit_of(name)
    assert error(host.logits(TOKENS[10:30], zeros(1, 1, 1, 30)), want[10:30]) <= limit_of(name)


@pytest.mark.parametrize("name", ["qwen2", "gpt2-lamini", "bloom", "qwen2-window"])
def test_a_true_causal_mask_changes_nothing(name):
    host, want = Host(package_of(name)), wanted(name)
    assert error(host.logits(TOKENS[:9], causal(9, 9)), want[:9]) <= limit_of(name)
    assert error(host.logits(TOKENS[9:30], causal(21, 30)), want[9:30]) <= limit_of(name)


@pytest.mark.parametrize("rows", [1, 2, 40, CONTEXT])
def test_the_masks_third_dimension_makes_no_difference(rows):
    zero = Host(package_of("gpt2-lamini")).logits(TOKENS, zeros(1, 1, rows, len(TOKENS)))
    assert error(zero, wanted("gpt2-lamini")) <= limit_of("gpt2-lamini")


FRONT, HOLES = (0, 1, 2), (4, 7)
HIDDEN = [*((name, FRONT) for name in ("qwen2", "gpt2-lamini", "bloom")), ("qwen2", HOLES), ("gpt2-lamini", HOLES)]


@pytest.mark.parametrize(("name", "hidden"), HIDDEN)
def test_columns_a_host_masks_are_not_seen(name, hidden):
    """As transformers does with an attention mask of zeros there, positions counted all the same.

    BLOOM in transformers does not count the positions of holes; where it starts to count makes no difference.
    """
    shown = torch.ones(1, len(TOKENS), dtype=torch.int64)
    shown[0, list(hidden)] = 0
    positions = {} if name == "bloom" else {"position_ids": torch.arange(len(TOKENS))[None]}
    with torch.no_grad():
        given = torch.tensor([TOKENS])
        want = in_float16(name)[1](given, attention_mask=shown, use_cache=False, **positions).logits[0]
    mask = torch.zeros(1, 1, 1, len(TOKENS))
    mask[..., list(hidden)] = -math.inf
    host = Host(package_of(name))
    got = torch.cat([host.logits(TOKENS[:20], mask[..., :20])] + [
        host.logits([token], mask[..., : at + 1]) for at, token in enumerate(TOKENS) if at >= 20
    ])  # fmt: skip
    seen = max(hidden) + 1
    assert error(got[seen:], want[seen:]) <= limit_of(name)
    assert error(got[seen:], wanted(name)[seen:]) > 1e-2, "and that does show"
    assert not got.isnan().any()


@pytest.mark.parametrize("name", ["qwen2", "lfm2"])
def test_a_new_state_starts_a_new_text(name):
    host, want = SwiftHost(package_of(name)), wanted(name)
    host.reset_state()
    for length in (20, 21, 22):
        host.predict_next_token_scores([*TOKENS[::-1]][:length])
    host.reset_state()
    for length in (5, 6):
        assert error(host.predict_next_token_scores(TOKENS[:length]), want[length - 1]) <= limit_of(name)


@pytest.mark.parametrize("name", ["qwen2", "lfm2"])
def test_a_new_text_over_an_old_state_is_a_new_text(name):
    """A host that begins again at position 0 without a new state."""
    host, want = Host(package_of(name)), wanted(name)
    host.logits(TOKENS[::-1], zeros(1, 1, 1, len(TOKENS)))
    assert error(host.logits(TOKENS[:9], zeros(1, 1, 1, 9)), want[:9]) <= limit_of(name)
    assert error(host.logits(TOKENS[9:10], zeros(1, 1, 1, 10)), want[9:10]) <= limit_of(name)


def test_the_last_column_of_the_context_is_usable_and_none_beyond():
    host = Host(package_of("qwen2"))
    text = [*TOKENS, *TOKENS][:CONTEXT]
    want = logits_of(in_float16("qwen2")[1], text)
    assert error(host.logits(text[:-1], zeros(1, 1, 1, CONTEXT - 1)), want[:-1]) <= limit_of("qwen2")
    assert error(host.logits(text[-1:], zeros(1, 1, 1, CONTEXT)), want[-1:]) <= limit_of("qwen2")
    with pytest.raises(InputError, match=f"causalMask: has the shape .* it takes .*1 to {CONTEXT}"):
        host.logits([3], zeros(1, 1, 1, CONTEXT + 1))


def test_position_0_with_or_without_an_empty_slot_would_show():
    """What the tests above would see: where a text starts counts in a family with a table of positions."""
    with torch.no_grad():
        positions = torch.arange(1, 41)[None]
        late = reference("gpt2-lamini")(torch.tensor([TOKENS]), position_ids=positions, use_cache=False).logits[0]
    assert error(late, logits_of(reference("gpt2-lamini"), TOKENS)) > 0.1


# --- beside the package ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "mobilellm"])
def test_tokenizer_and_config_are_what_swift_transformers_reads(kind):
    folder = coreml_artifact(checkpoint(kind), "--no-verify")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"].replace("Fast", "") in KNOWN_TOKENIZERS
    assert json.loads((folder / "tokenizer.json").read_text())["model"]["type"] == "BPE"
    config = json.loads((folder / "config.json").read_text())
    assert config == json.loads((checkpoint(kind) / "config.json").read_text())
    assert {"tokenizer.json", "tokenizer_config.json"} <= set(manifest(folder)["tokenizer_files"])


def test_metadata_says_what_it_is():
    folder = coreml_artifact(checkpoint(), "--no-verify")
    metadata = load_spec(str(folder / "model.mlpackage")).description.metadata
    said = manifest(folder)
    assert metadata.userDefined[HUB_NAME] == said["source"] != ""
    assert HUB_NAME == "co.huggingface.exporters.name"
    assert metadata.userDefined[EXPORT_ID] == said["coreml"]["export_id"]
    assert len(said["coreml"]["export_id"]) == 64
    assert metadata.userDefined["mobile-export.max-context"] == str(CONTEXT)
    assert metadata.license == said["licence"] or metadata.license == "not stated by the checkpoint"
    assert said["recipe"]["name"] in metadata.shortDescription
    assert not any("date" in key for key in metadata.userDefined), "the same package on any day"


@pytest.mark.parametrize("change", [{"max_context": 63}, {"palettes": True}], ids=str)
def test_the_export_id_depends_on_the_options(change):
    from mobile_export.emit.coreml.layouts import CoreMlOptions
    from mobile_export.emit.describe import export_id

    weights = weights_of(checkpoint())
    assert export_id(weights, CoreMlOptions(CONTEXT)) != export_id(weights, CoreMlOptions(**{"max_context": CONTEXT, **change}))
    assert export_id(weights, CoreMlOptions(CONTEXT)) == export_id(weights_of(checkpoint()), CoreMlOptions(CONTEXT))
