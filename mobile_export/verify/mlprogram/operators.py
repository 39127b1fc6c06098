"""What the interpreter knows: every operator's arithmetic, the dtype it gives, and whether its result shares memory.

A function's parameters are named as the operator's inputs; their annotations say as what a value is handed over, and
their defaults are the operator's. So an input missing here is an input this interpreter does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from mobile_export.verify.mlprogram import compressed, elementwise, products, reductions, shapes
from mobile_export.verify.mlprogram.elementwise import binary, unary
from mobile_export.verify.mlprogram.reductions import reduction


@dataclass(frozen=True)
class Operator:
    """One operator. Its result has the dtype of its first parameter, or as one of the first three fields says."""

    run: Callable[..., Any]
    like: str = ""  # the parameter whose dtype it has
    dtype: str = ""  # always this one
    named_by: str = ""  # the parameter that names it
    default: str = ""  # where the parameter of `like` or `named_by` is not given
    view: bool = False  # it may share its first input's memory
    moves: bool = False  # its elements are elements of its inputs: nothing to round


def _view(run: Callable[..., Any]) -> Operator:
    return Operator(run, view=True, moves=True)


def _move(run: Callable[..., Any], like: str = "", default: str = "") -> Operator:
    return Operator(run, like=like, default=default, moves=True)


def _truth(run: Callable[..., Any]) -> Operator:
    return Operator(run, dtype="bool")


OPERATORS: Mapping[str, Operator] = {
    # one element at a time
    "abs": Operator(unary(torch.abs)),
    "add": Operator(binary(torch.add)),
    "cast": Operator(elementwise.cast, named_by="dtype", view=True),  # to the dtype it has: x itself
    "ceil": Operator(unary(torch.ceil)),
    "clip": Operator(elementwise.clip),
    "cos": Operator(unary(torch.cos)),
    "equal": _truth(binary(torch.eq)),
    "erf": Operator(unary(torch.erf)),
    "exp": Operator(unary(torch.exp)),
    "exp2": Operator(unary(torch.exp2)),
    "floor": Operator(unary(torch.floor)),
    "floor_div": Operator(binary(elementwise.floor_div)),
    "gelu": Operator(elementwise.gelu),
    "greater": _truth(binary(torch.gt)),
    "greater_equal": _truth(binary(torch.ge)),
    "inverse": Operator(elementwise.inverse),
    "leaky_relu": Operator(elementwise.leaky_relu),
    "less": _truth(binary(torch.lt)),
    "less_equal": _truth(binary(torch.le)),
    "log": Operator(elementwise.log),
    "logical_and": _truth(binary(torch.logical_and)),
    "logical_not": _truth(unary(torch.logical_not)),
    "logical_or": _truth(binary(torch.logical_or)),
    "logical_xor": _truth(binary(torch.logical_xor)),
    "maximum": Operator(binary(torch.maximum)),
    "minimum": Operator(binary(torch.minimum)),
    "mod": Operator(binary(torch.remainder)),
    "mul": Operator(binary(torch.mul)),
    "not_equal": _truth(binary(torch.ne)),
    "pow": Operator(binary(torch.pow)),
    "real_div": Operator(binary(elementwise.real_div)),
    "relu": Operator(unary(functional.relu)),
    "relu6": Operator(elementwise.relu6),
    "round": Operator(unary(torch.round)),
    "rsqrt": Operator(elementwise.rsqrt),
    "select": Operator(elementwise.select, like="a", moves=True),
    "sigmoid": Operator(unary(torch.sigmoid)),
    "sign": Operator(unary(torch.sign)),
    "silu": Operator(unary(functional.silu)),
    "sin": Operator(unary(torch.sin)),
    "softplus": Operator(elementwise.softplus),
    "sqrt": Operator(unary(torch.sqrt)),
    "square": Operator(unary(torch.square)),
    "sub": Operator(binary(torch.sub)),
    "tanh": Operator(unary(torch.tanh)),
    "threshold": Operator(elementwise.threshold),
    # matrices
    "conv": Operator(products.conv),
    "linear": Operator(products.linear),
    "matmul": Operator(products.matmul),
    "scaled_dot_product_attention": Operator(products.scaled_dot_product_attention),
    # whole axes
    "argsort": Operator(reductions.argsort, dtype="int32"),
    "cumsum": Operator(reductions.cumsum),
    "l2_norm": Operator(reductions.l2_norm),
    "layer_norm": Operator(reductions.layer_norm),
    "reduce_argmax": Operator(reductions.reduce_argmax, named_by="output_dtype", default="int32"),
    "reduce_argmin": Operator(reductions.reduce_argmin, named_by="output_dtype", default="int32"),
    "reduce_l1_norm": Operator(reduction(lambda x, axes, keep_dims: x.abs().sum(axes, keepdim=keep_dims))),
    "reduce_l2_norm": Operator(reduction(lambda x, axes, keep_dims: x.square().sum(axes, keepdim=keep_dims).sqrt())),
    "reduce_log_sum": Operator(reduction(lambda x, axes, keep_dims: x.sum(axes, keepdim=keep_dims).log())),
    "reduce_log_sum_exp": Operator(reduction(lambda x, axes, keep_dims: x.logsumexp(axes, keepdim=keep_dims))),
    "reduce_max": Operator(reduction(lambda x, axes, keep_dims: x.amax(axes, keepdim=keep_dims))),
    "reduce_mean": Operator(reduction(lambda x, axes, keep_dims: x.mean(axes, keepdim=keep_dims))),
    "reduce_min": Operator(reduction(lambda x, axes, keep_dims: x.amin(axes, keepdim=keep_dims))),
    "reduce_prod": Operator(reduction(reductions.product)),
    "reduce_sum": Operator(reduction(lambda x, axes, keep_dims: x.sum(axes, keepdim=keep_dims))),
    "reduce_sum_square": Operator(reduction(lambda x, axes, keep_dims: x.square().sum(axes, keepdim=keep_dims))),
    "softmax": Operator(reductions.softmax),
    "topk": Operator(reductions.topk, moves=True),
    # elements moved
    "band_part": _move(shapes.band_part),
    "concat": _move(shapes.concat),
    "expand_dims": _view(shapes.expand_dims),
    "fill": _move(shapes.fill, like="value", default="float32"),
    "fill_like": _move(shapes.fill_like, like="value", default="float32"),
    "gather": _move(shapes.gather),
    "gather_along_axis": _move(shapes.gather_along_axis),
    "gather_nd": _move(shapes.gather_nd),
    "identity": _view(shapes.identity),
    "one_hot": _move(shapes.one_hot, like="on_value", default="int32"),
    "pad": _move(shapes.pad),
    "range_1d": Operator(shapes.range_1d),
    "reshape": _view(shapes.reshape),
    "reverse": _move(shapes.reverse),
    "scatter_nd": Operator(shapes.scatter_nd),
    "shape": Operator(shapes.shape, dtype="int32"),
    "slice_by_index": _view(shapes.slice_by_index),
    "slice_by_size": _view(shapes.slice_by_size),
    "slice_update": _move(shapes.slice_update),
    "split": _view(shapes.split),
    "squeeze": _view(shapes.squeeze),
    "stack": _move(shapes.stack),
    "tile": _move(shapes.tile),
    "transpose": _view(shapes.transpose),
    # weights stored as codes; their parameters are constants
    "constexpr_affine_dequantize": Operator(compressed.affine_dequantize, like="scale"),
    "constexpr_blockwise_shift_scale": Operator(compressed.blockwise_shift_scale, like="scale"),
    "constexpr_cast": Operator(compressed.constexpr_cast, named_by="output_dtype"),
    "constexpr_lut_to_dense": Operator(compressed.lut_to_dense, like="lut", moves=True),
}
LUT_OF_IOS16 = Operator(compressed.lut_to_dense_ios16, like="lut", moves=True)  # the same name, with a parameter `shape`


def operator_of(type_: str, parameters: Mapping[str, object]) -> Operator | None:
    """The operator of a type; None if there is none here."""
    if type_ == "constexpr_lut_to_dense" and "shape" in parameters:
        return LUT_OF_IOS16
    return OPERATORS.get(type_)
