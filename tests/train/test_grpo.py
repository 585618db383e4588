"""GRPO: completions that the weights as they are write, what they are worth, and what is learnt from them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import recipe_text, train_apart

from rerank.cli import main
from rerank.engines.language_model import Sampling
from rerank.engines.text_model import torch_threads
from rerank.errors import ConfigError, ModelError, RerankError
from rerank.prompts.prompt import load_prompt
from rerank.runtime import Runtime
from rerank.train.causal_lm_student import CausalLMStudent
from rerank.train.fitting import checkpoints, read_log
from rerank.train.groups import build_groups
from rerank.train.grpo import GRPO, token_losses
from rerank.train.recipe import Step, recipe_from
from rerank.train.rollouts import write
from rerank.train.training import Trained, train
from rerank.yamlfile import parse_yaml

pytestmark = [
    pytest.mark.needs("peft", "accelerate"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
]
FORM = "  prompt: short-grades\n  max_tokens: 1536\n"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models as small as these lose by more."""
    with torch_threads(1):
        yield


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


ALL_LINEAR = "{lora: {rank: 4, alpha: 8, dropout: 0.0, targets: all-linear}}"


@pytest.fixture(scope="session")
def started(chat: Path, collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter whose answers to the prompt short-grades are sometimes in the right form."""
    text = recipe_text(
        chat, collection, kind="sft", engine="causal_lm", evaluation=False, more=FORM, adapter=ALL_LINEAR,
        optimiser="learning_rate: 2.0e-2, groups: 12, steps: 45, schedule: constant",
    ).replace("save_every: 2", "save_every: 100")  # fmt: skip
    folder = tmp_path_factory.mktemp("started")
    with Runtime(folder / "home", threads=1, device="cpu", progress=False, cache=False) as runtime:
        return train(recipe_from(parse_yaml(text)).recipe, folder / "sft", runtime).model


def text_from(
    started: Path, chat: Path, collection: Path, more: str = "", optimiser: str = "learning_rate: 1.0e-3, groups: 4"
) -> str:
    """A recipe whose answers have rewards that differ."""
    asked = f"{FORM}  max_new_tokens: 16\n  completions: 4\n  start: {started}\n{more}"
    return recipe_text(
        chat, collection, kind="grpo", engine="causal_lm", evaluation=False, more=asked, adapter=ALL_LINEAR,
        optimiser=optimiser,
    )  # fmt: skip


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
    (rollout,) = made.rollouts(student, Step(build_groups(made.groups, runtime)[:1]))
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
    batches = made.batches(student, Step(groups))
    for rollout in (each for batch in batches for each in batch.inputs):
        item = student.branched(rollout.prompt, rollout.different)
        with torch.no_grad(), student.trained.disable_adapter(), student.resting():
            base = student.completion_log_probabilities([item], [rollout.different], made.temperature)
        with torch.no_grad(), student.resting():
            now = student.completion_log_probabilities([item], [rollout.different], made.temperature)
        assert not torch.equal(base, now)
        torch.testing.assert_close(rollout.reference, base, atol=1e-5, rtol=1e-5)
    alone = made.batches(student, Step(groups[:1]))[0].inputs[0]
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
    batches = made.batches(student, Step(build_groups(made.groups, runtime)[:2]))
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
    other = text_of(chat, collection, f"  start: {started.model}\n").replace(
        "prompt: short-grades", "prompt: group-scores"
    )
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
                chat, collection, f"  loss: {loss}\n",
                optimiser=f"groups: 3, batch_tokens: {tokens}",
            )
        )  # fmt: skip
        student = student_of(made, runtime)
        groups = build_groups(made.groups, runtime)[:3]
        batches = made.batches(student, Step(groups))
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
        ("completions: 1", "2 or more"),
        ("temperature: 0", "temperature"),
        ("beta: -1", "beta"),
        ("iterations: 0", "iterations is 0"),
        ("iterations: 3", r"save_every is 2, no multiple of iterations 3: a checkpoint between two steps"),
        ("resample: -1", "resample is -1"),
        ("loss: bnpo", "loss"),
    ],
)
def test_settings_that_make_no_sense_are_refused(chat: Path, collection: Path, more: str, said: str) -> None:
    text = recipe_text(chat, collection, kind="grpo", engine="causal_lm", evaluation=False, more=f"{FORM}  {more}\n")
    with pytest.raises(ConfigError, match=said):
        grpo(text)


def test_measurements_between_steps_on_the_same_completions_are_refused(chat: Path, collection: Path) -> None:
    more = f"{FORM}  iterations: 2\n"
    text = recipe_text(chat, collection, kind="grpo", engine="causal_lm", more=more, every=3)
    with pytest.raises(ConfigError, match=r"evaluation.every is 3, no multiple of iterations 2"):
        grpo(text)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("prompt: short-grades", "prompt: yes-no"), "asks for choices about one document"),
        (("prompt: short-grades", "prompt: pick"), "asks for choices about a group"),
        (("prompt: short-grades", "prompt: hyde"), "asks for generate about one document or none"),
        (("prompt: short-grades", "temperature: 1.0"), "needs a prompt whose answers are written"),
        (("prompt: short-grades", "prompt: odrer"), "no prompt is called 'odrer'; did you mean 'order'"),
        (("prompt: short-grades", "prompt: order\n  reward: alignment"), "alignment compares grades"),
        (
            ("prompt: short-grades", "prompt: rank-r1\n  reward: {weighted: {of: [ndcg, alignment], weights: [1, 1]}}"),
            r"alignment compares grades .* \(parser think-answer-pick\); take exact_pick, ndcg or rbo",
        ),
        (("max_new_tokens: 6", "max_new_tokens: 1536"), "1,536 leaves no room for a prompt in .* max_tokens, 1,536"),
        (("causal_lm", "cross_encoder"), "trains language models"),
        (("prompt: short-grades", "prompt: order\n  start: /nowhere"), "start '/nowhere' is no adapter"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_loaded(
    runtime: Runtime, collection: Path, tmp_path: Path, capsys: Any, change: tuple[str, str], said: str
) -> None:
    text = text_of(Path("/no/model"), collection)
    assert change[0] in text
    text = text.replace(*change)
    with pytest.raises(RerankError, match=said):
        train(grpo(text), tmp_path / "out", runtime)
    assert not (tmp_path / "out" / "training.json").exists()
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    assert main(["check", str(path)]) == 2
    assert str(path) in (told := capsys.readouterr().err) and "Traceback" not in told


def test_groups_that_are_larger_than_the_prompt_shows_are_refused(chat: Path, collection: Path) -> None:
    text = (
        text_of(chat, collection)
        .replace("prompt: short-grades", "prompt: rank-r1")
        .replace("sizes: [4]", "sizes: [4, 21]")
    )
    with pytest.raises(ConfigError, match="up to 21 documents, but the prompt 'rank-r1' shows 20 at most"):
        grpo(text).check_before()


@pytest.mark.parametrize(
    ("prompt", "reward"), [("order", "NDCGReward"), ("short-pick", "ExactPick"), ("short-grades", "Weighted")]
)
def test_without_a_reward_the_usual_one_of_the_form_is_taken(
    chat: Path, collection: Path, prompt: str, reward: str
) -> None:
    made = grpo(text_of(chat, collection).replace("prompt: short-grades", f"prompt: {prompt}"))
    made.check_before()
    assert type(made.reward_for(load_prompt(prompt))).__name__.startswith(reward)


# -- the reference ------------------------------------------------------------


def pulled(made: GRPO, student: CausalLMStudent, groups: Any) -> dict[str, Any]:
    """The gradient of a step in which rewards say nothing."""
    batches = made.batches(student, Step(groups))
    for rollout in (each for batch in batches for each in batch.inputs):
        rollout.advantages = [0.0] * len(rollout.rewards)
    for batch in batches:
        made.total(student, batch)[0].backward()
    assert (made.figures(batches)["kl"] > 1e-4) == any(bool(w.grad.any()) for w in student.weights().values())
    return {name: weight.grad for name, weight in student.weights().items()}


def test_weights_are_pulled_back_to_what_they_were_at_the_start(
    runtime: Runtime, started: Path, chat: Path, collection: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails where the reference is the weights as they are: those pull nowhere."""
    made = grpo(text_from(started, chat, collection, "  beta: 1.0\n"))
    groups = build_groups(made.groups, runtime)[:2]

    def moved() -> CausalLMStudent:
        student = made.student(runtime)
        assert isinstance(student, CausalLMStudent)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            for weight in student.weights().values():
                weight.add_(0.05 * torch.randn_like(weight))
        return student

    student = moved()
    gradient = pulled(made, student, groups)
    back = [weight.detach() - student._reference[name] for name, weight in student.weights().items()]
    assert sum(float((g * b).sum()) for g, b in zip(gradient.values(), back, strict=True)) > 0
    monkeypatch.setattr(CausalLMStudent, "as_reference", lambda self: contextlib.nullcontext())
    assert not any(bool(each.abs().max() > 1e-5) for each in pulled(made, moved(), groups).values())


# -- several steps on the same completions ------------------------------------------------------------


def test_later_steps_on_the_same_completions_are_held_to_the_first(
    runtime: Runtime, started: Path, chat: Path, collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, list[str]]] = []
    whole = GRPO.batches

    def told(self: GRPO, student: Any, step: Step) -> Any:
        seen.append((step.number, [group.qid for group in step.groups]))
        return whole(self, student, step)

    monkeypatch.setattr(GRPO, "batches", told)
    text = text_from(
        started, chat, collection, "  iterations: 2\n  epsilon: 0.01\n",
        optimiser="learning_rate: 1.0e-2, groups: 4, epochs: 1, warmup: 0.0",
    )  # fmt: skip
    trained = train(grpo(text), tmp_path / "out", runtime)
    # 12 groups, 4 a step, each step twice.
    assert trained.fitted.steps == 6
    assert [step for step, _ in seen] == [0, 2, 4]
    assert len({qid for _, qids in seen for qid in qids}) == 12
    lines = read_log(tmp_path / "out" / "metrics.jsonl")
    assert [line["clipped"] > 0 for line in lines] == [False, True] * 3
    assert [line["reward"] for line in lines[::2]] == [line["reward"] for line in lines[1::2]]
    assert [line["kl"] for line in lines[::2]] != [line["kl"] for line in lines[1::2]]


