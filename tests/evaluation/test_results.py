from __future__ import annotations

import csv
import dataclasses
import io
import json

import numpy as np
import pytest
from rich.cells import cell_len

from rerank.data.dataset import Dataset
from rerank.errors import UnknownNameError
from rerank.evaluation.evaluation import evaluate_run
from rerank.evaluation.results import DataKey, Results
from rerank.evaluation.significance import bootstrap_interval, compare_all
from rerank.ranking import Ranking
from rerank.run import Run, StageStats

MEASURES = ["nDCG@10", "R(rel=2)@100"]


def make(names=("bm25", "dense", "hybrid"), datasets=("toy",), measures=MEASURES, seed=0, **more):
    rng = np.random.default_rng(seed)
    evaluations, data = [], {}
    for name in datasets:
        qrels = {f"q{i}": {f"d{j}": int(rng.integers(0, 4)) for j in range(6)} for i in range(30)}
        dataset = Dataset(name, dict.fromkeys(qrels, "text"), qrels=qrels)
        data[DataKey(name, "test")] = dataset
        for position, system in enumerate(names):
            noise = rng.random((30, 12)) * (4 - position)
            lists = {
                q: {f"d{j}": float(qrels[q].get(f"d{j}", 0) + noise[i, j]) for j in range(12)}
                for i, q in enumerate(qrels)
            }
            run = Run(system, Ranking.of(lists), stats=(StageStats(system, 0.3 * position, 30, 360),))
            evaluations.append(evaluate_run(run, dataset, measures))
    return Results(tuple(evaluations), names[0], datasets=data, **more)


def test_rows_and_comparisons_are_those_of_the_values():
    results = make()
    key = DataKey("toy", "test")
    systems = {e.run: e.per_query["nDCG@10"] for e in results.evaluations}
    assert results.comparisons[key, "nDCG@10"] == compare_all(systems, "bm25")
    rows = results.rows(key, "nDCG@10")
    assert [row.evaluation.run for row in rows] == ["bm25", "dense", "hybrid"]
    assert rows[1].mean == results.evaluations[1].means["nDCG@10"]
    assert rows[1].interval == bootstrap_interval(systems["dense"])
    assert rows[0].comparison is None
    assert rows[0].difference == ""


def test_each_data_set_is_its_own_family():
    results = make(datasets=("one", "two"))
    assert list(results.groups) == [("one", "test"), ("two", "test")]
    assert "over 2 systems" in results.significance(DataKey("one", "test"))
    assert (
        results.comparisons[DataKey("one", "test"), "nDCG@10"] != results.comparisons[DataKey("two", "test"), "nDCG@10"]
    )


def test_a_data_set_without_the_baseline_has_no_comparisons():
    results = make(datasets=("one", "two"))
    without = dataclasses.replace(results, evaluations=results.evaluations[:3] + results.evaluations[4:])
    key = DataKey("two", "test")
    assert without.comparisons[key, "nDCG@10"] == {}
    assert without.significance(key) == ""
    for form in ("text", "markdown", "latex", "csv"):
        assert without.table(form)


def test_json_has_one_entry_a_system_and_data_set_with_plain_numbers():
    results = make(datasets=("one", "two"))
    found = json.loads(json.dumps(results.to_dict(), allow_nan=False))
    assert [(r["data"], r["pipeline"]) for r in found["results"]] == [
        (data, name) for data in ("one", "two") for name in ("bm25", "dense", "hybrid")
    ]
    entry = found["results"][1]
    assert entry["measures"].keys() == set(MEASURES)
    assert entry["split"] == "test"
    assert entry["queries"] == 30
    assert all(type(value) is float for value in entry["measures"].values())
    assert entry["intervals"]["nDCG@10"][0] <= entry["measures"]["nDCG@10"] <= entry["intervals"]["nDCG@10"][1]
    assert entry["p"]["nDCG@10"] <= entry["p_holm"]["nDCG@10"]
    assert entry["seconds"] == 0.3
    assert entry["seconds_per_query"] == 0.01
    assert found["results"][0]["p"] == {}
    assert found["results"][0]["seconds"] is None


