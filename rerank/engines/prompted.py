"""Engines that ask a language model by a prompt."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from rerank.config import AdapterPath
from rerank.engines.engine import Asked, Asker, Engine, Writer, writing_prompt
from rerank.engines.language_model import Sampling, probe_lists
from rerank.engines.lora import check_adapter
from rerank.engines.meter import Meter, by_characters, by_prompt, outlined, work_of
from rerank.engines.passages import Passages, Span, token_passages
from rerank.engines.samples import averaged
from rerank.engines.scorer import Trial, check_order
from rerank.engines.text_model import DType
from rerank.engines.trials import Trials
from rerank.errors import ConfigError, ModelError
from rerank.ranking import ScoreKind
from rerank.rules.rule import Answer
from rerank.runtime import Runtime

if TYPE_CHECKING:
    from rerank.engines.cache import RequestCache
    from rerank.engines.language_model import Generated, LanguageModel, Request
    from rerank.engines.scorer import FloatVector
    from rerank.engines.text_model import Count
    from rerank.prompts.binding import BoundPrompt, PromptRequest
    from rerank.prompts.parsers import Raw
    from rerank.prompts.prompt import Prompt

_CAUSES = (
    "a template that the model was not trained with, labels that it does not answer with, or a model that cannot judge "
    "relevance"
)


class PromptModel(Protocol):
    """A loaded language model."""

    tokenizer: Any

    @property
    def key(self) -> str:
        """SHA-256 of all that an answer depends on besides the request."""
        ...

    @property
    def limit(self) -> int:
        """The most tokens that a prompt may have; in decoders, what follows it included."""
        ...

    def choices(
        self, requests: Sequence[Request], count: Count | None = None, cache: RequestCache | None = None
    ) -> list[FloatVector]:
        """The logits of each request's labels."""
        ...

    def likelihood(
        self, requests: Sequence[Request], count: Count | None = None, cache: RequestCache | None = None
    ) -> list[float]:
        """The mean log-probability of each request's continuation."""
        ...

    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        count: Count | None = None,
        cache: RequestCache | None = None,
    ) -> list[Generated]:
        """What the model writes after each prompt."""
        ...


