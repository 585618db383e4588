"""Dry runs: they say what a run then does, and load nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rerank import (
    BM25,
    CausalLMEngine,
    CrossEncoderEngine,
    Dense,
    FakeEngine,
    Groupwise,
    Listwise,
    MemoryCorpus,
    OpenAIEngine,
    Pairwise,
    Plan,
    Pointwise,
    Price,
    RemoteEngine,
    Rerank,
    Rescore,
    Rewrite,
    Rule,
    Runtime,
    Sampling,
    Setwise,
    Splade,
    Tournament,
    plan,
    rrf,
)
from rerank.data.dataset import Dataset
from rerank.engines.passages import Passages
from rerank.errors import ConfigError, PipelineError
from rerank.ranking import ScoreKind
from rerank.stage import Stage

FAKE = FakeEngine("unused.tsv")


@pytest.fixture
def data() -> Dataset:
    texts = {f"d{i}": f"the wing number {i} makes lift {'and drag ' * (i % 7)}" for i in range(30)}
    queries = {"q1": "which wing makes lift", "q2": "drag of a wing number 7"}
    return Dataset("wings", queries, MemoryCorpus(texts))


def planned(pipeline: Stage, data: Dataset, runtime: Runtime | None = None) -> Plan:
    if runtime is not None:
        return plan(pipeline, data, runtime)
    with Runtime(device="cpu", threads=1, progress=False):
        return plan(pipeline, data)


# -- what is counted is what a run counts ------------------------------------------------------------


@pytest.mark.parametrize(
    "rule",
    [Pointwise(), Groupwise(size=4), Setwise(k=3, size=4), Listwise(6, 3), Pairwise(k=2), Tournament(size=5)],
    ids=lambda rule: rule.label,
)
def test_the_calls_of_a_rule_are_those_of_a_judge_that_keeps_the_order(
    rule: Rule, data: Dataset, tmp_path: Path
) -> None:
    first = BM25(k=20)
    with Runtime(device="cpu", progress=False) as runtime:
        lists = runtime.rank(first, data.topics())
        lines = [f"{hits.qid} 0 {hit.docno} {100 - hit.rank}\n" for hits in lists for hit in hits]
        (tmp_path / "qrels").write_text("".join(lines), encoding="utf-8")
        pipeline = first >> Rerank(FakeEngine(str(tmp_path / "qrels")), rule)
        made = planned(pipeline, data, runtime)
        runtime.run(pipeline, data)
    ran = next(stat for stat in runtime.stats if stat.stage.endswith("/rerank"))
    asking = made.stages[-1]
    assert {name: asking.counts.get(name) for name in ran.counts} == dict(ran.counts)
    assert (asking.queries, asking.documents) == (ran.queries, ran.documents)


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from tiny_tokenizers import byte_pairs
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tokenizer = byte_pairs()
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), **sizes, max_position_embeddings=400)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_scorers import write_classifier

    return write_classifier(tmp_path_factory.mktemp("models") / "tiny-classifier", "bert", max_tokens=40)


def compared(pipeline: Stage, data: Dataset, weights: Path) -> tuple[dict[str, int], dict[str, int]]:
    """What a dry run without the weights' file counts for the last stage, and what a run with it does."""
    aside = shutil.move(weights, weights.with_name("aside"))
    try:
        made = planned(pipeline, data)
    finally:
        shutil.move(aside, weights)
    with Runtime(device="cpu", threads=1, progress=False, cache=False) as runtime:
        runtime.run(pipeline, data)
    ran = {stat.stage.rpartition("/")[2]: dict(stat.counts) for stat in runtime.stats}
    return dict(made.stages[-1].counts), ran[made.stages[-1].stage]


