from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank.data.dataset import Dataset
from rerank.errors import DataError, RankingError
from rerank.evaluation import evaluation as module
from rerank.evaluation.evaluation import evaluate_run, interpolated_precision, without_excluded
from rerank.evaluation.measures import parse_measures
from rerank.ranking import Ranking, ScoreKind
from rerank.run import Run, StageStats

EVERY_KIND = (
    "nDCG@10",
    "nDCG",
    "nDCG(dcg='exp-log2')@10",
    "nDCG(judged_only=True)@5",
    "nDCG(gains={1:0,2:1,3:5})@10",
    "R@5",
    "R(rel=2)@100",
    "AP",
    "AP(rel=2)",
    "AP@3",
    "RR",
    "RR@3",
    "P@1",
    "P(rel=2)@5",
    "Judged@10",
    "Success@1",
    "Rprec",
    "IPrec@0.3",
    "IPrec@1.0",
    "Bpref",
    "infAP",
    "Compat",
    "ERR@10",
    "SetP",
    "SetR",
    "SetF",
    "SetAP",
    "NumRet",
    "NumRet(rel=1)",
    "NumRel",
    "NumQ",
)


def of(lists, name="run", **more):
    return Run(name, Ranking.of(lists), **more)


def dataset(qrels, queries=None, **more):
    return Dataset("toy", queries or dict.fromkeys(qrels, "text"), qrels=qrels, **more)


def reference(run, data, names):
    """ir-measures itself, on scores that fall along each list."""
    import ir_measures

    lists = {hits.qid: {docno: float(len(hits) - i) for i, docno in enumerate(hits.docnos)} for hits in run.ranking}
    lists = {qid: hits for qid, hits in lists.items() if hits}
    values = {}
    for name, measure in parse_measures(names).items():
        found = {m.query_id: m.value for m in ir_measures.iter_calc([measure], data.qrels, lists)}
        values[name] = [found[qid] for qid in data.qrels]
    return values


docnos = st.sampled_from([f"d{i}" for i in range(30)])
grades = st.dictionaries(docnos, st.integers(-1, 4), min_size=1, max_size=12).filter(
    lambda judged: max(judged.values()) >= 0  # else trec_eval, with which we compare, may not come to an end
)
lists = st.dictionaries(docnos, st.floats(-5, 5, width=32), max_size=25)


@st.composite
def tasks(draw):
    n_queries = draw(st.integers(1, 4))
    qrels = {f"{i}": draw(grades) for i in range(n_queries)}
    run = {f"{i}": draw(lists) for i in range(n_queries + 1)}
    return run, qrels


@settings(max_examples=60, deadline=None)
@given(tasks())
def test_every_measure_equals_ir_measures_on_lists_without_ties(task):
    lists_by_query, qrels = task
    run, data = of(lists_by_query), dataset(qrels)
    names = [name for name in EVERY_KIND if not name.startswith(("ERR", "nDCG(dcg"))]
    found = evaluate_run(run, data, names)
    for name, values in reference(run, data, names).items():
        np.testing.assert_allclose(found.per_query[name], values, rtol=0, atol=1e-9, err_msg=name)


def test_measures_of_the_perl_program_equal_ir_measures_and_take_any_id():
    pytest.importorskip("ir_measures")
    import ir_measures

    if not ir_measures.gdeval.is_available():
        pytest.skip("needs perl, which computes ERR")
    rng = np.random.default_rng(0)
    qrels = {str(i): {f"d{j}": int(g) for j, g in enumerate(rng.integers(0, 4, 20))} for i in range(5)}
    run = of({q: {f"d{j}": float(s) for j, s in enumerate(rng.random(30))} for q in qrels})
    names = ["ERR@10", "nDCG(dcg='exp-log2')@10"]
    found = evaluate_run(run, dataset(qrels), names)
    for name, values in reference(run, dataset(qrels), names).items():
        np.testing.assert_allclose(found.per_query[name], values, rtol=0, atol=1e-9, err_msg=name)
    odd = {f"topic {q}-7": {f"d {d}\t": g for d, g in grades.items()} for q, grades in qrels.items()}
    renamed = of({f"topic {h.qid}-7": {f"d {x.docno}\t": x.score for x in h} for h in run.ranking})
    assert evaluate_run(renamed, dataset(odd), names).means == found.means
    with pytest.raises(DataError, match="grades up to 4"):
        evaluate_run(of({"q": {"d": 1.0}}), dataset({"q": {"d": 9}}), ["ERR@10"])


