from __future__ import annotations

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank.errors import DataError, UnknownNameError
from rerank.evaluation.significance import (
    Comparison,
    Interval,
    bootstrap_interval,
    compare_all,
    effect_size,
    holm,
    order_by_change,
    randomisation_test,
    t_test,
)

values = st.floats(0.0, 1.0)
# Coarse values make ties between sums, which is where a careless comparison goes wrong.
coarse = st.integers(0, 10).map(lambda tenths: tenths / 10)
pairs = st.lists(st.tuples(values | coarse, values | coarse), min_size=1, max_size=40)
short_pairs = st.lists(st.tuples(coarse, coarse), min_size=1, max_size=9)


def columns(rows: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.array(rows, dtype=np.float64).T
    return a, b


def correlated(n_queries: int, shift: float, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    a = rng.random(n_queries)
    return a, np.clip(a + rng.normal(shift, 0.1, n_queries), 0.0, 1.0)


# --- randomisation test


@given(short_pairs)
def test_exact_p_value_counts_all_sign_patterns_in_whole_numbers(rows):
    a, b = columns(rows)
    tenths = [round(10 * (x - y)) for x, y in rows]
    sums = [
        sum(sign * d for sign, d in zip(signs, tenths, strict=True))
        for signs in itertools.product((1, -1), repeat=len(tenths))
    ]
    expected = sum(abs(s) >= abs(sum(tenths)) for s in sums) / len(sums)
    assert randomisation_test(a, b) == pytest.approx(expected, abs=1e-15)


def test_exact_p_value_equals_scipys_permutation_test():
    from scipy.stats import permutation_test

    a, b = correlated(12, 0.06)
    theirs = permutation_test(
        (a, b),
        lambda x, y, axis: (x - y).mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    )
    assert randomisation_test(a, b) == pytest.approx(theirs.pvalue, abs=1e-12)


def test_sampled_p_value_is_near_the_exact_one():
    a, b = correlated(17, 0.05)
    exact = randomisation_test(a, b, n_permutations=1 << 17)
    for seed in range(3):
        sampled = randomisation_test(a, b, n_permutations=100_000, seed=seed)
        assert sampled != exact
        assert sampled == pytest.approx(exact, abs=5 * math.sqrt(exact * (1 - exact) / 100_000))


def test_enumeration_in_several_chunks_equals_enumeration_in_one(monkeypatch):
    from rerank.evaluation import significance

    a, b = correlated(13, 0.05)
    whole = randomisation_test(a, b)
    monkeypatch.setattr(significance, "_CHUNK_BYTES", 1000)
    assert randomisation_test(a, b) == whole


@settings(max_examples=30, deadline=None)
@given(pairs, st.randoms(use_true_random=False))
def test_p_value_is_in_range_symmetric_and_independent_of_query_order(rows, random):
    a, b = columns(rows)
    p_value = randomisation_test(a, b, n_permutations=2_000)
    assert 0.0 < p_value <= 1.0
    assert p_value == randomisation_test(b, a, n_permutations=2_000)
    random.shuffle(rows)
    assert p_value == randomisation_test(*columns(rows), n_permutations=2_000)


@settings(max_examples=30, deadline=None)
@given(pairs, st.lists(values, max_size=20))
def test_queries_without_a_difference_do_not_change_the_randomisation_test(rows, equal):
    more = rows + [(value, value) for value in equal]
    assert randomisation_test(*columns(rows), n_permutations=500) == randomisation_test(
        *columns(more), n_permutations=500
    )


def test_identical_systems_have_p_value_one():
    a = np.linspace(0, 1, 50)
    assert randomisation_test(a, a) == 1.0
    assert randomisation_test(np.array([0.1 + 0.2] * 50), np.array([0.3] * 50)) == 1.0


def test_sums_that_are_equal_but_for_rounding_count_as_equal():
    # Of the eight patterns of (.1, .2, .3) two reach .6; .3 - .1 - .2 is 2.8e-17 in float64, not 0.
    assert randomisation_test(np.array([0.1, 0.2, 0.3]), np.zeros(3)) == 0.25
    assert randomisation_test(np.array([-0.1, -0.2, 0.3]), np.zeros(3)) == 1.0


def test_sampled_p_value_is_never_zero_and_the_seed_decides_it():
    a = np.linspace(0.5, 1.0, 200)
    assert randomisation_test(a, np.zeros(200), n_permutations=999) == 1 / 1000
    a, b = correlated(200, 0.01)
    assert randomisation_test(a, b, seed=1) == randomisation_test(a, b, seed=1)
    assert randomisation_test(a, b, seed=1) != randomisation_test(a, b, seed=2)


def test_p_values_are_uniform_when_the_systems_are_exchangeable():
    rng = np.random.default_rng(0)
    p_values = [
        randomisation_test(rng.random(30), rng.random(30), n_permutations=999, seed=seed) for seed in range(400)
    ]
    for alpha in (0.05, 0.2, 0.5):
        assert np.mean(np.array(p_values) <= alpha) == pytest.approx(alpha, abs=4 * math.sqrt(alpha / 400))


# --- t-test


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 300), st.floats(-0.3, 0.3), st.integers(0, 100))
def test_t_test_equals_scipys(n_queries, shift, seed):
    from scipy.stats import ttest_rel

    rng = np.random.default_rng(seed)
    a, b = rng.random(n_queries), rng.random(n_queries) + shift
    assert t_test(a, b) == pytest.approx(ttest_rel(a, b).pvalue, rel=1e-9, abs=1e-300)