@pytest.mark.needs("torch", "transformers")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("prompt", "rule"),
    [
        ("yes-no", Pointwise()),
        ("query-likelihood", Pointwise()),
        ("pick", Groupwise(size=5)),
        ("first", Groupwise(size=4)),
    ],
)
def test_a_language_models_tokens_and_cuts_are_known_without_its_weights(
    language_model: Path, data: Dataset, prompt: str, rule: Rule
) -> None:
    engine = CausalLMEngine(str(language_model), dtype="float32", max_tokens=218)
    pipeline = BM25() >> Rerank(engine, rule, prompt, passages=Passages(12, 8) if prompt == "yes-no" else None)
    before, after = compared(pipeline, data, language_model / "model.safetensors")
    assert before["prompt tokens"] == after["tokens"]
    assert before.get("shared tokens at most", 0) >= after.get("reused tokens", 0)
    for name in ("calls", "waves", "passages", "truncated documents", "truncated queries"):
        assert before.get(name, 0) == after.get(name, 0), name
    assert after.get("truncated documents", 0) > 0 or prompt != "first"


@pytest.mark.needs("torch", "transformers")
@pytest.mark.filterwarnings("ignore")
def test_a_cross_encoders_tokens_and_cuts_are_known_without_its_weights(cross_encoder: Path, data: Dataset) -> None:
    pipeline = BM25() >> Rerank(CrossEncoderEngine(str(cross_encoder), dtype="float32"))
    before, after = compared(pipeline, data, cross_encoder / "model.safetensors")
    assert before["prompt tokens"] == after["tokens"]
    assert before["truncated documents"] == after["truncated documents"] > 0
    assert before["calls"] == after["calls"]


@pytest.mark.needs("torch", "transformers")
@pytest.mark.filterwarnings("ignore")
def test_what_is_written_is_bounded_and_rewriting_leaves_the_queries(language_model: Path, data: Dataset) -> None:
    sampling = Sampling(max_tokens=7, temperature=0.5)
    engine = CausalLMEngine(str(language_model), dtype="float32", sampling=sampling)
    pipeline = (
        Rewrite(engine=engine, prompt="hyde", how="passages", n_texts=3)
        >> BM25()
        >> Rerank(engine, Listwise(), "order")
    )
    made = planned(pipeline, data)
    rewrite, _, rerank = made.stages
    assert (rewrite.counts["calls"], rewrite.counts["generated tokens at most"]) == (6, 42)
    assert "later stages get the queries as they are" in " ".join(rewrite.remarks)
    assert rerank.counts["generated tokens at most"] == 7 * rerank.counts["calls"]
    assert rewrite.seconds is not None and rewrite.seconds > 0


@pytest.mark.needs("torch", "transformers")
@pytest.mark.filterwarnings("ignore")
def test_no_part_of_a_model_is_loaded(language_model: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import PreTrainedModel

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", refuse)
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", refuse)
    made = planned(BM25() >> Rerank(CausalLMEngine(str(language_model), dtype="float32"), prompt="yes-no"), data)
    assert made.stages[-1].counts["calls"] > 0


# -- stages that need a model ------------------------------------------------------------


def test_first_stages_that_need_a_model_are_assumed_until_their_vectors_are_there(data: Dataset) -> None:
    pipeline = rrf(BM25(k=5), Dense("minilm-l6", k=4), Splade(k=3)) >> Rerank(FAKE)
    made = planned(pipeline, data)
    by_stage = {stage.stage: stage for stage in made.stages}
    assert [by_stage[f"rrf/{name}"].documents for name in ("dense", "splade")] == [8, 6]
    assert "lists of 4 documents from all over the corpus are assumed" in by_stage["rrf/dense"].remarks[0]
    assert by_stage["rrf/bm25"].remarks == ()
    assert by_stage["rerank"].counts["calls"] == by_stage["rrf"].documents


@pytest.mark.needs("sentence_transformers", "faiss")
@pytest.mark.filterwarnings("ignore")
def test_stored_vectors_are_searched(data: Dataset, tiny_encoder: Path, tiny_splade: Path) -> None:
    dense, splade = Dense(str(tiny_encoder), dtype="float32"), Splade(str(tiny_splade), dtype="float32")
    rescore = BM25(k=4) >> Rescore(str(tiny_encoder), dtype="float32")
    with Runtime(device="cpu", threads=1, progress=False) as runtime:
        for stage in (dense, splade, rescore):
            assert planned(stage, data, runtime).stages[-1].remarks[0].startswith("not run, for ")
        for stage in (dense, splade):
            runtime.run(stage, data)
        for stage in (dense, splade, rescore):
            assert planned(stage, data, runtime).stages[-1].remarks == ()


def test_a_rescorer_without_vectors_keeps_the_lists(data: Dataset) -> None:
    made = planned(BM25(k=4) >> Rescore("minilm-l6"), data)
    assert made.stages[-1].documents == 8
    assert "lists keep their order" in made.stages[-1].remarks[0]


# -- what is said beside the figures ------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "depends"), [(Setwise(k=5, size=3), True), (Listwise(), False), (Pairwise(k=3), True)]
)
def test_that_calls_depend_on_answers_is_said(rule: Rule, depends: bool, data: Dataset) -> None:
    remarks = " ".join(planned(BM25() >> Rerank(FAKE, rule), data).stages[-1].remarks)
    assert ("depends on the answers, which here keep the first-stage order" in remarks) == depends


