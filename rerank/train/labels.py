"""Labels from teachers: two rankings fused into one label a document, labels brought onto one scale."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rerank.errors import DataError


def fused_labels(pointwise_ranks: Sequence[int], listwise_ranks: Sequence[int], beta: float = 0.5) -> tuple[float, ...]:
    """One label a document from its ranks by two teachers: 0 where both put it first, and less the lower they put it.

    The label is the negative mean of the logarithms of the ranks, weighted `beta` and 1 - `beta`; rounded, so that
    equal products of ranks are ties.

    Raises:
        DataError: a rank is below 1, or the teachers ranked different numbers of documents.

    Source: GroupRank (arXiv 2511.11653v3).

    >>> fused_labels((1, 2, 4), (2, 8, 4))
    (-0.34657359028, -1.386294361..., -1.386294361...)
    """
    if len(pointwise_ranks) != len(listwise_ranks):
        raise DataError(
            f"{len(pointwise_ranks)} pointwise and {len(listwise_ranks)} listwise ranks; both teachers must rank all "
            "documents"
        )
    if (least := min((*pointwise_ranks, *listwise_ranks), default=1)) < 1:
        raise DataError(f"a rank is {least}; ranks begin at 1")
    if not 0 <= beta <= 1:
        raise DataError(f"beta is {beta}, from 0 (listwise alone) to 1 (pointwise alone) is needed")
    pairs = zip(pointwise_ranks, listwise_ranks, strict=True)
    return tuple(round(-beta * math.log(one) - (1 - beta) * math.log(other), 12) for one, other in pairs)


def rescaled(labels: Sequence[float], top: float = 10.0) -> tuple[float, ...]:
    """The labels moved and stretched so that the lowest is 0 and the highest `top`; all 0 where they are all equal.

    Gains and distributions need labels that are not negative, which fused labels and logits are.

    >>> rescaled((-2.0, -1.0, 0.0))
    (0.0, 5.0, 10.0)
    """
    low, high = min(labels, default=0.0), max(labels, default=0.0)
    return tuple((label - low) / (high - low) * top if high > low else 0.0 for label in labels)
