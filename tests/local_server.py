"""A real HTTP server on a port of this machine, which misbehaves as it is told."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


@dataclass
class Seen:
    """A request that came."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any


@dataclass
class Reply:
    """What is sent back."""

    body: Any = None
    """Sent as JSON, bytes as they are."""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    reset: bool = False
    """Breaks the connection instead."""
    hang: bool = False
    """Sends nothing until the server stops."""


class LocalServer:
    """Answers with what `script` holds, then with what `app` gives."""

    def __init__(self, app: Callable[[Seen], Reply | Any]) -> None:
        self.app = app
        self.script: list[Reply] = []
        self.seen: list[Seen] = []
        self.at_work = self.most_at_work = 0
        self.port = 0
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def bodies(self, path: str = "") -> list[Any]:
        """What was posted, in the order of arrival."""
        return [seen.body for seen in self.seen if seen.method == "POST" and seen.path.endswith(path)]

    def start(self) -> None:
        """Listens, on the same port as before where there was one."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                outer._handle(self)

            def do_POST(self) -> None:
                outer._handle(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass

        self._stopped.clear()
        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        """Refuses connections from now on."""
        self._stopped.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def __enter__(self) -> LocalServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _handle(self, request: BaseHTTPRequestHandler) -> None:
        content = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        seen = Seen(request.command, request.path, dict(request.headers), json.loads(content) if content else None)
        with self._lock:
            self.seen.append(seen)
            self.at_work += 1
            self.most_at_work = max(self.most_at_work, self.at_work)
            reply = self.script.pop(0) if self.script else None
        try:
            if reply is None:
                found = self.app(seen)
                reply = found if isinstance(found, Reply) else Reply(found)
        finally:
            with self._lock:
                self.at_work -= 1
        if reply.hang:
            self._stopped.wait(20)
            request.close_connection = True
        elif reply.reset or self._stopped.is_set():
            # Lingering for no time makes closing a reset.
            request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            request.connection.close()
            request.close_connection = True
        else:
            data = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            request.send_response_only(reply.status)
            for name, value in {"Content-Length": str(len(data)), **reply.headers}.items():
                request.send_header(name, value)
            request.end_headers()
            request.wfile.write(data)


def closed_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
