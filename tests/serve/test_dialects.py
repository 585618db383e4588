"""What the contract says of requests and replies, dialect by dialect, through the routes."""

from __future__ import annotations

import asyncio
import base64
import math
import struct
from typing import Any

import pytest
from serve.stand_in import Server, StandIn, model_folder, serving

from rerank.serve.settings import ServedModel

pytestmark = pytest.mark.needs("starlette", "prometheus_client", "httpx2")

DOCUMENTS = ["low =-1", "high =2", "middle =0.5"]


@pytest.fixture
def model(tmp_path):
    return ServedModel(model_folder(tmp_path / "small-ce"))


@pytest.fixture
def encoder(tmp_path):
    return ServedModel(model_folder(tmp_path / "encoder", "dense"))


ENCODES = {"kind": "cosine", "dimension": 3, "limit": 50, "pooling": "mean"}


def answered(model: ServedModel, path: str, body: Any, worker: StandIn | None = None, **settings: Any) -> Any:
    """The response to one request."""

    async def main() -> Any:
        async with serving(model, worker=worker, **settings) as server:
            return await server.post(path, body)

    return asyncio.run(main())


def results(model: ServedModel, **fields: Any) -> list[dict[str, Any]]:
    reply = answered(model, "/v1/rerank", {"query": "q", "documents": DOCUMENTS, **fields})
    assert reply.status_code == 200, reply.text
    return reply.json()["results"]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# -- objects ------------------------------------------------------------


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank", "/reranking", "/v1/reranking", "/v1/rerank/"])
def test_the_reply_has_what_every_client_reads(model, path):
    reply = answered(model, path, {"query": "what", "documents": DOCUMENTS, "model": "whatever"}).json()
    assert [row["index"] for row in reply["results"]] == [1, 2, 0]
    assert [row["relevance_score"] for row in reply["results"]] == pytest.approx(
        [sigmoid(2), sigmoid(0.5), sigmoid(-1)]
    )
    assert reply["data"] == reply["results"]
    assert reply["object"] == "rerank"
    assert reply["model"] == "small-ce"
    assert reply["id"]
    tokens = sum(1 + len(text.split()) + 3 for text in DOCUMENTS)
    assert reply["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert reply["meta"]["billed_units"] == {"search_units": 1}
    assert reply["meta"]["tokens"] == {"input_tokens": tokens, "output_tokens": 0}
    assert reply["meta"]["api_version"] == {"version": "2" if path.startswith("/v2") else "1"}
    assert set(reply["meta"]["timing"]) == {"queue_seconds", "tokenize_seconds", "inference_seconds"}
    assert reply["meta"]["counts"]["calls"] == 3
    assert "warnings" not in reply["meta"]
    assert "document" not in reply["results"][0]


def test_equal_scores_keep_the_order_of_the_request(model):
    assert [row["index"] for row in results(model, documents=["a =1", "b =2", "c =1", "d =1"])] == [1, 0, 2, 3]


@pytest.mark.parametrize(
    ("fields", "n"),
    [
        ({"top_n": 2}, 2),
        ({"top_n": 0}, 3),
        ({"top_n": None}, 3),
        ({"top_n": 99}, 3),
        ({"top_k": 1}, 1),
        ({"top_k": 1, "top_n": 2}, 2),
        ({"top_k": 1, "top_n": None}, 1),
    ],
)
def test_top_n_limits_the_results(model, fields, n):
    assert len(results(model, **fields)) == n


@pytest.mark.parametrize("value", [True, "true", "True"])
def test_documents_come_back_as_objects_on_request(model, value):
    found = results(model, return_documents=value)
    assert found[0]["document"] == {"text": "high =2"}


@pytest.mark.parametrize("value", [False, "false", None])
def test_documents_stay_away_otherwise(model, value):
    assert "document" not in results(model, return_documents=value)[0]


def test_the_second_version_never_sends_documents_back(model):
    body = {"query": "q", "documents": DOCUMENTS, "return_documents": True}
    assert "document" not in answered(model, "/v2/rerank", body).json()["results"][0]


def test_documents_may_be_objects_and_keep_their_other_fields(model):
    given = [
        {"text": "one =1", "id": 7},
        {"content": [{"type": "text", "text": "two"}, {"type": "text", "text": "=2"}]},
    ]
    found = results(model, documents=given, return_documents=True)
    assert [row["document"] for row in found] == [
        {"content": given[1]["content"], "text": "two\n=2"},
        {"text": "one =1", "id": 7},
    ]


def test_rank_fields_choose_the_text_one_to_a_line_and_skip_what_is_missing(model):
    given = [{"title": "A", "body": "=3", "year": 1999}, {"title": "B"}]
    found = results(model, documents=given, rank_fields=["title", "nothing", "year", "body"], return_documents=True)
    assert [row["document"]["text"] for row in found] == ["A\n1999\n=3", "B"]


def test_a_bare_string_is_a_list_of_one_and_an_empty_one_is_a_document(model):
    assert len(results(model, documents="alone")) == 1
    assert len(results(model, documents=["", "x"])) == 2


def test_a_query_may_be_an_object(model):
    assert len(results(model, query={"text": "q"})) == 3


def test_unknown_fields_of_real_clients_are_ignored(model):
    extra = {"priority": 3, "return_len": True, "user": "u", "encoding_format": "float", "request_id": "r", "x": [1]}
    assert len(results(model, **extra, max_chunks_per_doc=10)) == 3


def test_raw_scores_leave_the_mapping_out_and_keep_the_order(model):
    raw = results(model, raw_scores=True)
    assert [row["relevance_score"] for row in raw] == [2, 0.5, -1]
    mapped = results(model)
    assert [row["relevance_score"] for row in mapped] == [sigmoid(row["relevance_score"]) for row in raw]


def test_halves_of_characters_and_other_oddities_pass(model):
    texts = ["\ud800 half", "null \x00 byte", "🙂", "e\u0301"]
    found = results(model, documents=texts, return_documents=True, query="\udfff?")
    assert {row["document"]["text"] for row in found} == set(texts)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"query": ""}, "query"),
        ({"query": "  \n"}, "query"),
        ({"query": 5}, "query"),
        ({"query": None}, "query"),
        ({"documents": []}, "documents"),
        ({"documents": None}, "documents"),
        ({"documents": {"text": "x"}}, "documents"),
        ({"documents": ["x", 5]}, "documents"),
        ({"documents": ["x", {"title": "x"}]}, "documents"),
        ({"documents": [{"content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]}, "documents"),
        ({"top_n": -1}, "top_n"),
        ({"top_n": 1.5}, "top_n"),
        ({"top_n": "3"}, "top_n"),
        ({"top_n": True}, "top_n"),
        ({"top_k": -2}, "top_k"),
        ({"return_documents": "yes"}, "return_documents"),
        ({"rank_fields": "title"}, "rank_fields"),
        ({"rank_fields": [1]}, "rank_fields"),
        ({"max_tokens_per_doc": -1}, "max_tokens_per_doc"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"truncation_side": "middle"}, "truncation_side"),
        ({"truncation": "no"}, "truncation"),
        ({"raw_scores": 1}, "raw_scores"),
        ({"instruction": 1}, "instruction"),
        ({"explain": 1}, "explain"),
    ],
)
def test_a_bad_field_is_400_and_named(model, fields, param):
    reply = answered(model, "/v1/rerank", {"query": "q", "documents": DOCUMENTS, **fields})
    assert reply.status_code == 400
    error = reply.json()
    assert error["error"]["param"] == param
    assert error["error"]["type"] == "invalid_request_error"
    assert error["error"]["code"] == 400
    assert error["message"] == error["detail"] == error["error"]["message"]
    assert isinstance(error["detail"], str)
    assert error["id"] == reply.headers["x-request-id"]


@pytest.mark.parametrize("missing", ["query", "documents"])
def test_a_missing_field_is_400_and_named(model, missing):
    body = {"query": "q", "documents": DOCUMENTS}
    del body[missing]
    assert answered(model, "/v1/rerank", body).json()["error"]["param"] == missing


def test_texts_and_documents_together_are_refused_in_the_object_shape(model):
    reply = answered(model, "/rerank", {"query": "q", "texts": ["a"], "documents": ["a"]})
    assert reply.status_code == 400
    assert "detail" in reply.json()


def test_too_many_documents_are_refused_with_limit_and_number(model):
    reply = answered(model, "/v1/rerank", {"query": "q", "documents": ["x"] * 11}, max_documents=10)
    assert reply.status_code == 400
    assert "10" in reply.json()["detail"]
    assert "11" in reply.json()["detail"]
    reply = answered(model, "/rerank", {"query": "q", "texts": ["x"] * 11}, max_documents=10)
    assert reply.status_code == 422
    assert reply.json()["error_type"] == "Validation"


def test_a_thousand_documents_are_split_inside(model):
    worker = StandIn()
    body = {"query": "q", "documents": [f"{'word ' * 20}={n}" for n in range(1000)]}
    reply = answered(model, "/v1/rerank", body, worker, max_batch_tokens=2000)
    assert [row["index"] for row in reply.json()["results"]] == list(range(999, -1, -1))
    assert len(worker.batches) > 5
    assert sum(map(len, worker.texts)) == 1000


# -- long texts ------------------------------------------------------------


def test_documents_are_cut_by_tokens_and_the_reply_says_so(model):
    worker = StandIn()
    body = {"query": "q", "documents": ["a b c d", "a b"], "max_tokens_per_doc": 3}
    reply = answered(model, "/v1/rerank", body, worker).json()
    assert sorted(text for batch in worker.texts for text in batch) == ["a b", "a b c"]
    assert reply["meta"]["warnings"] == ["1 document was truncated"]


@pytest.mark.parametrize(("side", "kept"), [("left", "c d"), ("right", "a b")])
def test_a_pair_may_be_capped_at_either_side(model, side, kept):
    worker = StandIn()
    body = {"query": "q", "documents": ["a b c d"], "truncate_prompt_tokens": 6, "truncation_side": side}
    answered(model, "/v1/rerank", body, worker)
    assert worker.texts == [[kept]]


def test_minus_one_and_zero_mean_no_limit(model):
    worker = StandIn()
    body = {"query": "q", "documents": ["a b c d"], "truncate_prompt_tokens": -1, "max_tokens_per_doc": 0}
    assert answered(model, "/v1/rerank", body, worker).status_code == 200
    assert worker.texts == [["a b c d"]]


def test_a_long_pair_is_refused_where_nothing_may_be_cut(model):
    body = {"query": "q", "documents": ["word " * 60, "short"]}
    reply = answered(model, "/v1/rerank", {**body, "truncation": False})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "truncation")
    assert answered(model, "/v1/rerank", body, auto_truncate=False).status_code == 400
    assert answered(model, "/v1/rerank", {**body, "truncation": True}, auto_truncate=False).status_code == 200
    reply = answered(model, "/rerank", {"query": "q", "texts": body["documents"], "truncate": False})
    assert (reply.status_code, reply.json()["error_type"]) == (422, "Validation")


