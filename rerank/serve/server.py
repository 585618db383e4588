"""A running server: a socket, uvicorn, and what signals do."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn

from rerank.errors import ConfigError
from rerank.serve.app import create_app
from rerank.serve.service import Service
from rerank.serve.settings import Settings
from rerank.serve.tracing import open_tracing

logger = logging.getLogger(__name__)

_LAST_WORDS_SECONDS = 5
"""How long open connections are given once all is answered."""


class _Uvicorn(uvicorn.Server):
    """uvicorn without its own signal handlers: what a signal does is decided here."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        ConfigError: the address is not this machine's, or the port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where the protocol is named; with it, answers on connections that are
    # kept alive wait 40 ms for the client's acknowledgement of their first part.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen(2048)
    except OSError as error:
        bound.close()
        reason = error.strerror or str(error)
        raise ConfigError(f"cannot listen on {host}:{port} ({reason}); choose another --port") from error
    bound.setblocking(False)
    return bound


def run(settings: Settings, *, on_ready: Callable[[str], None] = lambda url: None) -> None:
    """Serves until SIGTERM or SIGINT.

    Requests that were accepted are answered first, for `shutdown_timeout` seconds at most; a second signal ends at
    once.

    Args:
        settings: see `Settings`.
        on_ready: is told the address once requests can be answered.

    Raises:
        ConfigError: the port is taken, or a model does not load.
    """
    bound = listen(settings.host, settings.port)
    try:
        asyncio.run(_serve(settings, bound, on_ready))
    finally:
        bound.close()


async def _serve(settings: Settings, bound: socket.socket, on_ready: Callable[[str], None]) -> None:
    service, tracing = Service(settings), open_tracing(os.environ)
    options = uvicorn.Config(
        create_app(service, tracing),
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=_LAST_WORDS_SECONDS,
        ws="none",
    )
    server = _Uvicorn(options)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stopping.is_set():
            logger.warning("second signal: ended at once")
            os._exit(1)
        service.is_stopping = True
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    # Connections are taken while models load, and told to wait.
    serving = asyncio.ensure_future(server.serve(sockets=[bound]))
    opening = asyncio.ensure_future(service.open())
    stop = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait({opening, stop, serving}, return_when=asyncio.FIRST_COMPLETED)
        if opening.done():
            opening.result()
            address = bound.getsockname()
            url = f"http://{_written(address[0])}:{address[1]}"
            logger.info("ready", extra={"fields": {"url": url, "models": [each.name for each in service.catalogue]}})
            on_ready(url)
            await asyncio.wait({stop, serving}, return_when=asyncio.FIRST_COMPLETED)
        logger.info("shutting down", extra={"fields": {"requests": service.queue.n_requests}})
        await service.stop(settings.shutdown_timeout)
    finally:
        opening.cancel()
        stop.cancel()
        server.should_exit = True
        await asyncio.gather(opening, stop, serving, return_exceptions=True)
        await service.close()
        if tracing is not None:
            tracing.close()


def _written(host: str) -> str:
    return f"[{host}]" if ":" in host else host
