"""A running server from Python: `Client("http://localhost:8080").rerank(query, docs)`, and the same awaited.

Requests that a server is too busy for are sent again when it says so (`Retry-After`), see `rerank.Retry`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from rerank.engines.http_client import (
    HttpClient,
    MalformedError,
    Reply,
    RequestError,
    Retry,
    Session,
    check_limits,
    check_url,
    is_finite,
)
from rerank.errors import ConfigError, DataError, ServerError
from rerank.ranking import Hit
from rerank.reranker import Doc, RankedDoc, RankedDocs, Reasoning, read_docs

T = TypeVar("T")
Side = Literal["query", "document"]

PATIENCE = Retry(tries=6, longest_wait_seconds=60.0)
"""Some 15 seconds of waiting, or what the server asks for."""
_BAD_REQUESTS = (400, 404, 413, 422)


class _Call(NamedTuple, Generic[T]):
    """A request, and what is made of its reply."""

    path: str
    body: dict[str, Any]
    read: Callable[[Reply], T]
    known: T | None = None
    """What is known beforehand, so that nothing is sent."""


class _Server:
    """What both clients share: how requests are written, sent and read."""

    def __init__(
        self,
        url: str,
        api_key: str | None,
        model: str | None,
        max_concurrent: int,
        timeout_seconds: float,
        retry: Retry,
    ) -> None:
        check_url("client", url)
        check_limits("client", max_concurrent, timeout_seconds, None)
        if api_key is not None and not (api_key and api_key.isascii() and api_key.isprintable()):
            raise ConfigError("client: api_key is empty, or holds characters that no key has")
        self.url = url.rstrip("/").removesuffix("/v1")
        self._model, self._key = model, api_key
        self._options: dict[str, Any] = {
            "max_concurrent": max_concurrent,
            "timeout_seconds": timeout_seconds,
            "retry": retry,
        }
        self._http: HttpClient | None = None

    @property
    def http(self) -> HttpClient:
        """The connections, opened at the first call."""
        if self._http is None:
            self._http = HttpClient(self._key, **self._options)
        return self._http

    def close(self) -> None:
        """Ends the connections; a later call opens others."""
        http, self._http = self._http, None
        if http is not None:
            http.close()

    async def sent(self, call: _Call[T]) -> T:
        """What the server makes of a call.

        Raises:
            DataError: it cannot be used as given.
            ServerError: the server cannot be reached, refuses, or does not answer.
        """
        if call.known is not None:
            return call.known
        body = call.body if self._model is None else {"model": self._model, **call.body}

        async def job(session: Session) -> T:
            return await session.post(f"{self.url}{call.path}", body, call.read)

        try:
            return await self.http.once(job)
        except RequestError as error:
            bad = error.status in _BAD_REQUESTS
            raise (DataError(str(error)) if bad else ServerError(str(error))) from None

    # -- calls ------------------------------------------------------------

    def rerank(
        self, query: str, docs: Iterable[Doc], k: int | None, *, raw_scores: bool, explain: bool
    ) -> _Call[RankedDocs]:
        """Of `Client.rerank`."""
        pairs = read_docs(docs)
        body: dict[str, Any] = {"query": query, "documents": [text for _, text in pairs]}
        if k is not None:
            body["top_n"] = _at_least_one(k)
        body |= {name: True for name, wanted in {"raw_scores": raw_scores, "explain": explain}.items() if wanted}
        known = None if pairs else RankedDocs(query, ())
        return _Call("/v1/rerank", body, lambda reply: _ranked(reply, query, pairs, k), known)

    def search(self, query: str, k: int) -> _Call[list[Hit]]:
        """Of `Client.search`."""
        return _Call("/search", {"query": query, "k": _at_least_one(k)}, _hits)

    def score(self, pairs: Sequence[tuple[str, str]], *, raw_scores: bool) -> _Call[npt.NDArray[np.float32]]:
        """Of `Client.score`."""
        queries, documents = [query for query, _ in pairs], [document for _, document in pairs]
        # Sent once where all are the same, which models that compare documents need besides.
        left = queries[0] if len(set(queries)) == 1 else queries
        body: dict[str, Any] = {"text_1": left, "text_2": documents}
        if raw_scores:
            body["raw_scores"] = True
        return _Call("/v1/score", body, lambda reply: _scores(reply, len(pairs)), None if pairs else _none())

    def embed(self, texts: Sequence[str], side: Side, dimensions: int | None) -> _Call[npt.NDArray[np.float32]]:
        """Of `Client.embed`."""
        if isinstance(texts, str):
            raise DataError("the texts are one text; a list of texts is expected")
        body: dict[str, Any] = {"input": list(texts), "input_type": side, "encoding_format": "base64"}
        if dimensions is not None:
            body["dimensions"] = _at_least_one(dimensions)
        known = None if len(texts) else _none().reshape(0, 0)
        return _Call("/v1/embeddings", body, lambda reply: _vectors(reply, len(texts)), known)


class _Connected:
    """What both clients are made of."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        model: str | None = None,
        max_concurrent: int = 64,
        timeout_seconds: float = 300.0,
        retry: Retry = PATIENCE,
    ) -> None:
        self._server = _Server(url, api_key, model, max_concurrent, timeout_seconds, retry)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._server.url!r})"