def test_cut_documents_are_told_of(model):
    reply = answered(model, "/v1/rerank", {"query": "q", "documents": ["word " * 60, "x", "word " * 70]}).json()
    assert reply["meta"]["warnings"] == ["2 documents were truncated"]


def test_a_query_that_fills_the_window_is_refused(model):
    reply = answered(model, "/v1/rerank", {"query": "word " * 60, "documents": ["x"]})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "query"


# -- TEI ------------------------------------------------------------


def test_texts_get_a_bare_list_with_teis_headers(model):
    reply = answered(model, "/rerank", {"query": "q", "texts": DOCUMENTS})
    assert [row["index"] for row in reply.json()] == [1, 2, 0]
    assert set(reply.json()[0]) == {"index", "score"}
    for name in ("compute-time", "compute-characters", "compute-tokens", "total-time", "tokenization-time"):
        assert reply.headers[f"x-{name}"].isdecimal()
    assert reply.headers["x-queue-time"].isdecimal()
    assert reply.headers["x-inference-time"].isdecimal()
    assert reply.headers["x-compute-type"] == "cpu"
    assert reply.headers["x-compute-characters"] == str(1 + sum(map(len, DOCUMENTS)))


def test_texts_are_understood_under_v1_too(model):
    assert isinstance(answered(model, "/v1/rerank", {"query": "q", "texts": DOCUMENTS}).json(), list)


