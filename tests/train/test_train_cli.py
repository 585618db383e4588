"""`rerank train`: dry runs, data from elsewhere, and the ready recipes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_models import write_model
from tiny_training import recipe_text, write_collection

from rerank.cli import main
from rerank.errors import ConfigError, UnknownNameError
from rerank.ready import ready_recipes, recipe_path
from rerank.train.recipe import load_recipe, recipe_from
from rerank.yamlfile import parse_yaml

pytestmark = [
    pytest.mark.needs("peft", "accelerate"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A recipe's file, the data, and the model."""
    data, model = write_collection(tmp_path / "data"), write_model(tmp_path / "model")
    path = tmp_path / "tiny.yaml"
    text = recipe_text(model, Path("beir/tiny"), optimiser="groups: 4, steps: 2")
    path.write_text(text, encoding="utf-8")
    return path, data, model


def test_a_recipe_is_trained_on_data_from_elsewhere(
    files: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, data, _ = files
    command = ["train", str(path), "--data", f"beir/tiny={data}", "--out", str(tmp_path / "out"), "--threads", "1"]
    assert main(command) == 0
    assert f"{tmp_path / 'out' / 'adapter'}: step" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "training.json").read_text())["finished"]
    written = (tmp_path / "out" / "metrics.jsonl").read_text()
    assert main(command) == 0
    assert (tmp_path / "out" / "metrics.jsonl").read_text() == written


def test_a_dry_run_shows_what_would_be_learnt_and_trains_nothing(
    files: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, data, _ = files
    command = ["train", str(path), "--data", f"beir/tiny={data}", "--out", str(tmp_path / "out"), "--dry-run"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "12 groups" in shown and "2 steps of 4 groups" in shown and "tokens" in shown
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [("nfcorpus=x", "has no data set 'nfcorpus'; its own are beir/tiny"), ("x", "expected NAME=PATH")],
)
def test_data_that_the_recipe_has_not_is_refused(
    files: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str], data: str, message: str
) -> None:
    assert main(["train", str(files[0]), "--data", data]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ready_recipes())
def test_ready_recipes_are_read_and_written(name: str) -> None:
    found = load_recipe(name)
    assert (found.name, bool(found.description)) == (name, True)
    assert recipe_from(parse_yaml(found.recipe.to_yaml())).recipe == found.recipe


def test_an_unknown_recipe_is_told_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'minilm-l6-cross-encoder'"):
        recipe_path("minilm-cross-encoder")
    with pytest.raises(ConfigError, match="no such file; the ready recipes are"):
        recipe_path("missing.yaml")
