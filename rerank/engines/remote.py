"""Rerankers behind a `/rerank` endpoint: Cohere, Jina and Voyage, and vLLM, infinity, llama.cpp and TEI at home.

They differ in little, and the dialects are three: `v1` and `v2` send `documents` and get an object with `results` (or
`data`), `tei` sends `texts` and gets a list.  A request holds one query and as many documents as the server takes; of
its results every document must be one, exactly once, or the reply counts for nothing.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from rerank.engines.cache import request_key
from rerank.engines.engine import Asked, Asker, Engine, refuse_prompt
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
    key_digest,
    not_before,
    read_key,
    together,
)
from rerank.engines.meter import Meter, by_characters
from rerank.engines.passages import Passages, Span, word_passages
from rerank.errors import ConfigError
from rerank.prompts.tokens import clean
from rerank.ranking import ScoreKind
from rerank.rules.rule import Answer
from rerank.runtime import Runtime

Dialect = Literal["auto", "v1", "v2", "tei"]

READING = 1
"""Raised when replies are read in another way, so that what was stored does not fit any more."""
_PATHS = {"v1": "/v1/rerank", "v2": "/v2/rerank", "tei": "/rerank"}
_SIZE_STATUSES = (400, 413, 422)
"""What servers answer to too many documents, or to one that is too long."""


@dataclass(frozen=True, repr=False)
class RemoteEngine(Engine):
    """A reranker on a server that speaks `/rerank`.

    Documents of one query share requests.  Those that the server gives no score keep their places and are counted as
    `failed requests`.

    >>> RemoteEngine("http://localhost:8080", dialect="tei")
    RemoteEngine(url='http://localhost:8080', dialect='tei')
    """

    url: str
    """The server's address, or that of its endpoint, which ends with `/rerank`."""
    model: str | None = None
    """The name that the server knows the model by; not needed where it serves one."""
    dialect: Dialect = "auto"
    """`v1` (Jina, Voyage, vLLM, infinity, llama.cpp, Cohere's older one), `v2` (Cohere), `tei`; `auto` goes by the
    version in the address, else `tei` where `/info` is answered, else `v1`."""
    api_key_env: str | None = None
    """The environment variable that holds the key; None sends none."""
    batch_documents: int = 100
    """Documents of a request at most.  A server that takes fewer is asked with fewer from its first refusal on."""
    compares: bool = False
    """Whether the model's scores depend on what else is in the request, as those of listwise rerankers do.  The
    documents that a rule shows together are then one request, never joined with others and never split."""
    max_tokens_per_doc: int | None = None
    """What the server cuts documents to (Cohere's v2, vLLM); None leaves it to the server."""
    max_concurrent: int = 4
    """Requests under way at most."""
    timeout_seconds: float = 120.0
    """What one try of a request may take."""
    retry: Retry = Retry()
    """How long the server is given."""
    expiry_days: float | None = 30.0
    """How old a kept answer may be, because servers change models without a new name; None: any age."""

    def __post_init__(self) -> None:
        check_url(self.label, self.url)
        check_limits(self.label, self.max_concurrent, self.timeout_seconds, self.expiry_days)
        if self.batch_documents < 1 or (self.max_tokens_per_doc is not None and self.max_tokens_per_doc < 1):
            raise ConfigError(
                f"remote: batch_documents is {self.batch_documents} and max_tokens_per_doc {self.max_tokens_per_doc}, "
                "at least 1 is needed"
            )

    def asker(self, prompt: str | None, runtime: Runtime) -> Asker:
        """The server; nothing is sent yet."""
        refuse_prompt(self, prompt)
        key = read_key(self.label, self.api_key_env)
        server = runtime.resource(("remote", self, key_digest(key)), lambda: _Server(self, key))
        return _Remote(self, server)

    def measure(self, prompt: str | None, runtime: Runtime) -> Meter:
        """By characters, since the server holds the tokenizer."""
        refuse_prompt(self, prompt)
        return by_characters(None)


