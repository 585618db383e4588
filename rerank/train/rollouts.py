"""Completions that a model in training writes: drawn token by token from its weights as they are.

A prompt is computed once, whatever the number of its completions: keys and values of its tokens are kept, and all
completions look at the same ones.  Each completion has random numbers of its own, which depend on a seed alone, so
neither the batch that it is in nor what was drawn before changes it.
"""

from __future__ import annotations

import contextlib
import contextvars
import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rerank.engines.language_model import Ids, Sampling
from rerank.engines.packing import padded_inputs

if TYPE_CHECKING:
    from torch import Tensor

    from rerank.train.causal_lm_student import CausalLMStudent

WRITING = "rerank_writing"
"""The name of the attention function in transformers' table."""


class Written(NamedTuple):
    """A completion."""

    tokens: tuple[int, ...]
    """With the one that ended it."""
    text: str
    """Without special tokens."""
    finished: bool
    """Whether the model ended it, else it ran into the limit."""


def seed_of(*parts: int) -> int:
    """A seed for these numbers, unlike that of any others.

    >>> seed_of(0, 1) != seed_of(1, 0)
    True
    """
    digest = hashlib.sha256(" ".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def write(
    student: CausalLMStudent, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], sampling: Sampling
) -> list[list[Written]]:
    """For each prompt its completions, one a seed, by the weights as they are.

    Args:
        student: whose model writes; it computes as in training, without dropout.
        prompts: token ids.
        seeds: for each prompt as many as it is to have completions, the same number for all.
        sampling: temperature, top_p and the most tokens; the end token counts as one.
    """
    import torch

    if not prompts:
        return []
    scorer, n = student.scorer, len(seeds[0])
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    found: list[list[Written]] = [[] for _ in prompts]
    with torch.inference_mode(), student.resting():
        for batch in _batches(order, [len(prompt) for prompt in prompts], n, sampling.max_tokens, scorer.batch_tokens):
            ids = [np.asarray(prompts[i], dtype=np.int32) for i in batch]
            draws = _Draws([seed for i in batch for seed in seeds[i]], sampling)
            rows = _written(student, ids, n, draws) if scorer.writes_together else _one_by_one(student, ids, n, draws)
            for place, i in enumerate(batch):
                found[i] = [_completion(student, row) for row in rows[place * n : (place + 1) * n]]
    return found


def _batches(order: Sequence[int], sizes: Sequence[int], n: int, most: int, budget: int) -> list[list[int]]:
    """Prompts that are written for together: their padded tokens, and those of their completions, are bounded."""
    batches: list[list[int]] = []
    for i in order:
        # The longest of a batch comes first.
        full = batches and (len(batches[-1]) + 1) * (sizes[batches[-1][0]] + n * most) > _ROOM * budget
        if not batches or full:
            batches.append([])
        batches[-1].append(i)
    return batches


_ROOM = 4
"""Nothing is kept for gradients, so batches hold so many times the tokens of training ones."""


def _completion(student: CausalLMStudent, tokens: list[int]) -> Written:
    scorer = student.scorer
    finished = bool(tokens) and tokens[-1] in scorer.end_tokens
    text = scorer.tokenizer.decode(tokens[: len(tokens) - finished], skip_special_tokens=True)
    return Written(tuple(tokens), text, finished)


class _Draws:
    """Which token comes next, for each of several completions: by its own random numbers, all drawn at the start."""

    def __init__(self, seeds: Sequence[int], sampling: Sampling) -> None:
        import torch

        self.sampling = sampling
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        size = sampling.max_tokens if sampling.temperature else 0
        self._numbers = torch.stack([torch.rand(size, generator=each, dtype=torch.float64) for each in generators])

    def __call__(self, logits: Tensor, step: int) -> Tensor:
        """[completions] tokens from logits [completions, vocabulary]."""
        import torch

        if not self.sampling.temperature:
            return logits.argmax(dim=1)
        shares = (logits.float() / self.sampling.temperature).softmax(dim=1)
        if self.sampling.top_p < 1:
            ordered, tokens = shares.sort(dim=1, descending=True)
            dropped = ordered.cumsum(dim=1) - ordered >= self.sampling.top_p
            shares = shares.masked_fill(torch.zeros_like(dropped).scatter(1, tokens, dropped), 0.0)
        sums = shares.double().cumsum(dim=1)
        wanted = self._numbers[:, step, None].to(sums.device) * sums[:, -1:]
        # To the right of equal sums: what has no share is never drawn.
        return torch.searchsorted(sums, wanted, right=True).squeeze(1).clamp(max=shares.shape[1] - 1)


def _written(student: CausalLMStudent, prompts: list[Ids], n: int, draws: _Draws) -> list[list[int]]:
    """The tokens of `n` completions of each prompt, prompt by prompt."""
    import torch
    from transformers import DynamicCache

    scorer = student.scorer
    inputs = padded_inputs(prompts, None, scorer.pad_token, scorer.device)
    cache = DynamicCache()
    states = scorer.transformer(**inputs, past_key_values=cache, use_cache=True).last_hidden_state
    lengths = inputs["attention_mask"].sum(dim=1)
    last = states[torch.arange(len(prompts), device=states.device), lengths - 1]
    memory = _Memory(cache, inputs["attention_mask"], n, draws.sampling.max_tokens)
    logits = scorer.logits(last).repeat_interleave(n, dim=0)
    rows = _Rows(len(prompts) * n, scorer.end_tokens)
    starts = lengths.repeat_interleave(n)
    with _attending(scorer.transformer, memory):
        for step in range(draws.sampling.max_tokens):
            tokens = draws(logits, step)
            if rows.all_end(tokens.tolist()) or step + 1 == draws.sampling.max_tokens:
                break
            memory.step = step
            states = scorer.transformer(
                input_ids=tokens[None], position_ids=(starts + step)[None], use_cache=False
            ).last_hidden_state[0]
            logits = scorer.logits(states)
    return rows.tokens


