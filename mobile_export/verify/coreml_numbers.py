"""Reads a package's codes and scales back, bit for bit."""

from __future__ import annotations

import torch

from mobile_export.emit.coreml.package import SUFFIX
from mobile_export.model.decoder import Decoder
from mobile_export.quantize.clip_search import QuantizedWeight
from mobile_export.verify.mlprogram.program import Program
from mobile_export.verify.quantized_linear import DynamicInt8Linear, QuantizedEmbedding


def matrices_that_differ(program: Program, decoder: Decoder, *, tied: bool) -> list[str]:
    """The quantized matrices a package does not hold exactly once in each function, with the decoder's codes and scales.

    Args:
        decoder: float16_decoder's, of the weights the package was made from.
    """
    wrong = set()
    for function in program.functions:
        found: dict[str, list[str]] = {}
        for name in program.functions[function].compressed:
            found.setdefault(SUFFIX.sub("", name), []).append(name)
        for place, weight in quantized_places(decoder, tied=tied).items():
            stored = [name for name in found.get(place.replace(".", "_"), []) if "_codes" not in name]
            if len(stored) != 1 or not _equal(program, function, stored[0], weight):
                wrong.add(place)
    return sorted(wrong)


def quantized_places(decoder: Decoder, *, tied: bool) -> dict[str, QuantizedWeight]:
    """Quantized matrices by the name of their place in the traced decoder; a tied head has none of its own."""
    places = {}
    for name, module in decoder.named_modules():
        if isinstance(module, DynamicInt8Linear) and not (tied and name == "head.linear"):
            places[f"{name}.weight"] = module.weight
        elif isinstance(module, QuantizedEmbedding):
            places[f"{name}.weight"] = module.table
    return places


def _equal(program: Program, function: str, name: str, weight: QuantizedWeight) -> bool:
    stored = program.codes(function, name)
    scales = weight.scales.half()
    if "data" in stored:
        codes = stored["data"]
    else:  # indices into a palette of codes, compressed itself
        palette = program.codes(function, name_of_data(program, function, name))
        codes = palette["lut"].flatten().to(torch.int8)[palette["indices"].long()]
    return torch.equal(codes, weight.codes) and torch.equal(stored["scale"].view(scales.shape), scales)


def name_of_data(program: Program, function: str, name: str) -> str:
    """The value a compressed constant takes its codes from, where that is compressed itself."""
    (value,) = program.functions[function].compressed[name].inputs["data"]
    assert isinstance(value, str)
    return value
