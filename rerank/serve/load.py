"""Load for a server that reranks: how many requests it answers in a second, and how long each one waits.

In a closed loop so many clients each send their next request when the last one is answered: what a number of workers
sees.  In an open loop requests come at a rate, whether or not earlier ones are answered: what the public does; each is
timed from the moment when it was due, so that a server that stalls does not spare itself the slow ones.

Clients are connections of one event loop, and requests are written before the clock starts, so that on one machine
with the server the generator takes little of it.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from rerank.engines.http_client import check_url
from rerank.errors import ConfigError, ServerError

_WORDS = (
    "the of and to in a is that for it as was with on by be are this from at or an have not which they his had but one "
    "we can there been were all their more will if her other about some than would its what so only when into them "
    "time who no out could these people two may first then do any like my now over such our man me even most made "
    "after also did many before must through back years where much your way well down should because each just those "
    "how too little state good very make world still own see men work long get here between both life being under "
    "never day same another know while last might us great old year off come since against go came right used take "
    "three water system house number part place case weeks company point form money small large market public school "
    "research language memory process river energy history question answer science model report court price health"
)
"""Frequent words, which most tokenizers keep whole."""
_QUERY_WORDS = (6.0, 0.5)
_SHORT_WORDS = (55.0, 0.4)
_LONG_WORDS = (150.0, 0.4)
_SHARE_OF_LONG = 0.3
"""Median and spread (of the logarithm): queries and passages as of web search, and among these abstracts."""
_MOST_WORDS = 400
_PERCENTILES = (50, 95, 99)
_CONNECTIONS = 1024
"""Of an open loop at most: what comes beyond waits for one, and is timed."""
_LAST_ANSWERS_SECONDS = 60.0
_PAUSE_SECONDS = 1.0
"""How long a client waits at most after a refusal, though the server may ask for more."""


class Question(NamedTuple):
    """A query and documents to rerank."""

    query: str
    documents: Sequence[str]


def mixed_questions(n: int, n_documents: int, seed: int = 0) -> list[Question]:
    """Questions of made-up text, with lengths as search has them: most passages short, three of ten long.

    >>> [len(question.documents) for question in mixed_questions(2, 3)]
    [3, 3]
    """
    draws = random.Random(seed)
    words = _WORDS.split()
    weights = [1 / rank for rank in range(1, len(words) + 1)]

    def text(median: float, spread: float) -> str:
        n_words = min(_MOST_WORDS, max(1, round(draws.lognormvariate(math.log(median), spread))))
        return " ".join(draws.choices(words, weights, k=n_words))

    def passage() -> str:
        return text(*(_LONG_WORDS if draws.random() < _SHARE_OF_LONG else _SHORT_WORDS))

    return [Question(text(*_QUERY_WORDS), [passage() for _ in range(n_documents)]) for _ in range(n)]


@dataclass(frozen=True)
class Level:
    """What one amount of load came to.

    >>> Level("closed", 1, 2.0, (0.1, 0.2, 0.3), {}, 30, 900).throughput
    1.5
    """

    loop: str
    """`closed` or `open`."""
    load: float
    """Clients, or requests a second that were sent."""
    seconds: float
    """How long it was measured."""
    latencies: tuple[float, ...]
    """Seconds of each answered request."""
    errors: Mapping[str, int]
    """How many requests came to nothing, by status or reason."""
    documents: int
    """In all answered requests."""
    tokens: int
    """That the server says it fed to the model."""

    @property
    def throughput(self) -> float:
        """Answered requests a second."""
        return len(self.latencies) / self.seconds

    def percentile(self, q: float) -> float:
        """The least time within which so many in a hundred were answered; NaN where nothing was."""
        if not self.latencies:
            return math.nan
        return sorted(self.latencies)[max(0, math.ceil(q / 100 * len(self.latencies)) - 1)]

    def to_dict(self) -> dict[str, Any]:
        """What is printed as JSON; times in milliseconds."""
        times = {f"p{q}_ms": _milliseconds(self.percentile(q)) for q in _PERCENTILES}
        return {
            "loop": self.loop,
            "clients" if self.loop == "closed" else "rate": self.load,
            "seconds": round(self.seconds, 3),
            "requests": len(self.latencies),
            "requests_per_second": round(self.throughput, 2),
            "documents_per_second": round(self.documents / self.seconds, 1),
            "tokens_per_second": round(self.tokens / self.seconds),
            **times,
            "max_ms": _milliseconds(max(self.latencies, default=math.nan)),
            "errors": dict(self.errors),
        }


def _milliseconds(seconds: float) -> float | None:
    return round(1000 * seconds, 1) if math.isfinite(seconds) else None


@dataclass(eq=False)
class _Tally:
    """What was seen while it was measured."""

    latencies: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    documents: int = 0
    tokens: int = 0

    def take(self, reply: _Reply | str, seconds: float, n_documents: int) -> None:
        said = reply if isinstance(reply, str) else _trouble(reply, n_documents)
        if said:
            self.errors[said] += 1
            return
        self.latencies.append(seconds)
        self.documents += n_documents
        if isinstance(reply, _Reply):
            used = reply.value.get("usage") or {}
            self.tokens += int(used.get("total_tokens", 0))

    def level(self, loop: str, load: float, seconds: float) -> Level:
        return Level(loop, load, seconds, tuple(self.latencies), dict(self.errors), self.documents, self.tokens)


class _Reply(NamedTuple):
    status: int
    value: Any
    retry_after: float


def _trouble(reply: _Reply, n_documents: int) -> str:
    """What is wrong with a reply; nothing, where it is an answer."""
    if reply.status != 200:
        return str(reply.status)
    results = reply.value.get("results") if isinstance(reply.value, dict) else None
    return "" if isinstance(results, list) and len(results) == n_documents else "wrong answer"


class Target:
    """A server, and the requests that it is sent in turn.

    Args:
        url: the server's address, or that of its endpoint, which ends with `/rerank`.
        questions: sent one after the other, again from the first when all were.
        model: what the server calls the model.
        key: sent as `Authorization: Bearer`.
        timeout_seconds: what a request may take.

    Raises:
        ConfigError: an address that is none.
    """

    def __init__(
        self,
        url: str,
        questions: Sequence[Question],
        *,
        model: str | None = None,
        key: str | None = None,
        timeout_seconds: float = 300.0,
    ) -> None:
        check_url("bench-serve", url)
        if not questions:
            raise ConfigError("bench-serve: there are no requests to send")
        parts = urlsplit(url)
        self.host, self.tls = str(parts.hostname), parts.scheme == "https"
        self.port = parts.port or (443 if self.tls else 80)
        base = parts.path.rstrip("/").removesuffix("/v1")
        path = base if base.endswith("/rerank") else f"{base}/v1/rerank"
        self.timeout_seconds = timeout_seconds
        named = {} if model is None else {"model": model}
        secret = "" if key is None else f"Authorization: Bearer {key}\r\n"
        self._requests = []
        for question in questions:
            body = json.dumps({**named, "query": question.query, "documents": list(question.documents)}).encode()
            head = (
                f"POST {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n{secret}"
                f"Content-Length: {len(body)}\r\n\r\n"
            )
            self._requests.append((head.encode("latin-1") + body, len(question.documents)))
        self.sent = 0
        """How many requests were sent, counted or not."""

    def next(self) -> tuple[bytes, int]:
        """A request and its number of documents."""
        request = self._requests[self.sent % len(self._requests)]
        self.sent += 1
        return request


class _Connection:
    """A kept-alive connection, opened when it is first needed, and again after trouble."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> _Reply | str:
        """The reply, or why there is none."""
        try:
            async with asyncio.timeout(self._target.timeout_seconds):
                return await self._asked(request)
        except TimeoutError:
            said = "timeout"
        except ConnectionRefusedError:
            said = "connection refused"
        except (OSError, asyncio.IncompleteReadError):
            said = "connection lost"
        self.close()
        return said

    async def _asked(self, request: bytes) -> _Reply | str:
        import httptools

        if self._streams is None:
            target = self._target
            context = ssl.create_default_context() if target.tls else None
            self._streams = await asyncio.open_connection(target.host, target.port, ssl=context, limit=1 << 20)
        reader, writer = self._streams
        writer.write(request)
        reading = _Reading()
        parser = httptools.HttpResponseParser(reading)
        while not reading.is_complete:
            data = await reader.read(1 << 18)
            if not data:
                raise ConnectionResetError
            try:
                parser.feed_data(data)
            except httptools.HttpParserError:
                self.close()
                return "no HTTP"
        if not parser.should_keep_alive():
            self.close()
        try:
            value = json.loads(b"".join(reading.parts))
        except ValueError:
            value = None
        return _Reply(parser.get_status_code(), value, reading.retry_after)

    def close(self) -> None:
        """Ends it."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class _Reading:
    """What the parser tells of a response."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.is_complete = False
        self.retry_after = 0.0

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"retry-after" and value.isdigit():
            self.retry_after = float(value)

    def on_body(self, part: bytes) -> None:
        self.parts.append(part)

    def on_message_complete(self) -> None:
        self.is_complete = True


