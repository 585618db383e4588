"""A stand-in for the worker process: answers in this process, at once or when it is told, and fails as it is told."""

from __future__ import annotations

import array
import asyncio
import base64
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rerank.serve.app import create_app
from rerank.serve.service import Service
from rerank.serve.settings import ServedModel, Settings
from rerank.serve.supervisor import Patience, WorkerFailedError, WorkerGoneError
from rerank.serve.tracing import Tracing
from rerank.serve.wire import packed, unpacked

QUICK = Patience(heartbeat_seconds=0.02, silence_seconds=1.0, batch_seconds=60.0)


def score_of(text: str) -> float:
    """A logit: the number after the last `=` of a text, else its length."""
    _, _, number = text.rpartition("=")
    try:
        return float(number)
    except ValueError:
        return len(text) / 10


@dataclass
class StandIn:
    """What every worker of one server has in common."""

    score: Callable[[str], float | None] = score_of
    facts: dict[str, Any] = field(default_factory=lambda: {"kind": "logit", "limit": 50, "dtype": "float32"})
    poison: str = "POISON"
    """A worker that is shown a text with this ends."""
    failure: str = "ModelError"
    """How that is called."""
    unloadable: set[str] = field(default_factory=set)
    """Models that do not load."""
    spoiled: str = "SPOILED"
    """A batch that shows such a text fails."""
    batches: list[dict[str, Any]] = field(default_factory=list)
    """What was asked, in order."""
    done: list[dict[str, Any]] = field(default_factory=list)
    """What was answered."""
    seen: Counter[str] = field(default_factory=Counter)
    """How often each verb was asked."""
    workers: list[_Worker] = field(default_factory=list)
    answers_pings: bool = True

    def __post_init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.may_start = asyncio.Event()
        self.may_start.set()

    async def start(self) -> _Worker:
        """The next worker."""
        await self.may_start.wait()
        self.workers.append(_Worker(self))
        return self.workers[-1]

    @property
    def texts(self) -> list[list[str]]:
        """The documents of each batch of questions."""
        return [[text for question in batch["questions"] for text in question[3]] for batch in self.batches]


