"""Traces: spans of requests, sent where OpenTelemetry's variables say; without them nothing of it is imported."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from serve.stand_in import Server, StandIn, model_folder, serving

from rerank.serve.settings import ServedModel
from rerank.serve.tracing import Tracing, open_tracing

pytestmark = pytest.mark.needs("starlette", "prometheus_client", "httpx2")

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
BODY = {"query": "the SECRET query", "documents": ["SECRET =1", "SECRET =2", "SECRET =0"]}
ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}


@pytest.fixture
def model(tmp_path):
    return ServedModel(model_folder(tmp_path / "small-ce"))


def traced(main: Callable[[Server], Any], *models: ServedModel, worker: StandIn | None = None, **settings: Any) -> Any:
    """The spans that `main` caused, by name."""
    reason = "the extra otel brings it"
    trace = pytest.importorskip("opentelemetry.sdk.trace", reason=reason)
    export = pytest.importorskip("opentelemetry.sdk.trace.export", reason=reason)
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter", reason=reason)
    exporter = memory.InMemorySpanExporter()
    provider = trace.TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(export.SimpleSpanProcessor(exporter))

    async def run() -> None:
        async with serving(*models, worker=worker, tracing=Tracing(provider), **settings) as server:
            await main(server)

    asyncio.run(run())
    return {span.name: span for span in exporter.get_finished_spans()}


# -- spans ------------------------------------------------------------


def test_a_request_is_a_span_with_its_steps_in_the_callers_trace(model):
    async def main(server: Server) -> None:
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "r1"}
        reply = await server.post("/v1/rerank", {**BODY, "truncation": True, "max_tokens_per_doc": 9}, **headers)
        assert reply.status_code == 200

    spans = traced(main, model)
    assert list(spans) == ["tokenize", "queue", "inference", "POST /v1/rerank"]
    *steps, whole = spans.values()
    assert f"{whole.context.trace_id:032x}" == TRACE
    assert f"{whole.parent.span_id:016x}" == PARENT
    assert whole.kind.name == "SERVER"
    attributes = dict(whole.attributes)
    assert attributes.pop("rerank.batch_seconds") == 0.001
    assert attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/rerank",
        "http.response.status_code": 200,
        "rerank.request_id": "r1",
        "rerank.model": "small-ce",
        "rerank.documents": 3,
        "rerank.tokens": 24,
        "rerank.truncated_documents": 0,
    }
    for step in steps:
        assert step.parent.span_id == whole.context.span_id
    moments = [moment for step in steps for moment in (step.start_time, step.end_time)]
    assert [whole.start_time, *moments, whole.end_time] == sorted([whole.start_time, *moments, whole.end_time])
    assert "SECRET" not in str([span.to_json() for span in spans.values()])


def test_a_refusal_is_a_span_without_steps_and_a_failure_an_error(model):
    async def main(server: Server) -> None:
        assert (await server.post("/v2/rerank", {"query": "", "documents": []})).status_code == 400
        assert (await server.post("/score", {"text_1": "q", "text_2": ["SPOILED"]})).status_code == 500
        assert (await server.client.get("/SECRET")).status_code == 404

    spans = traced(main, model)
    assert list(spans) == ["POST /v2/rerank", "POST /score", "GET other"]
    assert [span.attributes["http.response.status_code"] for span in spans.values()] == [400, 500, 404]
    assert [span.status.status_code.name for span in spans.values()] == ["UNSET", "ERROR", "UNSET"]
    assert all(span.parent is None for span in spans.values())
    assert "SECRET" not in str([span.to_json() for span in spans.values()])


def test_searches_and_vectors_are_traced_too(tmp_path):
    encoder = ServedModel(model_folder(tmp_path / "encoder", "dense"))

    async def main(server: Server) -> None:
        assert (await server.post("/search", {"queries": ["a", "b"], "model": "bm25"})).status_code == 200
        assert (await server.post("/embed", {"inputs": ["a"], "model": "encoder"})).status_code == 200

    spans = traced(main, encoder, ServedModel("bm25"), worker=StandIn(facts={"dimension": 3}))
    for name, served, n in (("POST /search", "bm25", 2), ("POST /embed", "encoder", 1)):
        attributes = spans[name].attributes
        assert (attributes["rerank.model"], attributes["rerank.documents"]) == (served, n)


def test_probes_are_not_traced_and_a_broken_traceparent_begins_a_trace(model):
    async def main(server: Server) -> None:
        for path in ("/health", "/metrics", "/livez"):
            await server.client.get(path)
        await server.client.get("/info", headers={"traceparent": "00-nonsense"})

    spans = traced(main, model)
    assert list(spans) == ["GET /info"]
    assert spans["GET /info"].parent is None


# -- where to ------------------------------------------------------------


def test_spans_are_sent_where_the_variables_say(monkeypatch, model):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra otel brings it")
    seen: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        thread = threading.Thread(target=collector.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        tracing = open_tracing(os.environ)
        assert tracing is not None

        async def main() -> None:
            async with serving(model, tracing=tracing) as server:
                await server.post("/v1/rerank", BODY)

        asyncio.run(main())
        tracing.close()
        collector.shutdown()
        thread.join()
    assert [path for path, _ in seen] == ["/v1/traces"]
    ((_, content),) = seen
    for said in (b"rerank", b"deployment.environment.name", b"POST /v1/rerank", b"inference"):
        assert said in content
    assert b"SECRET" not in content


def test_a_collector_that_does_not_answer_holds_nothing_up(monkeypatch, model):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra otel brings it")

    async def main(tracing: Tracing) -> None:
        async with serving(model, tracing=tracing) as server:
            await server.post("/v1/rerank", BODY)

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
        tracing = open_tracing(os.environ)
        assert tracing is not None
        asyncio.run(main(tracing))
        tracing.close(0.05)
        (sending,) = (thread for thread in threading.enumerate() if thread.name == "traces")
        assert sending.daemon
    sending.join(10)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_SERVICE_NAME": "mine"},
        {**ENDPOINT, "OTEL_SDK_DISABLED": "true"},
        {**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_nothing_is_told_where_no_collector_is_named(environment, caplog):
    assert open_tracing(environment) is None
    assert not caplog.records


def test_a_missing_extra_is_logged_with_the_remedy(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with caplog.at_level(logging.WARNING, "rerank.serve.tracing"):
        assert open_tracing(ENDPOINT) is None
    (record,) = caplog.records
    assert record.getMessage().startswith("OTEL_EXPORTER_OTLP_ENDPOINT is set, but no traces are sent: opentelemetry.")
    assert record.getMessage().endswith("pip install 'rerank-pipelines[otel]'")


def test_another_protocol_is_refused_with_a_log_line(caplog):
    with caplog.at_level(logging.WARNING, "rerank.serve.tracing"):
        assert open_tracing({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}) is None
    assert "OTEL_EXPORTER_OTLP_PROTOCOL must be http/protobuf" in caplog.text


def test_without_a_collector_nothing_of_opentelemetry_is_imported(model):
    code = f"""
import asyncio, os, sys
os.environ = {{name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}}
import rerank.serve.server
from rerank.serve.settings import ServedModel
from rerank.serve.tracing import open_tracing
from serve.stand_in import serving

async def main():
    async with serving(ServedModel({model.model!r}), tracing=open_tracing(os.environ)) as server:
        reply = await server.post("/v1/rerank", {BODY!r}, traceparent="00-{TRACE}-{PARENT}-01")
        assert reply.status_code == 200

asyncio.run(main())
loaded = [name for name in sys.modules if name.partition(".")[0] in ("opentelemetry", "google")]
assert not loaded, loaded
"""
    tests = str(Path(__file__).parents[1])
    subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {tests!r})\n{code}"], check=True)
