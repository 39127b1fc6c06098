"""Text to calibrate with, without any data: sampled from the float32 model itself.

Source: LLM-QAT (arXiv:2305.17888), section 2.1. Tokens are drawn from the whole distribution: without its tail a text is
smoother than what people write, and serves less for it (decision 0014).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from mobile_export.errors import InputError
from mobile_export.families.spec import RwkvSpec
from mobile_export.model.attention_rule import AttentionRule, alibi_bias, attention_rules, seen, temperature
from mobile_export.model.decoder import Block, ConvBlock, Decoder
from mobile_export.model.rotary import RotaryTables
from mobile_export.model.rwkv import RwkvState, empty_state
from mobile_export.quantize import pieces
from mobile_export.quantize.weights import ModelWeights

BESIDE = 32  # texts sampled at a time: their keys and values are all kept

Logits = Callable[[torch.Tensor, int], torch.Tensor]


def sample_texts(weights: ModelWeights, sequences: int, length: int, say: Callable[[str], None]) -> torch.Tensor:
    """Texts of the model's own, int64 (sequences, length); the same on every call.

    Each begins with BOS where the checkpoint has one, and with a token drawn from the whole vocabulary, so that no two are
    alike. None ends before its length: the tokens that end a text are not sampled.

    Args:
        length: at most the positions the model was trained for.
    Raises:
        InputError: logits beyond float32.
    """
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(weights.recognised.spec.vocab_size, (sequences, 1), generator=generator)
    texts: list[torch.Tensor] = []
    for at in range(0, sequences, BESIDE):
        some = first[at : at + BESIDE]

        def tell(position: int, past: int = at, count: int = len(some)) -> None:
            done, total = past * (length - 1) + count * position, sequences * (length - 1)
            say(f"sampling text from the model: {done:,} of {total:,} tokens")

        texts.append(_sampled(weights, some, length, generator, tell))
    return torch.cat(texts)


def _sampled(
    weights: ModelWeights, first: torch.Tensor, length: int, generator: torch.Generator, tell: Callable[[int], None]
) -> torch.Tensor:
    """Texts that go on from a first token each, [texts, 1], all side by side."""
    spec, checkpoint = weights.recognised.spec, weights.checkpoint
    begin = [] if checkpoint.bos_id is None else [torch.full_like(first, checkpoint.bos_id)]
    tokens = torch.cat([*begin, first], dim=1)[:, :length]
    ends = torch.tensor([end for end in checkpoint.eos_ids if end < spec.vocab_size], dtype=torch.int64)
    logits_of = _rwkv(weights, len(first)) if isinstance(spec, RwkvSpec) else _decoder(weights, length)
    with torch.no_grad():
        for position in range(length - 1):
            logits = logits_of(tokens[:, position], position)
            if position + 1 < tokens.shape[1]:
                continue
            if not logits.isfinite().all():
                what = "what the model says in float32 is no number, so no text can be sampled from it"
                raise InputError(str(checkpoint.source), what, "check the checkpoint by --recipe fp32")
            tell(position + 1)
            logits[:, ends] = -torch.inf
            tokens = torch.cat((tokens, _drawn(logits, generator)), dim=1)
    return tokens


def _drawn(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A token for each row of logits [rows, vocab], int64 [rows, 1]."""
    return torch.multinomial(logits.softmax(dim=1), 1, generator=generator)


# --- one position of many texts at a time --------------------------------------------------------------------------------
# A Decoder runs one text. Here its T tokens are the newest of T texts, all at one position: nothing but attention, short
# convolutions and positions can tell the difference, so those are given other modules.


def _decoder(weights: ModelWeights, length: int) -> Logits:
    spec, plan = weights.recognised.decoder, weights.plan
    linears, tables = pieces.float_linears(weights), pieces.float_tables(weights)
    entry = pieces.entry(weights, linears, tables)
    if entry is not None and entry.positions is not None:
        entry.positions = _AtOnePosition(entry.positions)
    decoder = Decoder(
        spec,
        plan.schedule,
        length,
        embedding=tables("embedding.weight"),
        entry=entry,
        blocks=[_beside(pieces.stored_block(weights, number, linears)) for number in range(len(plan.blocks))],
        rotary=[_OnePosition(RotaryTables(rope, length)) for rope in spec.ropes],
        attend=_AttentionBeside(attention_rules(spec, plan.blocks, plan.schedule)),
        remember=_ColumnsBeside(spec.conv_kernel) if spec.conv_kernel else None,
        head=pieces.head(weights, linears),
    ).eval()
    return lambda tokens, position: decoder.head(decoder.stream(tokens[None], position))[0]