# -- prompts that teach nothing ------------------------------------------------------------


def test_prompts_whose_completions_are_worth_the_same_are_replaced(
    runtime: Runtime, started: Path, chat: Path, collection: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the next that teach something, as many as may be tried; what was tried is told, and weighs nothing."""
    made = grpo(text_from(started, chat, collection, "  resample: 5\n  beta: 0.0\n"))
    assert made.n_spare == 5
    groups = build_groups(made.groups, runtime)
    student = made.student(runtime)
    assert isinstance(student, CausalLMStudent)
    dull = {groups[i].qid for i in (0, 2, 4, 6)}
    judged = GRPO._judged

    def dulled(self: GRPO, student: Any, group: Any, *rest: Any) -> Any:
        found = judged(self, student, group, *rest)
        found.rewards = [0.0] * 4 if group.qid in dull else [1.0, 0.0, 0.0, 0.0]
        found.advantages = [0.0] * 4 if group.qid in dull else [1.5, -0.5, -0.5, -0.5]
        return found

    monkeypatch.setattr(GRPO, "_judged", dulled)
    batches = made.batches(student, Step(groups[:4], spare=groups[4:9]))
    rollouts = [rollout for batch in batches for rollout in batch.inputs]
    # 0 and 2 are dull: 4 and 5 are tried, 5 is not dull; then 6 in vain, then 7.
    assert [rollout.group.qid for rollout in rollouts] == [group.qid for group in groups[:8]]
    assert [i for i, rollout in enumerate(rollouts) if rollout.counts] == [1, 3, 5, 7]
    assert [i for i, rollout in enumerate(rollouts) if rollout.item is not None] == [1, 3, 5, 7]
    assert sum(int(made.total(student, batch)[1]) for batch in batches) == 4 * 4
    figures = made.figures(batches)
    assert (figures["resampled"], figures["share/all_equal"]) == (4.0, 0.5)
    few = dataclasses.replace(made, resample=1)
    rollouts = few.rollouts(student, Step(groups[:4], spare=groups[4:5]))
    assert [rollout.counts for rollout in rollouts] == [True, True, True, True, False]


# -- going on ------------------------------------------------------------


def test_a_killed_run_goes_on_to_the_same_bits(
    runtime: Runtime, started: Path, chat: Path, collection: Path, tmp_path: Path, own_home: Path
) -> None:
    """And to the same log, whose lines are of other steps than checkpoints are."""
    path = tmp_path / "tiny.yaml"
    more = "  iterations: 2\n  resample: 3\n"
    text = text_from(started, chat, collection, more, optimiser="learning_rate: 1.0e-3, groups: 4, steps: 7")
    path.write_text(text.replace("log_every: 1", "log_every: 3"), encoding="utf-8")
    whole = train(grpo(path.read_text(encoding="utf-8")), tmp_path / "whole", runtime)
    assert train_apart(path, tmp_path / "killed", own_home, "step-0000004") == -signal.SIGKILL
    assert [each.name for each in checkpoints(tmp_path / "killed")] == ["step-0000002"]
    assert train_apart(path, tmp_path / "killed", own_home) == 0
    name = "adapter_model.safetensors"
    assert (tmp_path / "killed" / "adapter" / name).read_bytes() == (whole.model / name).read_bytes()
    machine = ("tokens_per_second", "memory_mb")
    logs = [
        [
            {name: value for name, value in line.items() if name not in machine}
            for line in read_log(tmp_path / out / "metrics.jsonl")
        ]
        for out in ("whole", "killed")
    ]
    assert logs[0] == logs[1]
    assert [line["step"] for line in logs[0]] == [3, 6, 7]
    assert logs[0][-1]["kl"] > 0
    written = [(tmp_path / out / "completions.jsonl").read_bytes() for out in ("whole", "killed")]
    assert written[0] == written[1]


# -- memory ------------------------------------------------------------


def test_with_checkpointing_completions_and_gradients_are_the_same(
    runtime: Runtime, started: Path, chat: Path, collection: Path
) -> None:
    found = []
    for more in ("", "  checkpointing: true\n"):
        made = grpo(text_from(started, chat, collection, more))
        student = made.student(runtime)
        assert isinstance(student, CausalLMStudent)
        assert student.scorer.writes_together
        student.trained.train()
        batches = made.batches(student, Step(build_groups(made.groups, runtime)[:2]))
        for batch in batches:
            made.total(student, batch)[0].backward()
        texts = [each.text for batch in batches for rollout in batch.inputs for each in rollout.written]
        found.append((texts, {name: weight.grad for name, weight in student.weights().items()}))
    assert found[0][0] == found[1][0]
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(gradient, found[1][1][name], atol=1e-5, rtol=1e-3)


# -- what people read ------------------------------------------------------------


def test_card_and_report_tell_rewards(
    runtime: Runtime, started: Path, chat: Path, collection: Path, tmp_path: Path
) -> None:
    text = text_from(started, chat, collection, optimiser="learning_rate: 1.0e-3, groups: 4, steps: 2")
    train(grpo(text), tmp_path / "out", runtime)
    last = read_log(tmp_path / "out" / "metrics.jsonl")[-1]
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert f"mean reward {last['reward']:.4f}; it was " in card
    assert f"{last['share/right']:.1%} right, {last['share/wrong']:.1%} wrong" in card
    assert f"taught nothing, for {last['share/all_equal']:.1%} of the prompts" in card
    assert f"ndcg {last['reward/ndcg']:.4f}" in card and "divergence from the weights at the start" in card
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for label in ("reward", "share of answers", "share of prompts", "divergence from the start", "tokens of an answer"):
        assert f"Line chart of {label} against step" in report
    assert report.count("<svg") == 8


def test_the_command_goes_on_from_an_adapter(started: Path, chat: Path, collection: Path, tmp_path: Path) -> None:
    text = text_from(started, chat, collection, optimiser="groups: 2, steps: 1").replace(f"  start: {started}\n", "")
    path = tmp_path / "tiny.yaml"
    path.write_text(text, encoding="utf-8")
    out = tmp_path / "out"
    assert main(["train", str(path), "--start", str(started), "--out", str(out), "--threads", "1"]) == 0
    assert f"start: {started}" in (out / "recipe.yaml").read_text(encoding="utf-8")