def test_an_infinite_effect_is_null_in_json():
    data = Dataset("toy", {"q": "text"}, qrels={"q": {"d": 1}})
    runs = [Run("a", Ranking.of({"q": {"x": 2.0, "d": 1.0}})), Run("b", Ranking.of({"q": {"d": 1.0}}))]
    results = Results(tuple(evaluate_run(run, data, ["RR"]) for run in runs), "a")
    assert results.to_dict()["results"][1]["effect"] == {"RR": None}
    json.dumps(results.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    "names",
    [
        ("bm25", "dense", "hybrid"),
        ("bm25", "a-pipeline-with-a-name-that-leaves-no-room-for-numbers", "\u4e2d\u6587\u540d\u5b57"),
        ("b" * 200, "dense"),
    ],
)
def test_text_tables_fit_80_columns(names):
    text = make(names, datasets=("one", "two")).table("text")
    wide = [line for line in text.splitlines() if cell_len(line) > 80]
    assert all(line.strip() in names for line in wide)
    for line in text.splitlines():
        assert line == line.rstrip()


def test_text_tables_have_one_row_a_system_for_each_measure():
    results = make()
    lines = results.table("text").splitlines()
    assert sum(line.startswith("hybrid ") for line in lines) == 2
    assert lines[0] == "toy (test): 30 queries"
    mean = results.evaluations[2].means["nDCG@10"]
    row = next(line for line in lines if line.startswith("hybrid "))
    assert f"{mean:.4f}" in row
    assert "*" in row
    assert row.split()[-1] == "0.02"
    assert repr(results) == results.table("text")


def test_markdown_has_as_many_cells_in_each_row():
    table = make(("a|b", "c_d*")).table("markdown")
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert "a\\|b" in lines[2]
    assert len(lines) == 4


def test_latex_is_escaped_and_balanced():
    text = make(("50%_\\input{/etc/passwd}", "a&b$\n#"), datasets=("d_1",)).table("latex")
    body = [line for line in text.splitlines() if not line.startswith("%")]
    assert "\\input" not in "\n".join(body)
    assert "50\\%\\_\\textbackslash{}input\\{/etc/passwd\\}" in text
    assert all(line.count("{") - line.count("\\{") == line.count("}") - line.count("\\}") for line in body)
    rows = [line for line in body if " & " in line]
    assert rows[-1].startswith("a\\&b\\$ \\# ")
    columns = [line.replace("\\&", "").count("&") for line in rows if "multicolumn" not in line]
    assert set(columns) == {8}
    assert "\\toprule" in text
    assert "\\bottomrule" in text


def test_csv_reads_back_to_the_full_values():
    results = make(("bm25", 'odd, "name"'))
    lines = list(csv.DictReader(io.StringIO(results.table("csv"))))
    assert lines[1]["pipeline"] == 'odd, "name"'
    assert float(lines[1]["nDCG@10"]) == results.evaluations[1].means["nDCG@10"]
    assert lines[0]["nDCG@10 p_holm"] == ""
    per_query = list(csv.DictReader(io.StringIO(results.per_query_csv())))
    assert len(per_query) == 60
    assert [float(line["nDCG@10"]) for line in per_query[30:]] == results.evaluations[1].per_query["nDCG@10"].tolist()


def test_notes_tell_missing_queries_ties_and_what_reading_counted():
    qrels = {"a": {"d": 1}, "b": {"d": 1}}
    data = Dataset("toy", {"a": "", "b": "", "c": ""}, qrels=qrels, notes=("2 judgments dropped",))
    run = Run("bm25", Ranking.of({"a": {"d": 1.0, "e": 1.0}}))
    key = DataKey("toy", "test")
    results = Results((evaluate_run(run, data, ["nDCG@10"]),), "bm25", datasets={key: data})
    assert results.notes(key) == [
        "bm25: no documents for 1 of 2 queries, e.g. 'b'; they count as 0",
        "bm25: 2 of 2 rows tie; nDCG@10 averaged over their orders: 0.4077",
        "1 query has no judgments and is not measured",
        "2 judgments dropped",
    ]
    assert "2 of 2 rows tie" in results.table("text")
    assert "2 of 2 rows tie" in results.table("markdown")


def test_an_unknown_table_format_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'markdown'"):
        make().table("markdwn")
