"""The routes: what is asked over HTTP, read by its dialect, done by the service, and written as the client wants it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rerank import __version__
from rerank.serve import info
from rerank.serve.auth import Keys, check_host
from rerank.serve.body import read_json
from rerank.serve.dialects import embeddings, objects, pairs, searches, tei
from rerank.serve.errors import ApiError, Shape, bad_request
from rerank.serve.jobs import Answered, Reranked, RerankJob
from rerank.serve.metrics import CONTENT_TYPE
from rerank.serve.openapi import document, page_of
from rerank.serve.service import Service
from rerank.serve.static import POLICY, page_files
from rerank.serve.tracing import Handled, Tracing

logger = logging.getLogger("rerank.serve.requests")

T = TypeVar("T")
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_PROBES = ("/health", "/ping", "/livez", "/readyz", "/metrics")
"""Asked every few seconds, so not traced, and logged for debugging alone."""
_OPEN = (*_PROBES, "/docs", "/openapi.json", "/version")
"""What needs no key: the same of every server of a version, and asked by probes, or by browsers, which bring none."""
_CLIENT_LEFT = 499
"""As nginx calls it; nobody reads the answer."""


class JsonResponse(Response):
    """JSON without NaN; halves of surrogate pairs, which UTF-8 has no form for, are escaped as they came."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


class ClientLeftError(Exception):
    """The client hung up before it was answered."""


