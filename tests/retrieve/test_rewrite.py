"""Queries rewritten by a file or by a model: what later stages read, and what is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rerank import (
    BM25,
    RM3,
    CausalLMEngine,
    CrossEncoderEngine,
    Dense,
    FakeEngine,
    OriginalQuery,
    Rerank,
    Rescore,
    Rewrite,
    Runtime,
    Sampling,
)
from rerank.artifact import cache_home
from rerank.config import parse_pipeline, to_yaml
from rerank.data.corpus import MemoryCorpus
from rerank.engines.encoder import load_encoder
from rerank.engines.engine import Engine, Writer
from rerank.errors import ConfigError
from rerank.ranking import Ranking
from rerank.retrieve.rewrite import ORIGINAL, PASSAGES
from rerank.stage import Flow

CORPUS = MemoryCorpus({"d1": "a wing makes lift", "d2": "drag slows a star", "d3": "shock waves heat the air"})
TOPICS = Ranking.start({"q1": "lift", "q2": "slow stars"}, CORPUS)


class Script(Engine):
    """Writes what it is told to, text by text."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts

    def asker(self, prompt, runtime):
        raise NotImplementedError

    def writer(self, prompt: str, n_texts: int, runtime: Runtime) -> Writer:
        return self

    def write(self, queries, runtime):
        return [tuple(text.replace("QUERY", query) for text in self.texts) for query in queries]


def rewritten(ranking: Ranking = TOPICS, **options) -> Ranking:
    texts = options.pop("texts")
    return Rewrite(engine=Script(*texts), prompt="hyde", n_texts=len(texts), **options)(ranking)


# -- what queries become ------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "query"),
    [
        ({}, "about lift and more"),
        ({"how": "append"}, "lift about lift and more"),
        ({"how": "append", "repeat": 3}, "lift lift lift about lift and more"),
        ({"how": "passages"}, "lift about lift and more"),
    ],
)
def test_texts_replace_the_query_or_follow_it(options, query):
    ranking = rewritten(texts=["about QUERY", "and more"], **options)
    assert ranking.queries[0] == query
    assert ranking.query_columns[ORIGINAL].tolist() == ["lift", "slow stars"]


def test_the_first_query_stays_the_original_one():
    twice = rewritten(rewritten(texts=["about QUERY"]), texts=["QUERY again"])
    assert twice.queries[0] == "about lift again"
    assert twice.query_columns[ORIGINAL][0] == "lift"
    assert OriginalQuery()(twice).queries == TOPICS.queries


def test_a_query_about_which_nothing_was_written_stays_and_is_counted(tmp_path):
    engine = FakeEngine(str(tmp_path / "unused"), garbage=1.0)
    with Runtime(progress=False) as runtime:
        for how in ("replace", "append", "passages"):
            stage = Rewrite(how=how, engine=engine, prompt="reason", repeat=1 if how == "replace" else 4)
            assert runtime.rank(stage, TOPICS).queries == TOPICS.queries
    assert [stat.counts["queries without a rewriting"] for stat in runtime.stats] == [2, 2, 2]


def test_passages_hold_the_query_before_them_and_go_with_the_next_rewriting():
    ranking = rewritten(texts=["about QUERY", ""], how="passages")
    assert ranking.query_columns[PASSAGES].tolist() == [("lift", "about lift"), ("slow stars", "about slow stars")]
    assert PASSAGES not in rewritten(ranking, texts=["x"]).query_columns
    assert PASSAGES not in OriginalQuery()(ranking).query_columns


def test_the_weighted_terms_of_the_query_before_go_too():
    pipeline = BM25(k=1) >> RM3() >> Rewrite(engine=FakeEngine("unused"), prompt="reason")
    ranking = pipeline(TOPICS)
    assert "terms" not in ranking.query_columns
    assert "terms" not in pipeline.flow(Flow()).has


def test_flow_says_where_passages_are():
    passages = Rewrite(how="passages", engine=FakeEngine("unused"), prompt="hyde")
    assert passages.flow(Flow()).has == {ORIGINAL, PASSAGES}
    assert Rewrite("file").flow(Flow(frozenset({PASSAGES}))).has == {ORIGINAL}


def test_a_file_may_hold_passages_too(tmp_path):
    (tmp_path / "r.tsv").write_text("q1\twings\nq2\t\n", encoding="utf-8")
    ranking = Rewrite(str(tmp_path / "r.tsv"), "passages", repeat=2)(TOPICS)
    assert ranking.queries == ("lift lift wings", "slow stars")


# -- what later stages read ------------------------------------------------------------


def test_bm25_reads_the_query_and_all_passages():
    assert BM25()(TOPICS)["q1"].docnos == ["d1"]
    ranking = (Rewrite(how="passages", engine=Script("shock waves"), prompt="hyde") >> BM25())(TOPICS)
    assert ranking["q1"].docnos == ["d3", "d1"]


@pytest.mark.needs("sentence_transformers", "faiss")
@pytest.mark.filterwarnings("ignore")
def test_dense_retrieval_compares_with_the_mean_of_query_and_passages(tiny_encoder: Path) -> None:
    written = rewritten(texts=["a wing about QUERY", "the shock"], how="passages")
    model = str(tiny_encoder)
    with Runtime(device="cpu", threads=1, progress=False) as runtime:
        encoder = load_encoder(runtime, model, dtype="float32")
        found = runtime.rank(Dense(model, k=3, dtype="float32"), written)
        rescored = runtime.rank(Rescore(model, dtype="float32"), found)
        own = encoder.encode_queries(["lift"])
        mean = np.concatenate([own, encoder.encode_documents(["a wing about lift", "the shock"])]).mean(axis=0)
        documents = encoder.encode_documents(CORPUS.texts(np.arange(3)))
    expected = documents @ (mean / np.linalg.norm(mean))
    for ranking in (found, rescored):
        scores = {hit.docno: hit.score for hit in ranking["q1"]}
        assert [scores[f"d{i}"] for i in (1, 2, 3)] == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.needs("sentence_transformers", "faiss")
