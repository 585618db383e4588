from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank.errors import DataError
from rerank.evaluation.ties import count_ties, tie_averaged_ndcg, tie_averaged_ndcg_per_query, tie_groups

grades = st.integers(-1, 3)
cutoffs = st.none() | st.integers(1, 9)
small_query = st.lists(st.tuples(grades, st.integers(0, 2)), max_size=6)
query = st.lists(st.tuples(grades, st.integers(0, 5)), max_size=30)


def sorted_columns(rows: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    rows = sorted(rows, key=lambda row: -row[1])
    return np.array([row[0] for row in rows], dtype=int), np.array([row[1] for row in rows], dtype=np.float64)


def plain_ndcg(gains, ideal_gains, k):
    def dcg(ordered):
        return sum(max(g, 0) / math.log2(rank + 1) for rank, g in enumerate(list(ordered)[:k], start=1))

    best = dcg(sorted(ideal_gains, reverse=True))
    return dcg(gains) / best if best else 0.0


def flat(parts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.concatenate(([0], np.cumsum([len(part) for part in parts]))).astype(np.int64)
    return np.concatenate([np.empty(0), *parts]), offsets


@settings(deadline=None)
@given(small_query, st.lists(grades, max_size=4), cutoffs)
def test_tie_average_equals_the_mean_over_all_orders_of_tied_rows(rows, unretrieved, k):
    gains, scores = sorted_columns(rows)
    ideal = [*gains.tolist(), *unretrieved]
    blocks = [
        [g for g, s in zip(gains, scores, strict=True) if s == score] for score in sorted(set(scores), reverse=True)
    ]
    orders = itertools.product(*(itertools.permutations(block) for block in blocks))
    values = [plain_ndcg([g for block in order for g in block], ideal, k) for order in orders]
    expected = math.fsum(values) / len(values)
    assert tie_averaged_ndcg(gains, scores, np.array(ideal, dtype=int), k) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(grades, st.booleans()), max_size=20),
    st.sampled_from([None, 1, 3, 10, 100]),
)
def test_without_ties_it_is_the_ndcg_of_ir_measures(rows, k):
    import ir_measures

    measure = ir_measures.nDCG if k is None else ir_measures.nDCG @ k
    # trec_eval's nDCG may loop for ever over a query whose grades are all negative, hence one that is not.
    rows = [*rows, (0, False)]
    qrels = {"q": {f"d{i}": grade for i, (grade, _) in enumerate(rows)}}
    retrieved = [i for i, (_, is_retrieved) in enumerate(rows) if is_retrieved]
    run = {"q": {f"d{i}": float(len(retrieved) - rank) for rank, i in enumerate(retrieved)} | {"unjudged": 0.0}}
    expected = next(ir_measures.iter_calc([measure], qrels, run)).value
    gains = np.array([rows[i][0] for i in retrieved] + [0])
    scores = np.array(sorted(run["q"].values(), reverse=True))
    ideal = np.array([grade for grade, _ in rows])
    assert tie_averaged_ndcg(gains, scores, ideal, k) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None)
@given(st.lists(st.tuples(query, st.lists(grades, max_size=5)), max_size=8), cutoffs)
def test_many_queries_at_once_equal_one_after_the_other(queries, k):
    ranked = [sorted_columns(rows) for rows, _ in queries]
    judged = [np.array(more + gains.tolist(), dtype=int) for (_, more), (gains, _) in zip(queries, ranked, strict=True)]
    gains, offsets = flat([gains for gains, _ in ranked])
    scores, _ = flat([scores for _, scores in ranked])
    ideal, ideal_offsets = flat(judged)
    together = tie_averaged_ndcg_per_query(gains, scores, offsets, ideal, ideal_offsets, k)
    alone = [tie_averaged_ndcg(*columns, one, k) for columns, one in zip(ranked, judged, strict=True)]
    assert together.tolist() == pytest.approx(alone, abs=1e-15)
    assert (together >= 0.0).all()
    assert (together <= 1.0 + 1e-12).all()


@given(query, st.randoms(use_true_random=False), cutoffs)
def test_the_order_inside_a_tie_and_of_the_judgments_does_not_matter(rows, random, k):
    gains, scores = sorted_columns(rows)
    before = tie_averaged_ndcg(gains, scores, gains, k)
    random.shuffle(rows)
    gains, scores = sorted_columns(rows)
    assert tie_averaged_ndcg(gains, scores, gains, k) == pytest.approx(before, abs=1e-12)


