"""The frame that flows through a pipeline: queries, and for each an ordered list of documents.

A `Ranking` is columnar and immutable.  Documents are integer codes into an id table; the rows of a query are
contiguous, and **the order of rows is the rank**.  Scores never increase along it.  The order is decided in float64,
ties by document id, before scores are stored as float32: so two documents whose stored scores are equal still have
the order that their true scores had.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, overload

import numpy as np
import numpy.typing as npt

from rerank.errors import DataError, RankingError, nearest
from rerank.ids import IdTable, IntArray, MemoryIds, ObjectArray, common_table

if TYPE_CHECKING:
    import pandas

FloatArray = npt.NDArray[np.floating[Any]]
Column = npt.NDArray[Any]

CONDENSED = "condensed"
"""The row column of what documents were condensed to: spans of a text, from and to which character, or None for all."""


class ScoreKind(StrEnum):
    """What the numbers of a ranking mean; only equal, normalised kinds may be added."""

    NONE = "none"
    """No documents yet, or a list that came without scores."""
    BM25 = "bm25"
    DOT = "dot"
    COSINE = "cosine"
    MAXSIM = "maxsim"
    """The sum of the largest dot products of a query's vectors with a document's."""
    LOGIT = "logit"
    PROBABILITY = "probability"
    RANK = "rank"
    """The number of documents from here to the end of the list: only the order means something."""
    RRF = "rrf"
    MINMAX = "minmax"
    ZSCORE = "zscore"
    SUM = "sum"
    """A weighted sum of normalised scores."""
    UNKNOWN = "unknown"
    """From a file that does not say."""


class TextSource(Protocol):
    """Where the text of documents is looked up, by code, by the stage that reads it."""

    @property
    def ids(self) -> IdTable:
        """The id table whose codes `texts` takes."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 of ids and texts."""
        ...

    @property
    def language(self) -> str:
        """ISO 639-1 code of the texts' language."""
        ...

    def texts(self, codes: IntArray) -> list[str]:
        """The text (title and body joined by a blank) of each code."""
        ...


class Hit(NamedTuple):
    """One document of one query's list."""

    docno: str
    score: float
    rank: int
    """1 for the first document."""
    text: str | None
    """The document's text where the ranking knows a text source."""


class Hits(Sequence[Hit]):
    """One query's documents, best first: a view that looks up ids and texts when asked."""

    def __init__(self, ranking: Ranking, position: int) -> None:
        self._ranking = ranking
        self._start = int(ranking.offsets[position])
        self._stop = int(ranking.offsets[position + 1])
        self.qid: str = ranking.qids[position]
        self.query: str = ranking.queries[position]

    def __len__(self) -> int:
        return self._stop - self._start

    @overload
    def __getitem__(self, index: int) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> list[Hit]: ...
    def __getitem__(self, index: int | slice) -> Hit | list[Hit]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            message = f"hit {index} of a list of {len(self)}"
            raise IndexError(message)
        row = self._start + index % len(self)
        ranking = self._ranking
        code = ranking.docs[row : row + 1]
        text = ranking.texts(slice(row, row + 1))[0] if ranking.source is not None else None
        return Hit(str(ranking.ids.take(code)[0]), float(ranking.scores[row]), index % len(self) + 1, text)

    @property
    def docnos(self) -> list[str]:
        """The document ids, best first."""
        return [str(d) for d in self._ranking.ids.take(self._ranking.docs[self._start : self._stop])]

    def __repr__(self) -> str:
        shown = ", ".join(f"{hit.docno} {hit.score:.4g}" for hit in self[:5])
        return f"Hits({self.qid!r}, {len(self)} documents: {shown}{', ...' if len(self) > 5 else ''})"

    def _repr_html_(self) -> str:
        return _table_html(f"{self.qid}: {self.query}", self[:10], len(self))


