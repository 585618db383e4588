"""One GRPO step computed by hand, on a policy over two tokens: advantages, loss and update agree with TRL's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from rerank.engines.prompted import CausalLMEngine
from rerank.train.groups import TrainingGroup
from rerank.train.grpo import GRPO, Rollout
from rerank.train.rewards import group_advantages
from rerank.train.rollouts import Written

pytestmark = [
    pytest.mark.needs("torch", "trl", "datasets"),
    # Said by libraries about their own ways: experimental hooks, pinned memory without a GPU.
    pytest.mark.filterwarnings("ignore"),
]

A, B = 0, 1
# The policy: after a, b has the odds 3 to 1; after b, both are as likely.
AFTER_A, AFTER_B = 0.75, 0.5
COMPLETIONS = [[B], [A], [B, A], [A, B]]
LOGPS = [[math.log(0.75)], [math.log(0.25)], [math.log(0.75), math.log(0.5)], [math.log(0.25), math.log(0.75)]]
REWARDS = [1.0, 0.0, 0.0, 0.5]
# Mean 0.375; squared distances .390625, .140625, .140625, .015625 sum to .6875; std sqrt(.6875 / 3).
STD = math.sqrt(0.6875 / 3)
ADVANTAGES = [(reward - 0.375) / (STD + 1e-4) for reward in REWARDS]


def two_token_policy() -> Any:
    """A Llama whose next token depends on the last one alone, with the probabilities above."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=2, hidden_size=2, intermediate_size=2, num_hidden_layers=1, num_attention_heads=1,
        rms_norm_eps=0.0, bos_token_id=None, eos_token_id=None, pad_token_id=A, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(2))
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        # The norm makes sqrt(2) of the one hot dimension; columns are the tokens before, rows the tokens after.
        model.lm_head.weight.copy_(torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]]) / math.sqrt(2))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name == "lm_head.weight")
    return model


def two_token_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({"a": A, "b": B}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="a", eos_token="b", unk_token="a")


def logit_of_b(model: Any, before: int) -> float:
    """How far the logit of b lies above that of a, after a token."""
    import torch

    logits = model(input_ids=torch.tensor([[before]])).logits[0, -1]
    return (logits[B] - logits[A]).item()


@pytest.fixture
def trainer_of(tmp_path: Path) -> Any:
    """Makes a TRL trainer that samples the four completions, and updates by plain gradient descent."""

    def make(learning_rate: float = 0.1, **settings: Any) -> Any:
        import torch
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer

        def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
            return {"prompt_ids": [[A] for _ in prompts], "completion_ids": COMPLETIONS, "logprobs": None}

        def reward(completions: list[str], **columns: Any) -> list[float]:
            return REWARDS

        model = two_token_policy()
        optimizer = torch.optim.SGD([model.lm_head.weight], lr=learning_rate)
        arguments: dict[str, Any] = {
            "output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "activation_checkpointing": False,
            "report_to": [], "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True, "seed": 0,
            "per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 2, "max_steps": 1,
            "max_grad_norm": 1e9, "temperature": 1.0, "loss_type": "grpo", "beta": 0.0,
        }  # fmt: skip
        return GRPOTrainer(
            model=model,
            reward_funcs=reward,
            args=GRPOConfig(**{**arguments, **settings}),
            train_dataset=Dataset.from_list([{"prompt": "a"}]),
            processing_class=two_token_tokenizer(),
            optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)),
            rollout_func=rollout,
        )

    return make


def padded(rows: list[list[float]], fill: float = 0.0) -> Any:
    import torch

    return torch.tensor([row + [fill] * (2 - len(row)) for row in rows])


