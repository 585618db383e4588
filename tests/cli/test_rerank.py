"""`rerank rerank`: documents from files and standard input, printed for people and for programs."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from rerank.cli import main

LINES = "first line\n\nsecond 東京 line \x1b[31m\nthird line\n"


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    path = tmp_path / "first-two.yaml"
    path.write_text("stages: [{cut: 2}]", encoding="utf-8")
    return path


def test_a_line_is_a_document_known_by_its_number(rerank, pipeline, tmp_path):
    (tmp_path / "docs.txt").write_text(LINES, encoding="utf-8")
    called = rerank("rerank", "--pipeline", pipeline, "--query", "q", tmp_path / "docs.txt")
    assert (called.code, called.err) == (0, "")
    assert called.out.splitlines() == [
        "  1     3.0000  1",
        "     first line",
        "  2     2.0000  3",
        "     second 東京 line [31m",
    ]


def test_json_lines_have_ids_and_titles(rerank, pipeline, tmp_path):
    docs = [{"id": "a", "title": "T", "text": "one"}, {"text": "two"}, {"_id": 3, "text": "three"}]
    (tmp_path / "docs.jsonl").write_text("\n".join(map(json.dumps, docs)), encoding="utf-8")
    called = rerank("rerank", "--pipeline", pipeline, "-q", "q", "--json", tmp_path / "docs.jsonl")
    assert [json.loads(line) for line in called.out.splitlines()] == [
        {"rank": 1, "id": "a", "score": 3.0, "text": "T one"},
        {"rank": 2, "id": "2", "score": 2.0, "text": "two"},
    ]
    again = rerank("rerank", "--pipeline", pipeline, "-q", "q", "--format", "json", "-k", 1, tmp_path / "docs.jsonl")
    assert again.out == called.out.splitlines(keepends=True)[0]


def test_standard_input_is_a_file_too(rerank, pipeline, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(LINES.encode())))
    called = rerank("rerank", "--pipeline", pipeline, "-q", "q", "-")
    assert called.out.count("line") == 2
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert rerank("rerank", "--pipeline", pipeline, "-q", "q", "-").out == "  no documents\n"


def test_a_first_line_that_only_looks_like_json_is_a_text(rerank, pipeline, tmp_path):
    (tmp_path / "docs.txt").write_text("{ not json\n[1]\n", encoding="utf-8")
    called = rerank("rerank", "--pipeline", pipeline, "-q", "q", tmp_path / "docs.txt")
    assert "{ not json" in called.out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\nplain', "docs:2: not JSON"),
        (b'{"text": "a"}\n{"id": "b"}', "docs:2: has no text"),
        (b"good\n\xff", "docs:2: not UTF-8"),
    ],
)
def test_a_bad_line_is_named(rerank, pipeline, tmp_path, content, message):
    (tmp_path / "docs").write_bytes(content)
    called = rerank("rerank", "--pipeline", pipeline, "-q", "q", tmp_path / "docs")
    assert called.code == 2
    assert message in called.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "needs --model NAME_OR_PATH, or --pipeline"),
        (["--model", "minilm", "--pipeline", "bm25"], "needs --model NAME_OR_PATH, or --pipeline"),
        (["--model", "minilm"], "no model is named 'minilm'; did you mean 'minilm-l6'"),
        (["--pipeline", "bm25"], "cannot rerank given documents"),
        (["--pipeline", "bm25", "--rule", "setwise"], "says its rule and prompt itself"),
    ],
)
def test_what_cannot_rerank_costs_a_line(rerank, tmp_path, arguments, message):
    (tmp_path / "docs").write_text("a", encoding="utf-8")
    called = rerank("rerank", "-q", "q", *arguments, tmp_path / "docs")
    assert called.code == 2
    assert message in called.err
    assert called.err.count("\n") == 1


@pytest.mark.needs("torch", "transformers")
@pytest.mark.filterwarnings("ignore")
def test_a_model_folder_says_by_itself_how_it_reranks(tmp_path, capfd):
    from tiny_scorers import write_classifier

    model = write_classifier(tmp_path / "model", "bert")
    (tmp_path / "docs").write_text("a wing makes lift\na star\n", encoding="utf-8")
    arguments = ["-v", "rerank", "-m", str(model), "-q", "lift", "--json", "--device", "cpu", "--no-cache"]
    assert main([*arguments, str(tmp_path / "docs")]) == 0
    captured = capfd.readouterr()
    assert sorted(json.loads(line)["id"] for line in captured.out.splitlines()) == ["1", "2"]
    assert "Rerank(engine=CrossEncoderEngine(model=" in captured.err
