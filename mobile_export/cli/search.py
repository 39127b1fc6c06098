"""`mobile-export search`: the recipe of 4 and 8 bits that loses least of a checkpoint at a size."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mobile_export.cli.export import name_of
from mobile_export.cli.files import put, writable
from mobile_export.cli.options import CheckpointArgument, JsonOption, ScheduleOption
from mobile_export.cli.say import done, say, table, warn
from mobile_export.errors import EXIT_YES, InputError, UsageError
from mobile_export.units import megabytes

if TYPE_CHECKING:
    import torch

    from mobile_export.quantize.recipe import Recipe
    from mobile_export.quantize.sensitivity import Sensitivity
    from mobile_export.quantize.weights import ModelWeights

SEQUENCES, TOKENS = 8, 128  # of the text that is measured on
HEARD = 48  # of the sequences a recipe is calibrated on: what each matrix is calibrated on by itself
SHOWN = 5  # matrices at each end of the table


@dataclass(frozen=True)
class Choice:
    """One matrix: what was measured, and what it was given."""

    name: str
    bits: int
    kl: float
    saved_bytes: int
    executions: int


@dataclass(frozen=True)
class Search:
    """What was chosen. bytes: the file's, as `inspect` predicts them. KL divergences are from float32, in nats.

    kl_8_bits: measured, with everything at 8 bits. kl_predicted: that, and what each matrix at 4 bits cost by itself.
    kl_measured: with all of them together, as it will be exported; None where --no-verify left it out.
    """

    recipe: str
    bytes: int
    bits_per_weight: float
    tokens: int
    kl_8_bits: float
    kl_predicted: float
    kl_measured: float | None
    matrices: list[Choice]


def search(
    checkpoint: CheckpointArgument,
    target_size: Annotated[
        str | None, typer.Option("--target-size", help="Largest file, as `inspect` predicts it, e.g. 80MB.", show_default=False)
    ] = None,
    target_bits: Annotated[
        float | None, typer.Option("--target-bits", help="Most bits per weight, scales included, e.g. 5.0.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Recipe to write. Default: NAME-mixed.toml.")] = None,
    quantizer: Annotated[
        str, typer.Option("--quantizer", help="How the recipe rounds. gptq: calibrated. clip: each matrix by itself.")
    ] = "gptq",
    schedule: ScheduleOption = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw what every matrix costs, as PNG (extra `plots`).", show_default=False)
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Calibrate the recipe as an export will, and measure it.")
    ] = True,
    as_json: JsonOption = False,
) -> int:
    """Choose 4 or 8 bits for every matrix of CHECKPOINT: the least divergence under a size, as a recipe.

    Each matrix is measured by itself, on text sampled from the model; that is kept, so another target takes seconds.

    Example: mobile-export search smollm2-135m --target-size 80MB --out mixed.toml
    """
    if (target_size is None) == (target_bits is None):
        raise UsageError("--target-size, --target-bits", "one of them says what to fit", "give --target-size 80MB, for example")
    if quantizer not in ("gptq", "clip"):
        raise UsageError(f"--quantizer {quantizer}", "no such quantizer", "write gptq or clip")
    out = out or Path(f"{name_of(checkpoint)}-mixed.toml")
    for option, path, ending in (("--out", out, ".toml"), ("--plot", plot, ".png")):
        if path is not None and writable(option, path) and path.suffix != ending:
            raise UsageError(f"{option} {path}", "is not written in that form", f"name a file that ends in {ending}")
    if plot is not None:
        from mobile_export.measure.drawing_png import check_png

        check_png("leave --plot out")
    from mobile_export.budget.quantities import read_bytes

    limit = None if target_size is None else read_bytes("--target-size", target_size)
    say("reading the checkpoint")
    from mobile_export.cli.steps import prepare
    from mobile_export.quantize.calibration import sampled_texts
    from mobile_export.quantize.mixed import mixed_recipe, to_toml
    from mobile_export.quantize.recipe import Calibration
    from mobile_export.quantize.selection import cheapest
    from mobile_export.quantize.sensitivity import sensitivities

    at_8_bits = prepare(checkpoint, "w8-fast", schedule)
    for line in (*at_8_bits.checkpoint.warnings, *at_8_bits.plan.warnings):
        warn(line)
    must_save = _must_save(at_8_bits, limit, target_bits)
    texts = sampled_texts(at_8_bits, Calibration(SEQUENCES, TOKENS), say)
    calibration = Calibration() if quantizer == "gptq" else None
    heard = sampled_texts(at_8_bits, calibration, say)[:HEARD] if calibration else []
    measured = sensitivities(at_8_bits, texts, heard, say)
    four = cheapest(measured, must_save)
    asked = f"at most {target_size}" if target_bits is None else f"at most {target_bits:g} bits a weight"
    description = f"4 or 8 bits a matrix by measured sensitivity, {asked}"
    recipe = mixed_recipe(out.stem, description, at_8_bits.matrices, four, calibration)
    found = _measured(at_8_bits, recipe, texts, measured, four, out, verify=verify)
    put(out, to_toml(recipe, _remarks(found, checkpoint)).encode())
    if plot is not None:
        from mobile_export.measure.drawing_png import png_of
        from mobile_export.measure.sensitivity_drawing import draw

        put(plot, png_of(draw(measured, four, f"{name_of(checkpoint)}: KL at 4 bits, matrix by matrix")))
    done()
    typer.echo(json.dumps(dataclasses.asdict(found)) if as_json else page(found))
    return EXIT_YES


def _must_save(at_8_bits: ModelWeights, limit: int | None, bits: float | None) -> int:
    """Bytes to take from the model at 8 bits.

    Raises:
        InputError: trained codes, or a target beyond what 4 and 8 bits can reach.
    """
    from mobile_export.quantize.sensitivity import candidates, saved_bytes

    trained = next(iter(at_8_bits.trained), None)
    if trained:
        what = "was trained to be rounded, so there is nothing to choose"
        raise InputError(at_8_bits.where(trained), what, "export it with --recipe trained")
    most = sum(at_8_bits.predicted_bytes().values())
    least = most - sum(map(saved_bytes, candidates(at_8_bits)))
    parameters = sum(matrix.parameters for matrix in at_8_bits.matrices.values())
    beside = at_8_bits.predicted_bytes()["norms"]
    if bits is not None:
        target, option = int(bits * parameters / 8) + beside, f"--target-bits {bits:g}"
        reach = f"{_up(8 * (least - beside) / parameters)} to {_down(8 * (most - beside) / parameters)} bits a weight"
    else:
        assert limit is not None
        target, option, reach = limit, f"--target-size {megabytes(limit)}", f"{least:,} to {most:,} bytes"
    if not least <= target <= most:
        then = "aim higher" if target < least else "use --recipe w8, or aim lower"
        raise InputError(option, f"is out of reach: with 4 and 8 bits a matrix it is {reach}", then)
    return most - target


def _measured(
    at_8_bits: ModelWeights,
    recipe: Recipe,
    texts: Sequence[torch.Tensor],
    measured: Sequence[Sensitivity],
    four: frozenset[str],
    out: Path,
    *,
    verify: bool,
) -> Search:
    """What the choice costs: predicted from its matrices one by one, and measured with all of them together."""
    from mobile_export.quantize.sizes import bits_per_weight
    from mobile_export.quantize.weights import ModelWeights
    from mobile_export.verify.quality import measure_quality
    from mobile_export.verify.reference import reference_logits, reference_model

    length, windows = max(map(len, texts)), [text.tolist() for text in texts]
    exact = reference_model(at_8_bits.in_float32(), length)

    def divergence(weights: ModelWeights) -> float:
        model = reference_model(weights, length)
        quality = measure_quality(windows, partial(reference_logits, model), partial(reference_logits, exact), lambda _: None)
        assert quality.kl is not None, "there was a model to compare with"
        return quality.kl

    mixed = ModelWeights(at_8_bits.checkpoint, at_8_bits.recognised, at_8_bits.plan, recipe, say=say)
    say("measuring the choice")  # which calibrates it first
    base = divergence(at_8_bits)
    return Search(
        recipe=str(out),
        bytes=sum(mixed.predicted_bytes().values()),
        bits_per_weight=bits_per_weight(mixed),
        tokens=sum(map(len, texts)),
        kl_8_bits=base,
        kl_predicted=base + sum(s.kl for s in measured if s.name in four),
        kl_measured=divergence(mixed) if verify else None,
        matrices=[Choice(s.name, 4 if s.name in four else 8, s.kl, s.saved_bytes, s.executions) for s in measured],
    )


def _remarks(found: Search, checkpoint: str) -> list[str]:
    """What stands above the recipe in its file."""
    return [f"Written by `mobile-export search {name_of(checkpoint)}`: {_size(found)}.", f"KL: {_divergences(found)}."]


def page(found: Search) -> str:
    """The choice as a person reads it: the extremes of the table, and what it comes to."""
    ranked = sorted(found.matrices, key=_price, reverse=True)
    shown = ranked if len(ranked) <= 2 * SHOWN else [*ranked[:SHOWN], None, *ranked[-SHOWN:]]
    header = ("matrix", "bits", "KL at 4 bits", "saves", "KL a MB", "runs")
    rows = [("...", "", "", "", "", "") if choice is None else _row(choice) for choice in shown]
    four = sum(choice.bits == 4 for choice in found.matrices)
    return "\n".join(
        [
            table(header, rows),
            "",
            f"{found.recipe}: {four} of {len(found.matrices)} matrices at 4 bits, the others at 8",
            f"size  {_size(found)}",
            f"KL    {_divergences(found)}",
        ]
    )


def _size(found: Search) -> str:
    return f"{megabytes(found.bytes)}, {found.bits_per_weight:.2f} bits a weight"


def _divergences(found: Search) -> str:
    measured = "not measured" if found.kl_measured is None else f"{found.kl_measured:.4f} measured"
    return f"{found.kl_predicted:.4f} nats predicted, {measured}; {found.kl_8_bits:.4f} with everything at 8 bits"


def _row(choice: Choice) -> Sequence[str]:
    numbers = (f"{choice.kl:.5f}", megabytes(choice.saved_bytes), f"{_price(choice):.5f}", str(choice.executions))
    return (choice.name, str(choice.bits), *numbers)


def _price(choice: Choice) -> float:
    """Nats for a megabyte."""
    return 1e6 * choice.kl / choice.saved_bytes


def _up(bits: float) -> str:
    return f"{math.ceil(1000 * bits) / 1000:.3f}"


def _down(bits: float) -> str:
    return f"{math.floor(1000 * bits) / 1000:.3f}"
