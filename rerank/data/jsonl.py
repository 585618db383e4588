"""Documents and queries from JSONL files: one JSON object a line.

    documents   id: `_id`, `id`, `docno` or `doc_id`       text: `text` or `contents`      title (may lack): `title`
    queries     id: `_id`, `id`, `qid` or `query_id`       text: `text` or `query`

Of several such keys the first counts. Ids that are whole numbers become strings, a missing or null title is empty.
Of a query's other keys `excluded_ids` names documents that must not be found, and `type`, `instruction` and `language`
become query columns; the rest is ignored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rerank.data.corpus import Document
from rerank.data.lines import read_json_lines
from rerank.errors import DataError

_DOCUMENT_IDS = ("_id", "id", "docno", "doc_id")
_DOCUMENT_TEXTS = ("text", "contents")
_QUERY_IDS = ("_id", "id", "qid", "query_id")
_QUERY_TEXTS = ("text", "query")
_CARRIED = ("type", "instruction", "language")


class Queries(NamedTuple):
    """The queries of a file, in its order."""

    texts: dict[str, str]
    excluded: dict[str, frozenset[str]]
    """Per query the documents that must not be found; only queries that have some."""
    columns: dict[str, dict[str, Any]]
    """Further values by column and query."""


def read_documents(path: Path) -> Iterator[Document]:
    """The documents of a JSONL file, one by one.

    Raises:
        DataError: a line without id or text, or of which they are no strings; file and line are named.
    """
    for number, record in read_json_lines(path):
        yield document_of(record, f"{path}:{number}")


def document_of(record: Mapping[str, Any], place: str, default_id: str | None = None) -> Document:
    """The document of one JSON object.

    Args:
        record: the object.
        place: where it stands, for messages.
        default_id: what it is called where it has no id; without one that is an error.

    Raises:
        DataError: no text, no id, or of which they are no strings.
    """
    title = record.get("title")
    has_id = default_id is None or any(key in record for key in _DOCUMENT_IDS)
    return Document(
        _id(record, _DOCUMENT_IDS, place) if has_id else str(default_id),
        _string(title, "title", place) if title is not None else "",
        _text(record, _DOCUMENT_TEXTS, place),
    )


def read_queries_jsonl(path: Path) -> Queries:
    """The queries of a JSONL file.

    Raises:
        DataError: a line without id or text, an id that occurs twice, or `excluded_ids` that are no list of ids.
    """
    found = Queries({}, {}, {})
    for number, record in read_json_lines(path):
        place = f"{path}:{number}"
        qid = _id(record, _QUERY_IDS, place)
        if qid in found.texts:
            raise DataError(f"{place}: query id {qid!r} occurs twice; a query has one line")
        found.texts[qid] = _text(record, _QUERY_TEXTS, place)
        excluded = record.get("excluded_ids") or []
        if not isinstance(excluded, list):
            raise DataError(f"{place}: excluded_ids must be a list of document ids, found {excluded!r}")
        if excluded:
            found.excluded[qid] = frozenset(_as_id(docno, "excluded_ids", place) for docno in excluded)
        for name in _CARRIED:
            if record.get(name) is not None:
                found.columns.setdefault(name, {})[qid] = record[name]
    return found


def _id(record: Mapping[str, Any], keys: Sequence[str], place: str) -> str:
    key = _key(record, keys, "id", place)
    return _as_id(record[key], key, place)


def _as_id(value: object, key: str, place: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and value:
        return value
    raise DataError(f"{place}: {key} must be a string that is not empty, found {value!r}")


def _text(record: Mapping[str, Any], keys: Sequence[str], place: str) -> str:
    key = _key(record, keys, "text", place)
    return _string(record[key], key, place)


def _string(value: object, key: str, place: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{place}: {key} must be a string, found {value!r:.60}")
    return value


def _key(record: Mapping[str, Any], keys: Sequence[str], what: str, place: str) -> str:
    for key in keys:
        if key in record:
            return key
    found = ", ".join(record) or "none"
    raise DataError(f"{place}: has no {what}: expected the key {' or '.join(map(repr, keys))}, found the keys {found}")
