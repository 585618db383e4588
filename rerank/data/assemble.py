"""From the parts that a reader found to a `Dataset`: one place for every check, drop and count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rerank.data.dataset import Dataset
from rerank.data.trec import EXCLUDED, Judgments
from rerank.errors import DataError
from rerank.ranking import Ranking, TextSource

OWN_ID = frozenset({"arguana", "beir-arguana", "beir/arguana", "nano-beir/arguana"})
"""Names, in lower case, of the collections whose queries are documents too and must not find themselves."""


@dataclass
class Parts:
    """What a reader found, unchecked."""

    name: str
    split: str
    queries: Mapping[str, str]
    """All of the collection, whatever the split."""
    corpus: TextSource | None = None
    qrels: Judgments | None = None
    """May hold the grade -100 for excluded documents."""
    candidates: Ranking | None = None
    excluded: Mapping[str, frozenset[str]] = field(default_factory=dict)
    query_columns: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    language: str = "en"
    excludes_own_id: bool = False
    """A query is itself a document, which must not be found (ArguAna)."""
    notes: list[str] = field(default_factory=list)


def assemble(parts: Parts) -> Dataset:
    """The data set of `parts`: judged queries only, exclusions applied to judgments and candidates, all losses noted.

    Raises:
        DataError: no judged query is known, no judged document is in the corpus, or there are no queries.
    """
    notes = list(parts.notes)
    place = f"{parts.name} ({parts.split})"
    if not parts.queries:
        raise DataError(f"{place}: has no queries")
    excluded = {qid: set(docnos) for qid, docnos in parts.excluded.items()}
    qrels = None
    queries = dict(parts.queries)
    if parts.qrels is not None:
        qrels = _without_exclusions(parts.qrels, excluded, notes)
        queries = _judged(place, parts.queries, qrels, notes)
        qrels = {qid: qrels[qid] for qid in queries}
    if parts.excludes_own_id:
        known = set(queries) if parts.corpus is None else _known(parts.corpus, list(queries))
        for qid in known:
            excluded.setdefault(qid, set()).add(qid)
    if qrels is not None and parts.corpus is not None:
        _check_documents(place, qrels, parts.corpus, notes)
    empty = sum(not text.strip() for text in queries.values())
    if empty:
        notes.append(f"{empty:,} of {len(queries):,} queries have an empty text")
    kept = {qid: frozenset(excluded[qid]) for qid in queries if excluded.get(qid)}
    columns = {
        name: {qid: value for qid, value in values.items() if qid in queries}
        for name, values in parts.query_columns.items()
    }
    return Dataset(
        parts.name,
        queries,
        parts.corpus,
        qrels,
        _candidates(place, parts.candidates, parts.corpus, queries, kept, notes) if parts.candidates else None,
        kept,
        parts.split,
        parts.language,
        {name: values for name, values in columns.items() if values},
        tuple(notes),
    )


def _without_exclusions(qrels: Judgments, excluded: dict[str, set[str]], notes: list[str]) -> Judgments:
    """The judgments of documents that may be found; those of grade -100 join `excluded`."""
    for qid, judged in qrels.items():
        marked = {docno for docno, grade in judged.items() if grade == EXCLUDED}
        if marked:
            excluded.setdefault(qid, set()).update(marked)
    n_dropped = 0
    kept: Judgments = {}
    for qid, judged in qrels.items():
        out = excluded.get(qid, set())
        left = {docno: grade for docno, grade in judged.items() if docno not in out}
        n_dropped += sum(docno in out and grade != EXCLUDED for docno, grade in judged.items())
        if left:
            kept[qid] = left
    if n_dropped:
        notes.append(f"{n_dropped:,} judgments are of documents excluded for their query and do not count")
    return kept


def _judged(place: str, queries: Mapping[str, str], qrels: Judgments, notes: list[str]) -> dict[str, str]:
    """The queries that are judged, in the collection's order."""
    judged = {qid: text for qid, text in queries.items() if qid in qrels}
    if not judged:
        theirs, ours = next(iter(qrels), None), next(iter(queries))
        message = (
            f"{place}: none of the {len(qrels):,} judged queries is in the collection (judgments have ids like "
            f"{theirs!r}, queries like {ours!r}); give judgments and queries that belong together"
        )
        raise DataError(message)
    unknown = [qid for qid in qrels if qid not in judged]
    if unknown:
        lost = sum(len(qrels[qid]) for qid in unknown)
        notes.append(f"{lost:,} judgments of {len(unknown):,} queries that the collection lacks are left out")
    if len(judged) < len(queries):
        notes.append(f"{len(queries) - len(judged):,} of {len(queries):,} queries are not judged and left out")
    return judged


def _check_documents(place: str, qrels: Judgments, corpus: TextSource, notes: list[str]) -> None:
    """Notes how many judgments name documents that the corpus lacks; all of them doing so is an error."""
    known = _known(corpus, list(dict.fromkeys(docno for judged in qrels.values() for docno in judged)))
    total = sum(map(len, qrels.values()))
    missing = sum(docno not in known for judged in qrels.values() for docno in judged)
    if missing == total:
        qid, judged = next(iter(qrels.items()))
        theirs, ours = next(iter(judged)), corpus.ids.take(np.zeros(1, dtype=np.int64))[0]
        message = (
            f"{place}: no document of the {total:,} judgments is in the corpus (query {qid!r} judges {theirs!r}, the "
            f"corpus has ids like {ours!r}); give judgments and documents that belong together"
        )
        raise DataError(message)
    if missing:
        notes.append(f"{missing:,} of {total:,} judgments are of documents that the corpus lacks")


def _known(corpus: TextSource, docnos: list[str]) -> set[str]:
    codes = corpus.ids.find(docnos)
    return {docno for docno, code in zip(docnos, codes.tolist(), strict=True) if code >= 0}


def _candidates(
    place: str,
    lists: Ranking,
    corpus: TextSource | None,
    queries: Mapping[str, str],
    excluded: Mapping[str, frozenset[str]],
    notes: list[str],
) -> Ranking:
    """The candidate lists of `queries`, in the corpus's codes, without excluded documents."""
    given = set(lists.qids)
    have = [qid for qid in queries if qid in given]
    if not have:
        raise DataError(f"{place}: the candidate lists are of none of its {len(queries):,} queries")
    if len(have) < len(queries):
        notes.append(f"{len(queries) - len(have):,} of {len(queries):,} queries have no candidates")
    lists = lists.subset(have)
    if corpus is not None:
        try:
            lists = lists.with_source(corpus)
        except DataError as error:
            raise DataError(f"{place}: candidates: {error}") from None
    if excluded:
        out = [excluded.get(qid, frozenset()) for qid in have]
        allowed = [docno not in out[q] for docno, q in zip(lists.docnos(), lists.row_queries().tolist(), strict=True)]
        mask = np.array(allowed, dtype=np.bool_)
        if not mask.all():
            notes.append(f"{int((~mask).sum()):,} excluded documents were taken out of the candidate lists")
            lists = lists.keep(mask)
    return lists
