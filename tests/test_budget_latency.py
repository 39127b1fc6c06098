"""The latency model: a few blocks worked by hand, what sharing saves, what calibrations say, and laws."""

import dataclasses
import json
from pathlib import Path

import pytest
from budget_models import MOBILELLM_350M, SMOLLM2_135M, model
from hypothesis import given
from hypothesis import strategies as st

from mobile_export.budget.calibration import calibration_of_phone, exact_calibration
from mobile_export.budget.energy import predict_energy
from mobile_export.budget.interval import exactly
from mobile_export.budget.latency import INT8_ATTENTION, INT8_VALUES, predict_rates
from mobile_export.budget.phones import read_phones
from mobile_export.budget.profiled import USUAL, ProfiledRates, calibration_of_profile, read_rates
from mobile_export.errors import InputError, UsageError

PER_BLOCK = 576 * 960 + 576 * 576 + 3 * 576 * 1536
BLOCK_BYTES = PER_BLOCK // 2 + PER_BLOCK // 32 * 2
HEAD, HEAD_BYTES = 49_152 * 576, 49_152 * 576 + 49_152 * 4
RATES = {
    "stream_gb_s": 20.0,
    "decode_gops": 1e6,
    "prefill_gops": 300.0,
    "attention_gops": 1e6,
    "activations_g_s": 1e9,
    "overhead_us": 40.0,
    "cache_mib": 0.001,
}


def calibration(**changes):
    return exact_calibration(**{**RATES, **changes}, source="test")


def decode_ms(facts, position=128, **changes):
    rates = predict_rates(facts, calibration(**changes), position=position, prompt_tokens=128)
    return 1e3 / rates.decode_tokens_per_s.likely


def test_a_token_that_streams_is_its_bytes_over_the_bandwidth_and_its_calls():
    kv = 6 * 2 * 3 * 64 * 4 * 128
    expected = (6 * BLOCK_BYTES + HEAD_BYTES + kv) / 20e9 + 6 * 40e-6
    assert decode_ms(model(SMOLLM2_135M, 6)) == pytest.approx(1e3 * expected)


def test_a_token_that_computes_is_its_operations_over_the_rate():
    attention = 6 * 4 * 576 * 128
    expected = (6 * 2 * PER_BLOCK + 2 * HEAD) / 30e9 + attention / 7e9 + 6 * 40e-6
    rates = {"stream_gb_s": 1e6, "decode_gops": 30.0, "attention_gops": 7.0}
    assert decode_ms(model(SMOLLM2_135M, 6), **rates) == pytest.approx(1e3 * expected)


def test_values_between_products_and_the_codes_of_an_int8_cache_take_their_time():
    plain, coded = (model(SMOLLM2_135M, 6, kv_dtype=dtype) for dtype in ("float32", "int8"))
    values = 12 * 576 + 4 * 1536
    slow, fast = ({"stream_gb_s": 1e9, "activations_g_s": rate} for rate in (2.0, 1e9))
    assert decode_ms(plain, **slow) - decode_ms(plain, **fast) == pytest.approx(6 * values / 2e6)
    assert decode_ms(coded, **slow) - decode_ms(coded, **fast) == pytest.approx(6 * (values + INT8_VALUES * 960) / 2e6)
    prompts = [
        predict_rates(plain, calibration(**rates), position=1, prompt_tokens=100).first_token_s.likely for rates in (slow, fast)
    ]
    assert prompts[0] - prompts[1] == pytest.approx(100 * 6 * values / 2e9)
    attention = {"stream_gb_s": 1e9, "attention_gops": 5.0}
    one, other = (decode_ms(facts, **attention) - decode_ms(facts, stream_gb_s=1e9) for facts in (plain, coded))
    assert other / one == pytest.approx(INT8_ATTENTION)


def test_widths_stream_and_compute_at_their_own_rates():
    facts = model(SMOLLM2_135M, 6)
    known = dataclasses.replace(calibration(), stream_4_bit_gb_s=exactly(10.0))
    rates = predict_rates(facts, known, position=128, prompt_tokens=128)
    slower_ms = 1e3 / rates.decode_tokens_per_s.likely - decode_ms(facts)
    assert slower_ms == pytest.approx(6 * BLOCK_BYTES / 10e6 - 6 * BLOCK_BYTES / 20e6)
    faster = dataclasses.replace(calibration(), prefill_gops_4_bit=exactly(600.0))
    both = [predict_rates(facts, one, position=1, prompt_tokens=128).first_token_s.likely for one in (calibration(), faster)]
    assert both[0] - both[1] == pytest.approx(2 * 128 * 6 * PER_BLOCK * (1 / 300e9 - 1 / 600e9))


def test_a_windowed_block_attends_to_its_window():
    facts = model(SMOLLM2_135M, 6, context=512)
    blocks = (dataclasses.replace(facts.spec.blocks[0], window=100), facts.spec.blocks[0]) * 3
    windowed = dataclasses.replace(facts, spec=dataclasses.replace(facts.spec, blocks=blocks))
    assert windowed.kv_bytes(512) == 2 * 3 * 64 * 4 * (3 * 512 + 3 * (100 + 128 - 1))
    rates = {"stream_gb_s": 1e6, "attention_gops": 7.0}
    assert decode_ms(windowed, 80, **rates) == decode_ms(facts, 80, **rates)
    saved_ms = decode_ms(facts, 400, **rates) - decode_ms(windowed, 400, **rates)
    assert saved_ms == pytest.approx(3 * 4 * 576 * (400 - 100) / 7e6)


