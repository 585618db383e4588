"""The cost of every rule on 100 documents, counted with fake judges."""

from __future__ import annotations

from statistics import mean

import pytest
from rule_examples import shuffled_grades

from rerank.rules.groupwise import Groupwise
from rerank.rules.judges import FakeJudge, play
from rerank.rules.listwise import Listwise
from rerank.rules.pairwise import Pairwise
from rerank.rules.pointwise import Pointwise
from rerank.rules.rule import Rule
from rerank.rules.setwise import Setwise
from rerank.rules.tournament import Tournament


def cost(rule: Rule, n: int = 100, form: str = "pick", lists: int = 1) -> tuple[float, float, float]:
    """Calls, waves and documents shown a list, on average over lists in random order."""
    judges = [FakeJudge(shuffled_grades(n, seed), form) for seed in range(lists)]
    counts = [play(rule, n, judge, str(seed)).counts for seed, judge in enumerate(judges)]
    calls, waves, documents = (mean(each[what] for each in counts) for what in ("calls", "waves", "documents shown"))
    return calls, waves, documents


@pytest.mark.parametrize(
    ("rule", "calls", "waves", "documents"),
    [
        (Pointwise(), 100, 1, 100),
        (Groupwise(), 5, 1, 100),
        (Groupwise(passes=6), 30, 1, 600),
        (Groupwise(interval=10), 10, 1, 190),
        (Listwise(), 9, 9, 180),
        (Pairwise("all"), 9_900, 1, 19_800),
        (Tournament(), 13, 5, 185),
        (Tournament(10), 130, 5, 1_850),
    ],
    ids=repr,
)
@pytest.mark.parametrize("form", ["pick", "scores"])
def test_costs_that_do_not_depend_on_the_answers_are_exact(rule, calls, waves, documents, form):
    if calls < 9_900 or form == "pick":
        assert cost(rule, form=form) == (calls, waves, documents)


@pytest.mark.parametrize(
    ("rule", "n", "calls", "documents"),
    [
        (Setwise(), 100, 23.4, 435),
        (Setwise(size=3), 100, 140, 420),
        (Setwise(size=4), 100, 82, None),
        (Setwise(size=10), 100, 31, None),
        (Setwise(), 1_000, 80, None),
        (Setwise(k=1), 100, 7, None),
    ],
    ids=repr,
)
def test_the_cost_of_setwise_heap_sort_with_picks_is_as_published(rule, n, calls, documents):
    counted = cost(rule, n, lists=40)
    assert counted[0] == pytest.approx(calls, rel=0.05)
    if documents:
        assert counted[2] == pytest.approx(documents, rel=0.05)


def test_setwise_heap_sort_on_a_hundred_documents_takes_19_to_25_calls():
    calls = [play(Setwise(), 100, FakeJudge(shuffled_grades(100, seed), "pick")).counts["calls"] for seed in range(50)]
    assert 19 <= min(calls) <= max(calls) <= 25
    in_order = FakeJudge(tuple(range(100, 0, -1)), "pick")
    assert play(Setwise(), 100, in_order).counts["calls"] == 19


def test_the_inner_nodes_of_a_heap_are_built_side_by_side():
    calls, waves, _ = cost(Setwise(), lists=40)
    assert waves == calls - 4
    calls, waves, _ = cost(Setwise(size=3), lists=10)
    assert waves < calls / 1.9


@pytest.mark.parametrize("form", ["order", "scores"])
def test_whole_orders_cut_the_calls_of_setwise_to_a_third(form):
    calls, waves, documents = cost(Setwise(), form=form, lists=40)
    assert calls <= 8
    assert waves <= 4
    assert documents <= 135
    assert cost(Setwise(orders=False), form=form, lists=40)[0] > 22


def test_all_pairs_are_asked_once_in_each_order():
    shown = []
    play(Pairwise("all"), 12, lambda group: shown.append(group.members) or (0.0, 0.0))
    assert sorted(shown) == [(a, b) for a in range(12) for b in range(12) if a != b]
