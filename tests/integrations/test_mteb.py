"""MTEB evaluates our pipelines on tasks made here; nothing is fetched."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from overlap_engine import Overlap, overlaps

from rerank.data.corpus import MemoryCorpus
from rerank.data.dataset import Dataset
from rerank.errors import DataError, PipelineError
from rerank.evaluation.evaluation import evaluate_run
from rerank.ranking import Ranking
from rerank.reranking import Rerank
from rerank.retrieve.bm25 import BM25
from rerank.rules.setwise import Setwise
from rerank.runtime import Runtime
from rerank.stage import Cut

pytestmark = [
    pytest.mark.needs("mteb", "torch"),
    pytest.mark.filterwarnings("ignore"),  # MTEB's own
]

TEXTS = {"d1": "black hole", "d2": "white dwarf star", "d3": "neutron star", "d4": "star star light", "d5": "dwarf"}
QUERIES = {"q2": "star light", "q1": "black dwarf"}
QRELS = {"q2": {"d3": 1, "d4": 2}, "q1": {"d2": 1, "d5": 1}}
CANDIDATES = {"q2": ["d1", "d3", "d4"], "q1": ["d4", "d2", "d1"]}
POINTWISE = Rerank(Overlap(), k=None)


def task(kind: str, top_ranked: Mapping[str, list[str]] | None = None, instruction: str = "") -> Any:
    """A task over the texts above, with the first word of each as its title."""
    from datasets import Dataset as Rows
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    class Toy(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name=f"Toy{kind}",
            description="a toy",
            reference=None,
            type=kind,
            category="t2t",
            modalities=["text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
            dataset={"path": "local/toy", "revision": "1"},
            date=None,
            domains=None,
            task_subtypes=None,
            license=None,
            annotations_creators=None,
            dialect=None,
            sample_creation=None,
            bibtex_citation=None,
        )

        def load_data(self, num_proc: int | None = None, **more: Any) -> None:
            queries = {"id": list(QUERIES), "text": list(QUERIES.values())}
            if instruction:
                queries["instruction"] = [instruction] * len(QUERIES)
            words = [text.split(maxsplit=1) for text in TEXTS.values()]
            corpus = {"id": list(TEXTS), "title": [w[0] for w in words], "text": [" ".join(w[1:]) for w in words]}
            self.dataset = {
                "default": {
                    "test": {
                        "corpus": Rows.from_dict(corpus),
                        "queries": Rows.from_dict(queries),
                        "relevant_docs": QRELS,
                        "top_ranked": top_ranked,
                    }
                }
            }
            self.data_loaded = True

    return Toy()


def main_score(model: Any, some: Any, folder: Path | None = None) -> float:
    """As the task itself evaluates; `mteb.evaluate` does that too, after importing most of what there is."""
    scores = some.evaluate(model, "test", encode_kwargs={"batch_size": 2}, prediction_folder=folder)
    return float(scores["default"]["ndcg_at_10"])


def our_score(stage: Any, candidates: Mapping[str, list[str]] | None = None) -> float:
    corpus = MemoryCorpus(TEXTS)
    given = None
    if candidates is not None:
        places = {qid: {docno: -float(i) for i, docno in enumerate(some)} for qid, some in candidates.items()}
        given = Ranking.of(places, source=corpus)
    data = Dataset("toy", QUERIES, corpus, QRELS, given)
    with Runtime(progress=False) as runtime:
        return evaluate_run(runtime.run(stage, data), data, ["nDCG@10"]).means["nDCG@10"]


def test_a_pipeline_searches_a_retrieval_task() -> None:
    from rerank.integrations.mteb import RerankSearch

    for pipeline in (BM25(), BM25() >> POINTWISE):
        assert main_score(RerankSearch(pipeline), task("Retrieval")) == pytest.approx(our_score(pipeline), abs=1e-5)


@pytest.mark.slow
def test_mteb_s_own_entry_takes_both_kinds_of_model() -> None:
    import mteb

    from rerank.integrations.mteb import RerankCrossEncoder, RerankSearch

    for model in (RerankSearch(POINTWISE, name="me/search"), RerankCrossEncoder(POINTWISE, name="me/pairs")):
        result = mteb.evaluate(model, task("Reranking", CANDIDATES), cache=None)
        assert (result.model_name, result.model_revision) == (
            model.mteb_model_meta.name,
            model.mteb_model_meta.revision,
        )
        found = result.task_results[0].scores["test"][0]["ndcg_at_10"]
        assert found == pytest.approx(our_score(POINTWISE, CANDIDATES), abs=1e-5)


@pytest.mark.parametrize("stage", [POINTWISE, Rerank(Overlap(), Setwise(k=2)), Cut(3)])
def test_a_reranking_task_s_candidates_and_no_others_are_reranked(stage: Any, tmp_path: Path) -> None:
    import json

    from rerank.integrations.mteb import RerankSearch

    score = main_score(RerankSearch(stage), task("Reranking", CANDIDATES), tmp_path)
    assert score == pytest.approx(our_score(stage, CANDIDATES), abs=1e-5)
    (file,) = tmp_path.rglob("*.json")
    found = json.loads(file.read_text(encoding="utf-8"))["default"]["test"]
    assert {qid: set(hits) for qid, hits in found.items()} == {qid: set(some) for qid, some in CANDIDATES.items()}


def test_a_cross_encoder_gives_the_same_as_searching_and_scores_each_pair() -> None:
    from mteb.models import CrossEncoderProtocol, SearchProtocol

    from rerank.integrations.mteb import RerankCrossEncoder, RerankSearch

    model = RerankCrossEncoder(POINTWISE)
    assert isinstance(model, CrossEncoderProtocol)
    assert isinstance(RerankSearch(POINTWISE), SearchProtocol)
    assert not isinstance(RerankSearch(POINTWISE), CrossEncoderProtocol)
    assert main_score(model, task("Reranking", CANDIDATES)) == pytest.approx(our_score(POINTWISE, CANDIDATES), abs=1e-5)
    queries = ["star light", "dwarf", "star light", "dwarf"]
    documents = ["light", "light", "star light", "light"]
    scores = predict(model, queries, documents)
    assert scores.tolist() == [float(overlaps(q, [d])[0]) for q, d in zip(queries, documents, strict=True)]
    assert predict(model, [], []).shape == (0,)


def predict(model: Any, queries: list[str], documents: list[str]) -> np.ndarray[Any, Any]:
    batches = [[{"text": some[i : i + 3]} for i in range(0, len(some), 3)] for some in (queries, documents)]
    found: np.ndarray[Any, Any] = model.predict(*batches, task_metadata=None, hf_split="test", hf_subset="default")
    return found


def test_titles_and_instructions_are_read_as_mteb_has_them() -> None:
    from rerank.integrations.mteb import RerankSearch

    Overlap.asked.clear()
    main_score(RerankSearch(POINTWISE), task("Reranking", CANDIDATES, instruction="that shine"))
    (questions,) = Overlap.asked  # all queries go forward together
    assert {asked.query for asked in questions} == {f"{text} that shine" for text in QUERIES.values()}
    assert {asked.documents[0] for asked in questions} <= set(TEXTS.values())


def test_candidates_missing_or_named_twice_do_not_break_it_and_top_k_holds() -> None:
    from rerank.integrations.mteb import RerankSearch

    model, some = RerankSearch(POINTWISE), task("Reranking")
    some.load_data()
    rows = some.dataset["default"]["test"]
    about = {"task_metadata": some.metadata, "hf_split": "test", "hf_subset": "default", "encode_kwargs": {}}
    with pytest.raises(DataError, match="no corpus yet"):
        model.search(rows["queries"], top_k=2, top_ranked={}, **about)
    model.index(rows["corpus"], **about)
    found = model.search(rows["queries"], top_k=2, top_ranked={"q2": ["d1", "d4", "d1", "d3"]}, **about)
    assert {qid: list(hits) for qid, hits in found.items()} == {"q2": ["d4", "d3"], "q1": []}
    assert list(found["q2"].values()) == sorted(set(found["q2"].values()), reverse=True)
    with pytest.raises(DataError, match="document 'zz' is a candidate, but not in the corpus"):
        model.search(rows["queries"], top_k=2, top_ranked={"q2": ["zz"]}, **about)
    with pytest.raises(PipelineError, match="needs documents"):
        model.search(rows["queries"], top_k=2, **about)
    model = RerankSearch(BM25())
    model.index(rows["corpus"], **about)
    with pytest.raises(PipelineError, match="finds documents itself"):
        model.search(rows["queries"], top_k=2, top_ranked=CANDIDATES, **about)


def test_a_cross_encoder_needs_scores_that_mean_the_same_everywhere() -> None:
    from rerank.integrations.mteb import RerankCrossEncoder

    for stage in (Rerank(Overlap(), Setwise()), Rerank(Overlap(), k=5)):
        with pytest.raises(PipelineError, match="gives places, and no scores"):
            RerankCrossEncoder(stage)
    with pytest.raises(DataError, match="left 1 documents out"):
        predict(RerankCrossEncoder(POINTWISE >> Cut(1)), ["a", "a"], ["b", "c"])


def test_results_are_filed_by_name_and_configuration() -> None:
    from rerank.integrations.mteb import RerankSearch

    one, other = (RerankSearch(BM25(k1=k1) >> Cut(5)).mteb_model_meta for k1 in (0.9, 1.2))
    assert one.name == other.name == "rerank/bm25-cut"
    assert one.revision != other.revision
    assert RerankSearch("bm25", name="me/mine").mteb_model_meta.name == "me/mine"
    assert RerankSearch(POINTWISE).mteb_model_meta.revision != RerankSearch(POINTWISE).mteb_model_meta.revision
