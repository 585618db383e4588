"""The worker process: owns the runtime, and everything that is loaded; the only one that computes.

Messages come over the socket whose number is the only argument.  One thread reads them and answers signs of life, one
computes batch after batch in the order they came, one tokenises the pairs of the next batch meanwhile, one counts and
cuts texts, so that this never waits for a batch; each of the latter two has tokenizers of its own.  The end of the
stream ends the process, so that no worker outlives its front.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rerank.config import parse_pipeline
from rerank.data.corpus import MemoryCorpus
from rerank.engines.engine import Asked, Asker, SharingAsker
from rerank.engines.pairs import PairsAsker
from rerank.errors import DataError, ModelError, RerankError
from rerank.ranking import Ranking, ScoreKind
from rerank.reranker import Reranker, list_qid
from rerank.reranking import Rerank
from rerank.retrieve.rescore import Rescore
from rerank.rules.rule import Answer
from rerank.runtime import Runtime
from rerank.serve.logs import log_to
from rerank.serve.texts import Fitter
from rerank.serve.wire import Message, packed, read_message
from rerank.stage import Pipeline, Stage

if TYPE_CHECKING:
    from rerank.engines.cross_encoder import PairTokens

logger = logging.getLogger(__name__)

MOST_WRITTEN = 1 << 14
"""Characters that are told of what a model wrote about a question."""
_TRIM_SECONDS = 15.0
"""After so long memory that is free goes back to the system.  Batches are of ever other sizes, and leave holes that the
allocator of C would keep, so that a process under load would grow (`scripts/bench/serve_overload.py` prints memory)."""
_CHARACTERS_PER_TOKEN = 4.0
"""Of engines that do not say how many tokens they read."""


class Loaded:
    """A served model or pipeline, ready to be asked.

    Args:
        stage: reranks lists; None where only searching is possible.
        search: finds documents for queries; None where only lists are reranked.
        corpus: what is searched, by name.
        runtime: keeps what is loaded.
    """

    def __init__(self, stage: Stage | None, search: Stage | None, corpus: str | None, runtime: Runtime) -> None:
        self._runtime = runtime
        self._search = search
        self._reranker = None if stage is None else Reranker(stage, runtime=runtime)
        self.asker: Asker | None = None
        self.fitter: Fitter | None = None
        self._pairs: Any = None
        self._ahead: Any = None
        self._encoder: Any = None
        self.facts: dict[str, Any] = {}
        if isinstance(stage, Rerank):
            self.asker = stage.engine.asker(stage.prompt, runtime)
            self.facts["kind"] = str(self.asker.kind)
            self._find_tokenizer()
        elif isinstance(stage, Rescore):
            from rerank.engines.encoder import load_encoder

            self._encoder = load_encoder(runtime, stage.model, stage.revision, stage.dtype)
            self.facts |= {
                "kind": str(self._encoder.score_kind),
                "dimension": self._encoder.dimension,
                "limit": self._encoder.limit("document"),
                "pooling": _pooling(self._encoder.model),
            }
            self.fitter = Fitter.of_texts(copy.deepcopy(self._encoder.model.tokenizer), self._encoder.limit("document"))
        if search is not None:
            from rerank.data.load import load_corpus

            self._corpus = load_corpus(corpus or "stdlib", runtime=runtime)
        with runtime.counting():
            self._warm_up(stage)

    def _find_tokenizer(self) -> None:
        from rerank.engines.cross_encoder import CrossEncoder

        if isinstance(self.asker, PairsAsker) and isinstance(self.asker.model, CrossEncoder):
            model = self.asker.model
            self._pairs, self._ahead = model, copy.copy(model)
            self._ahead.tokenizer = copy.deepcopy(model.tokenizer)
            limit = min(model.limit, self.asker.max_tokens or model.limit)
            self.facts |= {"limit": limit, "dtype": model.dtype, "device": model.device}
            self.facts["batch_tokens"] = model.batch_tokens
            special = len(model.tokenise([("", "")]).ids[0])
            self.fitter = Fitter(copy.deepcopy(model.tokenizer), limit, special)

    def _warm_up(self, stage: Stage | None) -> None:
        """Asks once for everything, so that the first client waits for nothing to be loaded or built."""
        if stage is not None and self._reranker is not None:
            try:
                ranking = self._runtime.rank(stage, _two_documents())
            finally:
                self._runtime.stats.clear()
            self.facts.setdefault("kind", str(ranking.kind))
        if self._search is not None:
            self.search([("what is this", 1)])

    # -- questions ------------------------------------------------------------

    def tokenised(self, questions: Sequence[Asked]) -> PairTokens | None:
        """What `ask` reads of questions about pairs, made with a tokenizer of its own; None where it wants them whole.

        May be called while something else is asked.
        """
        if self._ahead is None:
            return None
        pairs = [(asked.query, asked.documents[0]) for asked in questions]
        tokens: PairTokens = self._ahead.tokenise(pairs, self.facts["limit"])
        return tokens

    def ask(
        self, questions: Sequence[Asked], tokens: PairTokens | None = None
    ) -> tuple[list[Answer], list[tuple[int, int]]]:
        """The answers to questions, and how many tokens were read and documents cut for each.

        Args:
            questions: what is asked.
            tokens: what `tokenised` made of them; default made now.
        """
        if self.asker is None:
            raise DataError("this pipeline is no single reranking stage; it takes whole lists")
        if tokens is None:
            tokens = self.tokenised(questions)
        if tokens is not None:
            sizes, lengths = tokens.sizes.tolist(), tokens.lengths.tolist()
            used = [(size, int(size < length)) for size, length in zip(sizes, lengths, strict=True)]
            scores = self._pairs.scored(tokens, self._runtime.count, self._runtime.requests)
            return [(float(score),) for score in scores], used
        if isinstance(self.asker, SharingAsker):
            requests = self.asker.requests(questions, self._runtime)
            answers = self.asker.answers(self.asker.raw(requests, self._runtime), questions, self._runtime)
            return answers, [(len(request.tokens), request.truncated_documents) for request in requests]
        with self._runtime.counting() as counts:
            answers = self.asker.ask(questions, self._runtime)
        told = counts.get("tokens", counts.get("prompt tokens", 0))
        sizes = [len(asked.query) + sum(map(len, asked.documents)) for asked in questions]
        return answers, [(tokens, 0) for tokens in _shares(told, sizes)]

    def rank(self, lists: Sequence[tuple[str, Sequence[str], bool]]) -> list[dict[str, Any]]:
        """For each list the places of its documents, best first, their scores, and, if wanted, what was written."""
        if self._reranker is None:
            raise DataError("this pipeline finds documents and does not rerank given ones")
        explains = any(wanted for _, _, wanted in lists)
        found = self._reranker.rank_many([(query, documents) for query, documents, _ in lists], explain=explains)
        told = found[0].counts.get("tokens", 0) if found else 0
        sizes = [len(query) * len(documents) + sum(map(len, documents)) for query, documents, _ in lists]
        rows = [
            {"order": [doc.index for doc in docs], "scores": [doc.score for doc in docs], "tokens": tokens}
            for docs, tokens in zip(found, _shares(told, sizes), strict=True)
        ]
        for row, docs, (_, _, wanted) in zip(rows, found, lists, strict=True):
            if wanted:
                row["reasoning"] = [(each.documents, _cut(each.text)) for each in docs.reasoning]
        return rows

    def search(self, queries: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
        """The first `k` documents that the pipeline finds for each (query, k)."""
        if self._search is None:
            raise DataError("this model reranks given documents and finds none")
        topics = Ranking.start({list_qid(query, ()): query for query, _ in queries}, self._corpus)
        first = len(self._runtime.stats)
        try:
            ranking = self._runtime.rank(self._search, topics)
        finally:
            del self._runtime.stats[first:]
        found = []
        for query, k in queries:
            hits = ranking[list_qid(query, ())]
            rows = [{"id": hit.docno, "score": hit.score, "text": hit.text or ""} for hit in hits[:k]]
            found.append({"hits": rows, "kind": str(ranking.kind), "tokens": max(1, len(query) // 4)})
        return found

    def embed(self, texts: Sequence[str], side: str) -> dict[str, Any]:
        """The vectors of texts, float32 in little-endian bytes as base64."""
        import base64

        if self._encoder is None:
            raise DataError("this model makes no vectors")
        with self._runtime.counting() as counts:
            encode = self._encoder.encode_queries if side == "query" else self._encoder.encode_documents
            vectors = encode(texts, self._runtime.count)
        rows = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors]
        cut = sum(number for what, number in counts.items() if what.startswith("truncated"))
        shares = _shares(counts.get("tokens", 0), [len(text) for text in texts])
        return {"vectors": rows, "tokens": shares, "truncated": cut}


class _Batch(NamedTuple):
    """Questions that are ready to be asked."""

    loaded: Loaded
    questions: list[Asked]
    tokens: PairTokens | None


class Trimming:
    """Gives free memory back to the system, now and then, where the C library can."""

    def __init__(self) -> None:
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._next = time.monotonic() + _TRIM_SECONDS

    def __call__(self) -> None:
        if self._trim is not None and time.monotonic() > self._next:
            self._trim(0)
            self._next = time.monotonic() + _TRIM_SECONDS


class Worker:
    """Answers messages until the stream ends."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._sending = threading.Lock()
        self._computing: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._reading: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._tokenising = ThreadPoolExecutor(1, "tokens")
        self._dropped: set[int] = set()
        self._latest = 0
        """The number of the last message that was taken up."""
        self._runtime: Runtime | None = None
        self._loaded: dict[str, Loaded] = {}

    def run(self) -> None:
        """Computes in this thread, since models want to be called in the thread that loaded them."""
        threading.Thread(target=self._read, name="read", daemon=True).start()
        threading.Thread(target=self._work, args=(self._reading, _text_verbs()), name="texts", daemon=True).start()
        self._work(self._computing, _verbs(), Trimming())

    def _read(self) -> None:
        with self._link.makefile("rb") as stream:
            while (message := read_message(stream.read)) is not None:
                self._take(message)
        os._exit(0)  # nobody is left to compute for, and a batch may hold the other thread for long

    def _take(self, message: Message) -> None:
        """Puts a message where it is worked on."""
        if message["do"] == "ping":
            self._send({"id": message["id"], "ok": {}})
        elif message["do"] == "drop":
            if message["what"] > self._latest:
                self._dropped.add(message["what"])
        elif message["do"] in _text_verbs():
            self._reading.put(message)
        else:
            if message["do"] == "ask":
                message["batch"] = self._tokenising.submit(self._batch, message)
            self._computing.put(message)

    def _work(
        self,
        todo: queue.SimpleQueue[Message],
        verbs: dict[str, Callable[[Worker, Message], Any]],
        after: Callable[[], None] = lambda: None,
    ) -> None:
        while True:
            message = todo.get()
            self._latest = max(self._latest, message["id"])
            if message["id"] in self._dropped:
                self._dropped.discard(message["id"])
                self._send({"id": message["id"], "failed": {"kind": "dropped", "message": "nobody waits for it"}})
                continue
            started = time.perf_counter()
            try:
                found = verbs[message["do"]](self, message)
            except Exception as error:  # whatever a model raises fails its batch, and no other
                self._send({"id": message["id"], "failed": _failure(error)})
            else:
                self._send({"id": message["id"], "ok": found, "seconds": time.perf_counter() - started})
            after()

    def _send(self, message: Message) -> None:
        # A front that is gone is noticed by the thread that reads.
        with self._sending, contextlib.suppress(OSError):
            self._link.sendall(packed(message))

    # -- verbs ------------------------------------------------------------

    def _start(self, message: Message) -> dict[str, Any]:
        home = message.get("home")
        self._runtime = Runtime(
            None if home is None else Path(home),
            device=message.get("device", "auto"),
            threads=message.get("threads"),
            progress=False,
            cache=False,
        )
        return {"pid": os.getpid(), "threads": self._runtime.threads}

    @property
    def runtime(self) -> Runtime:
        """What keeps everything that is loaded."""
        if self._runtime is None:
            raise DataError("the worker was not started")
        return self._runtime

    def _load(self, message: Message) -> dict[str, Any]:
        stage, search = (_stage(message.get(what)) for what in ("stage", "search"))
        loaded = Loaded(stage, search, message.get("data"), self.runtime)
        self._loaded[message["target"]] = loaded
        # Asking for the device loads torch, which not every pipeline needs.
        device = self.runtime.device if "torch" in sys.modules else "cpu"
        return {"device": device, **loaded.facts}

    def _unload(self, message: Message) -> dict[str, Any]:
        self._loaded.pop(message["target"], None)
        return {}

    def _target(self, message: Message) -> Loaded:
        try:
            return self._loaded[message["target"]]
        except KeyError:
            raise ModelError("the model is not loaded any more") from None

    def _batch(self, message: Message) -> _Batch:
        rows = message["questions"]
        questions = [Asked(qid, query, tuple(ids), tuple(texts)) for qid, query, ids, texts, _ in rows]
        loaded = self._target(message)
        return _Batch(loaded, questions, loaded.tokenised(questions))

    def _ask(self, message: Message) -> dict[str, Any]:
        ready: Future[_Batch] = message["batch"]
        rows, (loaded, questions, tokens) = message["questions"], ready.result()
        with self.runtime.counting() as counts, self.runtime.explaining() as told:
            answers, used = loaded.ask(questions, tokens)
        reply = {"answers": answers, "used": used, "counts": counts}
        # By identity, since several clients may ask the same question.
        written: dict[int, list[str]] = {id(asked): [] for asked, row in zip(questions, rows, strict=True) if row[-1]}
        for asked, text in told:
            if id(asked) in written:
                written[id(asked)].append(_cut(text))
        return {**reply, "written": [written.get(id(asked), []) for asked in questions]} if written else reply

    def _rank(self, message: Message) -> dict[str, Any]:
        return {"lists": self._target(message).rank(message["lists"])}

    def _search(self, message: Message) -> dict[str, Any]:
        return {"lists": self._target(message).search([(query, k) for query, k in message["queries"]])}

    def _embed(self, message: Message) -> dict[str, Any]:
        return self._target(message).embed(message["texts"], message["side"])

    def _fit(self, message: Message) -> dict[str, Any]:
        fitter = self._fitter(message)
        return fitter.fit(
            message["query"],
            message["documents"],
            per_document=message["per_document"],
            per_pair=message["per_pair"],
            side=message["side"],
        )

    def _tokenize(self, message: Message) -> dict[str, Any]:
        return {"tokens": self._fitter(message).tokens(message["texts"], special=message["special"])}

    def _fitter(self, message: Message) -> Fitter:
        fitter = self._target(message).fitter
        if fitter is None:
            raise DataError("this model's tokenizer is not at hand, so texts cannot be counted or cut beforehand")
        return fitter


