"""A runner for ONNX artifacts in onnxruntime, the KV cache bound to the session as an app would: nothing of it is copied.

python -m mobile_export.measure.onnx_runner --model out/model.onnx --threads 2
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime

from mobile_export.errors import InputError
from mobile_export.manifest import read_manifest
from mobile_export.measure.measurement import Job
from mobile_export.measure.python_runner import run_runner

TOKENS, MASK = "input_ids", "attention_mask"
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8}


class OnnxModel:
    """A model.onnx in onnxruntime.

    Where genai_config.json says that the attention writes into the cache it is given, past and present are one memory of
    the whole context; else what one step gives is bound as the next one's past.
    """

    def __init__(self, job: Job) -> None:
        self.path, self.threads = job.model, job.threads
        self.runtime = f"onnxruntime {onnxruntime.__version__}"
        self.backends = ["CPUExecutionProvider"]
        self.manifest = read_manifest(job.model)
        self.vocab_size, self.max_prompt = int(self.manifest.spec["vocab_size"]), self.manifest.max_context
        self.in_place = _shares_buffers(job.model.parent)

    def initialise(self) -> None:
        """Make the session, which packs the weights, and allocate the cache where it is of one size."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 4  # what is wrong is raised, and said in one line
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self.session = onnxruntime.InferenceSession(str(self.path), options, providers=self.backends)
        except Exception as error:  # noqa: BLE001 - the library raises no narrower type
            raise self._refused("loading", error) from None
        inputs = self.session.get_inputs()
        self.masked = any(value.name == MASK for value in inputs)
        self.kept = [value for value in inputs if value.name not in (TOKENS, MASK)]
        self.outputs = [value.name for value in self.session.get_outputs()]
        rows = self.manifest.max_context if self.in_place else 0
        self.before = [self._filled(value, rows) for value in self.kept]

    def step(self, tokens: list[int], start: int) -> list[float]:
        if start == 0:
            self.cache = self.before
        binding = self.session.io_binding()
        binding.bind_cpu_input(TOKENS, np.array([tokens], np.int64))
        if self.masked:
            binding.bind_cpu_input(MASK, np.ones((1, start + len(tokens)), np.int64))
        binding.bind_output(self.outputs[0])
        for value, kept, output in zip(self.kept, self.cache, self.outputs[1:], strict=True):
            binding.bind_ortvalue_input(value.name, kept)
            if self.in_place:
                binding.bind_ortvalue_output(output, kept)
            else:
                binding.bind_output(output)
        try:
            self.session.run_with_iobinding(binding)
        except Exception as error:  # noqa: BLE001 - the library raises no narrower type
            raise self._refused(f"running {len(tokens)} tokens at {start}", error) from None
        outputs = binding.get_outputs()
        self.cache = self.cache if self.in_place else outputs[1:]
        return outputs[0].numpy()[0, -1]

    def _filled(self, value: onnxruntime.NodeArg, rows: int) -> onnxruntime.OrtValue:
        """Zeros of what the model keeps, `rows` positions long where its length is open."""
        shape = [1, *(size if isinstance(size, int) else rows for size in value.shape[1:])]
        return onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, TYPES[value.type]))

    def _refused(self, what: str, error: Exception) -> InputError:
        return InputError(str(self.path), f"{what} failed: {str(error).strip().splitlines()[0][:300]}", "")


def _shares_buffers(folder: Path) -> bool:
    config = folder / "genai_config.json"
    return config.is_file() and bool(json.loads(config.read_text(encoding="utf-8"))["search"]["past_present_share_buffer"])


if __name__ == "__main__":
    run_runner(OnnxModel)
