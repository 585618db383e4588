"""Tournament: rounds of groups whose best go on; a document's points are the rounds that it survived."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from rerank.rules.rule import Asking, Group, Outcome, Rule, Steps, at_least, best_first, by_score, seeded, together


def rounds(n: int, size: int) -> list[tuple[int, int]]:
    """How many groups there are in each round and how many documents go on, for `n` documents.

    The survivors of a round are the next smaller of ... 100, 50, 20, 10, 5, 2; the groups are as few as `size` allows
    so that each sends on the same number and, where that can be, has the same number.

    >>> rounds(100, 20)
    [(5, 50), (5, 20), (1, 10), (1, 5), (1, 2)]
    """
    if n == 2:
        return [(1, 1)]
    plan: list[tuple[int, int]] = []
    while n > 2:
        survivors = max(lead * 10**zeros for zeros in range(len(str(n))) for lead in (1, 2, 5) if lead * 10**zeros < n)
        fitting = [groups for groups in range(-(-n // size), survivors + 1) if survivors % groups == 0]
        plan.append((next((groups for groups in fitting if n % groups == 0), fitting[0]), survivors))
        n = survivors
    return plan


@dataclass(frozen=True, repr=False)
class Tournament(Rule):
    """Documents by points from one or more tournaments; ties go by first-stage rank.

    Groups take every so-manyth document, so that each has good and bad ones, and are shown in random order.  With a
    judge that is never wrong the best document is among the first two: the last round leaves two with equal points.

    Source: Chen et al. 2025 (TourRank): for 100 documents 13 calls in 5 rounds.  Departures: other lengths follow
    `rounds`; of a list of two one goes on; documents that an answer does not tell apart go on by first-stage rank.

    >>> from rerank.rules.judges import FakeJudge, play
    >>> play(Tournament(), 6, FakeJudge((1.0, 2.0, 3.0, 4.0, 5.0, 6.0))).order
    (4, 5, 1, 2, 3, 0)
    """

    tournaments: int = 1
    """Tournaments side by side, which differ in the order within groups; their points are added."""
    size: int = 20
    """Documents in a call at most."""
    seed: int = 0
    """Of the shuffles."""

    def __post_init__(self) -> None:
        at_least("tournament", 1, tournaments=self.tournaments)
        at_least("tournament", 3, size=self.size)

    @property
    def largest_group(self) -> int:
        """The size."""
        return self.size

    def decide(self, n: int, seed: str) -> Steps:
        """A wave holds one round of every tournament."""
        each = [self._points(n, seeded(self.seed, f"{number}\0{seed}")) for number in range(self.tournaments)]
        points = yield from together(each)
        order, _ = by_score([float(sum(won)) for won in zip(*points, strict=True)])
        return Outcome(order, None, {})

    def _points(self, n: int, random: Random) -> Asking[list[int]]:
        points = [0] * n
        entrants = list(range(n))
        for n_groups, survivors in rounds(n, self.size):
            shown = [entrants[first::n_groups] for first in range(n_groups)]
            groups = [Group(tuple(random.sample(members, len(members)))) for members in shown]
            answers = yield groups
            winners = [
                best_first(group, answer)[: survivors // n_groups]
                for group, answer in zip(groups, answers, strict=True)
            ]
            entrants = sorted(place for group in winners for place in group)
            for place in entrants:
                points[place] += 1
        return points
