"""Causal language models: the stock model's numbers whatever the batch; shared prefixes; generation; bad requests."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from tiny_scorers import DECODERS, write_causal_lm

from rerank.engines import language_model, packing, scorer
from rerank.engines.causal_lm import CausalLM, load_causal_lm
from rerank.engines.language_model import Generated, Sampling
from rerank.engines.scorer import agreement
from rerank.errors import ConfigError, DataError, ModelError
from rerank.runtime import Runtime

KINDS = (*DECODERS, "lfm2")
WORDS = range(5, 150)


class Asked(NamedTuple):
    tokens: tuple[int, ...]
    prefix: int = 0
    continuations: tuple[tuple[int, ...], ...] = ()
    verb: str = "choices"


@pytest.fixture
def runtime(own_home: Path) -> Runtime:
    return Runtime(own_home, threads=1, device="cpu", progress=False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder of each kind, written once."""
    root = tmp_path_factory.mktemp("causal")

    def folder(kind: str) -> Path:
        return root / kind if (root / kind).is_dir() else write_causal_lm(root / kind, kind)

    return folder


@pytest.fixture
def model(runtime: Runtime, folders: Any) -> CausalLM:
    return load_causal_lm(runtime, str(folders("llama")), dtype="float32")


def words(rng: np.random.Generator, n: int) -> tuple[int, ...]:
    return tuple(int(word) for word in rng.choice(WORDS, size=n))


def requests(n: int, labels: Any = ((5,), (9,), (77,)), seed: int = 0) -> list[Asked]:
    """Prompts of three queries, those of each with a beginning in common."""
    rng = np.random.default_rng(seed)
    starts = [words(rng, 6 + query) for query in range(3)]
    return [
        Asked((*starts[i % 3], *words(rng, int(rng.integers(1, 40)))), len(starts[i % 3]), labels) for i in range(n)
    ]


def likelihoods(n: int, seed: int = 0) -> list[Asked]:
    rng = np.random.default_rng(seed + 100)
    return [
        asked._replace(verb="likelihood", continuations=(words(rng, int(rng.integers(1, 9))),))
        for asked in requests(n, seed=seed)
    ]


