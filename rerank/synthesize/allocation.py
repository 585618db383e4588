"""How many documents each cluster gives."""

from __future__ import annotations

from collections.abc import Sequence


def allocate(sizes: Sequence[int], n: int) -> list[int]:
    """How many of `n` documents come from each of the clusters of these sizes.

    Every cluster that is not empty gives one, the others are shared in proportion to the sizes, rounded down, and what
    is left goes one each to the largest clusters that have documents left; of equal ones the first.  Where there are
    more clusters than documents wanted, the largest give one each.  Together they give `n`, or all there are.

    >>> allocate([10, 90], 5), allocate([5, 15, 80], 100)
    ([1, 4], [5, 15, 80])

    Source: DUQGen (Chandradevan et al. 2024, NAACL), section on sampling: 1 + floor((n - K) size / total).  In its code
    the remainder may exceed a cluster's size, and gives every cluster one more where it is 0; here it does neither.
    """
    total = sum(sizes)
    n = min(n, total)
    largest = sorted((place for place, size in enumerate(sizes) if size), key=lambda place: -sizes[place])
    if n <= len(largest):
        chosen = set(largest[:n])
        return [int(place in chosen) for place in range(len(sizes))]
    found = [1 + (n - len(largest)) * size // total if size else 0 for size in sizes]
    left = n - sum(found)
    while left:
        for place in largest:
            if left and found[place] < sizes[place]:
                found[place] += 1
                left -= 1
    return found