def test_teis_options(model):
    body = {"query": "q", "texts": DOCUMENTS, "raw_scores": True, "return_text": True, "top_n": 1, "truncate": None}
    reply = answered(model, "/rerank", {**body, "truncation_direction": "Left", "what": "ever"})
    assert reply.json() == [{"index": 1, "score": 2.0, "text": "high =2"}]


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({"query": "q", "texts": []}, 400, "Empty"),
        ({"texts": ["a"]}, 422, "Validation"),
        ({"query": 1, "texts": ["a"]}, 422, "Validation"),
        ({"query": "q", "texts": "a"}, 422, "Validation"),
        ({"query": "q", "texts": [{"text": "a"}]}, 422, "Validation"),
        ({"query": "q", "texts": ["a"], "truncate": "yes"}, 422, "Validation"),
        ({"query": "q", "texts": ["a"], "truncation_direction": "up"}, 422, "Validation"),
    ],
)
def test_teis_errors(model, body, status, kind):
    reply = answered(model, "/rerank", body)
    assert reply.status_code == status
    assert reply.json()["error_type"] == kind
    assert set(reply.json()) == {"error", "error_type"}


def test_predict_takes_texts_pairs_and_batches(model):
    def scores(inputs: Any) -> Any:
        return answered(model, "/predict", {"inputs": inputs, "raw_scores": True}).json()

    assert scores(["q", "a =2"]) == [{"score": 2.0, "label": "LABEL_0"}]
    assert scores("q")[0]["label"] == "LABEL_0"
    assert [row[0]["score"] for row in scores([["q", "a =2"], ["r", "b =1"], ["s"]])] == [2.0, 1.0, 0.0]
    assert answered(model, "/predict", {"inputs": [["a", "b", "c"]]}).status_code == 422
    assert answered(model, "/predict", {"inputs": []}).json()["error_type"] == "Empty"


