"""The front's side of the worker: starts it, asks it, notices when it is dead or stuck, and starts another."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from rerank.serve.wire import HEADER, Message, length_of, packed, unpacked

logger = logging.getLogger(__name__)

_LONGEST_PAUSE_SECONDS = 30.0
_PATIENT_THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "2000"}
"""OpenMP's threads otherwise spin for milliseconds while they wait for each other.  On processors that the front,
clients or others use too, they then burn what the one that is waited for needs.  Not to spin at all would be slower
where nothing else runs, for there are hundreds of waits in a batch; most are shorter than these turns take."""

_SMALL_CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128", "LRU_CACHE_CAPACITY": "128"}
"""Kernels that oneDNN keeps compiled, 1,024 by default: batches are of ever other sizes, each has its own, and memory
would grow for many minutes."""


class WorkerGoneError(Exception):
    """The worker died, or was ended because it gave no sign of life, before it answered."""


class WorkerFailedError(Exception):
    """The worker answered that it could not do what was asked."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        """`memory`, the name of an exception of this package, or `error`."""


class Asking(Protocol):
    """What answers messages: a worker process, or a stand-in for one."""

    @property
    def is_alive(self) -> bool:
        """Whether it would answer."""
        ...

    async def ask(self, message: Message) -> Message:
        """What it answers.

        Raises:
            WorkerGoneError: it died before.
            WorkerFailedError: it could not.
        """
        ...

    async def ended(self) -> None:
        """Returns when it is dead."""
        ...

    async def close(self) -> None:
        """Ends it."""
        ...


class WorkerProcess:
    """A running worker process; use `start`."""

    def __init__(self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._process, self._reader, self._writer = process, reader, writer
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self._asked = 0
        self._gone = False
        self._listening = asyncio.ensure_future(self._listen())

    @classmethod
    async def start(cls) -> WorkerProcess:
        """A process that waits for its first message."""
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "rerank.serve.worker", str(theirs.fileno()),
                pass_fds=[theirs.fileno()], env=_PATIENT_THREADS | _SMALL_CACHES | os.environ,
            )  # fmt: skip
        finally:
            theirs.close()
        reader, writer = await asyncio.open_connection(sock=ours)
        return cls(process, reader, writer)

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it would answer."""
        return not self._gone

    async def ask(self, message: Message) -> Message:
        """What the worker answers, with the `seconds` that it took; a wait that is cancelled spares it the work."""
        if self._gone:
            raise WorkerGoneError
        self._asked += 1
        number = self._asked
        waiting: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[number] = waiting
        self._writer.write(packed({"id": number, **message}))
        try:
            return await waiting
        except asyncio.CancelledError:
            if not self._gone:
                self._writer.write(packed({"id": number, "do": "drop", "what": number}))
            raise
        finally:
            self._waiting.pop(number, None)

    async def ended(self) -> None:
        """Returns when the process has closed its side."""
        await asyncio.wait([self._listening])

    def kill(self) -> None:
        """Ends the process at once."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def close(self) -> None:
        """Ends the process and waits for its end."""
        self._gone = True
        self._writer.close()
        self.kill()
        await self._process.wait()
        await asyncio.gather(self._listening, return_exceptions=True)

    async def _listen(self) -> None:
        try:
            while True:
                header = await self._reader.readexactly(HEADER)
                message = unpacked(await self._reader.readexactly(length_of(header)))
                waiting = self._waiting.get(message["id"])
                if waiting is None or waiting.done():
                    continue
                if "failed" in message:
                    waiting.set_exception(WorkerFailedError(**message["failed"]))
                else:
                    waiting.set_result({**message["ok"], "seconds": message.get("seconds", 0.0)})
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._gone = True
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(WorkerGoneError())


@dataclass(frozen=True)
class Patience:
    """How long the worker is given."""

    heartbeat_seconds: float = 5.0
    """Between two questions whether it lives."""
    silence_seconds: float = 30.0
    """How long it may leave such a question unanswered."""
    batch_seconds: float = 300.0
    """How long a batch may take before the device counts as stuck."""
    loading_seconds: float = 3600.0
    """How long loading a model, or building an index, may take."""


class Supervisor:
    """Keeps one worker alive.

    Args:
        start: gives a new worker.
        prepare: loads what is served into a new worker, before anything else is asked of it.
        patience: how long it is given.
        on_ready: is called whenever a worker has become ready.
    """

    def __init__(
        self,
        start: Callable[[], Awaitable[Asking]],
        prepare: Callable[[Callable[[Message], Awaitable[Message]]], Awaitable[None]],
        patience: Patience = Patience(),
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        self._start, self._prepare, self._patience, self._on_ready = start, prepare, patience, on_ready
        self._worker: Asking | None = None
        self._ready = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self.restarts = 0
        """How often a worker had to be replaced."""

    @property
    def is_ready(self) -> bool:
        """Whether a worker is there, has loaded everything, and lives."""
        return self._ready.is_set() and self._worker is not None and self._worker.is_alive

    @property
    def worker(self) -> Asking | None:
        """The worker of now."""
        return self._worker

    async def open(self) -> None:
        """Starts the first worker; what it cannot load is raised.

        Raises:
            WorkerFailedError: a model does not load.
            WorkerGoneError: the process ended.
        """
        await self._begin()
        self._task = asyncio.ensure_future(self._watch())

    async def close(self) -> None:
        """Ends the worker."""
        self._closing = True
        self._ready.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._worker is not None:
            await self._worker.close()

    async def ready(self) -> None:
        """Returns when a worker is ready."""
        while not self.is_ready:
            if self._ready.is_set():  # dead, but nobody has looked yet
                await asyncio.sleep(0.01)
            else:
                await self._ready.wait()

    async def ask(self, message: Message, seconds: float | None = None) -> Message:
        """What the worker answers; one that takes too long is ended.

        Raises:
            WorkerGoneError: there is none, or it ended before it answered.
            WorkerFailedError: it could not.
        """
        worker = self._worker
        if worker is None:
            raise WorkerGoneError
        return await self._asked(worker, message, seconds or self._patience.batch_seconds)

    async def load(self, message: Message) -> Message:
        """As `ask`, with the time that loading takes."""
        return await self.ask(message, self._patience.loading_seconds)

    async def _asked(self, worker: Asking, message: Message, seconds: float) -> Message:
        try:
            async with asyncio.timeout(seconds):
                return await worker.ask(message)
        except TimeoutError:
            logger.error("the worker gave no answer to %r for %g s; it is ended", message["do"], seconds)
            self._ready.clear()
            await worker.close()
            raise WorkerGoneError from None

    async def _begin(self) -> None:
        worker = self._worker = await self._start()

        async def ask(message: Message) -> Message:
            return await self._asked(worker, message, self._patience.loading_seconds)

        try:
            await self._prepare(ask)
        except BaseException:
            await worker.close()
            raise
        self._ready.set()
        self._on_ready()

    async def _watch(self) -> None:
        """Looks after the worker until the server closes."""
        pause = 0.1
        while not self._closing:
            worker = self._worker
            if worker is not None and worker.is_alive:
                if await self._lives(worker):
                    pause = 0.1
                continue
            self._ready.clear()
            self.restarts += 1
            logger.error("the worker is gone; another is started")
            if worker is not None:
                await worker.close()
            try:
                await self._begin()
            except (WorkerFailedError, WorkerGoneError, OSError) as error:
                logger.error("the worker does not start (%s); tried again in %g s", error, pause)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _lives(self, worker: Asking) -> bool:
        """Whether the worker still answers after one heartbeat."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._patience.heartbeat_seconds):
                await worker.ended()
                return False
        try:
            await self._asked(worker, {"do": "ping"}, self._patience.silence_seconds)
        except (WorkerGoneError, WorkerFailedError):
            return False
        return True
