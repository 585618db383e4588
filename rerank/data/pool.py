"""Which documents to judge, and how well two judges agree.

A pool is the union of the first documents of several runs.  It is blind: documents come in an order that a hash of
their ids decides, with nothing that tells which system found them or how high.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rerank.errors import DataError
from rerank.ranking import Ranking

Judged = Mapping[str, Mapping[str, int]]


def pool(rankings: Sequence[Ranking], depth: int, judged: Judged | None = None) -> dict[str, list[str]]:
    """Per query the documents in the first `depth` of any ranking that `judged` lacks, in blind order.

    >>> a, b = (Ranking.of({"q": hits}) for hits in ({"d1": 2, "d2": 1}, {"d3": 2, "d1": 1}))
    >>> pool([a, b], 1), pool([a, b], 2, judged={"q": {"d1": 0}})
    ({'q': ['d1', 'd3']}, {'q': ['d2', 'd3']})
    """
    pooled: dict[str, set[str]] = {}
    for ranking in rankings:
        for hits in ranking.cut(depth):
            pooled.setdefault(hits.qid, set()).update(hits.docnos)
    known = judged or {}
    order = {qid: sorted(docs - known.get(qid, {}).keys(), key=lambda d: _hash(qid, d)) for qid, docs in pooled.items()}
    return {qid: docs for qid, docs in order.items() if docs}


def judged_twice(qid: str, share: float = 0.1) -> bool:
    """Whether a query belongs to the share that a second judge sees too: decided by a hash of its id."""
    return int(_hash("twice", qid)[:8], 16) < share * 2**32


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Agreement:
    """How far two judges gave the same grades to the same documents."""

    pairs: int
    """Query-document pairs that both judged."""
    equal: float
    """Share of equal grades."""
    kappa: float
    """Cohen's kappa over the grades: agreement beyond chance, 1 at most."""
    weighted_kappa: float
    """The same with linear weights: a disagreement of two grades counts twice one of one grade."""
    confusion: tuple[tuple[int, ...], ...]
    """Counts by first judge's grade (rows) and second judge's (columns), grades from 0."""


def agreement(first: Judged, second: Judged) -> Agreement:
    """The agreement of two sets of judgments on the pairs that both have.

    Raises:
        DataError: no pair is in both, or a grade is negative.

    Source: Cohen 1960 (kappa), Cohen 1968 (weighted kappa).
    """
    grades = [
        (grade, second[qid][docno])
        for qid, docs in first.items()
        for docno, grade in docs.items()
        if docno in second.get(qid, {})
    ]
    if not grades:
        raise DataError("the two sets of judgments share no query-document pair; there is nothing to compare")
    if min(min(pair) for pair in grades) < 0:
        raise DataError("agreement needs grades of 0 or more")
    top = max(max(pair) for pair in grades) + 1
    table = np.zeros((top, top))
    for a, b in grades:
        table[a, b] += 1
    share = table / len(grades)
    expected = np.outer(share.sum(axis=1), share.sum(axis=0))
    distance = np.abs(np.subtract.outer(np.arange(top), np.arange(top)))
    return Agreement(
        len(grades),
        float(np.trace(share)),
        _beyond_chance(share, expected, (distance > 0).astype(float)),
        _beyond_chance(share, expected, distance.astype(float)),
        tuple(tuple(int(n) for n in row) for row in table),
    )


def _beyond_chance(share: np.ndarray, expected: np.ndarray, cost: np.ndarray) -> float:
    chance = float((expected * cost).sum())
    return 1.0 - float((share * cost).sum()) / chance if chance else 1.0
