"""Bad input is answered with one line that says where and what to do, and the exit code 2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Rerank = Callable[..., Any]

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
FILES = {
    "unknown stage": ("stages:\n- bm52\n", ["p.yaml:2: stages[0]", "'bm52'", "did you mean 'bm25'?"]),
    "unknown option": ("stages:\n- bm25:\n    kk: 5\n", ["p.yaml:3: stages[0].bm25.kk", "did you mean 'k'?"]),
    "wrong type": (
        "stages:\n- bm25:\n    k: many\n",
        ["p.yaml:3: stages[0].bm25.k", "expected an integer", "'many' (str)"],
    ),
    "number as text": ("stages:\n- bm25: {k: '5'}\n", ["p.yaml:2: stages[0].bm25.k", "expected an integer"]),
    "value out of range": ("stages:\n- bm25: {k: 0}\n", ["p.yaml:2: stages[0].bm25", "at least 1"]),
    "stages that do not fit": ("stages:\n- original_query\n", ["p.yaml:", "original_query", "needs", "rewrite"]),
    "unlike scores added": (
        "stages:\n- sum: {of: [bm25, {normalise: minmax}], weights: [1.0, 1.0]}\n",
        ["p.yaml:2", "bm25", "no common scale", "minmax"],
    ),
    "no stages": ("name: x\n", ["p.yaml:1", "'stages'"]),
    "duplicate key": ("stages: [bm25]\nstages: [bm25]\n", ["p.yaml:2", "'stages'", "twice"]),
    "bomb": (BOMB + "stages: [*i]\n", ["p.yaml:", "expands to more than"]),
    "python tag": ("stages:\n- !!python/object/apply:os.system [ls]\n", ["p.yaml:2", "tag", "plain values"]),
    "broken YAML": ("stages: [bm25\n", ["p.yaml:", "not valid YAML"]),
    "path that escapes": ("stages:\n- candidates: ../../run.trec\n", ["p.yaml:2", "leaves the file's folder"]),
    "not UTF-8": (b"stages: [\xff]\n", ["p.yaml", "UTF-8"]),
}


def one_line(done: Any) -> str:
    """The message of a command that failed as bad input should."""
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    return done.err


@pytest.mark.parametrize("text, told", FILES.values(), ids=FILES)
@pytest.mark.parametrize("verb", ["check", "run"])
def test_a_bad_pipeline_file_is_told_with_its_place(
    rerank: Rerank, tmp_path: Path, verb: str, text: str | bytes, told: list[str]
) -> None:
    path = tmp_path / "p.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    line = one_line(rerank(verb, path))
    assert [part for part in told if part not in line] == []


def test_check_goes_on_after_a_bad_file(rerank: Rerank, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("stages: [bm52]\n", encoding="utf-8")
    done = rerank("check", bad, "bm25", bad)
    assert (done.code, done.err.count("error: "), "bm25.yaml: OK" in done.out) == (2, 2, True)


def test_a_missing_file_is_told(rerank: Rerank, tmp_path: Path) -> None:
    assert "nowhere.yaml: no such file" in one_line(rerank("check", tmp_path / "nowhere.yaml"))


def test_an_unknown_pipeline_is_answered_with_the_nearest(rerank: Rerank) -> None:
    assert "did you mean 'hybrid'?" in one_line(rerank("run", "hybird"))


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["run", "bm25", "--dta", "x"], "--data"),
        (["rnu", "bm25"], "'run'"),
        (["run"], "PIPELINE"),
        (["run", "bm25", "--depth", "0"], "--depth"),
        (["evaluate", "bm25", "--format", "xml"], "--format"),
        (["evaluate", "bm25", "--test", "anova"], "--test"),
        (["search", "bm25", "x", "--threads", "many"], "--threads"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_misused_command_is_one_line_that_points_to_its_help(rerank: Rerank, arguments: list[str], told: str) -> None:
    line = one_line(rerank(*arguments))
    assert told in line
    assert "--help)" in line


def test_an_unknown_data_set_is_answered_with_the_nearest(rerank: Rerank, beir: Path) -> None:
    assert "did you mean" in one_line(rerank("run", "bm25", "--data", beir.parent / "tyni"))


def test_an_unknown_split_is_told(rerank: Rerank, beir: Path) -> None:
    assert "'dve'" in one_line(rerank("run", "bm25", "--data", beir, "--split", "dve"))


def test_an_empty_corpus_is_told(rerank: Rerank, beir: Path) -> None:
    (beir / "corpus.jsonl").write_text("", encoding="utf-8")
    assert "no documents" in one_line(rerank("run", "bm25", "--data", beir))


def test_a_document_id_that_occurs_twice_is_told(rerank: Rerank, beir: Path) -> None:
    path = beir / "corpus.jsonl"
    path.write_text(path.read_text(encoding="utf-8") * 2, encoding="utf-8")
    line = one_line(rerank("run", "bm25", "--data", beir))
    assert "occurs twice (documents 4 and 10)" in line


def test_judgments_of_unknown_documents_only_are_told(rerank: Rerank, beir: Path) -> None:
    (beir / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\tnone\t1\n", encoding="utf-8")
    assert "'none'" in one_line(rerank("evaluate", "bm25", "--data", beir))


def test_a_run_with_a_score_that_is_no_number_is_told_with_its_line(rerank: Rerank, beir: Path) -> None:
    path = beir / "nan.trec"
    path.write_text("q1 Q0 os.walk 1 2.0 x\nq1 Q0 json.loads 2 nan x\n", encoding="utf-8")
    line = one_line(rerank("evaluate", "--run", path, "--data", beir))
    assert "nan.trec:2" in line


def test_a_document_twice_in_a_run_is_told_with_its_line(rerank: Rerank, beir: Path) -> None:
    path = beir / "twice.trec"
    path.write_text("q1 Q0 os.walk 1 2.0 x\nq1 Q0 os.walk 2 1.0 x\n", encoding="utf-8")
    assert "twice.trec:2" in one_line(rerank("evaluate", "--run", path, "--data", beir))


def test_an_unknown_measure_is_answered_with_the_nearest_before_anything_runs(rerank: Rerank, beir: Path) -> None:
    line = one_line(rerank("evaluate", "bm25", "--data", beir, "--measures", "nDGC@10"))
    assert "did you mean 'nDCG'?" in line


def test_an_unknown_baseline_is_answered_with_the_nearest(rerank: Rerank, beir: Path) -> None:
    line = one_line(rerank("evaluate", "bm25", "--data", beir, "--baseline", "bm52"))
    assert "did you mean 'bm25'?" in line


def test_nothing_to_evaluate_is_told(rerank: Rerank, beir: Path) -> None:
    assert "at least one pipeline or run" in one_line(rerank("evaluate", "--data", beir))


def test_a_reranker_without_candidates_cannot_search(rerank: Rerank, beir: Path) -> None:
    path = beir / "p.yaml"
    path.write_text("stages: [cut: 3]\n", encoding="utf-8")
    assert "candidates" in one_line(rerank("search", path, "tree", "--data", beir))


@pytest.mark.needs("faiss")
def test_a_missing_model_is_told(rerank: Rerank, beir: Path) -> None:
    path = beir / "p.yaml"
    path.write_text("stages:\n- dense: {model: /nowhere/model}\n", encoding="utf-8")
    assert "/nowhere/model" in one_line(rerank("run", path, "--data", beir))


def test_a_folder_that_is_no_artifact_is_not_replaced(rerank: Rerank, beir: Path) -> None:
    for arguments in (["run", "bm25"], ["index", "build", "bm25"]):
        line = one_line(rerank(*arguments, "--data", beir, "--out", beir))
        assert "no artifact" in line
    assert (beir / "corpus.jsonl").is_file()


# -- indexes ------------------------------------------------------------


@pytest.fixture
def index(rerank: Rerank, beir: Path) -> Path:
    """A BM25 index beside a pipeline file `p.yaml` that names it."""
    assert rerank("index", "build", "bm25", "--data", beir, "--out", beir / "index").code == 0
    (beir / "p.yaml").write_text("stages:\n- bm25: {index: index}\n", encoding="utf-8")
    return beir / "index"


def largest(folder: Path) -> Path:
    return max(
        (path for path in folder.iterdir() if path.name != "manifest.json"), key=lambda path: path.stat().st_size
    )


def search(rerank: Rerank, index: Path) -> Any:
    return rerank("search", index.parent / "p.yaml", "directory tree", "--data", index.parent)


def test_an_index_of_its_own_is_searched(rerank: Rerank, index: Path) -> None:
    done = search(rerank, index)
    assert (done.code, "os.walk" in done.out) == (0, True)


def test_an_index_cut_short_is_told(rerank: Rerank, index: Path) -> None:
    path = largest(index)
    path.write_bytes(path.read_bytes()[:-1])
    assert path.name in one_line(search(rerank, index))


def test_an_index_with_a_changed_head_is_told(rerank: Rerank, index: Path) -> None:
    path = largest(index)
    path.write_bytes(b"x" + path.read_bytes()[1:])
    assert path.name in one_line(search(rerank, index))


def test_a_half_written_index_is_told(rerank: Rerank, index: Path) -> None:
    (index / "manifest.json").unlink()
    assert "manifest.json" in one_line(search(rerank, index))


def test_an_index_of_a_later_version_is_told(rerank: Rerank, index: Path) -> None:
    path = index / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "version": 99}), encoding="utf-8")
    line = one_line(search(rerank, index))
    assert "version 99" in line
    assert "upgrade" in line


def test_an_index_of_another_kind_is_told(rerank: Rerank, index: Path) -> None:
    path = index / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "kind": "vectors"}), encoding="utf-8")
    assert "'vectors'" in one_line(search(rerank, index))


def test_a_manifest_that_names_a_file_outside_is_told(rerank: Rerank, index: Path) -> None:
    path = index / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["files"]["../p.yaml"] = next(iter(manifest["files"].values()))
    path.write_text(json.dumps(manifest), encoding="utf-8")
    assert "outside" in one_line(search(rerank, index))


def test_a_missing_index_is_told(rerank: Rerank, index: Path) -> None:
    shutil.rmtree(index)
    assert "no such artifact folder" in one_line(search(rerank, index))


def test_an_index_of_another_corpus_is_told(rerank: Rerank, index: Path) -> None:
    path = index.parent / "corpus.jsonl"
    path.write_text('{"_id": "new", "text": "a directory tree"}\n', encoding="utf-8")
    assert "another corpus" in one_line(search(rerank, index))


def test_verify_finds_a_byte_that_opening_does_not_read(rerank: Rerank, index: Path) -> None:
    path = index / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    name = next(name for name in manifest["files"] if name.endswith(".npy"))
    manifest["files"][name]["sha256"] = "0" * 64
    path.write_text(json.dumps(manifest), encoding="utf-8")
    assert search(rerank, index).code == 0
    assert name in one_line(rerank("index", "verify", index))
