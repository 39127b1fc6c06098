"""Time per operator of a .pte's single-token step, from ExecuTorch's trace (ETDump)."""

from __future__ import annotations

import re
import statistics
from collections import Counter, defaultdict
from pathlib import Path

from mobile_export.measure.profile import OperatorTime

STEP, OPERATOR, DELEGATE = "Method::execute", "OPERATOR_CALL", "DELEGATE_CALL"
INTO_DELEGATES, BETWEEN = "(calls into delegates)", "(between operators)"


def operator_times(etdump: Path) -> list[OperatorTime]:
    """The operators of a trace of single-token steps, the slowest first; all of them add up to the step.

    What a call into a delegate takes beside the operators within it is a line of its own, and so is what the runtime takes
    between operators.
    """
    from executorch.devtools import Inspector

    calls: Counter[tuple[str, bool]] = Counter()
    seconds: dict[tuple[str, bool], list[float]] = defaultdict(list)
    block = next(block for block in Inspector(etdump_path=str(etdump)).event_blocks if block.name == "Execute")
    for event in block.events:
        raw = event.perf_data.raw
        key = (event.name if event.name in (STEP, OPERATOR, DELEGATE) else _plain(event.name), bool(event.is_delegated_op))
        calls[key] += 1
        so_far = seconds[key] or [0.0] * len(raw)
        seconds[key] = [before + now for before, now in zip(so_far, raw, strict=True)]
    return _shares(calls, {key: statistics.median(steps) for key, steps in seconds.items()})


def _shares(calls: Counter[tuple[str, bool]], milliseconds: dict[tuple[str, bool], float]) -> list[OperatorTime]:
    """One line an operator, and two for what lies around them."""
    step, delegated = milliseconds.pop((STEP, False)), milliseconds.pop((DELEGATE, False), 0.0)
    milliseconds.pop((OPERATOR, False), None)
    within = sum(took for (_, delegate), took in milliseconds.items() if delegate)
    outside = sum(took for (_, delegate), took in milliseconds.items() if not delegate)
    calls[INTO_DELEGATES, True], calls[BETWEEN, False] = calls[DELEGATE, False], calls[OPERATOR, False]
    milliseconds[INTO_DELEGATES, True] = max(delegated - within, 0.0)
    milliseconds[BETWEEN, False] = max(step - delegated - outside, 0.0)
    lines = [OperatorTime(name, delegate, calls[name, delegate], took, took / step)
             for (name, delegate), took in milliseconds.items() if calls[name, delegate]]  # fmt: skip
    return sorted(lines, key=lambda line: -line.milliseconds)


def _plain(name: str) -> str:
    """An event's name without what tells two calls, or two variants of one operator, apart.

    >>> _plain("native_call_slice_copy.Tensor_out"), _plain("Multiply (ND) #3"), _plain("llama::custom_sdpa.out")
    ('slice_copy', 'Multiply (ND)', 'llama::custom_sdpa')
    """
    return re.sub(r" #\d+$", "", re.sub(r"\.\w*out$", "", name.removeprefix("native_call_")))
