"""Rank safety: a permutation out for anything in, and garbage leaves the first-stage order."""

from __future__ import annotations

from random import Random
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rule_examples import RULES, SETTLING, shuffled_grades

from rerank.rules.judges import FORMS, FakeJudge, check_rule, play
from rerank.rules.rule import Answer, Group, Rule
from rerank.rules.setwise import Setwise
from rerank.rules.tournament import Tournament

every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
# What is relative to a group cannot be merged over groups.
COMPARABLE = [
    pytest.param(rule, form, id=f"{name}-{form}")
    for name, rule in RULES.items()
    for form in FORMS
    if form == "scores" or not rule.gives_scores
]
ODD = (None, None, 0.0, 1.0, 1.0, -1e308, 5e-324, float("nan"), float("inf"), -float("inf"))


def chaos(random: Random, group: Group) -> Answer:
    """Anything at all, a useful answer among it."""
    length = random.choice([len(group.members)] * 8 + [0, 1, len(group.members) + 1])
    kind = random.randrange(4)
    if kind == 0:
        return tuple(random.choice(ODD) for _ in range(length))
    if kind == 1:
        return tuple(random.random() for _ in range(length))
    if kind == 2:
        return tuple(float(at == 0) for at in random.sample(range(length), length))
    return (random.choice(ODD),) * length


@every_rule
def test_a_rule_keeps_every_convention_of_rules(rule):
    check_rule(rule)


@every_rule
@settings(max_examples=40)
@given(n=st.integers(0, 24), seed=st.integers(0, 2**32))
def test_any_answers_give_a_permutation(rule: Rule, n: int, seed: int):
    random = Random(seed)
    outcome = play(rule, n, lambda group: chaos(random, group), str(seed))
    assert sorted(outcome.order) == list(range(n))


@pytest.mark.parametrize("rule", SETTLING.values(), ids=SETTLING)
@settings(max_examples=40)
@given(n=st.integers(0, 24), seed=st.integers(0, 2**32))
def test_after_the_settled_places_the_rest_keep_their_order(rule: Rule, n: int, seed: int):
    random = Random(seed)
    rest = play(rule, n, lambda group: chaos(random, group), str(seed)).order[4:]
    assert list(rest) == sorted(rest)


@pytest.mark.parametrize(("rule", "form"), COMPARABLE)
def test_quality_falls_with_the_share_of_garbage_to_that_of_the_first_stage(rule, form):
    lists = [shuffled_grades(40, seed) for seed in range(5)]

    def found(garbage: float) -> float:
        """How many of the best four are among the first four; by chance 0.4."""
        orders = [
            play(rule, 40, FakeJudge(grades, form, garbage=garbage, seed=seed), str(seed)).order
            for seed, grades in enumerate(lists)
        ]
        return mean(sum(grades[place] > 36 for place in order[:4]) for grades, order in zip(lists, orders, strict=True))

    first_stage = mean(sum(grade > 36 for grade in grades[:4]) for grades in lists)
    quality = {share: found(share) for share in (0.0, 0.05, 0.5, 1.0)}
    assert quality[1.0] == first_stage < 1
    chance = 0.25 if isinstance(rule, Tournament) else 0.0  # which is never exact but for the winner
    assert quality[0.0] >= quality[0.05] - chance
    assert quality[0.05] >= quality[0.5] - chance
    assert quality[0.05] > first_stage
    assert quality[0.5] >= first_stage


@pytest.mark.parametrize("sort", ["heap", "bubble"])
@pytest.mark.parametrize("form", FORMS)
def test_a_failed_pick_is_the_best_first_stage_rank_of_its_set(sort, form):
    # The reference's heap sort leaves [1st, last, last but one, ...] when no answer parses.
    asked: list[Group] = []

    def ask(group: Group) -> Answer:
        asked.append(group)
        return (None,) * len(group.members) if len(asked) > 3 else FakeJudge(shuffled_grades(100), form)(group)

    order = play(Setwise(sort, shuffle=False), 100, ask).order
    judged = {place for group in asked[:3] for place in group.members}
    assert [place for place in order if place not in judged] == sorted(set(range(100)) - judged)
    assert play(Setwise(sort), 100, FakeJudge((1.0,) * 100, garbage=1.0)).order == tuple(range(100))
