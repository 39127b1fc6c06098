"""A recipe of 4 and 8 bits from the names that have 4, and its file."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from itertools import groupby

from mobile_export.quantize.recipe import EMBEDDING, HEAD, Calibration, Override, Precision, Recipe

FOUR, EIGHT = Precision(4, 32), Precision(8)


def mixed_recipe(
    name: str, description: str, matrices: Iterable[str], four: Collection[str], calibration: Calibration | None = None
) -> Recipe:
    """The recipe under which these of a graph's matrices have 4 bits, the others 8.

    What most matrices in the blocks have is its rule, the others are named by kind.

    Args:
        matrices: all of the graph's, learned positions aside: they have 8 bits by themselves.
        calibration: None for the clipping search.
    """

    def precision(matrix: str) -> Precision:
        return FOUR if matrix in four else EIGHT

    beside = [matrix for matrix in matrices if matrix not in (EMBEDDING, HEAD)]
    usual = FOUR if 2 * sum(matrix in four for matrix in beside) > len(beside) else EIGHT
    others = [matrix for matrix in beside if precision(matrix) != usual]
    unusual = EIGHT if usual == FOUR else FOUR
    return Recipe(
        name,
        description,
        linear=usual,
        embedding=precision(EMBEDDING),
        head=precision(HEAD),
        override=[Override(match, unusual) for match in _by_kind(others)],
        quantizer="clip" if calibration is None else "gptq",
        calibration=calibration,
    )


def _by_kind(matrices: Iterable[str]) -> list[str]:
    """Their names, those that differ by the block's number alone as one.

    >>> _by_kind(["blocks.0.ffn.up.weight", "blocks.1.ffn.o.weight", "blocks.3.ffn.up.weight", "head.project.weight"])
    ['blocks.1.ffn.o.weight', 'blocks.{0,3}.ffn.up.weight', 'head.project.weight']
    """

    def kind(matrix: str) -> str:
        return matrix.split(".", 2)[2] if matrix.startswith("blocks.") else ""

    found = []
    for rest, of_kind in groupby(sorted(matrices, key=kind), key=kind):
        names = list(of_kind)
        numbers = [name.split(".")[1] for name in names]
        found += [f"blocks.{{{','.join(numbers)}}}.{rest}"] if rest and len(names) > 1 else names
    return sorted(found)


def to_toml(recipe: Recipe, remarks: Iterable[str] = ()) -> str:
    """A recipe as read_recipe reads it. remarks: comments above it."""
    lines = [f"# {remark}" for remark in remarks]
    lines += [f"{key} = {_text(value)}" for key, value in (("name", recipe.name), ("description", recipe.description))]
    for key, precision in (("linear", recipe.linear), ("embedding", recipe.embedding), ("head", recipe.head)):
        lines.append(f"{key} = {_inline(precision)}")
    lines += [
        f"{key} = {_text(value)}" for key, value in (("activations", recipe.activations), ("quantizer", recipe.quantizer))
    ]
    if recipe.own_codes:
        lines.append("own_codes = true")
    for override in recipe.override:
        lines += ["", "[[override]]", f"match = {_text(override.match)}", f"precision = {_inline(override.precision)}"]
    if recipe.calibration:
        lines += ["", "[calibration]", f"sequences = {recipe.calibration.sequences}", f"tokens = {recipe.calibration.tokens}"]
    return "\n".join([*lines, "", "[kv]", f"dtype = {_text(recipe.kv.dtype)}", ""])


def _inline(precision: Precision) -> str:
    group = f", group_size = {precision.group_size}" if precision.group_size else ""
    return f"{{ bits = {precision.bits}{group} }}"


def _text(value: str) -> str:
    """A TOML string: JSON's, but for one character that JSON leaves as it is."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
