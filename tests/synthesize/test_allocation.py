"""How many documents each cluster gives: the card's cases, and what holds for any sizes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank.synthesize.allocation import allocate

SIZES = st.lists(st.integers(0, 60), min_size=1, max_size=30)


@pytest.mark.parametrize(
    ("sizes", "n", "expected"),
    [
        ([10, 90], 5, [1, 4]),
        # Largest first alone would take 16 of the cluster of 15.
        ([5, 15, 80], 100, [5, 15, 80]),
        ([5, 15, 81], 100, [5, 15, 80]),
        # The floors come to 3 already: nothing is left to be shared.
        ([10], 3, [3]),
        ([4, 4, 4], 2, [1, 1, 0]),
        ([0, 4, 0], 2, [0, 2, 0]),
        ([], 5, []),
    ],
)
def test_the_cases_of_the_paper_and_of_its_code(sizes: list[int], n: int, expected: list[int]) -> None:
    assert allocate(sizes, n) == expected


@given(SIZES, st.integers(0, 500))
def test_as_many_as_wanted_or_as_there_are_and_never_more_than_a_cluster_has(sizes: list[int], n: int) -> None:
    found = allocate(sizes, n)
    assert sum(found) == min(n, sum(sizes))
    assert all(0 <= given <= size for given, size in zip(found, sizes, strict=True))


@given(SIZES, st.integers(30, 500))
def test_every_cluster_gives_one_where_there_are_enough(sizes: list[int], n: int) -> None:
    assert all(given >= 1 for given, size in zip(allocate(sizes, n), sizes, strict=True) if size)
