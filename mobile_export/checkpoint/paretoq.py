"""ParetoQ's checkpoints: a learned scale per output channel beside each weight -> the codes the network was trained with.

The file holds the weights training rounds in every forward pass, in `weight`, and the scales, in `weight_clip_val`
[out_features, 1]; config.json's `w_bits` says how they are rounded. Here they are rounded once, in the dtype they are stored
in: in bfloat16 a quotient may round to another code than in float32, and training saw the first.
Source: facebookresearch/ParetoQ, `models/utils_quant.py` (arXiv:2502.02631): LSQ for 3 and 4 bits, the sign for 1, the
stretched elastic quantizer for 2 and, as `w_bits` 0, for ternary weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mobile_export.checkpoint.contents import StoredTensor, TrainedCodes
from mobile_export.errors import InputError

if TYPE_CHECKING:
    import torch

SCALE = "weight_clip_val"
W_BITS = (0, 1, 2, 3, 4)
LEAST_SCALE = 1e-5
CLIP = 1 - 1e-2  # of the stretched quantizer
NOTE = "trained with rounded weights and float activations, as ParetoQ does; an artifact's activations are int8"


def with_paretoq_codes(
    config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]
) -> tuple[dict[str, StoredTensor], list[str]]:
    """The tensors, scales taken to their weights, and a warning where there are any.

    Raises:
        InputError: w_bits is missing or none of ParetoQ's, or a scale does not fit its weight.
    """
    scales = {name: tensor for name, tensor in tensors.items() if name.endswith(f".{SCALE}")}
    if not scales:
        return dict(tensors), []
    bits = config.get("w_bits")
    if type(bits) is not int or bits not in W_BITS:
        what = f"w_bits is {bits!r}, and the weights have scales ({SCALE}) that mean something only with it"
        raise InputError("config.json", what, "write the number the checkpoint was trained with: 0 (ternary), 1, 2, 3 or 4")
    held = {name: tensor for name, tensor in tensors.items() if name not in scales}
    for name, scale in scales.items():
        owner = name.removesuffix(SCALE) + "weight"
        weight = held.get(owner)
        if weight is None or len(weight.shape) != 2 or scale.shape != (weight.shape[0], 1):
            shape = "is missing" if weight is None else f"has shape {list(weight.shape)}"
            what = f"has shape {list(scale.shape)}, and {owner} {shape}"
            raise InputError(scale.where, what, "a scale belongs to every row of its weight: is the file whole?")
        held[owner] = _coded(weight, scale, bits)
    return held, [f"config.json: w_bits {bits}: {NOTE}"]


def _coded(weight: StoredTensor, scale: StoredTensor, bits: int) -> StoredTensor:
    import torch

    def codes() -> tuple[torch.Tensor, torch.Tensor]:
        found, steps = paretoq_codes(weight.read(), scale.read(), bits)
        if not (torch.isfinite(steps).all() and torch.isfinite(weight.read()).all()):
            raise InputError(scale.where, "a scale or a weight is not finite", "the checkpoint is damaged: use another one")
        return found, steps

    def values() -> torch.Tensor:
        found, steps = codes()
        return found * steps

    return dataclasses.replace(
        weight,
        storage=(weight.storage, scale.storage),
        read=values,
        raw=lambda: torch.cat((weight.raw(), scale.raw())),
        trained=TrainedCodes(4, None, codes),
    )


def paretoq_codes(weight: torch.Tensor, clip: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes int8 and scales float32 [out_features, 1] whose products are what training multiplies with.

    In float32 the products are those of training to the bit. In bfloat16 training rounds the product of 2, 3 or 4 bits once
    more, by 2**-9 of it at most, which codes and scales cannot say.

    Args:
        weight, clip: as stored, floating.
        bits: 0 for ternary.
    """
    import torch

    step = torch.where(clip > LEAST_SCALE, clip, torch.tensor(LEAST_SCALE))
    if bits == 1:
        codes = weight.sign()
    elif bits in (3, 4):
        codes = (weight / step).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    elif bits == 2:  # values -3/4, -1/4, 1/4 and 3/4 of the scale
        codes = 2 * torch.round(torch.clamp(weight / step, -CLIP, CLIP) * 2 - 0.5) + 1
        step = step / 4
    else:
        codes = torch.round(torch.clamp(weight / step, -CLIP, CLIP) * 1.5)
        step = (torch.ones_like(step) / 1.5) * step
    return codes.to(torch.int8), step.float()
