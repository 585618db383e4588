from __future__ import annotations

import json

import numpy as np
import pytest

from rerank.data.dataset import Dataset
from rerank.errors import DataError, UnknownNameError
from rerank.evaluation.compare import RankChange, compare_runs
from rerank.evaluation.evaluation import Evaluation, evaluate_run
from rerank.evaluation.significance import bootstrap_interval, randomisation_test
from rerank.ranking import Ranking
from rerank.run import Run

QUERIES = {"q1": "white dwarfs", "q2": "moons", "q3": "stars"}
QRELS = {"q1": {"a": 2, "b": 1}, "q2": {"a": 1}, "q3": {"c": 1, "n": 0}}
BEFORE = {
    "q1": {"x": 3.0, "b": 2.0, "a": 1.0},
    "q2": {"a": 2.0, "x": 1.0},
    "q3": {"c": 2.0, "n": 1.0},
}
AFTER = {
    "q1": {"a": 3.0, "x": 2.0, "y": 1.0},
    "q2": {"a": 2.0, "x": 1.0},
    "q3": {"n": 2.0, "c": 1.0},
}


def measured(name: str, lists: dict[str, dict[str, float]], data: Dataset | None = None) -> Evaluation:
    return evaluate_run(Run(name, Ranking.of(lists)), data or Dataset("toy", QUERIES, qrels=QRELS), ["RR", "R@10"])


def test_a_comparison_names_the_queries_that_moved_most_and_the_documents_that_moved_them():
    found = compare_runs(measured("bm25", BEFORE), measured("dense", AFTER), "RR", QUERIES)
    assert [(q.qid, q.text, q.before, q.after) for q in found.moved] == [
        ("q1", "white dwarfs", 0.5, 1.0),
        ("q3", "stars", 1.0, 0.5),
    ]
    assert found.moved[0].documents == (RankChange("a", 2, 3, 1), RankChange("b", 1, 2, None))
    assert found.moved[1].documents == (RankChange("c", 1, 1, 2), RankChange("n", 0, 2, 1))
    assert (found.summary.wins, found.summary.ties, found.summary.losses) == (1, 1, 1)
    assert (found.risen, found.fallen) == (1, 2)
    assert (found.only_before, found.only_after) == (0, 0)


def test_the_summary_is_the_paired_statistics_of_the_values():
    a, b = measured("bm25", BEFORE), measured("dense", AFTER)
    found = compare_runs(a, b, "R@10", QUERIES).summary
    difference = b.per_query["R@10"] - a.per_query["R@10"]
    assert found.difference == pytest.approx(difference.mean())
    assert found.p_value == randomisation_test(b.per_query["R@10"], a.per_query["R@10"])
    assert found.interval == bootstrap_interval(difference)


def test_swapping_the_runs_turns_every_sign():
    a, b = measured("bm25", BEFORE), measured("dense", AFTER)
    there, back = compare_runs(a, b, "RR", QUERIES), compare_runs(b, a, "RR", QUERIES)
    assert there.summary.difference == -back.summary.difference
    assert there.summary.p_value == back.summary.p_value
    assert (there.risen, there.fallen) == (back.fallen, back.risen)
    assert {q.qid: q.difference for q in there.moved} == {q.qid: -q.difference for q in back.moved}


def test_only_common_queries_are_compared_and_the_others_counted():
    some = Dataset("toy", QUERIES, qrels={q: QRELS[q] for q in ("q1", "q2")})
    other = Dataset("toy", QUERIES, qrels={q: QRELS[q] for q in ("q2", "q3")})
    found = compare_runs(measured("bm25", BEFORE, some), measured("dense", AFTER, other), "RR", QUERIES)
    assert found.summary.n_queries == 1
    assert (found.only_before, found.only_after) == (1, 1)
    assert "left out: 1 query that only bm25 has, 1 that only dense has" in found.to_text()


def test_no_common_query_unknown_measures_and_equal_names_are_errors():
    a = measured("bm25", BEFORE, Dataset("one", QUERIES, qrels={"q1": QRELS["q1"]}))
    b = measured("dense", AFTER, Dataset("two", QUERIES, qrels={"q2": QRELS["q2"]}))
    with pytest.raises(DataError, match="no query in common"):
        compare_runs(a, b, "RR", QUERIES)
    with pytest.raises(UnknownNameError, match="it has: RR, R@10"):
        compare_runs(a, a, "nDCG@10", QUERIES)
    with pytest.raises(DataError, match="both runs are called"):
        compare_runs(a, a, "RR", QUERIES)


def test_k_bounds_the_queries_and_unknown_texts_are_empty():
    found = compare_runs(measured("bm25", BEFORE), measured("dense", AFTER), "RR", {}, k=1)
    assert [(q.qid, q.text) for q in found.moved] == [("q1", "")]
    assert compare_runs(measured("bm25", BEFORE), measured("dense", AFTER), "RR", {}, k=0).moved == ()


def test_json_holds_plain_values_and_no_infinity():
    found = compare_runs(measured("bm25", BEFORE), measured("dense", {q: {"a": 1.0} for q in QUERIES}), "RR", QUERIES)
    text = json.dumps(found.to_dict(), allow_nan=False)
    assert json.loads(text) == found.to_dict()
    assert found.to_dict()["means"] == {"baseline": pytest.approx(0.8333333), "pipeline": pytest.approx(0.6666667)}
    same = compare_runs(
        measured("bm25", BEFORE, one := Dataset("t", QUERIES, qrels={"q1": QRELS["q1"]})),
        measured("dense", AFTER, one),
        "RR",
        QUERIES,
    )
    assert np.isinf(same.summary.effect_size)
    assert same.to_dict()["effect"] is None
    assert "effect size" not in same.to_text()


def test_the_page_fits_80_columns_whatever_the_query():
    long = dict.fromkeys(QUERIES, "ein sehr langer Text \u4e2d\u6587 " * 20 + "\n\n")
    page = compare_runs(measured("bm25", BEFORE), measured("dense", AFTER), "RR", long).to_text()
    from rich.cells import cell_len

    assert max(map(cell_len, page.splitlines())) <= 80
    assert "rank     3 -> 1" in page
