"""Spans for OpenTelemetry: what each request took, sent to a collector; never the text of a query or document.

OpenTelemetry's own variables alone say where to (`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_SERVICE_NAME`,
`OTEL_TRACES_SAMPLER`, ...), and nothing of it is imported where they name no collector.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rerank import __version__
from rerank.serve.jobs import Answered

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

logger = logging.getLogger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_SPOKEN = "http/protobuf"
_NANOSECONDS = 1_000_000_000
_LAST_WORDS_SECONDS = 5.0


@dataclass(frozen=True)
class Handled:
    """A request that was answered, or whose client left."""

    id: str
    method: str
    route: str
    status: int
    headers: Mapping[str, str]
    seconds: float
    """From its beginning until now."""
    answered: Answered | None
    """What it came to, where it came to something."""
    work_began: float = 0.0
    """Seconds after the request began that the service was given it."""
    work_ended: float = 0.0

    def steps(self) -> Iterator[tuple[str, float, float]]:
        """The parts of the work, one after the other: name, beginning and end in seconds after the request began."""
        if self.answered is None:
            return
        took = self.answered.took
        queued = self.work_began + took.tokenize_seconds
        computed = queued + took.queue_seconds
        if took.tokenize_seconds:
            yield "tokenize", self.work_began, queued
        yield "queue", queued, computed
        yield "inference", computed, max(computed, self.work_ended)


class Tracing:
    """Tells a collector of requests.

    Args:
        provider: sends the spans; closed with this.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("rerank", __version__)

    def tell(self, request: Handled) -> None:
        """Tells of a request that ends now, in the trace that its headers name (`traceparent`)."""
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context

        began = time.time_ns() - int(request.seconds * _NANOSECONDS)
        span = self._tracer.start_span(
            f"{request.method} {request.route}",
            extract(dict(request.headers)),
            SpanKind.SERVER,
            {
                "http.request.method": request.method,
                "http.route": request.route,
                "http.response.status_code": request.status,
                "rerank.request_id": request.id,
            },
            start_time=began,
        )
        if request.status >= 500:
            span.set_status(StatusCode.ERROR)
        if request.answered is not None:
            took = request.answered.took
            span.set_attributes(
                {
                    "rerank.model": request.answered.served.name,
                    "rerank.documents": took.n_documents,
                    "rerank.tokens": took.tokens,
                    "rerank.truncated_documents": took.truncated,
                    "rerank.batch_seconds": took.inference_seconds,
                }
            )
        inside = set_span_in_context(span)
        for name, start, end in request.steps():
            step = self._tracer.start_span(name, inside, start_time=began + int(start * _NANOSECONDS))
            step.end(began + int(end * _NANOSECONDS))
        span.end(began + int(request.seconds * _NANOSECONDS))

    def close(self, seconds: float = _LAST_WORDS_SECONDS) -> None:
        """Sends what was not sent yet, for so long at most: a collector that is away must not hold up the end."""
        sending = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        sending.start()
        sending.join(seconds)


def open_tracing(environment: Mapping[str, str]) -> Tracing | None:
    """What tells the collector that the variables name; None where they name none, or it cannot be told.

    >>> open_tracing({}) is None
    True
    """
    named = next((name for name in _ENDPOINTS if environment.get(name)), None)
    is_off = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if named is None or is_off or environment.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
        return None
    for name in _PROTOCOLS:
        if environment.get(name, _SPOKEN) != _SPOKEN:
            logger.warning("%s is set, but no traces are sent: %s must be %s", named, name, _SPOKEN)
            return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        logger.warning(
            "%s is set, but no traces are sent: %s is not installed; pip install 'rerank-pipelines[otel]'",
            named, error.name,
        )  # fmt: skip
        return None
    resource = Resource.create({"service.version": __version__})
    if str(resource.attributes["service.name"]).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": "rerank"}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)
