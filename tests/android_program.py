"""Runs a .pte for the Kotlin core on the JVM, which asks by lines of JSON on stdin: what ExecuTorch's Java API does on a phone.

android_demo/core/src/test/kotlin/.../BenchmarkOnJvm.kt is the other end.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mobile_export.errors import MobileExportError
from mobile_export.measure.measurement import Job

CONSTANTS = ("get_max_seq_len", "get_vocab_size")


class Child:
    """The model that was loaded, and the logits of its last run."""

    def load(self, model: str, threads: int) -> dict[str, Any]:
        if not Path(model).is_file():
            return {"error": f"{model}: no such file"}
        from mobile_export.measure.pte_runner import PteModel  # seconds

        self.model = PteModel(Job(Path(model), threads=threads))
        runtime = f"{self.model.runtime}, for a phone"
        constants = dict(zip(CONSTANTS, (self.model.max_prompt, self.model.vocab_size), strict=True))
        return {"runtime": runtime, "backends": self.model.backends, "constants": constants}

    def initialise(self) -> dict[str, Any]:
        self.model.initialise()
        return {}

    def run(self, tokens: list[int], start: int) -> dict[str, Any]:
        self.last: Sequence[float] = self.model.step(tokens, start)
        return {}

    def logits(self) -> dict[str, Any]:
        return {"values": [float(value) for value in self.last]}

    def read(self, file: str) -> dict[str, Any]:
        return {"text": Path(file).read_text()}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the runtime prints is no answer
    child = Child()
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = getattr(child, asked.pop("do"))(**asked)
        except MobileExportError as error:
            answer = {"error": error.what}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
