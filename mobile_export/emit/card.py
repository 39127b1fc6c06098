"""README.md of an artifact: what it is, how to run it, what it weighs, what was checked. Made from the manifest alone."""

from __future__ import annotations

from mobile_export.manifest import Manifest
from mobile_export.units import counted, mebibytes, megabytes

RUN_PTE = """\
Python, with the stock runner of the `executorch` wheel:

```python
from executorch.extension.llm.custom_ops import custom_ops  # the attention operators
from executorch.kernels import quantized  # the quantized embedding
from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner

runner = TextLLMRunner("{file}", "{tokenizer}")
runner.generate("Once upon a time", GenerationConfig(max_new_tokens=32, temperature=0.0), token_callback=print)
```

Android: `LlmModule(modelPath, tokenizerPath, temperature)` of `org.pytorch:executorch-android`.
iOS: `TextRunner(modelPath:, tokenizerPath:)` of ExecuTorch's Swift package, with `backend_xnnpack`, `kernels_optimized`,
`kernels_quantized` and `kernels_llm`.
Start with `OMP_NUM_THREADS=1` in Python: two thread pools otherwise fight for the cores.
"""


def card(manifest: Manifest) -> str:
    """The card's Markdown."""
    sharing, spec = manifest.sharing, manifest.spec
    stored, slots = len(sharing["blocks"]), len(sharing["schedule"])
    tokenizer = next((f for f in manifest.tokenizer_files if f in ("tokenizer.json", "tokenizer.model")), None)
    lines = [
        f"# {manifest.source} as {manifest.file}",
        "",
        f"A {spec['family']} decoder with {manifest.stored_parameters / 1e6:.1f} M parameters, recipe "
        f"`{manifest.recipe['name']}` ({manifest.recipe['description']}), made by {manifest.tool}.",
        f"Licence of the checkpoint: {manifest.licence or 'not stated; ask its authors before you ship it'}.",
        "",
        "## What it weighs",
        "",
        f"`{manifest.file}`: {megabytes(manifest.file_bytes)}, {manifest.bits_per_weight:.2f} bits a weight.",
        "",
        "| part | bytes |",
        "|---|---:|",
        *(f"| {part.name} | {part.bytes:,} |" for part in manifest.parts if part.bytes),
        "",
        f"{counted(stored, 'block')} stored, run in {counted(slots, 'execution')} ({sharing['order']}: "
        f"{sharing['schedule_evidence']}). Head {'tied to the embedding' if sharing['tied'] else 'of its own'} "
        f"({sharing['tied_evidence']}).",
        f"KV cache: {manifest.kv_cache.dtype}, {counted(slots, 'slot')}, {manifest.kv_cache.bytes_per_token:,} bytes a token, "
        f"{mebibytes(manifest.kv_cache.bytes_at_max_context)} at the full context of {manifest.max_context}.",
        f"Prompts go in calls of up to {manifest.max_prompt} tokens; stock runners cut longer ones by themselves.",
        "",
        "## How to run it",
        "",
        RUN_PTE.format(file=manifest.file, tokenizer=tokenizer or "YOUR_TOKENIZER"),
        "## What was checked",
        "",
        *_checks(manifest),
    ]
    if manifest.warnings:
        lines += ["", "## Warnings", "", *(f"- {warning}" for warning in manifest.warnings)]
    return "\n".join(lines) + "\n"


def _checks(manifest: Manifest) -> list[str]:
    if manifest.verification is None:
        return ["Nothing: verification was skipped (`--no-verify`)."]
    return [
        f"Run in the ExecuTorch runtime on the machine that exported it, against {manifest.verification.oracle}. "
        "Not run on a phone.",
        "",
        "| check | error | limit | why that limit |",
        "|---|---:|---:|---|",
        *(f"| {c.name} | {c.measured:.2g} | {c.limit:.2g} | {c.reason} |" for c in manifest.verification.checks),
    ]