@dataclass
class Call:
    """One request."""

    request: Request
    service: Service
    id: str
    client: str
    shape: Shape = "object"
    """In which dialect errors are told."""
    started: float = 0.0
    answered: Answered | None = None
    """What the service made of it."""
    work: tuple[float, float] = (0.0, 0.0)
    """When the service was given it, and was done."""

    async def done(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` gives; it is cancelled when the client hangs up.

        Raises:
            ClientLeftError: it did.
        """
        began = time.perf_counter()
        working = asyncio.ensure_future(work)
        leaving = asyncio.ensure_future(_left(self.request))
        try:
            await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise ClientLeftError
            found = working.result()
            self.work = (began, time.perf_counter())
            if isinstance(found, Answered):
                self.answered = found
            return found
        finally:
            for task in (working, leaving):
                task.cancel()
            await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


Handler = Callable[[Call, Mapping[str, Any]], Awaitable[Response]]


# -- reranking ------------------------------------------------------------


async def rerank(call: Call, body: Mapping[str, Any], version: str = "1") -> Response:
    """TEI's dialect where the body has `texts`, else that with `documents`."""
    if "texts" in body and "documents" not in body and version == "1":
        call.shape = "tei"
        asked = tei.read_rerank(body)
        found = await call.done(call.service.rerank(asked.job, call.client))
        return JsonResponse(tei.write_rerank(asked, found), headers=_tei_headers(call, asked.job, found))
    request = objects.read_rerank(body, version)
    found = await call.done(call.service.rerank(request.job, call.client))
    return JsonResponse(objects.write_rerank(request, found, call.id))


async def rerank_v2(call: Call, body: Mapping[str, Any]) -> Response:
    """Cohere's second version: documents are never sent back."""
    return await rerank(call, body, "2")


async def score(call: Call, body: Mapping[str, Any]) -> Response:
    """Pairs in the order given."""
    asked = pairs.read_score(body)
    found = await call.done(_scored(call, asked))
    scores = [0.0] * len(asked.documents)
    for each in found.results:
        scores[each.index] = each.raw if asked.raw_scores else each.score
    return JsonResponse(pairs.write_score(found.served.name, scores, found.took.tokens, call.id))


async def _scored(call: Call, asked: pairs.ScoreRequest) -> Reranked:
    options: dict[str, Any] = {"per_pair": asked.per_pair, "side": asked.side, "truncate": asked.truncate}
    if len(set(asked.queries)) == 1:
        job = RerankJob(asked.queries[0], asked.documents, asked.model, **options)
        return await call.service.rerank(job, call.client)
    rows = zip(asked.queries, asked.documents, strict=True)
    jobs = [RerankJob(query, (text,), asked.model, **options) for query, text in rows]
    return await call.service.score(asked.model, jobs, call.client)


async def predict(call: Call, body: Mapping[str, Any]) -> Response:
    """TEI's classification of pairs."""
    call.shape = "tei"
    asked = tei.read_predict(body)
    model = body.get("model")
    jobs = [RerankJob(left, (right,), model, side=asked.side, truncate=asked.truncate) for left, right in asked.pairs]
    found = await call.done(call.service.score(model, jobs, call.client))
    scores = [each.raw if asked.raw_scores else each.score for each in found.results]
    return JsonResponse(tei.write_predict(asked, scores))


async def invocations(call: Call, body: Mapping[str, Any]) -> Response:
    """SageMaker's one path: what is wanted follows from the body and the model."""
    if "inputs" not in body:
        return await rerank(call, body)
    if call.service.catalogue.find(body.get("model")).is_encoder:
        return await embed(call, body)
    return await predict(call, body)


async def search(call: Call, body: Mapping[str, Any]) -> Response:
    """What a pipeline finds for queries."""
    asked = searches.read_search(body)
    found = await call.done(call.service.search(asked.model, asked.queries, asked.k, call.client))
    return JsonResponse(searches.write_search(asked, found.served.name, found.lists, found.took, call.id))


# -- vectors and tokens ------------------------------------------------------------


async def embed(call: Call, body: Mapping[str, Any]) -> Response:
    """TEI's vectors."""
    call.shape = "tei"
    found = await call.done(call.service.embed(tei.read_embed(body), call.client))
    return JsonResponse([embeddings.numbers(vector) for vector in found.vectors])


async def v1_embeddings(call: Call, body: Mapping[str, Any]) -> Response:
    """OpenAI's vectors."""
    job, as_base64 = embeddings.read_embeddings(body)
    found = await call.done(call.service.embed(job, call.client))
    return JsonResponse(embeddings.write_embeddings(found, as_base64=as_base64))


async def tokenize(call: Call, body: Mapping[str, Any]) -> Response:
    """TEI's tokens."""
    call.shape = "tei"
    texts, special = tei.read_tokenize(body)
    return JsonResponse(await call.done(call.service.tokenize(body.get("model"), texts, special=special)))


# -- about the server ------------------------------------------------------------


async def health(call: Call, body: Mapping[str, Any]) -> Response:
    """200 while requests can be answered."""
    if call.service.is_ready:
        return JsonResponse({"status": "ok"})
    said = "shutting down" if call.service.is_stopping else "not ready"
    return JsonResponse({"status": said}, 503, {"Retry-After": "5"})


async def alive(call: Call, body: Mapping[str, Any]) -> Response:
    """200 while this process runs."""
    return JsonResponse({"status": "ok"})


async def metrics(call: Call, body: Mapping[str, Any]) -> Response:
    """For Prometheus."""
    return Response(call.service.metrics.text(), headers={"Content-Type": CONTENT_TYPE})


async def tei_info(call: Call, body: Mapping[str, Any]) -> Response:
    """What is served, and with which limits."""
    return JsonResponse(info.tei_info(call.service, call.request.query_params.get("model")))


async def v1_models(call: Call, body: Mapping[str, Any]) -> Response:
    """What can be asked for."""
    return JsonResponse(info.model_list(call.service))


async def version(call: Call, body: Mapping[str, Any]) -> Response:
    """This package's version."""
    return JsonResponse({"version": __version__})


async def openapi(call: Call, body: Mapping[str, Any]) -> Response:
    """The document that describes all this."""
    return JsonResponse(document())


async def docs(call: Call, body: Mapping[str, Any]) -> Response:
    """The same to read."""
    return Response(page_of(document()), media_type="text/html", headers={"Content-Security-Policy": POLICY})


POSTS: dict[str, Handler] = {
    "/rerank": rerank,
    "/v1/rerank": rerank,
    "/v2/rerank": rerank_v2,
    "/reranking": rerank,
    "/v1/reranking": rerank,
    "/score": score,
    "/v1/score": score,
    "/predict": predict,
    "/": invocations,
    "/invocations": invocations,
    "/search": search,
    "/v1/search": search,
    "/embed": embed,
    "/v1/embeddings": v1_embeddings,
    "/embeddings": v1_embeddings,
    "/tokenize": tokenize,
}
"""Every path that takes a body."""
GETS: dict[str, Handler] = {
    "/health": health,
    "/ping": health,
    "/readyz": health,
    "/livez": alive,
    "/metrics": metrics,
    "/info": tei_info,
    "/v1/models": v1_models,
    "/version": version,
    "/openapi.json": openapi,
    "/docs": docs,
}
"""Every path that takes none."""


def create_app(service: Service, tracing: Tracing | None = None) -> ASGIApp:
    """The ASGI application in front of `service`; the caller opens and closes it, and `tracing` too."""
    routes = [Route(path, _posted(handler), methods=["POST"]) for path, handler in POSTS.items()]
    routes += [Route(path, _got(handler), methods=["GET"]) for path, handler in GETS.items()]
    files = page_files()
    routes += [Route(path, _static(response), methods=["GET"]) for path, response in files.items()]
    return Gate(Router(routes, redirect_slashes=False), service, {*POSTS, *GETS, *files}, set(files), tracing)


def _posted(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        call: Call = request.state.call
        settings = call.service.settings
        body = await read_json(request.headers, request.stream(), settings.max_body_bytes, settings.body_timeout)
        if not isinstance(body, dict):
            raise bad_request("the body must be a JSON object")
        return await handler(call, body)

    return answer


def _got(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return await handler(request.state.call, {})

    return answer


def _static(response: Response) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return response

    return answer


def _tei_headers(call: Call, job: RerankJob, found: Reranked) -> dict[str, str]:
    characters = len(job.query) + sum(map(len, job.documents))
    return tei.headers(found.took, time.perf_counter() - call.started, characters, call.service.device)


class Gate:
    """What every request passes: its id, the checks of host and key, errors as JSON, metrics, a log line, its trace."""

    def __init__(
        self, app: ASGIApp, service: Service, paths: set[str], open_paths: set[str], tracing: Tracing | None
    ) -> None:
        self._app, self._service, self._paths, self._tracing = app, service, paths, tracing
        self._open = {*_OPEN, *open_paths}
        self._keys = Keys(service.settings.keys())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if len(scope["path"]) > 1 and scope["path"].endswith("/"):
            scope["path"] = scope["path"].rstrip("/") or "/"
        scope["app"] = self  # so that the router raises for what it does not know
        request = Request(scope, receive)
        given = request.headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        call = Call(request, self._service, request_id, "", started=time.perf_counter())
        scope.setdefault("state", {})["call"] = call
        status, metrics = 0, self._service.metrics

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = ((b"x-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff"))
                message = {**message, "headers": [*message.get("headers", ()), *extra]}
            await send(message)

        metrics.requests_in_flight.inc()
        try:
            await self._answered(call, scope, receive, sending, lambda: status != 0)
        finally:
            metrics.requests_in_flight.dec()
            self._tell(call, scope, status or _CLIENT_LEFT)

    def _tell(self, call: Call, scope: Scope, status: int) -> None:
        """Tells metrics, log and traces of a request that was answered."""
        metrics, seconds = self._service.metrics, time.perf_counter() - call.started
        path = scope["path"] if scope["path"] in self._paths else "other"
        method = scope["method"] if scope["method"] in ("GET", "POST", "HEAD") else "other"
        metrics.requests.labels(path, method, str(status)).inc()
        metrics.request_seconds.labels(path).observe(seconds)
        told = {"request_id": call.id, "method": method, "path": path, "status": status, "seconds": round(seconds, 4)}
        is_probe = path in _PROBES
        logger.log(logging.DEBUG if is_probe else logging.INFO, "request", extra={"fields": told})
        if self._tracing is not None and not is_probe:
            work = (moment - call.started for moment in call.work)
            self._tracing.tell(
                Handled(call.id, method, path, status, call.request.headers, seconds, call.answered, *work)
            )

    async def _answered(
        self, call: Call, scope: Scope, receive: Receive, send: Send, has_begun: Callable[[], bool]
    ) -> None:
        error: ApiError
        try:
            self._check(call, scope)
            await self._app(scope, receive, send)
            return
        except (ClientLeftError, ClientDisconnect):
            return
        except ApiError as refused:
            error = refused
        except HTTPException as refused:
            error = _of_status(refused.status_code)
            error.headers |= dict(refused.headers or {})
        except Exception:  # the last resort: whatever it is, the client is told, and the log where it was
            logger.exception("unexpected", extra={"fields": {"request_id": call.id}})
            error = ApiError(500, "internal_error", "something went wrong in the server; its log says where")
        if has_begun():
            return
        if error.reason is not None:
            self._service.metrics.rejected.labels(error.reason).inc()
        response = JsonResponse(error.body(call.shape, call.id), error.status_in(call.shape), error.headers)
        with contextlib.suppress(OSError):
            await response(scope, receive, send)

    def _check(self, call: Call, scope: Scope) -> None:
        headers, settings = call.request.headers, self._service.settings
        if settings.is_loopback:
            check_host(headers.get("host"), settings.allowed_hosts)
        is_open = scope["path"] in self._open and scope["method"] in ("GET", "HEAD")
        owner = "" if is_open else self._keys.owner(headers.get("authorization"))
        address = scope.get("client") or ("", 0)
        call.client = f"{owner} {address[0]}"


def _of_status(status: int) -> ApiError:
    if status == 404:
        return ApiError(404, "not_found", "no such path; GET /docs lists those there are")
    if status == 405:
        return ApiError(405, "method_not_allowed", "this path takes another method; GET /docs lists them")
    return ApiError(status, "invalid_request_error", "the request cannot be answered")
