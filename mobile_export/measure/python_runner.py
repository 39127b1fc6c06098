"""What the runners written in Python share: options, the loop over prompts and single tokens, and the line they print.

A runner gives `run_runner` a function that loads a model. Exit codes are the C++ runner's.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from mobile_export.errors import MobileExportError
from mobile_export.measure.launch import REFUSED
from mobile_export.measure.measurement import Job, Logits, Measurement
from mobile_export.measure.process_memory import drop_from_page_cache, forget_imports, peak_rss_kib, resident
from mobile_export.measure.streams import stdout_on_stderr

FIRST_TOKEN = 3  # prompts count up from here: fixed tokens, no sampling in the time


class Model(Protocol):
    """A loaded model. A sequence begins wherever `step` is called with start 0."""

    runtime: str
    backends: list[str]
    vocab_size: int
    max_prompt: int
    threads: int

    def initialise(self) -> None:
        """Pack the weights and plan the memory."""

    def step(self, tokens: list[int], start: int) -> Sequence[float]:
        """Logits of the last token; read only where they are asked for."""


def run_runner(load: Callable[[Job], Model]) -> None:
    """Measure what the command line asks for and print it; the imports of `load`'s module are not counted."""
    job = _parse()
    if job.affinity:
        os.sched_setaffinity(0, job.affinity)
    try:
        with stdout_on_stderr():
            measured = _measure(job, load)
    except MobileExportError as error:
        print(error.what, file=sys.stderr)
        sys.exit(REFUSED)
    print(json.dumps(dataclasses.asdict(measured)))


def _measure(job: Job, load: Callable[[Job], Model]) -> Measurement:
    for path in job.drop:
        drop_from_page_cache(path)
    forget_imports()
    at_start = resident()
    began = time.perf_counter()
    model = load(job)
    load_s = time.perf_counter() - began
    after_load = resident()
    began = time.perf_counter()
    model.initialise()
    init_s = time.perf_counter() - began
    after_init = resident()

    prompt = [(FIRST_TOKEN + i) % model.vocab_size for i in range(job.prompt_tokens)]
    first_token_s = _prompt(model, prompt)
    prefill_s, decode_s = [], []
    for sequence in range(job.warm_up + job.sequences):
        prompt_s = _prompt(model, prompt)
        steps = []
        for i in range(job.new_tokens):
            token = [(FIRST_TOKEN + i) % model.vocab_size]
            began = time.perf_counter()
            model.step(token, len(prompt) + i)
            steps.append(time.perf_counter() - began)
        if sequence >= job.warm_up:
            prefill_s.append(prompt_s)
            decode_s.append(steps)
    at_end, peak = resident(), peak_rss_kib()
    return Measurement(
        runtime=model.runtime,
        threads=model.threads,
        backends=model.backends,
        load_s=load_s,
        init_s=init_s,
        first_token_s=first_token_s,
        prompt_tokens=len(prompt),
        prefill_s=prefill_s,
        decode_s=decode_s,
        at_start=at_start,
        after_load=after_load,
        after_init=after_init,
        at_end=at_end,
        peak_rss_kib=peak,
        logits=_logits(model, list(job.logits_of), job.logits_values) if job.logits_of else None,
    )


def _prompt(model: Model, tokens: list[int]) -> float:
    """Seconds of a prompt."""
    began = time.perf_counter()
    _read(model, tokens)
    return time.perf_counter() - began


def _read(model: Model, tokens: list[int]) -> Sequence[float]:
    """Logits of a prompt's last token; in pieces where the model takes no more at once."""
    for start in range(0, len(tokens), model.max_prompt):
        logits = model.step(tokens[start : start + model.max_prompt], start)
    return logits


def _logits(model: Model, tokens: list[int], count: int) -> Logits:
    values = [float(value) for value in _read(model, tokens)]
    return Logits(tokens, len(values), max(range(len(values)), key=values.__getitem__), sum(values), values[:count])


def _parse() -> Job:
    def numbers(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split(","))

    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    for name, default in (("threads", 1), ("prompt-tokens", 128), ("new-tokens", 64), ("sequences", 1), ("warm-up", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--logits-values", type=int, default=8)
    parser.add_argument("--drop", type=Path, action="append", default=[])
    for name in ("affinity", "logits-of"):
        parser.add_argument(f"--{name}", type=numbers, default=())
    return Job(**vars(parser.parse_args()))
