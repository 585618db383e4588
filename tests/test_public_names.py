"""The package's public names are what it says they are."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

import rerank


@pytest.mark.parametrize("name", rerank.__all__)
def test_every_public_name_is_there_and_documented(name):
    assert (getattr(rerank, name).__doc__ or "").strip()


def test_type_checkers_and_users_see_the_same_names():
    tree = ast.parse(Path(rerank.__file__).read_text(encoding="utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name for node in guarded.body for alias in node.names}
    assert seen == set(rerank.__all__)


def test_everything_that_is_registered_is_public():
    from rerank.registry import BUILT_IN, lookup

    stages = {lookup(name).__name__ for name in BUILT_IN}
    assert stages <= set(rerank.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'bm25'"):
        _ = rerank.bm25


def test_modules_do_not_shadow_public_names():
    for name in rerank.__all__:
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(f"rerank.{name}")
