"""`mobile-export inspect`: what a checkpoint or an artifact is, what it shares, what every part weighs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mobile_export.cli.export import DEFAULT_PROMPT
from mobile_export.cli.options import JsonOption, ScheduleOption
from mobile_export.cli.say import done, say, table, warn, without_noise
from mobile_export.errors import EXIT_NO, EXIT_YES, UsageError
from mobile_export.manifest import NAME as MANIFEST
from mobile_export.manifest import folder_of, read_manifest
from mobile_export.units import counted, mebibytes, megabytes

if TYPE_CHECKING:
    from mobile_export.families.spec import DecoderSpec, RwkvSpec
    from mobile_export.quantize.weights import ModelWeights


ARTIFACTS = (".pte", ".onnx", ".mlpackage")


def inspect(
    what: Annotated[str, typer.Argument(metavar="CHECKPOINT|ARTIFACT", help="A checkpoint as for `pte`, or an artifact.")],
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", help="A recipe's name, or a TOML file, for the last column. Default: w4.", show_default=False),
    ] = None,
    schedule: ScheduleOption = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit code 1 if an artifact holds bytes twice, unused, or matrices left in float.")
    ] = False,
    as_json: JsonOption = False,
) -> int:
    """Print what a checkpoint or an artifact is, what is shared in it and why, and what every part weighs.

    An artifact's files are audited, too: what is stored twice, what nothing refers to, what was left in float. Any .pte,
    .onnx or .mlpackage can be given, whoever wrote it.

    Example: mobile-export inspect smollm2-135m
    """
    path = Path(what)
    if (path / MANIFEST).is_file() or path.suffix in ARTIFACTS:
        if recipe or schedule:
            option = "--recipe" if recipe else "--schedule"
            raise UsageError(option, f"{what} is an artifact, its recipe and schedule are settled", f"leave {option} out")
        return inspect_artifact(path, strict=strict, as_json=as_json)
    if strict:
        raise UsageError(
            "--strict", f"{what} is a checkpoint", "it audits artifacts: a folder, a .pte, a .onnx or an .mlpackage"
        )
    say("reading the checkpoint")
    from mobile_export.cli.steps import prepare

    weights = prepare(what, recipe or "w4", schedule)
    done()
    for line in (*weights.checkpoint.warnings, *weights.plan.warnings):
        warn(line)
    facts = inspection(weights)
    typer.echo(json.dumps(facts) if as_json else page(weights, facts))
    return 0


def inspect_artifact(path: Path, *, strict: bool, as_json: bool) -> int:
    """Print an artifact's manifest, where it has one, and the audit of its files."""
    from mobile_export.audit import audit_artifact
    from mobile_export.cli.report import report

    folder = folder_of(path)
    stranger = path != folder and path.exists() and not (folder / MANIFEST).is_file()
    if stranger:
        with without_noise():
            audit = audit_artifact(path)
        facts: dict[str, Any] = {}
        size = sum(file.stat().st_size for file in path.rglob("*")) if path.is_dir() else path.stat().st_size
        lines = [f"{path}: {megabytes(size)}, no manifest beside it"]
    else:
        manifest = read_manifest(path)
        with without_noise():
            audit = audit_artifact(folder / manifest.file, float_expected="float32" in manifest.matrices.values())
        facts = dataclasses.asdict(manifest)
        lines = [report(manifest, folder)]
    if as_json:
        typer.echo(json.dumps({**facts, "audit": dataclasses.asdict(audit)}))
    else:
        typer.echo("\n".join([*lines, *([] if stranger else [""]), *audit.lines()]))
    return EXIT_NO if strict and not audit.clean else EXIT_YES


def inspection(weights: ModelWeights) -> dict[str, Any]:
    """The facts as plain values, for --json and for the page."""
    from mobile_export.quantize import sizes

    spec, plan = weights.recognised.spec, weights.plan
    reach = list(sizes.kv_reach(weights.recognised, plan).values())
    return {
        "source": weights.checkpoint.source,
        "licence": weights.checkpoint.licence,
        "spec": dataclasses.asdict(spec),
        "sharing": dataclasses.asdict(plan),
        "recipe": weights.recipe.name,
        "parameters_stored": sizes.stored_parameters(weights),
        "parameters_executed": sizes.executed_parameters(weights),
        "embedding_share": sizes.embedding_share(weights.recognised, weights),
        "bits_per_weight": sizes.bits_per_weight(weights),
        "parts": [dataclasses.asdict(part) for part in sizes.part_sizes(weights)],
        "matrices": {name: str(matrix.precision) for name, matrix in weights.matrices.items()},
        "kv_bytes_per_token": {dtype: sizes.kv_bytes(spec, len(reach), dtype) for dtype in ("float32", "int8")},
        "kv_reach": reach,
        "state_bytes": sizes.state_bytes(weights.recognised, plan),
        "warnings": [*weights.checkpoint.warnings, *plan.warnings],
    }


