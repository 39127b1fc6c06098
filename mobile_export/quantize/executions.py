"""Runs a model's blocks one at a time over whole texts, in plain float32, every text by itself from its first token on.

Texts go to the workers in turn, and what they give is put together in the texts' order: neither the number of workers nor
their luck changes a result.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor

import torch
from torch import nn

from mobile_export.families.spec import RwkvSpec
from mobile_export.model.attention import PlainAttention
from mobile_export.model.attention_rule import attention_rules
from mobile_export.model.decoder import ConvBlock
from mobile_export.model.rotary import RotaryTables
from mobile_export.model.rwkv import empty_state
from mobile_export.model.short_conv import PlainColumns
from mobile_export.quantize import pieces
from mobile_export.quantize.weights import ModelWeights

WORKERS = 2  # texts run side by side

Stream = list[torch.Tensor]  # the residual stream of every text, [1, T, hidden]


def side_by_side() -> ThreadPoolExecutor:
    """Workers for texts, one thread each: torch counts an operator's threads by the thread that calls it."""
    return ThreadPoolExecutor(WORKERS, initializer=torch.set_num_threads, initargs=(1,))


def room_like(stream: Stream, width: int | None = None) -> Stream:
    """Uninitialized tensors of a stream's lengths, in one piece of memory; width: another last axis.

    Small tensors that live long lie scattered among those that are freed at once, and leave the heap in shreds between them.
    """
    whole = torch.empty(1, sum(x.shape[1] for x in stream), width or stream[0].shape[2])
    return list(whole.split([x.shape[1] for x in stream], dim=1))


class Executions:
    """One execution at a time, of whatever block is given for it."""

    def __init__(self, weights: ModelWeights, length: int, pool: Executor) -> None:
        """length: tokens of the longest text. pool: runs texts side by side."""
        self.weights, self.pool, spec = weights, pool, weights.recognised.spec
        if not isinstance(spec, RwkvSpec):
            self.rules = attention_rules(spec, weights.plan.blocks, weights.plan.schedule)
            self.rotary = [RotaryTables(rope, length) for rope in spec.ropes]

    def entrance(self, linears: pieces.Linears, tables: pieces.Tables) -> Callable[[torch.Tensor], torch.Tensor]:
        """From a text's rows of the token table to its stream before the first block."""
        weights, spec = self.weights, self.weights.recognised.spec
        if isinstance(spec, RwkvSpec):
            return pieces.rwkv_norm(weights, spec)
        entry = pieces.entry(weights, linears, tables)
        return (lambda rows: rows) if entry is None else (lambda rows: entry(rows, 0))

    def run(self, block: nn.Module, slot: int, stream: Stream) -> Stream:
        """The stream after an execution."""
        through, after = self.through(block, slot), room_like(stream)
        list(self.pool.map(lambda x, room: room.copy_(through(x)), stream, after))
        return after

    def through(self, block: nn.Module, slot: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """An execution as a function of one text's stream."""
        spec = self.weights.recognised.spec

        def execution(x: torch.Tensor) -> torch.Tensor:
            if isinstance(spec, RwkvSpec):
                return block(x, empty_state(spec))[0]
            if isinstance(block, ConvBlock):
                return block(x, slot, 0, PlainColumns(spec))
            rotations = [tables(0, x.shape[1]) for tables in self.rotary]
            return block(x, slot, 0, rotations, _WholeText(self.rules))

        return execution


class _WholeText(PlainAttention):
    """Attention that keeps no keys and values once a text is through: no more of it is to come."""

    def forward(self, slot: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, start: int) -> torch.Tensor:
        attended = super().forward(slot, query, key, value, start)
        self.forget()
        return attended
