"""Pairwise: two documents at a time, asked in both orders."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from rerank.rules.rule import (
    Answer,
    Asking,
    Group,
    Outcome,
    Rule,
    Steps,
    at_least,
    by_score,
    one_of,
    together,
    top_first,
)
from rerank.rules.sorting import bubble_first, heap_first

Pair = tuple[int, int]


def preference(forward: Answer, backward: Answer) -> int:
    """1 where both answers prefer the first document of `forward`, -1 where both prefer the other, 0 otherwise.

    Args:
        forward: about the documents (a, b).
        backward: about (b, a).

    >>> preference((1.0, 0.0), (0.0, 1.0)), preference((1.0, 0.0), (1.0, 0.0))
    (1, 0)
    """
    one, other = _winner(forward), -_winner(backward)
    return one if one == other else 0


def _winner(answer: Answer) -> int:
    first, second = (float("-inf") if score is None else score for score in answer)
    return (first > second) - (first < second)


@dataclass(frozen=True, repr=False)
class Pairwise(Rule):
    """Duels in both orders: the document preferred in both wins, anything else is a tie, settled by first-stage rank.

    No pair is asked about twice, and nothing is taken to be transitive.

    Source: Qin et al. 2024 (PRP).  `all` scores wins + ties / 2.

    >>> from rerank.rules.judges import FakeJudge, play
    >>> play(Pairwise("all"), 4, FakeJudge((1.0, 4.0, 2.0, 3.0))).order
    (1, 3, 2, 0)
    """

    sort: Literal["heap", "bubble", "all"] = "heap"
    """`heap` asks least; `bubble` passes through the list for every place; `all` asks n (n - 1) calls at once."""
    k: int = 10
    """Places that `heap` and `bubble` settle, the rest keep their first-stage order; `all` orders the whole list."""

    def __post_init__(self) -> None:
        one_of("pairwise", "sort", self.sort, ("heap", "bubble", "all"))
        at_least("pairwise", 1, k=self.k)

    @property
    def largest_group(self) -> int:
        """Two."""
        return 2

    def decide(self, n: int, seed: str) -> Steps:
        """A wave holds both orders of a pair; of all pairs for `all`."""
        seen: dict[Pair, int] = {}

        def duel(one: int, other: int) -> Asking[int]:
            pair = (min(one, other), max(one, other))
            if pair not in seen:
                forward, backward = yield [Group(pair), Group(pair[::-1])]
                seen[pair] = preference(forward, backward)
            return pair[1] if seen[pair] < 0 else pair[0]

        def best(members: tuple[int, ...]) -> Asking[int]:
            winner = members[-1]
            for member in reversed(members[:-1]):
                winner = yield from duel(member, winner)
            return winner

        if self.sort == "all":
            yield from together([duel(*pair) for pair in combinations(range(n), 2)])
            points = [0.0] * n
            for (one, other), preferred in seen.items():
                points[one] += (1 + preferred) / 2
                points[other] += (1 - preferred) / 2
            order, _ = by_score(points)
        else:
            sort = heap_first if self.sort == "heap" else bubble_first  # two children, or two in a window
            order = top_first((yield from sort(n, self.k, 2, best)), n)
        return Outcome(order, None, {"tied pairs": list(seen.values()).count(0)})
