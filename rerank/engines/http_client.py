"""Requests to a model server: a bounded number at a time, tried again where that helps, given up where it does not.

What a reply means is decided here, once for all engines that talk to a server:

| reply | what happens |
| --- | --- |
| 200 with a body of the right shape | the answer |
| 200 with another body | tried `FEW_TRIES` times |
| 408, 409, 424, 425, 429, 5xx but 501 and 505 | tried again after `Retry-After`, else after a wait that doubles |
| 429 because the account is empty, or a `Retry-After` that is too long | everything stops |
| no reply within the time | tried `FEW_TRIES` times |
| a connection that breaks or is refused | tried again; refused before any answer: everything stops |
| 401, 402 | everything stops |
| any other | this request is refused |

A request that got no answer fails alone.  Everything stops where nothing was ever answered, here or in an earlier run
whose answers are kept, or where too many in a row were not: then the rest would fail too.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import hashlib
import json
import logging
import math
import os
import random
import re
import ssl
import threading
import time
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn, TypeVar
from urllib.parse import urlsplit

from rerank.errors import ConfigError, ServerError
from rerank.extras import need

if TYPE_CHECKING:
    import httpx2

logger = logging.getLogger(__name__)
T = TypeVar("T")

FEW_TRIES = 3
"""Tries of what probably fails again: a reply that takes too long, or of a wrong shape."""
MAX_BODY_BYTES = 64 << 20
"""A longer reply is none that was asked for."""
_AGAIN = frozenset({408, 409, 424, 425, 429})
_NEVER_AGAIN = frozenset({501, 505})
_STOPS = frozenset({401, 402})
_EMPTY_ACCOUNT = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
_TOO_LONG = re.compile(
    r"context.?(length|window|size)|maximum (context|length|input)|too (long|large|many tokens)|"
    r"must have less than|exceeds? the (limit|maximum)|max_model_len",
    re.IGNORECASE,
)
_DAY_SECONDS = 86_400
_LONGEST_BACKOFF_SECONDS = 60.0
_JITTER = 0.5
"""The share of a wait that is drawn, so that requests that failed together do not come back together."""


@dataclass(frozen=True)
class Retry:
    """How long a server is given.

    >>> Retry().backoff(0), Retry().backoff(20)
    (0.5, 60.0)
    """

    tries: int = 9
    """Tries of a request, the first one included: with the waits below some 80 seconds, time for a server to restart.
    """
    first_wait_seconds: float = 0.5
    """What is waited before the second try, doubled before each further one up to a minute; half of a wait is left to
    chance."""
    longest_wait_seconds: float = 600.0
    """What a server may ask for (`Retry-After`); one that asks to wait longer ends the run."""
    give_up_after: int = 10
    """Requests in a row that came to nothing before the run ends."""

    def __post_init__(self) -> None:
        if self.tries < 1 or self.give_up_after < 1 or self.first_wait_seconds < 0 or self.longest_wait_seconds < 0:
            raise ConfigError(
                f"retry: tries is {self.tries} and give_up_after {self.give_up_after} (1 or more), first_wait_seconds "
                f"{self.first_wait_seconds} and longest_wait_seconds {self.longest_wait_seconds} (0 or more)"
            )

    def backoff(self, retries: int) -> float:
        """Seconds to wait after so many retries."""
        return min(_LONGEST_BACKOFF_SECONDS, self.first_wait_seconds * 2.0 ** min(retries, 60))


class Reply(NamedTuple):
    """What came back with status 200."""

    value: Any
    """The body, which was JSON."""
    headers: Mapping[str, str]


class MalformedError(Exception):
    """A reply that is not what was asked for."""


class UnfitServerError(Exception):
    """A reply that shows that the server cannot do what is wanted."""


class Complaint(NamedTuple):
    """What a server says of an error."""

    message: str
    code: str = ""
    param: str = ""
    """The field of the body that it is about."""


class RequestError(Exception):
    """A request that came to nothing; others may not."""

    def __init__(self, message: str, kind: Kind, status: int | None = None, said: Complaint | None = None) -> None:
        super().__init__(message)
        self.kind: Kind = kind
        self.status = status
        self.said = said or Complaint("")


Kind = Literal["refused", "too_long", "unanswered", "malformed"]


class _Trouble(NamedTuple):
    """A try that came to nothing."""

    message: str
    kind: Kind
    again: bool = False
    """Whether it would probably come to the same again: then `FEW_TRIES` of this sort are enough."""
    wait: float | None = None
    """Seconds that the server asks for."""


@cache
def _certificates() -> ssl.SSLContext:
    """Whom this machine trusts; reading that takes 40 ms."""
    import httpx2 as httpx

    return httpx.create_ssl_context()


class _Line:
    """What all runs that talk to one server share."""

    def __init__(
        self,
        key: str | None,
        max_concurrent: int,
        timeout_seconds: float,
        retry: Retry,
        sleep: Callable[[float], Awaitable[None]],
        now: Callable[[], float],
    ) -> None:
        self.key, self.timeout, self.retry = key, timeout_seconds, retry
        self.sleep, self.now = sleep, now
        self.slots = asyncio.Semaphore(max_concurrent)
        self.first = asyncio.Lock()
        self.draws = random.Random()
        self.held_until = 0.0
        self.answered = False
        self._max_connections = max_concurrent
        self._http: httpx2.AsyncClient | None = None

    @property
    def http(self) -> httpx2.AsyncClient:
        """The connections."""
        if self._http is None:
            import httpx2 as httpx

            from rerank import __version__

            headers = {"Content-Type": "application/json", "User-Agent": f"rerank/{__version__}"}
            if self.key is not None:
                headers["Authorization"] = f"Bearer {self.key}"
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=self._max_connections)
            # The whole of a try is timed, because a server that sends a byte now and then never times out otherwise.
            self._http = httpx.AsyncClient(headers=headers, timeout=None, limits=limits, verify=_certificates())
        return self._http

    def hidden(self, message: str) -> str:
        """The message without the key, which some servers repeat."""
        return message.replace(self.key, "***") if self.key else message

    async def hold(self) -> None:
        """Waits until the server takes requests again."""
        while (left := self.held_until - self.now()) > 0:
            await self.sleep(left)

    async def close(self) -> None:
        """Ends the connections."""
        if self._http is not None:
            await self._http.aclose()


class Session:
    """One run's talk with a server: jobs see it inside the client's event loop, and call its `post` and `get`."""

    def __init__(self, line: _Line) -> None:
        self._line = line
        self._retry = line.retry
        self.trusted = False
        """Whether the server answered such requests before, by what the request cache holds."""
        self._failures = 0
        self._stopped = ""
        self._warned: set[tuple[Kind, int | None]] = set()
        self._counts: Counter[str] = Counter()
        self._counting = threading.Lock()

    # -- jobs ------------------------------------------------------------

    async def run(self, job: Callable[[Session], Awaitable[T]]) -> T:
        """What a job gives; jobs go one by one until the server has answered once, then side by side."""
        async with self._admitted():
            if self._stopped:
                raise ServerError(self._stopped)
            try:
                return await job(self)
            except RequestError as error:
                self._take(error)
                raise

    def _take(self, error: RequestError) -> None:
        """Counts a failure, and stops where it is one too many."""
        self._failures += error.kind in ("unanswered", "malformed") or not self.known
        if not self.known and error.kind != "too_long":
            self.stop(f"{error}; nothing was answered before")
        if self._failures >= self._retry.give_up_after:
            self.stop(
                f"{error}; {self._failures} requests in a row came to nothing. What was answered is kept: run again "
                "when the server is well"
            )
        if (error.kind, error.status) not in self._warned:
            self._warned.add((error.kind, error.status))
            logger.warning("a request failed, and others of the kind are only counted: %s", error)

    @contextlib.asynccontextmanager
    async def _admitted(self) -> AsyncIterator[None]:
        if not self.known:
            async with self._line.first:
                if not self.known:
                    yield
                    return
        async with self._line.slots:
            yield

    @property
    def known(self) -> bool:
        """Whether what is asked was ever answered."""
        return self._line.answered or self.trusted

    def count(self, what: str, number: int) -> None:
        """Adds to a count.  Every try is one of the `http calls`, from a request's second on one of the `retries`."""
        with self._counting:
            self._counts[what] += number

    def counted(self) -> dict[str, int]:
        """What was counted since the last call."""
        with self._counting:
            counts = dict(self._counts)
            self._counts.clear()
        return counts

    def stop(self, message: str) -> NoReturn:
        """Ends this job and all others of the run.

        Raises:
            ServerError: always.
        """
        self._stopped = self._stopped or self._line.hidden(message)
        raise ServerError(self._stopped)

    # -- requests ------------------------------------------------------------

    async def post(self, url: str, body: Mapping[str, Any], read: Callable[[Reply], T]) -> T:
        """What `read` makes of the reply to `body` as JSON.

        Args:
            url: where to.
            body: of the request.
            read: raises `MalformedError` where a reply has a wrong shape.

        Raises:
            RequestError: this request came to nothing.
            ServerError: no request would come to anything.
        """
        return await self._tried("POST", url, _encoded(body), read)

    async def get(self, url: str, read: Callable[[Reply], T]) -> T:
        """As `post`, without a body."""
        return await self._tried("GET", url, None, read)

    async def _tried(self, method: str, url: str, content: bytes | None, read: Callable[[Reply], T]) -> T:
        tries = the_same = 0
        while True:
            await self._line.hold()
            if self._stopped:
                raise ServerError(self._stopped)
            tries += 1
            self.count("http calls", 1)
            self.count("retries", int(tries > 1))
            found = await self._try(method, url, content, read)
            if not isinstance(found, _Trouble):
                if method == "POST":
                    self._line.answered, self._failures = True, 0
                return found
            the_same += found.again
            if tries >= self._retry.tries or the_same >= FEW_TRIES:
                times = "" if tries == 1 else f" (tried {tries} times)"
                raise RequestError(self._line.hidden(f"{method} {url}: {found.message}{times}"), found.kind)
            wait = self._retry.backoff(tries - 1) * (1 - _JITTER * self._line.draws.random())
            if found.wait:
                if found.wait > self._retry.longest_wait_seconds:
                    self.stop(
                        f"{url}: {found.message}; it asks to wait {found.wait:,.0f} seconds, more than "
                        f"retry.longest_wait_seconds ({self._retry.longest_wait_seconds:,.0f}). What was answered is "
                        "kept: run again then"
                    )
                # A server that is full is full for all.
                self._line.held_until = max(self._line.held_until, self._line.now() + found.wait)
                wait = found.wait + self._line.draws.random() * min(wait, found.wait)
            logger.debug("%s %s: %s; again in %.1f s", method, url, found.message, wait)
            await self._line.sleep(wait)

    async def _try(self, method: str, url: str, content: bytes | None, read: Callable[[Reply], T]) -> T | _Trouble:
        import httpx2 as httpx

        try:
            async with asyncio.timeout(self._line.timeout):
                status, headers, data = await self._send(method, url, content)
        except TimeoutError:
            message = f"no answer within timeout_seconds ({self._line.timeout:g})"
            return _Trouble(message, "unanswered", again=True)
        except httpx.TransportError as error:
            reason = f"{type(error).__name__}{f': {error}' if str(error) else ''}"
            if isinstance(error, httpx.ConnectError | httpx.UnsupportedProtocol) and not self._line.answered:
                self.stop(f"{url} cannot be reached ({reason}); is the server running, and is `url` its address?")
            return _Trouble(f"the connection failed ({reason})", "unanswered")
        except httpx.HTTPError as error:
            return _Trouble(f"the reply cannot be read ({type(error).__name__})", "malformed", again=True)
        if status != 200:
            return self._refused(url, status, headers, data)
        try:
            if data is None:
                raise MalformedError(f"it has more than {MAX_BODY_BYTES:,} bytes")
            return read(Reply(_json(data), headers))
        except UnfitServerError as error:
            self.stop(f"{url}: {error}")
        except MalformedError as error:
            self.count("malformed replies", 1)
            return _Trouble(f"the reply is not what was asked for: {error}", "malformed", again=True)

    async def _send(self, method: str, url: str, content: bytes | None) -> tuple[int, Mapping[str, str], bytes | None]:
        """Status, headers and body; None for a body that is too long."""
        parts: list[bytes] = []
        size = 0
        async with self._line.http.stream(method, url, content=content) as response:
            async for part in response.aiter_bytes():
                parts.append(part)
                size += len(part)
                if size > MAX_BODY_BYTES:
                    return response.status_code, response.headers, None
        return response.status_code, response.headers, b"".join(parts)

    def _refused(self, url: str, status: int, headers: Mapping[str, str], data: bytes | None) -> _Trouble:
        """What a status other than 200 means.

        Raises:
            RequestError: trying again is of no use.
            ServerError: nor is asking anything else.
        """
        said = error_of(data or b"")
        place = f"; it redirects to {headers['location']}: give that address" if headers.get("location") else ""
        message = f"status {status}{f': {said.message}' if said.message else ''}{place}"
        if status == 429 and said.code in _EMPTY_ACCOUNT:
            self.stop(f"{url}: {message}")
        if status in _STOPS:
            needed = "a key is needed: name its variable in `api_key_env` (a Client takes it as `api_key`)"
            key = "the key was not taken" if self._line.key else needed
            self.stop(f"{url}: {message} ({key})" if status == 401 else f"{url}: {message}")
        if status in _AGAIN or (status >= 500 and status not in _NEVER_AGAIN):
            return _Trouble(message, "unanswered", wait=retry_after(headers, time.time()))
        too_long = status == 413 or said.code == "context_length_exceeded" or bool(_TOO_LONG.search(said.message))
        kind: Kind = "too_long" if too_long and status in (400, 413, 422) else "refused"
        raise RequestError(self._line.hidden(f"{url}: {message}"), kind, status, said)


