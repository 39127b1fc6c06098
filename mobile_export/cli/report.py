"""What a person reads of an artifact at the terminal. Made from the manifest alone."""

from __future__ import annotations

from pathlib import Path

from mobile_export.cli.say import table
from mobile_export.emit.card import needs, runtime_name, windows
from mobile_export.manifest import CoreMlGraph, Manifest
from mobile_export.units import counted, mebibytes, megabytes

EXACT = 1e-4  # of the largest logit: what float32 summed in another order accounts for


def report(manifest: Manifest, folder: Path) -> str:
    """A page: sizes by part against the prediction, precisions, sharing, KV cache, what runs outside delegates, checks."""
    sharing = manifest.sharing
    stored, slots = len(sharing["blocks"]), len(sharing["schedule"])
    parts = [
        (
            part.name,
            f"{part.bytes:,}",
            f"{part.predicted_bytes:,}" if part.predicted_bytes is not None else "",
        )
        for part in manifest.parts
        if part.bytes
    ]
    parts += [("file" if len(manifest.files) == 1 else file.name, f"{file.bytes:,}", "") for file in manifest.files]
    return "\n".join(
        [
            f"{folder / manifest.file}: {megabytes(manifest.bytes)}, recipe {manifest.recipe['name']}, "
            f"{manifest.bits_per_weight:.2f} bits a weight",
            "",
            table(("part", "bytes", "predicted"), parts),
            "",
            *precision_lines(manifest.matrices),
            f"shared   {counted(stored, 'block')} stored, {counted(slots, 'execution')} ({sharing['order']}: "
            f"{sharing['schedule_evidence']}); head {'tied' if sharing['tied'] else 'untied'} ({sharing['tied_evidence']})",
            *_kept(manifest),
            f"graph    {_graph(manifest)}",
            _verified(manifest),
        ]
    )


def precision_lines(matrices: dict[str, str]) -> list[str]:
    """Which matrices went to which precision, one line a precision, blocks counted together."""
    kinds: dict[str, dict[str, list[str]]] = {}
    for name, precision in matrices.items():
        kind = f"blocks.*.{name.split('.', 2)[2]}" if name.startswith("blocks.") else name
        kinds.setdefault(precision, {}).setdefault(kind.removesuffix(".weight"), []).append(name.removesuffix(".weight"))
    return [
        f"weights  {precision}: "
        + ", ".join(f"{kind} x{len(names)}" if len(names) > 1 else names[0] for kind, names in by_kind.items())
        for precision, by_kind in kinds.items()
    ]


def _kept(manifest: Manifest) -> list[str]:
    """What executions keep of a text: lines for a cache that grows with it, and for a state that does not."""
    kv, context = manifest.kv_cache, manifest.max_context
    lines = [f"state    {kv.state_bytes:,} bytes, whatever the length of the text"] if kv.state_bytes else []
    if kv.slots:
        whole = f"{mebibytes(kv.bytes_at_max_context)} at context {context}"
        short = f"; {windows(kv, context)}" if windows(kv, context) else ""
        lines.insert(0, f"kv cache {kv.dtype}, {kv.bytes_per_token:,} bytes a token, {whole}{short}")
    return lines


def _graph(manifest: Manifest) -> str:
    if manifest.onnx:
        operators = ", ".join(f"{name} {count}" for name, count in manifest.onnx.operators.items())
        return (
            f"{counted(sum(manifest.onnx.operators.values()), 'node')}, {manifest.onnx.activations} activations: {operators}\n"
            f"needs    {needs(manifest.onnx)}"
        )
    if manifest.package:
        return _core_ml_graph(manifest.package)
    assert manifest.pte, "a manifest has its format's facts"
    outside = ", ".join(f"{name.removeprefix('aten::')} {count}" for name, count in manifest.pte.outside_delegates.items())
    calls = counted(manifest.pte.delegate_calls, "delegate call")
    return f"{calls} a step into {counted(manifest.pte.delegates, 'delegate')}; outside: {outside}"


def _core_ml_graph(graph: CoreMlGraph) -> str:
    lines = []
    for name, operators in graph.operators.items():
        listed = ", ".join(f"{kind} {count}" for kind, count in operators.items())
        lines.append(f"{name}, {counted(sum(operators.values()), 'operator')}: {listed}")
    advice = [
        f"advice   {counted(len(graph.advice), 'pattern')} the Neural Engine may not take, each with its cure in README.md"
    ]
    return "\n".join(
        ["\n         ".join(lines), f"needs    {graph.deployment_target} or newer", *(advice if graph.advice else [])]
    )


def _verified(manifest: Manifest) -> str:
    if manifest.verification is None:
        return "verified no: skipped by --no-verify"
    checks = manifest.verification.checks
    counted_checks = [c for c in checks if c.limit == 0]
    rows = [(c.name, f"{c.measured:.1e}", f"{c.limit:.1e}", "yes" if c.passed else "NO") for c in checks if c.limit > 0]
    rows += [(c.name, f"{c.measured:.0f}", "0", "yes" if c.passed else "NO") for c in counted_checks]
    outcome = "passed" if manifest.verification.passed else "FAILED"
    reasons = dict.fromkeys(c.reason for c in checks if c.limit > EXACT)  # a limit this wide wants its reason beside it
    return "\n".join(
        [
            f"verified {outcome}, by {runtime_name(manifest)} against {manifest.verification.oracle}",
            "",
            table(("check", "error / largest logit", "limit", "ok"), rows),
            *(f"limits over {EXACT:g}: {reason}" for reason in reasons),
        ]
    )
