"""Fake judges, and the check of rules that they serve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from rule_examples import shuffled_grades

from rerank.rules.judges import FakeJudge, check_rule, play
from rerank.rules.rule import Group, Outcome, Rule, Steps, by_score

GROUP = Group((4, 0, 2))
GRADES = (0.5, 0.0, 0.75, 0.0, 0.5)


@pytest.mark.parametrize(
    ("judge", "answer"),
    [
        (FakeJudge(GRADES), (0.5, 0.5, 0.75)),
        (FakeJudge(GRADES, "order"), (1.0, 2.0, 3.0)),
        (FakeJudge(GRADES, "pick"), (0.0, 0.0, 1.0)),
        (FakeJudge(GRADES, lies=True), (-0.5, -0.5, -0.75)),
        (FakeJudge(GRADES, "pick", lies=True), (0.0, 1.0, 0.0)),
    ],
)
def test_a_judge_answers_from_grades_and_ties_go_by_first_stage_rank(judge, answer):
    assert judge(GROUP) == answer


def test_noise_is_the_same_for_the_same_group_and_apart_between_seeds():
    judge = FakeJudge(GRADES, noise=1.0)
    assert judge(GROUP) == FakeJudge(GRADES, noise=1.0)(GROUP) != FakeJudge(GRADES, noise=1.0, seed=1)(GROUP)
    assert judge(GROUP)[0] != judge(Group((4, 0, 1)))[0]


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.5, 1.0])
def test_garbage_comes_at_its_rate(rate):
    judge = FakeJudge((1.0,) * 2_000, garbage=rate)
    answers = [judge(Group((place,))) for place in range(2_000)]
    assert sum(answer != (1.0,) for answer in answers) == pytest.approx(2_000 * rate, abs=70)
    if rate:
        assert len({repr(answer) for answer in answers if answer != (1.0,)}) == 4


@dataclass(frozen=True, repr=False)
class Bad(Rule):
    """A pointwise rule with one fault."""

    fault: str = ""

    @property
    def largest_group(self) -> int:
        return 1

    def decide(self, n: int, seed: str) -> Steps:
        groups = [Group((place,)) for place in range(n)]
        if self.fault == "large" and n > 1:
            groups = [Group((0, 1)), *groups[2:]]
        if self.fault == "twice" and n:
            groups[0] = Group((0, 0))
        if self.fault == "forgets":
            groups = groups[:: -1 if len(RUNS) % 2 else 1]
            RUNS.append(1)
        answers = yield groups
        order, scores = by_score([answer[0] for answer in answers] + [None] * (n - len(answers)))
        if self.fault == "reverses on garbage" and all(answer[0] is None for answer in answers):
            order = order[::-1]
        return Outcome(order, scores if self.fault == "scores" else None, {"calls": 0} if self.fault == "count" else {})


RUNS: list[int] = []


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("large", "a group that is empty, too large"),
        ("twice", "holds a document twice"),
        ("forgets", "otherwise a second time"),
        ("reverses on garbage", "changed the first-stage order without a usable answer"),
        ("scores", "gave scores against what gives_scores says"),
        ("count", "counted other calls"),
    ],
)
def test_a_rule_that_breaks_a_convention_is_found_out(fault, message):
    with pytest.raises(AssertionError, match=message):
        check_rule(Bad(fault))


def test_a_rule_without_a_fault_passes():
    check_rule(Bad())


def test_playing_asks_group_by_group():
    grades = shuffled_grades(5)
    judge: Callable[[Group], tuple[float, ...]] = FakeJudge(grades)
    assert play(Bad(), 5, judge).order[0] == grades.index(5.0)