def test_all_scores_equal_is_below_one_unless_all_gains_are_equal():
    assert tie_averaged_ndcg(np.array([3, 0, 0]), np.zeros(3), np.array([3, 0, 0])) < 1.0
    assert tie_averaged_ndcg(np.array([2, 2, 2]), np.zeros(3), np.array([2, 2, 2])) == pytest.approx(1.0)


def test_a_worked_example():
    # Grades 2, 0, 1 at scores .9, .5, .5: the tie gains .5 at rank 2 and at rank 3.
    expected = (2 + 0.5 / math.log2(3) + 0.5 / 2) / (2 + 1 / math.log2(3))
    found = tie_averaged_ndcg(np.array([2, 0, 1]), np.array([0.9, 0.5, 0.5]), np.array([1, 2]), 10)
    assert found == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("judged", [[], [0, 0], [-1, -2]])
def test_a_query_without_a_relevant_document_scores_zero(judged):
    assert tie_averaged_ndcg(np.zeros(2), np.ones(2), np.array(judged, dtype=int), 10) == 0.0


def test_a_query_without_results_scores_zero():
    assert tie_averaged_ndcg(np.empty(0), np.empty(0), np.array([1, 2]), 10) == 0.0


def test_no_queries_give_no_values():
    none = np.array([0])
    assert tie_averaged_ndcg_per_query(np.empty(0), np.empty(0), none, np.empty(0), none, 10).tolist() == []


@given(st.lists(st.lists(st.integers(0, 4).map(float), max_size=8), max_size=8))
def test_groups_and_counts_are_those_of_itertools(queries):
    queries = [sorted(scores, reverse=True) for scores in queries]
    sizes = [len(list(rows)) for scores in queries for _, rows in itertools.groupby(scores)]
    scores, offsets = flat([np.array(scores) for scores in queries])
    assert tie_groups(scores, offsets).tolist() == [0, *itertools.accumulate(sizes)]
    assert count_ties(scores, offsets) == sum(size for size in sizes if size > 1)


def test_equal_scores_of_neighbouring_queries_are_no_tie():
    assert count_ties(np.array([2.0, 1.0, 1.0, 0.5]), np.array([0, 2, 2, 4, 4])) == 0


def test_ties_are_seen_in_the_precision_given():
    scores = np.array([1.000000003, 1.000000002, 1.000000001])
    assert count_ties(scores, np.array([0, 3])) == 0
    assert count_ties(scores.astype(np.float32), np.array([0, 3])) == 3


def test_negative_zero_ties_with_zero_and_infinities_tie_with_themselves():
    assert count_ties(np.array([np.inf, np.inf, 0.0, -0.0, -np.inf]), np.array([0, 5])) == 4


@pytest.mark.parametrize("scores", [[1.0, 2.0], [1.0, math.nan], [math.nan, 1.0]])
def test_scores_that_rise_or_are_nan_are_refused_with_their_row(scores):
    with pytest.raises(DataError, match="must not rise along a query: row 3 scores"):
        count_ties(np.array([5.0, 4.0, *scores]), np.array([0, 2, 4]))


@pytest.mark.parametrize("offsets", [[], [0, 1], [1, 2], [0, 3], [0, 2, 1, 2]])
def test_offsets_that_do_not_cover_the_rows_are_refused(offsets):
    with pytest.raises(DataError, match="offsets of the scores must rise from 0 to 2"):
        count_ties(np.array([2.0, 1.0]), np.array(offsets, dtype=np.int64))


def test_arguments_that_do_not_fit_together_are_refused():
    one = np.array([0, 1])
    with pytest.raises(DataError, match="cut-off k must be at least 1, got 0"):
        tie_averaged_ndcg(np.ones(1), np.ones(1), np.ones(1), 0)
    with pytest.raises(DataError, match=r"shapes \(2,\) and \(1,\)"):
        tie_averaged_ndcg(np.ones(2), np.ones(1), np.ones(1), 1)
    with pytest.raises(DataError, match="offsets describe 1 queries and ideal_offsets 2"):
        tie_averaged_ndcg_per_query(np.ones(1), np.ones(1), one, np.ones(1), np.array([0, 1, 1]), 1)
    with pytest.raises(DataError, match="offsets of the ideal gains"):
        tie_averaged_ndcg_per_query(np.ones(1), np.ones(1), one, np.ones(2), one, 1)
