"""A runner for .pte files in ExecuTorch's Python runtime, where the C++ one cannot be built: slower attention, one thread.

python -m mobile_export.measure.pte_runner --model out/model.pte --threads 2
"""

from __future__ import annotations

import importlib.metadata

import torch
from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  the llama operators
from executorch.extension.pybindings import portable_lib
from executorch.kernels import quantized  # noqa: F401  the quantized embedding
from executorch.runtime import Program, Runtime, Verification

from mobile_export.errors import InputError
from mobile_export.measure.measurement import Job
from mobile_export.measure.python_runner import run_runner


class PteModel:
    """A .pte in the Python runtime."""

    def __init__(self, job: Job) -> None:
        # The attention's OpenMP threads and XNNPACK's pool would fight for the cores: only the latter is asked for threads.
        torch.set_num_threads(1)
        portable_lib._unsafe_reset_threadpool(job.threads)
        runtime = Runtime.get()
        self.runtime = f"executorch {importlib.metadata.version('executorch')}, Python"
        self.threads = portable_lib._threadpool_get_thread_count()
        self.backends = list(runtime.backend_registry.registered_backend_names)
        self.path = job.model
        try:
            self.program: Program = runtime.load_program(job.model, verification=Verification.Minimal)
        except RuntimeError as error:
            raise self._refused("loading the program", error) from None
        self.max_prompt = self._constant("get_max_seq_len", 1)
        self.vocab_size = self._constant("get_vocab_size", 1 << 30)

    def initialise(self) -> None:
        try:
            self.forward = self.program.load_method("forward")
        except RuntimeError as error:
            raise self._refused("initialising forward", error) from None

    def step(self, tokens: list[int], start: int) -> list[float]:
        try:
            outputs = self.forward.execute([torch.tensor([tokens]), torch.tensor([start])])
        except RuntimeError as error:
            raise self._refused(f"running {len(tokens)} tokens at {start}", error) from None
        return outputs[0].flatten()

    def _constant(self, method: str, otherwise: int) -> int:
        if method not in self.program.method_names:
            return otherwise
        return int(self.program.load_method(method).execute([])[0])

    def _refused(self, what: str, error: Exception) -> InputError:
        return InputError(str(self.path), f"{what} failed: {str(error).splitlines()[0]}", "")


if __name__ == "__main__":
    run_runner(PteModel)
