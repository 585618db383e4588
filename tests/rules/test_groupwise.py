"""Groups, passes, merging."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from rule_examples import right_order, shuffled_grades

from rerank.rules.groupwise import Groupwise, mean_scores, offset_fitted_scores
from rerank.rules.judges import FakeJudge, play
from rerank.rules.rule import Answer, Group, by_score

MERGES = (mean_scores, offset_fitted_scores)


def groups_of(rule: Groupwise, n: int, seed: str = "q") -> list[tuple[int, ...]]:
    shown: list[tuple[int, ...]] = []
    play(rule, n, lambda group: shown.append(group.members) or (None,) * len(group.members), seed)
    return shown


@given(n=st.integers(0, 130), size=st.integers(1, 25), passes=st.integers(1, 3), data=st.data())
def test_every_pass_shows_every_document_in_as_many_groups_as_the_interval_says(n, size, passes, data):
    interval = data.draw(st.none() | st.integers(1, size))
    groups = groups_of(Groupwise(size, passes, interval), n)
    assert len(groups) == passes * -(-n // (interval or size))
    per_pass = len(groups) // passes
    for first in range(0, len(groups), per_pass or 1):
        times = Counter(place for members in groups[first : first + per_pass] for place in members)
        assert set(times) == set(range(n))
        if interval in (None, size):
            assert set(times.values()) <= {1}
    assert all(len(members) <= size for members in groups)


def test_groups_have_nearly_equal_sizes():
    assert sorted(map(len, groups_of(Groupwise(), 101))) == [16, 17, 17, 17, 17, 17]
    assert sorted(map(len, groups_of(Groupwise(interval=10), 100))) == [10] + 9 * [20]


def test_passes_shuffle_anew_and_the_first_do_not_depend_on_how_many_there_are():
    three = groups_of(Groupwise(passes=3), 60)
    assert len(set(three)) == 9
    assert groups_of(Groupwise(passes=2), 60) == three[:6]
    assert groups_of(Groupwise(passes=3, settled=10), 60)[:3] == three[:3]
    assert groups_of(Groupwise(passes=3, seed=1), 60) != three


@pytest.mark.parametrize("merge", MERGES)
def test_a_failed_group_counts_for_nothing(merge):
    heard = [(Group((0, 1)), (0.5, 1.0)), (Group((1, 0)), (None, None)), (Group((2, 1)), (None, 1.0))]
    assert merge(4, heard) == [0.5, 1.0, None, None]


def test_a_document_that_no_group_scored_keeps_its_place():
    def ask(group: Group) -> Answer:
        return tuple(None if member == 1 else float(member) for member in group.members)

    outcome = play(Groupwise(size=2), 4, ask)
    assert outcome.order == (3, 1, 2, 0)
    assert outcome.scores == (3.0, 3.0, 2.0, 0.0)
    assert outcome.counts["documents without a score"] == 1


# -- merging --------------------------------------------------------------------

TENTHS = st.integers(0, 10).map(lambda score: score / 10)


@st.composite
def answered(draw: st.DrawFn) -> tuple[int, list[tuple[Group, Answer]]]:
    """Answers about groups that overlap so that all hang together."""
    n = draw(st.integers(2, 12))
    order = draw(st.permutations(range(n)))
    size = draw(st.integers(2, 6))
    chain = [tuple(order[at : at + size]) for at in range(0, n - 1, size - 1)]
    more = draw(st.lists(st.lists(st.integers(0, n - 1), unique=True, min_size=1, max_size=6).map(tuple), max_size=3))
    return n, [(Group(members), tuple(draw(TENTHS) for _ in members)) for members in [*chain, *more]]


@given(answered(), st.sampled_from([-1000.0, -0.3, 0.7, 1e5]), st.data())
def test_a_constant_added_to_one_groups_scores_leaves_the_fitted_order_unchanged(given_answers, constant, data):
    n, heard = given_answers
    before = offset_fitted_scores(n, heard)
    at = data.draw(st.integers(0, len(heard) - 1))
    group, answer = heard[at]
    shifted = [*heard[:at], (group, tuple(score + constant for score in answer)), *heard[at + 1 :]]
    after = offset_fitted_scores(n, shifted)
    change = [late - early for early, late in zip(before, after, strict=True)]
    assert change == pytest.approx([change[0]] * n, abs=1e-6)
    ranked = sorted(before)
    assume(all(b == a or b - a > 1e-5 for a, b in pairwise(ranked)) and len(set(ranked)) == n)
    assert by_score(after)[0] == by_score(before)[0]


@given(st.lists(st.lists(TENTHS, min_size=1, max_size=5), max_size=5))
def test_with_disjoint_groups_offsets_are_the_mean(scores):
    n = sum(map(len, scores))
    places = iter(range(n))
    heard = [(Group(tuple(next(places) for _ in each)), tuple(each)) for each in scores]
    assert offset_fitted_scores(n, heard) == mean_scores(n, heard)


@given(answered())
def test_offsets_fit_best(given_answers):
    n, heard = given_answers
    fitted = np.array(offset_fitted_scores(n, heard), dtype=float)

    # The same least squares with all unknowns at once: documents, then offsets.
    rows, values = [], []
    for number, (group, answer) in enumerate(heard):
        for member, score in zip(group.members, answer, strict=True):
            row = np.zeros(n + len(heard))
            row[member] = row[n + number] = 1.0
            rows.append(row)
            values.append(score)
    solution = np.linalg.lstsq(np.array(rows), np.array(values), rcond=None)[0]
    shift = solution[n:].mean()  # documents and offsets can move against each other
    assert fitted == pytest.approx(solution[:n] + shift, abs=1e-6)


def test_offsets_find_the_order_that_strict_and_lenient_groups_hide():
    grades = tuple(grade / 100 for grade in shuffled_grades(100))
    moods: dict[tuple[int, ...], float] = {}

    def ask(group: Group) -> Answer:
        mood = moods.setdefault(group.members, (len(moods) * 37 % 10) / 10)
        return tuple(grades[member] + mood for member in group.members)

    assert play(Groupwise(passes=2, merge="offsets"), 100, ask).order == right_order(grades)
    moods.clear()
    assert play(Groupwise(passes=2), 100, ask).order != right_order(grades)


# -- the early stop -------------------------------------------------------------


def test_passes_stop_once_one_leaves_the_head_as_it_was():
    judge = FakeJudge(shuffled_grades(40))
    outcome = play(Groupwise(passes=6, settled=10), 40, judge)
    assert (outcome.counts["calls"], outcome.counts["waves"]) == (4, 2)
    assert outcome.order == right_order(judge.grades)


def test_passes_go_on_while_the_head_changes_or_answers_fail():
    noisy = FakeJudge(shuffled_grades(40), noise=20.0)
    assert play(Groupwise(passes=4, settled=30), 40, noisy).counts["waves"] == 4
    assert play(Groupwise(passes=4, settled=10), 40, FakeJudge((1.0,) * 40, garbage=1.0)).counts["waves"] == 4


def test_without_the_early_stop_all_passes_are_asked_at_once():
    counts = play(Groupwise(passes=6), 40, FakeJudge(shuffled_grades(40))).counts
    assert (counts["calls"], counts["waves"]) == (12, 1)
