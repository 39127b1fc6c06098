"""A runner for .gguf files in llama.cpp, through llama-cpp-python: the same options and the same line of JSON as ours.

In:  a .gguf, and llama-cpp-python in this Python: it is compiled when it is installed, for minutes, and no extra of ours.
Out: the fields of mobile_export.measure.measurement.Measurement.

    python -m venv llama && llama/bin/pip install llama-cpp-python pydantic
    llama/bin/python -m benchmarks.measure_llama_cpp --model model.gguf --threads 2
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import llama_cpp

from mobile_export.errors import InputError
from mobile_export.measure.measurement import Job
from mobile_export.measure.python_runner import run_runner

CONTEXT = 512
MAX_PROMPT = 128


class GgufModel:
    """A .gguf on the CPU, mapped, its cache of llama.cpp's own width (float16)."""

    def __init__(self, job: Job) -> None:
        self.threads = job.threads
        self.runtime = f"llama.cpp, llama-cpp-python {llama_cpp.__version__}"
        self.backends = ["CPU"]
        llama_cpp.llama_log_set(_SILENT, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(str(job.model).encode(), parameters)
        if not self.model:
            raise InputError(str(job.model), "llama.cpp does not load it", "")
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.max_prompt = MAX_PROMPT

    def initialise(self) -> None:
        """Allocate the cache and the buffers."""
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = CONTEXT, MAX_PROMPT, MAX_PROMPT
        parameters.n_threads = parameters.n_threads_batch = self.threads
        self.context = llama_cpp.llama_init_from_model(self.model, parameters)
        if not self.context:
            raise InputError("llama.cpp", "makes no context", "")

    def step(self, tokens: list[int], start: int) -> Sequence[float]:
        if start == 0:
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        values = (llama_cpp.llama_token * len(tokens))(*tokens)
        status = llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(values, len(tokens)))
        if status != 0:
            raise InputError("llama.cpp", f"running {len(tokens)} tokens at {start} failed: {status}", "")
        return llama_cpp.llama_get_logits_ith(self.context, -1)[: self.vocab_size]


_SILENT = llama_cpp.llama_log_callback(lambda level, text, data: None)


if __name__ == "__main__":
    run_runner(GgufModel)