def _rwkv(weights: ModelWeights, sequences: int) -> Logits:
    spec = weights.recognised.spec
    assert isinstance(spec, RwkvSpec)
    linears = pieces.float_linears(weights)
    table, norm, head = weights.float32("embedding.weight"), pieces.rwkv_norm(weights, spec), pieces.head(weights, linears)
    blocks = [pieces.stored_block(weights, number, linears) for number in range(len(weights.plan.blocks))]
    empty = RwkvState(*(part.expand(sequences, 1, -1) for part in vars(empty_state(spec)).values()))
    states = [empty] * len(weights.plan.schedule)

    def logits(tokens: torch.Tensor, position: int) -> torch.Tensor:
        x = norm(table[tokens][:, None])  # each text its own row of the batch, which a recurrent block knows already
        for slot, stored in enumerate(weights.plan.schedule):
            x, states[slot] = blocks[stored](x, states[slot])
        return head(x)[:, 0]

    return logits


class _OnePosition(nn.Module):
    """Rotary tables of one position, whatever the number of tokens: they broadcast."""

    def __init__(self, tables: RotaryTables) -> None:
        super().__init__()
        self.tables = tables

    def forward(self, start: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = self.tables(start, 1)
        return cos.expand(-1, length, -1, -1), sin.expand(-1, length, -1, -1)


class _AtOnePosition(nn.Module):
    """A position table that gives all tokens the first one's row."""

    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        self.table = table

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.table(rows[:, :1])


class _AttentionBeside(nn.Module):
    """Attention of the newest token of each text, [1, texts, heads, head_dim], over that text's own past."""

    def __init__(self, rules: tuple[AttentionRule, ...]) -> None:
        super().__init__()
        self.rules = rules
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def forward(self, slot: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, start: int) -> torch.Tensor:
        """query [1, texts, heads, head_dim], key and value [1, texts, kv_heads, head_dim], all at position `start`."""
        rule = self.rules[slot]
        key, value = key[0, :, :, None], value[0, :, :, None]  # [texts, kv_heads, 1, head_dim]
        if start:
            key, value = (torch.cat((past, new), dim=2) for past, new in zip(self.kept[slot], (key, value), strict=True))
        self.kept[slot] = (key, value)
        row, keys = torch.tensor([start]), torch.arange(start + 1)
        if rule.query_temperature:
            query = query * temperature(rule, row)
        texts, heads, kv_heads = query.shape[1], query.shape[2], key.shape[1]
        grouped = query.view(texts, kv_heads, heads // kv_heads, -1)
        scores = grouped @ key.transpose(2, 3) * rule.scale
        if rule.softcap is not None:
            scores = torch.tanh(scores / rule.softcap) * rule.softcap
        if rule.alibi != "none":
            scores = scores + alibi_bias(rule, heads, keys).view(kv_heads, heads // kv_heads, -1)
        scores = scores.masked_fill(~seen(rule, row, keys)[0], -torch.inf)
        return (scores.softmax(dim=-1) @ value).reshape(1, texts, heads, -1)


class _ColumnsBeside(nn.Module):
    """The last columns of each text, [texts, conv_kernel, hidden]."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.kept: dict[int, torch.Tensor] = {}

    def forward(self, slot: int, columns: torch.Tensor, start: int) -> torch.Tensor:
        """Keep columns [1, texts, hidden] of position `start`; give them with those before, zeros before position 0."""
        new = columns[0, :, None]
        past = self.kept[slot] if start else new.new_zeros(len(new), self.kernel, new.shape[2])
        self.kept[slot] = torch.cat((past, new), dim=1)[:, 1:]
        return self.kept[slot]


class _ConvBlockBeside(ConvBlock):
    """A ConvBlock over the newest token of each text."""

    def forward(self, x: torch.Tensor, slot: int, start: int, remember: nn.Module) -> torch.Tensor:
        columns, gate = self.conv(x)
        kernel, bias = self.conv.kernel[:, 0].t(), self.conv.bias
        mixed = (remember(slot, columns, start) * kernel).sum(dim=1)[None]
        return self.ffn(x, gate * (mixed if bias is None else mixed + bias))


def _beside(block: pieces.StoredBlock) -> Block | ConvBlock:
    if isinstance(block, ConvBlock):
        return _ConvBlockBeside(block.conv, block.ffn)
    assert isinstance(block, Block)
    return block