def test_a_prompt_is_its_operations_over_the_rate_in_calls_of_a_chunk():
    facts = model(SMOLLM2_135M, 6, context=512)
    rates = predict_rates(facts, calibration(decode_gops=300.0), position=1, prompt_tokens=200)
    attention = 6 * 4 * 576 * (128 * 64 + 72 * 164)
    expected = 2 * 200 * 6 * PER_BLOCK / 300e9 + attention / 1e15 + 2 * 6 * 40e-6 + HEAD_BYTES / 20e9
    assert rates.first_token_s.likely == pytest.approx(expected)


def test_a_block_that_runs_twice_in_a_row_is_streamed_once_if_the_cache_holds_it():
    kv_of_a_slot = 2 * 3 * 64 * 4 * 128
    room = (BLOCK_BYTES + kv_of_a_slot) / 2**20
    base, shared = model(SMOLLM2_135M, 6), model(SMOLLM2_135M, 6, repeats=2)
    extra_kv_ms = 6 * kv_of_a_slot / 20e6
    small, large = (decode_ms(shared, cache_mib=size) for size in (room - 1e-6, room))
    computed_ms = 6 * 2 * PER_BLOCK / 1e12  # at 1e6 G operations a second: what is left of an execution that streams nothing
    assert small - large == pytest.approx(6 * BLOCK_BYTES / 20e6 - computed_ms)
    assert large - decode_ms(base) == pytest.approx(6 * 0.04 + extra_kv_ms + computed_ms)
    assert decode_ms(base, cache_mib=room) == decode_ms(base)


def test_a_block_that_comes_round_again_is_streamed_again():
    immediate = model(SMOLLM2_135M, 3, repeats=2)
    all_over = dataclasses.replace(immediate, schedule=(0, 1, 2, 0, 1, 2))
    near, far = (
        predict_rates(facts, calibration(cache_mib=8.0), position=1, prompt_tokens=1) for facts in (immediate, all_over)
    )
    assert (near.reused_executions, far.reused_executions) == (3, 0)
    assert far.streamed_bytes - near.streamed_bytes == 3 * BLOCK_BYTES


def test_keys_and_values_take_the_cache_from_the_block():
    facts = model(SMOLLM2_135M, 1, repeats=2, context=4096)
    cache_mib = (BLOCK_BYTES + 100_000) / 2**20
    early, late = (
        predict_rates(facts, calibration(cache_mib=cache_mib), position=position, prompt_tokens=1) for position in (1, 4000)
    )
    assert (early.reused_executions, late.reused_executions) == (1, 0)


def test_the_phone_table_holds_what_was_published():
    """Decode of SmolLM2-135M on a Galaxy S22: 202 tokens/s (optimum-executorch's README): within, and not at the edge."""
    phone = read_phones()["Galaxy S22 (Snapdragon)"]
    facts = model(SMOLLM2_135M, 30)
    rates = predict_rates(facts, calibration_of_phone(phone), position=64, prompt_tokens=64)
    assert rates.decode_tokens_per_s.likely == pytest.approx(202, rel=0.25)
    assert rates.decode_tokens_per_s.low < 150
    assert rates.decode_tokens_per_s.high > 250


@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 400), st.floats(0.1, 100), st.floats(1.01, 4))
def test_faster_is_never_slower(blocks, repeats, position, cache_mib, factor):
    facts = model(MOBILELLM_350M, blocks, repeats=repeats)
    slow = decode_ms(facts, position, decode_gops=50.0, cache_mib=cache_mib)
    for better in ({"stream_gb_s": 20.0 * factor}, {"decode_gops": 50.0 * factor}, {"cache_mib": cache_mib * factor}):
        assert decode_ms(facts, position, **{"decode_gops": 50.0, "cache_mib": cache_mib, **better}) <= slow
    assert decode_ms(facts, position + 100, decode_gops=50.0, cache_mib=cache_mib) >= slow


def test_energy_is_the_papers_figure_by_parameters_and_by_bytes():
    facts = model(SMOLLM2_135M, 6, repeats=2)
    executed = 12 * PER_BLOCK + HEAD
    energy = predict_energy(facts, streamed_bytes=50_000_000)
    assert energy.joules_a_token.high == pytest.approx(0.1 * executed / 1e9)
    assert energy.joules_a_token.low == pytest.approx(0.1 * 0.05)
    assert energy.tokens_a_percent.high == pytest.approx(500 / 0.005)


# --- profiles ------------------------------------------------------------------------------------------------------

