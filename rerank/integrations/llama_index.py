"""LlamaIndex: a node postprocessor that reranks.

Extra: `pip install 'rerank-pipelines[llama-index]'`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from rerank.extras import need

need("llama_index.core", "llama-index", "rerank.integrations.llama_index")

from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
from pydantic import Field, PositiveInt, PrivateAttr

from rerank.integrations.hosted import placed, reranker_of
from rerank.reranker import RankedDocs, Reranker

_dispatcher = get_dispatcher(__name__)


class RerankPostprocessor(BaseNodePostprocessor):  # type: ignore[misc]
    """A node postprocessor, for any query engine's `node_postprocessors`.

    It gives new `NodeWithScore` objects, best first (see `rerank.integrations.hosted.relevance` for the scores); those
    given stay as they are, and of them only the order counts, not the scores.

    >>> from llama_index.core.schema import TextNode
    >>> from rerank import Cut
    >>> nodes = [NodeWithScore(node=TextNode(text=text)) for text in ("a hole", "a star")]
    >>> [hit.text for hit in RerankPostprocessor(reranker=Cut(1)).postprocess_nodes(nodes, query_str="black holes")]
    ['a hole']
    """

    reranker: Any = Field(exclude=True)
    """A stage or pipeline that starts from lists, its name or file, a model's name, or a `Reranker`."""
    top_n: PositiveInt | None = None
    """How many nodes come back; None: all that the stage leaves."""
    metadata_mode: MetadataMode = MetadataMode.EMBED
    """Which metadata are read with a node's text; `MetadataMode.NONE`: the text alone."""
    device: str = "auto"
    """What models run on: `auto`, `cpu`, `cuda`, `cuda:1`, ...; a `Reranker` says it itself."""

    _reranker: Reranker = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Looks at the stage; models load at the first call."""
        self._reranker = reranker_of(self.reranker, self.device)

    @classmethod
    def class_name(cls) -> str:
        """The name that LlamaIndex knows the class by."""
        return "RerankPostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = _checked(query_bundle)
        if not nodes:
            return []
        with self._observed(query, nodes) as found:
            found += self._scored(nodes, self._reranker.rank(query.query_str, self._texts(nodes), self.top_n))
        return found

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = _checked(query_bundle)
        if not nodes:
            return []
        with self._observed(query, nodes) as found:
            found += self._scored(nodes, await self._reranker.arank(query.query_str, self._texts(nodes), self.top_n))
        return found

    @contextlib.contextmanager
    def _observed(self, query: QueryBundle, nodes: list[NodeWithScore]) -> Iterator[list[NodeWithScore]]:
        """Tells observers what goes in and, once the block has filled the list that it gets, what came out."""
        name, top_n = self._reranker.stage.label, self.top_n or len(nodes)
        payload = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: name,
            EventPayload.QUERY_STR: query.query_str,
            EventPayload.TOP_K: top_n,
        }
        found: list[NodeWithScore] = []
        _dispatcher.event(ReRankStartEvent(query=query, nodes=nodes, top_n=top_n, model_name=name))
        with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
            yield found
            event.on_end(payload={EventPayload.NODES: found})
        _dispatcher.event(ReRankEndEvent(nodes=found))

    def _texts(self, nodes: list[NodeWithScore]) -> list[str]:
        return [node.node.get_content(metadata_mode=self.metadata_mode) for node in nodes]

    def _scored(self, nodes: list[NodeWithScore], docs: RankedDocs) -> list[NodeWithScore]:
        return [
            NodeWithScore(node=nodes[place].node, score=score) for place, score in placed(self._reranker.stage, docs)
        ]


def _checked(query: QueryBundle | None) -> QueryBundle:
    if query is None:
        raise ValueError("RerankPostprocessor needs the query; give query_bundle or query_str")
    return query
