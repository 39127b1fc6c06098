"""One script per table we publish, run from the repository's root: `python -m benchmarks.sharing`. See README.md."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
