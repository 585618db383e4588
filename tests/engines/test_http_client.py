"""Requests to a server: tried again where that helps, given up where it does not, never too many at a time."""

from __future__ import annotations

import asyncio
import email.utils
import gc
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from local_server import LocalServer, Reply, Seen, closed_port

from rerank.engines import http_client
from rerank.engines.http_client import (
    HttpClient,
    MalformedError,
    RequestError,
    Retry,
    Session,
    UnfitServerError,
    check_limits,
    check_url,
    error_of,
    read_key,
    retry_after,
    together,
)
from rerank.errors import ConfigError, ServerError

pytestmark = pytest.mark.needs("httpx2")

KEY = "sk-very-secret"


class Clock:
    """A clock that only sleeping moves, and what was slept."""

    def __init__(self) -> None:
        self.time = 0.0
        self.slept: list[float] = []
        self.while_asleep: Callable[[], None] = lambda: None

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds
        self.while_asleep()

    def now(self) -> float:
        return self.time


@pytest.fixture
def server() -> Iterator[LocalServer]:
    with LocalServer(lambda seen: {"answer": seen.body["n"]}) as running:
        yield running


@pytest.fixture
def clock() -> Clock:
    return Clock()


def read(reply: http_client.Reply) -> Any:
    if not isinstance(reply.value, dict) or "answer" not in reply.value:
        raise MalformedError("no answer")
    return reply.value["answer"]


class Talk:
    """One run's talk with a server."""

    def __init__(self, clock: Clock, key: str | None = KEY, **options: Any) -> None:
        self.client = HttpClient(key, sleep=clock.sleep, now=clock.now, **{"timeout_seconds": 10.0, **options})
        self.session = self.client.session()

    async def run(self, job: Callable[[Session], Awaitable[Any]]) -> Any:
        return await self.client.run(self.session, job)


def make(clock: Clock, **options: Any) -> Talk:
    return Talk(clock, **options)


def ask(talk: Talk, server: LocalServer, n: int = 1) -> Any:
    async def job(session: Session) -> Any:
        return await session.post(f"{server.url}/ask", {"n": n}, read)

    return talk.client.finish(talk.run(job))


# -- tried again ------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 409, 424, 425, 429, 500, 502, 503, 504, 529])
def test_a_server_in_trouble_is_asked_again(status: int, server: LocalServer, clock: Clock) -> None:
    server.script = [Reply({"error": "busy"}, status), Reply({"error": "busy"}, status)]
    client = make(clock)
    assert ask(client, server, 7) == 7
    assert client.session.counted() == {"http calls": 3, "retries": 2}


def test_waits_double_up_to_a_minute_and_are_left_to_chance_by_half(server: LocalServer, clock: Clock) -> None:
    server.script = [Reply(status=503)] * 9
    ask(make(clock, retry=Retry(tries=10)), server)
    whole = [0.5, 1, 2, 4, 8, 16, 32, 60, 60]
    assert all(full / 2 <= slept <= full for full, slept in zip(whole, clock.slept, strict=True))
    assert len({slept / full for full, slept in zip(whole, clock.slept, strict=True)}) > 1


def test_seconds_of_retry_after_are_waited_for(server: LocalServer, clock: Clock) -> None:
    server.script = [Reply(status=429, headers={"Retry-After": "17"})]
    ask(make(clock), server)
    assert 17 <= clock.slept[0] <= 17.5


def test_a_date_of_retry_after_is_waited_for_by_the_servers_own_clock(server: LocalServer, clock: Clock) -> None:
    theirs = time.time() - 5_000
    headers = {"Retry-After": email.utils.formatdate(theirs + 40, usegmt=True)}
    headers["Date"] = email.utils.formatdate(theirs, usegmt=True)
    server.script = [Reply(status=503, headers=headers)]
    ask(make(clock), server)
    assert 40 <= clock.slept[0] <= 40.5


