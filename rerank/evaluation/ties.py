"""Ties in rankings: counting them, and nDCG averaged over the orders that they leave open.

A ranking is flat here: the rows of all queries behind one another in rank order, with `offsets` int64
[queries + 1] saying where each query begins. Rows tie where their scores are equal in the precision handed
in, so hand in float32 to see the ties that trec_eval sees.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from rerank.errors import DataError

FloatArray: TypeAlias = npt.NDArray[np.floating[Any]]
NumberArray: TypeAlias = npt.NDArray[np.floating[Any] | np.integer[Any]]
Offsets: TypeAlias = npt.NDArray[np.int64]


def tie_groups(scores: FloatArray, offsets: Offsets) -> Offsets:
    """Boundaries int64 [groups + 1] of the groups of equal scores: group g is the rows `[g]` to `[g + 1]`.

    A group never spans two queries; a row that ties with none is a group of one.

    Raises:
        DataError: the offsets do not cover the scores, or scores increase along a query or are NaN.

    >>> tie_groups(np.array([3.0, 1.0, 1.0, 1.0]), np.array([0, 3, 4]))
    array([0, 1, 3, 4])
    """
    _check_offsets(offsets, scores.size, "scores")
    starts_query = np.zeros(scores.size, dtype=np.bool_)
    starts_query[offsets[:-1][offsets[:-1] < scores.size]] = True
    in_order = starts_query.copy()
    in_order[1:] |= scores[1:] <= scores[:-1]
    if not in_order.all():
        row = int(np.argmin(in_order))
        message = (
            f"scores must not rise along a query: row {row} scores {scores[row]} after {scores[row - 1]}; "
            "sort each query by score first"
        )
        raise DataError(message)
    starts_group = starts_query
    starts_group[1:] |= scores[1:] < scores[:-1]
    return np.append(np.flatnonzero(starts_group), scores.size).astype(np.int64)


def count_ties(scores: FloatArray, offsets: Offsets) -> int:
    """Number of rows that share their score with another row of the same query.

    Raises:
        DataError: as for `tie_groups`.

    >>> count_ties(np.array([3.0, 1.0, 1.0, 1.0]), np.array([0, 3, 4]))
    2
    """
    sizes = np.diff(tie_groups(scores, offsets))
    return int(sizes[sizes > 1].sum())


def tie_averaged_ndcg(
    gains_in_order: NumberArray, scores: FloatArray, ideal_gains: NumberArray, k: int | None = None
) -> float:
    """nDCG of one query, averaged over all orders of tied rows: the mean of a random tie-break.

    See `tie_averaged_ndcg_per_query`.

    >>> tie_averaged_ndcg(np.array([1, 0]), np.array([0.5, 0.5]), np.array([1]), k=1)
    0.5
    """
    one_query = np.array([0, len(gains_in_order)])
    return float(
        tie_averaged_ndcg_per_query(gains_in_order, scores, one_query, ideal_gains, np.array([0, len(ideal_gains)]), k)[
            0
        ]
    )


def tie_averaged_ndcg_per_query(
    gains: NumberArray,
    scores: FloatArray,
    offsets: Offsets,
    ideal_gains: NumberArray,
    ideal_offsets: Offsets,
    k: int | None = None,
) -> npt.NDArray[np.float64]:
    """nDCG float64 [queries], each averaged over all orders of the rows that tie.

    `gains` are the grades of the ranked documents in rank order (0 where unjudged), `ideal_gains` the
    grades of all judged documents of each query, retrieved or not, in any order. The gain is the grade
    itself, the discount `1 / log2(rank + 1)`, a negative grade gains nothing and a query without a positive
    grade scores 0: trec_eval's nDCG and that of ir-measures, which this equals where nothing ties. `k` None
    means no cut-off.

    Raises:
        DataError: shapes do not fit, scores increase along a query or are NaN, or `k` is below 1.

    Source: McSherry and Najork, ECIR 2008: every document of a tie gains the tie's mean gain at each of
    its ranks, so no order needs to be enumerated.

    >>> gains, scores = np.array([2, 0, 1]), np.array([0.9, 0.5, 0.5])
    >>> ideal_gains, ideal_offsets = np.array([2, 1]), np.array([0, 2])
    >>> offsets = np.array([0, 3])
    >>> tie_averaged_ndcg_per_query(gains, scores, offsets, ideal_gains, ideal_offsets, k=2).round(4)
    array([0.8801])
    """
    if k is not None and k < 1:
        message = f"the cut-off k must be at least 1, got {k}"
        raise DataError(message)
    if gains.shape != scores.shape:
        message = f"gains and scores must describe the same rows, got shapes {gains.shape} and {scores.shape}"
        raise DataError(message)
    if len(offsets) != len(ideal_offsets):
        message = (
            f"offsets describe {len(offsets) - 1} queries and ideal_offsets {len(ideal_offsets) - 1}: "
            "give both the same queries in the same order"
        )
        raise DataError(message)
    _check_offsets(ideal_offsets, ideal_gains.size, "ideal gains")
    groups = tie_groups(scores, offsets)
    query_of_ideal = np.repeat(np.arange(len(offsets) - 1), np.diff(ideal_offsets))
    ideal = np.maximum(ideal_gains.astype(np.float64), 0.0)
    ideal = ideal[np.lexsort((-ideal, query_of_ideal))]
    every_row = np.arange(ideal.size + 1)
    best = _dcg_per_query(ideal, every_row, ideal_offsets, k)
    reached = _dcg_per_query(np.maximum(gains.astype(np.float64), 0.0), groups, offsets, k)
    return np.divide(reached, best, out=np.zeros_like(reached), where=best > 0.0)


def _dcg_per_query(
    gains: npt.NDArray[np.float64], groups: Offsets, offsets: Offsets, k: int | None
) -> npt.NDArray[np.float64]:
    """DCG at k of every query when each row gains the mean of its group, bounded as by `tie_groups`."""
    n_queries = len(offsets) - 1
    starts, stops = groups[:-1], groups[1:]
    if starts.size == 0:
        return np.zeros(n_queries)
    query = np.searchsorted(offsets, starts, side="right") - 1
    first = starts - offsets[query]
    last = stops - offsets[query]
    depth = int(last.max())
    # discounts[r] is the sum of the first r discounts: a difference of two is the sum over a group's ranks.
    discounts = np.concatenate(([0.0], np.cumsum(1.0 / np.log2(np.arange(2, depth + 2)))))
    limit = depth if k is None else min(k, depth)
    weight = discounts[np.minimum(last, limit)] - discounts[np.minimum(first, limit)]
    means = np.add.reduceat(gains, starts) / (stops - starts)
    return np.bincount(query, weights=means * weight, minlength=n_queries).astype(np.float64, copy=False)


def _check_offsets(offsets: Offsets, n_rows: int, name: str) -> None:
    if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != n_rows or (np.diff(offsets) < 0).any():
        message = (
            f"offsets of the {name} must rise from 0 to {n_rows}, the number of rows, "
            "and be one more than there are queries"
        )
        raise DataError(message)
