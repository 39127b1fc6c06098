"""Verdicts: each limit by itself, the phone by the worst; the change that is proposed does fit, and is the cheapest."""

import dataclasses
import math

import pytest
from budget_models import SMOLLM2_135M, model
from hypothesis import given
from hypothesis import strategies as st

from mobile_export.budget.calibration import exact_calibration
from mobile_export.budget.changes import (
    can_keep_int8,
    candidates,
    cheapest_change,
    longest_context,
    smaller_recipes,
    with_four_bit_table,
)
from mobile_export.budget.interval import Interval, exactly
from mobile_export.budget.memory import estimate_memory
from mobile_export.budget.phones import read_phones
from mobile_export.budget.quantities import read_bytes, read_dram, read_seconds, read_share
from mobile_export.budget.verdict import WORST, Limits, Target, Use, judge, target_of_phone
from mobile_export.errors import UsageError
from mobile_export.quantize.recipe import packaged_recipes, read_recipe

MIB = 2**20
RATES = {"stream_gb_s": 20, "decode_gops": 100, "prefill_gops": 300, "attention_gops": 100, "activations_g_s": 10}
RATES |= {"overhead_us": 40, "cache_mib": 8}
SPEED = exact_calibration(**RATES, source="made up")
RECIPES = [read_recipe(name) for name in packaged_recipes()]
FACTS = model(SMOLLM2_135M, 6, context=2048)


def target(dram_gib=6.0, app_limit_mib=None, speed=SPEED):
    limit = exactly(app_limit_mib * MIB) if app_limit_mib else None
    return Target("a phone", exactly(dram_gib * 2**30), limit, speed)


def test_a_budget_is_a_share_of_dram_in_powers_of_two():
    answer = judge(FACTS, target(dram_gib=6), Limits(share=0.1), Use()).answers[0]
    assert answer.allowed == exactly(0.1 * 6 * 2**30)
    assert (answer.limit, answer.unit, answer.outcome) == ("memory", "bytes", "fits")
    assert answer.needed == estimate_memory(FACTS).peak


def test_the_interval_decides():
    peak = estimate_memory(FACTS).peak
    for allowed, outcome in (
        (peak.high, "fits"),
        (peak.high - 1, "uncertain"),
        (peak.low, "uncertain"),
        (peak.low - 1, "does not fit"),
    ):
        verdict = judge(FACTS, target(), Limits(max_memory_bytes=allowed), Use())
        assert verdict.outcome == outcome


def test_an_app_limit_is_for_dirty_memory_alone():
    memory = estimate_memory(FACTS)
    limit = (memory.peak_dirty.high + memory.peak.high) / 2 / MIB
    verdict = judge(FACTS, target(app_limit_mib=limit), Limits(), Use())
    assert [(a.limit, a.outcome) for a in verdict.answers] == [("memory", "fits"), ("app limit", "fits")]
    tight = memory.peak_dirty.low / MIB - 1
    assert judge(FACTS, target(app_limit_mib=tight), Limits(), Use()).outcome == "does not fit"


def test_the_tables_mebibytes_are_two_to_the_twentieth():
    phones = read_phones()
    limits = {name: phone.row.app_limit_mib for name, phone in phones.items() if phone.row.app_limit_mib}
    reserves = {name: phone.row.os_reserve_mib for name, phone in phones.items() if phone.row.os_reserve_mib}
    assert limits
    assert reserves
    for name, limit in limits.items():
        assert target_of_phone(phones[name]).app_limit_bytes == limit.interval.times(2**20)
    for name, reserve in reserves.items():
        assert target_of_phone(phones[name]).reserve_bytes == reserve.interval.times(2**20)


def test_what_the_system_keeps_is_not_there():
    kept = Interval(2 * 2**30, 3 * 2**30, 4 * 2**30)
    answer = judge(FACTS, dataclasses.replace(target(), reserve_bytes=kept), Limits(), Use()).answers[1]
    assert (answer.limit, answer.outcome) == ("left by the system", "fits")
    assert answer.allowed == Interval(2 * 2**30, 3 * 2**30, 4 * 2**30)
    all_of_it = exactly(6 * 2**30)
    assert judge(FACTS, dataclasses.replace(target(), reserve_bytes=all_of_it), Limits(), Use()).outcome == "does not fit"


def test_the_worst_answer_is_the_verdict():
    limits = Limits(max_first_token_s=1e-6, min_decode_tokens_per_s=1)
    verdict = judge(FACTS, target(), limits, Use())
    assert [(a.limit, a.outcome) for a in verdict.answers] == [
        ("memory", "fits"),
        ("first token", "does not fit"),
        ("decode rate", "fits"),
    ]
    assert verdict.outcome == "does not fit"
    slower = dataclasses.replace(SPEED, stream_gb_s=Interval(1, 20, 100), overhead_us=exactly(1))
    rate = judge(FACTS, target(), limits, Use()).rates.decode_tokens_per_s.likely
    limits = Limits(min_decode_tokens_per_s=rate)
    assert judge(FACTS, target(speed=slower), limits, Use()).outcome == "uncertain"


def test_nothing_is_said_of_speed_where_nothing_is_known():
    verdict = judge(FACTS, target(speed=None), Limits(), Use())
    assert (verdict.rates, verdict.energy) == (None, None)


