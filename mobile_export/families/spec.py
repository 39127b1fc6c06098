"""What a graph depends on, and where each of its weights lies in the checkpoint: both as plain data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from mobile_export.families.take import Take


@dataclass(frozen=True)
class RopeSpec:
    """Rotary position embedding, resolved: whatever scaling a config asks for is already in the frequencies.

    inverse_frequencies: float32 values, rotated channels / 2 of them; angle = position * inverse_frequency. Where that
        is less than head_dim / 2, the rest of a head passes through.
    attention_factor: multiplies cos and sin.
    interleaved: rotates channel 2i with 2i + 1, instead of i with i + rotated / 2.
    """

    inverse_frequencies: tuple[float, ...]
    attention_factor: float = 1.0
    interleaved: bool = False


@dataclass(frozen=True)
class BlockSpec:
    """What one block does that its neighbours may not.

    rope: index into DecoderSpec.ropes; None: no rotation.
    window: attends to the last `window` positions, its own included.
    chunk: attends within its chunk of that many positions only (llama4).
    qk_norm: over head_dim of query and key, before the rotation; "l2" (an RMS norm without weight) after it.
    query_temperature: (floor_scale, attn_scale): query at position p is multiplied by
        log1p(floor((p + 1) / floor_scale)) * attn_scale + 1 (llama4, arXiv:2501.19399).
    """

    mixer: Literal["attention", "conv"] = "attention"
    rope: int | None = 0
    window: int | None = None
    chunk: int | None = None
    qk_norm: Literal["none", "rms", "layer", "l2"] = "none"
    query_temperature: tuple[float, float] | None = None

    @property
    def reach(self) -> int | None:
        """Most positions a token attends to, its own included; None: its whole past."""
        return min((bound for bound in (self.window, self.chunk) if bound is not None), default=None)


@dataclass(frozen=True)
class DecoderSpec:
    """Everything a decoder's graph depends on, save what is stored once (that is SharingPlan's).

    Fields are spelled as in Hugging Face's config.json where they have a name there. `num_hidden_layers` counts the
    blocks the file numbers, and `blocks` describes each of them. A layer norm has a bias beside its weight.

    hidden_act: "silu", "relu", "gelu" (erf) or "gelu_tanh".
    norm_affine: False: norms without weight and bias (one form of Galactica).
    norm_placement: "pre": before attention and feed-forward; "post": on each sum with the residual stream; "sandwich":
        before both, and on what each of them gives.
    parallel_residual: x + attention(norm(x)) + ffn(norm'(x)). A family with one norm maps both names to one tensor.
    embedding_norm: a norm on the embedded tokens; embedding_scale: multiplies the table's rows.
    embedding_size: width of the token table where it is not hidden_size: projected on the way in and out.
    learned_positions: rows of the position table, 0: none. The row is position + position_offset.
    alibi: "bloom": slope * key position is added to scaled scores; "falcon": in bfloat16, and scaled with them.
    attention_scale: multiplies scores; None: head_dim ** -0.5.
    attention_softcap, logit_softcap: cap * tanh(value / cap).
    gated: the feed-forward is down(activation(gate) * up); else down(activation(up)).
    conv_kernel: positions a conv mixer sees, its own included; conv_bias: on both its projections and the kernel.
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    max_position_embeddings: int
    norm_eps: float
    hidden_act: str
    ropes: tuple[RopeSpec, ...]
    blocks: tuple[BlockSpec, ...]
    norm: Literal["rms", "layer"] = "rms"
    norm_affine: bool = True
    norm_placement: Literal["pre", "post", "sandwich"] = "pre"
    parallel_residual: bool = False
    final_norm: bool = True
    embedding_norm: bool = False
    embedding_scale: float = 1.0
    embedding_size: int | None = None
    learned_positions: int = 0
    position_offset: int = 0
    alibi: Literal["none", "bloom", "falcon"] = "none"
    attention_scale: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    logit_scale: float = 1.0
    gated: bool = True
    qkv_bias: bool = False
    o_bias: bool = False
    ffn_bias: bool = False
    head_bias: bool = False
    conv_kernel: int = 0
    conv_bias: bool = False

    @property
    def qkv_size(self) -> int:
        """Rows of the joined query, key and value projection."""
        return (self.num_attention_heads + 2 * self.num_key_value_heads) * self.head_dim

    @property
    def attended_size(self) -> int:
        """Channels the attention hands to the output projection."""
        return self.num_attention_heads * self.head_dim

    @property
    def table_size(self) -> int:
        """Columns of the token table."""
        return self.embedding_size or self.hidden_size


@dataclass(frozen=True)
class RwkvSpec:
    """Everything RWKV-4's graph depends on; fields that DecoderSpec has too mean the same.

    attention_hidden_size: channels of key, value and receptance. max_position_embeddings: the text it was trained on;
        its state takes any length.
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    attention_hidden_size: int
    intermediate_size: int
    max_position_embeddings: int
    norm_eps: float
    final_norm_eps: float

    @property
    def table_size(self) -> int:
        """Columns of the token table."""
        return self.hidden_size

    @property
    def state_size(self) -> int:
        """Values an execution keeps: two rows of the stream, three of the attention's width."""
        return 2 * self.hidden_size + 3 * self.attention_hidden_size


@dataclass(frozen=True)
class WeightSource:
    """Checkpoint tensors that make one weight of the graph, stacked along their rows in this order.

    shapes: what the file must hold for each of them, e.g. (out_features, in_features) or (features,).
    takes: how each of them is taken; () is every one as it is. A tensor may be named twice, with other rows of it.
    """

    tensors: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    takes: tuple[Take, ...] = ()

    def parts(self) -> Iterator[tuple[str, Take]]:
        """Tensor and take, in the order they are stacked."""
        return zip(self.tensors, self.takes or (Take(),) * len(self.tensors), strict=True)

    @property
    def shape(self) -> tuple[int, ...]:
        """The graph weight's shape."""
        taken = [take.shape(shape) for (_, take), shape in zip(self.parts(), self.shapes, strict=True)]
        return (sum(shape[0] for shape in taken), *taken[0][1:])


@dataclass(frozen=True)
class SharingFlags:
    """What a config says of sharing; the tensors have the first word (sharing.py).

    tied: the flag and its value as text, e.g. ("tie_word_embeddings: false", False); None where no flag is set.
    head_is_built: False where the released code builds no head whatever the file holds (MobileLLM's share_embedding).
    repeats: how often each stored block runs in a row: 2 under MobileLLM's layer_sharing, else 1.
    """

    tied: tuple[str, bool] | None
    head_is_built: bool = True
    repeats: int = 1
    repeats_flag: str = ""


@dataclass(frozen=True)
class Recognised:
    """A checkpoint understood: its graph, its weights by the graph's names, and its config's word on sharing.

    weights: graph name -> source, for every block the file numbers, e.g. "blocks.3.attention.qkv.weight".
        Holds "embedding.weight"; holds "head.linear.weight" only where the file has a head tensor.
    ignored: checkpoint tensors that are known to carry no weight (masks, rotary tables of old files).
    notes: what the config offers and the graph does not, one line each; `settle` makes warnings of them.
    """

    spec: DecoderSpec | RwkvSpec
    weights: Mapping[str, WeightSource]
    flags: SharingFlags
    ignored: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def decoder(self) -> DecoderSpec:
        """The spec of an attention family: what a step asks for that has refused RWKV, or never meets it."""
        assert isinstance(self.spec, DecoderSpec)
        return self.spec

    @property
    def kinds(self) -> tuple[BlockSpec | None, ...]:
        """What sets each block of the file apart beside its weights; RWKV's have nothing."""
        return self.spec.blocks if isinstance(self.spec, DecoderSpec) else (None,) * self.spec.num_hidden_layers
