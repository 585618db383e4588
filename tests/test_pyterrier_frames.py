"""Frames go to PyTerrier and come back: its own evaluation reads ours, and its cut-off's result is a ranking again."""

from __future__ import annotations

import pytest

from rerank.data.corpus import MemoryCorpus
from rerank.data.dataset import Dataset
from rerank.evaluation.evaluation import evaluate_run
from rerank.ranking import Ranking
from rerank.retrieve.bm25 import BM25
from rerank.runtime import Runtime

pytestmark = [
    pytest.mark.needs("pyterrier", "pandas"),
    pytest.mark.filterwarnings("ignore"),  # PyTerrier's and pandas' own
]

TEXTS = {"d1": "black hole", "d2": "white dwarf star", "d3": "neutron star", "d4": "star star light"}
QUERIES = {"q1": "star light", "q2": "black dwarf"}
QRELS = {"q1": {"d3": 1, "d4": 2}, "q2": {"d2": 1}}


def test_pyterrier_measures_our_frame_as_we_do_and_gives_back_a_ranking() -> None:
    import ir_measures
    import pandas as pd
    import pyterrier as pt

    data = Dataset("toy", QUERIES, MemoryCorpus(TEXTS), QRELS)
    with Runtime(progress=False) as runtime:
        run = runtime.run(BM25(), data)
    frame = run.ranking.to_frame()
    topics = pd.DataFrame(QUERIES.items(), columns=["qid", "query"])
    qrels = pd.DataFrame(
        [(q, d, g) for q, some in QRELS.items() for d, g in some.items()], columns=["qid", "docno", "label"]
    )
    theirs = pt.Experiment([frame], topics, qrels, [ir_measures.nDCG @ 10, ir_measures.RR], names=["bm25"])
    ours = evaluate_run(run, data, ["nDCG@10", "RR"]).means
    assert theirs["nDCG@10"][0] == pytest.approx(ours["nDCG@10"])
    assert theirs["RR"][0] == pytest.approx(ours["RR"])

    cut = (pt.Transformer.from_df(frame) % 1)(topics)
    assert Ranking.from_frame(cut).to_dict() == run.ranking.cut(1).to_dict()
