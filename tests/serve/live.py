"""A server on a port of this machine, in a thread: real uvicorn, real sockets, the stand-in for a worker."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn
from serve.stand_in import QUICK, StandIn

from rerank.serve.app import create_app
from rerank.serve.server import listen
from rerank.serve.service import Service
from rerank.serve.settings import ServedModel, Settings


@dataclass
class Live:
    """A running server."""

    url: str
    worker: StandIn
    service: Service
    loop: asyncio.AbstractEventLoop

    def do(self, action: Callable[[], Any]) -> None:
        """Calls something in the server's event loop."""
        self.loop.call_soon_threadsafe(action)


@contextlib.contextmanager
def live(*models: ServedModel, worker: StandIn | None = None, **settings: Any) -> Iterator[Live]:
    """A server that answers until the block ends."""
    started: list[Live | BaseException] = []
    is_up, ending = threading.Event(), threading.Event()

    async def main() -> None:
        stand_in = worker or StandIn()
        service = Service(Settings(models=models, **settings), start_worker=stand_in.start, patience=QUICK)
        await service.open()
        bound = listen("127.0.0.1", 0)
        config = uvicorn.Config(
            create_app(service),
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        # Signals are for the main thread alone.
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]
        serving = asyncio.ensure_future(server.serve(sockets=[bound]))
        started.append(
            Live(f"http://127.0.0.1:{bound.getsockname()[1]}", stand_in, service, asyncio.get_running_loop())
        )
        is_up.set()
        await asyncio.to_thread(ending.wait)
        server.should_exit = True
        await serving
        await service.close()
        bound.close()

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            started.append(error)
            raise
        finally:
            is_up.set()

    thread = threading.Thread(target=run, name="server")
    thread.start()
    try:
        assert is_up.wait(20)
        (found,) = started
        assert isinstance(found, Live), found
        yield found
    finally:
        ending.set()
        thread.join(20)
        assert not thread.is_alive()