class PromptedEngine(Engine):
    """Base of engines that ask a language model by a prompt; a subclass is a frozen dataclass with these fields."""

    model: str
    revision: str | None
    dtype: DType
    max_tokens: int
    sampling: Sampling
    adapter: AdapterPath | None
    force_adapter: bool

    is_seq2seq: ClassVar[bool] = False
    """Whether the prompts are those that an encoder-decoder reads."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ConfigError(f"{self.label}: max_tokens is {self.max_tokens}, at least 1 is needed")

    @abstractmethod
    def _load(self, prompt: Prompt, runtime: Runtime) -> PromptModel:
        """The loaded model."""

    @abstractmethod
    def _kind(self) -> type[LanguageModel]:
        """What the model is, for counting without its weights."""

    def asker(self, prompt: str | None, runtime: Runtime) -> Asker:
        """The loaded model with the prompt bound to its tokenizer."""
        from rerank.prompts.prompt import load_prompt

        name = self._needed(prompt)
        samples = self.sampling.each() if load_prompt(name).verb == "generate" else [self.sampling]
        return averaged([self._prompted(name, runtime, sampling) for sampling in samples])

    def _needed(self, name: str | None) -> str:
        """The prompt's name, when there is one that this engine reads."""
        from rerank.prompts.prompt import load_prompt

        if name is None:
            raise ConfigError(f"{self.label}: needs a prompt: the name of a profile (rerank prompts list) or a file")
        if load_prompt(name).seq2seq and not self.is_seq2seq:
            raise ConfigError(
                f"{self.label}: the prompt {name!r} is one for encoder-decoders (seq2seq); take the engine "
                "encoder_decoder, or another prompt"
            )
        if self.is_seq2seq and not load_prompt(name).seq2seq:
            raise ConfigError(
                f"{self.label}: the prompt {name!r} is one for decoders (without seq2seq: true); take the engine "
                "causal_lm, or another prompt, such as monot5"
            )
        return name

    def _prompted(self, name: str, runtime: Runtime, sampling: Sampling | None = None) -> PromptedAsker:
        from rerank.prompts.prompt import load_prompt

        prompt = load_prompt(name)
        adapter = check_adapter(
            self.adapter, self.model, self.revision, runtime, prompt=prompt, force=self.force_adapter
        )
        model = self._load(prompt, runtime)
        trials = Trials(runtime.home / "models" / "trials.json", model.key)

        def bind() -> tuple[BoundPrompt, bool | None]:
            bound = prompt.bind(model.tokenizer)
            asker = PromptedAsker(self, model, bound, self.sampling)
            return bound, trials.result("self-test", prompt.fingerprint, run=asker.order_holds, keep=bool)

        bound, holds = runtime.resource(("prompt", prompt.fingerprint, model.key), bind)
        tried = {} if holds is None else {"self-test": "passed" if holds else "failed"}
        runtime.note("prompt", {"name": name, "fingerprint": prompt.fingerprint, **tried})
        trained = adapter.max_tokens if adapter is not None else None
        return PromptedAsker(self, model, bound, sampling or self.sampling, trained)

    def trial(self, prompt: Prompt) -> Trial | None:
        """How a 16-bit type is judged: by the prompt's own scores; None where it has none until answers are written."""
        if prompt.verb == "generate":
            return None

        def scores(model: LanguageModel) -> list[FloatVector]:
            return PromptedAsker(self, model, prompt.bind(model.tokenizer), self.sampling).probe_scores()

        return Trial(prompt.fingerprint, scores)

    def measure(self, prompt: str | None, runtime: Runtime) -> Meter:
        """By the model's tokenizer, where its files are here."""
        from rerank.prompts.prompt import load_prompt

        name = self._needed(prompt)
        loaded = load_prompt(name)
        generated = self.sampling.max_tokens if loaded.verb == "generate" else 0
        try:
            model = outlined(self._kind(), self.model, self.revision, runtime)
        except ModelError as error:
            return by_characters(name, generated=generated, remark=str(error))
        bound, work = loaded.bind(model.tokenizer), work_of(model, self.dtype, runtime.device)
        limit = model.limit - (0 if self.is_seq2seq else _room(bound, self.sampling))
        return by_prompt(
            bound,
            min(self.max_tokens, limit),
            generated=_most_written(bound, self.sampling),
            samples=self.sampling.samples if loaded.verb == "generate" else 1,
            work=work,
        )

    def writer(self, prompt: str, n_texts: int, runtime: Runtime) -> Writer:
        """The loaded model; each text of a query has a seed of its own: `sampling.seed` and those after it."""
        writing_prompt(self, self._needed(prompt), self.sampling, n_texts)
        seeds = range(self.sampling.seed, self.sampling.seed + n_texts)
        return _Writing([self._prompted(prompt, runtime, replace(self.sampling, seed=seed)) for seed in seeds])


@dataclass(frozen=True, repr=False)
class CausalLMEngine(PromptedEngine):
    """A causal language model and a prompt: judged by how likely labels or the query are, or by what it writes."""

    model: str
    """A catalogue name, a folder, or a hub id."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: DType = "auto"
    """What the model computes in."""
    max_tokens: int = 4096
    """Tokens of a prompt at most, or as many as the adapter was trained with, if fewer; documents are cut to fit, then
    the query, never the template."""
    sampling: Sampling = Sampling()
    """How text is generated, for prompts whose answers are written."""
    adapter: AdapterPath | None = None
    """A LoRA adapter of this model: the folder that peft saved.  Stages with several of one model load it once."""
    force_adapter: bool = False
    """Whether the adapter is used even where it was trained on another model, or with another prompt."""

    def _load(self, prompt: Prompt, runtime: Runtime) -> PromptModel:
        from rerank.engines.causal_lm import load_causal_lm

        return load_causal_lm(runtime, self.model, self.revision, self.dtype, self.adapter, self.trial(prompt))

    def _kind(self) -> type[LanguageModel]:
        from rerank.engines.causal_lm import CausalLM

        return CausalLM


@dataclass(frozen=True, repr=False)
class EncoderDecoderEngine(PromptedEngine):
    """An encoder-decoder such as T5 and a prompt with `seq2seq: true`, such as monot5, whose answer the decoder starts.

    Text that it writes takes no room from the prompt.
    """

    model: str
    """A catalogue name, a folder, or a hub id."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: DType = "auto"
    """What the model computes in."""
    max_tokens: int = 4096
    """Tokens of a prompt at most, or as many as the adapter was trained with, if fewer; documents are cut to fit, then
    the query, never the template."""
    sampling: Sampling = Sampling()
    """How text is generated, for prompts whose answers are written."""
    adapter: AdapterPath | None = None
    """A LoRA adapter of this model: the folder that peft saved.  Stages with several of one model load it once."""
    force_adapter: bool = False
    """Whether the adapter is used even where it was trained on another model, or with another prompt."""

    is_seq2seq: ClassVar[bool] = True

    def _load(self, prompt: Prompt, runtime: Runtime) -> PromptModel:
        from rerank.engines.encoder_decoder import load_encoder_decoder

        return load_encoder_decoder(runtime, self.model, self.revision, self.dtype, self.adapter, self.trial(prompt))

    def _kind(self) -> type[LanguageModel]:
        from rerank.engines.encoder_decoder import EncoderDecoder

        return EncoderDecoder


