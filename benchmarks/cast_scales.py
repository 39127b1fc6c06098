"""What bfloat16 scales with a Cast would save of an ONNX file, and cost in memory: the figures of decision 0005.

python -m benchmarks.cast_scales --work DIR
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from benchmarks.export_child import onnx_command, run_export
from benchmarks.machine import describe_machine
from benchmarks.measure_onnx import FILES, measure_in_child
from benchmarks.report import print_table

SCALES = "scales.data"
PACKAGES = ("onnx", "onnxruntime")


def main() -> None:
    """Export, rewrite, measure both, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the models")
    parser.add_argument("--checkpoint", default="smollm2-135m")
    parser.add_argument("--recipe", default="w4-all-fast")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--markdown", action="store_true")
    asked = parser.parse_args()
    print(describe_machine(PACKAGES))
    plain, cast = asked.work.resolve() / "float32-scales", asked.work.resolve() / "bfloat16-scales"
    run_export(onnx_command(asked.checkpoint, plain, recipe=asked.recipe, max_context=1024, options=()))
    saved = cast_scales(plain, cast)
    runs = {folder: [measure_in_child(folder, threads=1) for _ in range(asked.runs)] for folder in (plain, cast)}
    bytes_of = sum((plain / name).stat().st_size for name in FILES)
    rows = [
        (title, f"{size / 1e6:.1f}", *(f"{sorted(values)[len(values) // 2]:.1f}" for values in (dirty, clean)))
        for title, size, dirty, clean in (
            ("float32", bytes_of, *memory(runs[plain])),
            ("bfloat16 and a Cast", bytes_of - saved, *memory(runs[cast])),
        )
    ]
    columns = ("scales of the blocks", "files, MB", "dirty after load, MiB", "clean after load, MiB")
    print_table(f"{asked.checkpoint}, {asked.recipe}", columns, rows, markdown=asked.markdown)


def memory(runs: list) -> tuple[list[float], list[float]]:
    """Dirty and clean MiB after load, of every run."""
    return [run.after_load.dirty_mib for run in runs], [run.after_load.clean_mib for run in runs]


def cast_scales(plain: Path, cast: Path) -> int:
    """Rewrite a model so that its blocks' scales are bfloat16 in a file of their own; gives the bytes a file would save."""
    import ml_dtypes
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    shutil.rmtree(cast, ignore_errors=True)
    shutil.copytree(plain, cast)
    model = onnx.load(cast / FILES[0], load_external_data=False)
    casts, saved = [], 0
    with (cast / SCALES).open("wb") as file:
        for held in model.graph.initializer:
            if not (held.name.startswith("blocks.") and held.name.endswith(".scales")):
                continue
            values = numpy_helper.to_array(held, str(cast))
            narrow = values.astype(ml_dtypes.bfloat16)
            assert (narrow.astype(np.float32) == values).all(), "our scales are exact in bfloat16"
            casts.append(helper.make_node("Cast", [f"{held.name}.bf16"], [held.name], to=TensorProto.FLOAT))
            held.name, held.data_type = f"{held.name}.bf16", TensorProto.BFLOAT16
            offset = file.tell()
            file.write(narrow.tobytes())
            del held.external_data[:]
            for key, value in (("location", SCALES), ("offset", offset), ("length", narrow.nbytes)):
                held.external_data.add(key=key, value=str(value))
            saved += values.nbytes - narrow.nbytes
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    (cast / FILES[0]).write_bytes(model.SerializeToString())
    return saved


if __name__ == "__main__":
    main()
