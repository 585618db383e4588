"""Encoder-decoders: the stock model's numbers whatever the batch; greedy texts; prompts of the right kind."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from tiny_tokenizers import unigrams

from rerank.data.corpus import MemoryCorpus
from rerank.engines import language_model
from rerank.engines.cache import RequestCache
from rerank.engines.encoder_decoder import EncoderDecoder, load_encoder_decoder
from rerank.engines.language_model import Sampling
from rerank.engines.prompted import CausalLMEngine, EncoderDecoderEngine
from rerank.engines.scorer import agreement
from rerank.errors import ConfigError, DataError, ModelError
from rerank.prompts import load_prompt
from rerank.ranking import Ranking
from rerank.reranking import Rerank
from rerank.runtime import Runtime

KINDS = ("t5", "t5, untied", "bart")
WORDS = range(5, 120)


class Asked(NamedTuple):
    tokens: tuple[int, ...]
    prefix: int = 0
    continuations: tuple[tuple[int, ...], ...] = ()
    verb: str = "choices"


def write_seq2seq(folder: Path, kind: str) -> Path:
    """A tiny encoder-decoder with random weights: T5 as first published, as later (gated, untied), or BART."""
    import transformers as t

    folder.mkdir(parents=True)
    tokenizer = unigrams()
    tokenizer.save_pretrained(folder)
    if kind == "bart":
        config = t.BartConfig(
            vocab_size=len(tokenizer), d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=96,
            pad_token_id=0, bos_token_id=2, eos_token_id=1, decoder_start_token_id=1, forced_eos_token_id=None,
            init_std=0.3,
        )  # fmt: skip
        make: Any = t.BartForConditionalGeneration
    else:
        config = t.T5Config(
            vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
            feed_forward_proj="gated-gelu" if "untied" in kind else "relu", tie_word_embeddings="untied" not in kind,
            decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, initializer_factor=0.5,
        )  # fmt: skip
        make = t.T5ForConditionalGeneration
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make(config)
        if kind == "bart":
            model.final_logits_bias.normal_()
        model.save_pretrained(folder)
    return folder


@pytest.fixture
def runtime(own_home: Path) -> Runtime:
    return Runtime(own_home, threads=1, device="cpu", progress=False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder of each kind, written once."""
    root = tmp_path_factory.mktemp("seq2seq")

    def folder(kind: str) -> Path:
        return root / kind if (root / kind).is_dir() else write_seq2seq(root / kind, kind)

    return folder


@pytest.fixture
def model(runtime: Runtime, folders: Any) -> EncoderDecoder:
    return load_encoder_decoder(runtime, str(folders("t5")), dtype="float32")


def words(rng: np.random.Generator, n: int) -> tuple[int, ...]:
    return tuple(int(word) for word in rng.choice(WORDS, size=n))


def requests(n: int, labels: Any = ((5,), (9,)), seed: int = 0) -> list[Asked]:
    rng = np.random.default_rng(seed)
    return [Asked((*words(rng, int(rng.integers(2, 50))), 1), 2, labels) for _ in range(n)]


def likelihoods(n: int) -> list[Asked]:
    rng = np.random.default_rng(100)
    return [
        asked._replace(verb="likelihood", continuations=(words(rng, int(rng.integers(1, 9))),)) for asked in requests(n)
    ]


def stock(folder: Path) -> Any:
    from transformers import AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM.from_pretrained(folder).eval()


