"""What stands between coremltools and us: one mend, its talk, the same bytes every time, and numbers beyond sixteen bits."""

from __future__ import annotations

import inspect
import logging
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from coremltools.converters.mil.frontend.torch import ops
from exported import checkpoint, coreml_artifact, coreml_file, coreml_runtime, weights_of
from test_coreml_one_copy import WEIGHTS, blocks_of, package_of
from tiny_checkpoints import write_llama

from mobile_export.emit.coreml import convert, toolchain
from mobile_export.model.decoder import Decoder
from mobile_export.verify.float16_numbers import float16_decoder
from mobile_export.verify.mlprogram.program import Program
from mobile_export.verify.parity import error
from mobile_export.verify.reference import reference_logits

LIMIT = 1e-5  # of the largest logit: float32 summed in another order


# --- the mend ----------------------------------------------------------------------------------------------------------


def test_the_mend_is_still_needed(monkeypatch):
    """Goes red with the first coremltools that casts an array of one element itself: take mend_cast out then."""
    toolchain.coremltools()
    stock = inspect.getclosurevars(ops._cast).nonlocals["stock"]
    monkeypatch.setattr(ops, "_cast", stock)
    monkeypatch.setattr(toolchain, "mend_cast", lambda: None)
    with pytest.raises(TypeError, match="only 0-dimensional arrays can be converted to Python scalars"):
        coreml_file(weights_of(checkpoint(), "fp32"), layout="functions")  # fixed shapes: sizes are constants there


def test_the_mend_and_the_filter_are_applied_once():
    for _ in range(3):
        toolchain.coremltools()
    stock = inspect.getclosurevars(ops._cast).nonlocals["stock"]
    assert not hasattr(stock, "mended")
    assert stock.__module__ == ops.__name__
    filters = logging.getLogger("coremltools").filters
    assert sum(isinstance(each, toolchain._Talk) for each in filters) == 1


# --- its talk, and its bytes -------------------------------------------------------------------------------------------

# Converts with the command line, and has coremltools warn of something while it does.
RUN = """
import logging, sys, warnings
from mobile_export.emit.coreml import package
right = package.convert
def convert(*given):
    logging.getLogger("coremltools").warning("this op is odd")
    warnings.warn("and numpy thinks so too")
    return right(*given)
package.convert = convert
from mobile_export.cli import run
sys.exit(run(["coreml", *sys.argv[1:]]))
"""


def test_another_process_talks_of_what_matters_alone_and_writes_the_same_bytes(tmp_path):
    """Another order of sets and of what was converted before: neither shows in the package."""
    arguments = ["--recipe", "w4-fast", "--max-context", "64"]
    command = [sys.executable, "-c", RUN, str(checkpoint()), "--out", str(tmp_path / "out"), *arguments]
    found = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONHASHSEED": "7"})
    assert found.returncode == 0, found.stderr
    lines = found.stderr.splitlines()
    assert len(lines) == 2, found.stderr  # neither bars nor versions
    assert lines[0].endswith("this op is odd")
    assert lines[1].endswith("UserWarning: and numpy thinks so too")
    same_program(package_of(tmp_path / "out"), package_of(coreml_artifact(checkpoint(), *arguments[:2])))


@pytest.mark.parametrize("layout", ["stock", "functions"])
def test_the_same_input_gives_the_same_weights_twice(layout):
    same_program(*(coreml_file(weights_of(checkpoint(), "w4-fast"), layout=layout) for _ in range(2)))


def same_program(first: Path, second: Path) -> None:
    """Equal weights, byte for byte, and the same operators.

    The names of small constants are not: which of several equal ones stays, coremltools takes from a set ordered by address.
    """
    assert (first / WEIGHTS).read_bytes() == (second / WEIGHTS).read_bytes()
    programs = [Program.open(package) for package in (first, second)]
    kinds = [
        {name: Counter(op.type for op in function.operations) for name, function in program.functions.items()}
        for program in programs
    ]
    assert kinds[0] == kinds[1]


# --- beyond sixteen bits -----------------------------------------------------------------------------------------------

FAR, SHORT = 33_000, 8
SMALL = {"blocks": 1, "hidden": 32, "heads": 2, "kv_heads": 1, "ffn": 32}


@pytest.fixture(scope="module")
def long_one(tmp_path_factory) -> Path:
    return write_llama(tmp_path_factory.mktemp("long") / "llama", **SMALL, max_positions=40_000)


def past(seed: int, rows: int) -> torch.Tensor:
    """Keys or values of earlier tokens, float16's numbers, [1, kv_heads, rows, head_dim]."""
    return torch.randn(1, 1, rows, 16, generator=torch.Generator().manual_seed(seed)).half().float()


def after_a_past(decoder: Decoder, tokens: list[int], start: int) -> torch.Tensor:
    """Logits of the last token, in PyTorch."""
    decoder.attend.cache[0] = (past(1, start).transpose(1, 2), past(2, start).transpose(1, 2))
    with torch.no_grad():
        return decoder(torch.tensor([tokens]), torch.tensor([start]))[0, -1]


@pytest.mark.parametrize("layout", ["stock", "functions"])
def test_positions_beyond_32767_are_right(long_one, layout):
    """coremltools computes indices in int16 where it may: it must not here."""
    weights = weights_of(long_one, "fp32")
    assert FAR > convert.INT16_LIMIT
    decoder = float16_decoder(weights, 40_000)
    runtime = coreml_runtime(coreml_file(weights, layout=layout, max_context=40_000), layout)
    for start, tokens in ((FAR, [5]), (FAR, [5, 7, 9]), (convert.INT16_LIMIT - 2, [5, 7, 9, 11]), (FAR, [3] * SHORT)):
        runtime._state = runtime.interpreter.new_state("main" if layout == "stock" else "decode")
        for name, seed in (("keyCache", 1), ("valueCache", 2)):
            runtime._state[name][:, :, :start] = past(seed, start)
        assert error(runtime.step(tokens, start), after_a_past(decoder, tokens, start)) <= LIMIT, (start, tokens)
    near, far = (after_a_past(decoder, [5], start) for start in (FAR - 1, FAR))
    assert error(near, far) > 100 * LIMIT, "one position more or less would show"


@pytest.mark.parametrize("vocab", [40_000, 70_000])
@pytest.mark.parametrize("recipe", ["w8-fast", "fp32"])
def test_tokens_beyond_sixteen_bits_are_right(tmp_path, recipe, vocab):
    source = write_llama(tmp_path / "llama", **SMALL, vocab=vocab, tokenizer=None)
    weights = weights_of(source, recipe)
    text = [vocab - 1, 5, 32_768, min(65_536, vocab - 2), 32_767, min(65_535, vocab - 3)]
    want = reference_logits(float16_decoder(weights, 64), text)
    assert error(coreml_runtime(coreml_file(weights)).logits(text, 0), want) <= LIMIT


def test_short_contexts_are_computed_in_int16():
    """What the limit above is a limit of: below it the smaller type is taken, which the Neural Engine can."""
    (block,) = blocks_of(coreml_artifact(checkpoint(), "--recipe", "w4-fast")).values()
    kinds = {op.outputs[0].name for op in block.operations if op.type == "cast"}
    assert any("int16" in name for name in kinds)
