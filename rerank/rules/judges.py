"""Judges that answer from known grades: what rules are tested, and third-party rules checked, with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Literal

from rerank.rules.rule import Answer, Group, Outcome, Rule

Form = Literal["scores", "order", "pick"]
FORMS: tuple[Form, ...] = ("scores", "order", "pick")
NONSENSE: tuple[Callable[[int], Answer], ...] = (
    lambda n: (None,) * n,
    lambda n: (float("nan"),) * n,
    lambda n: (1.0,) * (n + 1),
    lambda n: (),
)


@dataclass(frozen=True)
class FakeJudge:
    """Answers from the grades of the documents, by first-stage place; the same group gets the same answer.

    >>> FakeJudge((0.5, 1.0, 0.25), form="order")(Group((2, 1, 0)))
    (1.0, 3.0, 2.0)
    """

    grades: tuple[float, ...]
    """Higher is better."""
    form: Form = "scores"
    """`scores` are the grades as seen, `order` n for the best down to 1, `pick` 1 for the best and 0 for the rest."""
    noise: float = 0.0
    """Standard deviation of what is added to each grade, anew in each group."""
    lies: bool = False
    """Answers the opposite."""
    garbage: float = 0.0
    """Share of answers that are of no use: nothing said, not finite, of the wrong length."""
    seed: int = 0
    """Of noise and garbage."""

    def __call__(self, group: Group) -> Answer:
        """The answer about a group."""
        n = len(group.members)
        random = Random(f"{self.seed} {group.members}") if self.noise or self.garbage else None
        if random and random.random() < self.garbage:
            return random.choice(NONSENSE)(n)
        seen = [self.grades[member] for member in group.members]
        if random and self.noise:
            seen = [grade + random.gauss(0.0, self.noise) for grade in seen]
        if self.lies:
            seen = [-grade for grade in seen]
        if self.form == "scores":
            return tuple(seen)
        worst_first = sorted(range(n), key=lambda at: (seen[at], -group.members[at]))
        if self.form == "pick":
            return tuple(float(at == worst_first[-1]) for at in range(n))
        places = {at: float(place) for place, at in enumerate(worst_first, 1)}
        return tuple(places[at] for at in range(n))


def play(rule: Rule, n: int, judge: Callable[[Group], Answer], seed: str = "") -> Outcome:
    """What `rule` comes to on `n` documents when `judge` answers.

    >>> from rerank.rules.pointwise import Pointwise
    >>> play(Pointwise(), 2, FakeJudge((0.0, 1.0))).counts["calls"]
    2
    """
    steps = rule.steps(n, seed)
    try:
        groups = next(steps)
        while True:
            groups = steps.send([judge(group) for group in groups])
    except StopIteration as stop:
        outcome: Outcome = stop.value
        return outcome


def check_rule(rule: Rule) -> None:
    """Returns when `rule` keeps the conventions of rules, on lists of 0 to 45 documents.

    Any answers give a permutation; garbage gives the first-stage order; the same seed gives the same groups; no group
    is larger than said, is empty or holds a document twice; scores are given where said, and never increase.

    Raises:
        AssertionError: it breaks one; the message says which, and on what.

    >>> from rerank.rules.setwise import Setwise
    >>> check_rule(Setwise(k=3))
    """
    for n in (0, 1, 2, 3, 20, 21, 45):
        grades = tuple(float(place * 37 % 47) for place in range(n))
        for garbage in (0.0, 0.05, 0.5, 1.0):
            for form in FORMS:
                judge = FakeJudge(grades, form, garbage=garbage)
                broken = _broken(rule, n, judge)
                if broken:
                    raise AssertionError(
                        f"{rule!r}: {broken}, on {n} documents with {judge.form} and {garbage:.0%} garbage"
                    )


def _broken(rule: Rule, n: int, judge: FakeJudge) -> str:
    """The convention that a rule breaks, in words, or an empty text."""
    outcome, asked = _recorded(rule, n, judge)
    if sorted(outcome.order) != list(range(n)):
        return "gave no permutation"
    if judge.garbage == 1.0 and outcome.order != tuple(range(n)):
        return "changed the first-stage order without a usable answer"
    if (outcome, asked) != _recorded(rule, n, judge):
        return "asked or answered otherwise a second time"
    if any(not 1 <= len(set(group.members)) == len(group.members) <= rule.largest_group for group in asked):
        return "asked about a group that is empty, too large, or holds a document twice"
    if rule.gives_scores != (outcome.scores is not None):
        return "gave scores against what gives_scores says"
    if outcome.scores is not None and list(outcome.scores) != sorted(outcome.scores, reverse=True):
        return "gave scores that increase"
    if outcome.counts["calls"] != len(asked):
        return "counted other calls than it made"
    return ""


def _recorded(rule: Rule, n: int, judge: FakeJudge) -> tuple[Outcome, list[Group]]:
    asked: list[Group] = []

    def ask(group: Group) -> Answer:
        asked.append(group)
        return judge(group)

    return play(rule, n, ask, "a seed"), asked
