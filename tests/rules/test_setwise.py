"""Picks, votes, heaps and whole orders."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rule_examples import right_order, shuffled_grades

from rerank.rules.judges import FakeJudge, play
from rerank.rules.rule import Answer, Group
from rerank.rules.setwise import Setwise
from rerank.rules.sorting import family, heap_levels


@given(n=st.integers(0, 300), children=st.integers(1, 19))
def test_the_levels_of_a_heap_hold_every_inner_node_after_its_children(n, children):
    levels = heap_levels(n, children)
    built: set[int] = set()
    for level in levels:
        below = [place for node in level for place in family(node, n, children)]
        assert len(below) == len(set(below))
        assert all(place in built or children * place + 1 >= n for place in below if place not in level)
        built.update(level)
    assert built == {node for node in range(n) if children * node + 1 < n}


@pytest.mark.parametrize("n", [2, 3, 12, 20])
@pytest.mark.parametrize("form", ["pick", "order"])
def test_one_call_finds_the_best_of_a_list_that_fits_a_set(n, form):
    grades = shuffled_grades(n)
    outcome = play(Setwise(k=1), n, FakeJudge(grades, form))
    assert outcome.counts["calls"] == 1
    assert outcome.order[0] == right_order(grades)[0]


@pytest.mark.parametrize("k", range(1, 21))
def test_a_list_that_fits_a_set_takes_a_pick_for_each_place_but_the_last(k):
    assert play(Setwise(k=k), 20, FakeJudge(shuffled_grades(20), "pick")).counts["calls"] == min(k, 19)


@pytest.mark.parametrize("k", [1, 7, 20, 30])
def test_one_whole_order_settles_a_list_that_fits_a_set(k):
    outcome = play(Setwise(k=k), 20, FakeJudge(shuffled_grades(20), "scores"))
    assert outcome.counts["calls"] == 1
    assert outcome.order[:k] == right_order(shuffled_grades(20))[:k]


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("sort", ["heap", "bubble"])
def test_nothing_is_asked_about_fewer_than_two_documents(n, sort):
    assert play(Setwise(sort), n, FakeJudge((1.0,) * n)).counts["calls"] == 0


def test_bubble_sort_asks_only_about_sets_that_changed():
    in_order = FakeJudge(tuple(range(100, 0, -1)), "pick")
    assert play(Setwise("bubble", k=1), 100, in_order).counts["calls"] == 6  # ceil(99 / 19)
    # Each later pass ends one place lower: only its last window is another set, and none where a window starts anyway.
    assert play(Setwise("bubble", k=10), 100, in_order).counts["calls"] == 6 + 8
    # A set without an answer is asked about again, in another order.
    garbage = FakeJudge(in_order.grades, garbage=1.0)
    assert play(Setwise("bubble", k=10), 100, garbage).counts["calls"] == sum(
        -(-left // 19) for left in range(99, 89, -1)
    )


def test_sets_are_shown_shuffled_or_in_the_order_of_the_heap():
    shown: list[tuple[int, ...]] = []
    play(Setwise(k=1, size=4, shuffle=False), 8, lambda group: shown.append(group.members) or (None,) * 4)
    assert shown[:2] == [(1, 4, 5, 6), (2, 7)]
    shown.clear()
    play(Setwise(k=1), 20, lambda group: shown.append(group.members) or (None,) * 20)
    assert shown[0] != tuple(range(20))
    assert sorted(shown[0]) == list(range(20))


# -- votes ----------------------------------------------------------------------


def picks(*winners: int) -> FakeJudge:
    """Answers the votes on a set of three with these picks, in turn; None picks nothing."""
    turn = iter(winners)

    def ask(group: Group) -> Answer:
        winner = next(turn)
        return tuple(None if winner is None else float(member == winner) for member in group.members)

    return ask


@pytest.mark.parametrize(
    ("winners", "best"),
    [
        ((2, 2, 1), 2),
        ((1, 2, 2), 2),
        ((2, 1, 0), 0),
        ((2, 1, None), 1),
        ((None, None, 2), 2),
        ((None, None, None), 0),
    ],
)
def test_the_majority_picks_and_ties_go_by_first_stage_rank(winners, best):
    assert play(Setwise(k=1, votes=3), 3, picks(*winners)).order[0] == best


def test_votes_show_the_set_in_several_orders():
    shown: list[tuple[int, ...]] = []
    play(Setwise(k=1, votes=4), 20, lambda group: shown.append(group.members) or (None,) * 20)
    assert len(shown) == len(set(shown)) == 4


def test_votes_outvote_a_preference_for_the_first_label():
    def ask(group: Group) -> Answer:
        if group.members[0] == 0:  # the first label wins with the first document, else the last document does
            return tuple(float(at == 0) for at in range(3))
        return tuple(float(member == 2) for member in group.members)

    orders = [play(Setwise(k=1, votes=9), 3, ask, str(seed)).order[0] for seed in range(10)]
    assert orders.count(2) >= 8


def test_whole_orders_of_votes_are_merged_by_their_places():
    answers = iter([{0: 3, 1: 2, 2: 1}, {0: 3, 1: 2, 2: 1}, {2: 3, 1: 2, 0: 1}])

    def ask(group: Group) -> Answer:
        scores = next(answers)
        return tuple(float(scores[member]) for member in group.members)

    outcome = play(Setwise(k=3, votes=3), 3, ask)
    assert outcome.order == (0, 2, 1)  # most first places, then most first places
    assert outcome.counts["calls"] == 3


# -- whole orders ---------------------------------------------------------------


def test_a_tie_in_an_answer_makes_it_a_pick():
    grades = (1.0, 3.0, 2.0, 2.0)
    counts = play(Setwise(k=3, shuffle=False), 4, FakeJudge(grades)).counts
    assert counts["calls"] == 3


def test_a_failed_answer_among_whole_orders_costs_calls_and_nothing_else():
    grades = shuffled_grades(100)
    asked: list[Group] = []

    def ask(group: Group) -> Answer:
        asked.append(group)
        return (None,) * len(group.members) if len(asked) == 2 else FakeJudge(grades)(group)

    outcome = play(Setwise(), 100, ask)
    hidden = set(asked[1].members)
    found = [place for place in outcome.order[:10] if place not in hidden]
    assert found == [place for place in right_order(grades) if place not in hidden][: len(found)]
    assert len(found) > 5
    assert outcome.counts["calls"] <= 12


@given(n=st.integers(0, 40), seed=st.integers(0, 99), noise=st.floats(0, 50), form=st.sampled_from(["order", "scores"]))
def test_what_the_first_whole_orders_said_is_not_overturned(n, seed, noise, form):
    judge = FakeJudge(shuffled_grades(n, seed), form, noise, seed=seed)
    answers: list[tuple[Group, Answer]] = []

    def ask(group: Group) -> Answer:
        answers.append((group, judge(group)))
        return answers[-1][1]

    order = play(Setwise(k=n or 1, size=8), n, ask).order
    seen: set[int] = set()
    for group, answer in answers:
        if len(group.members) > 2 and seen.isdisjoint(group.members):  # nothing was known of these before
            ranked = [member for _, member in sorted(zip(answer, group.members, strict=True), reverse=True)]
            assert [place for place in order if place in group.members] == ranked
        seen.update(group.members)
