"""Runs a model.onnx in onnxruntime, with a KV cache that grows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

from mobile_export.errors import InputError, MissingTool

TOKENS, MASK = "input_ids", "attention_mask"
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8}


class OnnxRuntime:
    """A loaded model.onnx and its KV cache. A sequence begins wherever `step` is called with start 0.

    Where nothing but keys and values is kept, `step` may also go back to an earlier position; what followed is forgotten.
    """

    def __init__(self, path: Path, minimum: str, threads: int = 1, *, float_activations: bool = False) -> None:
        """Load and initialise.

        Args:
            minimum: the version of onnxruntime the model needs.
            float_activations: multiply quantized weights with float activations, whatever the model says; slow.
        Raises:
            MissingTool: onnxruntime is too old.
            InputError: not a model, truncated, or in need of operators this runtime lacks.
        """
        check_version(path, minimum)
        self.path = path
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # what is wrong is raised, and said in one line
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent.resolve()))
        if float_activations:  # of products that onnxruntime fuses by itself
            options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        try:
            model = _with_float_activations(path) if float_activations else str(path)
            self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001 - the library raises no narrower type
            what = f"onnxruntime {onnxruntime.__version__} does not load it: {_first_line(error)}"
            raise InputError(str(path), what, "export it again") from None
        inputs = self.session.get_inputs()
        self.masked = any(value.name == MASK for value in inputs)
        self.kept = [value for value in inputs if value.name not in (TOKENS, MASK)]  # keys and values, columns, states
        self._cache: list[np.ndarray] = []

    def step(self, tokens: list[int], start: int) -> torch.Tensor:
        """Logits float32 [vocab] of the last of `tokens`, which follow `start` positions of those that were run since 0.

        Raises:
            InputError: the runtime refuses the call.
        """
        return self.logits(tokens, start)[-1]

    def logits(self, tokens: list[int], start: int) -> torch.Tensor:
        """Logits float32 [T, vocab], or [1, vocab] of a model that gives the last token's alone.

        Raises:
            InputError: the runtime refuses the call.
        """
        if start == 0:
            self._cache = [_before_anything(value) for value in self.kept]
        feed = {
            TOKENS: np.array([tokens], np.int64),
            **({MASK: np.ones((1, start + len(tokens)), np.int64)} if self.masked else {}),
            **{value.name: _first_rows(value, array, start) for value, array in zip(self.kept, self._cache, strict=True)},
        }
        try:
            logits, *self._cache = self.session.run(None, feed)
        except Exception as error:  # noqa: BLE001 - the library raises no narrower type
            what = f"running {len(tokens)} tokens at {start} failed: {_first_line(error)}"
            raise InputError(str(self.path), what, "export it again, with a larger --max-context if the text is long") from None
        return torch.from_numpy(np.asarray(logits, np.float32)[0])


def _before_anything(value: onnxruntime.NodeArg) -> np.ndarray:
    """What the model keeps of no text: no rows of a cache that grows, zeros in a state of fixed size."""
    return np.zeros([1, *(size if isinstance(size, int) else 0 for size in value.shape[1:])], TYPES[value.type])


def _first_rows(value: onnxruntime.NodeArg, kept: np.ndarray, rows: int) -> np.ndarray:
    """The first rows of a cache that grows; a state of fixed size as it is."""
    return kept[tuple(slice(None) if isinstance(size, int) else slice(rows) for size in (1, *value.shape[1:]))]


def check_version(path: Path, minimum: str) -> None:
    """Refuse an onnxruntime that is too old for a model.

    Raises:
        MissingTool: it is older than `minimum`.
    """
    found = onnxruntime.__version__
    if _numbers(found) < _numbers(minimum):
        raise MissingTool(str(path), f"needs onnxruntime {minimum}, this is {found}", f'pip install "onnxruntime>={minimum}"')


def _with_float_activations(path: Path) -> bytes:
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 1
    return model.SerializeToString()


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300]
