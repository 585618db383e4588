"""`rerank serve` under load, against a plain handler around `CrossEncoder.predict` behind a lock.

    python scripts/bench/serve.py [--data ../shared/data] [--threads 2] [--dtype bfloat16] [--clients 1 2 4 8 16 32 64]
                                  [--seconds 20] [--rounds 3] [--out FOLDER] [--infinity PATH]

Both serve the same weights (those of the encoder `--model`, with a seeded head of one label) with the same threads; the
peer, a Starlette route that runs `predict` in a thread, one at a time, serves in `--dtype` and in float32, which is its
default.  With `--infinity` (`infinity_emb` of another environment: its pins exclude ours) infinity-emb serves
them too, in `--dtype` by its torch engine.  All run side by side, and loads alternate between them, so that what else
the machine does meets all.
Requests are queries of trec-dl-2019 with 20 documents each (`--texts mix`: some of them abstracts of Cranfield).

Prints one JSON line a load and server, with the processor seconds that a request took in the front and in the worker;
then one with what the issue asks for: throughput at the most clients up to 32 as a ratio, the median at one client over
that of the direct call (a `Reranker` in a process of its own), and how far scores moved from before to after.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rerank.serve.load import Level, Question, Target, closed_loop, latency_curve

_TICKS = os.sysconf("SC_CLK_TCK")
_DOCUMENTS = 20
INFINITY_MODEL = "cross-encoder"
_INFINITY_SECONDS = 120.0


# -- the peer ------------------------------------------------------------


def serve_plainly(folder: str, dtype: str, threads: int) -> None:
    """What many people start with: the library, a route, a lock."""
    import threading

    import torch
    import uvicorn
    from sentence_transformers import CrossEncoder
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    from rerank.serve.server import listen

    torch.set_num_threads(threads)
    model = CrossEncoder(folder, device="cpu", model_kwargs={"dtype": getattr(torch, dtype)})
    lock = threading.Lock()

    def scored(query: str, documents: list[str]) -> list[dict[str, Any]]:
        with lock:
            scores = model.predict([(query, text) for text in documents], show_progress_bar=False).tolist()
        order = sorted(range(len(documents)), key=lambda place: -scores[place])
        return [{"index": place, "relevance_score": scores[place]} for place in order]

    async def rerank(request: Request) -> JSONResponse:
        body = await request.json()
        return JSONResponse({"results": await run_in_threadpool(scored, body["query"], body["documents"])})

    scored("warm", ["up"])
    bound = listen("127.0.0.1", 0)
    print(f"serving http://127.0.0.1:{bound.getsockname()[1]}", flush=True)
    app = Starlette(routes=[Route("/v1/rerank", rerank, methods=["POST"])])
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[bound])


# -- direct calls ------------------------------------------------------------


def time_direct(folder: str, dtype: str, threads: int, questions: list[Question]) -> None:
    """Prints the median milliseconds of a call without a server, ours and the library's, and our first scores."""
    import torch

    from rerank import Reranker, Runtime

    torch.set_num_threads(threads)
    found: dict[str, Any] = {}
    with Runtime(threads=threads, progress=False, cache=False) as runtime:
        reranker = Reranker(folder, dtype=dtype, runtime=runtime)  # type: ignore[arg-type]  # one of argparse's choices
        calls = {"reranker_ms": lambda q: reranker.rank(q.query, q.documents)}
        from sentence_transformers import CrossEncoder

        library = CrossEncoder(folder, device="cpu", model_kwargs={"dtype": getattr(torch, dtype)})
        calls["predict_ms"] = lambda q: library.predict([(q.query, d) for d in q.documents], show_progress_bar=False)
        first = reranker.rank(questions[0].query, questions[0].documents)
        found["scores"] = [doc.score for doc in sorted(first, key=lambda doc: doc.index)]
        for name, call in calls.items():
            for question in questions[:3]:
                call(question)
            times = []
            for question in questions:
                start = time.perf_counter()
                call(question)
                times.append(1000 * (time.perf_counter() - start))
            found[name] = round(statistics.median(times), 2)
    print(json.dumps(found), flush=True)


