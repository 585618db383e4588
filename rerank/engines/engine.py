"""Engines as pipelines name them: what answers which documents of a group are better.

An `Engine` is configuration; `asker` loads what it names and binds the prompt, and the `Asker` answers whole batches,
of any queries and lists together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from rerank.config import FilePath
from rerank.engines.causal_lm import Sampling
from rerank.engines.text_model import DType
from rerank.errors import ConfigError
from rerank.ranking import ScoreKind
from rerank.registry import Part
from rerank.rules.judges import FakeJudge, Form
from rerank.rules.rule import Answer, Group
from rerank.runtime import Runtime

if TYPE_CHECKING:
    from rerank.engines.causal_lm import CausalLM
    from rerank.engines.cross_encoder import CrossEncoder
    from rerank.prompts.binding import BoundPrompt, PromptRequest
    from rerank.prompts.parsers import Raw


class Asked(NamedTuple):
    """One question: which of these documents are better for this query?"""

    qid: str
    query: str
    docnos: tuple[str, ...]
    documents: tuple[str, ...]
    """Their texts, in the order shown."""


class Asker(Protocol):
    """A loaded engine, ready for questions."""

    kind: ScoreKind
    """What the scores of an answer mean."""
    most_documents: int | None
    """How many documents a question may show; None: any number."""

    def ask(self, questions: Sequence[Asked], runtime: Runtime) -> list[Answer]:
        """One answer a question, in their order."""
        ...


class Engine(Part, ABC):
    """Base of all engines; a subclass is a frozen dataclass with `asker`."""

    @abstractmethod
    def asker(self, prompt: str | None, runtime: Runtime) -> Asker:
        """What answers, with the prompt of that name or path where it takes one.

        Raises:
            ConfigError: a prompt is needed and none is given, or the other way round.
            ModelError: the model cannot be loaded.
        """


def _refuse_prompt(engine: Engine, prompt: str | None) -> None:
    if prompt is not None:
        raise ConfigError(f"{engine.label}: takes no prompt, but {prompt!r} is given; leave it out")


@dataclass(frozen=True, repr=False)
class CrossEncoderEngine(Engine):
    """A cross-encoder: reads query and document together and gives one logit; for rules that show one document."""

    model: str
    """A hub id, or a folder of a sequence classifier or a sentence-transformers CrossEncoder."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: DType = "auto"
    """What the model computes in."""

    def asker(self, prompt: str | None, runtime: Runtime) -> Asker:
        """The loaded cross-encoder."""
        _refuse_prompt(self, prompt)
        from rerank.engines.cross_encoder import load_cross_encoder

        return _Pairs(load_cross_encoder(runtime, self.model, self.revision, self.dtype))


class _Pairs:
    kind = ScoreKind.LOGIT
    most_documents: int | None = 1

    def __init__(self, model: CrossEncoder) -> None:
        self._model = model

    def ask(self, questions: Sequence[Asked], runtime: Runtime) -> list[Answer]:
        scores = self._model.pairs([(asked.query, asked.documents[0]) for asked in questions], runtime.count)
        return [(float(score),) for score in scores]


@dataclass(frozen=True, repr=False)
class CausalLMEngine(Engine):
    """A causal language model and a prompt: judged by how likely labels or the query are, or by what it writes."""

    model: str
    """A catalogue name, a folder, or a hub id."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: DType = "auto"
    """What the model computes in."""
    max_tokens: int = 4096
    """Tokens of a prompt at most; documents are cut to fit, then the query, never the template."""
    sampling: Sampling = Sampling()
    """How text is generated, for prompts whose answers are written."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ConfigError(f"causal_lm: max_tokens is {self.max_tokens}, at least 1 is needed")

    def asker(self, prompt: str | None, runtime: Runtime) -> Asker:
        """The loaded model with the prompt bound to its tokenizer."""
        if prompt is None:
            raise ConfigError(f"{self.label}: needs a prompt: the name of a profile (rerank prompts list) or a file")
        from rerank.engines.causal_lm import load_causal_lm
        from rerank.prompts.prompt import load_prompt

        model = load_causal_lm(runtime, self.model, self.revision, self.dtype)
        loaded = load_prompt(prompt)
        bound = runtime.resource(("prompt", loaded.fingerprint, model.key), lambda: loaded.bind(model.tokenizer))
        runtime.note("prompt", {"name": prompt, "fingerprint": loaded.fingerprint})
        return _Prompted(self, model, bound)