def _verbs() -> dict[str, Callable[[Worker, Message], Any]]:
    return {
        "start": Worker._start,
        "load": Worker._load,
        "unload": Worker._unload,
        "ask": Worker._ask,
        "rank": Worker._rank,
        "search": Worker._search,
        "embed": Worker._embed,
    }


def _text_verbs() -> dict[str, Callable[[Worker, Message], Any]]:
    return {"fit": Worker._fit, "tokenize": Worker._tokenize}


def _failure(error: Exception) -> dict[str, str]:
    """What is told of an error: its kind, and its words where they are this package's own."""
    kind = type(error).__name__
    if isinstance(error, MemoryError) or kind == "OutOfMemoryError" or "out of memory" in str(error).lower():
        return {"kind": "memory", "message": "the device ran out of memory"}
    if isinstance(error, RerankError):
        return {"kind": kind, "message": " ".join(str(error).split())}
    logger.error("a batch failed", exc_info=error)
    return {"kind": "error", "message": f"the model failed ({kind})"}


def _stage(text: str | None) -> Stage | None:
    """The stage that a pipeline's YAML says: a pipeline of one nameless stage is that stage."""
    if text is None:
        return None
    pipeline = parse_pipeline(text, "the served pipeline")
    return pipeline.stages[0] if len(pipeline.stages) == 1 else Pipeline(pipeline.stages)