class _Worker:
    def __init__(self, common: StandIn) -> None:
        self._common = common
        self._end = asyncio.Event()
        self._turn = asyncio.Lock()

    @property
    def is_alive(self) -> bool:
        return not self._end.is_set()

    def die(self) -> None:
        """Ends as if killed."""
        self._end.set()

    async def ended(self) -> None:
        await self._end.wait()

    async def close(self) -> None:
        self._end.set()

    async def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        message = unpacked(packed(message)[4:])  # only what can be sent is
        answering = asyncio.ensure_future(self._answer(message))
        dying = asyncio.ensure_future(self._end.wait())
        try:
            await asyncio.wait({answering, dying}, return_when=asyncio.FIRST_COMPLETED)
            if self._end.is_set():
                raise WorkerGoneError
            return {**unpacked(packed(answering.result())[4:]), "seconds": 0.001}
        finally:
            for task in (answering, dying):
                task.cancel()
            await asyncio.gather(answering, dying, return_exceptions=True)

    async def _answer(self, message: dict[str, Any]) -> dict[str, Any]:
        common = self._common
        verb = message["do"]
        common.seen[verb] += 1
        if verb == "ping":
            await (asyncio.sleep(0) if common.answers_pings else asyncio.sleep(3600))
            return {}
        if verb in ("start", "unload"):
            return {}
        if verb == "load":
            if message["target"] in common.unloadable:
                raise WorkerFailedError("ModelError", "weights are missing")
            return dict(common.facts)
        if verb in ("fit", "tokenize"):
            return getattr(self, f"_{verb}")(message)
        common.batches.append(message)
        async with self._turn:
            await common.gate.wait()
            said = json.dumps(message)
            if common.poison in said:
                self.die()
                await asyncio.sleep(3600)
            if common.spoiled in said:
                raise WorkerFailedError(common.failure, f"model 'x' (/a/path): scores that are not finite: {said[:50]}")
            common.done.append(message)
            return getattr(self, f"_{verb}")(message)

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        asked = message["questions"]
        answers = [[self._common.score(text) for text in texts] for _, _, _, texts, _ in asked]
        words = [len(query.split()) + sum(len(t.split()) for t in texts) for _, query, _, texts, _ in asked]
        reply = {"answers": answers, "used": [[n + 3, int(n > 47)] for n in words], "counts": {}}
        if any(explains for *_, explains in asked):
            reply["written"] = [[f"read {' | '.join(texts)}"] * explains for _, _, _, texts, explains in asked]
        return reply

    def _rank(self, message: dict[str, Any]) -> dict[str, Any]:
        lists = []
        for _, texts, explains in message["lists"]:
            order = sorted(range(len(texts)), key=lambda place: -score_of(texts[place]))
            row = {"order": order, "scores": [score_of(texts[place]) for place in order], "tokens": 7}
            lists.append({**row, "reasoning": [[order, f"read {len(texts)}"]]} if explains else row)
        return {"lists": lists}

    def _search(self, message: dict[str, Any]) -> dict[str, Any]:
        return {
            "lists": [
                {
                    "hits": [{"id": f"d{n}", "score": 9.0 - n, "text": f"{query} {n}"} for n in range(k)],
                    "kind": "bm25",
                    "tokens": 3,
                }
                for query, k in message["queries"]
            ]
        }

    def _embed(self, message: dict[str, Any]) -> dict[str, Any]:
        vectors = [array.array("f", [0.6, 0.8, float(len(text))]).tobytes() for text in message["texts"]]
        tokens = [len(text.split()) + 2 for text in message["texts"]]
        return {"vectors": [base64.b64encode(each).decode() for each in vectors], "tokens": tokens, "truncated": 0}

    def _fit(self, message: dict[str, Any]) -> dict[str, Any]:
        """Words are tokens."""
        limit = min(50, message["per_pair"] or 50)
        query = len(message["query"].split())
        most = max(0, limit - 3 - query)
        kept, long = [], 0
        for text in message["documents"]:
            words = text.split()
            allowed = len(words) if message["per_document"] is None else min(len(words), message["per_document"])
            long += allowed > most
            if allowed > most and (message["side"] == "left" or message["per_pair"] is not None):
                allowed = most
            kept.append(" ".join(words[len(words) - allowed :] if message["side"] == "left" else words[:allowed]))
        cut = sum(a.split() != b.split() for a, b in zip(kept, message["documents"], strict=True))
        found = {"documents": kept, "query_tokens": query, "limit": limit, "long": long, "cut": cut}
        return {**found, "fits": query < limit - 3}

    def _tokenize(self, message: dict[str, Any]) -> dict[str, Any]:
        rows = [
            [{"id": n, "text": word, "special": False, "start": 0, "stop": 1} for n, word in enumerate(text.split())]
            for text in message["texts"]
        ]
        return {"tokens": rows}


@dataclass
class Server:
    """A service behind its routes, and a client of it."""

    service: Service
    client: Any
    worker: StandIn

    async def post(self, path: str, body: Any, **headers: str) -> Any:
        """The response to a JSON body."""
        content = json.dumps(body)
        return await self.client.post(path, content=content, headers={"content-type": "application/json", **headers})


@contextlib.asynccontextmanager
async def serving(
    *models: ServedModel,
    worker: StandIn | None = None,
    patience: Patience = QUICK,
    tracing: Tracing | None = None,
    **settings: Any,
) -> AsyncIterator[Server]:
    """A server in this process."""
    import httpx2 as httpx

    stand_in = worker or StandIn()
    service = Service(Settings(models=models, **settings), start_worker=stand_in.start, patience=patience)
    await service.open()
    transport = httpx.ASGITransport(create_app(service, tracing), raise_app_exceptions=False)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=20) as client:
            yield Server(service, client, stand_in)
    finally:
        await service.close()


def model_folder(folder: Path, kind: str = "cross_encoder") -> str:
    """A folder with just enough files to tell what the model is."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, dict[str, Any]] = {
        "cross_encoder": {"config.json": {"architectures": ["BertForSequenceClassification"]}},
        "causal_lm": {"config.json": {"architectures": ["LlamaForCausalLM"]}},
        "dense": {
            "config_sentence_transformers.json": {"model_type": "SentenceTransformer"},
        },
    }
    for name, content in files[kind].items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return str(folder)


def with_server(main: Any, *models: ServedModel, worker: StandIn | None = None, **settings: Any) -> None:
    """Runs `main(server)` beside a server."""

    async def run() -> None:
        async with serving(*models, worker=worker, **settings) as server:
            await main(server)

    asyncio.run(run())


async def until(holds: Any, seconds: float = 5) -> None:
    """Waits until `holds()`."""
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.002)
