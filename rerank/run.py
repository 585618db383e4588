"""What a pipeline produced: a ranking, where it came from, and what happened in each stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rerank.ranking import Ranking


@dataclass(frozen=True)
class StageStats:
    """What one stage did in one run."""

    stage: str
    """The stage as one would write it; those inside another stage carry its name before theirs."""
    seconds: float
    """Wall-clock time of the work on the queries; shared work inside counts as what it took at first."""
    queries: int
    documents: int
    """Rows that it gave."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """What it counted: tokens, truncated documents, excluded documents, ..."""
    loading_seconds: float = 0.0
    """Wall-clock time spent before, on loading or building models, vectors and indexes: not part of `seconds`."""
    shared: bool = False
    """Another pipeline of the same experiment had done this work already; `seconds` are what it took then."""


@dataclass(frozen=True)
class Run:
    """A named ranking with provenance and statistics.

    The ranking's row order is the order that every measure sees, whatever the scores' ties.
    """

    name: str
    ranking: Ranking
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Pipeline, data, versions, resolved models, host facts: plain JSON values."""
    stats: tuple[StageStats, ...] = ()
    ties: str = "rank"
    """How equal scores were put in order: `rank` (decided in full precision, then by id), `trec_eval`, `file`."""

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of the outermost stages."""
        total, outer = 0.0, None
        for stat in self.stats:
            if outer is None or not stat.stage.startswith(f"{outer}/"):
                total, outer = total + stat.seconds, stat.stage
        return total

    def tied_rows(self) -> int:
        """How many rows share their stored score with a neighbour of the same query."""
        ranking = self.ranking
        scores, query = ranking.scores, ranking.row_queries()
        same = (scores[1:] == scores[:-1]) & (query[1:] == query[:-1])
        tied = np.zeros(len(scores), dtype=bool)
        tied[1:] |= same
        tied[:-1] |= same
        return int(tied.sum())
