from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Rerank = Callable[..., Any]


@pytest.fixture
def other(beir: Path) -> Path:
    """A run that differs from the collection's own in the first query only."""
    path = beir / "runs" / "other.trec"
    first = (beir / "runs" / "first.trec").read_text(encoding="utf-8")
    path.write_text(first.replace("json.loads 1 10", "json.loads 1 1"), encoding="utf-8")
    return path


def test_the_queries_that_moved_are_named_with_their_documents(rerank: Rerank, beir: Path, other: Path) -> None:
    done = rerank("compare", beir / "runs" / "first.trec", other, "--data", beir, "--measure", "RR")
    assert done.code == 0
    assert "RR on 3 queries" in done.out
    assert "q1  walk a directory tree" in done.out
    assert "os.walk" in done.out
    assert "q3" not in done.out.partition("moved most")[2]
    assert max(map(len, done.out.splitlines())) <= 80


def test_json_is_one_object(rerank: Rerank, beir: Path, other: Path) -> None:
    done = rerank("compare", beir / "runs" / "first.trec", other, "--data", beir, "--format", "json", "-k", 1)
    found = json.loads(done.out)
    assert [one["query"] for one in found["moved"]] == ["q1"]
    assert found["measure"] == "nDCG@10"


def test_runs_of_one_name_are_told_apart_by_their_paths(rerank: Rerank, beir: Path, other: Path) -> None:
    (beir / "first.trec").write_bytes(other.read_bytes())
    done = rerank("compare", beir / "runs" / "first.trec", beir / "first.trec", "--data", beir, "--format", "json")
    found = json.loads(done.out)
    assert found["baseline"] == str(beir / "runs" / "first.trec")
    assert found["pipeline"] == str(beir / "first.trec")