@dataclass(frozen=True, eq=False)
class Ranking:
    """Queries with ordered documents.

    Make one with `Ranking.of` (from dicts), `Ranking.start` (queries only) or `with_documents` (arrays in any order).

    >>> ranking = Ranking.of({"q1": {"d1": 0.2, "d2": 0.9}}, queries={"q1": "what is a tie?"})
    >>> ranking["q1"].docnos
    ['d2', 'd1']
    >>> ranking.cut(1)["q1"][0].score
    0.8999999761581421

    Raises:
        RankingError: where an invariant does not hold (see the module's docstring).
    """

    qids: tuple[str, ...]
    """[Q] distinct query ids."""
    queries: tuple[str, ...]
    """[Q] query texts as the next stage should read them."""
    offsets: npt.NDArray[np.int64]
    """[Q + 1] rows of query i are offsets[i] .. offsets[i + 1]."""
    docs: npt.NDArray[np.integer[Any]]
    """[N] codes into `ids`."""
    scores: npt.NDArray[np.float32]
    """[N] never increasing within a query, finite."""
    ids: IdTable
    """The document ids behind the codes."""
    kind: ScoreKind = ScoreKind.NONE
    source: TextSource | None = None
    """Where documents' texts are; its id table is `ids` unless documents came from elsewhere too."""
    columns: Mapping[str, Column] = field(default_factory=dict)
    """[N] named values per row, e.g. the raw scores of a stage that gave ranks."""
    query_columns: Mapping[str, Column] = field(default_factory=dict)
    """[Q] named values per query: `original_query`, `excluded`, `terms`, `language`, ..."""

    def __post_init__(self) -> None:
        n_queries, n_rows = len(self.qids), len(self.docs)
        if len(set(self.qids)) != n_queries:
            message = f"query id {_first_twice(self.qids)!r} occurs more than once; a query has one list"
            raise RankingError(message)
        if len(self.queries) != n_queries:
            message = f"{len(self.queries)} query texts for {n_queries} query ids"
            raise RankingError(message)
        offsets = self.offsets
        if len(offsets) != n_queries + 1 or offsets[0] != 0 or offsets[-1] != n_rows or np.any(np.diff(offsets) < 0):
            message = f"offsets must rise from 0 to {n_rows} in {n_queries + 1} steps"
            raise RankingError(message)
        if len(self.scores) != n_rows:
            message = f"{len(self.scores)} scores for {n_rows} documents"
            raise RankingError(message)
        if n_rows:
            self._check_rows()
        for name, column in self.columns.items():
            if len(column) != n_rows:
                message = f"column {name!r} has {len(column)} values for {n_rows} rows"
                raise RankingError(message)
        for name, column in self.query_columns.items():
            if len(column) != n_queries:
                message = f"query column {name!r} has {len(column)} values for {n_queries} queries"
                raise RankingError(message)

    def _check_rows(self) -> None:
        if not np.isfinite(self.scores).all():
            row = int(np.flatnonzero(~np.isfinite(self.scores))[0])
            raise RankingError(self._where(row, f"has the score {self.scores[row]}; scores must be finite numbers"))
        if int(self.docs.min()) < 0 or int(self.docs.max()) >= len(self.ids):
            message = f"document codes must lie in 0 .. {len(self.ids) - 1}"
            raise RankingError(message)
        rises = self.scores[1:] > self.scores[:-1]
        rises[self.offsets[1:-1][(self.offsets[1:-1] > 0) & (self.offsets[1:-1] < len(self.docs))] - 1] = False
        if rises.any():
            row = int(np.flatnonzero(rises)[0]) + 1
            raise RankingError(self._where(row, "has a higher score than the document before it; use with_documents"))
        self._check_distinct()

    def _check_distinct(self) -> None:
        """No document twice in a query: one sort of (query, code) keys."""
        keys = self.row_queries() * len(self.ids) + self.docs
        keys.sort()
        if (keys[1:] == keys[:-1]).any():
            key = int(keys[:-1][keys[1:] == keys[:-1]][0])
            position, code = divmod(key, len(self.ids))
            docno = self.ids.take(np.array([code]))[0]
            message = f"query {self.qids[position]!r}: document {docno!r} occurs more than once in its list"
            raise RankingError(message)

    def _where(self, row: int, what: str) -> str:
        position = int(np.searchsorted(self.offsets, row, side="right")) - 1
        return f"query {self.qids[position]!r}: document {self.ids.take(self.docs[row : row + 1])[0]!r} {what}"

    # -- making one ------------------------------------------------------------

    @classmethod
    def start(
        cls,
        queries: Mapping[str, str],
        source: TextSource | None = None,
        query_columns: Mapping[str, Column] | None = None,
    ) -> Ranking:
        """Queries without documents: what a first stage takes."""
        return cls(
            tuple(queries),
            tuple(queries.values()),
            np.zeros(len(queries) + 1, dtype=np.int64),
            np.empty(0, dtype=np.int64),
            np.empty(0, dtype=np.float32),
            source.ids if source is not None else MemoryIds([]),
            source=source,
            query_columns=query_columns or {},
        )

    @classmethod
    def of(
        cls,
        lists: Mapping[str, Mapping[str, float]],
        queries: Mapping[str, str] | None = None,
        kind: ScoreKind = ScoreKind.UNKNOWN,
        source: TextSource | None = None,
    ) -> Ranking:
        """A ranking from `{qid: {docno: score}}`; ids that `source` lacks are an error."""
        if source is None:
            ids: IdTable = MemoryIds(list(dict.fromkeys(docno for hits in lists.values() for docno in hits)))
        else:
            ids = source.ids
        docnos = [docno for hits in lists.values() for docno in hits]
        docs = ids.find(docnos)
        if (docs < 0).any():
            message = f"document {docnos[int(np.argmin(docs))]!r} is not in the given text source"
            raise DataError(message)
        offsets = np.zeros(len(lists) + 1, dtype=np.int64)
        np.cumsum([len(hits) for hits in lists.values()], out=offsets[1:])
        scores = np.array([score for hits in lists.values() for score in hits.values()], dtype=np.float64)
        texts = {qid: (queries or {}).get(qid, "") for qid in lists}
        return cls.start(texts, source).with_documents(offsets, docs, scores, kind, ids)

    def with_documents(
        self,
        offsets: npt.NDArray[np.int64],
        docs: IntArray,
        scores: FloatArray,
        kind: ScoreKind,
        ids: IdTable | None = None,
        columns: Mapping[str, Column] | None = None,
    ) -> Ranking:
        """The same queries with new lists, given in any order within a query; ties go by document id."""
        table = self.ids if ids is None else ids
        rows = order_rows(scores, offsets, lambda some: table.sort_keys(docs[some]))
        return replace(
            self,
            offsets=offsets,
            docs=docs[rows],
            scores=_stored(scores)[rows],
            ids=table,
            kind=kind,
            columns={name: column[rows] for name, column in (columns or {}).items()},
        )

    # -- verbs ------------------------------------------------------------

    def cut(self, k: int) -> Ranking:
        """The first `k` documents of every query."""
        sizes = np.diff(self.offsets)
        if not (sizes > k).any():
            return self
        sizes = np.minimum(sizes, k)
        offsets = np.zeros_like(self.offsets)
        np.cumsum(sizes, out=offsets[1:])
        return self._rows(np.repeat(self.offsets[:-1] - offsets[:-1], sizes) + np.arange(offsets[-1]), offsets)

    def keep(self, mask: npt.NDArray[np.bool_]) -> Ranking:
        """The rows where `mask` [N] is true, in their order."""
        if mask.all():
            return self
        kept = np.zeros(len(mask) + 1, dtype=np.int64)
        np.cumsum(mask, out=kept[1:])
        return self._rows(np.flatnonzero(mask), kept[self.offsets])

    def _rows(self, rows: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]) -> Ranking:
        return self._trusted(
            offsets=offsets,
            docs=self.docs[rows],
            scores=self.scores[rows],
            columns={name: column[rows] for name, column in self.columns.items()},
        )

    def rescored(self, scores: FloatArray, kind: ScoreKind, columns: Mapping[str, Column] | None = None) -> Ranking:
        """The same documents under new scores [N] (any float type), put in their order; ties go by document id.

        `columns` [N] are added, given in the present row order.
        """
        if len(scores) != len(self.docs):
            message = f"{len(scores)} scores for {len(self.docs)} documents"
            raise RankingError(message)
        if not np.isfinite(scores).all():
            row = int(np.flatnonzero(~np.isfinite(scores))[0])
            raise RankingError(self._where(row, f"got the score {scores[row]}; scores must be finite numbers"))
        rows = order_rows(scores, self.offsets, lambda some: self.ids.sort_keys(self.docs[some]))
        merged = {**self.columns, **(columns or {})}
        return self._trusted(
            docs=self.docs[rows],
            scores=_stored(scores)[rows],
            kind=kind,
            columns={name: column[rows] for name, column in merged.items()},
        )

    def ranked(self) -> Ranking:
        """The same order with `rank` scores: the number of documents from each row to the end of its list."""
        sizes = np.diff(self.offsets)
        scores = (np.repeat(sizes, sizes) - self.positions()).astype(np.float32)
        return self._trusted(scores=scores, kind=ScoreKind.RANK)

    def with_queries(self, queries: Sequence[str]) -> Ranking:
        """New query texts; the text before the first change stays in the query column `original_query`."""
        columns = dict(self.query_columns)
        columns.setdefault("original_query", np.array(self.queries, dtype=object))
        return replace(self, queries=tuple(queries), query_columns=columns)

    def with_query_column(self, name: str, values: Column) -> Ranking:
        """One more (or one replaced) query column [Q]."""
        return replace(self, query_columns={**self.query_columns, name: values})

    def with_column(self, name: str, values: Column) -> Ranking:
        """One more (or one replaced) row column [N]."""
        return replace(self, columns={**self.columns, name: values})

    def with_source(self, source: TextSource) -> Ranking:
        """The same ranking in the codes of `source`.

        Raises:
            DataError: documents that `source` lacks; their number and one of them are named.
        """
        if self.ids is source.ids or self.ids.fingerprint == source.ids.fingerprint:
            return replace(self, source=source, ids=source.ids)
        docnos = self.ids.take(self.docs).tolist()
        docs = source.ids.find(docnos)
        if (docs < 0).any():
            missing = int((docs < 0).sum())
            message = (
                f"{missing:,} of {len(docs):,} ranked documents are not in the corpus, "
                f"e.g. {docnos[int(np.argmin(docs))]!r}; give the corpus that the run was made on"
            )
            raise DataError(message)
        return replace(self, source=source, ids=source.ids, docs=docs)

    def subset(self, qids: Sequence[str]) -> Ranking:
        """The queries `qids`, in that order."""
        where = {qid: i for i, qid in enumerate(self.qids)}
        unknown = [qid for qid in qids if qid not in where]
        if unknown:
            message = f"query {unknown[0]!r} is not in the ranking{nearest(unknown[0], self.qids)}"
            raise DataError(message)
        positions = np.array([where[qid] for qid in qids], dtype=np.int64)
        sizes = np.diff(self.offsets)[positions]
        offsets = np.zeros(len(positions) + 1, dtype=np.int64)
        np.cumsum(sizes, out=offsets[1:])
        rows = np.repeat(self.offsets[positions] - offsets[:-1], sizes) + np.arange(offsets[-1])
        return replace(
            self,
            qids=tuple(qids),
            queries=tuple(self.queries[i] for i in positions),
            offsets=offsets,
            docs=self.docs[rows],
            scores=self.scores[rows],
            columns={name: column[rows] for name, column in self.columns.items()},
            query_columns={name: column[positions] for name, column in self.query_columns.items()},
        )

    def _trusted(self, **changes: Any) -> Ranking:
        """A copy with rows that are known to keep the invariants: nothing is checked again."""
        copy = object.__new__(Ranking)
        copy.__dict__.update(self.__dict__)
        copy.__dict__.update(changes)
        return copy

    # -- reading ------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.qids)

    def __iter__(self) -> Iterator[Hits]:
        return (Hits(self, position) for position in range(len(self.qids)))

    def __contains__(self, qid: object) -> bool:
        return qid in self.qids

    def __getitem__(self, qid: str) -> Hits:
        if qid not in self.qids:
            message = f"query {qid!r} is not in the ranking{nearest(qid, self.qids)}"
            raise KeyError(message)
        return Hits(self, self.qids.index(qid))

    def __eq__(self, other: object) -> bool:
        """Same queries, same documents in the same order, same scores (whatever the codes)."""
        if not isinstance(other, Ranking):
            return NotImplemented
        return (
            self.qids == other.qids
            and self.queries == other.queries
            and self.kind == other.kind
            and np.array_equal(self.offsets, other.offsets)
            and np.array_equal(self.scores, other.scores)
            and np.array_equal(self.docnos(), other.docnos())
        )

    __hash__ = None  # type: ignore[assignment]

    def docnos(self) -> ObjectArray:
        """[N] document ids, row by row."""
        return self.ids.take(self.docs)

    def positions(self) -> npt.NDArray[np.int64]:
        """[N] each row's place in its list, from 0."""
        sizes = np.diff(self.offsets)
        return np.arange(len(self.docs)) - np.repeat(self.offsets[:-1], sizes)

    def row_queries(self) -> npt.NDArray[np.int64]:
        """[N] each row's query as a position in `qids`."""
        return np.repeat(np.arange(len(self.qids)), np.diff(self.offsets))

    def texts(self, rows: IntArray | slice = slice(None)) -> list[str]:
        """The texts of the documents in `rows`, or what they were condensed to.

        Raises:
            DataError: the ranking has no text source, or one that lacks a document.
        """
        if self.source is None:
            message = "the ranking knows no document texts; give a data set with a corpus"
            raise DataError(message)
        codes = self.docs[rows]
        if self.ids is not self.source.ids and self.ids.fingerprint != self.source.ids.fingerprint:
            docnos = self.ids.take(codes).tolist()
            codes = self.source.ids.find(docnos)
            if (codes < 0).any():
                message = f"document {docnos[int(np.argmin(codes))]!r} is not in the corpus that the texts come from"
                raise DataError(message)
        texts = self.source.texts(codes)
        if CONDENSED not in self.columns:
            return texts
        return [condensed(text, spans) for text, spans in zip(texts, self.columns[CONDENSED][rows], strict=True)]

    def text_keys(self) -> npt.NDArray[np.int64]:
        """[N] numbers that are equal for rows with one text: documents' codes, or rows where texts were condensed."""
        codes: npt.NDArray[np.int64] = np.asarray(self.docs, dtype=np.int64)
        return np.arange(len(codes)) if CONDENSED in self.columns else codes

    def to_dict(self) -> dict[str, dict[str, float]]:
        """`{qid: {docno: score}}` in rank order."""
        docnos, scores = self.docnos().tolist(), self.scores.tolist()
        bounds = self.offsets.tolist()
        return {
            qid: dict(zip(docnos[a:b], scores[a:b], strict=True))
            for qid, a, b in zip(self.qids, bounds[:-1], bounds[1:], strict=True)
        }

    def to_frame(self) -> pandas.DataFrame:
        """A pandas frame as PyTerrier has it: qid, query, docno, score, rank (from 0), and the named columns."""
        from rerank.extras import need

        frame = need("pandas", "pandas", "Ranking.to_frame")
        row = self.row_queries()
        table: pandas.DataFrame = frame.DataFrame(
            {
                "qid": np.array(self.qids, dtype=object)[row],
                "query": np.array(self.queries, dtype=object)[row],
                "docno": self.docnos(),
                "score": self.scores.astype(np.float64),
                "rank": self.positions(),
                **{name: column[row] for name, column in self.query_columns.items() if name != "excluded"},
                **self.columns,
            }
        )
        return table

    @classmethod
    def from_frame(
        cls, frame: pandas.DataFrame, kind: ScoreKind = ScoreKind.UNKNOWN, source: TextSource | None = None
    ) -> Ranking:
        """A ranking from a frame with the columns qid, docno, score and perhaps query (PyTerrier's names)."""
        for name in ("qid", "docno", "score"):
            if name not in frame.columns:
                message = f"the frame has no column {name!r}; it has {', '.join(map(str, frame.columns))}"
                raise DataError(message)
        texts = dict(zip(frame["qid"], frame["query"], strict=True)) if "query" in frame.columns else {}
        lists: dict[str, dict[str, float]] = {}
        for qid, docno, score in zip(frame["qid"], frame["docno"], frame["score"], strict=True):
            hits = lists.setdefault(str(qid), {})
            if str(docno) in hits:
                message = f"query {qid!r}: document {docno!r} occurs more than once in the frame"
                raise RankingError(message)
            hits[str(docno)] = float(score)
        return cls.of(lists, {str(qid): str(text) for qid, text in texts.items()}, kind, source)

    def __repr__(self) -> str:
        return f"Ranking({len(self.qids):,} queries, {len(self.docs):,} rows, {self.kind} scores)"

    def _repr_html_(self) -> str:
        shown = "".join(_table_html(f"{h.qid}: {h.query}", h[:5], len(h)) for h in list(self)[:3])
        more = f"<p>... {len(self) - 3:,} more queries</p>" if len(self) > 3 else ""
        return f"<p>{html.escape(repr(self))}</p>{shown}{more}"


