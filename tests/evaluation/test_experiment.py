from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import jsonschema
import numpy as np
import pytest

from rerank.artifact import new_artifact, read_manifest
from rerank.data.dataset import Dataset
from rerank.errors import ArtifactError, ConfigError, DataError, PipelineError, UnknownNameError
from rerank.evaluation.experiment import evaluate, experiment_schema, file_name, is_experiment, load_experiment
from rerank.evaluation.results import DataKey
from rerank.ranking import Ranking
from rerank.run import Run
from rerank.runtime import Runtime
from rerank.stage import Cut, Normalise, Pipeline, Stage, apply

LISTS = {
    "q1": {"d1": 3.0, "d2": 2.0, "d3": 1.0},
    "q2": {"d2": 3.0, "d1": 2.0, "d3": 1.0},
    "q3": {"d3": 3.0, "d1": 2.0, "d2": 1.0},
}
QRELS = {"q1": {"d1": 1}, "q2": {"d1": 1}, "q3": {"d2": 2}}


def toy(name: str = "toy", **more) -> Dataset:
    queries = {"q1": "stars", "q2": "moons", "q3": "white dwarfs"}
    return Dataset(name, queries, qrels=QRELS, candidates=Ranking.of(LISTS, queries), **more)


def cut(k: int, name: str = "") -> Pipeline:
    return Pipeline((Cut(k),), name or f"cut-{k}")


@dataclass(frozen=True, repr=False)
class Counted(Stage):
    """Turns lists round, and counts how often it ran."""

    ran: ClassVar[list[str]] = []

    def transform(self, ranking: Ranking, runtime: Runtime) -> Ranking:
        self.ran.append("once")
        runtime.count("rows seen", len(ranking.docs))
        return ranking.rescored(-ranking.scores, ranking.kind)


def test_pipelines_are_run_measured_and_compared_with_the_first():
    results = evaluate([cut(1), cut(2), cut(3)], [toy()], ["R@100", "RR"])
    assert [e.run for e in results.evaluations] == ["cut-1", "cut-2", "cut-3"]
    assert results.baseline == "cut-1"
    assert [e.means["R@100"] for e in results.evaluations] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert results.measures == ("R@100", "RR")
    assert "stages:" in results.pipelines["cut-2"]
    assert [row.comparison is None for row in results.rows(DataKey("toy", "test"), "RR")] == [True, False, False]


def test_a_stage_that_several_pipelines_have_in_common_runs_once_a_data_set():
    Counted.ran.clear()
    pipelines = [
        Pipeline((Counted(), Cut(1)), "a"),
        Pipeline((Counted(), Cut(2)), "b"),
        Pipeline((Counted(), Cut(2), Normalise()), "c"),
    ]
    results = evaluate(pipelines, [toy("one"), toy("two")], ["RR"])
    assert len(Counted.ran) == 2
    stats = results.evaluations[1].stats
    assert [stat.shared for stat in stats if stat.stage.endswith("Counted")] == [True]
    assert [stat.counts for stat in stats if stat.stage.endswith("Counted")] == [{"rows seen": 9}]
    alone = evaluate([pipelines[1]], [toy("one")], ["RR"])
    assert alone.evaluations[0].means == results.evaluations[1].means


def test_foreign_runs_stand_beside_pipelines_on_the_data_sets_that_they_belong_to():
    other = Dataset("other", {"z": "text"}, qrels={"z": {"d": 1}}, candidates=Ranking.of({"z": {"d": 1.0}}))
    run = Run("foreign", Ranking.of({"q1": {"d1": 1.0}}))
    results = evaluate([cut(1)], [toy(), other], ["RR"], baseline="foreign", runs=[run])
    assert [(e.data, e.run) for e in results.evaluations] == [
        ("toy", "cut-1"),
        ("toy", "foreign"),
        ("other", "cut-1"),
    ]
    with pytest.raises(DataError, match=r"'foreign' shares no query with other \(test\)"):
        evaluate([cut(1)], [other], ["RR"], runs=[run])


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"pipelines": [Cut(1), Cut(2)]}, ConfigError, "2 pipelines or runs are called 'cut'"),
        ({"pipelines": []}, ConfigError, "nothing to evaluate"),
        ({"data": []}, ConfigError, "no data set"),
        ({"data": "stdlib"}, ConfigError, "must be a list"),
        ({"data": [toy(), toy()]}, ConfigError, "two data sets are called toy"),
        ({"baseline": "cut-11"}, UnknownNameError, "did you mean 'cut-1'"),
        ({"test": "anova"}, UnknownNameError, "randomisation"),
        ({"measures": ["nDGC@10"]}, UnknownNameError, "did you mean 'nDCG'"),
        ({"data": [dataclasses.replace(toy(), qrels=None)]}, DataError, "no judgments"),
        ({"runs": [Run("cut-1", Ranking.of(LISTS))]}, ConfigError, "called 'cut-1'"),
    ],
)
def test_what_is_asked_for_is_checked_before_anything_runs(changes, error, says):
    def never(ranking):
        raise AssertionError("a pipeline ran")

    given = {"pipelines": [Pipeline((apply(never),), "cut-1")], "data": [toy()], "measures": ["RR"], **changes}
    with pytest.raises(error, match=re.escape(says)):
        evaluate(**given)