def test_scores_that_differ_only_in_double_precision_are_seen_in_their_order_by_every_measure():
    # 32-bit floats cannot tell these apart, and neither rule for ties, rising or falling ids, gives this order.
    lists_by_query = {"q": {"c": 1.000000001, "a": 1.000000002, "b": 1.000000003}}
    assert len(set(Ranking.of(lists_by_query).scores.tolist())) == 1
    for best, rank in (("b", 1), ("a", 2), ("c", 3)):
        found = evaluate_run(of(lists_by_query), dataset({"q": {best: 1}}), ["RR", "RR@10", "AP", "P@1", "nDCG@10"])
        assert found.ranks["q"] == {best: rank}
        expected = dict.fromkeys(("RR", "RR@10", "AP"), 1 / rank) | {"P@1": float(rank == 1)}
        assert found.means == pytest.approx(expected | {"nDCG@10": 1 / np.log2(rank + 1)})


@settings(max_examples=40, deadline=None)
@given(st.permutations([f"d{i}" for i in range(12)]), st.sets(docnos, min_size=1))
def test_equal_scores_leave_the_row_order_to_every_measure(order, relevant):
    base = Ranking.of({"q": {docno: float(-i) for i, docno in enumerate(order)}})
    tied = base.ranked()._trusted(scores=np.ones(len(order), dtype=np.float32), kind=ScoreKind.NONE)
    qrels = {"q": dict.fromkeys(relevant, 1)}
    names = ["nDCG@5", "AP", "RR", "RR@3", "P@2", "Bpref", "Compat", "Judged@3", "Success@1", "IPrec@0.5"]
    with_ties = evaluate_run(Run("r", tied), dataset(qrels), names)
    without = evaluate_run(Run("r", base), dataset(qrels), names)
    assert with_ties.means == without.means
    assert with_ties.n_tied_rows == len(order)
    assert without.n_tied_rows == 0


def test_ties_are_counted_and_a_tie_averaged_ndcg_stands_beside():
    found = evaluate_run(of({"q": {"a": 1.0, "b": 1.0}}), dataset({"q": {"a": 1}}), ["nDCG@1", "P@1"])
    assert found.n_tied_rows == 2
    assert found.means["nDCG@1"] == 1.0
    assert {name: values.tolist() for name, values in found.tie_averaged.items()} == {"nDCG@1": [0.5]}
    apart = evaluate_run(of({"q": {"a": 1.0, "b": 0.5}}), dataset({"q": {"a": 1}}), ["nDCG@1"])
    assert apart.tie_averaged == {}


def test_tie_averaged_ndcg_equals_ndcg_where_only_one_pair_ties_below_the_cutoff():
    hits = {f"d{i}": float(-i) for i in range(50)} | {"d49": -48.0}
    qrels = {"q": {"d3": 2, "d7": 1, "x": 1}, "p": {"d1": 1}}
    found = evaluate_run(of({"q": hits, "p": {"d0": 2.0, "d1": 1.0}}), dataset(qrels), ["nDCG@10"])
    np.testing.assert_allclose(found.tie_averaged["nDCG@10"], found.per_query["nDCG@10"], atol=1e-12)


def test_queries_without_documents_count_with_the_default_and_are_reported():
    data = dataset({"a": {"d": 1}, "b": {"d": 1}, "c": {"d": 1}})
    found = evaluate_run(of({"a": {"d": 1.0}, "b": {}}), data, ["RR", "Judged@10"])
    assert found.qids == ("a", "b", "c")
    assert found.per_query["RR"].tolist() == [1.0, 0.0, 0.0]
    assert found.missing == ("b", "c")
    assert found.judged_at_10 == 1.0
    assert found.n_rows == 1


def test_only_judged_queries_of_the_data_set_are_measured():
    data = dataset({"a": {"d": 1}, "other split": {"d": 1}, "c": {}}, {"c": "", "b": "", "a": ""})
    found = evaluate_run(of({"a": {"d": 1.0}, "b": {"d": 1.0}, "z": {"d": 1.0}}), data, ["RR"])
    assert found.qids == ("a",)
    assert found.n_unjudged_queries == 2
    assert found.means == {"RR": 1.0}


def test_unjudged_documents_are_counted_and_judged_at_10_looks_at_ten():
    hits = {f"d{i:02d}": float(-i) for i in range(20)}
    found = evaluate_run(of({"q": hits}), dataset({"q": {"d00": 0, "d09": 1, "d10": 1, "x": 1}}), ["RR"])
    assert found.judged_at_10 == pytest.approx(0.2)
    assert found.n_unjudged_rows == 17
    assert found.top["q"] == tuple(f"d{i:02d}" for i in range(10))
    assert found.ranks == {"q": {"d00": 1, "d09": 10, "d10": 11}}
    assert found.grades == {"q": {"d00": 0, "d09": 1, "d10": 1, "x": 1}}


