from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rerank.engines.cache import RequestCache, request_key

Rerank = Callable[..., Any]


@pytest.fixture
def cache(own_home: Path) -> RequestCache:
    """A cache with 3,000 answers in the place where the command line looks."""
    cache = RequestCache(own_home / "requests")
    cache.put({request_key("model", "pairs", str(i)): b"1234" for i in range(3000)})
    return cache


def test_an_empty_cache_is_shown(rerank: Rerank, own_home: Path) -> None:
    called = rerank("cache", "show")
    assert called.code == 0
    assert called.out.splitlines()[0] == "0 answers"
    assert str(own_home / "requests") in called.out


def test_what_is_kept_is_shown(rerank: Rerank, cache: RequestCache) -> None:
    called = rerank("cache", "show")
    assert called.out.startswith("3,000 answers, the oldest of ")
    facts = json.loads(rerank("cache", "show", "--format", "json").out)
    assert (facts["answers"], facts["max_bytes"]) == (3000, cache.max_bytes)
    assert facts["files"] == [str(cache.folder / "answers.sqlite")]
    assert facts["bytes"] > 3000 * 50


def test_pruning_removes_answers_and_gives_room_back(rerank: Rerank, cache: RequestCache) -> None:
    before = cache.contents().n_bytes
    assert rerank("cache", "prune").out.startswith("0 answers removed; 3,000 are left")
    facts = json.loads(rerank("cache", "prune", "--megabytes", "0", "--format", "json").out)
    assert (facts["removed"], facts["answers"]) == (3000, 0)
    assert facts["bytes"] < before / 4


def test_what_was_used_today_is_not_unused(rerank: Rerank, cache: RequestCache) -> None:
    assert rerank("cache", "prune", "--unused-days", "1").out.startswith("0 answers removed")


def test_a_damaged_cache_says_what_to_do(rerank: Rerank, own_home: Path) -> None:
    path = own_home / "requests" / "answers.sqlite"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a database" * 100)
    called = rerank("cache", "show")
    assert called.code == 2
    assert "is damaged" in called.err
    assert "delete the file" in called.err