def test_with_out_a_second_call_reads_the_runs_and_gives_equal_results(tmp_path):
    first = evaluate([cut(1), cut(2)], [toy()], ["RR", "nDCG@10"], out=tmp_path)
    made = {path: read_manifest(path).fingerprint for path in sorted((tmp_path / "runs" / "toy").iterdir())}
    assert [path.name for path in made] == ["cut-1", "cut-2"]
    stamps = [(path / "manifest.json").stat().st_mtime_ns for path in made]
    again = evaluate([cut(1), cut(2)], [toy()], ["RR", "nDCG@10"], out=tmp_path)
    assert [(path / "manifest.json").stat().st_mtime_ns for path in made] == stamps
    assert again.to_dict() == first.to_dict()
    assert json.loads((tmp_path / "results.json").read_text()) == first.to_dict()
    for name in ("report.html", "per_query.csv", "table.txt", "table.md", "table.tex", "table.csv"):
        assert (tmp_path / name).stat().st_size > 0


def test_a_changed_pipeline_or_data_set_is_run_again(tmp_path):
    def stamp():
        return (tmp_path / "runs" / "toy" / "p" / "manifest.json").stat().st_mtime_ns

    evaluate([cut(1, "p")], [toy()], ["RR"], out=tmp_path)
    first = stamp()
    changed = evaluate([cut(2, "p")], [toy()], ["RR"], out=tmp_path)
    second = stamp()
    assert second != first
    assert changed.evaluations[0].n_rows == 6
    less = dataclasses.replace(toy(), qrels={"q1": {"d1": 1}})
    evaluate([cut(2, "p")], [less], ["RR"], out=tmp_path)
    assert stamp() != second


def test_a_damaged_run_is_made_again_and_a_foreign_folder_is_not_touched(tmp_path):
    first = evaluate([cut(2)], [toy()], ["RR"], out=tmp_path)
    scores = tmp_path / "runs" / "toy" / "cut-2" / "scores.npy"
    raw = bytearray(scores.read_bytes())
    raw[-1] ^= 1
    scores.write_bytes(raw)
    again = evaluate([cut(2)], [toy()], ["RR"], out=tmp_path)
    assert again.evaluations[0].means == first.evaluations[0].means
    with new_artifact(scores.parent, "run", 1, read_manifest(scores.parent).fingerprint) as draft:
        (draft.path / "run.json").write_text("{}")
    assert evaluate([cut(2)], [toy()], ["RR"], out=tmp_path).evaluations[0].means == first.evaluations[0].means
    mine = tmp_path / "runs" / "toy" / "cut-3"
    mine.mkdir()
    (mine / "thesis.tex").write_text("mine")
    with pytest.raises(ArtifactError, match="in the way"):
        evaluate([cut(3)], [toy()], ["RR"], out=tmp_path)
    assert (mine / "thesis.tex").read_text() == "mine"


def test_a_pipeline_without_yaml_form_is_run_each_time_and_shown_as_an_expression(tmp_path, caplog):
    results = evaluate([Pipeline((apply(lambda r: r.cut(1)),), "mine")], [toy()], ["RR"], out=tmp_path)
    assert "Function" in results.pipelines["mine"]
    assert not (tmp_path / "runs").exists()
    assert "its run is not kept" in caplog.text


