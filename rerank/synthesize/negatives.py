"""Hard negatives: documents that a pipeline ranks high for a query, other than the one it was written for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from rerank.errors import ConfigError
from rerank.ranking import TextSource
from rerank.rules.rule import at_least
from rerank.runtime import Runtime
from rerank.synthesize.lists import FreshLists
from rerank.words import one_line, share


class Mined(NamedTuple):
    """A negative."""

    code: int
    rank: int
    """In the pipeline's list."""
    score: float


@dataclass(frozen=True)
class HardNegatives(FreshLists):
    """Where a query's negatives are mined; default the ready pipeline `bm25`.

    Never taken are the query's own document, by its id, documents with its text, and empty ones.

    Raises:
        ConfigError: ranks or numbers that make no sense.
    """

    k: int = 4
    """How many a query has."""
    from_rank: int = 5
    """The first rank that is mined: what stands above it often answers the query as well."""
    to_rank: int = 100
    pick: Literal["random", "top"] = "random"
    """Which of these ranks: a seeded sample, or the highest."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("negatives", 1, k=self.k, from_rank=self.from_rank)
        if self.to_rank < self.from_rank + self.k - 1:
            raise ConfigError(
                f"negatives: ranks {self.from_rank} to {self.to_rank} have no room for {self.k} documents a query"
            )

    def mined(
        self,
        queries: Mapping[str, str],
        sources: Mapping[str, int],
        corpus: TextSource,
        runtime: Runtime,
        seed: int,
        counts: Counter[str],
    ) -> dict[str, list[Mined]]:
        """The negatives of each query, best rank first: `k`, or fewer, which is counted, where the band has no more.

        Args:
            queries: texts by id.
            sources: the codes of the documents that they were written for.
            corpus: all documents.
            runtime: runs the pipeline.
            seed: of the sample.
            counts: is told what was left out, and which queries have too few.
        """
        if not queries:
            return {}
        lists = self.found(queries, corpus, self.to_rank, runtime)
        kept: dict[str, list[Mined]] = {}
        for qid in queries:
            codes, scores = lists.codes(qid).tolist(), lists.scores(qid)
            ranked = [(rank, code) for rank, code in enumerate(codes, 1) if rank >= self.from_rank]
            (own,) = corpus.texts(np.array([sources[qid]]))
            usable: list[Mined] = []
            texts = corpus.texts(np.array([code for _, code in ranked], dtype=np.int64)) if ranked else []
            for (rank, code), text in zip(ranked, texts, strict=True):
                if code == sources[qid]:
                    counts["own documents passed over as negatives"] += 1
                elif one_line(text) == one_line(own):
                    counts["negatives with the text of the own document"] += 1
                elif not text.strip():
                    counts["negatives without text"] += 1
                else:
                    usable.append(Mined(code, rank, scores[code]))
            if self.pick == "random":
                names = dict(zip((each.code for each in usable), _docnos(corpus, usable), strict=True))
                usable.sort(key=lambda each: share(seed, f"negatives {qid}", names[each.code]))
            kept[qid] = sorted(usable[: self.k], key=lambda each: each.rank)
            counts[f"queries with fewer than {self.k} negatives"] += len(kept[qid]) < self.k
        return kept


def _docnos(corpus: TextSource, mined: list[Mined]) -> list[str]:
    return [str(docno) for docno in corpus.ids.take(np.array([each.code for each in mined], dtype=np.int64))]
