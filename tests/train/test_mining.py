"""Which documents make a group: filters, seats, intervals."""

from __future__ import annotations

import re
from collections.abc import Mapping
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank.data.corpus import MemoryCorpus
from rerank.errors import DataError
from rerank.ranking import Ranking, ScoreKind
from rerank.train.lists import Ranked
from rerank.train.mining import Drawn, Judged, Library, Miner, intervals
from rerank.train.sources import GroupSource, Interval, Margin, Negatives, Positives

N = 40
CORPUS = MemoryCorpus({f"d{number:02}": f"text {number}" for number in range(N)})
SCORES = {f"d{number:02}": 100.0 - number for number in range(20)}
"""A list of half the corpus, in the order of its ids."""


def ranked(scores: Mapping[str, float] = SCORES, kind: ScoreKind = ScoreKind.BM25, corpus: Any = CORPUS) -> Ranked:
    return Ranked(Ranking.of({"q": scores}, kind=kind, source=corpus), corpus, {})


def miner(lists: Ranked | None = None, corpus: Any = CORPUS, **fields: Any) -> Miner:
    return Miner(GroupSource(data="toy", **fields), Library(corpus), lists)


def judged(grades: Mapping[str, int], excluded: tuple[str, ...] = (), corpus: Any = CORPUS) -> Judged:
    codes = corpus.ids.find(list(grades)).tolist()
    out = frozenset(corpus.ids.find(list(excluded)).tolist())
    return Judged("q", dict(zip(codes, grades.values(), strict=True)), out)


def docnos(group: Drawn, corpus: Any = CORPUS) -> list[str]:
    return [str(d) for d in corpus.ids.take(np.array(group.codes))]


def groups_of(found: list[Drawn] | str) -> list[Drawn]:
    assert isinstance(found, list), found
    return found


# -- negatives ------------------------------------------------------------


@given(st.integers(0, 1000), st.integers(1, 10), st.integers(10, 20), st.sampled_from(["random", "top"]))
def test_mined_negatives_lie_in_the_rank_band(seed: int, first: int, last: int, pick: str) -> None:
    negatives = Negatives(run="x", from_rank=first, to_rank=last, pick=pick)
    (group,) = groups_of(miner(ranked(), negatives=negatives, seed=seed).judged_groups(judged({"d30": 1})))
    ranks = sorted(int(docno[1:]) + 1 for docno in docnos(group) if docno != "d30")
    in_band = [rank for rank in ranks if first <= rank <= last]
    assert len(group.codes) == 8
    assert len(in_band) == min(7, last - first + 1)
    if pick == "top":
        assert in_band == list(range(first, last + 1))[:7]


@given(st.integers(0, 1000), st.sets(st.integers(0, N - 1), min_size=1, max_size=30), st.integers(1, 3))
def test_a_judged_positive_and_an_excluded_document_are_never_negatives(seed: int, good: set[int], k: int) -> None:
    excluded = {f"d{number:02}" for number in range(0, N, 7)}
    grades = {docno: 1 for number in good if (docno := f"d{number:02}") not in excluded} or {"d01": 1}
    source = {"positives": Positives(k=k, groups=3), "negatives": Negatives(run="x", random=2), "seed": seed}
    for group in groups_of(miner(ranked(), **source).judged_groups(judged(grades, tuple(excluded)))):
        names = docnos(group)
        assert len(set(names)) == len(names)
        assert not excluded & set(names)
        assert all((docno in grades) == (label == 1.0) for docno, label in zip(names, group.labels, strict=True))
        assert 1 <= sum(group.labels) <= k


def test_no_two_groups_of_a_query_share_a_positive() -> None:
    grades = {f"d{number}": 1 for number in range(20, 27)}
    found = groups_of(miner(positives=Positives(k=2, groups=9)).judged_groups(judged(grades)))
    positives = [[docno for docno, label in zip(docnos(group), group.labels, strict=True) if label] for group in found]
    assert sorted(map(len, positives)) == [1, 2, 2, 2]
    assert sorted(docno for some in positives for docno in some) == sorted(grades)