def condensed(text: str, spans: Sequence[tuple[int, int]] | None) -> str:
    """The parts of a text in a row, a blank between; all of it without spans.

    >>> condensed("Wings lift. They stall. Flaps help.", ((0, 11), (24, 35)))
    'Wings lift. Flaps help.'
    """
    return text if spans is None else " ".join(text[start:stop] for start, stop in spans)


def order_rows(scores: FloatArray, offsets: npt.NDArray[np.int64], tie_keys: TieKeys) -> npt.NDArray[np.int64]:
    """[N] row numbers that put every query's rows in order: score falling, ties by `tie_keys(rows)` rising.

    Comparison is in the input's own precision.  Lists that are in order already cost one pass.
    """
    n_rows = len(scores)
    rows = np.arange(n_rows, dtype=np.int64)
    if n_rows < 2:
        return rows
    sizes = np.diff(offsets)
    starts = offsets[:-1]
    inner = np.ones(n_rows - 1, dtype=bool)
    inner[starts[(starts > 0) & (starts < n_rows)] - 1] = False
    if (inner & (scores[1:] >= scores[:-1])).any():
        if (sizes == sizes[0]).all():
            local = np.argsort(-scores.reshape(len(sizes), sizes[0]), axis=1)
            rows = (local + starts[:, None]).reshape(-1)
        else:
            for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
                rows[start:stop] = start + np.argsort(-scores[start:stop])
        ordered = scores[rows]
        tied = inner & (ordered[1:] == ordered[:-1])
        if tied.any():
            # Rows of equal scores stand together: only they are put in order, run by run.
            run = np.zeros(n_rows, dtype=np.int64)
            np.cumsum(~tied, out=run[1:])
            within = np.zeros(n_rows, dtype=bool)
            within[1:] |= tied
            within[:-1] |= tied
            some = rows[within]
            rows[within] = some[np.lexsort((tie_keys(some), run[within]))]
    return rows