@pytest.mark.filterwarnings("ignore")
def test_without_passages_dense_retrieval_is_what_it_was(tiny_encoder: Path) -> None:
    stage = Dense(str(tiny_encoder), k=3, dtype="float32")
    none = Rewrite(how="passages", engine=Script(""), prompt="hyde") >> stage
    with Runtime(device="cpu", threads=1, progress=False):
        plain, unwritten = stage(TOPICS), none(TOPICS)
    for qid in TOPICS.qids:
        assert [hit.score for hit in unwritten[qid]] == pytest.approx([hit.score for hit in plain[qid]], abs=1e-6)


# -- configuration ------------------------------------------------------------


def test_it_is_declared_in_yaml_and_back():
    text = "stages: [{rewrite: {engine: {causal_lm: m}, prompt: hyde, how: passages, n_texts: 8}}, bm25]"
    pipeline = parse_pipeline(text)
    rewrite = Rewrite(how="passages", engine=CausalLMEngine("m"), prompt="hyde", n_texts=8)
    assert pipeline.stages[0] == rewrite
    assert parse_pipeline(to_yaml(pipeline)) == pipeline
    assert parse_pipeline("stages: [{rewrite: /a/file.tsv}]").stages == (Rewrite("/a/file.tsv"),)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs either 'file' or 'engine'"),
        ({"file": "f", "engine": FakeEngine("q"), "prompt": "hyde"}, "needs either 'file' or 'engine'"),
        ({"engine": FakeEngine("q")}, "'engine' and 'prompt' go together"),
        ({"file": "f", "prompt": "hyde"}, "'engine' and 'prompt' go together"),
        ({"file": "f", "n_texts": 2}, "'n_texts' is for an engine"),
        ({"file": "f", "repeat": 2}, "'repeat' is for how: append or passages"),
        ({"engine": FakeEngine("q"), "prompt": "hyde", "n_texts": 0}, "n_texts is 0"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Rewrite(**options)


def test_an_engine_that_does_not_write_is_refused():
    with pytest.raises(ConfigError, match="cross_encoder: writes no texts"):
        Rewrite(engine=CrossEncoderEngine("m"), prompt="hyde")(TOPICS)


def test_a_prompt_that_shows_documents_is_refused_and_the_other_way_round(language_model):
    with pytest.raises(ConfigError, match="the prompt 'yes-no' shows documents"):
        Rewrite(engine=CausalLMEngine(language_model), prompt="yes-no")(TOPICS)
    with pytest.raises(ConfigError, match="the prompt 'hyde' shows no documents; it is for the stage rewrite"):
        (BM25() >> Rerank(CausalLMEngine(language_model), prompt="hyde"))(TOPICS)


# -- language models ------------------------------------------------------------


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("torch")
    import torch
    from tiny_tokenizers import byte_pairs
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tokenizer = byte_pairs()
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), **sizes, max_position_embeddings=1024, initializer_range=0.3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.needs("torch", "transformers")
@pytest.mark.filterwarnings("ignore")
def test_a_language_model_writes_the_same_texts_alone_again_and_from_the_cache(language_model: str) -> None:
    sampling = Sampling(max_tokens=8, temperature=1.0, seed=3)
    engine = CausalLMEngine(language_model, dtype="float32", sampling=sampling)
    stage = Rewrite(how="passages", engine=engine, prompt="hyde", n_texts=3)
    with Runtime(device="cpu", progress=False) as runtime:
        first = runtime.rank(stage, TOPICS)
        again = runtime.rank(stage, TOPICS)
        assert runtime.stats[1].counts["cached answers"] == runtime.stats[1].counts["requests"] == 6
    with Runtime(device="cpu", progress=False, cache=False) as runtime:
        alone = runtime.rank(stage, TOPICS.subset(["q2"]))
    texts = first.query_columns[PASSAGES].tolist()
    assert again.query_columns[PASSAGES].tolist() == texts
    assert alone.query_columns[PASSAGES].tolist() == texts[1:]
    assert len(set(texts[0][1:])) == 3  # each text is drawn by itself


@pytest.mark.needs("torch", "transformers")
@pytest.mark.filterwarnings("ignore")
def test_several_texts_without_draws_are_refused(language_model: str) -> None:
    with pytest.raises(
        ConfigError, match=r"2 texts a query would all be the same; give sampling: \{temperature: 0\.7\}"
    ):
        Rewrite(engine=CausalLMEngine(language_model), prompt="hyde", how="passages", n_texts=2)(TOPICS)


@pytest.fixture(scope="session")
def smollm2() -> str:
    folder = cache_home() / "models" / "smollm2-135m"
    if not (folder / "model.safetensors").is_file():
        pytest.skip(f"needs real weights: {folder} is not there (rerank models fetch smollm2-135m)")
    return str(folder)


@pytest.mark.needs("torch", "transformers")
@pytest.mark.filterwarnings("ignore")
def test_a_real_model_writes_about_the_query(smollm2: str) -> None:
    engine = CausalLMEngine(smollm2, dtype="float32", sampling=Sampling(max_tokens=24))
    topics = Ranking.start({"q": "what is the capital of France"})
    with Runtime(device="cpu", progress=False, cache=False) as runtime:
        (query,) = runtime.rank(Rewrite(engine=engine, prompt="query2doc", how="append"), topics).queries
    assert query.startswith("what is the capital of France ")
    assert "Paris" in query