# -- servers ------------------------------------------------------------


@dataclass
class Running:
    """A server in a process of its own."""

    name: str
    url: str
    pid: int

    def cpu_seconds(self) -> dict[str, float]:
        """Of the process that listens and of its children."""
        pids = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text(encoding="ascii").split()
        return {"front": _cpu(self.pid), "worker": sum(_cpu(int(pid)) for pid in pids)}

    def megabytes(self) -> float:
        """Of all its processes."""
        pids = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text(encoding="ascii").split()
        return round(sum(_resident(int(pid)) for pid in [self.pid, *pids]), 1)


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _resident(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def _environment(threads: int) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    return {**kept, "OMP_NUM_THREADS": str(threads)}


@contextlib.contextmanager
def running(name: str, command: list[str], threads: int) -> Iterator[Running]:
    """A server that was started with `command`, until the block ends."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=_environment(threads)
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("serving "):
            raise SystemExit(f"{name} does not start: {' '.join(command)}")
        yield Running(name, line.split()[1], process.pid)
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def infinity(command: str, folder: str, dtype: str, threads: int) -> Iterator[Running]:
    """infinity-emb, until the block ends; it says that it serves by its health alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    options = ["--host", "127.0.0.1", "--port", str(port), "--url-prefix", "/v1", "--device", "cpu", "--dtype", dtype]
    process = subprocess.Popen(
        [command, "v2", "--model-id", folder, "--served-model-name", INFINITY_MODEL, "--engine", "torch", *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**_environment(threads), "INFINITY_ANONYMOUS_USAGE_STATS": "0", "HF_HUB_OFFLINE": "1"},
    )
    try:
        deadline = time.monotonic() + _INFINITY_SECONDS
        while not _is_well(f"{url}/health"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{command} does not serve {folder}")
            time.sleep(0.5)
        yield Running(f"infinity {dtype}", url, process.pid)
    finally:
        process.terminate()
        process.wait()


def _is_well(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def scores_of(url: str, question: Question) -> list[float]:
    from rerank import Client

    with Client(url) as client:
        found = client.rerank(question.query, question.documents, raw_scores=True)
    return [doc.score for doc in sorted(found, key=lambda doc: doc.index)]


def furthest(some: list[float], others: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(some, others, strict=True))


def measured(server: Running, target: Target, clients: int, seconds: float, warm_up: float) -> Level:
    """One load on one server, which is printed."""
    cpu, sent = server.cpu_seconds(), target.sent
    level = asyncio.run(closed_loop(target, clients, seconds, warm_up))
    n = max(1, target.sent - sent)
    spent = {part: round(1000 * (after - cpu[part]) / n, 2) for part, after in server.cpu_seconds().items()}
    facts = {"server": server.name, **level.to_dict(), "cpu_ms_per_request": spent, "megabytes": server.megabytes()}
    print(json.dumps(facts), flush=True)
    return level


def questions_of(data: Path, texts: str) -> list[Question]:
    from cross_encoder import candidates

    from rerank.runtime import Runtime

    with Runtime(threads=1, device="cpu", progress=False) as runtime:
        calls = candidates(data, runtime, texts, 43)
    size = _DOCUMENTS
    return [
        Question(call[start][0], [text for _, text in call[start : start + size]])
        for call in calls
        for start in range(0, len(call) - size + 1, size)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[3] / "shared" / "data")
    parser.add_argument("--model", default="minilm-l6")
    parser.add_argument("--texts", choices=["dl-2019", "mix"], default="dl-2019")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--warm-up", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--direct", type=int, default=60, metavar="N", help="calls without a server")
    parser.add_argument("--infinity", metavar="PATH", help="the command infinity_emb, served beside the others")
    parser.add_argument("--out", type=Path, help="a folder for the latency curve of each server")
    parser.add_argument("--side", nargs=2, metavar=("KIND", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        kind, folder = options.side
        if kind == "plain":
            serve_plainly(folder, options.dtype, options.threads)
        else:
            time_direct(folder, options.dtype, options.threads, [Question(*each) for each in json.load(sys.stdin)])
        return

    from cross_encoder import write_classifier

    from rerank.models import resolve_model

    questions = questions_of(options.data, options.texts)
    threads, dtype = options.threads, options.dtype
    with tempfile.TemporaryDirectory() as name:
        folder = str(Path(name) / "cross-encoder")
        write_classifier(resolve_model(options.model).path, Path(folder))
        own = [sys.executable, __file__, "--threads", str(threads), "--dtype"]
        asked = json.dumps(questions[: options.direct])
        done = subprocess.run(
            [*own, dtype, "--side", "direct", folder], input=asked, stdout=subprocess.PIPE, text=True, check=True,
            env=_environment(threads),
        )  # fmt: skip
        direct = json.loads(done.stdout.splitlines()[-1])
        command = [sys.executable, "-m", "rerank", "serve", folder, "--dtype", dtype, "--threads", str(threads)]
        with contextlib.ExitStack() as stack:
            servers = {"ours": stack.enter_context(running("ours", [*command, "--port", "0"], threads))}
            for kind in dict.fromkeys([dtype, "float32"]):
                peer = running(f"plain {kind}", [*own, kind, "--side", "plain", folder], threads)
                servers[f"plain {kind}"] = stack.enter_context(peer)
            targets = {name: Target(server.url, questions) for name, server in servers.items()}
            if options.infinity:
                server = stack.enter_context(infinity(options.infinity, folder, dtype, threads))
                servers[server.name] = server
                targets[server.name] = Target(server.url, questions, model=INFINITY_MODEL)
            before = scores_of(servers["ours"].url, questions[0])
            found: dict[str, dict[int, list[Level]]] = {name: {n: [] for n in options.clients} for name in servers}
            for _ in range(options.rounds):
                for n in options.clients:
                    for name, server in servers.items():
                        level = measured(server, targets[name], n, options.seconds, options.warm_up)
                        found[name][n].append(level)
            after = scores_of(servers["ours"].url, questions[0])

    def throughput(name: str, n: int) -> float:
        return statistics.median(level.throughput for level in found[name][n])

    many = max((n for n in options.clients if n <= 32), default=options.clients[0])
    one = statistics.median(1000 * level.percentile(50) for level in found["ours"][min(options.clients)])
    verdict = {
        "bench": "serve",
        "clients": many,
        "ratio_same_type": round(throughput("ours", many) / throughput(f"plain {dtype}", many), 2),
        "goal_same_type": ">= 1.6",
        "ratio_float32": round(throughput("ours", many) / throughput("plain float32", many), 2),
        "goal_float32": ">= 4",
        **(
            {"ratio_infinity": round(throughput("ours", many) / throughput(f"infinity {dtype}", many), 2)}
            if options.infinity
            else {}
        ),
        "median_ms_at_fewest_clients": round(one, 2),
        "over_direct": round(one / direct["reranker_ms"], 3),
        "goal_over_direct": "<= 1.25",
        **{name: value for name, value in direct.items() if name != "scores"},
        "scores_moved": furthest(before, after),
        "scores_from_direct": furthest(before, direct["scores"]),
        "errors": sum(
            count for levels in found["ours"].values() for level in levels for count in level.errors.values()
        ),
        "threads": threads,
        "dtype": dtype,
        "texts": options.texts,
        "documents": _DOCUMENTS,
        "rounds": options.rounds,
        "seconds": options.seconds,
    }
    print(json.dumps(verdict), flush=True)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        for name, levels in found.items():
            drawing = latency_curve([level for some in levels.values() for level in some])
            (options.out / f"{name.replace(' ', '-')}.svg").write_text(drawing, encoding="utf-8")


if __name__ == "__main__":
    main()
