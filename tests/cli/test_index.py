from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

Rerank = Callable[..., Any]


def test_an_index_is_built_once_and_found_again(rerank: Rerank, beir: Path, own_home: Path) -> None:
    first = rerank("index", "build", "bm25", "--data", beir)
    (folder,) = (own_home / "indexes").glob("bm25-*")
    assert (first.code, str(folder) in first.out) == (0, True)
    second = rerank("index", "build", "bm25", "--data", beir)
    assert second.out == f"nothing to build: bm25 has all its indexes for {beir}\n"


def test_list_shows_what_the_cache_folder_holds(rerank: Rerank, beir: Path, own_home: Path) -> None:
    assert rerank("index", "list").err == f"0 artifacts, 0.0 MB in {own_home}\n"
    rerank("index", "build", "bm25", "--data", beir)
    done = rerank("index", "list")
    assert [line.split()[:3] for line in done.out.splitlines()] == [
        ["bm25-index", "6", "documents"],
        ["corpus", "6", "documents"],
    ]


def test_list_passes_over_a_damaged_artifact_with_a_warning(rerank: Rerank, beir: Path, own_home: Path) -> None:
    rerank("index", "build", "bm25", "--data", beir)
    (manifest,) = own_home.glob("indexes/*/manifest.json")
    manifest.write_text("{", encoding="utf-8")
    done = rerank("index", "list")
    assert (done.code, len(done.out.splitlines())) == (0, 1)
    assert str(manifest) in done.err


def test_show_tells_how_an_index_was_made(rerank: Rerank, beir: Path) -> None:
    rerank("index", "build", "bm25", "--data", beir, "--out", beir / "mine")
    done = rerank("index", "show", beir / "mine")
    assert done.out.startswith("kind: bm25-index\n")
    assert "k1: 0.9" in done.out


def test_verify_reads_every_byte(rerank: Rerank, beir: Path) -> None:
    rerank("index", "build", "bm25", "--data", beir, "--out", beir / "mine")
    done = rerank("index", "verify", beir / "mine")
    assert (done.code, done.out.endswith("all as written\n")) == (0, True)


def test_an_index_of_its_own_is_for_bm25_alone(rerank: Rerank, beir: Path) -> None:
    done = rerank("index", "build", "hybrid", "--data", beir, "--out", beir / "mine")
    assert done.code == 2
    assert "hybrid has bm25, dense" in done.err
