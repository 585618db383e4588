"""A causal language model while it is trained: asked by its prompt, as its engine will be."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rerank.engines.causal_lm import CausalLM
from rerank.engines.engine import Asker
from rerank.engines.language_model import Item, Request
from rerank.engines.prompted import CausalLMEngine, PromptedAsker
from rerank.errors import ConfigError
from rerank.prompts.prompt import Prompt, load_prompt
from rerank.runtime import Runtime
from rerank.train.groups import TrainingGroup
from rerank.train.student import Batch, LearningScorer, Student, Uncached
from rerank.train.targets import Target, target_of

if TYPE_CHECKING:
    from torch import Tensor

    from rerank.engines.packing import Packing
    from rerank.prompts.binding import PromptRequest

_VOCABULARY_POSITIONS = 256
"""Positions whose logits over a whole vocabulary are held together, and made again for the gradient."""


class _CausalLM(LearningScorer, CausalLM):
    """A causal language model through which gradients flow."""

    _writes_with: Packing | None = None
    """How sequences were packed before `pad`."""

    def pad(self) -> None:
        """Packs no more, but for what is written."""
        self._writes_with = self._packing
        super().pad()

    def states(self, items: Sequence[Item]) -> tuple[Tensor, list[int]]:
        """float32 [positions, d] that items read, and how many of them each does."""
        import torch

        reads = [item.reads + sum(map(len, item.branches)) for item in items]
        parts: dict[int, Tensor] = {}
        for batch in self._batches(items):
            found, _ = self._states([items[i] for i in batch])
            parts.update(zip(batch, found.split([reads[i] for i in batch]), strict=True))
        return torch.cat([parts[i] for i in range(len(items))]), reads

    def item(self, request: Request) -> Item:
        """A request for labels as a sequence."""
        return self._choice(request)

    def cost(self, items: Sequence[Item]) -> int:
        """Tokens that are computed for items together."""
        return self._cost(items)

    def continued(self, request: Request) -> Item:
        """A request with the text that follows it as a sequence."""
        return self._continued(request)

    def label_logits(self, states: Tensor, labels: Sequence[tuple[int, ...]]) -> Tensor:
        """float32 [labels] from the states [positions, d] that one request reads, as the engine answers `choices`.

        Logits where all labels are single tokens, else summed log-probabilities.
        """
        import torch

        if all(len(label) == 1 for label in labels):
            weights, bias = self._head_rows(torch.tensor([label[0] for label in labels], device=states.device))
            return self._finished(weights @ states[0] + bias)
        rows: list[int] = []
        tokens: list[int] = []
        owners: list[int] = []
        branch = 1
        for i, label in enumerate(labels):
            rows += [0, *range(branch, branch + len(label) - 1)]
            tokens += label
            owners += [i] * len(label)
            branch += len(label) - 1
        found = self.log_probabilities(states[torch.tensor(rows, device=states.device)], tokens)
        owner = torch.tensor(owners, device=states.device)
        return found.new_zeros(len(labels)).index_add(0, owner, found)

    def log_probabilities(self, states: Tensor, tokens: Sequence[int], temperature: float = 1.0) -> Tensor:
        """float32 [positions]: of each position's token among the whole vocabulary, its logits over `temperature`."""
        import torch
        from torch.utils.checkpoint import checkpoint

        weights, bias = self._head_rows(slice(None))
        plain = self._cap is None and not weights.requires_grad
        scale = self._scale / temperature

        def some(rows: Tensor, wanted: Tensor) -> Tensor:
            logits = self.logits(rows) / temperature
            return logits.gather(1, wanted[:, None])[:, 0] - logits.logsumexp(dim=1)

        wanted = torch.tensor(tokens, dtype=torch.int64, device=states.device)
        pieces = zip(states.split(_VOCABULARY_POSITIONS), wanted.split(_VOCABULARY_POSITIONS), strict=True)
        with torch.autocast(states.device.type, enabled=False):
            if plain:
                found = [_frozen_head().apply(rows.float(), weights, bias, ids, scale) for rows, ids in pieces]
            else:
                found = [checkpoint(some, rows, ids, use_reentrant=False) for rows, ids in pieces]
        return torch.cat(found)

    def logits(self, states: Tensor) -> Tensor:
        """float32 [positions, vocabulary] from states [positions, d]: they tie in 16 bits."""
        import torch

        weights, bias = self._head_rows(slice(None))
        with torch.autocast(states.device.type, enabled=False):
            return self._finished(states.float() @ weights.T + bias)

    @property
    def transformer(self) -> Any:
        """The model without its head."""
        return self._base

    @property
    def writes_together(self) -> bool:
        """Whether the completions of a prompt can look at the same keys and values.

        So they can where sequences that continue others were found to have the states that they have alone, and
        attention is neither limited to a window nor bent.
        """
        settings = (getattr(self.model.config, name, None) for name in ("sliding_window", "attn_logit_softcapping"))
        packing = self._packing or self._writes_with
        return packing is not None and packing.shares_prefixes and not any(settings)

    @property
    def pad_token(self) -> int:
        """What fills up batches."""
        return int(self._pad())

    @property
    def end_tokens(self) -> frozenset[int]:
        """What a text ends with; the token that it learns to end with among them."""
        learnt = self.end_token
        return self._end_tokens if learnt is None else self._end_tokens | {learnt}

    @property
    def end_token(self) -> int | None:
        """What the model ends its texts with."""
        token = self.tokenizer.eos_token_id
        return int(token) if token is not None else min(self._end_tokens, default=None)


