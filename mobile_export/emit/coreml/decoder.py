"""The Decoder in the forms that are traced: for swift-transformers, and as two functions of fixed shape.

Matrices are placeholders without memory: the codes come in when the program is converted (weights_pass.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

from mobile_export.emit.coreml.attention import StatefulAttention, Step
from mobile_export.emit.coreml.limits import check_float16
from mobile_export.families.spec import BlockSpec, DecoderSpec
from mobile_export.model.attention_rule import attention_rules
from mobile_export.model.decoder import AttentionInput, Block, ConvBlock, Decoder, FeedForward, Head
from mobile_export.model.entry import Entry, has_entry
from mobile_export.model.norms import RmsNorm
from mobile_export.model.rotary import RotaryTables
from mobile_export.model.short_conv import ShortConv
from mobile_export.quantize.recipe import EMBEDDING, POSITIONS
from mobile_export.quantize.weights import ModelWeights

KEYS, VALUES, COLUMNS = "keyCache", "valueCache", "columns"  # the first two: names swift-transformers looks for
SMALLEST = 2.0**-10  # what a norm divides by at least: eps / SMALLEST ** 2 stays finite in float16


class ScaledRmsNorm(nn.Module):
    """RmsNorm that squares nothing above 1: x / max|x| has the same norm, and x**2 overflows float16 from 256 on."""

    root_eps: torch.Tensor
    smallest: torch.Tensor

    def __init__(self, norm: RmsNorm) -> None:
        super().__init__()
        self.register_buffer("root_eps", torch.tensor([norm.eps**0.5]))
        self.register_buffer("smallest", torch.tensor([SMALLEST]))
        self.weight = norm.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        largest = torch.maximum(x.abs().amax(-1, keepdim=True), self.smallest)
        x, root = x / largest, self.root_eps / largest
        normal = x * torch.rsqrt((x * x).mean(-1, keepdim=True) + root * root)
        return normal if self.weight is None else normal * self.weight


class GatheredRotaryTables(RotaryTables):
    """RotaryTables by gather: a row's number is a value here, not a bound of a slice."""

    def forward(self, start: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows from `start` on, each [1, T, 1, rotated]."""
        rows = torch.arange(length) + start
        return self.cos[rows][None, :, None], self.sin[rows][None, :, None]


class ColumnState(nn.Module):
    """What Decoder calls as remember(slot, columns, start), over one state [conv executions, conv_kernel - 1, hidden].

    A text begins at position 0 with zeros, and is else gone on with where it ended.
    """

    state: torch.Tensor

    def __init__(self, slots: Sequence[int], state: torch.Tensor) -> None:
        super().__init__()
        self.row_of = {slot: row for row, slot in enumerate(slots)}
        self.__dict__["state"] = state  # a buffer of the module that is traced
        self.count: torch.Tensor | None = None

    def forward(self, slot: int, columns: torch.Tensor, start: int) -> torch.Tensor:
        """Columns [1, T, hidden] of new positions -> with those before them, [1, conv_kernel - 1 + T, hidden]."""
        row, reach = self.row_of[slot], self.state.shape[1]
        begun = (torch.as_tensor(start) > 0).float()
        joined = torch.cat((self.state[row : row + 1] * begun, columns), dim=1)
        newest = joined[:, -reach:] if self.count is None else joined[:, self.count + torch.arange(reach)]
        self.state[row : row + 1] = newest
        return joined


class StatefulDecoder(Decoder):
    """A Decoder whose caches are its own buffers, by the names of the package's states; zeros before the first call.

    Its small weights are the checkpoint's, its matrices placeholders.
    """

    attend: StatefulAttention
    remember: ColumnState | None

    def __init__(self, weights: ModelWeights, context: int) -> None:
        spec, plan = weights.recognised.decoder, weights.plan
        rules = attention_rules(spec, plan.blocks, plan.schedule)
        kinds = [spec.blocks[plan.blocks[stored]].mixer for stored in plan.schedule]
        attending, convolving = ([slot for slot, kind in enumerate(kinds) if kind == mixer] for mixer in ("attention", "conv"))
        keys, values = (torch.zeros(len(attending), spec.num_key_value_heads, context, spec.head_dim) for _ in range(2))
        columns = torch.zeros(len(convolving), spec.conv_kernel - 1, spec.hidden_size) if convolving else None
        with torch.device("meta"):
            embedding = nn.Embedding(spec.vocab_size, spec.table_size)
            blocks = [_block(spec, spec.blocks[number]) for number in plan.blocks]
            entry, head = Entry(spec) if has_entry(spec) else None, Head(spec)
        super().__init__(
            spec,
            plan.schedule,
            context,
            embedding=embedding,
            unfold=weights.unfold(),
            entry=entry,
            blocks=blocks,
            rotary=[GatheredRotaryTables(rope, context) for rope in spec.ropes],
            attend=StatefulAttention(spec, {slot: rules[slot] for slot in attending}, keys, values),
            remember=None if columns is None else ColumnState(convolving, columns),
            head=head,
        )
        self.register_buffer(KEYS, keys)
        self.register_buffer(VALUES, values)
        if columns is not None:
            self.register_buffer(COLUMNS, columns)
        _fill(self, weights)

    def run(self, tokens: torch.Tensor, step: Step, count: torch.Tensor | None = None) -> torch.Tensor:
        """The residual stream of a call's tokens, [1, T, hidden]. count: how many of them are no padding; None: all."""
        self.attend.begin(step)
        if self.remember is not None:
            self.remember.count = count
        return self.stream(tokens, cast("int", step.position))


class StockDecoder(StatefulDecoder):
    """As swift-transformers' LanguageModel calls it: tokens of any number, and a mask whose length tells the position.

    LanguageModel sends a mask one longer than there are tokens, all zeros and of one row even for a whole prompt: slot 0
    stays empty. Hosts written after Apple's example send the exact length. Both come out right: causality is in the graph,
    and an empty slot 0 is seen by nobody and counts no position.
    """

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """tokens int32 [1, T], mask [1, 1, any, past + T] -> logits [1, T, vocab]."""
        end = mask.shape[-1]
        length = tokens.shape[1]
        begin = end - length
        slot = torch.arange(begin, begin + 1)  # a tensor, where begin is a bound of slices; whole numbers all the way
        empty = self.get_buffer(KEYS)[:1, :, :1, :].abs().amax(dim=(1, 2, 3)) == 0
        unused = (empty & (slot > 0)).int()
        position = slot - unused
        return self.head(self.run(tokens, Step(length, begin, end, position, unused, end, mask[:, :, -1:, :])))


class PositionedDecoder(StatefulDecoder):
    """A call that says where it begins; of fixed length it may be padded at its end."""

    def forward(self, tokens: torch.Tensor, position: torch.Tensor, count: torch.Tensor | None = None) -> torch.Tensor:
        """tokens int32 [1, T], position int32 [1] -> logits [1, 1, vocab] of the last, or after `count` int32 [1] of them."""
        length, begin = tokens.shape[1], cast("int", position)  # while it is traced
        stream = self.run(tokens, Step(length, begin, begin + length, position, None, self.context, None), count)
        return self.head(stream[:, -1:] if count is None else stream[:, count - 1])


def _block(spec: DecoderSpec, kind: BlockSpec) -> Block | ConvBlock:
    ffn = FeedForward(spec, kind)
    return ConvBlock(ShortConv(spec), ffn) if kind.mixer == "conv" else Block(AttentionInput(spec, kind), ffn, kind.rope)


def weight_of(parameter: str) -> str:
    """The weight a parameter of a StatefulDecoder holds the place of, as ModelWeights names it."""
    if parameter == "entry.positions.weight":
        return POSITIONS
    return "embedding." + parameter.removeprefix("entry.") if parameter.startswith("entry.") else parameter


def parameter_of(weight: str) -> str:
    """The parameter that holds a weight's place: weight_of the other way round."""
    if weight == POSITIONS:
        return "entry.positions.weight"
    return weight if weight == EMBEDDING else weight.replace("embedding.", "entry.", 1)


def _fill(decoder: Decoder, weights: ModelWeights) -> None:
    """Give parameters their values, matrices one without memory, and norms the form float16 needs.

    Raises:
        InputError: a norm, bias or kernel that cannot be read, is not finite, or is beyond float16.
    """
    for name, empty in list(decoder.named_parameters()):
        source = weights.source_of(weight_of(name))
        value = torch.zeros(()).expand(empty.shape) if source in weights.matrices else weights.float32(source)
        check_float16(value, weights.where(source))
        owner, _, attribute = name.rpartition(".")
        setattr(decoder.get_submodule(owner), attribute, nn.Parameter(value, requires_grad=False))
    for name, module in list(decoder.named_modules()):
        if isinstance(module, RmsNorm):
            decoder.set_submodule(name, ScaledRmsNorm(module))
