"""Activation-aware folding: channels rescaled where that changes nothing but what quantization costs.

Between the weight that gives a channel (a norm's, or a row of a matrix) and the matrices that take it a scale s cancels:
x / s times w s. Larger inputs on a coarser grid, or larger weights: s = (rms x)^a / (rms w)^(1 - a) goes from one to the other.
Whatever a is, a checkpoint that was rescaled is folded into the same weights as the one it came from.

What is lost by rounding the weights, and by rounding a token's inputs to int8 with one scale, is worked out for a few a and for
the channels as they are, and the least is taken: evenly sized inputs lose little, and so do weights that lie on a grid already.

Source: AWQ (arXiv:2306.00978), which searches s among powers of the activations' magnitude; SmoothQuant (arXiv:2211.10438), of
which the powers of both are, and the end of making activations easier to round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from mobile_export.families.spec import DecoderSpec, RwkvSpec
from mobile_export.quantize.activations import quantization_steps
from mobile_export.quantize.clip_search import quantize_weight
from mobile_export.quantize.recipe import HEAD
from mobile_export.quantize.weights import ModelWeights

LEAST = 1e-3  # of the median: a channel weaker than that is not scaled up any further
POWERS = (0.2, 0.3, 0.4, 0.5)  # of the inputs' size; at 0.5 the bound on a group's error is least (tests/test_fold.py)
EVERY = 8  # rows of which one is rounded to see what folding brings
ENOUGH = 4096  # tokens whose inputs rounding is tried on
PAYS = 0.95  # of what is lost otherwise: folding that leaves more is not worth while
CALIBRATED = 0.35  # of what rounding weights loses is left by GPTQ, which can make nothing good of what inputs lose

Each = Callable[[Callable[[torch.Tensor | None], float], Iterable[torch.Tensor | None]], Iterable[float]]
Lost = Callable[[Mapping[str, torch.Tensor], torch.Tensor | None], float]  # by some rows of matrices, columns multiplied or not


@dataclass(frozen=True)
class Factor:
    """What a weight is multiplied with: its rows (or values) one by one, float32 (rows,), and its columns, (columns,)."""

    rows: torch.Tensor | None = None
    columns: torch.Tensor | None = None

    def of(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight, folded."""
        if self.rows is not None:
            weight = weight * self.rows.view(-1, *[1] * (weight.dim() - 1))
        return weight if self.columns is None else weight * self.columns


@dataclass(frozen=True)
class Channels:
    """Channels that can be rescaled.

    giving: the weights (and biases) they come from, each with the row where they begin.
    taking: the matrices that multiply with them. channel: int64 (in_features,), the channel behind each of their inputs.
    power: a given value times c makes a taken one times c**power.
    """

    giving: Mapping[str, int]
    taking: tuple[str, ...]
    channel: torch.Tensor
    power: float = 1.0
    count: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", int(self.channel.max()) + 1)


def fold(
    weights: ModelWeights,
    foldable: Iterable[Channels],
    inputs: Mapping[str, torch.Tensor],
    lost: Lost | None = None,
    each: Each = map,
) -> dict[str, Factor]:
    """The factors that fold a stored block or the head, by weight; its function stays what it was.

    Args:
        foldable: its channels, as channels_of or of_head gives them.
        inputs: matrix -> some of what it is multiplied with, float32 (tokens, in_features).
        lost: by rounding; None: as the recipe rounds.
        each: map, or what runs it side by side.
    """
    factors: dict[str, Factor] = {}
    lost = lost or _Rounded(weights, inputs).lost
    for channels in foldable:
        # Rows are settled before the columns that hang on them: what a block's end takes comes first.
        taken = {name: factors.get(name, Factor()).of(weights.float32(name)) for name in channels.taking}
        squares = torch.stack([torch.linalg.vector_norm(weight, dim=0).square() for weight in taken.values()]).sum(dim=0)
        weight = _roots(_by_channel(squares / sum(map(len, taken.values())), channels))
        some = {name: taken.pop(name)[::EVERY].clone() for name in channels.taking}
        given = torch.stack([inputs[name].square().mean(dim=0) for name in channels.taking]).mean(dim=0)
        size = _roots(_by_channel(given, channels))
        scales = [size**power / weight ** (1 - power) for power in POWERS]
        tried = [None, *(scale[channels.channel] for scale in scales)]
        unfolded, *costs = each(partial(lost, some), tried)
        least = min(range(len(scales)), key=costs.__getitem__)
        if costs[least] >= PAYS * unfolded:
            continue
        scale = scales[least]
        for name in channels.taking:
            held = factors.get(name, Factor())
            factors[name] = Factor(held.rows, scale[channels.channel])
        for name, start in channels.giving.items():
            held = factors.get(name, Factor())
            rows = torch.ones(weights.shape(name)[0]) if held.rows is None else held.rows.clone()
            rows[start : start + channels.count] *= scale ** (-1 / channels.power)
            factors[name] = Factor(rows, held.columns)
    return factors