class _Endpoint(NamedTuple):
    """Where requests go, and in what form."""

    url: str
    dialect: Dialect


def endpoint(url: str, dialect: Dialect) -> _Endpoint:
    """The endpoint behind a server's address, its dialect `auto` where the address does not tell.

    >>> endpoint("https://api.jina.ai/v1", "auto")
    _Endpoint(url='https://api.jina.ai/v1/rerank', dialect='v1')
    >>> endpoint("http://localhost:8080", "tei").url
    'http://localhost:8080/rerank'
    """
    url = url.rstrip("/")
    whole = url.endswith(("/rerank", "/reranking"))
    base = url.rpartition("/")[0] if whole else url
    version = base.rpartition("/")[2]
    told: Dialect = dialect
    if dialect == "auto" and version in ("v1", "v2"):
        told = "v1" if version == "v1" else "v2"
    if whole:
        return _Endpoint(url, told)
    if version in ("v1", "v2"):
        return _Endpoint(f"{url}/rerank", told)
    return _Endpoint(url + _PATHS.get(told, ""), told)


class _Server:
    """A server, and what was learned of it."""

    def __init__(self, engine: RemoteEngine, key: str | None) -> None:
        self.client = HttpClient(
            key, max_concurrent=engine.max_concurrent, timeout_seconds=engine.timeout_seconds, retry=engine.retry
        )
        self._engine = engine
        self._endpoint = endpoint(engine.url, engine.dialect)
        self._most = engine.batch_documents

    async def scores(self, session: Session, query: str, documents: Sequence[str]) -> list[float | None]:
        """A score for each document, None where the server refuses it.

        Raises:
            RequestError: there is none for any of them.
            ServerError: nor for any other.
        """

        async def job(session: Session) -> list[float | None]:
            if self._endpoint.dialect == "auto":
                self._endpoint = await self._found(session)
            return await self._asked(session, query, documents)

        return await self.client.run(session, job)

    async def _found(self, session: Session) -> _Endpoint:
        """The endpoint, by what the server says of itself."""
        url = self._endpoint.url
        whole = url.endswith(("/rerank", "/reranking"))
        root = url.rpartition("/")[0] if whole else url
        try:
            most = await session.get(f"{root}/info", _read_info)
        except RequestError:
            return _Endpoint(url if whole else url + _PATHS["v1"], "v1")
        self._most = min(self._most, most or self._most)
        return _Endpoint(url if whole else url + _PATHS["tei"], "tei")

    async def _asked(self, session: Session, query: str, documents: Sequence[str]) -> list[float | None]:
        n = len(documents)
        if n > self._most and not self._engine.compares:
            return await self._parts(session, query, documents, self._most)
        try:
            found = await session.post(
                self._endpoint.url, self._body(query, documents), lambda reply: _read_scores(reply, n)
            )
        except RequestError as error:
            if n == 1 or self._engine.compares or error.status not in _SIZE_STATUSES:
                raise
            session.count("split requests", 1)
            most = _limit(error.said.message, n)
            if most is not None:
                self._most = min(self._most, most)
                return await self._parts(session, query, documents, most)
            half = (n + 1) // 2
            halves = await self._parts(session, query, documents, half)
            if None not in halves:  # it was their number
                self._most = min(self._most, half)
            return halves
        session.count("prompt tokens", found.tokens)
        return list(found.scores)

    async def _parts(self, session: Session, query: str, documents: Sequence[str], size: int) -> list[float | None]:
        """The scores of documents that are asked for one part after the other."""
        scores: list[float | None] = []
        failed: RequestError | None = None
        for start in range(0, len(documents), size):
            part = documents[start : start + size]
            try:
                scores += await self._asked(session, query, part)
            except RequestError as error:
                # Where nothing was ever answered, it is not the documents that are refused.
                if error.kind == "refused" and len(part) > 1 and not session.known:
                    raise
                if error.kind not in ("refused", "too_long"):
                    raise
                failed = error
                scores += [None] * len(part)
        if failed is not None and all(score is None for score in scores):
            raise failed
        return scores

    def _body(self, query: str, documents: Sequence[str]) -> dict[str, Any]:
        dialect, engine = self._endpoint.dialect, self._engine
        if dialect == "tei":
            return {"query": query, "texts": list(documents), "truncate": True}
        body: dict[str, Any] = {"query": query, "documents": list(documents)}
        if engine.model is not None:
            body["model"] = engine.model
        if engine.max_tokens_per_doc is not None:
            body["max_tokens_per_doc"] = engine.max_tokens_per_doc
        if dialect == "v1":
            body["return_documents"] = False  # Jina sends them back unless told not to
        return body


