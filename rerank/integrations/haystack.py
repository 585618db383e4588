"""Haystack: a ranker component.

Import it as `haystack_integrations.components.rankers.rerank`, which the wheel brings: Haystack loads saved pipelines
only from there and from its own packages.  Extra: `pip install 'rerank-pipelines[haystack]'`.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from rerank.extras import need

need("haystack", "haystack", "rerank.integrations.haystack")

from haystack import Document, component, default_from_dict, default_to_dict

from rerank.config import to_yaml
from rerank.integrations.hosted import Rerankable, placed, reranker_of
from rerank.reranker import RankedDocs, Reranker
from rerank.yamlfile import parse_yaml


@component
class RerankRanker:
    """A ranker: documents in, the same documents in a new order out, with scores.

    The scores are those of `rerank.integrations.hosted.relevance`; of the documents given only the order counts, and of
    equal ids only the first.  A pipeline that holds it can be dumped and loaded: the stage goes along as plain data.

    >>> from rerank import Cut
    >>> ranker = RerankRanker(Cut(1))
    >>> found = ranker.run("black holes", [Document(content="a hole"), Document(content="a star")])
    >>> [document.content for document in found["documents"]]
    ['a hole']

    Args:
        reranker: a stage or pipeline that starts from lists, its name or file, a model's name, a `Reranker`, or what a
            pipeline file says (a mapping with `stages`).  A name is looked up when the component warms up.
        top_k: how many documents come back; None: all that the stage leaves.
        meta_fields: names of `Document.meta` whose values are read before the content, each on a line of its own.
        device: what models run on: `auto`, `cpu`, `cuda`, `cuda:1`, ...; a `Reranker` says it itself.

    Raises:
        ValueError: `top_k` is below 1.
        PipelineError: the stage cannot start from lists.
    """

    # Where the class is found from outside, and so what dumped pipelines call it.
    __module__ = "haystack_integrations.components.rankers.rerank"

    def __init__(
        self,
        reranker: Rerankable,
        top_k: int | None = None,
        meta_fields: Sequence[str] = (),
        device: str = "auto",
    ) -> None:
        self.reranker = reranker
        self.top_k = _checked(top_k)
        self.meta_fields = list(meta_fields)
        self.device = device
        self._lock = threading.Lock()
        self._made = None if isinstance(reranker, str) else reranker_of(reranker, device)

    def warm_up(self) -> None:
        """Loads the models, by reranking a list of one; else the first run does."""
        self._reranker.rank("warm up", ["a text"])

    def close(self) -> None:
        """Frees what was loaded."""
        with self._lock:
            if self._made is not None:
                self._made.close()

    def to_dict(self) -> dict[str, Any]:
        """The component as plain data.

        Raises:
            ConfigError: the stage has no YAML form.
        """
        reranker = self.reranker
        if not isinstance(reranker, str | Mapping):
            reranker = parse_yaml(to_yaml(self._reranker.stage)).value
        data: dict[str, Any] = default_to_dict(
            self, reranker=reranker, top_k=self.top_k, meta_fields=self.meta_fields, device=self.device
        )
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RerankRanker:
        """The component that `to_dict` wrote."""
        made: RerankRanker = default_from_dict(cls, data)
        return made

    @component.output_types(documents=list[Document])  # type: ignore[untyped-decorator]
    def run(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, list[Document]]:
        """Copies of the documents with their new scores, best first; `top_k` goes before the component's own.

        Raises:
            ValueError: `top_k` is below 1.
        """
        given = _distinct(documents)
        limit = self.top_k if top_k is None else _checked(top_k)
        return self._scored(given, self._reranker.rank(query, self._texts(given), limit))

    @component.output_types(documents=list[Document])  # type: ignore[untyped-decorator]
    async def run_async(
        self, query: str, documents: list[Document], top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """The same without blocking the event loop; calls that wait side by side are computed together."""
        given = _distinct(documents)
        limit = self.top_k if top_k is None else _checked(top_k)
        return self._scored(given, await self._reranker.arank(query, self._texts(given), limit))

    @property
    def _reranker(self) -> Reranker:
        with self._lock:
            if self._made is None:
                self._made = reranker_of(self.reranker, self.device)
            return self._made

    def _texts(self, documents: list[Document]) -> list[str]:
        return ["\n".join([*self._meta(document), document.content or ""]) for document in documents]

    def _meta(self, document: Document) -> list[str]:
        return [str(document.meta[name]) for name in self.meta_fields if document.meta.get(name)]

    def _scored(self, documents: list[Document], docs: RankedDocs) -> dict[str, list[Document]]:
        found = placed(self._reranker.stage, docs)
        return {"documents": [dataclasses.replace(documents[place], score=score) for place, score in found]}


def _distinct(documents: list[Document]) -> list[Document]:
    """The documents without those whose id came before."""
    first: dict[str, Document] = {}
    for document in documents:
        first.setdefault(document.id, document)
    return list(first.values())


def _checked(top_k: int | None) -> int | None:
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}, at least 1 is needed")
    return top_k
