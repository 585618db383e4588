"""What language models share, decoders and encoder-decoders: label logits, likelihoods of texts, generated text.

Only the states that are read meet the vocabulary, in float32 and in bounded pieces, because 16-bit logits tie and a
tensor of [batch, length, vocabulary] is the largest of all.
"""

from __future__ import annotations

import hashlib
import json
import logging
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from rerank.engines.cache import NUMBER, VECTOR, Form, RequestCache, Stored, request_key
from rerank.engines.lora import Adapter
from rerank.engines.scorer import MAX_TOKENS, FloatVector, Scorer
from rerank.engines.text_model import PROBE_TEXTS, Count, token_batches
from rerank.errors import ConfigError, DataError, ModelError

logger = logging.getLogger(__name__)

_VOCABULARY_AT_ONCE = 8192
"""Rows of the vocabulary whose logits are made together: 1,024 positions take 32 MB."""
_POSITIONS_AT_ONCE = 1024
_GENERATED_TOGETHER = 4
"""Writing is bound by reading the weights, so its batches hold so many times the tokens of scoring ones."""
_TAIL_TOKENS = 32
"""The last tokens that are searched for a text to stop at."""

Ids = npt.NDArray[np.int32]
Continuations = tuple[tuple[int, ...], ...]
Scored = TypeVar("Scored")


class Request(Protocol):
    """What a language model is asked, as `rerank.prompts.PromptRequest` holds it."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """The prompt."""
        ...

    @property
    def prefix(self) -> int:
        """How many leading tokens all requests of the query share."""
        ...

    @property
    def continuations(self) -> Continuations:
        """Labels, or the one text whose likelihood is asked."""
        ...

    @property
    def verb(self) -> str:
        """`choices`, `likelihood` or `generate`."""
        ...


@dataclass(frozen=True)
class Sampling:
    """How text is generated.

    >>> [each.seed for each in Sampling(temperature=0.7, seed=5, samples=3).each()]
    [5, 6, 7]
    """

    max_tokens: int = 256
    """What is generated at most; an answer that comes after reasoning was closed by force has as many of its own."""
    thinking_tokens: int | None = None
    """What is generated before reasoning is closed by force, where a prompt has `closing`; None: `max_tokens`."""
    temperature: float = 0.0
    """0 takes the likeliest token; above, tokens are drawn."""
    top_p: float = 1.0
    """Draws only from the likeliest tokens that together have this probability."""
    seed: int = 0
    """Of the draws: the same prompt and seed give the same draws, whatever else is in the batch."""
    stop: tuple[str, ...] = ()
    """Texts that end generation; they stay in the answer."""
    samples: int = 1
    """How many answers are drawn and averaged, with the seeds from `seed` on."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ConfigError(
                f"sampling: max_tokens is {self.max_tokens} (1 or more), temperature {self.temperature} (0 or more), "
                f"top_p {self.top_p} (above 0, at most 1)"
            )
        if self.samples < 1 or (self.thinking_tokens is not None and self.thinking_tokens < 1):
            raise ConfigError(
                f"sampling: samples is {self.samples} and thinking_tokens {self.thinking_tokens}; at least 1 is needed"
            )
        if self.samples > 1 and not self.temperature:
            raise ConfigError(
                f"sampling: {self.samples} samples would all be the same without a temperature; give one, such as 0.7"
            )

    def each(self) -> list[Sampling]:
        """One a sample, each with a seed of its own."""
        return [replace(self, seed=self.seed + i, samples=1) for i in range(self.samples)]

    @property
    def key(self) -> str:
        """What the text depends on: without draws, neither their number nor their seed."""
        draws = (self.temperature, self.top_p, self.seed) if self.temperature else ()
        return str((self.max_tokens, self.stop, *draws))


