"""PyTerrier: stages as transformers, and any transformer as a stage.

Frames have PyTerrier's columns: qid, query, docno, text, score, and rank from 0.  Java is not needed.
Extra: `pip install 'rerank-pipelines[pyterrier]'`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from rerank.extras import need

need("pyterrier", "pyterrier", "rerank.integrations.pyterrier")

import pandas as pd
import pyterrier as pt

from rerank.data.corpus import MemoryCorpus
from rerank.data.trec import spaced_scores
from rerank.errors import DataError
from rerank.ids import MemoryIds
from rerank.integrations.hosted import Hosted, Rerankable, listed, relevance, reranking_stage, searching_stage
from rerank.ranking import Ranking, TextSource
from rerank.runtime import Runtime
from rerank.stage import DOCUMENTS, Flow, Stage


class RerankTransformer(pt.Transformer):  # type: ignore[misc]
    """A reranker: results in, the same results in a new order out, all queries of a frame in one batch.

    Rows come out best first with new `score` and `rank`, and with all other columns as they were.  Scores fall strictly
    along a list, so that every measure reads the order meant; otherwise they are those of
    `rerank.integrations.hosted.relevance`.  The input's order is that of its scores, and among equals of its ranks.

    >>> from rerank import Cut
    >>> results = pd.DataFrame([["q1", "black holes", "d1", "a hole", 2.0], ["q1", "black holes", "d2", "a star", 3.0]],
    ...     columns=["qid", "query", "docno", "text", "score"])
    >>> RerankTransformer(Cut(1))(results)[["docno", "rank"]].values.tolist()
    [['d2', 0]]

    Args:
        reranker: a stage or pipeline that starts from lists, its name or file, a model's name, or a `Reranker`, whose
            stage is taken.
        text_field: the column that holds the documents' texts.
        device: what models run on: `auto`, `cpu`, `cuda`, `cuda:1`, ...
    """

    def __init__(self, reranker: Rerankable, text_field: str = "text", device: str = "auto") -> None:
        self.text_field = text_field
        self._hosted = Hosted(reranking_stage(reranker), device)

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """The reranked frame; an empty one gives an empty one with the same columns."""
        with pt.validate.any(inp, context=self) as check:
            check.result_frame(extra_columns=["query", self.text_field])
        frame = in_order(inp)
        texts: dict[str, str] = {}
        for docno, text in zip(frame["docno"], frame[self.text_field], strict=True):
            if texts.setdefault(docno, text) != text:
                # Texts made for the query, such as snippets: one document has several, so each query goes alone.
                parts = [self.transform(part) for _, part in frame.groupby("qid", sort=False)]
                return pd.concat(parts, ignore_index=True)
        if not texts:
            return _with_scores(frame, np.zeros(0), np.zeros(0, dtype=np.int64))
        ranking = self._hosted.rank(_ranking(frame, MemoryCorpus(texts)))
        keys = zip(frame["qid"], frame["docno"], strict=True)
        rows = {key: row for row, key in enumerate(keys)}
        qids = np.array(ranking.qids, dtype=object)[ranking.row_queries()]
        kept = [rows[key] for key in zip(qids.tolist(), ranking.docnos().tolist(), strict=True)]
        return _with_scores(frame.iloc[kept], _spaced(ranking), ranking.positions())

    def __repr__(self) -> str:
        return f"RerankTransformer({self._hosted.stage!r})"


class SearchTransformer(pt.Transformer):  # type: ignore[misc]
    """A retriever: queries in, results out, found by a pipeline that begins with a first stage.

    >>> from rerank import BM25, MemoryCorpus
    >>> search = SearchTransformer(BM25(k=1), MemoryCorpus({"d1": "black holes", "d2": "white dwarfs"}))
    >>> search.search("dwarfs")[["qid", "docno", "rank"]].values.tolist()
    [['1', 'd2', 0]]

    Args:
        pipeline: the pipeline, its name or file.
        corpus: what is searched: `Dataset.corpus`, `Corpus`, or a `MemoryCorpus`.
        text_field: a column for the documents' texts, where a transformer after this one needs them.
        device: what models run on: `auto`, `cpu`, `cuda`, `cuda:1`, ...
    """

    def __init__(
        self, pipeline: Rerankable, corpus: TextSource, text_field: str | None = None, device: str = "auto"
    ) -> None:
        self.text_field = text_field
        self._corpus = corpus
        self._hosted = Hosted(searching_stage(pipeline), device)

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """The results of every query, with the columns of the queries."""
        with pt.validate.any(inp, context=self) as check:
            check.columns(includes=["qid", "query"])
        topics = inp[pt.model.query_columns(inp)].drop_duplicates("qid").reset_index(drop=True)
        queries = dict(zip(topics["qid"].astype(str), topics["query"].astype(str), strict=True))
        ranking = self._hosted.rank(Ranking.start(queries, self._corpus))
        frame = topics.iloc[ranking.row_queries()].assign(docno=ranking.docnos())
        if self.text_field is not None:
            frame[self.text_field] = np.array(ranking.texts(), dtype=object)
        return _with_scores(frame, _spaced(ranking), ranking.positions())

    def __repr__(self) -> str:
        return f"SearchTransformer({self._hosted.stage!r})"


@dataclass(frozen=True, repr=False)
class TransformerStage(Stage):
    """Any PyTerrier transformer as a stage; like `apply`, it has no YAML form and is never cached.

    A transformer that gives results gives the lists (a query without results gets an empty one), one that gives
    queries only changes the queries' texts.

    >>> from rerank import Cut
    >>> TransformerStage(pt.Transformer.identity()) >> Cut(3)
    TransformerStage(transformer=<pyterrier.transformer.IdentityTransformer ...>) >> Cut(k=3)
    """

    transformer: Any
    """The transformer, or several joined by PyTerrier's operators."""
    text_field: str | None = "text"
    """The column in which it gets the documents' texts, where the lists have them; None: it needs none."""

    needs: ClassVar[frozenset[str]] = frozenset()

    @property
    def label(self) -> str:
        """The transformer's class name."""
        return type(self.transformer).__name__

    def flow(self, before: Flow) -> Flow:
        """Documents with scores of any kind: only running the transformer tells."""
        return Flow(before.has | {DOCUMENTS}, None)

    def transform(self, ranking: Ranking, runtime: Runtime) -> Ranking:
        """What the transformer makes of the ranking's frame.

        Raises:
            DataError: neither queries nor results came out.
            RankingError: scores that are not numbers, or a document twice in a list.
        """
        given = self._frame(ranking)
        out = self.transformer(given)
        if "qid" not in out:
            raise DataError(
                f"{self.label}: gave a frame without qid ({', '.join(map(str, out.columns))}); a stage needs "
                "queries or results"
            )
        texts = dict(zip(out["qid"].astype(str), out["query"].astype(str), strict=True)) if "query" in out else {}
        queries = tuple(texts.get(qid, text) for qid, text in zip(ranking.qids, ranking.queries, strict=True))
        if queries != ranking.queries:
            ranking = ranking.with_queries(queries)
        if "docno" not in out:
            return ranking
        out = in_order(out)
        return _ranking(out, self._source(out, ranking), ranking)

    def _frame(self, ranking: Ranking) -> pd.DataFrame:
        if not len(ranking.docs):
            return pd.DataFrame({"qid": list(ranking.qids), "query": list(ranking.queries)}, dtype=object)
        frame = ranking.to_frame()
        if self.text_field is not None and ranking.source is not None:
            frame[self.text_field] = np.array(ranking.texts(), dtype=object)
        return frame

    def _source(self, out: pd.DataFrame, ranking: Ranking) -> TextSource | None:
        """Where the results' texts are: where they were, else the texts that came with them."""
        if ranking.source is not None and (ranking.source.ids.find(list(out["docno"])) >= 0).all():
            return ranking.source
        if self.text_field in out and len(out):
            return MemoryCorpus(dict(zip(out["docno"], out[self.text_field], strict=True)))
        return None


