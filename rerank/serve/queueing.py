"""One queue for all clients: their rules go forward side by side, and what they ask shares batches.

Each target (a model with its adapter and prompt) has a lane, with a `Scheduler` in which clients take turns; the lane
that has waited longest fills the next batch.  Up to two batches are with the worker, so that it never waits for one.

A batch that the worker did not survive is sent again by itself; one that ends a second worker is halved until the
question is found that does it, and only that one's request fails.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rerank.engines.scheduler import Request, Scheduler, Ticket
from rerank.reranker import Reasoning
from rerank.rules.rule import Answer, Group, Outcome, Steps
from rerank.serve.errors import ApiError, failed, not_ready, overloaded, timed_out
from rerank.serve.metrics import Metrics
from rerank.serve.supervisor import WorkerFailedError, WorkerGoneError
from rerank.serve.wire import Message

logger = logging.getLogger(__name__)

MOST_REASONING = 2 << 20
"""Characters of what a model wrote that a reply holds."""
IN_FLIGHT = 2
"""Batches with the worker: one that it computes and one that lies ready."""
_BATCH_SECONDS = 0.25
"""How much work a batch is meant to be: a newcomer waits for two of them at most."""
_LEAST_BATCH_TOKENS = 4096
"""Less would leave processors waiting for memory: what engines take at once."""
_PATIENCE = 0.5
"""The share of the longest wait from which on a request is refused: better at once than after the whole of it."""
_LEARNING = 0.2
_OWN_FAULT = ("memory", "error", "ModelError")
"""Failures that one question of a batch may cause, so that the others are tried without it."""


class Lane(NamedTuple):
    """What shares batches."""

    target: str
    verb: str
    option: str = ""
    """Sent along, as `side`, where there is one."""


_PAYLOADS = {"ask": "questions", "rank": "lists", "search": "queries", "embed": "texts"}
"""Under which name each verb's items are sent."""


class Found(NamedTuple):
    """What the worker found for one item."""

    value: Any
    tokens: int
    truncated: int
    written: Sequence[str] = ()
    """What the model wrote, where that was asked for."""


def _found(verb: str, reply: Message) -> list[Found]:
    if verb == "ask":
        answers = reply["answers"]
        rows = zip(answers, reply["used"], reply.get("written") or [()] * len(answers), strict=True)
        return [Found(answer, tokens, cut, written) for answer, (tokens, cut), written in rows]
    if verb == "embed":
        return [Found(*each, 0) for each in zip(reply["vectors"], reply["tokens"], strict=True)]
    return [Found(each, each["tokens"], 0) for each in reply["lists"]]


class Estimate:
    """Tokens from characters, learnt from what the worker counts."""

    def __init__(self, characters_per_token: float = 4.0) -> None:
        self._ratio = characters_per_token

    def tokens(self, characters: int) -> int:
        """At least 1."""
        return int(characters / self._ratio) + 1

    def learn(self, characters: int, tokens: int) -> None:
        """From a batch."""
        if characters > 0 and tokens > 0:
            seen = min(20.0, max(0.5, characters / tokens))
            self._ratio += _LEARNING * (seen - self._ratio)


class Work(ABC):
    """What one request wants done: steps, and what crosses to the worker for each of their groups."""

    def __init__(self, lane: Lane, estimate: Estimate, n_documents: int, n_characters: int) -> None:
        self.lane, self.estimate = lane, estimate
        self.n_documents = n_documents
        """How many documents, queries or texts there are."""
        self.n_characters = n_characters
        """How long all of them are, as they will be asked at first."""
        self.tokens = self.truncated = 0
        self.reasoning: list[Reasoning] = []
        """What the model wrote."""
        self._room = MOST_REASONING
        self.unheard = 0
        """How much more it wrote, for which there was no room."""
        self.queue_seconds = self.inference_seconds = 0.0

    @abstractmethod
    def steps(self) -> Steps:
        """Not yet started."""

    @abstractmethod
    def item(self, group: Group) -> Any:
        """What the worker is sent."""

    @abstractmethod
    def characters(self, group: Group) -> int:
        """How long that is."""

    @abstractmethod
    def take(self, group: Group, value: Any) -> Answer:
        """What the steps are told of what was found.

        Raises:
            ApiError: it is no answer.
        """

    def cost(self, group: Group) -> int:
        """About how many tokens a group takes."""
        return self.estimate.tokens(self.characters(group))

    def hear(self, documents: Sequence[int], text: str) -> None:
        """Keeps what the model wrote about documents."""
        if len(text) > self._room:
            self.unheard += 1
        else:
            self._room -= len(text)
            self.reasoning.append(Reasoning(tuple(documents), text))


