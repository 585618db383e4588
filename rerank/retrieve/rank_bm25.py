"""BM25 by the rank-bm25 package: a reference for small collections, held in memory and built for every run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from rerank.errors import ConfigError
from rerank.extras import need
from rerank.ranking import Ranking, ScoreKind
from rerank.retrieve.analysis import Analyser
from rerank.retrieve.first_stage import excluded_codes, need_source, retrieved
from rerank.retrieve.sparse_index import Found
from rerank.runtime import Runtime
from rerank.stage import DOCUMENTS, Stage

_CLASSES = {"okapi": "BM25Okapi", "l": "BM25L", "plus": "BM25Plus"}


@dataclass(frozen=True, repr=False)
class RankBM25(Stage):
    """The `k` documents with the highest scores of rank-bm25, among those that share a term with the query.

    Its Okapi formula differs from Lucene's: terms in more than half of the documents get a small positive weight, and
    scores carry the factor k1 + 1.
    """

    k: int = 1000
    """How many documents a query gets at most."""
    k1: float = 1.5
    b: float = 0.75
    method: Literal["okapi", "l", "plus"] = "okapi"
    analyser: Analyser | None = None
    """How text becomes terms; by default the corpus language's own analyser."""

    needs: ClassVar[frozenset[str]] = frozenset()
    gives: ClassVar[frozenset[str]] = frozenset({DOCUMENTS})
    kind: ClassVar[ScoreKind | None] = ScoreKind.BM25

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"rank_bm25: k is {self.k}, at least 1 is needed")

    def transform(self, ranking: Ranking, runtime: Runtime) -> Ranking:
        """The best documents of each query.

        Raises:
            MissingExtraError: rank-bm25 is not installed.
        """
        source = need_source(ranking, self.label)
        analyser = self.analyser or Analyser(source.language)

        def load() -> tuple[Any, list[set[str]]]:
            package = need("rank_bm25", "reference", "the stage rank_bm25")
            texts = [analyser(text) for text in source.texts(np.arange(len(source.ids)))]
            if not any(texts):
                return None, [set()] * len(texts)
            scorer = getattr(package, _CLASSES[self.method])(texts, k1=self.k1, b=self.b)
            return scorer, [set(terms) for terms in texts]

        scorer, bags = runtime.resource(("rank_bm25", source.fingerprint, self), load)
        excluded = excluded_codes(ranking, source.ids, runtime)
        docs, scores = [], []
        for position, query in enumerate(ranking.queries):
            terms = analyser(query)
            wanted = set(terms)
            hit = np.array([not bag.isdisjoint(wanted) for bag in bags])
            if excluded is not None:
                hit[excluded[position]] = False
            docs.append(np.flatnonzero(hit))
            scores.append(np.asarray(scorer.get_scores(terms))[docs[-1]] if hit.any() else np.zeros(0))
        return retrieved(ranking, Found.of(docs, scores), self.k, ScoreKind.BM25, source.ids, source)
