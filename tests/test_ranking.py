"""The frame: invariants, order and ties, verbs, views, tables."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank.data.corpus import MemoryCorpus
from rerank.errors import DataError, RankingError
from rerank.ids import MemoryIds
from rerank.ranking import Ranking, ScoreKind, merge_tables, order_rows

# Few distinct scores, so that most lists hold ties; two of them differ only beyond float32.
TIED = st.sampled_from([0.0, -0.0, 1.0, 1.0 + 1e-9, 1.0 - 1e-9, 2.5, -3.0, 1e300, -1e300, 5e-324])
DOCNOS = st.sampled_from([f"d{i}" for i in range(12)] + ["ä", "z", "Z", "中", "10", "9"])
LISTS = st.dictionaries(
    st.sampled_from(["q1", "q2", "q3", "ü"]), st.dictionaries(DOCNOS, TIED, max_size=12), max_size=4
)


def in_order(hits: dict[str, float]) -> list[str]:
    """The documents by falling score, ties by id: the rule, in plain Python."""
    return sorted(hits, key=lambda docno: (-hits[docno], docno))


def lists_of(ranking: Ranking) -> dict[str, list[str]]:
    return {hits.qid: hits.docnos for hits in ranking}


def check(ranking: Ranking) -> None:
    """Builds the ranking again from its parts, so that every invariant is looked at."""
    again = dataclasses.replace(ranking)
    assert again == ranking
    assert ranking.scores.dtype == np.float32
    assert ranking.offsets.dtype == np.int64


# -- order -------------------------------------------------------------------


@given(LISTS)
def test_documents_come_by_falling_score_and_ties_by_id(lists: dict[str, dict[str, float]]) -> None:
    ranking = Ranking.of(lists)
    check(ranking)
    assert lists_of(ranking) == {qid: in_order(hits) for qid, hits in lists.items()}


@given(st.lists(st.lists(TIED, max_size=8), max_size=6), st.sampled_from([np.float32, np.float64]), st.randoms())
def test_order_rows_sorts_each_list_in_the_precision_given(
    scores: list[list[float]], dtype: type[np.float32 | np.float64], random: Any
) -> None:
    with np.errstate(over="ignore"):
        flat = np.array([score for row in scores for score in row]).astype(dtype)
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in scores])]).astype(np.int64)
    keys = np.arange(len(flat))
    random.shuffle(keys)
    rows = order_rows(flat, offsets, lambda some: keys[some])
    expected = [
        row
        for start, stop in pairwise(offsets.tolist())
        for row in sorted(range(start, stop), key=lambda row: (-flat[row], keys[row]))
    ]
    assert rows.tolist() == expected


def test_order_is_decided_before_scores_are_stored_in_less_precision() -> None:
    ranking = Ranking.of({"q": {"a": 1.000000001, "b": 1.000000003, "c": 1.000000002}})
    assert ranking["q"].docnos == ["b", "c", "a"]
    assert set(ranking.scores.tolist()) == {1.0}


def test_ties_go_by_code_point_whatever_the_codes() -> None:
    ids = MemoryIds(["b", "ä", "a", "Z", "10", "9"])
    ranking = Ranking.start({"q": ""}).with_documents(
        np.array([0, 6]), np.arange(6), np.zeros(6), ScoreKind.UNKNOWN, ids
    )
    assert ranking["q"].docnos == ["10", "9", "Z", "a", "b", "ä"]


def test_a_finite_score_beyond_float32_is_held_at_its_limit_and_keeps_its_place() -> None:
    ranking = Ranking.of({"q": {"a": 1e39, "b": 1e40, "c": -1e39, "d": 0.0}})
    assert ranking["q"].docnos == ["b", "a", "d", "c"]
    assert np.isfinite(ranking.scores).all()


# -- invariants -----------------------------------------------------------------


def parts(**changes: Any) -> dict[str, Any]:
    good = {
        "qids": ("q1", "q2"),
        "queries": ("one", "two"),
        "offsets": np.array([0, 2, 3]),
        "docs": np.array([0, 1, 0]),
        "scores": np.array([2, 1, 5], dtype=np.float32),
        "ids": MemoryIds(["a", "b"]),
    }
    return {**good, **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qids": ("q1", "q1")}, "query id 'q1' occurs more than once"),
        ({"queries": ("one",)}, "1 query texts for 2 query ids"),
        ({"offsets": np.array([0, 3])}, "offsets must rise from 0 to 3 in 3 steps"),
        ({"offsets": np.array([0, 2, 4])}, "offsets must rise from 0 to 3"),
        ({"offsets": np.array([1, 2, 3])}, "offsets must rise"),
        ({"offsets": np.array([0, 4, 3])}, "offsets must rise"),
        ({"scores": np.ones(2, dtype=np.float32)}, "2 scores for 3 documents"),
        ({"scores": np.array([2, np.nan, 5], np.float32)}, "query 'q1': document 'b' has the score nan"),
        ({"scores": np.array([2, 1, np.inf], np.float32)}, "query 'q2': document 'a' has the score inf"),
        ({"docs": np.array([0, 2, 0])}, "codes must lie in 0 .. 1"),
        ({"docs": np.array([0, -1, 0])}, "codes must lie in 0 .. 1"),
        ({"scores": np.array([1, 2, 5], np.float32)}, "query 'q1': document 'b' has a higher score"),
        ({"docs": np.array([1, 1, 0])}, "query 'q1': document 'b' occurs more than once"),
        ({"columns": {"x": np.ones(2)}}, "column 'x' has 2 values for 3 rows"),
        ({"query_columns": {"x": np.ones(3)}}, "query column 'x' has 3 values for 2 queries"),
    ],
)
def test_a_broken_invariant_is_refused_with_its_place(changes: dict[str, Any], message: str) -> None:
    Ranking(**parts())
    with pytest.raises(RankingError, match=message):
        Ranking(**parts(**changes))


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_scores_must_be_finite_however_a_ranking_is_made(score: float) -> None:
    with pytest.raises(RankingError, match="finite"):
        Ranking.of({"q": {"a": 1.0, "b": score}})
    with pytest.raises(RankingError, match="query 'q': document 'b' got the score"):
        Ranking.of({"q": {"a": 1.0, "b": 0.5}}).rescored(np.array([1.0, score]), ScoreKind.LOGIT)


def test_a_document_twice_in_what_a_stage_found_is_refused() -> None:
    with pytest.raises(RankingError, match="document 'a' occurs more than once"):
        Ranking.start({"q": ""}).with_documents(
            np.array([0, 2]), np.zeros(2, dtype=np.int64), np.ones(2), ScoreKind.DOT, MemoryIds(["a"])
        )


def test_empty_lists_between_full_ones_keep_every_invariant() -> None:
    lists = {"a": {}, "b": {"d1": 1.0, "d2": 2.0}, "c": {}, "d": {}, "e": {"d1": 9.0}, "f": {}}
    ranking = Ranking.of(lists)
    check(ranking)
    assert lists_of(ranking) == {"a": [], "b": ["d2", "d1"], "c": [], "d": [], "e": ["d1"], "f": []}


def test_no_queries_at_all_is_a_ranking() -> None:
    for ranking in (Ranking.of({}), Ranking.start({})):
        check(ranking)
        assert len(ranking) == 0
        assert list(ranking) == []
        assert ranking.to_dict() == {}
        assert ranking.cut(3).subset([]).keep(np.zeros(0, dtype=bool)) == ranking


# -- verbs ------------------------------------------------------------------------


@given(LISTS, st.integers(1, 14))
def test_cut_gives_each_list_s_head(lists: dict[str, dict[str, float]], k: int) -> None:
    ranking = Ranking.of(lists)
    head = ranking.cut(k)
    check(head)
    assert lists_of(head) == {qid: docnos[:k] for qid, docnos in lists_of(ranking).items()}
    assert head.cut(k + 1) == head


@given(LISTS, st.randoms())
def test_keep_gives_the_marked_rows_in_their_order(lists: dict[str, dict[str, float]], random: Any) -> None:
    ranking = Ranking.of(lists).with_column("row", np.arange(sum(map(len, lists.values()))))
    mask = np.array([random.random() < 0.5 for _ in ranking.docs], dtype=bool)
    kept = ranking.keep(mask)
    check(kept)
    assert kept.columns["row"].tolist() == np.flatnonzero(mask).tolist()
    wanted = iter(mask)
    assert lists_of(kept) == {
        qid: [docno for docno in docnos if next(wanted)] for qid, docnos in lists_of(ranking).items()
    }


@given(LISTS, st.data())
def test_rescored_orders_the_same_documents_by_the_new_scores(lists: dict[str, dict[str, float]], data: Any) -> None:
    ranking = Ranking.of(lists)
    new = np.array([data.draw(TIED) for _ in ranking.docs], dtype=np.float64)
    again = ranking.rescored(new, ScoreKind.LOGIT, {"new": new})
    check(again)
    by_id = iter(new.tolist())
    named = {qid: {docno: next(by_id) for docno in docnos} for qid, docnos in lists_of(ranking).items()}
    assert lists_of(again) == {qid: in_order(hits) for qid, hits in named.items()}
    assert again.kind is ScoreKind.LOGIT
    rows = zip(again.row_queries().tolist(), again.docnos().tolist(), strict=True)
    assert again.columns["new"].tolist() == [named[again.qids[q]][docno] for q, docno in rows]


def test_rescored_wants_a_score_for_every_document() -> None:
    with pytest.raises(RankingError, match="1 scores for 2 documents"):
        Ranking.of({"q": {"a": 1.0, "b": 2.0}}).rescored(np.ones(1), ScoreKind.LOGIT)


@given(LISTS, st.data())
def test_subset_gives_the_named_queries_in_the_order_asked(lists: dict[str, dict[str, float]], data: Any) -> None:
    ranking = Ranking.of(lists).with_query_column("n", np.arange(len(lists)))
    qids = data.draw(st.permutations(list(lists)))
    qids = qids[: data.draw(st.integers(0, len(qids)))]
    some = ranking.subset(qids)
    check(some)
    assert list(some.qids) == qids
    assert lists_of(some) == {qid: lists_of(ranking)[qid] for qid in qids}
    assert some.query_columns["n"].tolist() == [list(lists).index(qid) for qid in qids]


def test_subset_names_a_query_that_is_not_there() -> None:
    with pytest.raises(DataError, match="query 'q11' is not in the ranking; did you mean 'q1'"):
        Ranking.of({"q1": {}}).subset(["q11"])


@given(LISTS)
def test_ranked_counts_down_to_one(lists: dict[str, dict[str, float]]) -> None:
    ranking = Ranking.of(lists)
    ranked = ranking.ranked()
    check(ranked)
    assert lists_of(ranked) == lists_of(ranking)
    assert ranked.scores.tolist() == [n for hits in lists.values() for n in range(len(hits), 0, -1)]
    assert ranked.kind is ScoreKind.RANK


def test_the_first_query_text_stays_through_two_rewritings() -> None:
    ranking = Ranking.start({"q": "one"}).with_queries(["two"]).with_queries(["three"])
    assert ranking.queries == ("three",)
    assert ranking.query_columns["original_query"].tolist() == ["one"]


def test_rows_columns_follow_their_rows() -> None:
    ranking = Ranking.of({"q1": {"a": 1.0, "b": 2.0}, "q2": {"a": 3.0}})
    named = ranking.with_column("name", np.array(["b1", "a1", "a2"], dtype=object))
    assert named.subset(["q2", "q1"]).columns["name"].tolist() == ["a2", "b1", "a1"]
    assert named.cut(1).columns["name"].tolist() == ["b1", "a2"]
    assert named.rescored(np.array([1.0, 5.0, 0.0]), ScoreKind.DOT).columns["name"].tolist() == ["a1", "b1", "a2"]


VERBS: dict[str, Callable[[Ranking], Ranking]] = {
    "cut": lambda r: r.cut(1),
    "keep": lambda r: r.keep(np.array([True, False, True])),
    "rescored": lambda r: r.rescored(np.array([1.0, 2.0, 3.0]), ScoreKind.LOGIT),
    "ranked": lambda r: r.ranked(),
    "with_queries": lambda r: r.with_queries(["x", "y"]),
    "with_column": lambda r: r.with_column("c", np.zeros(3)),
    "with_query_column": lambda r: r.with_query_column("c", np.zeros(2)),
    "subset": lambda r: r.subset(["q2"]),
    "merge": lambda r: merge_tables([Ranking.of({"q1": {"z": 1.0}, "q2": {}}), r])[1],
}


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_leave_their_ranking_as_it_was(verb: str) -> None:
    ranking = Ranking.of({"q1": {"a": 2.0, "b": 1.0}, "q2": {"a": 1.0}}, {"q1": "one", "q2": "two"})
    before = (ranking.to_dict(), ranking.queries, dict(ranking.columns), dict(ranking.query_columns), ranking.kind)
    for array in (ranking.docs, ranking.scores, ranking.offsets):
        array.flags.writeable = False
    check(VERBS[verb](ranking))
    assert before == (
        ranking.to_dict(),
        ranking.queries,
        dict(ranking.columns),
        dict(ranking.query_columns),
        ranking.kind,
    )


# -- id tables and texts -----------------------------------------------------------


def test_equality_does_not_look_at_codes() -> None:
    one = Ranking.of({"q": {"a": 2.0, "b": 1.0}})
    other = merge_tables([Ranking.of({"q": {"z": 1.0, "b": 0.5}}), one])[1]
    assert one.docs.tolist() != other.docs.tolist()
    assert one == other
    assert one != other.ranked()
    assert one != Ranking.of({"q": {"a": 2.0, "b": 1.5}})
    assert one != "q"


def test_with_source_goes_over_to_the_corpus_codes() -> None:
    corpus = MemoryCorpus({"z": "last", "b": "bee", "a": "aye"})
    ranking = Ranking.of({"q": {"a": 2.0, "b": 1.0}}).with_source(corpus)
    assert ranking.ids is corpus.ids
    assert [hit.text for hit in ranking["q"]] == ["aye", "bee"]


def test_with_source_counts_documents_that_the_corpus_lacks() -> None:
    ranking = Ranking.of({"q": {"a": 3.0, "b": 2.0, "c": 1.0}})
    with pytest.raises(DataError, match=r"2 of 3 ranked documents are not in the corpus, e\.g\. 'b'"):
        ranking.with_source(MemoryCorpus({"a": "aye"}))


def test_a_document_that_the_text_source_lacks_is_refused() -> None:
    with pytest.raises(DataError, match="document 'x' is not in the given text source"):
        Ranking.of({"q": {"a": 1.0, "x": 2.0}}, source=MemoryCorpus({"a": "aye"}))


def test_texts_are_found_by_id_when_a_merge_gave_other_codes_than_the_corpus() -> None:
    corpus = MemoryCorpus({"a": "aye", "b": "bee"})
    stranger = Ranking.of({"q": {"z": 1.0, "b": 0.5}})
    merged = merge_tables([stranger, Ranking.of({"q": {"b": 2.0, "a": 1.0}}, source=corpus)])[1]
    assert merged.ids is not corpus.ids
    assert merged.texts() == ["bee", "aye"]
    assert [hit.text for hit in merged["q"]] == ["bee", "aye"]
    lost = dataclasses.replace(merged, docs=merged.ids.find(["b", "z"]))
    with pytest.raises(DataError, match="document 'z' is not in the corpus"):
        lost.texts()


def test_texts_without_a_corpus_are_an_error() -> None:
    with pytest.raises(DataError, match="knows no document texts"):
        Ranking.of({"q": {"a": 1.0}}).texts()


# -- reading ---------------------------------------------------------------------


def test_hits_are_a_view_with_ranks_from_one() -> None:
    hits = Ranking.of({"q": {"a": 1.0, "b": 3.0, "c": 2.0}}, {"q": "why"})["q"]
    assert (hits.qid, hits.query, len(hits)) == ("q", "why", 3)
    assert [(hit.docno, hit.rank, hit.score, hit.text) for hit in hits] == [
        ("b", 1, 3.0, None),
        ("c", 2, 2.0, None),
        ("a", 3, 1.0, None),
    ]
    assert hits[-1] == hits[2]
    assert hits[1:] == [hits[1], hits[2]]
    with pytest.raises(IndexError, match="hit 3 of a list of 3"):
        hits[3]
    assert repr(hits) == "Hits('q', 3 documents: b 3, c 2, a 1)"


def test_a_query_is_found_by_its_id() -> None:
    ranking = Ranking.of({"q1": {}, "q2": {}})
    assert "q1" in ranking
    assert "q3" not in ranking
    with pytest.raises(KeyError, match="did you mean 'q1'"):
        ranking["q11"]


@given(LISTS)
def test_of_reads_back_what_to_dict_gives(lists: dict[str, dict[str, float]]) -> None:
    ranking = Ranking.of(lists)
    again = Ranking.of(ranking.ranked().to_dict())
    assert lists_of(again) == lists_of(ranking)


def test_html_escapes_ids_queries_and_texts() -> None:
    corpus = MemoryCorpus({"<d>": "<script>alert(1)</script>"})
    ranking = Ranking.of({"<q>": {"<d>": 1.0}}, {"<q>": "<b>"}, source=corpus)
    shown = ranking._repr_html_() + ranking["<q>"]._repr_html_()
    assert not any(bad in shown for bad in ("<script>", "<b>", "<d>", "<q>"))
    assert "&lt;script&gt;" in shown


# -- frames -------------------------------------------------------------------------


def test_a_frame_holds_every_column_in_pyterrier_s_names() -> None:
    pytest.importorskip("pandas")
    ranking = Ranking.of({"q1": {"a": 1.0, "b": 2.0}, "q2": {"a": 3.0}}, {"q1": "one", "q2": "two"})
    ranking = ranking.with_column("x", np.arange(3)).with_query_column("language", np.array(["de", "en"], dtype=object))
    frame = ranking.to_frame()
    assert list(frame.columns) == ["qid", "query", "docno", "score", "rank", "language", "x"]
    assert frame["rank"].tolist() == [0, 1, 0]
    assert frame["language"].tolist() == ["de", "de", "en"]
    assert Ranking.from_frame(frame).to_dict() == ranking.to_dict()
    assert Ranking.from_frame(frame).queries == ("one", "two")


def frame_of(rows: list[tuple[Any, ...]], columns: list[str]) -> Any:
    return pytest.importorskip("pandas").DataFrame(rows, columns=columns)


@pytest.mark.parametrize("docnos", [("a", "a"), (1, 1)])
def test_a_frame_with_a_document_twice_is_refused(docnos: tuple[Any, Any]) -> None:
    frame = frame_of([("q", docnos[0], 1.0), ("q", docnos[1], 2.0)], ["qid", "docno", "score"])
    with pytest.raises(RankingError, match="occurs more than once in the frame"):
        Ranking.from_frame(frame)


def test_a_frame_without_scores_is_refused() -> None:
    with pytest.raises(DataError, match="no column 'score'; it has qid, docno"):
        Ranking.from_frame(frame_of([("q", "d")], ["qid", "docno"]))


def test_a_frame_of_numbers_gives_text_ids() -> None:
    ranking = Ranking.from_frame(frame_of([(7, 12, 1.0)], ["qid", "docno", "score"]))
    assert lists_of(ranking) == {"7": ["12"]}


def test_positions_and_row_queries_follow_the_offsets() -> None:
    ranking = Ranking.of({"a": {}, "b": {"x": 2.0, "y": 1.0}, "c": {"x": 1.0}})
    expected: tuple[npt.NDArray[np.int64], ...] = (np.array([0, 1, 0]), np.array([1, 1, 2]))
    assert ranking.positions().tolist() == expected[0].tolist()
    assert ranking.row_queries().tolist() == expected[1].tolist()
