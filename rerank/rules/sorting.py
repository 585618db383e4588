"""Partial sorts that only ask for the best of a few documents: what setwise and pairwise rules share.

Each gives the best `k` documents of a first-stage list.  With a judge that is never wrong they are the right ones in
the right order; with one that always prefers the better first-stage rank they are the head of the first-stage list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby, pairwise
from typing import NamedTuple

from rerank.rules.rule import Asking, together

Best = Callable[[tuple[int, ...]], Asking[int]]
"""The best of some documents, at least two."""


class Verdict(NamedTuple):
    """What is known of some documents once they were compared."""

    ranking: tuple[int, ...]
    """The documents; the first is the best."""
    whole: bool
    """Whether the documents after the first are in order too."""


Judge = Callable[[tuple[int, ...]], Asking[Verdict]]
"""The verdict on some documents, at least two."""


def heap_levels(n: int, children: int) -> list[list[int]]:
    """The inner nodes of a heap of `n`, lowest level first: nodes of one level have no descendants in common.

    >>> heap_levels(8, 2)
    [[2, 3], [1], [0]]
    """

    def height(node: int) -> int:
        levels = 0
        while (node := children * node + 1) < n:
            levels += 1
        return levels

    inner = [(height(node), node) for node in range(n) if children * node + 1 < n]
    return [[node for _, node in level] for _, level in groupby(sorted(inner), key=lambda pair: pair[0])]


def family(node: int, n: int, children: int) -> list[int]:
    """A node of a heap of `n` and its children.

    >>> family(1, 6, 3)
    [1, 4, 5]
    """
    return [node, *range(children * node + 1, min(children * node + children + 1, n))]


def heap_first(n: int, k: int, children: int, best: Best) -> Asking[list[int]]:
    """The best `k` by heap sort: build the heap, then take its root and sift the last leaf down, `k` times.

    The nodes of a level are built side by side.  Nothing is sifted after the last place is settled.
    """
    heap = list(range(n))

    def sift(node: int) -> Asking[None]:
        while len(nodes := family(node, len(heap), children)) > 1:
            winner = yield from best(tuple(heap[each] for each in nodes))
            found = next(each for each in nodes if heap[each] == winner)
            if found == node:
                return
            heap[node], heap[found] = heap[found], heap[node]
            node = found

    for level in heap_levels(n, children):
        yield from together([sift(node) for node in level])
    top: list[int] = []
    while heap and len(top) < k:
        top.append(heap[0])
        last = heap.pop()
        if heap and len(top) < k:
            heap[0] = last
            yield from sift(0)
    return top


def bubble_first(n: int, k: int, size: int, best: Best) -> Asking[list[int]]:
    """The best `k` by bubble sort: `k` times, windows of `size` go up from the bottom and carry their best along.

    Neighbouring windows share one document; the last one ends at the first open place.
    """
    order = list(range(n))
    for head in range(min(k, n - 1)):
        end = n
        while end - head > 1:
            start = max(head, end - size)
            winner = yield from best(tuple(order[start:end]))
            order.insert(start, order.pop(order.index(winner, start)))
            end = start + 1
    return order[:k]


def merge_first(n: int, k: int, size: int, judge: Judge, start: Iterable[tuple[int, ...]]) -> Asking[list[int]]:
    """The best `k` from verdicts that order whole groups: what is known to stand above what is kept, and merged.

    The documents that nothing open is known to stand above are compared; with room in the group, so are those next in
    line behind them, so that one call settles several places.  What one verdict said, no later one overturns.

    Args:
        n: how many documents there are.
        k: how many places are settled.
        size: the largest group.
        judge: asks; a verdict that is not whole is used for its first document.
        start: disjoint groups to begin with.
    """
    above: list[set[int]] = [set() for _ in range(n)]
    left, top = list(range(n)), list[int]()
    groups = list(start)
    while len(top) < min(k, n):
        undecided = [each for each in left if not above[each]]
        if len(undecided) == 1 and not groups:
            top.append(undecided[0])
            left.remove(undecided[0])
            for better in above:
                better.discard(undecided[0])
            continue
        if not groups:
            groups = [tuple(undecided[at : at + size]) for at in range(0, len(undecided), size)]
            if len(groups) == 1:
                groups = [_with_next_in_line(undecided, left, above, size, k - len(top))]
        verdicts = yield from together([judge(group) for group in groups if len(group) > 1])
        for verdict in verdicts:
            ranking = _extension(verdict.ranking, above)
            links = pairwise(ranking) if verdict.whole else ((ranking[0], each) for each in ranking[1:])
            for better_one, worse_one in links:
                above[worse_one].add(better_one)
        groups = []
    return top


def _with_next_in_line(
    undecided: Sequence[int], left: Sequence[int], above: Sequence[set[int]], size: int, places: int
) -> tuple[int, ...]:
    """The undecided, filled up level by level with what only they stand above, as far as it can matter."""
    group = list(undecided)
    for _ in range(places - 1):
        known = set(group)
        next_in_line = [each for each in left if each not in known and above[each] <= known][: size - len(group)]
        if not next_in_line:
            break
        group += next_in_line
    return tuple(group)


def _extension(ranking: Sequence[int], above: Sequence[set[int]]) -> list[int]:
    """The ranking, changed where it goes against what is known."""
    rest, ordered = list(ranking), list[int]()
    while rest:
        ordered.append(next(each for each in rest if above[each].isdisjoint(rest)))
        rest.remove(ordered[-1])
    return ordered