@given(st.floats(0.001, 1), st.floats(1, 16), st.floats(1, 4), st.sampled_from([0.0, 0.5, 1.0]))
def test_a_larger_budget_never_turns_fits_into_does_not(share, dram_gib, factor, app):
    limit = 20 + 100 * app
    small = judge(FACTS, target(dram_gib, limit), Limits(share), Use())
    large = judge(FACTS, target(dram_gib * factor, limit * factor), Limits(min(1, share * factor)), Use())
    assert WORST.index(large.outcome) >= WORST.index(small.outcome)


# --- changes -------------------------------------------------------------------------------------------------------


def needed_mib(facts, **use):
    return estimate_memory(facts, **use).peak.high / MIB


INT8 = dataclasses.replace(FACTS, kv_dtype="int8")
FOUR_BIT_TABLE = FACTS.with_recipe(with_four_bit_table(FACTS))
BOTH = dataclasses.replace(FOUR_BIT_TABLE, kv_dtype="int8")


@pytest.mark.parametrize(
    ("allowed_mib", "what"),
    [
        (needed_mib(FACTS, context=1984), "context 1,984"),
        (needed_mib(FACTS, context=1024), "context 1,024"),
        (needed_mib(INT8, context=2048), "int8 KV"),
        (needed_mib(INT8, context=1024), "int8 KV and context 1,024"),
        (needed_mib(FOUR_BIT_TABLE, context=1024), "4-bit table and context 1,024"),
        (
            needed_mib(dataclasses.replace(FOUR_BIT_TABLE, kv_dtype="int8"), context=1024),
            "4-bit table, int8 KV and context 1,024",
        ),
        (needed_mib(FOUR_BIT_TABLE, context=128), "4-bit table, int8 KV and context 384"),
        (10, None),
    ],
)
def test_the_cheapest_change_is_found_and_fits(allowed_mib, what):
    limits = Limits(max_memory_bytes=math.ceil(allowed_mib * MIB))
    assert judge(FACTS, target(), limits, Use()).outcome != "fits"
    change = cheapest_change(candidates(FACTS, RECIPES), target(), limits, Use())
    assert (change.what if change else None) == what
    if change:
        assert change.verdict.outcome == "fits"


def test_a_context_that_is_proposed_is_the_longest_that_fits():
    limits = Limits(max_memory_bytes=int(needed_mib(FACTS, context=700) * MIB))
    context, verdict = longest_context(FACTS, target(), limits, Use())
    assert verdict.outcome == "fits"
    assert context == 640  # in steps of 64
    assert judge(FACTS, target(), limits, Use(context=context + 64)).outcome != "fits"


def test_a_rate_that_is_missed_asks_for_fewer_bytes():
    facts = model(SMOLLM2_135M, 6, recipe="w8-fast")
    rate = judge(model(SMOLLM2_135M, 6), target(), Limits(), Use()).rates.decode_tokens_per_s.low
    limits = Limits(min_decode_tokens_per_s=rate)
    assert judge(facts, target(), limits, Use()).outcome == "does not fit"
    change = cheapest_change(candidates(facts, RECIPES), target(), limits, Use())
    assert change is not None
    assert "4" in change.what
    assert change.verdict.answers[-1].outcome == "fits"


def test_only_what_the_format_can_do_is_proposed():
    assert can_keep_int8(FACTS)
    assert not can_keep_int8(dataclasses.replace(FACTS, attention="core"))
    assert not can_keep_int8(dataclasses.replace(FACTS, format="onnx", portable=True))
    assert not can_keep_int8(dataclasses.replace(FACTS, format="coreml"))
    assert not can_keep_int8(dataclasses.replace(FACTS, state_bytes=4))


def test_smaller_recipes_are_those_that_make_less_of_it():
    assert [r.name for r in smaller_recipes(model(SMOLLM2_135M, 6, recipe="fp32"), RECIPES)] == ["w8", "w4", "w4-all"]
    assert smaller_recipes(model(SMOLLM2_135M, 6, recipe="w4-all-fast"), RECIPES) == []
    odd = {"hidden": 48, "heads": 3, "kv_heads": 3, "ffn": 80, "vocab": 64}
    assert [r.name for r in smaller_recipes(model(odd, 1, recipe="fp32"), RECIPES)] == ["w8"]  # 48 does not divide by 32


# --- quantities ----------------------------------------------------------------------------------------------------


def test_quantities_are_read_by_their_units():
    assert read_bytes("--max-memory", "1.5GiB") == 3 * 2**29
    assert read_bytes("--max-memory", "1.5 GB") == 1_500_000_000
    assert read_bytes("--max-memory", "300MiB") - read_bytes("--max-memory", "300MB") == 300 * (2**20 - 10**6)
    assert read_dram("12GB") == read_dram("12 GiB") == 12 * 2**30
    assert read_seconds("--max-ttft", "1min") == 60
    assert read_share("12.5 %") == 0.125


@pytest.mark.parametrize(
    ("read", "text"),
    [
        *(
            (lambda text: read_bytes("--max-memory", text), text)
            for text in ("0MB", "-1MiB", "3PB", "1e9", "12", "MB", "1 furlong")
        ),
        *((read_dram, text) for text in ("0GB", "-6GB", "3PB", "6", "GB", "0.1GB", "129GB", "nan GB")),
        *((read_share, text) for text in ("0", "0%", "-10%", "101%", "2", "ten", "10 MB")),
        *((lambda text: read_seconds("--max-ttft", text), text) for text in ("0s", "-1s", "1", "2h", "4000s", "s")),
    ],
)
def test_impossible_quantities_are_refused(read, text):
    with pytest.raises(UsageError) as error:
        read(text)
    assert text in str(error.value)
    assert error.value.exit_code == 2
