"""The tree of exceptions: each is the built-in kind that a caller would catch."""

from __future__ import annotations

import inspect

import pytest

from rerank import errors
from rerank.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    MissingExtraError,
    ModelError,
    PipelineError,
    RerankError,
    ServerError,
    UnknownNameError,
    nearest,
)


@pytest.mark.parametrize(
    ("kind", "built_in"),
    [
        (ConfigError, ValueError),
        (UnknownNameError, LookupError),
        (PipelineError, TypeError),
        (DataError, ValueError),
        (ArtifactError, OSError),
        (ModelError, OSError),
        (ServerError, ConnectionError),
        (MissingExtraError, ImportError),
    ],
)
def test_an_error_is_also_the_built_in_kind(kind: type[RerankError], built_in: type[Exception]) -> None:
    assert issubclass(kind, built_in)


def test_every_error_is_in_the_one_tree_and_in_its_drawing() -> None:
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__]
    assert errors.__doc__ is not None
    for kind in kinds:
        assert issubclass(kind, RerankError)
        assert kind.__name__ in errors.__doc__
        assert kind.__doc__


def test_a_missing_extra_names_package_extra_purpose_and_command() -> None:
    error = MissingExtraError("faiss", "dense", "the stage dense")
    assert str(error) == (
        "the stage dense needs the package 'faiss', which is not installed: pip install 'rerank-pipelines[dense]'"
    )
    assert (error.package, error.extra) == ("faiss", "dense")


def test_the_nearest_name_is_offered_and_none_that_is_far() -> None:
    assert nearest("bm52", ["bm25", "dense"]) == "; did you mean 'bm25'?"
    assert nearest("zzz", ["bm25", "dense"]) == ""
    assert nearest("x", []) == ""
