"""A collection as pipelines and evaluation see it: queries, corpus, judgments, candidates, excluded documents."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from rerank.artifact import canonical_json
from rerank.errors import DataError, nearest
from rerank.ids import ObjectArray
from rerank.ranking import Ranking, TextSource


@dataclass(frozen=True, eq=False)
class Dataset:
    """One split of one collection; every part but the queries may be absent.

    >>> from rerank.data.corpus import MemoryCorpus
    >>> data = Dataset("toy", {"q1": "stars"}, MemoryCorpus({"d1": "white dwarfs"}), {"q1": {"d1": 1}})
    >>> data.topics()
    Ranking(1 queries, 0 rows, none scores)
    """

    name: str
    queries: Mapping[str, str]
    """Query texts by id, in the collection's order: those of the split that are judged, where there are judgments."""
    corpus: TextSource | None = None
    qrels: Mapping[str, Mapping[str, int]] | None = None
    """Grades by query and document; what is excluded is not in here."""
    candidates: Ranking | None = None
    """The lists to rerank, where the collection is a reranking task."""
    excluded: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Per query the documents that must not be retrieved, reranked or counted."""
    split: str = "test"
    language: str = "en"
    query_columns: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """More values per query, by column: `instruction`, `language`, `type`, ..."""
    notes: tuple[str, ...] = ()
    """What was counted while reading: judged documents that the corpus lacks, dropped judgments, ..."""

    def __post_init__(self) -> None:
        if not self.queries:
            raise DataError(f"{self.name} ({self.split}): has no queries")

    def topics(self) -> Ranking:
        """The queries as a ranking: with the candidates' documents where there are candidates, else with none."""
        columns: dict[str, Any] = {}
        if self.excluded:
            columns["excluded"] = _objects(self.excluded.get(q, frozenset()) for q in self.queries)
        for name, values in self.query_columns.items():
            columns[name] = _objects(values.get(q) for q in self.queries)
        if self.candidates is None:
            return Ranking.start(self.queries, self.corpus, columns)
        given = set(self.candidates.qids)
        kept = np.array([qid in given for qid in self.queries])
        have = [qid for qid in self.queries if qid in given]
        ranking = self.candidates.subset(have)
        ranking = replace(
            ranking,
            queries=tuple(self.queries[qid] for qid in have),
            query_columns={name: column[kept] for name, column in columns.items()},
        )
        return ranking if self.corpus is None else ranking.with_source(self.corpus)

    def with_queries(self, qids: Sequence[str]) -> Dataset:
        """The same collection with only the queries `qids`.

        Raises:
            DataError: a query that the collection lacks.
        """
        for qid in qids:
            if qid not in self.queries:
                raise DataError(f"{self.name} ({self.split}): has no query {qid!r}{nearest(qid, self.queries)}")
        return replace(self, queries={qid: self.queries[qid] for qid in qids})

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that can change a result: queries, corpus, judgments, candidates, exclusions."""
        digest = hashlib.sha256()
        candidates = self.candidates.to_dict() if self.candidates is not None else None
        parts: list[Any] = [
            list(self.queries.items()),
            self.corpus.fingerprint if self.corpus is not None else None,
            {q: dict(grades) for q, grades in (self.qrels or {}).items()},
            {q: sorted(docs) for q, docs in self.excluded.items()},
            {name: list(values.items()) for name, values in self.query_columns.items()},
            {q: list(hits.items()) for q, hits in candidates.items()} if candidates is not None else None,
        ]
        for part in parts:
            digest.update(canonical_json(part).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def provenance(self) -> dict[str, Any]:
        """Name, split, language, size and content hash, for a run's record."""
        return {
            "name": self.name,
            "split": self.split,
            "language": self.language,
            "queries": len(self.queries),
            "fingerprint": self.fingerprint,
        }

    def __repr__(self) -> str:
        documents = f"{len(self.corpus.ids):,} documents" if self.corpus is not None else "no corpus"
        judged = sum(map(len, (self.qrels or {}).values()))
        return (
            f"Dataset({self.name!r}, {self.split!r}: {len(self.queries):,} queries, {documents}, {judged:,} judgments)"
        )


def _objects(values: Iterable[object]) -> ObjectArray:
    """A column of any values, one an element even where they are sequences of one length."""
    return np.fromiter(values, dtype=object)