@given(pairs)
def test_t_test_is_symmetric_and_never_nan(rows):
    a, b = columns(rows)
    assert 0.0 <= t_test(a, b) <= 1.0
    assert t_test(a, b) == t_test(b, a)
    assert t_test(a, a) == 1.0


def test_t_test_takes_the_limit_where_the_statistic_does_not_exist():
    base = np.array([0.1, 0.2, 0.7, 0.55])
    assert t_test(base + 0.1, base) == 0.0
    assert t_test(np.array([0.9]), np.array([0.1])) == 1.0


# --- Holm


def test_holm_equals_a_worked_example():
    assert holm([0.01, 0.013, 0.014, 0.19, 0.35]) == pytest.approx((0.05, 0.052, 0.052, 0.38, 0.38))
    assert holm([]) == ()
    assert holm([0.5]) == (0.5,)


@given(st.lists(st.floats(0.0, 1.0), max_size=12), st.randoms(use_true_random=False))
def test_holm_keeps_order_is_monotone_and_lies_between_raw_and_bonferroni(p_values, random):
    adjusted = holm(p_values)
    for raw, corrected in zip(p_values, adjusted, strict=True):
        assert raw <= corrected <= min(1.0, len(p_values) * raw)
    for one, other in itertools.combinations(range(len(p_values)), 2):
        if p_values[one] <= p_values[other]:
            assert adjusted[one] <= adjusted[other]
    shuffled = list(range(len(p_values)))
    random.shuffle(shuffled)
    assert holm([p_values[i] for i in shuffled]) == tuple(adjusted[i] for i in shuffled)


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=8), st.floats(0.001, 0.3))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values, alpha):
    rejected = set()
    for step, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if (len(p_values) - step) * p_values[index] > alpha:
            break
        rejected.add(index)
    assert {index for index, p_value in enumerate(holm(p_values)) if p_value <= alpha} == rejected


@pytest.mark.parametrize("wrong", [-0.1, 1.1, math.nan])
def test_holm_refuses_what_is_no_p_value(wrong):
    with pytest.raises(DataError, match="p-value 1 is"):
        holm([0.5, wrong])


# --- intervals


@pytest.mark.parametrize("shape", ["uniform", "skewed", "success"])
def test_interval_equals_scipys_bca(shape):
    from scipy.stats import bootstrap

    rng = np.random.default_rng(7)
    sample = {
        "uniform": rng.random(50),
        "skewed": rng.lognormal(0, 1, 40),
        "success": rng.integers(0, 2, 60).astype(float),
    }[shape]
    ours = bootstrap_interval(sample, n_resamples=40_000)
    theirs = bootstrap((sample,), np.mean, n_resamples=40_000, batch=5_000, rng=1).confidence_interval
    width = ours.high - ours.low
    assert ours.low == pytest.approx(theirs.low, abs=0.03 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.03 * width)


