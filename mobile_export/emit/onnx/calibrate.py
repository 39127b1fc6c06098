"""Scales of an int8 KV cache, from text the model itself samples: onnxruntime takes one a channel, fixed beforehand.

Source: data-free calibration by the model's own text, LLM-QAT (arXiv:2305.17888), section 2.1.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime

from mobile_export.emit.onnx.decoder_graph import OnnxOptions
from mobile_export.emit.onnx.operators import KvScales
from mobile_export.emit.onnx.program import FILE, write_program
from mobile_export.errors import InputError
from mobile_export.families.config import CONFIG
from mobile_export.quantize.sizes import kv_slots
from mobile_export.quantize.weights import ModelWeights

SEQUENCES, LENGTH = 8, 128  # sampled side by side
MARGIN = 1.5  # over the largest value seen: a value beyond the scale is cut off
TINY = 1e-6  # a channel that is never used still needs a scale above 0


def calibrate_kv(folder: Path, weights: ModelWeights, options: OnnxOptions, say: Callable[[str], None]) -> tuple[KvScales, ...]:
    """Sample text with a float cache and keep, for every slot and channel, the largest key and value.

    Args:
        folder: where a temporary model may be written.
    Returns:
        One KvScales per slot, float32 (kv_heads * head_dim,); a code times its scale is a key or value.
    Raises:
        InputError: a model that keeps a state beside keys and values, or none at all.
        OSError: the folder cannot be written.
    """
    if kv_slots(weights.recognised, weights.plan) < len(weights.plan.schedule):
        what = f"family {weights.recognised.spec.family!r} keeps states beside keys and values, an int8 cache covers only those"
        raise InputError(CONFIG, what, "use --kv float32")
    with tempfile.TemporaryDirectory(dir=folder) as room:
        plain = dataclasses.replace(options, all_logits=False)
        write_program(Path(room), weights, plain, None, say)
        say("sampling text to calibrate the KV cache")
        session_options = onnxruntime.SessionOptions()
        session_options.log_severity_level = 4
        session = onnxruntime.InferenceSession(Path(room) / FILE, session_options, providers=["CPUExecutionProvider"])
        caches = _sample(session, weights, min(LENGTH, options.max_context))
    largest = [np.abs(cache).max(axis=(0, 2)).astype(np.float32).reshape(-1) for cache in caches]
    scales = [np.maximum(values, TINY) * np.float32(MARGIN / 127) for values in largest]
    return tuple(KvScales(key, value) for key, value in zip(scales[::2], scales[1::2], strict=True))


def _sample(session: onnxruntime.InferenceSession, weights: ModelWeights, length: int) -> list[np.ndarray]:
    """Keys and values of SEQUENCES texts of `length` tokens, slot by slot, each (SEQUENCES, kv_heads, length, head_dim)."""
    spec, checkpoint = weights.recognised.decoder, weights.checkpoint
    generator = np.random.default_rng(0)
    first = generator.integers(spec.vocab_size, size=(SEQUENCES, 1))  # a model without BOS starts anywhere
    tokens = first if checkpoint.bos_id is None else np.full_like(first, checkpoint.bos_id)
    names = [value.name for value in session.get_inputs() if value.name.startswith("past_key_values.")]
    dtype = np.float16 if session.get_inputs()[-1].type == "tensor(float16)" else np.float32
    caches = [np.zeros((SEQUENCES, spec.num_key_value_heads, 0, spec.head_dim), dtype) for _ in names]
    for step in range(length):
        mask = np.ones((SEQUENCES, step + 1), np.int64)
        feed = {"input_ids": tokens, "attention_mask": mask, **dict(zip(names, caches, strict=True))}
        logits, *caches = session.run(None, feed)
        noise = generator.gumbel(size=logits.shape)  # the largest of logits plus Gumbel noise is a sample of the softmax
        tokens = (logits + noise).argmax(axis=-1).astype(np.int64)
    return caches
