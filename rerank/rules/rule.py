"""What a rule is: a generator that yields groups of documents to compare, is sent answers, and returns an order.

Documents are known by their places in the first-stage list, 0 for its best.  Rules are pure: the same answers and the
same seed give the same groups and the same order, whatever else is in the batch.

Rank safety: whatever is answered, the order is a permutation, and where nothing usable is, it is the first-stage order.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Mapping, Sequence
from itertools import islice
from random import Random
from typing import ClassVar, NamedTuple, TypeVar

from rerank.errors import ConfigError, RankingError
from rerank.registry import Part

R = TypeVar("R")

LARGEST = 3.4028234663852886e38
"""The largest float32: scores are stored as such."""


class Group(NamedTuple):
    """Documents that are shown together."""

    members: tuple[int, ...]
    """Their places in the first-stage list, in the order shown: label i is `members[i]`."""


Answer = tuple[float | None, ...]
"""One score per member of a group, higher is better; None: nothing was said of that member.

A pick is 1 for the picked and 0 for the rest; an order is n, n-1, ..., 1 from best to worst; a distribution over labels
is its log-probabilities; a failed answer is all None.
"""


class Outcome(NamedTuple):
    """What a rule came to."""

    order: tuple[int, ...]
    """A permutation of the first-stage places, best first."""
    scores: tuple[float, ...] | None
    """One score per document of `order`, never increasing; None from rules that compare and do not score."""
    counts: Mapping[str, int]
    """`calls`, `documents shown`, `failed answers`, `waves` (how many rounds of calls had to wait for the round
    before), and what else the rule counts."""


Asking = Generator[list[Group], list[Answer], R]
"""Yields groups that can be asked side by side, is sent their answers in the same order, returns a result."""
Steps = Generator[list[Group], list[Answer], Outcome]


class Rule(Part, ABC):
    """Base of all rules; a subclass is a frozen dataclass with hashable fields, `decide` and `largest_group`."""

    gives_scores: ClassVar[bool] = False
    """Whether outcomes carry scores that mean the same in every list."""

    @property
    @abstractmethod
    def largest_group(self) -> int:
        """How many documents a call shows at most."""

    @abstractmethod
    def decide(self, n: int, seed: str) -> Steps:
        """The rule's own part of `steps`: gets answers of the right length without NaN or infinities, and leaves the
        common counts to `steps`."""

    def steps(self, n: int, seed: str = "") -> Steps:
        """The steps that order a list of `n` documents.

        Args:
            n: how many documents there are; none and one need no call from most rules.
            seed: a text, usually the query's id, that sets shuffles apart between queries.

        Raises:
            RankingError: the rule's own part returned no permutation.
        """
        counts = {"calls": 0, "documents shown": 0, "failed answers": 0, "waves": 0}
        deciding = self.decide(n, seed)
        try:
            groups = next(deciding)
            while True:
                answers: list[Answer] = []
                if groups:
                    counts["calls"] += len(groups)
                    counts["documents shown"] += sum(len(group.members) for group in groups)
                    counts["waves"] += 1
                    raw = yield groups
                    answers = [_usable(answer, group) for group, answer in zip(groups, raw, strict=True)]
                    counts["failed answers"] += sum(is_failed(answer) for answer in answers)
                groups = deciding.send(answers)
        except StopIteration as stop:
            outcome: Outcome = stop.value
        if sorted(outcome.order) != list(range(n)):
            raise RankingError(f"{self.label}: gave no permutation of {n:,} documents: {outcome.order[:20]}")
        return Outcome(outcome.order, outcome.scores, {**counts, **outcome.counts})


def _usable(answer: Answer, group: Group) -> Answer:
    """The answer, failed where it has the wrong length, silent where a score is no finite float32."""
    if len(answer) != len(group.members):
        return (None,) * len(group.members)
    return tuple(float(score) if score is not None and abs(score) <= LARGEST else None for score in answer)


def is_failed(answer: Answer) -> bool:
    """Whether nothing was said of any member.

    >>> is_failed((None, None)), is_failed((None, 0.0))
    (True, False)
    """
    return all(score is None for score in answer)


def best_first(group: Group, answer: Answer) -> list[int]:
    """The members by falling score; ties and those that nothing was said of go by first-stage rank, the latter last.

    >>> best_first(Group((4, 7, 1, 0)), (0.0, 1.0, 0.0, None))
    [7, 1, 4, 0]
    """
    scored = zip(group.members, answer, strict=True)
    return [member for _, _, member in sorted((s is None, 0.0 if s is None else -s, m) for m, s in scored)]


def by_score(scores: Sequence[float | None]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The order of documents by falling score and the scores along it; ties go by first-stage rank.

    A document without a score keeps its first-stage place and gets the score of the one before it (the first: of the
    one after it; 0 where no document has a score).

    >>> by_score([0.5, None, 0.75, 0.5])
    ((2, 1, 0, 3), (0.75, 0.75, 0.5, 0.5))
    """
    scored = sorted((-score, place) for place, score in enumerate(scores) if score is not None)
    ranked = iter(scored)
    order: list[int] = []
    along: list[float] = []
    last = -scored[0][0] if scored else 0.0
    for place, score in enumerate(scores):
        if score is None:
            order.append(place)
        else:
            negative, winner = next(ranked)
            order.append(winner)
            last = -negative
        along.append(last)
    return tuple(order), tuple(along)


