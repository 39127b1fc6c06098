"""The cheapest change that would make a model fit: every candidate is judged like the model itself, the first that fits wins.

Cheapest first: a context down to half as long, an int8 cache, a 4-bit table, a smaller recipe, and these together; if none
of it fits, the same with a context down to a quarter, and so on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mobile_export.budget.facts import ModelFacts
from mobile_export.budget.verdict import Limits, Target, Use, Verdict, judge
from mobile_export.families.spec import DecoderSpec
from mobile_export.quantize.recipe import EMBEDDING, HEAD, Override, Precision, Recipe

LEAST_CONTEXT = 128  # below it a chat has no room
CONTEXT_STEP = 64
TABLE_GROUP = 32


@dataclass(frozen=True)
class Candidate:
    """A model with something changed, and what in words: nothing for the model as it is."""

    changes: tuple[str, ...]
    facts: ModelFacts


@dataclass(frozen=True)
class Change:
    """What to do differently, in words and as it would be judged."""

    what: str
    verdict: Verdict


def cheapest_change(tried: Sequence[Candidate], target: Target, limits: Limits, use: Use) -> Change | None:
    """The first change that makes it fit, or None where none of them does.

    Args:
        tried: what `candidates` gives, the model as it is ahead of all.
    """
    rows = use.context or tried[0].facts.max_context
    able = [candidate for candidate in tried if _could_fit(candidate.facts, target, limits, use)]
    for least in _leasts(rows) if able else ():
        for candidate in able:
            verdict = judge(candidate.facts, target, limits, use)
            if verdict.outcome == "fits":
                return Change(_joined(*candidate.changes), verdict)
            shorter = longest_context(candidate.facts, target, limits, use, least)
            if shorter is not None:
                context, verdict = shorter
                return Change(_joined(*candidate.changes, f"context {context:,}"), verdict)
    return None


def candidates(facts: ModelFacts, recipes: Sequence[Recipe]) -> list[Candidate]:
    """What may be changed beside the context, cheapest first; ahead of all the model as it is.

    Args:
        recipes: those to try beside the model's own.
    """
    caches: list[tuple[tuple[str, ...], ModelFacts]] = [((), facts)]
    if facts.kv_dtype != "int8" and can_keep_int8(facts):
        caches.append((("int8 KV",), dataclasses.replace(facts, kv_dtype="int8")))
    stored: list[tuple[tuple[str, ...], Recipe | None]] = [((), None)]
    four = with_four_bit_table(facts)
    if four is not None:
        stored.append((("4-bit table",), four))
    stored += [((f"recipe {recipe.name}",), recipe) for recipe in smaller_recipes(facts, recipes)]
    return [
        Candidate(weights + cache, kept if recipe is None else kept.with_recipe(recipe))
        for weights, recipe in stored
        for cache, kept in caches
    ]


def longest_context(
    facts: ModelFacts, target: Target, limits: Limits, use: Use, least: int = LEAST_CONTEXT
) -> tuple[int, Verdict] | None:
    """The longest context, in steps, that fits and is shorter than the one asked for; None where not even `least` does."""
    best, low, high = None, -(-least // CONTEXT_STEP), ((use.context or facts.max_context) - 1) // CONTEXT_STEP
    while low <= high:
        middle = (low + high) // 2
        verdict = judge(facts, target, limits, dataclasses.replace(use, context=middle * CONTEXT_STEP))
        if verdict.outcome == "fits":
            best, low = (middle * CONTEXT_STEP, verdict), middle + 1
        else:
            high = middle - 1
    return best


def can_keep_int8(facts: ModelFacts) -> bool:
    """Whether the format keeps an int8 cache: a .pte with custom attention, an ONNX model of contrib operators."""
    if not isinstance(facts.spec, DecoderSpec) or facts.format == "coreml" or facts.state_bytes:
        return False
    return not facts.portable if facts.format == "onnx" else facts.attention == "custom"


def with_four_bit_table(facts: ModelFacts) -> Recipe | None:
    """The model's recipe with table and head in 4 bits; None where they are, or where their width does not divide."""
    recipe = facts.recipe
    if recipe.activations != "int8" or facts.spec.table_size % TABLE_GROUP:
        return None
    if all(recipe.precision_of(m.name).bits == 4 for m in facts.matrices if m.name in (EMBEDDING, HEAD)):
        return None
    four = Precision(4, TABLE_GROUP)
    return dataclasses.replace(recipe, name=f"{recipe.name}, 4-bit table", override=[*recipe.override, *_tables(four)])


def smaller_recipes(facts: ModelFacts, recipes: Sequence[Recipe]) -> list[Recipe]:
    """Recipes that make less of the weights than the model's own, the largest of them first; of equal size the first given."""
    own = _weight_bytes(facts)
    if facts.recipe.own_codes:  # no other would take the checkpoint
        return []
    fitting = [recipe for recipe in reversed(recipes) if not recipe.own_codes and _divides(facts, recipe)]
    sized = {_weight_bytes(facts.with_recipe(recipe)): recipe for recipe in fitting}
    return [sized[size] for size in sorted(sized, reverse=True) if size < own]


def _joined(*changes: str) -> str:
    """ "4-bit table, int8 KV and context 960"."""
    return " and ".join(filter(None, (", ".join(changes[:-1]), changes[-1])))


def _could_fit(facts: ModelFacts, target: Target, limits: Limits, use: Use) -> bool:
    """Whether it would with the least context: a longer one never needs less."""
    least = min(LEAST_CONTEXT, use.context or facts.max_context)
    return judge(facts, target, limits, dataclasses.replace(use, context=least)).outcome == "fits"


def _leasts(context: int) -> Iterator[int]:
    """The shortest context each round may propose: half of it, a quarter, ..., the least."""
    while context // 2 > LEAST_CONTEXT:
        context //= 2
        yield context
    yield LEAST_CONTEXT


def _tables(precision: Precision) -> list[Override]:
    return [Override(EMBEDDING, precision), Override(HEAD, precision)]


def _weight_bytes(facts: ModelFacts) -> int:
    return sum(matrix.code_bytes + matrix.scale_bytes for matrix in facts.matrices)


def _divides(facts: ModelFacts, recipe: Recipe) -> bool:
    groups = ((matrix.shape[1], recipe.precision_of(matrix.name).group_size) for matrix in facts.matrices)
    return all(columns % group == 0 for columns, group in groups if group)
