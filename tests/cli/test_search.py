from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Rerank = Callable[..., Any]


def test_hits_are_shown_by_rank_with_id_and_text(rerank: Rerank, beir: Path) -> None:
    done = rerank("search", "bm25", "directory tree", "--data", beir, "-k", 1)
    rank, _, docno = done.out.splitlines()[0].split()
    assert (done.code, rank, docno) == (0, "1", "shutil.rmtree")
    assert done.out.splitlines()[1].strip() == "shutil.rmtree Delete an entire directory tree."


def test_lines_fit_80_columns_and_mark_a_text_that_goes_on(rerank: Rerank, beir: Path) -> None:
    long = {"_id": "long", "text": "tree " * 200 + "\x1b[31m"}
    (beir / "corpus.jsonl").write_text(json.dumps(long) + "\n", encoding="utf-8")
    done = rerank("search", "bm25", "tree", "--data", beir)
    assert max(map(len, done.out.splitlines())) <= 80
    assert done.out.splitlines()[-1].endswith(" ...")
    assert "\x1b" not in done.out


def test_no_document_is_said(rerank: Rerank, beir: Path) -> None:
    assert rerank("search", "bm25", "zebra", "--data", beir).out == "  no documents\n"


def test_queries_come_from_standard_input_one_a_line(
    rerank: Rerank, beir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("square root\n\n東京 café\n"))
    done = rerank("search", "bm25", "-", "--data", beir, "-k", 1, "--format", "json")
    found = [json.loads(line) for line in done.out.splitlines()]
    assert [(one["query"], one["hits"][0]["docno"]) for one in found] == [
        ("square root", "math.sqrt"),
        ("東京 café", "über.straße"),
    ]
    assert set(found[0]) == {"pipeline", "data", "query", "hits"}
    assert set(found[0]["hits"][0]) == {"rank", "docno", "score", "text"}


def test_several_queries_stand_above_their_hits(rerank: Rerank, beir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("square root\nzebra\n"))
    lines = rerank("search", "bm25", "-", "--data", beir).out.splitlines()
    assert lines[0] == "square root"
    assert lines[-3:] == ["", "zebra", "  no documents"]


def test_no_query_on_standard_input_is_an_error(rerank: Rerank, beir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert rerank("search", "bm25", "-", "--data", beir).code == 2


def test_a_corpus_alone_can_be_searched(rerank: Rerank, beir: Path) -> None:
    done = rerank("search", "bm25", "square root", "--data", beir / "corpus.jsonl", "--format", "json")
    assert json.loads(done.out)["hits"][0]["docno"] == "math.sqrt"
