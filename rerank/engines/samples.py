"""Several answers to one question, averaged: what a model says differs from draw to draw, its mean less so."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from rerank.engines.engine import Asked, Asker, ConcurrentAsker
from rerank.engines.passages import Passages, Span
from rerank.rules.rule import Answer
from rerank.runtime import Runtime


def averaged(askers: Sequence[Asker]) -> Asker:
    """An asker that asks all of `askers`, alike but for their seeds, and answers with the mean."""
    if len(askers) == 1:
        return askers[0]
    concurrent = [asker for asker in askers if isinstance(asker, ConcurrentAsker)]
    return _Waiting(concurrent) if len(concurrent) == len(askers) else _Averaged(askers)


def mean_answer(answers: Sequence[Answer]) -> Answer:
    """For each document the mean of the scores that it got; None where it got none.

    >>> mean_answer([(1.0, None), (0.5, 0.25), (None, None)])
    (0.75, 0.25)
    """
    said = ([score for score in scores if score is not None] for scores in zip(*answers, strict=True))
    return tuple(sum(scores) / len(scores) if scores else None for scores in said)


class _Averaged:
    def __init__(self, askers: Sequence[Asker]) -> None:
        self._askers = askers
        self.kind = askers[0].kind
        self.most_documents = askers[0].most_documents

    def ask(self, questions: Sequence[Asked], runtime: Runtime) -> list[Answer]:
        rounds = [asker.ask(questions, runtime) for asker in self._askers]
        return [mean_answer(answers) for answers in zip(*rounds, strict=True)]

    def passages(self, texts: Sequence[str], passages: Passages) -> Iterable[tuple[Span, ...]]:
        return self._askers[0].passages(texts, passages)


class _Waiting(_Averaged):
    """The same for askers that wait for others: all samples are under way together."""

    def __init__(self, askers: Sequence[ConcurrentAsker]) -> None:
        super().__init__(askers)
        self._waiting = askers
        self.in_flight = askers[0].in_flight
        self.at_once = askers[0].at_once

    async def ask_async(self, questions: Sequence[Asked], runtime: Runtime) -> list[Answer]:
        rounds = await asyncio.gather(*(asker.ask_async(questions, runtime) for asker in self._waiting))
        return [mean_answer(answers) for answers in zip(*rounds, strict=True)]
