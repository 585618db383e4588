"""JSONL documents and queries, and the lines under them."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from rerank.data.corpus import Document
from rerank.data.jsonl import read_documents, read_queries_jsonl
from rerank.data.lines import read_lines
from rerank.errors import DataError


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_lines_are_numbered_blank_ones_skipped_and_only_newlines_end_them(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\ufeffone\u2028still one\n\n  \nfour\r\nfive")
    assert list(read_lines(path)) == [(1, "one\u2028still one"), (4, "four"), (5, "five")]


@pytest.mark.parametrize("key", ["_id", "id", "docno", "doc_id"])
@pytest.mark.parametrize("text", ["text", "contents"])
def test_documents_are_read_under_each_usual_key(tmp_path: Path, key: str, text: str) -> None:
    path = write(
        tmp_path / "c.jsonl", f'{{"{key}": "d1", "{text}": "körper", "title": "t"}}\n{{"{key}": 2, "{text}": ""}}\n'
    )
    assert list(read_documents(path)) == [Document("d1", "t", "körper"), Document("2", "", "")]


def test_gzipped_documents_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"_id": "d1", "title": null, "text": "a"}\n'))
    assert list(read_documents(path)) == [Document("d1", "", "a")]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            '{"name": "x", "text": "a"}',
            "has no id: expected the key '_id' or 'id' or 'docno' or 'doc_id', found the keys name, text",
        ),
        ('{"id": "x", "body": "a"}', "has no text: expected the key 'text' or 'contents', found the keys id, body"),
        ('{"id": "", "text": "a"}', "id must be a string that is not empty, found ''"),
        ('{"id": 1.5, "text": "a"}', "id must be a string that is not empty, found 1.5"),
        ('{"id": true, "text": "a"}', "id must be a string that is not empty, found True"),
        ('{"id": "x", "text": ["a"]}', "text must be a string, found ['a']"),
        ('{"id": "x", "text": "a"', "not JSON"),
        ('["x"]', "holds a JSON list; each line must be one JSON object"),
    ],
)
def test_a_bad_document_is_named_by_file_and_line(tmp_path: Path, line: str, expected: str) -> None:
    path = write(tmp_path / "c.jsonl", '{"id": "ok", "text": "a"}\n\n' + line + "\n")
    with pytest.raises(DataError) as caught:
        list(read_documents(path))
    assert str(caught.value).startswith(f"{path}:3: ")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_not_utf8_are_named_by_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(b'{"id": "a", "text": "b"}\n{"id": "c", "text": "\xe9"}\n')
    with pytest.raises(DataError, match=r"c\.jsonl:2: not UTF-8"):
        list(read_documents(path))


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-12], lambda raw: b"plain", lambda raw: raw[:20] + b"\xff" * 10 + raw[30:]]
)
def test_damaged_gzip_is_one_data_error(tmp_path: Path, damage: object) -> None:
    path = tmp_path / "c.jsonl.gz"
    path.write_bytes(damage(gzip.compress(b'{"id": "a", "text": "b"}\n' * 50)))  # type: ignore[operator]
    with pytest.raises(DataError, match=r"c\.jsonl\.gz: cannot be read"):
        list(read_documents(path))


def test_queries_carry_exclusions_and_the_columns_worth_having(tmp_path: Path) -> None:
    path = write(
        tmp_path / "q.jsonl",
        '{"_id": 7, "text": "a", "type": "how-to", "metadata": {"x": 1}, "excluded_ids": ["d1", 2]}\n'
        '{"qid": "q2", "query": "b", "excluded_ids": []}\n',
    )
    queries = read_queries_jsonl(path)
    assert queries.texts == {"7": "a", "q2": "b"}
    assert queries.excluded == {"7": frozenset({"d1", "2"})}
    assert queries.columns == {"type": {"7": "how-to"}}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"id": "q1", "text": "again"}', "query id 'q1' occurs twice"),
        ('{"id": "q2", "text": "a", "excluded_ids": "d1"}', "excluded_ids must be a list of document ids, found 'd1'"),
        ('{"id": "q2", "text": "a", "excluded_ids": [null]}', "excluded_ids must be a string"),
    ],
)
def test_a_bad_query_is_named_by_file_and_line(tmp_path: Path, line: str, expected: str) -> None:
    path = write(tmp_path / "q.jsonl", '{"id": "q1", "text": "a"}\n' + line + "\n")
    with pytest.raises(DataError, match=expected) as caught:
        read_queries_jsonl(path)
    assert str(caught.value).startswith(f"{path}:2: ")