def test_tokenize_gives_lists_of_tokens(model):
    reply = answered(model, "/tokenize", {"inputs": "a b"}).json()
    assert [token["text"] for token in reply[0]] == ["a", "b"]
    assert len(answered(model, "/tokenize", {"inputs": ["a", "b"]}).json()) == 2
    assert answered(model, "/tokenize", {"inputs": 5}).status_code == 422


@pytest.mark.parametrize("path", ["/", "/invocations"])
def test_sagemakers_paths_follow_the_body(model, path):
    assert isinstance(answered(model, path, {"query": "q", "texts": ["a"]}).json(), list)
    assert "results" in answered(model, path, {"query": "q", "documents": ["a"]}).json()
    assert answered(model, path, {"inputs": ["q", "a =1"], "raw_scores": True}).json()[0]["score"] == 1.0


# -- scores of pairs ------------------------------------------------------------


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
@pytest.mark.parametrize(
    ("left", "right"),
    [("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2")],
)
def test_score_answers_in_input_order(model, path, left, right):
    reply = answered(model, path, {left: "q", right: DOCUMENTS, "raw_scores": True}).json()
    assert [row["score"] for row in reply["data"]] == [-1, 2, 0.5]
    assert [row["index"] for row in reply["data"]] == [0, 1, 2]
    assert {row["object"] for row in reply["data"]} == {"score"}
    assert reply["object"] == "list"
    assert isinstance(reply["created"], int)
    assert reply["usage"]["total_tokens"] > 0