def test_an_engine_without_a_tokenizer_counts_characters_and_says_so(data: Dataset) -> None:
    made = planned(BM25(k=3) >> Rerank(RemoteEngine("http://localhost:1")), data).stages[-1]
    assert made.remarks == ("tokens are counted by 4 characters a token, nothing cut",)
    assert made.counts["prompt tokens"] > 0
    assert made.seconds is None


def test_a_server_with_a_price_is_priced(data: Dataset) -> None:
    sampling = Sampling(max_tokens=50)
    engine = OpenAIEngine("m", "http://localhost:1/v1", sampling=sampling, price=Price(input=2.0, output=10.0))
    made = planned(BM25(k=20) >> Rerank(engine, Listwise(10, 5), "order"), data).stages[-1]
    calls, tokens = made.counts["calls"], made.counts["prompt tokens"]
    assert made.price == pytest.approx((2.0 * tokens + 10.0 * 50 * calls) / 1e6)
    assert f"  price         {made.price:.4f}" in str(made)


def test_a_model_that_is_not_here_is_counted_by_characters(data: Dataset) -> None:
    made = planned(BM25(k=3) >> Rerank(CausalLMEngine("nobody/nothing"), prompt="yes-no"), data).stages[-1]
    assert "nobody/nothing" in " ".join(made.remarks)
    assert made.counts["prompt tokens"] > 0


def test_misfits_are_found(data: Dataset) -> None:
    with pytest.raises(ConfigError, match="setwise shows up to 20 documents at once, but causal_lm takes 1"):
        planned(BM25() >> Rerank(CausalLMEngine("nobody/nothing"), Setwise(), "yes-no"), data)
    with pytest.raises(ConfigError, match="takes no prompt"):
        planned(BM25() >> Rerank(FAKE, prompt="yes-no"), data)
    with pytest.raises(PipelineError, match="needs documents"):
        planned(Rerank(FAKE), data)


def test_a_plan_is_printed_in_80_columns_with_a_sum(data: Dataset) -> None:
    engine = OpenAIEngine("m", "http://localhost:1/v1", price=Price(input=2.0, output=10.0))
    pipeline = BM25() >> Rerank(engine, Setwise(k=5, size=3), "pick") >> Rerank(engine, Listwise(), "order")
    text = str(planned(pipeline, data))
    assert max(map(len, text.splitlines())) <= 80
    assert text.startswith("bm25 >> rerank >> rerank: a dry run, nothing was asked of a model\n\nbm25: 2 queries, ")
    assert "in all: " in text


def test_a_dry_run_leaves_the_runtime_as_it_was(data: Dataset) -> None:
    with Runtime(progress=False) as runtime:
        runtime.run(BM25(), data)
        stats = list(runtime.stats)
        planned(BM25() >> Rerank(FAKE), data, runtime)
        assert runtime.stats == stats
        assert runtime.rank(BM25(k=2), data.topics()).kind == ScoreKind.BM25
