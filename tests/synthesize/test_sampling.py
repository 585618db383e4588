"""Drawing near a centre, and choosing what differs."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank.errors import ConfigError
from rerank.synthesize.clusters import unit
from rerank.synthesize.sampling import Choice, chosen, drawn, k_centre, mmr, probabilities

NAMES = [f"d{i}" for i in range(12)]


def vectors(n: int = 12, d: int = 5, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)).astype(np.float64)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=20), st.sampled_from([0.0, 0.01, 1.0, math.inf]))
def test_probabilities_sum_to_one_and_follow_the_cosines(cosines: list[float], temperature: float) -> None:
    found = probabilities(np.array(cosines), temperature)
    assert found.sum() == pytest.approx(1)
    order = np.argsort(cosines)
    assert np.all(np.diff(found[order]) >= -1e-12)


def test_the_temperature_of_the_paper_hardly_tells_documents_apart() -> None:
    near, far = probabilities(np.array([0.95, 0.60]), 1.0)
    assert near / far == pytest.approx(1.42, abs=0.01)
    near, far = probabilities(np.array([0.95, 0.60]), 0.05)
    assert near / far == pytest.approx(1097, abs=1)


@pytest.mark.parametrize("temperature", [0.0, 1e-6])
def test_without_temperature_the_nearest_are_drawn(temperature: float) -> None:
    cosines = np.linspace(0.2, 0.9, 12)
    assert drawn(cosines, NAMES, 3, temperature, seed=4).tolist() == [11, 10, 9]


def test_at_an_endless_temperature_draws_are_uniform() -> None:
    cosines = np.linspace(-1, 1, 12)
    first = Counter(int(drawn(cosines, NAMES, 1, math.inf, seed)[0]) for seed in range(6000))
    expected = 6000 / 12
    assert sum((first[place] - expected) ** 2 / expected for place in range(12)) < 31.3  # chi-square, 0.001


def test_draws_have_the_probabilities_they_should() -> None:
    cosines = np.array([0.9, 0.8, 0.5])
    wanted = probabilities(cosines, 0.2)
    first = Counter(int(drawn(cosines, NAMES[:3], 1, 0.2, seed)[0]) for seed in range(6000))
    assert sum((first[i] - 6000 * p) ** 2 / (6000 * p) for i, p in enumerate(wanted)) < 13.8  # chi-square, 0.001


def test_a_draw_is_the_ids_matter_and_not_the_places() -> None:
    cosines = np.linspace(0.2, 0.9, 12)
    order = np.random.default_rng(1).permutation(12)
    here = {NAMES[place] for place in drawn(cosines, NAMES, 5, 0.3, seed=2)}
    there = drawn(cosines[order], [NAMES[place] for place in order], 5, 0.3, seed=2)
    assert here == {NAMES[order[place]] for place in there}


def test_relevance_alone_takes_the_nearest_to_the_medoid() -> None:
    some = vectors()
    near = some @ some[4]
    assert sorted(mmr(some, some[4], 5, 1.0)) == sorted(np.argsort(-near)[:5].tolist())


def test_without_relevance_the_second_is_the_least_like_the_first() -> None:
    some = vectors()
    first, second = mmr(some, some[4], 2, 0.0)
    assert (first, second) == (4, int(np.argmin(some @ some[4])))


def test_mmr_is_what_its_formula_says() -> None:
    some, medoid = vectors(), vectors()[2]
    found = mmr(some, medoid, 6, 0.6)
    for n in range(1, 6):
        scores = 0.6 * (some @ medoid) - 0.4 * (some @ some[found[:n]].T).max(axis=1)
        scores[found[:n]] = -np.inf
        assert found[n] == int(np.argmax(scores))


def test_k_centre_takes_the_farthest_each_time() -> None:
    some = vectors(40, seed=3)
    found = k_centre(some, some[7], 6)
    assert found[0] == 7 and len(set(found)) == 6
    for n in range(1, 6):
        closest = (some @ some[found[:n]].T).max(axis=1)
        assert closest[found[n]] == pytest.approx(closest.min())


@given(st.integers(1, 12), st.sampled_from(["mmr", "k_centre"]), st.integers(1, 5))
def test_so_many_are_chosen_whatever_the_options(n: int, diversity: str, draws: int) -> None:
    some = vectors()
    choice = Choice(draws=draws, diversity=diversity)  # type: ignore[arg-type]
    found = chosen(some, NAMES, unit(some.mean(axis=0, keepdims=True))[0], n, choice, 0)
    assert len(set(found)) == n


def test_equal_vectors_are_chosen_from_all_the_same() -> None:
    same = np.ones((5, 3)) / math.sqrt(3)
    assert len(set(chosen(same, NAMES[:5], same[0], 3, Choice(), 0))) == 3


@pytest.mark.parametrize("options", [{"draws": 0}, {"temperature": -1.0}, {"relevance": 1.5}])
def test_options_that_make_no_sense(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="choice: "):
        Choice(**options)  # type: ignore[arg-type]
