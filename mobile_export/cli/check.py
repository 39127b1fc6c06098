"""`mobile-export check`: does an artifact, or what a checkpoint would become, fit these phones."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from mobile_export.cli.options import JsonOption, ScheduleOption
from mobile_export.cli.phones import PhonesFileOption
from mobile_export.cli.say import done, say, warn
from mobile_export.errors import EXIT_NO, EXIT_YES, InputError, MissingTool, UsageError
from mobile_export.manifest import NAME as MANIFEST
from mobile_export.manifest import check_files, folder_of, read_manifest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mobile_export.budget.facts import Format, ModelFacts
    from mobile_export.budget.profiled import ProfiledRates
    from mobile_export.budget.report import Checked
    from mobile_export.budget.verdict import Limits, Target, Use

ARTIFACTS = (".pte", ".onnx")
FORMATS = ("pte", "onnx", "coreml")
USUAL_CONTEXT = 1024  # as the exporters have it


def check(
    what: Annotated[str, typer.Argument(metavar="ARTIFACT|CHECKPOINT", help="An artifact, or a checkpoint as for `pte`.")],
    phone: Annotated[
        list[str] | None, typer.Option("--phone", metavar="NAME", help="A phone of `phones`, or all.", show_default=False)
    ] = None,
    dram: Annotated[
        str | None, typer.Option("--dram", metavar="SIZE", help="Any phone with so much, e.g. 6GB.", show_default=False)
    ] = None,
    share: Annotated[str, typer.Option("--share", help="Share of the DRAM an app may take.")] = "10%",
    max_memory: Annotated[
        str | None, typer.Option("--max-memory", metavar="SIZE", help="Instead of a share, e.g. 512MiB.", show_default=False)
    ] = None,
    max_ttft: Annotated[
        str | None, typer.Option("--max-ttft", metavar="TIME", help="Longest wait for the first token.", show_default=False)
    ] = None,
    min_decode_rate: Annotated[
        float | None, typer.Option("--min-decode-rate", metavar="RATE", help="Least tokens per second.", show_default=False)
    ] = None,
    battery: Annotated[bool, typer.Option("--battery", help="What a token costs the battery, by the paper's figures.")] = False,
    context: Annotated[
        int | None, typer.Option("--context", min=2, help="KV rows. Default: the artifact's, or 1024.", show_default=False)
    ] = None,
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", min=1, help="Length of the prompt in times.")] = 128,
    recipe: Annotated[str | None, typer.Option("--recipe", help="Of a checkpoint. Default: w4.", show_default=False)] = None,
    schedule: ScheduleOption = None,
    kv: Annotated[str | None, typer.Option("--kv", help="Of a checkpoint: float32 or int8.", show_default=False)] = None,
    form: Annotated[
        str | None, typer.Option("--format", help="Of a checkpoint: pte, onnx or coreml. Default: pte.", show_default=False)
    ] = None,
    onnxruntime: Annotated[
        str | None, typer.Option("--onnxruntime", metavar="VERSION", help="That runs an ONNX model.", show_default=False)
    ] = None,
    packed_file: Annotated[
        bool, typer.Option("--packed-file", help="ExecuTorch maps packed weights from a file of an earlier start.")
    ] = False,
    profile: Annotated[
        Path | None,
        typer.Option("--profile", metavar="FILE", help="A profile of the phone: its speed, its DRAM.", show_default=False),
    ] = None,
    profiled: Annotated[
        Path | None,
        typer.Option("--profiled", metavar="ARTIFACT", help="What the profile is of.", show_default=False),
    ] = None,
    phones_file: PhonesFileOption = None,
    fail_on_uncertain: Annotated[
        bool, typer.Option("--fail-on-uncertain", help="Exit code 1 if one is uncertain, too.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page with a bar for each phone.", show_default=False)
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print for a pull request.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Say whether ARTIFACT, or what CHECKPOINT would become, fits phones in memory and time; exit code 1 if one does not.

    Predicted from sizes, not run: memory as measured on a desktop, speed from the phone table in wide intervals, or from a
    profile. An answer is uncertain where the interval holds the limit.

    Example: mobile-export check out --phone "Pixel 8" --phone "iPhone 15" --min-decode-rate 20
    """
    from mobile_export.budget.memory import USUAL_ONNXRUNTIME
    from mobile_export.budget.quantities import read_bytes, read_dram, read_seconds, read_share
    from mobile_export.budget.verdict import Limits, Use

    if markdown and as_json:
        raise UsageError("--markdown", "--json prints one object", "leave one of them out")
    if min_decode_rate is not None and not 0 < min_decode_rate < 1e6:
        raise UsageError(f"--min-decode-rate {min_decode_rate:g}", "no rate of tokens", "write tokens per second, like 20")
    limits = Limits(
        share=read_share(share),
        max_memory_bytes=read_bytes("--max-memory", max_memory) if max_memory else None,
        max_first_token_s=read_seconds("--max-ttft", max_ttft) if max_ttft else None,
        min_decode_tokens_per_s=min_decode_rate,
    )
    rates = _rates(profile) if profile else None
    targets = _targets(phone or [], read_dram(dram) if dram else None, phones_file or [], rates)
    timed = limits.max_first_token_s is not None or limits.min_decode_tokens_per_s is not None or battery
    if profile is None and timed and any(target.calibration is None for target in targets):
        raise UsageError("--dram", "nothing is known of the speed of an amount of DRAM", "name a --phone, or give a --profile")
    if profile is None and profiled is not None:
        raise UsageError("--profiled", "there is no profile it could belong to", "give one with --profile")
    if profile is not None and len(targets) > 1:
        raise UsageError("--profile", "it is of one phone, and several are checked", "check them one by one")
    facts, title = _facts(what, recipe, schedule, kv, form, context)
    if profile is not None and rates is not None:
        targets = [_measured(targets[0], profile, rates, what, profiled)]
    use = Use(
        context=context,
        prompt_tokens=prompt_tokens,
        onnxruntime=_version(onnxruntime) if onnxruntime else USUAL_ONNXRUNTIME,
        packed_file=packed_file,
    )
    _check_use(facts, use)
    checked = _checked(facts, title, targets, limits, use, battery=battery)
    done()
    if html is not None:
        _write_page(html, checked)
    _print(checked, as_json=as_json, markdown=markdown)
    failing = ("does not fit", "uncertain") if fail_on_uncertain else ("does not fit",)
    return EXIT_NO if any(verdict.outcome in failing for verdict, _ in checked.verdicts) else EXIT_YES


