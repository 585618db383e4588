"""Round trips: is a query's document found for it?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rerank.ranking import TextSource
from rerank.rules.rule import at_least
from rerank.runtime import Runtime
from rerank.synthesize.lists import FreshLists


@dataclass(frozen=True)
class RoundTrip(FreshLists):
    """A pipeline that must find the document a query was written for; default the ready pipeline `hybrid`.

    Source: Alberti et al. 2019 (round-trip consistency); Dai et al. 2023 (Promptagator), whose limit is rank 1.

    Raises:
        ConfigError: a run, which knows nothing of new queries, or a rank below 1.
    """

    k: int = 10
    """The last rank that the document may have."""

    usual: ClassVar[str] = "hybrid"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("round_trip", 1, k=self.k)

    def ranks(
        self, queries: Mapping[str, str], sources: Mapping[str, int], corpus: TextSource, runtime: Runtime
    ) -> dict[str, int | None]:
        """The rank of each query's document, or of one with the same text; None where it is not among the first `k`.

        Args:
            queries: texts by id.
            sources: the codes of the documents that they were written for.
            corpus: all documents.
            runtime: runs the pipeline.
        """
        if not queries:
            return {}
        lists = self.found(queries, corpus, self.k, runtime)
        ranks: dict[str, int | None] = {}
        for qid in queries:
            codes = lists.codes(qid)
            (own,) = corpus.texts(np.array([sources[qid]]))
            where = [text == own for text in corpus.texts(codes)]
            ranks[qid] = where.index(True) + 1 if any(where) else None
        return ranks
