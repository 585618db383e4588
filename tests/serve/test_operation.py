"""Errors on every path, keys, hosts, ids, health, metrics and log lines."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
from typing import Any

import pytest
from serve.stand_in import QUICK, Server, StandIn, model_folder, until, with_server

from rerank.serve.app import GETS, POSTS
from rerank.serve.logs import log_to
from rerank.serve.settings import ServedModel

pytestmark = pytest.mark.needs("starlette", "prometheus_client", "httpx2")

BODY = {"query": "SECRET query", "documents": ["SECRET document =1", "b =2"]}


@pytest.fixture
def model(tmp_path):
    return ServedModel(model_folder(tmp_path / "small-ce"))


# -- bodies ------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"nothing", b"\xff\xfe", b'{"query": NaN}', b"[" * 100_000, b"[1]", b"5", b"null", b"1" * 10_000,
     b'\xef\xbb\xbf{"query": "q"}', b'{"query": "\xed\xa0\x80"}'],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/score", "/embed"])
def test_what_is_no_json_object_is_400(model, content, path):
    async def main(server: Server) -> None:
        reply = await server.client.post(path, content=content, headers={"content-type": "application/json"})
        assert reply.status_code == 400
        assert reply.json()["error"]["type"] == "invalid_request_error"

    with_server(main, model)


@pytest.mark.parametrize("kind", ["text/plain", "", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_bodies_not_declared_as_json_are_415(model, kind):
    async def main(server: Server) -> None:
        content = json.dumps(BODY).encode()
        reply = await server.client.post("/v1/rerank", content=content, headers={"content-type": kind})
        assert reply.status_code == 415
        assert reply.json()["error"]["type"] == "unsupported_media_type"
        with_charset = {"content-type": "Application/JSON; charset=utf-8"}
        assert (await server.client.post("/v1/rerank", content=content, headers=with_charset)).status_code == 200
        zipped = {"content-type": "application/json", "content-encoding": "gzip"}
        assert (await server.client.post("/v1/rerank", content=content, headers=zipped)).status_code == 415

    with_server(main, model)


def test_large_bodies_are_413_declared_or_not(model):
    async def chunks() -> Any:
        for _ in range(50):
            yield b" " * 100

    async def main(server: Server) -> None:
        json_type = {"content-type": "application/json"}
        declared = await server.client.post("/v1/rerank", content=b" " * 5000, headers=json_type)
        chunked = await server.client.post("/v1/rerank", content=chunks(), headers=json_type)
        for reply in (declared, chunked):
            assert reply.status_code == 413
            assert reply.json()["error"]["type"] == "payload_too_large"
        assert 'rerank_rejected_total{reason="too_large"} 2.0' in (await server.client.get("/metrics")).text

    with_server(main, model, max_body_bytes=2000)


def test_a_body_that_does_not_come_is_given_up(model):
    async def slow() -> Any:
        yield b"{"
        await asyncio.sleep(30)

    async def main(server: Server) -> None:
        reply = await server.client.post("/v1/rerank", content=slow(), headers={"content-type": "application/json"})
        assert reply.status_code == 408

    with_server(main, model, body_timeout=0.05)


# -- paths ------------------------------------------------------------


def test_unknown_paths_and_methods_are_404_and_405_in_json(model):
    async def main(server: Server) -> None:
        for method, path, status in (
            ("GET", "/nope", 404),
            ("POST", "/v3/rerank", 404),
            ("GET", "/v1/rerank", 405),
            ("PUT", "/rerank", 405),
            ("POST", "/health", 405),
            ("GET", "/..%2f..%2fetc/passwd", 404),
        ):
            reply = await server.client.request(method, path)
            assert reply.status_code == status, path
            assert set(reply.json()) == {"id", "message", "detail", "error"}

    with_server(main, model)


def test_every_path_answers_in_json_with_a_request_id(model):
    async def main(server: Server) -> None:
        for path in POSTS:
            reply = await server.post(path, {})
            assert reply.status_code in (400, 404, 422, 424), path
            assert reply.json()
            assert reply.headers["x-request-id"]
        for path in GETS:
            reply = await server.client.get(path)
            assert reply.status_code == 200, path
            assert reply.headers["x-request-id"]
            assert (await server.client.get(path + "/")).status_code == 200

    with_server(main, model)


def test_request_ids_are_echoed_where_they_are_harmless(model):
    async def main(server: Server) -> None:
        for given, is_kept in (("abc-1.2:3_X", True), ("a" * 129, False), ("a b", False), ("<x>", False)):
            reply = await server.post("/v1/rerank", BODY, **{"x-request-id": given})
            assert (reply.headers["x-request-id"] == given) is is_kept
            assert reply.json()["id"] == reply.headers["x-request-id"]

    with_server(main, model)


# -- keys and hosts ------------------------------------------------------------


def test_every_path_but_the_probes_wants_a_key(model):
    async def main(server: Server) -> None:
        for path in POSTS:
            reply = await server.post(path, BODY)
            assert reply.status_code == 401, path
            assert reply.headers["www-authenticate"] == "Bearer"
            assert reply.json()["error"]["type"] == "authentication_error"
            assert "one" not in reply.text
        for path in ("/info", "/v1/models"):
            assert (await server.client.get(path)).status_code == 401
        for path in ("/health", "/ping", "/livez", "/readyz", "/metrics"):
            assert (await server.client.get(path)).status_code == 200
        for path in ("/docs", "/openapi.json", "/version"):  # the same of every server, and read by browsers
            reply = await server.client.get(path)
            assert reply.status_code == 200
            assert server.service.catalogue.find(None).name not in reply.text
        for header, status in (
            ("Bearer one", 200),
            ("bearer two", 200),
            ("BEARER  one ", 200),
            ("Bearer three", 401),
            ("Basic one", 401),
            ("one", 401),
            ("Bearer", 401),
            ("Bearer ", 401),
            ("Bearer öne", 401),
        ):
            raw = {"authorization": header.encode("utf-8")}
            reply = await server.client.post("/v1/rerank", json=BODY, headers=raw)
            assert reply.status_code == status, header
        assert (await server.client.get("/v1/models", headers={"authorization": "Bearer two"})).status_code == 200

    with_server(main, model, api_keys=("one", "two"))


def test_keys_come_from_a_file_too(model, tmp_path):
    path = tmp_path / "keys"
    path.write_text("# ours\n\nfrom-file\n")

    async def main(server: Server) -> None:
        for key, status in (("from-file", 200), ("given", 200), ("# ours", 401)):
            assert (await server.post("/v1/rerank", BODY, authorization=f"Bearer {key}")).status_code == status

    with_server(main, model, api_keys=("given",), api_key_file=str(path))


def test_a_server_on_loopback_answers_to_its_own_names_only(model):
    async def main(server: Server) -> None:
        for host, status in (
            ("localhost:8080", 200),
            ("127.0.0.1", 200),
            ("[::1]:8080", 200),
            ("mine.example", 200),
            ("LOCALHOST", 200),
            ("evil.example", 421),
            ("localhost.evil.example", 421),
            ("", 421),
        ):
            assert (await server.client.get("/livez", headers={"host": host})).status_code == status, host

    with_server(main, model, allowed_hosts=("mine.example",))


def test_a_server_on_all_addresses_answers_to_any_name(model):
    async def main(server: Server) -> None:
        assert (await server.client.get("/livez", headers={"host": "rerank.example"})).status_code == 200

    with_server(main, model, host="0.0.0.0")


def test_no_other_site_may_read_answers(model):
    async def main(server: Server) -> None:
        reply = await server.post("/v1/rerank", BODY, origin="https://evil.example")
        assert not [name for name in reply.headers if name.startswith("access-control")]

    with_server(main, model)


# -- models ------------------------------------------------------------


def test_one_model_answers_to_any_name_and_several_to_their_own(tmp_path):
    first, second = (ServedModel(model_folder(tmp_path / name)) for name in ("first", "second"))

    async def main(server: Server) -> None:
        for name, status in (("first", 200), ("second", 200), (None, 200), ("third", 404), ("../first", 404), (5, 404)):
            reply = await server.post("/v1/rerank", {**BODY, "model": name})
            assert reply.status_code == status, name
            if status == 200:
                assert reply.json()["model"] == (name or "first")
            else:
                assert reply.json()["error"]["type"] == "model_not_found"
        models = (await server.client.get("/v1/models")).json()
        assert models["object"] == "list"
        assert [(row["id"], row["object"]) for row in models["data"]] == [("first", "model"), ("second", "model")]
        assert all(isinstance(row["created"], int) and row["owned_by"] for row in models["data"])
        assert {batch["target"] for batch in server.worker.batches} == {"first", "second"}

    with_server(main, first, second)


def test_info_has_teis_keys(model):
    async def main(server: Server) -> None:
        info = (await server.client.get("/info")).json()
        assert info["model_id"] == info["served_model_name"] == "small-ce"
        assert next(iter(info["model_type"])) == "reranker"
        assert set(info["model_type"]["reranker"]) == {"id2label", "label2id"}
        assert info["max_client_batch_size"] == 1000
        assert info["max_concurrent_requests"] == 512
        assert info["max_input_length"] == 50
        assert info["auto_truncate"] is True
        assert info["scoring"] == "pointwise"
        for name in ("model_sha", "model_dtype", "max_batch_tokens", "max_batch_requests", "tokenization_workers",
                     "version", "sha", "docker_label", "adapters", "pipeline"):  # fmt: skip
            assert name in info

    with_server(main, model)


@pytest.mark.parametrize(("rule", "scoring"), [("groupwise", "groupwise"), ("setwise", "listwise")])
def test_info_says_where_documents_are_scored_together(tmp_path, rule, scoring):
    model = ServedModel(model_folder(tmp_path / "lm", "causal_lm"), rule=rule, prompt="order")

    async def main(server: Server) -> None:
        assert (await server.client.get("/info")).json()["scoring"] == scoring

    with_server(main, model, worker=StandIn(facts={}))


# -- what the model does wrong ------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_no_number_is_an_error_and_no_json_nan(model, bad):
    worker = StandIn(score=lambda text: bad if "SECRET" in text else 1.0)

    async def main(server: Server) -> None:
        reply = await server.post("/v1/rerank", BODY)
        assert (reply.status_code, reply.json()["error"]["type"]) == (500, "internal_error")
        reply = await server.post("/rerank", {"query": "q", "texts": BODY["documents"]})
        assert (reply.status_code, reply.json()["error_type"]) == (424, "Backend")
        assert (await server.post("/v1/rerank", {**BODY, "documents": ["fine"]})).status_code == 200

    with_server(main, model, worker=worker)


def test_a_failure_tells_no_path_and_no_text(model):
    async def main(server: Server) -> None:
        reply = await server.post("/v1/rerank", {"query": "q", "documents": ["SPOILED SECRET"]})
        assert reply.status_code == 500
        assert "SECRET" not in reply.text
        assert "/a/path" not in reply.text

    with_server(main, model)


def test_what_nobody_foresaw_is_500_in_json(model, monkeypatch):
    async def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("SECRET")

    async def main(server: Server) -> None:
        monkeypatch.setattr(server.service, "rerank", broken)
        reply = await server.post("/v1/rerank", BODY)
        assert reply.status_code == 500
        assert reply.json()["error"]["type"] == "internal_error"
        assert "SECRET" not in reply.text
        assert (await server.client.get("/livez")).status_code == 200

    with_server(main, model)


# -- health ------------------------------------------------------------


def test_health_follows_loading_the_worker_and_the_end(model):
    async def run() -> None:
        import httpx2 as httpx

        from rerank.serve.app import create_app
        from rerank.serve.service import Service
        from rerank.serve.settings import Settings

        worker = StandIn()
        worker.may_start.clear()
        service = Service(Settings(models=(model,)), start_worker=worker.start, patience=QUICK)
        transport = httpx.ASGITransport(create_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:

            async def status(path: str) -> int:
                return (await client.get(path)).status_code

            opening = asyncio.ensure_future(service.open())
            await asyncio.sleep(0.01)
            assert [await status(path) for path in ("/health", "/ping", "/readyz", "/livez")] == [503, 503, 503, 200]
            assert "rerank_ready 0.0" in (await client.get("/metrics")).text
            worker.may_start.set()
            await opening
            assert worker.seen["load"] == 1
            assert [await status(path) for path in ("/health", "/ping", "/readyz", "/livez")] == [200] * 4
            worker.may_start.clear()
            worker.workers[0].die()
            assert [await status(path) for path in ("/health", "/readyz", "/livez")] == [503, 503, 200]
            worker.may_start.set()
            await until(lambda: service.is_ready)
            assert await status("/health") == 200
            service.is_stopping = True
            assert [await status(path) for path in ("/health", "/readyz", "/livez")] == [503, 503, 200]
            reply = await client.post("/v1/rerank", json=BODY)
            assert (reply.status_code, reply.json()["error"]["type"]) == (503, "not_ready")
            assert int(reply.headers["retry-after"]) > 0
            reply = await client.post("/rerank", json={"query": "q", "texts": ["a"]})
            assert (reply.status_code, reply.json()["error_type"]) == (503, "Unhealthy")
        await service.close()

    asyncio.run(run())


# -- metrics and logs ------------------------------------------------------------


def test_metrics_have_the_contracts_names_and_no_text(model):
    async def main(server: Server) -> None:
        for _ in range(3):
            await server.post("/v1/rerank", {**BODY, "model": "SECRET model"})
        await server.post("/v1/rerank/SECRET", {})
        await server.post("/v1/rerank", {"query": ""})
        reply = await server.client.get("/metrics")
        assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
        text = reply.text
        assert 'rerank_http_requests_total{method="POST",path="/v1/rerank",status="200"} 3.0' in text
        assert 'rerank_http_requests_total{method="POST",path="other",status="404"} 1.0' in text
        assert 'rerank_pairs_total{model="small-ce"} 6.0' in text
        assert 'rerank_rejected_total{reason="invalid"} 1.0' in text
        assert 'rerank_model_info{device="",dtype="float32",model="small-ce",revision="",version=' in text
        assert "rerank_ready 1.0" in text
        for name in ("http_request_duration_seconds_bucket", "http_requests_in_flight", "queue_pairs", "queue_tokens",
                     "queue_wait_seconds_count", "tokenize_seconds_count", "inference_seconds_count",
                     "batch_pairs_count", "batch_tokens_count", "batch_padding_ratio_count", "tokens_total",
                     "truncated_pairs_total", "cancelled_total"):  # fmt: skip
            assert re.search(f"^rerank_{name}", text, re.MULTILINE), name
        assert "SECRET" not in text

    with_server(main, model)


def test_log_lines_are_json_with_the_request_id_and_without_texts(model):
    stream = io.StringIO()
    loggers = [logging.getLogger(name) for name in ("rerank", "uvicorn")]
    before = [(each.handlers, each.level, each.propagate) for each in loggers]
    try:
        log_to(stream, "info")

        async def main(server: Server) -> None:
            await server.post("/v1/rerank", {**BODY, "model": "SECRET"}, **{"x-request-id": "mine"})
            await server.post("/v1/rerank", {"query": "q", "documents": ["SPOILED SECRET"]})
            await server.post("/v1/SECRET", {})

        with_server(main, model)
    finally:
        for each, (handlers, level, propagate) in zip(loggers, before, strict=True):
            each.handlers, each.level, each.propagate = handlers, level, propagate
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    mine = next(line for line in lines if line.get("request_id") == "mine")
    assert (mine["path"], mine["status"], mine["method"]) == ("/v1/rerank", 200, "POST")
    assert "SECRET" not in stream.getvalue().replace("SECRET}", "")


def test_a_full_disk_for_logs_disturbs_nothing(model):
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    loggers = [logging.getLogger(name) for name in ("rerank", "uvicorn")]
    before = [(each.handlers, each.level, each.propagate) for each in loggers]
    try:
        log_to(Full(), "debug")

        async def main(server: Server) -> None:
            assert (await server.post("/v1/rerank", BODY)).status_code == 200

        with_server(main, model)
    finally:
        for each, (handlers, level, propagate) in zip(loggers, before, strict=True):
            each.handlers, each.level, each.propagate = handlers, level, propagate


# -- the document ------------------------------------------------------------


def test_the_openapi_document_knows_every_path_and_status(model):
    async def main(server: Server) -> None:
        described = (await server.client.get("/openapi.json")).json()
        assert {path for path, verbs in described["paths"].items() if "post" in verbs} == set(POSTS)
        assert {path for path, verbs in described["paths"].items() if "get" in verbs} >= set(GETS)
        page = await server.client.get("/docs")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "/v1/rerank" in page.text

    with_server(main, model)