def one_in(texts: Sequence[torch.Tensor]) -> int:
    """Of how many texts one is taken to fold by."""
    return max(1, sum(map(len, texts)) // ENOUGH)


@dataclass(frozen=True)
class _Rounded:
    """What rounding loses of matrices and their inputs as the recipe has them."""

    weights: ModelWeights
    inputs: Mapping[str, torch.Tensor]

    def lost(self, some: Mapping[str, torch.Tensor], columns: torch.Tensor | None) -> float:
        """What is added to the squares of the outputs of some rows, summed over rows and averaged over tokens.

        some: of each matrix one row in EVERY, float32.
        """
        return sum(self._lost(name, weight, columns) for name, weight in some.items())

    def _lost(self, name: str, weight: torch.Tensor, columns: torch.Tensor | None) -> float:
        precision = self.weights.matrices[name].precision
        if precision.bits == 32:
            return 0.0
        inputs = self.inputs[name]
        if columns is not None:
            weight, inputs = weight * columns, inputs / columns
        squares = inputs.square().mean(dim=0)
        off = weight - quantize_weight(weight, precision, squares).dequantized()
        of_weights = float((off.square() @ squares).sum())
        step = quantization_steps(inputs) if self.weights.recipe.activations == "int8" else torch.zeros(1)
        of_inputs = float(step.square().mean() / 12 * weight.square().sum())
        return EVERY * (of_inputs + CALIBRATED * of_weights)


def channels_of(weights: ModelWeights, stored: int) -> Iterator[Channels]:
    """What can be folded in a stored block, from its end to its beginning."""
    spec, block = weights.recognised.spec, f"blocks.{stored}."
    found = _of_rwkv(spec) if isinstance(spec, RwkvSpec) else _of_decoder(spec, weights.plan.blocks[stored])
    for giving, taking, channel, power in found:
        named = {f"{block}{name}": start for name, start in giving.items() if f"{block}{name}" in weights.sources}
        takers = tuple(f"{block}{name}.weight" for name in taking if f"{block}{name}.weight" in weights.sources)
        if named and not _given_elsewhere(weights, named):
            yield Channels(named, takers, channel, power)


def of_head(weights: ModelWeights) -> Iterator[Channels]:
    """What can be folded in front of the head: into a table that is tied to it, too, whose rows are unfolded when looked up."""
    spec, taking = weights.recognised.spec, weights.source_of(HEAD)
    columns = weights.shape(taking)[1]
    giving = {"head.project.weight": 0} if columns != spec.hidden_size else _vector("head.norm")
    named = {name: start for name, start in giving.items() if name in weights.sources}
    if named and not _given_elsewhere(weights, named):
        yield Channels(named, (taking,), torch.arange(columns))


Found = tuple[Mapping[str, int], tuple[str, ...], torch.Tensor, float]


def _of_decoder(spec: DecoderSpec, number: int) -> Iterator[Found]:
    kind, hidden = spec.blocks[number], torch.arange(spec.hidden_size)
    if spec.gated or spec.hidden_act == "relu":
        yield {"ffn.up.weight": 0, "ffn.up.bias": 0}, ("ffn.down",), torch.arange(spec.intermediate_size), 1.0
    if kind.mixer == "conv":
        first = spec.hidden_size  # of the rows that gate what the convolution gives
        mixer = "conv.in"
        yield {"conv.in.weight": first, "conv.in.bias": first}, ("ffn.o",), hidden, 1.0
    else:
        mixer = "attention.qkv"
        first = (spec.num_attention_heads + spec.num_key_value_heads) * spec.head_dim
        value = torch.arange(spec.num_key_value_heads * spec.head_dim).view(spec.num_key_value_heads, -1)
        serves = spec.num_attention_heads // spec.num_key_value_heads
        attended = value.repeat_interleave(serves, dim=0).flatten()
        yield {"attention.qkv.weight": first, "attention.qkv.bias": first}, ("ffn.o",), attended, 1.0
    if spec.norm_placement == "post":
        return
    norm = "conv.norm" if kind.mixer == "conv" else "attention.norm"
    before, after = _vector(norm), _vector("ffn.norm")
    if spec.parallel_residual:  # one norm may serve both, and then it takes one scale
        yield before | after, (mixer, "ffn.gate", "ffn.up"), hidden, 1.0
    else:
        yield after, ("ffn.gate", "ffn.up"), hidden, 1.0
        yield before, (mixer,), hidden, 1.0


def _of_rwkv(spec: RwkvSpec) -> Iterator[Found]:
    """Mixing with the position before is channel by channel, so a norm's scale goes through it."""
    hidden = torch.arange(spec.hidden_size)
    yield {"ffn.key.weight": 0}, ("ffn.value",), torch.arange(spec.intermediate_size), 2.0
    yield {"attention.value.weight": 0}, ("attention.output",), torch.arange(spec.attention_hidden_size), 1.0
    yield _vector("ffn.norm"), ("ffn.key", "ffn.receptance"), hidden, 1.0
    yield _vector("attention.norm"), ("attention.key", "attention.value", "attention.receptance"), hidden, 1.0


def _vector(norm: str) -> dict[str, int]:
    return {f"{norm}.weight": 0, f"{norm}.bias": 0}


def _given_elsewhere(weights: ModelWeights, giving: Mapping[str, int]) -> bool:
    """Whether a tensor of the file behind one of these weights has another place in the graph, too."""
    sources = {weights.sources[name] for name in giving}
    return any(source in sources and name not in giving for name, source in weights.sources.items())


def _by_channel(values: torch.Tensor, channels: Channels) -> torch.Tensor:
    """The mean of the values behind each channel, (channels,)."""
    total = torch.zeros(channels.count).index_add_(0, channels.channel, values)
    return total / torch.zeros(channels.count).index_add_(0, channels.channel, torch.ones_like(values))


def _roots(squares: torch.Tensor) -> torch.Tensor:
    """Root mean squares, none of them 0."""
    roots = squares.sqrt()
    middle = roots.median()
    return torch.ones_like(roots) if middle == 0 else roots.clamp_min(float(LEAST * middle))
