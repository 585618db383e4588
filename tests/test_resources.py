"""Shipped files: at the top of a clone, or inside the package."""

from __future__ import annotations

from pathlib import Path

import pytest

from rerank import resources
from rerank.adapters.artifact import adapter_facts
from rerank.artifact import verify_artifact
from rerank.config import pipeline_from, stage_fingerprint
from rerank.engines.lora import WEIGHTS
from rerank.engines.pairs import BiEncoderEngine
from rerank.errors import DataError
from rerank.ready import find_pipeline
from rerank.reranking import Rerank
from rerank.resources import adapter_folder, shipped_adapter
from rerank.yamlfile import parse_yaml


def test_the_questions_of_the_embedded_collection_are_found() -> None:
    assert resources.shipped("data/stdlib/queries.jsonl").is_file()
    assert resources.has_shipped("data/stdlib")


def test_an_installed_package_has_them_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "rerank"
    (package / "shipped" / "pipelines").mkdir(parents=True)
    (tmp_path / "site" / "pipelines").mkdir()
    monkeypatch.setattr(resources, "_PACKAGE", package)
    assert resources.shipped("pipelines") == package / "shipped" / "pipelines"
    assert not resources.has_shipped("data")
    with pytest.raises(DataError, match="data/stdlib: not in this installation"):
        resources.shipped("data/stdlib")


@pytest.fixture
def with_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that comes with the adapter `mine`."""
    folder = tmp_path / "clone" / "data" / "adapters" / "mine"
    folder.mkdir(parents=True)
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "clone" / "rerank")
    return folder


def adapter_of(text: str, origin: Path) -> str | None:
    tree = parse_yaml(f"stages: [{{bm25: 10}}, {{rerank: {{engine: {text}}}}}]", folder=origin)
    stage = pipeline_from(tree).stages[-1]
    assert isinstance(stage, Rerank) and isinstance(stage.engine, BiEncoderEngine)
    return stage.engine.adapter


def test_an_adapter_that_comes_with_the_package_goes_by_name(with_adapter: Path, tmp_path: Path) -> None:
    engine = "{bi_encoder: {model: minilm-l6, adapter: %s}}"
    assert adapter_of(engine % "mine", tmp_path) == str(with_adapter)
    assert adapter_of(engine % "runs/mine", tmp_path) == str(tmp_path / "runs" / "mine")
    (tmp_path / "mine").mkdir()  # what lies beside the file comes first
    assert adapter_of(engine % "mine", tmp_path) == str(tmp_path / "mine")
    assert shipped_adapter("mine") == adapter_folder("mine") == with_adapter
    assert adapter_folder(str(tmp_path)) == tmp_path and adapter_folder("no/such") == Path("no/such")
    assert shipped_adapter("../adapters/mine") is None and shipped_adapter("other") is None


def test_an_adapter_by_name_counts_by_its_files(with_adapter: Path) -> None:
    def of(adapter: str) -> str:
        return stage_fingerprint(Rerank(BiEncoderEngine("minilm-l6", adapter=adapter)))

    (with_adapter / "adapter_config.json").write_text("{}", encoding="utf-8")
    before = of("mine")
    assert before == of(str(with_adapter))
    (with_adapter / "adapter_config.json").write_text("{ }", encoding="utf-8")
    assert of("mine") != before


def test_the_embedded_adapter_is_whole_and_quickstart_uses_it() -> None:
    folder = shipped_adapter("minilm-l6-stdlib")
    assert folder is not None
    verify_artifact(folder)
    facts = adapter_facts(folder)
    assert facts is not None and (facts.engine, facts.base) == ("bi_encoder", "minilm-l6")
    assert "/" not in facts.recipe.replace("https://", "")  # no folder of the machine that it was made on
    assert (folder / "README.md").is_file()
    assert facts.method["lora"].get("rank", 16) == 16 and (folder / WEIGHTS).stat().st_size < 3_000_000
    engines = [
        part.engine for stage in find_pipeline("quickstart").stages for part in stage.walk() if isinstance(part, Rerank)
    ]
    assert [engine.adapter for engine in engines if isinstance(engine, BiEncoderEngine)] == [str(folder)]