@dataclass(frozen=True, repr=False)
class VLLMEngine(PromptedEngine):
    """A causal language model in vLLM and a prompt, for accelerators: as `causal_lm`, in vLLM's batches.

    Prompts that ask for likelihoods, or for labels of several tokens, need vLLM to be started in another way than those
    of all other prompts: stages of both kinds hold two engines, so each must take less than half of the memory.
    """

    model: str
    """A catalogue name, a folder, or a hub id."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: DType = "auto"
    """What the model computes in; `auto` is the type that it was saved in, or 16 bits where that is float32."""
    max_tokens: int = 4096
    """Tokens of a prompt at most, or as many as the adapter was trained with, if fewer; documents are cut to fit, then
    the query, never the template."""
    sampling: Sampling = Sampling()
    """How text is generated, for prompts whose answers are written; vLLM draws, by other numbers than `causal_lm`."""
    adapter: AdapterPath | None = None
    """A LoRA adapter of this model: the folder that peft saved."""
    force_adapter: bool = False
    """Whether the adapter is used even where it was trained on another model, or with another prompt."""
    gpus: int = 1
    """How many accelerators share the model's weights."""
    gpu_memory: float = 0.9
    """The share of each accelerator's memory that vLLM takes, 0 to 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gpus < 1 or not 0 < self.gpu_memory <= 1:
            raise ConfigError(
                f"vllm: gpus is {self.gpus} (1 or more) and gpu_memory {self.gpu_memory} (above 0, at most 1)"
            )
        if self.sampling.temperature > 2:
            raise ConfigError(f"vllm: the temperature is {self.sampling.temperature}; vLLM takes 2 at most")

    def _load(self, prompt: Prompt, runtime: Runtime) -> PromptModel:
        from rerank.engines.vllm import Place, load_tokenizer, load_vllm

        bound = prompt.bind(load_tokenizer(runtime, self.model, self.revision))
        place = Place(self.gpus, self.gpu_memory, self.max_tokens + _room(bound, self.sampling))
        model = (runtime, self.model, self.revision, self.dtype, self.adapter)
        if prompt.verb == "likelihood" or (prompt.verb == "choices" and _has_long_labels(bound)):
            place = place._replace(reads_texts=True)
        return load_vllm(*model, place)

    def _kind(self) -> type[LanguageModel]:
        from rerank.engines.causal_lm import CausalLM

        return CausalLM


class _Writing:
    """A language model that writes about queries."""

    def __init__(self, models: Sequence[PromptedAsker]) -> None:
        self._models = models

    def write(self, queries: Sequence[str], runtime: Runtime) -> list[tuple[str, ...]]:
        return list(zip(*(model.texts(queries, runtime) for model in self._models), strict=True))


class _Reply(NamedTuple):
    """What a language model said to a request."""

    raw: Raw
    """What the answer is read from."""
    text: str = ""
    """All that was written, reasoning included; nothing where it was asked how likely labels or a query are."""


class PromptedAsker:
    """A language model with its prompt."""

    kind = ScoreKind.UNKNOWN

    def __init__(
        self,
        engine: PromptedEngine,
        model: PromptModel,
        bound: BoundPrompt,
        sampling: Sampling,
        max_tokens: int | None = None,
    ) -> None:
        self._engine, self._model, self._bound, self._sampling = engine, model, bound, sampling
        self.most_documents: int | None = bound.prompt.most_documents
        room = 0 if engine.is_seq2seq else _room(bound, sampling)
        # An adapter reads no more than it was trained with.
        self._max_tokens = min(max_tokens or engine.max_tokens, engine.max_tokens, model.limit - room)
        # How reasoning is closed is the prompt's matter.
        reasoning = bound.prompt.fingerprint if bound.closing else None
        self.lane = (id(model), bound.prompt.verb, sampling, reasoning)

    def ask(self, questions: Sequence[Asked], runtime: Runtime) -> list[Answer]:
        return self.answers(self.raw(self.requests(questions, runtime), runtime), questions, runtime)

    def requests(self, questions: Sequence[Asked], runtime: Runtime) -> list[PromptRequest]:
        requests = self._bound.requests([(asked.query, asked.documents) for asked in questions], self._max_tokens)
        runtime.count("truncated documents", sum(request.truncated_documents for request in requests))
        runtime.count("truncated queries", sum(request.truncated_query for request in requests))
        return requests

    def answers(self, raw: Sequence[_Reply], questions: Sequence[Asked], runtime: Runtime) -> list[Answer]:
        for reply, asked in zip(raw, questions, strict=True):
            if reply.text:
                runtime.explain(asked, self._bound.begun + reply.text)
        return [
            self._bound.answer(reply.raw, len(asked.documents), runtime.count)
            for reply, asked in zip(raw, questions, strict=True)
        ]

    def texts(self, queries: Sequence[str], runtime: Runtime) -> list[str]:
        """What is written about each query."""
        requests = self._bound.requests([(query, ()) for query in queries], self._max_tokens)
        runtime.count("truncated queries", sum(request.truncated_query for request in requests))
        written = self._model.generate(requests, self._sampling, runtime.count, runtime.requests)
        runtime.count("unfinished texts", sum(each.finish == "length" for each in written))
        return [self._bound.text(each.text, runtime.count) for each in written]

    def passages(self, texts: Sequence[str], passages: Passages) -> Iterable[tuple[Span, ...]]:
        return token_passages(self._model.tokenizer, texts, passages)

    def order_holds(self) -> bool | None:
        """Whether obviously relevant documents come before irrelevant ones, else a warning is logged.

        None where answers are written: that takes too long to be tried.
        """
        if self._bound.prompt.verb == "generate":
            return None
        subject = f"{self._engine.label} {self._engine.model!r} with the prompt {self._bound.prompt.name!r}"
        return check_order(self._apart if self.most_documents == 1 else self._side_by_side, subject, _CAUSES)

    def probe_scores(self) -> list[FloatVector]:
        """float32 [documents] for each of a few fixed queries: the same documents, apart or as many as are shown at
        once.
        """
        import numpy as np

        queries, documents = probe_lists()
        if self.most_documents == 1:
            flat = self._apart([(query, document) for query in queries for document in documents])
            return list(np.array(flat, dtype=np.float32).reshape(len(queries), len(documents)))
        shown = tuple(documents[: self.most_documents])
        answers = self._tried([(query, shown) for query in queries])
        return [np.array([score or 0.0 for score in answer], dtype=np.float32) for answer in answers]

    def _apart(self, pairs: list[tuple[str, str]]) -> list[float]:
        """The score of each document."""
        asked = [(query, (document,)) for query, document in pairs]
        return [answer[0] or 0.0 for answer in self._tried(asked)]

    def _side_by_side(self, pairs: list[tuple[str, str]]) -> list[float]:
        """The scores of documents that are shown in twos, in both orders, since models like one place better."""
        twos = [(query, (first, second)) for (query, first), (_, second) in zip(pairs[::2], pairs[1::2], strict=True)]
        there = self._tried(twos)
        back = self._tried([(query, documents[::-1]) for query, documents in twos])
        return [
            (one or 0.0) + (other or 0.0)
            for left, right in zip(there, back, strict=True)
            for one, other in zip(left, right[::-1], strict=True)
        ]

    def _tried(self, asked: Sequence[tuple[str, tuple[str, ...]]]) -> list[Answer]:
        """Answers that nobody counts and nothing stores."""
        requests = self._bound.requests(asked, self._max_tokens)
        ask = self._model.choices if self._bound.prompt.verb == "choices" else self._model.likelihood
        raw: Sequence[Raw] = ask(requests)
        return [self._bound.answer(each, len(documents)) for each, (_, documents) in zip(raw, asked, strict=True)]

    def raw(self, requests: Sequence[PromptRequest], runtime: Runtime) -> list[_Reply]:
        verb = self._bound.prompt.verb
        if verb == "choices":
            return [_Reply(each) for each in self._model.choices(requests, runtime.count, runtime.requests)]
        if verb == "likelihood":
            return [_Reply(each) for each in self._model.likelihood(requests, runtime.count, runtime.requests)]
        if self._bound.closing and not self._engine.is_seq2seq:
            return self._reasoned(requests, runtime)
        return [_Reply(each.text, each.text) for each in self._written(requests, self._sampling, runtime)]

    def _written(self, requests: Sequence[PromptRequest], sampling: Sampling, runtime: Runtime) -> list[Generated]:
        """What the model writes as answers."""
        written = self._model.generate(requests, sampling, runtime.count, runtime.requests)
        runtime.count("unfinished answers", sum(each.finish == "length" for each in written))
        return written

    def _reasoned(self, requests: Sequence[PromptRequest], runtime: Runtime) -> list[_Reply]:
        """Answers after reasoning, which is closed by force where its budget was too small."""
        bound, chooses, sampling = self._bound, self._bound.chooses_at_the_end, self._sampling
        stop = (*sampling.stop, "</think>") if chooses else sampling.stop
        thinking = replace(sampling, max_tokens=_budget(sampling), stop=stop)
        traces = self._model.generate(requests, thinking, runtime.count, runtime.requests)
        # An answer that was written to its end needs nothing more.
        open_ends = [i for i, trace in enumerate(traces) if chooses or trace.finish == "length"]
        asked = [bound.finish(requests[i], traces[i].tokens) for i in open_ends]
        closed = [
            len(more.tokens) > len(requests[i].tokens) + traces[i].n_tokens
            for i, more in zip(open_ends, asked, strict=True)
        ]
        runtime.count("closed traces", sum(closed))
        texts = [trace.text for trace in traces]
        for i, was_closed in zip(open_ends, closed, strict=True):
            texts[i] += bound.prompt.closing if was_closed else ""
        if chooses:
            chosen = self._model.choices(asked, runtime.count, runtime.requests)
            return [_Reply(logits, text) for logits, text in zip(chosen, texts, strict=True)]
        if "<answer>" in bound.prompt.closing:
            sampling = replace(sampling, stop=(*sampling.stop, "</answer>"))
        for i, rest in zip(open_ends, self._written(asked, sampling, runtime), strict=True):
            texts[i] += rest.text
        return [_Reply(text, text) for text in texts]


def _budget(sampling: Sampling) -> int:
    """What reasoning may take."""
    return sampling.max_tokens if sampling.thinking_tokens is None else sampling.thinking_tokens


def _room(bound: BoundPrompt, sampling: Sampling) -> int:
    """The tokens that may follow a prompt, where its answer is written."""
    if bound.prompt.verb != "generate":
        return 0
    if not bound.closing:
        return sampling.max_tokens
    answer = max(map(len, bound.continuations(1))) if bound.chooses_at_the_end else sampling.max_tokens
    return _budget(sampling) + len(bound.closing) + answer


def _most_written(bound: BoundPrompt, sampling: Sampling) -> int:
    """The tokens that the model writes at most about a question."""
    if bound.prompt.verb != "generate":
        return 0
    reasoning = _budget(sampling) if bound.closing else 0
    return sampling.samples * (reasoning + (0 if bound.chooses_at_the_end else sampling.max_tokens))


def _has_long_labels(bound: BoundPrompt) -> bool:
    """Whether a label has several tokens."""
    return any(len(label) > 1 for label in bound.continuations(bound.prompt.most_documents or 1))