def tokenizer_of(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@torch.inference_mode()
def stock_logits(model: Any, prompt: tuple[int, ...], text: tuple[int, ...] = ()) -> torch.Tensor:
    """[positions, vocabulary]: of the token after the decoder's start, and after each of the text's."""
    said = torch.tensor([[model.config.decoder_start_token_id, *text]])
    logits: torch.Tensor = model(input_ids=torch.tensor([prompt]), decoder_input_ids=said, use_cache=False).logits[0]
    return logits


def log_probability(model: Any, prompt: tuple[int, ...], text: tuple[int, ...]) -> float:
    logits = stock_logits(model, prompt, text[:-1]).log_softmax(-1)
    return sum(float(logits[i, token]) for i, token in enumerate(text))


def near(expected: Any) -> Any:
    return pytest.approx(np.asarray(expected), rel=1e-5, abs=1e-5)


# -- numbers ------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_single_token_labels_get_the_stock_models_logits(runtime: Runtime, folders: Any, kind: str) -> None:
    model, reference = load_encoder_decoder(runtime, str(folders(kind)), dtype="float32"), stock(folders(kind))
    asked = requests(30)
    expected = [stock_logits(reference, one.tokens)[0, [5, 9]].numpy() for one in asked]
    assert model.path == "padded"
    assert np.array(model.choices(asked)) == near(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_several_tokens_get_summed_log_probabilities(runtime: Runtime, folders: Any, kind: str) -> None:
    model, reference = load_encoder_decoder(runtime, str(folders(kind)), dtype="float32"), stock(folders(kind))
    labels = ((5,), (9, 11), (77, 5, 8))
    asked = requests(9, labels)
    expected = [[log_probability(reference, one.tokens, label) for label in labels] for one in asked]
    assert np.array(model.choices(asked)) == near(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_likelihood_is_the_mean_log_probability_of_the_text(runtime: Runtime, folders: Any, kind: str) -> None:
    model, reference = load_encoder_decoder(runtime, str(folders(kind)), dtype="float32"), stock(folders(kind))
    asked = likelihoods(20)
    expected = [
        log_probability(reference, one.tokens, one.continuations[0]) / len(one.continuations[0]) for one in asked
    ]
    assert model.likelihood(asked) == near(expected)
    assert model.likelihood([asked[0]._replace(continuations=((),)), asked[1]]) == near([0.0, expected[1]])


@pytest.mark.parametrize("kind", KINDS)
def test_text_is_what_the_stock_model_writes_alone(runtime: Runtime, folders: Any, kind: str) -> None:
    model, reference = load_encoder_decoder(runtime, str(folders(kind)), dtype="float32"), stock(folders(kind))
    asked = requests(7, ())
    counts: Counter[str] = Counter()
    answers = model.generate(asked, Sampling(max_tokens=9), lambda what, n: counts.update({what: n}))
    end = reference.config.eos_token_id
    for one, answer in zip(asked, answers, strict=True):
        with torch.inference_mode():
            ids = reference.generate(torch.tensor([one.tokens]), max_new_tokens=9, do_sample=False, num_beams=1)
        written = ids[0, 1:].tolist()
        assert list(answer.tokens) == (written[: written.index(end)] if end in written else written)
        assert answer.finish == ("stop" if end in written else "length")
        assert answer.text == model.tokenizer.decode(list(answer.tokens), skip_special_tokens=True)
    assert counts["generated tokens"] == sum(answer.n_tokens for answer in answers)


def test_a_token_that_texts_must_begin_with_is_kept(runtime: Runtime, folders: Any, tmp_path: Path) -> None:
    from transformers import GenerationConfig

    folder = write_seq2seq(tmp_path / "forced", "bart")
    GenerationConfig(
        forced_bos_token_id=2, eos_token_id=1, decoder_start_token_id=1, num_beams=4, do_sample=True, temperature=9.0
    ).save_pretrained(folder)
    model = load_encoder_decoder(runtime, str(folder), dtype="float32")
    written = model.generate(requests(3, ()), Sampling(max_tokens=5))
    assert {answer.tokens[0] for answer in written} == {2}
    plain = load_encoder_decoder(runtime, str(folders("bart")), dtype="float32")
    forced = [model.likelihood([one._replace(continuations=((9,),))])[0] for one in requests(2)]
    assert forced == near([plain.likelihood([one._replace(continuations=((9,),))])[0] for one in requests(2)])


def test_draws_depend_on_prompt_and_seed_alone(model: EncoderDecoder) -> None:
    asked = requests(8, ())
    drawn = Sampling(max_tokens=6, temperature=1.0, seed=3)
    whole = model.generate(asked, drawn)
    assert model.generate(asked[::-1], drawn)[::-1] == whole
    model.batch_tokens = 30
    assert model.generate(asked, drawn) == whole
    assert model.generate(asked, replace(drawn, seed=4)) != whole


def test_no_tensor_has_the_vocabulary_for_every_position(
    model: EncoderDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, labels = likelihoods(12), requests(12, ((5, 6), (7,)))
    expected = model.likelihood(asked), model.choices(labels)
    rows, widths = EncoderDecoder._head_rows, []

    def watched(self: EncoderDecoder, tokens: Any) -> Any:
        found = rows(self, tokens)
        widths.append(len(found[0]))
        return found

    def refused(self: Any, *_: Any, **__: Any) -> Any:
        raise AssertionError("the model's own head was asked")

    monkeypatch.setattr(language_model, "_VOCABULARY_AT_ONCE", 10)
    monkeypatch.setattr(language_model, "_POSITIONS_AT_ONCE", 7)
    monkeypatch.setattr(EncoderDecoder, "_head_rows", watched)
    monkeypatch.setattr(type(model.model), "forward", refused)
    assert model.likelihood(asked) == near(expected[0])
    assert np.array(model.choices(labels)) == near(expected[1])
    assert max(widths) == 10


# -- batches ------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_does_not_depend_on_what_else_is_in_the_batch(runtime: Runtime, folders: Any, kind: str) -> None:
    model = load_encoder_decoder(runtime, str(folders(kind)), dtype="float32")
    asked, texts = requests(40, ((5,), (9, 8))), likelihoods(40)
    whole, wholes = np.array(model.choices(asked)), np.array(model.likelihood(texts))
    shuffled = np.random.default_rng(0).permutation(40)
    assert np.array(model.choices([asked[i] for i in shuffled])) == near(whole[shuffled])
    for budget in (1, 77, 300):
        model.batch_tokens = budget
        assert np.array(model.choices(asked)) == near(whole)
        assert model.likelihood([texts[i] for i in shuffled]) == near(wholes[shuffled])


def test_a_batch_of_the_plan_gives_the_same_bits_by_itself(model: EncoderDecoder) -> None:
    model.batch_tokens = 200
    asked = requests(40, ((5,), (9, 8)))
    whole, plan = model.choices(asked), model.plan(asked)
    assert len(plan) > 5
    for batch in plan:
        again = model.choices([asked[i] for i in batch])
        assert np.array(again).tobytes() == np.array([whole[i] for i in batch]).tobytes()


def test_a_prompt_is_encoded_once_however_many_labels_there_are(
    model: EncoderDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, encoded = model.model.get_encoder(), []
    forward = type(encoder).forward

    def watched(self: Any, *args: Any, **options: Any) -> Any:
        if self is encoder:
            encoded.append(int(options["attention_mask"].sum()))
        return forward(self, *args, **options)

    monkeypatch.setattr(type(encoder), "forward", watched)
    counts: Counter[str] = Counter()
    asked = requests(12, ((5, 6), (7, 8, 9), (10,)))
    model.choices(asked, lambda what, n: counts.update({what: n}))
    assert sum(encoded) == sum(len(one.tokens) for one in asked)
    assert counts == {"requests": 12, "tokens": sum(encoded) + 12 * 3, "reused tokens": 0}


def test_what_is_stored_is_not_computed_again(model: EncoderDecoder, tmp_path: Path) -> None:
    cache = RequestCache(tmp_path / "requests")
    for ask, asked in ((model.choices, requests(20)), (model.likelihood, likelihoods(20))):
        first = ask(asked, cache=cache)  # type: ignore[operator]
        counts: Counter[str] = Counter()
        again = ask(asked, lambda what, n, counts=counts: counts.update({what: n}), cache)  # type: ignore[operator]
        assert np.array(again).tobytes() == np.array(first).tobytes()
        assert counts == {"requests": 20, "cached answers": 20}
    cache.close()


def test_memory_that_runs_out_halves_the_batches(model: EncoderDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = requests(30)
    expected = model.choices(asked)
    states, sizes = model._states, []

    def small_memory(items: Any) -> Any:
        sizes.append(model._cost(items))
        if sizes[-1] > 150:
            raise torch.OutOfMemoryError("no room")
        return states(items)

    monkeypatch.setattr(model, "_states", small_memory)
    assert np.array(model.choices(asked)) == near(expected)
    assert model.batch_tokens < sizes[0]


def test_bfloat16_keeps_the_order(runtime: Runtime, folders: Any) -> None:
    asked = requests(60)
    for kind in KINDS:
        exact = load_encoder_decoder(runtime, str(folders(kind)), dtype="float32").choices(asked)
        short = load_encoder_decoder(runtime, str(folders(kind)), dtype="bfloat16").choices(asked)
        margins = [np.array([row[0] - row[1] for row in rows]) for rows in (exact, short)]
        assert agreement(margins[:1], margins[1:]) > 0.9


# -- refusals ------------------------------------------------------------


def test_requests_that_do_not_fit_are_refused(runtime: Runtime, folders: Any) -> None:
    model = load_encoder_decoder(runtime, str(folders("bart")), dtype="float32")
    long = Asked((5,) * 97, 0, ((5,),))
    with pytest.raises(DataError, match="a prompt of 97 tokens and 0 more do not fit into the 96"):
        model.choices([long])
    with pytest.raises(DataError, match="a text of 97 tokens does not fit into the 96 that the decoder"):
        model.likelihood([long._replace(tokens=(5,), continuations=((5,) * 97,))])
    with pytest.raises(DataError, match="has 2 continuations; it takes exactly one"):
        model.likelihood([long._replace(tokens=(5,), continuations=((5,), (6,)))])


def test_other_kinds_of_models_are_refused(runtime: Runtime, tmp_path: Path) -> None:
    from tiny_scorers import write_causal_lm

    with pytest.raises(ModelError, match="does not load as AutoModelForSeq2SeqLM"):
        load_encoder_decoder(runtime, str(write_causal_lm(tmp_path / "decoder", "llama")))


# -- the engine ------------------------------------------------------------


@pytest.fixture
def lists() -> Ranking:
    texts = {f"d{i}": f"Paris lies on the Seine {'very ' * i}" for i in range(6)}
    return Ranking.of(
        {"q": {docno: 9.0 - i for i, docno in enumerate(texts)}}, {"q": "where is Paris"}, source=MemoryCorpus(texts)
    )


def test_monot5_is_the_probability_of_true_at_the_decoders_start(
    runtime: Runtime, folders: Any, lists: Ranking
) -> None:
    stage = Rerank(EncoderDecoderEngine(str(folders("t5")), dtype="float32"), prompt="monot5", k=None)
    reference, tokenizer = stock(folders("t5")), tokenizer_of(folders("t5"))
    labels = [tuple(tokenizer.encode(word, add_special_tokens=False)) for word in ("true", "false")]
    expected = {}
    for hit in lists["q"]:
        prompt = tuple(tokenizer(f"Query: where is Paris Document: {hit.text.strip()} Relevant:")["input_ids"])
        true, false = (log_probability(reference, prompt, label) for label in labels)
        expected[hit.docno] = 1 / (1 + np.exp(false - true))
    with runtime:
        ranking = runtime.rank(stage, lists)
    assert {hit.docno: hit.score for hit in ranking["q"]} == pytest.approx(expected, abs=1e-5)
    assert runtime._facts["prompt"]["self-test"] in ("passed", "failed")


def test_a_prompt_that_does_not_lead_to_the_obvious_order_is_told_loudly(
    runtime: Runtime, folders: Any, lists: Ranking, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def judged(self: Any, asked: Any, *_: Any) -> Any:
        relevant = ["vaccine" in text.partition("Document:")[2] for text in map(decoded, asked)]
        return [np.array([sign * good, 0.0], dtype=np.float32) for good in relevant]

    def decoded(one: Any) -> str:
        text: str = tokenizer_of(folders("t5")).decode(list(one.tokens))
        return text

    sign = 1.0
    monkeypatch.setattr(EncoderDecoder, "choices", judged)
    engine = EncoderDecoderEngine(str(folders("t5")), dtype="float32")
    with runtime:
        Rerank(engine, prompt="monot5")(lists)
    assert "self-test" in runtime._facts["prompt"]
    caplog.clear()
    sign = -1.0
    with Runtime(runtime.home, threads=1, device="cpu", progress=False) as other:
        Rerank(engine, prompt="monot5")(lists)
    assert other._facts["prompt"]["self-test"] == "failed"
    assert "with the prompt 'monot5' FAILED its self-test" in caplog.text
    assert "likely causes: a template that the model was not trained with" in caplog.text


def test_the_wrong_kind_of_prompt_names_the_other_engine(runtime: Runtime, folders: Any, lists: Ranking) -> None:
    folder = str(folders("t5"))
    with pytest.raises(ConfigError, match=r"encoder_decoder: the prompt 'yes-no' is one for decoders.*causal_lm"):
        Rerank(EncoderDecoderEngine(folder), prompt="yes-no")(lists)
    with pytest.raises(ConfigError, match=r"causal_lm: the prompt 'monot5' is one for encoder-decoders.*encoder_decod"):
        Rerank(CausalLMEngine(folder), prompt="monot5")(lists)
    with pytest.raises(ConfigError, match="encoder_decoder: needs a prompt"):
        Rerank(EncoderDecoderEngine(folder))(lists)


def test_what_a_run_would_ask_is_counted_without_weights(runtime: Runtime, folders: Any) -> None:
    from rerank.engines.engine import Asked as Question

    engine = EncoderDecoderEngine(str(folders("t5")), dtype="float32")
    meter = engine.measure("monot5", runtime)
    (size,) = meter.sizes([Question("q", "where is Paris", ("d",), ("on the Seine",))])
    prompt = load_prompt("monot5").bind(tokenizer_of(folders("t5"))).request("where is Paris", ["on the Seine"], 500)
    assert size.tokens == len(prompt.tokens) + sum(len(label) - 1 for label in prompt.continuations)
    assert meter.work is not None
    assert meter.counted_by == "the model's tokenizer"


@pytest.mark.needs("peft")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_adapter_changes_answers_as_in_its_own_library(runtime: Runtime, folders: Any, tmp_path: Path) -> None:
    import peft

    config = peft.LoraConfig(r=4, target_modules=["q", "v"], init_lora_weights=False, task_type="SEQ_2_SEQ_LM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        wrapped = peft.get_peft_model(stock(folders("t5")), config)
    wrapped.save_pretrained(tmp_path / "adapter")
    model = load_encoder_decoder(runtime, str(folders("t5")), dtype="float32", adapter=str(tmp_path / "adapter"))
    asked = requests(9)
    changed = wrapped.eval().base_model.model
    expected = [stock_logits(changed, one.tokens)[0, [5, 9]].numpy() for one in asked]
    assert np.array(model.choices(asked)) == near(expected)
    plain = load_encoder_decoder(runtime, str(folders("t5")), dtype="float32")
    assert np.abs(np.array(plain.choices(asked)) - np.array(expected)).max() > 1e-3
