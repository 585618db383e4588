"""The command itself, in a process of its own, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.needs("starlette", "uvicorn", "prometheus_client")

SLOW_ENGINE = """
import sys

if sys.orig_argv[1:3] == ["-m", "rerank.serve.worker"]:
    import time

    from rerank.engines import fake

    plain = fake._Judgments.ask

    def ask(self, questions, runtime):
        time.sleep(max(float(asked.query.split()[1]) if asked.query.startswith("slow") else 0 for asked in questions))
        return plain(self, questions, runtime)

    fake._Judgments.ask = ask
"""
"""Python reads it before anything else: a query `slow 0.5` takes the worker half a second."""
REQUEST = b"POST /v1/rerank HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@dataclass
class Running:
    process: subprocess.Popen[str]
    port: int

    def request(self, method: str, path: str, body: Any = None, seconds: float = 20) -> tuple[int, dict[str, str], Any]:
        import http.client

        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        try:
            headers = {"Content-Type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            reply = connection.getresponse()
            content = reply.read()
            told = {name.lower(): value for name, value in reply.getheaders()}
            return reply.status, told, json.loads(content) if "json" in told.get("content-type", "") else content
        finally:
            connection.close()

    def rerank(self, query: str = "q") -> tuple[int, dict[str, str], Any]:
        return self.request("POST", "/v1/rerank", {"query": query, "documents": ["a", "b"]})

    def together(self, n: int, query: str, times: int = 1) -> tuple[list[threading.Thread], list[Any]]:
        """So many clients that ask so often, at work, and what they are answered."""
        found: list[Any] = []

        def ask() -> None:
            for _ in range(times):
                with contextlib.suppress(OSError):
                    found.append(self.rerank(query))

        threads = [threading.Thread(target=ask) for _ in range(n)]
        for thread in threads:
            thread.start()
        return threads, found

    @property
    def worker_pid(self) -> int:
        pid = self.process.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()[0])


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n", encoding="utf-8")
    (folder / "sitecustomize.py").write_text(SLOW_ENGINE, encoding="utf-8")
    path = folder / "faked.yaml"
    path.write_text("stages: [{rerank: {engine: {fake: qrels.tsv}, k: null}}]\n", encoding="utf-8")
    return path


@contextlib.contextmanager
def running(pipeline: Path, *options: str, **variables: str) -> Iterator[Running]:
    """A server in a process of its own."""
    search = os.pathsep.join([str(pipeline.parent), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-m", "rerank", "serve", str(pipeline), "--port", "0", *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **variables, "PYTHONPATH": search},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("serving http://"), (line, process.stderr and process.stderr.read())
        yield Running(process, int(line.rstrip().rpartition(":")[2]))
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def server(pipeline: Path) -> Iterator[Running]:
    """A server that no test ends."""
    with running(pipeline, RERANK_BODY_TIMEOUT="0.3") as found:
        yield found


def ended(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


# -- under way ------------------------------------------------------------


def test_a_client_that_hangs_up_has_its_work_cancelled(server):
    content = json.dumps({"query": "slow 0.5", "documents": ["a"]}).encode()
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(REQUEST + b"Content-Length: %d\r\n\r\n" % len(content) + content)
            time.sleep(0.1)
    assert server.rerank()[0] == 200
    assert "rerank_cancelled_total 3.0" in server.request("GET", "/metrics")[2].decode()


def test_half_requests_and_nonsense_disturb_nobody(server):
    slow, header, nonsense = (socket.create_connection(("127.0.0.1", server.port), 10) for _ in range(3))
    slow.sendall(REQUEST + b"Content-Length: 100\r\n\r\n{")
    header.sendall(REQUEST[:40])
    nonsense.sendall(b"\x16\x03\x01\x00 nonsense\r\n\r\n")
    assert b"400" in nonsense.recv(100)
    assert server.rerank()[0] == 200
    assert b" 408 " in slow.recv(100)
    for each in (slow, header, nonsense):
        each.close()
    assert server.rerank()[0] == 200


def test_a_killed_worker_under_load_loses_nothing(server):
    threads, found = server.together(6, "slow 0.03", times=6)
    time.sleep(0.2)
    os.kill(server.worker_pid, signal.SIGKILL)
    ended(threads)
    assert [status for status, _, _ in found] == [200] * 36


def test_answers_on_a_kept_connection_are_sent_without_delay():
    from rerank.serve.server import listen

    async def taken() -> int:
        accepted = asyncio.get_running_loop().create_future()
        with contextlib.closing(listen("127.0.0.1", 0)) as bound:
            server = await asyncio.start_server(lambda reader, writer: accepted.set_result(writer), sock=bound)
            async with server:
                _, client = await asyncio.open_connection(*bound.getsockname())
                writer = await accepted
                for each in (client, writer):
                    each.close()
                return writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    assert asyncio.run(taken()) != 0


def test_the_workers_threads_soon_sleep_when_they_wait_and_few_kernels_are_kept(server):
    environment = Path(f"/proc/{server.worker_pid}/environ").read_bytes().split(b"\0")
    usual = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "2000", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128"}
    for name, value in usual.items():
        assert f"{name}={os.environ.get(name, value)}".encode() in environment


# -- the end ------------------------------------------------------------


def test_sigterm_under_load_answers_every_request_and_refuses_new_ones(pipeline):
    with running(pipeline) as server:
        assert server.request("GET", "/health")[0] == 200
        threads, found = server.together(8, "slow 0.5")
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        status, headers, body = server.rerank()
        assert (status, body["error"]["type"]) == (503, "not_ready")
        assert int(headers["retry-after"]) > 0
        assert server.request("GET", "/health")[0] == 503
        ended(threads)
        assert [status for status, _, _ in found] == [200] * 8
        _, err = server.process.communicate(timeout=20)
        assert server.process.returncode == 0
        assert "shutting down" in [json.loads(line)["message"] for line in err.splitlines() if line.startswith("{")]


def test_what_does_not_finish_within_the_shutdown_time_gets_503(pipeline):
    with running(pipeline, "--shutdown-timeout", "0.3") as server:
        threads, found = server.together(1, "slow 30")
        time.sleep(0.3)
        server.process.send_signal(signal.SIGINT)
        ended(threads)
        ((status, headers, body),) = found
        assert (status, body["error"]["type"]) == (503, "not_ready")
        assert int(headers["retry-after"]) > 0
        server.process.communicate(timeout=20)
        assert server.process.returncode == 0


def test_a_second_signal_ends_at_once_and_no_worker_outlives_its_front(pipeline):
    with running(pipeline, "--host", "0.0.0.0") as server:
        worker = Path(f"/proc/{server.worker_pid}")
        threads, _ = server.together(1, "slow 30")
        time.sleep(0.3)
        for _ in range(2):
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
        _, err = server.process.communicate(timeout=5)
        assert server.process.returncode == 1
        assert "no key is needed" in err
        ended(threads)
        for _ in range(100):
            if not worker.exists():
                return
            time.sleep(0.05)
        pytest.fail("the worker is still there")


# -- what cannot start ------------------------------------------------------------


def test_a_taken_port_is_an_error_and_no_crash(pipeline):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "rerank", "serve", str(pipeline), "--port", str(port)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert str(port) in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing to serve"),
        (["bm52"], "no model is named 'bm52'"),
        (["bm25", "--model", "bm25"], "NAME=MODEL"),
        (["bm25", "--rule", "setwise"], "pipeline"),
        (["--adapter", "a=b"], "MODEL"),
        (["bm25", "--dtype", "int3"], "--dtype"),
        (["bm25", "--port", "99999"], "--port"),
    ],
)
def test_what_cannot_be_served_is_said_in_a_line(arguments, said, capsys):
    from rerank.cli import main

    assert main(["serve", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
