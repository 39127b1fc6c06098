"""Measure one folder with a model.onnx in one fresh process: what onnxruntime loads, runs and keeps resident.

In:  a folder with model.onnx, its data and genai_config.json, ours or onnxruntime-genai's own.
Out: one JSON object on stdout, the fields of `OnnxMeasurement`.

    python -m benchmarks.measure_onnx out-onnx --threads 2             in onnxruntime, one KV cache bound in place
    python -m benchmarks.measure_onnx out-onnx --threads 2 --genai     through onnxruntime-genai, the folder as it is

A process measures one folder, because memory freed by one model would hide what the next one allocates.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.json_child import run_for_json
from benchmarks.process_memory import ImportsMemory, Resident
from benchmarks.step_times import FIRST_TOKEN, StepTimes, time_steps
from benchmarks.warm_file import WarmFile, warm

if TYPE_CHECKING:
    import numpy as np

FILES = ("model.onnx", "model.onnx.data")
KV_ROWS = 512
LOGITS_STEPS = 8
NUMPY_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int8)": "int8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
}


@dataclass(frozen=True)
class OnnxMeasurement:
    """What one process measured. Milliseconds are wall time; the files are in the page cache from the start.

    load_ms: session made, so the weights are packed; through onnxruntime-genai its model likewise.
    after_load: before there is any KV cache. at_end: after all prompts and single tokens.
    peak_mib: most ever resident (VmHWM) above the imports.
    kv_rows, kv_mib: tokens and size of the cache that was allocated.
    """

    runtime: str
    files: list[WarmFile]
    threads: int
    load_ms: float
    steps: StepTimes
    imports_mib: float
    after_load: Resident
    at_end: Resident
    peak_mib: float
    kv_rows: int
    kv_mib: float

    @property
    def file_bytes(self) -> int:
        return sum(file.bytes for file in self.files)


def measure_in_child(
    folder: Path,
    *,
    threads: int,
    prompt_tokens: int = 128,
    new_tokens: int = 64,
    genai: bool = False,
    library: Path | None = None,
    logits: Path | None = None,
) -> OnnxMeasurement:
    """Measure a folder in a process of its own.

    Args:
        library: where another onnxruntime is installed, instead of the one of this environment.
        logits: a .npy to write, see `write_logits`.
    Raises:
        ChildError: it failed.
    """
    from pydantic import TypeAdapter

    command = [sys.executable, "-m", "benchmarks.measure_onnx", str(folder.resolve()), "--threads", str(threads)]
    command += ["--prompt-tokens", str(prompt_tokens), "--new-tokens", str(new_tokens)]
    command += ["--genai"] if genai else []
    command += ["--logits", str(logits.resolve())] if logits else []
    return TypeAdapter(OnnxMeasurement).validate_python(run_for_json(command, environment_of(library)))


def environment_of(library: Path | None) -> dict[str, str]:
    """What makes a child import the onnxruntime installed in a folder; without one, that of this environment."""
    return {"PYTHONPATH": str(library.resolve())} if library else {}


class BoundSession:
    """A model in onnxruntime, its cache bound and only the logits fetched: fetching all would copy the cache at every token.

    Past and present keys and values are the same memory where genai_config.json says the model takes that; else what one
    step gives is bound as the next one's past.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors: warnings of the peer's graph are no news
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.runtime = f"onnxruntime {onnxruntime.__version__}"
        self.session = onnxruntime.InferenceSession(str(folder / FILES[0]), options, providers=["CPUExecutionProvider"])
        self.types = {value.name: NUMPY_TYPES[value.type] for value in self.session.get_inputs()}
        self.kv_rows, self.kv_bytes = KV_ROWS, 0
        config = read_genai_config(folder)
        self.decoder: dict[str, Any] = config["model"]["decoder"]
        self.in_place = bool(config["search"]["past_present_share_buffer"])
        self.kept: dict[str, Any] = {}

    def allocate(self, tokens: int) -> None:
        """Allocate and bind the KV cache.

        Raises:
            SystemExit: it is too short for `tokens`.
        """
        import numpy as np
        from onnxruntime import OrtValue

        if tokens > self.kv_rows:
            sys.exit(f"error: {tokens} tokens, the cache has {self.kv_rows} rows")
        # The peer's graph leaves the head size open, so the config is asked instead of the inputs.
        shape = [1, self.decoder["num_key_value_heads"], self.kv_rows, self.decoder["head_size"]]
        self.binding = self.session.io_binding()
        self.binding.bind_output("logits")  # first, so that it is output 0
        self.cached = [name for name in self.types if name.startswith("past_key_values.")]
        for name, kind in self.types.items():
            if name in self.cached and self.in_place:
                slot = OrtValue.ortvalue_from_shape_and_type(shape, np.dtype(kind))
                self.binding.bind_ortvalue_input(name, slot)
                self.binding.bind_ortvalue_output(name.replace("past_key_values.", "present."), slot)
                self.kv_bytes += int(np.prod(shape)) * np.dtype(kind).itemsize

    def step(self, tokens: Sequence[int], start: int) -> np.ndarray:
        """Logits [1, T or 1, vocab] of tokens that follow `start` cached positions."""
        import numpy as np

        end = start + len(tokens)
        feeds = {
            "input_ids": np.array([tokens], self.types["input_ids"]),
            "attention_mask": np.ones((1, end), self.types["attention_mask"]),
        }
        if "position_ids" in self.types:
            feeds["position_ids"] = np.arange(start, end, dtype=self.types["position_ids"])[None]
        for name, value in feeds.items():
            self.binding.bind_cpu_input(name, value)
        self.binding.bind_output("logits")  # anew: its length follows the tokens
        if not self.in_place:
            self.bind_growing(start)
        self.session.run_with_iobinding(self.binding)
        outputs = self.binding.get_outputs()
        self.kept = {} if self.in_place else dict(zip(self.cached, outputs[1:], strict=True))
        return outputs[0].numpy()

    def bind_growing(self, start: int) -> None:
        """Bind what the last step gave as the past, nothing at start 0, and let the runtime allocate the present."""
        import numpy as np
        from onnxruntime import OrtValue

        empty = [1, self.decoder["num_key_value_heads"], 0, self.decoder["head_size"]]
        for name in self.cached:
            none = OrtValue.ortvalue_from_shape_and_type(empty, np.dtype(self.types[name]))
            self.binding.bind_ortvalue_input(name, self.kept[name] if start else none)
            self.binding.bind_output(name.replace("past_key_values.", "present."))


