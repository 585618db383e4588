"""What requests come down to: one list to rerank, queries to search for, or texts to embed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rerank.reranker import Reasoning, list_qid
from rerank.reranking import Rerank
from rerank.rules.rule import Answer, Group, Outcome, Steps
from rerank.serve.errors import failed
from rerank.serve.models import Served
from rerank.serve.queueing import ApartWork, Lane, Work


@dataclass(frozen=True)
class RerankJob:
    """A list to rerank, whatever dialect asked for it."""

    query: str
    documents: tuple[str, ...]
    model: object = None
    """What the client calls the model."""
    per_document: int | None = None
    """Tokens of a document at most."""
    per_pair: int | None = None
    """Tokens of a pair at most; None: what the model reads."""
    side: str = "right"
    """Which end of a text is cut off."""
    truncate: bool | None = None
    """Whether long documents are cut; None: as the server is set."""
    explain: bool = False
    """Whether what the model writes is wanted too."""


@dataclass(frozen=True)
class EmbedJob:
    """Texts to embed."""

    texts: tuple[str, ...]
    model: object = None
    side: str = "document"
    """`query` or `document`: which of the model's prompts stands before them."""
    truncate: bool | None = None
    dimensions: int | None = None


class Scored(NamedTuple):
    """One document of a reranked list."""

    index: int  # type: ignore[assignment]  # a place is what everybody calls so
    score: float
    """From 0 to 1."""
    raw: float
    """The stage's own."""


@dataclass
class Took:
    """What answering took."""

    n_documents: int = 0
    """How many documents, texts or queries were worked on."""
    tokens: int = 0
    truncated: int = 0
    queue_seconds: float = 0.0
    tokenize_seconds: float = 0.0
    inference_seconds: float = 0.0


@dataclass
class Answered:
    """What a request came to."""

    served: Served
    took: Took


@dataclass
class Reranked(Answered):
    """A list, best first."""

    results: list[Scored]
    warnings: list[str] = field(default_factory=list)
    counts: Mapping[str, int] = field(default_factory=dict)
    """What the rule counted: `calls`, `waves`, ..."""
    reasoning: Sequence[Reasoning] | None = None
    """What the model wrote; None where nobody asked for it, or the model writes nothing."""


@dataclass
class Searched(Answered):
    """What was found for queries."""

    lists: list[dict[str, Any]]
    """Of each query `hits`, `kind`, `tokens`."""


@dataclass
class Embedded(Answered):
    """Vectors of texts."""

    vectors: list[bytes]
    """Each float32, little-endian."""


class RuleWork(Work):
    """A list whose rule runs here, and whose questions are answered by the worker."""

    def __init__(
        self, served: Served, stage: Rerank, query: str, documents: Sequence[str], *, explains: bool = False
    ) -> None:
        n = len(documents) if stage.k is None else min(stage.k, len(documents))
        size = sum(map(len, documents[:n])) + len(query) * n
        super().__init__(Lane(served.name, "ask"), served.estimate, n, size)
        self._stage, self._limit = stage, served.limit
        self._query, self._documents, self._explains = query, documents, explains
        self._qid = list_qid(query, documents)
        self.lost = 0
        """Answers that said nothing."""

    def steps(self) -> Steps:
        return self._stage.rule.steps(self.n_documents, self._qid)

    def item(self, group: Group) -> Any:
        names = [f"{member:09d}" for member in group.members]
        texts = [self._documents[member] for member in group.members]
        return [self._qid, self._query, names, texts, self._explains]

    def characters(self, group: Group) -> int:
        return len(self._query) + sum(len(self._documents[member]) for member in group.members)

    def cost(self, group: Group) -> int:
        return _at_most(super().cost(group), self._limit)

    def take(self, group: Group, value: Any) -> Answer:
        if any(score is not None and not math.isfinite(score) for score in value):
            raise failed("the model gave a score that is not a finite number")
        self.lost += all(score is None for score in value)
        return tuple(value)

    def ranked(self, outcome: Outcome) -> tuple[list[int], list[float]]:
        """The order of all documents and their raw scores, as the stage gives them."""
        order = [*outcome.order, *range(self.n_documents, len(self._documents))]
        if self._stage.rule.gives_scores and self._stage.k is None and outcome.scores is not None:
            return order, list(outcome.scores)
        return order, [float(len(order) - place) for place in range(len(order))]


