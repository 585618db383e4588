from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from rerank.cli.models import app
from rerank.errors import ModelError, UnknownNameError

runner = CliRunner()


@pytest.fixture(autouse=True)
def here(home, monkeypatch):
    monkeypatch.setenv("RERANK_HOME", str(home))


def test_fetch_prints_the_folder_and_tells_on_standard_error_what_it_downloads(tiny, home):
    result = runner.invoke(app, ["fetch", "tiny"])
    assert result.exit_code == 0
    assert result.stdout.strip() == str(home / "models" / "tiny")
    assert "1 MB to download" in result.stderr
    again = runner.invoke(app, ["fetch", "tiny"])
    assert (again.stdout, again.stderr) == (result.stdout, "")


def test_a_misspelt_name_stops_fetch_before_anything_is_downloaded(tiny, home):
    result = runner.invoke(app, ["fetch", "tiny", "tinny"])
    assert isinstance(result.exception, UnknownNameError)
    assert not home.exists()


def test_path_downloads_nothing(tiny, home):
    result = runner.invoke(app, ["path", "tiny"])
    assert isinstance(result.exception, ModelError)
    assert not home.exists()
    runner.invoke(app, ["fetch", "tiny"])
    assert runner.invoke(app, ["path", "tiny"]).stdout.strip() == str(home / "models" / "tiny")


def test_the_cache_folder_can_be_named(tiny, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    runner.invoke(app, ["fetch", "tiny", "--home", str(elsewhere)])
    for command in ("path", "verify"):
        assert runner.invoke(app, [command, "tiny", "--home", str(elsewhere)]).exit_code == 0
        assert runner.invoke(app, [command, "tiny"]).exit_code == 1
    assert "fetched" in runner.invoke(app, ["list", "--home", str(elsewhere)]).stdout


def test_list_is_a_table_or_one_json_object(tiny, home):
    table = runner.invoke(app, ["list"]).stdout.splitlines()
    assert table[0].split()[:2] == ["name", "kind"]
    assert "absent" in table[1]
    runner.invoke(app, ["fetch", "tiny"])
    rows = json.loads(runner.invoke(app, ["list", "--format", "json"]).stdout)["models"]
    assert [(row["name"], row["state"], row["fetched"]) for row in rows] == [("tiny", "fetched", True)]
    assert rows[0]["path"] == str(home / "models" / "tiny")


def test_verify_says_how_much_it_read(tiny):
    runner.invoke(app, ["fetch", "tiny"])
    assert runner.invoke(app, ["verify", "tiny"]).stdout.startswith("tiny: 3 files, ")


@pytest.mark.parametrize("command", [[], ["list"], ["fetch"], ["path"], ["verify"]])
def test_every_command_explains_itself(command):
    result = runner.invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert not command or "Example:" in result.stdout