@functools.cache
def _frozen_head() -> Any:
    """Log-probabilities of tokens by a head that is not trained.

    Their gradient in the states is known as soon as they are, so it is taken at once, and no logits are kept or made
    again for it.
    """
    import torch

    class FrozenHead(torch.autograd.Function):  # type: ignore[misc]  # torch leaves its type open
        @staticmethod
        def forward(ctx: Any, rows: Tensor, weights: Tensor, bias: Any, wanted: Tensor, scale: float) -> Tensor:
            logits = (rows @ weights.T).add_(bias).mul_(scale)
            totals = logits.logsumexp(dim=1, keepdim=True)
            found = logits.gather(1, wanted[:, None]) - totals
            if ctx.needs_input_grad[0]:
                expected = logits.sub_(totals).exp_() @ weights
                ctx.save_for_backward((weights[wanted] - expected).mul_(scale))
            return found[:, 0]

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
            (slopes,) = ctx.saved_tensors
            return gradients[0][:, None] * slopes, None, None, None, None

    return FrozenHead


class _Read(NamedTuple):
    """What is read of a group."""

    requests: tuple[PromptRequest, ...]
    items: tuple[Item, ...]


class CausalLMStudent(Student):
    """A causal language model to train, asked by its prompt."""

    scorer: _CausalLM
    prompt: Prompt
    divides = True

    def __init__(self, engine: CausalLMEngine, runtime: Runtime, prompt: str, **options: Any) -> None:
        self.prompt = load_prompt(prompt)
        super().__init__(engine, runtime, **options)
        self.bound = self.prompt.bind(self.scorer.tokenizer)
        limit = min(engine.max_tokens, self.scorer.limit)
        self.max_tokens = limit if self.max_tokens is None else min(limit, self.max_tokens)

    def _load(self, device: str, threads: int) -> _CausalLM:
        return _CausalLM(self.folder, device=device, threads=threads, loading=self._rounding(CausalLM, device))

    def _heads(self, model: Any) -> tuple[str, ...]:
        return ()

    def _wrapped(self) -> None:
        """Nothing: states are read from the layers as they are."""

    # -- scores ------------------------------------------------------------

    def check_scores(self) -> None:
        """Returns when the prompt's answers are scores with gradients.

        Raises:
            ConfigError: they are texts.
        """
        prompt = self.prompt
        if prompt.verb == "generate":
            raise ConfigError(
                f"the prompt {prompt.name!r} has answers that are written, which have no gradient; take the recipe "
                "sft, or a prompt that asks for labels (choices) or likelihoods"
            )

    def inputs(self, groups: Sequence[TrainingGroup]) -> list[tuple[Any, int]]:
        """The requests about each group, as sequences."""
        most = self.prompt.most_documents
        for group in groups:
            if self.prompt.shows_many and most is not None and len(group.documents) > most:
                raise ConfigError(
                    f"groups have up to {len(group.documents)} documents, but the prompt {self.prompt.name!r} shows "
                    f"{most} at most; make smaller groups (sizes)"
                )
        asked = [group.shown(many=self.prompt.shows_many) for group in groups]
        room = self.max_tokens or self.scorer.limit
        requests = iter(self.bound.requests([(one.query, one.documents) for some in asked for one in some], room))
        make = self.scorer.continued if self.prompt.verb == "likelihood" else self.scorer.item
        found = []
        for some in asked:
            of_group = tuple(next(requests) for _ in some)
            items = tuple(map(make, of_group))
            found.append((_Read(of_group, items), self.scorer.cost(items)))
        return found

    def scores(self, batch: Batch) -> list[Tensor]:
        """What the prompt's parser makes of the labels' logits, or the likelihood of the query."""
        import torch

        requests = [request for read in batch.inputs for request in read.requests]
        with self.computing():
            states, reads = self.scorer.states([item for read in batch.inputs for item in read.items])
        if self.prompt.verb == "likelihood":
            tokens = [token for request in requests for token in request.continuations[0]]
            found = [each.mean() for each in self.scorer.log_probabilities(states, tokens).split(reads)]
            scores = torch.stack(found)
        else:
            parts = zip(states.split(reads), requests, strict=True)
            logits = [self.scorer.label_logits(part, request.continuations) for part, request in parts]
            scores = torch.cat([self._score(each) for each in logits])
        return list(scores.split([len(group.documents) for group in batch.groups]))

    def _score(self, logits: Tensor) -> Tensor:
        """[documents]: scores from the logits of one request's labels."""
        import torch

        if self.prompt.parser == "binary":
            return (logits[0] - logits[1]).unsqueeze(0)
        if self.prompt.parser == "expectation":
            values = self.prompt.values or tuple(map(float, range(len(logits))))
            return (logits.softmax(0) @ torch.tensor(values, device=logits.device)).unsqueeze(0)
        return logits

    # -- completions ------------------------------------------------------------

    def asked(self, groups: Sequence[TrainingGroup], room: int) -> list[PromptRequest]:
        """For each group the request that shows it, with room for an answer of so many tokens."""
        most = (self.max_tokens or self.scorer.limit) - room
        return self.bound.requests([(group.query, group.documents) for group in groups], most)

    def branched(self, prompt: Sequence[int], completions: Sequence[tuple[int, ...]]) -> Item:
        """A prompt as a sequence that its completions, with a token or more each, go on from."""
        branches = tuple(np.array(tokens[:-1], dtype=np.int32) for tokens in completions if len(tokens) > 1)
        return Item(np.array(prompt, dtype=np.int32), 0, 1, branches)

    def completion_log_probabilities(
        self, items: Sequence[Item], completions: Sequence[Sequence[tuple[int, ...]]], temperature: float
    ) -> Tensor:
        """float32 [tokens]: of the tokens of all completions, item by item.

        Args:
            items: of `branched`.
            completions: of each item, the same that it was made of.
            temperature: of the distribution that they were drawn from.
        """
        import torch

        with self.computing():
            states, reads = self.scorer.states(items)
        rows: list[int] = []
        start = 0
        for some, n_reads in zip(completions, reads, strict=True):
            branch = start + 1
            for tokens in some:
                rows += [start, *range(branch, branch + len(tokens) - 1)]
                branch += len(tokens) - 1
            start += n_reads
        wanted = [token for some in completions for tokens in some for token in tokens]
        return self.scorer.log_probabilities(states[torch.tensor(rows, device=states.device)], wanted, temperature)

    # -- answers ------------------------------------------------------------

    def answers(self, group: TrainingGroup, relevant: float, top: float | None) -> list[Answered]:
        """The requests of a group with the answers to learn, without those that teach nothing.

        Args:
            group: whose labels say what is right.
            relevant: the label from which on a document is.
            top: the label that the highest grade stands for; default the highest of the group.
        """
        some = (
            self._answered(each.query, each.documents, target_of(self.prompt, each.labels, relevant, top))
            for each in group.shown(many=self.prompt.shows_many)
        )
        return [each for each in some if each is not None]

    def _answered(self, query: str, documents: Sequence[str], target: Target | None) -> Answered | None:
        if target is None:
            return None
        room = self.max_tokens or self.scorer.limit
        if isinstance(target, str):
            tokens = self.bound.answer_tokens(target, len(documents))
            if self.scorer.end_token is not None:
                tokens = (*tokens, self.scorer.end_token)
            request = self.bound.request(query, documents, room - len(tokens))
            item = self.scorer.continued(_Answer(request.tokens, request.prefix, (tokens,)))
            return Answered(item, (tokens,), None)
        request = self.bound.request(query, documents, room)
        if self.prompt.verb == "likelihood":
            return Answered(self.scorer.continued(request), request.continuations, None)
        return Answered(self.scorer.item(request), request.continuations, target)

    def answer_loss(self, answered: Sequence[Answered]) -> tuple[Tensor, int]:
        """The summed cross-entropy of answers, and over how many tokens; of labels among themselves alone."""
        import torch

        with self.computing():
            states, reads = self.scorer.states([each.item for each in answered])
        total = states.new_zeros(())
        count = 0
        texts = [(part, each) for part, each in zip(states.split(reads), answered, strict=True) if each.shares is None]
        if texts:
            tokens = [token for _, each in texts for token in each.continuations[0]]
            total = total - self.scorer.log_probabilities(torch.cat([part for part, _ in texts]), tokens).sum()
            count += len(tokens)
        for part, each in zip(states.split(reads), answered, strict=True):
            if each.shares is not None:
                logits = self.scorer.label_logits(part, each.continuations)
                shares = torch.tensor(each.shares, device=logits.device)
                total = total - (shares * logits.log_softmax(0)).sum()
                count += 1
        return total, count

    def cost(self, items: Sequence[Item]) -> int:
        """Tokens that are computed for items together."""
        return self.scorer.cost(items)

    def asker(self) -> Asker:
        """Answers as the engine would."""
        engine = self.engine
        if not isinstance(engine, CausalLMEngine):
            raise ConfigError(f"{engine.label}: is not trained as a causal language model")
        return PromptedAsker(engine, Uncached(self), self.bound, engine.sampling)


class Answered(NamedTuple):
    """A prompt with its answer."""

    item: Item
    continuations: tuple[tuple[int, ...], ...]
    """The answer's tokens, or those of each label to choose from."""
    shares: tuple[float, ...] | None
    """How right each label is, summing to 1; None where the answer is a text."""


class _Answer(NamedTuple):
    tokens: tuple[int, ...]
    prefix: int
    continuations: tuple[tuple[int, ...], ...]
    verb: str = "likelihood"
