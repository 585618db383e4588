"""What a completion says of the documents it was shown, and what it was: right, wrong, unparsable or cut off.

Read by the parsers that inference and serving use.  Training asks for more than they do: inference repairs what it can,
a reward takes an answer with any problem, or in another form than the prompt asks for, as no answer.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, NamedTuple

from rerank.errors import DataError
from rerank.prompts.parsers import PARSERS, Shown, after_thinking, has_group_form, is_label_grades, think_answer

if TYPE_CHECKING:
    from rerank.prompts.prompt import Prompt
    from rerank.rules.rule import Answer

Form = Literal["think-answer", "answer", "reason-answer", "answer-only", "object", "label-grades", "any"]
"""What stands around an answer: finished reasoning and answer tags, or answer tags, with anything else beside them; a
reason and an answer block, one answer block, one JSON object, or grades right behind labels, and nothing else but the
model's own reasoning before it; whatever the parser reads."""


def _is_one_object(text: str) -> bool:
    body = text.strip()
    if body.startswith("```") and body.endswith("```"):
        body = body[3:-3].lstrip(string.ascii_letters).strip()
    return body.startswith("{") and body.endswith("}") and body.count("{") == body.count("}") == 1


_TAGGED: dict[Form, bool] = {"think-answer": True, "answer": False}
"""The forms that name a document in answer tags, and whether reasoning stands before these."""
_KEEPS: dict[Form, Callable[[str], bool]] = {
    "reason-answer": lambda text: has_group_form(after_thinking(text)),
    # An empty reason before it: the same test for the answer block alone.
    "answer-only": lambda text: has_group_form("<reason></reason>" + after_thinking(text)),
    "object": lambda text: _is_one_object(after_thinking(text)),
    "label-grades": lambda text: is_label_grades(after_thinking(text)),
    "any": lambda text: True,
}


class Verdict(StrEnum):
    """What an answer was."""

    RIGHT = "right"
    """Every document that it puts first is one of the best."""
    WRONG = "wrong"
    UNPARSABLE = "unparsable"
    """It ended by itself and is no answer in the form asked for."""
    CUT_OFF = "cut off"
    """It ran into the limit of tokens before there was an answer."""


class Reply(NamedTuple):
    """What a completion says."""

    scores: Answer
    """One score a document, in the order shown, higher is better; None: nothing was said of it."""
    formed: bool = True
    """Whether it has the form that the prompt asks for."""
    problems: tuple[str, ...] = ()
    """What the parser repaired or left out."""
    finished: bool = True
    """Whether it ended by itself, not at the limit of tokens."""

    @property
    def valid(self) -> bool:
        """Whether it is an answer: in the form asked for, every document scored, nothing repaired.

        >>> Reply((1.0, 0.0)).valid, Reply((1.0, None)).valid
        (True, False)
        """
        return self.formed and not self.problems and None not in self.scores

    def verdict(self, labels: Sequence[float]) -> Verdict:
        """What it was, for documents with these labels.

        >>> Reply((0.7, 0.2)).verdict((1.0, 0.0)), Reply((0.7, 0.7)).verdict((1.0, 0.0))
        (<Verdict.RIGHT: 'right'>, <Verdict.WRONG: 'wrong'>)

        Raises:
            DataError: there are not as many labels as documents.
        """
        check_labels(self, labels)
        if not self.valid:
            return Verdict.UNPARSABLE if self.finished else Verdict.CUT_OFF
        scores = [score for score in self.scores if score is not None]
        first = [label for score, label in zip(scores, labels, strict=True) if score == max(scores)]
        return Verdict.RIGHT if min(first, default=0.0) == max(labels, default=0.0) else Verdict.WRONG


def check_labels(reply: Reply, labels: Sequence[float]) -> None:
    """Returns when there is one label for each document shown.

    Raises:
        DataError: there is not.
    """
    if len(labels) != len(reply.scores):
        raise DataError(f"{len(labels)} labels for {len(reply.scores)} documents; give one a document, in order shown")


def form_of(prompt: Prompt) -> Form:
    """The form that a prompt asks for: by its parser, and for grades by the tags that its messages name.

    >>> from rerank.prompts import load_prompt
    >>> form_of(load_prompt("rank-r1")), form_of(load_prompt("grouprank")), form_of(load_prompt("group-scores"))
    ('think-answer', 'reason-answer', 'object')
    """
    if prompt.parser == "think-answer-pick":
        return "think-answer"
    if prompt.parser == "answer-pick":
        return "answer"
    if prompt.parser == "label-grades":
        return "label-grades"
    if prompt.parser != "group-scores":
        return "any"
    said = "".join(text for _, text in prompt.texts())
    if "<answer>" not in said:
        return "object"
    return "reason-answer" if "<reason>" in said else "answer-only"


def read_reply(prompt: Prompt, text: str, n: int, *, finished: bool = True, begun: str = "") -> Reply:
    """What a completion says of the `n` documents that it was shown.

    Args:
        prompt: which asked for it.
        text: as generated.
        n: how many documents were shown.
        finished: whether it ended by itself, not at the limit of tokens.
        begun: what the prompt itself began the answer with, of `rerank.prompts.reading.opening`.

    >>> from rerank.prompts import load_prompt
    >>> read_reply(load_prompt("rank-r1"), "<think>B</think><answer>[2]</answer>", 3)
    Reply(scores=(0.0, 1.0, 0.0), formed=True, problems=(), finished=True)
    """
    text = begun + text
    labels = prompt.shown_labels(n)
    shown = Shown(n, labels, prompt.values or tuple(map(float, range(len(labels)))))
    form = form_of(prompt)
    if form in _TAGGED:
        # Inference reads a pick in lower case, a reward as it is written (Rank-R1).
        said = think_answer(text, fold_case=False, reasoning=_TAGGED[form])
        names = [f"[{label}]" for label in labels]
        parsed = shown.picked(names.index(said) if said in names else None)
        return Reply(parsed.answer, said is not None, parsed.problems, finished)
    parsed = PARSERS[prompt.parser].read(text, shown)
    return Reply(parsed.answer, _KEEPS[form](text), parsed.problems, finished)
