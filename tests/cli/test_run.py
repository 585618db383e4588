from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Rerank = Callable[..., Any]


def test_without_a_place_to_write_the_first_lists_are_shown(rerank: Rerank, beir: Path) -> None:
    done = rerank("run", "bm25", "--data", beir)
    assert done.code == 0
    assert done.out.startswith("bm25: 3 queries, ")
    assert "q1: walk a directory tree" in done.out
    assert "os.walk" in done.out


def test_a_trec_file_holds_every_list(rerank: Rerank, beir: Path) -> None:
    done = rerank("run", "bm25", "--data", beir, "--out", beir / "mine.trec", "--depth", 1)
    rows = [line.split() for line in (beir / "mine.trec").read_text(encoding="utf-8").splitlines()]
    assert (done.code, done.out) == (0, "")
    assert [(row[0], row[2], row[3]) for row in rows] == [
        ("q1", "os.walk", "1"),
        ("q2", "csv.reader", "1"),
        ("q3", "math.sqrt", "1"),
    ]


@pytest.mark.parametrize("name", ["again", "again.parquet", "again.trec.gz"])
def test_every_form_can_be_evaluated(rerank: Rerank, beir: Path, name: str) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow", reason="Parquet needs the extra [parquet]")
    assert rerank("run", "bm25", "--data", beir, "--out", beir / name).code == 0
    arguments = ["evaluate", "bm25", "--run", beir / name, "--data", beir, "--measures", "nDCG@10 NumRet"]
    first, second = json.loads(rerank(*arguments, "--format", "json").out)["results"]
    # A TREC file is called by its name; the others keep the run's own, which the pipeline beside them has too.
    assert second["pipeline"] == ("again" if ".trec" in name else str(beir / name))
    assert first["measures"] == second["measures"]


def test_a_run_folder_is_replaced_by_a_later_run(rerank: Rerank, beir: Path) -> None:
    for depth in (3, 1):
        assert rerank("run", "bm25", "--data", beir, "--out", beir / "again", "--depth", depth).code == 0
    done = rerank("evaluate", "--run", beir / "again", "--data", beir, "--measures", "NumRet", "--format", "json")
    assert json.loads(done.out)["results"][0]["measures"]["NumRet"] == 1.0


def test_candidates_that_come_with_the_data_are_reranked(rerank: Rerank, beir: Path) -> None:
    (beir / "p.yaml").write_text("stages: [cut: 1]\n", encoding="utf-8")
    done = rerank("run", beir / "p.yaml", "--data", beir, "--candidates", "first", "--out", beir / "mine.trec")
    rows = [line.split() for line in (beir / "mine.trec").read_text(encoding="utf-8").splitlines()]
    assert (done.code, [row[2] for row in rows]) == (0, ["json.loads", "csv.reader", "math.sqrt"])


def test_the_cache_folder_can_be_named(rerank: Rerank, beir: Path, tmp_path: Path) -> None:
    assert rerank("run", "bm25", "--data", beir, "--home", tmp_path / "elsewhere").code == 0
    assert list((tmp_path / "elsewhere" / "indexes").glob("bm25-*"))
    assert not (tmp_path / "home").exists()


def test_verbose_says_what_is_done_and_silence_is_the_default(
    rerank: Rerank, beir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["evaluate", "bm25", "--data", beir]
    assert rerank(*arguments).err == ""
    assert "info: bm25 on tiny (test): running" in rerank("-v", *arguments).err


def test_a_traceback_is_shown_on_demand(rerank: Rerank, beir: Path) -> None:
    with pytest.raises(LookupError, match="bm52"):
        rerank("--traceback", "run", "bm52", "--data", beir)


def test_a_dry_run_says_what_would_be_asked_and_asks_nothing(rerank: Rerank, beir: Path, tmp_path: Path) -> None:
    path = tmp_path / "server.yaml"
    engine = '{openai: {model: m, url: "http://localhost:1/v1", price: {input: 1.0, output: 1.0}}}'
    path.write_text(f"stages: [bm25, {{rerank: {{engine: {engine}, prompt: yes-no, k: 2}}}}]", encoding="utf-8")
    called = rerank("run", path, "--data", beir, "--dry-run")
    assert called.code == 0
    assert "server: a dry run, nothing was asked of a model" in called.out
    assert "  calls         5 in 1 wave" in called.out
    assert "  price         0.0" in called.out
