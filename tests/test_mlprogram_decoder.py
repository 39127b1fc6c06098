"""A decoder converted by coremltools, with states, int4 weights and inputs of any length, against eager PyTorch."""

from __future__ import annotations

import coremltools as ct
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mobile_export.errors import InputError
from mobile_export.verify.mlprogram.in_place import plan_states
from mobile_export.verify.mlprogram.interpreter import Interpreter, Rounding
from mobile_export.verify.mlprogram.program import Program

VOCAB, HIDDEN, HEADS, KV_HEADS, CONTEXT, GROUP = 96, 64, 4, 2, 24, 32
HEAD = HIDDEN // HEADS
MATRICES = {"embed": VOCAB, "q": HIDDEN, "k": KV_HEADS * HEAD, "v": KV_HEADS * HEAD, "o": HIDDEN, "up": HIDDEN, "down": HIDDEN}


class OneBlock(nn.Module):
    """One block of a llama, its table tied to its head, with a cache that is written by slices."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.codes: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.register_buffer("_COREML_/metadata_version", torch.tensor(1))
        for name, rows in MATRICES.items():
            codes = torch.randint(-8, 8, (rows, HIDDEN // GROUP, GROUP), generator=generator)
            codes[0, 0, :2] = torch.tensor([-8, 7])  # a signed dtype is taken only if there is something negative
            scales = (0.02 + 0.04 * torch.rand(rows, HIDDEN // GROUP, generator=generator)).half()
            layer = nn.Linear(HIDDEN, rows, bias=False)
            layer.weight.data = (codes * scales.float()[..., None]).reshape(rows, HIDDEN)
            # coremltools takes codes from the weight by these: converting rounds nothing again
            layer.register_buffer("_COREML_/weight/compression_type", torch.tensor([3]))
            layer.register_buffer("_COREML_/weight/quantization_n_bits", torch.tensor(4))
            layer.register_buffer("_COREML_/weight/quantization_scale", scales.float())
            self.add_module(name, layer)
            self.codes[name] = (codes.reshape(rows, HIDDEN).numpy(), scales.numpy())
        self.norm = nn.Parameter((1 + 0.1 * torch.randn(HIDDEN, generator=generator)).half().float())
        angles = torch.arange(CONTEXT)[:, None] * 100.0 ** (-torch.arange(0, HEAD, 2) / HEAD)
        self.register_buffer("cos", torch.cat([angles, angles], -1).cos().half().float())
        self.register_buffer("sin", torch.cat([angles, angles], -1).sin().half().float())
        for name in ("keyCache", "valueCache"):
            self.register_buffer(name, torch.zeros(1, KV_HEADS, CONTEXT, HEAD))

    def normed(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.norm

    def forward(self, inputIds: Tensor, causalMask: Tensor) -> Tensor:
        """Logits [1, Q, VOCAB] of Q tokens; causalMask [1, 1, Q, end] is added to the scores."""
        tokens, end = inputIds.shape[1], causalMask.shape[-1]
        begin = end - tokens
        x = functional.embedding(inputIds, self.embed.weight)
        h = self.normed(x)
        q, k, v = (layer(h).view(1, tokens, -1, HEAD).transpose(1, 2) for layer in (self.q, self.k, self.v))
        self.keyCache[:, :, begin:end] = self.turned(k, begin, end)
        self.valueCache[:, :, begin:end] = v
        keys, values = (kept[:, :, :end].repeat_interleave(HEADS // KV_HEADS, 1) for kept in (self.keyCache, self.valueCache))
        mixed = functional.scaled_dot_product_attention(self.turned(q, begin, end), keys, values, attn_mask=causalMask)
        x = x + self.o(mixed.transpose(1, 2).reshape(1, tokens, HIDDEN))
        x = x + self.down(functional.silu(self.up(self.normed(x))))
        return functional.linear(self.normed(x), self.embed.weight)

    def turned(self, x: Tensor, begin: int, end: int) -> Tensor:
        first, second = x[..., : HEAD // 2], x[..., HEAD // 2 :]
        return x * self.cos[begin:end] + torch.cat([-second, first], -1) * self.sin[begin:end]


def mask(begin: int, tokens: int) -> Tensor:
    """What lies ahead is hidden."""
    return torch.full((tokens, begin + tokens), -1e4).triu(begin + 1)[None, None]


@pytest.fixture(scope="module")
def decoder() -> OneBlock:
    return OneBlock().eval()


@pytest.fixture(scope="module")
def program(decoder: OneBlock, tmp_path_factory: pytest.TempPathFactory) -> Program:
    with torch.no_grad():
        traced = torch.jit.trace(decoder, (torch.zeros(1, 4, dtype=torch.int32), mask(2, 4)), check_trace=False)
    tokens, end = ct.RangeDim(1, 8, default=1), ct.RangeDim(1, CONTEXT, default=1)
    shape = (1, KV_HEADS, CONTEXT, HEAD)
    model = ct.convert(
        traced,
        inputs=[
            ct.TensorType("inputIds", (1, tokens), dtype=np.int32),
            ct.TensorType("causalMask", (1, 1, tokens, end), dtype=np.float16),
        ],
        outputs=[ct.TensorType("logits", dtype=np.float16)],
        states=[ct.StateType(ct.TensorType(shape=shape, dtype=np.float16), name=name) for name in ("keyCache", "valueCache")],
        minimum_deployment_target=ct.target.iOS18,
        skip_model_load=True,
    )
    path = tmp_path_factory.mktemp("decoder") / "decoder.mlpackage"
    model.save(str(path))
    return Program.open(path)


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(0, VOCAB, (1, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def expected(decoder: OneBlock, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        logits = decoder(tokens, mask(0, tokens.shape[1]))
    assert len(set(logits.argmax(-1).flatten().tolist())) > 4  # not one token over and over
    return logits


def chunked(interpreter: Interpreter, tokens: Tensor, chunks: tuple[int, ...]) -> Tensor:
    state, begin, logits = interpreter.new_state("main"), 0, []
    for chunk in chunks:
        feeds = {"inputIds": tokens[:, begin : begin + chunk], "causalMask": mask(begin, chunk)}
        logits.append(interpreter.run("main", feeds, state)["logits"])
        begin += chunk
    return torch.cat(logits, 1)


@pytest.mark.parametrize("chunks", [(8, 4), (5, 1, 1, 4, 1), (1,) * 12])
def test_float32_equals_eager(program: Program, tokens: Tensor, expected: Tensor, chunks: tuple[int, ...]) -> None:
    got = chunked(Interpreter(program), tokens, chunks)
    # weights are exact in both; what is left is the order of float32 sums
    assert float((got - expected).abs().max()) < 1e-5
    assert float(expected.abs().max()) > 1


@pytest.mark.parametrize("rounding", ["float32", "float16"])
def test_weights_need_not_be_kept(program: Program, tokens: Tensor, rounding: Rounding) -> None:
    """The tied table is used twice: it is expanded for the lookup, dropped, and expanded again for the head."""
    kept, passing = Interpreter(program, rounding), Interpreter(program, rounding, keep_weights=False)
    assert torch.equal(chunked(kept, tokens, (8, 1)), chunked(passing, tokens, (8, 1)))
    assert len(kept._weights._held) - len(passing._weights._held) == len(MATRICES)
    (prepared,) = passing._prepared.values()
    made = [step.operation.name for step in prepared.steps if step.operation.type == "constexpr_blockwise_shift_scale"]
    assert len(made) == len(MATRICES) + 1
    dropped = [name for step in prepared.steps for name in step.dropped if name in made]
    assert sorted(dropped) == sorted(made)


def test_float16_rounds_but_agrees(program: Program, tokens: Tensor, expected: Tensor) -> None:
    got = chunked(Interpreter(program, "float16"), tokens, (8, 4))
    error = float((got - expected).abs().max())
    # every value at most half a unit in the last place off: 2**-11 of logits up to 8, through some twenty operations
    assert 1e-4 < error < 20 * 8 * 2**-11
    assert torch.equal(got, got.half().float())


def test_codes_and_scales_are_those_that_went_in(decoder: OneBlock, program: Program) -> None:
    names = program.function("main").compressed
    found = {name: program.codes("main", name) for name in names}
    assert len(found) == len(MATRICES)  # the tied table once
    for name, (codes, scales) in decoder.codes.items():
        (stored,) = [read for stored_name, read in found.items() if stored_name.startswith(f"{name}_weight")]
        assert np.array_equal(stored["data"], codes)
        assert np.array_equal(stored["scale"], scales)


def test_the_cache_is_updated_in_its_own_memory(program: Program, tokens: Tensor) -> None:
    plan = plan_states(program.function("main"))
    assert len(plan.in_place) == len(plan.settled) == 2
    interpreter = Interpreter(program)
    state = interpreter.new_state("main")
    memory = {name: kept.data_ptr() for name, kept in state.items()}
    interpreter.run("main", {"inputIds": tokens[:, :8], "causalMask": mask(0, 8)}, state)
    assert {name: kept.data_ptr() for name, kept in state.items()} == memory
    assert all(kept[:, :, :8].abs().min() > 0 and not kept[:, :, 8:].any() for kept in state.values())


def test_what_the_function_takes_and_gives(program: Program) -> None:
    main = program.function("main")
    assert {given.name: str(given.type) for given in main.inputs} == {
        "inputIds": "int32[1, ?]",
        "causalMask": "float16[1, 1, ?, ?]",
    }
    assert [given.ranges for given in main.inputs] == [((1, 1), (1, 8)), ((1, 1), (1, 1), (1, 8), (1, CONTEXT))]
    assert {name: str(type_) for name, type_ in main.states.items()} == dict.fromkeys(
        ("keyCache", "valueCache"), f"float16[1, {KV_HEADS}, {CONTEXT}, {HEAD}]"
    )
    assert list(main.outputs) == ["logits"]


FEEDS = {"inputIds": torch.zeros(1, 4, dtype=torch.int64), "causalMask": mask(0, 4)}
WRONG: dict[str, tuple[dict[str, Tensor], str]] = {
    "too long": (
        {**FEEDS, "inputIds": torch.zeros(1, 9, dtype=torch.int64)},
        "main: inputIds: has the shape [1, 9]; it takes int32[1, ?], 1 to 1, 1 to 8",
    ),
    "another rank": ({**FEEDS, "inputIds": torch.zeros(4, dtype=torch.int64)}, "main: inputIds: has the shape [4]"),
    "float for integers": ({**FEEDS, "inputIds": torch.zeros(1, 4)}, "main: inputIds: is given as float32; it takes int32"),
    "too large": (
        {**FEEDS, "inputIds": torch.full((1, 4), 1 << 40)},
        "main: inputIds: holds a number that does not fit int32; check what is given",
    ),
    "no mask": (
        {"inputIds": FEEDS["inputIds"]},
        "main: causalMask: is an input that is not given; it takes float16[1, 1, ?, ?]",
    ),
    "more": ({**FEEDS, "pos": torch.zeros(1)}, "main: takes inputIds, causalMask; leave out pos"),
    "beyond the table": (
        {**FEEDS, "inputIds": torch.full((1, 4), VOCAB)},
        f"cannot be run (index {VOCAB} of {VOCAB})",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_inputs_are_refused(program: Program, name: str) -> None:
    feeds, said = WRONG[name]
    interpreter = Interpreter(program)
    with pytest.raises(InputError) as caught:
        interpreter.run("main", feeds, interpreter.new_state("main"))
    assert said in str(caught.value)
    assert str(caught.value).startswith("decoder.mlpackage: main: ")
