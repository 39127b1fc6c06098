"""How much room an int8 KV cache's scales need over what calibration saw: KL divergence from the float cache.

python -m benchmarks.kv_margin smollm2-135m --text docs/sharing.md
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

from benchmarks.report import print_table

ROOMS = (1.0, 1.25, 1.5, 2.0, 3.0)
TOKENS, CHUNK = 600, 100


def main() -> None:
    """Print the table of decision 0006."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", default="smollm2-135m")
    parser.add_argument("--text", type=Path, default=Path(__file__).parents[1] / "docs" / "sharing.md", help="UTF-8 text.")
    parser.add_argument("--recipe", default="w8-fast", help="Of the weights, the same for both caches.")
    parser.add_argument("--markdown", action="store_true", help="As a Markdown table.")
    arguments = parser.parse_args()

    from mobile_export.checkpoint.tokenizer import encode
    from mobile_export.cli.steps import prepare
    from mobile_export.emit.onnx.artifact import MINIMUM_INT8_CACHE
    from mobile_export.emit.onnx.calibrate import MARGIN, calibrate_kv
    from mobile_export.emit.onnx.decoder_graph import OnnxOptions
    from mobile_export.emit.onnx.operators import KvScales
    from mobile_export.emit.onnx.program import FILE, write_program
    from mobile_export.verify.onnx_runtime import OnnxRuntime

    weights = prepare(arguments.checkpoint, arguments.recipe, None)
    assert weights.checkpoint.tokenizer, "a text needs a tokenizer"
    tokens = list(encode(weights.checkpoint.tokenizer, arguments.text.read_text(encoding="utf-8")))[:TOKENS]
    options = OnnxOptions(TOKENS, all_logits=True)
    with tempfile.TemporaryDirectory() as room:
        folder = Path(room)
        calibrated = calibrate_kv(folder, weights, options, lambda _: None)

        def log_probabilities(scales: tuple[KvScales, ...] | None):
            write_program(folder, weights, options, scales)
            runtime = OnnxRuntime(folder / FILE, MINIMUM_INT8_CACHE)
            parts = [runtime.logits(tokens[at : at + CHUNK], at) for at in range(0, len(tokens), CHUNK)]
            return torch.cat(parts).double().log_softmax(-1)

        import torch

        plain = log_probabilities(None)
        rows = []
        for factor in ROOMS:
            grow = factor / MARGIN
            scales = tuple(dataclasses.replace(s, key=s.key * grow, value=s.value * grow) for s in calibrated)
            found = log_probabilities(scales)
            kl = (plain.exp() * (plain - found)).sum(-1)
            agree = (plain.argmax(-1) == found.argmax(-1)).double().mean()
            rows.append((f"{factor:.2f}", f"{kl.mean():.4f}", f"{kl.quantile(0.99):.3f}", f"{100 * agree:.1f}"))
    columns = ("room", "KL mean", "KL p99", "top-1 agreement, %")
    title = f"{arguments.checkpoint}, {arguments.recipe}, {len(tokens)} tokens of {arguments.text.name}"
    print_table(title, columns, rows, markdown=arguments.markdown)


if __name__ == "__main__":
    main()
