"""Table: how far rounding noise alone moves the logits of a quantized model, the reference against itself.

    python -m benchmarks.noise_floor                 SmolLM2-135M by w4-fast, a few seconds

Why verification asks two questions instead of one: docs/decisions/0002.
"""

from __future__ import annotations

import argparse

from benchmarks.machine import describe_machine

TOKENS = 133
LEVELS = (1e-7, 1e-6)
QUANTILES = {"least": 0.0, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "most": 1.0}


def main() -> None:
    """Print, for each noise level, quantiles over positions of the largest logit difference over the largest logit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="smollm2-135m")
    parser.add_argument("--recipe", default="w4-fast")
    asked = parser.parse_args()
    import torch

    from mobile_export.cli.say import table
    from mobile_export.cli.steps import prepare
    from mobile_export.verify.parity import noisy_logits
    from mobile_export.verify.reference import reference_decoder, reference_logits

    weights = prepare(asked.checkpoint, asked.recipe, None)
    decoder = reference_decoder(weights, TOKENS)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(weights.recognised.spec.vocab_size, (TOKENS,), generator=generator).tolist()
    want = reference_logits(decoder, tokens)
    rows = []
    for noise in LEVELS:
        errors = (noisy_logits(decoder, tokens, noise) - want).abs().amax(dim=1) / want.abs().amax(dim=1)
        rows.append((f"{noise:g}", *(f"{100 * errors.quantile(q).item():.2g} %" for q in QUANTILES.values())))
    print(describe_machine())
    print(table(("noise", *QUANTILES), rows))


if __name__ == "__main__":
    main()