def inputs_of(old: list[list[float]], reference: list[list[float]]) -> dict[str, Any]:
    """What TRL's loss is computed from."""
    import torch

    return {
        "prompt_ids": torch.full((4, 1), A),
        "prompt_mask": torch.ones(4, 1, dtype=torch.long),
        "completion_ids": padded(COMPLETIONS).long(),
        "completion_mask": padded([[1] * len(row) for row in COMPLETIONS]).long(),
        "advantages": torch.tensor(ADVANTAGES),
        "old_per_token_logps": padded(old),
        "ref_per_token_logps": padded(reference),
        "num_items_in_batch": torch.tensor(6.0),
    }


def loss_of(trainer: Any, inputs: dict[str, Any]) -> Any:
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer._compute_loss(trainer.model, inputs)


def test_the_policy_is_the_one_meant() -> None:
    model = two_token_policy()
    assert logit_of_b(model, A) == pytest.approx(math.log(AFTER_A / (1 - AFTER_A)), abs=1e-6)
    assert logit_of_b(model, B) == pytest.approx(math.log(AFTER_B / (1 - AFTER_B)), abs=1e-6)


def test_advantages_are_those_of_trl(trainer_of: Any) -> None:
    trainer = trainer_of()
    scored = trainer._generate_and_score_completions([{"prompt": "a"}] * 4)
    assert group_advantages(REWARDS) == pytest.approx(ADVANTAGES, abs=1e-12)
    assert scored["advantages"].tolist() == pytest.approx(group_advantages(REWARDS), abs=1e-5)


def test_unscaled_advantages_are_those_of_trl(trainer_of: Any) -> None:
    trainer = trainer_of(scale_rewards="none")
    scored = trainer._generate_and_score_completions([{"prompt": "a"}] * 4)
    assert scored["advantages"].tolist() == pytest.approx([0.625, -0.375, -0.375, 0.125], abs=1e-6)
    assert group_advantages(REWARDS, scale=False) == pytest.approx([0.625, -0.375, -0.375, 0.125])


# What the policy was when it sampled: the ratios new / old are these.
RATIOS = [[1.5], [0.5], [1.25, 0.75], [1.1, 1.3]]
OLD = [[lp - math.log(r) for lp, r in zip(*row, strict=True)] for row in zip(LOGPS, RATIOS, strict=True)]
# The reference policy: reference / new are these.
BESIDE = [[2.0], [1.0], [0.5, 1.0], [1.0, 4.0]]
REFERENCE = [[lp + math.log(r) for lp, r in zip(*row, strict=True)] for row in zip(LOGPS, BESIDE, strict=True)]


def by_hand(epsilon: float, beta: float, *, corrected: bool = False) -> list[list[float]]:
    """The loss of every token.

    The smaller of ratio x advantage and clipped ratio x advantage, its sign turned; and beta times the low-variance
    estimate of the divergence from the reference, x - ln x - 1 with x = reference / new, times the ratio if corrected.
    """
    losses = []
    for advantage, ratios, beside in zip(ADVANTAGES, RATIOS, BESIDE, strict=True):
        clipped = [min(max(ratio, 1 - epsilon), 1 + epsilon) for ratio in ratios]
        gained = [min(r * advantage, c * advantage) for r, c in zip(ratios, clipped, strict=True)]
        apart = [(x - math.log(x) - 1) * (r if corrected else 1) for x, r in zip(beside, ratios, strict=True)]
        losses.append([beta * kl - gain for kl, gain in zip(apart, gained, strict=True)])
    return losses


def test_the_tokens_that_the_clip_holds_back_are_those_worked_out() -> None:
    losses, free = by_hand(0.2, 0.0), by_hand(1e9, 0.0)
    # 1.5 for a good completion and .5 and .75 for bad ones are held at 1.2 and .8; 1.25 for a bad one is not held.
    assert losses[0] == [pytest.approx(-1.2 * ADVANTAGES[0])]
    assert losses[1] == [pytest.approx(-0.8 * ADVANTAGES[1])]
    assert losses[2] == [pytest.approx(-1.25 * ADVANTAGES[2]), pytest.approx(-0.8 * ADVANTAGES[2])]
    assert losses[3] == [pytest.approx(-1.1 * ADVANTAGES[3]), pytest.approx(-1.2 * ADVANTAGES[3])]
    assert losses != free