# -- loops ------------------------------------------------------------


async def closed_loop(target: Target, clients: int, seconds: float, warm_up_seconds: float = 0.0) -> Level:
    """So many clients that each send their next request when the last one is answered.

    Counted is what is answered within `seconds`, after a warm-up that is not.  A client that is refused waits for what
    the server asks, a second at most.

    Raises:
        ConfigError: fewer than one client, or no time.
    """
    if clients < 1 or not seconds > 0:
        raise ConfigError(f"bench-serve: {clients} clients for {seconds:g} seconds; at least one, and some time")
    tally = _Tally()
    start = time.perf_counter() + warm_up_seconds
    end = start + seconds

    async def client() -> None:
        connection = _Connection(target)
        try:
            while (began := time.perf_counter()) < end:
                request, n_documents = target.next()
                reply = await connection.ask(request)
                now = time.perf_counter()
                if start <= now < end:
                    tally.take(reply, now - began, n_documents)
                if isinstance(reply, str) or reply.status != 200:
                    pause = _PAUSE_SECONDS if isinstance(reply, str) else reply.retry_after
                    await asyncio.sleep(min(_PAUSE_SECONDS, pause))
        finally:
            connection.close()

    await _together([client() for _ in range(clients)])
    return tally.level("closed", clients, seconds)