def _rates(profile: Path) -> ProfiledRates:
    from mobile_export.budget.profiled import read_rates

    return read_rates(profile)


def _targets(names: list[str], dram_bytes: int | None, files: list[Path], rates: ProfiledRates | None) -> list[Target]:
    """The phones that are named; where none is, the one that was profiled. What that one says of its DRAM is believed."""
    from mobile_export.budget.interval import exactly
    from mobile_export.budget.phones import find_phones, read_phones
    from mobile_export.budget.verdict import Target, target_of_phone

    measured = rates.phone if rates else None
    if not names and dram_bytes is None:
        if measured and measured.dram:
            return [Target(f"{measured.model or measured.serial}, as profiled", measured.dram)]
        raise UsageError("check", "no phone to check for", "name one with --phone (`phones` lists them), or give --dram 6GB")
    found = find_phones(names, read_phones(files)) if names or files else []
    targets = [target_of_phone(phone) for phone in found]
    if measured and measured.dram:
        targets = [dataclasses.replace(target, dram_bytes=measured.dram) for target in targets]
    if dram_bytes is not None:
        targets.append(Target(f"{dram_bytes / 2**30:g} GB of DRAM", exactly(dram_bytes)))
    return targets


def _measured(target: Target, profile: Path, rates: ProfiledRates, what: str, profiled: Path | None) -> Target:
    """A target with the speed of a profile, which is of `profiled`, or of what is checked."""
    from mobile_export.budget.profiled import USUAL, calibration_of_profile

    artifact = profiled or (Path(what) if _is_artifact(what) else None)
    facts = None
    if artifact is not None and rates.calibration is None:
        if rates.is_of([file.sha256 for file in read_manifest(artifact).files]):
            facts, _ = _facts_of_artifact(artifact)
        elif profiled is not None:
            raise UsageError(f"--profiled {profiled}", f"{profile} is of other files", "name the artifact it was measured with")
    return dataclasses.replace(target, calibration=calibration_of_profile(profile, rates, facts, target.calibration or USUAL))


def _is_artifact(what: str) -> bool:
    path = Path(what)
    return path.suffix == ".mlpackage" or (path / MANIFEST).is_file() or path.suffix in ARTIFACTS