def test_excluded_documents_are_dropped_before_anything_is_measured():
    data = dataset({"q": {"b": 1}, "p": {"a": 1}}, excluded={"q": frozenset({"a", "not in the run"})})
    run = of({"q": {"a": 2.0, "b": 1.0}, "p": {"a": 2.0, "b": 1.0}})
    found = evaluate_run(run, data, ["RR"])
    assert found.means == {"RR": 1.0}
    assert found.n_excluded_rows == 1
    assert found.top["q"] == ("b",)
    assert without_excluded(run.ranking, dataset({"q": {"b": 1}})) == (run.ranking, 0)


def test_the_upper_bound_is_what_the_ideal_order_of_the_same_list_scores():
    data = dataset({"q": {"a": 1, "b": 3, "c": 0, "z": 2}})
    run = of({"q": {"x": 5.0, "c": 4.0, "a": 3.0, "y": 2.0, "b": 1.0}})
    names = ["nDCG@2", "RR", "P@2", "AP"]
    found = evaluate_run(run, data, names)
    ideal = evaluate_run(of({"q": {"b": 5.0, "a": 4.0, "c": 3.0, "x": 2.0, "y": 1.0}}), data, names)
    assert found.upper_bound == ideal.means
    assert found.upper_bound["nDCG@2"] < 1.0  # z is not in the list


@settings(max_examples=40, deadline=None)
@given(tasks())
def test_no_order_of_the_list_exceeds_the_upper_bound(task):
    lists_by_query, qrels = task
    names = ["nDCG@5", "AP", "RR", "R@3", "P@5", "Success@1", "Rprec", "IPrec@0.5"]
    found = evaluate_run(of(lists_by_query), dataset(qrels), names)
    again = evaluate_run(of(lists_by_query), dataset(qrels), [*names, "NumRet"])
    for name in names:
        assert found.means[name] <= found.upper_bound[name] + 1e-12
        assert again.upper_bound[name] == pytest.approx(found.upper_bound[name], abs=1e-12)


def test_a_large_run_is_measured_in_blocks_with_the_same_result(monkeypatch):
    rng = np.random.default_rng(1)
    qrels = {f"q{i}": {f"d{j}": int(rng.integers(0, 3)) for j in range(5)} for i in range(7)}
    run = of({q: {f"d{j}": float(s) for j, s in enumerate(rng.random(9))} for q in qrels})
    whole = evaluate_run(run, dataset(qrels), ["nDCG@3", "AP"])
    monkeypatch.setattr(module, "_BLOCK_QUERIES", 2)
    blocks = evaluate_run(run, dataset(qrels), ["nDCG@3", "AP"])
    assert {n: v.tolist() for n, v in blocks.per_query.items()} == {n: v.tolist() for n, v in whole.per_query.items()}
    assert blocks.upper_bound == whole.upper_bound


def test_a_plain_ndcg_is_not_computed_with_the_gains_of_another():
    qrels = {"q": {"a": 1, "b": 2, "c": 3}}
    run = of({"q": {"a": 3.0, "b": 2.0, "c": 1.0}})
    names = ["nDCG(gains={1:7,3:0})@10", "nDCG@10", "nDCG"]
    for order in (names, names[::-1]):
        found = evaluate_run(run, dataset(qrels), order)
        assert found.means["nDCG@10"] == pytest.approx(found.means["nDCG"])
        assert found.means["nDCG(gains={1:7,3:0})@10"] == pytest.approx(1.0)


def test_queries_whose_every_judgment_is_negative_score_nothing_and_come_to_an_end():
    rng = np.random.default_rng(3)
    names = [name for name in EVERY_KIND if not name.startswith(("ERR", "nDCG(dcg", "Num", "Judged"))]
    for _ in range(30):
        spam = {f"d{i}": -int(rng.integers(1, 4)) for i in range(rng.integers(1, 12))}
        judged = {f"d{i}": int(rng.integers(-1, 4)) for i in range(12)} | {"d0": 2}
        hits = {f"d{i}": float(score) for i, score in enumerate(rng.random(20))}
        found = evaluate_run(of({"spam": hits, "q": hits}), dataset({"spam": spam, "q": judged}), names)
        assert {name: values[0] for name, values in found.per_query.items()} == dict.fromkeys(found.per_query, 0.0)
        alone = evaluate_run(of({"q": hits}), dataset({"q": judged}), names)
        assert {n: v[0] for n, v in alone.per_query.items()} == {n: v[1] for n, v in found.per_query.items()}


def test_a_grade_beyond_what_trec_eval_can_count_is_an_error():
    with pytest.raises(DataError, match="grade 3,000,000,000, at most 1,000,000"):
        evaluate_run(of({"q": {"d": 1.0}}), dataset({"q": {"d": 3_000_000_000}}), ["nDCG@10"])


