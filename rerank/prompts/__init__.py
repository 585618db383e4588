"""Prompts: one YAML file each, bound to a tokenizer; texts to token ids, answers to scores."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rerank.prompts.binding import BoundPrompt, PromptRequest
    from rerank.prompts.prompt import Prompt, list_prompts, load_prompt

__all__ = ["BoundPrompt", "Prompt", "PromptRequest", "list_prompts", "load_prompt"]

_PLACES = {
    "BoundPrompt": "rerank.prompts.binding",
    "Prompt": "rerank.prompts.prompt",
    "PromptRequest": "rerank.prompts.binding",
    "list_prompts": "rerank.prompts.prompt",
    "load_prompt": "rerank.prompts.prompt",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(importlib.import_module(_PLACES[name]), name)