def page(weights: ModelWeights, facts: dict[str, Any]) -> str:
    """The facts as a person reads them."""
    from mobile_export.cli.report import precision_lines

    spec, plan = weights.recognised.spec, weights.plan
    rows = [
        (
            part["name"],
            f"{part['parameters']:,}",
            *(megabytes(part[key]) if part[key] is not None else "-" for key in _COLUMNS),
        )
        for part in facts["parts"]
    ]
    totals = [[part[key] for part in facts["parts"]] for key in _COLUMNS]
    rows.append(
        (
            "all",
            f"{facts['parameters_stored']:,}",
            *(megabytes(sum(column)) if None not in column else "-" for column in totals),
        )
    )
    context = min(1024, spec.max_position_embeddings)
    order = f"{plan.order}: {plan.schedule_evidence}"
    return "\n".join(
        [
            f"{weights.checkpoint.source}: {spec.family}, {counted(len(plan.blocks), 'block')} of {spec.hidden_size}, "
            f"{_mixing(spec)}, "
            f"feed-forward {spec.intermediate_size}, vocabulary {spec.vocab_size:,}, "
            f"{spec.max_position_embeddings:,} positions",
            f"licence    {weights.checkpoint.licence or 'not stated'}",
            f"parameters {facts['parameters_stored']:,} stored, {facts['parameters_executed']:,} with head and "
            f"repeated blocks written out; "
            f"the embedding holds {100 * facts['embedding_share']:.1f} % of the stored ones",
            f"head       {'tied to the embedding' if plan.tied else 'of its own'} ({plan.tied_evidence})",
            f"schedule   {counted(len(plan.blocks), 'block')} stored, {counted(len(plan.schedule), 'execution')} ({order})",
            *_kept(weights, facts, context),
            "",
            table(("part", "parameters", "fp16", "8 bits", "4 bits", f"recipe {facts['recipe']}"), rows),
            "",
            *precision_lines(facts["matrices"]),
        ]
    )


def _mixing(spec: DecoderSpec | RwkvSpec) -> str:
    """How positions are mixed, in numbers."""
    from mobile_export.families.spec import RwkvSpec

    if isinstance(spec, RwkvSpec):
        return f"a state of {spec.state_size:,} values each"
    return f"{spec.num_attention_heads} heads ({spec.num_key_value_heads} for key and value) of {spec.head_dim}"


def _kept(weights: ModelWeights, facts: dict[str, Any], context: int) -> list[str]:
    """What executions keep of the text: lines for a cache that grows with it, and for a state that does not."""
    from mobile_export.quantize import sizes

    kv, state = facts["kv_bytes_per_token"], facts["state_bytes"]
    lines = []
    if kv["float32"]:
        line = f"kv cache   {kv['float32']:,} bytes a token in float32, {kv['int8']:,} in int8; at {context:,} tokens "
        lines.append(line + f"{mebibytes(kv['float32'] * context)} and {mebibytes(kv['int8'] * context)}")
    rows = sizes.kv_rows(weights.recognised, weights.plan, context, DEFAULT_PROMPT).values()
    windows = sum(held < context for held in rows)
    if windows:
        float32, int8 = (sizes.kv_bytes(weights.recognised.spec, sum(rows), dtype) for dtype in ("float32", "int8"))
        line = f"windows    {windows} of {counted(len(rows), 'slot')}; a .pte holds no more than they see: "
        lines.append(line + f"{mebibytes(float32)} and {mebibytes(int8)}")
    if state:
        lines.append(f"state      {state:,} bytes, whatever the length of the text")
    return lines


_COLUMNS = ("bytes_fp16", "bytes_8_bit", "bytes_4_bit", "bytes_recipe")
