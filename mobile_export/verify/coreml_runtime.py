"""Runs a model.mlpackage by our interpreter, the way a host of its layout calls it."""

from __future__ import annotations

from pathlib import Path

import torch

from mobile_export.errors import InputError
from mobile_export.manifest import CoreMlGraph
from mobile_export.verify.coreml_delegate import delegated_package
from mobile_export.verify.mlprogram.interpreter import Interpreter, Rounding, State
from mobile_export.verify.mlprogram.program import Program

TOKENS, MASK, POSITION, COUNT, LOGITS = "inputIds", "causalMask", "position", "count", "logits"
MAIN, PREFILL, DECODE = "main", "prefill", "decode"
KEYS = "keyCache"


def read_program(path: Path) -> Program:
    """A package's program, or that of the package inside a .pte.

    Raises:
        InputError: neither, or damaged.
    """
    if path.suffix != ".pte":
        return Program.open(path)
    with delegated_package(path) as package:  # its files stay mapped when the folder is gone
        return Program.open(package)


class CoreMlRuntime:
    """A package and its states. A sequence begins wherever `step` is called with start 0."""

    def __init__(self, path: Path, graph: CoreMlGraph, rounding: Rounding = "float32", *, mask_surplus: int = 0) -> None:
        """Read the package, or the one inside a .pte.

        Args:
            rounding: "float32": nothing is rounded between operators; "float16": every result is.
            mask_surplus: how much longer than the text a stock host's mask is: 1 for swift-transformers.
        Raises:
            InputError: not a package, damaged, or of another layout than the manifest says.
        """
        self.program = read_program(path)
        wanted = {PREFILL, DECODE} if graph.layout == "functions" else {MAIN}
        if self.program.functions.keys() != wanted:
            what = f"has the functions {', '.join(self.program.functions)}, not {', '.join(sorted(wanted))}"
            raise InputError(str(path), f"{what}, as a package of layout {graph.layout} has", "export it again")
        self.interpreter = Interpreter(self.program, rounding)
        self.layout, self.chunk, self.mask_surplus = graph.layout, graph.max_prompt or 1, mask_surplus
        self._state: State = {}

    def step(self, tokens: list[int], start: int) -> torch.Tensor:
        """Logits float32 [vocab] of the last of `tokens`, which follow `start` positions: all that were run since 0.

        Raises:
            InputError: the package cannot be run, or has no room for them.
        """
        return self.logits(tokens, start)[-1]

    def logits(self, tokens: list[int], start: int) -> torch.Tensor:
        """Logits float32 [T, vocab]; of a package that says where it begins [1, vocab], of the last token.

        Raises:
            InputError: as `step`.
        """
        if start == 0:
            self._state = self.interpreter.new_state(DECODE if self.layout == "functions" else MAIN)
        if self.layout == "stock":
            mask = torch.zeros(1, 1, 1, start + len(tokens) + self.mask_surplus)
            return self._run(MAIN, {TOKENS: _int32(tokens)[None], MASK: mask})
        at = 0
        while at < len(tokens):
            logits, taken = self._positioned(tokens[at:], start + at)
            at += taken
        return logits

    def _positioned(self, tokens: list[int], start: int) -> tuple[torch.Tensor, int]:
        """One call: as many tokens as it takes, and their number."""
        if self.layout == "delegate":
            tokens = tokens[: self.chunk]
            return self._run(MAIN, {TOKENS: _int32(tokens)[None], POSITION: _int32([start])}), len(tokens)
        return self._fixed(tokens, start)

    def _fixed(self, tokens: list[int], start: int) -> tuple[torch.Tensor, int]:
        """One call of fixed shape: a padded chunk where more than one token is left and its rows are free."""
        states = self.program.functions[DECODE].states
        room = states[KEYS].sizes[2] - start
        if len(tokens) > 1 and room >= self.chunk:
            taken = min(self.chunk, len(tokens))
            padded = tokens[:taken] + [tokens[0]] * (self.chunk - taken)  # any token: what is behind it is never seen
            feeds = {TOKENS: _int32(padded)[None], POSITION: _int32([start]), COUNT: _int32([taken])}
            return self._run(PREFILL, feeds), taken
        return self._run(DECODE, {TOKENS: _int32(tokens[:1])[None], POSITION: _int32([start])}), 1

    def _run(self, function: str, feeds: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.interpreter.run(function, feeds, self._state)[LOGITS][0]


def _int32(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)
