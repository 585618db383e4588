"""Where training takes ranked lists and scores from: a pipeline by name or file, one written in place, or a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rerank.artifact import MANIFEST, file_sha256
from rerank.config import FilePath, stage_tree
from rerank.data.dataset import Dataset
from rerank.data.runs import load_run
from rerank.data.trec import read_run
from rerank.errors import ConfigError, DataError
from rerank.ranking import Ranking, ScoreKind, TextSource
from rerank.ready import find_pipeline
from rerank.run import Run
from rerank.runtime import Runtime
from rerank.stage import Pipeline, Stage

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Lists:
    """Where ranked lists come from; one of the three fields, or none.

    >>> Lists(pipeline="bm25").made().stages
    (BM25(),)

    Raises:
        ConfigError: more than one is given.
    """

    pipeline: str | None = None
    """A pipeline file, or the name of a ready pipeline such as `bm25`."""
    stages: tuple[Stage, ...] = ()
    """The stages of a pipeline written here."""
    run: FilePath | None = None
    """A run: a TREC file, plain or gzipped, or the folder of a run artifact."""

    def __post_init__(self) -> None:
        given = [name for name in ("pipeline", "stages", "run") if getattr(self, name)]
        if len(given) > 1:
            raise ConfigError(f"lists come from one place, but {' and '.join(given)} are given; keep one")

    @property
    def given(self) -> bool:
        """Whether there is anything that lists come from."""
        return bool(self.pipeline or self.stages or self.run)

    def made(self) -> Pipeline:
        """The pipeline, named or written here.

        Raises:
            ConfigError: no such file or ready pipeline, or stages that cannot be read.
            PipelineError: stages that do not fit.
        """
        return find_pipeline(self.pipeline) if self.pipeline else Pipeline(self.stages)

    def content(self) -> Any:
        """Plain data that is equal for equal lists: a pipeline's stages, or the hash of a run."""
        if not self.given:
            return None
        if self.run:
            path = Path(self.run)
            return {"run": _sha256(path / MANIFEST if path.is_dir() else path)}
        return {"stages": [stage_tree(stage, hashes=True) for stage in self.made().stages]}

    def ranked(self, data: Dataset, runtime: Runtime) -> Ranked:
        """The lists of the queries of `data`.

        Raises:
            DataError: a run that cannot be read, or that ranks documents which the corpus lacks.
        """
        if self.run:
            run = _read(Path(self.run))
            have = set(run.ranking.qids)
            ranking = run.ranking.subset([qid for qid in data.queries if qid in have])
        else:
            run = runtime.run(self.made(), data)
            ranking = run.ranking
        return Ranked(ranking, _corpus(data), run.provenance)

    def scored(self, data: Dataset, documents: Mapping[str, Sequence[int]], runtime: Runtime) -> Ranked:
        """Scores of given documents, as far as they get any.

        A pipeline is given `documents` as its candidates: a reranking stage scores exactly these, a first stage looks
        for documents of its own, and what it does not find has no score.

        Args:
            data: whose queries.
            documents: by query, codes into the corpus's ids.
            runtime: runs the pipeline.
        """
        if self.run:
            return self.ranked(data, runtime)
        queries = {qid: data.queries[qid] for qid in documents}
        offsets = np.zeros(len(documents) + 1, dtype=np.int64)
        np.cumsum([len(codes) for codes in documents.values()], out=offsets[1:])
        codes = np.array([code for some in documents.values() for code in some], dtype=np.int64)
        start = Ranking.start(queries, _corpus(data))
        lists = start.with_documents(offsets, codes, np.zeros(len(codes)), ScoreKind.NONE)
        return self.ranked(dataclasses.replace(data.with_queries(list(queries)), candidates=lists), runtime)


class Ranked:
    """Lists by query id, in the codes of a corpus.

    Args:
        ranking: the lists.
        corpus: whose codes the lists are put in.
        provenance: where they come from.

    Raises:
        DataError: documents that the corpus lacks.
    """

    def __init__(self, ranking: Ranking, corpus: TextSource, provenance: Mapping[str, Any]) -> None:
        self._ranking = ranking.with_source(corpus)
        self._places = {qid: place for place, qid in enumerate(ranking.qids)}
        self.kind = ranking.kind
        self.provenance = {name: value for name, value in provenance.items() if name != "data"}
        """What is known of the pipeline or run file."""

    def codes(self, qid: str) -> Codes:
        """The documents of a query, best first; none where it has no list."""
        return np.asarray(self._ranking.docs[self._rows(qid)], dtype=np.int64)

    def scores(self, qid: str) -> dict[int, float]:
        """The score of each document of a query's list."""
        rows = self._rows(qid)
        return dict(zip(self._ranking.docs[rows].tolist(), self._ranking.scores[rows].tolist(), strict=True))

    def _rows(self, qid: str) -> slice:
        if qid not in self._places:
            return slice(0, 0)
        place = self._places[qid]
        return slice(int(self._ranking.offsets[place]), int(self._ranking.offsets[place + 1]))


def _corpus(data: Dataset) -> TextSource:
    if data.corpus is None:
        raise DataError(f"{data.name} ({data.split}): has no documents to learn from; give a data set with a corpus")
    return data.corpus


def _read(path: Path) -> Run:
    return load_run(path) if path.is_dir() else read_run(path)


def _sha256(path: Path) -> str:
    if not path.is_file():
        raise DataError(f"{path}: no such run; a run is a TREC file or the folder of a run artifact")
    return file_sha256(path)
