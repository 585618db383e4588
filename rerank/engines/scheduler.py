"""The scheduler: advances the rules of many lists together, so that their calls fill the engine's batches.

The core, `Scheduler`, does no input or output and knows no thread, clock or engine.  Two drivers use it: `run_waves`
asks for everything that is ready, waits, and goes on (offline, deterministic); `Pump` keeps several batches in flight
and refills as answers come (servers, HTTP engines).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NewType

from rerank.rules.rule import Answer, Group, Outcome, Steps

Ticket = NewType("Ticket", int)
"""What stands for one submitted list; they count from 0 in the order of submission."""

TURN = 32
"""Calls that a ticket may fill a budget with before the next ticket's turn: enough to share the encoding of a query,
too few for a list with 9,900 calls to hold up one with 10."""


@dataclass(frozen=True, slots=True)
class Request:
    """A call that a rule asks for."""

    ticket: Ticket
    index: int
    """Counts from 0 over the calls of the ticket."""
    group: Group


Cost = Callable[[Request], int]
"""What a call takes of a budget, usually its prompt's tokens."""


def one_each(request: Request) -> int:
    """1: a budget of calls."""
    return 1


@dataclass
class _Live:
    """An unfinished ticket: its steps and the wave of groups that it waits for."""

    steps: Steps
    owner: Hashable
    """Whose turn it is when its requests are taken."""
    start: int = 0
    """Index of the wave's first call."""
    answers: list[Answer] = field(default_factory=list)
    ready: deque[Request] = field(default_factory=deque)
    asked: set[int] = field(default_factory=set)


