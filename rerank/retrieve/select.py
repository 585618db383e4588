"""Leaving documents out of lists."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rerank.config import FilePath
from rerank.errors import ConfigError, DataError
from rerank.ranking import Ranking
from rerank.runtime import Runtime
from rerank.stage import Stage


def without_excluded(ranking: Ranking, runtime: Runtime) -> Ranking:
    """`ranking` less the documents that its query column `excluded` names."""
    column = ranking.query_columns.get("excluded")
    if column is None or not any(column):
        return ranking
    keep = np.ones(len(ranking.docs), dtype=bool)
    for position, names in enumerate(column):
        if names:
            start, stop = ranking.offsets[position], ranking.offsets[position + 1]
            keep[start:stop] = ~np.isin(ranking.docs[start:stop], ranking.ids.find(sorted(names)))
    runtime.count("excluded documents", int((~keep).sum()))
    return ranking.keep(keep)


@dataclass(frozen=True, repr=False)
class Exclude(Stage):
    """The list less the documents that the data set excludes for a query (BRIGHT's, ArguAna's own-id rule).

    First stages and rerankers of this package do so by themselves; this stage is for lists from elsewhere.
    """

    def transform(self, ranking: Ranking, runtime: Runtime) -> Ranking:
        """The remaining documents in their order."""
        return without_excluded(ranking, runtime)


@dataclass(frozen=True, repr=False)
class Filter(Stage):
    """The documents that a file lists by id, one a line, or, with `drop`, all others; and those scored high enough."""

    ids: FilePath | None = None
    """A text file of document ids."""
    drop: bool = False
    """Leave the listed documents out instead of keeping only them."""
    min_score: float | None = None
    """The least score that a document needs."""

    def __post_init__(self) -> None:
        if self.ids is None and self.min_score is None:
            raise ConfigError("filter: needs 'ids' (a file of document ids) or 'min_score'")

    def transform(self, ranking: Ranking, runtime: Runtime) -> Ranking:
        """The remaining documents in their order.

        Raises:
            DataError: the file of ids cannot be read.
        """
        keep = np.ones(len(ranking.docs), dtype=bool)
        if self.ids is not None:
            try:
                names = Path(self.ids).read_text(encoding="utf-8").split("\n")
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"filter: {self.ids} cannot be read as a text file of ids ({error})") from error
            listed = ranking.ids.find([name.strip() for name in names if name.strip()])
            keep &= np.isin(ranking.docs, listed) != self.drop
        if self.min_score is not None:
            keep &= ranking.scores >= self.min_score
        runtime.count("filtered documents", int((~keep).sum()))
        return ranking.keep(keep)
