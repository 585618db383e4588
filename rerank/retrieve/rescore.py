"""Encoder rescoring: the documents of a list ordered again by the similarity of their vectors with the query's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rerank.engines.encoder import Encoder
from rerank.engines.text_model import DType, FloatMatrix
from rerank.errors import ConfigError, DataError
from rerank.ranking import CONDENSED, Ranking, ScoreKind, TextSource, order_rows
from rerank.retrieve.nearest import Int64, exact_scores
from rerank.retrieve.select import without_excluded
from rerank.retrieve.shards import first_of, text_hashes
from rerank.retrieve.vectors import encoder_for, has_vectors, is_stored, query_vectors, vectors_of
from rerank.runtime import Runtime
from rerank.stage import Flow, Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rerank.planning import Rehearsal

_BATCH = 2048


@dataclass(frozen=True, repr=False)
class Rescore(Stage):
    """The same documents in the order of their cosine (or dot product) with the query.

    A document that several queries list is encoded once; vectors that `Dense` stored for the corpus are used.  What was
    condensed for its query is encoded as it is.

    >>> Rescore("minilm-l6", k=50)
    Rescore(model='minilm-l6', k=50)
    """

    model: str
    """A catalogue name, a folder, or a hub id."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    k: int | None = None
    """Only the first `k` of each list are scored; what follows keeps its order below them, and scores become ranks
    (the similarities stay in the column `score:rescore`).  By default all are."""
    dtype: DType = "auto"
    """What the encoder computes in; see `Dense`."""

    def __post_init__(self) -> None:
        if self.k is not None and self.k < 1:
            raise ConfigError(f"rescore: k is {self.k}, at least 1 is needed (leave it out to score whole lists)")

    def flow(self, before: Flow) -> Flow:
        """The same documents; rank scores with `k`, else the model's kind."""
        return Flow(super().flow(before).has, None if self.k is None else ScoreKind.RANK)

    def transform(self, ranking: Ranking, runtime: Runtime) -> Ranking:
        """The reordered lists.

        Raises:
            DataError: no texts are known, or not of every document.
            ModelError: the model cannot be loaded.
        """
        if ranking.source is None:
            raise DataError(f"{self.label}: reads documents, but the lists came without texts; give their corpus")
        source = ranking.source
        ranking = without_excluded(ranking.with_source(source), runtime)
        encoder = encoder_for(runtime, self.model, self.revision, self.dtype, source)
        queries = query_vectors(ranking, encoder, runtime)
        head = np.ones(len(ranking.docs), dtype=bool) if self.k is None else ranking.positions() < self.k
        rows = np.flatnonzero(head)
        if CONDENSED in ranking.columns:
            matrix, where = _vectors_of_texts(ranking.texts(rows), encoder, runtime)
        else:
            codes, which = np.unique(ranking.docs[rows], return_inverse=True)
            matrix, places = _vectors(codes, source, encoder, runtime)
            where = places[which]
        scores = np.full(len(head), np.nan, dtype=np.float32)
        scores[rows] = exact_scores(queries, matrix, ranking.row_queries()[rows], where)
        runtime.count("scored pairs", len(rows))
        if self.k is None:
            return ranking.rescored(scores, encoder.score_kind)
        # The tail comes after the head as it stands: any scores that fall along it and lie below the head's will do.
        floor = float(np.nanmin(scores, initial=0.0)) - 1.0
        keys = np.where(head, scores.astype(np.float64), floor - ranking.positions())
        order = order_rows(keys, ranking.offsets, lambda some: ranking.ids.sort_keys(ranking.docs[some]))
        ranks = np.empty(len(head), dtype=np.float32)
        ranks[order] = ranking.ranked().scores
        return ranking.rescored(ranks, ScoreKind.RANK, {"score:rescore": scores})

    def rehearse(self, ranking: Ranking, rehearsal: Rehearsal) -> Ranking:
        """The reordered lists where the corpus's vectors are stored, else the lists as they are."""
        stored = CONDENSED not in ranking.columns
        if ranking.source is None or (
            stored and is_stored((rehearsal.home / "vectors").glob("*"), self.model, ranking.source)
        ):
            return self.transform(ranking, rehearsal)
        what = "the corpus yet" if stored else "condensed texts"
        rehearsal.remark(f"not run, for {self.model} has no vectors of {what}: lists keep their order")
        return ranking.ranked()


def _vectors_of_texts(texts: Sequence[str], encoder: Encoder, runtime: Runtime) -> tuple[FloatMatrix, Int64]:
    """A matrix of vectors, and in which of its rows that of each text lies; equal texts have one."""
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    distinct = list(places)
    parts = [np.empty((0, encoder.dimension), dtype=np.float32)]
    with runtime.progress("encoding", len(distinct), "documents") as advance:
        for start in range(0, len(distinct), _BATCH):
            parts.append(encoder.encode_documents(distinct[start : start + _BATCH], runtime.count))
            advance(len(parts[-1]))
    runtime.count("encoded documents", len(distinct))
    return np.concatenate(parts), np.array([places[text] for text in texts], dtype=np.int64)


def _vectors(codes: Int64, source: TextSource, encoder: Encoder, runtime: Runtime) -> tuple[FloatMatrix, Int64]:
    """A matrix of vectors, and in which of its rows those of the documents `codes` lie."""
    if has_vectors(runtime.home, encoder.identity("document"), source):
        runtime.count("reused vectors", len(codes))
        return vectors_of(source, encoder, runtime).matrix, codes
    # Equal texts get one vector, so that they tie whatever batch they come in.
    first = first_of(text_hashes(source, codes))
    distinct, rows = np.unique(first, return_inverse=True)
    parts = [np.empty((0, encoder.dimension), dtype=np.float32)]
    with runtime.progress("encoding", len(distinct), "documents") as advance:
        for start in range(0, len(distinct), _BATCH):
            texts = source.texts(codes[distinct[start : start + _BATCH]])
            parts.append(encoder.encode_documents(texts, runtime.count))
            advance(len(texts))
    runtime.count("encoded documents", len(distinct))
    return np.concatenate(parts), rows
