"""The template of a prompt as token ids, with slots for the texts: once for each number of documents shown."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rerank.errors import ConfigError
from rerank.prompts.tokens import Reader, Seam, clean

if TYPE_CHECKING:
    from rerank.prompts.prompt import Message, Prompt

# Between these two characters stands the name of a slot while the chat template is filled in; templates have neither.
_OPEN, _CLOSE = "\x02", "\x03"
MARK = re.compile(f"{_OPEN}([a-z]+)([0-9]*){_CLOSE}")


@dataclass(frozen=True)
class Slot:
    """A place for a text in the prompt."""

    kind: Literal["query", "document", "count", "labels", "instruction"]
    place: int
    """Which document."""
    seam: Seam
    empty: array[int]
    """The ids of its punctuation alone: what is left when the text is cut to nothing."""
    right: array[int]
    """The ids of what follows the text."""


@dataclass(frozen=True)
class Layout:
    """The prompt for a certain number of documents."""

    parts: tuple[tuple[int, ...] | Slot, ...]
    n: int
    ending: str
    """The text after the last slot."""
    tail: str
    """What of it stands after its last special token: the text that the answer goes on from."""

    n_tokens: int
    """Of the template alone."""

    def slots(self, *kinds: str) -> list[Slot]:
        """The slots in their order: all, or those of these kinds."""
        return [part for part in self.parts if isinstance(part, Slot) and (not kinds or part.kind in kinds)]


def lay_out(prompt: Prompt, tokenizer: Any, reader: Reader, n: int) -> Layout:
    """The prompt about `n` documents.

    Raises:
        ConfigError: the tokenizer has no chat template, or one that the conversation does not go into.
    """
    template = Template(prompt, n)
    text = _rendered(template, tokenizer) if prompt.messages else template.filled(prompt.template)
    opening, ending = ((), ()) if prompt.messages else _frame(tokenizer, seq2seq=prompt.seq2seq)
    parts: list[tuple[int, ...] | Slot] = [opening] if opening else []
    split = MARK.split(text)  # literal, kind, place, literal, ...
    literals, kinds, places = split[::3], split[1::3], split[2::3]
    edges = [reader.plain_edges(literal) for literal in literals]
    rights = [
        "" if i == 0 else _right(literal[:first], between=i < len(kinds) and first == len(literal))
        for i, (literal, (first, _)) in enumerate(zip(literals, edges, strict=True))
    ]
    begin = ""
    for i, literal in enumerate(literals):
        first, last = edges[i]
        taken = len(rights[i])
        is_target = prompt.verb == "likelihood" and i == len(kinds) - 1
        left = "" if i == len(kinds) else _left(literal[max(last, taken) :], blank_only=is_target)
        beside = literal[: len(literal) - len(left)]
        if beside[taken:]:
            begin = begin if first > taken else ""
            follows = left + "x" if i < len(kinds) and last < len(beside) else ""
            parts.append(tuple(reader.template(beside[taken:], begin, follows)))
        if i < len(kinds):
            before = "" if last and last == len(beside) else _stand_in(beside, after_slot=i > 0)
            right = rights[i + 1]
            after = _follows(literals[i + 1], len(right), edges[i + 1][0], last=i + 1 == len(kinds))
            keep_breaks = kinds[i] != "document" or prompt.document.line_breaks == "keep"
            parts.append(_slot(reader, kinds[i], places[i], Seam(before, left, right, after, keep_breaks)))
            begin = rights[i + 1][-1:] or "x"
    if ending:
        parts.append(ending)
    tail = literals[-1][edges[-1][1] :]
    n_tokens = sum(len(part) for part in parts if not isinstance(part, Slot))
    return Layout(tuple(parts), n, literals[-1], tail if edges[-1][1] else tail or "x", n_tokens)


def _slot(reader: Reader, kind: str, place: str, seam: Seam) -> Slot:
    (empty,) = reader.pieces([(seam, "")])
    right = array("i", reader.template(seam.right, "x", seam.after)) if seam.right else array("i")
    return Slot(kind, int(place or 0), seam, empty.ids, right)  # type: ignore[arg-type]


# -- texts --------------------------------------------------------------------


@dataclass(frozen=True)
class Template:
    """The texts of a prompt about `n` documents, with marks for what is filled in."""

    prompt: Prompt
    n: int

    def filled(self, text: str, place: int = 0) -> str:
        """A text of the template; of a repeated turn, for the document at `place`."""
        slots, labels = self.prompt.slots, self.prompt.shown_labels(self.n)
        if slots.documents in text:
            shape = self.prompt.document
            shown = (
                shape.format.replace("{label}", labels[i]).replace("{text}", _mark("document", i))
                for i in range(self.n)
            )
            text = text.replace(slots.documents, shape.separator.join(shown))
        if self.prompt.shows_many:
            text = text.replace(slots.label, labels[place])
        text = text.replace(slots.document, _mark("document", place))
        for kind in ("query", "count", "labels", "instruction"):
            text = text.replace(getattr(slots, kind), _mark(kind))
        return text

    def turns(self) -> Iterator[tuple[Message, str]]:
        """The conversation."""
        repeated = [message for message in self.prompt.messages if message.each]
        for message in self.prompt.messages:
            if not message.each:
                yield message, self.filled(message.content)
            elif message is repeated[0]:
                for place in range(self.n):
                    for turn in repeated:
                        yield turn, self.filled(turn.content, place)


def plain_text(prompt: Prompt, query: str, documents: Sequence[str], *, instruction: str | None = None) -> str:
    """What a model is shown, without a chat template: turns under their roles, nothing cut.

    >>> from rerank.prompts import load_prompt
    >>> print(plain_text(load_prompt("monot5"), "lift", ["A wing makes lift."]))
    Query: lift Document: A wing makes lift. Relevant:

    Raises:
        ConfigError: the prompt shows no such number of documents.
    """
    check_count(prompt, len(documents))
    template = Template(prompt, len(documents))
    keep_breaks = prompt.document.line_breaks == "keep"
    texts = {
        "query": clean(query),
        "count": str(len(documents)),
        "labels": ", ".join(prompt.shown_labels(len(documents))),
        "instruction": clean(prompt.instruction if instruction is None else instruction),
    }

    def text(mark: re.Match[str]) -> str:
        if mark.group(1) == "document":
            return clean(documents[int(mark.group(2))], line_breaks=keep_breaks)
        return texts[mark.group(1)]

    if prompt.template:
        return MARK.sub(text, template.filled(prompt.template))
    return "\n\n".join(f"{message.role}:\n{MARK.sub(text, content)}" for message, content in template.turns())


def check_count(prompt: Prompt, n: int) -> None:
    """Returns when the prompt shows `n` documents at a time.

    Raises:
        ConfigError: it does not.
    """
    most = prompt.most_documents
    if n < (most != 0) or (most is not None and n > most):
        few = {0: "no document", 1: "1 document", None: "1 document or more"}
        wanted = few.get(most, f"1 to {most} documents")
        raise ConfigError(f"prompt {prompt.name!r} shows {wanted} at a time; {n} were given")


def _mark(kind: str, place: int | None = None) -> str:
    return f"{_OPEN}{kind}{'' if place is None else place}{_CLOSE}"


# -- around the texts ---------------------------------------------------------


def _rendered(template: Template, tokenizer: Any) -> str:
    """The conversation in the tokenizer's chat template, up to where the answer is to be given."""
    from jinja2 import TemplateError

    name = template.prompt.name
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            f"prompt {name!r} is a conversation, and this tokenizer has no chat template; take a prompt with a "
            "plain `template`, or a model that was tuned to follow instructions"
        )
    turns = [{"role": message.role, "content": text} for message, text in template.turns()]
    start = turns.pop()["content"] if turns[-1]["role"] == "assistant" else ""
    try:
        text = _chat(turns, tokenizer, thinking=template.prompt.thinking)
    except TemplateError:
        text = ""
    if turns[0]["role"] == "system" and turns[0]["content"].strip() not in text:
        # Some templates know no system turn.
        system = turns.pop(0)["content"]
        turns[0] = {"role": "user", "content": f"{system}\n\n{turns[0]['content']}"}
        text = ""
    try:
        text = text or _chat(turns, tokenizer, thinking=template.prompt.thinking)
    except TemplateError as error:
        raise ConfigError(f"prompt {name!r} does not go into this chat template: {error}") from error
    lost = [turn for turn in turns if turn["role"] != "assistant" and turn["content"].strip() not in text]
    if lost:
        raise ConfigError(f"prompt {name!r}: this chat template drops or changes the {lost[0]['role']}'s turn")
    return text + start


