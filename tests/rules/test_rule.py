"""The base of rules: counts, unusable answers, waves side by side, orders from scores."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rule_examples import RULES

from rerank.errors import ConfigError, RankingError
from rerank.rules.groupwise import Groupwise
from rerank.rules.judges import FakeJudge, play
from rerank.rules.listwise import Listwise
from rerank.rules.pairwise import Pairwise
from rerank.rules.pointwise import Pointwise
from rerank.rules.rule import Answer, Asking, Group, Outcome, Rule, Steps, by_score, seeded, together, top_first
from rerank.rules.setwise import Setwise
from rerank.rules.tournament import Tournament

SCORES = st.lists(st.none() | st.floats(-3, 3) | st.sampled_from([0.0, 0.5, 1.0]), max_size=12)
KINDS = (Groupwise, Listwise, Pairwise, Pointwise, Setwise, Tournament)
NAN, INFINITY = float("nan"), float("inf")


@dataclass(frozen=True, repr=False)
class Scripted(Rule):
    """Asks what it is told and keeps what it was sent."""

    waves: tuple[tuple[Group, ...], ...]
    order: tuple[int, ...]

    @property
    def largest_group(self) -> int:
        return 9

    def decide(self, n: int, seed: str) -> Steps:
        heard = []
        for groups in self.waves:
            answers = yield list(groups)
            heard.append(answers)
        return Outcome(self.order, None, {"kept": len(heard)})


def run(steps: Steps, answers: list[list[Answer]]) -> Outcome:
    replies = iter(answers)
    try:
        next(steps)
        while True:
            steps.send(next(replies))
    except StopIteration as stop:
        return stop.value


def test_calls_documents_waves_and_failed_answers_are_counted():
    one, two = Group((0, 1, 2)), Group((2,))
    outcome = run(Scripted(((one, two), (one,)), (0, 1, 2)).steps(3), [[(None, None, 1.0), (None,)], [(0.0,) * 3]])
    assert outcome.counts == {"calls": 3, "documents shown": 7, "failed answers": 1, "waves": 2, "kept": 2}


def test_a_wave_without_groups_is_no_wave():
    outcome = run(Scripted(((), (Group((0,)),), ()), (0,)).steps(1), [[(1.0,)]])
    assert (outcome.counts["calls"], outcome.counts["waves"], outcome.counts["kept"]) == (1, 1, 3)


@pytest.mark.parametrize("unusable", [(), (1.0,), (1.0, 2.0, 3.0), (NAN, NAN), (INFINITY, NAN), (None, -INFINITY)])
def test_an_answer_of_the_wrong_length_or_without_a_finite_score_has_failed(unusable):
    outcome = play(Listwise(2, 1), 2, lambda group: unusable)
    assert outcome.order == (0, 1)
    assert outcome.counts["failed answers"] == 1


def test_the_finite_scores_of_an_answer_are_used():
    outcome = play(Listwise(3, 1), 3, lambda group: (NAN, 1.0, 2.0))
    assert outcome.order == (2, 1, 0)
    assert outcome.counts["failed answers"] == 0


@pytest.mark.parametrize("order", [(0, 1), (0, 1, 1), (1, 2, 3), (0, 1, 2, 3)])
def test_an_order_that_is_no_permutation_is_an_error_that_names_the_rule(order):
    with pytest.raises(RankingError, match="Scripted: gave no permutation of 3 documents"):
        run(Scripted((), order).steps(3), [])


def test_a_rule_shows_only_what_differs_from_its_defaults():
    assert repr(Setwise(k=3, votes=3)) == "Setwise(k=3, votes=3)"
    assert repr(Setwise()) == "Setwise()"


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_rule_is_a_value(rule):
    again = eval(repr(rule), {kind.__name__: kind for kind in KINDS})  # noqa: S307
    assert again == rule == pickle.loads(pickle.dumps(rule))  # noqa: S301
    assert hash(again) == hash(rule)
    assert rule.label.lower() == type(rule).__name__.lower()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Setwise(k=0), "setwise: k is 0, at least 1 is needed"),
        (lambda: Setwise(size=2), "setwise: size is 2, at least 3"),
        (lambda: Setwise("bubble", size=1), "setwise: size is 1, at least 2"),
        (lambda: Setwise(votes=0), "setwise: votes is 0"),
        (lambda: Setwise(votes=3, shuffle=False), "3 votes on the same order are one vote"),
        (lambda: Setwise("quick"), "setwise: sort is 'quick', 'heap' or 'bubble' is needed"),
        (lambda: Pairwise("quick"), "pairwise: sort is 'quick'"),
        (lambda: Pairwise(k=0), "pairwise: k is 0"),
        (lambda: Listwise(1), "listwise: window is 1, at least 2"),
        (lambda: Listwise(20, 0), "listwise: step is 0"),
        (lambda: Listwise(20, 20), "listwise: step is 20 for a window of 20"),
        (lambda: Groupwise(size=0), "groupwise: size is 0"),
        (lambda: Groupwise(passes=0), "groupwise: passes is 0"),
        (lambda: Groupwise(interval=0), "groupwise: interval is 0"),
        (lambda: Groupwise(size=10, interval=11), "groupwise: interval is 11 for groups of 10"),
        (lambda: Groupwise(settled=0), "groupwise: settled is 0"),
        (lambda: Groupwise(merge="median"), "groupwise: merge is 'median'"),
        (lambda: Tournament(0), "tournament: tournaments is 0"),
        (lambda: Tournament(size=2), "tournament: size is 2, at least 3"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


# -- together -------------------------------------------------------------------


def branch(*waves: int) -> Asking[list[int]]:
    """Asks waves of so many groups, and returns how many answers each was sent."""
    sent = []
    for size in waves:
        answers = yield [Group((place,)) for place in range(size)]
        sent.append(len(answers))
    return sent


def numbered(steps: Asking[list[list[int]]]) -> tuple[list[int], list[list[int]]]:
    sizes: list[int] = []
    try:
        groups = next(steps)
        while True:
            sizes.append(len(groups))
            groups = steps.send([(1.0,)] * len(groups))
    except StopIteration as stop:
        return sizes, stop.value


def test_branches_that_wait_share_a_wave_and_each_gets_its_own_answers():
    sizes, results = numbered(together([branch(2, 1), branch(), branch(3), branch(1, 1, 4)]))
    assert sizes == [6, 2, 4]
    assert results == [[2, 1], [], [3], [1, 1, 4]]


def test_no_branches_ask_nothing():
    assert numbered(together(list[Asking[list[int]]]())) == ([], [])


def test_a_branch_that_yields_nothing_to_ask_goes_on():
    sizes, results = numbered(together([branch(0, 2), branch(0)]))
    assert results == [[0, 2], [0]]
    assert sizes == [0, 2]


# -- orders ---------------------------------------------------------------------


@given(SCORES)
def test_documents_without_a_score_keep_their_places_and_scores_never_increase(scores):
    order, along = by_score(scores)
    assert sorted(order) == list(range(len(scores)))
    assert all(order[place] == place for place, score in enumerate(scores) if score is None)
    assert list(along) == sorted(along, reverse=True)
    scored = [place for place in order if scores[place] is not None]
    assert scored == sorted(scored, key=lambda place: (-scores[place], place))
    assert all(along[at] == scores[place] for at, place in enumerate(order) if scores[place] is not None)


def test_a_document_without_a_score_takes_its_neighbours():
    assert by_score([None, 1.0, None, 2.0, None]) == ((0, 3, 2, 1, 4), (2.0, 2.0, 2.0, 1.0, 1.0))
    assert by_score([None, None]) == ((0, 1), (0.0, 0.0))
    assert by_score([]) == ((), ())


@given(st.permutations(range(7)), st.integers(0, 7))
def test_settled_places_come_first_and_the_rest_as_it_was(permutation, k):
    order = top_first(permutation[:k], 7)
    assert list(order[:k]) == permutation[:k]
    assert list(order[k:]) == sorted(permutation[k:])


def test_randomness_is_the_same_in_every_process_and_apart_for_every_text():
    def draws() -> Iterator[float]:
        return (seeded(seed, text).random() for seed in (0, 1) for text in ("", "q1", "ü", "\udc80", "0"))

    assert list(draws()) == list(draws())
    assert len(set(draws())) == 10
    assert round(seeded(0, "q1").random(), 12) == 0.288694565931


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_seeds_set_shuffles_apart_and_nothing_else(rule):
    shown: dict[str, list[Group]] = {"q1": [], "q2": []}
    for qid, groups in shown.items():
        play(rule, 30, lambda group, groups=groups: groups.append(group) or FakeJudge((0.5,) * 30)(group), qid)
    members = {qid: sorted(sorted(group.members) for group in groups) for qid, groups in shown.items()}
    if getattr(rule, "shuffle", hasattr(rule, "seed")):
        assert shown["q1"] != shown["q2"]
    else:
        assert shown["q1"] == shown["q2"]
    if not isinstance(rule, Groupwise):
        assert members["q1"] == members["q2"]
