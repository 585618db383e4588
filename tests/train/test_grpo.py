"""GRPO: completions that the weights as they are write, what they are worth, and what is learnt from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_scorers import write_chat_lm
from tiny_training import recipe_text, write_collection

from rerank.engines.language_model import Sampling
from rerank.errors import ConfigError, ModelError
from rerank.runtime import Runtime
from rerank.train.fitting import read_log
from rerank.train.groups import build_groups
from rerank.train.grpo import GRPO, token_losses
from rerank.train.recipe import recipe_from
from rerank.train.rollouts import write
from rerank.train.students import CausalLMStudent
from rerank.train.training import Trained, train
from rerank.yamlfile import parse_yaml

pytestmark = [
    pytest.mark.needs("peft", "accelerate"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
]
FORM = "  prompt: order\n  max_tokens: 1536\n"


@pytest.fixture(scope="session")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_collection(tmp_path_factory.mktemp("collection") / "tiny")


@pytest.fixture(scope="session")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_lm(tmp_path_factory.mktemp("models") / "chat")


@pytest.fixture
def runtime(own_home: Path) -> Runtime:
    return Runtime(own_home, threads=1, device="cpu", progress=False, cache=False)


def text_of(chat: Path, collection: Path, more: str = "", **options: Any) -> str:
    asked = f"{FORM}  max_new_tokens: 6\n  completions: 4\n{more}"
    options.setdefault("optimiser", "learning_rate: 1.0e-3, groups: 2, steps: 4")
    options.setdefault("adapter", "{lora: {rank: 4, alpha: 8, dropout: 0.0}}")
    return recipe_text(chat, collection, kind="grpo", engine="causal_lm", evaluation=False, more=asked, **options)


def grpo(text: str) -> GRPO:
    made = recipe_from(parse_yaml(text)).recipe
    assert isinstance(made, GRPO)
    return made


def student_of(made: GRPO, runtime: Runtime, *, std: float = 0.1) -> CausalLMStudent:
    """A student whose new weights change what the model says."""
    student = made.student(runtime)
    assert isinstance(student, CausalLMStudent)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for weight in student.weights().values():
            torch.nn.init.normal_(weight, std=std)
    return student


def whole_log_probabilities(student: CausalLMStudent, prompt: Any, tokens: Any, temperature: float) -> Any:
    """By the model's own forward pass over the whole text."""
    ids = torch.tensor([[*prompt, *tokens]])
    with torch.no_grad(), student.resting():
        logits = student.scorer.model(input_ids=ids, use_cache=False).logits[0].float() / temperature
    found = logits[len(prompt) - 1 : -1].log_softmax(1)
    return found.gather(1, torch.tensor(tokens)[:, None])[:, 0]


def test_what_is_drawn_does_not_depend_on_what_else_is_written(runtime: Runtime, chat: Path, collection: Path) -> None:
    made = grpo(text_of(chat, collection))
    student = student_of(made, runtime)
    groups = build_groups(made.groups, runtime)[:3]
    prompts = [request.tokens for request in student.asked(groups, 6)]
    sampling = Sampling(max_tokens=6, temperature=1.3)
    seeds = [[1, 2], [3, 4], [5, 6]]
    together = write(student, prompts, seeds, sampling)
    assert write(student, prompts[1:2], seeds[1:2], sampling) == together[1:2]
    assert write(student, prompts[1:2], [[4, 3]], sampling)[0] == together[1][::-1]
    assert {len(each.tokens) for some in together for each in some} <= set(range(1, 7))


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_completions_that_share_a_prompt_are_those_that_each_computes_alone(
    runtime: Runtime, chat: Path, collection: Path, monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    made = grpo(text_of(chat, collection))
    student = student_of(made, runtime)
    prompts = [request.tokens for request in student.asked(build_groups(made.groups, runtime)[:3], 6)]
    sampling = Sampling(max_tokens=6, temperature=temperature)
    seeds = [[1, 2, 3]] * 3
    assert student.scorer.writes_together
    shared = write(student, prompts, seeds, sampling)
    monkeypatch.setattr(type(student.scorer), "writes_together", False)
    assert write(student, prompts, seeds, sampling) == shared


def test_log_probabilities_are_those_of_the_whole_text(runtime: Runtime, chat: Path, collection: Path) -> None:
    made = grpo(text_of(chat, collection))
    student = student_of(made, runtime)
    (rollout,) = made.rollouts(student, build_groups(made.groups, runtime)[:1], 0)
    item = student.branched(rollout.prompt, rollout.different)
    with torch.no_grad(), student.resting():
        found = student.completion_log_probabilities([item], [rollout.different], 0.9)
    expected = [whole_log_probabilities(student, rollout.prompt, tokens, 0.9) for tokens in rollout.different]
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-4, rtol=1e-4)