def test_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for seed in range(300):
        low, high = bootstrap_interval(rng.random(40), level=0.9, n_resamples=500, seed=seed)
        hits += low <= 0.5 <= high
    assert hits / 300 == pytest.approx(0.9, abs=0.06)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(values | coarse | st.floats(-1e6, 1e6), min_size=1, max_size=40),
    st.randoms(use_true_random=False),
)
def test_interval_contains_the_mean_stays_within_the_values_and_ignores_query_order(sample, random):
    interval = bootstrap_interval(np.array(sample), n_resamples=300)
    slack = 1e-12 * max(map(abs, sample))
    assert interval.low <= math.fsum(sample) / len(sample) <= interval.high
    assert min(sample) - slack <= interval.low
    assert interval.high <= max(sample) + slack
    random.shuffle(sample)
    assert bootstrap_interval(np.array(sample), n_resamples=300) == interval


@pytest.mark.parametrize("sample", [[0.5], [0.3] * 7, [0.0, 0.0], [0.1 + 0.2, 0.3], [-2.0] * 3])
def test_interval_of_equal_values_has_no_width(sample):
    low, high = bootstrap_interval(np.array(sample))
    assert low == high == pytest.approx(sample[0])


@pytest.mark.parametrize("level", [1e-9, 0.5, 0.999999, 1 - 1e-16])
@pytest.mark.parametrize("n_resamples", [1, 2, 1000])
def test_interval_is_finite_at_any_level_and_for_an_extreme_outlier(level, n_resamples):
    sample = np.array([0.0] * 50 + [1e9])
    low, high = bootstrap_interval(sample, level=level, n_resamples=n_resamples)
    assert 0.0 <= low <= sample.mean() * (1 + 1e-12)
    assert sample.mean() * (1 - 1e-12) <= high <= 1e9


def test_higher_levels_give_wider_intervals():
    sample, _ = correlated(30, 0.0)
    widths = [high - low for low, high in (bootstrap_interval(sample, level=level) for level in (0.5, 0.9, 0.99))]
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]


@pytest.mark.parametrize("level", [0.0, 1.0, 95, math.nan])
def test_interval_refuses_a_level_outside_zero_and_one(level):
    with pytest.raises(DataError, match="between 0 and 1"):
        bootstrap_interval(np.array([0.1, 0.2]), level=level)


# --- effect size


@given(pairs)
def test_effect_size_has_the_sign_of_the_difference_and_flips_with_the_systems(rows):
    a, b = columns(rows)
    effect = effect_size(a, b)
    assert not math.isnan(effect)
    assert effect == -effect_size(b, a)
    assert effect_size(a, a) == 0.0
    if effect:
        assert math.copysign(1, effect) == math.copysign(1, math.fsum(a - b))


def test_effect_size_is_the_t_statistic_over_the_root_of_n():
    from scipy.stats import ttest_rel

    a, b = correlated(80, 0.03)
    assert effect_size(b, a) == pytest.approx(ttest_rel(b, a).statistic / math.sqrt(80))


def test_effect_size_is_infinite_when_all_queries_move_alike():
    base = np.array([0.1, 0.2, 0.7])
    assert effect_size(base + 0.1, base) == math.inf
    assert effect_size(base - 0.1, base) == -math.inf
    assert effect_size(np.array([0.2]), np.array([0.1])) == math.inf


# --- comparisons


def test_comparison_reports_every_figure_of_one_system_against_the_baseline():
    base, better = correlated(60, 0.08)
    better[:5] = base[:5]
    found = compare_all({"bm25": base, "dense": better, "same": base.copy()}, "bm25", seed=4)
    assert list(found) == ["dense", "same"]
    dense = found["dense"]
    p_value = randomisation_test(base, better, seed=4)
    assert dense == Comparison(
        baseline="bm25",
        system="dense",
        mean_baseline=pytest.approx(base.mean()),
        mean_system=pytest.approx(better.mean()),
        difference=pytest.approx((better - base).mean()),
        interval=bootstrap_interval(better - base, seed=4),
        p_value=p_value,
        p_holm=2 * p_value,
        test="randomisation",
        effect_size=effect_size(better, base),
        wins=int((better > base).sum()),
        ties=5,
        losses=int((better < base).sum()),
    )
    assert dense.n_queries == 60
    same = found["same"]
    assert (same.p_value, same.p_holm, same.difference, same.effect_size) == (1.0, 1.0, 0.0, 0.0)
    assert (same.interval, same.ties) == (Interval(0.0, 0.0), 60)