class Generated(NamedTuple):
    """A text that the model wrote."""

    text: str
    """Without special tokens."""
    finish: Literal["stop", "length"]
    """`stop`: the model ended it, or a text to stop at came; `length`: it ran into `max_tokens`."""
    tokens: tuple[int, ...]
    """The token ids, without the one that ended it."""

    @property
    def n_tokens(self) -> int:
        """How many tokens were written."""
        return len(self.tokens)


def _read_written(data: bytes) -> Generated:
    text, finish, tokens = json.loads(data)
    return Generated(text, finish, tuple(tokens))


WRITTEN: Form[Generated] = Form(lambda written: json.dumps(written).encode(), _read_written)
"""How written texts are stored."""


class Item(NamedTuple):
    """A request as sequences of tokens."""

    tokens: Ids
    prefix: int
    """Leading tokens that other requests may share."""
    reads: int
    """How many last positions of `tokens` are read."""
    branches: tuple[Ids, ...] = ()
    """Texts that go on from the end of `tokens`; all their positions are read."""

    @property
    def cost(self) -> int:
        """Tokens to compute when nothing is shared with other items."""
        return len(self.tokens) + sum(map(len, self.branches))

    @property
    def longest(self) -> int:
        """Tokens of its longest sequence."""
        return len(self.tokens) + max(map(len, self.branches), default=0)


class Target(NamedTuple):
    """A token whose logit is wanted."""

    row: int
    """Which of the positions that are read."""
    token: int
    slot: int
    """Which answer it adds to."""