def _chat(turns: list[dict[str, str]], tokenizer: Any, *, thinking: bool) -> str:
    # Templates that know today's date would make tomorrow's prompt another one.
    text: str = tokenizer.apply_chat_template(
        turns,
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=thinking,
        date_string="26 Jul 2024",
    )
    return text


def _frame(tokenizer: Any, *, seq2seq: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The special tokens that the tokenizer puts before and after a text; those after it for encoders only."""
    inner = tuple(tokenizer("x", add_special_tokens=False)["input_ids"])
    whole = tuple(tokenizer("x", add_special_tokens=True)["input_ids"])
    start = next((i for i in range(len(whole)) if whole[i : i + len(inner)] == inner), None)
    if start is None:
        return (), ()
    return whole[:start], whole[start + len(inner) :] if seq2seq else ()


# -- seams --------------------------------------------------------------------


def _left(plain: str, *, blank_only: bool) -> str:
    """The punctuation and blanks at the end of a line, which tokenizers may join with what follows.

    Of a text that is scored itself, only a blank may be part.
    """
    if blank_only:
        return " " if plain.endswith(" ") else ""
    return plain[len(plain.rstrip(_punctuation(plain))) :].rpartition("\n")[2]


def _right(plain: str, *, between: bool) -> str:
    """The punctuation and white space at the start, which tokenizers may join with what precedes.

    A blank before a word belongs to the word; between two texts, what follows the last line break to the second one.
    """
    run = plain[: len(plain) - len(plain.lstrip(_punctuation(plain)))]
    if len(run) < len(plain):
        return run.removesuffix(" ")
    if not between:
        return run
    line, newline, _ = run.rpartition("\n")
    return line + newline if newline else run.removesuffix(" ")


def _punctuation(text: str) -> str:
    return "".join({character for character in text if not character.isalnum()}) or " "


def _follows(literal: str, taken: int, special: int, *, last: bool) -> str:
    """What stands for the word after a slot's punctuation, with the blank before it."""
    if taken == special and (last or special < len(literal)):
        return ""
    return " x" if literal[taken:].startswith(" ") else "x"


def _stand_in(beside: str, *, after_slot: bool) -> str:
    """A character for what stands before a slot: a line break, or a letter for anything else."""
    if not beside and not after_slot:
        return ""
    return "\n" if beside.endswith("\n") else "x"
