"""Duels."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rule_examples import shuffled_grades

from rerank.rules.judges import FakeJudge, play
from rerank.rules.pairwise import Pairwise, preference
from rerank.rules.rule import Answer, Group

SCORE = st.none() | st.sampled_from([0.0, 1.0]) | st.floats(-5, 5)
PAIR = st.tuples(SCORE, SCORE)


@pytest.mark.parametrize(
    ("forward", "backward", "expected"),
    [
        ((1.0, 0.0), (0.0, 1.0), 1),
        ((0.0, 1.0), (1.0, 0.0), -1),
        ((1.0, 0.0), (1.0, 0.0), 0),
        ((0.0, 1.0), (0.0, 1.0), 0),
        ((1.0, 0.0), (None, None), 0),
        ((0.5, 0.5), (0.0, 1.0), 0),
        ((1.0, None), (None, -3.0), 1),
    ],
)
def test_only_what_both_orders_say_is_a_preference(forward, backward, expected):
    assert preference(forward, backward) == expected


@given(PAIR, PAIR)
def test_preference_is_antisymmetric(forward, backward):
    assert preference(forward, backward) == -preference(backward, forward)


@given(PAIR)
def test_a_judge_that_does_not_look_at_the_order_is_believed(answer):
    a, b = (float("-inf") if score is None else score for score in answer)
    assert preference(answer, answer[::-1]) == (a > b) - (a < b)


@pytest.mark.parametrize("sort", ["heap", "bubble", "all"])
def test_no_pair_is_asked_about_twice(sort):
    asked = Counter[tuple[int, ...]]()
    judge = FakeJudge(shuffled_grades(30), noise=10.0)

    def ask(group: Group) -> Answer:
        asked[group.members] += 1
        return judge(group)

    play(Pairwise(sort, k=8), 30, ask)
    assert set(asked.values()) == {1}
    assert all(members[::-1] in asked for members in asked)


@pytest.mark.parametrize("sort", ["heap", "bubble", "all"])
def test_a_preference_for_a_label_gives_ties_that_leave_the_first_stage_order(sort):
    outcome = play(Pairwise(sort), 25, lambda group: (1.0, 0.0))
    assert outcome.order == tuple(range(25))
    assert outcome.counts["tied pairs"] == outcome.counts["calls"] // 2


def test_cycles_are_scored_by_wins_and_half_ties():
    # 0 beats 1, 1 beats 2, 2 beats 0; all beat 3, but 2 and 3 tie.
    beats = {(0, 1), (1, 2), (2, 0), (0, 3), (1, 3)}

    def ask(group: Group) -> Answer:
        a, b = group.members
        return (float((a, b) in beats), float((b, a) in beats))

    assert play(Pairwise("all"), 4, ask).order == (0, 1, 2, 3)  # 2, 2, 1.5 and 0.5 points
    for sort in ("heap", "bubble"):
        assert sorted(play(Pairwise(sort), 4, ask).order) == [0, 1, 2, 3]


def test_heap_sort_settles_ten_of_a_hundred_with_a_tenth_of_all_pairs():
    assert play(Pairwise(), 100, FakeJudge(shuffled_grades(100))).counts["calls"] < 600
