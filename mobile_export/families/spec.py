"""What a graph depends on, and where each of its weights lies in the checkpoint: both as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class RopeSpec:
    """Rotary position embedding, resolved: whatever scaling a config asks for is already in the frequencies.

    inverse_frequencies: float32 values, head_dim / 2 of them; angle = position * inverse_frequency.
    attention_factor: multiplies cos and sin.
    """

    inverse_frequencies: tuple[float, ...]
    attention_factor: float = 1.0


@dataclass(frozen=True)
class DecoderSpec:
    """Everything a decoder's graph depends on, save what is stored once (that is SharingPlan's).

    Fields are spelled as in Hugging Face's config.json. `num_hidden_layers` counts the blocks the file numbers.
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
    rope: RopeSpec
    qkv_bias: bool = False
    o_bias: bool = False
    ffn_bias: bool = False

    @property
    def qkv_size(self) -> int:
        """Rows of the joined query, key and value projection."""
        return (self.num_attention_heads + 2 * self.num_key_value_heads) * self.head_dim

    @property
    def attended_size(self) -> int:
        """Channels the attention hands to the output projection."""
        return self.num_attention_heads * self.head_dim


@dataclass(frozen=True)
class WeightSource:
    """Checkpoint tensors that make one weight of the graph, stacked along their rows in this order.

    shapes: what the config implies for each of them, (out_features, in_features) or (features,).
    """

    tensors: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]


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
    """

    spec: DecoderSpec
    weights: Mapping[str, WeightSource]
    flags: SharingFlags
    ignored: tuple[str, ...]
