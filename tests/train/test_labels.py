"""Labels from teachers: GroupRank's fusion of two rankings, and scales."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank.errors import DataError
from rerank.train.labels import fused_labels, rescaled


def test_the_cards_values() -> None:
    fused = fused_labels((1, 2, 3, 2, 4), (2, 3, 2, 8, 4))
    assert [round(label, 6) for label in fused] == [-0.346574, -0.895880, -0.895880, -1.386294, -1.386294]
    assert fused[1] == fused[2]
    assert fused[3] == fused[4]


@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 50), st.integers(1, 50))
def test_equal_products_of_ranks_tie_and_smaller_ones_are_better(a: int, b: int, c: int, d: int) -> None:
    one, other = fused_labels((a, c), (b, d))
    assert (one > other) == (a * b < c * d)
    assert (one == other) == (a * b == c * d)


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_at_the_ends_one_teacher_decides(beta: float) -> None:
    low, high = fused_labels((1, 2), (2, 1), beta)
    assert (low > high) == (beta == 1.0)


@pytest.mark.parametrize(
    ("pointwise", "listwise", "beta", "message"),
    [
        ((1, 2), (1,), 0.5, "2 pointwise and 1 listwise ranks; both teachers must rank all documents"),
        ((0,), (1,), 0.5, "a rank is 0; ranks begin at 1"),
        ((1,), (1,), 1.5, "beta is 1.5, from 0 .* to 1 .* is needed"),
    ],
)
def test_ranks_that_cannot_be_are_named(
    pointwise: tuple[int, ...], listwise: tuple[int, ...], beta: float, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        fused_labels(pointwise, listwise, beta)


@given(st.lists(st.floats(-1e3, 1e3), max_size=8), st.sampled_from([1.0, 10.0]))
def test_rescaled_labels_keep_their_order_and_fill_the_scale(labels: list[float], top: float) -> None:
    scaled = rescaled(labels, top)
    assert all(0 <= label <= top for label in scaled)
    if labels and max(labels) > min(labels):
        assert (min(scaled), max(scaled)) == (0.0, top)
    ranked = sorted(range(len(labels)), key=lambda place: labels[place])
    assert [scaled[place] for place in ranked] == sorted(scaled)


def test_labels_that_are_all_equal_say_nothing() -> None:
    assert rescaled((3.0, 3.0)) == (0.0, 0.0)
