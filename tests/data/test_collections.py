"""The real collections: their counts, and the published figures of the runs that come with them."""

from __future__ import annotations

from pathlib import Path

import ir_measures
import pytest
from ir_measures import R, nDCG

from rerank.data.dataset import Dataset
from rerank.data.load import load
from rerank.data.trec import Ties, read_run
from rerank.run import Run
from rerank.runtime import Runtime


@pytest.fixture(scope="module")
def runtime(session_home: Path) -> Runtime:
    return Runtime(home=session_home, progress=False)


def score(data: Dataset, run: Run, measure: object) -> float:
    """A mean over the judged queries, of the row order as strictly falling scores, without excluded documents."""
    lists = {}
    for hits in run.ranking:
        kept = [docno for docno in hits.docnos if docno not in data.excluded.get(hits.qid, ())]
        lists[hits.qid] = {docno: float(len(kept) - place) for place, docno in enumerate(kept)}
    return round(ir_measures.calc_aggregate([measure], data.qrels, lists)[measure], 4)


@pytest.mark.parametrize(
    ("name", "split", "n_documents", "n_queries", "n_judgments"),
    [
        ("beir-nfcorpus", "test", 3633, 323, 12334),
        ("beir-nfcorpus", "dev", 3633, 324, 11385),
        ("beir-nfcorpus", "train", 3633, 2590, 110575),
        ("beir-scifact", "test", 5183, 300, 339),
        ("beir-scifact", "train", 5183, 809, 919),
        ("cranfield", "test", 1400, 225, 1837),
        ("cisi", "test", 1460, 76, 3114),
        ("vaswani", "test", 11429, 93, 2083),
        ("cosqa", "dev", 6267, 500, 500),
        ("xquad-de-en", "test", 240, 1190, 1190),
        ("trec-dl-2019", "test", 14581, 43, 9260),
        ("trec-dl-2021", "test", 10553, 53, 10828),
        ("noveleval", "test", 420, 21, 420),
    ],
)
def test_counts_are_those_published(
    shared_data: Path, runtime: Runtime, name: str, split: str, n_documents: int, n_queries: int, n_judgments: int
) -> None:
    data = load(shared_data / name, split, runtime=runtime)
    assert data.name == name
    assert data.corpus is not None and data.qrels is not None
    assert (len(data.corpus.ids), len(data.queries)) == (n_documents, n_queries)
    assert sum(map(len, data.qrels.values())) == n_judgments


def test_a_pooled_collection_says_how_many_judged_documents_it_lacks(shared_data: Path, runtime: Runtime) -> None:
    data = load(shared_data / "trec-dl-2019", runtime=runtime)
    assert data.notes == (f"{9260 - 4337:,} of 9,260 judgments are of documents that the corpus lacks",)


def test_a_reranking_task_gives_its_candidates(shared_data: Path, runtime: Runtime) -> None:
    topics = load(shared_data / "noveleval", candidates="initial", runtime=runtime).topics()
    assert len(topics) == 21
    assert topics["0"].docnos == [f"0-{i}" for i in range(20)]
    assert topics["0"][0].text is not None


def test_cross_lingual_queries_carry_their_language(shared_data: Path, runtime: Runtime) -> None:
    data = load(shared_data / "xquad-de-en", runtime=runtime)
    assert data.language == "en"
    assert set(data.query_columns["language"].values()) == {"de"}


@pytest.mark.parametrize(
    ("name", "run", "ndcg", "recall"),
    [
        ("trec-dl-2019", "bm25", 0.5058, 0.4910),
        ("trec-dl-2019", "bm25_rm3", 0.5216, 0.5259),
        ("trec-dl-2019", "splade_pp_ed", 0.7308, 0.6390),
        ("trec-dl-2019", "tasb", 0.7210, 0.6097),
        ("trec-dl-2019", "ada2", 0.7035, 0.6235),
        ("trec-dl-2019", "repllama", 0.7384, 0.6602),
        ("trec-dl-2021", "bm25", 0.4458, 0.3261),
        ("trec-dl-2021", "bm25_rm3", 0.4455, 0.3499),
        ("trec-dl-2021", "splade_pp_ed", 0.6846, 0.5619),
    ],
)
def test_foreign_runs_score_as_published(shared_data: Path, name: str, run: str, ndcg: float, recall: float) -> None:
    data = load(shared_data / name, with_corpus=False)
    found = read_run(shared_data / name / "runs" / f"{run}.trec")
    assert score(data, found, nDCG @ 10) == ndcg
    assert score(data, found, R(rel=2) @ 100) == recall


@pytest.mark.parametrize(("ties", "ndcg"), [("trec_eval", 0.7384), ("file", 0.7439)])
def test_the_order_of_ties_moves_a_run_of_coarse_scores(shared_data: Path, ties: Ties, ndcg: float) -> None:
    folder = shared_data / "trec-dl-2019"
    run = read_run(folder / "runs" / "repllama.trec", ties=ties)
    assert score(load(folder, with_corpus=False), run, nDCG @ 10) == ndcg


@pytest.mark.parametrize(
    ("name", "ndcg", "fixed", "has_exclusions"),
    [
        ("biology", 0.4349, 0.4419, False),
        ("earth-science", 0.4300, 0.4341, False),
        ("economics", 0.3265, 0.3265, False),
        ("psychology", 0.3957, 0.3957, False),
        ("robotics", 0.2082, 0.2082, False),
        ("stackoverflow", 0.3096, 0.3185, False),
        ("sustainable-living", 0.2734, 0.2730, False),
        ("leetcode", 0.3168, 0.3168, True),
        ("theoremqa-questions", 0.3393, 0.3393, True),
    ],
)
def test_bright_runs_score_as_published_with_exclusions_applied(
    shared_data: Path, name: str, ndcg: float, fixed: float, *, has_exclusions: bool
) -> None:
    folder = shared_data / "bright-queries" / name
    run = read_run(folder / "runs" / "reasonir_gpt4cot_top100.trec.gz")
    test, corrected = load(folder), load(folder, "test_fixed")
    assert test.corpus is None
    assert bool(test.excluded) == has_exclusions
    assert score(test, run, nDCG @ 10) == ndcg
    assert score(corrected, run, nDCG @ 10) == fixed
