"""One queue for all clients: batches, turns, bounds, deadlines, clients that leave, workers that die."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import pytest
from serve.stand_in import Server, StandIn, model_folder, until, with_server

from rerank.serve.app import create_app
from rerank.serve.errors import ApiError
from rerank.serve.jobs import RerankJob
from rerank.serve.settings import ServedModel
from rerank.serve.supervisor import Patience

pytestmark = pytest.mark.needs("starlette", "prometheus_client", "httpx2")


@pytest.fixture
def model(tmp_path):
    return ServedModel(model_folder(tmp_path / "ce"))


def job(*documents: str, model: str | None = None) -> RerankJob:
    return RerankJob("q", documents, model)


def asks(server: Server, client: str, *documents: str, model: str | None = None) -> asyncio.Task[Any]:
    return asyncio.ensure_future(server.service.rerank(job(*documents, model=model), client))


async def until_refused(tasks: Iterable[asyncio.Task[Any]]) -> tuple[list[asyncio.Task[Any]], ApiError]:
    """The requests that wait, and how the first was refused that may not."""
    waiting = []
    for task in tasks:
        await asyncio.sleep(0.001)
        if task.done():
            refused = task.exception()
            assert isinstance(refused, ApiError)
            assert (refused.status, refused.kind) == (429, "overloaded")
            return waiting, refused
        waiting.append(task)
    raise AssertionError(f"all {len(waiting)} wait")


# -- batches ------------------------------------------------------------


def test_requests_of_many_clients_share_a_batch(model):
    async def main(server: Server) -> None:
        texts = [[f"client {client} document {n} ={n}" for n in range(3)] for client in range(20)]
        replies = await asyncio.gather(
            *(server.post("/v1/rerank", {"query": f"q{n}", "documents": some}) for n, some in enumerate(texts))
        )
        assert [reply.json()["results"][0]["index"] for reply in replies] == [2] * 20
        assert len(server.worker.batches) <= 2
        assert sum(map(len, server.worker.texts)) == 60

    with_server(main, model)


def test_what_arrives_while_the_worker_is_busy_waits_in_one_batch(model):
    async def main(server: Server) -> None:
        server.worker.gate.clear()
        first = [asks(server, f"c{n}", "a =1") for n in range(2)]
        await until(lambda: len(server.worker.batches) == 1)
        second = [asks(server, "c2", "b =1")]
        await until(lambda: len(server.worker.batches) == 2)  # one computed, one lying ready
        rest = [asks(server, f"d{n}", f"d{n} =1") for n in range(10)]
        await asyncio.sleep(0.02)
        assert len(server.worker.batches) == 2
        server.worker.gate.set()
        await asyncio.gather(*first, *second, *rest)
        assert [len(texts) for texts in server.worker.texts] == [2, 1, 10]

    with_server(main, model)


def test_scores_do_not_depend_on_who_else_asks(model):
    async def main(server: Server) -> None:
        alone = await asks(server, "a", "x =1", "y =2", "z =0")
        others = [asks(server, f"c{n}", *(f"{n} {k}" for k in range(n))) for n in range(1, 9)]
        crowded = await asks(server, "a", "x =1", "y =2", "z =0")
        await asyncio.gather(*others)
        assert crowded.results == alone.results

    with_server(main, model)


def test_no_batch_exceeds_its_tokens_and_long_lists_are_split(model):
    async def main(server: Server) -> None:
        await asks(server, "a", *(f"{'word ' * 9}{n} =1" for n in range(100)))
        assert len(server.worker.batches) >= 6
        assert max(map(len, server.worker.texts)) < 20

    with_server(main, model, max_batch_tokens=200)


def test_models_have_lanes_and_the_one_that_waits_longest_goes_first(tmp_path):
    models = [ServedModel(model_folder(tmp_path / name)) for name in ("one", "two")]

    async def main(server: Server) -> None:
        server.worker.gate.clear()
        busy = [asks(server, "c", "a =1", model="one"), asks(server, "c", "b =1", model="two")]
        await until(lambda: len(server.worker.batches) == 2)
        late = asks(server, "c", *(f"{'word ' * 20}{n} =1" for n in range(200)), model="one")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        last = asks(server, "c", "z =1", model="two")
        server.worker.gate.set()
        await asyncio.gather(*busy, late, last)
        targets = [batch["target"] for batch in server.worker.batches[2:]]
        assert targets[:2] == ["one", "two"]  # and not all of the long list first
        assert len(targets) > 3

    with_server(main, *models, max_batch_tokens=300, max_queued_tokens=20_000)


def test_clients_take_turns_and_short_lists_are_not_starved(model):
    async def main(server: Server) -> None:
        server.worker.gate.clear()
        first = asks(server, "greedy", "a =1")
        await until(lambda: len(server.worker.batches) == 1)
        greedy = [asks(server, "greedy", *(f"g{k} {n} =1" for n in range(300))) for k in range(5)]
        await asyncio.sleep(0.01)
        modest = asks(server, "modest", *(f"m {n} =1" for n in range(10)))
        await asyncio.sleep(0.01)
        server.worker.gate.set()
        await modest
        assert not any(task.done() for task in greedy)
        served = [sum(text.startswith("m") for text in texts) for texts in server.worker.texts]
        assert sum(served[:5]) == 10
        await asyncio.gather(first, *greedy)

    with_server(main, model, max_batch_tokens=256)


# -- bounds ------------------------------------------------------------


def test_refusing_is_the_last_resort_and_says_when_to_come_again(model):
    async def main(server: Server) -> None:
        server.worker.gate.clear()
        accepted = [asks(server, f"c{n}", "word " * 40) for n in range(2)]
        await until(lambda: server.worker.batches)
        waiting, _ = await until_refused(asks(server, f"d{n}", "word " * 40) for n in range(100))
        reply = await server.post("/v1/rerank", {"query": "q", "documents": ["word " * 40]})
        assert reply.status_code == 429
        assert reply.json()["error"]["type"] == "overloaded"
        assert int(reply.headers["retry-after"]) >= 1
        reply = await server.post("/rerank", {"query": "q", "texts": ["word " * 40]})
        assert (reply.status_code, reply.json()["error_type"]) == (429, "Overloaded")
        assert int(reply.headers["retry-after"]) >= 1
        server.worker.gate.set()
        await asyncio.gather(*accepted, *waiting)
        assert len(waiting) > 5
        assert (await server.post("/v1/rerank", {"query": "q", "documents": ["x"]})).status_code == 200
        assert 'rerank_rejected_total{reason="overloaded"} 2.0' in server.service.metrics.text().decode()

    with_server(main, model, max_batch_tokens=100, max_queued_tokens=1000)


def test_a_request_larger_than_the_bound_is_taken_when_nothing_waits(model):
    async def main(server: Server) -> None:
        found = await asks(server, "c", *(f"{'word ' * 20} {n} =1" for n in range(100)))
        assert len(found.results) == 100

    with_server(main, model, max_batch_tokens=100, max_queued_tokens=200)


def test_only_so_many_requests_are_under_way(model):
    async def main(server: Server) -> None:
        server.worker.gate.clear()
        first = [asks(server, "c", "a =1", "b =2") for _ in range(3)]
        await until(lambda: server.service.queue.n_requests == 3)
        assert (await server.post("/v1/rerank", {"query": "q", "documents": ["a"]})).status_code == 429
        server.worker.gate.set()
        await asyncio.gather(*first)

    with_server(main, model, max_concurrent_requests=3)


def test_what_would_wait_too_long_is_refused_at_once_and_other_clients_have_their_turn(model):
    async def main(server: Server) -> None:
        await asks(server, "greedy", "a =1")  # how fast the worker is becomes known
        server.worker.gate.clear()
        waiting, refused = await until_refused(asks(server, "greedy", f"{n} {'word ' * 400}") for n in range(1000))
        assert int(refused.headers["Retry-After"]) >= 5
        modest = asks(server, "modest", "a =1")
        await asyncio.sleep(0.01)
        assert waiting and not modest.done()
        server.worker.gate.set()
        await asyncio.gather(modest, *waiting)

    with_server(main, model, max_batch_tokens=100, max_queued_tokens=10_000_000, queue_timeout=10)


def test_who_waits_too_long_for_a_turn_gets_503(model):
    async def main(server: Server) -> None:
        server.worker.gate.clear()
        busy = [asks(server, "c", "a =1")]
        await until(lambda: len(server.worker.batches) == 1)
        busy.append(asks(server, "c", "b =1"))
        await until(lambda: len(server.worker.batches) == 2)
        reply = await server.post("/v1/rerank", {"query": "q", "documents": ["a"]})
        assert (reply.status_code, reply.json()["error"]["type"]) == (503, "timeout")
        assert int(reply.headers["retry-after"]) >= 1
        server.worker.gate.set()
        await asyncio.gather(*busy)  # they had their turn, and are answered
        assert len(server.worker.batches) == 2

    with_server(main, model, queue_timeout=0.1)


def test_who_is_not_answered_in_time_gets_503(model):
    async def main(server: Server) -> None:
        server.worker.gate.clear()
        reply = await server.post("/rerank", {"query": "q", "texts": ["a"]})
        assert reply.status_code == 503
        assert int(reply.headers["retry-after"]) >= 1
        assert server.service.queue.n_requests == 0
        server.worker.gate.set()
        assert (await server.post("/v1/rerank", {"query": "q", "documents": ["a"]})).status_code == 200

    with_server(main, model, request_timeout=0.1)


# -- clients that leave ------------------------------------------------------------


class Leaver:
    """A client that sends a request and hangs up when it is told."""

    def __init__(self, server: Server, body: Any) -> None:
        self.left = asyncio.Event()
        self.sent: list[dict[str, Any]] = []
        self._content = json.dumps(body).encode()
        self.done = asyncio.ensure_future(self._run(create_app(server.service)))

    async def _run(self, app: Any) -> None:
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/rerank", "headers": headers, "query_string": b""}
        first = True

        async def receive() -> dict[str, Any]:
            nonlocal first
            if first:
                first = False
                return {"type": "http.request", "body": self._content, "more_body": False}
            await self.left.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            self.sent.append(message)

        await app(scope, receive, send)


def test_the_work_of_a_client_that_hangs_up_is_dropped_and_counted(model):
    async def main(server: Server) -> None:
        server.worker.gate.clear()
        stays = asks(server, "stays", "stays =1")
        await until(lambda: len(server.worker.batches) == 1)
        leavers = [Leaver(server, {"query": "q", "documents": [f"leaves {n} =1"]}) for n in range(4)]
        await until(lambda: server.service.queue.n_requests == 5)
        for leaver in leavers:
            leaver.left.set()
        await asyncio.gather(*(leaver.done for leaver in leavers))
        assert not any(leaver.sent for leaver in leavers)
        assert server.service.queue.n_requests == 1
        server.worker.gate.set()
        await stays
        await asyncio.sleep(0.01)
        assert not any("leaves" in json.dumps(batch) for batch in server.worker.done)
        text = server.service.metrics.text().decode()
        assert "rerank_cancelled_total 4.0" in text
        assert 'status="499"} 4.0' in text

    with_server(main, model)


def test_a_batch_that_nobody_waits_for_is_called_back(model):
    async def main(server: Server) -> None:
        server.worker.gate.clear()
        leaver = Leaver(server, {"query": "q", "documents": ["leaves =1"]})
        await until(lambda: server.worker.batches)
        leaver.left.set()
        await leaver.done
        server.worker.gate.set()
        assert (await asks(server, "c", "stays =1")).results
        assert len(server.worker.done) == 1

    with_server(main, model)


# -- failures ------------------------------------------------------------


@pytest.mark.parametrize("failure", ["ModelError", "memory", "error"])
def test_a_text_that_the_model_fails_on_fails_its_own_request_only(model, failure):
    async def main(server: Server) -> None:
        good = [asks(server, f"c{n}", f"good {n} =1") for n in range(6)]
        bad = asks(server, "bad", "fine =1", "SPOILED =1")
        found = await asyncio.gather(*good, bad, return_exceptions=True)
        assert all(each.results for each in found[:6])
        assert isinstance(found[6], ApiError)
        assert (found[6].status, found[6].tei_status) == (500, 424)

    with_server(main, model, worker=StandIn(failure=failure))


def test_a_worker_that_dies_is_replaced_and_its_batches_are_sent_again(model):
    async def main(server: Server) -> None:
        server.worker.gate.clear()
        tasks = [asks(server, "a", "a =1")]
        await until(lambda: len(server.worker.batches) == 1)
        tasks.append(asks(server, "b", "b =1"))
        await until(lambda: len(server.worker.batches) == 2)
        tasks.append(asks(server, "c", "c =1"))
        server.worker.workers[0].die()
        server.worker.gate.set()
        found = await asyncio.gather(*tasks)
        assert [each.results[0].raw for each in found] == [1.0, 1.0, 1.0]
        assert len(server.worker.workers) == 2
        assert server.worker.seen["load"] == 2
        assert server.service.supervisor.restarts == 1

    with_server(main, model)


def test_what_is_accepted_while_no_worker_is_there_is_answered_by_the_next(model):
    async def main(server: Server) -> None:
        server.worker.may_start.clear()
        server.worker.workers[0].die()
        await until(lambda: not server.service.is_ready)
        waiting = asks(server, "a", "a =1")
        await asyncio.sleep(0.02)
        assert not waiting.done()
        server.worker.may_start.set()
        assert (await waiting).results

    with_server(main, model)


def test_a_request_that_kills_workers_fails_alone(model):
    async def main(server: Server) -> None:
        good = [asks(server, f"c{n}", f"good {n} =1") for n in range(7)]
        bad = asks(server, "bad", "POISON =1")
        found = await asyncio.gather(*good, bad, return_exceptions=True)
        assert all(each.results for each in found[:7])
        assert isinstance(found[7], ApiError)
        assert (found[7].status, found[7].tei_status) == (500, 424)
        assert (await asks(server, "later", "later =1")).results
        assert len(server.worker.workers) <= 1 + 5  # together, by itself, and three halvings

    with_server(main, model)


def test_a_worker_without_a_sign_of_life_is_replaced(model):
    async def main(server: Server) -> None:
        server.worker.answers_pings = False
        await until(lambda: len(server.worker.workers) == 2)
        server.worker.answers_pings = True
        await until(lambda: server.service.is_ready)
        assert (await asks(server, "a", "a =1")).results

    patience = Patience(heartbeat_seconds=0.01, silence_seconds=0.03)
    with_server(main, model, patience=patience)


def test_a_batch_that_takes_too_long_ends_the_worker(model):
    async def main(server: Server) -> None:
        server.worker.gate.clear()
        waiting = asks(server, "a", "a =1")
        await until(lambda: len(server.worker.workers) == 2)
        server.worker.gate.set()
        assert (await waiting).results

    patience = Patience(heartbeat_seconds=1, silence_seconds=1, batch_seconds=0.05)
    with_server(main, model, patience=patience)


# -- the end ------------------------------------------------------------


def test_what_was_accepted_is_finished_when_the_server_stops(model):
    async def main(server: Server) -> None:
        server.worker.gate.clear()
        accepted = [asks(server, f"c{n}", f"{n} =1") for n in range(10)]
        await until(lambda: server.worker.batches)
        stopping = asyncio.ensure_future(server.service.stop(5))
        await asyncio.sleep(0.01)
        reply = await server.post("/v1/rerank", {"query": "q", "documents": ["a"]})
        assert (reply.status_code, reply.json()["error"]["type"]) == (503, "not_ready")
        assert int(reply.headers["retry-after"]) > 0
        assert not stopping.done()
        server.worker.gate.set()
        await stopping
        assert all(each.results for each in await asyncio.gather(*accepted))

    with_server(main, model)


def test_what_does_not_finish_in_time_gets_503_with_retry_after(model):
    async def main(server: Server) -> None:
        server.worker.gate.clear()
        accepted = [
            asyncio.ensure_future(server.post("/v1/rerank", {"query": "q", "documents": [f"{n} =1"]})) for n in range(5)
        ]
        await until(lambda: server.service.queue.n_requests == 5)
        await server.service.stop(0.05)
        for reply in await asyncio.gather(*accepted):
            assert (reply.status_code, reply.json()["error"]["type"]) == (503, "not_ready")
            assert int(reply.headers["retry-after"]) > 0

    with_server(main, model)


# -- models that come and go ------------------------------------------------------------


def test_models_in_a_folder_are_served_replaced_and_dropped(tmp_path):
    folder = tmp_path / "models"
    model_folder(folder / "there")
    (folder / ".hidden").mkdir()

    async def main(server: Server) -> None:
        service = server.service
        assert [each.name for each in service.catalogue] == ["there"]
        model_folder(folder / "new")
        await service.look()
        assert [each.name for each in service.catalogue] == ["there"]  # it may be half copied
        await service.look()
        assert [each.name for each in service.catalogue] == ["there", "new"]
        assert (await asks(server, "c", "a =1", model="new")).served.name == "new"
        loads = server.worker.seen["load"]
        await service.look()
        assert server.worker.seen["load"] == loads
        (folder / "new" / "config.json").write_text('{"architectures": ["BertForSequenceClassification"], "x": 1}')
        server.worker.gate.clear()
        busy = asks(server, "c", "a =1", model="new")
        await until(lambda: len(server.worker.batches) == 2)
        await service.look()
        await service.look()
        assert server.worker.seen["load"] == loads + 1
        server.worker.gate.set()
        assert (await busy).results
        (folder / "new" / "config.json").unlink()
        (folder / "broken").mkdir()
        (folder / "broken" / "config.json").write_text("{")
        await service.look()
        await service.look()
        assert [each.name for each in service.catalogue] == ["there"]
        reply = await server.post("/v1/rerank", {"query": "q", "documents": ["a"], "model": "new"})
        assert reply.status_code == 200  # one model is left, which answers to any name

    with_server(main, models_folder=str(folder), watch_seconds=3600.0)


def test_a_damaged_model_in_the_folder_keeps_no_other_from_being_served(model, tmp_path):
    folder = tmp_path / "models"
    model_folder(folder / "fine")
    model_folder(folder / "damaged")

    async def main(server: Server) -> None:
        assert [each.name for each in server.service.catalogue] == ["ce", "fine"]
        server.worker.unloadable.add("fine")
        server.worker.workers[0].die()
        assert (await asks(server, "c", "a =1", model="ce")).results
        assert [each.name for each in server.service.catalogue] == ["ce"]

    worker = StandIn(unloadable={"damaged"})
    with_server(main, model, worker=worker, models_folder=str(folder), watch_seconds=3600.0)
