"""Which documents of a cluster are taken: drawn near its centre, then chosen to differ.

A draw is decided by random numbers that belong to documents' ids (the Gumbel-max trick), so it does not depend on where
a document stands, nor on what other clusters hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from rerank.errors import ConfigError
from rerank.rules.rule import at_least
from rerank.words import share

Floats = npt.NDArray[np.floating]
Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Choice:
    """How documents of a cluster are chosen.

    Raises:
        ConfigError: numbers that make no sense.
    """

    temperature: float = 0.05
    """Documents are drawn by exp(cosine with the centre / temperature): 0 takes the nearest.  At 1, as in the paper,
    cosines of 0.95 and 0.60 differ by a factor of 1.4 only, so that draws are nearly uniform; at 0.05 by 1,097."""
    draws: int = 5
    """How many draws are pooled; the more, the more there is to choose from."""
    diversity: Literal["mmr", "k_centre"] = "mmr"
    """How the pool is chosen from.  `mmr`: near the medoid and unlike those chosen; `k_centre`: as far as can be from
    those chosen."""
    relevance: float = 0.5
    """For mmr, 0 to 1: how much nearness to the medoid counts; at 1, as in the paper's code, being unlike does not."""

    def __post_init__(self) -> None:
        at_least("choice", 1, draws=self.draws)
        if not (self.temperature >= 0 and 0 <= self.relevance <= 1):
            raise ConfigError(
                f"choice: temperature is {self.temperature} (0 or more) and relevance {self.relevance} (0 to 1)"
            )


def probabilities(cosines: Floats, temperature: float) -> Floats:
    """float64 [n]: how likely each document of a cluster is drawn first.

    >>> probabilities(np.array([1.0, 1.0]), 0.5).tolist()
    [0.5, 0.5]
    """
    if temperature == 0:
        nearest = cosines == cosines.max()
        return np.asarray(nearest / nearest.sum(), dtype=np.float64)
    weights = np.exp((cosines.astype(np.float64) - cosines.max()) / temperature)
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def drawn(cosines: Floats, docnos: Sequence[str], n: int, temperature: float, seed: int, number: int = 0) -> Places:
    """`n` places of a cluster's documents, drawn without replacement; at temperature 0 those with the highest cosines.

    Args:
        cosines: [n documents] with the cluster's centre.
        docnos: whose order breaks ties.
        n: how many.
        temperature: 0 or more; infinity draws uniformly.
        seed: of the random numbers.
        number: which of several draws.

    Source: Kool et al. 2019 (Gumbel top-k): equal in distribution to drawing one after the other.
    """
    keys = cosines.astype(np.float64)
    if temperature > 0:
        noise = [-math.log(-math.log(share(seed, f"draw {number}", docno))) for docno in docnos]
        keys = keys / temperature + np.array(noise)
    order = sorted(range(len(docnos)), key=lambda place: (-keys[place], docnos[place]))
    return np.array(order[:n], dtype=np.int64)


def mmr(vectors: Floats, medoid: Floats, n: int, relevance: float) -> list[int]:
    """`n` rows that lie near the medoid and unlike each other.

    Each is the one with the highest relevance x cosine with the medoid - (1 - relevance) x highest cosine with one
    already chosen; of equal ones that nearer to the medoid, then the first.  The first of all is the nearest.

    Args:
        vectors: [documents, d] of length 1.
        medoid: [d] of length 1.
        n: how many.
        relevance: 0 to 1.

    Source: Carbonell and Goldstein 1998.

    >>> mmr(np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]), np.array([1.0, 0.0]), 2, 0.0)
    [0, 2]
    """
    near = vectors @ medoid
    closest = np.full(len(vectors), -np.inf)
    chosen: list[int] = []
    while len(chosen) < min(n, len(vectors)):
        if chosen:
            scores = relevance * near - (1 - relevance) * closest
        else:
            scores = near.copy()
        scores[chosen] = -np.inf
        best = _best(scores, near)
        chosen.append(best)
        closest = np.maximum(closest, vectors @ vectors[best])
    return chosen


def k_centre(vectors: Floats, medoid: Floats, n: int) -> list[int]:
    """`n` rows: that nearest to the medoid, then each time the one farthest from all that are chosen.

    >>> k_centre(np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]), np.array([0.8, 0.6]), 2)
    [1, 2]

    Source: Gonzalez 1985 (greedy k-centre).
    """
    near = vectors @ medoid
    closest = np.full(len(vectors), -np.inf)
    chosen: list[int] = []
    while len(chosen) < min(n, len(vectors)):
        scores = -closest if chosen else near.copy()
        scores[chosen] = -np.inf
        best = _best(scores, near if not chosen else -near)
        chosen.append(best)
        closest = np.maximum(closest, vectors @ vectors[best])
    return chosen


def _best(scores: Floats, second: Floats) -> int:
    ties = np.flatnonzero(scores == scores.max())
    return int(ties[np.argmax(second[ties])])


def chosen(vectors: Floats, docnos: Sequence[str], centre: Floats, n: int, choice: Choice, seed: int) -> list[int]:
    """The places of the `n` documents that are taken from a cluster.

    Args:
        vectors: [documents, d] of length 1, in the order of the ids.
        docnos: their ids.
        centre: [d] of length 1.
        n: how many, at most as many as there are.
        choice: how.
        seed: of the draws.
    """
    cosines = vectors @ centre
    medoid = vectors[int(np.argmax(cosines))]
    draws = [drawn(cosines, docnos, n, choice.temperature, seed, number) for number in range(choice.draws)]
    pool = np.unique(np.concatenate(draws))
    some = vectors[pool]
    picked = k_centre(some, medoid, n) if choice.diversity == "k_centre" else mmr(some, medoid, n, choice.relevance)
    return [int(pool[place]) for place in picked]
