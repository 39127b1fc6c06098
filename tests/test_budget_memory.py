"""The memory model: against what processes were measured to hold, against the terms worked by hand, and its laws.

MEASURED comes from benchmarks/measure_memory.py (executorch 1.5.1, onnxruntime 1.31.1, x86-64): MiB above the imports,
the whole context filled, prompts of 128 tokens. Models of real shape with few blocks, so that no term hides.
"""

import dataclasses

import pytest
from budget_models import MOBILELLM_350M, SMOLLM2_135M, model
from hypothesis import given
from hypothesis import strategies as st

from mobile_export.budget.interval import Interval, exactly, largest, total
from mobile_export.budget.memory import estimate_memory
from mobile_export.budget.pte_memory import tied_source_bytes
from mobile_export.budget.terms import MIB

MEASURED = {  # model -> peak dirty, peak resident
    "w4-fast": (model(SMOLLM2_135M, 6), 50.51, 102.16),
    "w4-fast, context 2048": (model(SMOLLM2_135M, 6, context=2048), 64.22, 116.55),
    "w4-fast, each block twice": (model(SMOLLM2_135M, 6, repeats=2), 55.05, 106.75),
    "w4-fast, int8 KV": (model(SMOLLM2_135M, 6, kv_dtype="int8"), 47.27, 98.96),
    "w4-fast, core attention": (model(SMOLLM2_135M, 6, attention="core"), 54.85, 106.21),
    "w4-fast, prompts of 32": (model(SMOLLM2_135M, 6, prompt_chunk=32), 47.43, 100.66),
    "w8-fast": (model(SMOLLM2_135M, 6, recipe="w8-fast"), 59.50, 111.09),
    "w4-all-fast": (model(SMOLLM2_135M, 6, recipe="w4-all-fast"), 38.52, 66.16),
    "fp32": (model(SMOLLM2_135M, 6, recipe="fp32"), 200.66, 413.85),
    "350M, w4-fast": (model(MOBILELLM_350M, 4), 65.07, 120.32),
    "350M, w8": (model(MOBILELLM_350M, 4, recipe="w8-fast"), 81.86, 136.88),
    "350M, core, context 2048": (model(MOBILELLM_350M, 4, context=2048, attention="core"), 110.25, 165.80),
    "onnx, w4-fast": (model(SMOLLM2_135M, 6, form="onnx"), 62.2, 103.4),
    "onnx, w4-fast, context 2048": (model(SMOLLM2_135M, 6, form="onnx", context=2048), 75.8, 117.2),
    "onnx, w8": (model(SMOLLM2_135M, 6, form="onnx", recipe="w8-fast"), 68.8, 107.1),
    "onnx, portable": (model(SMOLLM2_135M, 6, form="onnx", portable=True), 89.6, 115.3),
    "onnx, 350M, w8": (model(MOBILELLM_350M, 4, form="onnx", recipe="w8-fast"), 93.7, 129.1),
    "onnx, each block twice": (model(SMOLLM2_135M, 6, form="onnx", context=2048, repeats=2), 94.9, 136.4),
    "onnx, fp32": (model(SMOLLM2_135M, 6, form="onnx", recipe="fp32"), 203.96, 321.29),
}


@pytest.mark.parametrize("case", MEASURED)
def test_the_peak_is_what_a_process_was_measured_to_hold(case):
    facts, dirty_mib, resident_mib = MEASURED[case]
    memory = estimate_memory(facts).without(["process"])  # measured above the imports
    counted_twice = tied_source_bytes(facts) if facts.format == "pte" else 0
    load, run = (total(term.bytes for term in memory.during(when)).likely for when in ("load", "run"))
    assert memory.peak_dirty.likely / MIB == pytest.approx(dirty_mib, rel=0.05)
    assert max(load + counted_twice, run) / MIB == pytest.approx(resident_mib, rel=0.05)
    assert memory.peak_dirty.low / MIB <= dirty_mib <= memory.peak_dirty.high / MIB


TERMS = {
    "pte": "process, runtime, code, packed weights, table, graph, KV cache, arena, workspace, logits, source",
    "onnx": "process, runtime, code, packed weights, scales, table, graph, KV cache, activations, logits, source",
    "coreml": "process, weights, unpacked weights, KV cache, activations, logits",
}


@pytest.mark.parametrize("form", TERMS)
def test_every_term_is_there_and_is_something(form):
    """Also those that are too small to be missed beside the others. Core ML's unpacked weights are an upper end only."""
    terms = {term.name: term for term in estimate_memory(model(SMOLLM2_135M, 6, form=form, tied=False)).terms}
    assert ", ".join(terms) == TERMS[form]
    assert all(term.bytes.high > 0 for term in terms.values())
    if form != "coreml":
        assert terms["graph"].bytes == exactly(20_000 + 10_000 * 6)
        runtime = {"pte": 0.12 + 13 * 0.031 + 6 * 0.006, "onnx": 3.2 + 6 * 0.13}[form]
        assert terms["runtime"].dirty.likely == pytest.approx(runtime * MIB)