class _Rows:
    """Completions as they grow."""

    def __init__(self, n: int, ends: frozenset[int]) -> None:
        self.tokens: list[list[int]] = [[] for _ in range(n)]
        self._over = [False] * n
        self._ends = ends

    def all_end(self, tokens: Sequence[int]) -> bool:
        """Takes the next token of each that is not over; says whether all are."""
        for row, token in enumerate(tokens):
            if not self._over[row]:
                self.tokens[row].append(token)
                self._over[row] = token in self._ends
        return all(self._over)


def _one_by_one(student: CausalLMStudent, prompts: list[Ids], n: int, draws: _Draws) -> list[list[int]]:
    """As `_written`, by the model's own way: every completion computes its whole text again for each token."""
    import torch

    scorer = student.scorer
    rows = _Rows(len(prompts) * n, scorer.end_tokens)
    for step in range(draws.sampling.max_tokens):
        texts = [np.array([*prompts[i // n], *tokens], dtype=np.int32) for i, tokens in enumerate(rows.tokens)]
        inputs = padded_inputs(texts, None, scorer.pad_token, scorer.device)
        states = scorer.transformer(**inputs, use_cache=False).last_hidden_state
        ends = inputs["attention_mask"].sum(dim=1) - 1
        tokens = draws(scorer.logits(states[torch.arange(len(texts), device=states.device), ends]), step)
        if rows.all_end(tokens.tolist()):
            break
    return rows.tokens


# -- attention ------------------------------------------------------------


class _Memory:
    """Keys and values: of prompts, once each, and of what their completions have so far.

    Args:
        cache: of the prompts, padded on the right.
        inside: [prompts, longest], 1 where a prompt has a token.
        n: completions of each prompt.
        most: tokens that a completion may have.
    """

    def __init__(self, cache: Any, inside: Tensor, n: int, most: int) -> None:
        import torch

        self.n = n
        self.step = 0
        """The place of the token that is computed."""
        self.prompts = [(layer.keys, layer.values) for layer in cache.layers]
        shape = inside.shape[0] * n, *self.prompts[0][0].shape[1:2], most, self.prompts[0][0].shape[3]
        self.own = [(keys.new_empty(shape), values.new_empty(shape)) for keys, values in self.prompts]
        self.bias = torch.zeros(inside.shape, device=inside.device).masked_fill_(inside == 0, -torch.inf)
        """[prompts, longest]: added to scores."""


_memory: contextvars.ContextVar[_Memory] = contextvars.ContextVar("rerank_memory")


def _writing_attention(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, *, scaling: float | None = None, **_: Any
) -> tuple[Any, None]:
    """Attention of one new token of each completion: query [1, heads, completions, d] to [1, completions, heads, d]."""
    import torch

    memory = _memory.get()
    keys, values = memory.prompts[module.layer_idx]
    own_keys, own_values = memory.own[module.layer_idx]
    seen = memory.step + 1
    own_keys[:, :, memory.step] = key[0].transpose(0, 1)
    own_values[:, :, memory.step] = value[0].transpose(0, 1)
    own_keys, own_values = own_keys[:, :, :seen], own_values[:, :, :seen]
    n_prompts, n_shared, longest, width = keys.shape
    heads, rows = query.shape[1], query.shape[2]
    repeats = heads // n_shared
    q = query[0].transpose(0, 1) * (width**-0.5 if scaling is None else scaling)
    q = q.to(keys.dtype).reshape(rows, n_shared, repeats, width)
    # Completions of a prompt, and heads that share keys, are rows of one product with the prompt's keys.
    together = q.view(n_prompts, memory.n, n_shared, repeats, width).transpose(1, 2)
    together = together.reshape(n_prompts, n_shared, memory.n * repeats, width)
    scores = (together @ keys.transpose(2, 3)).float() + memory.bias[:, None, None]
    scores = scores.view(n_prompts, n_shared, memory.n, repeats, longest).transpose(1, 2)
    scores = scores.reshape(rows, n_shared, repeats, longest)
    own = (q @ own_keys.transpose(2, 3)).float()
    weights = torch.cat((scores, own), dim=3).softmax(dim=3).to(values.dtype)
    first = weights[..., :longest].view(n_prompts, memory.n, n_shared, repeats, longest).transpose(1, 2)
    first = first.reshape(n_prompts, n_shared, memory.n * repeats, longest) @ values
    first = first.view(n_prompts, n_shared, memory.n, repeats, width).transpose(1, 2)
    output = first.reshape(rows, n_shared, repeats, width) + weights[..., longest:] @ own_values
    return output.reshape(1, rows, heads, width), None


@contextlib.contextmanager
def _attending(model: Any, memory: _Memory) -> Iterator[None]:
    """`model` reads one new token of each completion inside the block."""
    from transformers import AttentionInterface

    if WRITING not in AttentionInterface():
        AttentionInterface.register(WRITING, _writing_attention)
    before = model.config._attn_implementation
    model.set_attn_implementation(WRITING)
    token = _memory.set(memory)
    try:
        yield
    finally:
        _memory.reset(token)
        model.set_attn_implementation(before)
