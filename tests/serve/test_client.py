"""The client against a real server with a stand-in for its worker, and against servers that misbehave."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("starlette", reason="the extra serve brings it")
pytest.importorskip("uvicorn", reason="the extra serve brings it")
pytest.importorskip("httpx2", reason="the extra http brings it")

from local_server import LocalServer, Reply, closed_port
from serve.live import Live, live
from serve.stand_in import model_folder

from rerank import AsyncClient, Client, Retry
from rerank.errors import ConfigError, DataError, ServerError
from rerank.reranker import Reasoning
from rerank.serve.settings import ServedModel

QUICK = Retry(tries=3, first_wait_seconds=0.01, longest_wait_seconds=5.0)
DOCS = ["rain =1", "snow =3", "hail =2"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("models")
    models = (
        ServedModel(model_folder(folder / "small")),
        ServedModel("bm25", name="found"),
        ServedModel(model_folder(folder / "encoder", "dense")),
        ServedModel(model_folder(folder / "writer", "causal_lm"), prompt="rank1"),
    )
    with live(*models, api_keys=("secret",)) as running:
        running.worker.facts["dimension"] = 3
        for served in running.service.catalogue:
            served.facts["dimension"] = 3
        yield running


@pytest.fixture
def client(server: Live) -> Iterator[Client]:
    with Client(server.url, api_key="secret", model="small", retry=QUICK) as found:
        yield found


def results(*places: int, **more: object) -> dict[str, object]:
    return {"results": [{"index": place, "relevance_score": 0.5} for place in places], **more}


# -- answers ------------------------------------------------------------


def test_documents_come_back_best_first_with_ids_texts_and_tokens(client):
    found = client.rerank("weather", [("a", DOCS[0]), {"id": "b", "text": DOCS[1]}, DOCS[2]])
    assert [(doc.docno, doc.index, doc.rank, doc.text) for doc in found] == [
        ("b", 1, 1, DOCS[1]),
        ("2", 2, 2, DOCS[2]),
        ("a", 0, 3, DOCS[0]),
    ]
    assert [doc.score for doc in found] == pytest.approx([1 / (1 + math.exp(-x)) for x in (3, 2, 1)])
    assert found.counts["tokens"] > 0


def test_k_cuts_and_raw_scores_are_the_models_own(client):
    found = client.rerank("weather", DOCS, 2, raw_scores=True)
    assert [doc.score for doc in found] == [3.0, 2.0]


def test_what_the_model_wrote_comes_on_request(server, client):
    assert client.rerank("weather", DOCS).reasoning == ()
    assert client.rerank("weather", DOCS, explain=True).reasoning == ()
    with Client(server.url, api_key="secret", model="writer") as writer:
        found = writer.rerank("weather", DOCS, 1, explain=True)
    assert found.reasoning == tuple(Reasoning((place,), f"read {text}") for place, text in enumerate(DOCS))


def test_an_empty_list_is_answered_without_the_server():
    client = Client(f"http://127.0.0.1:{closed_port()}")
    assert (len(client.rerank("q", [])), client.score([]).shape, client.embed([]).shape) == (0, (0,), (0, 0))


def test_scores_stand_in_the_order_of_the_pairs(client):
    assert client.score([("q", text) for text in DOCS], raw_scores=True).tolist() == [1.0, 3.0, 2.0]
    assert client.score([("p", "=4"), ("q", "=5")], raw_scores=True).tolist() == [4.0, 5.0]
    assert 0.5 < client.score([("p", "=4")])[0] < 1


def test_a_pipeline_that_searches_gives_hits(server):
    with Client(server.url, api_key="secret", model="found") as client:
        hits = client.search("rain", 3)
    assert [(hit.docno, hit.rank, hit.text) for hit in hits] == [(f"d{n}", n + 1, f"rain {n}") for n in range(3)]


def test_an_encoder_gives_vectors_in_the_order_of_the_texts(server):
    with Client(server.url, api_key="secret", model="encoder") as client:
        vectors = client.embed(["a", "bcd"])
        assert vectors.dtype == np.float32
        assert vectors == pytest.approx(np.array([[0.6, 0.8, 1.0], [0.6, 0.8, 3.0]]), abs=1e-6)
        assert client.embed(["a"], "query", dimensions=2) == pytest.approx(np.array([[0.6, 0.8]]), abs=1e-6)


def test_halves_of_surrogate_pairs_reach_the_server(client):
    assert len(client.rerank("q \ud800", ["a \udfff", "b"])) == 2


def test_threads_and_event_loops_share_a_client(server, client):
    def ask() -> None:
        for _ in range(5):
            assert client.rerank("q", DOCS)[0].index == 1

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    async def many() -> list[int]:
        async with AsyncClient(server.url + "/v1/", api_key="secret", model="small") as found:
            lists = await asyncio.gather(*(found.rerank("q", DOCS) for _ in range(20)))
            assert (await found.score([("q", "=1")], raw_scores=True)).tolist() == [1.0]
            assert len(await found.rerank("q", [])) == 0
            assert (await found.score([])).shape == (0,)
            assert (await found.embed([])).shape == (0, 0)
        return [each[0].index for each in lists]

    assert asyncio.run(many()) == [1] * 20


def test_the_async_client_searches_and_embeds(server):
    async def both() -> tuple[str, tuple[int, ...]]:
        async with AsyncClient(server.url, api_key="secret", model="found") as client:
            (hit,) = await client.search("rain", 1)
        async with AsyncClient(server.url, api_key="secret", model="encoder") as client:
            return hit.docno, (await client.embed(["a"])).shape

    assert asyncio.run(both()) == ("d0", (1, 3))


def test_a_wait_that_is_cancelled_hangs_up(server):
    cancelled = server.service.metrics.cancelled
    before = cancelled._value.get()

    async def leave() -> None:
        async with AsyncClient(server.url, api_key="secret", model="small") as client:
            server.do(server.worker.gate.clear)
            asking = asyncio.ensure_future(client.rerank("q", DOCS))
            await asyncio.sleep(0.2)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking

    try:
        asyncio.run(leave())
        until = time.monotonic() + 10
        while cancelled._value.get() == before and time.monotonic() < until:
            time.sleep(0.01)
        assert cancelled._value.get() == before + 1
    finally:
        server.do(server.worker.gate.set)


def test_a_closed_client_opens_again_at_the_next_call(client):
    client.close()
    assert len(client.rerank("q", DOCS)) == 3


# -- refusals ------------------------------------------------------------


def test_what_cannot_be_used_as_given_is_a_data_error_with_the_servers_words(client, caplog):
    with pytest.raises(DataError, match="query must not be"):
        client.rerank("  ", DOCS)
    with pytest.raises(DataError, match="makes no vectors"):
        client.embed(["a"])
    assert not caplog.records


@pytest.mark.parametrize("key", [None, "wrong"])
def test_a_missing_or_wrong_key_is_a_server_error_that_does_not_tell_it(server, key):
    with pytest.raises(ServerError, match="status 401") as caught:
        Client(server.url, api_key=key).rerank("q", DOCS)
    assert "wrong" not in str(caught.value)


def test_an_unknown_model_is_a_data_error(server):
    with pytest.raises(DataError, match="no such model"):
        Client(server.url, api_key="secret", model="other").rerank("q", DOCS)


def test_a_server_that_is_not_there_is_named_at_once():
    url = f"http://127.0.0.1:{closed_port()}"
    with pytest.raises(ServerError, match=f"{url}.*is the server running"):
        Client(url).rerank("q", DOCS)


@pytest.mark.parametrize(
    ("url", "key"),
    [("localhost:8080", None), ("http://u:p@host", None), ("http://host", "two\nlines"), ("http://h", "")],
)
def test_addresses_and_keys_that_are_none_are_refused(url, key):
    with pytest.raises(ConfigError):
        Client(url, api_key=key)


def test_bad_arguments_are_refused_before_anything_is_sent():
    client = Client(f"http://127.0.0.1:{closed_port()}")
    for call in (lambda: client.rerank("q", DOCS, 0), lambda: client.search("q", 0)):
        with pytest.raises(ConfigError, match="at least 1"):
            call()
    for call in (lambda: client.rerank("q", "one text"), lambda: client.embed("one text")):
        with pytest.raises(DataError, match="a list of"):
            call()


# -- patience ------------------------------------------------------------


def test_a_busy_server_is_asked_again_after_the_time_that_it_names():
    with LocalServer(lambda seen: results(1, 0, 2)) as server:
        server.script = [Reply({"message": "full"}, 429, {"Retry-After": "1"}), Reply({}, 503, {"Retry-After": "0"})]
        began = time.monotonic()
        assert Client(server.url, retry=QUICK).rerank("q", DOCS)[0].index == 1
        assert time.monotonic() - began >= 1
        assert len(server.seen) == 3


def test_a_server_that_stays_busy_is_a_server_error_after_the_last_try():
    with LocalServer(lambda seen: Reply({"message": "full"}, 429)) as server:
        client = Client(server.url, retry=QUICK)
        with pytest.raises(ServerError, match=r"full.*tried 3 times"):
            client.rerank("q", DOCS)
        server.app = lambda seen: results(0)
        assert len(client.rerank("q", ["a"])) == 1, "a failure is of one call alone"


def test_a_wait_that_is_too_long_is_not_waited():
    with (
        LocalServer(lambda seen: Reply({}, 503, {"Retry-After": "3600"})) as server,
        pytest.raises(ServerError, match="asks to wait 3,600 seconds"),
    ):
        Client(server.url, retry=QUICK).rerank("q", DOCS)


@pytest.mark.parametrize(
    "body",
    [
        results(0, 0), results(3), results("0"), results(True, 1), {"results": [{"index": 0}]}, {"data": []}, [],
        results(0, meta={"reasoning": 3}), results(0, meta={"reasoning": ["because"]}),
        results(0, meta={"reasoning": [{"documents": [3], "text": "no such place"}]}),
    ],
)  # fmt: skip
def test_replies_that_are_not_what_was_asked_for_are_refused(body):
    with LocalServer(lambda seen: body) as server, pytest.raises(ServerError, match="not what was asked for"):
        Client(server.url, retry=QUICK).rerank("q", DOCS)


@pytest.mark.parametrize("entry", [{"index": 0, "embedding": "AAA"}, {"index": 0}, {"index": 1, "embedding": "AAAA"}])
def test_vectors_that_are_none_are_refused(entry):
    with LocalServer(lambda seen: {"data": [entry]}) as server, pytest.raises(ServerError, match="not what was asked"):
        Client(server.url, retry=QUICK).embed(["a"])