class ApartWork(Work):
    """Items that are asked about once each, and whose results need no rule."""

    def __init__(self, lane: Lane, estimate: Estimate, n_documents: int, n_characters: int) -> None:
        super().__init__(lane, estimate, n_documents, n_characters)
        self.results: dict[int, Any] = {}

    def steps(self) -> Steps:
        """One wave."""
        yield [Group((number,)) for number in range(self.n_documents)]
        return Outcome((), None, {})

    def take(self, group: Group, value: Any) -> Answer:
        """Keeps what was found."""
        self.results[group.members[0]] = value
        return (0.0,)

    def in_order(self) -> list[Any]:
        """All results."""
        return [self.results[number] for number in range(self.n_documents)]


@dataclass(frozen=True)
class Limits:
    """How much may wait, and how long."""

    max_batch_tokens: int = 16384
    max_queued_tokens: int = 16 * 16384
    max_concurrent_requests: int = 512
    queue_seconds: float = 30.0
    request_seconds: float = 300.0


@dataclass(eq=False)
class _Entry:
    """A request that was accepted and is not answered."""

    work: Work
    client: str
    ticket: Ticket
    lane: _Lane
    done: asyncio.Future[Outcome]
    since: float
    waiting_tokens: int
    waiting_pairs: int
    started: bool = False


@dataclass(eq=False)
class _Lane:
    name: Lane
    scheduler: Scheduler = field(default_factory=Scheduler)
    entries: dict[Ticket, _Entry] = field(default_factory=dict)
    ready_since: float | None = None


@dataclass(eq=False)
class _Batch:
    lane: _Lane
    requests: list[Request]
    suspect: bool = False
    """Whether a worker died over it."""


