"""Pointwise: every document is scored on its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rerank.rules.rule import Group, Outcome, Rule, Steps, by_score


@dataclass(frozen=True, repr=False)
class Pointwise(Rule):
    """Every document alone, all at once; the order is that of the scores, ties go by first-stage rank.

    Cross-encoders, yes/no likelihood and query likelihood are this rule with different prompts and engines.  A document
    whose answer failed keeps its first-stage place.

    Source: the usual procedure, e.g. Nogueira et al. 2020 (monoT5); keeping the place is ours.

    >>> from rerank.rules.judges import FakeJudge, play
    >>> play(Pointwise(), 3, FakeJudge((0.25, 1.0, 0.5))).order
    (1, 2, 0)
    """

    gives_scores: ClassVar[bool] = True

    @property
    def largest_group(self) -> int:
        """One."""
        return 1

    def decide(self, n: int, seed: str) -> Steps:
        """One wave of `n` calls."""
        answers = yield [Group((place,)) for place in range(n)]
        return Outcome(*by_score([score for (score,) in answers]), {})
