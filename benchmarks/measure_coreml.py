"""One Core ML artifact in our interpreter, one process, one JSON object.

python -m benchmarks.measure_coreml FOLDER --steps 8
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from pathlib import Path

PROMPT = [1, 2, 3, 4]


def main() -> None:
    """Load, run a prompt, then single tokens; CPU seconds, since one thread computes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=8)
    asked = parser.parse_args()
    import torch

    from mobile_export.manifest import read_manifest
    from mobile_export.verify.coreml_runtime import CoreMlRuntime

    torch.set_num_threads(1)
    manifest = read_manifest(asked.folder)
    assert manifest.package, "a Core ML artifact"
    began = time.process_time()
    runtime = CoreMlRuntime(asked.folder / manifest.file, manifest.package)
    runtime.step(PROMPT, 0)  # expands every weight
    first_s = time.process_time() - began
    steps = []
    for at in range(asked.steps):
        began = time.process_time()
        runtime.step([5], len(PROMPT) + at)
        steps.append(time.process_time() - began)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    print(json.dumps({"first_s": first_s, "decode_s": statistics.median(steps), "peak_rss_mb": peak_mb}))


if __name__ == "__main__":
    main()
