"""Runs a .pte in the ExecuTorch runtime of the Python wheel."""

from __future__ import annotations

from pathlib import Path

import torch
from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  the llama operators
from executorch.extension.pybindings import portable_lib
from executorch.kernels import quantized  # noqa: F401  the quantized embedding

from mobile_export.errors import InputError

METADATA = (
    "get_max_seq_len",
    "get_max_context_len",
    "use_kv_cache",
    "use_sdpa_with_kv_cache",
    "enable_dynamic_shape",
    "get_vocab_size",
    "get_n_layers",
    "get_n_executions",
    "get_head_dim",
    "get_n_kv_heads",
    "get_eos_ids",
    "get_bos_id",
)


class PteRuntime:
    """A loaded .pte and its KV cache. A sequence begins wherever `step` is called with start 0."""

    def __init__(self, path: Path) -> None:
        """Load and initialise.

        Raises:
            InputError: not a program, truncated, or in need of operators this runtime lacks.
        """
        try:
            self.module = portable_lib._load_for_executorch(str(path))
            self.methods = set(self.module.method_names())
        except RuntimeError as error:
            what = f"ExecuTorch does not load it: {str(error).splitlines()[0]}"
            raise InputError(str(path), what, "export it again, with the same executorch version") from None
        self.path = path

    def step(self, tokens: list[int], start: int) -> torch.Tensor:
        """Logits float32 [vocab] of the last of `tokens`, which follow `start` cached positions.

        Raises:
            InputError: the runtime refuses the call.
        """
        try:
            output = self.module.run_method("forward", (torch.tensor([tokens]), torch.tensor([start])))
        except RuntimeError as error:
            what = f"running {len(tokens)} tokens at {start} failed: {str(error).splitlines()[0]}"
            raise InputError(str(self.path), what, "export it again, with the same executorch version") from None
        return output[0].flatten().clone()

    def metadata(self) -> dict[str, int | bool | list[int]]:
        """The constant methods a stock runner reads, by name; those the program has."""
        found: dict[str, int | bool | list[int]] = {}
        for name in METADATA:
            if name in self.methods:
                values = list(self.module.run_method(name, ()))
                found[name] = values if name == "get_eos_ids" else values[0]
        return found
