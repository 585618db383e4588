"""Reciprocal rank fusion against the plain formula; symmetric in its lists."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank.errors import ConfigError, PipelineError
from rerank.ranking import Ranking, ScoreKind
from rerank.retrieve.fusion import RRF, rrf
from rerank.runtime import Runtime
from rerank.stage import Function, Stage, apply

DOCNOS = [f"d{i}" for i in range(6)]
LISTS = st.lists(
    st.permutations(DOCNOS).flatmap(lambda p: st.integers(0, 6).map(lambda n: p[:n])), min_size=1, max_size=5
)


def gives(docnos: list[str]) -> Function:
    """A stage that gives this list for every query."""
    hits = {docno: float(-place) for place, docno in enumerate(docnos)}
    return apply(lambda ranking: Ranking.of(dict.fromkeys(ranking.qids, hits)))


def fused(stage: Stage) -> dict[str, float]:
    with Runtime(Path("nowhere"), progress=False) as runtime:
        return runtime.rank(stage, Ranking.start({"q": ""})).to_dict()["q"]


@given(LISTS, st.integers(0, 100))
def test_scores_are_the_sums_of_reciprocal_ranks(lists: list[list[str]], k: int) -> None:
    exact: dict[str, Fraction] = {}
    for docnos in lists:
        for rank, docno in enumerate(docnos, 1):
            exact[docno] = exact.get(docno, Fraction(0)) + Fraction(1, k + rank)
    found = fused(RRF(tuple(map(gives, lists)), k))
    assert all(exact[one] >= exact[two] - Fraction(1, 10**12) for one, two in pairwise(found))
    assert found == {docno: pytest.approx(float(score), rel=1e-6) for docno, score in exact.items()}


@given(LISTS, st.data())
def test_the_order_of_the_lists_changes_nothing(lists: list[list[str]], data: Any) -> None:
    turned = data.draw(st.permutations(lists))
    assert list(fused(rrf(*map(gives, turned))).items()) == list(fused(rrf(*map(gives, lists))).items())


def test_the_scores_are_of_a_kind_of_their_own() -> None:
    assert rrf(gives(["a"])).kind is ScoreKind.RRF
    assert math.isclose(fused(rrf(gives(["a"]), gives(["a"]), k=1))["a"], 1.0)


def test_a_fusion_that_cannot_be_is_refused_when_built() -> None:
    with pytest.raises(ConfigError, match="rrf: k is -1, 0 or more is needed"):
        rrf(gives(["a"]), k=-1)
    with pytest.raises(PipelineError, match="rrf: needs at least one stage to combine"):
        rrf()
    with pytest.raises(PipelineError, match="rrf, branch 1 is 5, not a stage"):
        rrf(5)  # type: ignore[arg-type]
