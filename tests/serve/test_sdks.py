"""The real clients of other servers, unchanged, against this one: real sockets, real uvicorn, a stand-in for the model.

They are the dependency group `slow`, except cohere 7, which langchain-cohere does not take yet: its tests run where
that is installed instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

pytest.importorskip("starlette", reason="the extra serve brings it")
pytest.importorskip("uvicorn", reason="the extra serve brings it")

from serve.live import Live, live
from serve.stand_in import StandIn, model_folder

from rerank.serve.settings import ServedModel

SDK = "a client of other servers, in the dependency group slow"

# Warnings are the clients' own.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

KEY = "a-key-of-this-server"
QUERY = "weather"
DOCS = ["rain =1", "snow =3", "hail =2"]
BEST_FIRST = [1, 2, 0]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("models")
    worker = StandIn()
    worker.facts["dimension"] = 3
    models = (ServedModel(model_folder(folder / "small")), ServedModel(model_folder(folder / "encoder", "dense")))
    with live(*models, worker=worker, api_keys=(KEY,)) as running:
        yield running


@pytest.fixture
def url(server: Live) -> str:
    return server.url


# -- Cohere ------------------------------------------------------------


@pytest.mark.parametrize("name", ["Client", "ClientV2"])
def test_cohere(url, name):
    cohere = pytest.importorskip("cohere", reason=SDK)
    client = getattr(cohere, name)(api_key=KEY, base_url=url)
    found = client.rerank(model="small", query=QUERY, documents=DOCS)
    assert [each.index for each in found.results] == BEST_FIRST
    assert all(0 <= each.relevance_score <= 1 for each in found.results)
    assert found.meta.api_version.version == name.removeprefix("ClientV").replace("Client", "1")
    assert found.meta.billed_units.search_units == 1
    assert len(client.rerank(model="small", query=QUERY, documents=DOCS, top_n=2).results) == 2


def test_cohere_gets_documents_and_reads_fields_in_its_first_version(url):
    cohere = pytest.importorskip("cohere", reason=SDK)
    documents = [{"title": "x", "body": "=1"}, {"title": "x", "body": "=3"}]
    found = cohere.Client(api_key=KEY, base_url=url).rerank(
        model="small", query=QUERY, documents=documents, rank_fields=["title", "body"], return_documents=True
    )
    assert [each.index for each in found.results] == [1, 0]
    assert found.results[0].document.text == "x\n=3"


def test_cohere_awaited(url):
    cohere = pytest.importorskip("cohere", reason=SDK)

    async def both() -> list[list[int]]:
        client = cohere.AsyncClientV2(api_key=KEY, base_url=url)
        found = await asyncio.gather(
            *(client.rerank(model="small", query=QUERY, documents=DOCS, max_tokens_per_doc=9) for _ in range(8))
        )
        return [[row.index for row in each.results] for each in found]

    assert asyncio.run(both()) == [BEST_FIRST] * 8


def test_cohere_reads_errors(url):
    cohere = pytest.importorskip("cohere", reason=SDK)
    client = cohere.ClientV2(api_key=KEY, base_url=url)
    with pytest.raises(cohere.errors.BadRequestError) as caught:
        client.rerank(model="small", query=" ", documents=DOCS)
    assert "query" in caught.value.body["message"]
    with pytest.raises(cohere.errors.NotFoundError):
        client.rerank(model="other", query=QUERY, documents=DOCS)
    with pytest.raises(cohere.errors.UnauthorizedError):
        cohere.ClientV2(api_key="wrong", base_url=url).rerank(model="small", query=QUERY, documents=DOCS)


def test_cohere_waits_for_a_full_server(tmp_path):
    cohere = pytest.importorskip("cohere", reason=SDK)
    with live(ServedModel(model_folder(tmp_path / "small")), max_concurrent_requests=1) as server:
        server.do(server.worker.gate.clear)

        async def both() -> list[object]:
            first, second = (cohere.AsyncClientV2(api_key="any", base_url=server.url) for _ in range(2))
            held = asyncio.ensure_future(first.rerank(model="small", query=QUERY, documents=DOCS))
            await asyncio.sleep(0.3)
            waiting = asyncio.ensure_future(second.rerank(model="small", query=QUERY, documents=DOCS))
            await asyncio.sleep(0.3)
            server.do(server.worker.gate.set)
            return [row.results[0].index for row in await asyncio.gather(held, waiting)]

        assert asyncio.run(both()) == [1, 1]
        assert server.service.metrics.rejected.labels("overloaded")._value.get() >= 1


# -- Voyage, OpenAI ------------------------------------------------------------


def test_voyage(url):
    voyageai = pytest.importorskip("voyageai", reason=SDK)
    client = voyageai.Client(api_key=KEY, base_url=f"{url}/v1")
    found = client.rerank(QUERY, DOCS, model="small", top_k=2)
    assert [(each.index, each.document) for each in found.results] == [(1, DOCS[1]), (2, DOCS[2])]
    assert found.total_tokens > 0


def test_voyage_reads_errors(url):
    voyageai = pytest.importorskip("voyageai", reason=SDK)
    with pytest.raises(voyageai.error.InvalidRequestError):
        voyageai.Client(api_key=KEY, base_url=f"{url}/v1").rerank(" ", DOCS, model="small")


def test_openai(url):
    openai = pytest.importorskip("openai", reason=SDK)
    client = openai.OpenAI(api_key=KEY, base_url=f"{url}/v1")
    assert [each.id for each in client.models.list()] == ["small", "encoder"]
    for form in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):
        found = client.embeddings.create(model="encoder", input=["a", "bcd"], **form)
        assert [each.index for each in found.data] == [0, 1]
        assert found.usage.total_tokens > 0
    assert client.embeddings.create(model="encoder", input="bcd").data[0].embedding == pytest.approx([0.6, 0.8, 3.0])
    with pytest.raises(openai.NotFoundError, match="makes no vectors"):
        client.embeddings.create(model="small", input="a")
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(api_key="wrong", base_url=f"{url}/v1").models.list()


# -- LangChain, LlamaIndex ------------------------------------------------------------


def test_langchain_cohere(url):
    module = pytest.importorskip("langchain_cohere", reason=SDK)
    from langchain_core.documents import Document

    compressor = module.CohereRerank(cohere_api_key=KEY, base_url=url, model="small", top_n=2)
    found = compressor.compress_documents([Document(page_content=text) for text in DOCS], QUERY)
    assert [each.page_content for each in found] == [DOCS[1], DOCS[2]]
    assert 0 <= found[0].metadata["relevance_score"] <= 1
    assert [each["index"] for each in compressor.rerank(DOCS, QUERY, top_n=3)] == BEST_FIRST


def nodes():
    from llama_index.core.schema import NodeWithScore, TextNode

    return [NodeWithScore(node=TextNode(text=text), score=0.1) for text in DOCS]


def test_llama_index_cohere(url):
    module = pytest.importorskip("llama_index.postprocessor.cohere_rerank", reason=SDK)
    found = module.CohereRerank(api_key=KEY, base_url=url, model="small", top_n=2).postprocess_nodes(
        nodes(), query_str=QUERY
    )
    assert [each.node.text for each in found] == [DOCS[1], DOCS[2]]


def test_llama_index_jina(url):
    module = pytest.importorskip("llama_index.postprocessor.jinaai_rerank", reason=SDK)
    reranker = module.JinaRerank(api_key=KEY, base_url=f"{url}/v1", model="small", top_n=2)
    assert [each.node.text for each in reranker.postprocess_nodes(nodes(), query_str=QUERY)] == [DOCS[1], DOCS[2]]
    with pytest.raises(RuntimeError, match="query must not be empty"):
        reranker.postprocess_nodes(nodes(), query_str=" ")


def test_llama_index_tei(url):
    module = pytest.importorskip("llama_index.postprocessor.tei_rerank", reason=SDK)
    reranker = module.TextEmbeddingInference(base_url=url, auth_token=f"Bearer {KEY}", top_n=2)
    assert [each.node.text for each in reranker.postprocess_nodes(nodes(), query_str=QUERY)] == [DOCS[1], DOCS[2]]


# -- Haystack ------------------------------------------------------------


def documents():
    from haystack import Document

    return [Document(content=text) for text in DOCS]


def ranked(ranker):
    ranker.warm_up() if hasattr(ranker, "warm_up") else None
    found = ranker.run(query=QUERY, documents=documents(), top_k=2)["documents"]
    assert all(0 <= each.score <= 1 for each in found)
    return [each.content for each in found]


def secret(key=KEY):
    from haystack.utils import Secret

    return Secret.from_token(key)


def test_haystack_cohere(url):
    module = pytest.importorskip("haystack_integrations.components.rankers.cohere", reason=SDK)
    assert ranked(module.CohereRanker(model="small", api_key=secret(), api_base_url=url)) == [DOCS[1], DOCS[2]]


def test_haystack_jina(url):
    module = pytest.importorskip("haystack_integrations.components.rankers.jina", reason=SDK)
    ranker = module.JinaRanker(model="small", api_key=secret(), base_url=f"{url}/v1/rerank")
    assert ranked(ranker) == [DOCS[1], DOCS[2]]
    with pytest.raises(RuntimeError, match="the key is not valid"):
        ranked(module.JinaRanker(model="small", api_key=secret("wrong"), base_url=f"{url}/v1/rerank"))


def test_haystack_tei(url):
    module = pytest.importorskip("haystack_integrations.components.rankers.huggingface_api", reason=SDK)
    assert ranked(module.HuggingFaceTEIRanker(url=url, token=secret())) == [DOCS[1], DOCS[2]]


def test_haystack_vllm(url):
    module = pytest.importorskip("haystack_integrations.components.rankers.vllm", reason=SDK)
    ranker = module.VLLMRanker(model="small", api_key=secret(), api_base_url=f"{url}/v1")
    assert ranked(ranker) == [DOCS[1], DOCS[2]]


# -- LiteLLM ------------------------------------------------------------


@pytest.mark.parametrize("provider", ["cohere", "jina_ai", "hosted_vllm", "huggingface"])
def test_litellm(url, provider, monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm = pytest.importorskip("litellm", reason=SDK)
    found = litellm.rerank(model=f"{provider}/small", query=QUERY, documents=DOCS, top_n=2, api_base=url, api_key=KEY)
    assert [each["index"] for each in found.results] == [1, 2]
    assert all(0 <= each["relevance_score"] <= 1 for each in found.results)


def test_litellm_embeds(url, monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm = pytest.importorskip("litellm", reason=SDK)
    found = litellm.embedding(model="openai/encoder", input=["bcd"], api_base=f"{url}/v1", api_key=KEY)
    assert found.data[0]["embedding"] == pytest.approx([0.6, 0.8, 3.0])