def test_a_head_that_is_frozen_has_the_gradient_of_plain_logits(runtime: Runtime, chat: Path, collection: Path) -> None:
    student = student_of(grpo(text_of(chat, collection)), runtime)
    torch.manual_seed(3)
    width = student.scorer.model.config.hidden_size
    states = torch.randn(5, width, requires_grad=True)
    tokens, weights = [3, 1, 4, 1, 5], torch.randn(5)
    found = student.scorer.log_probabilities(states, tokens, 0.7)
    (gradient,) = torch.autograd.grad((found * weights).sum(), states)
    plain = (student.scorer.logits(states) / 0.7).log_softmax(1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
    (wanted,) = torch.autograd.grad((plain * weights).sum(), states)
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=1e-4)


def test_the_reference_of_a_new_adapter_is_the_base_to_the_bit(runtime: Runtime, chat: Path, collection: Path) -> None:
    made = grpo(text_of(chat, collection))
    groups = build_groups(made.groups, runtime)[:2]
    student = student_of(made, runtime)
    batches = made.batches(student, groups)
    for rollout in (each for batch in batches for each in batch.inputs):
        item = student.branched(rollout.prompt, rollout.different)
        with torch.no_grad(), student.trained.disable_adapter(), student.resting():
            base = student.completion_log_probabilities([item], [rollout.different], made.temperature)
        with torch.no_grad(), student.resting():
            now = student.completion_log_probabilities([item], [rollout.different], made.temperature)
        assert not torch.equal(base, now)
        torch.testing.assert_close(rollout.reference, base, atol=1e-5, rtol=1e-5)
    alone = made.batches(student, groups[:1])[0].inputs[0]
    item = student.branched(alone.prompt, alone.different)
    with torch.no_grad(), student.trained.disable_adapter(), student.resting():
        assert torch.equal(
            student.completion_log_probabilities([item], [alone.different], made.temperature), alone.reference
        )


def test_the_reference_leaves_the_weights_as_they_were(runtime: Runtime, chat: Path, collection: Path) -> None:
    made = grpo(text_of(chat, collection))
    student = student_of(made, runtime)
    before = {name: weight.detach().clone() for name, weight in student.weights().items()}
    with pytest.raises(ZeroDivisionError), student.as_reference():
        assert not all(torch.equal(before[name], weight) for name, weight in student.weights().items())
        raise ZeroDivisionError
    assert all(torch.equal(before[name], weight) for name, weight in student.weights().items())


def trained_by_sft(runtime: Runtime, chat: Path, collection: Path, out: Path) -> Trained:
    text = recipe_text(
        chat, collection, kind="sft", engine="causal_lm", evaluation=False, more=FORM,
        optimiser="learning_rate: 1.0e-2, groups: 4, steps: 2",
    )  # fmt: skip
    return train(recipe_from(parse_yaml(text)).recipe, out, runtime)


def test_training_goes_on_from_an_adapter_which_is_its_reference(
    runtime: Runtime, chat: Path, collection: Path, tmp_path: Path
) -> None:
    started = trained_by_sft(runtime, chat, collection, tmp_path / "sft")
    made = grpo(text_of(chat, collection, f"  start: {started.model}\n"))
    student = made.student(runtime)
    batches = made.batches(student, build_groups(made.groups, runtime)[:2])
    for batch in batches:
        made.total(student, batch)
    figures = made.figures(batches)
    assert figures["kl"] == pytest.approx(0.0, abs=1e-6)
    fresh = grpo(text_of(chat, collection)).student(runtime)
    assert any(not torch.equal(w, fresh.weights()[name]) for name, w in student.weights().items())
    trained = train(made, tmp_path / "grpo", runtime)
    assert trained.fitted.steps == 4


