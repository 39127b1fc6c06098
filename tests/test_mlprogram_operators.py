"""Every operator of an ML program against torch, numpy or numbers worked by hand, from a saved package."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types
from mlprograms import only, run, save
from torch.nn import functional

from mobile_export.errors import InputError
from mobile_export.verify.mlprogram.interpreter import Interpreter
from mobile_export.verify.mlprogram.operators import OPERATORS
from mobile_export.verify.mlprogram.program import Program
from mobile_export.verify.mlprogram.values import Constant, TensorType

X = torch.tensor([[-1.5, 0.0, 0.5], [1.0, 2.0, 3.5]])
Y = torch.tensor([[2.0, -3.0, 0.25], [1.0, 0.5, -4.0]])
N = torch.tensor([[3, -7, 2], [0, 5, 5]], dtype=torch.int32)
M = torch.tensor([[2, 2, -3], [4, 5, -5]], dtype=torch.int32)
CUBE = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4) / 8 - 1
IMAGE = torch.sin(torch.arange(2 * 4 * 5, dtype=torch.float32)).reshape(1, 8, 5)
FEEDS = {"x": X, "y": Y, "n": N, "m": M, "cube": CUBE, "image": IMAGE}
SPECS = [mb.TensorSpec(tuple(v.shape), types.int32 if v.dtype == torch.int32 else types.fp32) for v in FEEDS.values()]
KERNEL = np.cos(np.arange(24, dtype=np.float32)).reshape(8, 1, 3)
WIDE = np.cos(np.arange(6 * 4 * 3, dtype=np.float32)).reshape(6, 4, 3)
BIAS = np.arange(6, dtype=np.float32)
WEIGHT = np.array([[1.0, 2.0, 3.0], [-1.0, 0.5, 0.25]], np.float32)
GAMMA, BETA = np.array([1.0, 2.0, -1.0], np.float32), np.array([0.0, 0.5, 4.0], np.float32)


def tensor(values: Any, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


def integers(values: Any) -> torch.Tensor:
    return tensor(values, torch.int32)


def truths(values: Any) -> torch.Tensor:
    return tensor(values, torch.bool)


def gelu(x: float) -> float:
    return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))


def gelu_tanh(x: float) -> float:
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def each(function: Callable[[float], float]) -> torch.Tensor:
    """A function of one number, of every element of X."""
    return tensor([[function(float(value)) for value in row] for row in X])


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    powers = np.exp(x - x.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def attention(mask: np.ndarray) -> torch.Tensor:
    """CUBE attends to itself, by the formula; mask is added to the scores."""
    cube = CUBE.numpy()
    return torch.from_numpy(softmax(cube @ cube.swapaxes(-1, -2) / math.sqrt(4) + mask, -1) @ cube)


def normed(x: np.ndarray, axes: tuple[int, ...], epsilon: float) -> np.ndarray:
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + epsilon)


DIAGONAL = np.eye(3, dtype=np.float32)
PAIR = np.array([[True, False, True], [True, True, False], [False, False, True]])
HIDDEN = np.where(PAIR, 0, -np.inf).astype(np.float32)

# name -> (how it is built, what it gives). The operator is what comes before "/".
Case = tuple[Callable[..., Any], torch.Tensor]
CASES: dict[str, Case] = {
    "abs": (lambda x, **_: mb.abs(x=x), tensor([[1.5, 0.0, 0.5], [1.0, 2.0, 3.5]])),
    "abs/int": (lambda n, **_: mb.abs(x=n), integers([[3, 7, 2], [0, 5, 5]])),
    "add": (lambda x, y, **_: mb.add(x=x, y=y), tensor([[0.5, -3.0, 0.75], [2.0, 2.5, -0.5]])),
    "add/broadcast": (lambda x, **_: mb.add(x=x, y=np.float32(10)), tensor([[8.5, 10, 10.5], [11, 12, 13.5]])),
    "cast/int32": (lambda x, **_: mb.cast(x=x, dtype="int32"), integers([[-1, 0, 0], [1, 2, 3]])),
    "cast/bool": (lambda x, **_: mb.cast(x=x, dtype="bool"), truths([[True, False, True], [True, True, True]])),
    "cast/fp32": (lambda n, **_: mb.cast(x=n, dtype="fp32"), tensor([[3, -7, 2], [0, 5, 5]])),
    "cast/uint16": (
        lambda n, **_: mb.cast(x=mb.cast(x=n, dtype="uint16"), dtype="int32"),
        integers([[3, 65529, 2], [0, 5, 5]]),
    ),
    "cast/int8": (lambda n, **_: mb.cast(x=mb.cast(x=n, dtype="int8"), dtype="fp32"), tensor([[3, -7, 2], [0, 5, 5]])),
    "ceil": (lambda x, **_: mb.ceil(x=x), tensor([[-1, 0, 1], [1, 2, 4]])),
    "clip": (lambda x, **_: mb.clip(x=x, alpha=-0.5, beta=2.0), tensor([[-0.5, 0, 0.5], [1, 2, 2]])),
    "cos": (lambda x, **_: mb.cos(x=x), each(math.cos)),
    "equal": (lambda n, m, **_: mb.equal(x=n, y=m), truths([[False, False, False], [False, True, False]])),
    "erf": (lambda x, **_: mb.erf(x=x), each(math.erf)),
    "exp": (lambda x, **_: mb.exp(x=x), each(math.exp)),
    "exp2": (lambda x, **_: mb.exp2(x=x), each(lambda v: 2.0**v)),
    "floor": (lambda x, **_: mb.floor(x=x), tensor([[-2, 0, 0], [1, 2, 3]])),
    "floor_div": (lambda x, y, **_: mb.floor_div(x=x, y=y), tensor([[-1, -0.0, 2], [1, 4, -1]])),
    "floor_div/int": (lambda n, m, **_: mb.floor_div(x=n, y=m), integers([[1, -4, -1], [0, 1, -1]])),
    "gelu": (lambda x, **_: mb.gelu(x=x), each(gelu)),
    "gelu/tanh": (lambda x, **_: mb.gelu(x=x, mode="TANH_APPROXIMATION"), each(gelu_tanh)),
    "gelu/sigmoid": (
        lambda x, **_: mb.gelu(x=x, mode="SIGMOID_APPROXIMATION"),
        each(lambda v: v / (1 + math.exp(-1.702 * v))),
    ),
    "greater": (lambda x, y, **_: mb.greater(x=x, y=y), truths([[False, True, True], [False, True, True]])),
    "greater_equal": (lambda x, y, **_: mb.greater_equal(x=x, y=y), truths([[False, True, True], [True, True, True]])),
    "inverse": (lambda y, **_: mb.inverse(x=y, epsilon=1.0), tensor([[1 / 3, -0.5, 0.8], [0.5, 1 / 1.5, -1 / 3]])),
    "inverse/default": (lambda x, **_: mb.inverse(x=x), each(lambda v: 1 / (v + 1e-4))),
    "leaky_relu": (lambda x, **_: mb.leaky_relu(x=x, alpha=0.5), tensor([[-0.75, 0, 0.5], [1, 2, 3.5]])),
    "less": (lambda x, y, **_: mb.less(x=x, y=y), truths([[True, False, False], [False, False, False]])),
    "less_equal": (lambda x, y, **_: mb.less_equal(x=x, y=y), truths([[True, False, False], [True, False, False]])),
    "log/default": (lambda x, **_: mb.log(x=mb.exp(x=x)), X),
    "log": (lambda x, **_: mb.log(x=mb.abs(x=x), epsilon=0.5), each(lambda v: math.log(abs(v) + 0.5))),
    "logical_and": (
        lambda x, y, **_: mb.logical_and(x=mb.cast(x=x, dtype="bool"), y=mb.less(x=y, y=1.0)),
        truths([[False, False, True], [False, True, True]]),
    ),
    "logical_not": (lambda x, **_: mb.logical_not(x=mb.cast(x=x, dtype="bool")), truths([[0, 1, 0], [0, 0, 0]])),
    "logical_or": (
        lambda x, y, **_: mb.logical_or(x=mb.less(x=x, y=0.1), y=mb.less(x=y, y=0.0)),
        truths([[True, True, False], [False, False, True]]),
    ),
    "logical_xor": (
        lambda x, y, **_: mb.logical_xor(x=mb.less(x=x, y=0.1), y=mb.less(x=y, y=0.0)),
        truths([[True, False, False], [False, False, True]]),
    ),
    "maximum": (lambda x, y, **_: mb.maximum(x=x, y=y), tensor([[2, 0, 0.5], [1, 2, 3.5]])),
    "minimum": (lambda x, y, **_: mb.minimum(x=x, y=y), tensor([[-1.5, -3, 0.25], [1, 0.5, -4]])),
    "mod": (lambda n, m, **_: mb.mod(x=n, y=m), integers([[1, 1, -1], [0, 0, 0]])),
    "mul": (lambda x, y, **_: mb.mul(x=x, y=y), tensor([[-3, -0.0, 0.125], [1, 1, -14]])),
    "not_equal": (lambda n, m, **_: mb.not_equal(x=n, y=m), truths([[True, True, True], [True, False, True]])),
    "pow": (lambda x, **_: mb.pow(x=x, y=2.0), tensor([[2.25, 0, 0.25], [1, 4, 12.25]])),
    "real_div": (lambda x, y, **_: mb.real_div(x=x, y=y), tensor([[-0.75, -0.0, 2], [1, 4, -0.875]])),
    "real_div/int": (
        lambda n, **_: mb.real_div(x=mb.mul(x=n, y=np.int32(4)), y=np.int32(-2)),
        integers([[-6, 14, -4], [0, -10, -10]]),
    ),
    "relu": (lambda x, **_: mb.relu(x=x), tensor([[0, 0, 0.5], [1, 2, 3.5]])),
    "relu6": (lambda x, **_: mb.relu6(x=mb.mul(x=x, y=np.float32(2))), tensor([[0, 0, 1], [2, 4, 6]])),
    "round": (lambda x, **_: mb.round(x=x), tensor([[-2, 0, 0], [1, 2, 4]])),
    "rsqrt": (lambda x, **_: mb.rsqrt(x=mb.abs(x=x), epsilon=0.25), each(lambda v: 1 / math.sqrt(abs(v) + 0.25))),
    "rsqrt/default": (lambda x, **_: mb.rsqrt(x=mb.abs(x=x)), each(lambda v: 1 / math.sqrt(abs(v) + 1e-12))),
    "select": (lambda x, y, **_: mb.select(cond=mb.less(x=x, y=y), a=x, b=y), tensor([[-1.5, -3, 0.25], [1, 0.5, -4]])),
    "sigmoid": (lambda x, **_: mb.sigmoid(x=x), each(lambda v: 1 / (1 + math.exp(-v)))),
    "sign": (lambda x, **_: mb.sign(x=x), tensor([[-1, 0, 1], [1, 1, 1]])),
    "silu": (lambda x, **_: mb.silu(x=x), each(lambda v: v / (1 + math.exp(-v)))),
    "sin": (lambda x, **_: mb.sin(x=x), each(math.sin)),
    "softplus": (lambda x, **_: mb.softplus(x=x), each(lambda v: math.log(1 + math.exp(v)))),
    "softplus/large": (
        lambda x, **_: mb.softplus(x=mb.mul(x=x, y=np.float32(1000))),
        each(lambda v: max(1000 * v, 0) + (math.log(2) if v == 0 else 0)),
    ),
    "sqrt": (lambda x, **_: mb.sqrt(x=mb.abs(x=x)), each(lambda v: math.sqrt(abs(v)))),
    "square": (lambda n, **_: mb.square(x=n), integers([[9, 49, 4], [0, 25, 25]])),
    "sub": (lambda x, y, **_: mb.sub(x=x, y=y), tensor([[-3.5, 3, 0.25], [0, 1.5, 7.5]])),
    "tanh": (lambda x, **_: mb.tanh(x=x), each(math.tanh)),
    "threshold": (lambda x, **_: mb.threshold(x=x, alpha=0.75), tensor([[0.75, 0.75, 0.75], [1, 2, 3.5]])),
    # matrices
    "linear": (lambda x, **_: mb.linear(x=x, weight=WEIGHT), tensor([[0.0, 1.625], [15.5, 0.875]])),
    "linear/bias": (
        lambda x, **_: mb.linear(x=x, weight=WEIGHT, bias=np.array([1, -1], np.float32)),
        tensor([[1.0, 0.625], [16.5, -0.125]]),
    ),
    "matmul": (lambda x, y, **_: mb.matmul(x=x, y=y, transpose_y=True), tensor([[-2.875, -3.5], [-3.125, -12.0]])),
    "matmul/transpose_x": (
        lambda x, y, **_: mb.matmul(x=x, y=y, transpose_x=True),
        tensor([[-2, 5, -4.375], [2, 1, -8], [4.5, 0.25, -13.875]]),
    ),
    "matmul/broadcast": (
        lambda x, cube, **_: mb.matmul(x=x, y=cube),
        torch.stack([X @ CUBE[0], X @ CUBE[1]]),
    ),
    "conv/depthwise": (
        lambda image, **_: mb.conv(x=image, weight=KERNEL, groups=8, pad_type="custom", pad=[2, 0]),
        functional.conv1d(functional.pad(IMAGE, (2, 0)), torch.from_numpy(KERNEL), groups=8),
    ),
    "conv/groups": (
        lambda image, **_: mb.conv(
            x=image,
            weight=WIDE,
            groups=2,
            strides=[2],
            dilations=[1],
            pad_type="custom",
            pad=[1, 2],
            bias=np.arange(6.0, dtype=np.float32),
        ),
        functional.conv1d(functional.pad(IMAGE, (1, 2)), torch.from_numpy(WIDE), torch.from_numpy(BIAS), 2, groups=2),
    ),
    "conv/2d": (
        lambda image, **_: mb.conv(
            x=mb.expand_dims(x=image, axes=[1]), weight=WIDE[:, :1, None], pad_type="custom", pad=[1, 0, 0, 2]
        ),
        functional.conv2d(functional.pad(IMAGE[:, None], (0, 2, 1, 0)), torch.from_numpy(WIDE[:, :1, None])),
    ),
    "scaled_dot_product_attention": (
        lambda cube, **_: mb.scaled_dot_product_attention(query=cube, key=cube, value=cube),
        attention(np.zeros((3, 3), np.float32)),
    ),
    "scaled_dot_product_attention/mask": (
        lambda cube, **_: mb.scaled_dot_product_attention(
            query=cube, key=cube, value=cube, attn_mask=np.eye(3, dtype=np.float32)
        ),
        attention(np.eye(3, dtype=np.float32)),
    ),
    "scaled_dot_product_attention/bool": (
        lambda cube, **_: mb.scaled_dot_product_attention(query=cube, key=cube, value=cube, attn_mask=PAIR),
        attention(HIDDEN),
    ),
    # whole axes
    "argsort": (lambda y, **_: mb.argsort(x=y), integers([[0, 2, 1], [0, 1, 2]])),
    "argsort/ascending": (lambda y, **_: mb.argsort(x=y, axis=0, ascending=True), integers([[1, 0, 1], [0, 1, 0]])),
    "cumsum": (lambda x, **_: mb.cumsum(x=x), tensor([[-1.5, 0, 0.5], [-0.5, 2, 4]])),
    "cumsum/exclusive": (lambda n, **_: mb.cumsum(x=n, axis=1, exclusive=True), integers([[0, 3, -4], [0, 0, 5]])),
    "cumsum/exclusive reverse": (
        lambda n, **_: mb.cumsum(x=n, axis=-1, exclusive=True, reverse=True),
        integers([[-5, 2, 0], [10, 5, 0]]),
    ),
    "cumsum/reverse": (lambda n, **_: mb.cumsum(x=n, axis=1, reverse=True), integers([[-2, -5, 2], [10, 10, 5]])),
    "l2_norm/default": (
        lambda cube, **_: mb.l2_norm(x=mb.mul(x=cube, y=np.float32(1e-3))),
        CUBE * 1e-3 / math.sqrt(1e-6 * sum(float(v) ** 2 for v in CUBE.flatten()) + 1e-6),
    ),
    "l2_norm": (
        lambda cube, **_: mb.l2_norm(x=cube, epsilon=np.float32(0.5)),
        CUBE / math.sqrt(sum(float(v) ** 2 for v in CUBE.flatten()) + 0.5),
    ),
    "layer_norm": (
        lambda x, **_: mb.layer_norm(x=x, axes=[-1], gamma=GAMMA, beta=BETA, epsilon=0.125),
        torch.from_numpy(normed(X.numpy(), (1,), 0.125) * GAMMA + BETA),
    ),
    "layer_norm/default": (lambda x, **_: mb.layer_norm(x=x, axes=[1, 0]), torch.from_numpy(normed(X.numpy(), (0, 1), 1e-5))),
    "reduce_argmax": (lambda y, **_: mb.reduce_argmax(x=y), integers([0, 0])),
    "reduce_argmax/axis": (lambda y, **_: mb.reduce_argmax(x=y, axis=0, keep_dims=True), integers([[0, 1, 0]])),
    "reduce_argmin": (lambda y, **_: mb.reduce_argmin(x=y, axis=1), integers([1, 2])),
    "reduce_l1_norm": (lambda y, **_: mb.reduce_l1_norm(x=y, axes=[1]), tensor([5.25, 5.5])),
    "reduce_l2_norm": (lambda y, **_: mb.reduce_l2_norm(x=y, axes=[0]), tensor([5**0.5, 9.25**0.5, 16.0625**0.5])),
    "reduce_log_sum": (lambda x, **_: mb.reduce_log_sum(x=mb.abs(x=x), axes=[1]), tensor([math.log(2), math.log(6.5)])),
    "reduce_log_sum_exp": (
        lambda x, **_: mb.reduce_log_sum_exp(x=x, axes=[0], keep_dims=True),
        tensor([[math.log(sum(math.exp(v) for v in column)) for column in X.T.tolist()]]),
    ),
    "reduce_max": (lambda y, **_: mb.reduce_max(x=y, axes=[0]), tensor([2, 0.5, 0.25])),
    "reduce_mean": (lambda x, **_: mb.reduce_mean(x=x, axes=[-1], keep_dims=True), tensor([[-1 / 3], [6.5 / 3]])),
    "reduce_mean/all": (lambda x, **_: mb.reduce_mean(x=x), tensor(5.5 / 6)),
    "reduce_min": (lambda y, **_: mb.reduce_min(x=y, axes=[1]), tensor([-3, -4])),
    "reduce_prod": (lambda n, **_: mb.reduce_prod(x=n, axes=[1]), integers([-42, 0])),
    "reduce_sum": (lambda n, **_: mb.reduce_sum(x=n, axes=[0, 1], keep_dims=True), integers([[8]])),
    "reduce_sum_square": (lambda y, **_: mb.reduce_sum_square(x=y, axes=[1]), tensor([13.0625, 17.25])),
    "softmax": (lambda x, **_: mb.softmax(x=x), torch.from_numpy(softmax(X.numpy(), -1))),
    "softmax/axis": (lambda x, **_: mb.softmax(x=x, axis=0), torch.from_numpy(softmax(X.numpy(), 0))),
    # elements moved
    "band_part": (lambda x, **_: mb.band_part(x=x, lower=0, upper=-1), tensor([[-1.5, 0, 0.5], [0, 2, 3.5]])),
    "band_part/upper": (lambda x, **_: mb.band_part(x=x, lower=-1, upper=0), tensor([[-1.5, 0, 0], [1, 2, 0]])),
    "concat": (lambda x, y, **_: mb.concat(values=[x, y], axis=0), torch.from_numpy(np.concatenate([X, Y]))),
    "concat/negative": (
        lambda n, m, **_: mb.concat(values=[n, m], axis=-1),
        integers([[3, -7, 2, 2, 2, -3], [0, 5, 5, 4, 5, -5]]),
    ),
    "concat/interleave": (
        lambda n, m, **_: mb.concat(values=[n, m], axis=1, interleave=True),
        integers([[3, 2, -7, 2, 2, -3], [0, 4, 5, 5, 5, -5]]),
    ),
    "expand_dims": (lambda n, **_: mb.expand_dims(x=n, axes=[0, -1]), integers([[[[3], [-7], [2]], [[0], [5], [5]]]])),
    "fill": (lambda x, **_: mb.fill(shape=mb.shape(x=x), value=2.5), tensor([[2.5] * 3] * 2)),
    "fill/int": (lambda x, **_: mb.fill(shape=np.array([2], np.int32), value=np.int32(7)), integers([7, 7])),
    "fill_like": (lambda x, **_: mb.fill_like(ref_tensor=x, value=np.int32(3)), integers([[3] * 3] * 2)),
    "gather": (
        lambda x, **_: mb.gather(x=x, indices=np.array([[1, 0]], np.int32), axis=0),
        tensor([[[1.0, 2.0, 3.5], [-1.5, 0.0, 0.5]]]),
    ),
    "gather/axis": (
        lambda n, **_: mb.gather(x=n, indices=np.array([2, 2, 0], np.int32), axis=-1),
        integers([[2, 2, 3], [5, 5, 0]]),
    ),
    "gather/uint16": (lambda n, **_: mb.gather(x=n, indices=np.uint16([1]), axis=0), integers([[0, 5, 5]])),
    "gather/int16": (lambda n, **_: mb.gather(x=n, indices=np.int16(1), axis=0), integers([0, 5, 5])),
    "gather/scalar": (lambda n, **_: mb.gather(x=n, indices=np.int32(1), axis=0), integers([0, 5, 5])),
    "gather_along_axis": (
        lambda n, **_: mb.gather_along_axis(x=n, indices=np.array([[1, 0, 1]], np.int32), axis=0),
        integers([[0, -7, 5]]),
    ),
    "gather_nd": (lambda n, **_: mb.gather_nd(x=n, indices=np.array([[0, 1], [1, 2]], np.int32)), integers([-7, 5])),
    "identity": (lambda x, **_: mb.identity(x=x), X),
    "one_hot": (
        lambda x, **_: mb.one_hot(indices=np.array([2, 0], np.int32), one_hot_vector_size=np.int32(3)),
        integers([[0, 0, 1], [1, 0, 0]]),
    ),
    "one_hot/axis": (
        lambda x, **_: mb.one_hot(
            indices=mb.reduce_argmax(x=x, axis=1), one_hot_vector_size=np.int32(3), axis=0, on_value=5.0, off_value=-1.0
        ),
        tensor([[-1, -1], [-1, -1], [5, 5]]),
    ),
    "pad": (lambda x, **_: mb.pad(x=x, pad=[1, 0, 0, 2], constant_val=9.0), functional.pad(X, (0, 2, 1, 0), value=9.0)),
    "pad/zero": (lambda x, **_: mb.pad(x=x, pad=[0, 0, 1, 1]), functional.pad(X, (1, 1))),
    "pad/last": (lambda x, **_: mb.pad(x=x, pad=[1, 2]), functional.pad(X, (1, 2))),
    "range_1d": (
        lambda x, **_: mb.range_1d(start=np.int32(2), end=mb.reduce_max(x=mb.shape(x=x)), step=np.int32(1)),
        integers([2]),
    ),
    "range_1d/float": (
        lambda x, **_: mb.range_1d(start=mb.reduce_min(x=x), end=mb.reduce_max(x=x), step=1.5),
        tensor([-1.5, 0, 1.5, 3.0]),
    ),
    "reshape": (lambda n, **_: mb.reshape(x=n, shape=[3, -1]), integers([[3, -7], [2, 0], [5, 5]])),
    "reshape/zero": (lambda n, **_: mb.reshape(x=n, shape=[1, -1, 0]), integers([[[3, -7, 2], [0, 5, 5]]])),
    "reverse": (lambda n, **_: mb.reverse(x=n, axes=[1]), integers([[2, -7, 3], [5, 5, 0]])),
    "reverse/all": (lambda n, **_: mb.reverse(x=n), integers([[5, 5, 0], [2, -7, 3]])),
    "scatter_nd": (
        lambda n, **_: mb.scatter_nd(
            data=n, indices=np.array([[1], [1]], np.int32), updates=np.array([[1, 2, 3]] * 2, np.int32)
        ),
        integers([[3, -7, 2], [2, 9, 11]]),
    ),
    "scatter_nd/update": (
        lambda n, **_: mb.scatter_nd(
            data=n, indices=np.array([[1, 2], [0, 0]], np.int32), updates=np.array([8, 9], np.int32), mode="update"
        ),
        integers([[9, -7, 2], [0, 5, 8]]),
    ),
    "shape": (lambda cube, **_: mb.shape(x=cube), integers([2, 3, 4])),
    "slice_by_index": (
        lambda cube, **_: mb.slice_by_index(x=cube, begin=[0, -2, 3], end=[1, 3, 0], stride=[1, 1, -2]),
        CUBE[0:1, -2:3].flip(2)[:, :, ::2][:, :, :2],
    ),
    "slice_by_index/masks": (
        lambda cube, **_: mb.slice_by_index(
            x=cube,
            begin=[1, 1, 1],
            end=[0, 1, -1],
            begin_mask=[False, True, False],
            end_mask=[False, True, False],
            squeeze_mask=[True, False, False],
        ),
        CUBE[1, :, 1:-1],
    ),
    "slice_by_index/backwards": (
        lambda n, **_: mb.slice_by_index(x=n, begin=[0, 2], end=[2, 0], stride=[1, -1]),
        integers([[2, -7], [5, 5]]),
    ),
    "slice_by_index/to the start": (
        lambda n, **_: mb.slice_by_index(x=n, begin=[0, -1], end=[2, 0], stride=[1, -1], end_mask=[False, True]),
        integers([[2, -7, 3], [5, 5, 0]]),
    ),
    "slice_by_index/beyond": (lambda n, **_: mb.slice_by_index(x=n, begin=[0, 1], end=[9, 9]), integers([[-7, 2], [5, 5]])),
    "slice_by_size": (lambda n, **_: mb.slice_by_size(x=n, begin=[0, 1], size=[1, -1]), integers([[-7, 2]])),
    "slice_update": (
        lambda n, **_: mb.slice_update(x=n, update=np.array([[8], [9]], np.int32), begin=[0, 1], end=[2, 2]),
        integers([[3, 8, 2], [0, 9, 5]]),
    ),
    "slice_update/masks": (
        lambda n, **_: mb.slice_update(
            x=n,
            update=np.array([8, 9], np.int32),
            begin=[1, 7],
            end=[0, 2],
            begin_mask=[False, True],
            squeeze_mask=[True, False],
        ),
        integers([[3, -7, 2], [8, 9, 5]]),
    ),
    "split": (lambda n, **_: mb.split(x=n, num_splits=3, axis=1)[1], integers([[-7], [5]])),
    "split/sizes": (lambda n, **_: mb.split(x=n, split_sizes=[1, 2], axis=-1)[1], integers([[-7, 2], [5, 5]])),
    "squeeze": (lambda n, **_: mb.squeeze(x=mb.expand_dims(x=n, axes=[0, 2]), axes=[0]), N[:, None]),
    "squeeze/all": (lambda n, **_: mb.squeeze(x=mb.expand_dims(x=n, axes=[0, 2])), N),
    "stack": (lambda n, m, **_: mb.stack(values=[n, m], axis=1), torch.stack([N, M], 1)),
    "tile": (lambda n, **_: mb.tile(x=n, reps=[2, 1]), torch.from_numpy(np.tile(N, (2, 1)))),
    "topk": (lambda y, **_: mb.topk(x=y, k=2, axis=-1)[0], tensor([[2, 0.25], [1, 0.5]])),
    "topk/first": (lambda y, **_: mb.topk(x=y, k=1)[0], tensor([[2], [1]])),
    "topk/indices": (lambda y, **_: mb.topk(x=y, k=1, axis=0, ascending=True)[1], integers([[1, 0, 1]])),
    "transpose": (lambda cube, **_: mb.transpose(x=cube, perm=[2, 0, -2]), CUBE.permute(2, 0, 1)),
}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """All cases in one package, an output for each."""

    def build(x: Any, y: Any, n: Any, m: Any, cube: Any, image: Any) -> Any:
        built = [case(x=x, y=y, n=n, m=m, cube=cube, image=image) for case, _ in CASES.values()]
        # a model gives no truth values: they leave it as 0 and 1
        given = [mb.cast(x=value, dtype="int32") if value.dtype == types.bool else value for value in built]
        return tuple(mb.identity(x=value, name=f"case_{at}") for at, value in enumerate(given))

    return Program.open(save(tmp_path_factory.mktemp("operators") / "all.mlpackage", build, *SPECS))


@pytest.mark.parametrize("name", CASES)
def test_an_operator_gives_what_its_definition_says(program: Program, name: str) -> None:
    expected = CASES[name][1]
    expected = expected.int() if expected.dtype == torch.bool else expected
    (got,) = run(only(program, f"case_{list(CASES).index(name)}"), FEEDS).values()
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    # a few roundings of float32 apart, and both signs of zero are one number
    torch.testing.assert_close(got, expected, rtol=2e-6, atol=1e-6, equal_nan=False)


# Cases whose optional inputs have their defaults: coremltools writes them into the package, other writers need not.
DEFAULTS = {
    "argsort": ("axis", "ascending"),
    "conv/depthwise": ("strides", "dilations"),
    "cumsum": ("axis", "exclusive", "reverse"),
    "concat": ("interleave",),
    "gather": ("batch_dims",),
    "gather_nd": ("batch_dims",),
    "gelu": ("mode",),
    "inverse/default": ("epsilon",),
    "l2_norm/default": ("epsilon",),
    "layer_norm/default": ("axes", "epsilon"),
    "log/default": ("epsilon",),
    "matmul/broadcast": ("transpose_x", "transpose_y"),
    "one_hot": ("axis", "on_value", "off_value"),
    "pad/zero": ("mode", "constant_val"),
    "reduce_argmax": ("axis", "keep_dims", "output_dtype"),
    "reduce_mean/all": ("axes", "keep_dims"),
    "reverse/all": ("axes",),
    "rsqrt/default": ("epsilon",),
    "scatter_nd": ("mode",),
    "softmax": ("axis",),
    "topk/first": ("axis", "ascending", "sort", "return_indices", "output_indices_dtype"),
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_an_optional_input_left_out_has_its_default(program: Program, name: str) -> None:
    alone = only(program, f"case_{list(CASES).index(name)}")
    main = alone.functions["main"]
    (shortened,) = [operation for operation in main.operations if operation.type == name.split("/")[0]]
    for parameter in DEFAULTS[name]:
        shortened.inputs.pop(parameter, None)  # type: ignore[attr-defined]
    (got,) = run(alone, FEEDS).values()
    torch.testing.assert_close(got, CASES[name][1], rtol=2e-6, atol=1e-6)


# What is not run is refused: name -> (a case, an input to change, its new value, what is said).
Change = tuple[str, str, Any, str]
REFUSED: dict[str, Change] = {
    "integers that leave a fraction": ("real_div/int", "y", integers(5), "dividing integers leaves a fraction"),
    "another padding": ("conv/depthwise", "pad_type", "same", "pad_type same is not run here"),
    "a padding too few": ("conv/depthwise", "pad", integers([2]), "pad [2] for 1 dimensions"),
    "another mode": ("gelu", "mode", "FAST", "no mode FAST"),
    "another dtype": ("cast/int32", "dtype", "fp8", "gives fp8, declared as int32[2, 3]"),
    "reflection": ("pad", "mode", "reflect", "in mode reflect is not run here"),
    "batches": ("gather", "batch_dims", integers(1), "batch_dims 1 is not run here"),
    "an axis beyond": ("gather", "axis", integers(2), "axis 2 of 2"),
    "an index beyond": ("gather/axis", "indices", integers([0, 3, 0]), "index 3 of 3"),
    "an index from the end": ("gather/axis", "indices", integers([0, -1, 0]), "index -1 of 3"),
    "multiplied updates": ("scatter_nd", "mode", "mul", "mode mul is not run here"),
    "an uneven split": ("split", "num_splits", integers(2), "3 do not divide into 2 parts"),
    "too few repetitions": ("tile", "reps", integers([2]), "reps [2] for 2 axes"),
    "too few begins": ("slice_by_index/beyond", "begin", integers([0]), "for 2 axes"),
    "a slice that leaves": ("slice_by_size", "size", integers([3, 1]), "begin [0, 1] and size [3, 1] leave [2, 3]"),
    "an update that does not fit": (
        "slice_update",
        "end",
        integers([1, 2]),
        "its update has the shape [2, 1], the slice [1, 1]",
    ),
    "an update backwards": ("slice_update", "stride", integers([-1, 1]), "a negative stride is not run here"),
    "no step": ("range_1d/float", "step", tensor(0.0), "a range from -1.5 to 3.5 by 0.0"),
    "text for a number": ("softmax", "axis", "last", "text and numbers are mixed up"),
    "a number for text": ("gelu", "mode", integers(1), "text and numbers are mixed up"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_run_is_refused(program: Program, name: str) -> None:
    case, parameter, value, said = REFUSED[name]
    alone = only(program, f"case_{list(CASES).index(case)}")
    kind = case.split("/")[0]
    changed = next(operation for operation in alone.functions["main"].operations if operation.type == kind)
    dtype = "string" if isinstance(value, str) else str(value.dtype).removeprefix("torch.")
    shape = () if isinstance(value, str) else tuple(value.shape)
    changed.inputs[parameter] = (Constant(TensorType(dtype, shape), value),)  # type: ignore[index]
    with pytest.raises(InputError) as caught:
        run(alone, FEEDS)
    assert str(caught.value).startswith(f"all.mlpackage: main: {kind} ")
    assert said in str(caught.value)


def test_up_to_ios16_negative_indices_count_from_the_end(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        return mb.gather(x=x, indices=np.int32([-1, 0]), axis=1, name="picked")

    path = save(tmp_path / "old.mlpackage", build, mb.TensorSpec((2, 3), types.fp32), target=ct.target.iOS16)
    assert run(Program.open(path), {"x": X})["picked"].tolist() == [[0.5, -1.5], [3.5, 1.0]]


def test_values_alive_together_are_bounded(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mobile_export.verify.mlprogram.interpreter.LARGE", 5)
    monkeypatch.setattr("mobile_export.verify.mlprogram.interpreter.LARGEST_TOGETHER", 18)
    alone = only(program, f"case_{list(CASES).index('add')}")  # 6 elements given twice, 6 computed: 18 alive, then fewer
    assert run(alone, FEEDS)
    monkeypatch.setattr("mobile_export.verify.mlprogram.interpreter.LARGEST_TOGETHER", 11)
    with pytest.raises(InputError, match="would hold more values than this interpreter allows; run fewer tokens at once"):
        run(alone, FEEDS)


def test_every_operator_has_a_case() -> None:
    assert {name for name in OPERATORS if not name.startswith("constexpr_")} == {name.split("/")[0] for name in CASES}


def test_only_a_view_shares_memory_with_what_it_is_given(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof in in_place.py rests on it."""
    shared: set[str] = set()
    compute = Interpreter._compute

    def watched(self: Interpreter, step: Any, values: dict[str, torch.Tensor]) -> None:
        before = {value.untyped_storage().data_ptr() for value in values.values() if value.numel()}
        compute(self, step, values)
        for name, _ in step.operation.outputs:
            if values[name].untyped_storage().data_ptr() in before:
                shared.add(step.operation.type)

    monkeypatch.setattr(Interpreter, "_compute", watched)
    run(program, FEEDS)
    assert shared <= {name for name, operator in OPERATORS.items() if operator.view}
    assert {"identity", "reshape", "slice_by_index", "transpose", "split"} <= shared  # else nothing was watched
