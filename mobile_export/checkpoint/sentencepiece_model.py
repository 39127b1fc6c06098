"""A SentencePiece tokenizer.model as tokenizer.json, for the runtimes that read nothing else."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from mobile_export.checkpoint.tokenizer_json import SpecialIds, Vocabulary, sentencepiece_bpe, tokenizer_config_json
from mobile_export.errors import InputError

BPE = 2  # sentencepiece_model.proto, TrainerSpec.ModelType


def convert_sentencepiece(model: bytes, *, adds_bos: bool, chat_template: str | None) -> tuple[bytes, bytes]:
    """tokenizer.json and tokenizer_config.json that give the same ids.

    One difference is meant: "</s>" written in a text becomes that token, as every tokenizer.json has it, where
    SentencePiece spells out its letters.

    Raises:
        InputError: a unigram model, or one that normalizes its input.
    """
    proto = _parse(model)
    normalizer, trainer = proto.normalizer_spec, proto.trainer_spec
    if trainer.model_type != BPE:
        raise InputError("tokenizer.model", "is not a BPE model", "save tokenizer.json with AutoTokenizer")
    if normalizer.precompiled_charsmap or normalizer.remove_extra_whitespaces or trainer.treat_whitespace_as_suffix:
        raise InputError(
            "tokenizer.model", f"normalizes its input ({normalizer.name})", "save tokenizer.json with AutoTokenizer"
        )
    vocabulary = Vocabulary(
        tokens=[piece.piece for piece in proto.pieces],
        types=[piece.type for piece in proto.pieces],
        scores=[piece.score for piece in proto.pieces],
    )
    bos, eos, unknown = (None if index < 0 else index for index in (trainer.bos_id, trainer.eos_id, trainer.unk_id))
    special = SpecialIds(bos, eos, unknown, adds_bos=adds_bos, adds_eos=False)
    content = sentencepiece_bpe(vocabulary, special, add_space_prefix=normalizer.add_dummy_prefix)
    return content, tokenizer_config_json(vocabulary, special, chat_template, None)


def _parse(model: bytes) -> Any:
    # By name: neither package has types, and the message classes are made when the module is imported.
    message = import_module("google.protobuf.message")
    proto = import_module("sentencepiece.sentencepiece_model_pb2").ModelProto()
    try:
        proto.ParseFromString(model)
    except message.DecodeError:
        raise InputError("tokenizer.model", "is not a SentencePiece model", "download it again") from None
    if not all(isinstance(piece.piece, str) for piece in proto.pieces):  # protobuf hands on as bytes what is not UTF-8
        raise InputError("tokenizer.model", "holds a piece that is not UTF-8 text", "download it again")
    return proto
