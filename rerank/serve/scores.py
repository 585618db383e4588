"""From a stage's own scores to the contract's: from 0 to 1, in the same order, mapped once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from rerank.prompts.parsers import sigmoid
from rerank.prompts.prompt import Prompt, load_prompt
from rerank.ranking import ScoreKind
from rerank.reranking import Rerank
from rerank.rules.groupwise import Groupwise
from rerank.rules.pointwise import Pointwise
from rerank.stage import Stage

Scoring = Literal["pointwise", "groupwise", "listwise"]
Scale = Callable[[float, int], float]
"""From a raw score, in a list of so many documents, to one from 0 to 1."""


def squashed(raw: float, n: int) -> float:
    """For scores without bounds: rises everywhere, and keeps large ones apart where a sigmoid would not.

    >>> squashed(0.0, 1), squashed(1.0, 1), squashed(-3.0, 1)
    (0.5, 0.75, 0.125)
    """
    return 0.5 + 0.5 * raw / (1 + abs(raw))


def bounded(raw: float, n: int) -> float:
    """For scores that lie between 0 and 1 as they are."""
    return min(1.0, max(0.0, raw))


_SCALES: dict[ScoreKind, Scale] = {
    ScoreKind.LOGIT: lambda raw, n: sigmoid(raw),
    ScoreKind.PROBABILITY: bounded,
    ScoreKind.MINMAX: bounded,
    ScoreKind.COSINE: lambda raw, n: bounded((1 + raw) / 2, n),
    # The number of documents from here to the end of the list.
    ScoreKind.RANK: lambda raw, n: bounded(raw / n, n),
}
_PARSED: dict[str, Scale] = {
    "binary": bounded,
    "group-scores": bounded,
    "logit": _SCALES[ScoreKind.LOGIT],
    "likelihood": lambda raw, n: min(1.0, math.exp(raw)),
}
"""By how a prompt's answers are read."""


def scale_for(stage: Stage, kind: ScoreKind) -> Scale:
    """How the scores of `stage`, which are of that kind, are mapped."""
    last = _last(stage)
    if kind is not ScoreKind.UNKNOWN or not isinstance(last, Rerank) or last.prompt is None:
        return _SCALES.get(kind, squashed)
    if isinstance(last.rule, Groupwise) and last.rule.merge != "mean":
        return squashed
    prompt = load_prompt(last.prompt)
    if prompt.parser == "expectation":
        return _grades(prompt)
    return _PARSED.get(prompt.parser, squashed)


def _grades(prompt: Prompt) -> Scale:
    values = prompt.values or tuple(map(float, range(len(prompt.labels))))
    low, high = min(values), max(values)
    return lambda raw, n: bounded((raw - low) / (high - low), n) if high > low else squashed(raw, n)


def scoring_of(stage: Stage) -> Scoring:
    """Whether a document's score depends on the others of its list, as `/info` says."""
    rules = [part.rule for part in stage.walk() if isinstance(part, Rerank)]
    if all(isinstance(rule, Pointwise) for rule in rules):
        return "pointwise"
    return "groupwise" if isinstance(rules[-1], Groupwise) else "listwise"


def _last(stage: Stage) -> Stage:
    parts = stage.parts()
    return _last(parts[-1]) if parts else stage
