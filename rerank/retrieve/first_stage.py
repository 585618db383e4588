"""What first stages share: they start from queries, find an index by corpus and configuration, and skip exclusions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from rerank.errors import DataError
from rerank.ids import IdTable
from rerank.ranking import Ranking, ScoreKind, TextSource
from rerank.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Sequence


class Retrieved(Protocol):
    """What a search gave: documents per query in any order, at least all that may be among the best k."""

    @property
    def offsets(self) -> npt.NDArray[np.int64]: ...
    @property
    def docs(self) -> npt.NDArray[np.int64]: ...
    @property
    def scores(self) -> npt.NDArray[np.floating[Any]]: ...


def need_source(ranking: Ranking, stage: str) -> TextSource:
    """The ranking's corpus.

    Raises:
        DataError: it has none.
    """
    if ranking.source is None:
        raise DataError(f"{stage}: the data set has no corpus to search; give one, or candidates and no first stage")
    return ranking.source


def excluded_codes(ranking: Ranking, ids: IdTable, runtime: Runtime) -> Sequence[npt.NDArray[np.int64]] | None:
    """Per query the codes in `ids` of its excluded documents; None where no query excludes any."""
    column = ranking.query_columns.get("excluded")
    if column is None or not any(column):
        return None
    codes = [found[found >= 0] for found in (ids.find(sorted(docs)) for docs in column)]
    runtime.count("excluded documents", sum(map(len, codes)))
    return codes


def retrieved(
    ranking: Ranking, found: Retrieved, k: int, kind: ScoreKind, ids: IdTable, source: TextSource | None
) -> Ranking:
    """The queries of `ranking` with the best `k` of what was found; ties go by document id."""
    base = Ranking.start(dict(zip(ranking.qids, ranking.queries, strict=True)), source, ranking.query_columns)
    return base.with_documents(found.offsets, found.docs, found.scores, kind, ids).cut(k)
