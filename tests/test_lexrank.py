"""LexRank: what the card's checks say of similarities and of the walk."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank.lexrank import lexrank, similarities, weighted

WEIGHTS = {"wing": 2.0, "lift": 1.0, "drag": 1.5, "flow": 0.5, "the": 0.0}
SENTENCES = st.lists(st.lists(st.sampled_from(sorted(WEIGHTS)), max_size=6), min_size=1, max_size=8)


def similar(sentences: list[list[str]]) -> np.ndarray:
    return similarities(weighted(sentences, WEIGHTS))


@given(SENTENCES)
def test_similarities_are_symmetric_from_0_to_1_and_1_with_oneself(sentences: list[list[str]]) -> None:
    found = similar(sentences)
    assert np.array_equal(found, found.T) and ((found >= 0) & (found <= 1)).all()
    says = [any(WEIGHTS[word] for word in sentence) for sentence in sentences]
    assert np.diag(found).tolist() == [float(each) for each in says]
    assert not found[[i for i, each in enumerate(says) if not each]].any()


def test_similarity_is_the_idf_modified_cosine() -> None:
    found = similar([["wing", "wing", "lift"], ["wing", "drag"]])
    # (2 * 2)(1 * 2) / (sqrt((2 * 2)^2 + 1^2) sqrt(2^2 + 1.5^2))
    assert found[0, 1] == pytest.approx(8 / (17**0.5 * 6.25**0.5))


@given(SENTENCES, st.floats(0.05, 1.0), st.randoms(use_true_random=False))
def test_the_walk_is_a_distribution_that_moves_with_the_sentences(
    sentences: list[list[str]], teleport: float, random: object
) -> None:
    matrix = similar(sentences)
    found = lexrank(matrix, teleport)
    assert found.sum() == pytest.approx(1) and (found >= 0).all()
    order = list(range(len(sentences)))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert lexrank(matrix[np.ix_(order, order)], teleport) == pytest.approx(found[order], abs=1e-5)


def test_identical_sentences_are_equal_one_is_all_and_isolated_ones_are_alike() -> None:
    found = lexrank(similar([["wing", "lift"], ["wing", "drag"], ["wing", "lift"]]))
    assert found[0] == pytest.approx(found[2])
    assert lexrank(similar([["wing"]])).tolist() == [1.0]
    assert lexrank(similar([["wing"], ["lift"], ["drag"], ["flow"]])) == pytest.approx([0.25] * 4)
    assert lexrank(np.zeros((3, 3))) == pytest.approx([1 / 3] * 3)
    assert lexrank(np.zeros((0, 0))).tolist() == []


@given(SENTENCES, st.lists(st.floats(0, 1), min_size=8, max_size=8))
def test_a_walk_that_always_jumps_is_where_it_jumps(sentences: list[list[str]], relevance: list[float]) -> None:
    matrix = similar(sentences)
    n = len(sentences)
    assert lexrank(matrix, 1.0) == pytest.approx([1 / n] * n)
    given_relevance = np.array(relevance[:n])
    expected = given_relevance / given_relevance.sum() if given_relevance.sum() > 0 else np.full(n, 1 / n)
    assert lexrank(matrix, 1.0, given_relevance) == pytest.approx(expected)


def test_a_sentence_like_the_relevant_one_gains_with_it() -> None:
    matrix = similar([["wing", "lift"], ["wing", "drag"], ["flow"], ["flow"]])
    found = lexrank(matrix, 0.5, np.array([1.0, 0.0, 0.0, 0.0]))
    assert found[0] > found[1] > found[2] == found[3]
