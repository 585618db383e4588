from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rerank.ready import find_pipeline, is_experiment, pipeline_path, ready_names, ready_recipes, recipe_path
from rerank.resources import shipped
from rerank.stage import FROM_QUERIES
from rerank.yamlfile import read_yaml

Rerank = Callable[..., Any]

READY = ["bm25", "dense", "hybrid", "hybrid-rescored", "quickstart", "splade"]


def test_the_ready_pipelines_have_names() -> None:
    assert ready_names() == READY


@pytest.mark.parametrize("name", READY)
def test_a_ready_pipeline_is_sound_named_and_starts_from_queries(rerank: Rerank, name: str) -> None:
    done = rerank("check", name)
    assert (done.code, done.err) == (0, "")
    assert f"{name}.yaml: OK" in done.out
    assert "note:" not in done.out
    pipeline = find_pipeline(name)
    assert (pipeline.name, bool(pipeline.description)) == (name, True)
    assert "documents" in pipeline.flow(FROM_QUERIES).has


def test_every_stage_is_shown_with_what_it_needs_and_gives(rerank: Rerank, tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("stages:\n- bm25\n- [rm3, bm25]\n- normalise\n", encoding="utf-8")
    rows = [line.split() for line in rerank("check", path).out.splitlines()[3:]]
    assert rows == [
        ["bm25", "-", "documents", "bm25"],
        ["pipeline", "-", "-", "bm25"],
        ["rm3", "documents", "original_query,", "terms", "bm25"],
        ["bm25", "-", "documents", "bm25"],
        ["normalise", "documents", "-", "minmax"],
    ]


def test_a_pipeline_that_needs_candidates_is_sound_with_a_note(rerank: Rerank, tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("stages: [cut: 5]\n", encoding="utf-8")
    done = rerank("check", path)
    assert done.code == 0
    assert "note: takes data sets with candidates only" in done.out


def test_a_path_counts_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bm25").write_text("stages: [cut: 5]\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert pipeline_path("bm25") == Path("bm25")
    assert not is_experiment(Path("bm25"))


def test_the_schema_beside_the_ready_pipelines_is_up_to_date(rerank: Rerank) -> None:
    written = (shipped("pipelines") / "schema.json").read_text(encoding="utf-8")
    assert written == rerank("schema").out, "run: rerank schema > pipelines/schema.json"


@pytest.mark.parametrize("name", READY)
def test_the_schema_accepts_the_ready_pipelines(rerank: Rerank, name: str) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="a development tool")
    schema = json.loads(rerank("schema").out)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(read_yaml(pipeline_path(name)).value, schema)


@pytest.mark.parametrize("stage", ["bm52", {"bm25": {"kk": 1}}, {"bm25": {"k": "1"}}, {"bm25": {}, "cut": 1}])
def test_the_schema_refuses_what_the_reader_refuses(rerank: Rerank, stage: Any) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="a development tool")
    validator = jsonschema.Draft202012Validator(json.loads(rerank("schema").out))
    assert not validator.is_valid({"stages": [stage]})


def test_the_schema_of_experiments_accepts_one(rerank: Rerank) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="a development tool")
    schema = json.loads(rerank("schema", "--experiment").out)
    jsonschema.Draft202012Validator.check_schema(schema)
    pipelines = ["bm25", {"name": "short", "stages": [{"bm25": {"k": 1}}]}]
    value = {"name": "x", "data": ["stdlib"], "pipelines": pipelines, "test": "t"}
    jsonschema.validate(value, schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert not validator.is_valid({**value, "tset": "t"})
    assert not validator.is_valid({**value, "pipelines": [{"stages": ["bm52"]}]})


@pytest.mark.parametrize("name", ready_recipes())
def test_a_ready_recipe_is_sound_and_its_schema_accepts_it(rerank: Rerank, name: str) -> None:
    done = rerank("check", name)
    assert (done.code, done.err) == (0, "")
    assert f"{name}.yaml: OK, a recipe" in done.out
    jsonschema = pytest.importorskip("jsonschema", reason="a development tool")
    schema = json.loads(rerank("schema", "--recipe").out)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(read_yaml(recipe_path(name)).value, schema)


RECIPE = "engine: {cross_encoder: m}, groups: {data: stdlib}"


@pytest.mark.parametrize(
    "text",
    [
        "contrastive: {engine: {cross_encoder: m}}",
        f"contrastive: {{{RECIPE}, lerning_rate: 1}}",
        f"contrastive: {{{RECIPE}, loss: sofmax}}",
        f"contrastive: {{{RECIPE}}}\nsft: {{{RECIPE}}}",
    ],
)
def test_check_and_schema_refuse_the_same_recipes(rerank: Rerank, tmp_path: Path, text: str) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="a development tool")
    path = tmp_path / "recipe.yaml"
    path.write_text(text + "\n", encoding="utf-8")
    done = rerank("check", path)
    assert done.code == 2
    assert f"{path}:" in done.err
    validator = jsonschema.Draft202012Validator(json.loads(rerank("schema", "--recipe").out))
    assert not validator.is_valid(read_yaml(path).value)
