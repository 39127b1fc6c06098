"""README.md of an artifact: what it is, how to run it, what it weighs, what was checked. Made from the manifest alone."""

from __future__ import annotations

from collections import Counter

from mobile_export.manifest import SAMPLED, CoreMlGraph, KvCacheSize, Manifest, OnnxGraph
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

RUN_ONNX = """\
Python, with the `onnxruntime-genai` wheel, which reads everything it needs from this folder:

```python
import onnxruntime_genai as og

model = og.Model(".")
tokenizer, parameters = og.Tokenizer(model), og.GeneratorParams(model)
generator = og.Generator(model, parameters)
generator.append_tokens(tokenizer.encode("Once upon a time"))
while not generator.is_done():
    generator.generate_next_token()
print(tokenizer.decode(generator.get_sequence(0)))
```

Android: `com.microsoft.onnxruntime:onnxruntime-android` with onnxruntime-genai's AAR. iOS: `onnxruntime-c` with the
`onnxruntime-genai` package. Both run it on the CPU provider; NNAPI, Core ML and QNN providers lack its operators.
Plain onnxruntime runs it, too: feed `input_ids`, `attention_mask` and the cache, `past_key_values.N.key` and `.value`.
Set `session.intra_op.allow_spinning` to 0 on phones, as genai_config.json does.
"""

RUN_STOCK = """\
Swift, iOS 18 or macOS 15, with the `Transformers` product of swift-transformers. Add `{file}` and a folder with the tokenizer
files of this one to the app:

```swift
import CoreML
import Generation
import Models
import Tokenizers

let package = Bundle.main.url(forResource: "model", withExtension: "mlmodelc")!  // Xcode compiles the .mlpackage
let tokenizer = try await AutoTokenizer.from(modelFolder: tokenizerFolder)
let model = try LanguageModel.loadCompiled(url: package, computeUnits: .cpuAndGPU, tokenizer: tokenizer)
let text = try await model.generate(config: GenerationConfig(maxNewTokens: 64), prompt: "Once upon a time")
```

On a Mac, its command line does the same: `transformers-cli "Once upon a time" {file} --tokenizer-path .`
Any other host sends `inputIds` int32 [1, T] and `causalMask` float16 [1, 1, 1, past + T], zeros, and reads `logits`
[1, T, vocab].
"""

RUN_FUNCTIONS = """\
Swift, iOS 18 or macOS 15: two functions over one set of weights, every shape fixed. `prefill` takes {prompt} tokens, padded at
their end, and gives the logits after the first `count`; `decode` takes one token.

```swift
import CoreML

let configuration = MLModelConfiguration()
configuration.computeUnits = .cpuAndNeuralEngine
configuration.functionName = "prefill"
let prefill = try MLModel(contentsOf: package, configuration: configuration)
configuration.functionName = "decode"
let decode = try MLModel(contentsOf: package, configuration: configuration)
let state = decode.makeState()
// prefill: inputIds int32 [1, {prompt}], position int32 [1], count int32 [1]; decode: inputIds int32 [1, 1], position int32 [1]
let output = try await decode.prediction(from: inputs, using: state)  // "logits" [1, 1, vocab]
```

A chunk needs {prompt} free rows from `position` on, padding included; feed the last tokens before the end of the context
through `decode`. Whether one state serves both functions on a device was not tried: if it does not, prefill through `decode`.
"""

RUN_DELEGATE = """\
iOS 18 or macOS 15: `TextRunner(modelPath:, tokenizerPath:)` of ExecuTorch's Swift package, with `backend_coreml`. The first
load compiles the package on the device and keeps the result.
"""

RUNTIMES = {"pte": "the ExecuTorch runtime", "onnx": "onnxruntime"}
INTERPRETER = "our interpreter of the package"


def runtime_name(manifest: Manifest) -> str:
    """What ran an artifact when it was verified."""
    return INTERPRETER if manifest.package else RUNTIMES[manifest.format]


def needs(graph: OnnxGraph) -> str:
    """The versions of onnxruntime a model asks for, in words."""
    if graph.one_copy_onnxruntime == graph.minimum_onnxruntime:
        return f"onnxruntime {graph.minimum_onnxruntime} or newer"
    return (
        f"onnxruntime {graph.minimum_onnxruntime} or newer; {graph.one_copy_onnxruntime} or newer to pack a shared block once"
    )


def windows(kv: KvCacheSize, context: int) -> str:
    """Which slots hold fewer rows than the context, in words; empty where none does."""
    slots_of = Counter(rows for rows in kv.rows if rows < context)
    return " and ".join(f"{counted(rows, 'row')} in {slots} of {counted(kv.slots, 'slot')}" for rows, slots in slots_of.items())