GIVEN = {
    "stream_gb_s": 30,
    "stream_4_bit_gb_s": 25,
    "decode_gops_8_bit": 100,
    "decode_gops_4_bit": [90, 110],
    "prefill_gops_8_bit": 600,
    "prefill_gops_4_bit": 500.0,
    "attention_gops": 10,
    "prefill_attention_gops": 50,
    "activations_g_s": 4,
    "overhead_us": 20,
    "cache_mib": 8,
}


def profile(decode, prefill, sha256s=("ab",), prompt_tokens=128, new_tokens=64):
    """What of `profile --out` is read, and something that is not."""
    rates = {"prefill_tokens_per_s": {"median": prefill, "least": 1}, "decode_tokens_per_s": {"median": decode, "least": 1}}
    by_threads = [{"threads": 1, **rates, "load_s": {}}, {"threads": 2, **rates}]
    files = [{"name": "model.pte", "bytes": 1, "sha256": sha256} for sha256 in sha256s]
    lengths = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens}
    return {"schema_version": 1, "files": files, **lengths, "by_threads": by_threads, "best_threads": 1, "curve": None}


def calibrated(values, facts=None, start=USUAL, tmp_path=Path("profile.json")):
    return calibration_of_profile(tmp_path, ProfiledRates.model_validate(values), facts, start)


def test_a_profile_may_state_a_calibration_in_numbers_or_intervals():
    read = calibrated({"calibration": GIVEN, "whatever": [1]})
    assert (read.stream_gb_s.low, read.stream_gb_s.likely, read.stream_gb_s.high) == pytest.approx((24, 30, 36))
    assert (read.decode_gops_4_bit.low, read.decode_gops_4_bit.likely, read.decode_gops_4_bit.high) == (90, 100, 110)
    assert read.source == "profile profile.json"


@given(st.floats(5, 2000), st.floats(50, 5000), st.integers(1, 2), st.sampled_from(["w4-fast", "w8-fast"]))
def test_the_model_that_was_profiled_is_predicted_as_it_was_measured(decode, prefill, repeats, recipe):
    facts = model(SMOLLM2_135M, 6, repeats=repeats, recipe=recipe)
    known = calibrated(profile(decode, prefill), facts)
    rates = predict_rates(facts, known, position=160, prompt_tokens=128)
    assert rates.decode_tokens_per_s.likely == pytest.approx(decode, rel=1e-6)
    assert rates.first_token_s.likely >= 128 / prefill * 0.999  # streaming alone may take longer than the prompt did


def test_other_models_of_the_host_are_predicted_within_20_percent():
    """docs/benchmarks.md, "Sharing", 1 thread: calibrated on base, which stores 30 blocks and runs each once."""
    known = calibrated(profile(238.8, 1580), model(SMOLLM2_135M, 30), dataclasses.replace(USUAL, cache_mib=exactly(32)))
    twin = model(SMOLLM2_135M, 60)
    for facts, decode, prefill in ((model(SMOLLM2_135M, 30, repeats=2), 134.5, 784), (twin, 123.6, 770)):
        rates = predict_rates(facts, known, position=160, prompt_tokens=128)
        assert rates.decode_tokens_per_s.likely == pytest.approx(decode, rel=0.2)
        assert rates.decode_tokens_per_s.low < decode < rates.decode_tokens_per_s.high
        assert rates.first_token_s.likely == pytest.approx(128 / prefill, rel=0.2)


def test_rates_of_a_model_nobody_named_say_nothing():
    with pytest.raises(UsageError, match=r"profile\.json: is of another artifact .*; name that artifact with --profiled"):
        calibrated(profile(100, 1000))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON: "),
        ("[]", "Input should be a valid dictionary"),
        ("{}", "neither a calibration nor the rates of best_threads in it"),
        (json.dumps({**profile(100, 1000), "best_threads": 3}), "neither a calibration nor the rates of best_threads in it"),
        (json.dumps(profile(0, 1000)), "by_threads.0.decode_tokens_per_s.median: "),
        (json.dumps(profile(100, 1000, prompt_tokens=0)), "prompt_tokens: "),
        (json.dumps({"calibration": {**GIVEN, "stream_gb_s": 0}}), "calibration.stream_gb_s: "),
        (json.dumps({"calibration": {**GIVEN, "stream_gb_s": "fast"}}), "calibration.stream_gb_s: "),
        (json.dumps({"calibration": {**GIVEN, "threads": 2}}), "calibration.threads: "),
        (json.dumps({"calibration": {k: v for k, v in GIVEN.items() if k != "cache_mib"}}), "calibration.cache_mib: "),
    ],
)
def test_a_profile_that_says_nothing_of_speed(tmp_path, content, said):
    file = tmp_path / "profile.json"
    file.write_text(content)
    with pytest.raises(InputError) as error:
        read_rates(file)
    assert str(error.value).startswith(f"{file}: {said}")
    assert str(error.value).endswith("make it with: mobile-export profile ARTIFACT --out profile.json")


def test_a_calibration_whose_ends_are_the_wrong_way_round():
    with pytest.raises(InputError, match=r"calibration\.cache_mib: 9 is above 8"):
        calibrated({"calibration": {**GIVEN, "cache_mib": [9, 8]}})


def test_a_profile_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_rates(tmp_path / "none.json")
