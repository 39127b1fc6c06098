"""A checkpoint as the Hugging Face folder other exporters read: float32 safetensors, config.json, tokenizer files.

Other tools cannot read a .gguf, or read other numbers out of it: this folder holds those of our own reader.

    python -m benchmarks.hf_folder smollm2-135m work/hf
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mobile_export.checkpoint import Checkpoint

LLAMA = {"architectures": ["LlamaForCausalLM"]}


def write_hf_folder(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the folder. The checkpoint must be a Llama in all but name: its config.json is given that architecture."""
    from safetensors.torch import save_file

    from mobile_export.checkpoint import read_float32

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: read_float32(tensor).contiguous() for name, tensor in checkpoint.tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_words(checkpoint, folder, LLAMA)


def write_words(checkpoint: Checkpoint, folder: Path, changes: Mapping[str, Any]) -> None:
    """Write the tokenizer files and config.json with `changes`; the config last: a folder that has one is whole."""
    for file, content in (checkpoint.tokenizer.files if checkpoint.tokenizer else {}).items():
        (folder / file).write_bytes(content)
    (folder / "config.json").write_text(json.dumps({**checkpoint.config, **changes}, indent=1))


def main() -> None:
    """Write the folder of the checkpoint named on the command line."""
    from mobile_export.checkpoint import open_checkpoint

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    write_hf_folder(open_checkpoint(asked.checkpoint), asked.folder)


if __name__ == "__main__":
    main()
