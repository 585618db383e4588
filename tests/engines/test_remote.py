"""Rerankers behind /rerank: every dialect, results mapped back by index, requests split to what the server takes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from local_server import LocalServer, Reply, Seen, closed_port

from rerank.config import parse_pipeline, to_yaml
from rerank.data.corpus import MemoryCorpus
from rerank.engines.engine import Asked, ConcurrentAsker
from rerank.engines.http_client import Retry
from rerank.engines.passages import Passages
from rerank.engines.remote import Dialect, RemoteEngine, endpoint
from rerank.errors import ConfigError, ServerError
from rerank.ranking import Ranking
from rerank.reranking import Rerank
from rerank.rules.groupwise import Groupwise
from rerank.runtime import Runtime

pytestmark = pytest.mark.needs("httpx2")

QUICK = Retry(tries=3, first_wait_seconds=0.0, give_up_after=4)
N = 10


def grade(text: str) -> float:
    found = re.search(r"grade (\d+)", text)
    return int(found[1]) / 10 if found else 0.0


def of(seen: Seen) -> list[str]:
    """The documents of a request in any dialect."""
    return list(seen.body.get("documents", seen.body.get("texts", ())))


def best_first(seen: Seen) -> list[tuple[int, float]]:
    return sorted(enumerate(map(grade, of(seen))), key=lambda found: -found[1])


def cohere(seen: Seen) -> Any:
    if seen.path not in ("/v1/rerank", "/v2/rerank"):
        return Reply({"message": "not found"}, 404)
    results = [{"index": index, "relevance_score": score} for index, score in best_first(seen)]
    meta = {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}, "tokens": {"input_tokens": 50}}
    return {"id": "1", "results": results, "meta": meta}


def vllm(seen: Seen) -> Any:
    if seen.path not in ("/rerank", "/v1/rerank", "/v2/rerank"):
        return Reply({"detail": "Not Found"}, 404)
    found = best_first(seen)
    results = [{"index": i, "document": {"text": of(seen)[i]}, "relevance_score": score} for i, score in found]
    return {"id": "1", "model": "m", "usage": {"total_tokens": 50}, "results": results}


def voyage(seen: Seen) -> Any:
    results = [{"index": index, "relevance_score": score} for index, score in best_first(seen)]
    return {"object": "list", "data": results, "model": "m", "usage": {"total_tokens": 50}}


def tei(seen: Seen) -> Any:
    if seen.path == "/info":
        return {"model_id": "m", "max_client_batch_size": 4, "model_type": {"reranker": {}}}
    n = len(of(seen))
    if n > 4:
        return Reply({"error": f"batch size {n} > maximum allowed batch size 4", "error_type": "Validation"}, 422)
    return [{"index": index, "score": score} for index, score in best_first(seen)]


@pytest.fixture
def server() -> Iterator[LocalServer]:
    with LocalServer(vllm) as running:
        yield running


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    with Runtime(tmp_path / "cache-root", progress=False) as runtime:
        yield runtime


@pytest.fixture
def lists() -> Ranking:
    """Two queries; the last documents are the best."""
    corpus = MemoryCorpus({f"d{i}": f"text of grade {i}" for i in range(N)})
    scores = {f"d{i}": float(N - i) for i in range(N)}
    return Ranking.of({"q1": scores, "q2": dict(list(scores.items())[:3])}, {"q1": "one", "q2": "two"}, source=corpus)


def engine(server: LocalServer, path: str = "", **options: Any) -> RemoteEngine:
    return RemoteEngine(f"{server.url}{path}", **{"retry": QUICK, "timeout_seconds": 10.0, **options})


def ranked(
    lists: Ranking, runtime: Runtime, engine: RemoteEngine, **options: Any
) -> tuple[list[list[str]], dict[str, int]]:
    runtime.stats.clear()
    found = runtime.rank(Rerank(engine, **options), lists)
    return [hits.docnos for hits in found], runtime.stats[-1].counts


def first_stage(lists: Ranking) -> list[list[str]]:
    return [hits.docnos for hits in lists]


def turned(lists: Ranking) -> list[list[str]]:
    return [docnos[::-1] for docnos in first_stage(lists)]


def ask(server: LocalServer, runtime: Runtime, *documents: str, **options: Any) -> Any:
    asker = engine(server, **options).asker(None, runtime)
    (answer,) = asker.ask([Asked("q", "q", tuple(map(str, range(len(documents)))), documents)], runtime)
    return answer


# -- dialects ------------------------------------------------------------


@pytest.mark.parametrize(
    ("app", "path", "dialect", "asked"),
    [
        (cohere, "", "v2", "/v2/rerank"),
        (cohere, "", "v1", "/v1/rerank"),
        (cohere, "/v2", "auto", "/v2/rerank"),
        (vllm, "/v1", "auto", "/v1/rerank"),
        (vllm, "/rerank", "auto", "/rerank"),
        (vllm, "", "auto", "/v1/rerank"),
        (voyage, "/v1/rerank", "auto", "/v1/rerank"),
        (tei, "", "tei", "/rerank"),
        (tei, "", "auto", "/rerank"),
        (tei, "/rerank", "auto", "/rerank"),
        (tei, "/", "auto", "/rerank"),
    ],
)
def test_every_server_is_understood(
    app: Callable[[Seen], Any],
    path: str,
    dialect: Dialect,
    asked: str,
    server: LocalServer,
    runtime: Runtime,
    lists: Ranking,
) -> None:
    server.app = app
    order, counts = ranked(lists, runtime, engine(server, path, dialect=dialect))
    assert order == turned(lists)
    assert {seen.path for seen in server.seen if seen.method == "POST"} == {asked}
    assert "failed requests" not in counts
    if app is not tei:
        assert counts["prompt tokens"] == 100
        assert len(server.bodies()) == 2


def test_bodies_hold_what_the_dialect_knows(server: LocalServer, runtime: Runtime) -> None:
    ask(server, runtime, "a", dialect="v1", model="m", max_tokens_per_doc=512)
    ask(server, runtime, "a", dialect="v2", model="m")
    server.app = tei
    ask(server, runtime, "a", dialect="tei", model="m")
    assert server.bodies() == [
        {"query": "q", "documents": ["a"], "model": "m", "max_tokens_per_doc": 512, "return_documents": False},
        {"query": "q", "documents": ["a"], "model": "m"},
        {"query": "q", "texts": ["a"], "truncate": True},
    ]


@pytest.mark.parametrize(
    ("url", "dialect", "found"),
    [
        ("http://h", "auto", ("http://h", "auto")),
        ("http://h/reranking", "auto", ("http://h/reranking", "auto")),
        ("http://h/proxy/", "v2", ("http://h/proxy/v2/rerank", "v2")),
        ("http://h/v1/", "v2", ("http://h/v1/rerank", "v2")),
        ("http://h/v1/rerank", "tei", ("http://h/v1/rerank", "tei")),
        ("http://h/v2/rerank/", "auto", ("http://h/v2/rerank", "v2")),
    ],
)
def test_the_endpoint_is_as_given_or_follows_from_the_dialect(
    url: str, dialect: Dialect, found: tuple[str, str]
) -> None:
    assert endpoint(url, dialect) == found


# -- what goes together ------------------------------------------------------------


def test_documents_of_a_query_share_requests_and_each_is_sent_once(server: LocalServer, runtime: Runtime) -> None:
    asker = engine(server).asker(None, runtime)
    asked = [Asked(q, q, ("d",), (f"grade {i % 5}",)) for i in range(10) for q in ("one", "two")]
    answers = asker.ask(asked, runtime)
    assert [answer[0] for answer in answers] == [(i % 5) / 10 for i in range(10) for _ in range(2)]
    assert [len(body["documents"]) for body in server.bodies()] == [5, 5]
    assert isinstance(asker, ConcurrentAsker)
    assert asker.at_once > 10_000
    assert list(asker.passages(["a b c"], Passages(size=2, stride=1))) == [((0, 3), (2, 5))]


def test_a_question_about_several_documents_is_answered_in_their_order(server: LocalServer, runtime: Runtime) -> None:
    assert ask(server, runtime, "grade 1", "grade 7", "grade 1", batch_documents=2) == (0.1, 0.7, 0.1)


def test_a_long_list_is_split_by_the_setting(server: LocalServer, runtime: Runtime, lists: Ranking) -> None:
    order, _ = ranked(lists, runtime, engine(server, batch_documents=4))
    assert order == turned(lists)
    assert sorted(len(of(seen)) for seen in server.seen if seen.method == "POST") == [2, 3, 4, 4]


def test_the_limit_that_the_server_tells_of_itself_is_kept(
    server: LocalServer, runtime: Runtime, lists: Ranking
) -> None:
    server.app = tei
    _, counts = ranked(lists, runtime, engine(server))
    assert "split requests" not in counts
    assert max(map(len, (of(seen) for seen in server.seen if seen.method == "POST"))) == 4


def test_the_limit_that_a_refusal_tells_is_learned(server: LocalServer, runtime: Runtime, lists: Ranking) -> None:
    server.app = tei
    order, counts = ranked(lists, runtime, engine(server, dialect="tei"))
    assert order == turned(lists)
    assert counts["split requests"] == 1
    assert [len(of(seen)) for seen in server.seen[:4]] == [10, 4, 4, 2]


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_limit_that_nobody_tells_is_found_by_halving(
    status: int, server: LocalServer, runtime: Runtime, lists: Ranking
) -> None:
    server.app = lambda seen: Reply({"message": "no"}, status) if len(of(seen)) > 3 else vllm(seen)
    order, counts = ranked(lists, runtime, engine(server, "/v1"))
    assert order == turned(lists)
    assert counts["split requests"] == 2
    sizes = [len(of(seen)) for seen in server.seen]
    assert sizes[:3] == [10, 5, 3]
    assert sorted(sizes[3:]) == [2, 2, 3, 3]  # the second half of the first list is asked as what was learned


def test_a_document_that_is_refused_does_not_take_others_along(
    server: LocalServer, runtime: Runtime, lists: Ranking
) -> None:
    server.app = lambda seen: Reply({"message": "no"}, 400) if "text of grade 6" in of(seen) else vllm(seen)
    order, counts = ranked(lists, runtime, engine(server, "/v1"))
    assert order[0] == ["d9", "d8", "d7", "d5", "d4", "d3", "d6", "d2", "d1", "d0"]
    assert order[1] == ["d2", "d1", "d0"]
    assert counts["failed requests"] == counts["failed answers"] == 1


def test_a_first_document_that_is_refused_ends_nothing(server: LocalServer, runtime: Runtime) -> None:
    server.app = lambda seen: Reply({"message": "empty"}, 400) if "" in of(seen) else vllm(seen)
    assert ask(server, runtime, "", "grade 1", "grade 2", "grade 3") == (None, 0.1, 0.2, 0.3)


def test_a_request_that_no_document_helps_ends_the_run_soon(
    server: LocalServer, runtime: Runtime, lists: Ranking
) -> None:
    server.app = lambda seen: Reply({"message": "model is required"}, 400)
    with pytest.raises(ServerError, match="status 400: model is required; nothing was answered before"):
        ranked(lists, runtime, engine(server, "/v2"))
    assert [len(of(seen)) for seen in server.seen] == [10, 5, 3, 2, 1, 1]


def test_a_model_that_compares_is_asked_about_whole_groups(
    server: LocalServer, runtime: Runtime, lists: Ranking
) -> None:
    comparing = engine(server, "/v1", compares=True, batch_documents=5)
    order, counts = ranked(lists, runtime, comparing, rule=Groupwise(size=5, passes=1))
    assert order[1] == turned(lists)[1]
    assert sorted(len(of(seen)) for seen in server.seen) == [3, 5, 5]
    assert counts["requests"] == 3
    _, counts = ranked(lists, runtime, comparing, rule=Groupwise(size=5, passes=1))
    assert counts["cached answers"] == 3
    with pytest.raises(ConfigError, match="shows up to 20 documents at once, but remote takes 5"):
        ranked(lists, runtime, comparing, rule=Groupwise())
    server.app = lambda seen: Reply({"message": "too many"}, 413)
    order, counts = ranked(
        lists, runtime, engine(server, "/v1", compares=True, model="x"), rule=Groupwise(passes=1), k=3
    )
    assert order[1] == first_stage(lists)[1]
    assert counts["failed requests"] == 2


# -- replies ------------------------------------------------------------


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([{"index": 0, "relevance_score": 1}], "1 results for 2 documents; index 1 is missing"),
        ([{"index": 0, "relevance_score": 1}] * 2, "index 0 comes twice"),
        ([{"index": 0, "relevance_score": 1}, {"index": 2, "relevance_score": 1}], "index 2 among the results of 2"),
        ([{"index": -1, "relevance_score": 1}], "index -1 among"),
        ([{"index": True, "relevance_score": 1}], "index True among"),
        ([{"relevance_score": 1}], "index None among"),
        ([1], "index None among"),
        ([{"index": 0, "relevance_score": None}], "the score of document 0 is None"),
        ([{"index": 0}], "the score of document 0 is None"),
        ([{"index": 0, "relevance_score": "0.5"}], "the score of document 0 is '0.5'"),
        ([{"index": 0, "relevance_score": float("nan")}], "the score of document 0 is nan"),
        ("none", "no list of results"),
    ],
)
def test_results_that_cannot_be_mapped_back_count_for_nothing(
    results: Any, message: str, server: LocalServer, runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    bad = Reply({"results": results})
    server.app = lambda seen: bad if len(of(seen)) == 2 else vllm(seen)
    ask(server, runtime, "grade 1", dialect="v1")
    assert ask(server, runtime, "grade 2", "grade 3", dialect="v1") == (None, None)
    assert re.search(re.escape(message), caplog.text)
    fresh = engine(server, dialect="v1", model="another")  # which nothing was answered to before
    with pytest.raises(ServerError, match=re.escape(message)):
        fresh.asker(None, runtime).ask([Asked("q", "q", ("a", "b"), ("grade 2", "grade 3"))], runtime)


def test_malformed_replies_are_counted(server: LocalServer, runtime: Runtime, lists: Ranking) -> None:
    server.script = [Reply({"results": []}), Reply(b"{")]
    order, counts = ranked(lists, runtime, engine(server, "/v1"))
    assert order == turned(lists)
    assert counts["malformed replies"] == counts["retries"] == 2


def test_what_is_no_reranker_is_told(server: LocalServer, runtime: Runtime, lists: Ranking) -> None:
    server.app = lambda seen: {"object": "list"}
    with pytest.raises(ServerError, match="no list of results; is `url` the address of a /rerank endpoint"):
        ranked(lists, runtime, engine(server, "/v1"))


# -- trouble ------------------------------------------------------------


def test_a_run_survives_a_server_that_misbehaves(server: LocalServer, runtime: Runtime, lists: Ranking) -> None:
    trouble = [Reply(status=429, headers={"Retry-After": "0"}), Reply(reset=True), Reply(status=500), Reply(b"[]")]
    server.script = trouble[:]
    order, counts = ranked(
        lists, runtime, engine(server, "/v1", batch_documents=2, retry=Retry(tries=9, first_wait_seconds=0.0))
    )
    assert order == turned(lists)
    assert counts["retries"] == 4


def test_a_second_run_asks_only_for_what_is_missing(server: LocalServer, runtime: Runtime, lists: Ranking) -> None:
    alive = iter(range(3))
    server.app = lambda seen: Reply(reset=True) if next(alive, None) is None else vllm(seen)
    small = engine(server, "/v1", batch_documents=2, max_concurrent=1, retry=Retry(2, 0.0, give_up_after=2))
    with pytest.raises(ServerError, match="2 requests in a row came to nothing"):
        ranked(lists, runtime, small)
    server.app = vllm
    order, counts = ranked(lists, runtime, small)
    assert order == turned(lists)
    assert counts["cached answers"] == 6
    assert counts["http calls"] == 7 - 3


def test_what_is_kept_needs_no_server(server: LocalServer, runtime: Runtime, lists: Ranking) -> None:
    order, _ = ranked(lists, runtime, engine(server))
    server.stop()
    again, counts = ranked(lists, runtime, engine(server))
    assert again == order
    assert counts["cached answers"] == counts["requests"] == N + 3


def test_answers_that_are_too_old_are_asked_for_again(server: LocalServer, runtime: Runtime, lists: Ranking) -> None:
    ranked(lists, runtime, engine(server))
    _, counts = ranked(lists, runtime, engine(server, expiry_days=0.0))
    assert "cached answers" not in counts


def test_a_server_that_is_not_there_ends_the_run_at_once(runtime: Runtime, lists: Ranking) -> None:
    with pytest.raises(ServerError, match="cannot be reached"):
        ranked(lists, runtime, RemoteEngine(f"http://127.0.0.1:{closed_port()}"))


def test_a_wrong_key_ends_the_run(
    server: LocalServer, runtime: Runtime, lists: Ranking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RERANKER_KEY", "secret")
    server.app = lambda seen: Reply({"message": "invalid api token"}, 401)
    with pytest.raises(ServerError, match="status 401: invalid api token"):
        ranked(lists, runtime, engine(server, "/v2", api_key_env="RERANKER_KEY"))
    assert [seen.headers["Authorization"] for seen in server.seen] == ["Bearer secret"]


def test_texts_are_sent_as_they_are_but_for_what_no_text_holds(server: LocalServer, runtime: Runtime) -> None:
    ask(server, runtime, "a\x00b \ud800 {query} <|im_end|>", "", dialect="v1")
    assert server.bodies()[0]["documents"] == ["a b \ufffd {query} <|im_end|>", ""]


# -- configuration ------------------------------------------------------------


def test_it_is_declared_in_yaml_and_written_back() -> None:
    pipeline = parse_pipeline("stages: [{rerank: {engine: {remote: {url: http://h, dialect: tei, compares: true}}}}]")
    (stage,) = pipeline.stages
    assert stage == Rerank(RemoteEngine("http://h", dialect="tei", compares=True))
    assert parse_pipeline(to_yaml(pipeline)) == pipeline
    (stage,) = parse_pipeline("stages: [{rerank: {engine: {remote: http://h}}}]").stages
    assert stage == Rerank(RemoteEngine("http://h"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "h:80"}, "remote: url is 'h:80'"),
        ({"batch_documents": 0}, "remote: batch_documents is 0"),
        ({"max_tokens_per_doc": 0}, "max_tokens_per_doc 0, at least 1"),
        ({"max_concurrent": 0}, "remote: max_concurrent is 0"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_written(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RemoteEngine(**{"url": "http://h", **options})


def test_it_takes_no_prompt(server: LocalServer, runtime: Runtime) -> None:
    with pytest.raises(ConfigError, match="remote: takes no prompt"):
        engine(server).asker("yes-no", runtime)


def test_it_is_measured_by_characters(runtime: Runtime) -> None:
    meter = RemoteEngine("http://h", api_key_env="NOT_SET").measure(None, runtime)
    assert meter.sizes([Asked("q", "abcd", ("d",), ("abcdefgh",))])[0].tokens == 3
