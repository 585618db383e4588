"""Reading answers: what an engine gave back, as scores of the documents shown or as a text."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from rerank.prompts.parsers import PARSERS, Shown

if TYPE_CHECKING:
    from rerank.prompts.parsers import Raw
    from rerank.prompts.prompt import Prompt
    from rerank.rules.rule import Answer

Count = Callable[[str, int], None]


def opening(ending: str) -> str:
    """The tag that begins the reasoning, where a prompt ends with it: the answer goes on from there.

    >>> opening("Passage: a wing\\n<think>")
    '<think>'
    """
    found = re.search(r"<think>\s*$", ending)
    return found.group() if found else ""


def read_answer(prompt: Prompt, raw: Raw, n: int, count: Count | None = None, begun: str = "") -> Answer:
    """One score a document, higher is better, from what the engine answered; all None where nothing can be read.

    Args:
        prompt: says how answers are read.
        raw: the labels' logits for `choices`, a mean log-probability for `likelihood`, the text for `generate`.
        n: how many documents were shown.
        count: is told of `repaired answers`: read in spite of a flaw.
        begun: what the prompt itself began the answer with, of `opening`.

    Raises:
        PipelineError: an answer of another verb.

    >>> from rerank.prompts import load_prompt
    >>> read_answer(load_prompt("order"), "[2] > [1]", 2)
    (1.0, 2.0)
    """
    labels = prompt.shown_labels(n)
    shown = Shown(n, labels, prompt.values or tuple(map(float, range(len(labels)))))
    parsed = PARSERS[prompt.parser].read(begun + raw if isinstance(raw, str) else raw, shown)
    if count is not None and parsed.problems and any(score is not None for score in parsed.answer):
        count("repaired answers", 1)
    return parsed.answer


def read_text(prompt: Prompt, raw: str, count: Count | None = None, begun: str = "") -> str:
    """What was written about the query, without its reasoning; empty where nothing is left.

    Args:
        prompt: says how answers are read.
        raw: what the engine wrote.
        count: is told of `failed answers`: those that nothing is left of.
        begun: what the prompt itself began the answer with, of `opening`.
    """
    text = PARSERS[prompt.parser].read(begun + raw, Shown(0)).text
    if count is not None and not text:
        count("failed answers", 1)
    return text
