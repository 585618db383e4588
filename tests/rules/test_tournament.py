"""Rounds and points."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rule_examples import shuffled_grades

from rerank.rules.judges import FakeJudge, play
from rerank.rules.rule import Answer, Group
from rerank.rules.tournament import Tournament, rounds


def test_the_rounds_of_a_hundred_are_as_published():
    assert rounds(100, 20) == [(5, 50), (5, 20), (1, 10), (1, 5), (1, 2)]
    sizes = []
    play(Tournament(), 100, lambda group: sizes.append(len(group.members)) or (None,) * len(group.members))
    assert sizes == [20] * 5 + [10] * 5 + [20, 10, 5]


@pytest.mark.parametrize(
    ("n", "plan"),
    [(0, []), (1, []), (2, [(1, 1)]), (3, [(1, 2)]), (5, [(1, 2)]), (12, [(1, 10), (1, 5), (1, 2)])],
)
def test_short_lists_have_fewer_rounds(n, plan):
    assert rounds(n, 20) == plan


@given(n=st.integers(0, 3_000), size=st.integers(3, 40))
def test_every_group_fits_and_sends_on_the_same_number(n, size):
    left = n
    for groups, survivors in rounds(n, size):
        assert -(-left // groups) <= size
        assert survivors % groups == 0
        assert survivors // groups <= left // groups
        assert survivors < left
        left = survivors
    assert left <= 2


def test_groups_are_strided_by_rank_and_shown_in_random_order():
    shown: list[Group] = []

    def ask(group: Group) -> Answer:
        shown.append(group)
        return (None,) * len(group.members)

    play(Tournament(), 100, ask)
    assert [sorted(group.members) for group in shown[:5]] == [list(range(first, 100, 5)) for first in range(5)]
    assert all(list(group.members) != sorted(group.members) for group in shown)
    one = [group.members for group in shown]
    shown.clear()
    play(Tournament(2), 100, ask)
    assert [group.members for group in shown if group.members in one] == one
    assert len({group.members for group in shown}) == 26


def test_points_of_tournaments_are_added():
    # The judge prefers whatever it is shown first, so that the tournaments differ.
    def first_shown(group: Group) -> Answer:
        return tuple(-float(at) for at in range(len(group.members)))

    def survivors(tournaments: int) -> tuple[int, ...]:
        return play(Tournament(tournaments), 20, first_shown).order

    assert len({survivors(number) for number in (1, 2, 3)}) == 3


def test_more_tournaments_help_against_noise():
    def found(tournaments: int) -> int:
        total = 0
        for seed in range(12):
            grades = shuffled_grades(100, seed)
            order = play(Tournament(tournaments), 100, FakeJudge(grades, noise=25.0, seed=seed), str(seed)).order
            total += sum(grades[place] > 90 for place in order[:10])
        return total

    assert found(8) > found(1)