def test_grades_below_a_positive_stay_as_labels_and_below_zero_count_as_zero() -> None:
    grades = {"d00": 1, "d01": 2, "d02": -1, "d30": 3}
    fields = {"positives": Positives(min_grade=2, k=2), "sizes": (4,), "negatives": Negatives(run="x", to_rank=4)}
    (group,) = groups_of(miner(ranked(), **fields).judged_groups(judged(grades)))
    labels = dict(zip(docnos(group), group.labels, strict=True))
    assert labels.items() <= {"d00": 1.0, "d01": 2.0, "d02": 0.0, "d03": 0.0, "d30": 3.0}.items()
    assert {"d01", "d30"} < set(labels)


def test_seats_that_lists_cannot_fill_go_to_random_documents_and_are_counted() -> None:
    mine = miner(ranked(), negatives=Negatives(run="x", to_rank=3, random=1))
    (group,) = groups_of(mine.judged_groups(judged({"d30": 1})))
    assert {"d00", "d01", "d02", "d30"} < set(docnos(group))
    assert len(group.codes) == 8
    assert mine.counts["random negatives in place of mined ones"] == 3


def test_random_negatives_come_from_outside_the_lists_as_long_as_there_are_any() -> None:
    for seed in range(20):
        mine = miner(ranked(), negatives=Negatives(run="x", from_rank=10, to_rank=20, random=7), seed=seed)
        (group,) = groups_of(mine.judged_groups(judged({"d30": 1})))
        assert all(docno >= "d20" for docno in docnos(group))
        assert not mine.counts["random negatives in place of mined ones"]
    corpus = MemoryCorpus({docno: docno for docno in SCORES})
    mine = miner(ranked(corpus=corpus), corpus, negatives=Negatives(run="x", random=2))
    (group,) = groups_of(mine.judged_groups(judged({"d03": 1}, corpus=corpus)))
    assert len(group.codes) == 8


def test_without_lists_all_negatives_are_random_and_none_counts_as_a_stand_in() -> None:
    mine = miner()
    (group,) = groups_of(mine.judged_groups(judged({"d30": 1})))
    assert len(group.codes) == 8
    assert not mine.counts["random negatives in place of mined ones"]


def test_a_small_corpus_makes_smaller_groups_which_are_counted() -> None:
    corpus = MemoryCorpus({"a": "one", "b": "two", "c": "three"})
    mine = miner(corpus=corpus)
    (group,) = groups_of(mine.judged_groups(judged({"a": 1}, corpus=corpus)))
    assert sorted(docnos(group, corpus)) == ["a", "b", "c"]
    assert mine.counts["groups smaller than drawn"] == 1


@pytest.mark.parametrize("lists", [None, ranked()])
def test_only_judged_documents_are_negatives_where_asked(lists: Ranked | None) -> None:
    grades = {"d03": 0, "d05": 0, "d30": 1, "d31": 0}
    (group,) = groups_of(miner(lists, negatives=Negatives(only_judged=True)).judged_groups(judged(grades)))
    assert set(docnos(group)) == ({"d03", "d05", "d30"} if lists else set(grades))


def test_empty_texts_and_the_texts_of_positives_are_no_negatives() -> None:
    corpus = MemoryCorpus({"a": "same  text", "b": "same text\n", "c": " ", "d": "other", "e": "more"})
    lists = ranked({"b": 3.0, "c": 2.0, "d": 1.0}, corpus=corpus)
    mine = miner(lists, corpus, negatives=Negatives(run="x", pick="top"))
    (group,) = groups_of(mine.judged_groups(judged({"a": 1}, corpus=corpus)))
    assert sorted(docnos(group, corpus)) == ["a", "d", "e"]
    assert mine.counts["negatives with the text of a positive"]
    assert mine.counts["negatives without text"]


@pytest.mark.parametrize(
    ("grades", "positives", "reason"),
    [
        ({"d01": 0}, Positives(), r"no positive \(grade 1 or more\)$"),
        ({"d01": 2}, Positives(min_grade=3), r"no positive \(grade 3 or more\)$"),
        ({"d30": 1}, Positives(ranked=True), "no positive in the lists"),
    ],
)
def test_a_query_that_gives_no_group_says_why(grades: dict[str, int], positives: Positives, reason: str) -> None:
    found = miner(ranked(), positives=positives).judged_groups(judged(grades))
    assert isinstance(found, str)
    assert re.search(reason, found)


