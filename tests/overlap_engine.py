"""An engine with an answer that a reader can tell: how many words of the query a document holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rerank.engines.engine import Asked, Asker, Engine
from rerank.ranking import ScoreKind
from rerank.rules.rule import Answer
from rerank.runtime import Runtime


@dataclass(frozen=True, repr=False)
class Overlap(Engine):
    """Scores are counts of shared words."""

    asked: ClassVar[list[list[Asked]]] = []
    """The questions of each call, in all tests of a process: clear it before."""

    def asker(self, prompt: str | None, runtime: Runtime) -> Asker:
        return _Overlap()


class _Overlap:
    kind = ScoreKind.LOGIT
    most_documents: int | None = None

    def ask(self, questions: Sequence[Asked], runtime: Runtime) -> list[Answer]:
        Overlap.asked.append(list(questions))
        return [tuple(map(float, overlaps(asked.query, asked.documents))) for asked in questions]


def overlaps(query: str, documents: Sequence[str]) -> list[int]:
    """How many words each document shares with the query."""
    words = set(query.split())
    return [len(words & set(document.split())) for document in documents]
