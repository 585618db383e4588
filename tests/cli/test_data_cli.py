"""`rerank data`: list, show, verify."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rerank.cli.data import app
from rerank.data.load import load_corpus
from rerank.errors import CorruptArtifactError, DataError

runner = CliRunner()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "corpus.jsonl").write_text(
        '{"_id": "d1", "text": "white\\u001b[31m dwarfs"}\n{"_id": "d2", "text": "black holes"}\n', encoding="utf-8"
    )
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "stars", "type": "keyword"}\n', encoding="utf-8")
    (folder / "qrels.tsv").write_text("q1\td2\t0\nq1\td1\t2\nq1\tx\t2\n", encoding="utf-8")
    return folder


def output(*arguments: str) -> str:
    result = runner.invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_list_names_the_embedded_collection_and_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path / "irds"))
    lines = output("list").splitlines()
    assert lines[0].split() == ["stdlib", "embedded"]
    listed = json.loads(output("list", "--format", "json"))["datasets"]
    assert len(listed) == len(lines)
    assert {"name": "vaswani", "origin": "ir_datasets"} in listed


def test_show_counts_and_shows_a_query_with_its_best_document(folder: Path) -> None:
    assert output("show", str(folder)).splitlines() == [
        "toy, split test, language en",
        "queries    1",
        "documents  2",
        "judgments  3 (1 of grade 0, 2 of grade 2)",
        "excluded   0",
        "note       1 of 3 judgments are of documents that the corpus lacks",
        "query      q1: stars",
        "document   d1 (grade 2 for that query): white [31m dwarfs",
    ]


def test_show_gives_one_json_object(folder: Path) -> None:
    facts = json.loads(output("show", str(folder), "--format", "json"))
    assert facts["judgments"] == {"0": 1, "2": 2}
    assert facts["query"] == {"qid": "q1", "text": "stars", "type": "keyword"}
    assert facts["document"]["docno"] == "d1"


def test_verify_says_what_was_checked(folder: Path) -> None:
    assert output("verify", str(folder)).splitlines()[-1] == "sound"
    facts = json.loads(output("verify", str(folder), "--format", "json"))
    assert facts["sound"] is True
    assert facts["corpus_bytes"] > 0


def test_verify_finds_a_changed_byte_far_inside_the_stored_corpus(folder: Path) -> None:
    with (folder / "corpus.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"_id": "d3", "text": "a" * 10_000}) + "\n")
    stored = load_corpus(folder).folder / "bodies.bin"
    raw = bytearray(stored.read_bytes())
    raw[-1] ^= 1
    stored.write_bytes(raw)
    with pytest.raises(CorruptArtifactError, match=r"bodies\.bin: its bytes differ"):
        runner.invoke(app, ["verify", str(folder)], catch_exceptions=False)


def test_an_unknown_split_is_a_data_error(folder: Path) -> None:
    with pytest.raises(DataError, match="has no split 'tset'; it has test; did you mean 'test'"):
        runner.invoke(app, ["show", str(folder), "--split", "tset"], catch_exceptions=False)
