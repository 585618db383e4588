"""A run file as the first stage."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from rerank.config import FilePath
from rerank.data.trec import read_run
from rerank.ranking import Ranking, ScoreKind
from rerank.retrieve.select import without_excluded
from rerank.runtime import Runtime
from rerank.stage import DOCUMENTS, Stage


@dataclass(frozen=True, repr=False)
class Candidates(Stage):
    """The lists of a TREC run file, for a pipeline that reranks what another system found.

    Queries that the file lacks get an empty list and are counted; excluded documents are left out.
    """

    run: FilePath
    """The run file, plain or gzipped."""
    ties: Literal["trec_eval", "file"] = "trec_eval"
    """How equal scores are put in order: as trec_eval does, or as the file has them."""

    needs: ClassVar[frozenset[str]] = frozenset()
    gives: ClassVar[frozenset[str]] = frozenset({DOCUMENTS})
    kind: ClassVar[ScoreKind | None] = ScoreKind.UNKNOWN

    def transform(self, ranking: Ranking, runtime: Runtime) -> Ranking:
        """The lists of the file's queries that `ranking` has."""
        read = read_run(Path(self.run), ties=self.ties).ranking
        where = {qid: position for position, qid in enumerate(read.qids)}
        runtime.count("queries without candidates", sum(qid not in where for qid in ranking.qids))
        have = [qid for qid in ranking.qids if qid in where]
        lists = read.subset(have)
        if ranking.source is not None:
            lists = lists.with_source(ranking.source)
        sizes = np.zeros(len(ranking), dtype=np.int64)
        sizes[[i for i, qid in enumerate(ranking.qids) if qid in where]] = np.diff(lists.offsets)
        offsets = np.zeros(len(ranking) + 1, dtype=np.int64)
        np.cumsum(sizes, out=offsets[1:])
        filled = dataclasses.replace(
            ranking,
            offsets=offsets,
            docs=lists.docs,
            scores=lists.scores,
            ids=lists.ids,
            kind=lists.kind,
            columns=lists.columns,
        )
        return without_excluded(filled, runtime)
