"""From a model's weights to a Core ML program: trace, convert, put the matrices in, run coremltools' passes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.jit._trace import TracerWarning

from mobile_export.emit.coreml.decoder import COLUMNS, KEYS, VALUES, StatefulDecoder
from mobile_export.emit.coreml.layouts import LOGITS, CoreMlOptions, Function
from mobile_export.emit.coreml.matrices import put_matrices
from mobile_export.emit.coreml.toolchain import coremltools
from mobile_export.quantize.clip_search import QuantizedWeight
from mobile_export.quantize.weights import ModelWeights

INT16_LIMIT = 1 << 15  # positions from here on do not fit the int16 that coremltools makes of indices


def convert(
    function: Function, weights: ModelWeights, options: CoreMlOptions, quantized: Callable[[str], QuantizedWeight]
) -> tuple[Any, list[str]]:
    """One function of a package as coremltools' MLModel, in a temporary place, and warnings.

    Args:
        quantized: a matrix's codes and scales by its name, those of weights.quantized.
    Raises:
        InputError: a weight that cannot be read, is not finite, or is beyond float16.
    """
    decoder = function.decoder(weights, options.max_context).eval()
    ct = coremltools()
    states = [_state(name, decoder) for name in (KEYS, VALUES, COLUMNS) if hasattr(decoder, name)]
    program = ct.convert(
        _trace(decoder, function.example),
        inputs=list(function.inputs),
        outputs=[ct.TensorType(LOGITS, dtype=np.float16)],
        states=states,
        convert_to="milinternal",
        minimum_deployment_target=ct.target.iOS18,
        pass_pipeline=ct.PassPipeline.EMPTY,
    )
    warned = put_matrices(program, weights, quantized, palettes=options.palettes)
    passes = ct.PassPipeline.DEFAULT
    unwanted = {
        "common::divide_to_multiply",  # 50 is exact in float16, 1 / 50 is not
        "common::canonicalize_quantized_lut_pattern",  # moves scales into palettes: sixteen values for every group of inputs
    }
    if decoder.context >= INT16_LIMIT:
        unwanted.add("common::add_int16_cast")
    passes.remove_passes(unwanted)
    with warnings.catch_warnings():
        # A pass asks which range of numbers survives two casts in a row, and compares with float32's.
        own = r"coremltools\.converters\.mil\.mil\.passes\.defs\.optimize_repeat_ops"
        warnings.filterwarnings("ignore", "overflow encountered in cast", RuntimeWarning, own)
        model = ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS18,
            compute_precision=ct.precision.FLOAT16,
            pass_pipeline=passes,
            skip_model_load=True,
        )
    return model, warned


def _state(name: str, decoder: StatefulDecoder) -> Any:
    ct = coremltools()
    return ct.StateType(ct.TensorType(shape=tuple(decoder.get_buffer(name).shape), dtype=np.float16), name=name)


def _trace(decoder: StatefulDecoder, example: tuple[torch.Tensor, ...]) -> torch.jit.ScriptModule:
    with torch.no_grad(), warnings.catch_warnings():
        # Comparisons of shapes that are the same in every call; a wrong one would fail verification.
        warnings.simplefilter("ignore", TracerWarning)
        return torch.jit.trace(decoder, example, check_trace=False)
