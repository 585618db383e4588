"""The k nearest: equal to sorting everything, at ties too, whatever is excluded and however queries are batched."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank.retrieve import nearest as module
from rerank.retrieve.nearest import nearest
from rerank.retrieve.vector_index import FlatSearch

pytestmark = pytest.mark.needs("faiss")


def brute(
    queries: npt.NDArray[np.float32], matrix: npt.NDArray[np.float32], k: int, excluded: list[npt.NDArray[np.int64]]
) -> list[dict[int, float]]:
    """Per query the rows that score at least what the k-th best does."""
    lists = []
    for query, left_out in zip(queries, excluded, strict=True):
        scores = matrix.astype(np.float64) @ query.astype(np.float64)
        allowed = np.setdiff1d(np.arange(len(matrix)), left_out)
        least = np.sort(scores[allowed])[::-1][:k][-1] if len(allowed) else 0
        lists.append({int(row): float(np.float32(scores[row])) for row in allowed if scores[row] >= least})
    return lists


def lists_of(found: module.Found) -> list[dict[int, float]]:
    return [
        dict(zip(found.docs[a:b].tolist(), found.scores[a:b].tolist(), strict=True))
        for a, b in zip(found.offsets[:-1], found.offsets[1:], strict=True)
    ]


@settings(max_examples=60)
@given(st.data())
def test_it_is_what_sorting_everything_gives_with_all_that_tie_at_the_end(data: st.DataObject) -> None:
    n, m = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 6))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    # Small whole numbers: exact in float32, and full of ties.
    matrix = rng.integers(-2, 3, (n, 4)).astype(np.float32)
    queries = rng.integers(-2, 3, (m, 4)).astype(np.float32)
    k = data.draw(st.integers(1, 70))
    excluded = [rng.choice(n, size=int(rng.integers(0, n + 1)), replace=False) for _ in range(m)]
    found = nearest(queries, FlatSearch(matrix, 1), matrix, k, excluded, longest=4.0)
    assert lists_of(found) == brute(queries, matrix, k, excluded)
    none: list[npt.NDArray[np.int64]] = [np.empty(0, dtype=np.int64)] * m
    assert lists_of(nearest(queries, FlatSearch(matrix, 1), matrix, k, longest=4.0)) == brute(queries, matrix, k, none)


def unit(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def in_order(found: dict[int, float]) -> list[int]:
    return sorted(found, key=lambda row: (-found[row], row))


def test_lists_do_not_depend_on_how_queries_are_batched(monkeypatch) -> None:
    rng = np.random.default_rng(0)
    matrix = unit(rng.standard_normal((3000, 48)))
    matrix = np.concatenate([matrix, matrix[:500], matrix[:200]])
    queries = unit(rng.standard_normal((40, 48)))
    together = lists_of(nearest(queries, FlatSearch(matrix, 1), matrix, 100))
    monkeypatch.setattr(module, "BATCH", 7)
    in_sevens = lists_of(nearest(queries, FlatSearch(matrix, 1), matrix, 100))
    alone = [lists_of(nearest(query[None], FlatSearch(matrix, 1), matrix, 100))[0] for query in queries]
    for one, other in zip(together + together, in_sevens + alone, strict=True):
        assert in_order(one) == in_order(other)
        assert one == pytest.approx(other, abs=1e-6)


def test_equal_rows_score_exactly_alike() -> None:
    rng = np.random.default_rng(1)
    matrix = np.tile(unit(rng.standard_normal((1, 40))), (1001, 1))
    [found] = lists_of(nearest(unit(rng.standard_normal((1, 40))), FlatSearch(matrix, 1), matrix, 3))
    assert len(found) == 1001
    assert len(set(found.values())) == 1


def test_no_queries_and_no_rows_left() -> None:
    matrix = np.eye(3, dtype=np.float32)
    assert lists_of(nearest(np.empty((0, 3), dtype=np.float32), FlatSearch(matrix, 1), matrix, 5)) == []
    everything = [np.arange(3)]
    assert lists_of(nearest(matrix[:1], FlatSearch(matrix, 1), matrix, 2, everything)) == [{}]
