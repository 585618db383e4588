"""LangChain: a document compressor that reranks, the same as a runnable, and a retriever.

Extra: `pip install 'rerank-pipelines[langchain]'`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rerank.extras import need

need("langchain_core", "langchain", "rerank.integrations.langchain")

from langchain_core.callbacks import CallbackManagerForRetrieverRun, Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableLambda
from pydantic import PositiveInt, PrivateAttr

from rerank.integrations.hosted import Hosted, placed, relevance, reranker_of, searching_stage
from rerank.ranking import Ranking
from rerank.reranker import RankedDocs, Reranker


class RerankCompressor(BaseDocumentCompressor):  # type: ignore[misc]
    """A document compressor, e.g. for LangChain's `ContextualCompressionRetriever`.

    It gives copies of the documents, best first, with `metadata["relevance_score"]` (see
    `rerank.integrations.hosted.relevance`).  Only the order of the documents given counts, not their scores.

    >>> from langchain_core.documents import Document
    >>> from rerank import Cut
    >>> RerankCompressor(reranker=Cut(1)).compress_documents([Document("a hole"), Document("a star")], "black holes")
    [Document(metadata={'relevance_score': 1.0}, page_content='a hole')]
    """

    reranker: Any
    """A stage or pipeline that starts from lists, its name or file, a model's name, or a `Reranker`."""
    top_n: PositiveInt | None = None
    """How many documents come back; None: all that the stage leaves."""
    device: str = "auto"
    """What models run on: `auto`, `cpu`, `cuda`, `cuda:1`, ...; a `Reranker` says it itself."""

    _reranker: Reranker = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Looks at the stage; models load at the first call."""
        self._reranker = reranker_of(self.reranker, self.device)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """The documents in their new order; calls from several threads wait for each other."""
        return self._scored(documents, self._reranker.rank(query, _texts(documents), self.top_n))

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """The same without blocking the event loop; calls that wait side by side are computed together."""
        return self._scored(documents, await self._reranker.arank(query, _texts(documents), self.top_n))

    def as_runnable(self) -> Runnable[dict[str, Any], list[Document]]:
        """The same as a runnable, from `{"query": ..., "documents": [...]}` to a list of documents."""

        def rerank(given: dict[str, Any]) -> list[Document]:
            return self.compress_documents(given["documents"], given["query"])

        async def arerank(given: dict[str, Any]) -> list[Document]:
            return await self.acompress_documents(given["documents"], given["query"])

        return RunnableLambda(rerank, arerank)

    def _scored(self, documents: Sequence[Document], docs: RankedDocs) -> list[Document]:
        """Copies that know their scores; the caller's documents stay as they are."""
        return [
            documents[place].model_copy(update={"metadata": {**documents[place].metadata, "relevance_score": score}})
            for place, score in placed(self._reranker.stage, docs)
        ]


class RerankRetriever(BaseRetriever):  # type: ignore[misc]
    """A retriever over a pipeline that begins with a first stage, and the corpus it searches.

    >>> from rerank import BM25, MemoryCorpus
    >>> corpus = MemoryCorpus({"d1": "black holes", "d2": "white dwarfs"})
    >>> RerankRetriever(pipeline=BM25(k=1), corpus=corpus).invoke("dwarfs")
    [Document(id='d2', metadata={'relevance_score': ...}, page_content='white dwarfs')]
    """

    pipeline: Any
    """The pipeline, its name or file."""
    corpus: Any
    """What is searched: `Dataset.corpus`, `Corpus`, or a `MemoryCorpus`."""
    device: str = "auto"
    """What models run on: `auto`, `cpu`, `cuda`, `cuda:1`, ..."""

    _hosted: Hosted = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Looks at the pipeline; indexes and models load at the first call."""
        self._hosted = Hosted(searching_stage(self.pipeline), self.device)

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        ranking = self._hosted.rank(Ranking.start({"q": query}, self.corpus))
        return [
            Document(text, id=docno, metadata={"relevance_score": score})
            for docno, text, score in zip(
                ranking.docnos().tolist(), ranking.texts(), relevance(ranking).tolist(), strict=True
            )
        ]


def _texts(documents: Sequence[Document]) -> list[str]:
    return [document.page_content for document in documents]
