"""Listwise: a window slides up the list and is put in order at each stop."""

from __future__ import annotations

from dataclasses import dataclass

from rerank.errors import ConfigError
from rerank.rules.rule import Group, Outcome, Rule, Steps, at_least


def window_spans(n: int, window: int, step: int) -> list[tuple[int, int]]:
    """The windows over `n` places, first and after-last place of each, from the bottom up.

    >>> window_spans(45, 20, 10)
    [(25, 45), (15, 35), (5, 25), (0, 20)]
    """
    if n < 2:
        return []
    starts = [*range(n - window, 0, -step), 0]
    return [(start, min(start + window, n)) for start in starts]


@dataclass(frozen=True, repr=False)
class Listwise(Rule):
    """Windows from the bottom of the list to its head, each put in order, so that good documents are carried up.

    With a judge that is never wrong the first `window - step` places are right.  Scores of any kind order a window:
    a generated order, or the distribution over labels at the first answer position (FIRST).  Equal scores keep the
    window's order, and documents that the answer leaves out come last, in that order too.

    Source: Sun et al. 2023 (RankGPT); Reddy et al. 2024 (FIRST).  Departure: the last window starts at the head of
    the list, so ceil((n - window) / step) + 1 calls read every document; the reference skips the head when n - window
    is no multiple of step, and a list shorter than the window altogether.

    >>> from rerank.rules.judges import FakeJudge, play
    >>> play(Listwise(window=3, step=1), 5, FakeJudge((1.0, 2.0, 3.0, 4.0, 5.0))).order
    (4, 3, 0, 1, 2)
    """

    window: int = 20
    """Documents in a call."""
    step: int = 10
    """Places that the window moves up; half the window is usual."""

    def __post_init__(self) -> None:
        at_least("listwise", 2, window=self.window)
        at_least("listwise", 1, step=self.step)
        if self.step >= self.window:
            raise ConfigError(
                f"listwise: step is {self.step} for a window of {self.window}; less than the window is needed, or "
                "nothing is carried up"
            )

    @property
    def largest_group(self) -> int:
        """The window."""
        return self.window

    def decide(self, n: int, seed: str) -> Steps:
        """One call a wave."""
        order = list(range(n))
        for start, end in window_spans(n, self.window, self.step):
            shown = order[start:end]
            (answer,) = yield [Group(tuple(shown))]
            scored = zip(answer, shown, strict=True)
            # The sort is stable, so what ties keeps the order that earlier windows gave it.
            ranked = sorted(scored, key=lambda pair: (pair[0] is None, 0.0 if pair[0] is None else -pair[0]))
            order[start:end] = [place for _, place in ranked]
        return Outcome(tuple(order), None, {})
