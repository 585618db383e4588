"""MTEB: pipelines as search models, and pointwise rerankers as cross-encoders.

Extra: `pip install 'rerank-pipelines[mteb]'`.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from rerank.extras import need

need("mteb", "mteb", "rerank.integrations.mteb")

from mteb._create_dataloaders import create_dataloader
from mteb.models import ModelMeta
from mteb.types import PromptType

from rerank.config import stage_fingerprint
from rerank.data.corpus import MemoryCorpus
from rerank.data.trec import spaced_scores
from rerank.errors import ConfigError, DataError, PipelineError
from rerank.integrations.hosted import (
    Hosted,
    Rerankable,
    listed,
    only_orders,
    relevance,
    reranker_of,
    reranking_stage,
    stage_of,
)
from rerank.ranking import Ranking, ScoreKind
from rerank.stage import DOCUMENTS, Flow, Stage


class RerankSearch:
    """A pipeline as what MTEB calls a search model: `mteb.evaluate(RerankSearch("bm25"), tasks)`.

    In a retrieval task the pipeline searches the task's corpus, so it begins with a first stage.  In a reranking task
    it reranks exactly the task's candidates, in the order in which the task gives them, so it starts from lists.  This
    fits every kind of reranker.  Scores fall strictly along a list, so that MTEB's measures read the order meant.

    >>> from rerank import BM25
    >>> RerankSearch(BM25()).mteb_model_meta.name
    'rerank/bm25'

    Args:
        pipeline: a stage or pipeline, its name or file, a model's name, or a `Reranker`, whose stage is taken.
        name: what MTEB files results under, as `organisation/model`; default made from the pipeline's name.
        language: ISO 639-1 code of the tasks' language, for stages that analyse words.
        device: what models run on: `auto`, `cpu`, `cuda`, `cuda:1`, ...
    """

    def __init__(
        self, pipeline: Rerankable, name: str | None = None, language: str = "en", device: str = "auto"
    ) -> None:
        stage = stage_of(pipeline)
        self._hosted = Hosted(stage, device)
        self._language = language
        self._corpus: MemoryCorpus | None = None
        self.mteb_model_meta = _meta(stage, name, [])

    def index(
        self,
        corpus: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        encode_kwargs: Mapping[str, Any],
        num_proc: int | None = None,
    ) -> None:
        """Takes the corpus; indexes are built by the first search that needs them."""
        texts = _texts(corpus, task_metadata, PromptType.document, encode_kwargs, num_proc)
        self._corpus = MemoryCorpus(dict(zip(corpus["id"], texts, strict=True)), self._language)

    def search(
        self,
        queries: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        top_k: int,
        encode_kwargs: Mapping[str, Any],
        top_ranked: Mapping[str, list[str]] | None = None,
        num_proc: int | None = None,
    ) -> dict[str, dict[str, float]]:
        """`{qid: {docno: score}}`, at most `top_k` documents each, all queries in one batch.

        Raises:
            PipelineError: the pipeline starts from lists and the task has none, or the other way round.
            DataError: a candidate that the corpus lacks, or no corpus yet.
        """
        if self._corpus is None:
            raise DataError("RerankSearch: no corpus yet; call index first")
        texts = _texts(queries, task_metadata, PromptType.query, encode_kwargs, num_proc)
        start = Ranking.start(dict(zip(queries["id"], texts, strict=True)), self._corpus)
        if top_ranked is not None:
            reranking_stage(self._hosted.stage)
            # A list may name a document twice; its first place counts.
            start = listed(start, [list(dict.fromkeys(top_ranked.get(q, ()))) for q in start.qids], self._corpus.ids)
        else:
            self._hosted.stage.fits(start)
        ranking = self._hosted.rank(start).cut(top_k)
        scores = spaced_scores(relevance(ranking).astype(np.float32), ranking.offsets)
        docnos, bounds = ranking.docnos().tolist(), ranking.offsets.tolist()
        return {
            qid: dict(zip(docnos[a:b], scores[a:b].tolist(), strict=True))
            for qid, a, b in zip(ranking.qids, bounds[:-1], bounds[1:], strict=True)
        }


class RerankCrossEncoder:
    """A reranker as what MTEB calls a cross-encoder: scores for pairs, for reranking and pair tasks.

    This fits stages that score each document for itself; for those that compare, use `RerankSearch`.

    >>> from rerank import CrossEncoderEngine, Rerank
    >>> RerankCrossEncoder(Rerank(CrossEncoderEngine("my-model"), k=None), "me/my-model").mteb_model_meta.name
    'me/my-model'

    Args:
        reranker: a stage or pipeline, its name or file, a model's name, or a `Reranker`.
        name: what MTEB files results under, as `organisation/model`; default made from the stage's name.
        device: what models run on: `auto`, `cpu`, `cuda`, `cuda:1`, ...

    Raises:
        PipelineError: the stage's scores only say the order within a list.
    """

    def __init__(self, reranker: Rerankable, name: str | None = None, device: str = "auto") -> None:
        self._reranker = reranker_of(reranker, device)
        stage = self._reranker.stage
        if only_orders(stage.flow(Flow(frozenset({DOCUMENTS}), ScoreKind.RANK)).kind):
            raise PipelineError(
                f"{stage.label} gives places, and no scores that mean the same in every list; give a pointwise rule "
                "with k=None, or use RerankSearch"
            )
        self.mteb_model_meta = _meta(stage, name, ["cross-encoder"])

    def predict(
        self,
        inputs1: Iterable[Mapping[str, Any]],
        inputs2: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **encode_kwargs: Any,
    ) -> npt.NDArray[np.float32]:
        """One score a pair, all pairs in one batch; `encode_kwargs`, such as a batch size, change nothing.

        Raises:
            DataError: the stage leaves documents out.
        """
        queries = (text for batch in inputs1 for text in batch["text"])
        documents = (text for batch in inputs2 for text in batch["text"])
        return self._reranker.predict(list(zip(queries, documents, strict=True)))


def _texts(
    rows: Any, task_metadata: Any, kind: PromptType, encode_kwargs: Mapping[str, Any], num_proc: int | None
) -> list[str]:
    """The texts as MTEB gives them to its own models: titles, instructions and conversations are joined in.

    MTEB has no public function for this; its own search models call the same one.
    """
    if not len(rows):
        return []
    loader = create_dataloader(rows, task_metadata=task_metadata, prompt_type=kind, num_proc=num_proc, **encode_kwargs)
    return [text for batch in loader for text in batch["text"]]


def _meta(stage: Stage, name: str | None, model_type: list[str]) -> ModelMeta:
    name = name or "rerank/" + (re.sub(r"[^\w.-]+", "-", stage.label).strip("-") or "pipeline")
    # MTEB keeps results by name and revision, so another configuration must be another revision.
    try:
        revision = stage_fingerprint(stage)[:16]
    except ConfigError:  # a stage that only exists in Python: nothing says whether another run's is the same
        revision = uuid.uuid4().hex[:16]
    facts = {"name": name, "revision": revision, "model_type": model_type, "modalities": ["text"]}
    return ModelMeta.create_empty(overwrites=facts)
