"""mobile-export: a trained decoder-only language model -> an artifact a phone runs, one copy of every weight.

checkpoint/  1 read      folder, .pt or .gguf -> Checkpoint: config, lazy tensors, tokenizer, licence
families/    2 recognise Checkpoint -> DecoderSpec + weight map; one file per family
sharing.py   3 share     spec + tensors -> SharingPlan: what is stored once, in which order it runs
model/       4 build     spec + weights -> Decoder; decoder.py, rwkv.py
quantize/    5 quantize  weights + recipe -> QuantizedWeight; one file per quantizer
emit/        6 emit      spec, plan, quantized weights -> artifact; executorch/, onnx/, coreml/
verify/      7 verify    artifact + checkpoint -> parity; one file per runtime, the Core ML interpreter
audit/       7 audit     a finished file alone -> payloads stored twice, matrices left in float; one file per format
measure/     8 measure   artifact -> Profile; host.py, adb/, runner/ (C++)
budget/      9 check     manifest + Profile + phone -> Verdict; memory.py, latency.py, phones.toml
cli/         parse, call the steps, print; one file per verb: the only place that knows all nine
errors.py, units.py, cache.py, manifest.py   what every step may import

Data flows one way: a step imports earlier steps only. tests/test_layout.py holds the folders to this table.
"""

__version__ = "0.1.0"
