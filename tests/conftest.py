"""Fixtures shared by all tests: a cache root of the test session's own, the real collections where they are."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
from hypothesis import settings

# A slow or busy machine is no failure.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what is marked `needs(package, ...)` where such a package is not installed, as in the core alone."""
    for mark in item.iter_markers("needs"):
        for package in mark.args:
            if importlib.util.find_spec(package) is None:
                pytest.skip(f"needs the package {package!r}, which an extra of rerank-pipelines brings")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real collections: `RERANK_SHARED_DATA`, else `../shared/data` beside the clone."""
    named = os.environ.get("RERANK_SHARED_DATA")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the real collections: {folder} is not there (set RERANK_SHARED_DATA)")
    return folder


@pytest.fixture(scope="session")
def session_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache root for the whole test session, so that tests share indexes of the real collections."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test touches the user's cache."""
    home = tmp_path / "home"
    monkeypatch.setenv("RERANK_HOME", str(home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return home


# -- encoders with random weights, for tests of neural stages --------------------


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers folder: two layers, 32 dimensions, 24 tokens, prompts for queries and documents."""
    from tiny_models import write_model

    folder = tmp_path_factory.mktemp("models") / "tiny-encoder"
    return write_model(folder, prompts={"query": "query: ", "document": "passage: "})


@pytest.fixture(scope="session")
def tiny_splade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sparse encoder's folder: two layers, a vocabulary of letters and a few words."""
    from tiny_models import write_model

    return write_model(tmp_path_factory.mktemp("models") / "tiny-splade", "sparse")
