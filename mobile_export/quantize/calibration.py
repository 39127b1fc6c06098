"""What a calibrated recipe is calibrated with, and what came out of it, kept between runs.

The text is a file of the user's, or sampled from the model itself. Either way the result follows from the checkpoint, the plan,
the recipe and the text alone: it is kept in the cache folder under their digest, and where it is not there it is made again.
Made again on the same machine it is the same to the byte; another processor may round a sum differently, and with it a few
codes. So a manifest holds the result's digest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mobile_export.cache import cache_folder
from mobile_export.checkpoint import encode
from mobile_export.errors import InputError
from mobile_export.manifest import SAMPLED, sha256
from mobile_export.quantize.clip_search import QuantizedWeight
from mobile_export.quantize.fold import Factor
from mobile_export.quantize.recipe import Calibration
from mobile_export.units import counted

if TYPE_CHECKING:
    from mobile_export.quantize.weights import ModelWeights

ALGORITHM = 5  # of sampling and of calibrating: a change to either makes worthless what was kept
LEAST_TOKENS = 256  # of a user's text: with fewer, most of a matrix's inputs would hardly be seen
THREADS = 1  # whatever the machine has: the order in which a sum is taken depends on them

Say = Callable[[str], None]
Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Calibrated:
    """What calibration made of a model.

    text: SAMPLED, or the file's name. tokens: how many were used.
    matrices: by name; those it leaves out are clip_search's. factors: what every other weight of a block is folded by.
    sha256: of codes, scales and factors.
    """

    text: str
    tokens: int
    matrices: Mapping[str, QuantizedWeight]
    factors: Mapping[str, Factor]
    sha256: str


def calibrated(weights: ModelWeights, file: Path | None, say: Say) -> Calibrated:
    """Calibrate, or read what an earlier run kept.

    Args:
        weights: under a recipe that is calibrated.
        file: UTF-8 text; None to sample.
    Raises:
        InputError: a file that cannot be read or holds too little, a checkpoint without a tokenizer to read it with,
            activations beyond float32, or a cache folder that cannot be written.
    """
    from mobile_export.quantize.calibrated import calibrate

    plain, wanted = weights.uncalibrated(say), weights.recipe.calibration or Calibration()
    with _fixed_threads():
        texts = sampled_texts(plain, wanted, say) if file is None else _texts_of(plain, file, wanted)
        recipe = {key: value for key, value in dataclasses.asdict(weights.recipe).items() if key not in ("name", "description")}
        facts = (identity(plain), recipe, [text.tolist() for text in texts])
        kept = kept_tensors("calibrated", facts, lambda: _as_tensors(*calibrate(plain, texts, say)))
    matrices = {
        name: QuantizedWeight(kept[f"{name}/codes"], kept[f"{name}/scales"], matrix.precision)
        for name, matrix in weights.matrices.items()
        if f"{name}/codes" in kept
    }
    factors = {
        name: Factor(kept.get(f"{name}/rows"), kept.get(f"{name}/columns"))
        for name in weights.sources
        if f"{name}/rows" in kept or f"{name}/columns" in kept
    }
    return Calibrated(SAMPLED if file is None else file.name, sum(map(len, texts)), matrices, factors, _sha256(kept))


def sampled_texts(plain: ModelWeights, wanted: Calibration, say: Say) -> list[torch.Tensor]:
    """Texts of the model's own, int64 [tokens] each: sampled once for a checkpoint and a plan.

    Raises:
        InputError: a cache folder that cannot be written.
    """
    from mobile_export.quantize.sampling import sample_texts

    length = min(wanted.tokens, plain.recognised.spec.max_position_embeddings)

    def sample() -> Tensors:
        with torch.no_grad(), _fixed_threads():
            return {"tokens": sample_texts(plain, wanted.sequences, length, say)}

    return list(kept_tensors("sampled", (identity(plain), wanted.sequences, length), sample)["tokens"])


def _texts_of(plain: ModelWeights, file: Path, wanted: Calibration) -> list[torch.Tensor]:
    """The file's tokens, cut into texts; each begins with BOS where the checkpoint wants it."""
    where, checkpoint = f"--calibration {file}", plain.checkpoint
    if checkpoint.tokenizer is None:
        raise InputError(
            where, f"{checkpoint.source} has no tokenizer to read it with", "add one to the checkpoint, or leave it out"
        )
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(where, f"cannot be read: {error.strerror}", "name a text file") from None
    except UnicodeDecodeError as error:
        raise InputError(where, f"is not UTF-8: byte {error.start}", "convert it to UTF-8") from None
    tokens = encode(checkpoint.tokenizer, text)
    begin = [checkpoint.bos_id] if checkpoint.tokenizer.adds_bos and checkpoint.bos_id is not None else []
    step = min(wanted.tokens, plain.recognised.spec.max_position_embeddings) - len(begin)
    starts = range(0, len(tokens), step)[: wanted.sequences]
    texts = [torch.tensor([*begin, *tokens[at : at + step]]) for at in starts]
    if sum(map(len, texts)) < LEAST_TOKENS:
        then = f"give at least {LEAST_TOKENS:,}; the recipe takes {wanted.sequences * wanted.tokens:,}"
        raise InputError(where, f"has {counted(len(tokens), 'token')}", then)
    return texts


def _as_tensors(matrices: Mapping[str, QuantizedWeight], factors: Mapping[str, Factor]) -> Tensors:
    parts = {f"{name}/{part}": getattr(matrix, part) for name, matrix in matrices.items() for part in ("codes", "scales")}
    parts |= {f"{name}/{part}": getattr(factor, part) for name, factor in factors.items() for part in ("rows", "columns")}
    return {name: part for name, part in parts.items() if part is not None}


def kept_tensors(kind: str, facts: object, make: Callable[[], Tensors]) -> Tensors:
    """Tensors that follow from the facts: read where an earlier run kept them, else made and kept."""
    digest = hashlib.sha256(json.dumps([ALGORITHM, kind, facts], sort_keys=True).encode()).hexdigest()
    path = cache_folder() / f"{kind}-{digest[:32]}.safetensors"
    if not path.is_file():
        made = make()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            room = path.with_suffix(f".{os.getpid()}")
            save_file(dict(made), room)
            room.replace(path)
        except OSError as error:
            raise InputError(
                str(path), f"cannot be written: {error.strerror}", "set XDG_CACHE_HOME to a folder with room"
            ) from None
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(str(path), f"is damaged: {error}", "remove it, it will be made again") from None


def identity(weights: ModelWeights) -> list[object]:
    """What identifies a checkpoint under a plan: its files' SHA-256, and the schedule."""
    return [[sha256(path) for path in weights.checkpoint.files], weights.plan.blocks, weights.plan.schedule, weights.plan.tied]


def _sha256(tensors: Tensors) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _fixed_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)