class Scheduler:
    """Tickets in, requests out, answers in, outcomes out.

    >>> from rerank.rules.pointwise import Pointwise
    >>> scheduler = Scheduler()
    >>> ticket = scheduler.submit(Pointwise().steps(2))
    >>> requests = scheduler.take()
    >>> scheduler.give(requests, [(0.5,), (0.75,)])
    >>> [(ticket, outcome.order) for ticket, outcome in scheduler.finished()]
    [(0, (1, 0))]
    """

    def __init__(self) -> None:
        self._submitted = 0
        self._live: dict[Ticket, _Live] = {}
        self._turns: deque[Hashable] = deque()
        self._ready: dict[Hashable, deque[Ticket]] = {}
        self._finished: list[tuple[Ticket, Outcome | Exception]] = []

    def submit(self, steps: Steps, owner: Hashable = None) -> Ticket:
        """The ticket of a list, whose first requests are ready; the steps must not have been started.

        Args:
            steps: the rule's.
            owner: who asks.  Owners take turns, and so do the tickets of each; without one a ticket is its own.
        """
        ticket = Ticket(self._submitted)
        self._submitted += 1
        self._live[ticket] = _Live(steps, ticket if owner is None else owner)
        self._advance(ticket)
        return ticket

    def take(self, budget: int | None = None, cost: Cost = one_each) -> list[Request]:
        """Requests that are ready, up to a sum of costs; without a budget all of them.

        A request that costs more than the budget comes alone.  Owners take turns.  What was taken is to be given.
        What `cost` raises fails the ticket of the request.
        """
        taken: list[Request] = []
        spent = 0
        while self._turns:
            owner = self._turns[0]
            ticket = self._ready[owner][0]
            live = self._live[ticket]
            for used in range(len(live.ready) if budget is None else min(TURN, len(live.ready))):
                try:
                    spent += cost(live.ready[0])
                except Exception as error:  # a text that cannot be counted is one list's trouble
                    self._end(ticket, error)
                    break
                if budget is not None and taken and spent > budget:
                    if used:
                        self._turn_ends(owner, ticket)
                    return taken
                taken.append(live.ready.popleft())
                live.asked.add(taken[-1].index)
            else:
                self._turn_ends(owner, ticket)
        return taken

    @property
    def has_ready(self) -> bool:
        """Whether `take` would give anything."""
        return bool(self._turns)

    def give(self, requests: Sequence[Request], answers: Sequence[Answer] | Exception) -> None:
        """Takes in the answers to requests that were taken; an exception fails every ticket among them, and no other.

        Answers to tickets that were cancelled or failed meanwhile are dropped.

        Raises:
            ValueError: there are more or fewer answers than requests, or a request was not taken or was answered.
        """
        tickets = dict.fromkeys(request.ticket for request in requests)
        if isinstance(answers, Exception):
            for ticket in tickets:
                self._end(ticket, answers)
            return
        if len(answers) != len(requests):
            raise ValueError(f"{len(answers):,} answers to {len(requests):,} requests; one each is needed")
        for request, answer in zip(requests, answers, strict=True):
            live = self._live.get(request.ticket)
            if live is None:
                continue
            if request.index not in live.asked:
                raise ValueError(f"{request} was not taken, or was answered before")
            live.asked.remove(request.index)
            live.answers[request.index - live.start] = answer
        for ticket in tickets:
            live = self._live.get(ticket)
            if live is not None and not live.asked and not live.ready:
                self._advance(ticket)

    def cancel(self, ticket: Ticket) -> None:
        """Drops a ticket with all its requests; it is not among the finished. One that is not live is left alone."""
        if ticket in self._live:
            self._drop(ticket)

    def finished(self) -> list[tuple[Ticket, Outcome | Exception]]:
        """What has finished since the last call, in that order."""
        finished, self._finished = self._finished, []
        return finished

    def __len__(self) -> int:
        """How many tickets are neither finished nor cancelled."""
        return len(self._live)

    def _advance(self, ticket: Ticket) -> None:
        """Runs a ticket's steps up to its next wave, or to its end."""
        live = self._live[ticket]
        try:
            groups = live.steps.send(live.answers) if live.answers else next(live.steps)
            while not groups:
                groups = live.steps.send([])
        except StopIteration as stop:
            self._end(ticket, stop.value)
        except Exception as error:  # whatever a rule raises ends its own ticket, and is handed to the caller
            self._end(ticket, error)
        else:
            live.start += len(live.answers)
            live.answers = [()] * len(groups)
            live.ready = deque(Request(ticket, index, group) for index, group in enumerate(groups, live.start))
            if live.owner not in self._ready:
                self._ready[live.owner] = deque()
                self._turns.append(live.owner)
            self._ready[live.owner].append(ticket)

    def _turn_ends(self, owner: Hashable, ticket: Ticket) -> None:
        """Puts the owner who comes first, and the first of its tickets, behind all others; or away where it is done."""
        tickets = self._ready[owner]
        tickets.popleft()
        if self._live[ticket].ready:
            tickets.append(ticket)
        self._turns.popleft()
        if tickets:
            self._turns.append(owner)
        else:
            del self._ready[owner]

    def _end(self, ticket: Ticket, result: Outcome | Exception) -> None:
        if ticket in self._live:
            self._drop(ticket)
            self._finished.append((ticket, result))

    def _drop(self, ticket: Ticket) -> None:
        live = self._live.pop(ticket)
        live.steps.close()
        if live.ready:
            tickets = self._ready[live.owner]
            tickets.remove(ticket)
            if not tickets:
                self._turns.remove(live.owner)
                del self._ready[live.owner]


def run_waves(lists: Iterable[Steps], ask: Callable[[list[Request]], Sequence[Answer]]) -> list[Outcome | Exception]:
    """The outcome of each list, or what its rule raised; `ask` is given everything that is ready at once.

    Tickets are the positions in `lists`.  What `ask` raises is raised.

    >>> from rerank.rules.judges import FakeJudge
    >>> from rerank.rules.listwise import Listwise
    >>> judges = [FakeJudge((1.0, 2.0)), FakeJudge((2.0, 1.0))]
    >>> lists = [Listwise().steps(2), Listwise().steps(2)]
    >>> done = run_waves(lists, lambda requests: [judges[each.ticket](each.group) for each in requests])
    >>> [outcome.order for outcome in done]
    [(1, 0), (0, 1)]
    """
    scheduler = Scheduler()
    for steps in lists:
        scheduler.submit(steps)
    while requests := scheduler.take():
        scheduler.give(requests, ask(requests))
    return [result for _, result in sorted(scheduler.finished(), key=lambda done: done[0])]