def test_splits_of_one_data_set_do_not_share_a_folder(tmp_path):
    dev = dataclasses.replace(toy(), split="dev", qrels={"q1": {"d1": 1}})
    results = evaluate([cut(1)], [toy(), dev], ["RR"], out=tmp_path)
    assert [path.name for path in sorted((tmp_path / "runs").iterdir())] == ["toy", "toy-dev"]
    assert [key.split for key in results.groups] == ["test", "dev"]


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/passwd", "..", ".", "", "a/b", "a\\b", "CON\n", "\u4e2d\u6587", "x" * 300]
)
def test_names_cannot_leave_the_folder(tmp_path, name):
    out = tmp_path / "out"
    safe = file_name(name)
    assert re.fullmatch(r"[A-Za-z0-9_+=,][A-Za-z0-9._+=,-]*", safe)
    assert len(safe) < 100
    evaluate([cut(1, name or "p")], [toy(name or "d")], ["RR"], out=out)
    assert [path.name for path in tmp_path.iterdir() if path.name != "home"] == ["out"]
    assert (out / "runs" / file_name(name or "d") / file_name(name or "p") / "manifest.json").is_file()


def test_different_names_have_different_files():
    names = ["a/b", "a-b", "a b", "../a-b", "A/b", "a.b", "a:b"]
    assert len({file_name(name) for name in names}) == len(names)


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_experiment import cut, toy
from rerank.evaluation.experiment import evaluate
from rerank.stage import Pipeline, apply
def die(ranking):
    os.kill(os.getpid(), signal.SIGKILL)
