"""TREC files, read and written: topics, judgments (qrels) and runs, plain or gzipped.

How equal scores of a run file are put in order is a choice with a name. `trec_eval` is what that program does, whatever
the file's order and rank column say: scores are held as 32-bit floats, and of equal ones the document whose id is
greater (byte by byte) comes first. `file` keeps the order of the lines.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from rerank.artifact import atomic_path
from rerank.data.jsonl import Queries
from rerank.data.lines import read_bytes, read_lines, stem
from rerank.errors import DataError
from rerank.ids import MemoryIds
from rerank.ranking import Ranking, ScoreKind, TextSource, order_rows
from rerank.run import Run

Ties = Literal["trec_eval", "file"]
Judgments = dict[str, dict[str, int]]
Codes = npt.NDArray[np.int64]

EXCLUDED = -100
"""The grade by which judgments say that a document must not be found (BRIGHT's convention)."""

_GRADE_HEADS = frozenset({"score", "grade", "relevance", "rel", "label"})
_ID_HEADS = frozenset({"query-id", "query_id", "qid", "id", "_id"})
_TOPIC = re.compile(r"<top\b[^>]*>(.*?)</top\s*>", re.DOTALL | re.IGNORECASE)
_FIELD = re.compile(r"<(num|title|desc|narr)>(.*?)(?=<|\Z)", re.DOTALL | re.IGNORECASE)
_FIELD_LABEL = re.compile(r"^\s*(number|topic|description|narrative)\s*:", re.IGNORECASE)
_LARGEST = float(np.finfo(np.float32).max)

# -- topics ------------------------------------------------------------


def read_topics(path: Path, field: Literal["title", "desc", "narr"] = "title") -> Queries:
    """The queries of a topics file: TREC's `<top>` blocks, or lines `id<TAB>text`.

    A file whose first character is `<` has blocks, of which `field` is the query; blanks in it become single ones. A
    first line whose id is `qid`, `query-id` or the like is a header.

    Raises:
        DataError: a block without number or `field`, a line without a tab, an id that occurs twice.
    """
    texts: dict[str, str] = {}
    head = next(read_lines(path), (0, ""))[1].lstrip()
    for place, qid, text in _blocks(path, field) if head.startswith("<") else _tabbed(path):
        if qid in texts:
            raise DataError(f"{place}: query id {qid!r} occurs twice")
        texts[qid] = text
    return Queries(texts, {}, {})


def _blocks(path: Path, field: str) -> Iterator[tuple[str, str, str]]:
    text = "\n".join(line for _, line in read_lines(path))
    for position, block in enumerate(_TOPIC.finditer(text), 1):
        place = f"{path}: topic {position}"
        parts = {m[1].lower(): " ".join(_FIELD_LABEL.sub("", m[2]).split()) for m in _FIELD.finditer(block[1])}
        for name in ("num", field):
            if not parts.get(name):
                raise DataError(f"{place} has no <{name}>; it has {', '.join(f'<{n}>' for n in parts) or 'no fields'}")
        yield place, parts["num"], parts[field]


def _tabbed(path: Path) -> Iterator[tuple[str, str, str]]:
    for number, line in read_lines(path):
        qid, tab, text = line.partition("\t")
        if not tab or not qid.strip():
            raise DataError(f"{path}:{number}: expected a query id, a tab and the query, found {line!r:.80}")
        if number > 1 or qid.strip().lower() not in _ID_HEADS:
            yield f"{path}:{number}", qid.strip(), text.strip()


# -- judgments ------------------------------------------------------------


def read_qrels(path: Path) -> Judgments:
    """Grades by query and document, from TREC's four columns (`qid 0 docno grade`) or three (`qid docno grade`).

    The three-column form, which BEIR uses, may have a header whose last name is `score`, `grade`, `relevance`, `rel` or
    `label`. Columns are divided by tabs where a line has tabs, else by blanks. A line that occurs twice counts once.

    Raises:
        DataError: another number of columns, a grade that is no integer, two grades for one document, no judgments.
    """
    grades: Judgments = {}
    columns = 0
    for number, line in read_lines(path):
        parts = _grade_columns(line)
        if not columns:
            columns = len(parts)
            if columns == 3 and parts[2].lower() in _GRADE_HEADS:
                continue
        if len(parts) != columns or columns not in (3, 4):
            wanted = f"{columns} as in the first line" if columns in (3, 4) else "3 or 4"
            message = f"{path}:{number}: has {len(parts)} columns; expected {wanted}: query, (0,) document, grade"
            raise DataError(message)
        qid, docno, grade = parts[0], parts[-2], parts[-1]
        try:
            value = int(grade)
        except ValueError:
            message = f"{path}:{number}: the grade must be an integer, found {grade!r}"
            raise DataError(message) from None
        if not qid or not docno:
            raise DataError(f"{path}:{number}: has an empty {'document' if qid else 'query'} id")
        judged = grades.setdefault(qid, {})
        if judged.setdefault(docno, value) != value:
            message = f"{path}:{number}: query {qid!r} judges document {docno!r} again: {judged[docno]}, then {value}"
            raise DataError(message)
    if not grades:
        raise DataError(f"{path}: holds no judgments")
    return grades


def _grade_columns(line: str) -> list[str]:
    """The columns of a line of judgments; of five or more the inner ones are one document id that holds blanks."""
    if "\t" in line:
        return [part.strip() for part in line.split("\t")]
    parts = line.split()
    if len(parts) > 4 and parts[1] in ("0", "Q0"):
        qid, unused, rest = line.split(None, 2)
        return [qid, unused, *rest.rsplit(None, 1)]
    return parts


def write_qrels(qrels: Mapping[str, Mapping[str, int]], path: Path) -> None:
    """Writes judgments in TREC's form `qid 0 docno grade`, atomically; gzipped where the name ends in `.gz`.

    Raises:
        DataError: an id that is empty or holds white space, which the form cannot carry.
    """
    _check_blanks([*qrels, *(docno for judged in qrels.values() for docno in judged)], path)
    rows = (f"{qid} 0 {docno} {grade}\n" for qid, judged in qrels.items() for docno, grade in judged.items())
    _write(path, "".join(rows))


# -- runs ------------------------------------------------------------


def read_run(path: Path, *, ties: Ties = "trec_eval", source: TextSource | None = None, name: str | None = None) -> Run:
    """The run in a TREC file of six columns: `qid Q0 docno rank score tag`.

    A document id may hold blanks, as BRIGHT's do: it is what stands between the first two and the last three columns.
    The rank column decides nothing. The scores are the ranking's (kind `unknown`); only where `ties="file"` and they
    rise along a list the ranking's scores are ranks, and the file's are in the column `score`.

    Args:
        path: the file, plain or `.gz`.
        ties: what decides between equal scores; see the module's docstring.
        source: where the documents' texts are; without it the ranking knows ids only.
        name: default the file's name without its endings.

    Raises:
        DataError: another number of columns, a score that is no finite number, a document twice for one query (file and
            line are named); documents that `source` lacks.
    """
    data = read_bytes(path)
    queries, query_codes, documents, docs, scores, tag = _rows(path, data)
    if not np.isfinite(scores).all():
        row = int(np.argmin(np.isfinite(scores)))
        raise DataError(f"{path}:{_line(data, row)}: the score must be a finite number, found {scores[row]}")
    twice = second_of_pair(query_codes, docs, len(documents))
    if twice is not None:
        message = (
            f"{path}:{_line(data, twice)}: query {queries[query_codes[twice]]!r} ranks document "
            f"{documents[docs[twice]]!r} a second time; keep one of the two lines"
        )
        raise DataError(message)
    ranking = foreign_ranking(queries, query_codes, documents, docs, scores, ties)
    if source is not None:
        ranking = ranking.with_source(source)
    origin = {"path": str(path), "sha256": hashlib.sha256(data).hexdigest(), "tag": tag}
    return Run(name or stem(path), ranking, {"run_file": origin}, ties=ties)


def foreign_ranking(
    qids: list[str],
    query_codes: Codes,
    docnos: list[str],
    docs: Codes,
    scores: npt.NDArray[np.float64],
    ties: Ties,
) -> Ranking:
    """A ranking from rows in any order, made elsewhere: codes into `qids` and `docnos` [N] and finite scores [N].

    What `ties` does is told in the module's docstring and in `read_run`.
    """
    if (query_codes[1:] < query_codes[:-1]).any():
        rows = np.argsort(query_codes, kind="stable")
        query_codes, docs, scores = query_codes[rows], docs[rows], scores[rows]
    offsets = np.searchsorted(query_codes, np.arange(len(qids) + 1)).astype(np.int64)
    ids = MemoryIds(docnos)
    stored = np.clip(scores, -_LARGEST, _LARGEST).astype(np.float32)
    kind, columns = ScoreKind.UNKNOWN, {}
    if ties == "trec_eval":
        rows = order_rows(stored, offsets, lambda some: -ids.sort_keys(docs[some]))
        docs, stored = docs[rows], stored[rows]
    elif ((stored[1:] > stored[:-1]) & (query_codes[1:] == query_codes[:-1])).any():
        kind, columns = ScoreKind.RANK, {"score": scores}
        sizes = np.diff(offsets)
        stored = (np.repeat(offsets[1:], sizes) - np.arange(len(docs))).astype(np.float32)
    return Ranking(tuple(qids), ("",) * len(qids), offsets, docs, stored, ids, kind, columns=columns)


def second_of_pair(query_codes: Codes, docs: Codes, n_documents: int) -> int | None:
    """The first row that repeats query and document of a row before it; None where all differ."""
    keys = query_codes * n_documents + docs
    ordered = np.sort(keys)
    if not (ordered[1:] == ordered[:-1]).any():
        return None
    rows = np.argsort(keys, kind="stable")
    return int(rows[1:][keys[rows[1:]] == keys[rows[:-1]]].min())


def write_run(run: Run, path: Path, tag: str | None = None, depth: int | None = None) -> None:
    """Writes a TREC run file whose scores give every reader the ranking's row order; atomic, gzipped for `.gz`.

    See `spaced_scores` for what is done to equal scores. Queries without documents leave no line.

    Args:
        run: what to write.
        path: the file.
        tag: the last column; default the run's name with `-` for white space.
        depth: how many documents a query; default all.

    Raises:
        DataError: an id or a tag that is empty or holds white space, which the form cannot carry.
    """
    ranking = run.ranking if depth is None else run.ranking.cut(depth)
    tag = "-".join(run.name.split()) if tag is None else tag
    docnos = ranking.docnos().tolist()
    _check_blanks([tag, *ranking.qids, *dict.fromkeys(docnos)], path)
    scores = spaced_scores(ranking.scores, ranking.offsets).astype(np.float64).tolist()
    ranks = (ranking.positions() + 1).tolist()
    bounds = ranking.offsets.tolist()
    lines: list[str] = []
    for qid, start, stop in zip(ranking.qids, bounds[:-1], bounds[1:], strict=True):
        rows = zip(docnos[start:stop], ranks[start:stop], scores[start:stop], strict=True)
        lines.extend(f"{qid} Q0 {docno} {rank} {score!r} {tag}\n" for docno, rank, score in rows)
    _write(path, "".join(lines))


def spaced_scores(scores: npt.NDArray[np.float32], offsets: Codes) -> npt.NDArray[np.float32]:
    """Scores [N] that fall strictly along every list, each as near below the given one as that allows.

    `scores` must not rise along a list; `offsets` [Q + 1] bound the lists. A score that is not below the one before it
    becomes the next smaller 32-bit float, so that readers in 32 and in 64 bits, whatever they do with ties, see one
    order; denormal floats, which some readers take for 0, are not used. Where a list leaves the range of floats it gets
    the number of documents to its end instead.

    >>> spaced_scores(np.array([2, 1, 1, 1], np.float32), np.array([0, 2, 4])).tolist()
    [2.0, 1.0, 1.0, 0.9999999403953552]
    """
    spaced = scores.copy()
    same = scores[1:] >= scores[:-1]
    inner = np.ones(len(same), dtype=np.bool_)
    inner[offsets[1:-1][(offsets[1:-1] > 0) & (offsets[1:-1] < len(scores))] - 1] = False
    tied = np.flatnonzero(same & inner)
    small = np.flatnonzero((np.abs(scores) < np.finfo(np.float32).tiny) & (scores != 0))
    for query in np.unique(np.searchsorted(offsets, np.concatenate([tied, small]), side="right") - 1).tolist():
        start, stop = int(offsets[query]), int(offsets[query + 1])
        place = np.arange(stop - start)
        # Falling by at least one step a row is: (step number + row number) never rises.
        steps = np.minimum.accumulate(_step_numbers(scores[start:stop]) + place) - place
        spaced[start:stop] = _from_step_numbers(steps) if steps[-1] >= _LOWEST_STEP else len(place) - place
    return spaced


_SMALLEST_NORMAL = 0x00800000
"""The bits of the smallest normal 32-bit float."""
_LOWEST_STEP = -(0x7F7FFFFF - _SMALLEST_NORMAL + 1)
"""The step number of the lowest finite one."""


def _step_numbers(scores: npt.NDArray[np.float32]) -> Codes:
    """Consecutive integers for consecutive normal floats, 0 for zero and the denormal ones."""
    magnitude = np.maximum(np.abs(scores).view(np.int32).astype(np.int64) - _SMALLEST_NORMAL + 1, 0)
    return np.where(scores < 0, -magnitude, magnitude).astype(np.int64)


def _from_step_numbers(steps: Codes) -> npt.NDArray[np.float32]:
    bits = np.where(steps == 0, 0, np.abs(steps) + _SMALLEST_NORMAL - 1).astype(np.int32)
    return np.copysign(bits.view(np.float32), steps.astype(np.float32))


class _Codes(dict[bytes, int]):
    """Numbers for values, given in the order in which they are first asked for."""

    def __missing__(self, value: bytes) -> int:
        self[value] = code = len(self)
        return code

    def names(self, path: Path) -> list[str]:
        """The values, decoded."""
        try:
            return [value.decode("utf-8") for value in self]
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}: holds an id that is not UTF-8 ({error.reason}); save the file as UTF-8"
            ) from error