class Pump:
    """Keeps batches in flight: lists are submitted at any time, and share batches with those already there.

    Belongs to one event loop; starts no thread.

    >>> from rerank.rules.judges import FakeJudge
    >>> from rerank.rules.listwise import Listwise
    >>> async def ask(requests):
    ...     return [FakeJudge((1.0, 2.0))(request.group) for request in requests]
    >>> async def main():
    ...     pump = Pump(ask)
    ...     return await pump.outcome(pump.submit(Listwise().steps(2)))
    >>> asyncio.run(main()).order
    (1, 0)
    """

    def __init__(
        self,
        ask: Callable[[list[Request]], Awaitable[Sequence[Answer]]],
        *,
        batches: int = 4,
        budget: int | None = None,
        cost: Cost = one_each,
    ) -> None:
        """A pump that holds up to `batches` calls of `ask` in flight, each with requests that cost up to `budget`."""
        self._ask = ask
        self._batches = batches
        self._budget = budget
        self._cost = cost
        self._scheduler = Scheduler()
        self._waiting: dict[Ticket, asyncio.Future[Outcome]] = {}
        self._in_flight: set[asyncio.Task[None]] = set()

    def submit(self, steps: Steps) -> Ticket:
        """The ticket of a list; nothing is asked before the caller next awaits, so it can note what the ticket is."""
        loop = asyncio.get_running_loop()
        ticket = self._scheduler.submit(steps)
        self._waiting[ticket] = loop.create_future()
        loop.call_soon(self._refill)
        return ticket

    async def outcome(self, ticket: Ticket) -> Outcome:
        """The ticket's outcome, once; if the wait is cancelled, so is the ticket.

        Raises:
            Exception: what the ticket's rule raised, or what `ask` raised for a batch that it was in.
        """
        try:
            return await self._waiting[ticket]
        finally:
            self._scheduler.cancel(ticket)
            del self._waiting[ticket]

    def _refill(self) -> None:
        while len(self._in_flight) < self._batches and (requests := self._scheduler.take(self._budget, self._cost)):
            task = asyncio.ensure_future(self._batch(requests))
            self._in_flight.add(task)
            task.add_done_callback(self._landed)
        for ticket, result in self._scheduler.finished():
            waiting = self._waiting.get(ticket)
            if waiting is None or waiting.done():  # its wait was cancelled in this very turn of the loop
                continue
            if isinstance(result, Exception):
                waiting.set_exception(result)
            else:
                waiting.set_result(result)

    async def _batch(self, requests: list[Request]) -> None:
        try:
            self._scheduler.give(requests, await self._ask(requests))
        except Exception as error:  # whatever an engine raises ends the tickets of this batch, not the pump
            self._scheduler.give(requests, error)

    def _landed(self, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        if not task.cancelled():  # else the loop is closing
            self._refill()


async def run_continuously(
    lists: Iterable[Steps],
    ask: Callable[[list[Request]], Awaitable[Sequence[Answer]]],
    *,
    batches: int = 4,
    budget: int | None = None,
    cost: Cost = one_each,
) -> list[Outcome | BaseException]:
    """As `run_waves`, without waves: `ask` is called again as soon as one of its batches comes back."""
    pump = Pump(ask, batches=batches, budget=budget, cost=cost)
    tickets = [pump.submit(steps) for steps in lists]
    return await asyncio.gather(*(pump.outcome(ticket) for ticket in tickets), return_exceptions=True)
