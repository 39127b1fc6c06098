"""What a decoder's graph is written with: one choice of operators for onnxruntime, one of the ONNX standard's alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx_ir as ir

from mobile_export.families.spec import BlockSpec
from mobile_export.model.attention_rule import AttentionRule

OPSET = 23  # RMSNormalization and RotaryEmbedding are standard operators from here on


@dataclass(frozen=True)
class KvScales:
    """What int8 keys and values of one slot are multiplied with: float32 (kv_heads * head_dim,) each."""

    key: np.ndarray
    value: np.ndarray


@dataclass(frozen=True)
class Execution:
    """One entry of the schedule: the stored block it runs, its slot, and what its attention does.

    cache: what earlier calls left: key and value, or a conv block's columns. kv_scales: of an int8 cache.
    """

    slot: int
    stored: int
    kind: BlockSpec
    rule: AttentionRule
    cache: tuple[ir.Value, ...]
    kv_scales: KvScales | None

    @property
    def name(self) -> str:
        """What its nodes' names begin with."""
        return f"execution.{self.slot}"


class Products(Protocol):
    """Everything a matrix is used for. Values are [batch, T, channels]; every `name` is a node's."""

    def linear(self, x: ir.Value, place: str, name: str, *, bias: bool = False) -> ir.Value:
        """x times the matrix at a place of the graph ("blocks.3.ffn.down"), plus its bias."""

    def gather(self, table: str, rows: ir.Value, name: str) -> ir.Value:
        """Rows, int64 [batch, T], of a table named as a weight."""


class Operators(Protocol):
    """How a decoder's sublayers are written, beside its products."""

    def norm(self, x: ir.Value, added: ir.Value | None, place: str, name: str) -> tuple[ir.Value, ir.Value]:
        """The norm at a place over x, or over its sum with `added`; and that sum."""

    def attention(self, joined: ir.Value, execution: Execution) -> Sequence[ir.Value]:
        """Joined query, key and value -> attended values, present key, present value."""