def _two_documents() -> Ranking:
    corpus = MemoryCorpus({"000000000": "A short text.", "000000001": "Another text, a little longer."})
    lists = {"warm-up": {"000000000": 2.0, "000000001": 1.0}}
    return Ranking.of(lists, {"warm-up": "what is this"}, ScoreKind.RANK, corpus)


def _pooling(model: Any) -> str:
    """How the encoder makes one vector of many, as TEI names it."""
    for module in model:
        mode = getattr(module, "pooling_mode", None)
        if mode is not None:
            return str(mode[0] if isinstance(mode, tuple | list) else mode)
    return "mean"


def _cut(text: str) -> str:
    """What was written, without the white space around it, and no longer than a person reads."""
    text = text.strip()
    return text if len(text) <= MOST_WRITTEN else f"{text[:MOST_WRITTEN]} …"


def _shares(total: int, sizes: Sequence[int]) -> list[int]:
    """`total` divided in proportion to sizes, at least 1 each; by characters where the total is not known.

    >>> _shares(10, [1, 3]), _shares(0, [8, 2])
    ([3, 7], [2, 1])
    """
    if not total:
        return [max(1, round(size / _CHARACTERS_PER_TOKEN)) for size in sizes]
    whole, spent, given = max(1, sum(sizes)), 0, []
    for position, size in enumerate(sizes):
        last = position == len(sizes) - 1
        share = max(1, total - spent if last else -(-total * size // whole))
        given.append(share)
        spent += share
    return given


def main(arguments: Sequence[str]) -> None:
    """Serves the socket with the number in `arguments`."""
    # Signals of a terminal go to the whole group; when to stop is the front's matter.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    log_to(sys.stderr, "warning")
    Worker(socket.socket(fileno=int(arguments[0]))).run()


if __name__ == "__main__":
    main(sys.argv[1:])
