"""Scores from 0 to 1, in the order of the stage's own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank.engines.pairs import CrossEncoderEngine
from rerank.engines.prompted import CausalLMEngine
from rerank.ranking import ScoreKind
from rerank.reranking import Rerank
from rerank.rules.groupwise import Groupwise
from rerank.rules.listwise import Listwise
from rerank.rules.pointwise import Pointwise
from rerank.serve.scores import scale_for, scoring_of
from rerank.stage import Cut, Pipeline

CROSS_ENCODER = Rerank(CrossEncoderEngine("ce"), k=None)


def asked(prompt: str, rule: object = None) -> Rerank:
    return Rerank(CausalLMEngine("lm"), rule or Pointwise(), prompt, k=None)  # type: ignore[arg-type]


@given(st.sampled_from(list(ScoreKind)), st.floats(-1e30, 1e30), st.floats(-1e30, 1e30))
def test_every_scale_keeps_the_order_and_the_bounds(kind, one, other):
    scale = scale_for(CROSS_ENCODER, kind)
    low, high = (scale(value, 10) for value in sorted((one, other)))
    assert 0 <= low <= high <= 1


@pytest.mark.parametrize(
    ("stage", "kind", "raw", "score"),
    [
        (CROSS_ENCODER, ScoreKind.LOGIT, 0.0, 0.5),
        (CROSS_ENCODER, ScoreKind.COSINE, 0.5, 0.75),
        (CROSS_ENCODER, ScoreKind.RANK, 3.0, 0.3),
        (CROSS_ENCODER, ScoreKind.PROBABILITY, 0.25, 0.25),
        (asked("yes-no"), ScoreKind.UNKNOWN, 0.25, 0.25),
        (asked("bge-gemma"), ScoreKind.UNKNOWN, 0.0, 0.5),
        (asked("query-likelihood"), ScoreKind.UNKNOWN, 0.0, 1.0),
        (asked("graded"), ScoreKind.UNKNOWN, 2.0, 0.5),
        (asked("group-scores", Groupwise()), ScoreKind.UNKNOWN, 0.7, 0.7),
        (asked("group-scores", Groupwise(merge="offsets")), ScoreKind.UNKNOWN, 0.0, 0.5),
        (Pipeline((Cut(5), asked("yes-no"))), ScoreKind.UNKNOWN, 0.25, 0.25),
    ],
)
def test_the_mapping_follows_what_scores_mean(stage, kind, raw, score):
    assert scale_for(stage, kind)(raw, 10) == pytest.approx(score)


def test_how_documents_are_scored_is_told():
    assert scoring_of(CROSS_ENCODER) == "pointwise"
    assert scoring_of(asked("group-scores", Groupwise())) == "groupwise"
    assert scoring_of(Pipeline((CROSS_ENCODER, asked("order", Listwise())))) == "listwise"
