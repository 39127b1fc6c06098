"""What one step of calibrating costs, in a process of its own, as JSON.

python -m benchmarks.calibration_child sample CHECKPOINT RECIPE
python -m benchmarks.calibration_child calibrate CHECKPOINT RECIPE
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time

from mobile_export.cli.steps import prepare
from mobile_export.model import products
from mobile_export.quantize.calibration import sampled_texts


def main() -> None:
    """Take the step; XDG_CACHE_HOME says where a text is kept and found again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=("sample", "calibrate"))
    parser.add_argument("checkpoint")
    parser.add_argument("recipe")
    parser.add_argument("--mkl", action="store_true", help="multiply as torch does by itself")
    asked = parser.parse_args()
    products.ONEDNN = products.ONEDNN and not asked.mkl
    weights = prepare(asked.checkpoint, asked.recipe, None)
    if weights.recipe.calibration is None:
        sys.exit(f"error: {asked.recipe}: is not calibrated")
    begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    if asked.step == "sample":
        tokens = sum(map(len, sampled_texts(weights.uncalibrated(weights.say), weights.recipe.calibration, weights.say)))
    else:
        calibrated = weights.calibrated
        assert calibrated is not None, "the recipe says how"
        tokens = calibrated.tokens
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    wall_s, peak_mb = time.perf_counter() - begun, after.ru_maxrss * 1024 / 1e6
    print(json.dumps({"tokens": tokens, "wall_s": wall_s, "cpu_s": cpu_s, "peak_rss_mb": peak_mb}))


if __name__ == "__main__":
    main()
