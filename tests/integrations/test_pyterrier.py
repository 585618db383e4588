"""PyTerrier runs our stages, and we run its transformers."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from overlap_engine import Overlap

from rerank.data.corpus import MemoryCorpus
from rerank.data.dataset import Dataset
from rerank.errors import ConfigError, DataError, PipelineError, RankingError
from rerank.evaluation.evaluation import evaluate_run
from rerank.ranking import Ranking, ScoreKind
from rerank.reranking import Rerank
from rerank.retrieve.bm25 import BM25
from rerank.rules.setwise import Setwise
from rerank.runtime import Runtime
from rerank.stage import Cut

pytestmark = [
    pytest.mark.needs("pyterrier", "pandas"),
    pytest.mark.filterwarnings("ignore"),  # PyTerrier's and pandas' own
]

TEXTS = {"d1": "black hole", "d2": "white dwarf star", "d3": "neutron star", "d4": "star star light", "d5": "dwarf"}
QUERIES = {"q2": "star light", "q1": "black dwarf", "none": "zebra"}
QRELS = {"q2": {"d3": 1, "d4": 2}, "q1": {"d2": 1, "d5": 1}}
POINTWISE = Rerank(Overlap(), k=None)


@pytest.fixture
def topics() -> Any:
    import pandas as pd

    return pd.DataFrame(QUERIES.items(), columns=["qid", "query"]).assign(narrative="n")


@pytest.fixture
def results() -> Any:
    """Lists in no order, with a column of its own and a rank that only says the order of ties."""
    import pandas as pd

    rows = [
        ("q2", "star light", "d3", 1.0, 2, "x"),
        ("q1", "black dwarf", "d2", 3.0, 0, "y"),
        ("q2", "star light", "d2", 1.0, 1, "z"),
        ("q2", "star light", "d4", 2.0, 0, "w"),
        ("q1", "black dwarf", "d1", 2.5, 1, "v"),
    ]
    frame = pd.DataFrame(rows, columns=["qid", "query", "docno", "score", "rank", "own"])
    return frame.assign(text=[TEXTS[docno] for docno in frame["docno"]])


def transformer(stage: Any = POINTWISE, **options: Any) -> Any:
    from rerank.integrations.pyterrier import RerankTransformer

    return RerankTransformer(stage, **options)


def lists(frame: Any) -> dict[str, list[str]]:
    return {qid: list(part["docno"]) for qid, part in frame.groupby("qid", sort=False)}


def test_results_come_out_best_first_with_ranks_from_zero_and_their_own_columns(results: Any) -> None:
    before = results.copy()
    out = transformer()(results)
    assert lists(out) == {"q2": ["d4", "d2", "d3"], "q1": ["d2", "d1"]}  # ties as they were
    assert list(out["rank"]) == [0, 1, 2, 0, 1]
    assert list(out["own"]) == ["w", "z", "x", "y", "v"]
    assert list(out["score"]) == pytest.approx([2, 1, 1, 1, 1], abs=1e-6)
    for _, part in out.groupby("qid"):
        assert part["score"].is_monotonic_decreasing and part["score"].is_unique
    assert results.equals(before)


def test_all_queries_go_forward_together(results: Any) -> None:
    Overlap.asked.clear()
    transformer()(results)
    assert [len(questions) for questions in Overlap.asked] == [5]


def test_a_comparing_rule_gives_one_over_the_rank(results: Any) -> None:
    assert list(transformer(Rerank(Overlap(), Setwise()))(results)["score"]) == pytest.approx(
        [1, 1 / 2, 1 / 3, 1, 1 / 2]
    )


def test_lists_of_dicts_and_frames_without_scores_do_too(results: Any) -> None:
    bare = results.drop(columns=["score", "rank"])
    assert lists(transformer()(bare)) == {"q2": ["d4", "d3", "d2"], "q1": ["d2", "d1"]}
    assert [row["docno"] for row in transformer()(bare.to_dict("records"))] == ["d4", "d3", "d2", "d2", "d1"]


def test_an_empty_frame_gives_an_empty_frame_with_all_columns(results: Any) -> None:
    import pyterrier as pt

    out = transformer()(results.head(0))
    assert len(out) == 0
    assert set(out.columns) == set(results.columns)
    assert pt.inspect.transformer_inputs(transformer()) == [["qid", "docno", "query", "text"]]
    assert set(pt.inspect.transformer_outputs(transformer(), ["qid", "query", "docno", "text"])) == {
        "qid", "query", "docno", "text", "score", "rank",
    }  # fmt: skip
    with pytest.raises(pt.validate.InputValidationError, match="text"):
        transformer()(results.drop(columns=["text"]))


def test_texts_made_for_each_query_are_read_for_it(results: Any) -> None:
    snippets = results.assign(summary=[f"{docno} {qid}" for docno, qid in zip(results.docno, results.qid, strict=True)])
    snippets = snippets.assign(query=[f"{qid} d3 d1" for qid in snippets.qid])
    out = transformer(text_field="summary")(snippets)
    assert lists(out) == {"q2": ["d3", "d4", "d2"], "q1": ["d1", "d2"]}
    assert list(out["rank"]) == [0, 1, 2, 0, 1]


def test_it_keeps_to_pyterrier_s_algebra_and_experiment(topics: Any) -> None:
    import ir_measures
    import pandas as pd
    import pyterrier as pt

    from rerank.integrations.pyterrier import SearchTransformer

    corpus = MemoryCorpus(TEXTS)
    search = SearchTransformer(BM25(), corpus, text_field="text")
    both = search >> transformer()
    qrels = pd.DataFrame(
        [(q, d, g) for q, g_ in QRELS.items() for d, g in g_.items()], columns=["qid", "docno", "label"]
    )
    measures = [ir_measures.nDCG @ 10, ir_measures.RR]
    table = pt.Experiment([search, both % 2], topics, qrels, measures, names=["bm25", "both"], precompute_prefix=True)
    data = Dataset("toy", QUERIES, corpus, QRELS)
    for row, pipeline in enumerate((BM25(), BM25() >> POINTWISE >> Cut(2))):
        with Runtime(progress=False) as runtime:
            ours = evaluate_run(runtime.run(pipeline, data), data, ["nDCG@10", "RR"]).means
        assert [table["nDCG@10"][row], table["RR"][row]] == pytest.approx([ours["nDCG@10"], ours["RR"]])
    assert repr(both) == "(SearchTransformer(BM25()) >> RerankTransformer(Rerank(engine=Overlap(), k=None)))"
    assert hash(both) == hash(search >> transformer())
    assert not pt.java.started()


def test_a_pipeline_with_a_first_stage_is_a_retriever(topics: Any) -> None:
    import pyterrier as pt

    from rerank.integrations.pyterrier import SearchTransformer

    search = SearchTransformer(BM25() >> POINTWISE, MemoryCorpus(TEXTS))
    out = search(topics)
    with Runtime(progress=False) as runtime:
        ours = runtime.rank(BM25() >> POINTWISE, Ranking.start(QUERIES, MemoryCorpus(TEXTS)))
    assert lists(out) == {hits.qid: hits.docnos for hits in ours if len(hits)}
    assert list(out.columns) == ["qid", "query", "docno", "score", "rank"]
    assert search.search("neutron")["docno"].tolist() == ["d3"]
    assert set(search(topics.head(0)).columns) == set(out.columns)
    assert pt.inspect.transformer_inputs(search) == [["qid", "query"]]
    with pytest.raises(PipelineError, match="needs documents"):
        SearchTransformer(POINTWISE, MemoryCorpus(TEXTS))


def test_it_pickles_as_parallel_running_needs() -> None:
    stage = Cut(1)
    assert repr(pickle.loads(pickle.dumps(transformer(stage)))) == "RerankTransformer(Cut(k=1))"  # noqa: S301


# -- a transformer as our stage ---------------------------------------------------


def run(stage: Any, **options: Any) -> Ranking:
    start = Ranking.start(QUERIES, MemoryCorpus(TEXTS))
    with Runtime(progress=False) as runtime:
        return runtime.rank(stage, start)


def test_a_scorer_of_theirs_reranks_our_lists() -> None:
    import pyterrier as pt

    from rerank.integrations.pyterrier import TransformerStage

    longest = TransformerStage(pt.apply.doc_score(lambda row: float(len(row["text"]))))
    ranking = run(BM25() >> longest >> Cut(2))
    assert ranking["q2"].docnos == ["d2", "d4"]
    assert (ranking["q1"].docnos, ranking["none"].docnos) == (["d2", "d1"], [])
    assert (ranking.kind, ranking["q2"][0].score) == (ScoreKind.UNKNOWN, 16.0)
    assert ranking["q2"][0].text == "white dwarf star"


def test_a_retriever_of_theirs_is_our_first_stage_with_or_without_texts(results: Any) -> None:
    import pyterrier as pt

    from rerank.integrations.pyterrier import TransformerStage

    first = TransformerStage(pt.Transformer.from_df(results))
    assert first.label == "SourceTransformer"
    assert run(first).to_dict() == {"q2": {"d4": 2.0, "d2": 1.0, "d3": 1.0}, "q1": {"d2": 3.0, "d1": 2.5}, "none": {}}
    assert run(first >> POINTWISE)["q1"].docnos == ["d2", "d1"]
    other = results.assign(docno=["x" + docno for docno in results["docno"]])
    reranked = run(TransformerStage(pt.Transformer.from_df(other)) >> POINTWISE)
    assert (reranked["q2"].docnos, reranked["q2"][0].text) == (["xd4", "xd2", "xd3"], "star star light")
    bare = run(TransformerStage(pt.Transformer.from_df(other.drop(columns=["text"]))))
    assert (bare["q2"].docnos, bare.source) == (["xd4", "xd2", "xd3"], None)


def test_a_rewriter_of_theirs_changes_our_queries() -> None:
    import pyterrier as pt

    from rerank.integrations.pyterrier import TransformerStage

    rewritten = run(TransformerStage(pt.apply.query(lambda row: row["query"] + " neutron")) >> BM25())
    assert rewritten["none"].docnos == ["d3"]
    assert rewritten["none"].query == "zebra neutron"
    assert rewritten.query_columns["original_query"].tolist() == list(QUERIES.values())


def test_theirs_and_ours_nest(results: Any) -> None:
    from rerank.integrations.pyterrier import TransformerStage

    ranking = run(BM25() >> TransformerStage(transformer() % 1))
    assert {hits.qid: len(hits) for hits in ranking} == {"q2": 1, "q1": 1, "none": 0}
    assert ranking["q2"].docnos == ["d4"]


def test_what_a_transformer_gives_wrongly_is_refused_and_it_has_no_yaml_form() -> None:
    import pyterrier as pt

    from rerank.config import to_yaml
    from rerank.integrations.pyterrier import TransformerStage

    with pytest.raises(RankingError, match="finite"):
        run(BM25() >> TransformerStage(pt.apply.generic(lambda frame: frame.assign(score=float("nan")))))
    with pytest.raises(DataError, match="ApplyGenericTransformer: gave a frame without qid"):
        run(BM25() >> TransformerStage(pt.apply.generic(lambda frame: frame[["docno"]])))
    with pytest.raises(ConfigError, match="has no YAML form"):
        to_yaml(TransformerStage(pt.Transformer.identity()))