def stock(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


@torch.inference_mode()
def stock_log_probabilities(model: Any, prompt: tuple[int, ...], text: tuple[int, ...]) -> list[float]:
    logits = model(input_ids=torch.tensor([[*prompt, *text]]), use_cache=False).logits[0].log_softmax(-1)
    return [float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(text)]


def near(expected: Any) -> Any:
    return pytest.approx(np.asarray(expected), rel=1e-5, abs=1e-5)


# -- choices ------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_single_token_labels_get_the_stock_models_logits(runtime: Runtime, folders: Any, kind: str) -> None:
    model, reference = load_causal_lm(runtime, str(folders(kind)), dtype="float32"), stock(folders(kind))
    asked = requests(30)
    assert model.path == ("padded" if kind == "lfm2" else "packed")
    with torch.inference_mode():
        for one, answer in zip(asked, model.choices(asked), strict=True):
            logits = reference(input_ids=torch.tensor([one.tokens])).logits[0, -1]
            assert answer == near(logits[[5, 9, 77]].numpy())


@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_several_tokens_get_summed_log_probabilities(runtime: Runtime, folders: Any, kind: str) -> None:
    model, reference = load_causal_lm(runtime, str(folders(kind)), dtype="float32"), stock(folders(kind))
    labels = ((5,), (9, 11), (77, 5, 8))
    asked = [*requests(9, labels), *requests(3, seed=1)]
    answers = model.choices(asked)
    for one, answer in zip(asked[:9], answers, strict=False):
        assert answer == near([sum(stock_log_probabilities(reference, one.tokens, label)) for label in labels])
    assert answers[9:] == [pytest.approx(answer) for answer in model.choices(asked[9:])]


def test_labels_may_differ_from_request_to_request(model: CausalLM) -> None:
    first, second = requests(2)
    short, long = first._replace(continuations=((5,),)), second._replace(continuations=((9,), (8,), (7,), (6,)))
    together = model.choices([short, long])
    assert [len(answer) for answer in together] == [1, 4]
    assert together[1] == near(model.choices([long])[0])


# -- likelihood ------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_likelihood_is_the_mean_log_probability_of_the_text(runtime: Runtime, folders: Any, kind: str) -> None:
    model, reference = load_causal_lm(runtime, str(folders(kind)), dtype="float32"), stock(folders(kind))
    asked = likelihoods(20)
    expected = [np.mean(stock_log_probabilities(reference, one.tokens, one.continuations[0])) for one in asked]
    assert model.likelihood(asked) == near(expected)


def test_an_empty_text_has_likelihood_0(model: CausalLM) -> None:
    some = likelihoods(2)
    empty = some[0]._replace(continuations=((),))
    assert model.likelihood([empty, some[1], empty]) == [0.0, model.likelihood([some[1]])[0], 0.0]
    assert model.likelihood([]) == []


def test_the_vocabulary_is_read_in_pieces(model: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, labels = likelihoods(12), requests(12, ((5, 6), (7,)))
    expected = model.likelihood(asked), model.choices(labels)
    rows = CausalLM._head_rows
    widths: list[int] = []

    def watched(self: CausalLM, tokens: Any) -> Any:
        found = rows(self, tokens)
        widths.append(len(found[0]))
        return found

    monkeypatch.setattr(language_model, "_VOCABULARY_AT_ONCE", 10)
    monkeypatch.setattr(language_model, "_POSITIONS_AT_ONCE", 7)
    monkeypatch.setattr(CausalLM, "_head_rows", watched)
    assert model.likelihood(asked) == near(expected[0])
    assert np.array(model.choices(labels)) == near(expected[1])
    assert max(widths) == 10


# -- batches ------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gemma2", "lfm2"])
def test_an_answer_does_not_depend_on_what_else_is_in_the_batch(runtime: Runtime, folders: Any, kind: str) -> None:
    model = load_causal_lm(runtime, str(folders(kind)), dtype="float32")
    asked, texts = requests(40, ((5,), (9, 8))), likelihoods(40)
    whole, wholes = np.array(model.choices(asked)), np.array(model.likelihood(texts))
    shuffled = np.random.default_rng(0).permutation(40)
    assert np.array(model.choices([asked[i] for i in shuffled])) == near(whole[shuffled])
    for budget in (1, 77, 300):
        model.batch_tokens = budget
        assert np.array(model.choices(asked)) == near(whole)
        assert model.likelihood([texts[i] for i in shuffled]) == near(wholes[shuffled])


@pytest.mark.parametrize("kind", ["qwen3", "lfm2"])
def test_a_batch_of_the_plan_gives_the_same_bits_by_itself(runtime: Runtime, folders: Any, kind: str) -> None:
    model = load_causal_lm(runtime, str(folders(kind)), dtype="float32")
    model.batch_tokens = 200
    for asked, ask in ((requests(40), model.choices), (likelihoods(40), model.likelihood)):
        whole = ask(asked)  # type: ignore[operator]
        plan = model.plan(asked)
        assert len(plan) > 3
        assert sorted(i for batch in plan for i in batch) == list(range(40))
        for batch in plan:
            again = ask([asked[i] for i in batch])  # type: ignore[operator]
            assert np.array(again).tobytes() == np.array([whole[i] for i in batch]).tobytes()


def test_a_shared_prefix_is_computed_once_a_batch(model: CausalLM) -> None:
    asked = requests(30)
    counts: Counter[str] = Counter()
    answers = model.choices(asked, lambda what, n: counts.update({what: n}))
    assert counts == {
        "requests": 30, "tokens": sum(len(one.tokens) for one in asked), "reused tokens": 9 * (6 + 7 + 8),
    }  # fmt: skip
    counts.clear()
    apart = model.choices([one._replace(prefix=0) for one in asked], lambda what, n: counts.update({what: n}))
    assert counts["reused tokens"] == 0
    assert np.array(answers) == near(apart)


def test_a_document_that_several_queries_are_asked_of_is_computed_once_a_batch(model: CausalLM) -> None:
    rng = np.random.default_rng(0)
    instruction, documents = words(rng, 5), [words(rng, n) for n in (20, 12, 20)]
    # A beginning of three tokens is too little to be kept apart.
    asked = [
        Asked((*instruction[:shared], *document), shared, (words(rng, 4),), "likelihood")
        for shared in (5, 3)
        for _ in range(3)
        for document in documents
    ]
    counts: Counter[str] = Counter()
    found = model.likelihood(asked, lambda what, n: counts.update({what: n}))
    # The last token of a prompt is read, so it is not shared.
    assert counts["reused tokens"] == 8 * 5 + 2 * (19 + 11 + 19) + 2 * (22 + 14 + 22)
    assert found == near([model.likelihood([one])[0] for one in asked])
    model.batch_tokens = 70
    assert len(model.plan(asked)) == 3
    assert model.likelihood(asked) == near(found)


def test_a_prefix_may_be_the_whole_prompt(model: CausalLM) -> None:
    asked = [requests(1)[0]] * 3
    assert np.array(model.choices([one._replace(prefix=len(one.tokens)) for one in asked])) == near(
        model.choices(asked[:1]) * 3
    )


def test_prefixes_are_written_out_where_the_model_does_not_share_them(
    runtime: Runtime, folders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load_causal_lm(runtime, str(folders("llama")), dtype="float32").choices(requests(9, ((5,), (9, 8))))
    model = load_causal_lm(
        Runtime(runtime.home, threads=1, device="cpu", progress=False), str(folders("llama")), dtype="float32"
    )
    assert model._packing is not None
    model._packing = replace(model._packing, shares_prefixes=False)
    counts: Counter[str] = Counter()
    found = model.choices(requests(9, ((5,), (9, 8))), lambda what, n: counts.update({what: n}))
    assert np.array(found) == near(expected)
    assert counts["reused tokens"] == 0


def test_sequences_beyond_what_was_tried_are_run_alone(
    runtime: Runtime, folders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "MAX_PROBED_WINDOW", 5)
    model, reference = load_causal_lm(runtime, str(folders("gemma3")), dtype="float32"), stock(folders("gemma3"))
    assert model._packing is not None
    assert model._packing.longest == 6
    rng = np.random.default_rng(0)
    asked = [Asked(words(rng, n), 2, ((5,), (9, 8))) for n in (3, 4, 30, 5, 20, 2)]
    for one, answer in zip(asked, model.choices(asked), strict=True):
        expected = [sum(stock_log_probabilities(reference, one.tokens, label)) for label in one.continuations]
        assert answer == near(expected)


def test_memory_that_runs_out_halves_the_batches(model: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert model.batch_tokens <= 150 < sizes[0]


# -- generation ------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_text_is_what_the_stock_model_writes_alone(runtime: Runtime, folders: Any, kind: str) -> None:
    model, reference = load_causal_lm(runtime, str(folders(kind)), dtype="float32"), stock(folders(kind))
    asked = requests(7, ())
    counts: Counter[str] = Counter()
    answers = model.generate(asked, Sampling(max_tokens=9), lambda what, n: counts.update({what: n}))
    for one, answer in zip(asked, answers, strict=True):
        with torch.inference_mode():
            ids = reference.generate(torch.tensor([one.tokens]), max_new_tokens=9, do_sample=False)
        written = ids[0, len(one.tokens) :].tolist()
        ended = reference.config.eos_token_id in written
        assert list(answer.tokens) == (written[: written.index(reference.config.eos_token_id)] if ended else written)
        assert answer.finish == ("stop" if ended else "length")
        assert answer.n_tokens == len(answer.tokens)
        assert answer.text == model.tokenizer.decode(list(answer.tokens), skip_special_tokens=True)
    assert counts["generated tokens"] == sum(answer.n_tokens for answer in answers)


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_that_begin_alike_are_written_on_as_each_alone(runtime: Runtime, folders: Any, kind: str) -> None:
    model = load_causal_lm(runtime, str(folders(kind)), dtype="float32")
    beginning = tuple(range(7, 7 + 20))
    asked = [Asked((*beginning, *range(30 + n, 31 + 2 * n)), 0, ()) for n in (1, 4, 9)]
    computed = []
    forward = model._base.forward

    def counted(*given: Any, **more: Any) -> Any:
        computed.append(more["input_ids"].numel() if more.get("input_ids") is not None else given[0].numel())
        return forward(*given, **more)

    model._base.forward = counted
    try:
        together = model.generate(asked, Sampling(max_tokens=6))
        at_once, computed = sum(computed), []
        apart = [model.generate([one], Sampling(max_tokens=6))[0] for one in asked]
    finally:
        model._base.forward = forward
    assert [each.tokens for each in together] == [each.tokens for each in apart]
    if model._packing is not None and model._packing.shares_prefixes:
        assert at_once < sum(computed) - 20


def test_an_end_token_stops_a_text(model: CausalLM) -> None:
    asked = requests(6, ())
    written = model.generate(asked, Sampling(max_tokens=8))
    model._end_tokens = frozenset({written[0].tokens[3]})
    ended = model.generate(asked, Sampling(max_tokens=8))
    before = written[0].tokens[: written[0].tokens.index(written[0].tokens[3])]
    assert ended[0] == Generated(model.tokenizer.decode(list(before), skip_special_tokens=True), "stop", before)
    assert any(answer.finish == "length" for answer in ended[1:])


def test_a_text_to_stop_at_stays_in_the_answer(model: CausalLM) -> None:
    asked = requests(6, ())
    free = model.generate(asked, Sampling(max_tokens=8))
    stop = model.tokenizer.decode([free[2].tokens[4]])
    stopped = model.generate(asked, Sampling(max_tokens=8, stop=(stop,)))
    assert stopped[2].finish == "stop"
    assert stopped[2].text.endswith(stop)
    assert free[2].tokens[: stopped[2].n_tokens] == stopped[2].tokens
    assert all(answer.finish == "length" or stop in answer.text for answer in stopped)


def test_draws_depend_on_prompt_and_seed_alone(model: CausalLM) -> None:
    asked = requests(8, ())
    drawn = Sampling(max_tokens=6, temperature=1.0, seed=3)
    whole = model.generate(asked, drawn)
    state = torch.random.get_rng_state()
    assert model.generate(asked[::-1], drawn)[::-1] == whole
    assert torch.equal(torch.random.get_rng_state(), state)
    model.batch_tokens = 30
    assert model.generate(asked, drawn) == whole
    assert model.generate(asked, replace(drawn, seed=4)) != whole


def test_draws_follow_the_models_probabilities(model: CausalLM) -> None:
    prompt = requests(1)[0]._replace(continuations=tuple((i,) for i in range(model._vocabulary)))
    likely = (torch.from_numpy(model.choices([prompt])[0]) / 2).softmax(0)
    model._end_tokens = frozenset()

    def first(sampling: Sampling) -> int:
        return model.generate([prompt], sampling)[0].tokens[0]

    drawn = [first(Sampling(1, temperature=2.0, seed=seed)) for seed in range(300)]
    share = np.bincount(drawn, minlength=len(likely)) / len(drawn)
    assert np.abs(share - likely.numpy()).max() < 0.09
    ordered = likely.sort(descending=True)
    narrow = Sampling(1, temperature=2.0, top_p=float(ordered.values[:3].sum()) - 1e-3)
    assert {first(replace(narrow, seed=seed)) for seed in range(40)} == set(ordered.indices[:3].tolist())


def test_a_folders_own_sampling_options_are_not_mixed_in(runtime: Runtime, tmp_path: Path) -> None:
    from transformers import GenerationConfig

    folder = write_causal_lm(tmp_path / "opinionated", "llama")
    plain = load_causal_lm(runtime, str(folder), dtype="float32").generate(requests(3), Sampling(max_tokens=5))
    GenerationConfig(do_sample=True, temperature=9.0, repetition_penalty=5.0, eos_token_id=[3, 4]).save_pretrained(
        folder
    )
    model = load_causal_lm(Runtime(runtime.home, threads=1, device="cpu", progress=False), str(folder), dtype="float32")
    assert model._end_tokens == {3, 4}
    assert model.generate(requests(3), Sampling(max_tokens=5)) == plain


def test_prompts_for_writing_are_planned_by_length(model: CausalLM) -> None:
    model.batch_tokens = 40
    asked = requests(12, ())
    sampling = Sampling(max_tokens=10)
    plan = model.plan(asked, sampling)
    assert len(plan) > 1
    assert sorted(i for batch in plan for i in batch) == list(range(12))
    whole = model.generate(asked, sampling)
    assert [model.generate([asked[i] for i in batch], sampling) for batch in plan] == [
        [whole[i] for i in batch] for batch in plan
    ]


@pytest.mark.parametrize("options", [{"max_tokens": 0}, {"temperature": -1}, {"top_p": 0}, {"top_p": 1.5}])
def test_sampling_out_of_range_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="sampling:"):
        Sampling(**options)


# -- requests ------------------------------------------------------------


def test_requests_that_make_no_sense_are_refused(model: CausalLM) -> None:
    good = requests(1)[0]
    with pytest.raises(DataError, match="a prompt has no tokens"):
        model.choices([good._replace(tokens=())])
    with pytest.raises(DataError, match="has no labels, or an empty one"):
        model.choices([good._replace(continuations=())])
    with pytest.raises(DataError, match="has no labels, or an empty one"):
        model.choices([good._replace(continuations=((5,), ()))])
    with pytest.raises(DataError, match="has 2 continuations; it takes exactly one"):
        model.likelihood([good._replace(continuations=((5,), (6,)))])
    with pytest.raises(DataError, match=r"a prompt of 90 tokens and 0 more do not fit into the 64"):
        model.choices([good._replace(tokens=tuple([7] * 90))])
    with pytest.raises(DataError, match=r"a prompt of 60 tokens and 10 more do not fit"):
        model.generate([good._replace(tokens=tuple([7] * 60))], Sampling(max_tokens=10))


def test_a_prompt_may_fill_the_model(model: CausalLM) -> None:
    [answer] = model.choices([Asked(tuple([7] * model.limit), 0, ((5,),))])
    assert np.isfinite(answer).all()


# -- loading ------------------------------------------------------------


def test_bfloat16_keeps_the_order_and_its_logits_do_not_tie(runtime: Runtime, folders: Any) -> None:
    asked = requests(60, ((5,), (9,)))
    for kind in DECODERS:
        exact = np.array(load_causal_lm(runtime, str(folders(kind)), dtype="float32").choices(asked))
        short = np.array(load_causal_lm(runtime, str(folders(kind)), dtype="bfloat16").choices(asked))
        assert len(set(short[:, 0].tolist())) == 60
        assert agreement([exact[:, 0] - exact[:, 1]], [short[:, 0] - short[:, 1]]) > 0.9


def test_auto_is_decided_by_likelihoods(runtime: Runtime, folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorer, "has_bfloat16", lambda: True)
    monkeypatch.setattr(CausalLM, "min_agreement", -1.0)
    name = str(folders("llama"))
    assert load_causal_lm(runtime, name).dtype == "bfloat16"
    assert -1 <= runtime._facts[f"model {name}"]["agreement"] <= 1


def test_a_model_that_does_not_know_the_language_is_told_loudly(
    model: CausalLM, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.clear()
    monkeypatch.setattr(model, "_plain_likelihood", lambda pairs: [0.0] * len(pairs))
    assert not model.order_holds()
    assert "FAILED its self-test" in caplog.text
    assert "weights and tokenizer that do not belong together" in caplog.text


def test_a_head_that_is_no_plain_product_is_refused(
    runtime: Runtime, folders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CausalLM, "_finished", lambda self, logits: logits.sin())
    with pytest.raises(ModelError, match="the logits of LlamaForCausalLM are not a product of its last states"):
        load_causal_lm(runtime, str(folders("llama")))


def test_a_scaled_head_is_found_out(runtime: Runtime, folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaForCausalLM

    forward = LlamaForCausalLM.forward

    def scaled(self: Any, *args: Any, **options: Any) -> Any:
        output = forward(self, *args, **options)
        output.logits = output.logits * 0.25
        return output

    expected = load_causal_lm(runtime, str(folders("llama")), dtype="float32").choices(requests(3))
    monkeypatch.setattr(LlamaForCausalLM, "forward", scaled)
    model = load_causal_lm(
        Runtime(runtime.home, threads=1, device="cpu", progress=False), str(folders("llama")), dtype="float32"
    )
    assert np.array(model.choices(requests(3))) == near(np.array(expected) * 0.25)


# -- real texts ------------------------------------------------------------


@pytest.mark.network
def test_bfloat16_likelihoods_order_real_lists_as_float32_ones_do(session_home: Path, shared_data: Path) -> None:
    from rerank.data.load import load
    from rerank.prompts import load_prompt

    with Runtime(session_home, threads=1, device="cpu", progress=False) as runtime:
        judged = load(shared_data / "trec-dl-2019", runtime=runtime, candidates="bm25")
        lists = judged.topics()
        exact, short = (load_causal_lm(runtime, "smollm2-135m", dtype=dtype) for dtype in ("float32", "bfloat16"))
        prompt = load_prompt("query-likelihood").bind(exact.tokenizer)
        asked = prompt.requests(
            [(judged.queries[qid], [hit.text or ""]) for qid in lists.qids[:1] for hit in lists[qid]][:100], exact.limit
        )
        wanted, found = (np.array(model.likelihood(asked)) for model in (exact, short))
    assert agreement([wanted], [found]) >= 0.95
    assert np.abs(wanted - found).max() <= 0.1
