"""Lists and scores from pipelines and runs, in the codes of a data set's corpus."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from rerank.data.corpus import MemoryCorpus
from rerank.data.dataset import Dataset
from rerank.engines.fake import FakeEngine
from rerank.errors import DataError, PipelineError
from rerank.ranking import Ranking, ScoreKind
from rerank.reranking import Rerank
from rerank.retrieve.bm25 import BM25
from rerank.runtime import Runtime
from rerank.stage import Cut
from rerank.train.lists import Lists

CORPUS = MemoryCorpus({"d1": "white dwarf star", "d2": "black hole", "d3": "red star", "d4": "dust"})
TOY = Dataset("toy", {"q1": "star", "q2": "hole", "q3": "zebra"}, CORPUS)


@pytest.fixture
def runtime(own_home: Path) -> Runtime:
    return Runtime(own_home, progress=False)


def names(codes: np.ndarray) -> list[str]:
    return [str(docno) for docno in CORPUS.ids.take(codes)]


def test_a_pipeline_gives_its_lists(runtime: Runtime) -> None:
    named, written = (lists.ranked(TOY, runtime) for lists in (Lists(pipeline="bm25"), Lists(stages=(BM25(),))))
    for ranked in (named, written):
        assert names(ranked.codes("q1")) == ["d3", "d1"]
        assert list(ranked.scores("q1")) == ranked.codes("q1").tolist()
        assert len(ranked.codes("q3")) == len(ranked.codes("nobody")) == 0
        assert ranked.scores("nobody") == {}
        assert ranked.kind is ScoreKind.BM25
    assert "pipeline" in named.provenance


def test_a_run_gives_the_lists_of_queries_that_it_has(runtime: Runtime, tmp_path: Path) -> None:
    (tmp_path / "run.trec").write_text("q2 Q0 d4 1 2.0 x\nq2 Q0 d1 2 1.0 x\nq9 Q0 d77 1 1.0 x\n", encoding="utf-8")
    ranked = Lists(run=str(tmp_path / "run.trec")).ranked(TOY, runtime)
    assert names(ranked.codes("q2")) == ["d4", "d1"]
    assert len(ranked.codes("q1")) == 0


def test_given_documents_are_scored_by_reranking_stages_and_sought_by_first_stages(
    runtime: Runtime, tmp_path: Path
) -> None:
    (tmp_path / "qrels").write_text("q1 0 d2 3\nq1 0 d4 1\nq2 0 d1 5\n", encoding="utf-8")
    wanted = {"q1": CORPUS.ids.find(["d2", "d4", "d1"]).tolist(), "q2": CORPUS.ids.find(["d1"]).tolist()}
    engine = Rerank(FakeEngine(str(tmp_path / "qrels")), k=None)
    scored = Lists(stages=(engine,)).scored(TOY, wanted, runtime)
    assert {names(np.array([code]))[0]: score for code, score in scored.scores("q1").items()} == {
        "d2": 3.0,
        "d4": 1.0,
        "d1": 0.0,
    }
    assert list(scored.scores("q2").values()) == [5.0]
    sought = Lists(stages=(BM25(),)).scored(TOY, wanted, runtime)
    assert names(sought.codes("q1")) == ["d3", "d1"]


def test_lists_that_a_pipeline_starts_from_may_come_with_the_data(runtime: Runtime) -> None:
    candidates = Ranking.of({"q1": {"d4": 2.0, "d1": 1.0}}, TOY.queries, source=CORPUS)
    ranked = Lists(stages=(Cut(1),)).ranked(dataclasses.replace(TOY, candidates=candidates), runtime)
    assert names(ranked.codes("q1")) == ["d4"]
    assert len(ranked.codes("q2")) == 0
    with pytest.raises(PipelineError, match="needs documents"):
        Lists(stages=(Cut(1),)).ranked(TOY, runtime)


def test_a_data_set_without_documents_is_refused(runtime: Runtime, tmp_path: Path) -> None:
    (tmp_path / "run.trec").write_text("q2 Q0 d4 1 2.0 x\n", encoding="utf-8")
    with pytest.raises(DataError, match="has no documents to learn from"):
        Lists(run=str(tmp_path / "run.trec")).ranked(dataclasses.replace(TOY, corpus=None), runtime)
