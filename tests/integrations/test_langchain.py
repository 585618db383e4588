"""LangChain's own classes run the compressor, the runnable and the retriever."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import pytest
from overlap_engine import Overlap, overlaps

from rerank.data.corpus import MemoryCorpus
from rerank.errors import PipelineError
from rerank.reranking import Rerank
from rerank.retrieve.bm25 import BM25
from rerank.rules.setwise import Setwise

pytestmark = pytest.mark.needs("langchain_core")

TEXTS = {"d1": "a dark hole", "d2": "a black star", "d3": "a black hole", "d4": "light"}
QUERIES = ["black hole", "light", "a star"]


@pytest.fixture
def documents() -> list[Any]:
    from langchain_core.documents import Document

    return [Document(text, id=docno, metadata={"source": docno, "tags": ["x"]}) for docno, text in TEXTS.items()]


@pytest.fixture
def compressor() -> Any:
    from rerank.integrations.langchain import RerankCompressor

    return RerankCompressor(reranker=Rerank(Overlap(), k=None))


def test_documents_come_back_best_first_as_copies_with_their_score(compressor: Any, documents: list[Any]) -> None:
    before = copy.deepcopy(documents)
    found = compressor.compress_documents(documents, "black hole")
    assert [document.id for document in found] == ["d3", "d1", "d2", "d4"]
    assert found[0].metadata == {"source": "d3", "tags": ["x"], "relevance_score": 2.0}
    assert found[0].page_content == "a black hole"
    assert documents == before


def test_top_n_cuts_and_must_be_a_number_above_zero(documents: list[Any]) -> None:
    from pydantic import ValidationError

    from rerank.integrations.langchain import RerankCompressor

    stage = Rerank(Overlap(), Setwise(k=2))
    found = RerankCompressor(reranker=stage, top_n=2).compress_documents(documents, "black hole")
    assert [(document.id, document.metadata["relevance_score"]) for document in found] == [("d3", 1.0), ("d1", 0.5)]
    with pytest.raises(ValidationError, match="greater than 0"):
        RerankCompressor(reranker=stage, top_n=0)
    with pytest.raises(PipelineError, match="finds documents itself"):
        RerankCompressor(reranker=BM25())


def test_no_documents_give_none_without_a_call(compressor: Any) -> None:
    Overlap.asked.clear()
    assert compressor.compress_documents([], "black hole") == []
    assert Overlap.asked == []


def test_async_gives_the_same_in_one_batch(compressor: Any, documents: list[Any]) -> None:
    async def all_at_once() -> list[Any]:
        return await asyncio.gather(*(compressor.acompress_documents(documents, query) for query in QUERIES))

    Overlap.asked.clear()
    found = asyncio.run(all_at_once())
    assert [len(questions) for questions in Overlap.asked] == [12]
    assert found == [compressor.compress_documents(documents, query) for query in QUERIES]


@pytest.mark.needs("langchain_classic")
@pytest.mark.filterwarnings("ignore")  # LangChain's own
def test_it_works_in_a_compression_retriever(compressor: Any, documents: list[Any]) -> None:
    from langchain_classic.retrievers import ContextualCompressionRetriever
    from langchain_core.retrievers import BaseRetriever

    class Everything(BaseRetriever):
        def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Any]:
            return documents

    retriever = ContextualCompressionRetriever(base_compressor=compressor, base_retriever=Everything())
    expected = [compressor.compress_documents(documents, query) for query in QUERIES]
    assert [retriever.invoke(query) for query in QUERIES] == expected
    assert retriever.batch(QUERIES) == expected
    assert asyncio.run(retriever.abatch(QUERIES)) == expected


def test_it_is_a_runnable_in_a_chain(compressor: Any, documents: list[Any]) -> None:
    from langchain_core.runnables import RunnableLambda, RunnablePassthrough

    chain = (
        {"query": RunnablePassthrough(), "documents": RunnableLambda(lambda query: documents)}
        | compressor.as_runnable()
        | RunnableLambda(lambda found: [document.id for document in found])
    )
    expected = [[d.id for d in compressor.compress_documents(documents, query)] for query in QUERIES]
    assert chain.invoke("black hole") == ["d3", "d1", "d2", "d4"]
    assert chain.batch(QUERIES) == expected
    assert asyncio.run(chain.abatch(QUERIES)) == expected


def test_a_pipeline_with_a_first_stage_is_a_retriever() -> None:
    from rerank.integrations.langchain import RerankRetriever

    retriever = RerankRetriever(pipeline=BM25(k=3) >> Rerank(Overlap(), k=None), corpus=MemoryCorpus(TEXTS))
    found = retriever.invoke("black hole")
    assert found[0].id == "d3"
    assert [document.metadata["relevance_score"] for document in found] == sorted(
        overlaps("black hole", [document.page_content for document in found]), reverse=True
    )
    assert asyncio.run(retriever.ainvoke("black hole")) == found
    with pytest.raises(PipelineError, match="needs documents"):
        RerankRetriever(pipeline=Rerank(Overlap()), corpus=MemoryCorpus(TEXTS))
