"""What every adapter method is: settings that put a few weights to train into a model, the rest of which is frozen."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from rerank.registry import Part


class AdapterMethod(Part, ABC):
    """Base of all adapter methods; a subclass is a frozen dataclass of its settings with `wrap`."""

    @abstractmethod
    def wrap(self, model: Any, heads: Sequence[str], base: str, seed: int) -> Any:
        """`model` with the method's weights in its layers, by peft; those and the heads are all that is trained.

        The first output is that of `model` itself: a method's weights change nothing until they are trained.

        Args:
            model: of transformers; it is changed in place.
            heads: the names of modules that are trained and saved whole.
            base: what the model is called, for the saved configuration.
            seed: of random weights.

        Raises:
            ConfigError: the model has no layers of the kind that is to be changed.
            MissingExtraError: peft is not installed.
        """
