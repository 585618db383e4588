"""The registry: names to classes, lazily, open to other packages."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint

import pytest

from rerank import registry
from rerank.errors import UnknownNameError
from rerank.retrieve.bm25 import BM25
from rerank.stage import Cut, Pipeline


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EntryPoint]]:
    """What another installed package registers."""
    points: list[EntryPoint] = []
    monkeypatch.setattr(registry, "entry_points", lambda group: [p for p in points if p.group == group])
    registry.table.cache_clear()
    registry.lookup.cache_clear()
    yield points
    registry.table.cache_clear()
    registry.lookup.cache_clear()


@pytest.mark.parametrize("name", sorted(registry.BUILT_IN))
def test_every_built_in_name_is_a_frozen_dataclass_that_knows_its_name(name: str) -> None:
    kind = registry.lookup(name)
    assert issubclass(kind, registry.Part)
    assert dataclasses.is_dataclass(kind)
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert registry.name_of(kind) == name
    assert kind.__doc__
    assert not kind.__doc__.startswith(f"{kind.__name__}(")


def test_an_unknown_name_is_answered_with_the_nearest_and_all_names() -> None:
    with pytest.raises(UnknownNameError, match=r"nothing is called 'bm52'; did you mean 'bm25'\?; known: .*bm25, "):
        registry.lookup("bm52")


def test_an_unregistered_class_has_no_name() -> None:
    assert registry.name_of(int) is None


def test_who_gives_documents_is_known() -> None:
    givers = registry.stages_giving("documents")
    assert {"bm25", "rank_bm25", "dense", "splade", "candidates", "rrf"} <= set(givers)
    assert "cut" not in givers


def test_another_package_adds_a_name(plugins: list[EntryPoint]) -> None:
    plugins.append(EntryPoint("shorten", "rerank.stage:Cut", registry.ENTRY_POINTS))
    plugins.append(EntryPoint("elsewhere", "rerank.stage:Cut", "other.group"))
    assert registry.lookup("shorten") is Cut
    assert "elsewhere" not in registry.table()


def test_a_built_in_name_cannot_be_taken(plugins: list[EntryPoint]) -> None:
    plugins.append(EntryPoint("bm25", "rerank.stage:Pipeline", registry.ENTRY_POINTS))
    assert registry.lookup("bm25") is BM25
    assert registry.lookup("bm25") is not Pipeline


def test_naming_a_class_imports_no_other() -> None:
    code = (
        "import sys; from rerank.stage import Cut; from rerank.registry import name_of;"
        "assert name_of(Cut) == 'cut'; print('rerank.retrieve.bm25' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
