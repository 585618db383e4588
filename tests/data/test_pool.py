"""Pools are blind and complete; agreement is Cohen's."""

from __future__ import annotations

import pytest

from rerank.data.pool import agreement, judged_twice, pool
from rerank.errors import DataError
from rerank.ranking import Ranking


def test_a_pool_holds_the_head_of_every_ranking_once():
    a = Ranking.of({"q": {f"d{i}": 10 - i for i in range(10)}})
    b = Ranking.of({"q": {f"d{i}": i for i in range(10)}})
    assert sorted(pool([a, b, a], 2)["q"]) == ["d0", "d1", "d8", "d9"]


def test_the_order_tells_nothing_of_the_systems():
    a = Ranking.of({"q": {f"d{i}": 50 - i for i in range(50)}})
    b = Ranking.of({"q": {f"d{i}": i for i in range(50)}})
    assert pool([a, b], 50) == pool([b, a], 50) == pool([a], 50)
    assert pool([a], 50)["q"] != a["q"].docnos


def test_judged_documents_are_left_out_and_finished_queries_with_them():
    a = Ranking.of({"q": {"d1": 2, "d2": 1}, "r": {"d1": 1}})
    assert pool([a], 10, {"q": {"d1": 1}, "r": {"d1": 0}}) == {"q": ["d2"]}


def test_about_a_tenth_of_queries_is_judged_twice():
    assert 60 < sum(judged_twice(f"query-{i}") for i in range(1000)) < 140


def test_kappa_equals_a_hand_worked_table():
    # 20 agree on 1, 15 on 0, 5 and 10 differ: observed 0.7, chance 0.5, kappa 0.4 (a textbook's example).
    first = {"q": {str(i): int(i < 25) for i in range(50)}}
    second = {"q": {str(i): int(i < 20 or i >= 40) for i in range(50)}}
    found = agreement(first, second)
    assert found.pairs == 50
    assert found.equal == pytest.approx(0.7)
    assert found.kappa == pytest.approx(0.4)
    assert found.confusion == ((15, 10), (5, 20))


def test_a_weighted_kappa_forgives_neighbouring_grades():
    first = {"q": {"a": 0, "b": 1, "c": 2, "d": 0, "e": 2}}
    near = {"q": {"a": 1, "b": 1, "c": 2, "d": 0, "e": 2}}
    far = {"q": {"a": 2, "b": 1, "c": 2, "d": 0, "e": 2}}
    assert agreement(first, near).weighted_kappa > agreement(first, far).weighted_kappa


def test_judgments_without_a_common_pair_are_an_error():
    with pytest.raises(DataError, match="share no"):
        agreement({"q": {"a": 1}}, {"q": {"b": 1}})
