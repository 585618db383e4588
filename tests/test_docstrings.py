"""The examples in the docstrings are true."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import rerank

ROOT = Path(rerank.__file__).parent
# These examples need an extra of the package.
EXTRAS = {
    "rerank.engines": "torch",
    "rerank.models": "safetensors",
    "rerank.retrieve.dense": "faiss",
    "rerank.train.losses": "torch",
    "rerank.integrations.haystack": "haystack",
    "rerank.integrations.langchain": "langchain_core",
    "rerank.integrations.llama_index": "llama_index.core",
    "rerank.integrations.mteb": "mteb",
    "rerank.integrations.pyterrier": "pyterrier",
}


def modules() -> list[str]:
    paths = (path.relative_to(ROOT.parent).with_suffix("") for path in ROOT.rglob("*.py"))
    return sorted(".".join(path.parts).removesuffix(".__init__") for path in paths if path.name != "__main__")


@pytest.mark.parametrize("name", modules())
def test_the_examples_of_a_module_are_true(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for start, package in EXTRAS.items():
        if name.startswith(start):
            pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0