class _Batch(NamedTuple):
    """What is asked together."""

    query: str
    documents: tuple[str, ...]
    keys: tuple[bytes, ...]
    """One for each document, or one for all where they are compared."""


class _Remote:
    """A reranker on a server."""

    kind = ScoreKind.UNKNOWN

    def __init__(self, engine: RemoteEngine, server: _Server) -> None:
        self._engine, self._server = engine, server
        self._session = server.client.session()
        self.most_documents: int | None = engine.batch_documents if engine.compares else None
        self.in_flight = engine.max_concurrent
        # Questions about one query share requests, so the more are known the fuller these are.
        self.at_once = 1 if engine.compares else 1 << 20
        self._name = f"http {READING} {engine.url.rstrip('/')} {engine.dialect}"

    def ask(self, questions: Sequence[Asked], runtime: Runtime) -> list[Answer]:
        return self._server.client.finish(self.ask_async(questions, runtime))

    def passages(self, texts: Sequence[str], passages: Passages) -> Iterable[tuple[Span, ...]]:
        return word_passages(texts, passages)

    async def ask_async(self, questions: Sequence[Asked], runtime: Runtime) -> list[Answer]:
        asked = [(clean(each.query), tuple(map(clean, each.documents))) for each in questions]
        batches = self._compared(asked) if self._engine.compares else self._joined(asked)
        scores = await self._scores(batches, runtime)
        answers: list[Answer] = []
        for query, documents in asked:
            if self._engine.compares:
                answers.append(scores.get(self._key(query, documents), (None,) * len(documents)))
            else:
                answers.append(tuple(scores.get(self._key(query, (text,)), (None,))[0] for text in documents))
        keys = {key for batch in batches for key in batch.keys}
        runtime.count("failed requests", sum(key not in scores for key in keys))
        return answers

    def _key(self, query: str, documents: Sequence[str]) -> bytes:
        options = json.dumps([self._engine.model, self._engine.max_tokens_per_doc, self._engine.compares])
        return request_key(self._name, "rerank", options, query, *documents)

    def _compared(self, asked: Sequence[tuple[str, tuple[str, ...]]]) -> list[_Batch]:
        return [_Batch(query, documents, (self._key(query, documents),)) for query, documents in dict.fromkeys(asked)]

    def _joined(self, asked: Sequence[tuple[str, tuple[str, ...]]]) -> list[_Batch]:
        """Requests of one query each, with as many documents as a request holds, none of them twice."""
        texts: defaultdict[str, dict[str, None]] = defaultdict(dict)
        for query, documents in asked:
            texts[query].update(dict.fromkeys(documents))
        batches = []
        for query, of_query in texts.items():
            found = list(of_query)
            for start in range(0, len(found), self._engine.batch_documents):
                part = tuple(found[start : start + self._engine.batch_documents])
                batches.append(_Batch(query, part, tuple(self._key(query, (text,)) for text in part)))
        return batches

    async def _scores(self, batches: Sequence[_Batch], runtime: Runtime) -> dict[bytes, tuple[float | None, ...]]:
        """The scores under each key; a batch that is not kept as a whole is asked as a whole."""
        cache, since = runtime.requests, not_before(self._engine.expiry_days)
        keys = [key for batch in batches for key in batch.keys]
        stored = [None] * len(keys) if cache is None else cache.get(keys, since)
        kept = {key: _unpack(data) for key, data in zip(keys, stored, strict=True) if data is not None}
        scores: dict[bytes, tuple[float | None, ...]] = {}
        wanted = []
        for batch in batches:
            if all(key in kept for key in batch.keys):
                scores |= {key: kept[key] for key in batch.keys}
            else:
                wanted.append(batch)
        runtime.count("requests", len(keys))
        runtime.count("cached answers", len(scores))
        self._session.trusted |= bool(scores)

        async def one(batch: _Batch) -> None:
            try:
                found = await self._server.scores(self._session, batch.query, batch.documents)
            except RequestError:
                return
            groups = [tuple(found)] if self._engine.compares else [(score,) for score in found]
            new = {key: group for key, group in zip(batch.keys, groups, strict=True) if None not in group}
            if cache is not None:
                data = cache.put({key: json.dumps(group).encode() for key, group in new.items()}, since)
                new = dict(zip(new, map(_unpack, data), strict=True))
            scores.update(new)

        try:
            await together(map(one, wanted))
        finally:
            for what, number in self._session.counted().items():
                runtime.count(what, number)
        return scores