def test_a_query_with_nothing_but_positives_gives_no_group() -> None:
    corpus = MemoryCorpus({"a": "one", "b": "two"})
    assert miner(corpus=corpus).judged_groups(judged({"a": 1, "b": 1}, corpus=corpus)) == "no negative"


def test_ranked_positives_are_those_that_the_lists_hold() -> None:
    grades = {"d04": 1, "d15": 1, "d30": 1}
    fields = {"positives": Positives(groups=9, ranked=True), "negatives": Negatives(run="x", to_rank=10)}
    (group,) = groups_of(miner(ranked(), **fields).judged_groups(judged(grades)))
    assert "d04" in docnos(group)


# -- margin ------------------------------------------------------------


def test_a_margin_takes_out_what_scores_too_near_the_positive() -> None:
    mine = miner(ranked(), negatives=Negatives(run="x", pick="top", margin=Margin(share=0.05)), sizes=(4,))
    (group,) = groups_of(mine.judged_groups(judged({"d02": 1})))
    # The positive scores 98: 95 % of it are 93.1, which d07 (93) is the first to lie below.
    assert sorted(docnos(group)) == ["d02", "d07", "d08", "d09"]
    assert mine.counts["negatives that the margin took out"] == 6


def test_of_several_positives_the_lowest_counts_and_one_without_a_score_lies_below_all() -> None:
    negatives = Negatives(run="x", margin=Margin(share=0.0))
    fields = {"positives": Positives(k=2), "negatives": negatives}
    low = groups_of(miner(ranked(), **fields).judged_groups(judged({"d02": 1, "d16": 1})))
    assert {"d17", "d18", "d19"} < set(docnos(low[0]))
    assert all(docno >= "d16" for docno in docnos(low[0]) if docno != "d02" and docno < "d20")
    mine = miner(ranked(), **fields)
    unscored = groups_of(mine.judged_groups(judged({"d02": 1, "d30": 1})))
    assert {docno for docno in docnos(unscored[0]) if docno < "d20"} == {"d02"}
    assert mine.counts["groups with a positive that the margin has no score of"] == 1
    assert mine.counts["random negatives in place of mined ones"] == 6


def test_a_margin_may_compare_the_scores_of_another_system() -> None:
    mine = miner(ranked(), negatives=Negatives(run="x", pick="top", margin=Margin(share=0.0)), sizes=(3,))
    mine.scores = ranked({docno: -score for docno, score in SCORES.items()} | {"d30": -99.5})
    (group,) = groups_of(mine.judged_groups(judged({"d30": 1})))
    assert set(docnos(group)) >= {"d00", "d30"}
    assert mine.counts["random negatives in place of mined ones"] == 1


@pytest.mark.parametrize("lists", [None, ranked(kind=ScoreKind.RANK)])
def test_a_margin_without_scores_is_an_error(lists: Ranked | None) -> None:
    with pytest.raises(DataError, match=r"a margin compares scores, but (there are none|these are rank scores)"):
        miner(lists, negatives=Negatives(margin=Margin())).judged_groups(judged({"d01": 1}))


# -- intervals ------------------------------------------------------------


@given(st.integers(2, 60), st.integers(2, 60))
def test_intervals_are_all_the_ways_to_take_places_at_equal_steps(n: int, size: int) -> None:
    found = [tuple(places) for step in intervals(n, size) for places in step] if size <= n else []
    expected = {
        tuple(range(start, n, step))[:size]
        for start in range(n)
        for step in range(1, n)
        if start + step * (size - 1) < n and size <= n
    }
    assert set(found) == expected
    assert len(found) == len(expected)


def test_the_published_sub_lists_are_among_them() -> None:
    found = [tuple(places) for step in intervals(50, 10) for places in step]
    assert tuple(range(0, 50, 5)) in found
    assert tuple(range(10)) in found


