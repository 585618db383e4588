"""A judge that is never wrong: the right documents in the right order, for lists of every length up to 200."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rule_examples import right_order, shuffled_grades

from rerank.rules.groupwise import Groupwise
from rerank.rules.judges import FakeJudge, play
from rerank.rules.listwise import Listwise
from rerank.rules.pairwise import Pairwise
from rerank.rules.pointwise import Pointwise
from rerank.rules.setwise import Setwise
from rerank.rules.tournament import Tournament

LENGTHS = range(1, 201)
LISTS = {n: shuffled_grades(n, n) for n in LENGTHS}
PICKS = {n: FakeJudge(grades, "pick") for n, grades in LISTS.items()}
RIGHT = {n: right_order(grades) for n, grades in LISTS.items()}


def test_pointwise_orders_the_whole_list():
    for n in LENGTHS:
        assert play(Pointwise(), n, FakeJudge(LISTS[n])).order == RIGHT[n]


@pytest.mark.parametrize("merge", ["mean", "offsets"])
def test_groupwise_orders_the_whole_list_when_scores_are_absolute(merge):
    for n in LENGTHS:
        for rule in (Groupwise(merge=merge), Groupwise(20, 2, 10, merge)):
            assert play(rule, n, FakeJudge(LISTS[n]), str(n)).order == RIGHT[n]


@pytest.mark.parametrize("merge", ["mean", "offsets"])
@given(grades=st.lists(st.integers(0, 10), max_size=60), passes=st.integers(1, 3))
def test_groupwise_settles_equal_grades_by_first_stage_rank(merge, grades, passes):
    tenths = tuple(grade / 10 for grade in grades)
    outcome = play(Groupwise(7, passes, 5, merge), len(grades), FakeJudge(tenths))
    assert outcome.order == right_order(tenths)
    assert outcome.scores == pytest.approx(sorted(tenths, reverse=True))


def test_setwise_heap_sort_settles_the_first_k_for_every_set_size():
    for n in LENGTHS:
        for size in range(3, 21):
            k = (1, 4, n, n + 1)[(n + size) % 4] if n < 30 else 1 + (n + size) % 5
            judge = PICKS[n]
            assert play(Setwise(k=k, size=size, shuffle=False), n, judge).order[:k] == RIGHT[n][:k]


@pytest.mark.parametrize("form", ["order", "scores"])
def test_setwise_merging_settles_the_first_k_for_every_set_size(form):
    for n in LENGTHS:
        for size in (3 + n % 5, 20):
            k = (1, 10, n)[n % 3]
            judge = FakeJudge(LISTS[n], form)
            assert play(Setwise(k=k, size=size, shuffle=False), n, judge).order[:k] == RIGHT[n][:k]


@settings(max_examples=60)
@given(
    n=st.integers(1, 60),
    k=st.integers(1, 60),
    size=st.integers(2, 20),
    sort=st.sampled_from(["heap", "bubble"]),
    form=st.sampled_from(["pick", "order", "scores"]),
    votes=st.integers(1, 3),
    seed=st.integers(0, 999),
)
def test_setwise_settles_any_k(n, k, size, sort, form, votes, seed):
    grades = shuffled_grades(n, seed)
    rule = Setwise(sort, k, max(size, 3) if sort == "heap" else size, votes)
    assert play(rule, n, FakeJudge(grades, form)).order[:k] == right_order(grades)[:k]


def test_setwise_bubble_sort_settles_the_first_k():
    for n in LENGTHS:
        k = 1 + n % 10
        judge = FakeJudge(LISTS[n], "pick")
        assert play(Setwise("bubble", k, shuffle=False), n, judge).order[:k] == RIGHT[n][:k]


def test_pairwise_settles_the_first_k():
    for n in LENGTHS:
        judge = FakeJudge(LISTS[n])
        k = (1, 10, n)[n % 3]
        assert play(Pairwise(k=k), n, judge).order[:k] == RIGHT[n][:k]
        k = 1 + n % 3
        assert play(Pairwise("bubble", k), n, judge).order[:k] == RIGHT[n][:k]


def test_all_pairs_order_the_whole_list():
    for n in (*range(1, 30), 64, 100, 200):
        assert play(Pairwise("all"), n, FakeJudge(LISTS[n])).order == RIGHT[n]


@pytest.mark.parametrize("form", ["order", "scores"])
def test_one_listwise_pass_settles_as_many_places_as_neighbouring_windows_share(form):
    for n in LENGTHS:
        for window, step in ((20, 10), (4, 2), (2, 1), (5, 1), (10, 3)):
            shared = window - step
            order = play(Listwise(window, step), n, FakeJudge(LISTS[n], form)).order
            assert order[:shared] == RIGHT[n][:shared]


@pytest.mark.parametrize("form", ["pick", "order", "scores"])
def test_the_best_document_is_among_the_first_two_of_a_tournament(form):
    for n in LENGTHS:
        for rule in (Tournament(), Tournament(2, size=3 + n % 9)):
            if form == "pick" and n > 2:
                continue
            assert RIGHT[n][0] in play(rule, n, FakeJudge(LISTS[n], form)).order[:2]


@pytest.mark.parametrize(
    "rule", [Pointwise(), Setwise(k=25), Setwise("bubble", k=25), Pairwise("all"), Pairwise(k=25), Groupwise()]
)
def test_a_judge_that_lies_turns_the_order_round(rule):
    grades = shuffled_grades(25)
    assert play(rule, 25, FakeJudge(grades, lies=True)).order == right_order(grades)[::-1]


@pytest.mark.parametrize(
    "rule",
    [Pointwise(), Groupwise(7, 4), Setwise(size=8), Setwise("bubble", size=8), Listwise(), Tournament(3), Pairwise()],
)
def test_a_noisy_judge_still_brings_good_documents_up(rule):
    hits = 0
    for seed in range(10):
        grades = shuffled_grades(80, seed)
        order = play(rule, 80, FakeJudge(grades, noise=8.0, seed=seed), str(seed)).order
        hits += sum(grades[place] > 70 for place in order[:10])
    assert hits > 55  # of 100; 12 by chance
