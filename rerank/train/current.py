"""The engine that stands for the model in training, for pipelines that measure it while it learns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rerank.engines.engine import Asker, Engine, refuse_prompt
from rerank.errors import ConfigError
from rerank.runtime import Runtime

CURRENT = "model in training"
"""The key of the asker among a runtime's resources."""


@dataclass(frozen=True, repr=False)
class CurrentEngine(Engine):
    """The model that is being trained, with its weights as they are and its recipe's prompt; no answer is kept.

    For the pipelines in a recipe's `evaluation`.

    >>> CurrentEngine()
    CurrentEngine()
    """

    def asker(self, prompt: str | None, runtime: Runtime) -> Asker:
        """The student of the training that runs in `runtime`."""
        refuse_prompt(self, prompt)
        asker: Asker = runtime.resource(CURRENT, _nothing)
        return asker


def _nothing() -> Any:
    raise ConfigError(
        "current: no model is being trained here; this engine is for the evaluation in a recipe (rerank train); "
        "elsewhere name the model and its adapter"
    )