@given(
    st.integers(0, 500), st.integers(2, 20), st.integers(0, 18), st.lists(st.integers(2, 9), min_size=1, unique=True)
)
@settings(max_examples=50)
def test_interval_groups_are_different_sub_lists_in_the_order_of_labels(
    seed: int, first: int, drawn: int, sizes: list[int]
) -> None:
    drawn = min(drawn, 20 - first)
    interval = Interval(run="x", first=first, drawn=drawn, to_rank=20, groups=5)
    grades = {f"d{number:02}": number % 4 for number in range(0, 20, 2)}
    mine = miner(ranked(), interval=interval, sizes=tuple(sizes), seed=seed)
    query = judged(grades)
    pool = mine.pool(query, interval)
    assert pool[:first] == CORPUS.ids.find([f"d{number:02}" for number in range(first)]).tolist()
    assert len(pool) == first + drawn
    assert pool == sorted(pool)
    found = mine.interval_groups(query, pool, 5)
    if isinstance(found, str):
        assert found == "labels that are all equal"
        return
    sets = [frozenset(group.codes) for group in found]
    assert len(set(sets)) == len(sets) <= 5
    gold = sorted(pool, key=lambda code: -query.label(code))
    for group in found:
        places = sorted(gold.index(code) for code in group.codes)
        assert len(set(np.diff(places))) <= 1
        assert len(places) in {min(size, len(pool)) for size in sizes}
        assert list(group.labels) == [query.label(code) for code in group.codes]


def test_only_judged_documents_are_in_intervals_where_asked() -> None:
    interval = Interval(run="x", first=2, drawn=18, to_rank=20, only_judged=True)
    grades = {"d01": 1, "d07": 0, "d11": 2}
    mine, query = miner(ranked(), interval=interval, sizes=(3,)), judged(grades)
    (group,) = groups_of(mine.interval_groups(query, mine.pool(query, interval), 9))
    assert set(docnos(group)) == set(grades)


def test_a_teacher_orders_intervals_and_what_it_misses_gets_its_lowest_score() -> None:
    interval = Interval(run="x", first=4, drawn=0)
    mine = miner(ranked(), interval=interval, sizes=(4,))
    mine.labels = ranked({"d00": 0.5, "d02": 2.5, "d25": -1.0})
    (group,) = groups_of(mine.interval_groups(judged({}), mine.pool(judged({}), interval), 9))
    labels = dict(zip(docnos(group), group.labels, strict=True))
    assert labels == {"d00": 0.5, "d01": -1.0, "d02": 2.5, "d03": -1.0}
    assert mine.counts["documents that the teacher did not score"] == 2


def test_sizes_come_as_often_as_their_weights_say() -> None:
    interval = Interval(run="x", first=20, drawn=0, to_rank=20)
    grades = {f"d{number:02}": number for number in range(20)}
    mine = miner(ranked(), interval=interval, sizes=(2, 3, 4), weights=(3.0, 0.0, 1.0))
    query = judged(grades)
    sizes = [len(group.codes) for group in groups_of(mine.interval_groups(query, mine.pool(query, interval), 60))]
    assert set(sizes) == {2, 4}
    assert sizes.count(2) > sizes.count(4)


@pytest.mark.parametrize("fields", [{"interval": Interval()}, {"positives": Positives(ranked=True)}])
def test_what_needs_lists_is_refused_without(fields: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="there are no lists that"):
        miner(None, **fields)


# -- order ------------------------------------------------------------


def test_the_place_of_the_positive_tells_nothing() -> None:
    places = [0] * 8
    for seed in range(400):
        (group,) = groups_of(miner(seed=seed).judged_groups(judged({"d00": 1})))
        places[group.labels.index(1.0)] += 1
    # 50 expected in each place; 6 standard deviations are 40.
    assert min(places) > 10
    assert max(places) < 90


@given(st.integers(1, 30), st.integers(0, 50))
def test_a_random_order_of_the_corpus_has_every_document_once(n: int, seed: int) -> None:
    texts = {f"d{number}": "x" for number in range(n)}
    forward, backward = (Library(MemoryCorpus(dict(some))) for some in (texts.items(), reversed(texts.items())))
    order = [str(d) for d in forward.corpus.ids.take(np.array(list(forward.drawn(Random(seed)))))]
    assert sorted(order) == sorted(texts)
    assert order == [str(d) for d in backward.corpus.ids.take(np.array(list(backward.drawn(Random(seed)))))]