class LanguageModel(Scorer):
    """A transformer with a head over a vocabulary."""

    min_agreement: ClassVar[float] = 0.95

    def choices(
        self, requests: Sequence[Request], count: Count | None = None, cache: RequestCache | None = None
    ) -> list[FloatVector]:
        """float32 [labels] for each request: how likely each label goes on from the prompt.

        These are log-probabilities up to a constant of the request where all its labels are single tokens, and summed
        log-probabilities where one has several.

        Args:
            requests: prompts with one label or more.
            count: is told `requests`, `cached answers`, and of other prompts `tokens` and `reused tokens`, those not
                computed again.
            cache: where answers are looked up and kept.

        Raises:
            DataError: a prompt that is empty or longer than the model reads, or without labels.
            ModelError: logits that are not finite.
        """
        items = [self._choice(request) for request in requests]
        labels = [request.continuations for request in requests]

        def answers(batch: list[int], rows: Any) -> list[FloatVector]:
            sums = self._label_sums(rows, [labels[i] for i in batch])
            return np.split(sums, np.cumsum([len(labels[i]) for i in batch])[:-1])

        return self._scored(items, answers, self._stored("choices", items, labels, VECTOR, cache), count)

    def _label_sums(self, rows: Any, asked: list[Continuations]) -> FloatVector:
        """float32 [all labels]: the answers to a batch's requests, end to end."""
        targets: list[Target] = []
        normalised: list[bool] = []
        row = slot = 0
        for labels in asked:
            several = any(len(label) > 1 for label in labels)
            branch = row + 1
            for label in labels:
                targets += [Target(row, label[0], slot)]
                targets += [Target(branch + step, token, slot) for step, token in enumerate(label[1:])]
                branch += len(label) - 1
                slot += 1
            normalised += [several] * (branch - row)
            row = branch
        return self._sums(rows, targets, slot, np.array(normalised))

    def likelihood(
        self, requests: Sequence[Request], count: Count | None = None, cache: RequestCache | None = None
    ) -> list[float]:
        """The mean log-probability of each request's continuation given its prompt; 0 for an empty one.

        Args:
            requests: prompts with one continuation.
            count: as for `choices`.
            cache: where answers are looked up and kept.

        Raises:
            DataError: a prompt that is empty or longer than the model reads, or not one continuation.
            ModelError: logits that are not finite.
        """
        answers = [0.0] * len(requests)
        asked = [i for i, request in enumerate(requests) if any(request.continuations)]
        items = [self._continued(requests[i]) for i in asked]
        texts = [requests[i].continuations[0] for i in asked]

        def means(batch: list[int], rows: Any) -> list[float]:
            said = ((slot, token) for slot, i in enumerate(batch) for token in texts[i])
            targets = [Target(row, token, slot) for row, (slot, token) in enumerate(said)]
            sums = self._sums(rows, targets, len(batch), np.ones(len(targets), dtype=np.bool_))
            return [total / len(texts[i]) for i, total in zip(batch, sums.tolist(), strict=True)]

        stored = self._stored("likelihood", items, texts, NUMBER, cache)
        for i, mean in zip(asked, self._scored(items, means, stored, count), strict=True):
            answers[i] = mean
        return answers

    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        count: Count | None = None,
        cache: RequestCache | None = None,
    ) -> list[Generated]:
        """What the model writes after each prompt.

        Args:
            requests: prompts; together with `max_tokens` they fit into the model's length.
            sampling: how tokens are chosen.
            count: is told `requests`, `cached answers`, and of the others `tokens` of prompts and `generated tokens`.
            cache: where answers are looked up and kept.

        Raises:
            DataError: a prompt that is empty, or too long.
        """
        prompts = [self._checked(request, sampling.max_tokens) for request in requests]
        sizes = np.array([len(prompt) for prompt in prompts], dtype=np.int64)

        def write(batch: list[int]) -> list[Generated]:
            written = self._write([prompts[i] for i in batch], sampling)
            if count is not None:
                count("tokens", int(sizes[batch].sum()))
                count("generated tokens", sum(answer.n_tokens for answer in written))
            return written

        stored = None
        if cache is not None:
            key = self.key
            stored = Stored(
                cache, [request_key(key, "generate", one.tobytes(), sampling.key) for one in prompts], WRITTEN
            )
        with self._computing():
            return self._answers(
                self._writing_batches(sizes, sampling),
                lambda batch: int((sizes[batch] + sampling.max_tokens).sum()) // _GENERATED_TOGETHER,
                write,
                stored,
                count,
            )

    def plan(self, requests: Sequence[Request], sampling: Sampling | None = None) -> list[list[int]]:
        """The numbers of requests of one verb that are computed together; one such batch alone gives the same bits."""
        if sampling is not None:
            sizes = np.array([len(request.tokens) for request in requests], dtype=np.int64)
            return self._writing_batches(sizes, sampling)
        make = self._continued if any(request.verb == "likelihood" for request in requests) else self._choice
        return self._batches([make(request) for request in requests])

    @property
    def limit(self) -> int:
        """The most tokens that the model reads: prompt and label, or prompt and generated text."""
        positions = getattr(self.model.config, "max_position_embeddings", None) or MAX_TOKENS
        return min(int(positions), int(self.tokenizer.model_max_length), MAX_TOKENS)

    # -- requests ------------------------------------------------------------

    def _checked(self, request: Request, more: int) -> Ids:
        """The prompt's tokens, when they fit in with `more` others."""
        if not request.tokens:
            raise DataError("a prompt has no tokens; its template is empty")
        if len(request.tokens) + more > self.limit:
            raise DataError(
                f"a prompt of {len(request.tokens):,} tokens and {more:,} more do not fit into the {self.limit:,} that "
                f"model {self.folder.name!r} reads; make requests with a lower max_tokens"
            )
        return np.array(request.tokens, dtype=np.int32)

    def _choice(self, request: Request) -> Item:
        labels = request.continuations
        if not labels or not all(labels):
            raise DataError("a request for choices has no labels, or an empty one; give at least one token each")
        tokens = self._checked(request, max(map(len, labels)) - 1)
        branches = tuple(np.array(label[:-1], dtype=np.int32) for label in labels if len(label) > 1)
        return Item(tokens, min(request.prefix, len(tokens) - 1), 1, branches)

    @abstractmethod
    def _continued(self, request: Request) -> Item:
        """The item that reads a position for every token of the request's one continuation."""

    def _only_continuation(self, request: Request) -> tuple[int, ...]:
        if len(request.continuations) != 1:
            raise DataError(
                f"a request for a likelihood has {len(request.continuations)} continuations; it takes exactly one"
            )
        return request.continuations[0]

    # -- scoring ------------------------------------------------------------

    def _scored(
        self,
        items: list[Item],
        answers: Callable[[list[int], Any], list[Scored]],
        stored: Stored[Scored] | None,
        count: Count | None,
    ) -> list[Scored]:
        """The answer to each item: `answers` is given a batch and the states float32 [positions, d] that it reads."""

        def run(batch: list[int]) -> list[Scored]:
            some = [items[i] for i in batch]
            states, computed = self._states(some)
            found = answers(batch, states)
            if count is not None:
                cost = sum(item.cost for item in some)
                count("tokens", cost)
                count("reused tokens", max(0, cost - computed))
            return found

        with self._computing():
            return self._answers(
                self._batches(items), lambda batch: self._cost([items[i] for i in batch]), run, stored, count
            )

    def _stored(
        self,
        verb: str,
        items: Sequence[Item],
        continuations: Sequence[object],
        form: Form[Scored],
        cache: RequestCache | None,
    ) -> Stored[Scored] | None:
        if cache is None:
            return None
        key, asked = self.key, zip(items, continuations, strict=True)
        return Stored(cache, [request_key(key, verb, item.tokens.tobytes(), str(text)) for item, text in asked], form)

    @abstractmethod
    def _cost(self, items: Sequence[Item]) -> int:
        """Tokens that a batch computes."""

    def _batches(self, items: Sequence[Item]) -> list[list[int]]:
        """Numbers of items in batches, by length."""
        sizes = np.array([item.longest for item in items])
        rows = np.array([1 + len(item.branches) for item in items])
        return [batch.tolist() for batch in token_batches(sizes * rows, self.batch_tokens)]

    @abstractmethod
    def _states(self, items: list[Item]) -> tuple[Any, int]:
        """float32 [positions, d] that a batch reads, item by item; and the tokens that were computed."""

    def _sums(self, rows: Any, targets: list[Target], n: int, normalised: npt.NDArray[np.bool_]) -> FloatVector:
        """float32 [n]: the logits of targets added up by slot, log-probabilities where a row is to be normalised."""
        import torch

        index = torch.tensor(targets, dtype=torch.int64, device=rows.device)
        found = torch.empty(len(targets), dtype=torch.float32, device=rows.device)
        for some in torch.arange(len(targets), device=rows.device).split(_POSITIONS_AT_ONCE):
            weights, bias = self._head_rows(index[some, 1])
            found[some] = self._finished((rows[index[some, 0]] * weights).sum(dim=1) + bias)
        if normalised.any():
            total = torch.zeros(len(rows), dtype=torch.float32, device=rows.device)
            wanted = torch.from_numpy(np.flatnonzero(normalised)).to(rows.device)
            total[wanted] = self._log_totals(rows[wanted])
            found -= total[index[:, 0]]
        sums = torch.zeros(n, dtype=torch.float32, device=rows.device).index_add_(0, index[:, 2], found)
        return self._finite(sums.cpu().numpy())

    def _log_totals(self, rows: Any) -> Any:
        """float32 [positions]: the logarithm of what all tokens' exponentials sum to."""
        import torch

        parts = []
        for some in rows.split(_POSITIONS_AT_ONCE):
            total = torch.full((len(some),), -torch.inf, device=rows.device)
            for start in range(0, self._vocabulary, _VOCABULARY_AT_ONCE):
                weights, bias = self._head_rows(slice(start, start + _VOCABULARY_AT_ONCE))
                total = torch.logaddexp(total, self._finished(some @ weights.T + bias).logsumexp(dim=1))
            parts.append(total)
        return torch.cat(parts)

    def _head_rows(self, tokens: Any) -> tuple[Any, Any]:
        """float32: some rows of the head, and their biases."""
        head = self.model.get_output_embeddings()
        bias = 0.0 if head.bias is None else head.bias[tokens].float()
        return head.weight[tokens].float(), bias

    def _finished(self, logits: Any) -> Any:
        """What the model makes of its head's products."""
        if self._cap is None:
            return logits * self._scale if self._scale != 1.0 else logits
        return (logits / self._cap).tanh() * self._cap

    # -- generating ------------------------------------------------------------

    def _writing_batches(self, sizes: npt.NDArray[np.int64], sampling: Sampling) -> list[list[int]]:
        budget = self.batch_tokens * _GENERATED_TOGETHER
        return [batch.tolist() for batch in token_batches(sizes + sampling.max_tokens, budget)]

    @abstractmethod
    def _write(self, prompts: list[Ids], sampling: Sampling) -> list[Generated]:
        """What the model writes after each prompt."""

    def _listeners(self, prompts: list[Ids], sampling: Sampling, start: int) -> tuple[_Ends, dict[str, Any]]:
        """What ends texts that begin at `start` of a row, and how `generate` of transformers is told of it."""
        from transformers import LogitsProcessorList, StoppingCriteriaList

        ends = _Ends(self.tokenizer, start, self._end_tokens, sampling.stop)
        draws = [] if sampling.temperature == 0 else [_Draws(prompts, sampling)]
        lists = {
            "logits_processor": LogitsProcessorList(draws),
            "stopping_criteria": StoppingCriteriaList([ends]),
        }
        return ends, lists

    # -- loading ------------------------------------------------------------

    def _take(self, adapter: Adapter) -> None:
        """Loads an adapter that leaves the vocabulary alone: rows of it are read past the layer's own code."""
        vocabulary = (self.model.get_input_embeddings(), self.model.get_output_embeddings())
        names = {name for name, module in self.model.named_modules(remove_duplicate=False) if module in vocabulary}
        layers = {*adapter.changed, *(name.rpartition(".")[0] for name in adapter.replaced)}
        if touched := sorted(names & layers):
            raise ModelError(
                f"adapter {str(adapter.path)!r} changes {touched[0]!r}, the vocabulary of model {self.folder.name!r}; "
                "merge it into the model (peft's merge_and_unload) and give the folder of the merged one"
            )
        super()._take(adapter)

    def _read_settings(self) -> None:
        """Takes the tokens that end texts out of the folder's settings for generating, and drops the others."""
        from transformers import GenerationConfig

        settings = self.model.generation_config
        ends = settings.eos_token_id if settings.eos_token_id is not None else self.tokenizer.eos_token_id
        self._end_tokens: frozenset[int] = frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])
        # A folder's own sampling options would be mixed into ours.
        self.model.generation_config = GenerationConfig()

    def _read_head(self) -> None:
        """Finds out how logits come from states, and tries it.

        Raises:
            ModelError: not in a way that is known.
        """
        import torch

        state, wanted = self._tried()
        head = self.model.get_output_embeddings()
        self._vocabulary = 0 if head is None else int(head.weight.shape[0])
        self._scale = 1.0
        self._cap: float | None = getattr(self.model.config, "final_logit_softcapping", None)
        if head is not None and state is not None:
            weights, bias = self._head_rows(slice(None))
            products = state @ weights.T + bias
            if self._cap is None:
                scale = float(products @ wanted / (products @ products))
                self._scale = scale if abs(scale - 1) > 1e-4 else 1.0
            if torch.allclose(self._finished(products), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max())):
                return
        raise ModelError(
            f"model {self.folder.name!r}: the logits of {type(self.model).__name__} are not a product of its last "
            "states and its head; serve it with a server for language models instead"
        )

    @abstractmethod
    def _tried(self) -> tuple[Any, Any]:
        """The state [d] of a position, None where that cannot be had, and the model's own logits [vocabulary] there."""

    def _convert(self, dtype: Any) -> None:
        self.model.to(dtype)

    def trial(self) -> list[FloatVector]:
        """Likelihoods of four queries after each of twelve documents."""
        queries, documents = probe_lists()
        scores = self._plain_likelihood([(query, document) for query in queries for document in documents])
        return list(np.array(scores, dtype=np.float32).reshape(len(queries), len(documents)))

    def _plain_likelihood(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """The likelihood of queries on the line after a document, without any template."""
        options = {"split_special_tokens": True, "add_special_tokens": False, "verbose": False}
        queries = self.tokenizer([query for query, _ in pairs], **options)["input_ids"]
        documents = self.tokenizer([f"{document}\n" for _, document in pairs], **options)["input_ids"]
        half = max(1, self.limit // 2)
        return self.likelihood(
            [
                _Plain(tuple(document[:half]), 0, (tuple(query[:half]),), "likelihood")
                for query, document in zip(queries, documents, strict=True)
            ]
        )


def probe_lists() -> tuple[list[str], list[str]]:
    """A few fixed queries, and documents that belong to one or another of them."""
    queries = [text for text in PROBE_TEXTS if text[0].islower()][:4]
    documents = [text for text in PROBE_TEXTS if text[0].isupper()][:12]
    return queries, documents


class _Plain(NamedTuple):
    tokens: tuple[int, ...]
    prefix: int
    continuations: tuple[tuple[int, ...], ...]
    verb: str


class _Draws:
    """Turns logits into ones whose highest is a draw, by each prompt's own random numbers (the Gumbel-max trick)."""

    def __init__(self, prompts: Sequence[Ids], sampling: Sampling) -> None:
        import torch

        self._sampling = sampling
        digests = [hashlib.sha256(f"{sampling.seed} ".encode() + prompt.tobytes()).digest() for prompt in prompts]
        seeds = [int.from_bytes(digest[:8], "little") >> 1 for digest in digests]
        self._random = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, ids: Any, logits: Any) -> Any:
        import torch

        logits = logits.float() / self._sampling.temperature
        if self._sampling.top_p < 1:
            ordered, tokens = logits.sort(dim=1, descending=True)
            before = ordered.softmax(dim=1).cumsum(dim=1) - ordered.softmax(dim=1)
            dropped = torch.zeros_like(logits, dtype=torch.bool).scatter(1, tokens, before >= self._sampling.top_p)
            logits = logits.masked_fill(dropped, -torch.inf)
        size = logits.shape[1]
        noise = torch.stack([-torch.empty(size).exponential_(generator=random).log() for random in self._random])
        return logits + noise.to(logits.device)


class _Ends:
    """Says when each text is over, and remembers it."""

    def __init__(self, tokenizer: Any, start: int, end_tokens: frozenset[int], stop: tuple[str, ...]) -> None:
        self._tokenizer, self._start, self._end_tokens, self._stop = tokenizer, start, end_tokens, stop
        self._lengths: dict[int, int] = {}

    def __call__(self, ids: Any, logits: Any, **_: Any) -> Any:
        import torch

        n = ids.shape[1] - self._start
        for row, token in enumerate(ids[:, -1].tolist()):
            if row in self._lengths:
                continue
            if token in self._end_tokens:
                self._lengths[row] = n - 1
            elif self._stop:
                tail = self._tokenizer.decode(ids[row, max(self._start, ids.shape[1] - _TAIL_TOKENS) :].tolist())
                if any(text in tail for text in self._stop):
                    self._lengths[row] = n
        over = [row in self._lengths for row in range(len(ids))]
        return torch.tensor(over, dtype=torch.bool, device=ids.device)

    def answers(self, rows: list[list[int]]) -> list[Generated]:
        """The texts, each up to its end."""
        found = []
        for row, tokens in enumerate(rows):
            finish: Literal["stop", "length"] = "stop" if row in self._lengths else "length"
            kept = tokens[: self._lengths.get(row, len(tokens))]
            found.append(Generated(self._tokenizer.decode(kept, skip_special_tokens=True), finish, tuple(kept)))
        return found
