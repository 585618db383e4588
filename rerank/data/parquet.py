"""Runs as Parquet files: one row a document with qid, docno, rank (from 1), score and the ranking's columns.

What is no row (query texts, provenance, statistics) is JSON in the schema's metadata, so a file that was written here
is read back equal; other programs see an ordinary table.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rerank.artifact import atomic_path
from rerank.data.columns import column_from_json, column_to_json
from rerank.data.lines import unreadable
from rerank.data.trec import Codes, Ties, foreign_ranking, second_of_pair
from rerank.errors import DataError
from rerank.extras import need
from rerank.ids import MemoryIds
from rerank.ranking import FloatArray, Ranking, ScoreKind, TextSource
from rerank.run import Run, StageStats

_METADATA = b"rerank"


def write_parquet(run: Run, path: Path) -> None:
    """Writes `run` as a Parquet file, atomically.

    A column of the ranking whose name is taken (`score`) gets a `_` behind it in the table.

    Raises:
        DataError: a row column that holds neither numbers nor text.
        MissingExtraError: pyarrow is not installed.
    """
    arrow = need("pyarrow", "parquet", "writing Parquet")
    parquet = need("pyarrow.parquet", "parquet", "writing Parquet")
    ranking = run.ranking
    qids = np.array(ranking.qids, dtype=object)[ranking.row_queries()]
    table: dict[str, Any] = {
        "qid": arrow.array(qids, arrow.string()),
        "docno": arrow.array(ranking.docnos(), arrow.string()),
        "rank": arrow.array(ranking.positions() + 1),
        "score": arrow.array(ranking.scores),
    }
    columns: dict[str, dict[str, str]] = {}
    for name, column in ranking.columns.items():
        text = column.dtype == object and all(value is None or isinstance(value, str) for value in column.tolist())
        if not text and (column.dtype.kind not in "biuf" or column.ndim != 1):
            message = f"column {name!r} holds neither numbers nor text, which Parquet could carry; save the run instead"
            raise DataError(message)
        called = name
        while called in table:
            called += "_"
        table[called] = arrow.array(column, arrow.string() if text else None)
        columns[name] = {"column": called, "dtype": column.dtype.str}
    record = {
        "name": run.name,
        "ties": run.ties,
        "kind": str(ranking.kind),
        "queries": dict(zip(ranking.qids, ranking.queries, strict=True)),
        "columns": columns,
        "query_columns": {name: column_to_json(name, column) for name, column in ranking.query_columns.items()},
        "provenance": dict(run.provenance),
        "stats": [dataclasses.asdict(stat) for stat in run.stats],
    }
    metadata = {_METADATA: json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass")}
    with atomic_path(path) as part:
        parquet.write_table(arrow.table(table).replace_schema_metadata(metadata), part)


def read_parquet(
    path: Path, *, ties: Ties = "trec_eval", source: TextSource | None = None, name: str | None = None
) -> Run:
    """The run in a Parquet file with the columns qid, docno and score.

    A file that `write_parquet` wrote gives the run it was made of, row order included; in any other one `ties` decides
    between equal scores, as in `rerank.data.trec`.

    Raises:
        DataError: no such file, no Parquet, a column that is missing, a score that is no finite number, a document
            twice for one query.
        MissingExtraError: pyarrow is not installed.
    """
    table = _table(path)
    metadata = table.schema.metadata or {}
    record = _record(path, metadata[_METADATA]) if _METADATA in metadata else None
    qids = {qid: place for place, qid in enumerate(record["queries"] if record else {})}
    docnos: dict[str, int] = {}
    query_codes = _codes(path, "qid", table, qids)
    docs = _codes(path, "docno", table, docnos)
    scores = _scores(path, table)
    twice = second_of_pair(query_codes, docs, len(docnos))
    if twice is not None:
        where = f"query {list(qids)[query_codes[twice]]!r} ranks document {list(docnos)[docs[twice]]!r}"
        raise DataError(f"{path}: row {twice + 1}: {where} a second time; keep one of the two rows")
    if record is None:
        if not qids:
            raise DataError(f"{path}: holds no rows")
        ranking = foreign_ranking(list(qids), query_codes, list(docnos), docs, scores, ties)
        run = Run(name or path.stem, ranking, {"run_file": {"path": str(path)}}, ties=ties)
    else:
        run = _own_run(path, record, table, query_codes, MemoryIds(list(docnos)), docs, scores)
    return run if source is None else dataclasses.replace(run, ranking=run.ranking.with_source(source))


def _table(path: Path) -> Any:
    arrow = need("pyarrow", "parquet", "reading Parquet")
    parquet = need("pyarrow.parquet", "parquet", "reading Parquet")
    try:
        table = parquet.read_table(path)
    except (OSError, arrow.ArrowException) as error:
        raise unreadable(path, error) from error
    missing = [column for column in ("qid", "docno", "score") if column not in table.column_names]
    if missing:
        raise DataError(f"{path}: has no column {missing[0]!r}; it has {', '.join(table.column_names)}")
    return table


def _record(path: Path, raw: bytes) -> dict[str, Any]:
    """What `write_parquet` wrote into the metadata."""
    try:
        record = json.loads(raw)
    except ValueError:
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("queries"), dict):
        raise DataError(f"{path}: the metadata that rerank wrote into its schema is damaged; write the file again")
    return record


def _codes(path: Path, name: str, table: Any, codes: dict[str, int]) -> npt.NDArray[np.int64]:
    """[N] each row's place in `codes`, which grows by the ids that it lacks."""
    values = table[name].to_pylist()
    if not set(map(type, values)) <= {str, int} or "" in values:
        odd = next(value for value in values if type(value) not in (str, int) or value == "")
        raise DataError(f"{path}: the column {name!r} must hold ids, found {odd!r}")
    return np.array([codes.setdefault(str(value), len(codes)) for value in values], dtype=np.int64)


def _scores(path: Path, table: Any) -> npt.NDArray[np.float64]:
    try:
        scores = np.asarray(table["score"].to_numpy(), dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: the column 'score' must hold numbers ({error})") from error
    if not np.isfinite(scores).all():
        row = int(np.argmin(np.isfinite(scores)))
        raise DataError(f"{path}: row {row + 1}: the score must be a finite number, found {scores[row]}")
    return scores


def _own_run(
    path: Path, record: dict[str, Any], table: Any, query_codes: Codes, ids: MemoryIds, docs: Codes, scores: FloatArray
) -> Run:
    """The run that `write_parquet` wrote."""
    try:
        n_queries = len(record["queries"])
        if (query_codes >= n_queries).any() or (query_codes[1:] < query_codes[:-1]).any():
            raise DataError("other rows than were written")
        ranking = Ranking(
            tuple(record["queries"]),
            tuple(record["queries"].values()),
            np.searchsorted(query_codes, np.arange(n_queries + 1)).astype(np.int64),
            docs,
            scores.astype(np.float32),
            ids,
            ScoreKind(record["kind"]),
            columns={
                name: np.asarray(table[said["column"]].to_numpy(), dtype=np.dtype(said["dtype"]))
                for name, said in record["columns"].items()
            },
            query_columns={name: column_from_json(said) for name, said in record["query_columns"].items()},
        )
        stats = tuple(StageStats(**stat) for stat in record["stats"])
        return Run(record["name"], ranking, record["provenance"], stats, record["ties"])
    except (ValueError, KeyError, TypeError) as error:
        message = f"{path}: is not the run that its metadata tells of ({error}); write it again, or drop the metadata"
        raise DataError(message) from error
