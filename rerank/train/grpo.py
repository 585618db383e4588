"""The recipe `grpo`: a causal language model writes several answers to each prompt and learns from which were better.

A step takes `optimiser.groups` prompts.  The weights as they are write `completions` answers to each, a reward judges
them, and what an answer is worth beside the others of its prompt is its advantage.  The loss is computed with each
prompt's tokens once, its completions as branches of it; equal completions of a prompt are computed once too.

The reference, from which `beta` keeps the weights near, is the model as it was when this training started: the bare
base (for a new adapter changes nothing), or the base with the adapter given as `start`.  It is kept as a copy of the
trained weights alone, which is put in their place for as long as it is asked.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from rerank.engines.language_model import Item, Sampling
from rerank.errors import ConfigError
from rerank.rules.rule import at_least, one_of
from rerank.train.answers import Reply, Verdict, read_reply
from rerank.train.processes import ALONE, Processes
from rerank.train.recipe import Recipe, Step, text_size
from rerank.train.rewards import (
    GROUPRANK,
    RANK_R1,
    AlignmentReward,
    NDCGReward,
    Reward,
    WeightedReward,
    all_equal,
    group_advantages,
)
from rerank.train.rollouts import Written, seed_of, write

if TYPE_CHECKING:
    from torch import Tensor

    from rerank.prompts.prompt import Prompt
    from rerank.runtime import Runtime
    from rerank.train.causal_lm_student import CausalLMStudent
    from rerank.train.groups import TrainingGroup
    from rerank.train.student import Batch, Student

_SHOWN = 2
"""Prompts of a step whose completions a log shows."""
_PICKS = ("think-answer-pick", "answer-pick", "distribution")
_GRADES = ("group-scores", "label-grades")
"""Parsers of answers that name one document, and of answers that grade each."""


@dataclass
class Rollout:
    """A prompt with its completions and what they are worth."""

    group: TrainingGroup
    prompt: tuple[int, ...]
    written: list[Written]
    replies: list[Reply]
    rewards: list[float]
    terms: list[dict[str, float]]
    """What each reward is made of."""
    advantages: list[float]
    different: list[tuple[int, ...]]
    """The tokens of the completions that differ."""
    which: list[int]
    """For each completion its place in `different`."""
    place: int = 0
    """Of its prompt among those of the step and, after them, those tried in place of some."""
    item: Item | None = None
    """What is computed; None where nothing can be learnt."""
    old: Any = None
    """float32 [tokens of `different`]: their log-probabilities by the weights that wrote them."""
    reference: Any = None
    """The same, by the reference."""
    counts: bool = True
    """Whether the step learns from it; else another prompt has its place, or it was tried in vain."""
    figures: dict[str, float] = field(default_factory=dict)
    """What was found out while the loss was computed: sums over the tokens of all completions."""

    @property
    def n_tokens(self) -> int:
        """How many tokens its completions have."""
        return sum(len(each.tokens) for each in self.written)


@dataclass(frozen=True, kw_only=True, repr=False)
class GRPO(Recipe):
    """Learns from rewards of answers that the model writes itself.

    >>> from rerank.engines.prompted import CausalLMEngine
    >>> GRPO(engine=CausalLMEngine("my-model"), prompt="rank-r1").completions
    8

    Raises:
        ConfigError: parts that do not fit.
    """

    reward: Reward | None = None
    """What an answer is worth; default Rank-R1's for picks, GroupRank's for grades, nDCG@10 for orders."""
    completions: int = 8
    """How many answers are written to each prompt.  Source: Rank-R1's G (arXiv 2503.06034)."""
    temperature: float = 0.9
    """Of the distribution that tokens are drawn from, and whose log-probabilities are trained.  Source: TRL's at the
    time of Rank-R1."""
    top_p: float = 1.0
    """Draws only from the likeliest tokens that together have this probability; 1 draws from all, as TRL does."""
    max_new_tokens: int = 64
    """Tokens that an answer has at most, its end included.  No paper's: enough for grades, not for reasoning."""
    beta: float = 0.04
    """The weight of the divergence from the reference; with 0 there is no reference.  Source: DeepSeekMath
    (arXiv 2402.03300)."""
    epsilon: float = 0.2
    """How far below 1 a token's ratio to the policy that wrote it counts.  Source: DeepSeekMath."""
    epsilon_high: float | None = None
    """How far above 1; default as `epsilon`.  Source of 0.28: DAPO (arXiv 2503.14476)."""
    loss: Literal["grpo", "dapo", "dr_grpo"] = "grpo"
    """What a step's loss is a mean over: completions, each the mean of its tokens (grpo); all tokens (dapo); tokens,
    as if each completion had `max_new_tokens` (dr_grpo: arXiv 2503.20783)."""
    scale_advantages: bool = True
    """Whether advantages are divided by the standard deviation of a prompt's rewards; Dr. GRPO does not."""
    mask_cut_off: bool = False
    """Whether nothing is learnt from completions that ran into the limit.  Source: DAPO."""
    iterations: int = 1
    """How many steps learn from the same completions.  Source: mu of DeepSeekMath; papers on reranking make one."""
    resample: int = 0
    """How many further prompts a step may try in place of those whose completions are all worth the same.  Source:
    DAPO's dynamic sampling."""

    trains_text: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("grpo", 1, max_new_tokens=self.max_new_tokens, iterations=self.iterations)
        at_least("grpo", 0, resample=self.resample)
        one_of("grpo", "loss", self.loss, ("grpo", "dapo", "dr_grpo"))
        if self.completions < 2:
            raise ConfigError(
                f"grpo: completions is {self.completions}; an answer is judged beside others to the same prompt, so 2 "
                "or more are needed"
            )
        high = self.epsilon if self.epsilon_high is None else self.epsilon_high
        if not (self.temperature > 0 and 0 < self.top_p <= 1 and self.beta >= 0 and 0 < self.epsilon < 1 and high > 0):
            raise ConfigError(
                f"grpo: temperature is {self.temperature} (above 0), top_p {self.top_p} (above 0, at most 1), beta "
                f"{self.beta} (0 or more), epsilon {self.epsilon} (above 0, below 1), epsilon_high {high} (above 0)"
            )
        every = {"save_every": self.save_every}
        if self.evaluation is not None:
            every["evaluation.every"] = self.evaluation.every
        for name, steps in every.items():
            if steps % self.iterations:
                raise ConfigError(
                    f"grpo: {name} is {steps}, no multiple of iterations {self.iterations}: a checkpoint between two "
                    "steps on the same completions could not be gone on from exactly; give a multiple"
                )

    @property
    def sampling(self) -> Sampling:
        """How completions are drawn."""
        return Sampling(max_tokens=self.max_new_tokens, temperature=self.temperature, top_p=self.top_p)

    def reward_for(self, prompt: Prompt) -> Reward:
        """The reward given, or the usual one of the prompt's form."""
        if self.reward is not None:
            return self.reward
        if prompt.parser in _PICKS:
            return RANK_R1
        return NDCGReward(10) if prompt.parser == "permutation" else GROUPRANK

    @property
    def answer_tokens(self) -> int:
        """Tokens of an input's room that are kept for what the model writes itself."""
        return self.max_new_tokens

    def student(self, runtime: Runtime, processes: Processes = ALONE) -> Student:
        """The model, loaded and ready to be trained; its weights as they are become the reference."""
        student = super().student(runtime, processes)
        if self.beta:
            student.keep_reference()
        return student

    @property
    def inner_steps(self) -> int:
        """The `iterations`."""
        return self.iterations

    @property
    def n_spare(self) -> int:
        """The `resample`."""
        return self.resample

    def check_before(self, processes: Processes = ALONE) -> None:
        """Returns when the prompt asks for what is rewarded, and there is room for it.

        Raises:
            ConfigError: it does not.
            UnknownNameError: no such prompt.
        """
        from rerank.engines.prompted import CausalLMEngine
        from rerank.prompts.prompt import load_prompt

        super().check_before(processes)
        if not isinstance(self.engine, CausalLMEngine):
            raise _no_writer(self.engine.label)
        if self.prompt is None:
            raise ConfigError("grpo: needs a prompt whose answers are written, such as group-scores, order or rank-r1")
        prompt = load_prompt(self.prompt)
        if prompt.verb != "generate" or not prompt.shows_many:
            raise ConfigError(
                f"grpo: the prompt {prompt.name!r} asks for {prompt.verb} about "
                f"{'a group' if prompt.shows_many else 'one document or none'}; what is rewarded is a written answer "
                "about a group of documents: take a prompt such as group-scores, order or rank-r1"
            )
        aligned = [each for each in _parts(self.reward_for(prompt)) if isinstance(each, AlignmentReward)]
        if aligned and prompt.parser not in _GRADES:
            raise ConfigError(
                f"grpo: the reward alignment compares grades with labels, and the answers that the prompt "
                f"{prompt.name!r} asks for have none (parser {prompt.parser}); take exact_pick, ndcg or rbo"
            )
        limit = min(self.engine.max_tokens, self.max_tokens or self.engine.max_tokens)
        self._check_room(limit, "engine's or recipe's")

    def check(self, student: Student) -> None:
        """Returns when the student writes answers, and reads as much as it writes.

        Raises:
            ConfigError: it does not.
        """
        made = _writer(student)
        self._check_room(made.max_tokens or made.scorer.limit, "model's")

    def _check_room(self, limit: int, whose: str) -> None:
        if self.max_new_tokens >= limit:
            raise ConfigError(
                f"grpo: max_new_tokens {self.max_new_tokens:,} leaves no room for a prompt in the {whose} max_tokens, "
                f"{limit:,}; lower it, or raise max_tokens"
            )

    # -- a step ------------------------------------------------------------

    def batches(self, student: Student, step: Step) -> list[Batch]:
        """The prompts of a step with their completions, as the weights as they are write them, in batches."""
        from rerank.train.student import Batch

        made = _writer(student)
        rollouts = self.rollouts(made, step)
        batches: list[list[Rollout]] = []
        costs: list[int] = []
        for rollout in rollouts:
            # Without a reference a prompt whose completions are all worth the same has no gradient.
            learns = rollout.counts and (self.beta or any(rollout.advantages))
            cost = 0
            if learns:
                rollout.item = made.branched(rollout.prompt, rollout.different)
                cost = made.cost([rollout.item])
            if not batches or costs[-1] + cost > made.scorer.batch_tokens:
                batches.append([])
                costs.append(0)
            batches[-1].append(rollout)
            costs[-1] += cost
        if self.beta:
            self._ask_reference(made, batches)
        return [
            Batch(tuple(rollout.group for rollout in some), some, cost)
            for some, cost in zip(batches, costs, strict=True)
        ]

    def rollouts(self, student: CausalLMStudent, step: Step) -> list[Rollout]:
        """The prompts of a step with completions and what they are worth, as far as this process computes them.

        Draws depend on the seed, the step and the place of the prompt alone.  Prompts of its `spare` come after those
        of its `groups`, as many as were tried for groups that teach nothing.
        """
        processes, prompts = step.processes, [*step.groups, *step.spare]
        found: dict[int, Rollout] = {}
        dull: dict[int, bool] = {}

        def tell(places: range) -> None:
            own = processes.share([text_size(prompts[place]) for place in places])
            some = self._rollouts(student, {places[i]: prompts[places[i]] for i in own}, step.number)
            found.update((rollout.place, rollout) for rollout in some)
            dull.update(processes.merge({rollout.place: all_equal(rollout.rewards) for rollout in some}))

        tried = len(step.groups)
        tell(range(tried))
        counting = set(range(tried))
        while tried < len(prompts):
            without = sorted(place for place in counting if dull[place])
            others = range(tried, min(tried + len(without), len(prompts)))
            if not others:
                break
            tell(others)
            for place in others:
                if not dull[place]:
                    counting.remove(without.pop())
                    counting.add(place)
            tried = others.stop
        for place, rollout in found.items():
            rollout.counts = place in counting
        return [found[place] for place in sorted(found)]

    def _rollouts(self, student: CausalLMStudent, groups: Mapping[int, TrainingGroup], step: int) -> list[Rollout]:
        """Of groups by their places in the step."""
        requests = student.asked(list(groups.values()), self.max_new_tokens)
        seeds = [[seed_of(self.seed, step, place, i) for i in range(self.completions)] for place in groups]
        prompts = [request.tokens for request in requests]
        written = write(student, prompts, seeds, self.sampling)
        return [self._judged(student, *each) for each in zip(groups.values(), prompts, written, groups, strict=True)]

    def _judged(
        self,
        student: CausalLMStudent,
        group: TrainingGroup,
        prompt: tuple[int, ...],
        written: list[Written],
        place: int,
    ) -> Rollout:
        reward = self.reward_for(student.prompt)
        n, begun = len(group.documents), student.bound.begun
        replies = [read_reply(student.prompt, each.text, n, finished=each.finished, begun=begun) for each in written]
        rewards = [reward(reply, group.labels) for reply in replies]
        terms = [reward.terms(reply, group.labels) for reply in replies]
        advantages = [0.0] * len(rewards)
        if not all_equal(rewards):
            advantages = group_advantages(rewards, scale=self.scale_advantages)
        different = list(dict.fromkeys(each.tokens for each in written))
        places = {tokens: place for place, tokens in enumerate(different)}
        which = [places[each.tokens] for each in written]
        return Rollout(group, prompt, written, replies, rewards, terms, advantages, different, which, place)

    def _ask_reference(self, student: CausalLMStudent, batches: Sequence[Sequence[Rollout]]) -> None:
        with student.as_reference():
            for some in batches:
                learning = [rollout for rollout in some if rollout.item is not None]
                for rollout, part in zip(learning, self._log_probabilities(student, learning), strict=True):
                    rollout.reference = part

    def _log_probabilities(self, student: CausalLMStudent, rollouts: Sequence[Rollout]) -> list[Tensor]:
        """float32 [tokens of `different`] of each."""
        if not rollouts:
            return []
        items = [rollout.item for rollout in rollouts if rollout.item is not None]
        completions = [rollout.different for rollout in rollouts]
        found = student.completion_log_probabilities(items, completions, self.temperature)
        return list(found.split([sum(map(len, some)) for some in completions]))

    def total(self, student: Student, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss of a batch's completions, and over how many completions or tokens it is to be averaged."""
        import torch

        made = _writer(student)
        rollouts: list[Rollout] = batch.inputs
        learning = [rollout for rollout in rollouts if rollout.item is not None]
        total = torch.zeros((), device=made.device)
        if learning:
            found = self._log_probabilities(made, learning)
            total = torch.stack(
                [self._loss(rollout, part) for rollout, part in zip(learning, found, strict=True)]
            ).sum()
        return total, torch.tensor(sum(map(self._n_items, rollouts)), device=made.device)

    def _n_items(self, rollout: Rollout) -> int:
        """What the loss of a prompt's completions counts as, in the mean over the step."""
        if not rollout.counts:
            return 0
        if self.loss == "dapo":
            return sum(len(each.tokens) for each in rollout.written if self._learns_from(each))
        return len(rollout.written) * (self.max_new_tokens if self.loss == "dr_grpo" else 1)

    def _learns_from(self, written: Written) -> bool:
        return written.finished or not self.mask_cut_off

    def _loss(self, rollout: Rollout, found: Tensor) -> Tensor:
        """The summed loss of a prompt's completions from the log-probabilities of the tokens of those that differ."""
        import torch

        spans = list(_spans(rollout.different))
        rows = torch.tensor([row for i in rollout.which for row in spans[i]], device=found.device)
        shares, advantages = [], []
        for written, advantage in zip(rollout.written, rollout.advantages, strict=True):
            n = len(written.tokens)
            share = 1 / n if self.loss == "grpo" else 1.0
            shares += [share if self._learns_from(written) else 0.0] * n
            advantages += [advantage] * n
        now = found[rows]
        # The weights that wrote the completions are the first to learn from them: the ratio is 1, with a gradient.
        if rollout.old is None:
            rollout.old = found.detach()
        losses = token_losses(
            now,
            rollout.old[rows],
            None if rollout.reference is None else rollout.reference[rows],
            torch.tensor(advantages, device=found.device),
            self.epsilon,
            self.epsilon if self.epsilon_high is None else self.epsilon_high,
            self.beta,
        )
        rollout.figures["log_probability"] = float(now.detach().sum())
        rollout.figures["kl"] = float(losses.divergence.detach().sum())
        rollout.figures["clipped"] = float(losses.clipped.sum())
        return (losses.loss * torch.tensor(shares, device=found.device)).sum()

    # -- what logs say ------------------------------------------------------------

    def told(self, batches: Sequence[Batch]) -> list[Batch]:
        """The batches without token ids and tensors."""
        nothing: dict[str, Any] = {"prompt": (), "different": [], "which": [], "item": None, "old": None}
        return [
            batch._replace(inputs=[dataclasses.replace(each, reference=None, **nothing) for each in batch.inputs])
            for batch in batches
        ]

    def figures(self, batches: Sequence[Batch]) -> Mapping[str, float]:
        """Rewards with their parts, verdicts, lengths, and how far the weights are from the reference."""
        rollouts = [rollout for batch in batches for rollout in batch.inputs]
        found = step_figures(rollouts, with_reference=self.beta > 0)
        if self.resample:
            found["resampled"] = float(sum(not rollout.counts for rollout in rollouts))
        return found

    def samples(self, batches: Sequence[Batch]) -> list[dict[str, Any]]:
        """The completions of the first prompts of a step."""
        rollouts = sorted((each for batch in batches for each in batch.inputs), key=lambda rollout: rollout.place)
        return [
            {
                "qid": rollout.group.qid,
                "query": rollout.group.query,
                "labels": rollout.group.labels,
                "completions": [each.text for each in rollout.written],
                "rewards": rollout.rewards,
            }
            for rollout in rollouts[:_SHOWN]
        ]


class TokenLosses(NamedTuple):
    """What tokens of completions lose."""

    loss: Tensor
    divergence: Tensor
    """From the reference; 0 without one."""
    clipped: Tensor
    """Whether a token's ratio was held."""


def token_losses(
    now: Tensor,
    old: Tensor,
    reference: Tensor | None,
    advantages: Tensor,
    epsilon: float,
    epsilon_high: float,
    beta: float,
) -> TokenLosses:
    """The clipped loss of every token, and beta times its divergence from the reference.

    The divergence is x - ln x - 1 with x = reference / now, never below 0 (Schulman's k3).

    Args:
        now: float32 [tokens], log-probabilities with gradients.
        old: those by the weights that wrote the tokens.
        reference: those by the reference; None: none.
        advantages: of each token's completion.
        epsilon: how far below 1 the ratio now / old counts.
        epsilon_high: how far above.
        beta: the weight of the divergence.

    Source: DeepSeekMath (arXiv 2402.03300), equations 3 and 4.
    """
    import torch

    ratio = (now - old).exp()
    held = ratio.clamp(1 - epsilon, 1 + epsilon_high)
    loss = -torch.minimum(ratio * advantages, held * advantages)
    low, high = (ratio < 1 - epsilon) & (advantages < 0), (ratio > 1 + epsilon_high) & (advantages > 0)
    divergence = torch.zeros_like(now)
    if reference is not None:
        beyond = reference - now
        divergence = beyond.exp() - beyond - 1
        loss = loss + beta * divergence
    return TokenLosses(loss, divergence, low | high)


def step_figures(rollouts: Sequence[Rollout], *, with_reference: bool) -> dict[str, float]:
    """What is logged of the rollouts of a step, those among them that others took the place of."""
    rewards = [reward for rollout in rollouts for reward in rollout.rewards]
    lengths = [len(each.tokens) for rollout in rollouts for each in rollout.written]
    found = {"reward": statistics.fmean(rewards), "reward_std": statistics.pstdev(rewards)}
    terms = [term for rollout in rollouts for term in rollout.terms]
    found |= {f"reward/{name}": statistics.fmean(term[name] for term in terms) for name in terms[0]}
    verdicts = Counter(reply.verdict(rollout.group.labels) for rollout in rollouts for reply in rollout.replies)
    found |= {f"share/{verdict.value}": verdicts[verdict] / len(rewards) for verdict in Verdict}
    found["share/all_equal"] = statistics.fmean(all_equal(rollout.rewards) for rollout in rollouts)
    found["length"] = statistics.fmean(lengths)
    found["length_max"] = float(max(lengths))
    computed = [rollout for rollout in rollouts if rollout.figures]
    if n_tokens := sum(rollout.n_tokens for rollout in computed):
        sums = {name: math.fsum(each.figures[name] for each in computed) for name in computed[0].figures}
        # The mean of -ln p over drawn tokens is what the entropy is expected to be.
        found["entropy"] = -sums["log_probability"] / n_tokens
        found["clipped"] = sums["clipped"] / n_tokens
        if with_reference:
            found["kl"] = sums["kl"] / n_tokens
    return found


def _spans(completions: Sequence[tuple[int, ...]]) -> Iterator[range]:
    start = 0
    for tokens in completions:
        yield range(start, start + len(tokens))
        start += len(tokens)


def _writer(student: Student) -> CausalLMStudent:
    from rerank.train.causal_lm_student import CausalLMStudent

    if not isinstance(student, CausalLMStudent):
        raise _no_writer(student.engine.label)
    return student


def _no_writer(engine: str) -> ConfigError:
    return ConfigError(f"grpo: trains language models (causal_lm), and {engine} is none; take the recipe contrastive")


def _parts(reward: Reward) -> Iterator[Reward]:
    """A reward and those that it is made of."""
    yield reward
    if isinstance(reward, WeightedReward):
        for part in reward.of:
            yield from _parts(part)
