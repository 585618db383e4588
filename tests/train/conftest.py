"""What is trained in tests, and on what."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import write_model
from tiny_scorers import write_chat_lm
from tiny_training import write_collection

from rerank.runtime import Runtime


@pytest.fixture(scope="session")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_collection(tmp_path_factory.mktemp("collection") / "tiny")


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "encoder")


@pytest.fixture(scope="session")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_lm(tmp_path_factory.mktemp("models") / "chat")


@pytest.fixture
def runtime(own_home: Path) -> Runtime:
    return Runtime(own_home, threads=1, device="cpu", progress=False, cache=False)