async def open_loop(target: Target, rate: float, seconds: float, seed: int = 0) -> Level:
    """Requests that come at random, `rate` a second on average, answered or not.

    Raises:
        ConfigError: no rate, or no time.
    """
    if not (0 < rate < math.inf and seconds > 0):
        raise ConfigError(f"bench-serve: {rate:g} requests a second for {seconds:g} seconds; both are to be above 0")
    draws, tally = random.Random(seed), _Tally()
    start = time.perf_counter()
    free: list[_Connection] = []
    slots = asyncio.Semaphore(_CONNECTIONS)
    last = start

    async def one(due: float) -> None:
        nonlocal last
        request, n_documents = target.next()
        async with slots:
            connection = free.pop() if free else _Connection(target)
            try:
                reply = await connection.ask(request)
            finally:
                free.append(connection)
        last = time.perf_counter()
        tally.take(reply, last - due, n_documents)

    work: list[asyncio.Task[None]] = []
    due = start
    try:
        while (due := due + draws.expovariate(rate)) < start + seconds:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            work.append(asyncio.ensure_future(one(due)))
        if work:
            await asyncio.wait(work, timeout=_LAST_ANSWERS_SECONDS)
        tally.errors["unanswered"] += sum(not task.done() for task in work)
    finally:
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        for connection in free:
            connection.close()
    tally.errors = +tally.errors
    return tally.level("open", rate, max(seconds, last - start))


