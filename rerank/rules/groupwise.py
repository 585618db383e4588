"""Groupwise: documents are scored in groups, and a document's scores from several groups are merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar, Literal

import numpy as np

from rerank.errors import ConfigError
from rerank.rules.rule import Answer, Group, Outcome, Rule, Steps, at_least, by_score, is_failed, one_of, seeded

Heard = Sequence[tuple[Group, Answer]]


def mean_scores(n: int, heard: Heard) -> list[float | None]:
    """Each document's mean over the groups that scored it; None where none did.

    >>> mean_scores(3, [(Group((0, 1)), (0.5, 1.0)), (Group((1, 0)), (0.5, None))])
    [0.5, 0.75, None]
    """
    scores: list[list[float]] = [[] for _ in range(n)]
    for group, answer in heard:
        for member, score in zip(group.members, answer, strict=True):
            if score is not None:
                scores[member].append(score)
    return [_rounded(sum(each) / len(each)) if each else None for each in scores]


def offset_fitted_scores(n: int, heard: Heard) -> list[float | None]:
    """Each document's mean after every group's scores were shifted by an offset of the group's own.

    A group of good documents is scored more strictly than a group of bad ones.  The offsets b are those with which
    scores and means agree best, the least sum of (score - mean - b)^2 over all scores; of several such, those of least
    size (the limit of a weak normal prior on b).  Where no document is in two groups they are 0.

    >>> strict, lenient = (Group((0, 1)), (0.0, 0.5)), (Group((1, 2)), (1.0, 0.75))
    >>> mean_scores(3, [strict, lenient]), offset_fitted_scores(3, [strict, lenient])
    ([0.0, 0.75, 0.75], [0.25, 0.75, 0.5])
    """
    triples = [
        (member, number, score)
        for number, (group, answer) in enumerate(heard)
        for member, score in zip(group.members, answer, strict=True)
        if score is not None
    ]
    if not triples:
        return [None] * n
    docs, groups = np.array([triple[:2] for triple in triples], dtype=np.int64).T
    scores = np.array([triple[2] for triple in triples], dtype=np.float64)
    times = np.bincount(docs, minlength=n)
    divisor = np.maximum(times, 1)
    seen = np.zeros((n, len(heard)))
    np.add.at(seen, (docs, groups), 1.0)
    means = np.bincount(docs, scores, n) / divisor
    # The normal equations with the documents' means eliminated: the Laplacian of the graph of overlaps.
    laplacian = np.diag(seen.sum(axis=0)) - seen.T @ (seen / divisor[:, None])
    residuals = np.bincount(groups, scores - means[docs], len(heard))
    offsets = np.linalg.lstsq(laplacian, residuals, rcond=1e-9)[0]
    fitted = np.bincount(docs, scores - offsets[groups], n) / divisor
    return [_rounded(float(score)) if count else None for score, count in zip(fitted, times, strict=True)]


def _rounded(score: float) -> float:
    """The score without the last digits, so that what differs only by the order of its sum is a tie."""
    return round(score, 9)


@dataclass(frozen=True, repr=False)
class Groupwise(Rule):
    """Documents by the merged scores of all groups that they were shown in; ties go by first-stage rank.

    Every pass shuffles the list and cuts it into ceil(n / interval) groups of nearly equal size; all groups of all
    passes are asked at once.  A failed answer counts for nothing, and a document that no group scored keeps its
    first-stage place.

    Source: GroupRank (arXiv 2511.11653v3).  Departures: a failed group is left out of the mean, where the reference
    counts zeros; groups are of nearly equal size, where the reference leaves a small last one; merging with fitted
    offsets and the early stop are ours.  Fusion with first-stage scores is a step of its own.

    >>> from rerank.rules.judges import FakeJudge, play
    >>> play(Groupwise(size=2), 4, FakeJudge((0.25, 1.0, 0.5, 0.75))).order
    (1, 3, 2, 0)
    """

    size: int = 20
    """Documents in a group."""
    passes: int = 1
    """Shuffles; the paper's gain ends after four."""
    interval: int | None = None
    """From the start of a group to the next; less than `size` makes groups overlap.  By default `size`."""
    merge: Literal["mean", "offsets"] = "mean"
    """`offsets` shifts each group's scores first, so that the groups agree on the documents they share."""
    settled: int | None = None
    """Ask one pass after another, and stop when one leaves the first so many places as they were.  By default all
    passes are asked at once."""
    seed: int = 0
    """Of the shuffles."""

    gives_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        one_of("groupwise", "merge", self.merge, ("mean", "offsets"))
        at_least("groupwise", 1, size=self.size, passes=self.passes, interval=self.interval, settled=self.settled)
        if self.interval is not None and self.interval > self.size:
            raise ConfigError(
                f"groupwise: interval is {self.interval} for groups of {self.size}; with more than the size some "
                "documents would never be shown"
            )

    @property
    def largest_group(self) -> int:
        """The size."""
        return self.size

    def decide(self, n: int, seed: str) -> Steps:
        """One wave; with `settled`, one for each pass."""
        random = seeded(self.seed, seed)
        passes = [self._groups(n, random) for _ in range(self.passes)]
        merged = mean_scores if self.merge == "mean" else offset_fitted_scores
        heard: list[tuple[Group, Answer]] = []
        scores: list[float | None] = [None] * n
        head: tuple[int, ...] = ()
        for groups in [[group for each in passes for group in each]] if self.settled is None else passes:
            answers = yield groups
            heard += zip(groups, answers, strict=True)
            scores = merged(n, heard)
            before, head = head, by_score(scores)[0][: self.settled]
            # A pass that failed in part is no evidence that nothing changes.
            if head == before and not any(map(is_failed, answers)):
                break
        return Outcome(*by_score(scores), {"documents without a score": scores.count(None)})

    def _groups(self, n: int, random: Random) -> list[Group]:
        """One pass: the shuffled list, cut."""
        interval = self.interval or self.size
        shuffled = random.sample(range(n), n)
        count = -(-n // interval)
        starts = [number * n // count for number in range(count)] + [n]
        ends = [start + self.size - interval for start in starts[1:]]
        return [Group(tuple(shuffled[start:end])) for start, end in zip(starts, ends, strict=False)]