@pytest.mark.parametrize("beta", [0.0, 0.04, 1.0])
@pytest.mark.parametrize("epsilon", [0.2, 0.4])
@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_the_loss_is_that_of_trl(trainer_of: Any, loss_type: str, epsilon: float, beta: float) -> None:
    trainer = trainer_of(loss_type=loss_type, epsilon=epsilon, use_bias_correction_kl=False)
    trainer.beta = beta  # given to the constructor, it would load a reference model; the inputs hold what it would say
    losses = by_hand(epsilon, beta)
    if loss_type == "grpo":  # the mean over completions of their tokens' mean
        expected = sum(sum(row) / len(row) for row in losses) / 4
    else:  # the mean over all tokens
        expected = sum(map(sum, losses)) / 6
    assert loss_of(trainer, inputs_of(OLD, REFERENCE)).item() == pytest.approx(expected, abs=1e-5)


def test_trl_corrects_the_divergence_for_the_policy_that_sampled_unless_told_otherwise(trainer_of: Any) -> None:
    """As published, GRPO's term has no such factor: recipes of the papers switch it off."""
    trainer = trainer_of()
    trainer.beta = 0.04
    corrected, plain = by_hand(0.2, 0.04, corrected=True), by_hand(0.2, 0.04)
    loss = loss_of(trainer, inputs_of(OLD, REFERENCE)).item()
    assert loss == pytest.approx(sum(sum(row) / len(row) for row in corrected) / 4, abs=1e-5)
    assert loss != pytest.approx(sum(sum(row) / len(row) for row in plain) / 4, abs=1e-3)


@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_a_step_moves_the_policy_as_worked_out(trainer_of: Any, loss_type: str) -> None:
    """d log p(x) / d logit(b) is 1 - p(b) for x = b, and -p(b) for x = a; on the policy that sampled, ratios are 1."""
    rate = 0.1
    trainer = trainer_of(rate, loss_type=loss_type)
    trainer.train()
    share = [1 / 4, 1 / 4, 1 / 8, 1 / 8] if loss_type == "grpo" else [1 / 6] * 4
    first, second, third, fourth = (a * s for a, s in zip(ADVANTAGES, share, strict=True))
    # b, a, b, a come right after the prompt a; the last b follows an a as well.
    after_a = (first + third + fourth) * (1 - AFTER_A) - (second + fourth) * AFTER_A
    # The a at the end of the third follows a b.
    after_b = -third * AFTER_B
    # The logit of b gains and that of a loses as much; each weight is seen through sqrt(2), there and back.
    model = trainer.model
    assert logit_of_b(model, A) == pytest.approx(math.log(3) + rate * 4 * after_a, abs=1e-5)
    assert logit_of_b(model, B) == pytest.approx(rate * 4 * after_b, abs=1e-5)


@pytest.mark.parametrize("corrected", [False, True])
def test_the_divergence_pulls_towards_the_reference(trainer_of: Any, corrected: bool) -> None:
    """With x = reference / new, d (x - ln x - 1) / d log p is 1 - x; with the correction's factor it is -ln x.

    Either way nothing where the policies agree, and up where the reference likes a token more.
    """
    trainer = trainer_of(loss_type="dapo", use_bias_correction_kl=corrected)
    trainer.beta = 0.5
    inputs = inputs_of(LOGPS, REFERENCE)
    inputs["advantages"] = inputs["advantages"] * 0
    loss_of(trainer, inputs).backward()
    # Of 6 tokens, after a: b (x 2), a (x 1), b (x .5), a (x 1), b (x 4); after b: a (x 1), which pulls nowhere.
    pulls = [-math.log(x) if corrected else 1 - x for x in (2.0, 0.5, 4.0)]
    slope = 0.5 / 6 * sum(pulls) * (1 - AFTER_A)
    gradient = trainer.model.lm_head.weight.grad / math.sqrt(2)
    assert gradient[B, A].item() == pytest.approx(slope, abs=1e-6)
    assert gradient[A, A].item() == pytest.approx(-slope, abs=1e-6)
    assert gradient[:, B].tolist() == pytest.approx([0.0, 0.0], abs=1e-6)