class Queue:
    """Accepts work, and gives its outcome.

    Args:
        ask: the worker.
        can_ask: whether it is there.
        limits: see `Limits`.
        metrics: is told.
    """

    def __init__(
        self,
        ask: Callable[[Message], Awaitable[Message]],
        can_ask: Callable[[], bool],
        limits: Limits,
        metrics: Metrics,
    ) -> None:
        self._ask, self._can_ask, self.limits, self._metrics = ask, can_ask, limits, metrics
        self._lanes: dict[Lane, _Lane] = {}
        self._entries: set[_Entry] = set()
        self._running: dict[asyncio.Task[None], _Batch] = {}
        self._suspects: deque[_Batch] = deque()
        self._tokens_per_second = 0.0
        self._closed = False
        self._empty = asyncio.Event()
        self._empty.set()
        self.batches = 0
        """How many were sent."""

    # -- from outside ------------------------------------------------------------

    async def run(self, work: Work, client: str) -> Outcome:
        """The outcome of `work`; if the wait is cancelled, so is the work.

        Args:
            work: what is wanted.
            client: with whom others take turns.

        Raises:
            ApiError: refused, waited too long, or failed.
        """
        self._admit(work, client)
        entry = self._enter(work, client)
        loop = asyncio.get_running_loop()
        expiry = loop.call_later(self.limits.queue_seconds, self._expire, entry)
        try:
            async with asyncio.timeout(self.limits.request_seconds):
                return await entry.done
        except TimeoutError:
            raise timed_out(f"no answer within {self.limits.request_seconds:g} seconds", self.retry_after()) from None
        except asyncio.CancelledError:
            self._metrics.cancelled.inc()
            raise
        finally:
            expiry.cancel()
            self._leave(entry)

    def wake(self) -> None:
        """Goes on: a worker has become ready."""
        self._refill()

    @property
    def n_requests(self) -> int:
        """How many are accepted and not answered."""
        return len(self._entries)

    @property
    def queued_tokens(self) -> int:
        """About how many tokens wait for a batch."""
        return sum(entry.waiting_tokens for entry in self._entries)

    def retry_after(self) -> int:
        """Whole seconds after which there will be room, as far as can be told."""
        if not self._tokens_per_second:
            return 1
        return max(1, min(60, round(self.queued_tokens / self._tokens_per_second)))

    async def drain(self, seconds: float) -> None:
        """Accepts nothing more; returns when all is answered, if need be with refusals after so many seconds."""
        self._closed = True
        try:
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        except TimeoutError:
            for entry in list(self._entries):
                _settle(entry, not_ready("the server is shutting down; send the request again"))
            await asyncio.sleep(0)

    async def close(self) -> None:
        """Stops whatever is under way."""
        await self.drain(0)
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    # -- entering and leaving -------------------------------------------------------

    def _admit(self, work: Work, client: str) -> None:
        if self._closed:
            raise not_ready("the server is shutting down")
        if len(self._entries) >= self.limits.max_concurrent_requests:
            raise overloaded(f"{len(self._entries):,} requests are under way already", self.retry_after())
        tokens, queued = work.estimate.tokens(work.n_characters), self.queued_tokens
        # A request that is larger than the bound is taken when nothing else waits, else it never would be.
        if queued and queued + tokens > self.limits.max_queued_tokens:
            raise overloaded(
                f"about {queued:,} tokens wait already, and {self.limits.max_queued_tokens:,} may", self.retry_after()
            )
        seconds = self._seconds_until_turn(client)
        if seconds > self.limits.queue_seconds * _PATIENCE:
            raise overloaded(
                f"what this client asked for already takes about {seconds:.0f} seconds", min(60, 1 + int(seconds))
            )

    def _seconds_until_turn(self, client: str) -> float:
        """After how long a client's next request gets its first batch, as far as can be told: clients take turns."""
        if not self._tokens_per_second:
            return 0.0
        waiting: Counter[str] = Counter()
        for entry in self._entries:
            waiting[entry.client] += entry.waiting_tokens
        return sum(min(tokens, waiting[client]) for tokens in waiting.values()) / self._tokens_per_second

    def _enter(self, work: Work, client: str) -> _Entry:
        lane = self._lanes.setdefault(work.lane, _Lane(work.lane))
        loop = asyncio.get_running_loop()
        ticket = lane.scheduler.submit(work.steps(), client)
        tokens = work.estimate.tokens(work.n_characters)
        entry = _Entry(work, client, ticket, lane, loop.create_future(), loop.time(), tokens, work.n_documents)
        lane.entries[ticket] = entry
        self._entries.add(entry)
        self._empty.clear()
        # Requests that are read in the same turn of the loop share a batch.
        loop.call_soon(self._refill)
        return entry

    def _leave(self, entry: _Entry) -> None:
        self._entries.discard(entry)
        entry.lane.entries.pop(entry.ticket, None)
        entry.lane.scheduler.cancel(entry.ticket)
        if not entry.done.done():
            entry.done.cancel()
        elif not entry.done.cancelled():
            entry.done.exception()  # it was settled in the turn in which the client left
        for task, batch in list(self._running.items()):
            if not any(request.ticket in batch.lane.entries for request in batch.requests):
                task.cancel()
        if not entry.lane.entries and self._lanes.get(entry.lane.name) is entry.lane:
            del self._lanes[entry.lane.name]
        if not self._entries:
            self._empty.set()
        self._gauge()

    def _expire(self, entry: _Entry) -> None:
        if not entry.started:
            message = f"waited {self.limits.queue_seconds:g} seconds and got no turn"
            _settle(entry, timed_out(message, self.retry_after()))

    # -- batches ------------------------------------------------------------

    @property
    def _budget(self) -> int:
        most = self.limits.max_batch_tokens
        learnt = int(self._tokens_per_second * _BATCH_SECONDS) if self._tokens_per_second else most // 2
        return max(min(_LEAST_BATCH_TOKENS, most), min(most, learnt))

    def _refill(self) -> None:
        while self._can_ask():
            batch = self._next()
            if batch is None:
                break
            task = asyncio.ensure_future(self._run(batch))
            self._running[task] = batch
            task.add_done_callback(self._landed)
        for lane in list(self._lanes.values()):
            for ticket, result in lane.scheduler.finished():
                entry = lane.entries.get(ticket)
                if entry is not None:
                    _settle(entry, result)
        self._gauge()

    def _next(self) -> _Batch | None:
        """The batch to send, if one may be sent now."""
        now = asyncio.get_running_loop().time()
        ready = [lane for lane in self._lanes.values() if lane.scheduler.has_ready]
        for lane in ready:
            if lane.ready_since is None:
                lane.ready_since = now
        if any(batch.suspect for batch in self._running.values()):
            return None
        if self._suspects:  # by itself, so that no other is blamed
            return None if self._running else self._suspects.popleft()
        if not ready or len(self._running) >= IN_FLIGHT:
            return None
        lane = min(ready, key=lambda each: each.ready_since or 0.0)
        requests = lane.scheduler.take(self._budget, lambda request: self._cost(lane, request))
        lane.ready_since = None
        if not requests:
            return self._next()
        for request in requests:
            self._started(lane.entries[request.ticket], request, now)
        return _Batch(lane, requests)

    def _cost(self, lane: _Lane, request: Request) -> int:
        return lane.entries[request.ticket].work.cost(request.group)

    def _started(self, entry: _Entry, request: Request, now: float) -> None:
        entry.waiting_tokens = max(0, entry.waiting_tokens - entry.work.cost(request.group))
        entry.waiting_pairs = max(0, entry.waiting_pairs - len(request.group.members))
        if not entry.started:
            entry.started = True
            entry.work.queue_seconds = now - entry.since
            self._metrics.queue_wait.observe(entry.work.queue_seconds)

    def _landed(self, task: asyncio.Task[None]) -> None:
        self._running.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a batch was lost", exc_info=error)
        self._refill()

    async def _run(self, batch: _Batch) -> None:
        lane = batch.lane
        requests = [request for request in batch.requests if request.ticket in lane.entries]
        if not requests:
            return
        entries = [lane.entries[request.ticket] for request in requests]
        items = [entry.work.item(request.group) for entry, request in zip(entries, requests, strict=True)]
        message: Message = {"do": lane.name.verb, "target": lane.name.target, _PAYLOADS[lane.name.verb]: items}
        if lane.name.option:
            message["side"] = lane.name.option
        self.batches += 1
        try:
            reply = await self._ask(message)
            found = _found(lane.name.verb, reply)
        except WorkerGoneError:
            self._again(lane, requests, suspect=batch.suspect)
        except WorkerFailedError as error:
            if len(requests) > 1 and error.kind in _OWN_FAULT:
                for half in _halves(requests):
                    await self._run(_Batch(lane, half, batch.suspect))
            else:
                lane.scheduler.give(requests, _said(error))
        else:
            self._learn(lane, entries, requests, found, reply["seconds"])
            for request, entry, each in zip(requests, entries, found, strict=True):
                entry.work.tokens += each.tokens
                entry.work.truncated += each.truncated
                for text in each.written:
                    entry.work.hear(request.group.members, text)
                try:
                    answer = entry.work.take(request.group, each.value)
                except ApiError as error:
                    lane.scheduler.give([request], error)
                else:
                    lane.scheduler.give([request], [answer])

    def _again(self, lane: _Lane, requests: list[Request], *, suspect: bool) -> None:
        """Sends requests again that a worker died over; the second time in halves."""
        if not suspect:
            self._suspects.append(_Batch(lane, requests, suspect=True))
        elif len(requests) > 1:
            self._suspects.extendleft(_Batch(lane, half, suspect=True) for half in _halves(requests)[::-1])
        else:
            lane.scheduler.give(requests, failed("the model's process ended over this request, twice"))

    def _learn(
        self, lane: _Lane, entries: list[_Entry], requests: list[Request], found: list[Found], seconds: float
    ) -> None:
        tokens = sum(each.tokens for each in found)
        uncut = [
            (entry.work.characters(request.group), each.tokens)
            for entry, request, each in zip(entries, requests, found, strict=True)
            if not each.truncated
        ]
        entries[0].work.estimate.learn(sum(size for size, _ in uncut), sum(number for _, number in uncut))
        if seconds > 0:
            speed = tokens / seconds
            before = self._tokens_per_second
            self._tokens_per_second = before + _LEARNING * (speed - before) if before else speed
        for entry in set(entries):
            entry.work.inference_seconds += seconds
        metrics, model = self._metrics, lane.name.target
        longest = max(each.tokens for each in found)
        metrics.inference_seconds.observe(seconds)
        metrics.batch_pairs.observe(len(requests))
        metrics.batch_tokens.observe(tokens)
        metrics.padding.observe(1 - tokens / (longest * len(found)) if longest else 0.0)
        metrics.pairs.labels(model).inc(len(requests))
        metrics.tokens.labels(model).inc(tokens)
        metrics.truncated.labels(model).inc(sum(each.truncated for each in found))

    def _gauge(self) -> None:
        self._metrics.queue_tokens.set(self.queued_tokens)
        self._metrics.queue_pairs.set(sum(entry.waiting_pairs for entry in self._entries))


def _settle(entry: _Entry, result: Outcome | Exception) -> None:
    if entry.done.done():
        return
    if isinstance(result, Exception):
        entry.done.set_exception(result)
    else:
        entry.done.set_result(result)


def _halves(requests: list[Request]) -> list[list[Request]]:
    middle = (len(requests) + 1) // 2
    return [requests[:middle], requests[middle:]]


def _said(error: WorkerFailedError) -> ApiError:
    """What clients are told: of this package's errors that the model failed, since their words may name files."""
    logger.error("the model failed: %s", error)
    if error.kind == "memory":
        return failed("the device's memory does not hold this request; send fewer or shorter documents")
    return failed("the model failed; the server's log says more")
