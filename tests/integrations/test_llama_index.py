"""LlamaIndex's own classes run the postprocessor, and its observers hear of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from overlap_engine import Overlap

from rerank.reranking import Rerank
from rerank.rules.setwise import Setwise

pytestmark = [
    pytest.mark.needs("llama_index"),
    pytest.mark.filterwarnings("ignore"),  # LlamaIndex's own
]

TEXTS = {"d1": "a dark hole", "d2": "a black star", "d3": "a black hole", "d4": "light"}


@pytest.fixture
def nodes() -> list[Any]:
    from llama_index.core.schema import NodeWithScore, TextNode

    scores = (0.75, None, 0.5, 0.25)
    return [
        NodeWithScore(node=TextNode(text=text, id_=docno, metadata={"title": f"title{docno}"}), score=score)
        for (docno, text), score in zip(TEXTS.items(), scores, strict=True)
    ]


@pytest.fixture
def postprocessor() -> Any:
    from rerank.integrations.llama_index import RerankPostprocessor

    return RerankPostprocessor(reranker=Rerank(Overlap(), k=None))


def test_nodes_come_back_best_first_in_new_objects(postprocessor: Any, nodes: list[Any]) -> None:
    found = postprocessor.postprocess_nodes(nodes, query_str="black hole")
    assert [(hit.node_id, hit.score) for hit in found] == [("d3", 2.0), ("d1", 1.0), ("d2", 1.0), ("d4", 0.0)]
    assert [node.score for node in nodes] == [0.75, None, 0.5, 0.25]
    assert found[0].node is nodes[2].node


def test_top_n_cuts_and_a_comparing_rule_gives_one_over_the_rank(nodes: list[Any]) -> None:
    from rerank.integrations.llama_index import RerankPostprocessor

    stage = Rerank(Overlap(), Setwise(k=2))
    found = RerankPostprocessor(reranker=stage, top_n=2).postprocess_nodes(nodes, query_str="black hole")
    assert [(hit.node_id, hit.score) for hit in found] == [("d3", 1.0), ("d1", 0.5)]
    with pytest.raises(ValueError, match="greater than 0"):
        RerankPostprocessor(reranker=stage, top_n=0)


def test_the_metadata_mode_says_what_is_read(nodes: list[Any]) -> None:
    from llama_index.core.schema import MetadataMode

    from rerank.integrations.llama_index import RerankPostprocessor

    stage = Rerank(Overlap(), k=None)
    with_titles = RerankPostprocessor(reranker=stage).postprocess_nodes(nodes, query_str="titled4")
    assert (with_titles[0].node_id, with_titles[0].score) == ("d4", 1.0)
    bare = RerankPostprocessor(reranker=stage, metadata_mode=MetadataMode.NONE)
    assert [hit.score for hit in bare.postprocess_nodes(nodes, query_str="titled4")] == [0.0] * 4


def test_a_query_is_needed_and_nodes_are_not(postprocessor: Any, nodes: list[Any]) -> None:
    with pytest.raises(ValueError, match="needs the query; give query_bundle or query_str"):
        postprocessor.postprocess_nodes(nodes)
    Overlap.asked.clear()
    assert postprocessor.postprocess_nodes([], query_str="black hole") == []
    assert Overlap.asked == []


def test_async_gives_the_same(postprocessor: Any, nodes: list[Any]) -> None:
    async def all_at_once() -> list[Any]:
        queries = ("black hole", "light")
        return await asyncio.gather(*(postprocessor.apostprocess_nodes(nodes, query_str=query) for query in queries))

    ids = [[hit.node_id for hit in found] for found in asyncio.run(all_at_once())]
    assert ids == [["d3", "d1", "d2", "d4"], ["d4", "d1", "d2", "d3"]]


def test_observers_hear_of_start_and_end(nodes: list[Any]) -> None:
    from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
    from llama_index.core.instrumentation import get_dispatcher
    from llama_index.core.instrumentation.event_handlers import BaseEventHandler

    from rerank.integrations.llama_index import RerankPostprocessor

    heard: list[Any] = []

    class Listener(BaseEventHandler):
        def handle(self, event: Any, **more: Any) -> None:
            heard.append(event)

    dispatcher = get_dispatcher()
    listener = Listener()
    dispatcher.add_event_handler(listener)
    debug = LlamaDebugHandler(print_trace_on_end=False)
    postprocessor = RerankPostprocessor(
        reranker=Rerank(Overlap(), k=None), top_n=1, callback_manager=CallbackManager([debug])
    )
    try:
        postprocessor.postprocess_nodes(nodes, query_str="black hole")
    finally:
        dispatcher.event_handlers.remove(listener)
    start, end = (event for event in heard if event.class_name().startswith("ReRank"))
    assert (start.query.query_str, len(start.nodes), start.top_n, start.model_name) == ("black hole", 4, 1, "rerank")
    assert [hit.node_id for hit in end.nodes] == ["d3"]
    assert len(debug.get_event_pairs(CBEventType.RERANKING)) == 1


def test_it_works_in_a_query_engine(postprocessor: Any, nodes: list[Any]) -> None:
    from llama_index.core.base.base_retriever import BaseRetriever
    from llama_index.core.llms import MockLLM
    from llama_index.core.query_engine import RetrieverQueryEngine

    class Everything(BaseRetriever):
        def _retrieve(self, query_bundle: Any) -> list[Any]:
            return nodes

    engine = RetrieverQueryEngine.from_args(Everything(), llm=MockLLM(), node_postprocessors=[postprocessor])
    assert [hit.node_id for hit in engine.query("black hole").source_nodes] == ["d3", "d1", "d2", "d4"]


def test_it_names_itself_and_is_written_without_the_stage(postprocessor: Any) -> None:
    assert postprocessor.class_name() == "RerankPostprocessor"
    assert "reranker" not in postprocessor.to_dict()
