"""What a runner that measures nothing may print: the fields of measurement.py."""

from __future__ import annotations

RESIDENT = {"rss_anon_kib": 1024, "rss_file_kib": 2048, "pss_kib": 3072}
MEASURED = {
    "runtime": "fake 1",
    "threads": 1,
    "backends": [],
    "load_s": 0.001,
    "init_s": 0.1,
    "first_token_s": 0.02,
    "prompt_tokens": 10,
    "prefill_s": [0.01],
    "decode_s": [[0.004, 0.005, 0.006]],
    "at_start": RESIDENT,
    "after_load": {**RESIDENT, "rss_anon_kib": 2048},
    "after_init": {**RESIDENT, "rss_anon_kib": 11264},
    "at_end": {**RESIDENT, "rss_anon_kib": 21504, "rss_file_kib": 7168},
    "peak_rss_kib": 40960,
    "logits": None,
}