class PairWork(ApartWork):
    """Pairs of texts, each scored by itself."""

    def __init__(self, served: Served, pairs: Sequence[tuple[str, str]]) -> None:
        size = sum(len(query) + len(document) for query, document in pairs)
        super().__init__(Lane(served.name, "ask"), served.estimate, len(pairs), size)
        self._pairs, self._limit = pairs, served.limit

    def item(self, group: Group) -> Any:
        query, document = self._pairs[group.members[0]]
        return [list_qid(query, (document,)), query, ["000000000"], [document], False]

    def characters(self, group: Group) -> int:
        query, document = self._pairs[group.members[0]]
        return len(query) + len(document)

    def cost(self, group: Group) -> int:
        return _at_most(super().cost(group), self._limit)

    def take(self, group: Group, value: Any) -> Answer:
        (score,) = value
        if score is None or not math.isfinite(score):
            raise failed("the model gave no finite score")
        return super().take(group, score)


class ListWork(ApartWork):
    """Lists that the worker ranks as wholes, with a pipeline."""

    def __init__(self, served: Served, lists: Sequence[tuple[str, Sequence[str]]], *, explains: bool = False) -> None:
        self._sizes = [sum(map(len, documents)) + len(query) * len(documents) for query, documents in lists]
        super().__init__(Lane(served.name, "rank"), served.estimate, len(lists), sum(self._sizes))
        self._lists, self._explains = lists, explains

    def item(self, group: Group) -> Any:
        query, documents = self._lists[group.members[0]]
        return [query, list(documents), self._explains]

    def characters(self, group: Group) -> int:
        return self._sizes[group.members[0]]

    def take(self, group: Group, value: Any) -> Answer:
        for documents, text in value.get("reasoning", ()):
            self.hear(documents, text)
        return super().take(group, value)

    def ranked(self) -> list[tuple[list[int], list[float]]]:
        """Of each list, the order of the documents that the pipeline kept, and their scores."""
        return [(found["order"], found["scores"]) for found in self.in_order()]


class SearchWork(ApartWork):
    """Queries that a pipeline finds documents for."""

    def __init__(self, served: Served, queries: Sequence[str], k: int, tokens_each: int) -> None:
        super().__init__(Lane(served.name, "search"), served.estimate, len(queries), sum(map(len, queries)))
        self._queries, self._k, self._tokens = queries, k, tokens_each

    def item(self, group: Group) -> Any:
        return [self._queries[group.members[0]], self._k]

    def characters(self, group: Group) -> int:
        return len(self._queries[group.members[0]])

    def cost(self, group: Group) -> int:
        """The same for all: what a query costs is not known beforehand, and so many share a batch at most."""
        return self._tokens


class EmbedWork(ApartWork):
    """Texts to vectors."""

    def __init__(self, served: Served, texts: Sequence[str], side: str) -> None:
        lane = Lane(served.name, "embed", side)
        super().__init__(lane, served.estimate, len(texts), sum(map(len, texts)))
        self._texts, self._limit = texts, served.limit

    def item(self, group: Group) -> Any:
        return self._texts[group.members[0]]

    def characters(self, group: Group) -> int:
        return len(self._texts[group.members[0]])

    def cost(self, group: Group) -> int:
        return _at_most(super().cost(group), self._limit)


def _at_most(tokens: int, limit: int | None) -> int:
    """Longer texts are cut."""
    return tokens if limit is None else min(limit, tokens)
