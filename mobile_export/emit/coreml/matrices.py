"""Codes and scales into a converted program, in the place of its placeholders.

Done before any of coremltools' passes, so that none computes, compares or copies a matrix in its full size. Each stored
weight becomes one constant, whatever the number of its places: that is how a tied table and a shared block stay one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mobile_export.emit.coreml.decoder import parameter_of, weight_of
from mobile_export.emit.coreml.limits import check_float16
from mobile_export.quantize.clip_search import QuantizedWeight
from mobile_export.quantize.weights import ModelWeights

CODES = "_codes"  # a matrix's codes are named as the matrix, with this at the end
PALETTE = np.arange(-8, 8, dtype=np.float32)


def put_matrices(
    program: Any, weights: ModelWeights, quantized: Callable[[str], QuantizedWeight], *, palettes: bool
) -> list[str]:
    """Replace the placeholder of every matrix in a program.

    Args:
        program: coremltools' Program, fresh from the frontend: constants are named as the traced module's parameters.
        quantized: a matrix's codes and scales by its name.
        palettes: 4-bit codes as indices into a palette of the sixteen, under the same scales.
    Returns:
        Warnings: matrices with scales that float16 rounds.
    Raises:
        InputError: a weight that cannot be read, is not finite, or is beyond float16.
        AssertionError: a matrix met no placeholder, or a placeholder no matrix. Ours to mend, never the user's.
    """
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.converters.mil.mil.scope import ScopeInfo

    (function,) = program.functions.values()
    made: dict[str, Any] = {}
    warnings: list[str] = []
    with function:
        for operation in list(function.operations):
            if operation.op_type != "const" or not _is_placeholder(operation.outputs[0].val):
                continue
            name = weights.source_of(weight_of(operation.outputs[0].name))
            if name not in made:
                with mb.scope(*(ScopeInfo(source, data) for source, data in operation.scopes.items())):
                    made[name], warning = _constant(name, weights, quantized, operation, palettes=palettes)
                warnings += warning
            function.replace_uses_of_var_after_op(
                anchor_op=operation, old_var=operation.outputs[0], new_var=made[name], force_replace=True
            )
            function.remove_ops([operation])
    assert made.keys() == weights.matrices.keys(), f"no placeholder for {sorted(weights.matrices.keys() - made.keys())[:3]}"
    return warnings


def _is_placeholder(value: object) -> bool:
    """A matrix over a single zero: what decoder.py puts where codes will go."""
    return isinstance(value, np.ndarray) and value.ndim == 2 and value.strides == (0, 0)


def _constant(
    name: str, weights: ModelWeights, quantized: Callable[[str], QuantizedWeight], before: Any, *, palettes: bool
) -> tuple[Any, list[str]]:
    """The operator that gives a matrix, in float32 here: the pass to float16 takes the scales along. And warnings."""
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    place = parameter_of(name)  # what its constants are named after, and looked for by
    if weights.matrices[name].precision.bits == 32:
        values = weights.float32(name)
        check_float16(values, weights.where(name))
        return mb.const(val=values.numpy(), name=place, before_op=before), []
    weight = quantized(name)
    codes, scales = weight.codes.numpy(), weight.scales
    check_float16(scales, weights.where(name))
    held = scales.half().float()  # rounded here, since coremltools makes 1e-7 of what becomes zero
    if weight.precision.bits == 4 and palettes:
        indices = (codes + 8).astype(types.nptype_from_builtin(types.uint4))
        lut = PALETTE.reshape(1, 1, 16, 1)
        data = mb.constexpr_lut_to_dense(indices=indices, lut=lut, name=place + CODES, before_op=before)
    else:
        four = types.nptype_from_builtin(types.int4)
        data = mb.const(val=codes.astype(four if weight.precision.bits == 4 else np.int8), name=place + CODES, before_op=before)
    matrix = mb.constexpr_blockwise_shift_scale(data=data, scale=held.numpy(), name=place, before_op=before)
    rounded = int((held != scales).sum())
    if not rounded:
        return matrix, []
    of = f"{rounded:,} of {scales.numel():,} scales are not what float16 holds exactly, and are rounded"
    return matrix, [f"{weights.where(name)}: {of}; the package's rows there are not the .pte's"]