def test_the_terms_of_a_pte_worked_by_hand():
    terms = {term.name: term for term in estimate_memory(model(SMOLLM2_135M, 6, repeats=2)).terms}
    per_block = 576 * 960 + 576 * 576 + 3 * 576 * 1536
    rows = 49_152 + 6 * (960 + 576 + 1536 + 1536 + 576)
    weights = 6 * (per_block // 2 + per_block // 32 * 2) + 49_152 * 576 + 49_152 * 4
    norms = 13 * 576 * 4 * 16
    assert terms["packed weights"].dirty.likely == weights + rows * 8 + norms
    assert terms["KV cache"].dirty == exactly(12 * 512 * 2 * 3 * 64 * 4)
    assert terms["logits"].dirty == exactly(4 * 49_152)
    assert terms["table"].clean == exactly(49_152 * 576 + 49_152 * 4 + 512 * 64 * 2 * 4)
    assert terms["arena"].dirty.likely == 8 * 4 * 128 * 576
    assert terms["workspace"].dirty.likely == 4 * 128 * (2 * 1536 + 576)


def test_the_terms_of_an_onnx_model_worked_by_hand():
    terms = {term.name: term for term in estimate_memory(model(SMOLLM2_135M, 6, form="onnx", all_logits=True)).terms}
    per_block = 576 * 960 + 576 * 576 + 3 * 576 * 1536
    table = 49_152 * 576
    assert terms["packed weights"].dirty.likely == 6 * (per_block // 2 + per_block // 32 * 8) + table + table // 64 * 8
    assert terms["scales"].clean == exactly(6 * per_block // 32 * 4 + table // 64 * 4)
    assert terms["KV cache"].dirty == exactly(6 * 512 * 2 * 3 * 64 * 4)
    assert terms["logits"].dirty == exactly(128 * 4 * 49_152)
    assert terms["source"].clean == exactly(table)


def test_an_onnxruntime_before_1_28_packs_a_shared_block_once_for_each_execution():
    once, twice = (model(SMOLLM2_135M, 6, form="onnx", repeats=repeats) for repeats in (1, 2))
    blocks = 6 * (576 * 960 + 576 * 576 + 3 * 576 * 1536) * 0.75

    def packed(facts, version):
        terms = estimate_memory(facts, onnxruntime=version).terms
        return next(term.dirty.likely for term in terms if term.name == "packed weights")

    assert packed(twice, (1, 28)) == packed(once, (1, 28)) == packed(once, (1, 27))
    assert packed(twice, (1, 27)) - packed(twice, (1, 28)) == pytest.approx(blocks, rel=0.001)
    portable = [dataclasses.replace(facts, portable=True) for facts in (once, twice)]  # packs shared blocks apart, always
    assert packed(portable[1], (1, 28)) - packed(portable[0], (1, 28)) > blocks


def test_a_packed_file_makes_the_weights_clean_and_nothing_else():
    facts = model(SMOLLM2_135M, 6, tied=False)
    plain, filed = (estimate_memory(facts, packed_file=filed) for filed in (False, True))
    packed = next(term for term in plain.terms if term.name == "packed weights")
    assert plain.peak_dirty.likely - filed.peak_dirty.likely == packed.dirty.likely
    run = [total(term.bytes for term in memory.during("run")).likely for memory in (plain, filed)]
    assert run[0] == run[1]
    assert [any(term.when == "load" for term in memory.terms) for memory in (plain, filed)] == [True, False]


def test_biases_beyond_the_norms_widen_the_weights_and_break_nothing():
    plain, biased = (estimate_memory(model(SMOLLM2_135M, 1, float_bytes=count)) for count in (0, 10 * MIB))
    assert biased.peak.likely == plain.peak.likely
    assert biased.peak.high - plain.peak.high == 10 * MIB


def test_core_ml_says_that_it_was_not_measured():
    memory = estimate_memory(model(SMOLLM2_135M, 6, form="coreml", kv_dtype="float16"))
    assert any("not measured" in term.why for term in memory.terms)
    assert memory.peak.high > 2 * memory.peak.low
    kv = next(term for term in memory.terms if term.name == "KV cache")
    assert kv.dirty == exactly(6 * 512 * 2 * 3 * 64 * 2)


def test_an_int8_cache_of_a_pte_has_a_scale_and_a_zero_point_beside_every_row_of_a_head():
    (kv,) = [term for term in estimate_memory(model(SMOLLM2_135M, 6, kv_dtype="int8")).terms if term.name == "KV cache"]
    assert kv.dirty == exactly(2 * 6 * 512 * 3 * (64 + 4 + 1))


def test_the_terms_of_a_core_ml_package_worked_by_hand():
    facts = model(SMOLLM2_135M, 6, form="coreml", kv_dtype="float16")
    terms = {term.name: term for term in estimate_memory(facts).terms}
    per_block = 576 * 960 + 576 * 576 + 3 * 576 * 1536
    stored = 49_152 * 576 + 49_152 * 2 + 6 * (per_block // 2 + per_block // 32 * 2)
    assert terms["weights"].clean == exactly(stored + 4 * 576 * 13 // 2)
    assert terms["unpacked weights"].dirty == Interval(0, 0, 2 * (49_152 * 576 + 6 * per_block))
    assert terms["activations"].dirty.likely == 2 * 128 * (3 * 1536 + 4 * 576)
    assert terms["logits"].dirty == Interval(2 * 49_152, 2 * 49_152, 128 * 2 * 49_152)


# --- laws ----------------------------------------------------------------------------------------------------------


@st.composite
def models(draw, **fixed):
    """Models of any shape, format and cache."""
    heads = draw(st.integers(1, 4))
    shape = {
        "hidden": 32 * heads * draw(st.integers(1, 3)),
        "heads": heads,
        "kv_heads": heads,
        "ffn": 32 * draw(st.integers(1, 12)),
        "vocab": draw(st.integers(64, 5000)),
    }
    form = draw(st.sampled_from(["pte", "onnx"]))
    values = {
        "form": form,
        "recipe": draw(st.sampled_from(["w4-fast", "w8-fast", "w4-all-fast"])),
        "context": draw(st.integers(2, 4096)),
        "repeats": draw(st.integers(1, 3)),
        "tied": draw(st.booleans()),
        "kv_dtype": draw(st.sampled_from(["float32", "int8"])),
        "attention": draw(st.sampled_from(["custom", "core"])),
        "portable": form == "onnx" and draw(st.booleans()),
        "all_logits": form == "onnx" and draw(st.booleans()),
    }
    return model(shape, draw(st.integers(1, 4)), **{**values, **fixed})


def not_less(interval: Interval, than: Interval) -> bool:
    return interval.low >= than.low and interval.likely >= than.likely and interval.high >= than.high


@given(models(), st.integers(2, 4096), st.integers(0, 4096))
def test_more_context_never_needs_less(facts, context, more):
    short, long = (estimate_memory(facts, context=rows) for rows in (context, context + more))
    assert not_less(long.peak, short.peak)
    assert not_less(long.peak_dirty, short.peak_dirty)


@given(models(), st.integers(1, 512), st.integers(0, 512))
def test_longer_prompts_in_one_call_never_need_less(facts, tokens, more):
    assert not_less(estimate_memory(facts, prompt_chunk=tokens + more).peak, estimate_memory(facts, prompt_chunk=tokens).peak)


@given(models(repeats=1, portable=False))
def test_running_blocks_twice_needs_no_more_bytes_for_weights(facts):
    twice = dataclasses.replace(
        facts,
        schedule=tuple(block for block in facts.schedule for _ in range(2)),
        slots=2 * facts.slots,
        matrices=tuple(
            dataclasses.replace(matrix, uses=2 * matrix.uses) if matrix.name.startswith("blocks.") else matrix
            for matrix in facts.matrices
        ),
    )
    base, shared = ({term.name: term for term in estimate_memory(model).terms} for model in (facts, twice))
    assert base.keys() == shared.keys()
    assert {name for name in base if base[name].bytes != shared[name].bytes} <= {"KV cache", "runtime"}
    assert shared["KV cache"].dirty.likely == 2 * base["KV cache"].dirty.likely


@given(models())
def test_the_terms_add_up_to_the_peak(facts):
    memory = estimate_memory(facts)
    assert sum(term.dirty.likely + term.clean.likely for term in memory.peak_terms) == pytest.approx(memory.peak.likely)
    for when in ("load", "run"):
        present = memory.during(when)
        assert {term.when for term in present} <= {"always", when}
        assert memory.peak.likely >= total(term.bytes for term in present).likely - 1
        assert memory.peak_dirty.likely >= total(term.dirty for term in present).likely - 1
    assert len({term.name for term in memory.terms}) == len(memory.terms)


@given(models())
def test_eight_bits_of_cache_never_need_more_than_thirty_two(facts):
    eight, thirty_two = (dataclasses.replace(facts, kv_dtype=dtype) for dtype in ("int8", "float32"))
    assert not_less(estimate_memory(thirty_two).peak, estimate_memory(eight).peak)


intervals = st.tuples(*[st.floats(0, 1e9)] * 3).map(lambda ends: Interval(*sorted(ends)))


@given(st.lists(intervals, min_size=1, max_size=5), st.floats(0.001, 1000))
def test_intervals_keep_what_is_not_known(several, factor):
    added = total(several)
    assert (added.low, added.high) == pytest.approx((sum(i.low for i in several), sum(i.high for i in several)))
    most = largest(several)
    assert all(not_less(most, one) for one in several)
    assert added.times(factor).high == pytest.approx(added.high * factor)


@given(intervals.filter(lambda i: i.low > 0.001), st.floats(0.001, 1e6))
def test_a_rate_turns_into_a_time_end_for_end(rate, amount):
    seconds = rate.per(amount)
    assert seconds.low == pytest.approx(amount / rate.high)
    assert seconds.high == pytest.approx(amount / rate.low)
    assert seconds.per(amount).likely == pytest.approx(rate.likely)
