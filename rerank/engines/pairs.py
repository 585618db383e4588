"""Engines that score (query, document) pairs and take no prompt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rerank.engines.engine import Asked, Asker, Engine, refuse_prompt
from rerank.engines.passages import Passages, Span, token_passages
from rerank.engines.text_model import DType
from rerank.ranking import ScoreKind
from rerank.rules.rule import Answer
from rerank.runtime import Runtime

if TYPE_CHECKING:
    from rerank.engines.cross_encoder import CrossEncoder


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
        refuse_prompt(self, prompt)
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

    def passages(self, texts: Sequence[str], passages: Passages) -> Iterable[tuple[Span, ...]]:
        return token_passages(self._model.tokenizer, texts, passages)
