"""Step 7, audit: a finished file alone -> what it stores more than once, what it left in float. One file per format.

Beside verify: that says whether the numbers are right, this whether any are there twice. Nothing is taken from the
manifest, so a file of another exporter can be audited as well.
"""

from __future__ import annotations

from pathlib import Path

from mobile_export.audit.payloads import Audit, Duplicate, FloatMatrix, Payload, Unused
from mobile_export.errors import InputError


def audit_artifact(path: Path, float_expected: bool | None = None) -> Audit:
    """Read a .pte, a .onnx with its data files or an .mlpackage, and say what is stored more than once or left in float.

    Args:
        path: the artifact's file or package, not the folder it lies in.
        float_expected: float matrices are no finding, as under an fp32 recipe. None: where nothing is quantized.
    Raises:
        InputError: no such file, of another format, cut off or damaged.
    """
    if path.suffix == ".pte":
        from mobile_export.audit.pte import audit_pte

        return audit_pte(path, float_expected)
    if path.suffix == ".onnx":
        from mobile_export.audit.onnx import audit_onnx

        return audit_onnx(path, float_expected)
    if path.suffix == ".mlpackage":
        from mobile_export.audit.mlpackage import audit_mlpackage

        return audit_mlpackage(path, float_expected)
    raise InputError(str(path), "neither a .pte, a .onnx nor an .mlpackage", "name the artifact's file")


__all__ = ["Audit", "Duplicate", "FloatMatrix", "Payload", "Unused", "audit_artifact"]
