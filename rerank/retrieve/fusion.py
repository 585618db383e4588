"""Fusion of several lists by rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from rerank.errors import ConfigError
from rerank.ranking import ScoreKind
from rerank.stage import Branches, Pool, Stage


@dataclass(frozen=True, repr=False)
class RRF(Branches):
    """Reciprocal rank fusion: a document scores the sum of 1 / (k + rank) over the lists that have it.

    Source: Cormack, Clarke and Buettcher, SIGIR 2009; ranks count from 1.
    """

    k: int = 60
    """How much the top ranks are levelled; the paper's value, and not sensitive."""

    kind: ClassVar[ScoreKind | None] = ScoreKind.RRF

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 0:
            raise ConfigError(f"rrf: k is {self.k}, 0 or more is needed")

    def combine(self, pool: Pool) -> tuple[npt.NDArray[np.float64], dict[str, npt.NDArray[np.float64]]]:
        """The sums of reciprocal ranks."""
        # Added in rising order: the same ranks tie whichever list gave which.
        return np.sort(1.0 / (self.k + pool.ranks()), axis=0).sum(axis=0), {}


def rrf(*stages: Stage, k: int = 60) -> RRF:
    """The reciprocal rank fusion of `stages`.

    >>> from rerank.stage import Cut
    >>> rrf(Cut(10), Cut(20))
    RRF(of=(Cut(k=10), Cut(k=20)))
    """
    return RRF(stages, k)
