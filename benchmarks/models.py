"""Page: what each model people compare or ship weighs and keeps, from its config alone; docs/models.md is its output.

No weight exists here. transformers' own class, built without memory, says which tensors a checkpoint of that config has and
of which shapes; the family, the sharing plan and the sizes are mobile_export's, as `inspect` shows them.

    python -m benchmarks.models > docs/models.md
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from mobile_export.checkpoint import Checkpoint, StoredTensor
from mobile_export.families import RwkvSpec, recognise, settle
from mobile_export.quantize.recipe import read_recipe
from mobile_export.quantize.sizes import kv_bytes, kv_slots, part_sizes, state_bytes, stored_parameters
from mobile_export.quantize.weights import ModelWeights
from mobile_export.sharing import plan_sharing

# One object a model: name, read (where its config was seen), note, tiny (the small random checkpoint of the tests that
# has the same features), published_parameters, config (the keys that decide the architecture).
MODELS: tuple[dict[str, Any], ...] = tuple(json.loads(Path(__file__).with_name("models.json").read_text(encoding="utf-8")))
REAL_WEIGHTS = ("HuggingFaceTB/SmolLM2-135M",)
AS_TRANSFORMERS = {"mobilellm": "llama"}

HEADER = """\
# Models

What the models people compare and ship weigh, and what a token of theirs costs. `python -m benchmarks.models` prints this
page from their configs and the families' code; a test holds the two together. `mobile-export inspect` prints the same for
a checkpoint of yours, whatever it is called.

- **heads:** query / key and value x channels of each. **RWKV-4** has none.
- **context:** positions the artifact can serve; less than the config's where a footnote says so.
- **parameters:** every stored weight once. **head:** tied to the token table, or its own.
- **fp16, 8 bits, 4 bits:** MB of weights in a `.pte`, scales included, norms in float32; 8 bits is one scale a channel,
  4 bits groups of 32. The recipe `w4` keeps the token table at 8 bits, so it lies between the two.
- **KV:** bytes a token adds to the cache, in float32 and int8, over all executions.
- **held against:** in all cases transformers, by a checkpoint of small random weights and the same features: its logits,
  whole and cached, within 1e-5 of the largest; its ONNX model and its `.pte` run. Where the real
  weights were run as well, it says so.

"""


@cache
def _weightless(name: str) -> Checkpoint:
    """A model of MODELS; building it is most of the work, so it is done once for all recipes."""
    config = next(model["config"] for model in MODELS if model["name"] == name)
    return weightless(config, name)


def weightless(config: Mapping[str, Any], source: str = "config.json") -> Checkpoint:
    """A checkpoint of names and shapes alone, as transformers' class for this config has them; a tied head is left out."""
    from transformers import AutoConfig, AutoModelForCausalLM

    values = {key: value for key, value in config.items() if key != "model_type"}
    if "share_embedding" in config:
        values["tie_word_embeddings"] = config["share_embedding"]
    if "tie_embedding" in config:
        values["tie_word_embeddings"] = config["tie_embedding"]
    with torch.device("meta"):
        full = AutoConfig.for_model(AS_TRANSFORMERS.get(config["model_type"], config["model_type"]), **values)
        model = AutoModelForCausalLM.from_config(full)
    tensors = {name: _described(name, tuple(tensor.shape)) for name, tensor in model.named_parameters()}
    return Checkpoint(source, dict(config), tensors, None, None, (), None, (), ())


def _described(name: str, shape: tuple[int, ...]) -> StoredTensor:
    """A tensor that cannot be read. What is compared of two blocks is their names' bytes, so no two are taken for equal."""

    def read() -> torch.Tensor:
        raise AssertionError(f"{name} was read")

    return StoredTensor(name, shape, "F16", name, (name,), read, lambda: torch.tensor(list(name.encode()), dtype=torch.uint8))


def weights_of(model: Mapping[str, Any], recipe: str = "w8-fast") -> ModelWeights:
    """A model of MODELS under a recipe; nothing of it can be read."""
    checkpoint = settle(_weightless(model["name"]))
    recognised = recognise(checkpoint)
    return ModelWeights(checkpoint, recognised, plan_sharing(checkpoint, recognised), read_recipe(recipe))


def row(model: Mapping[str, Any], footnotes: list[str]) -> tuple[str, ...]:
    """One line of the table; what it has to say beside the numbers is appended to `footnotes`."""
    weights = weights_of(model)
    spec, plan = weights.recognised.spec, weights.plan
    marks = []
    for note in (model.get("note"), *weights.checkpoint.warnings):
        if note:
            if note not in footnotes:
                footnotes.append(note)
            marks.append(f"<sup>{footnotes.index(note) + 1}</sup>")
    parts = part_sizes(weights)
    sizes = [[getattr(part, f"bytes_{column}") for part in parts] for column in ("fp16", "8_bit", "4_bit")]
    blocks = f"{len(plan.blocks)} x {spec.hidden_size}"
    if len(plan.schedule) > len(plan.blocks):
        blocks += f", run {len(plan.schedule)} times"
    if isinstance(spec, RwkvSpec):
        heads, kept = "-", f"none; {state_bytes(weights.recognised, plan):,} in all"
    else:
        slots = kv_slots(weights.recognised, plan)
        heads = f"{spec.num_attention_heads} / {spec.num_key_value_heads} x {spec.head_dim}"
        kept = " / ".join(f"{kv_bytes(spec, slots, dtype):,}" for dtype in ("float32", "int8"))
    against = f"`{model['tiny']}`" + (", real weights" if model["name"] in REAL_WEIGHTS else "")
    return (
        model["name"] + "".join(marks),
        spec.family,
        blocks,
        heads,
        f"{spec.intermediate_size:,}",
        f"{spec.vocab_size:,}",
        f"{spec.max_position_embeddings:,}",
        f"{stored_parameters(weights):,}",
        "tied" if plan.tied else "own",
        *("-" if None in column else f"{sum(column) / 1e6:,.1f}" for column in sizes),
        kept,
        against,
    )


def page() -> str:
    """docs/models.md."""
    columns = ("model", "family", "blocks", "heads", "feed-forward", "vocabulary", "context", "parameters", "head")
    columns += ("fp16", "8 bits", "4 bits", "KV", "held against")
    footnotes: list[str] = []
    rows = [row(model, footnotes) for model in MODELS]
    lines = ["| " + " | ".join(cells) + " |" for cells in (columns, ("---",) * 2 + ("---:",) * 11 + ("---",), *rows)]
    notes = [f"{number}. {note}" for number, note in enumerate(footnotes, 1)]
    read: dict[str, list[str]] = {}
    for model in MODELS:
        read.setdefault(model["read"], []).append(model["name"])
    sources = [f"- {where}: {', '.join(names)}" for where, names in read.items()]
    said = [f"`{model['name']}`" for model in MODELS if "published_parameters" in model]
    checked = f"The parameters of {', '.join(said[:-1])} and {said[-1]} are equal to the digit to what was published of them."
    text = "\n".join([*lines, "", *notes, "", "## Where the configs were read", "", *sources, "", checked])
    return HEADER + text + "\n"


if __name__ == "__main__":
    print(page(), end="")
