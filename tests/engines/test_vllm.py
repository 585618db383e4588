"""vLLM, by a stand-in with its signatures: what it is asked, and that answers are those of the engine in torch."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from tiny_scorers import write_causal_lm
from tiny_tokenizers import byte_pairs
from vllm_stand_in import StandIn, install

from rerank.data.corpus import MemoryCorpus
from rerank.engines import vllm
from rerank.engines.cache import RequestCache
from rerank.engines.causal_lm import load_causal_lm
from rerank.engines.language_model import Sampling
from rerank.engines.prompted import CausalLMEngine, VLLMEngine
from rerank.engines.vllm import VLLM, Place, load_vllm
from rerank.errors import ConfigError, DataError, MissingExtraError, ModelError
from rerank.ranking import Ranking
from rerank.reranking import Rerank
from rerank.rules.listwise import Listwise
from rerank.runtime import Runtime


class Asked(NamedTuple):
    tokens: tuple[int, ...]
    prefix: int = 0
    continuations: tuple[tuple[int, ...], ...] = ()
    verb: str = "choices"


@pytest.fixture
def runtime(own_home: Path) -> Runtime:
    return Runtime(own_home, threads=1, device="cpu", progress=False)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    return install(monkeypatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_causal_lm(tmp_path_factory.mktemp("vllm") / "llama", "llama", max_tokens=96))


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with a chat template and room for real prompts."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    path = tmp_path_factory.mktemp("vllm") / "chatty"
    tokenizer = byte_pairs()
    tokenizer.save_pretrained(path)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, initializer_range=0.3,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(path)
    return str(path)


def loaded(runtime: Runtime, folder: str, **place: Any) -> VLLM:
    return load_vllm(runtime, folder, None, "float32", None, Place(**{"room": 90, **place}))


def requests(n: int, labels: Any = ((5,), (9,), (77,)), seed: int = 0) -> list[Asked]:
    """Prompts that begin alike."""
    rng = np.random.default_rng(seed)
    words = lambda k: tuple(int(word) for word in rng.choice(range(5, 150), size=k))  # noqa: E731
    start = words(20)
    return [Asked((*start, *words(int(rng.integers(1, 30)))), 20, labels) for _ in range(n)]


def likelihoods(n: int) -> list[Asked]:
    return [
        one._replace(verb="likelihood", continuations=(tuple(range(7 + i, 9 + 2 * i)),))
        for i, one in enumerate(requests(n))
    ]


def near(expected: Any) -> Any:
    return pytest.approx(np.asarray(expected), rel=1e-5, abs=1e-5)


# -- verbs ------------------------------------------------------------


def test_labels_get_their_logits(runtime: Runtime, seen: StandIn, folder: str) -> None:
    asked = [*requests(12), *requests(3, ((5,),), seed=1)]
    counts: Counter[str] = Counter()
    answers = loaded(runtime, folder).choices(asked, lambda what, n: counts.update({what: n}))
    expected = load_causal_lm(runtime, folder, dtype="float32").choices(asked)
    for answer, wanted in zip(answers, expected, strict=True):
        assert answer == near(wanted)
    assert {(each.max_tokens, each.temperature, each.logprobs) for each in seen.options} == {(1, 0.0, 3), (1, 0.0, 1)}
    assert counts["requests"] == 15
    assert counts["tokens"] == sum(len(one.tokens) for one in asked)
    assert counts["reused tokens"] == 11 * 16 + 2 * 16


def test_labels_of_several_tokens_are_read_as_texts(runtime: Runtime, seen: StandIn, folder: str) -> None:
    labels = ((5,), (9, 11), (77, 5, 8))
    asked = requests(6, labels)
    expected = load_causal_lm(runtime, folder, dtype="float32").choices(asked)
    assert np.array(loaded(runtime, folder, reads_texts=True).choices(asked)) == near(expected)
    with pytest.raises(DataError, match="was loaded for labels of single tokens, and one has several"):
        loaded(runtime, folder).choices(asked)


def test_a_likelihood_is_the_mean_log_probability_of_the_text(runtime: Runtime, seen: StandIn, folder: str) -> None:
    asked = [*likelihoods(8), requests(1)[0]._replace(continuations=((),))]
    expected = load_causal_lm(runtime, folder, dtype="float32").likelihood(asked)
    assert loaded(runtime, folder, reads_texts=True).likelihood(asked) == near(expected)
    with pytest.raises(DataError, match="was loaded for labels; load it for texts"):
        loaded(runtime, folder).likelihood(asked)


def test_greedy_texts_are_those_of_the_engine_in_torch(runtime: Runtime, seen: StandIn, folder: str) -> None:
    asked = requests(6, ())
    torchs = load_causal_lm(runtime, folder, dtype="float32")
    model = loaded(runtime, folder)
    plain = Sampling(max_tokens=9)
    expected = torchs.generate(asked, plain)
    assert model.generate(asked, plain) == expected
    # A token that comes up is made the one that ends texts, for both; then its text is one to stop at.
    end = expected[0].tokens[3]
    stop = torchs.tokenizer.decode([end])
    stopped = model.generate(asked, replace(plain, stop=(stop,)))
    assert [answer.text for answer in stopped] == [a.text for a in torchs.generate(asked, replace(plain, stop=(stop,)))]
    torchs._end_tokens = frozenset({end})
    model.tokenizer.eos_token_id = model._model._tokenizer.eos_token_id = end
    assert [(a.tokens, a.finish) for a in model.generate(asked, plain)] == [
        (a.tokens, a.finish) for a in torchs.generate(asked, plain)
    ]


def test_draws_have_a_seed_of_their_own_for_each_prompt(runtime: Runtime, seen: StandIn, folder: str) -> None:
    model, asked = loaded(runtime, folder), requests(5, ())
    drawn = Sampling(max_tokens=4, temperature=0.9, top_p=0.95, seed=3)
    first = model.generate(asked, drawn)
    assert model.generate(asked[::-1], drawn)[::-1] == first
    seeds = [each.seed for each in seen.options[:5]]
    assert len(set(seeds)) == 5
    assert {each.top_p for each in seen.options} == {0.95}
    model.generate(asked, replace(drawn, seed=4))
    assert not set(seeds) & {each.seed for each in seen.options[-5:]}
    model.generate(asked, Sampling(max_tokens=4))
    assert seen.options[-1].seed is None


def test_requests_that_do_not_fit_are_refused(runtime: Runtime, seen: StandIn, folder: str) -> None:
    model = loaded(runtime, folder, reads_texts=True)
    assert model.limit == 90
    for asked, problem in (
        (Asked((), 0, ((5,),)), "a prompt has no tokens"),
        (Asked((5,) * 90, 0, ((5,),)), "a prompt of 90 tokens and 1 more do not fit into the 90"),
        (Asked((5,)), "has no labels"),
    ):
        with pytest.raises(DataError, match=problem):
            model.choices([asked])
    with pytest.raises(DataError, match="has 2 continuations"):
        model.likelihood([Asked((5,), 0, ((5,), (6,)))])
    with pytest.raises(DataError, match="do not fit"):
        model.generate([Asked((5,) * 80)], Sampling(max_tokens=11))
    assert loaded(runtime, folder, room=500).limit == 95


def test_a_vllm_that_shows_other_tokens_is_an_error(
    runtime: Runtime, seen: StandIn, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded(runtime, folder)
    run = model._run

    def others(*args: Any) -> Any:
        outputs = run(*args)
        outputs[0].outputs[0].logprobs[0].pop(9)
        return outputs

    monkeypatch.setattr(model, "_run", others)
    with pytest.raises(ModelError, match=r"gave no logit of token 9.*another version than this engine was written for"):
        model.choices(requests(1))


def test_what_is_stored_is_not_asked_again(
    runtime: Runtime, seen: StandIn, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm, "_TOGETHER", 8)
    model, cache, asked = loaded(runtime, folder), RequestCache(tmp_path / "requests"), requests(20)
    first = model.choices(asked[:16], cache=cache)
    n_asked = len(seen.options)
    counts: Counter[str] = Counter()
    again = model.choices(asked, lambda what, n: counts.update({what: n}), cache)
    assert np.array(again[:16]).tobytes() == np.array(first).tobytes()
    assert len(seen.options) == n_asked + 4
    assert (counts["requests"], counts["cached answers"]) == (20, 16)
    texts = model.generate(asked, Sampling(max_tokens=3), cache=cache)
    assert model.generate(asked, Sampling(max_tokens=3), cache=cache) == texts
    reader = loaded(runtime, folder, reads_texts=True)
    assert reader.likelihood(likelihoods(4), cache=cache) == reader.likelihood(likelihoods(4), cache=cache)
    cache.close()


# -- loading ------------------------------------------------------------


def test_how_vllm_is_started(runtime: Runtime, seen: StandIn, folder: str) -> None:
    model = load_vllm(runtime, folder, None, "bfloat16", None, Place(gpus=2, gpu_memory=0.5, room=64))
    assert seen.started == [
        {
            "tensor_parallel_size": 2, "dtype": "bfloat16", "seed": 0, "gpu_memory_utilization": 0.5,
            "hf_overrides": {"head_dtype": "float32"}, "max_model_len": 65, "enable_prefix_caching": True,
            "logprobs_mode": "processed_logits", "max_logprobs": 1000,
        }
    ]  # fmt: skip
    assert load_vllm(runtime, folder, None, "bfloat16", None, Place(gpus=2, gpu_memory=0.5, room=64)) is model
    texts = load_vllm(runtime, folder, None, "bfloat16", None, Place(gpus=2, gpu_memory=0.5, room=64, reads_texts=True))
    assert seen.started[1]["logprobs_mode"] == "raw_logprobs"
    assert texts.key != model.key
    assert runtime._facts[f"model {folder}"]["device"] == "vllm"


def adapter(folder: Path, rank: int = 12, **weights: str) -> str:
    from safetensors.numpy import save_file

    folder.mkdir()
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 8,
        "target_modules": ["q_proj"],
        "base_model_name_or_path": "b",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {
        f"{layer}.lora_A.weight": np.zeros((rank, 32), dtype=np.float32),
        f"{layer}.lora_B.weight": np.zeros((32, rank), dtype=np.float32),
        **{f"base_model.model.{name}": np.zeros((1, 32), dtype=np.float32) for name in weights.values()},
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    return str(folder)


def test_an_adapter_is_given_by_its_folder(runtime: Runtime, seen: StandIn, folder: str, tmp_path: Path) -> None:
    path = adapter(tmp_path / "adapter")
    model = load_vllm(runtime, folder, None, "float32", path, Place(room=90))
    model.choices(requests(2))
    assert (seen.started[0]["enable_lora"], seen.started[0]["max_lora_rank"]) == (True, 16)
    (request,) = seen.lora
    assert request is not None
    assert (request.lora_path, request.lora_int_id) == (path, 1)
    assert model.key != loaded(runtime, folder).key
    assert runtime._facts[f"model {folder}"]["adapter"]["path"] == path
    with pytest.raises(ModelError, match="has rank 600; vLLM takes 512 at most"):
        load_vllm(runtime, folder, None, "float32", adapter(tmp_path / "wide", 600), Place())
    with pytest.raises(ModelError, match=r"replaces score\.weight whole, which vLLM does not do"):
        load_vllm(runtime, folder, None, "float32", adapter(tmp_path / "head", head="score.weight"), Place())


def test_a_model_that_does_not_start_is_an_error_with_a_way_out(runtime: Runtime, seen: StandIn, folder: str) -> None:
    seen.fails = "Engine core initialization failed.\nSee root cause above."
    with pytest.raises(ModelError, match=r"does not load in vLLM: RuntimeError: Engine core .* causal_lm may load it"):
        loaded(runtime, folder)


# -- the engine ------------------------------------------------------------


@pytest.fixture
def lists() -> Ranking:
    texts = {f"d{i}": f"Paris lies on the Seine {'very ' * i}" for i in range(5)}
    return Ranking.of(
        {"q": {docno: 9.0 - i for i, docno in enumerate(texts)}}, {"q": "where is Paris"}, source=MemoryCorpus(texts)
    )


@pytest.mark.parametrize(("prompt", "mode"), [("yes-no", None), ("query-likelihood", "raw_logprobs")])
def test_the_engine_scores_as_causal_lm_does(
    runtime: Runtime, seen: StandIn, chatty: str, lists: Ranking, prompt: str, mode: str | None
) -> None:
    with runtime:
        expected = Rerank(CausalLMEngine(chatty, dtype="float32"), prompt=prompt, k=None)(lists)
        found = Rerank(VLLMEngine(chatty, dtype="float32"), prompt=prompt, k=None)(lists)
    assert found["q"].docnos == expected["q"].docnos
    assert [hit.score for hit in found["q"]] == pytest.approx([hit.score for hit in expected["q"]], abs=1e-5)
    assert seen.started[0]["max_model_len"] == 2048
    assert mode is None or seen.started[0]["logprobs_mode"] == mode


def test_the_engine_compares_by_letters(runtime: Runtime, seen: StandIn, chatty: str, lists: Ranking) -> None:
    with runtime:
        expected = Rerank(CausalLMEngine(chatty, dtype="float32"), Listwise(4, 2), "first")(lists)
        found = Rerank(VLLMEngine(chatty, dtype="float32", gpu_memory=0.4), Listwise(4, 2), "first")(lists)
    assert found["q"].docnos == expected["q"].docnos
    assert seen.started[0]["logprobs_mode"] == "processed_logits"
    assert seen.started[0]["gpu_memory_utilization"] == 0.4


def test_the_engine_writes(runtime: Runtime, seen: StandIn, chatty: str, lists: Ranking) -> None:
    engine = VLLMEngine(chatty, dtype="float32", max_tokens=600, sampling=Sampling(max_tokens=5))
    with runtime:
        texts = engine.writer("hyde", 1, runtime).write(["where is Paris"], runtime)
    assert len(texts) == 1
    assert seen.started[0]["max_model_len"] == 606
    assert seen.started[0]["logprobs_mode"] == "processed_logits"


def test_settings_that_vllm_does_not_take_are_refused() -> None:
    for problem, settings in (
        ("max_tokens is 0", {"max_tokens": 0}),
        (r"gpus is 0 \(1 or more\)", {"gpus": 0}),
        ("gpu_memory 1.5", {"gpu_memory": 1.5}),
        ("the temperature is 3.0; vLLM takes 2 at most", {"sampling": Sampling(temperature=3.0)}),
    ):
        with pytest.raises(ConfigError, match=problem):
            VLLMEngine("m", **settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"vllm: the prompt 'monot5' is one for encoder-decoders"):
        VLLMEngine("m").measure("monot5", Runtime(progress=False))


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_the_extra_is_named(runtime: Runtime, folder: str, lists: Ranking) -> None:
    with pytest.raises(MissingExtraError, match=r"the engine vllm needs the package 'vllm'.*rerank-pipelines\[vllm\]"):
        Rerank(VLLMEngine(folder), prompt="yes-no")(lists)
