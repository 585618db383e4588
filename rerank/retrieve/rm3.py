"""RM3 query expansion from the first documents of a list."""

from __future__ import annotations

import collections
import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rerank.artifact import canonical_json
from rerank.errors import ConfigError, DataError
from rerank.ranking import Ranking
from rerank.retrieve.analysis import Analyser
from rerank.retrieve.first_stage import need_source
from rerank.retrieve.rewrite import ORIGINAL
from rerank.runtime import Runtime
from rerank.stage import DOCUMENTS, Stage


@dataclass(frozen=True, repr=False)
class RM3(Stage):
    """The query mixed with the terms that are typical of its first documents, for a following `bm25`.

    The query text stays as it is; the weighted terms travel in the query column `terms`, and only sparse retrieval
    reads them: `bm25 >> rm3 >> bm25`.  A document counts by its score, so scores must not be negative.

    Source: Abdul-Jaleel et al., TREC 2004 (RM3); Lavrenko and Croft 2001 (the relevance model, here with maximum
    likelihood document models and retrieval scores in place of query likelihoods, as Anserini does).  Departure:
    Anserini drops expansion terms of more than a tenth of the documents; here stop words do that.
    """

    documents: int = 10
    """How many documents are read."""
    terms: int = 10
    """How many terms are added."""
    original_weight: float = 0.5
    """The original query's share of the weight, 0 to 1."""
    analyser: Analyser | None = None
    """How text becomes terms; must be the following index's, and is by default the corpus language's own."""

    needs: ClassVar[frozenset[str]] = frozenset({DOCUMENTS})
    gives: ClassVar[frozenset[str]] = frozenset({"terms", ORIGINAL})

    def __post_init__(self) -> None:
        if self.documents < 1 or self.terms < 1 or not 0 <= self.original_weight <= 1:
            raise ConfigError("rm3: documents and terms must be at least 1, original_weight in 0 .. 1")

    def transform(self, ranking: Ranking, runtime: Runtime) -> Ranking:
        """The same lists, with weighted query terms."""
        source = need_source(ranking, "rm3")
        analyser = (self.analyser or Analyser(source.language)).resolve()
        head = ranking.cut(self.documents)
        if len(head.scores) and head.scores.min() < 0:
            raise DataError("rm3: needs scores of 0 or more to weigh documents by; put .minmax() before it")
        bags: dict[int, collections.Counter[str]] = {}
        codes = np.unique(head.docs)
        for code, text in zip(codes.tolist(), source.texts(codes), strict=True):
            bags[code] = collections.Counter(analyser(text))
        weighted = np.empty(len(ranking), dtype=object)
        for position, query in enumerate(ranking.queries):
            rows = slice(int(head.offsets[position]), int(head.offsets[position + 1]))
            scored = list(zip(head.docs[rows].tolist(), head.scores[rows].tolist(), strict=True))
            weighted[position] = self._mix(analyser(query), [(bags[code], score) for code, score in scored])
        marks = np.full(len(ranking), canonical_json(dataclasses.asdict(analyser)), dtype=object)
        expanded = ranking.with_queries(ranking.queries)
        return expanded.with_query_column("terms", weighted).with_query_column("terms_analyser", marks)

    def _mix(
        self, query: list[str], documents: list[tuple[collections.Counter[str], float]]
    ) -> tuple[tuple[str, float], ...]:
        """Terms with weights that sum to 1: heaviest first, ties by term."""
        model: collections.defaultdict[str, float] = collections.defaultdict(float)
        for bag, score in documents:
            length = bag.total()
            for term, count in bag.items():
                model[term] += score * count / length
        best = sorted(model.items(), key=lambda item: (-item[1], item[0]))[: self.terms]
        mass = sum(weight for _, weight in best)
        own = 1.0 if not mass else self.original_weight
        mixed: collections.defaultdict[str, float] = collections.defaultdict(float)
        for term in query:
            mixed[term] += own / len(query)
        for term, weight in best if mass else ():
            mixed[term] += (1 - own) * weight / mass
        return tuple(sorted(((t, w) for t, w in mixed.items() if w > 0), key=lambda item: (-item[1], item[0])))