def test_comparison_follows_the_test_and_the_level_asked_for():
    base, better = correlated(40, 0.05)
    found = compare_all({"a": base, "b": better}, "a", test="t", level=0.5)["b"]
    assert (found.test, found.p_value, found.p_holm) == ("t", t_test(better, base), t_test(better, base))
    assert found.interval == bootstrap_interval(better - base, level=0.5)


def test_the_baseline_is_not_part_of_the_family():
    base, better = correlated(40, 0.05)
    alone = compare_all({"a": base, "b": better}, "a")["b"]
    assert alone.p_holm == alone.p_value
    assert compare_all({"a": base}, "a") == {}


def test_differences_of_mere_rounding_are_ties():
    found = compare_all({"a": np.array([0.3, 0.5]), "b": np.array([0.1 + 0.2, 0.6])}, "a")["b"]
    assert (found.wins, found.ties, found.losses) == (1, 1, 0)


def test_an_unknown_baseline_is_answered_with_the_nearest_system():
    with pytest.raises(UnknownNameError, match="'bm52' is not among the systems compared; did you mean 'bm25'"):
        compare_all({"bm25": np.ones(2), "dense": np.ones(2)}, "bm52")


def test_an_unknown_test_is_answered_with_the_tests_there_are():
    with pytest.raises(UnknownNameError, match=r"'wilcoxon' .*known: randomisation, t"):
        compare_all({"bm25": np.ones(2)}, "bm25", test="wilcoxon")  # type: ignore[arg-type]


def test_systems_measured_on_other_queries_are_refused_by_name():
    with pytest.raises(DataError, match="system 'dense' has values for 3 queries, baseline 'bm25' for 2"):
        compare_all({"bm25": np.ones(2), "dense": np.ones(3)}, "bm25")


# --- what all functions refuse


@pytest.mark.parametrize("function", [randomisation_test, t_test, effect_size])
def test_paired_functions_refuse_unpaired_empty_and_unfinished_values(function):
    with pytest.raises(DataError, match="a has 2 values, b has 3"):
        function(np.ones(2), np.ones(3))
    with pytest.raises(DataError, match="at least one query"):
        function(np.empty(0), np.empty(0))
    with pytest.raises(DataError, match="b: the value of query 1 is nan"):
        function(np.ones(2), np.array([1.0, math.nan]))
    with pytest.raises(DataError, match="expected one value"):
        function(np.ones((2, 2)), np.ones((2, 2)))


@pytest.mark.parametrize("n", [0, -1])
def test_numbers_of_samples_below_one_are_refused(n):
    with pytest.raises(DataError, match="n_permutations must be at least 1"):
        randomisation_test(np.ones(2), np.ones(2), n_permutations=n)
    with pytest.raises(DataError, match="n_resamples must be at least 1"):
        bootstrap_interval(np.ones(2), n_resamples=n)


def test_inputs_are_left_as_they_were():
    a, b = correlated(30, 0.1)
    before = a.copy(), b.copy()
    compare_all({"a": a, "b": b}, "a")
    order_by_change(a, 5)
    assert np.array_equal(a, before[0])
    assert np.array_equal(b, before[1])


# --- order by change


@given(st.lists(st.integers(-5, 5).map(float), max_size=20), st.integers(0, 25))
def test_queries_that_moved_most_come_first_and_equal_moves_keep_their_order(differences, k):
    expected = sorted(range(len(differences)), key=lambda i: (-abs(differences[i]), i))[:k]
    assert order_by_change(np.array(differences), k).tolist() == expected


def test_order_by_change_refuses_a_negative_limit_and_nan():
    with pytest.raises(DataError, match="k must be at least 0"):
        order_by_change(np.ones(3), -1)
    with pytest.raises(DataError, match="query 2 is nan"):
        order_by_change(np.array([0.0, 1.0, math.nan]), 1)


def test_importing_the_module_does_not_import_scipy():
    code = "import sys, rerank.evaluation.significance; sys.exit('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
