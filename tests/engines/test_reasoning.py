"""Reasoning models: a budget for thinking, traces closed by force, answers after them, several samples averaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rerank.artifact import cache_home
from rerank.engines.causal_lm import CausalLM
from rerank.engines.engine import Asked, Asker
from rerank.engines.language_model import Generated, Sampling
from rerank.engines.prompted import CausalLMEngine
from rerank.engines.samples import averaged, mean_answer
from rerank.errors import ConfigError
from rerank.prompts import load_prompt
from rerank.runtime import Runtime

pytestmark = [pytest.mark.needs("torch", "transformers"), pytest.mark.filterwarnings("ignore")]

ONE = [Asked("q", "where is Paris", (f"d{i}",), (f"Paris lies on the Seine {'very ' * i}",)) for i in range(5)]
MANY = [Asked("q", "where is Paris", ("d0", "d1", "d2"), ("on the Seine", "no wing", "in France"))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tiny_scorers import write_chat_lm

    return str(write_chat_lm(tmp_path_factory.mktemp("models") / "chat"))


@pytest.fixture
def runtime(own_home: Path) -> Runtime:
    return Runtime(own_home, threads=1, device="cpu", progress=False)


class Ran:
    """Answers with what was counted."""

    def __init__(self, runtime: Runtime, folder: str, prompt: str, asked: Sequence[Asked], **sampling: Any) -> None:
        engine = CausalLMEngine(folder, dtype="float32", sampling=Sampling(**sampling))
        with runtime.counting() as self.counts:
            self.answers = engine.asker(prompt, runtime).ask(asked, runtime)


Script = Callable[[Sequence[Any], Sampling], list[str]]


def scripted(monkeypatch: pytest.MonkeyPatch, *rounds: list[tuple[str, str]]) -> list[tuple[list[str], Sampling]]:
    """Has the model write `rounds`, one after the other; gives what it was shown and how it was to write."""
    seen: list[tuple[list[str], Sampling]] = []

    def generate(self: CausalLM, requests: Any, sampling: Sampling, *_: Any) -> list[Generated]:
        texts = rounds[len(seen)]
        seen.append(([self.tokenizer.decode(list(request.tokens)) for request in requests], sampling))
        ids = [tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"]) for text, _ in texts]
        return [Generated(text, finish, tokens) for (text, finish), tokens in zip(texts, ids, strict=True)]  # type: ignore[arg-type]

    monkeypatch.setattr(CausalLM, "generate", generate)
    return seen


# -- labels after reasoning ------------------------------------------------------------


def test_a_trace_that_runs_out_of_budget_is_closed_and_the_labels_are_read(runtime: Runtime, folder: str) -> None:
    ran = Ran(runtime, folder, "rank1", ONE, max_tokens=6)
    assert ran.counts["generated tokens"] <= 6 * len(ONE)
    scores = [score for (score,) in ran.answers]
    assert len(set(scores)) == len(ONE)
    model = CausalLMEngine(folder, dtype="float32")._load(load_prompt("rank1"), runtime)
    bound = load_prompt("rank1").bind(model.tokenizer)
    requests = bound.requests([(asked.query, asked.documents) for asked in ONE], 1000)
    traces = model.generate(requests, Sampling(max_tokens=6, stop=("</think>",)))
    assert ran.counts["closed traces"] == sum("</think>" not in trace.text for trace in traces) > 0
    asked = [bound.finish(request, trace.tokens) for request, trace in zip(requests, traces, strict=True)]
    for request, score in zip(asked, scores, strict=True):
        assert model.tokenizer.decode(list(request.tokens)).endswith("</think>")
        assert [model.tokenizer.decode(list(label)) for label in request.continuations] == [" true", " false"]
        true, false = model.choices([request])[0]
        assert score == pytest.approx(1 / (1 + np.exp(false - true)), rel=1e-4)


def test_a_trace_that_was_closed_is_left_as_it_is(
    runtime: Runtime, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = scripted(monkeypatch, [("it is</think>", "stop"), ("it is not", "length"), ("so", "stop")])
    shown: list[str] = []
    choices = CausalLM.choices

    def choosing(self: CausalLM, requests: Any, *more: Any) -> Any:
        shown.extend(self.tokenizer.decode(list(request.tokens)) for request in requests)
        return choices(self, requests, *more)

    monkeypatch.setattr(CausalLM, "choices", choosing)
    ran = Ran(runtime, folder, "rank1", ONE[:3], thinking_tokens=50)
    assert ran.counts["closed traces"] == 2
    assert [text.partition("<think>")[2] for text in shown] == [
        "it is</think>", "it is not\n</think>", "so\n</think>",
    ]  # fmt: skip
    (_, sampling) = seen[0]
    assert (sampling.max_tokens, sampling.stop) == (50, ("</think>",))


# -- written answers after reasoning ------------------------------------------------------------


def test_an_answer_is_written_after_a_trace_that_was_closed(
    runtime: Runtime, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = scripted(monkeypatch, [("<think>hm, Paris", "length")], [("[3]</answer>", "stop")])
    ran = Ran(runtime, folder, "pick-reasoning", MANY, thinking_tokens=7, max_tokens=9)
    assert ran.answers == [(0.0, 0.0, 1.0)]
    assert ran.counts["closed traces"] == 1
    assert seen[1][0][0].endswith("<think>hm, Paris\n</think>\n<answer>")
    assert [sampling.max_tokens for _, sampling in seen] == [7, 9]
    assert seen[1][1].stop == ("</answer>",)


def test_an_answer_that_was_cut_is_written_on(runtime: Runtime, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = scripted(monkeypatch, [("<think>hm</think> <answer>[", "length")], [("2]</answer>", "stop")])
    ran = Ran(runtime, folder, "pick-reasoning", MANY)
    assert ran.answers == [(0.0, 1.0, 0.0)]
    assert "closed traces" not in ran.counts
    assert seen[1][0][0].endswith("<think>hm</think> <answer>[")


def test_an_answer_that_was_written_needs_nothing_more(
    runtime: Runtime, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = scripted(monkeypatch, [("<think>hm</think> <answer>[2]</answer>", "stop")], [])
    ran = Ran(runtime, folder, "pick-reasoning", MANY)
    assert ran.answers == [(0.0, 1.0, 0.0)]
    assert len(seen) == 2
    assert seen[1][0] == []


def test_prompts_leave_room_for_reasoning_and_answer(runtime: Runtime, folder: str) -> None:
    long = [Asked("q", "Paris", ("d",), ("Paris " * 5000,))]
    for prompt, written in (("rank1", 100), ("pick-reasoning", 110)):
        ran = Ran(runtime, folder, prompt, long, thinking_tokens=100, max_tokens=10)
        assert ran.counts["truncated documents"] == 1
        engine = CausalLMEngine(folder, sampling=Sampling(thinking_tokens=100, max_tokens=10))
        (size,) = engine.measure(prompt, runtime).sizes(long)
        assert size.generated == written
        assert 2048 - written - 30 < size.tokens < 2048 - written


def test_prompts_without_reasoning_are_as_they_were(
    runtime: Runtime, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = scripted(monkeypatch, [("[2] > [1] > [3]", "length")])
    assert Ran(runtime, folder, "order", MANY, thinking_tokens=5).answers == [(2.0, 3.0, 1.0)]
    assert len(seen) == 1
    assert seen[0][1].max_tokens == 256


# -- what was written ------------------------------------------------------------


def explained(runtime: Runtime, folder: str, prompt: str, asked: Sequence[Asked], **sampling: Any) -> list[Any]:
    """The answers, and what the runtime was told beside them."""
    with runtime.explaining() as told:
        answers = Ran(runtime, folder, prompt, asked, **sampling).answers
    assert answers == Ran(runtime, folder, prompt, asked, **sampling).answers
    return told


def test_a_trace_is_told_of_its_question_as_it_was_closed(
    runtime: Runtime, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    traces = [("it is</think>", "stop"), ("it is not", "length")]
    scripted(monkeypatch, traces, traces)
    told = explained(runtime, folder, "rank1", ONE[:2])
    texts = ["it is</think>", "it is not\n</think>"]
    assert [asked for asked, _ in told] == ONE[:2]
    assert [text.partition("<think>")[2].lstrip() for _, text in told] == texts
    assert all(text.startswith("<think>") for _, text in told)


def test_an_answer_is_told_with_its_reasoning(runtime: Runtime, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = [("<think>hm, Paris", "length")], [("[3]</answer>", "stop")]
    scripted(monkeypatch, *rounds, *rounds)
    ((asked, text),) = explained(runtime, folder, "pick-reasoning", MANY)
    assert asked is MANY[0]
    assert text == "<think>hm, Paris\n</think>\n<answer>[3]</answer>"


def test_every_sample_is_told(runtime: Runtime, folder: str) -> None:
    told = explained(runtime, folder, "rank1", ONE[:2], max_tokens=5, temperature=1.0, samples=3)
    assert [asked for asked, _ in told] == ONE[:2] * 3
    assert len({text for _, text in told}) > 2


@pytest.mark.parametrize("prompt", ["yes-no", "query-likelihood"])
def test_where_nothing_is_written_nothing_is_told(runtime: Runtime, folder: str, prompt: str) -> None:
    assert explained(runtime, folder, prompt, ONE) == []


# -- samples ------------------------------------------------------------


def test_samples_are_averaged_and_each_is_kept_by_itself(runtime: Runtime, folder: str) -> None:
    drawn = {"max_tokens": 5, "temperature": 1.0}
    apart = [Ran(runtime, folder, "rank1", ONE, seed=seed, **drawn).answers for seed in (3, 4, 5)]
    assert len(set(map(tuple, apart))) == 3
    two = Ran(runtime, folder, "rank1", ONE, seed=3, samples=2, **drawn)
    three = Ran(runtime, folder, "rank1", ONE, seed=3, samples=3, **drawn)
    fresh = Ran(runtime, folder, "rank1", ONE, seed=5, samples=2, **drawn)
    assert two.counts["cached answers"] == two.counts["requests"] == 2 * 2 * len(ONE)
    assert three.counts["cached answers"] == three.counts["requests"]
    assert fresh.counts["cached answers"] == fresh.counts["requests"] / 2
    for i in range(len(ONE)):
        assert three.answers[i][0] == pytest.approx(np.mean([answers[i][0] for answers in apart]))
        assert two.answers[i][0] == pytest.approx(np.mean([answers[i][0] for answers in apart[:2]]))


def test_a_document_that_one_sample_says_nothing_of_has_the_mean_of_the_others() -> None:
    assert mean_answer([(1.0, None, None), (0.0, 4.0, None)]) == (0.5, 4.0, None)
    assert mean_answer([(0.1,)]) == (0.1,)


def test_samples_without_draws_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 samples would all be the same without a temperature"):
        Sampling(samples=3)
    with pytest.raises(ConfigError, match="samples is 0 and thinking_tokens None; at least 1"):
        Sampling(samples=0)
    with pytest.raises(ConfigError, match="thinking_tokens 0"):
        Sampling(thinking_tokens=0)


def test_scored_prompts_ask_once_whatever_the_sampling(runtime: Runtime, folder: str) -> None:
    ran = Ran(runtime, folder, "yes-no", ONE, samples=4, temperature=1.0)
    assert ran.counts["requests"] == len(ONE)


def test_samples_of_askers_that_wait_are_under_way_together() -> None:
    import asyncio

    from rerank.ranking import ScoreKind

    class Waiting:
        kind, most_documents, in_flight, at_once = ScoreKind.UNKNOWN, None, 7, 3
        under_way = most = 0

        def __init__(self, score: float) -> None:
            self._score = score

        def ask(self, questions: Sequence[Asked], runtime: Runtime) -> list[Any]:
            return [(self._score,) for _ in questions]

        def passages(self, texts: Sequence[str], passages: Any) -> Any:
            return [()] * len(texts)

        async def ask_async(self, questions: Sequence[Asked], runtime: Runtime) -> list[Any]:
            Waiting.under_way += 1
            Waiting.most = max(Waiting.most, Waiting.under_way)
            await asyncio.sleep(0)
            Waiting.under_way -= 1
            return self.ask(questions, runtime)

    with Runtime(progress=False) as runtime:
        asker: Any = averaged([Waiting(0.0), Waiting(1.0), Waiting(0.5)])
        assert (asker.in_flight, asker.at_once) == (7, 3)
        assert asyncio.run(asker.ask_async(ONE[:2], runtime)) == [(0.5,), (0.5,)]
        assert asker.ask(ONE[:1], runtime) == [(0.5,)]
        assert Waiting.most == 3
        alone: Asker = Waiting(1.0)
        assert averaged([alone]) is alone


# -- a real model ------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2() -> str:
    folder = cache_home() / "models" / "smollm2-135m"
    if not folder.is_dir():
        pytest.skip(f"needs real weights: {folder} is not there (rerank models fetch smollm2-135m)")
    return str(folder)


def test_a_real_model_thinks_within_its_budget(runtime: Runtime, smollm2: str) -> None:
    asked = [
        Asked("q", "what is the capital of France", (str(i),), (text,))
        for i, text in enumerate(("Paris is the capital of France.", "Feed the starter twice a day."))
    ]
    ran = Ran(runtime, smollm2, "rank1", asked, thinking_tokens=16)
    assert ran.counts["generated tokens"] <= 32
    assert ran.counts.get("closed traces", 0) <= 2
    assert all(score is not None and 0 < score < 1 for (score,) in ran.answers)
    many = [Asked("q", asked[0].query, ("0", "1"), (asked[0].documents[0], asked[1].documents[0]))]
    picked = Ran(runtime, smollm2, "pick-reasoning", many, thinking_tokens=16, max_tokens=8)
    assert picked.counts["closed traces"] == 1
    assert picked.counts["generated tokens"] <= 24
