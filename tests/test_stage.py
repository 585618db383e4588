"""Stages and their algebra: build-time checks, combination of lists, representation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank.data.corpus import MemoryCorpus
from rerank.errors import PipelineError
from rerank.ranking import Ranking, ScoreKind, merge_tables
from rerank.runtime import Runtime
from rerank.stage import (
    DOCUMENTS,
    FROM_ANYTHING,
    FROM_QUERIES,
    Concatenation,
    Cut,
    Flow,
    Intersection,
    Normalise,
    Pipeline,
    Pool,
    Stage,
    Union,
    WeightedSum,
    apply,
)

Lists = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, repr=False)
class Given(Stage):
    """A first stage that gives what it is told."""

    lists: tuple[tuple[str, tuple[tuple[str, float], ...]], ...]
    kinds: str = "minmax"

    needs: ClassVar[frozenset[str]] = frozenset()
    gives: ClassVar[frozenset[str]] = frozenset({DOCUMENTS})

    def flow(self, before: Flow) -> Flow:
        return Flow(before.has | self.gives, ScoreKind(self.kinds))

    def transform(self, ranking: Ranking, runtime: Runtime) -> Ranking:
        lists = {qid: dict(hits) for qid, hits in self.lists}
        texts = dict(zip(ranking.qids, ranking.queries, strict=True))
        return Ranking.of({qid: lists.get(qid, {}) for qid in ranking.qids}, texts, ScoreKind(self.kinds))


def given_lists(lists: Lists, kind: str = "minmax") -> Given:
    return Given(tuple((qid, tuple(hits.items())) for qid, hits in lists.items()), kind)


DOCNOS = st.sampled_from(["a", "b", "c", "d", "e", "f", "ä"])
SCORES = st.sampled_from([0.0, 0.25, 0.5, 0.5, 0.75, 1.0])
LISTS = st.fixed_dictionaries(
    {"q1": st.dictionaries(DOCNOS, SCORES, max_size=6), "q2": st.dictionaries(DOCNOS, SCORES, max_size=6)}
)
MANY = st.lists(LISTS, min_size=1, max_size=4)
TOPICS = Ranking.start({"q1": "one", "q2": "two"})


def run(stage: Stage, ranking: Ranking = TOPICS) -> Ranking:
    with Runtime(Path("nowhere"), progress=False) as runtime:
        return runtime.rank(stage, ranking)


def docnos(ranking: Ranking) -> dict[str, list[str]]:
    return {hits.qid: hits.docnos for hits in ranking}


def in_order(hits: Mapping[str, float]) -> list[str]:
    return sorted(hits, key=lambda docno: (-hits[docno], docno))


# -- the naive versions ---------------------------------------------------------------


def naive_union(lists: list[list[str]]) -> list[str]:
    best: dict[str, tuple[int, int]] = {}
    for i, ranked in enumerate(lists):
        for rank, docno in enumerate(ranked):
            best[docno] = min(best.get(docno, (rank, i)), (rank, i))
    return sorted(best, key=lambda docno: best[docno])


def naive_intersection(lists: list[list[str]]) -> list[str]:
    everywhere = set(lists[0]).intersection(*lists[1:])
    return [docno for docno in naive_union(lists) if docno in everywhere]


def naive_concatenation(lists: list[list[str]]) -> list[str]:
    return list(dict.fromkeys(docno for ranked in lists for docno in ranked))


@pytest.mark.parametrize(
    ("operator", "naive"),
    [(Union, naive_union), (Intersection, naive_intersection), (Concatenation, naive_concatenation)],
)
@given(many=MANY)
def test_set_operators_agree_with_the_naive_ones(
    operator: Callable[[tuple[Stage, ...]], Stage], naive: Callable[[list[list[str]]], list[str]], many: list[Lists]
) -> None:
    result = run(operator(tuple(given_lists(lists) for lists in many)))
    expected = {qid: naive([in_order(lists[qid]) for lists in many]) for qid in TOPICS.qids}
    assert docnos(result) == expected
    assert result.kind is ScoreKind.RANK
    assert result.scores.tolist() == [n for ranked in expected.values() for n in range(len(ranked), 0, -1)]


@given(MANY)
def test_set_operators_keep_each_list_s_scores_in_a_column(many: list[Lists]) -> None:
    result = run(Union(tuple(given_lists(lists) for lists in many)))
    for i, lists in enumerate(many, 1):
        column = result.columns["score:Given" if len(many) == 1 else f"score:Given:{i}"]
        for row, (q, docno) in enumerate(zip(result.row_queries().tolist(), result.docnos().tolist(), strict=True)):
            expected = lists[result.qids[q]].get(docno, math.nan)
            assert column[row] == expected or (math.isnan(column[row]) and math.isnan(expected))


@given(MANY, st.data())
def test_a_weighted_sum_agrees_with_the_naive_one(many: list[Lists], data: Any) -> None:
    weights = data.draw(st.lists(st.sampled_from([0.3, 0.7, 1.0, -0.5, 0.0]), min_size=len(many), max_size=len(many)))
    result = run(WeightedSum(tuple(given_lists(lists) for lists in many), tuple(weights)))
    for qid in TOPICS.qids:
        expected = dict.fromkeys((docno for lists in many for docno in lists[qid]), 0.0)
        for docno in expected:
            for weight, lists in zip(weights, many, strict=True):
                hits = lists[qid]
                expected[docno] += weight * hits.get(docno, min(hits.values(), default=0.0))
        found = {hit.docno: hit.score for hit in result[qid]}
        assert found.keys() == expected.keys()
        assert found == {docno: pytest.approx(score, abs=1e-6) for docno, score in expected.items()}
        ordered = [expected[docno] for docno in result[qid].docnos]
        assert all(a >= b - 1e-12 for a, b in pairwise(ordered))


def test_equal_sums_tie_wherever_they_stand_in_the_batch() -> None:
    """A matrix product rounds some columns in one way and the last few in another."""
    random = np.random.default_rng(0)
    for n in range(5, 65):
        names = [f"d{i:02}" for i in range(n)]
        numbers = random.random((5, 2)).tolist()
        branches = tuple(given_lists({"q1": dict.fromkeys(names, score)}) for _, score in numbers)
        result = run(WeightedSum(branches, tuple(weight for weight, _ in numbers)))
        assert result["q1"].docnos == names


def test_a_missing_document_counts_with_the_list_s_minimum() -> None:
    first = given_lists({"q1": {"a": 1.0, "b": 0.4}})
    second = given_lists({"q1": {"c": 1.0}})
    result = run(1.0 * first + 1.0 * second)["q1"]
    assert [(hit.docno, hit.score) for hit in result] == [
        ("a", pytest.approx(2.0)),
        ("b", pytest.approx(1.4)),
        ("c", pytest.approx(1.4)),
    ]


@given(st.lists(LISTS, min_size=1, max_size=3))
def test_the_pool_holds_each_query_s_distinct_documents_and_their_places(many: list[Lists]) -> None:
    many = [{qid: lists[qid] for qid in ("q1", "q2")} for lists in many]
    rankings = merge_tables([Ranking.of(lists) for lists in many])
    pool = Pool(rankings)
    names = rankings[0].ids.take(pool.docs).tolist() if len(pool.docs) else []
    found = list(zip(pool.query.tolist(), names, strict=True))
    assert sorted(found) == sorted(
        (q, docno) for q, qid in enumerate(("q1", "q2")) for docno in {d for lists in many for d in lists[qid]}
    )
    for i, lists in enumerate(many):
        for at, (q, docno) in enumerate(found):
            hits = list(lists.values())[q]
            rank = in_order(hits).index(docno) + 1 if docno in hits else math.inf
            assert pool.ranks()[i, at] == rank
            assert pool.scores()[i, at] == hits.get(docno, min(hits.values(), default=0.0))


def test_combining_no_queries_and_empty_lists_gives_the_same() -> None:
    empty = given_lists({})
    for stage in (empty | empty, empty & empty, empty ^ empty, 0.5 * empty + 0.5 * empty):
        assert docnos(run(stage)) == {"q1": [], "q2": []}
        assert docnos(run(stage, Ranking.start({}))) == {}


def test_branches_keep_queries_and_their_columns_as_they_came_in() -> None:
    def rewritten(ranking: Ranking) -> Ranking:
        return ranking.with_queries(["x", "y"])

    topics = TOPICS.with_query_column("language", np.array(["de", "en"], dtype=object))
    result = run((apply(rewritten) >> given_lists({"q1": {"a": 1.0}})) | given_lists({"q1": {"b": 1.0}}), topics)
    assert result.queries == ("one", "two")
    assert set(result.query_columns) == {"language"}


def test_a_flow_does_not_promise_columns_that_branches_keep_for_themselves() -> None:
    @dataclass(frozen=True)
    class Marks(Stage):
        needs: ClassVar[frozenset[str]] = frozenset()
        gives: ClassVar[frozenset[str]] = frozenset({"mark"})

        def transform(self, ranking: Ranking, runtime: Runtime) -> Ranking:
            return ranking.with_query_column("mark", np.zeros(len(ranking)))

    @dataclass(frozen=True)
    class Reads(Stage):
        needs: ClassVar[frozenset[str]] = frozenset({"mark"})

        def transform(self, ranking: Ranking, runtime: Runtime) -> Ranking:
            return ranking

    branch = Marks() >> given_lists({})
    branch >> Reads()
    with pytest.raises(PipelineError, match="Reads needs mark"):
        (branch | branch) >> Reads()


def test_a_branch_that_loses_queries_is_refused() -> None:
    dropping = given_lists({"q1": {"a": 1.0}}) >> apply(lambda ranking: ranking.subset(["q1"]))
    with pytest.raises(PipelineError, match="gave 1 queries for 2"):
        run(dropping | given_lists({}))
    turned = given_lists({"q1": {"a": 1.0}}) >> apply(lambda ranking: ranking.subset(["q2", "q1"]))
    with pytest.raises(PipelineError, match="in another order"):
        run(turned | given_lists({}))


def test_texts_survive_a_union_of_lists_over_different_tables() -> None:
    corpus = MemoryCorpus({"z": "zed", "b": "bee", "a": "aye"})
    known = apply(lambda ranking: Ranking.of({"q1": {"a": 2.0, "b": 1.0}, "q2": {}}, source=corpus))
    foreign = apply(lambda ranking: Ranking.of({"q1": {"b": 2.0, "z": 1.0}, "q2": {}}))
    for stage in (Union((known, foreign)), Union((foreign, known))):
        result = run(stage, Ranking.start({"q1": "", "q2": ""}, corpus))
        assert {hit.docno: hit.text for hit in result["q1"]} == {"a": "aye", "b": "bee", "z": "zed"}


# -- normalising ------------------------------------------------------------------------


@given(LISTS)
def test_minmax_runs_from_one_to_zero_and_keeps_the_order(lists: Lists) -> None:
    before = Ranking.of(lists)
    after = run(Normalise(), before)
    assert docnos(after) == docnos(before)
    for hits in after:
        old = [hit.score for hit in before[hits.qid]]
        spread = max(old, default=0) - min(old, default=0)
        expected = [(score - min(old)) / spread if spread else 1.0 for score in old]
        assert [hit.score for hit in hits] == pytest.approx(expected)
    assert after.kind is ScoreKind.MINMAX


@given(LISTS)
def test_zscore_has_mean_zero_and_deviation_one(lists: Lists) -> None:
    after = run(Normalise("zscore"), Ranking.of(lists))
    for hits in after:
        scores = np.array([hit.score for hit in hits])
        if len(set(lists[hits.qid].values())) > 1:
            assert scores.mean() == pytest.approx(0, abs=1e-5)
            assert scores.std() == pytest.approx(1, abs=1e-5)
        else:
            assert scores.tolist() == [0.0] * len(scores)
    assert after.kind is ScoreKind.ZSCORE


def test_a_list_of_one_and_a_list_of_equals_become_one() -> None:
    after = run(Normalise(), Ranking.of({"q1": {"a": -7.0}, "q2": {"a": 0.1, "b": 0.1, "c": 0.1}, "q3": {}}))
    assert after.scores.tolist() == [1.0] * 4
    after = run(Normalise("zscore"), Ranking.of({"q1": {"a": -7.0}, "q2": {"a": 0.1, "b": 0.1, "c": 0.1}}))
    assert after.scores.tolist() == [0.0] * 4


def test_an_unknown_method_is_refused_when_built() -> None:
    with pytest.raises(PipelineError, match="method is 'rank', 'minmax' or 'zscore' is needed"):
        Normalise("rank")  # type: ignore[arg-type]


# -- what fits -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda a, b: Pipeline(()), "at least one stage"),
        (lambda a, b: a >> (lambda ranking: ranking), r"stage 2 of the pipeline is <function .*, not a stage; wrap it"),
        (lambda a, b: Cut(0), "k is 0, at least 1"),
        (lambda a, b: a % -1, "k is -1, at least 1"),
        (lambda a, b: Union(()), "union: needs at least one stage"),
        (lambda a, b: a | 5, "union, branch 2 is 5, not a stage"),
        (lambda a, b: WeightedSum((), ()), "sum: needs at least one stage"),
        (lambda a, b: WeightedSum((a,), (1.0, 2.0)), "2 weights for 1 stages"),
        (lambda a, b: math.nan * a.minmax(), "weights are .nan,.; finite numbers are needed"),
        (lambda a, b: 0.5 * a + 0.5 * b, r"branch 1 \(Given\): its bm25 scores have no common scale; add .minmax"),
        (lambda a, b: 0.5 * a.minmax() + 0.5 * b.zscore(), "different kinds of scores .*minmax.*zscore"),
        (lambda a, b: 0.5 * a.minmax() + 0.5 * apply(len), "its unknown scores have no common scale"),
        (lambda a, b: a >> (0.5 * (a | b)), "its rank scores have no common scale"),
    ],
)
def test_what_does_not_fit_is_refused_when_built(build: Callable[[Stage, Stage], Any], message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        build(given_lists({}, "bm25"), given_lists({}, "cosine"))


def test_the_error_names_the_stage_before_what_is_missing_and_who_gives_it() -> None:
    @dataclass(frozen=True)
    class Reader(Stage):
        needs: ClassVar[frozenset[str]] = frozenset({"original_query", "terms"})

        def transform(self, ranking: Ranking, runtime: Runtime) -> Ranking:
            return ranking

    with pytest.raises(PipelineError) as caught:
        Cut(3) >> Reader()
    assert str(caught.value) == (
        "stage 2 (after cut): Reader needs original_query and terms, which nothing before it gives; "
        "given by: rewrite, rm3"
    )


def test_what_needs_documents_does_not_fit_first_where_only_queries_come() -> None:
    pipeline = Cut(5) >> Normalise()
    with pytest.raises(PipelineError, match=r"stage 1 \(first\): cut needs documents.*bm25"):
        pipeline.flow(FROM_QUERIES)
    assert pipeline.flow(FROM_ANYTHING) == Flow(frozenset({DOCUMENTS}), ScoreKind.MINMAX)


def test_what_a_function_gives_only_running_it_tells() -> None:
    first = apply(lambda ranking: Ranking.of({qid: {"d": 1.0} for qid in ranking.qids}))
    assert (first >> Cut(5)).flow(FROM_QUERIES) == Flow(frozenset({DOCUMENTS}), None)
    assert docnos(run(first >> Cut(5))) == {"q1": ["d"], "q2": ["d"]}
    with pytest.raises(PipelineError, match=r"its unknown scores have no common scale"):
        0.5 * (given_lists({}) >> first) + 0.5 * given_lists({})


def test_a_branch_without_documents_is_named() -> None:
    @dataclass(frozen=True)
    class Nothing(Stage):
        needs: ClassVar[frozenset[str]] = frozenset()

        def transform(self, ranking: Ranking, runtime: Runtime) -> Ranking:
            return ranking

    union = given_lists({}) | Nothing()
    with pytest.raises(PipelineError, match=r"union, branch 2 \(Nothing\) gives no documents"):
        union.flow(FROM_QUERIES)


def test_a_function_that_returns_no_ranking_is_named() -> None:
    def mistake(ranking: Ranking) -> int:
        return 3

    with pytest.raises(PipelineError, match="mistake returned int, a Ranking was expected"):
        run(apply(mistake))  # type: ignore[arg-type]


# -- the algebra ---------------------------------------------------------------------------


def test_chains_and_operators_of_a_kind_are_flat() -> None:
    a, b, c = Cut(1), Cut(2), Cut(3)
    assert ((a >> b) >> c) == (a >> (b >> c)) == Pipeline((a, b, c))
    assert (a | b | c) == (a | (b | c)) == Union((a, b, c))
    assert (a & b & c) == Intersection((a, b, c))
    assert (a ^ b ^ c) == Concatenation((a, b, c))
    assert ((a | b) & c) == Intersection((Union((a, b)), c))
    assert a % 7 == Pipeline((a, Cut(7)))


def test_a_named_or_described_pipeline_stays_whole_in_a_chain() -> None:
    for whole in (Pipeline((Cut(5),), name="n"), Pipeline((Cut(5),), description="d")):
        assert (whole >> Cut(3)).stages == (whole, Cut(3))


def test_weights_multiply_through_a_sum() -> None:
    a, b = Cut(1).minmax(), Cut(2).minmax()
    total = 2 * (0.25 * a + b * 0.5)
    assert total == WeightedSum((a, b), (0.5, 1.0))


def test_walk_gives_every_stage_inside() -> None:
    stage = Pipeline((Cut(1) | (Cut(2) >> Cut(3)), Cut(4)))
    assert [part.label for part in stage.walk()] == [
        "union >> cut",
        "union",
        "cut",
        "cut >> cut",
        "cut",
        "cut",
        "cut",
    ]


_leaves = st.one_of(st.builds(Cut, st.integers(1, 5)), st.builds(Normalise, st.sampled_from(["minmax", "zscore"])))


def _combined(inner: st.SearchStrategy[Stage]) -> st.SearchStrategy[Stage]:
    stages = st.lists(inner, min_size=1, max_size=3).map(tuple)
    names = st.sampled_from(["", "", "n'", 'ü "x"'])
    addable = inner.map(lambda stage: stage.minmax())
    return st.one_of(
        st.builds(Pipeline, stages, names, names),
        st.builds(Union, stages),
        st.builds(Intersection, stages),
        st.builds(Concatenation, stages),
        st.builds(lambda stage, w: w * stage, addable, st.floats(-5, 5)),
        st.builds(lambda one, two, w: w * one + 0.25 * two, addable, addable, st.floats(-5, 5)),
        st.builds(lambda stage: WeightedSum((stage,), (0.5,)), addable),
    )


STAGES = st.recursive(_leaves, _combined, max_leaves=6)
NAMES = {kind.__name__: kind for kind in (Cut, Normalise, Pipeline, Union, Intersection, Concatenation, WeightedSum)}


@given(STAGES)
def test_a_stage_s_representation_makes_an_equal_stage(stage: Stage) -> None:
    again = eval(repr(stage), dict(NAMES))  # noqa: S307
    assert again == stage
    assert hash(again) == hash(stage)
    assert repr(again) == repr(stage)


def test_a_sum_of_one_sum_is_written_out() -> None:
    inner = WeightedSum((Cut(1).minmax(),), (0.5,))
    outer = WeightedSum((inner,), (2.0,))
    assert eval(repr(outer), dict(NAMES)) == outer  # noqa: S307


def test_html_escapes_the_configuration() -> None:
    pipeline = Pipeline((Cut(1),), name="<b>")
    assert "<b>&lt;b&gt;</b>" in pipeline._repr_html_()
    assert (Cut(1) | Cut(2))._repr_html_().startswith("<pre>Union(of=")
