from __future__ import annotations

import json

import pytest
from tiny_tokenizers import byte_pairs
from typer.testing import CliRunner

from rerank.cli.prompts import app
from rerank.errors import ConfigError, UnknownNameError
from rerank.prompts import load_prompt

runner = CliRunner()


def test_list_is_a_table_or_one_json_object():
    lines = runner.invoke(app, ["list"]).stdout.splitlines()
    assert lines[0].split() == ["name", "verb", "parser", "documents", "wording", "description"]
    rows = json.loads(runner.invoke(app, ["list", "--format", "json"]).stdout)["prompts"]
    assert len(rows) == len(lines) - 1
    by_name = {row["name"]: row for row in rows}
    assert (by_name["rank-r1"]["wording"], by_name["rank-r1"]["documents"]) == ("published", "20")
    assert by_name["order"]["documents"] == "any"


def test_show_prints_a_file_that_is_the_same_prompt(tmp_path):
    for name in ("rank-r1", "grouprank", "yes-no"):
        result = runner.invoke(app, ["show", name])
        assert result.exit_code == 0
        path = tmp_path / f"{name}.yaml"
        path.write_text(result.stdout, encoding="utf-8")
        assert load_prompt(path) == load_prompt(name)
    assert "# rank-r1: the published wording" in runner.invoke(app, ["show", "rank-r1"]).stdout
    assert "rerank prompts import FILE" in runner.invoke(app, ["show", "grouprank"]).stdout


def test_render_without_a_model_prints_the_turns():
    result = runner.invoke(app, ["render", "pair", "--query", "wing", "--document", "lift", "--document", "drag"])
    assert "user:\nQuery: wing\n\nDocument A: lift\n\nDocument B: drag" in result.stdout


def test_render_with_a_model_prints_its_prompt_and_the_counts(tmp_path):
    model = tmp_path / "model"
    byte_pairs().save_pretrained(model)
    (model / "config.json").write_text(json.dumps({"model_type": "llama"}), encoding="utf-8")
    (model / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    arguments = ["render", "yes-no", "--query", "wing", "--document", "lift " * 500, "--model", str(model)]
    result = runner.invoke(app, [*arguments, "--max-tokens", "300"])
    assert result.exit_code == 0, result.exception
    assert result.stdout.startswith("<|im_start|>system\nYou judge search results.")
    assert "answers: 'yes', 'no'" in result.stderr
    assert "documents cut: 1" in result.stderr
    assert "tokens: 298" in result.stderr
    refused = runner.invoke(app, [*arguments, "--max-tokens", "20"])
    assert isinstance(refused.exception, ConfigError)


def test_render_refuses_what_a_prompt_cannot_show():
    arguments = ["render", "yes-no", "--query", "a", "--document", "b", "--document", "c"]
    assert isinstance(runner.invoke(app, arguments).exception, ConfigError)
    assert isinstance(runner.invoke(app, ["render", "yess", *arguments[2:]]).exception, UnknownNameError)


def test_import_keeps_a_published_prompt_under_a_name(tmp_path, write_toml):
    path = write_toml(tmp_path / "prompt.toml", "rank-r1")
    result = runner.invoke(app, ["import", str(path)])
    assert result.stdout == "rank-r1-published\n"
    assert "the published wording, verified" in result.stderr
    assert load_prompt("rank-r1-published").fingerprint == load_prompt("rank-r1").fingerprint
    assert "rank-r1-published" in runner.invoke(app, ["list"]).stdout


def test_import_can_write_a_file_and_warns_of_what_it_left_out(tmp_path, write_toml):
    path = write_toml(tmp_path / "prompt.toml", "rank-r1", extra='doc_prefix = "[{num}]: "\n')
    out = tmp_path / "mine.yaml"
    result = runner.invoke(app, ["import", str(path), "--out", str(out)])
    assert result.stdout == f"{out}\n"
    assert "warning: the file shows documents as '[{label}]: {text}'" in result.stderr
    assert load_prompt(out).name == "mine"


def test_import_of_unknown_wording_is_refused_unless_told(tmp_path, write_toml):
    path = write_toml(tmp_path / "mine.toml", "rank-r1", system="Other.")
    assert isinstance(runner.invoke(app, ["import", str(path)]).exception, ConfigError)
    result = runner.invoke(app, ["import", str(path), "--like", "rank-r1", "--unchecked", "--name", "other"])
    assert (result.stdout, "unchecked wording" in result.stderr) == ("other\n", True)


def test_the_cache_folder_can_be_named(tmp_path, write_toml):
    path = write_toml(tmp_path / "prompt.toml", "rank-r1")
    runner.invoke(app, ["import", str(path), "--home", str(tmp_path / "elsewhere")])
    assert (tmp_path / "elsewhere" / "prompts" / "rank-r1-published.yaml").is_file()


@pytest.mark.parametrize("command", [[], ["list"], ["show"], ["render"], ["import"]])
def test_every_command_explains_itself(command):
    result = runner.invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert not command or "Example" in result.stdout