def top_first(top: Sequence[int], n: int) -> tuple[int, ...]:
    """The settled places, then the rest in first-stage order.

    >>> top_first([3, 0], 5)
    (3, 0, 1, 2, 4)
    """
    settled = set(top)
    return (*top, *(place for place in range(n) if place not in settled))


def together(branches: Iterable[Asking[R]]) -> Asking[list[R]]:
    """The results of all branches, asked side by side: a wave holds the groups of every branch that waits.

    >>> def ask(place):
    ...     (answer,) = yield [Group((place,))]
    ...     return answer[0]
    >>> both = together([ask(3), ask(5)])
    >>> next(both)
    [Group(members=(3,)), Group(members=(5,))]
    """
    running = list(branches)
    results: dict[int, R] = {}
    heard: dict[int, list[Answer] | None] = dict.fromkeys(range(len(running)))
    while heard:
        asked: dict[int, list[Group]] = {}
        for number, answers in heard.items():
            branch = running[number]
            try:
                asked[number] = next(branch) if answers is None else branch.send(answers)
            except StopIteration as stop:
                results[number] = stop.value
        if asked:
            all_answers = iter((yield [group for groups in asked.values() for group in groups]))
        heard = {number: list(islice(all_answers, len(groups))) for number, groups in asked.items()}
    return [results[number] for number in range(len(running))]


def seeded(seed: int, text: str) -> Random:
    """A source of randomness of its own for each pair of seed and text, the same in every process.

    >>> seeded(0, "q1").random() == seeded(0, "q1").random() != seeded(0, "q2").random()
    True
    """
    return Random(int.from_bytes(hashlib.sha256(f"{seed}\0{text}".encode("utf-8", "surrogatepass")).digest()))


def at_least(rule: str, low: int, **fields: int | None) -> None:
    """Returns when each of the named fields is None, or `low` or more.

    Raises:
        ConfigError: one is less.

    >>> at_least("setwise", 1, k=10, votes=1)
    """
    for name, value in fields.items():
        if value is not None and value < low:
            raise ConfigError(f"{rule}: {name} is {value}, at least {low} is needed")


def one_of(rule: str, field: str, value: str, known: Iterable[str]) -> None:
    """Returns when `value` is one of those known.

    Raises:
        ConfigError: it is not.

    >>> one_of("setwise", "sort", "heap", ("heap", "bubble"))
    """
    if value not in known:
        raise ConfigError(f"{rule}: {field} is {value!r}, {' or '.join(map(repr, known))} is needed")