def test_score_pairs_lists_of_one_size(model):
    worker = StandIn()
    body = {"text_1": ["p", "q"], "text_2": ["a =1", "b =3"], "raw_scores": True}
    reply = answered(model, "/score", body, worker).json()
    assert [row["score"] for row in reply["data"]] == [1.0, 3.0]
    assert [question[1] for question in worker.batches[0]["questions"]] == ["p", "q"]
    one = answered(model, "/score", {"text_1": "p", "text_2": "b =3", "raw_scores": True}).json()
    assert [row["score"] for row in one["data"]] == [3.0]


@pytest.mark.parametrize(
    "body",
    [
        {"text_1": ["a", "b"], "text_2": ["c"]},
        {"text_1": ["a", "b"], "text_2": ["c", "d", "e"]},
        {"text_1": [], "text_2": ["c"]},
        {"text_1": "a", "text_2": []},
        {"text_1": "a"},
        {"text_1": "a", "text_2": 5},
    ],
)
def test_other_sizes_are_refused(model, body):
    assert answered(model, "/score", body).status_code == 400


# -- vectors ------------------------------------------------------------


def test_embed_gives_lists_of_numbers(encoder):
    reply = answered(encoder, "/embed", {"inputs": ["a", "bb"]}, StandIn(facts=ENCODES))
    assert reply.json()[1] == pytest.approx([0.6, 0.8, 2.0])
    assert answered(encoder, "/embed", {"inputs": "a"}, StandIn(facts=ENCODES)).json() != []


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings"])
def test_openais_embeddings_in_both_forms(encoder, path):
    reply = answered(encoder, path, {"input": ["a", "bb"], "model": "m"}, StandIn(facts=ENCODES)).json()
    assert reply["object"] == "list"
    assert [row["object"] for row in reply["data"]] == ["embedding"] * 2
    assert reply["data"][1]["embedding"] == pytest.approx([0.6, 0.8, 2.0])
    assert reply["usage"] == {"prompt_tokens": 6, "total_tokens": 6}
    body = {"input": "bb", "encoding_format": "base64"}
    coded = answered(encoder, path, body, StandIn(facts=ENCODES)).json()["data"][0]["embedding"]
    assert struct.unpack("<3f", base64.b64decode(coded)) == pytest.approx((0.6, 0.8, 2.0))


def test_fewer_dimensions_have_length_1_again(encoder):
    body = {"input": "bb", "dimensions": 2}
    reply = answered(encoder, "/v1/embeddings", body, StandIn(facts=ENCODES)).json()
    assert reply["data"][0]["embedding"] == pytest.approx([0.6, 0.8])
    assert answered(encoder, "/v1/embeddings", {**body, "dimensions": 4}, StandIn(facts=ENCODES)).status_code == 400


@pytest.mark.parametrize("given", [[1, 2], [[1, 2]], [], 5, None])
def test_tokens_and_nothing_are_refused(encoder, given):
    assert answered(encoder, "/v1/embeddings", {"input": given}, StandIn(facts=ENCODES)).status_code == 400


def test_without_an_encoder_vectors_are_424_and_404(model):
    reply = answered(model, "/embed", {"inputs": "a"})
    assert (reply.status_code, reply.json()["error_type"]) == (424, "Backend")
    reply = answered(model, "/v1/embeddings", {"input": "a"})
    assert (reply.status_code, reply.json()["error"]["type"]) == (404, "model_not_supported")


def test_an_encoder_reranks_whole_lists_by_the_worker(encoder):
    worker = StandIn(facts=ENCODES)
    reply = answered(encoder, "/v1/rerank", {"query": "q", "documents": ["a =0.1", "b =0.7"]}, worker).json()
    assert [row["index"] for row in reply["results"]] == [1, 0]
    assert [row["relevance_score"] for row in reply["results"]] == pytest.approx([0.85, 0.55])
    assert worker.seen["rank"] == 1


# -- rules ------------------------------------------------------------