def _facts(
    what: str, recipe: str | None, schedule: str | None, kv: str | None, form: str | None, context: int | None
) -> tuple[ModelFacts, str]:
    """The model, and a line that names it."""
    if _is_artifact(what):
        given = {"--recipe": recipe, "--schedule": schedule, "--kv": kv, "--format": form}
        option = next((name for name, value in given.items() if value is not None), None)
        if option:
            raise UsageError(
                option, f"{what} is an artifact, and that is settled", f"leave {option} out, or name the checkpoint"
            )
        return _facts_of_artifact(Path(what))
    if form not in (None, *FORMATS):
        raise UsageError(f"--format {form}", "no such format", f"write {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    if kv not in (None, "float32", "int8"):
        raise UsageError(f"--kv {kv}", "no such cache", "write float32 or int8")
    say("reading the checkpoint")
    from mobile_export.budget.facts import facts_of_weights
    from mobile_export.cli.steps import prepare
    from mobile_export.emit.coreml.expressible import check_expressible
    from mobile_export.emit.executorch.lowerable import attention_of, check_lowerable
    from mobile_export.emit.onnx.blocks import check_blocks
    from mobile_export.families.spec import DecoderSpec

    weights = prepare(what, recipe or "w4", schedule, kv)
    spec, chosen = weights.recognised.spec, cast("Format", form or "pte")
    if chosen == "pte":
        check_lowerable(spec, weights.recipe.kv.dtype)
    elif chosen == "onnx":
        check_blocks(weights)
    else:
        check_expressible(weights)
    for line in (*weights.checkpoint.warnings, *weights.plan.warnings):
        warn(line)
    attention = attention_of(spec, "custom") if isinstance(spec, DecoderSpec) else "custom"
    rows = min(spec.max_position_embeddings, context or USUAL_CONTEXT)
    facts = facts_of_weights(weights, chosen, max_context=rows, attention=attention)
    return facts, f"{what} as it would be exported ({chosen})"


def _facts_of_artifact(path: Path) -> tuple[ModelFacts, str]:
    from mobile_export.budget.facts import facts_of_manifest

    manifest = read_manifest(path)
    folder = folder_of(path)
    check_files(folder, manifest)
    return facts_of_manifest(manifest, path), str(folder / manifest.file)


def _check_use(facts: ModelFacts, use: Use) -> None:
    limit = facts.trained_context
    if use.context is not None and limit is not None and use.context > limit:
        raise InputError("--context", f"{use.context} positions, the model was trained for {limit}", f"use at most {limit}")
    if use.packed_file and facts.format != "pte":
        raise UsageError("--packed-file", "only ExecuTorch keeps one", "leave it out")


def _version(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)\.(\d+)(?:\.\d+)?", text)
    if not found:
        raise UsageError(f"--onnxruntime {text}", "no version", "write it like 1.28")
    return int(found[1]), int(found[2])


def _checked(facts: ModelFacts, title: str, targets: Sequence[Target], limits: Limits, use: Use, *, battery: bool) -> Checked:
    from mobile_export.budget.changes import candidates, cheapest_change
    from mobile_export.budget.report import Checked
    from mobile_export.budget.verdict import judge
    from mobile_export.quantize.recipe import packaged_recipes, read_recipe

    verdicts = [judge(facts, target, limits, use) for target in targets]
    fits = all(verdict.outcome == "fits" for verdict in verdicts)
    tried = [] if fits else candidates(facts, [read_recipe(name) for name in packaged_recipes()])
    changes = [
        None if verdict.outcome == "fits" else cheapest_change(tried, target, limits, use)
        for verdict, target in zip(verdicts, targets, strict=True)
    ]
    return Checked(title, facts, use, list(zip(verdicts, changes, strict=True)), battery)


def _print(checked: Checked, *, as_json: bool, markdown: bool) -> None:
    from mobile_export.budget.report import as_markdown, as_text, as_values

    if as_json:
        typer.echo(json.dumps(as_values(checked)))
    else:
        typer.echo(as_markdown(checked) if markdown else as_text(checked))


def _write_page(file: Path, checked: Checked) -> None:
    from mobile_export.budget.page import page

    try:
        file.write_text(page(checked), encoding="utf-8")
    except OSError as error:
        raise MissingTool(f"--html {file}", f"cannot be written: {error.strerror}", "name another place") from None
