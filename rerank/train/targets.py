"""What a model is to answer: the text, or how right each label is, from the labels of the documents shown."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rerank.errors import ConfigError
from rerank.prompts.parsers import TOP_DIGIT, TOP_GRADE
from rerank.train.answers import form_of

if TYPE_CHECKING:
    from rerank.prompts.prompt import Prompt

ORDERS = ("distribution", "permutation", "think-answer-pick", "answer-pick")
"""Answers that tell documents apart, and nothing of documents that are alike."""
Target = str | tuple[float, ...]
"""A text to write, or a share of 1 for each label to choose from; () where the prompt's own continuation is learnt."""


def target_of(
    prompt: Prompt, labels: Sequence[float], relevant: float = 1.0, top: float | None = None
) -> Target | None:
    """What is to be answered about documents with these labels; None where nothing is to be learnt from them.

    A pick is the first of the documents with the highest label, odds are shared by all of them; an order is by falling
    label, equal ones as shown; grades are labels brought onto 0 to 10, or to 9.  Of likelihoods only those of relevant
    documents are learnt, picks and orders only where documents differ.  Reasoning, where a form wants it, is empty.

    Args:
        prompt: how the answer is written.
        labels: of the documents in the order shown.
        relevant: the label from which on a document is.
        top: the label that stands for the highest grade; default the highest of these.

    Raises:
        ConfigError: a prompt that shows no documents.

    >>> from rerank.prompts import load_prompt
    >>> target_of(load_prompt("order"), (0.0, 2.0, 1.0)), target_of(load_prompt("yes-no"), (2.0,))
    ('[2] > [3] > [1]', (1.0, 0.0))
    >>> target_of(load_prompt("rank-r1-sft"), (0.0, 2.0, 1.0)), target_of(load_prompt("group-scores"), (0.0, 2.0, 1.0))
    ('<answer>[2]</answer>', '{"[1]": 0, "[2]": 10, "[3]": 5}')
    """
    n = len(labels)
    shown = prompt.shown_labels(n)
    best = max(labels)
    parser = prompt.parser
    if parser in ("likelihood", "logit"):
        if parser == "logit":
            raise ConfigError(
                f"the prompt {prompt.name!r} has one label, beside which there is none to prefer; train it with the "
                "recipe contrastive"
            )
        return () if labels[0] >= relevant else None
    if parser in ("binary", "expectation"):
        place = _grade(prompt, shown, labels[0], relevant, top)
        if prompt.verb == "generate":
            return shown[place]
        return tuple(float(i == place) for i in range(len(shown)))
    if parser in ORDERS and len(set(labels)) == 1:
        return None
    if parser == "distribution":
        ties = sum(label == best for label in labels)
        return tuple(1 / ties if label == best else 0.0 for label in labels)
    if parser == "permutation":
        order = sorted(range(n), key=lambda i: -labels[i])
        return " > ".join(f"[{shown[i]}]" for i in order)
    if parser in ("think-answer-pick", "answer-pick"):
        picked = f"<answer>[{shown[list(labels).index(best)]}]</answer>"
        return f"<think>\n\n</think>{picked}" if parser == "think-answer-pick" else picked
    if parser == "group-scores":
        return _grades(prompt, shown, labels, best if top is None else top)
    if parser == "label-grades":
        grades = _scaled(labels, best if top is None else top, TOP_DIGIT)
        return " ".join(f"{name}{grade}" for name, grade in zip(shown, grades, strict=True))
    raise ConfigError(f"the prompt {prompt.name!r} shows no documents whose labels could be answers")


def _grade(prompt: Prompt, shown: Sequence[str], label: float, relevant: float, top: float | None) -> int:
    """Which of the answers to choose from a document's label stands for."""
    if prompt.parser == "binary":
        return 0 if label >= relevant else 1
    values = prompt.values or tuple(map(float, range(len(shown))))
    scaled = label if top is None else label / top * max(values)
    if top is None and label > max(values):
        raise ConfigError(
            f"sft: a label is {label:g}, but the prompt {prompt.name!r} has grades up to {max(values):g}; give top, "
            "the label that its highest grade stands for"
        )
    return min(range(len(values)), key=lambda i: abs(values[i] - scaled))


def _scaled(labels: Sequence[float], top: float, most: int) -> list[int]:
    """Labels as whole grades, `most` for the label `top` and all above it."""
    low = min(0.0, *labels)
    span = top - low
    return [min(most, math.floor((label - low) / span * most + 0.5)) if span > 0 else 0 for label in labels]


def _grades(prompt: Prompt, shown: Sequence[str], labels: Sequence[float], top: float) -> str:
    grades = _scaled(labels, top, TOP_GRADE)
    body = json.dumps({f"[{name}]": grade for name, grade in zip(shown, grades, strict=True)})
    form = form_of(prompt)
    if form == "reason-answer":
        return f"<reason>\n\n</reason>\n<answer>\n{body}\n</answer>"
    return f"<answer>\n{body}\n</answer>" if form == "answer-only" else body