def in_order(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows query by query as these come, best first: by score, among equals by rank, then as given; ids as text."""
    frame = frame.assign(qid=frame["qid"].astype(str), docno=frame["docno"].astype(str)).reset_index(drop=True)
    keys = [pd.factorize(frame["qid"])[0]]
    keys += [-frame["score"].to_numpy(dtype=np.float64)] if "score" in frame else []
    keys += [frame["rank"].to_numpy(dtype=np.float64)] if "rank" in frame else []
    return frame.iloc[np.lexsort(keys[::-1])].reset_index(drop=True)


def _ranking(frame: pd.DataFrame, source: TextSource | None, start: Ranking | None = None) -> Ranking:
    """The lists of a frame that is in order, for the queries of `start`, else for its own."""
    lists: dict[str, list[str]] = {qid: [] for qid in start.qids} if start is not None else {}
    for qid, docno in zip(frame["qid"], frame["docno"], strict=True):
        lists.setdefault(qid, []).append(docno)
    if start is None:
        start = Ranking.start(dict(zip(frame["qid"], frame["query"].astype(str), strict=True)))
    scores = frame["score"].to_numpy(dtype=np.float64) if "score" in frame else None
    ids = source.ids if source is not None else MemoryIds(list(dict.fromkeys(frame["docno"])))
    return listed(dataclasses.replace(start, source=source), list(lists.values()), ids, scores)


def _spaced(ranking: Ranking) -> npt.NDArray[np.float64]:
    return spaced_scores(relevance(ranking).astype(np.float32), ranking.offsets).astype(np.float64)


def _with_scores(
    frame: pd.DataFrame, scores: npt.NDArray[np.float64], ranks: npt.NDArray[np.int64] | Sequence[int]
) -> pd.DataFrame:
    return frame.assign(score=scores, rank=ranks).reset_index(drop=True)