@pytest.mark.parametrize("rule", ["setwise", "listwise", "groupwise", "tournament"])
def test_rules_run_in_the_front_and_give_scores_from_0_to_1(tmp_path, rule):
    prompts = {"groupwise": "group-scores", "setwise": "pick"}
    model = ServedModel(model_folder(tmp_path / "lm", "causal_lm"), rule=rule, prompt=prompts.get(rule, "order"))
    worker = StandIn(score=lambda text: float(text.rpartition("=")[2]) / 50, facts={"kind": "unknown"})
    body = {"query": "q", "documents": [f"d ={n}" for n in range(30)]}
    found = answered(model, "/v1/rerank", body, worker).json()["results"]
    assert sorted(row["index"] for row in found) == list(range(30))
    first = {row["index"] for row in found[:5]}
    assert first == {25, 26, 27, 28, 29}
    scores = [row["relevance_score"] for row in found]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    assert worker.seen["ask"] >= 1


def test_pairs_of_different_queries_are_refused_by_rules_that_compare(tmp_path):
    model = ServedModel(model_folder(tmp_path / "lm", "causal_lm"), rule="setwise", prompt="pick")
    body = {"text_1": ["p", "q"], "text_2": ["a", "b"]}
    reply = answered(model, "/score", body, StandIn(facts={}))
    assert (reply.status_code, reply.json()["error"]["type"]) == (400, "model_not_supported")


# -- what the model wrote ------------------------------------------------------------


@pytest.fixture
def writer(tmp_path):
    """A language model that reasons about one document after the other."""
    return ServedModel(model_folder(tmp_path / "lm", "causal_lm"), prompt="rank1")


def test_what_the_model_wrote_comes_on_request_and_changes_no_score(writer):
    body = {"query": "q", "documents": DOCUMENTS, "top_n": 2}
    plain = answered(writer, "/v1/rerank", body).json()
    assert "reasoning" not in plain["meta"]
    for path in ("/v1/rerank", "/v2/rerank"):
        told = answered(writer, path, {**body, "explain": True}).json()
        assert told["meta"]["reasoning"] == [
            {"documents": [place], "text": f"read {text}"} for place, text in enumerate(DOCUMENTS)
        ]
        assert told["results"] == plain["results"]
        assert "warnings" not in told["meta"]


def test_who_shares_a_batch_with_one_that_asks_why_is_told_nothing(writer):
    async def main() -> list[Any]:
        async with serving(writer) as server:
            bodies = ({"query": q, "documents": DOCUMENTS, "explain": q != "b"} for q in "aba")
            replies = await asyncio.gather(*(server.post("/v1/rerank", body) for body in bodies))
            assert server.service.queue.batches == 1
            return [reply.json()["meta"].get("reasoning") for reply in replies]

    first, second, third = asyncio.run(main())
    assert second is None
    assert first == third
    assert len(first) == 3


def test_documents_that_were_shown_together_are_told_in_the_order_shown(tmp_path):
    model = ServedModel(
        model_folder(tmp_path / "lm", "causal_lm"), prompt="pick-reasoning", rule="{setwise: {size: 3}}"
    )
    found = answered(model, "/v1/rerank", {"query": "q", "documents": DOCUMENTS, "explain": True}).json()
    for each in found["meta"]["reasoning"]:
        assert each["text"] == "read " + " | ".join(DOCUMENTS[place] for place in each["documents"])
    assert max(len(each["documents"]) for each in found["meta"]["reasoning"]) == 3


def test_pipelines_tell_what_their_models_wrote(tmp_path):
    engine = f"{{causal_lm: {{model: {model_folder(tmp_path / 'lm', 'causal_lm')}}}}}"
    path = tmp_path / "steps.yaml"
    path.write_text(f"stages: [{{cut: 2}}, {{rerank: {{engine: {engine}, prompt: rank1}}}}]\n")
    found = answered(ServedModel(str(path)), "/v1/rerank", {"query": "q", "documents": DOCUMENTS, "explain": True})
    assert found.json()["meta"]["reasoning"] == [{"documents": [1, 2, 0], "text": "read 3"}]


