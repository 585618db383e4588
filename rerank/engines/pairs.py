"""Engines that score (query, document) pairs and take no prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from rerank.config import AdapterPath
from rerank.engines.engine import Asked, Asker, Engine, refuse_prompt
from rerank.engines.lora import check_adapter
from rerank.engines.meter import Meter, Work, by_characters, by_pairs, by_texts, outlined, work_of
from rerank.engines.passages import Passages, Span, token_passages
from rerank.engines.text_model import DType
from rerank.errors import ModelError
from rerank.ranking import ScoreKind
from rerank.rules.rule import Answer, at_least
from rerank.runtime import Runtime

if TYPE_CHECKING:
    from rerank.engines.cross_encoder import CrossEncoder
    from rerank.engines.late_interaction import LateInteraction
    from rerank.engines.scorer import Scorer

S = TypeVar("S", bound="Scorer")


class _PairsEngine(Engine):
    """Base of the engines here; its fields are those of a model and its adapter."""

    model: str
    revision: str | None
    dtype: DType
    adapter: AdapterPath | None
    force_adapter: bool

    def _limit(self, given: int | None, runtime: Runtime) -> int | None:
        """The tokens of an input, as given, else as the adapter was trained with; the adapter is checked."""
        adapter = check_adapter(
            self.adapter, self.model, self.revision, runtime, prompt=None, force=self.force_adapter, engine=self.label
        )
        return given if given is not None or adapter is None else adapter.max_tokens

    def _measured(
        self,
        prompt: str | None,
        runtime: Runtime,
        kind: type[S],
        meter: Callable[[S, Work, int | None], Meter],
        limit: Callable[[], int | None],
    ) -> Meter:
        """A meter by the model's tokenizer, or by characters where its files are not here."""
        refuse_prompt(self, prompt)
        try:
            model = outlined(kind, self.model, self.revision, runtime)
        except ModelError as error:
            return by_characters(None, remark=str(error))
        return meter(model, work_of(model, self.dtype, runtime.device), limit())


@dataclass(frozen=True, repr=False)
class CrossEncoderEngine(_PairsEngine):
    """A cross-encoder: reads query and document together and gives one logit; for rules that show one document."""

    model: str
    """A hub id, or a folder of a sequence classifier or a sentence-transformers CrossEncoder."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: DType = "auto"
    """What the model computes in."""
    max_tokens: int | None = None
    """Tokens of a pair at most; default what the adapter was trained with, else what the model reads."""
    adapter: AdapterPath | None = None
    """A LoRA adapter of this model: the folder that peft saved, perhaps with a head.  Stages with several of one model
    load the model once."""
    force_adapter: bool = False
    """Whether the adapter is used even where it was trained on another model."""

    def __post_init__(self) -> None:
        at_least("cross_encoder", 1, max_tokens=self.max_tokens)

    def asker(self, prompt: str | None, runtime: Runtime) -> Asker:
        """The loaded cross-encoder."""
        refuse_prompt(self, prompt)
        max_tokens = self._limit(self.max_tokens, runtime)
        from rerank.engines.cross_encoder import load_cross_encoder

        model = load_cross_encoder(runtime, self.model, self.revision, self.dtype, self.adapter)
        return PairsAsker(model, max_tokens=max_tokens)

    def measure(self, prompt: str | None, runtime: Runtime) -> Meter:
        """By the model's tokenizer, where its files are here."""
        from rerank.engines.cross_encoder import CrossEncoder

        return self._measured(prompt, runtime, CrossEncoder, by_pairs, lambda: self._limit(self.max_tokens, runtime))


@dataclass(frozen=True, repr=False)
class LateInteractionEngine(_PairsEngine):
    """A ColBERT: encodes queries and documents apart, compares their tokens; for rules that show one document.

    Each document is encoded once for all queries that are asked about it together.
    """

    model: str
    """A hub id, or a folder of a ColBERT of Stanford's, PyLate's, or sentence-transformers' layout."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: DType = "auto"
    """What the model computes in."""
    document_tokens: int | None = None
    """Tokens of a document at most, where the transformer reads so many; default what the checkpoint says."""
    adapter: AdapterPath | None = None
    """A LoRA adapter of the transformer: the folder that peft saved.  Stages with several of one model load it once."""
    force_adapter: bool = False
    """Whether the adapter is used even where it was trained on another model."""

    def asker(self, prompt: str | None, runtime: Runtime) -> Asker:
        """The loaded model."""
        refuse_prompt(self, prompt)
        self._limit(None, runtime)
        from rerank.engines.late_interaction import load_late_interaction

        model = load_late_interaction(runtime, self.model, self.revision, self.dtype, self.adapter)
        return PairsAsker(model, ScoreKind.MAXSIM, self.document_tokens)

    def measure(self, prompt: str | None, runtime: Runtime) -> Meter:
        """By the model's tokenizer, where its files are here."""
        from rerank.engines.late_interaction import LateInteraction

        return self._measured(prompt, runtime, LateInteraction, by_texts, lambda: self.document_tokens)


@dataclass(frozen=True, repr=False)
class BiEncoderEngine(_PairsEngine):
    """A bi-encoder: a vector each for query and document, compared by cosine or dot product.

    Each document is encoded once for all queries that are asked about it together.  Where vectors of the corpus are
    kept anyway, the stage `rescore` uses these; this engine takes an adapter, and can be trained.
    """

    model: str
    """A catalogue name, a hub id, or a folder of a sentence-transformers model."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: DType = "auto"
    """What the model computes in."""
    max_tokens: int | None = None
    """Tokens of a document at most; default what the adapter was trained with, else what the model reads."""
    adapter: AdapterPath | None = None
    """A LoRA adapter of the transformer: the folder that peft saved.  Stages with several of one model load it once."""
    force_adapter: bool = False
    """Whether the adapter is used even where it was trained on another model."""

    def __post_init__(self) -> None:
        at_least("bi_encoder", 1, max_tokens=self.max_tokens)

    def asker(self, prompt: str | None, runtime: Runtime) -> Asker:
        """The loaded model."""
        refuse_prompt(self, prompt)
        max_tokens = self._limit(self.max_tokens, runtime)
        from rerank.engines.bi_encoder import load_bi_encoder

        model = load_bi_encoder(runtime, self.model, self.revision, self.dtype, self.adapter)
        return PairsAsker(model, model.score_kind, max_tokens)

    def measure(self, prompt: str | None, runtime: Runtime) -> Meter:
        """By the model's tokenizer, where its files are here."""
        from rerank.engines.bi_encoder import BiEncoder

        return self._measured(prompt, runtime, BiEncoder, by_texts, lambda: self._limit(self.max_tokens, runtime))


class PairsAsker:
    """A loaded model that scores pairs."""

    most_documents: int | None = 1

    def __init__(
        self, model: CrossEncoder | LateInteraction, kind: ScoreKind = ScoreKind.LOGIT, max_tokens: int | None = None
    ) -> None:
        self.model = model
        self.max_tokens = max_tokens
        """Tokens of a pair, or of a document that is encoded alone, at most; None: what the model reads."""
        self.kind = kind

    def ask(self, questions: Sequence[Asked], runtime: Runtime) -> list[Answer]:
        pairs = [(asked.query, asked.documents[0]) for asked in questions]
        scores = self.model.pairs(pairs, runtime.count, self.max_tokens, runtime.requests)
        return [(float(score),) for score in scores]

    def passages(self, texts: Sequence[str], passages: Passages) -> Iterable[tuple[Span, ...]]:
        return token_passages(self.model.tokenizer, texts, passages)