def _rows(path: Path, data: bytes) -> tuple[list[str], Codes, list[str], Codes, npt.NDArray[np.float64], str]:
    """Query ids and each row's place in them, document ids likewise, scores, and the last tag."""
    qids, docnos = _Codes(), _Codes()
    query_codes: list[int] = []
    docs: list[int] = []
    scores: list[float] = []
    tag = b""
    for number, line in enumerate(io.BytesIO(data), 1):
        try:
            qid, _, docno, _, score, tag = line.split()
            scores.append(float(score))
        except ValueError:
            if not line.split():
                continue
            try:
                # A document id that holds blanks: what stands between the first two columns and the last three.
                qid, _, rest = line.split(None, 2)
                docno, rank, score, tag = rest.rsplit(None, 3)
                int(rank)
                scores.append(float(score))
            except ValueError:
                raise DataError(f"{path}:{number}: {_row_error(line)}") from None
        query_codes.append(qids[qid])
        docs.append(docnos[docno])
    if not scores:
        raise DataError(f"{path}: holds no rows; a run has 6 columns: qid Q0 docno rank score tag")
    return (
        qids.names(path),
        np.array(query_codes, dtype=np.int64),
        docnos.names(path),
        np.array(docs, dtype=np.int64),
        np.array(scores),
        tag.decode("utf-8", "replace"),
    )


def _row_error(line: bytes) -> str:
    parts = line.decode("utf-8", "replace").split()
    if len(parts) == 6:
        return f"the score must be a number, found {parts[4]!r}"
    return f"has {len(parts)} columns; a run has 6: qid Q0 docno rank score tag"


def _line(data: bytes, row: int) -> int:
    """The number of the line that holds row `row`."""
    filled = (number for number, line in enumerate(io.BytesIO(data), 1) if line.split())
    return next(number for place, number in enumerate(filled) if place == row)


def _check_blanks(values: list[str], path: Path) -> None:
    for value in values:
        if value.split() != [value]:
            what = "is empty" if not value else "holds white space"
            message = f"{path}: {value!r} {what}, which TREC's form cannot carry; rename it, or write Parquet instead"
            raise DataError(message)


def _write(path: Path, text: str) -> None:
    raw = text.encode("utf-8")
    with atomic_path(path) as part:
        # No time stamp in the header: equal content gives equal bytes.
        part.write_bytes(gzip.compress(raw, mtime=0) if path.suffix == ".gz" else raw)