def test_interpolated_precision_equals_ir_measures():
    rng = np.random.default_rng(2)
    levels = [i / 10 for i in range(11)]
    for rel in (1, 2):
        judged = [rng.integers(0, 4, rng.integers(1, 40)) for _ in range(9)]
        qrels = {f"q{i}": {f"d{j}": int(g) for j, g in enumerate(grades)} for i, grades in enumerate(judged)}
        run = of({q: {f"d{j}": float(s) for j, s in enumerate(rng.random(30))} for q in list(qrels)[:8]})
        names = [f"IPrec(rel={rel})@{level}" for level in levels]
        found = evaluate_run(run, dataset(qrels), names)
        np.testing.assert_allclose(interpolated_precision(found, rel), list(found.means.values()), atol=1e-9)


def test_seconds_come_from_the_outermost_stages_and_are_per_query_of_the_run():
    stats = (StageStats("a", 3.0, 2, 2), StageStats("a/b", 2.0, 2, 2), StageStats("c", 1.0, 2, 2))
    run = of({"p": {"d": 1.0}, "q": {"d": 1.0}}, stats=stats)
    found = evaluate_run(run, dataset({"p": {"d": 1}}), ["RR"])
    assert (found.seconds, found.seconds_per_query) == (4.0, 2.0)
    assert evaluate_run(of({"p": {"d": 1.0}}), dataset({"p": {"d": 1}}), ["RR"]).seconds_per_query is None


def test_no_judgments_and_no_common_query_are_errors_with_a_remedy():
    run = of({"q": {"d": 1.0}})
    with pytest.raises(DataError, match="no judgments; give judgments"):
        evaluate_run(run, Dataset("toy", {"q": ""}), ["RR"])
    with pytest.raises(DataError, match="none of its 1 queries is judged"):
        evaluate_run(run, Dataset("toy", {"q": ""}, qrels={"other": {"d": 1}}), ["RR"])
    with pytest.raises(DataError, match=r"share no query.*'q'.*'p'"):
        evaluate_run(run, dataset({"p": {"d": 1}}), ["RR"])
    with pytest.raises(DataError, match="Accuracy is not defined"):
        evaluate_run(run, dataset({"q": {"d": 1}}), ["Accuracy"])


def test_scores_that_are_not_numbers_never_reach_a_measure():
    with pytest.raises(RankingError, match="finite"):
        of({"q": {"d": float("nan")}})


def test_a_run_whose_every_list_is_empty_scores_nothing():
    found = evaluate_run(of({"q": {}}), dataset({"q": {"d": 1}}), EVERY_KIND[:4])
    assert set(found.means.values()) == {0.0}
    assert found.judged_at_10 == 0.0


def test_ids_may_hold_anything():
    qid, docno = "q\u00e9\u4e2d 1-2", "d <b>\u200b\U0001f600 x"
    found = evaluate_run(of({qid: {docno: 1.0}}), dataset({qid: {docno: 1}}), ["nDCG@10", "Compat", "P@1"])
    assert found.top == {qid: (docno,)}
    assert found.means["P@1"] == 1.0


@pytest.mark.parametrize(
    ("folder", "name", "measure", "value"),
    [
        ("trec-dl-2019", "bm25", "nDCG@10", 0.5058),
        ("trec-dl-2019", "bm25", "R(rel=2)@100", 0.4910),
        ("trec-dl-2019", "splade_pp_ed", "nDCG@10", 0.7308),
        ("trec-dl-2021", "bm25", "nDCG@10", 0.4458),
    ],
)
def test_published_figures_of_foreign_runs(shared_data, folder, name, measure, value):
    from rerank.data.trec import read_qrels, read_run

    qrels = read_qrels(shared_data / folder / "qrels" / "test.trec")
    run = read_run(shared_data / folder / "runs" / f"{name}.trec")
    assert round(evaluate_run(run, dataset(qrels), [measure]).means[measure], 4) == value


@pytest.mark.parametrize("seed", ["41", "56"])
def test_a_measure_of_judged_documents_only_does_not_change_another_whatever_the_order_of_sets(seed: str) -> None:
    # ir-measures keeps measures in sets: under these seeds one call gave NumRet over judged documents only.
    program = (
        "from rerank.data.dataset import Dataset; from rerank.evaluation.evaluation import evaluate_run;"
        "from rerank.ranking import Ranking; from rerank.run import Run;"
        f"names = {EVERY_KIND!r}; names = [n for n in names if not n.startswith(('ERR', 'nDCG(dcg'))];"
        "run = Run('r', Ranking.of({'0': {'d0': 2.0, 'd1': 1.0}}));"
        "print(evaluate_run(run, Dataset('d', {'0': ''}, qrels={'0': {'d0': 0}}), names).means['NumRet'])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "2.0"
