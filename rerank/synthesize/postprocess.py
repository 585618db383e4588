"""From what was written to a query, or to the reason why it is none."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import NamedTuple

from rerank.errors import ConfigError
from rerank.rules.rule import at_least
from rerank.words import n_words, one_line, pieces

_NEXT_EXAMPLE = re.compile(r"\bExample\s+\d+\s*:", re.IGNORECASE)
_LABEL = r"(?:relevant\s+query|search\s+query|query|question|keywords?|search\s+words|claim|statement)"
_OWN_LABEL = re.compile(rf"^\W*{_LABEL}\s*\d*\s*[:：]\s*", re.IGNORECASE)
_NEXT_LABEL = re.compile(rf"\b(?:document|passage|answer|{_LABEL[3:-1]})\s*\d*\s*[:：]", re.IGNORECASE)
_ASIDE = re.compile(
    r"(?:\(\s*)?\b(?:explanation|reasoning|rationale|note|notes|comment|hint|context|response|translation|source|"
    r"example)\s*[:：]",
    re.IGNORECASE,
)
"""What a chat model adds behind a query."""
_CHAT = re.compile(
    r"^\W*(?:sure\b|certainly\b|of course\b|okay\b|ok\b|here(?:'s| is| are)\b|i'm\b|let me\b|please\b|thank|as an ai\b|"
    r"i (?:hope|think|would|can(?:not|'t)?|am)\b|based on the (?:document|text|passage)\b|"
    r"the (?:relevant )?(?:query|question) (?:is|could|would|for)\b)",
    re.IGNORECASE,
)
"""How a line begins that speaks to the user."""
_MARK = re.compile("[?？؟]")
_OPEN_ENDS = frozenset({"the", "of", "and", "with", "from", "which", "an", "into", "whose"})
"""English words that no query ends with; those that other languages may end with are not among them."""
_BULLET = re.compile(r"^(?:[-*•–>#]+\s+|\(?\d{1,2}[.)]\s+)+")
_QUOTES = "\"'`“”„«»‘’*_ \t"


class Written(NamedTuple):
    """What was made of a text."""

    text: str
    reason: str | None = None
    """Why it is no query; None where it is one."""


@dataclass(frozen=True)
class PostProcessing:
    """What a query needs.

    Raises:
        ConfigError: limits that make no sense.
    """

    min_words: int = 2
    """Two characters count as a word in scripts without blanks."""
    max_words: int = 32
    max_repeated: float = 0.4
    """The share of its words that may be repetitions of earlier ones, in texts of 4 words or more; one word again
    and again is never a query."""
    ascii_only: bool = False
    """Drops queries with any other character, as the paper's code does: only for collections in plain English."""

    def __post_init__(self) -> None:
        at_least("postprocessing", 1, min_words=self.min_words)
        if self.max_words < self.min_words or not 0 <= self.max_repeated <= 1:
            raise ConfigError(
                f"postprocessing: max_words is {self.max_words} (min_words, {self.min_words}, or more) and "
                f"max_repeated {self.max_repeated} (0 to 1)"
            )

    def __call__(self, raw: str) -> Written:
        """The query in what was written.

        It ends where another example begins, at the end of its line, at the first question mark, which stays, and where
        an explanation begins; labels, quotes, bullets and lines that speak to the user are left out.

        >>> PostProcessing()("How is X?\\nExample 5: Document: ...")
        Written(text='How is X?', reason=None)
        >>> PostProcessing()("Sure, here is a query:").reason
        'no query, only talk'
        """
        text = unicodedata.normalize("NFC", raw)
        found = _NEXT_EXAMPLE.search(text)
        lines = (text[: found.start()] if found else text).splitlines()
        query, talked = "", False
        for line in lines:
            query = _query(line)
            if query:
                break
            talked = talked or bool(line.strip())
        return Written(query, self._problem(query, talked=talked))

    def _problem(self, query: str, *, talked: bool) -> str | None:
        if not query:
            return "no query, only talk" if talked else "empty"
        size = n_words(query)
        if size < self.min_words:
            return f"fewer than {self.min_words} words"
        if size > self.max_words:
            return f"more than {self.max_words} words"
        if self.ascii_only and not query.isascii():
            return "not ASCII"
        words = [word.casefold() for word, _ in pieces(query)]
        different = len(set(words))
        if different == 1 < size or (size >= 4 and 1 - different / size > self.max_repeated):
            return "repeats itself"
        return "breaks off" if words[-1] in _OPEN_ENDS and _MARK.search(query) is None else None


def _query(line: str) -> str:
    """What of a line is a query; nothing where it speaks to the user."""
    text = _BULLET.sub("", one_line(line))
    text = _OWN_LABEL.sub("", text)
    if _CHAT.match(text):
        # "Here is a query: how ..." has one behind its colon.
        _, colon, text = text.partition(":")
        text = _OWN_LABEL.sub("", text.strip()) if colon else ""
        if _CHAT.match(text):
            return ""
    for pattern in (_NEXT_LABEL, _ASIDE):
        found = pattern.search(text)
        text = text[: found.start()] if found else text
    mark = _MARK.search(text)
    text = text[: mark.end()] if mark else text
    text = text.strip(_QUOTES)
    return text if any(character.isalnum() for character in text) else ""
