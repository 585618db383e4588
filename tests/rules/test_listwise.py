"""Sliding windows."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rule_examples import shuffled_grades

from rerank.rules.judges import FakeJudge, play
from rerank.rules.listwise import Listwise, window_spans


def test_windows_go_from_the_bottom_to_the_head():
    assert window_spans(100, 20, 10) == [(start, start + 20) for start in range(80, -1, -10)]


@pytest.mark.parametrize(
    ("n", "spans"),
    [
        (0, []),
        (1, []),
        (2, [(0, 2)]),
        (19, [(0, 19)]),
        (20, [(0, 20)]),
        (21, [(1, 21), (0, 20)]),
        (25, [(5, 25), (0, 20)]),
        (30, [(10, 30), (0, 20)]),
        (31, [(11, 31), (1, 21), (0, 20)]),
    ],
)
def test_the_last_window_starts_at_the_head(n, spans):
    assert window_spans(n, 20, 10) == spans
    assert window_spans(95, 20, 10)[-2:] == [(5, 25), (0, 20)]


@given(n=st.integers(2, 300), window=st.integers(2, 30), data=st.data())
def test_windows_read_every_document_and_share_what_the_step_leaves(n, window, data):
    step = data.draw(st.integers(1, window - 1))
    spans = window_spans(n, window, step)
    assert len(spans) == (-(-(n - window) // step) + 1 if n > window else 1)
    assert set().union(*(range(*span) for span in spans)) == set(range(n))
    assert all(end - start == min(window, n) for start, end in spans)
    assert all(lower[0] - upper[0] <= step for lower, upper in pairwise(spans))


def test_what_an_answer_leaves_out_comes_last_in_the_windows_order():
    # A model answered [2] > [1] of three, five and seven.
    assert play(Listwise(), 3, lambda group: (2.0, 3.0, None)).order == (1, 0, 2)
    assert play(Listwise(), 5, lambda group: (None, None, None, 5.0, None)).order == (3, 0, 1, 2, 4)


def test_a_failed_window_keeps_what_lower_windows_found():
    asked = []

    def ask(group):
        asked.append(group.members)
        return tuple(map(float, group.members)) if len(asked) == 1 else (None,) * 20

    order = play(Listwise(), 30, ask).order
    assert order == (*range(10), *range(29, 9, -1))
    assert asked[1] == (*range(10), *range(29, 19, -1))


def test_an_order_and_the_distribution_behind_it_give_the_same_list():
    grades = shuffled_grades(57)
    rule = Listwise()
    assert play(rule, 57, FakeJudge(grades, "order")).order == play(rule, 57, FakeJudge(grades, "scores")).order
