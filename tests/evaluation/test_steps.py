"""A pipeline's steps: every list that it makes on its way, once."""

from __future__ import annotations

from rerank.evaluation.steps import with_steps
from rerank.retrieve.bm25 import BM25
from rerank.stage import Cut, Pipeline

FIRST = BM25() % 10


def labels(*pipelines: Pipeline) -> list[str]:
    return [stage.label for stage in with_steps(pipelines)]


def test_lists_before_and_after_fusion_are_steps() -> None:
    fused = 0.3 * FIRST.minmax() + 0.7 * (FIRST >> Cut(3)).minmax()
    assert labels(Pipeline((fused,), name="mine")) == [
        "mine: bm25",
        "mine: bm25 >> cut",
        "mine: bm25 >> cut >> cut",
        "mine",
    ]


def test_what_follows_a_combination_is_a_step_of_the_whole() -> None:
    both = (BM25() | BM25(k1=1.2)) >> Cut(5) >> Cut(4)
    assert labels(Pipeline(both.stages, name="mine")) == [
        "mine: bm25",
        "mine: bm25 (2)",
        "mine: union",
        "mine: union >> cut",
        "mine",
    ]


def test_what_two_pipelines_share_is_measured_once() -> None:
    names = labels(Pipeline((FIRST >> Cut(3)).stages, name="a"), Pipeline((FIRST >> Cut(2)).stages, name="b"))
    assert names == ["a: bm25", "a: bm25 >> cut", "a", "b"]
