"""Parsers: what a model answered, as one score a document; a named one for each form that answers take.

A parser is given the logits of the labels, a mean log-probability, or a text, and says `None` of every document that
the answer says nothing usable of.  It never raises over what a model wrote.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from rerank.errors import PipelineError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from rerank.rules.rule import Answer

    ChoiceLogits = Sequence[float] | npt.NDArray[np.float32]

    Raw = str | float | ChoiceLogits
    """An engine's answer: generated text, the mean log-probability of a continuation, or the labels' logits."""

Verb = Literal["choices", "generate", "likelihood"]


class Parsed(NamedTuple):
    """What an answer says."""

    answer: Answer
    """One score a document, higher is better; None: nothing was said of it."""
    problems: tuple[str, ...] = ()
    """What was wrong with the answer and was repaired or left out."""
    text: str = ""
    """What was written, where that is the answer and no document is scored."""


class Shown(NamedTuple):
    """What the model was shown, as far as reading its answer needs it."""

    n: int
    """How many documents."""
    labels: tuple[str, ...] = ()
    """The documents' labels in the order shown, or the answers to choose from."""
    values: tuple[float, ...] = ()
    """What each answer is worth, where answers are grades."""

    def failed(self, problem: str) -> Parsed:
        """The answer that says nothing."""
        return Parsed((None,) * self.n, (problem,))

    def picked(self, place: int | None) -> Parsed:
        """The answer that picks one document, or fails for None."""
        if place is None:
            return self.failed("no pick")
        return Parsed(tuple(1.0 if i == place else 0.0 for i in range(self.n)))


@dataclass(frozen=True)
class Parser:
    """A way to read answers."""

    read: Callable[[Any, Shown], Parsed]
    verbs: frozenset[Verb]
    """What may be asked of a model for answers of this form."""
    many: bool
    """Whether an answer is about all documents of a group, else about one document."""
    labels: Literal["none", "one", "two", "several", "documents", "numbers"]
    """What the prompt's labels must be: so many answers, or names of the documents."""
    documents: bool = True
    """Whether documents are shown and scored; else a text is written about the query alone."""


# -- logits of labels ---------------------------------------------------------


def _logits(raw: Any, n: int) -> list[float] | None:
    """The labels' logits; None where the model gave no usable numbers."""
    if isinstance(raw, float | int):
        raise PipelineError(f"a number was answered where the logits of {n} labels were asked for; ask with `choices`")
    logits = [float(value) for value in raw]
    if len(logits) != n:
        raise PipelineError(f"{len(logits)} logits were answered for {n} labels; the engine must give one a label")
    if any(math.isnan(value) or value == math.inf for value in logits) or max(logits) == -math.inf:
        return None
    return logits


