"""A prompt as texts, for servers that hold the tokenizer: turns of a conversation, or one plain text.

Nothing here knows the server's tokens, so what must be cut is cut by an estimate: a token is taken for `TOKEN_BYTES`
bytes of UTF-8, which is short for English (4 to 5) and long for nothing that is written in sentences; rows of digits
may have more tokens.  Texts are put into their places in one pass, so nothing inside a text is read as a slot.  What a
server's own template makes of special tokens inside a text is the server's matter; a prompt that is bound to the
tokenizer (`rerank.prompts.BoundPrompt`) has them split.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from rerank.errors import ConfigError
from rerank.prompts.layout import MARK, Template, check_count
from rerank.prompts.reading import Count, opening, read_answer, read_text
from rerank.prompts.room import allotted
from rerank.prompts.tokens import clean

if TYPE_CHECKING:
    from rerank.prompts.parsers import Raw
    from rerank.prompts.prompt import Prompt
    from rerank.rules.rule import Answer

TOKEN_BYTES = 3
"""Bytes of UTF-8 that are taken for a token."""
_CUT = ("query", "document")
_TURN_TOKENS = 8
"""What a chat template is taken to put around a turn."""


class Turn(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


class TextRequest(NamedTuple):
    """What a server is asked."""

    turns: tuple[Turn, ...]
    """The conversation, or one turn without a role: a plain text."""
    target: str
    """The query, for `likelihood`: what follows the text; else empty."""
    labels: tuple[str, ...]
    """The documents' labels, or the answers to choose from."""
    truncated_documents: int
    """How many documents were cut."""
    truncated_query: bool


@dataclass(frozen=True)
class _Shape:
    """The turns of a prompt about `n` documents, split at the places for texts."""

    roles: tuple[str, ...]
    literals: tuple[tuple[str, ...], ...]
    """Of each turn, one more than it has places."""
    places: tuple[tuple[tuple[str, int], ...], ...]
    """Of each turn: what stands there, and of which document."""

    @property
    def fixed_bytes(self) -> int:
        """What the template takes by itself."""
        literal = sum(_size(part) for turn in self.literals for part in turn)
        return literal + sum(_TURN_TOKENS * TOKEN_BYTES for role in self.roles if role)


class TextPrompt:
    """A prompt for the models of a server.

    >>> from rerank.prompts import load_prompt
    >>> request = TextPrompt(load_prompt("monot5")).request("lift", ["A wing makes lift."], 100)
    >>> request.turns
    (Turn(role='', content='Query: lift Document: A wing makes lift. Relevant:'),)
    """

    def __init__(self, prompt: Prompt) -> None:
        self.prompt = prompt
        self._shapes: dict[int, _Shape] = {}
        self.begins_answer = bool(prompt.messages) and prompt.messages[-1].role == "assistant"
        """Whether the conversation ends with the beginning of the answer, which the model is to continue."""
        self.begun = opening(prompt.template or (prompt.messages[-1].content if self.begins_answer else ""))
        """What the prompt itself begins the answer with: a tag of reasoning, or nothing."""

    def request(
        self, query: str, documents: Sequence[str], max_tokens: int, *, instruction: str | None = None
    ) -> TextRequest:
        """The request that shows `documents` for `query` in about `max_tokens` tokens at most.

        Raises:
            ConfigError: the template alone has more, or shows no such number of documents.
        """
        n = len(documents)
        shape = self._shape(n)
        line_breaks = self.prompt.document.line_breaks == "keep"
        labels = self.prompt.shown_labels(n)
        said = {
            "query": clean(query),
            "count": str(n),
            "labels": ", ".join(labels),
            "instruction": clean(self.prompt.instruction if instruction is None else instruction),
        }
        cleaned = [clean(document, line_breaks=line_breaks) for document in documents]
        places = [place for turn in shape.places for place in turn]
        texts = [cleaned[number] if kind == "document" else said[kind] for kind, number in places]
        kinds = [kind for kind, _ in places]
        sizes = [_size(text) for text in texts]
        fixed = shape.fixed_bytes + sum(s for s, kind in zip(sizes, kinds, strict=True) if kind not in _CUT)
        if self.prompt.verb == "choices":
            fixed += max(map(_size, labels), default=0)
        room = max_tokens * TOKEN_BYTES - fixed
        found = allotted(kinds, sizes, [0] * len(sizes), self.prompt.truncation, room, TOKEN_BYTES)
        if isinstance(found, int):
            raise ConfigError(
                f"prompt {self.prompt.name!r} needs about {math.ceil(fixed / TOKEN_BYTES):,} tokens for its template "
                f"and labels with {n} documents, before any text; max_tokens is {max_tokens:,}: raise it or show fewer"
            )
        rooms, _ = found
        shown = iter([_cut(text, room) for text, room in zip(texts, rooms, strict=True)])
        turns, target = [], ""
        for role, literals, slots in zip(shape.roles, shape.literals, shape.places, strict=True):
            parts = [literals[0]]
            for (kind, _), after in zip(slots, literals[1:], strict=True):
                text = next(shown)
                if self.prompt.verb == "likelihood" and kind == "query":
                    target, text = text, ""
                parts += (text, after)
            turns.append(Turn(role, "".join(parts)))
        cut = [kind for kind, size, room in zip(kinds, sizes, rooms, strict=True) if room < size]
        return TextRequest(tuple(turns), target, labels, cut.count("document"), "query" in cut)

    def answer(self, raw: Raw, n: int, count: Count | None = None) -> Answer:
        """One score a document, as `read_answer` gives it."""
        return read_answer(self.prompt, raw, n, count, self.begun)

    def text(self, raw: str, count: Count | None = None) -> str:
        """What was written about the query, as `read_text` gives it."""
        return read_text(self.prompt, raw, count, self.begun)

    def _shape(self, n: int) -> _Shape:
        if n not in self._shapes:
            check_count(self.prompt, n)
            template = Template(self.prompt, n)
            if self.prompt.template:
                turns = [("", template.filled(self.prompt.template))]
            else:
                turns = [(message.role, text) for message, text in template.turns()]
            split = [MARK.split(text) for _, text in turns]  # literal, kind, place, literal, ...
            self._shapes[n] = _Shape(
                tuple(role for role, _ in turns),
                tuple(tuple(parts[::3]) for parts in split),
                tuple(
                    tuple((kind, int(place or 0)) for kind, place in zip(parts[1::3], parts[2::3], strict=True))
                    for parts in split
                ),
            )
        return self._shapes[n]


def _size(text: str) -> int:
    return len(text.encode())


def _cut(text: str, room: int) -> str:
    """As many whole characters as fit into `room` bytes."""
    data = text.encode()
    return text if len(data) <= room else data[:room].decode(errors="ignore").rstrip()