def _unpack(data: bytes) -> tuple[float | None, ...]:
    return tuple(json.loads(data))


# -- replies ------------------------------------------------------------


class _Scores(NamedTuple):
    scores: tuple[float, ...]
    """In the order of the documents sent."""
    tokens: int
    """As the server counts them; 0 where it does not."""


def _read_scores(reply: Reply, n: int) -> _Scores:
    """The scores of `n` documents, whatever the order of the results.

    Raises:
        MalformedError: a document is missing, is there twice or was not sent, or a score is no number.
    """
    value = reply.value
    results = value
    if isinstance(value, dict):
        results = value.get("results", value.get("data"))
    if not isinstance(results, list):
        raise MalformedError("no list of results; is `url` the address of a /rerank endpoint?")
    scores: dict[int, float] = {}
    for result in results:
        index = result.get("index") if isinstance(result, dict) else None
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < n:
            raise MalformedError(f"index {index!r} among the results of {n} documents")
        if index in scores:
            raise MalformedError(f"index {index} comes twice among the results")
        score = result.get("relevance_score", result.get("score"))
        if not is_finite(score):
            raise MalformedError(f"the score of document {index} is {score!r}, no finite number")
        scores[index] = float(score)
    if len(scores) < n:
        missing = next(index for index in range(n) if index not in scores)
        raise MalformedError(f"{len(scores)} results for {n} documents; index {missing} is missing")
    return _Scores(tuple(scores[index] for index in range(n)), _tokens(value))


def _tokens(value: Any) -> int:
    """Tokens that the server counts: under `usage`, or Cohere's `meta.tokens`."""
    if not isinstance(value, dict):
        return 0
    meta = value.get("meta")
    places = (value.get("usage"), meta.get("tokens") if isinstance(meta, dict) else None)
    for place in places:
        for name in ("prompt_tokens", "total_tokens", "input_tokens"):
            if isinstance(place, dict) and is_finite(place.get(name)):
                return int(place[name])
    return 0


def _read_info(reply: Reply) -> int | None:
    """The documents that TEI takes in a request, where it says so."""
    value = reply.value
    if not isinstance(value, dict) or "model_id" not in value:
        raise MalformedError("no /info of TEI")
    most = value.get("max_client_batch_size")
    return most if isinstance(most, int) and most > 0 else None


def _limit(message: str, n: int) -> int | None:
    """The number of documents that a server says it takes at most, where it also names the `n` that it was given.

    >>> _limit("batch size 64 > maximum allowed batch size 32", 64)
    32
    """
    numbers = {int(digits) for digits in re.findall(r"\d{1,9}", message)}
    return max((number for number in numbers if 0 < number < n), default=None) if n in numbers else None