def test_a_model_that_writes_nothing_says_so(model):
    meta = answered(model, "/v1/rerank", {"query": "q", "documents": DOCUMENTS, "explain": True}).json()["meta"]
    assert "reasoning" not in meta
    assert meta["warnings"] == ["nothing is explained: this model scores and writes nothing"]


def test_a_reply_holds_only_so_much_of_what_was_written(writer, monkeypatch):
    monkeypatch.setattr("rerank.serve.queueing.MOST_REASONING", 20)
    meta = answered(writer, "/v1/rerank", {"query": "q", "documents": DOCUMENTS, "explain": True}).json()["meta"]
    assert [each["documents"] for each in meta["reasoning"]] == [[0]]
    assert meta["warnings"][0].startswith("the reasoning of 2 answers was left out")


@pytest.mark.parametrize(("name", "can"), [("rank1", True), ("yes-no", False), ("order", True)])
def test_info_says_whose_answers_are_written(tmp_path, name, can):
    async def main() -> Any:
        folder = model_folder(tmp_path / "lm", "causal_lm")
        async with serving(ServedModel(folder, prompt=name), ServedModel("bm25"), worker=StandIn(facts={})) as server:
            return (await server.client.get("/info")).json()

    found = asyncio.run(main())
    assert found["can_explain"] is can
    assert [each["can_explain"] for each in found["models"]] == [can, False]


# -- pipelines ------------------------------------------------------------


def test_search_gives_what_the_pipeline_finds():
    async def main(server: Server) -> None:
        one = (await server.post("/search", {"query": "rain", "k": 2})).json()
        assert one["results"] == [
            {"id": "d0", "score": 9.0, "document": {"text": "rain 0"}},
            {"id": "d1", "score": 8.0, "document": {"text": "rain 1"}},
        ]
        many = (await server.post("/v1/search", {"queries": ["a", "b"], "k": 1, "return_documents": False})).json()
        assert [row["results"] for row in many["data"]] == [[{"id": "d0", "score": 9.0}]] * 2
        assert many["usage"]["total_tokens"] == 6
        for reply in (one, many):
            assert set(reply["meta"]["timing"]) == {"queue_seconds", "tokenize_seconds", "inference_seconds"}
            assert reply["meta"]["timing"]["inference_seconds"] == 0.001
        for bad in ({"query": ""}, {"queries": []}, {"queries": ["a", " "]}, {"query": "a", "k": 5000}, {}):
            assert (await server.post("/search", bad)).status_code == 400
        cannot = await server.post("/v1/rerank", {"query": "q", "documents": ["a"]})
        assert (cannot.status_code, cannot.json()["error"]["type"]) == (400, "model_not_supported")
        cannot = await server.post("/rerank", {"query": "q", "texts": ["a"]})
        assert (cannot.status_code, cannot.json()["error_type"]) == (424, "Backend")

    async def run() -> None:
        async with serving(ServedModel("bm25"), worker=StandIn(facts={})) as server:
            await main(server)

    asyncio.run(run())


def test_a_model_that_finds_nothing_refuses_searches(model):
    assert answered(model, "/search", {"query": "q"}).status_code == 400


def test_a_pipeline_reranks_given_documents_by_the_stages_after_its_search(tmp_path):
    folder = model_folder(tmp_path / "ce")
    path = tmp_path / "found-and-reranked.yaml"
    path.write_text(f"stages: [{{bm25: {{k: 50}}}}, {{rerank: {{engine: {{cross_encoder: {folder}}}}}}}]\n")
    reply = answered(ServedModel(str(path)), "/v1/rerank", {"query": "q", "documents": DOCUMENTS}).json()
    assert reply["model"] == "found-and-reranked"
    # The stage reranks the first 100 of a list, so its scores are ranks.
    assert [row["relevance_score"] for row in reply["results"]] == pytest.approx([1, 2 / 3, 1 / 3])
