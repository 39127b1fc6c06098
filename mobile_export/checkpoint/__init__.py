"""Step 1, read: a Hugging Face folder, a training script's .pt beside a config.json, or a .gguf file -> `Checkpoint`.

    source.py              what the user named -> the reader that fits
    folder.py              a Hugging Face folder: config.json, generation_config.json; licence.py
    shards.py              its weight files: one file, an index and its shards, or a .pt file
    safetensors_file.py    one .safetensors file, its header checked before a byte of data is believed
    torch_file.py          one .bin file: a pickle, of which no code is ever run
    training_file.py       one .pt or .pth file: the state dict in it, without what wrappers put before its names
    paretoq.py, torchao.py matrices that were trained to be rounded, with the codes they were trained to have
    gguf_file.py           a .gguf file; gguf_header.py reads it, gguf_config.py and gguf_architectures.py say in
                           Hugging Face's words what it holds
    tokenizer.py           tokenizer files, encode and decode
    tokenizer_json.py      writes tokenizer.json where there is none: for gguf_tokenizer.py, sentencepiece_model.py and
                           vocab_and_merges.py; cuts.py says how a text is cut before its bytes are merged
    read.py, size.py       one tensor's values as float32, checked; the bytes a checkpoint stores
    strict_json.py, mapped.py, dtypes.py   what the readers share
    contents.py            what comes out

Weights stay in their files: a tensor is mapped when it is read and unmapped when its values are dropped.
Nothing is downloaded and nothing a checkpoint says is executed.
"""

from mobile_export.checkpoint.contents import Checkpoint, StoredTensor, Tokenizer
from mobile_export.checkpoint.read import read_float32
from mobile_export.checkpoint.size import stored_bytes
from mobile_export.checkpoint.source import PACKAGED, open_checkpoint
from mobile_export.checkpoint.tokenizer import decode, encode, with_tokenizer_json

__all__ = [
    "PACKAGED",
    "Checkpoint",
    "StoredTensor",
    "Tokenizer",
    "decode",
    "encode",
    "open_checkpoint",
    "read_float32",
    "stored_bytes",
    "with_tokenizer_json",
]