# -- ours beside TRL's ------------------------------------------------------------


def flat(rows: list[list[float]]) -> Any:
    import torch

    return torch.tensor([value for row in rows for value in row])


def our_loss(recipe: GRPO, now: Any, finished: list[bool], old: Any, reference: Any) -> Any:
    """The loss of a step whose only prompt has the four completions, from log-probabilities of their tokens."""
    rows = [tuple(row) for row in COMPLETIONS]
    written = [Written(row, "", ended) for row, ended in zip(rows, finished, strict=True)]
    group = TrainingGroup("q", "a", (), (), ())
    rollout = Rollout(group, (A,), written, [], REWARDS, [], ADVANTAGES, rows, [0, 1, 2, 3])
    rollout.old, rollout.reference = old, reference
    return recipe._loss(rollout, now) / recipe._n_items(rollout)


@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("epsilon_high", [None, 0.28])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("finished", [[True] * 4, [True, False, False, True]])
@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_our_loss_and_its_gradient_are_those_of_trl(
    trainer_of: Any, loss_type: Any, finished: list[bool], first: bool, epsilon_high: float | None, beta: float
) -> None:
    """On the same log-probabilities, in the first step on completions and in later ones, some of them cut off."""
    import torch

    recipe = GRPO(
        engine=CausalLMEngine("none"), prompt="order", loss=loss_type, epsilon_high=epsilon_high, beta=beta,
        max_new_tokens=2, mask_cut_off=True,
    )  # fmt: skip
    high = recipe.epsilon if epsilon_high is None else epsilon_high
    trainer = trainer_of(loss_type=loss_type, epsilon=0.2, epsilon_high=high, use_bias_correction_kl=False)
    trainer.beta = beta
    inputs = inputs_of(OLD, REFERENCE)
    if first:
        del inputs["old_per_token_logps"]
    inputs["completion_mask"] = inputs["completion_mask"] * torch.tensor(finished)[:, None]
    inputs["num_items_in_batch"] = inputs["completion_mask"].sum()
    theirs = padded(LOGPS).requires_grad_()
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (theirs, torch.zeros(4, 2), None)
    ours = flat(LOGPS).requires_grad_()
    found = our_loss(recipe, ours, finished, None if first else flat(OLD), flat(REFERENCE) if beta else None)
    expected = loss_of(trainer, inputs)
    assert found.item() == pytest.approx(expected.item(), abs=1e-6)
    found.backward()
    expected.backward()
    own = [theirs.grad[i, j] for i, row in enumerate(COMPLETIONS) for j in range(len(row))]
    torch.testing.assert_close(ours.grad, torch.stack(own), atol=1e-6, rtol=1e-5)


def test_equal_completions_that_are_computed_once_lose_as_if_each_were_computed() -> None:
    import torch

    recipe = GRPO(engine=CausalLMEngine("none"), prompt="order", beta=0.1, max_new_tokens=2)
    rows: list[tuple[int, ...]] = [(B,), (B, A), (B,), (B, A)]
    written = [Written(row, "", True) for row in rows]
    group = TrainingGroup("q", "a", (), (), ())
    found = []
    for different, which in ((rows[:2], [0, 1, 0, 1]), (rows, [0, 1, 2, 3])):
        now = flat([[0.1 * len(row) - 1 for _ in row] for row in different]).requires_grad_()
        rollout = Rollout(group, (A,), written, [], REWARDS, [], ADVANTAGES, different, which)
        rollout.reference = now.detach() - 0.3
        loss = recipe._loss(rollout, now)
        loss.backward()
        found.append((loss.detach(), now.grad.view(-1, 3).sum(0)))
    torch.testing.assert_close(found[0], found[1])