def test_a_server_that_asks_for_no_wait_is_not_pressed(server: LocalServer, clock: Clock) -> None:
    server.script = [Reply(status=429, headers={"Retry-After": "0"})]
    ask(make(clock), server)
    assert clock.slept[0] >= 0.25


def test_dates_and_seconds_are_read() -> None:
    headers = {"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}
    assert retry_after(headers, 0.0) == 30
    assert retry_after({"retry-after": headers["retry-after"]}, 1792567690.0) == 20
    assert retry_after({"retry-after": headers["retry-after"]}, 1792568000.0) == 0
    assert retry_after({"retry-after": "1.5"}, 0.0) == 1.5
    assert retry_after({"retry-after-ms": "250", "retry-after": "1"}, 0.0) == 0.25
    for nothing in ({}, {"retry-after": ""}, {"retry-after": "soon"}, {"retry-after": "-1"}):
        assert retry_after(nothing, 0.0) is None


def test_a_wait_that_the_server_asks_for_holds_up_every_request(server: LocalServer, clock: Clock) -> None:
    client = make(clock)
    ask(client, server)
    server.script = [Reply(status=429, headers={"Retry-After": "5"})]

    async def two() -> list[Any]:
        async def job(session: Session) -> Any:
            return await session.post(f"{server.url}/ask", {"n": 2}, read)

        async def later(session: Session) -> Any:
            while not clock.slept:
                await asyncio.sleep(0.001)
            return await job(session)

        return await asyncio.gather(client.run(job), client.run(later))

    assert client.client.finish(two()) == [2, 2]
    assert clock.time >= 5
    assert len(clock.slept) <= 2


def test_a_wait_that_is_too_long_ends_everything(server: LocalServer, clock: Clock) -> None:
    server.script = [Reply({"error": {"message": "daily limit"}}, 429, {"Retry-After": "86400"})]
    with pytest.raises(ServerError, match=r"daily limit; it asks to wait 86,400 seconds.*run again then"):
        ask(make(clock), server)
    assert clock.slept == []


@pytest.mark.parametrize("body", [b"<html>proxy</html>", b"", b'{"answer": ', b"[1]", b'{"other": 1}', b"\xff\xfe"])
def test_a_reply_of_another_shape_is_asked_for_again_a_few_times(
    body: bytes, server: LocalServer, clock: Clock
) -> None:
    server.script = [Reply(body), Reply(body)]
    client = make(clock)
    assert ask(client, server, 3) == 3
    assert client.session.counted()["malformed replies"] == 2
    server.script = [Reply(body)] * 3
    with pytest.raises(RequestError, match=r"the reply is not what was asked for: .*tried 3 times"):
        ask(client, server)


def test_a_connection_that_breaks_is_made_again(server: LocalServer, clock: Clock) -> None:
    server.script = [Reply(reset=True), Reply(reset=True)]
    assert ask(make(clock), server, 4) == 4


def test_a_reply_that_does_not_come_in_time_is_asked_for_again(server: LocalServer, clock: Clock) -> None:
    client = make(clock)
    ask(client, server)
    client.client._line.timeout = 0.05
    server.script = [Reply(hang=True)] * 3
    with pytest.raises(RequestError, match=r"no answer within timeout_seconds \(0.05\) \(tried 3 times\)"):
        ask(client, server)


def test_a_server_that_dies_and_comes_back_is_waited_for(server: LocalServer, clock: Clock) -> None:
    client = make(clock)
    ask(client, server)
    server.stop()
    clock.while_asleep = lambda: server.start() if len(clock.slept) == 4 else None
    assert ask(client, server, 5) == 5
    assert len(clock.slept) == 4


# -- given up ------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 403, 404, 405, 413, 415, 422, 501, 505])
def test_a_refusal_fails_one_request_where_others_were_answered(status: int, server: LocalServer, clock: Clock) -> None:
    client = make(clock)
    ask(client, server)
    server.script = [Reply({"error": {"message": "not this one"}}, status)]
    with pytest.raises(RequestError, match=f"status {status}: not this one"):
        ask(client, server)
    assert ask(client, server, 2) == 2
    assert clock.slept == []


@pytest.mark.parametrize("status", [400, 403, 404, 405, 415, 501])
def test_a_refusal_ends_everything_where_nothing_was_answered(status: int, server: LocalServer, clock: Clock) -> None:
    server.script = [Reply({"detail": "not this one"}, status)]
    client = make(clock)
    with pytest.raises(ServerError, match=rf"status {status}: not this one; nothing was answered before"):
        ask(client, server)
    with pytest.raises(ServerError, match="not this one"):
        ask(client, server)
    assert len(server.seen) == 1
    client.session = client.client.session()
    assert ask(client, server, 3) == 3


def test_one_runs_failures_are_not_those_of_another(server: LocalServer, clock: Clock) -> None:
    client = make(clock, retry=Retry(tries=1, give_up_after=2))
    ask(client, server)
    other = client.client.session()
    server.script = [Reply(status=500), Reply(status=500)]
    with pytest.raises(RequestError):
        ask(client, server)
    with pytest.raises(ServerError):
        ask(client, server)
    client.session = other
    assert ask(client, server, 2) == 2
    assert other.counted() == {"http calls": 1, "retries": 0}


def test_what_an_earlier_run_was_answered_counts(server: LocalServer, clock: Clock) -> None:
    server.script = [Reply({"detail": "not this one"}, 400)]
    client = make(clock)
    client.session.trusted = True
    with pytest.raises(RequestError):
        ask(client, server)
    assert ask(client, server, 3) == 3


@pytest.mark.parametrize(
    "reply",
    [
        Reply({"error": {"message": "This model's maximum context length is 4096 tokens"}}, 400),
        Reply({"error": {"message": "no", "code": "context_length_exceeded"}}, 400),
        Reply({"error": "`inputs` must have less than 512 tokens"}, 422),
        Reply(b"", 413),
    ],
)
def test_a_request_that_is_too_long_fails_alone_even_if_it_is_the_first(
    reply: Reply, server: LocalServer, clock: Clock
) -> None:
    server.script = [reply]
    client = make(clock)
    with pytest.raises(RequestError) as caught:
        ask(client, server)
    assert caught.value.kind == "too_long"
    assert ask(client, server, 2) == 2


@pytest.mark.parametrize("status", [401, 402])
def test_a_wrong_key_and_an_empty_account_end_everything_at_any_time(
    status: int, server: LocalServer, clock: Clock
) -> None:
    client = make(clock)
    ask(client, server)
    server.script = [Reply({"error": {"message": f"Incorrect API key provided: {KEY}"}}, status)]
    with pytest.raises(ServerError, match=f"status {status}: Incorrect API key provided: ") as caught:
        ask(client, server)
    assert KEY not in str(caught.value)
    assert "***" in str(caught.value)


def test_a_quota_that_is_used_up_is_not_waited_for(server: LocalServer, clock: Clock) -> None:
    server.script = [Reply({"error": {"message": "pay first", "code": "insufficient_quota"}}, 429)]
    with pytest.raises(ServerError, match="pay first"):
        ask(make(clock), server)
    assert clock.slept == []


def test_a_missing_key_is_told_how_to_give_one(server: LocalServer, clock: Clock) -> None:
    server.script = [Reply({"detail": "who are you"}, 401)]
    client = make(clock, key=None)
    with pytest.raises(ServerError, match="name its variable in `api_key_env`"):
        ask(client, server)


def test_a_server_that_is_not_there_ends_everything_at_once(clock: Clock) -> None:
    nowhere = LocalServer(lambda seen: None)
    nowhere.port = closed_port()
    with pytest.raises(ServerError, match=r"cannot be reached \(ConnectError.*is the server running"):
        ask(make(clock), nowhere)
    assert clock.slept == []


def test_too_many_failures_in_a_row_end_everything(server: LocalServer, clock: Clock) -> None:
    client = make(clock, retry=Retry(tries=2, give_up_after=3))
    ask(client, server)
    server.stop()
    for _ in range(2):
        with pytest.raises(RequestError, match=r"the connection failed .*tried 2 times"):
            ask(client, server)
    with pytest.raises(ServerError, match=r"3 requests in a row came to nothing\. What was answered is kept"):
        ask(client, server)


def test_an_answer_between_failures_lets_the_run_go_on(server: LocalServer, clock: Clock) -> None:
    client = make(clock, retry=Retry(tries=1, give_up_after=2))
    ask(client, server)
    for _ in range(3):
        server.script = [Reply(status=500)]
        with pytest.raises(RequestError):
            ask(client, server)
        assert ask(client, server, 8) == 8


def test_a_redirect_is_not_followed_but_told(server: LocalServer, clock: Clock) -> None:
    server.script = [Reply(status=308, headers={"Location": "http://elsewhere/v1"})]
    with pytest.raises(ServerError, match="it redirects to http://elsewhere/v1: give that address"):
        ask(make(clock), server)


def test_a_reply_without_end_is_not_read_to_the_end(
    server: LocalServer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_client, "MAX_BODY_BYTES", 1000)
    server.script = [Reply(b"1" * 10_000)] * 3
    with pytest.raises(ServerError, match="it has more than 1,000 bytes"):
        ask(make(clock), server)


def test_a_server_that_cannot_do_what_is_wanted_ends_everything(server: LocalServer, clock: Clock) -> None:
    def no_use(reply: http_client.Reply) -> Any:
        raise UnfitServerError("it gives no log-probabilities")

    async def job(session: Session) -> Any:
        return await session.post(f"{server.url}/ask", {"n": 1}, no_use)

    client = make(clock)
    with pytest.raises(ServerError, match="it gives no log-probabilities"):
        client.client.finish(client.run(job))


def test_a_kind_of_failure_is_warned_of_once(
    server: LocalServer, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    client = make(clock)
    ask(client, server)
    server.script = [Reply({"detail": KEY}, 400), Reply({"detail": KEY}, 400), Reply({"detail": KEY}, 422)]
    for _ in range(3):
        with pytest.raises(RequestError):
            ask(client, server)
    assert len([record for record in caplog.records if record.name == http_client.__name__]) == 2
    assert KEY not in caplog.text


# -- side by side ------------------------------------------------------------


def test_no_more_requests_are_under_way_than_allowed_and_the_first_goes_alone(clock: Clock) -> None:
    full = threading.Barrier(3, timeout=5)
    alone: list[int] = []

    def app(seen: Seen) -> Any:
        if seen.body["n"] == 0:
            time.sleep(0.05)
            alone.append(server.most_at_work)
        else:
            full.wait()  # comes back only when three are there
        return {"answer": seen.body["n"]}

    with LocalServer(app) as server:
        client = make(clock, max_concurrent=3)

        async def all_of_them() -> list[Any]:
            def job(n: int) -> Callable[[Session], Any]:
                return lambda session: session.post(f"{server.url}/ask", {"n": n}, read)

            return await asyncio.gather(*(client.run(job(n)) for n in range(10)))

        assert client.client.finish(all_of_them()) == list(range(10))
    assert alone == [1]
    assert server.most_at_work == 3


def test_a_client_works_from_any_loop_and_inside_a_running_one(server: LocalServer, clock: Clock) -> None:
    client = make(clock)

    async def main() -> Any:
        inside = ask(client, server, 1)  # blocks this loop, as any plain call does
        return inside, await client.run(lambda session: session.post(f"{server.url}/ask", {"n": 2}, read))

    assert asyncio.run(main()) == (1, 2)
    assert asyncio.run(main()) == (1, 2)


def test_the_connection_is_kept(server: LocalServer, clock: Clock) -> None:
    ports = set()
    server.app = lambda seen: {"answer": 1}
    client = make(clock)
    for _ in range(5):
        ask(client, server)
        ports.add(len(client.client._line.http._transport._pool.connections))  # type: ignore[attr-defined]
    assert ports == {1}


def test_a_client_that_is_dropped_leaves_no_thread(server: LocalServer, clock: Clock) -> None:
    client = make(clock)
    ask(client, server)
    thread = client.client._thread
    assert thread.is_alive()
    del client
    gc.collect()
    assert not thread.is_alive()


def test_what_one_part_raises_ends_the_others() -> None:
    ended: list[str] = []

    async def fails() -> None:
        await asyncio.sleep(0)
        raise ValueError("one")

    async def waits() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("other")

    with pytest.raises(ValueError, match="one"):
        asyncio.run(together([waits(), fails()]))
    assert ended == ["other"]


# -- errors and settings ------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "message", "code", "param"),
    [
        (b'{"error": {"message": "a\\n b", "code": "x", "param": "seed"}}', "a b", "x", "seed"),
        (b'{"error": "a", "error_type": "Validation"}', "a", "", ""),
        (b'{"detail": "a"}', "a", "", ""),
        (b'{"detail": [{"loc": ["body"], "msg": "a"}]}', '[{"loc": ["body"], "msg": "a"}]', "", ""),
        (b'{"id": "1", "message": "a"}', "a", "", ""),
        (b'{"object": "error", "message": "a", "code": 400, "param": null}', "a", "400", ""),
        (b'["a"]', '["a"]', "", ""),
        (b"<html>a</html>", "<html>a</html>", "", ""),
        (b"\xff", "�", "", ""),
        (b"", "", "", ""),
    ],
)
def test_errors_of_every_server_are_read(body: bytes, message: str, code: str, param: str) -> None:
    assert error_of(body) == (message, code, param)


def test_a_long_error_is_cut() -> None:
    assert len(error_of(b"x" * 5000).message) == 300


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000", "ftp://host", "http://", "http://host:0", "http://host:99999", "http://a b/", "/v1"],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="test: url is"):
        check_url("test", url)


@pytest.mark.parametrize("url", ["http://user:key@host/v1", "https://host/v1?key=abc", "http://host/#x"])
def test_keys_do_not_stand_in_addresses(url: str) -> None:
    with pytest.raises(ConfigError, match="keys are given by the name of an environment variable") as caught:
        check_url("test", url)
    assert "abc" not in str(caught.value)


def test_a_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", f" {KEY}\n")
    assert read_key("test", "TEST_KEY") == KEY
    assert read_key("test", None) is None
    monkeypatch.setenv("TEST_KEY", "  ")
    with pytest.raises(ConfigError, match="test: api_key_env names 'TEST_KEY', which is not set"):
        read_key("test", "TEST_KEY")
    monkeypatch.setenv("TEST_KEY", "a\nb")
    with pytest.raises(ConfigError, match="holds characters that no key has") as caught:
        read_key("test", "TEST_KEY")
    assert "a\nb" not in str(caught.value)


@pytest.mark.parametrize(
    "options", [{"tries": 0}, {"give_up_after": 0}, {"first_wait_seconds": -1.0}, {"longest_wait_seconds": -1.0}]
)
def test_impossible_retries_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="retry: tries is"):
        Retry(**options)


@pytest.mark.parametrize("limits", [(0, 1.0, None), (1, 0.0, None), (1, float("inf"), None), (1, 1.0, -1.0)])
def test_impossible_limits_are_refused(limits: tuple[int, float, float | None]) -> None:
    with pytest.raises(ConfigError, match="test: max_concurrent is"):
        check_limits("test", *limits)
