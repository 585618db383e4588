"""What the server does, without HTTP: finds the model, prepares the texts, queues the work, maps the scores."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from rerank import __version__
from rerank.errors import ConfigError, RerankError
from rerank.reranking import Rerank
from rerank.serve.errors import bad_field, bad_request, failed, not_ready, not_supported, nothing_given
from rerank.serve.folder import ModelsFolder
from rerank.serve.jobs import (
    Embedded,
    EmbedJob,
    EmbedWork,
    ListWork,
    PairWork,
    Reranked,
    RerankJob,
    RuleWork,
    Scored,
    Searched,
    SearchWork,
    Took,
)
from rerank.serve.metrics import Metrics
from rerank.serve.models import Catalogue, Served, resolve
from rerank.serve.queueing import MOST_REASONING, Limits, Queue, Work
from rerank.serve.settings import ServedModel, Settings
from rerank.serve.supervisor import Asking, Patience, Supervisor, WorkerFailedError, WorkerGoneError, WorkerProcess
from rerank.serve.wire import Message

logger = logging.getLogger(__name__)

QUERIES_AT_ONCE = 32
"""How many queries a pipeline searches for in one batch."""
_BATCH_TOKENS = {"cpu": 16384, "cuda": 131072}


class Service:
    """Everything behind the routes.

    Args:
        settings: see `Settings`.
        start_worker: gives a new worker; default a process.
        patience: how long the worker is given; default as the settings say.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        start_worker: Callable[[], Awaitable[Asking]] = WorkerProcess.start,
        patience: Patience | None = None,
    ) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self._home = None if settings.home is None else Path(settings.home)
        self.catalogue = Catalogue(resolve(spec, settings.data, self._home) for spec in settings.models)
        self.supervisor = Supervisor(
            start_worker,
            self._prepare,
            patience or Patience(silence_seconds=settings.heartbeat_timeout, batch_seconds=settings.batch_timeout),
            self._went_ready,
        )
        self.queue = Queue(self.supervisor.ask, lambda: self.supervisor.is_ready, self._limits("cpu"), self.metrics)
        self.is_stopping = False
        self.device = "cpu"
        self._folder = None if settings.models_folder is None else ModelsFolder(Path(settings.models_folder))
        self._watching: asyncio.Task[None] | None = None
        self.metrics.ready.set_function(lambda: float(self.is_ready))
        self.metrics.restarts.set_function(lambda: float(self.supervisor.restarts))

    # -- life ------------------------------------------------------------

    async def open(self) -> None:
        """Starts the worker and loads what is served.

        Raises:
            ConfigError: a model that does not load.
        """
        if self._folder is not None:
            self._take_folder(self._folder)
            self._watching = asyncio.ensure_future(self._watch())
        try:
            await self.supervisor.open()
        except WorkerFailedError as error:
            raise ConfigError(str(error)) from error
        except WorkerGoneError as error:
            raise ConfigError("the worker process ended while models were loaded; its last lines say why") from error

    async def stop(self, seconds: float) -> None:
        """Accepts nothing more and gives what is under way so many seconds."""
        self.is_stopping = True
        await self.queue.drain(seconds)

    async def close(self) -> None:
        """Ends the worker."""
        self.is_stopping = True
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await self.queue.close()
        await self.supervisor.close()

    @property
    def is_ready(self) -> bool:
        """Whether requests can be answered."""
        return self.supervisor.is_ready and not self.is_stopping

    def _went_ready(self) -> None:
        self.queue.wake()

    async def _prepare(self, ask: Callable[[Message], Awaitable[Message]]) -> None:
        """Loads everything into a new worker, and asks it once."""
        settings = self.settings
        start = {"do": "start", "home": settings.home, "device": settings.device, "threads": settings.threads}
        await ask(start)
        fixed = {spec.served_name for spec in settings.models}
        for served in self.catalogue:
            try:
                await self._load(served, ask)
            except WorkerFailedError as error:
                if served.name in fixed:
                    raise
                # What lies in the folder may be damaged at any time, and must not keep the others from being served.
                logger.error("model %s: does not load (%s); served no more", served.name, error)
                self.catalogue.remove(served.name)

    async def _load(self, served: Served, ask: Callable[[Message], Awaitable[Message]]) -> None:
        served.facts = await ask(served.load_message())
        self.device = str(served.facts.get("device", "cpu"))
        self.queue.limits = self._limits(self.device)
        facts = served.facts
        labels = (served.spec.revision, facts.get("dtype"), facts.get("device"), __version__)
        self.metrics.model_info.labels(served.name, *(str(label or "") for label in labels)).set(1)

    def _limits(self, device: str) -> Limits:
        settings = self.settings
        batch = settings.max_batch_tokens or _BATCH_TOKENS.get(device.partition(":")[0], _BATCH_TOKENS["cpu"])
        return Limits(
            batch,
            settings.max_queued_tokens or 16 * batch,
            settings.max_concurrent_requests,
            settings.queue_timeout,
            settings.request_timeout,
        )

    # -- hot loading ------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self.settings.watch_seconds)
            if self.supervisor.is_ready:
                await self.look()

    async def look(self) -> None:
        """Loads what is new or changed in the folder of models, and drops what is gone."""
        if self._folder is None:
            return
        fixed = {spec.served_name for spec in self.settings.models}
        changed, gone = self._folder.look()
        for name in changed.keys() - fixed:
            await self._reload(name, changed[name])
        for name in gone:
            if name in self.catalogue and name not in fixed:
                logger.info("model %s: gone from the folder; served no more", name)
                self.catalogue.remove(name)
                with contextlib.suppress(WorkerGoneError, WorkerFailedError):
                    await self.supervisor.ask({"do": "unload", "target": name})

    async def _reload(self, name: str, path: Path) -> None:
        try:
            served = resolve(ServedModel(str(path), name), self.settings.data, self._home)
            await self._load(served, self.supervisor.load)
        except (RerankError, WorkerFailedError, WorkerGoneError) as error:
            logger.error("model %s: not loaded (%s); what was served before still is", name, error)
            return
        self.catalogue.add(served)
        logger.info("model %s: loaded from the folder", name)

    def _take_folder(self, folder: ModelsFolder) -> None:
        """What lies in the folder of models when the server starts."""
        for name, path in folder.first().items():
            if name in self.catalogue:
                continue
            try:
                self.catalogue.add(resolve(ServedModel(str(path), name), self.settings.data, self._home))
            except RerankError as error:
                logger.error("model %s: cannot be served (%s)", name, error)

    # -- requests ------------------------------------------------------------

    async def rerank(self, job: RerankJob, client: str = "") -> Reranked:
        """The list, best first.

        Raises:
            ApiError: see the contract's table.
        """
        served = self._served(job.model)
        stage = served.stage
        if stage is None:
            raise not_supported("this pipeline finds documents and does not rerank given ones; use POST /search")
        self._check_count("documents", len(job.documents))
        started = time.perf_counter()
        documents, n_cut, asks = await self._fitted(served, job)
        took = Took(len(job.documents), tokenize_seconds=time.perf_counter() - started if asks else 0.0)
        explains = job.explain and served.can_explain
        work: RuleWork | ListWork
        if isinstance(stage, Rerank) and served.is_stepwise:
            work = RuleWork(served, stage, job.query, documents, explains=explains)
            outcome = await self._run(work, client, took)
            order, raw = work.ranked(outcome)
            counts = outcome.counts
        else:
            work, counts = ListWork(served, [(job.query, documents)], explains=explains), {}
            await self._run(work, client, took)
            ((order, raw),) = work.ranked()
        scale, n = served.scale, len(order)
        results = [Scored(index, scale(value, n), value) for index, value in zip(order, raw, strict=True)]
        if not all(math.isfinite(each.raw) for each in results):
            raise failed("the model gave a score that is not a finite number")
        took.truncated += n_cut
        warnings = _warnings(took.truncated, work.lost if isinstance(work, RuleWork) else 0, work.unheard)
        if job.explain and not explains:
            warnings.append("nothing is explained: this model scores and writes nothing")
        return Reranked(served, took, results, warnings, counts, work.reasoning if explains else None)

    async def score(self, model: object, jobs: Sequence[RerankJob], client: str = "") -> Reranked:
        """The scores of pairs with different queries, each a job of one document, in the order given.

        Raises:
            ApiError: the model scores documents only beside others, or as by `rerank`.
        """
        served = self._served(model)
        if served.stage is None or served.scoring != "pointwise":
            raise not_supported("this model compares documents of one query; send one query, or use POST /v1/rerank")
        self._check_count("documents", len(jobs))
        started = time.perf_counter()
        fitted = [await self._fitted(served, job) for job in jobs]
        asks = any(asked for _, _, asked in fitted)
        took = Took(len(jobs), tokenize_seconds=time.perf_counter() - started if asks else 0.0)
        pairs = [(job.query, documents[0]) for job, (documents, _, _) in zip(jobs, fitted, strict=True)]
        scale = served.scale
        if served.is_stepwise:
            work = PairWork(served, pairs)
            await self._run(work, client, took)
            raw = work.in_order()
        else:
            lists = ListWork(served, [(query, [document]) for query, document in pairs])
            await self._run(lists, client, took)
            raw = [scores[0] if scores else math.nan for _, scores in lists.ranked()]
        if not all(map(math.isfinite, raw)):
            raise failed("the model gave a score that is not a finite number")
        took.truncated += sum(n_cut for _, n_cut, _ in fitted)
        scored = [Scored(index, scale(value, 1), value) for index, value in enumerate(raw)]
        return Reranked(served, took, scored, _warnings(took.truncated))

    async def search(self, model: object, queries: Sequence[str], k: int, client: str = "") -> Searched:
        """What the pipeline finds for each query.

        Raises:
            ApiError: the model searches nothing, or as by `rerank`.
        """
        served = self._served(model)
        if served.search is None:
            raise not_supported("this model reranks given documents and finds none; use POST /v1/rerank")
        self._check_count("queries", len(queries))
        each = max(1, self.queue.limits.max_batch_tokens // QUERIES_AT_ONCE)
        work, took = SearchWork(served, queries, k, each), Took(len(queries))
        await self._run(work, client, took)
        return Searched(served, took, work.in_order())

    async def embed(self, job: EmbedJob, client: str = "", *, status: int = 404, tei_status: int = 424) -> Embedded:
        """The vectors of texts.

        Raises:
            ApiError: the model makes none, or as by `rerank`.
        """
        served = self._served(job.model)
        if not served.is_encoder:
            raise not_supported("this model makes no vectors", status=status, tei_status=tei_status)
        if not job.texts:
            raise nothing_given("input")
        self._check_count("input", len(job.texts))
        dimension = int(served.facts.get("dimension", 0))
        if job.dimensions is not None and job.dimensions > dimension:
            raise bad_field("dimensions", f"dimensions is {job.dimensions}; the model's vectors have {dimension}")
        truncates = self.settings.auto_truncate if job.truncate is None else job.truncate
        if not truncates:
            found = await self._ask_now(served, "fit", query="", documents=list(job.texts), **_UNCUT)
            if found["long"]:
                raise bad_field("truncate", f"{found['long']} texts are longer than {found['limit']} tokens")
        took = Took(len(job.texts))
        work = EmbedWork(served, job.texts, job.side)
        await self._run(work, client, took)
        vectors = [_shortened(base64.b64decode(each), job.dimensions) for each in work.in_order()]
        return Embedded(served, took, vectors)

    async def tokenize(self, model: object, texts: Sequence[str], *, special: bool) -> list[list[dict[str, Any]]]:
        """The tokens of each text, as TEI tells of them."""
        served = self._served(model)
        self._check_count("inputs", len(texts))
        found = await self._ask_now(served, "tokenize", texts=list(texts), special=special)
        tokens: list[list[dict[str, Any]]] = found["tokens"]
        return tokens

    def _served(self, model: object) -> Served:
        if self.is_stopping:
            raise not_ready("the server is shutting down")
        return self.catalogue.find(model)

    def _check_count(self, what: str, n: int) -> None:
        if n == 0:
            raise nothing_given(what)
        most = self.settings.max_documents
        if n > most:
            raise bad_field(what, f"{what} has {n} entries; the limit is {most} (max_client_batch_size)")

    async def _run(self, work: Work, client: str, took: Took) -> Any:
        try:
            outcome = await self.queue.run(work, client)
        except RerankError as error:  # a rule that fails, fails its own list
            logger.error("a rule failed: %s", error)
            raise failed("the rule failed; the server's log says more") from error
        took.tokens, took.truncated = work.tokens, work.truncated
        took.queue_seconds, took.inference_seconds = work.queue_seconds, work.inference_seconds
        return outcome

    # -- texts ------------------------------------------------------------

    async def _fitted(self, served: Served, job: RerankJob) -> tuple[Sequence[str], int, bool]:
        """The documents as they will be asked about, how many were cut here, and whether the tokenizer was asked.

        Raises:
            ApiError: the query leaves no room for a document; or a pair is too long, and nothing may be cut.
        """
        truncates = self.settings.auto_truncate if job.truncate is None else job.truncate
        special_wish = job.per_document is not None or job.per_pair is not None or job.side != "right" or not truncates
        limit = served.limit
        # A token has a byte at least, so shorter queries certainly fit.
        long_query = limit is not None and len(job.query.encode("utf-8", "surrogatepass")) > limit // 2
        if not special_wish and not long_query:
            return job.documents, 0, False
        if limit is None:
            raise bad_request("this model's tokenizer is not at hand, so texts cannot be counted or cut beforehand")
        wish = {"per_document": job.per_document, "per_pair": job.per_pair, "side": job.side}
        found = await self._ask_now(served, "fit", query=job.query, documents=list(job.documents), **wish)
        if not found["fits"]:
            raise bad_field(
                "query",
                f"the query has {found['query_tokens']} tokens, which leaves no room for a document: query and "
                f"document may have {found['limit']} together",
            )
        if not truncates and found["long"]:
            raise bad_field(
                "truncation",
                f"{found['long']} pairs are longer than {found['limit']} tokens, and truncation is off",
            )
        documents: list[str] = found["documents"]
        return documents, int(found["cut"]), True

    async def _ask_now(self, served: Served, verb: str, **what: Any) -> Message:
        """What the worker's tokenizers say, past the queue."""
        started = time.perf_counter()
        message = {"do": verb, "target": served.name, **what}
        try:
            async with asyncio.timeout(self.settings.queue_timeout):
                await self.supervisor.ready()
                try:
                    return await self.supervisor.ask(message)
                except WorkerGoneError:  # hardly by this message: another worker is asked
                    await self.supervisor.ready()
                    return await self.supervisor.ask(message)
        except TimeoutError:
            raise not_ready("no worker is ready") from None
        except WorkerGoneError:
            raise not_ready("the model's process ended; another is started") from None
        except WorkerFailedError as error:
            if error.kind == "DataError":
                raise not_supported("this model's tokenizer is not at hand") from None
            logger.error("%s failed: %s", verb, error)
            raise failed("the tokenizer failed; the server's log says more") from None
        finally:
            self.metrics.tokenize_seconds.observe(time.perf_counter() - started)


_UNCUT = {"per_document": None, "per_pair": None, "side": "right"}


def _shortened(vector: bytes, dimensions: int | None) -> bytes:
    """The first numbers of a vector, brought to length 1 again."""
    if dimensions is None or dimensions * 4 == len(vector):
        return vector
    import numpy as np

    kept = np.frombuffer(vector, dtype="<f4")[:dimensions]
    norm = float(np.linalg.norm(kept))
    return (kept / norm if norm else kept).astype("<f4").tobytes()


def _warnings(truncated: int, lost: int = 0, unheard: int = 0) -> list[str]:
    found = []
    if truncated:
        found.append(f"{truncated} document{' was' if truncated == 1 else 's were'} truncated")
    if lost:
        found.append(f"{lost} answer{'' if lost == 1 else 's'} of the model could not be read; documents kept places")
    if unheard:
        found.append(f"the reasoning of {unheard} answers was left out: a reply holds {MOST_REASONING:,} characters")
    return found
