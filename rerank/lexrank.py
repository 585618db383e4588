"""LexRank: which sentences of a text the others point at, and with a query, which of those speak of it.

Source: Erkan and Radev 2004 (LexRank); Otterbacher, Erkan and Radev 2005 (with a query).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

_CHANGE = 1e-6
"""The walk has arrived when its distribution changes by less in sum."""
_STEPS = 1000


def weighted(terms: Sequence[Sequence[str]], weights: Mapping[str, float]) -> FloatArray:
    """float64 [texts, terms]: how often each text has each term, times the term's weight; rows of length 1 or 0.

    Args:
        terms: of each text, as they stand in it.
        weights: of terms, such as inverse document frequencies; terms without one count nothing.

    >>> weighted([["wing", "lift"], []], {"wing": 3.0, "lift": 4.0}).tolist()
    [[0.6, 0.8], [0.0, 0.0]]
    """
    columns: dict[str, int] = {}
    for text in terms:
        for term in text:
            if weights.get(term, 0.0) > 0:
                columns.setdefault(term, len(columns))
    matrix = np.zeros((len(terms), len(columns)))
    for row, text in enumerate(terms):
        for term, times in Counter(text).items():
            if term in columns:
                matrix[row, columns[term]] = times * weights[term]
    lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    unit: FloatArray = np.divide(matrix, lengths, out=np.zeros_like(matrix), where=lengths > 0)
    return unit


def similarities(vectors: FloatArray) -> FloatArray:
    """float64 [n, n]: idf-modified cosines, 1 for a text with itself, 0 where one has no terms.

    Args:
        vectors: as `weighted` gives them.
    """
    found: FloatArray = np.clip(vectors @ vectors.T, 0.0, 1.0)
    np.fill_diagonal(found, (vectors != 0).any(axis=1))
    return found


def lexrank(similar: FloatArray, teleport: float = 0.15, relevance: FloatArray | None = None) -> FloatArray:
    """float64 [n]: where a walk over sentences is, in the long run: p = d r + (1 - d) B^T p; sums to 1.

    Args:
        similar: [n, n] similarities; a row of zeros leads everywhere alike.
        teleport: d, the share of steps that go by `relevance` and not to a similar sentence, above 0 and at most 1.
        relevance: [n] how much sentences speak of a query; default, and where all are 0, alike.

    >>> lexrank(np.array([[1.0, 0.5, 0.0], [0.5, 1.0, 0.5], [0.0, 0.5, 1.0]])).round(2).tolist()
    [0.31, 0.39, 0.31]
    """
    n = len(similar)
    uniform = np.full(n, 1.0 / n) if n else np.zeros(0)
    total = 0.0 if relevance is None else float(relevance.sum())
    start = uniform if relevance is None or total <= 0 else relevance / total
    sums = similar.sum(axis=1, keepdims=True)
    steps = np.divide(similar, sums, out=np.full_like(similar, 1.0 / max(1, n)), where=sums > 0)
    found = start
    for _ in range(_STEPS):
        moved = teleport * start + (1 - teleport) * (steps.T @ found)
        change = float(np.abs(moved - found).sum())
        found = moved
        if change < _CHANGE:
            break
    return found
