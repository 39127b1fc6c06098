"""Table: what each recipe costs in quality, measured on the artifacts themselves: size, bits, perplexity, KL, top-1 agreement.

Every artifact is evaluated by `mobile-export eval` in its own runtime, against the float checkpoint. The second subject is the
same network with its channels rescaled (rescaled.py): the packaged checkpoint was rounded to 4 bits once before, which flatters
whatever rounds it to 4 bits again.

    python -m benchmarks.quality --text novel.txt --work work/quality
    python -m benchmarks.quality --text novel.txt --work work/quality --formats onnx pte --recipes w4 --tokens 1024
    python -m benchmarks.quality_plot results.json kl-against-size.png

--text: a text no recipe was calibrated with; 3,072 tokens of it are used. A .pte is fed token by token: ten times slower.
A recipe mixed-5.0 is what `mobile-export search --target-bits 5.0` chooses. --llama-python adds llama.cpp's Q4_K_M, quantized
from the same float weights.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.export_child import mobile_export_program, onnx_command, pte_command, run_export
from benchmarks.json_child import run_for_json
from benchmarks.machine import describe_machine
from benchmarks.packaged_gguf import packaged_as
from benchmarks.report import Figure, add_report_options, at_most, finish, print_table
from mobile_export.manifest import read_manifest
from mobile_export.quantize.recipe import read_recipe, recipe_from

RECIPES = ("w8-fast", "w8", "w4-fast", "w4", "w4-all-fast", "w4-all", "mixed-6.2", "mixed-5.0")
MIXED = "mixed-"  # and the bits per weight that `search` is asked for
CHECKPOINT = "smollm2-135m"
LIMITS = {  # (subject, recipe) -> perplexity increase in percent, KL in nats
    ("plain", "w8"): (1.0, 0.01),
    ("plain", "w4"): (5.0, 0.085),
    ("plain", "mixed-5.0"): (3.0, None),
    ("rescaled", "w4"): (8.0, 0.11),
}


def main() -> int:
    """Export what is not there yet, evaluate it, print a table for each subject, say which figures are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder of the exports; kept, and used again")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--formats", nargs="+", choices=("onnx", "pte"), default=["onnx"])
    parser.add_argument("--subjects", nargs="+", choices=("plain", "rescaled"), default=["plain", "rescaled"])
    parser.add_argument("--tokens", type=int, default=3072)
    parser.add_argument("--llama-python", metavar="PYTHON", help="one that has llama-cpp-python beside mobile-export")
    add_report_options(parser)
    asked = parser.parse_args()
    machine = describe_machine()
    print(machine)
    figures: list[Figure] = []
    measured: dict[str, Any] = {}
    for subject in asked.subjects:
        checkpoint = CHECKPOINT if subject == "plain" else rescaled(asked.work.resolve() / "checkpoint")
        rows = []
        for form in asked.formats:
            for recipe in asked.recipes:
                folder = asked.work.resolve() / f"{subject}-{recipe}-{form}"
                export(checkpoint, recipe, form, folder)
                found = evaluate(folder, asked.text.resolve(), asked.tokens)
                measured[folder.name] = {"subject": subject, "recipe": recipe, "format": form, **found}
                rows.append(row(recipe, form, found))
                if (subject, recipe) in LIMITS:
                    increase, kl = LIMITS[subject, recipe]
                    name = f"{subject} {recipe} {form}"
                    figures.append(at_most(f"{name}: perplexity increase", 100 * found["perplexity_increase"], increase, "%"))
                    if kl is not None:
                        figures.append(at_most(f"{name}: KL", found["kl"], kl, "nats"))
        if subject == "plain" and asked.llama_python:
            theirs = of_q4_k_m(asked.work.resolve(), asked.text.resolve(), asked.tokens, asked.llama_python)
            rows.append(row("Q4_K_M", "llama.cpp", theirs))
            smaller = [ours["kl"] for ours in measured.values() if ours["bytes"] <= theirs["bytes"]]
            measured["Q4_K_M"] = theirs
            if smaller:
                figures.append(
                    at_most("plain: least KL in no more bytes than Q4_K_M, of its KL", min(smaller) / theirs["kl"], 1.0)
                )
        columns = ("recipe", "format", "MB", "bits a weight", "perplexity", "increase, %", "KL", "KL p99", "top-1, %")
        print_table(f"{subject}: {asked.tokens:,} tokens of {asked.text.name}", columns, rows, markdown=asked.markdown)
    return finish(asked, machine, measured, figures)


def rescaled(folder: Path) -> str:
    """The rescaled checkpoint, written if it is not there."""
    if not (folder / "config.json").is_file():
        run_export([sys.executable, "-m", "benchmarks.rescaled", CHECKPOINT, str(folder)])
    return str(folder)


def export(checkpoint: str, recipe: str, form: str, folder: Path) -> None:
    """Export if it is not there; a recipe that is searched for lies beside the folder."""
    if (folder / "manifest.json").is_file():
        if not recipe.startswith(MIXED) and recipe_from(read_manifest(folder).recipe, str(folder)) != read_recipe(recipe):
            sys.exit(f"error: {folder}: was made by another recipe of the name {recipe}; remove it")
        return
    if recipe.startswith(MIXED):
        bits, recipe = recipe.removeprefix(MIXED), f"{folder}.toml"
        run_export([*mobile_export_program(), "search", checkpoint, "--target-bits", bits, "--out", recipe, "--no-verify"])
    if form == "onnx":
        run_export(onnx_command(checkpoint, folder, recipe=recipe, options=("--all-logits",)))
    else:
        run_export(pte_command(checkpoint, folder, recipe=recipe))


def evaluate(folder: Path, text: Path, tokens: int) -> dict[str, Any]:
    """What `eval` says, with the artifact's size beside it; the float checkpoint is the plain one, whatever the subject."""
    command = [*mobile_export_program(), "eval", str(folder), "--text", str(text), "--tokens", str(tokens)]
    manifest = read_manifest(folder)
    found = run_for_json([*command, "--against", CHECKPOINT, "--json"])
    return {**found, "bytes": manifest.bytes, "bits_per_weight": manifest.bits_per_weight}


def of_q4_k_m(work: Path, text: Path, tokens: int, python: str) -> dict[str, Any]:
    """The same of llama.cpp's Q4_K_M. bits_per_weight: of the file, words and all."""
    file = packaged_as("Q4_K_M", work / "Q4_K_M.gguf", python)
    command = [python, "-m", "benchmarks.llama_cpp_quality", str(file), "--text", str(text), "--tokens", str(tokens)]
    found = run_for_json([*command, "--against", CHECKPOINT])
    return {"subject": "plain", "recipe": "Q4_K_M", "format": "llama.cpp", **found}


def row(recipe: str, form: str, found: dict[str, Any]) -> Sequence[str]:
    """One line of the table, each mean with its standard error."""
    return (
        recipe,
        form,
        f"{found['bytes'] / 1e6:.1f}",
        f"{found['bits_per_weight']:.2f}",
        f"{found['perplexity']:.2f}",
        f"{100 * found['perplexity_increase']:+.2f} +- {100 * found['perplexity_increase_error']:.2f}",
        f"{found['kl']:.4f} +- {found['kl_error']:.4f}",
        f"{found['kl_p99']:.3f}",
        f"{100 * found['top1']:.1f}",
    )


if __name__ == "__main__":
    sys.exit(main())
