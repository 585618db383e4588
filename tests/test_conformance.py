"""Every registered stage keeps the conventions of stages."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from rerank.condense import Condense
from rerank.engines.fake import FakeEngine
from rerank.registry import name_of, names_of
from rerank.reranking import Rerank
from rerank.retrieve.analysis import Analyser
from rerank.retrieve.bm25 import BM25
from rerank.retrieve.candidates import Candidates
from rerank.retrieve.dense import HNSW, IVF, Dense
from rerank.retrieve.fusion import RRF, rrf
from rerank.retrieve.rank_bm25 import RankBM25
from rerank.retrieve.rescore import Rescore
from rerank.retrieve.rewrite import OriginalQuery, Rewrite
from rerank.retrieve.rm3 import RM3
from rerank.retrieve.select import Exclude, Filter
from rerank.retrieve.splade import Splade
from rerank.rules.setwise import Setwise
from rerank.runtime import Runtime
from rerank.stage import Concatenation, Cut, Normalise, Pipeline, Stage, Union, WeightedSum
from rerank.testing import check_stage, sample_dataset

Files = Mapping[str, str]
"""Paths of what stages read: `run`, `rewritings`, `ids`, `encoder`, `splade`."""

BM = BM25(k=5)
EXAMPLES: dict[str, Callable[[Files], Stage]] = {
    "bm25": lambda files: BM25(),
    "bm25, one document": lambda files: BM25(k=1, k1=1.2, b=0.75),
    "bm25, robertson": lambda files: BM25(method="robertson"),
    "bm25, lower bound": lambda files: BM25(method="bm25l", delta=0.25),
    "bm25, own analyser": lambda files: BM25(analyser=Analyser("de", stop_words=("und", "no"))),
    "rank_bm25": lambda files: RankBM25(k=4),
    "rank_bm25, plus": lambda files: RankBM25(method="plus"),
    "candidates": lambda files: Candidates(files["run"]),
    "candidates, in the file's order": lambda files: Candidates(files["run"], ties="file"),
    "rrf": lambda files: rrf(BM, BM25(k=2, b=0.9), BM25(k1=2.0, b=1.0), k=10),
    "rrf, of lists": lambda files: RRF((Cut(3), Normalise())),
    "sum": lambda files: 0.3 * BM.minmax() + 0.7 * BM25(k=3, b=0.9).minmax(),
    "sum, of zscores": lambda files: WeightedSum((Normalise("zscore"), BM.zscore()), (1.0, -0.5)),
    "union": lambda files: Union((BM, Cut(3))),
    "intersection": lambda files: BM & BM25(b=0.9) & Cut(9),
    "concatenation": lambda files: Concatenation((Cut(1), BM25(k=3), BM25(b=0.9))),
    "pipeline": lambda files: BM >> Cut(3),
    "pipeline, named and nested": lambda files: Pipeline((Pipeline((BM, Cut(3)), 'in "ner"'), Exclude()), "ü", "no"),
    "cut": lambda files: Cut(2),
    "normalise": lambda files: Normalise(),
    "normalise, zscore": lambda files: Normalise("zscore"),
    "exclude": lambda files: Exclude(),
    "filter": lambda files: Filter(files["ids"]),
    "filter, dropping": lambda files: Filter(files["ids"], drop=True, min_score=1.0),
    "rewrite": lambda files: Rewrite(files["rewritings"], missing="keep"),
    "rewrite, appended and searched": lambda files: Rewrite(files["rewritings"], "append", "keep") >> BM,
    "rewrite, written by a model": lambda files: Rewrite(engine=FakeEngine(files["qrels"]), prompt="reason"),
    "rewrite, as passages": lambda files: (
        Rewrite(None, "passages", "keep", FakeEngine(files["qrels"], garbage=0.5), "hyde", n_texts=2, repeat=3) >> BM
    ),
    "rm3": lambda files: RM3(documents=2, terms=3),
    "rm3, searched again": lambda files: BM >> RM3() >> BM25() >> OriginalQuery(),
    "original_query": lambda files: OriginalQuery(),
    "condense": lambda files: Condense(tokens=6),
    "condense, passages of the head": lambda files: Condense(tokens=9, by="passages", k=2, passage=4),
    "condense, without the query": lambda files: Condense(tokens=5, by="lexrank", k=None),
    "condense, the lead": lambda files: Condense(tokens=4, by="lead"),
    "rescore": lambda files: Rescore(files["encoder"], dtype="float32"),
    "rescore, the head": lambda files: Rescore(files["encoder"], k=2, dtype="float32"),
    "dense": lambda files: Dense(files["encoder"], dtype="float32"),
    "dense, graph": lambda files: Dense(files["encoder"], index="hnsw", hnsw=HNSW(links=8), dtype="float32"),
    "dense, lists": lambda files: Dense(
        files["encoder"], k=7, index="ivf", ivf=IVF(lists=1, probes=1), dtype="float32"
    ),
    "dense, eight bits": lambda files: Dense(files["encoder"], index="sq8", dtype="float32"),
    "rerank": lambda files: Rerank(FakeEngine(files["qrels"]), k=None),
    "rerank, the head": lambda files: Rerank(FakeEngine(files["qrels"], noise=0.5), Setwise(k=2, size=3), k=3),
    "splade": lambda files: Splade(files["splade"], dtype="float32"),
}
NEURAL = {"rescore", "dense", "splade"}
PACKAGES = {
    "rank_bm25": ("rank_bm25",),
    "rescore": ("sentence_transformers",),
    "dense": ("sentence_transformers", "faiss"),
    "splade": ("sentence_transformers",),
}
CASES = [
    pytest.param(example, marks=pytest.mark.needs(*PACKAGES.get(example.split(",")[0], ()))) for example in EXAMPLES
]


@pytest.fixture
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    data = sample_dataset()
    assert data.candidates is not None
    rows = [(hits.qid, hit) for hits in data.candidates for hit in hits]
    run = "".join(f"{qid} Q0 {hit.docno} {hit.rank} {hit.score} sample\n" for qid, hit in rows)
    rewritings = "".join(f"{qid}\t{text} und star\n" for qid, text in data.queries.items() if qid != "q1")
    qrels = "".join(f"{qid} 0 {docno} {grade}\n" for qid, g in (data.qrels or {}).items() for docno, grade in g.items())
    paths = {
        "qrels": tmp_path / "qrels.trec",
        "run": tmp_path / "run.trec",
        "rewritings": tmp_path / "rewritings.tsv",
        "ids": tmp_path / "ids.txt",
    }
    for name, content in (("qrels", qrels), ("run", run), ("rewritings", rewritings), ("ids", "d2\nZürich\nunknown\n")):
        paths[name].write_text(content, encoding="utf-8")
    if request.node.callspec.params["example"].split(",")[0] in NEURAL:
        paths["encoder"] = request.getfixturevalue("tiny_encoder")
        paths["splade"] = request.getfixturevalue("tiny_splade")
    return {name: str(path) for name, path in paths.items()}


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """One for all, so that each model loads once."""
    with Runtime(tmp_path_factory.mktemp("home"), device="cpu", threads=1, progress=False) as runtime:
        yield runtime


def test_every_registered_stage_has_an_example() -> None:
    assert {example.split(",")[0] for example in EXAMPLES} == set(names_of(Stage))


@pytest.mark.parametrize("example", CASES)
def test_a_registered_stage_keeps_every_convention(example: str, files: Files, runtime: Runtime) -> None:
    stage = EXAMPLES[example](files)
    assert name_of(type(stage)) == example.split(",")[0] or isinstance(stage, Pipeline)
    check_stage(stage, runtime=runtime, tolerance=1e-6 if example.split(",")[0] in NEURAL else 0.0)


@pytest.mark.parametrize("example", CASES)
def test_a_registered_stage_pickles(example: str, files: Files) -> None:
    stage = EXAMPLES[example](files)
    assert pickle.loads(pickle.dumps(stage)) == stage  # noqa: S301
