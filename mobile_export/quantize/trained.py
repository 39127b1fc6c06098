"""Matrices that were trained to be rounded: their codes and scales go into the artifact as they are, never rounded again."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

import torch

from mobile_export.checkpoint.contents import StoredTensor, TrainedCodes
from mobile_export.errors import InputError
from mobile_export.families.spec import WeightSource
from mobile_export.quantize.clip_search import QuantizedWeight
from mobile_export.quantize.matrix_plan import MatrixPlan
from mobile_export.quantize.recipe import EMBEDDING, HEAD, Override, Precision, Recipe


def trained_precisions(tensors: Mapping[str, StoredTensor], sources: Mapping[str, WeightSource]) -> dict[str, Precision]:
    """Graph name -> precision of every matrix whose tensors have codes of their own.

    Raises:
        InputError: tensors that make one matrix of the graph differ in it, or the matrix lies across the codes' channels.
    """
    found = {}
    for name, source in sources.items():
        own = [tensors[tensor].trained for tensor in source.tensors]
        if not any(own):
            continue
        first = tensors[source.tensors[0]]
        for tensor, codes in zip(source.tensors, own, strict=True):
            if _precision(codes) != _precision(first.trained):
                what = f"is {_spoken(codes)}, {source.tensors[0]} is {_spoken(first.trained)}"
                then = f"train those of {name} alike: they are one matrix"
                raise InputError(tensors[tensor].where, what, then)
        if any(take.transposed or take.flattened or take.value != "stored" for _, take in source.parts()):
            what = "has a scale for every input, where artifacts have one for every output"
            raise InputError(first.where, what, "export the float checkpoint")
        precision = _precision(own[0])
        assert precision is not None, "all are alike, and one of them has codes"
        found[name] = precision
    return found


def with_own_codes(recipe: Recipe, trained: Mapping[str, Precision], matrices: Sequence[str]) -> Recipe:
    """The recipe, and where it has own_codes the precisions they give it: what it says of every matrix is then what is stored.

    Raises:
        InputError: it has own_codes, and no matrix was trained to have any.
    """
    if not recipe.own_codes:
        return recipe
    if not trained:
        what = "no matrix of the checkpoint was trained to have codes"
        raise InputError(f"recipe {recipe.name}", what, "choose another: `recipes` lists them")
    wanted = {name: trained.get(name) or recipe.precision_of(name) for name in matrices}
    usual = Counter(precision for name, precision in wanted.items() if name.startswith("blocks.")).most_common(1)[0][0]
    table, head = wanted[EMBEDDING], wanted.get(HEAD, recipe.head)
    settled = dataclasses.replace(recipe, linear=usual, embedding=table, head=head, override=[])
    others = [Override(name, wanted[name]) for name in matrices if settled.precision_of(name) != wanted[name]]
    return dataclasses.replace(settled, override=others)


def check_kept(where: str, matrix: MatrixPlan, trained: Precision | None, recipe: Recipe) -> None:
    """Refuse to round a matrix again that was trained to be rounded otherwise. float32 holds its values as they are.

    Raises:
        InputError: the recipe asks for it.
    """
    if trained is None or matrix.precision.bits == 32 or (matrix.precision == trained and recipe.quantizer == "clip"):
        return
    how = "calibrates it" if matrix.precision == trained else f"makes it {matrix.precision}"
    what = f"was trained to be {trained}, recipe {recipe.name} {how}"
    raise InputError(where, what, "use --recipe trained, which keeps the checkpoint's own codes")


def trained_codes(tensors: Mapping[str, StoredTensor], source: WeightSource, precision: Precision) -> QuantizedWeight:
    """The codes and scales of a matrix whose tensors have them, stacked and taken as its values are.

    Raises:
        InputError: the stored codes or scales are damaged.
    """
    parts = []
    for tensor, take in source.parts():
        trained = tensors[tensor].trained
        assert trained is not None, "asked of matrices that trained_precisions names"
        codes, scales = trained.read()
        parts.append((take.of(codes), take.of(scales)))
    return QuantizedWeight(torch.cat([codes for codes, _ in parts]), torch.cat([scales for _, scales in parts]), precision)


def _precision(codes: TrainedCodes | None) -> Precision | None:
    return Precision(codes.bits, codes.group_size) if codes else None


def _spoken(codes: TrainedCodes | None) -> str:
    return str(_precision(codes) or "not trained to have codes")
