from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rerank.cli.evaluate import split_measures

Rerank = Callable[..., Any]

EXPERIMENT = """
name: two ways
data: [tiny]
pipelines:
  - bm25
  - name: short
    stages: [bm25: {k: 1}]
measures: [R@10, nDCG@10]
baseline: short
out: results
"""


def results(done: Any) -> list[dict[str, Any]]:
    """The results of a command that printed one JSON object and nothing else."""
    assert done.code == 0
    found: list[dict[str, Any]] = json.loads(done.out)["results"]
    return found


def test_json_is_one_object_with_a_result_for_each_pipeline_and_data_set(rerank: Rerank, beir: Path) -> None:
    short = beir / "short.yaml"
    short.write_text("stages: [bm25: {k: 1}]\n", encoding="utf-8")
    done = rerank("evaluate", "bm25", short, "--data", beir, "--measures", "nDCG@10, R@100", "--format", "json")
    found = results(done)
    assert [(one["pipeline"], one["data"], one["split"], one["queries"]) for one in found] == [
        ("bm25", "tiny", "test", 3),
        ("short", "tiny", "test", 3),
    ]
    assert list(found[0]["measures"]) == ["nDCG@10", "R@100"]
    # q1's second relevant document is lost: (1/2 + 1 + 1) / 3.
    assert found[1]["measures"]["R@100"] == pytest.approx(2.5 / 3)
    assert done.err == ""


def test_the_table_names_pipelines_intervals_and_the_test(rerank: Rerank, beir: Path) -> None:
    short = beir / "short.yaml"
    short.write_text("stages: [bm25: {k: 1}]\n", encoding="utf-8")
    done = rerank("evaluate", short, "bm25", "--data", beir, "--baseline", "bm25", "--test", "t")
    assert done.code == 0
    assert "95 % interval" in done.out
    assert "differs from bm25: p < 0.05 (paired t-test" in done.out
    assert max(map(len, done.out.splitlines())) <= 80


@pytest.mark.parametrize("form, begins", [("markdown", "| data |"), ("latex", "% needs"), ("csv", "data,split,")])
def test_tables_come_in_other_forms(rerank: Rerank, beir: Path, form: str, begins: str) -> None:
    assert rerank("evaluate", "bm25", "--data", beir, "--format", form).out.startswith(begins)


def test_a_folder_keeps_runs_tables_and_the_report(rerank: Rerank, beir: Path) -> None:
    out = beir / "results"
    done = rerank("evaluate", "bm25", "--data", beir, "--out", out, "--format", "json")
    assert done.err == f"report: {out / 'report.html'}\n"
    assert json.loads((out / "results.json").read_text(encoding="utf-8")) == json.loads(done.out)
    assert "<html" in (out / "report.html").read_text(encoding="utf-8")
    assert (out / "runs" / "tiny" / "bm25" / "manifest.json").is_file()


def test_a_second_call_reads_finished_runs(rerank: Rerank, beir: Path) -> None:
    arguments = ["evaluate", "bm25", "--data", beir, "--out", beir / "results", "--format", "json"]
    first = rerank("-v", *arguments)
    second = rerank("-v", *arguments)
    assert "bm25 on tiny (test): running" in first.err
    assert "running" not in second.err
    assert results(first) == results(second)


def test_a_foreign_run_is_scored_without_reading_documents(rerank: Rerank, beir: Path) -> None:
    (beir / "corpus.jsonl").unlink()
    run = beir / "runs" / "first.trec"
    done = rerank("evaluate", "--run", run, "--data", beir, "--measures", "RR@10", "--format", "json")
    assert [(one["pipeline"], one["measures"]) for one in results(done)] == [
        ("first", {"RR@10": pytest.approx(2.5 / 3)})
    ]


def test_ties_of_a_foreign_run_go_by_the_chosen_rule(rerank: Rerank, beir: Path) -> None:
    path = beir / "tied.trec"
    path.write_text("q1 Q0 os.walk 1 1.0 x\nq1 Q0 shutil.x 2 1.0 x\n", encoding="utf-8")
    arguments = ["evaluate", "--run", path, "--data", beir, "--measures", "RR", "--format", "json"]
    found = {ties: results(rerank(*arguments, "--ties", ties))[0] for ties in ("trec_eval", "file")}
    assert {ties: one["measures"]["RR"] * 3 for ties, one in found.items()} == {"trec_eval": 0.5, "file": 1.0}
    assert found["file"]["ties"]["rows"] == 2


def test_candidates_bound_what_a_reranker_can_reach(rerank: Rerank, beir: Path) -> None:
    (beir / "p.yaml").write_text("stages: [cut: 2]\n", encoding="utf-8")
    arguments = ["evaluate", beir / "p.yaml", "--data", beir, "--candidates", "first", "--measures", "RR"]
    (one,) = results(rerank(*arguments, "--format", "json"))
    assert (one["measures"]["RR"], one["upper_bound"]["RR"]) == (pytest.approx(2.5 / 3), 1.0)


def test_an_experiment_file_says_everything(rerank: Rerank, beir: Path) -> None:
    path = beir.parent / "experiment.yaml"
    path.write_text(EXPERIMENT, encoding="utf-8")
    done = rerank("evaluate", path, "--format", "json")
    assert [(one["pipeline"], list(one["measures"])) for one in results(done)] == [
        ("bm25", ["R@10", "nDCG@10"]),
        ("short", ["R@10", "nDCG@10"]),
    ]
    assert json.loads(done.out)["baseline"] == "short"
    assert (beir.parent / "results" / "report.html").is_file()


def test_options_replace_what_an_experiment_file_says(rerank: Rerank, beir: Path) -> None:
    path = beir.parent / "experiment.yaml"
    path.write_text(EXPERIMENT, encoding="utf-8")
    done = rerank("evaluate", path, "--measures", "RR", "--out", beir / "other", "--format", "json")
    assert list(results(done)[0]["measures"]) == ["RR"]
    assert (beir / "other" / "report.html").is_file()
    assert not (beir.parent / "results").exists()


def test_an_experiment_file_is_checked_like_a_pipeline(rerank: Rerank, beir: Path) -> None:
    path = beir.parent / "experiment.yaml"
    path.write_text(EXPERIMENT, encoding="utf-8")
    done = rerank("check", path)
    assert (done.code, f"{path}: OK, an experiment with 2 pipelines" in done.out) == (0, True)
    path.write_text(EXPERIMENT.replace("k: 1", "k: x"), encoding="utf-8")
    done = rerank("check", path)
    assert (done.code, done.out) == (2, "")
    assert "experiment.yaml:7: pipelines[1].stages[0].bm25.k" in done.err


def test_lists_of_measures_are_divided_outside_parentheses_only() -> None:
    assert split_measures("AP nDCG(gains={0: 0, 1: 5})@10,R@1") == ("AP", "nDCG(gains={0: 0, 1: 5})@10", "R@1")
