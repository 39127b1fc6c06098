"""The words a weight map is written in: one entry of graph name -> WeightSource for a norm, a linear, a joined qkv."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mobile_export.families.spec import DecoderSpec, WeightSource
from mobile_export.families.take import Rows, Take

Weights = dict[str, WeightSource]


def tensor(name: str, *shape: int, take: Take | None = None) -> WeightSource:
    """One tensor of the file, whole unless a take says otherwise."""
    return WeightSource((name,), (shape,), (take,) if take else ())


def norm(ours: str, theirs: str, spec: DecoderSpec, size: int | None = None) -> Weights:
    """A norm over `size` (hidden_size): its weight, a layer norm's bias, nothing where the norms carry no weights."""
    if not spec.norm_affine:
        return {}
    parts = ("weight", "bias") if spec.norm == "layer" else ("weight",)
    return {f"{ours}.{part}": tensor(f"{theirs}.{part}", size or spec.hidden_size) for part in parts}


def linear(ours: str, theirs: str, outputs: int, inputs: int, *, bias: bool, transposed: bool = False) -> Weights:
    """A linear of the graph as the file's linear, or its Conv1D, which holds (inputs, outputs)."""
    if transposed:
        weights = {f"{ours}.weight": tensor(f"{theirs}.weight", inputs, outputs, take=Take(transposed=True))}
    else:
        weights = {f"{ours}.weight": tensor(f"{theirs}.weight", outputs, inputs)}
    return weights | ({f"{ours}.bias": tensor(f"{theirs}.bias", outputs)} if bias else {})


def stacked(ours: str, theirs: Sequence[tuple[str, int]], inputs: int, *, bias: bool) -> Weights:
    """A linear of the graph from the file's (name, outputs), one after the other."""
    shapes = {"weight": tuple((rows, inputs) for _, rows in theirs), "bias": tuple((rows,) for _, rows in theirs)}
    return {
        f"{ours}.{part}": WeightSource(tuple(f"{name}.{part}" for name, _ in theirs), shapes[part])
        for part in (("weight", "bias") if bias else ("weight",))
    }


def fused(ours: str, theirs: str, outputs: int, inputs: int, rows: Iterable[Rows], *, bias: bool) -> Weights:
    """A linear of the graph from these rows of one linear of the file, in this order."""
    takes = tuple(Take(rows=part) for part in rows)
    shapes = {"weight": (outputs, inputs), "bias": (outputs,)}
    return {
        f"{ours}.{part}": WeightSource((f"{theirs}.{part}",) * len(takes), (shapes[part],) * len(takes), takes)
        for part in (("weight", "bias") if bias else ("weight",))
    }


def query_key_value(spec: DecoderSpec, block: int, theirs: Mapping[str, str]) -> Weights:
    """The joined projection from three linears of the file; theirs: "q", "k", "v" -> name."""
    value = spec.num_key_value_heads * spec.head_dim
    rows = {"q": spec.attended_size, "k": value, "v": value}
    named = [(theirs[part], rows[part]) for part in "qkv"]
    return stacked(f"blocks.{block}.attention.qkv", named, spec.hidden_size, bias=spec.qkv_bias)


def rows_by_group(spec: DecoderSpec) -> tuple[Rows, Rows, Rows]:
    """Where the file has, for each key-value head in turn, the queries it serves, its key and its value."""
    queries = spec.num_attention_heads // spec.num_key_value_heads * spec.head_dim
    period = queries + 2 * spec.head_dim
    ends = (0, queries, queries + spec.head_dim, period)
    return Rows(0, ends[1], period), Rows(ends[1], ends[2], period), Rows(ends[2], ends[3], period)


def feed_forward(spec: DecoderSpec, block: int, theirs: Mapping[str, str], *, transposed: bool = False) -> Weights:
    """The feed-forward's linears; theirs: "up", "down" and, where it is gated, "gate" -> name."""
    hidden, wide = spec.hidden_size, spec.intermediate_size
    sizes = {"gate": (wide, hidden), "up": (wide, hidden), "down": (hidden, wide)}
    weights: Weights = {}
    for part, name in theirs.items():
        ours = f"blocks.{block}.ffn.{part}"
        weights |= linear(ours, name, *sizes[part], bias=spec.ffn_bias, transposed=transposed)
    return weights


def output(spec: DecoderSpec, block: int, theirs: str, *, transposed: bool = False) -> Weights:
    """The attention's output projection."""
    ours, sizes = f"blocks.{block}.ffn.o", (spec.hidden_size, spec.attended_size)
    return linear(ours, theirs, *sizes, bias=spec.o_bias, transposed=transposed)


def table(spec: DecoderSpec, theirs: str) -> Weights:
    """The token table."""
    return {"embedding.weight": tensor(theirs, spec.vocab_size, spec.table_size)}


def positions(spec: DecoderSpec, theirs: str) -> Weights:
    """The position table."""
    return {"positions.weight": tensor(theirs, spec.learned_positions, spec.hidden_size)}


def head(spec: DecoderSpec, tensors: Iterable[str], theirs: str = "lm_head") -> Weights:
    """The head's matrix where the file holds one, and its bias."""
    weights: Weights = {}
    if f"{theirs}.weight" in tensors:
        weights["head.linear.weight"] = tensor(f"{theirs}.weight", spec.vocab_size, spec.table_size)
    if spec.head_bias:
        weights["head.linear.bias"] = tensor(f"{theirs}.bias", spec.vocab_size)
    return weights
