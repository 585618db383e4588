"""A small collection in a folder, and the command line called in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from rerank.cli import main

DOCUMENTS = {
    "os.walk": "Walk a directory tree and yield the names of its files.",
    "shutil.rmtree": "Delete an entire directory tree.",
    "json.loads": "Read a JSON document from a text.",
    "csv.reader": "Read the rows of a file of comma separated values.",
    "math.sqrt": "The square root of a number.",
    "über.straße": "Größe, 東京 and naïve café.",
}
QUERIES = {"q1": "walk a directory tree", "q2": "read a file of values", "q3": "square root"}
QRELS = {"q1": {"os.walk": 2, "shutil.rmtree": 1}, "q2": {"csv.reader": 2}, "q3": {"math.sqrt": 1}}
CANDIDATES = {"q1": ["json.loads", "os.walk"], "q2": ["csv.reader", "json.loads"], "q3": ["math.sqrt"]}


@dataclass(frozen=True)
class Called:
    """What a command left."""

    code: int
    out: str
    err: str


@pytest.fixture
def rerank(capfd: pytest.CaptureFixture[str]) -> Callable[..., Called]:
    """Calls the command line with the given arguments."""

    def call(*arguments: object) -> Called:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        return Called(code, *capfd.readouterr())

    return call


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    """A collection in BEIR's layout: six documents, three judged queries, one candidate run."""
    folder = tmp_path / "tiny"
    write_beir(folder)
    return folder


def write_beir(folder: Path) -> None:
    (folder / "qrels").mkdir(parents=True)
    (folder / "runs").mkdir()
    documents = [{"_id": docno, "title": docno, "text": text} for docno, text in DOCUMENTS.items()]
    _write_lines(folder / "corpus.jsonl", [json.dumps(document, ensure_ascii=False) for document in documents])
    _write_lines(folder / "queries.jsonl", [json.dumps({"_id": q, "text": text}) for q, text in QUERIES.items()])
    judgments = [f"{q}\t{d}\t{grade}" for q, judged in QRELS.items() for d, grade in judged.items()]
    _write_lines(folder / "qrels" / "test.tsv", ["query-id\tcorpus-id\tscore", *judgments])
    write_run(folder / "runs" / "first.trec", CANDIDATES)


def write_run(path: Path, lists: dict[str, list[str]]) -> Path:
    rows = [f"{q} Q0 {d} {i + 1} {10 - i} first" for q, docs in lists.items() for i, d in enumerate(docs)]
    _write_lines(path, rows)
    return path


def _write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