class _Prompted:
    """A language model with its prompt."""

    kind = ScoreKind.UNKNOWN

    def __init__(self, engine: CausalLMEngine, model: CausalLM, bound: BoundPrompt) -> None:
        self._engine, self._model, self._bound = engine, model, bound
        self.most_documents: int | None = bound.prompt.most_documents
        written = engine.sampling.max_tokens if bound.prompt.verb == "generate" else 0
        self._max_tokens = min(engine.max_tokens, model.limit - written)

    def ask(self, questions: Sequence[Asked], runtime: Runtime) -> list[Answer]:
        requests = self._bound.requests([(asked.query, asked.documents) for asked in questions], self._max_tokens)
        runtime.count("truncated documents", sum(request.truncated_documents for request in requests))
        runtime.count("truncated queries", sum(request.truncated_query for request in requests))
        shown = [len(asked.documents) for asked in questions]
        return [
            self._bound.answer(raw, n, runtime.count)
            for raw, n in zip(self._raw(requests, runtime), shown, strict=True)
        ]

    def _raw(self, requests: Sequence[PromptRequest], runtime: Runtime) -> Sequence[Raw]:
        verb = self._bound.prompt.verb
        if verb == "choices":
            return self._model.choices(requests, runtime.count)
        if verb == "likelihood":
            return self._model.likelihood(requests, runtime.count)
        written = self._model.generate(requests, self._engine.sampling, runtime.count)
        runtime.count("unfinished answers", sum(each.finish == "length" for each in written))
        return [each.text for each in written]


@dataclass(frozen=True, repr=False)
class FakeEngine(Engine):
    """Answers from judgments, well or badly as asked: what a rule would do with a perfect, noisy or broken model.

    Documents without a judgment count as grade 0.
    """

    qrels: FilePath
    """Judgments in TREC's form, or tab-separated with a header as BEIR has them."""
    form: Form = "scores"
    """`scores` are the grades, `order` the places, `pick` says only which is best."""
    noise: float = 0.0
    """Standard deviation of what is added to each grade, anew for each question."""
    garbage: float = 0.0
    """Share of questions that get no usable answer, 0 to 1."""
    seed: int = 0
    """Of noise and garbage."""

    def __post_init__(self) -> None:
        if self.noise < 0 or not 0 <= self.garbage <= 1:
            raise ConfigError(f"fake: noise is {self.noise} (0 or more) and garbage is {self.garbage} (0 to 1)")

    def asker(self, prompt: str | None, runtime: Runtime) -> Asker:
        """The judgments, read."""
        _refuse_prompt(self, prompt)
        from rerank.data.trec import read_qrels

        return _Judgments(self, runtime.resource(("qrels", self.qrels), lambda: read_qrels(Path(self.qrels))))


class _Judgments:
    kind = ScoreKind.UNKNOWN
    most_documents: int | None = None

    def __init__(self, engine: FakeEngine, qrels: Mapping[str, Mapping[str, int]]) -> None:
        self._engine, self._qrels = engine, qrels

    def ask(self, questions: Sequence[Asked], runtime: Runtime) -> list[Answer]:
        return [self._answer(asked) for asked in questions]

    def _answer(self, asked: Asked) -> Answer:
        engine, judged = self._engine, self._qrels.get(asked.qid, {})
        grades = tuple(float(judged.get(docno, 0)) for docno in asked.docnos)
        seed = int.from_bytes(f"{engine.seed} {asked.qid} {' '.join(asked.docnos)}".encode(), "little")
        judge = FakeJudge(grades, engine.form, engine.noise, garbage=engine.garbage, seed=seed)
        return judge(Group(tuple(range(len(grades)))))
