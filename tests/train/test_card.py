"""What groups hold, in numbers."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from rerank.train.card import histogram


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60))
@example([5.0 + number * 1e-9 for number in range(20)])
@example([number * 5e-324 for number in range(20)])
@example([0.1234567, 0.1234568])
def test_a_histogram_counts_every_label_once(labels: list[float]) -> None:
    counts = histogram(labels)
    assert sum(counts.values()) == len(labels)
    assert len(counts) <= 12


def test_grades_are_counted_one_by_one_and_many_scores_by_range() -> None:
    assert histogram([3.0, 0.0, 0.0, 0.5]) == {"0": 2, "0.5": 1, "3": 1}
    counts = histogram([number / 10 for number in range(101)])
    assert next(iter(counts.items())) == ("0 to 1", 10)
    assert list(counts.items())[-1] == ("9 to 10", 11)
