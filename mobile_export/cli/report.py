"""What a person reads of an artifact at the terminal. Made from the manifest alone."""

from __future__ import annotations

from pathlib import Path

from mobile_export.cli.say import table
from mobile_export.manifest import Manifest
from mobile_export.units import counted, mebibytes, megabytes


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
    parts.append(("file", f"{manifest.file_bytes:,}", ""))
    return "\n".join(
        [
            f"{folder / manifest.file}: {megabytes(manifest.file_bytes)}, recipe {manifest.recipe['name']}, "
            f"{manifest.bits_per_weight:.2f} bits a weight",
            "",
            table(("part", "bytes", "predicted"), parts),
            "",
            *precision_lines(manifest.matrices),
            f"shared   {counted(stored, 'block')} stored, {counted(slots, 'execution')} ({sharing['order']}: "
            f"{sharing['schedule_evidence']}); head {'tied' if sharing['tied'] else 'untied'} ({sharing['tied_evidence']})",
            f"kv cache {manifest.kv_cache.dtype}, {manifest.kv_cache.bytes_per_token:,} bytes a token, "
            f"{mebibytes(manifest.kv_cache.bytes_at_max_context)} at context {manifest.max_context}",
            f"graph    {counted(manifest.delegate_calls, 'delegate call')} a step into "
            f"{counted(manifest.delegates, 'delegate')}; outside: {_outside(manifest.outside_delegates)}",
            _verified(manifest),
        ]
    )


def precision_lines(matrices: dict[str, str]) -> list[str]:
    """Which matrices went to which precision, one line a precision, blocks counted together."""
    kinds: dict[str, dict[str, int]] = {}
    for name, precision in matrices.items():
        kind = f"blocks.*.{name.split('.', 2)[2]}" if name.startswith("blocks.") else name
        counts = kinds.setdefault(precision, {})
        counts[kind] = counts.get(kind, 0) + 1
    return [
        f"weights  {precision}: " + ", ".join(f"{kind} x{count}" if count > 1 else kind for kind, count in counts.items())
        for precision, counts in kinds.items()
    ]


def _outside(operators: dict[str, int]) -> str:
    return ", ".join(f"{name.removeprefix('aten::')} {count}" for name, count in operators.items())


def _verified(manifest: Manifest) -> str:
    if manifest.verification is None:
        return "verified no: skipped by --no-verify"
    checks = manifest.verification.checks
    rows = [(c.name, f"{c.measured:.1e}", f"{c.limit:.1e}", "yes" if c.passed else "NO") for c in checks]
    outcome = "passed" if manifest.verification.passed else "FAILED"
    return f"verified {outcome}, by the ExecuTorch runtime against {manifest.verification.oracle}\n\n" + table(
        ("check (error of the largest logit)", "error", "limit", "ok"), rows
    )
