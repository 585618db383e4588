"""What is counted for Prometheus: base units, bounded labels, never a text."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_PAIRS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_TOKENS = (64, 256, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
_RATIOS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)


class Metrics:
    """The metrics of one server, in a registry of their own.

    >>> metrics = Metrics()
    >>> metrics.cancelled.inc()
    >>> b"rerank_cancelled_total 1.0" in metrics.text()
    True
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def histogram(name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, what, registry=registry, buckets=buckets)

        self.requests = Counter(
            "rerank_http_requests", "Requests that were answered.", ["path", "method", "status"], registry=registry
        )
        self.request_seconds = Histogram(
            "rerank_http_request_duration_seconds",
            "From a request's first byte to the end of its answer.",
            ["path"],
            registry=registry,
            buckets=_SECONDS,
        )
        self.requests_in_flight = Gauge(
            "rerank_http_requests_in_flight", "Requests that are being answered.", registry=registry
        )
        self.queue_pairs = Gauge("rerank_queue_pairs", "Documents that wait for a batch.", registry=registry)
        self.queue_tokens = Gauge("rerank_queue_tokens", "Tokens, as estimated, that wait.", registry=registry)
        self.queue_wait = histogram("rerank_queue_wait_seconds", "A request's wait for its first batch.", _SECONDS)
        self.tokenize_seconds = histogram("rerank_tokenize_seconds", "Counting and cutting texts beforehand.", _SECONDS)
        self.inference_seconds = histogram("rerank_inference_seconds", "A batch in the worker.", _SECONDS)
        self.batch_pairs = histogram("rerank_batch_pairs", "Questions of a batch.", _PAIRS)
        self.batch_tokens = histogram("rerank_batch_tokens", "Tokens that a batch fed to the model.", _TOKENS)
        self.padding = histogram("rerank_batch_padding_ratio", "Share of a batch's tokens that is padding.", _RATIOS)
        self.pairs = Counter("rerank_pairs", "Questions that were answered.", ["model"], registry=registry)
        self.tokens = Counter("rerank_tokens", "Tokens that were fed to the model.", ["model"], registry=registry)
        self.truncated = Counter("rerank_truncated_pairs", "Documents that were cut.", ["model"], registry=registry)
        self.rejected = Counter("rerank_rejected", "Requests that were refused.", ["reason"], registry=registry)
        self.cancelled = Counter("rerank_cancelled", "Requests whose client left.", registry=registry)
        self.restarts = Gauge("rerank_worker_restarts", "Workers that had to be replaced.", registry=registry)
        self.ready = Gauge("rerank_ready", "1 while requests can be answered.", registry=registry)
        self.model_info = Gauge(
            "rerank_model_info",
            "1 for each model that is served.",
            ["model", "revision", "dtype", "device", "version"],
            registry=registry,
        )

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)