async def _together(work: Sequence[Awaitable[None]]) -> None:
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def measure(
    target: Target,
    *,
    clients: Sequence[int] = (),
    rates: Sequence[float] = (),
    seconds: float = 10.0,
    warm_up_seconds: float = 1.0,
    on_level: Callable[[Level], None] = lambda level: None,
) -> list[Level]:
    """Each number of clients, then each rate, one after the other.

    Args:
        target: the server.
        clients: of closed loops.
        rates: of open loops, in requests a second.
        seconds: of each.
        warm_up_seconds: of each closed loop, before it is measured.
        on_level: is told each as soon as it is done.

    Raises:
        ServerError: the first request comes to nothing.
    """

    async def all_of_them() -> list[Level]:
        await _try_once(target)
        levels = []
        for n in clients:
            levels.append(await closed_loop(target, n, seconds, warm_up_seconds))
            on_level(levels[-1])
        for rate in rates:
            levels.append(await open_loop(target, rate, seconds))
            on_level(levels[-1])
        return levels

    return asyncio.run(all_of_them())


async def _try_once(target: Target) -> None:
    connection = _Connection(target)
    request, n_documents = target.next()
    try:
        reply = await connection.ask(request)
    finally:
        connection.close()
    said = reply if isinstance(reply, str) else _trouble(reply, n_documents)
    if said:
        told = reply.value.get("message", "") if isinstance(reply, _Reply) and isinstance(reply.value, dict) else ""
        place = f"{target.host}:{target.port}"
        raise ServerError(
            f"bench-serve: {place} does not answer the first request ({said}{f': {told}' if told else ''})"
        )


# -- what is shown ------------------------------------------------------------

_COLUMNS = ("load", "requests/s", "docs/s", "tokens/s", "p50 ms", "p95 ms", "p99 ms", "max ms", "errors")


def table_head() -> str:
    """The names of the columns."""
    return _row(_COLUMNS)


def table_row(level: Level) -> str:
    """One line of the table.

    >>> table_row(Level("closed", 8, 2.0, (0.1, 0.2), {"429": 3}, 40, 2000)).split()
    ['8', 'clients', '1.0', '20', '1,000', '100.0', '200.0', '200.0', '200.0', '429:', '3']
    """
    unit = f"{level.load:g} client{'' if level.load == 1 else 's'}" if level.loop == "closed" else f"{level.load:g}/s"
    figures = level.to_dict()
    times = ["-" if figures[name] is None else f"{figures[name]:,.1f}" for name in (*_names(), "max_ms")]
    errors = ", ".join(f"{what}: {count:,}" for what, count in sorted(level.errors.items())) or "none"
    rates = [f"{level.throughput:,.1f}", f"{level.documents / level.seconds:,.0f}", f"{figures['tokens_per_second']:,}"]
    return _row([unit, *rates, *times, errors])


def _names() -> list[str]:
    return [f"p{q}_ms" for q in _PERCENTILES]


def _row(cells: Sequence[str]) -> str:
    return f"{cells[0]:<11}" + "".join(f"{cell:>11}" for cell in cells[1:-1]) + f"  {cells[-1]}"


def latency_curve(levels: Sequence[Level]) -> str:
    """An SVG file: the time of an answer against the requests answered in a second, one line a percentile.

    >>> latency_curve([Level("closed", 1, 1.0, (0.1,), {}, 20, 9)])[:4]
    '<svg'
    """
    from rerank.evaluation.plots import STYLE, curves

    shown = sorted((level for level in levels if level.latencies), key=lambda level: level.throughput)
    series = {f"p{q}": [1000 * level.percentile(q) for level in shown] for q in _PERCENTILES}
    throughput = [level.throughput for level in shown]
    drawing = curves(series, throughput, "requests answered a second", "milliseconds")
    head, _, rest = drawing.partition(">")
    # By itself: without a page around it, which would give it colours and a font.
    look = f"{STYLE}svg {{ font-family: system-ui, sans-serif; background: var(--paper); padding: 1rem; }}"
    return f"{head}><style>{look}</style>{rest}\n"
