"""The scheduler and its two drivers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rule_examples import RULES, shuffled_grades

from rerank.engines.scheduler import TURN, Pump, Request, Scheduler, Ticket, run_continuously, run_waves
from rerank.rules.groupwise import Groupwise
from rerank.rules.judges import FakeJudge, play
from rerank.rules.listwise import Listwise
from rerank.rules.pairwise import Pairwise
from rerank.rules.pointwise import Pointwise
from rerank.rules.rule import Answer, Group, Outcome, Rule, Steps
from rerank.rules.setwise import Setwise


def broken(after: int) -> Steps:
    """Raises once it was sent so many waves of answers."""
    for _ in range(after):
        yield [Group((0,)), Group((1,))]
    raise ZeroDivisionError("a fault in the rule")


def answers_to(requests: Sequence[Request], judge: FakeJudge) -> list[Answer]:
    return [judge(request.group) for request in requests]


class Lists:
    """Lists of 100 documents in random order, a judge for each, and the batches that were asked."""

    def __init__(self, n_lists: int = 43, n: int = 100, form: str = "pick") -> None:
        self.judges = [FakeJudge(shuffled_grades(n, seed), form) for seed in range(n_lists)]
        self.n = n
        self.batches: list[list[Request]] = []

    def steps(self, rule: Rule) -> list[Steps]:
        return [rule.steps(self.n, str(seed)) for seed in range(len(self.judges))]

    def alone(self, rule: Rule) -> list[Outcome]:
        return [play(rule, self.n, judge, str(seed)) for seed, judge in enumerate(self.judges)]

    def ask(self, requests: list[Request]) -> list[Answer]:
        self.batches.append(requests)
        return [self.judges[request.ticket](request.group) for request in requests]

    async def ask_later(self, requests: list[Request]) -> list[Answer]:
        answers = self.ask(requests)
        for _ in range(sum(len(request.group.members) for request in requests) % 5):  # not in the order asked
            await asyncio.sleep(0)
        return answers


# -- waves ----------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_lists_together_come_out_as_each_alone(rule):
    lists = Lists(5, 30, "scores")
    assert run_waves(lists.steps(rule), lists.ask) == lists.alone(rule)
    assert asyncio.run(run_continuously(lists.steps(rule), lists.ask_later, batches=3, budget=7)) == lists.alone(rule)


@pytest.mark.parametrize("size", [10, 20])
def test_setwise_heap_sort_of_43_lists_of_100_takes_at_most_40_waves(size):
    lists = Lists()
    outcomes = run_waves(lists.steps(Setwise(size=size)), lists.ask)
    assert len(lists.batches) <= 40
    assert len(lists.batches) == max(outcome.counts["waves"] for outcome in outcomes)
    assert sum(map(len, lists.batches)) == sum(outcome.counts["calls"] for outcome in outcomes) > 900


def test_whole_orders_take_4_waves():
    lists = Lists(form="scores")
    run_waves(lists.steps(Setwise()), lists.ask)
    assert len(lists.batches) <= 4
    assert sum(map(len, lists.batches)) < 43 * 8


def test_different_rules_share_waves():
    lists = Lists(3)
    steps = [rule.steps(100, "q") for rule in (Pointwise(), Listwise(), Setwise())]
    outcomes = run_waves(steps, lists.ask)
    assert len(lists.batches) == max(outcome.counts["waves"] for outcome in outcomes)
    assert {request.ticket for request in lists.batches[0]} == {0, 1, 2}


def test_waves_are_the_same_every_time_and_in_the_order_of_the_lists():
    one, two = Lists(6), Lists(6)
    run_waves(one.steps(Setwise()), one.ask)
    run_waves(two.steps(Setwise()), two.ask)
    assert one.batches == two.batches
    assert all([each.ticket for each in batch] == sorted(each.ticket for each in batch) for batch in one.batches)


def test_a_rule_that_raises_fails_its_own_list_only():
    lists = Lists(4, 10)
    steps = [broken(0), Setwise().steps(10, "1"), broken(2), Listwise().steps(10, "3")]
    first, second, third, fourth = run_waves(steps, lists.ask)
    assert isinstance(first, ZeroDivisionError)
    assert isinstance(third, ZeroDivisionError)
    assert (second, fourth) == (lists.alone(Setwise())[1], lists.alone(Listwise())[3])


def test_an_engine_that_raises_stops_the_waves():
    def ask(requests: list[Request]) -> list[Answer]:
        raise MemoryError

    with pytest.raises(MemoryError):
        run_waves([Pointwise().steps(3)], ask)


def test_no_lists_and_empty_lists_ask_nothing():
    lists = Lists(3, 0)
    assert run_waves([], lists.ask) == []
    assert [outcome.order for outcome in run_waves(lists.steps(Setwise()), lists.ask)] == [(), (), ()]
    assert lists.batches == []


# -- the core -------------------------------------------------------------------


def test_a_budget_is_kept_but_a_request_that_is_dearer_comes_alone():
    scheduler = Scheduler()
    scheduler.submit(Groupwise(size=8).steps(20))
    scheduler.submit(Pointwise().steps(5))
    cost = {7: 70, 6: 60, 1: 10}
    sizes = []
    while requests := scheduler.take(65, lambda request: cost[len(request.group.members)]):
        sizes.append([len(request.group.members) for request in requests])
    assert sizes == [[6], [1, 1, 1, 1, 1], [7], [7]]


def test_a_budget_of_calls_is_the_default():
    scheduler = Scheduler()
    scheduler.submit(Pointwise().steps(10))
    assert [len(scheduler.take(4)) for _ in range(4)] == [4, 4, 2, 0]


@given(st.lists(st.integers(1, 90), max_size=6), st.integers(1, 50))
def test_every_request_is_taken_once_whatever_the_budget(sizes, budget):
    scheduler = Scheduler()
    for size in sizes:
        scheduler.submit(Pointwise().steps(size))
    taken = []
    while requests := scheduler.take(budget):
        assert len(requests) <= budget
        taken += [(request.ticket, request.index, request.group) for request in requests]
    assert sorted(taken) == [(ticket, at, Group((at,))) for ticket, size in enumerate(sizes) for at in range(size)]


@pytest.mark.parametrize("budget", [8, 32, 100])
def test_a_long_list_does_not_hold_up_a_short_one(budget):
    scheduler = Scheduler()
    scheduler.submit(Pairwise("all").steps(60))
    short = scheduler.submit(Pointwise().steps(10))
    taken = [scheduler.take(budget) for _ in range(-(-2 * max(TURN, 20) // budget))]
    assert sum(request.ticket == short for requests in taken for request in requests) == 10


def test_answers_may_come_in_any_order_and_in_parts():
    scheduler = Scheduler()
    ticket = scheduler.submit(Pointwise().steps(4))
    requests = scheduler.take()
    judge = FakeJudge((1.0, 4.0, 2.0, 3.0))
    for request in reversed(requests):
        assert scheduler.finished() == []
        scheduler.give([request], [judge(request.group)])
    ((done, outcome),) = scheduler.finished()
    assert (done, outcome.order) == (ticket, (1, 3, 2, 0))
    assert (scheduler.finished(), len(scheduler)) == ([], 0)


def test_indexes_count_on_over_the_waves():
    scheduler = Scheduler()
    scheduler.submit(Listwise(4, 2).steps(8))
    seen = []
    while requests := scheduler.take():
        seen += [request.index for request in requests]
        scheduler.give(requests, [(1.0,) * 4] * len(requests))
    assert seen == [0, 1, 2]


def test_an_engines_error_fails_the_tickets_of_its_batch_only():
    scheduler = Scheduler()
    one, two = scheduler.submit(Pointwise().steps(3)), scheduler.submit(Pointwise().steps(1))
    first, second = scheduler.take(2), scheduler.take()
    scheduler.give(first, TimeoutError("gone"))
    assert [(ticket, repr(error)) for ticket, error in scheduler.finished()] == [(one, "TimeoutError('gone')")]
    scheduler.give(second, [(1.0,)] * len(second))  # the failed ticket's last answer is dropped
    assert [ticket for ticket, _ in scheduler.finished()] == [two]


def test_a_cancelled_ticket_asks_no_more_and_its_answers_are_dropped():
    scheduler = Scheduler()
    one, two = scheduler.submit(Pointwise().steps(50)), scheduler.submit(Pointwise().steps(2))
    taken = scheduler.take(3)
    scheduler.cancel(one)
    scheduler.cancel(one)
    rest = scheduler.take()
    assert {request.ticket for request in rest} == {two}
    scheduler.give(taken, [(1.0,)] * 3)
    scheduler.give(rest, [(1.0,)] * 2)
    assert [ticket for ticket, _ in scheduler.finished()] == [two]


def test_cancelling_closes_the_steps():
    closed = []

    def steps() -> Steps:
        try:
            yield [Group((0,))]
        finally:
            closed.append(1)
        raise AssertionError

    scheduler = Scheduler()
    scheduler.cancel(scheduler.submit(steps()))
    assert closed == [1]


def test_a_cost_that_raises_fails_the_ticket_of_its_request():
    def cost(request: Request) -> int:
        if request.group.members == (2,):
            raise UnicodeError("no tokens")
        return 1

    scheduler = Scheduler()
    bad, good = scheduler.submit(Pointwise().steps(5)), scheduler.submit(Pointwise().steps(2))
    taken = scheduler.take(100, cost)
    assert [(request.ticket, request.index) for request in taken] == [(bad, 0), (bad, 1), (good, 0), (good, 1)]
    ((failed, error),) = scheduler.finished()
    assert (failed, type(error)) == (bad, UnicodeError)


@pytest.mark.parametrize("answers", [[], [(1.0,)], [(1.0,)] * 3])
def test_one_answer_for_each_request_is_needed(answers):
    scheduler = Scheduler()
    scheduler.submit(Pointwise().steps(2))
    requests = scheduler.take()
    with pytest.raises(ValueError, match=r"answers to 2 requests"):
        scheduler.give(requests, answers)


def test_a_request_is_answered_once_and_only_when_taken():
    scheduler = Scheduler()
    scheduler.submit(Pointwise().steps(2))
    requests = scheduler.take()
    scheduler.give(requests[:1], [(1.0,)])
    with pytest.raises(ValueError, match="was not taken, or was answered before"):
        scheduler.give(requests[:1], [(1.0,)])
    with pytest.raises(ValueError, match="was not taken"):
        scheduler.give([Request(Ticket(0), 7, Group((0,)))], [(1.0,)])


def test_steps_that_yield_nothing_to_ask_go_on():
    def steps() -> Steps:
        sent = yield []
        answers = yield [Group((0,))]
        assert (sent, answers) == ([], [(1.0,)])
        yield []
        return Outcome((0,), None, {})

    assert run_waves([steps()], lambda requests: [(1.0,)]) == [Outcome((0,), None, {})]


# -- the pump -------------------------------------------------------------------


def test_batches_in_flight_are_refilled_as_they_come_back():
    in_flight, most, sizes = 0, 0, []
    lists = Lists(12)

    async def ask(requests: list[Request]) -> list[Answer]:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        sizes.append(len(requests))
        for _ in range(1 + len(sizes) % 3):
            await asyncio.sleep(0)
        in_flight -= 1
        return lists.ask(requests)

    outcomes = asyncio.run(run_continuously(lists.steps(Setwise()), ask, batches=3, budget=10))
    assert outcomes == lists.alone(Setwise())
    assert most == 3
    assert max(sizes) == 10


def test_a_slow_list_does_not_hold_up_a_fast_one():
    done = []

    async def ask(requests: list[Request]) -> list[Answer]:
        for _ in range(50 if requests[0].ticket == 0 else 1):
            await asyncio.sleep(0)
        return [(1.0,) * len(request.group.members) for request in requests]

    async def main() -> None:
        pump = Pump(ask, batches=2, budget=1)

        async def wait(n: int) -> None:
            ticket = pump.submit(Listwise(2, 1).steps(n))
            await pump.outcome(ticket)
            done.append(ticket)

        await asyncio.gather(wait(2), wait(10))

    asyncio.run(main())
    assert done == [1, 0]


def test_lists_submitted_later_join_those_in_flight_and_share_batches():
    lists = Lists(4, 12)

    async def main() -> list[Outcome]:
        pump = Pump(lists.ask_later, batches=1)
        tickets = [pump.submit(steps) for steps in lists.steps(Setwise(k=3))[:2]]
        waits = [asyncio.ensure_future(pump.outcome(ticket)) for ticket in tickets]
        for _ in range(3):
            await asyncio.sleep(0)
        tickets = [pump.submit(steps) for steps in lists.steps(Setwise(k=3))[2:]]
        return [*(await asyncio.gather(*waits)), *[await pump.outcome(ticket) for ticket in tickets]]

    assert asyncio.run(main()) == lists.alone(Setwise(k=3))
    assert {request.ticket for request in lists.batches[0]} == {0, 1}
    assert {request.ticket for batch in lists.batches for request in batch} == {0, 1, 2, 3}


@pytest.mark.parametrize("fault", ["raises", "too few answers"])
def test_a_batch_that_fails_fails_its_lists_and_not_the_pump(fault):
    async def ask(requests: list[Request]) -> list[Answer]:
        if any(request.ticket == 1 for request in requests):
            if fault == "raises":
                raise ConnectionError("server gone")
            return []
        return [(1.0,)] * len(requests)

    async def main() -> list[Outcome | BaseException]:
        return await run_continuously([Pointwise().steps(2) for _ in range(3)], ask, budget=2)

    first, second, third = asyncio.run(main())
    assert isinstance(second, ConnectionError if fault == "raises" else ValueError)
    assert isinstance(first, Outcome)
    assert isinstance(third, Outcome)


def test_a_rule_that_raises_fails_its_own_wait():
    lists = Lists(3, 4)
    steps = [broken(1), broken(0), Pointwise().steps(4, "2")]
    first, second, third = asyncio.run(run_continuously(steps, lists.ask_later))
    assert isinstance(first, ZeroDivisionError)
    assert isinstance(second, ZeroDivisionError)
    assert third == lists.alone(Pointwise())[2]


def test_a_cancelled_wait_cancels_its_list():
    asked: list[Request] = []

    async def ask(requests: list[Request]) -> list[Answer]:
        asked.extend(requests)
        await asyncio.sleep(0)
        return [(1.0, 0.0)] * len(requests)

    async def main() -> Outcome:
        pump = Pump(ask, batches=1)
        gone = asyncio.ensure_future(pump.outcome(pump.submit(Listwise(2, 1).steps(50))))
        kept = pump.submit(Listwise(2, 1).steps(5))
        at_once = asyncio.ensure_future(pump.outcome(pump.submit(Pointwise().steps(0))))
        await asyncio.sleep(0)
        gone.cancel()
        at_once.cancel()
        return await pump.outcome(kept)

    assert asyncio.run(main()).order == (0, 1, 2, 3, 4)
    assert sum(request.ticket == 0 for request in asked) < 4
    assert sum(request.ticket == 1 for request in asked) == 4


def test_a_loop_may_close_with_batches_in_flight():
    started = []

    async def ask(requests: list[Request]) -> list[Answer]:
        started.append(1)
        await asyncio.sleep(60)
        return []

    async def main() -> None:
        pump = Pump(ask, batches=1, budget=1)
        pump.submit(Pointwise().steps(3))
        for _ in range(3):
            await asyncio.sleep(0)

    asyncio.run(main())
    assert started == [1]


# -- owners ---------------------------------------------------------------------


def test_owners_take_turns_however_many_lists_each_has():
    scheduler = Scheduler()
    greedy = {scheduler.submit(Pointwise().steps(TURN), "greedy") for _ in range(5)}
    modest = scheduler.submit(Pointwise().steps(TURN), "modest")
    taken = [each.ticket for each in scheduler.take(2 * TURN)]
    assert taken.count(modest) == TURN
    assert sum(ticket in greedy for ticket in taken) == TURN


def test_the_lists_of_one_owner_take_turns_too():
    scheduler = Scheduler()
    long, short = scheduler.submit(Pointwise().steps(5 * TURN), "one"), scheduler.submit(Pointwise().steps(3), "one")
    assert [each.ticket for each in scheduler.take(TURN + 3)] == [long] * TURN + [short] * 3


@given(st.lists(st.tuples(st.integers(1, 70), st.integers(0, 2)), max_size=8), st.integers(1, 50), st.data())
def test_owners_lose_and_double_no_request_whatever_is_cancelled(lists, budget, data):
    scheduler = Scheduler()
    tickets = {scheduler.submit(Pointwise().steps(size), owner): size for size, owner in lists}
    cancelled: set[Ticket] = set()
    taken: list[Request] = []
    while requests := scheduler.take(budget):
        taken += requests
        if tickets and data.draw(st.booleans()):
            cancelled.add(data.draw(st.sampled_from(sorted(tickets))))
            scheduler.cancel(max(cancelled))
    assert not scheduler.has_ready
    assert len({(each.ticket, each.index) for each in taken}) == len(taken)
    kept = [each.ticket for each in taken if each.ticket not in cancelled]
    assert len(kept) == sum(size for ticket, size in tickets.items() if ticket not in cancelled)
