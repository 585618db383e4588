"""The k nearest documents of a query, whatever index finds them: exact at ties, exclusions left out, batch by batch.

A matrix product gives a score with a rounding error that depends on what else is in the batch.  Scores that differ by
less than that error are worked out again, each by itself in float64, and a list is only cut where a larger gap is:
so equal texts tie exactly, ties go by document id, and the size of a batch changes no list.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from rerank.engines.text_model import FloatMatrix
from rerank.retrieve.sparse_index import Found

Int64 = npt.NDArray[np.int64]

BATCH = 512
"""Queries searched at a time."""
NOISE = 2e-6
"""Scores nearer than this, for vectors of length 1, may have changed places by rounding (float32, d up to 4,096)."""
SPARE = 16
"""Searched beyond k, so that a query whose k-th score has near neighbours need not be searched a second time."""
_MOST_CELLS = 1 << 24
_ROWS = 4096


class Search(Protocol):
    """An index over the rows of a matrix."""

    def __call__(self, queries: FloatMatrix, depth: int) -> tuple[FloatMatrix, Int64]:
        """Scores [queries, depth], falling, and rows of the matrix; -1 where an index found no more."""
        ...


def nearest(
    queries: FloatMatrix,
    search: Search,
    matrix: FloatMatrix,
    k: int,
    excluded: Sequence[Int64] | None = None,
    longest: float = 1.0,
) -> Found:
    """Per query at least the best `k` rows of `matrix` by dot product: those that tie with the k-th are all there.

    Args:
        queries: float32 [queries, d].
        search: the index that proposes rows.
        matrix: float32 [documents, d], for exact scores.
        k: how many are wanted.
        excluded: per query, rows that must not be given.
        longest: no row of `matrix` is longer.

    >>> matrix = np.array([[1, 0], [0, 1], [1, 0]], dtype=np.float32)
    >>> def search(queries, depth):
    ...     scores = queries @ matrix.T
    ...     rows = np.argsort(-scores, axis=1)[:, :depth]
    ...     return np.take_along_axis(scores, rows, axis=1), rows
    >>> nearest(matrix[:1], search, matrix, k=1).docs.tolist()
    [0, 2]
    """
    if not len(queries):
        return Found(np.zeros(1, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32))
    parts = [
        _nearest(
            queries[start : start + BATCH], search, matrix, k, excluded and excluded[start : start + BATCH], longest
        )
        for start in range(0, len(queries), BATCH)
    ]
    return Found.join(parts)


def _nearest(
    queries: FloatMatrix,
    search: Search,
    matrix: FloatMatrix,
    k: int,
    excluded: Sequence[Int64] | None,
    longest: float,
) -> Found:
    n_rows = len(matrix)
    noise = NOISE * longest * np.linalg.norm(queries, axis=1)
    # Few distinct depths, so that queries are searched together: exclusions count as 0, 16, 32, 64, ...
    more = [1 << max(4, len(codes).bit_length()) if len(codes) else 0 for codes in excluded or ()]
    depths = np.minimum(k + SPARE + np.array(more or [0] * len(queries), dtype=np.int64), n_rows)
    pending = np.arange(len(queries))
    found: list[tuple[Int64, Int64, FloatMatrix]] = []
    while len(pending):
        open_ones = []
        for depth in np.unique(depths[pending]).tolist():
            group = pending[depths[pending] == depth]
            step = max(1, _MOST_CELLS // depth)
            for start in range(0, len(group), step):
                some = group[start : start + step]
                scores, rows = search(queries[some], depth)
                keep = rows >= 0
                if excluded:
                    for row, query in enumerate(some.tolist()):
                        keep[row] &= ~np.isin(rows[row], excluded[query])
                cut = _cut(scores, rows, keep, k, noise[some], complete=depth == n_rows)
                at, column = np.nonzero(cut.inside)
                docs, values, tied = cut.rows[at, column], cut.scores[at, column], cut.tied[at, column]
                values[tied] = exact_scores(queries, matrix, some[at[tied]], docs[tied])
                found.append((some[at], docs, values))
                open_ones.append(some[~cut.settled])
        pending = np.sort(np.concatenate(open_ones))
        depths[pending] = np.minimum(n_rows, depths[pending] * 2)
    query, docs, scores = (np.concatenate(column) for column in zip(*found, strict=True))
    offsets = np.zeros(len(queries) + 1, dtype=np.int64)
    np.cumsum(np.bincount(query, minlength=len(queries)), out=offsets[1:])
    order = np.argsort(query, kind="stable")
    return Found(offsets, docs[order], scores[order])


class _Cut(NamedTuple):
    """Lists, each [queries, depth], and where they may be cut."""

    scores: FloatMatrix
    rows: Int64
    inside: npt.NDArray[np.bool_]
    """What belongs to the list of a settled query."""
    tied: npt.NDArray[np.bool_]
    """Too near to a neighbour for its score to decide."""
    settled: npt.NDArray[np.bool_]
    """[queries] whether a place to cut was found; the others must be searched deeper."""


def _cut(
    scores: FloatMatrix,
    rows: Int64,
    keep: npt.NDArray[np.bool_],
    k: int,
    noise: npt.NDArray[np.floating[Any]],
    *,
    complete: bool,
) -> _Cut:
    """Cuts every list behind the first gap at or after place `k`; `complete` lists hold all there is."""
    ended = np.full(len(rows), complete) | (rows < 0).any(axis=1)
    # What follows a list: nothing where it has ended, else something that may be just as good.
    after = np.where(ended, -np.inf, np.inf).astype(np.float32)[:, None]
    if not keep.all():
        order = np.argsort(~keep, axis=1, kind="stable")
        rows = np.take_along_axis(rows, order, axis=1)
        scores = np.where(np.take_along_axis(keep, order, axis=1), np.take_along_axis(scores, order, axis=1), after)
    with np.errstate(invalid="ignore"):
        gap = scores - np.concatenate([scores[:, 1:], after], axis=1) > noise[:, None]
    least = min(k, scores.shape[1])
    late = gap[:, least - 1 :]
    settled = late.any(axis=1) | ended
    end = np.where(late.any(axis=1), least + late.argmax(axis=1), np.where(ended, keep.sum(axis=1), 0))
    inside = np.arange(scores.shape[1]) < end[:, None]
    before = np.concatenate([np.ones((len(gap), 1), dtype=bool), gap[:, :-1]], axis=1)
    return _Cut(scores, rows, inside, inside & ~(gap & before), settled)


def exact_scores(queries: FloatMatrix, matrix: FloatMatrix, at: Int64, rows: Int64) -> FloatMatrix:
    """float32 [n]: the dot products of `queries[at]` and `matrix[rows]`, summed in float64; `at` must rise."""
    scores = np.empty(len(at), dtype=np.float32)
    bounds = np.searchsorted(at, np.arange(len(queries) + 1)).tolist()
    for query, (start, stop) in enumerate(itertools.pairwise(bounds)):
        for first in range(start, stop, _ROWS):
            some = slice(first, min(first + _ROWS, stop))
            scores[some] = matrix[rows[some]].astype(np.float64) @ queries[query].astype(np.float64)
    return scores
