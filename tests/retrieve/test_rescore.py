"""Encoder rescoring: lists in the order of their documents' similarity with the query."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tiny_models import some_texts

from rerank.data.corpus import MemoryCorpus
from rerank.engines.encoder import Encoder, load_encoder
from rerank.errors import ConfigError, DataError, PipelineError
from rerank.ranking import Ranking, ScoreKind
from rerank.retrieve.dense import Dense
from rerank.retrieve.rescore import Rescore
from rerank.runtime import Runtime
from rerank.stage import FROM_QUERIES, Flow

pytestmark = pytest.mark.needs("sentence_transformers", "faiss")

QUERIES = {"q1": "black hole", "q2": "lift and drag of the wing"}


@pytest.fixture
def runtime(own_home: Path) -> Runtime:
    return Runtime(own_home, threads=1, device="cpu", progress=False)


@pytest.fixture
def corpus() -> MemoryCorpus:
    return MemoryCorpus({f"d{i:02d}": text for i, text in enumerate(some_texts(60))})


@pytest.fixture
def lists(corpus: MemoryCorpus) -> Ranking:
    """Two lists of 30 and 20 that share ten documents."""
    given = {
        "q1": {f"d{i:02d}": 100.0 - i for i in range(30)},
        "q2": {f"d{i:02d}": 100.0 - i for i in range(20, 40)},
    }
    return Ranking.of(given, QUERIES, source=corpus)


def rescore(model: Path, k: int | None = None) -> Rescore:
    return Rescore(str(model), k=k, dtype="float32")


def counted(runtime: Runtime) -> Counter[str]:
    """The counts of everything that ran in `runtime`."""
    total: Counter[str] = Counter()
    for stats in runtime.stats:
        total.update(stats.counts)
    return total


def cosines(runtime: Runtime, model: Path, corpus: MemoryCorpus) -> dict[str, dict[str, float]]:
    encoder = load_encoder(runtime, str(model), dtype="float32")
    names = [f"d{i:02d}" for i in range(60)]
    scores = encoder.encode_queries(list(QUERIES.values())) @ encoder.encode_documents(corpus.texts(np.arange(60))).T
    return {qid: dict(zip(names, row.tolist(), strict=True)) for qid, row in zip(QUERIES, scores, strict=True)}


def test_whole_lists_get_cosines_and_their_order(
    runtime: Runtime, tiny_encoder: Path, corpus: MemoryCorpus, lists: Ranking
) -> None:
    truth = cosines(runtime, tiny_encoder, corpus)
    found = runtime.rank(rescore(tiny_encoder), lists)
    assert found.kind is ScoreKind.COSINE
    for hits, before in zip(found, lists, strict=True):
        assert sorted(hits.docnos) == sorted(before.docnos)
        assert [h.score for h in hits] == pytest.approx([truth[hits.qid][d] for d in hits.docnos], abs=1e-5)
    assert counted(runtime)["encoded documents"] == 40
    assert counted(runtime)["scored pairs"] == 50


def test_only_the_head_is_scored_and_the_rest_keeps_its_order_below(
    runtime: Runtime, tiny_encoder: Path, corpus: MemoryCorpus, lists: Ranking
) -> None:
    truth = cosines(runtime, tiny_encoder, corpus)
    found = runtime.rank(rescore(tiny_encoder, k=8), lists)
    assert found.kind is ScoreKind.RANK
    for position, (hits, before) in enumerate(zip(found, lists, strict=True)):
        assert hits.docnos[8:] == before.docnos[8:]
        assert hits.docnos[:8] == sorted(before.docnos[:8], key=lambda d: -truth[hits.qid][d])
        assert [h.score for h in hits] == list(range(len(hits), 0, -1))
        raw = found.columns["score:rescore"][found.offsets[position] : found.offsets[position + 1]]
        assert raw[:8] == pytest.approx([truth[hits.qid][d] for d in hits.docnos[:8]], abs=1e-5)
        assert np.isnan(raw[8:]).all()


def test_vectors_that_dense_stored_are_used(
    runtime: Runtime, tiny_encoder: Path, corpus: MemoryCorpus, lists: Ranking, monkeypatch
) -> None:
    alone = runtime.rank(rescore(tiny_encoder), lists)
    runtime.rank(Dense(str(tiny_encoder), k=5, dtype="float32"), Ranking.start(QUERIES, corpus))
    monkeypatch.setattr(Encoder, "encode_documents", None)
    runtime.stats.clear()
    again = runtime.rank(rescore(tiny_encoder), lists)
    assert [hits.docnos for hits in again] == [hits.docnos for hits in alone]
    assert again.scores == pytest.approx(alone.scores, abs=1e-6)
    assert counted(runtime)["reused vectors"] == 40


def test_rescoring_a_dense_list_changes_nothing(runtime: Runtime, tiny_encoder: Path, corpus: MemoryCorpus) -> None:
    dense = runtime.rank(Dense(str(tiny_encoder), k=20, dtype="float32"), Ranking.start(QUERIES, corpus))
    found = runtime.rank(rescore(tiny_encoder), dense)
    assert [hits.docnos for hits in found] == [hits.docnos for hits in dense]
    assert found.scores == pytest.approx(dense.scores, abs=1e-6)


def test_equal_texts_are_encoded_once_and_go_by_id(runtime: Runtime, tiny_encoder: Path) -> None:
    twins = MemoryCorpus({"b": "black hole", "far": "7 & 8", "a": "black hole"})
    given = Ranking.of({"q": {"far": 3.0, "b": 2.0, "a": 1.0}}, {"q": "black hole"}, source=twins)
    found = runtime.rank(rescore(tiny_encoder), given)["q"]
    assert found.docnos == ["a", "b", "far"]
    assert found[0].score == found[1].score
    assert counted(runtime)["encoded documents"] == 2


def test_excluded_documents_leave_the_list(runtime: Runtime, tiny_encoder: Path, lists: Ranking) -> None:
    banned = np.array([frozenset({"d00", "d29", "elsewhere"}), frozenset()], dtype=object)
    found = runtime.rank(rescore(tiny_encoder), lists.with_query_column("excluded", banned))
    assert set(lists["q1"].docnos) - set(found["q1"].docnos) == {"d00", "d29"}
    assert len(found["q2"]) == 20


def test_empty_lists_stay_empty(runtime: Runtime, tiny_encoder: Path, corpus: MemoryCorpus) -> None:
    for stage in (rescore(tiny_encoder), rescore(tiny_encoder, k=3)):
        assert len(runtime.rank(stage, Ranking.start(QUERIES, corpus)).docs) == 0
        assert len(runtime.rank(stage, Ranking.start({}, corpus))) == 0


def test_columns_and_input_are_kept(runtime: Runtime, tiny_encoder: Path, lists: Ranking) -> None:
    given = lists.with_column("score:before", lists.scores.copy())
    docs = given.docs.copy()
    found = runtime.rank(rescore(tiny_encoder), given)
    assert np.array_equal(given.docs, docs)
    for hits, start in zip(found, found.offsets, strict=False):
        for i, docno in enumerate(hits.docnos):
            assert found.columns["score:before"][start + i] == 100.0 - int(docno[1:])


def test_lists_without_texts_are_told_what_to_give(runtime: Runtime, tiny_encoder: Path) -> None:
    with pytest.raises(DataError, match="came without texts; give their corpus"):
        runtime.rank(rescore(tiny_encoder), Ranking.of({"q": {"d": 1.0}}))


def test_documents_that_the_corpus_lacks_are_told(
    runtime: Runtime, tiny_encoder: Path, corpus: MemoryCorpus, lists: Ranking
) -> None:
    import dataclasses

    foreign = dataclasses.replace(Ranking.of({"q": {"unknown": 1.0, "d01": 0.5}}), source=corpus)
    with pytest.raises(DataError, match="1 of 2 ranked documents are not in the corpus"):
        runtime.rank(rescore(tiny_encoder), foreign)


def test_what_flows_on_is_known_before_anything_runs() -> None:
    documents = Flow(frozenset({"documents"}), ScoreKind.BM25)
    assert Rescore("m").flow(documents).kind is None
    assert Rescore("m", k=10).flow(documents).kind is ScoreKind.RANK
    with pytest.raises(PipelineError, match="needs documents"):
        Rescore("m").flow(FROM_QUERIES)
    with pytest.raises(ConfigError, match="k is 0"):
        Rescore("m", k=0)
