"""Where config.json, the token table and the tokenizer count the vocabulary differently: what is safe, and what is refused.

A table that was sliced, or grown by a token for fine-tuning, often leaves `vocab_size` behind. The rows that are stored are
what the network computes with, so they count, as long as table and head have the same number of them.
"""

from __future__ import annotations

from dataclasses import replace

from mobile_export.checkpoint.added_tokens import without_tokens_beyond
from mobile_export.checkpoint.contents import Checkpoint
from mobile_export.errors import InputError
from mobile_export.families.config import CONFIG
from mobile_export.families.spec import Recognised

PLACES = ("embedding.weight", "head.linear.weight", "head.linear.bias")


def settled(checkpoint: Checkpoint, recognised: Recognised) -> Checkpoint:
    """The checkpoint with `vocab_size` as its tensors have it, and no added token beyond them; a warning for each change.

    Args:
        recognised: what its family reads of it as it is.
    Raises:
        InputError: table and head differ in their rows.
    """
    sources = [recognised.weights[place] for place in PLACES if place in recognised.weights]
    found = [(checkpoint.tensors.get(source.tensors[0]), source.shapes[0]) for source in sources]
    if any(tensor is None or tensor.shape[1:] != shape[1:] or len(tensor.shape) != len(shape) for tensor, shape in found):
        return checkpoint  # more is wrong than the rows: `recognise` says what
    table, *others = [tensor for tensor, _ in found if tensor is not None]
    rows, said = table.shape[0], recognised.spec.vocab_size
    for other in others:
        if other.shape[0] != rows:
            what = f"has {other.shape[0]} rows, the embedding has {rows}"
            raise InputError(other.where, what, "give both the rows of the tokenizer: model.resize_token_embeddings")
    warnings = []
    if rows != said:
        both = "embedding and head have" if others else "the embedding has"
        warnings.append(f"{CONFIG}: vocab_size is {said}, {both} {rows} rows: the tensors count")
    tokenizer = checkpoint.tokenizer
    if tokenizer:
        tokenizer, more = without_tokens_beyond(tokenizer, rows)
        warnings += more
    config = {**checkpoint.config, "vocab_size": rows}
    return replace(checkpoint, config=config, tokenizer=tokenizer, warnings=(*checkpoint.warnings, *warnings))