class GenaiModel:
    """A folder in onnxruntime-genai as it is, but for the number of threads."""

    def __init__(self, folder: Path, threads: int) -> None:
        import onnxruntime_genai as genai

        config = genai.Config(str(folder))
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
        self.runtime = f"onnxruntime-genai {genai.__version__}"
        self.model = genai.Model(config)
        self.config = read_genai_config(folder)
        self.kv_rows, self.kv_bytes = int(self.config["search"]["max_length"]), 0

    def allocate(self, tokens: int) -> None:
        """Make the generator, and with it its KV cache of max_length."""
        import onnxruntime_genai as genai

        parameters = genai.GeneratorParams(self.model)
        parameters.set_search_options(min_length=tokens + 1)  # no end of sequence stops the run
        self.generator = genai.Generator(self.model, parameters)
        decoder = self.config["model"]["decoder"]
        one_key = self.generator.get_input(decoder["inputs"]["past_key_names"] % 0)
        self.kv_bytes = 2 * decoder["num_hidden_layers"] * one_key.nbytes

    def step(self, tokens: Sequence[int], start: int) -> None:
        """Run a prompt anew at start 0; after it, one more token of genai's own choice, whatever `tokens` says."""
        import numpy as np

        if start:
            self.generator.generate_next_token()
        else:
            self.generator.rewind_to(0)
            self.generator.append_tokens(np.array(tokens, np.int32))


def read_genai_config(folder: Path) -> dict[str, Any]:
    """genai_config.json, ours or the builder's."""
    config: dict[str, Any] = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
    return config


def measure_here(
    folder: Path, kind: type[BoundSession] | type[GenaiModel], *, threads: int, prompt_tokens: int, new_tokens: int
) -> tuple[OnnxMeasurement, BoundSession | GenaiModel]:
    """Measure a folder in this process, which must not have run a model before; gives the loaded model, too."""
    if kind is GenaiModel:
        import onnxruntime_genai  # noqa: F401
    else:
        import onnxruntime  # noqa: F401
    files = [warm(folder / name) for name in FILES]
    memory = ImportsMemory()
    began = time.perf_counter()
    model = kind(folder, threads)
    load_ms = 1e3 * (time.perf_counter() - began)
    after_load = memory.above()
    model.allocate(2 * prompt_tokens + new_tokens)
    steps = time_steps(model.step, prompt_tokens, new_tokens)
    measured = OnnxMeasurement(
        runtime=model.runtime,
        files=files,
        threads=threads,
        load_ms=load_ms,
        steps=steps,
        imports_mib=memory.mib,
        after_load=after_load,
        at_end=memory.above(),
        peak_mib=memory.peak_mib(),
        kv_rows=model.kv_rows,
        kv_mib=model.kv_bytes / 2**20,
    )
    return measured, model


def write_logits(model: BoundSession, prompt_tokens: int, file: Path) -> None:
    """Write logits float32 [1 + LOGITS_STEPS, vocab], of a prompt's last token and of single tokens after it."""
    import numpy as np

    prompt = range(FIRST_TOKEN, FIRST_TOKEN + prompt_tokens)
    rows = [model.step(list(prompt), 0)[0, -1]]
    rows += [model.step([FIRST_TOKEN + n], prompt_tokens + n)[0, -1] for n in range(LOGITS_STEPS)]
    np.save(file, np.stack(rows).astype(np.float32))


def main() -> None:
    """Measure the folder named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=1, help="onnxruntime's threads within an operator")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--genai", action="store_true", help="through onnxruntime-genai")
    parser.add_argument("--logits", type=Path, metavar="FILE", help="a .npy for some logits; not with --genai")
    asked = parser.parse_args()
    measured, model = measure_here(
        asked.folder,
        GenaiModel if asked.genai else BoundSession,
        threads=asked.threads,
        prompt_tokens=asked.prompt_tokens,
        new_tokens=asked.new_tokens,
    )
    if asked.logits and isinstance(model, BoundSession):
        write_logits(model, asked.prompt_tokens, asked.logits)
    print(json.dumps(asdict(measured)))


if __name__ == "__main__":
    main()
