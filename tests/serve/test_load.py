"""The load generator against a real server: what it counts, what it times, what it prints."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from xml.etree import ElementTree

import pytest

pytest.importorskip("starlette", reason="the extra serve brings it")
pytest.importorskip("uvicorn", reason="the extra serve brings it")
pytest.importorskip("httptools", reason="the extra serve brings it")

from local_server import LocalServer, Reply, closed_port
from serve.live import Live, live
from serve.stand_in import StandIn, model_folder

from rerank.cli import main
from rerank.errors import ConfigError, ServerError
from rerank.serve.load import (
    Level,
    Question,
    Target,
    closed_loop,
    latency_curve,
    measure,
    mixed_questions,
    open_loop,
    table_head,
    table_row,
)
from rerank.serve.settings import ServedModel

QUESTIONS = [Question("q", ["a", "b"]), Question("p", ["c"])]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = model_folder(tmp_path_factory.mktemp("models") / "small")
    with live(ServedModel(folder), api_keys=("secret",), max_queued_tokens=40) as running:
        yield running


def answered(seen: object) -> dict[str, object]:
    n = len(seen.body["documents"])  # type: ignore[attr-defined]
    return {"results": [{"index": i, "relevance_score": 0.5} for i in range(n)], "usage": {"total_tokens": 10 * n}}


# -- texts ------------------------------------------------------------


def test_made_up_texts_are_the_same_again_and_have_the_lengths_of_search():
    questions = mixed_questions(50, 20)
    assert questions == mixed_questions(50, 20)
    assert questions != mixed_questions(50, 20, seed=1)
    sizes = sorted(len(text.split()) for question in questions for text in question.documents)
    assert 50 < sizes[len(sizes) // 2] < 90
    assert 100 < sizes[len(sizes) * 9 // 10] < 250
    assert all(len(question.documents) == 20 and question.query for question in questions)


# -- loops ------------------------------------------------------------


def test_a_closed_loop_keeps_as_many_requests_under_way_as_it_has_clients():
    def slow(seen: object) -> dict[str, object]:
        time.sleep(0.02)
        return answered(seen)

    with LocalServer(slow) as server:
        level = asyncio.run(closed_loop(Target(server.url, QUESTIONS), 3, 0.5))
        assert server.most_at_work == 3
        assert {seen.path for seen in server.seen} == {"/v1/rerank"}
    assert level.errors == {}
    n = len(level.latencies)
    assert 3 <= n <= 3 * 0.5 / 0.02
    assert min(level.latencies) >= 0.02
    assert abs(level.documents - 1.5 * n) <= 3
    assert level.tokens == 10 * level.documents


def test_an_open_loop_times_requests_from_when_they_were_due():
    with LocalServer(answered) as server:
        server.script = [Reply(hang=True)]
        level = asyncio.run(open_loop(Target(server.url, QUESTIONS, timeout_seconds=0.3), 50, 0.5))
    assert level.errors == {"timeout": 1}
    assert 5 <= len(level.latencies) <= 60


def test_the_same_seed_sends_at_the_same_moments():
    with LocalServer(answered) as server:
        levels = [asyncio.run(open_loop(Target(server.url, QUESTIONS), 30, 0.3)) for _ in range(2)]
    assert len(levels[0].latencies) == len(levels[1].latencies)


def test_trouble_is_counted_by_kind():
    with LocalServer(answered) as server:
        server.script = [
            Reply({}, 429, {"Retry-After": "0"}),
            Reply(reset=True),
            Reply({"results": []}),
            Reply(b"no json"),
        ]
        level = asyncio.run(closed_loop(Target(server.url + "/v1", QUESTIONS), 1, 1.5))
    assert level.errors == {"429": 1, "connection lost": 1, "wrong answer": 2}
    assert level.latencies


def test_a_server_that_closes_connections_is_asked_on_new_ones():
    with LocalServer(lambda seen: Reply(answered(seen), headers={"Connection": "close"})) as server:
        level = asyncio.run(closed_loop(Target(server.url, QUESTIONS), 2, 0.2))
    assert level.errors == {}
    assert level.latencies


def test_a_server_that_fills_up_refuses_with_429_and_nothing_else(server):
    server.do(server.worker.gate.clear)

    async def both() -> Level:
        asyncio.get_running_loop().call_later(0.3, lambda: server.do(server.worker.gate.set))
        return await closed_loop(Target(server.url, mixed_questions(4, 3), key="secret"), 20, 0.8)

    level = asyncio.run(both())
    assert set(level.errors) == {"429"}
    assert level.latencies


@pytest.mark.parametrize(("key", "said"), [(None, "401"), ("wrong", "not valid")])
def test_a_server_that_does_not_answer_the_first_request_ends_the_measurement(server, key, said):
    with pytest.raises(ServerError, match=said):
        measure(Target(server.url, QUESTIONS, key=key), clients=[1])


def test_a_server_that_is_not_there_ends_the_measurement():
    with pytest.raises(ServerError, match="connection refused"):
        measure(Target(f"http://127.0.0.1:{closed_port()}", QUESTIONS), clients=[1])


def test_what_is_no_http_ends_the_measurement():
    with LocalServer(lambda seen: Reply(b"", headers={"Content-Length": "x"})) as server, pytest.raises(ServerError):
        measure(Target(server.url, QUESTIONS), clients=[1])


def test_loads_that_cannot_be_are_refused():
    target = Target("http://localhost", QUESTIONS)
    for loop in (closed_loop(target, 0, 1), closed_loop(target, 1, 0), open_loop(target, 0, 1)):
        with pytest.raises(ConfigError):
            asyncio.run(loop)
    with pytest.raises(ConfigError, match="no requests"):
        Target("http://localhost", [])


# -- what is shown ------------------------------------------------------------


def test_percentiles_are_the_least_times_that_suffice():
    level = Level("closed", 1, 10.0, tuple(n / 100 for n in range(100, 0, -1)), {}, 0, 0)
    assert [level.percentile(q) for q in (50, 95, 99, 100)] == [0.5, 0.95, 0.99, 1.0]


def test_the_columns_of_the_table_stand_below_each_other():
    row = table_row(Level("open", 2.5, 10.0, (), {"429": 1200, "503": 1}, 0, 0))
    assert row.endswith("429: 1,200, 503: 1")
    assert row.startswith("2.5/s ")
    assert row.index("429") == table_head().index("errors")


def test_the_latency_curve_is_a_drawing_that_stands_by_itself():
    levels = [Level("closed", n, 1.0, tuple([0.01 * n] * (10 * n)), {}, 0, 0) for n in (1, 2, 4)]
    drawn = ElementTree.fromstring(latency_curve([*levels, Level("closed", 8, 1.0, (), {"503": 9}, 0, 0)]))
    assert drawn.tag.endswith("svg")
    titles = [node.text for node in drawn.iter() if node.tag.endswith("title")]
    assert any("p95" in str(title) for title in titles)
    assert len(titles) == 9


def test_the_command_prints_a_table_and_draws(server, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("KEY", "secret")
    command = ["bench-serve", server.url, "-c", "1", "--rate", "20", "--seconds", "0.3", "--warm-up", "0"]
    assert main([*command, "--documents", "2", "--api-key-env", "KEY", "--plot", str(tmp_path / "curve.svg")]) == 0
    head, first, second = capsys.readouterr().out.splitlines()
    assert (head.split()[0], first.split()[:2], second.split()[0]) == ("load", ["1", "client"], "20/s")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["curve.svg"]
    assert main([*command[:4], *command[6:], "--api-key-env", "KEY", "--format", "json"]) == 0
    (level,) = json.loads(capsys.readouterr().out)["levels"]
    assert level["clients"] == 1
    assert level["requests_per_second"] > 0
    assert level["p50_ms"] <= level["p99_ms"] <= level["max_ms"]


def test_texts_may_be_those_of_a_collection(tmp_path, capsys):
    (tmp_path / "corpus.jsonl").write_text('{"_id": "d1", "title": "", "text": "rain"}\n', encoding="utf-8")
    (tmp_path / "queries.jsonl").write_text('{"_id": "q1", "text": "weather"}\n', encoding="utf-8")
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\n", encoding="utf-8")
    with LocalServer(answered) as server:
        options = ["-c", "1", "--seconds", "0.1", "--warm-up", "0", "--documents", "3"]
        assert main(["bench-serve", server.url, "--data", str(tmp_path), *options]) == 0
        assert server.bodies()[0] == {"query": "weather", "documents": ["rain"] * 3}


def test_the_command_refuses_what_cannot_be(capsys):
    for wrong in (["-c", "0"], ["--rate", "0"], ["--seconds", "0"]):
        assert main(["bench-serve", "http://localhost", *wrong]) == 2
    assert main(["bench-serve", "localhost"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_worker_that_waits_is_seen_in_the_times(server):
    stand_in: StandIn = server.worker
    server.do(stand_in.gate.clear)

    async def both() -> Level:
        asyncio.get_running_loop().call_later(0.2, lambda: server.do(stand_in.gate.set))
        return await closed_loop(Target(server.url, QUESTIONS, key="secret"), 1, 0.5)

    assert max(asyncio.run(both()).latencies) > 0.15