class TieKeys(Protocol):
    """Gives integers that sort as the ids of the documents in `rows` do."""

    def __call__(self, rows: npt.NDArray[np.int64], /) -> npt.NDArray[np.int64]: ...


def merge_tables(rankings: Sequence[Ranking]) -> list[Ranking]:
    """The same rankings over one id table, remapped only where tables differ."""
    table, maps = common_table([ranking.ids for ranking in rankings])
    return [
        ranking if codes is None else replace(ranking, ids=table, docs=codes[ranking.docs])
        for ranking, codes in zip(rankings, maps, strict=True)
    ]


def _stored(scores: FloatArray) -> npt.NDArray[np.float32]:
    """Scores as float32; a finite number too large for it is held at its largest value."""
    if scores.dtype == np.float32:
        return scores.astype(np.float32, copy=False)
    limit = np.finfo(np.float32).max
    return np.where(np.isfinite(scores), np.clip(scores, -limit, limit), scores).astype(np.float32)


def _first_twice(values: Sequence[str]) -> str:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    raise ValueError("all distinct")


def _table_html(caption: str, hits: Sequence[Hit], total: int) -> str:
    rows = "".join(
        f"<tr><td>{hit.rank}</td><td>{html.escape(hit.docno)}</td><td>{hit.score:.4f}</td>"
        f"<td style='text-align:left'>{html.escape((hit.text or '')[:160])}</td></tr>"
        for hit in hits
    )
    more = f"<tr><td colspan=4>... {total - len(hits):,} more</td></tr>" if total > len(hits) else ""
    head = "<tr><th>rank</th><th>docno</th><th>score</th><th style='text-align:left'>text</th></tr>"
    return f"<table><caption>{html.escape(caption)}</caption>{head}{rows}{more}</table>"
