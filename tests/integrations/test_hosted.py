"""What adapters share: which stage is meant, what its scores mean elsewhere, and whole lists from many threads."""

from __future__ import annotations

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from overlap_engine import Overlap

from rerank.data.corpus import MemoryCorpus
from rerank.errors import ConfigError, DataError, ModelError, PipelineError, RankingError
from rerank.integrations.hosted import (
    Hosted,
    listed,
    placed,
    relevance,
    reranker_of,
    reranking_stage,
    searching_stage,
    stage_of,
)
from rerank.ranking import Ranking, ScoreKind
from rerank.reranker import Reranker
from rerank.reranking import Rerank
from rerank.retrieve.bm25 import BM25
from rerank.retrieve.rewrite import OriginalQuery
from rerank.rules.setwise import Setwise
from rerank.stage import Cut, Union, apply

POINTWISE = Rerank(Overlap(), k=None)
TEXTS = ["a dark hole", "a black star", "a black hole", "light"]


@pytest.mark.parametrize(
    ("reranker", "label"),
    [
        (POINTWISE, "rerank"),
        (Overlap(), "rerank"),
        (SimpleNamespace(stage=POINTWISE), "rerank"),
        (Reranker(POINTWISE >> Cut(3)), "rerank >> cut"),
        ("bm25", "bm25"),
        ({"stages": [{"cut": 3}], "name": "three"}, "three"),
    ],
)
def test_a_stage_is_known_in_every_form(reranker: object, label: str) -> None:
    assert stage_of(reranker).label == label  # type: ignore[arg-type]


def test_what_is_no_stage_is_refused() -> None:
    with pytest.raises(PipelineError, match="3 cannot rerank: give a stage or pipeline, the name or file of one"):
        stage_of(3)  # type: ignore[arg-type]
    with pytest.raises((ConfigError, ModelError), match="no-such-model"):
        stage_of("no-such-model")
    with pytest.raises(ConfigError, match="the given pipeline"):
        stage_of({"stage": []})


def test_a_reranker_is_used_as_it_is() -> None:
    reranker = Reranker(POINTWISE)
    assert reranker_of(reranker) is reranker
    assert reranker_of(POINTWISE).stage == POINTWISE


def test_a_stage_that_finds_documents_is_not_given_lists() -> None:
    for stage in (BM25(), BM25() >> POINTWISE, Union((Cut(3), BM25()))):
        with pytest.raises(PipelineError, match="bm25 finds documents itself"):
            reranking_stage(stage)
    assert reranking_stage(Union((Cut(3), POINTWISE))) == Union((Cut(3), POINTWISE))


def test_a_stage_that_needs_more_than_lists_is_refused_when_built() -> None:
    with pytest.raises(PipelineError, match="original_query"):
        reranking_stage(OriginalQuery() >> POINTWISE)
    assert reranking_stage(apply(lambda ranking: ranking)).label == "<lambda>"


def test_a_stage_that_starts_from_lists_does_not_search() -> None:
    assert searching_stage(BM25() >> POINTWISE).label == "bm25 >> rerank"
    with pytest.raises(PipelineError, match="rerank needs documents"):
        searching_stage(POINTWISE)


def test_relevance_is_the_score_unless_that_only_says_the_order() -> None:
    ranking = Ranking.of({"q": {"a": 0.5, "b": 0.25}, "r": {}, "s": {"a": -3.0}}, kind=ScoreKind.LOGIT)
    assert relevance(ranking).tolist() == [0.5, 0.25, -3.0]
    assert relevance(ranking.ranked()).tolist() == [1.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (POINTWISE, [(2, 2.0), (0, 1.0), (1, 1.0), (3, 0.0)]),
        (POINTWISE >> Cut(2), [(2, 2.0), (0, 1.0)]),
        (Rerank(Overlap(), Setwise(k=2)), [(2, 1.0), (0, 1 / 2), (1, 1 / 3), (3, 1 / 4)]),
        (Rerank(Overlap(), k=100), [(2, 1.0), (0, 1 / 2), (1, 1 / 3), (3, 1 / 4)]),  # as for longer lists
        (Cut(1), [(0, 1.0)]),
    ],
)
def test_places_and_scores_of_texts_mean_the_same(stage: Rerank, expected: list[tuple[int, float]]) -> None:
    docs = Reranker(stage).rank("black hole", TEXTS)
    assert placed(stage, docs) == expected


def test_copies_and_pickles_carry_the_stage() -> None:
    hosted = Hosted(Cut(1))
    ranking = Ranking.of({"q": {"a": 2.0, "b": 1.0}})
    for other in (copy.deepcopy(hosted), pickle.loads(pickle.dumps(hosted))):  # noqa: S301
        assert other.rank(ranking) == hosted.rank(ranking)


def test_one_call_at_a_time_reaches_the_stage_and_statistics_do_not_pile_up() -> None:
    inside, most = threading.Semaphore(0), []

    def look(ranking: Ranking) -> Ranking:
        inside.release()
        most.append(inside._value)
        inside.acquire()
        return ranking

    hosted = Hosted(apply(look))
    given = [Ranking.of({f"q{n}": {"a": float(n)}}) for n in range(20)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(hosted.rank, given)) == given
    assert set(most) == {1}
    assert hosted._runtime.stats == []


def test_lists_keep_the_order_given_and_places_stand_in_for_scores() -> None:
    corpus = MemoryCorpus({"b": "", "a": "", "c": ""})
    start = Ranking.start({"q": "x", "r": "y"}, corpus)
    ranking = listed(start, [["b", "a"], []], corpus.ids)
    assert (ranking.to_dict(), ranking.kind) == ({"q": {"b": 2.0, "a": 1.0}, "r": {}}, ScoreKind.RANK)
    tied = listed(start, [["b", "a"], ["c"]], corpus.ids, np.array([1.0, 1.0, 1e300]))
    assert tied["q"].docnos == ["b", "a"]
    assert (tied["r"][0].score, tied.kind) == (np.finfo(np.float32).max, ScoreKind.UNKNOWN)


def test_lists_that_cannot_be_are_refused() -> None:
    corpus = MemoryCorpus({"a": "", "b": ""})
    start = Ranking.start({"q": "x"}, corpus)
    with pytest.raises(DataError, match="document 'z' is a candidate, but not in the corpus"):
        listed(start, [["a", "z"]], corpus.ids)
    with pytest.raises(RankingError, match="occurs more than once"):
        listed(start, [["a", "a"]], corpus.ids)
    with pytest.raises(RankingError, match="higher score"):
        listed(start, [["a", "b"]], corpus.ids, np.array([1.0, 2.0]))
    with pytest.raises(RankingError, match="finite"):
        listed(start, [["a", "b"]], corpus.ids, np.array([np.nan, 2.0]))
