"""Setwise: the best of a few documents is picked, and a partial sort makes an order of the picks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Literal

from rerank.errors import ConfigError
from rerank.rules.rule import (
    Answer,
    Asking,
    Group,
    Outcome,
    Rule,
    Steps,
    at_least,
    best_first,
    is_failed,
    one_of,
    seeded,
    together,
    top_first,
)
from rerank.rules.sorting import Verdict, bubble_first, family, heap_first, heap_levels, merge_first

Seen = dict[frozenset[int], Verdict]


@dataclass(frozen=True, repr=False)
class Setwise(Rule):
    """The first `k` places by heap or bubble sort over picks from sets; the rest keep their first-stage order.

    Where the answers put whole sets in order (a distribution over labels, a permutation) and `orders` is set, the heap
    gives way to merging the ordered sets, which settles several places with a call: about 8 calls for 23.  When
    nothing is picked from a set, its best first-stage rank counts as the pick; a set that comes up again is asked
    about again only then.

    Source: Zhuang et al. 2024 (Setwise), Zhuang et al. 2025 (Rank-R1).  Departures: a failed pick falls back on the
    first-stage rank, not on the parent, and votes that tie are settled by it, not at random; merging is ours.

    >>> from rerank.rules.judges import FakeJudge, play
    >>> play(Setwise(k=2, size=3), 6, FakeJudge((1.0, 2.0, 6.0, 3.0, 5.0, 4.0), form="pick")).order
    (2, 4, 0, 1, 3, 5)
    """

    sort: Literal["heap", "bubble"] = "heap"
    """`heap` asks least; `bubble` goes through the whole list for every place."""
    k: int = 10
    """Places that are settled."""
    size: int = 20
    """Documents in a call, 3 or more for `heap`; the papers count one less, the children of a heap's node."""
    votes: int = 1
    """Times that a set is asked, in another order each time; the majority picks, ties go by first-stage rank."""
    shuffle: bool = True
    """Show each set in random order, against a preference for labels; else the heap's or the window's."""
    orders: bool = True
    """Use the whole order of a set where the answers give one; else its first document only.  A third of the calls look
    at each document less often, so a noisy judge errs more; with `votes: 3` the calls are as many, and it errs less."""
    seed: int = 0
    """Of the shuffles."""

    def __post_init__(self) -> None:
        one_of("setwise", "sort", self.sort, ("heap", "bubble"))
        at_least("setwise", 3 if self.sort == "heap" else 2, size=self.size)
        at_least("setwise", 1, k=self.k, votes=self.votes)
        if self.votes > 1 and not self.shuffle:
            raise ConfigError(f"setwise: {self.votes} votes on the same order are one vote; set shuffle: true")

    @property
    def largest_group(self) -> int:
        """The size."""
        return self.size

    def decide(self, n: int, seed: str) -> Steps:
        """A wave holds what one level of the heap, or one merge, waits for."""
        seen: Seen = {}
        judge = partial(self._judge, random=seeded(self.seed, seed), seen=seen)

        def best(members: tuple[int, ...]) -> Asking[int]:
            verdict = yield from judge(members)
            return verdict.ranking[0]

        if self.sort == "bubble":
            return Outcome(top_first((yield from bubble_first(n, self.k, self.size, best)), n), None, {})
        children = self.size - 1
        lowest = [tuple(family(node, n, children)) for level in heap_levels(n, children)[:1] for node in level]
        first = yield from together([judge(members) for members in lowest])
        seen |= {frozenset(members): verdict for members, verdict in zip(lowest, first, strict=True)}
        if any(verdict.whole for verdict in first):
            top = yield from merge_first(n, self.k, self.size, judge, lowest)
        else:
            top = yield from heap_first(n, self.k, children, best)
        return Outcome(top_first(top, n), None, {})

    def _judge(self, members: tuple[int, ...], random: Random, seen: Seen) -> Asking[Verdict]:
        """The verdict of all votes, from memory where the set was asked about before."""
        verdict = seen.get(frozenset(members))
        if verdict is None:
            shown = [random.sample(members, len(members)) if self.shuffle else members for _ in range(self.votes)]
            groups = [Group(tuple(each)) for each in shown]
            answers = yield groups
            verdict = self._count(groups, answers)
            if not all(map(is_failed, answers)):
                seen[frozenset(members)] = verdict
        return verdict

    def _count(self, groups: Sequence[Group], answers: Sequence[Answer]) -> Verdict:
        """Most first places win; among equals, where every vote is a whole order, the best places in sum."""
        # Of two documents a pick is the whole order: that says nothing of what larger sets will be answered with.
        whole = self.orders and len(groups[0].members) > 2 and all(map(_is_order, answers))
        wins, places = Counter[int](), Counter[int]()
        for group, answer in zip(groups, answers, strict=True):
            if not is_failed(answer):
                ranking = best_first(group, answer)
                wins[ranking[0]] += 1
                if whole:
                    places.update({member: place for place, member in enumerate(ranking)})
        return Verdict(tuple(sorted(groups[0].members, key=lambda m: (-wins[m], places[m], m))), whole)


def _is_order(answer: Answer) -> bool:
    return None not in answer and len(set(answer)) == len(answer)
