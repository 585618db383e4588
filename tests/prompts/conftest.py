"""A tokenizer of every kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizers import QWEN, byte_pairs, sentence_pieces, unigrams


@pytest.fixture(scope="session")
def chat() -> Any:
    return byte_pairs()


@pytest.fixture(scope="session")
def qwen() -> Any:
    return byte_pairs(QWEN)


@pytest.fixture(scope="session")
def llama() -> Any:
    return sentence_pieces()


@pytest.fixture(scope="session")
def gemma() -> Any:
    return sentence_pieces(prefix=False)


@pytest.fixture(scope="session")
def t5() -> Any:
    return unigrams()


@pytest.fixture
def write_toml() -> Callable[..., Path]:
    """Writes a prompt of the package as a file in the layout of llm-rankers."""
    from rerank.prompts import load_prompt

    def write(path: Path, name: str, *, system: str | None = None, extra: str = "") -> Path:
        first, second = (message.content for message in load_prompt(name).messages)
        first = first if system is None else system
        path.write_text(f"prompt_system = \"{first}\"\n\nprompt_user = '''{second}'''\n{extra}", encoding="utf-8")
        return path

    return write