@pytest.mark.parametrize(
    ("adapter", "said"),
    [("{lora: {rank: 8}}", "where the recipe's adapter has"), ("{lora: {rank: 4, alpha: 1}}", "lora_alpha")],
)
def test_a_start_that_is_another_adapter_is_refused(
    runtime: Runtime, chat: Path, collection: Path, tmp_path: Path, adapter: str, said: str
) -> None:
    started = trained_by_sft(runtime, chat, collection, tmp_path / "sft")
    text = text_of(chat, collection, f"  start: {started.model}\n", adapter=adapter)
    with pytest.raises(ConfigError, match=said):
        grpo(text).student(runtime)
    other = text_of(chat, collection, f"  start: {started.model}\n").replace("prompt: order", "prompt: group-scores")
    with pytest.raises(ModelError, match="was trained with the prompt"):
        grpo(other).student(runtime)


def test_logs_tell_rewards_verdicts_and_completions(
    runtime: Runtime, chat: Path, collection: Path, tmp_path: Path
) -> None:
    train(grpo(text_of(chat, collection)), tmp_path / "out", runtime)
    line = read_log(tmp_path / "out" / "metrics.jsonl")[0]
    verdicts = [line[f"share/{name}"] for name in ("right", "wrong", "unparsable", "cut off")]
    assert sum(verdicts) == pytest.approx(1.0)
    assert {"reward", "reward/ndcg", "share/all_equal", "length", "length_max", "kl", "entropy"} <= line.keys()
    sample = json.loads((tmp_path / "out" / "completions.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert len(sample["completions"]) == len(sample["rewards"]) == 4


@pytest.mark.parametrize("loss", ["grpo", "dapo", "dr_grpo"])
def test_a_mean_over_a_step_does_not_depend_on_its_batches(
    runtime: Runtime, chat: Path, collection: Path, loss: str
) -> None:
    found = []
    for tokens in (1, 100_000):
        made = grpo(
            text_of(
                chat, collection, f"  loss: {loss}\n  reward: {{format: {{valid: 1.0}}}}\n",
                optimiser=f"groups: 3, batch_tokens: {tokens}",
            )
        )  # fmt: skip
        student = student_of(made, runtime)
        groups = build_groups(made.groups, runtime)[:3]
        batches = made.batches(student, groups)
        for rollout in (each for batch in batches for each in batch.inputs):
            rollout.advantages = [1.0, -1.0, 0.5, -0.5]
        totals, counts = zip(*(made.total(student, batch) for batch in batches), strict=True)
        (sum(totals) / sum(counts)).backward()
        found.append({name: weight.grad for name, weight in student.weights().items()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], atol=1e-5, rtol=1e-3)


def test_tokens_lose_as_worked_out() -> None:
    now = torch.tensor([0.5, 0.25]).log()
    losses = token_losses(
        now,
        torch.tensor([1 / 3, 0.5]).log(),
        torch.tensor([0.25, 0.25]).log(),
        torch.tensor([2.0, -1.0]),
        0.2,
        0.2,
        0.5,
    )
    # Ratios 1.5 and 0.5 are held at 1.2 and 0.8; x = 0.5 and 1.
    kl = 0.5 - torch.tensor(0.5).log() - 1
    torch.testing.assert_close(losses.loss, torch.tensor([-2.4 + 0.5 * kl, 0.8]))
    assert losses.clipped.tolist() == [True, True]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("  completions: 1\n", "2 or more"),
        ("  temperature: 0\n", "temperature"),
        ("  beta: -1\n", "beta"),
    ],
)
def test_settings_that_make_no_sense_are_refused(chat: Path, collection: Path, more: str, said: str) -> None:
    text = recipe_text(chat, collection, kind="grpo", engine="causal_lm", evaluation=False, more=FORM + more)
    with pytest.raises(ConfigError, match=said):
        grpo(text)


def test_a_prompt_that_does_not_write_is_refused(runtime: Runtime, chat: Path, collection: Path) -> None:
    text = text_of(chat, collection).replace("prompt: order", "prompt: yes-no")
    with pytest.raises(ConfigError, match="written answer"):
        grpo(text).student(runtime)