def log_softmax(logits: Sequence[float]) -> list[float]:
    """Log-probabilities over all labels, the same for logits that differ by a constant.

    >>> [round(math.exp(value), 3) for value in log_softmax([5.0, 5.0 + math.log(3)])]
    [0.25, 0.75]
    """
    top = max(logits)
    total = top + math.log(math.fsum(math.exp(value - top) for value in logits))
    return [value - total for value in logits]


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)) without overflow.

    >>> sigmoid(0.0), sigmoid(-1000.0)
    (0.5, 0.0)
    """
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def read_binary(raw: Raw, shown: Shown) -> Parsed:
    """The probability of the first of two labels against the second: the sigmoid of the difference of their logits.

    A text counts as 1 or 0 when its first word, after any reasoning, is one of the labels.

    >>> read_binary([math.log(3), 0.0], Shown(1, ("yes", "no"))).answer
    (0.75,)
    """
    if isinstance(raw, str):
        said = _first_word(raw, shown.labels)
        return shown.failed("no label") if said is None else Parsed((1.0 - said,))
    logits = _logits(raw, 2)
    return shown.failed("not finite") if logits is None else Parsed((sigmoid(logits[0] - logits[1]),))


def read_expectation(raw: Raw, shown: Shown) -> Parsed:
    """The expected grade: every grade's value weighted by its probability.

    A text counts as the grade that its first word, after any reasoning, names.

    >>> read_expectation([0.0, 0.0, 0.0], Shown(1, ("0", "1", "2"), (0.0, 1.0, 2.0))).answer
    (1.0,)
    """
    if isinstance(raw, str):
        said = _first_word(raw, shown.labels)
        return shown.failed("no label") if said is None else Parsed((shown.values[said],))
    logits = _logits(raw, len(shown.labels))
    if logits is None:
        return shown.failed("not finite")
    terms = zip(log_softmax(logits), shown.values, strict=True)
    return Parsed((math.fsum(math.exp(log) * value for log, value in terms),))


def read_logit(raw: Raw, shown: Shown) -> Parsed:
    """The logit of the only label, as it is: engines must not shift it from request to request.

    >>> read_logit([-2.5], Shown(1, ("Yes",))).answer
    (-2.5,)
    """
    if isinstance(raw, str):
        return shown.picked(_first_word(raw, shown.labels))
    logits = _logits(raw, 1)
    return shown.failed("not finite") if logits is None else Parsed((logits[0],))


def read_likelihood(raw: Raw, shown: Shown) -> Parsed:
    """The mean log-probability of the query's tokens after the document.

    >>> read_likelihood(-3.5, Shown(1)).answer
    (-3.5,)
    """
    if isinstance(raw, str):
        raise PipelineError("a text was answered where a likelihood was asked for")
    value = float(raw)  # type: ignore[arg-type]  # numpy's scalars are floats in all but type
    return Parsed((value,)) if math.isfinite(value) else shown.failed("not finite")


def read_distribution(raw: Raw, shown: Shown) -> Parsed:
    """The log-probabilities of the documents' labels: one forward pass orders the whole group.

    A text counts as a pick when it is one label and nothing else, bare or in brackets.

    >>> [round(score, 2) for score in read_distribution([0.0, 1.0], Shown(2, ("A", "B"))).answer]
    [-1.31, -0.31]
    """
    if isinstance(raw, str):
        return shown.picked(_only_label(raw, shown.labels))
    logits = _logits(raw, shown.n)
    return shown.failed("not finite") if logits is None else Parsed(tuple(log_softmax(logits)))


# -- generated text -----------------------------------------------------------


def _text(raw: Any) -> str:
    if not isinstance(raw, str):
        raise PipelineError(f"a text was expected of `generate`; got {type(raw).__name__}")
    return raw


def after_thinking(text: str) -> str:
    """What follows the reasoning: all of a text that has none, nothing where it was not finished.

    >>> after_thinking("<think>B?</think> A"), after_thinking("A"), after_thinking("<think>B")
    (' A', 'A', '')
    """
    _, close, rest = text.rpartition("</think>")
    if close:
        return rest
    return "" if "<think>" in text else text


def _tagged(text: str, tag: str) -> str | None:
    """What stands between the first pair of such tags; to the end of a text that was cut before the closing one."""
    _, opening, rest = text.partition(f"<{tag}>")
    return rest.partition(f"</{tag}>")[0] if opening else None


def _final(text: str) -> str:
    """The answer proper: what follows the reasoning, without answer tags."""
    rest = after_thinking(text)
    tagged = _tagged(rest, "answer")
    return rest if tagged is None else tagged


def _first_word(text: str, labels: Sequence[str]) -> int | None:
    word = re.search(r"\w+", _final(text))
    known = [label.strip().casefold() for label in labels]
    said = word.group().casefold() if word else ""
    return known.index(said) if known.count(said) == 1 else None


def _only_label(text: str, labels: Sequence[str]) -> int | None:
    said = _final(text).strip().strip("[]().:\"'*`").strip().casefold()
    known = [label.strip().casefold() for label in labels]
    return known.index(said) if known.count(said) == 1 else None


def think_answer(text: str, *, fold_case: bool = True, reasoning: bool = True) -> str | None:
    """What stands in answer tags right after a finished reasoning block, stripped; None where the form is not kept.

    The first answer that keeps the form counts; whatever stands around it is ignored.

    Args:
        text: a completion.
        fold_case: read it in lower case, as inference does; a reward compares the text as it is.
        reasoning: ask for the reasoning block; else the answer tags alone are enough.

    Source: Rank-R1 (arXiv 2503.06034) and its package's pattern.

    >>> think_answer("<think>The 2nd fits.</think> <answer> [2] </answer>")
    '[2]'
    """
    text = text.lower() if fold_case else text
    # One forward search for each part: the equivalent single pattern takes quadratic time on tags that never close.
    text = text[: text.rfind("</answer>") + len("</answer>")] if "</answer>" in text else ""
    opened = text.find("<think>") if reasoning else 0
    if opened < 0:
        return None
    pattern = r"</think>\s*<answer>(.*?)</answer>" if reasoning else r"<answer>(.*?)</answer>"
    found = re.compile(pattern, re.DOTALL).search(text, opened)
    return found.group(1).strip() if found else None


def _read_tagged_pick(raw: Raw, shown: Shown, *, reasoning: bool) -> Parsed:
    said = think_answer(_text(raw), reasoning=reasoning)
    labels = [f"[{label.lower()}]" for label in shown.labels]
    return shown.picked(labels.index(said) if said in labels else None)


def read_think_answer_pick(raw: Raw, shown: Shown) -> Parsed:
    """The document whose label in brackets, and nothing else, stands in the answer tags after the reasoning.

    Source: Rank-R1 (arXiv 2503.06034); `7`, `[07]`, `[7] and [3]` and `doc [7]` are no pick.

    >>> read_think_answer_pick("<think>...</think><answer>[2]</answer>", Shown(3, ("1", "2", "3"))).answer
    (0.0, 1.0, 0.0)
    """
    return _read_tagged_pick(raw, shown, reasoning=True)


def read_answer_pick(raw: Raw, shown: Shown) -> Parsed:
    """The document whose label in brackets, and nothing else, stands in the answer tags.

    >>> read_answer_pick("<answer>[2]</answer>", Shown(3, ("1", "2", "3"))).answer
    (0.0, 1.0, 0.0)
    """
    return _read_tagged_pick(raw, shown, reasoning=False)


def read_permutation(raw: Raw, shown: Shown) -> Parsed:
    """The order that a text like `[2] > [1] > [3]` gives: n for its first document, down to 1 for its last.

    Whatever was written becomes a permutation: labels that were not shown and repetitions are dropped, documents that
    are not named follow in the order shown.  Labels in brackets count, or bare ones where no label stands in brackets.
    A text without any label fails.

    Source: RankGPT (arXiv 2304.09542), which reads every digit of the text, so that "the 20 passages: [4] > [2]"
    starts with passage 20 there.

    >>> read_permutation("[2] > [2] > [9] > [1]", Shown(3, ("1", "2", "3"))).answer
    (2.0, 3.0, 1.0)
    """
    text = unicodedata.normalize("NFKC", _final(_text(raw)))  # full-width and circled digits are digits
    places = {label: place for place, label in enumerate(shown.labels)}
    if all(label.isdigit() for label in places):
        bracketed = [label.lstrip("0") for label in re.findall(r"\[\s*([0-9]+)\s*\]", text)]
        bare = [label.lstrip("0") for label in re.findall(r"[0-9]+", text)]
    else:
        bracketed = re.findall(r"\[\s*(\w+)\s*\]", text)
        bare = re.findall(r"\b(?:" + "|".join(map(re.escape, places)) + r")\b", text)
    named = bracketed if any(label in places for label in bracketed) else bare
    order = list(dict.fromkeys(places[label] for label in named if label in places))
    if not order:
        return shown.failed("no label")
    rest = [place for place in range(shown.n) if place not in set(order)]
    problems = []
    if len(named) > len(order):
        problems.append("labels repeated or not shown")
    if rest:
        problems.append("labels missing")
    score = {place: float(shown.n - rank) for rank, place in enumerate([*order, *rest])}
    return Parsed(tuple(score[place] for place in range(shown.n)), tuple(problems))


# -- scores of a group --------------------------------------------------------

TOP_GRADE = 10
_FENCED = re.compile(r"```[a-zA-Z]*\s*\n?(.*?)```", re.DOTALL)
_KEY = re.compile(r"[\[\]\s.]*([0-9]{1,6})[\[\]\s.]*")


def has_group_form(text: str) -> bool:
    """Whether a text is one reason block followed by one answer block, with nothing but white space around them.

    >>> has_group_form("<reason>a</reason> <answer>{}</answer>"), has_group_form("Well: <answer>{}</answer>")
    (True, False)
    """
    tags = ("<reason>", "</reason>", "<answer>", "</answer>")
    if any(text.count(tag) != 1 for tag in tags):
        return False
    pattern = r"\s*<reason>.*</reason>\s*<answer>.*</answer>\s*"
    return re.fullmatch(pattern, text, re.DOTALL) is not None


def group_grades(text: str, n: int) -> tuple[list[int | None], list[str]]:
    """The grades from 0 to 10 that a JSON object `{"[1]": 7, ...}` in a text gives, and what is wrong with it.

    Read is what the answer tags hold, else the text after the reasoning; of that the last fenced block, else the last
    object.  A closing brace that is missing is added, and brackets around a key are stripped, however many: problems
    that cost nothing.  A key that was not shown (0 too), a grade that is no integer or outside 0..10, two grades of one
    document and a document without one are problems too; the other grades stand.  A reward takes an answer with any
    problem as invalid.

    Source: GroupRank (arXiv 2511.11653) and its inference script, where key 0 goes to the last document and one
    problem makes every document 0.

    >>> group_grades('<answer>{"[1]": 7, "[2]": 11}</answer>', 2)
    ([7, None], ['grade 11 of [2] is no integer from 0 to 10'])
    """
    grades: list[int | None] = [None] * n
    pairs, problems = _last_object(text)
    if pairs is None:
        return grades, problems
    seen = set()
    for key, grade in pairs:
        found = _KEY.fullmatch(key)
        number = int(found.group(1)) if found else 0
        if key != f"[{number}]" and number:
            problems.append(f"key {key[:20]!r} is not '[{number}]'")
        if not 1 <= number <= n:
            problems.append(f"key {key[:20]!r} was not shown")
        elif number in seen:
            problems.append(f"two grades of [{number}]")
            grades[number - 1] = None
        else:
            seen.add(number)
            # True is an integer in Python, not in the answer.
            if isinstance(grade, int) and not isinstance(grade, bool) and 0 <= grade <= TOP_GRADE:
                grades[number - 1] = grade
            else:
                problems.append(f"grade {str(grade)[:20]} of [{number}] is no integer from 0 to {TOP_GRADE}")
    problems.extend(f"no grade of [{number}]" for number in range(1, n + 1) if number not in seen)
    return grades, problems


def _last_object(text: str) -> tuple[list[tuple[str, Any]] | None, list[str]]:
    """The keys and values of the last object of the answer, and what was wrong with its form."""
    rest = after_thinking(text).rpartition("</reason>")[2]
    tagged = _tagged(rest, "answer")
    rest = rest if tagged is None else tagged
    fenced = _FENCED.findall(rest)
    rest = fenced[-1] if fenced else rest
    opened = rest.rfind("{")
    if opened < 0:
        return None, ["no JSON object"]
    closed = rest.find("}", opened)
    body = rest[opened : closed + 1] if closed >= 0 else rest[opened:].rstrip("`\n\r\t ") + "}"
    try:
        # Pairs, because a dictionary would hide a key that comes twice.
        pairs = json.loads(body, object_pairs_hook=list, parse_int=_small_int)
    except (ValueError, RecursionError):
        return None, ["the JSON object cannot be read"]
    return pairs, [] if closed >= 0 else ["closing brace missing"]


def _small_int(digits: str) -> int | float:
    return int(digits) if len(digits) < 10 else math.inf


def read_group_scores(raw: Raw, shown: Shown) -> Parsed:
    """Every document's grade from `group_grades`, over 10; None for a document without a usable one.

    >>> read_group_scores('{"[1]": 7, "[2]": 0}', Shown(2, ("1", "2"))).answer
    (0.7, 0.0)
    """
    grades, problems = group_grades(_text(raw), shown.n)
    return Parsed(tuple(None if grade is None else grade / TOP_GRADE for grade in grades), tuple(problems))


_LABEL_GRADE = re.compile(r"([^\W\d_]+)\s*[:=]?\s*([0-9]+)")
"""Labels are words: numbers could not be told from grades."""
TOP_DIGIT = 9


def is_label_grades(text: str) -> bool:
    """Whether a text is labels with a digit right behind each, one blank between them, and nothing else.

    >>> is_label_grades("A7 B0 C3"), is_label_grades("A: 7, B: 0")
    (True, False)
    """
    return re.fullmatch(r"[^\W\d_]+[0-9](?: [^\W\d_]+[0-9])*", text.strip()) is not None


def read_label_grades(raw: Raw, shown: Shown) -> Parsed:
    """Every document's grade from 0 to 9 in a text like `A7 B0 C3`, over 9; None for a document without a usable one.

    A blank, a colon or an equals sign may stand before a grade, and anything between pairs.  A label that was not
    shown, one that comes twice, a grade above 9 and a document without a grade are problems; other grades stand.

    >>> read_label_grades("B9 A0", Shown(2, ("A", "B"))).answer, read_label_grades("A10", Shown(1, ("A",))).answer
    ((0.0, 1.0), (None,))
    """
    places = {label: place for place, label in enumerate(shown.labels)}
    grades: list[float | None] = [None] * shown.n
    problems = []
    seen: set[int] = set()
    for label, digits in _LABEL_GRADE.findall(_final(_text(raw))):
        place = places.get(label)
        if place is None:
            problems.append(f"label {label[:20]!r} was not shown")
        elif place in seen:
            problems.append(f"two grades of {label}")
            grades[place] = None
        else:
            seen.add(place)
            if len(digits) == 1:
                grades[place] = int(digits) / TOP_DIGIT
            else:
                problems.append(f"grade {digits[:20]} of {label} is no digit")
    problems.extend(f"no grade of {label}" for label, place in places.items() if place not in seen)
    return Parsed(tuple(grades), tuple(problems))


def read_written(raw: Raw, shown: Shown) -> Parsed:
    """The text that was written: what follows any reasoning, without answer tags and white space around it.

    >>> read_written("<think>What is lift?</think> Lift is a force. ", Shown(0)).text
    'Lift is a force.'
    """
    text = _final(_text(raw)).strip()
    return Parsed((), () if text else ("no text",), text)


def _verbs(*verbs: Verb) -> frozenset[Verb]:
    return frozenset(verbs)


PARSERS: dict[str, Parser] = {
    "binary": Parser(read_binary, _verbs("choices", "generate"), many=False, labels="two"),
    "expectation": Parser(read_expectation, _verbs("choices", "generate"), many=False, labels="several"),
    "logit": Parser(read_logit, _verbs("choices"), many=False, labels="one"),
    "likelihood": Parser(read_likelihood, _verbs("likelihood"), many=False, labels="none"),
    "distribution": Parser(read_distribution, _verbs("choices"), many=True, labels="documents"),
    "think-answer-pick": Parser(read_think_answer_pick, _verbs("generate"), many=True, labels="documents"),
    "answer-pick": Parser(read_answer_pick, _verbs("generate"), many=True, labels="documents"),
    "permutation": Parser(read_permutation, _verbs("generate"), many=True, labels="documents"),
    "group-scores": Parser(read_group_scores, _verbs("generate"), many=True, labels="numbers"),
    "label-grades": Parser(read_label_grades, _verbs("generate"), many=True, labels="documents"),
    "text": Parser(read_written, _verbs("generate"), many=False, labels="none", documents=False),
}
"""Every parser by the name that prompts use."""


def numbers(n: int) -> tuple[str, ...]:
    """The labels 1 to n.

    >>> numbers(3)
    ('1', '2', '3')
    """
    return tuple(map(str, range(1, n + 1)))


LETTERS: tuple[str, ...] = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


def distinct(labels: Iterable[str]) -> bool:
    """Whether no two labels are the same text, white space around them and their case aside.

    >>> distinct(["yes", " Yes"])
    False
    """
    folded = [label.strip().casefold() for label in labels]
    return len(set(folded)) == len(folded)
