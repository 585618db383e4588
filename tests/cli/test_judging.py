"""Judging in the terminal: a blind pool, grades written one by one, going on where one stopped, agreement of two."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rerank.data.trec import read_qrels

HEADER = "query-id\tcorpus-id\tscore\n"


@pytest.fixture
def pool(rerank: Callable, beir: Path, tmp_path: Path) -> Path:
    out = tmp_path / "pool.jsonl"
    assert rerank("data", "pool", "bm25", "--data", beir, "--out", out, "--depth", 3).code == 0
    return out


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Types the given keys at the prompts."""

    def typed(*answers: str) -> None:
        left: Iterator[str] = iter(answers)
        monkeypatch.setattr("typer.prompt", lambda *_, **__: next(left))

    return typed


def test_a_pool_holds_what_is_not_judged_yet(pool: Path) -> None:
    pooled = {entry["query-id"]: entry["documents"] for entry in map(json.loads, pool.read_text().splitlines())}
    assert "os.walk" not in pooled.get("q1", [])
    assert "json.loads" in pooled["q2"]


def test_grades_are_written_as_they_are_given_and_the_same_command_goes_on(
    rerank: Callable, beir: Path, pool: Path, tmp_path: Path, keys: Callable
) -> None:
    out = tmp_path / "mine.tsv"
    n = sum(len(json.loads(line)["documents"]) for line in pool.read_text().splitlines())
    assert n >= 2
    keys("1", "q")
    first = rerank("data", "judge", pool, "--data", beir, "--out", out)
    assert first.code == 0
    assert out.read_text().startswith(HEADER)
    assert sum(map(len, read_qrels(out).values())) == 1
    keys(*["0"] * (n - 1))
    second = rerank("data", "judge", pool, "--data", beir, "--out", out)
    assert f"{n - 1} of {n} documents are left to judge" in second.out
    assert sum(map(len, read_qrels(out).values())) == n
    assert "0 of" in rerank("data", "judge", pool, "--data", beir, "--out", out).out


def test_a_grade_can_be_taken_back_and_a_document_skipped(
    rerank: Callable, beir: Path, pool: Path, tmp_path: Path, keys: Callable
) -> None:
    out = tmp_path / "mine.tsv"
    keys("2", "u", "0", "s", "what", "m", "q")
    rerank("data", "judge", pool, "--data", beir, "--out", out)
    assert [grade for judged in read_qrels(out).values() for grade in judged.values()] == [0]


def test_agreement_of_two_judges_is_told(rerank: Callable, tmp_path: Path) -> None:
    first, second = tmp_path / "a.tsv", tmp_path / "b.tsv"
    first.write_text(HEADER + "q\ta\t2\nq\tb\t0\nq\tc\t1\nq\td\t0\n", encoding="utf-8")
    second.write_text(HEADER + "q\ta\t2\nq\tb\t0\nq\tc\t0\n", encoding="utf-8")
    called = rerank("data", "agreement", first, second)
    assert called.code == 0
    assert "3 documents judged by both: 66.7% equal grades" in called.out
    assert "share no query-document pair" in rerank("data", "agreement", first, write(tmp_path, "z\ta\t1\n")).err


def write(tmp_path: Path, lines: str) -> Path:
    path = tmp_path / "c.tsv"
    path.write_text(HEADER + lines, encoding="utf-8")
    return path


def test_the_second_judges_share_of_the_embedded_collection_is_the_stated_one() -> None:
    from rerank.data.pool import agreement, judged_twice
    from rerank.resources import shipped

    first, second = (read_qrels(shipped(f"data/stdlib/qrels-{which}.tsv")) for which in ("first", "second"))
    assert set(first) == set(second)
    assert all(judged_twice(qid) for qid in second)
    found = agreement(first, second)
    assert found.pairs == 798
    assert found.kappa == pytest.approx(0.888, abs=5e-4)


def test_a_file_that_is_no_pool_is_told_with_its_line(rerank: Callable, beir: Path, tmp_path: Path) -> None:
    path = tmp_path / "pool.jsonl"
    path.write_text('{"qid": "q1"}\n', encoding="utf-8")
    called = rerank("data", "judge", path, "--data", beir, "--out", tmp_path / "x.tsv")
    assert called.code == 2
    assert "pool.jsonl:1: expected 'query-id' and 'documents'" in called.err