evaluate([cut(1), Pipeline((apply(die),), "killer"), cut(2)], [toy()], ["RR", "nDCG@10"], out=Path({out!r}))
"""


def test_after_kill_9_the_same_call_goes_on_and_equals_an_undisturbed_one(tmp_path):
    code = KILLED.format(tests=str(Path(__file__).parent), out=str(tmp_path / "killed"))
    root = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": root}, check=False)
    assert done.returncode == -signal.SIGKILL
    kept = tmp_path / "killed" / "runs" / "toy" / "cut-1" / "manifest.json"
    stamp = kept.stat().st_mtime_ns
    resumed = evaluate([cut(1), cut(2)], [toy()], ["RR", "nDCG@10"], out=tmp_path / "killed")
    assert kept.stat().st_mtime_ns == stamp
    undisturbed = evaluate([cut(1), cut(2)], [toy()], ["RR", "nDCG@10"], out=tmp_path / "whole")
    for left, right in zip(resumed.evaluations, undisturbed.evaluations, strict=True):
        assert {n: v.tolist() for n, v in left.per_query.items()} == {n: v.tolist() for n, v in right.per_query.items()}
        assert (left.top, left.ranks, left.upper_bound) == (right.top, right.ranks, right.upper_bound)
    assert resumed.comparisons == undisturbed.comparisons


# -- files ------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data" / "mine").mkdir(parents=True)
    (tmp_path / "short.yaml").write_text("stages: [{cut: 1}]")
    return tmp_path


def written(folder: Path, text: str) -> Path:
    path = folder / "experiment.yaml"
    path.write_text(textwrap.dedent(text))
    return path


def test_an_experiment_file_names_data_pipelines_and_measures(folder):
    path = written(
        folder,
        """
        name: how deep
        data: [stdlib, data/mine, beir/nfcorpus]
        split: dev
        pipelines:
          - short.yaml
          - name: long
            stages: [{cut: 2}, {normalise: minmax}]
        measures: [AP, nDCG@20]
        baseline: long
        test: t
        out: results
        """,
    )
    assert is_experiment(path)
    assert not is_experiment(folder / "short.yaml")
    found = load_experiment(path)
    assert found.pipelines == (
        Pipeline((Cut(1),), "short"),
        Pipeline((Cut(2), Normalise("minmax")), "long"),
    )
    assert found.data == ("stdlib", str(folder / "data" / "mine"), "beir/nfcorpus")
    assert (found.name, found.split, found.test, found.baseline) == ("how deep", "dev", "t", "long")
    assert found.measures == ("AP", "nDCG@20")
    assert found.out == str(folder / "results")


def test_an_experiment_runs_as_its_file_says(folder):
    path = written(folder, "name: x\ndata: [d]\npipelines: [short.yaml, {name: b, stages: [{cut: 2}]}]\nout: res\n")
    experiment = dataclasses.replace(load_experiment(path), data=(toy(),))
    results = experiment.run()
    assert results.name == "x"
    assert [e.run for e in results.evaluations] == ["short", "b"]
    assert results.measures == ("nDCG@10", "R@100")
    assert "<title>x</title>" in (folder / "res" / "report.html").read_text()


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("- a", ConfigError, "experiment.yaml:1: expected an experiment"),
        ("name: x\ndata: [a]", ConfigError, "needs the option 'pipelines'"),
        ("data: [a]\npipelines: [short.yaml]", ConfigError, "needs the option 'name'"),
        (
            "name: x\ndata: [a]\npiplines: []",
            ConfigError,
            ":3: piplines: an experiment has no option 'piplines'; did you",
        ),
        ("name: x\ndata: a\npipelines: [short.yaml]", ConfigError, ":2: data: expected a list"),
        ("name: x\ndata: []\npipelines: [short.yaml]", ConfigError, ":2: data: expected a list with at least one"),
        ("name: x\ndata: [1]\npipelines: [short.yaml]", ConfigError, ":2: data[0]: expected a string"),
        (
            "name: x\ndata: [a]\ntest: f\npipelines: [short.yaml]",
            ConfigError,
            ":3: test: expected 'randomisation' or 't'",
        ),
        ("name: x\ndata: [a]\npipelines:\n- nosuch.yaml", ConfigError, ":4: pipelines[0]: "),
        ("name: x\ndata: [a]\npipelines:\n- bm52", UnknownNameError, ":4: pipelines[0]: "),
        ("name: x\ndata: [a]\npipelines:\n- {name: p}", ConfigError, ":4: pipelines[0]: a pipeline is a mapping"),
        ("name: x\ndata: [a]\npipelines:\n- stages: [{ctu: 1}]", UnknownNameError, "pipelines[0].stages[0]"),
        ("name: x\ndata: [a]\npipelines:\n- stages: [{cut: 0}]", PipelineError, "pipelines[0].stages[0].cut"),
        ("name: x\ndata: [a]\npipelines:\n- ../p.yaml", ConfigError, ":4: pipelines[0]: the path '../p.yaml' leaves"),
        ("name: x\ndata: [../d]\npipelines: [short.yaml]", ConfigError, ":2: data[0]: the path '../d' leaves"),
        ("name: x\ndata: [a]\npipelines: [short.yaml]\nout: ../o", ConfigError, ":4: out: the path '../o' leaves"),
        ("name: x\ndata: [a]\nmeasures: []\npipelines: [short.yaml]", ConfigError, ":3: measures: expected a list"),
    ],
)
def test_mistakes_in_an_experiment_file_are_told_with_their_place(folder, text, error, says):
    with pytest.raises(error) as caught:
        load_experiment(written(folder, text))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(folder / "experiment.yaml"))


def test_the_schema_accepts_what_loads_and_refuses_what_does_not():
    schema = experiment_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    good = {
        "name": "x",
        "data": ["stdlib"],
        "pipelines": ["bm25", {"name": "b", "stages": [{"cut": 2}]}],
        "test": "t",
        "out": "results",
    }
    assert validator.is_valid(good)
    for change in ({"pipelines": []}, {"test": "f"}, {"datas": []}, {"pipelines": [{"stages": [{"ctu": 1}]}]}):
        assert not validator.is_valid({**good, **change})
    assert all("description" in schema["properties"][name] for name in ("data", "measures", "pipelines", "out"))


def test_real_runs_are_compared_and_reported(shared_data, tmp_path):
    from rerank.data.trec import read_qrels, read_run

    folder = shared_data / "trec-dl-2019"
    qrels = read_qrels(folder / "qrels" / "test.trec")
    data = Dataset("trec-dl-2019", dict.fromkeys(qrels, ""), qrels=qrels)
    runs = [read_run(folder / "runs" / f"{name}.trec") for name in ("bm25", "splade_pp_ed", "tasb")]
    results = evaluate([], [data], ["nDCG@10", "R(rel=2)@100"], out=tmp_path, runs=runs)
    assert [round(e.means["nDCG@10"], 4) for e in results.evaluations] == [0.5058, 0.7308, 0.7210]
    assert all(row.significant for row in results.rows(DataKey("trec-dl-2019", "test"), "nDCG@10")[1:])
    assert np.isfinite(results.to_dict()["results"][1]["p_holm"]["nDCG@10"])
    assert (tmp_path / "report.html").stat().st_size > 10_000