def card(manifest: Manifest) -> str:
    """The card's Markdown."""
    sharing, spec = manifest.sharing, manifest.spec
    stored, slots = len(sharing["blocks"]), len(sharing["schedule"])
    lines = [
        f"# {manifest.source} as {manifest.file}",
        "",
        f"A {spec['family']} decoder with {manifest.stored_parameters / 1e6:.1f} M parameters, recipe "
        f"`{manifest.recipe['name']}` ({manifest.recipe['description']}), made by {manifest.tool}.",
        f"Licence of the checkpoint: {manifest.licence or 'not stated; ask its authors before you ship it'}.",
        "",
        "## What it weighs",
        "",
        f"{' and '.join(f'`{file.name}`' for file in manifest.files)}: {megabytes(manifest.bytes)}, "
        f"{manifest.bits_per_weight:.2f} bits a weight.",
        "",
        "| part | bytes |",
        "|---|---:|",
        *(f"| {part.name} | {part.bytes:,} |" for part in manifest.parts if part.bytes),
        "",
        f"{counted(stored, 'block')} stored, run in {counted(slots, 'execution')} ({sharing['order']}: "
        f"{sharing['schedule_evidence']}). Head {'tied to the embedding' if sharing['tied'] else 'of its own'} "
        f"({sharing['tied_evidence']}).",
        *_calibrated(manifest),
        *_kept(manifest),
        *_limits(manifest),
        "",
        "## How to run it",
        "",
        _how_to_run(manifest),
        "## What was checked",
        "",
        *_checks(manifest),
    ]
    if manifest.warnings:
        lines += ["", "## Warnings", "", *(f"- {warning}" for warning in manifest.warnings)]
    return "\n".join(lines) + "\n"


def _calibrated(manifest: Manifest) -> list[str]:
    """What a calibrated recipe saw, and which matrices it left alone."""
    made = manifest.calibration
    if made is None:
        return []
    text = "text sampled from the model itself" if made.text == SAMPLED else f"`{made.text}`"
    left = f"; rounded without it: {', '.join(f'`{name}`' for name in made.left)}" if made.left else ""
    return ["", f"Calibrated on {counted(made.tokens, 'token')} of {text}{left}."]


def _how_to_run(manifest: Manifest) -> str:
    if manifest.onnx:
        return RUN_ONNX
    if manifest.coreml:
        text = RUN_STOCK if manifest.coreml.layout == "stock" else RUN_FUNCTIONS
        return text.format(file=manifest.file, prompt=manifest.coreml.max_prompt)
    if manifest.package:
        return RUN_DELEGATE
    tokenizer = next((f for f in manifest.tokenizer_files if f in ("tokenizer.json", "tokenizer.model")), None)
    return RUN_PTE.format(file=manifest.file, tokenizer=tokenizer or "YOUR_TOKENIZER")


def _kept(manifest: Manifest) -> list[str]:
    """What executions keep of a text."""
    kv, context = manifest.kv_cache, manifest.max_context
    lines = []
    if kv.slots:
        lines.append(
            f"KV cache: {kv.dtype}, {counted(kv.slots, 'slot')}, {kv.bytes_per_token:,} bytes a token, "
            f"{mebibytes(kv.bytes_at_max_context)} at the full context of {context}."
        )
    if windows(kv, context):
        lines.append(f"It holds {windows(kv, context)}, whose tokens see no further back.")
    if kv.state_bytes:
        lines.append(f"State: {kv.state_bytes:,} bytes, whatever the length of the text.")
    return lines


def _limits(manifest: Manifest) -> list[str]:
    """What a caller must keep to."""
    if manifest.package:
        return _core_ml_limits(manifest, manifest.package)
    if manifest.onnx:
        return [
            f"It needs {needs(manifest.onnx)}.",
            "onnxruntime-genai allocates the cache for `max_length` of genai_config.json when it starts: set it no larger "
            "than you need.",
        ]
    assert manifest.pte, "a manifest has its format's facts"
    lines = [f"Prompts go in calls of up to {manifest.pte.max_prompt} tokens; stock runners cut longer ones by themselves."]
    if windows(manifest.kv_cache, manifest.max_context) or manifest.kv_cache.state_bytes:
        lines.append("A text is taken up where it ended or begun anew, not at a position between: what lay before it is gone.")
    return lines


def _core_ml_limits(manifest: Manifest, graph: CoreMlGraph) -> list[str]:
    limits = [f"It needs {graph.deployment_target} or newer, and computes in float16."]
    if graph.layout == "stock":
        limits.append(
            f"swift-transformers leaves the cache's first row empty, so it has room for {manifest.max_context - 1} tokens."
        )
    if manifest.pte:
        limits.append(f"A call takes up to {manifest.pte.max_prompt} tokens; stock runners cut longer prompts by themselves.")
    if not graph.advice:
        return limits
    lead = "What may keep it off the Neural Engine, by what is known of it (only a device can tell):"
    return [*limits, "", lead, "", *(f"- {line}" for line in graph.advice)]


def _checks(manifest: Manifest) -> list[str]:
    if manifest.verification is None:
        return ["Nothing: verification was skipped (`--no-verify`)."]
    return [
        f"Run in {runtime_name(manifest)} on the machine that exported it, against {manifest.verification.oracle}. "
        "Not run on a device.",
        "",
        "| check | error | limit | why that limit |",
        "|---|---:|---:|---|",
        *(f"| {c.name} | {c.measured:.2g} | {c.limit:.2g} | {c.reason} |" for c in manifest.verification.checks),
    ]