class Client(_Connected):
    """A server that `rerank serve` runs, with the calls of a `Reranker`; may be used from several threads.

    >>> with Client("http://localhost:8080", model="minilm-l6") as client:
    ...     client
    Client('http://localhost:8080')

    Args:
        url: the server's address, with or without `/v1`.
        api_key: sent as `Authorization: Bearer`; in no message or log.
        model: what the server calls the model; not needed where it serves one.
        max_concurrent: requests under way at most, of all threads.
        timeout_seconds: what one try of a request may take.
        retry: how long the server is given.

    Raises:
        ConfigError: an address that is none, or limits that cannot be.
        MissingExtraError: at the first call, `httpx2` is not installed.
    """

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connections; a later call opens others."""
        self._server.close()

    def rerank(
        self,
        query: str,
        docs: Iterable[Doc],
        k: int | None = None,
        *,
        raw_scores: bool = False,
        explain: bool = False,
    ) -> RankedDocs:
        """The documents, best first, as `Reranker.rank` gives them; none for an empty list, which is not sent.

        Args:
            query: what is asked.
            docs: see `rerank.reranker.Doc`.
            k: how many come back; default all.
            raw_scores: scores as `Reranker` gives them; else they lie between 0 and 1.
            explain: ask for what the model writes too (`RankedDocs.reasoning`).

        Raises:
            DataError: the query, a document or the model's name cannot be used as given.
            ServerError: the server cannot be reached, refuses, or does not answer.
        """
        return self._done(self._server.rerank(query, docs, k, raw_scores=raw_scores, explain=explain))

    def search(self, query: str, k: int = 10) -> list[Hit]:
        """The first `k` documents that the served pipeline finds, best first.

        Raises:
            DataError: as by `rerank`, or the model does not search.
            ServerError: as by `rerank`.
        """
        return self._done(self._server.search(query, k))

    def score(self, pairs: Sequence[tuple[str, str]], *, raw_scores: bool = False) -> npt.NDArray[np.float32]:
        """float32 [n]: the score of each (query, document) pair, in the order given; higher is better.

        Raises:
            DataError: as by `rerank`, or the model gives no scores to single pairs.
            ServerError: as by `rerank`.
        """
        return self._done(self._server.score(pairs, raw_scores=raw_scores))

    def embed(
        self, texts: Sequence[str], side: Side = "document", *, dimensions: int | None = None
    ) -> npt.NDArray[np.float32]:
        """float32 [n, dimensions]: the vectors of texts.

        Args:
            texts: what is encoded.
            side: which of the model's prompts stands before the texts.
            dimensions: how many of a vector's numbers are kept; default all.

        Raises:
            DataError: as by `rerank`, or the model makes no vectors.
            ServerError: as by `rerank`.
        """
        return self._done(self._server.embed(texts, side, dimensions))

    def _done(self, call: _Call[T]) -> T:
        # Without connections, which would be opened for nothing.
        return call.known if call.known is not None else self._server.http.finish(self._server.sent(call))


class AsyncClient(_Connected):
    """As `Client`, to await; a wait that is cancelled hangs up, which spares the server the work.

    >>> AsyncClient("http://localhost:8080/v1")
    AsyncClient('http://localhost:8080')
    """

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """As `Client.close`."""
        self._server.close()

    async def rerank(
        self,
        query: str,
        docs: Iterable[Doc],
        k: int | None = None,
        *,
        raw_scores: bool = False,
        explain: bool = False,
    ) -> RankedDocs:
        """As `Client.rerank`."""
        return await self._server.sent(self._server.rerank(query, docs, k, raw_scores=raw_scores, explain=explain))

    async def search(self, query: str, k: int = 10) -> list[Hit]:
        """As `Client.search`."""
        return await self._server.sent(self._server.search(query, k))

    async def score(self, pairs: Sequence[tuple[str, str]], *, raw_scores: bool = False) -> npt.NDArray[np.float32]:
        """As `Client.score`."""
        return await self._server.sent(self._server.score(pairs, raw_scores=raw_scores))

    async def embed(
        self, texts: Sequence[str], side: Side = "document", *, dimensions: int | None = None
    ) -> npt.NDArray[np.float32]:
        """As `Client.embed`."""
        return await self._server.sent(self._server.embed(texts, side, dimensions))


def _none() -> npt.NDArray[np.float32]:
    return np.empty(0, dtype=np.float32)


def _at_least_one(k: int) -> int:
    if k < 1:
        raise ConfigError(f"k is {k}, at least 1 is needed")
    return k


# -- replies ------------------------------------------------------------


def _rows(reply: Reply, name: str) -> list[dict[str, Any]]:
    rows = reply.value.get(name) if isinstance(reply.value, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise MalformedError(f"it holds no list of {name!r}")
    return rows


def _number(row: dict[str, Any], name: str) -> float:
    value: Any = row.get(name)
    if not is_finite(value):
        raise MalformedError(f"an entry has no number {name!r}")
    return float(value)


def _ranked(reply: Reply, query: str, pairs: Sequence[tuple[str, str]], k: int | None) -> RankedDocs:
    rows = _rows(reply, "results")
    places = [row.get("index") for row in rows]
    known = _are_places(places, len(pairs))
    if not known or len(set(places)) != len(places) or len(places) > (k or len(pairs)):
        raise MalformedError(f"its results are not places in a list of {len(pairs)}, each once")
    docs = [
        RankedDoc(row["index"], pairs[row["index"]][0], _number(row, "relevance_score"), rank, pairs[row["index"]][1])
        for rank, row in enumerate(rows, 1)
    ]
    used = reply.value.get("usage")
    meta = reply.value.get("meta")
    counts = meta.get("counts") if isinstance(meta, dict) else None
    tokens = {"tokens": int(used["total_tokens"])} if isinstance(used, dict) and "total_tokens" in used else {}
    return RankedDocs(query, docs, {**(counts or {}), **tokens}, _reasoning(meta, len(pairs)))


def _are_places(values: Sequence[Any], n: int) -> bool:
    return all(isinstance(value, int) and 0 <= value < n for value in values)


def _reasoning(meta: Any, n: int) -> list[Reasoning]:
    rows = meta.get("reasoning", []) if isinstance(meta, dict) else []
    if not isinstance(rows, list) or not all(isinstance(row, dict) and _is_reasoning(row, n) for row in rows):
        raise MalformedError(f"its reasoning is not texts about places in a list of {n}")
    return [Reasoning(tuple(row["documents"]), row["text"]) for row in rows]


def _is_reasoning(row: dict[str, Any], n: int) -> bool:
    documents = row.get("documents")
    return isinstance(row.get("text"), str) and isinstance(documents, list) and _are_places(documents, n)


def _hits(reply: Reply) -> list[Hit]:
    hits = []
    for rank, row in enumerate(_rows(reply, "results"), 1):
        document = row.get("document")
        text = document.get("text") if isinstance(document, dict) else None
        hits.append(Hit(str(row.get("id")), _number(row, "score"), rank, text))
    return hits


def _scores(reply: Reply, n: int) -> npt.NDArray[np.float32]:
    rows = _rows(reply, "data")
    if [row.get("index") for row in rows] != list(range(n)):
        raise MalformedError(f"it does not hold {n} scores in order")
    return np.array([_number(row, "score") for row in rows], dtype=np.float32)


def _vectors(reply: Reply, n: int) -> npt.NDArray[np.float32]:
    rows = _rows(reply, "data")
    if [row.get("index") for row in rows] != list(range(n)):
        raise MalformedError(f"it does not hold {n} vectors in order")
    try:
        found = np.stack([np.frombuffer(base64.b64decode(row["embedding"]), dtype="<f4") for row in rows])
    except (KeyError, TypeError, ValueError, binascii.Error):
        raise MalformedError("an entry is no vector of float32 in base64, or vectors differ in length") from None
    return found.astype(np.float32)