class HttpClient:
    """A server that can be talked to from any thread and any event loop: it has an event loop in a thread of its own.

    Both end when the client is closed, or no longer used.

    Args:
        key: what the server knows its user by; in no message or log.
        max_concurrent: requests under way at most.
        timeout_seconds: of one try, from sending to the last byte.
        retry: how long the server is given.
        sleep: waits.
        now: the time in seconds, of any clock that `sleep` moves.

    Raises:
        MissingExtraError: `httpx2` is not installed.
    """

    def __init__(
        self,
        key: str | None = None,
        *,
        max_concurrent: int = 8,
        timeout_seconds: float = 120.0,
        retry: Retry = Retry(),
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        need("httpx2", "http", "talking to a server")
        self._line = _Line(key, max_concurrent, timeout_seconds, retry, sleep, now)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rerank-http", daemon=True)
        self._thread.start()
        self._ending = weakref.finalize(self, _end, self._loop, self._thread, self._line)

    def session(self) -> Session:
        """A run's talk with the server; failures are counted for each by itself."""
        return Session(self._line)

    async def run(self, session: Session, job: Callable[[Session], Awaitable[T]]) -> T:
        """What a job gives (`Session.run`)."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(session.run(job), self._loop))

    async def once(self, job: Callable[[Session], Awaitable[T]]) -> T:
        """What a job gives that stands by itself: what it raises tells nothing of others, and is not counted."""

        async def admitted() -> T:
            async with self._line.slots:
                return await job(self.session())

        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(admitted(), self._loop))

    def close(self) -> None:
        """Ends whatever is under way, and the connections; nothing can be asked any more."""
        self._ending()

    def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` gives, waited for in this thread, whether or not an event loop runs in it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()


def _end(loop: asyncio.AbstractEventLoop, thread: threading.Thread, line: _Line) -> None:
    async def close() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await line.close()
        loop.stop()

    asyncio.run_coroutine_threadsafe(close(), loop)
    if threading.current_thread() is not thread:
        thread.join()
        loop.close()


async def together(work: Iterable[Any]) -> None:
    """Waits for all of it; what one part raises ends the others."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# -- reading replies ------------------------------------------------------------


def error_of(data: bytes) -> Complaint:
    """What the body of an error says, in one line of at most 300 characters, whatever shape it has.

    >>> error_of(b'{"error": {"message": "no such model", "code": "model_not_found"}}')
    Complaint(message='no such model', code='model_not_found', param='')
    >>> error_of(b'{"error": "too large", "error_type": "Validation"}').message
    'too large'
    """
    try:
        value = _json(data)
    except MalformedError:
        return Complaint(_line(data[:2000].decode(errors="replace")))
    inner = value.get("error", value) if isinstance(value, dict) else value
    if isinstance(inner, dict):
        found = next((inner[name] for name in ("message", "detail", "msg") if inner.get(name)), inner)
        text = found if isinstance(found, str) else json.dumps(found)
        return Complaint(_line(text), str(inner.get("code") or ""), str(inner.get("param") or ""))
    return Complaint(_line(inner if isinstance(inner, str) else json.dumps(inner)))


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that a server asks to wait for; None where it does not say.

    Args:
        headers: of the reply; `Retry-After` is a number of seconds or a date.
        now: seconds since 1970, for dates from servers that do not tell their own time.

    >>> retry_after({"retry-after": "2"}, 0.0)
    2.0
    >>> retry_after({"retry-after": "Thu, 01 Jan 1970 00:01:30 GMT", "date": "Thu, 01 Jan 1970 00:01:00 GMT"}, 0.0)
    30.0
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        if re.fullmatch(r"\d+(\.\d+)?", said := headers.get(name, "").strip()):
            return float(said) * unit
    wanted = _date(headers.get("retry-after", ""))
    if wanted is None:
        return None
    own = _date(headers.get("date", ""))
    return max(0.0, wanted - (now if own is None else own))


def _date(text: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None


def _encoded(body: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # halves of surrogate pairs, which JSON can write and UTF-8 cannot
        return json.dumps(body).encode()


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        start = data[:60].decode(errors="replace")
        raise MalformedError(f"no JSON, it begins with {_line(start)!r}") from error


def _line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 300 else text[:297] + "..."


def is_finite(value: Any) -> bool:
    """Whether a value of JSON is a number, and neither infinite nor NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# -- settings ------------------------------------------------------------


def check_url(engine: str, url: str) -> None:
    """Returns when `url` is the address of a server.

    Raises:
        ConfigError: it is not, or it holds a key.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"{engine}: url is {url!r}, which is no address: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or re.search(r"\s", url):
        raise ConfigError(f"{engine}: url is {url!r}; an address as http://localhost:8000/v1 is needed")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError(
            f"{engine}: url holds a user, a query or a fragment; keys are given by the name of an environment variable "
            "(api_key_env)"
        )


def read_key(engine: str, variable: str | None) -> str | None:
    """The key that the environment variable holds; None without a name.

    Raises:
        ConfigError: it is not set, or holds what cannot be sent.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(f"{engine}: api_key_env names {variable!r}, which is not set; export it with the key")
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"{engine}: the environment variable {variable!r} holds characters that no key has")
    return key


def check_limits(engine: str, max_concurrent: int, timeout_seconds: float, expiry_days: float | None) -> None:
    """Returns when these can be worked with.

    Raises:
        ConfigError: they cannot.
    """
    if max_concurrent < 1 or not 0 < timeout_seconds < math.inf or (expiry_days is not None and expiry_days < 0):
        raise ConfigError(
            f"{engine}: max_concurrent is {max_concurrent} (1 or more), timeout_seconds {timeout_seconds} (above 0), "
            f"expiry_days {expiry_days} (0 or more)"
        )


def not_before(expiry_days: float | None) -> float | None:
    """When the oldest answer that counts was stored, in seconds since 1970; None: whenever."""
    return None if expiry_days is None else time.time() - expiry_days * _DAY_SECONDS


def key_digest(key: str | None) -> str:
    """What tells keys apart without telling them."""
    return "" if key is None else hashlib.sha256(key.encode()).hexdigest()
