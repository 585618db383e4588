"""Shipped files: at the top of a clone, or inside the package."""

from __future__ import annotations

from pathlib import Path

import pytest

from rerank import resources
from rerank.errors import DataError


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
