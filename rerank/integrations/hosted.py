"""What adapters share: which stage is meant, what its scores mean elsewhere, and a runtime that any thread may call."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from rerank.engines.engine import Engine
from rerank.errors import DataError, PipelineError
from rerank.ids import IdTable
from rerank.ranking import Ranking, ScoreKind
from rerank.reranker import RankedDocs, Reranker
from rerank.runtime import Runtime
from rerank.stage import DOCUMENTS, FROM_ANYTHING, FROM_QUERIES, Flow, Stage
from rerank.stage_for import rerank_stage, reranking_only, stage_for


class HasStage(Protocol):
    """What carries a stage, as a `Reranker` does."""

    @property
    def stage(self) -> Stage:
        """The stage."""
        ...


Rerankable: TypeAlias = Stage | Engine | HasStage | Mapping[str, Any] | str
"""A stage or pipeline; an engine; a `Reranker`; the name or file of a pipeline; a model, as `Reranker` takes it; or
what a pipeline file says, as plain data."""


def stage_of(reranker: Rerankable) -> Stage:
    """The stage that is meant.

    >>> stage_of("bm25").label, stage_of({"name": "three", "stages": [{"cut": 3}]}).label
    ('bm25', 'three')

    Raises:
        PipelineError: it is nothing of the kind.
        ConfigError: no pipeline has that name, or its text cannot be read.
        ModelError: no such model, or none that reranks.
    """
    if isinstance(reranker, Stage):
        return reranker
    if isinstance(reranker, Engine):
        return rerank_stage(reranker)
    if isinstance(reranker, str):
        from rerank.ready import find_pipeline, ready_names

        is_pipeline = reranker.endswith((".yaml", ".yml")) or reranker in ready_names()
        return find_pipeline(reranker) if is_pipeline else stage_for(reranker)
    if isinstance(reranker, Mapping):
        from rerank.config import parse_pipeline
        from rerank.yamlfile import dump_yaml

        return parse_pipeline(dump_yaml(dict(reranker)), "the given pipeline")
    stage = getattr(reranker, "stage", None)
    if isinstance(stage, Stage):
        return stage
    raise PipelineError(
        f"{reranker!r} cannot rerank: give a stage or pipeline, the name or file of one, a model's name, or a Reranker"
    )


def reranking_stage(reranker: Rerankable) -> Stage:
    """The stage that is meant, if it starts from lists.

    >>> from rerank.stage import Cut
    >>> reranking_stage(Cut(3))
    Cut(k=3)

    Raises:
        PipelineError: it finds documents itself, or needs more than lists; else as `stage_of`.
    """
    stage = reranking_only(stage_of(reranker))
    stage.flow(FROM_ANYTHING)
    return stage


def searching_stage(reranker: Rerankable) -> Stage:
    """The stage that is meant, if it starts from queries alone.

    >>> searching_stage("bm25").label
    'bm25'

    Raises:
        PipelineError: it starts from lists; else as `stage_of`.
    """
    stage = stage_of(reranker)
    stage.flow(FROM_QUERIES)
    return stage


def reranker_of(reranker: Rerankable, device: str = "auto") -> Reranker:
    """The `Reranker` itself where one is given, else one for the stage that is meant, with models on `device`."""
    return reranker if isinstance(reranker, Reranker) else Reranker(reranking_stage(reranker), device=device)


def relevance(ranking: Ranking) -> npt.NDArray[np.float64]:
    """[N] what a framework is told of each document, higher is better.

    It is the stage's own score where that means something: a logit, a probability, a fused score.  Where scores only
    say the order (setwise, listwise and other comparing rules; a stage that reranks only the head of a list), it is
    1 / rank.  Which of the two depends on the stage alone, never on the list: thresholds keep their meaning.

    >>> ranking = Ranking.of({"q": {"a": 5.0, "b": 3.0}})
    >>> relevance(ranking).tolist(), relevance(ranking.ranked()).tolist()
    ([5.0, 3.0], [1.0, 0.5])
    """
    if only_orders(ranking.kind):
        return 1.0 / (ranking.positions() + 1)
    return ranking.scores.astype(np.float64)


def placed(stage: Stage, docs: RankedDocs) -> list[tuple[int, float]]:
    """What `stage` gave, as places in the list that it was given and scores as `relevance` has them."""
    orders = only_orders(stage.flow(Flow(frozenset({DOCUMENTS}), ScoreKind.RANK)).kind)
    return [(doc.index, 1.0 / doc.rank if orders else doc.score) for doc in docs]


def only_orders(kind: ScoreKind | None) -> bool:
    """Whether scores of that kind say nothing but the order.

    >>> only_orders(ScoreKind.RANK), only_orders(ScoreKind.LOGIT)
    (True, False)
    """
    return kind in (ScoreKind.RANK, ScoreKind.NONE)


class Hosted:
    """A stage at work in another framework, with a runtime of its own that lives as long as this.

    A `Runtime` serves one thread at a time and frameworks call from many, so each `Hosted` has one lock.  Copies and
    pickles carry the stage; what it has loaded is loaded again.

    >>> from rerank.stage import Cut
    >>> Hosted(Cut(1), device="cpu").rank(Ranking.of({"q": {"a": 5.0, "b": 3.0}})).to_dict()
    {'q': {'a': 5.0}}

    Args:
        stage: what runs.
        device: as of `Runtime`.
    """

    def __init__(self, stage: Stage, device: str = "auto") -> None:
        self.stage = stage
        self._device = device
        self._runtime = Runtime(device=device, progress=False)
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Hosted, (self.stage, self._device)

    def rank(self, ranking: Ranking) -> Ranking:
        """What the stage makes of the lists of any number of queries, in one batch."""
        with self._lock:
            try:
                return self._runtime.rank(self.stage, ranking)
            finally:
                self._runtime.stats.clear()  # nobody reads them, and a server would keep them for ever


def listed(
    start: Ranking,
    docnos: Sequence[Sequence[str]],
    ids: IdTable,
    scores: npt.NDArray[np.floating[Any]] | None = None,
) -> Ranking:
    """The queries of `start` with one list each, in exactly the order given; without `scores` [N], places are scores.

    Raises:
        DataError: a document that `ids` lacks.
        RankingError: scores that rise along a list or are not numbers, or a document twice in a list.
    """
    flat = list(chain.from_iterable(docnos))
    docs = ids.find(flat)
    if (docs < 0).any():
        raise DataError(f"document {flat[int(np.argmin(docs))]!r} is a candidate, but not in the corpus")
    offsets = np.zeros(len(docnos) + 1, dtype=np.int64)
    np.cumsum([len(some) for some in docnos], out=offsets[1:])
    largest = np.finfo(np.float32).max
    given = np.zeros(len(flat)) if scores is None else np.clip(scores, -largest, largest)
    ranking = dataclasses.replace(
        start,
        offsets=offsets,
        docs=docs,
        scores=given.astype(np.float32),
        ids=ids,
        kind=ScoreKind.UNKNOWN,
        columns={},
    )
    return ranking.ranked() if scores is None else ranking
