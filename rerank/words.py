"""How long a text is in words, and random numbers that belong to a text; in any script."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator

_WORD = re.compile(r"\w+")
_UNSPACED = ("THAI", "LAO", "KHMER", "MYANMAR")
"""Scripts without blanks between words whose characters are not wide."""


def is_unspaced(character: str) -> bool:
    """Whether a character's script puts no blanks between words.

    >>> is_unspaced("語"), is_unspaced("ю")
    (True, False)
    """
    if character.isascii():
        return False
    wide = unicodedata.east_asian_width(character) in "WF" and not unicodedata.name(character, "").startswith("HANGUL")
    return wide or unicodedata.name(character, "").startswith(_UNSPACED)


def pieces(text: str) -> Iterator[tuple[str, int]]:
    """The words of a text, each with where it starts; of scripts without blanks, every two characters.

    >>> list(pieces("a wing, 翼的升力"))
    [('a', 0), ('wing', 2), ('翼的', 8), ('升力', 10)]
    """
    for found in _WORD.finditer(text):
        word, start = found.group(), found.start()
        if not any(map(is_unspaced, word)):
            yield word, start
            continue
        for at in range(0, len(word), 2):
            yield word[at : at + 2], start + at


def n_words(text: str) -> int:
    """How many words a text has; two characters count as one where nothing sets words apart.

    >>> n_words("How is lift made?"), n_words("升力是怎么产生的")
    (4, 4)
    """
    return sum(1 for _ in pieces(text))


def share(seed: int, purpose: str, name: str) -> float:
    """A number between 0 and 1, evenly spread over names, that seed, purpose and name alone decide.

    >>> share(0, "draw", "d1") == share(0, "draw", "d1") != share(0, "draw", "d2")
    True
    """
    digest = hashlib.sha256(f"{seed}\0{purpose}\0{name}".encode("utf-8", "surrogatepass")).digest()
    return (int.from_bytes(digest[:8]) + 0.5) / 2**64


def one_line(text: str) -> str:
    """The text with single blanks for all white space."""
    return " ".join(text.split())


def without(text: str, said: str) -> str | None:
    """A text without the first place where it says `said`, whatever white space is between; None where it does not.

    >>> without("Walk a tree.  Top\\ndown or bottom up.", "top down"), without("Walk a tree.", "fly")
    ('Walk a tree. or bottom up.', None)
    """
    words = said.split()
    if not words:
        return None
    found = re.search(r"\s+".join(map(re.escape, words)), text, re.IGNORECASE)
    return None if found is None else f"{text[: found.start()].rstrip()} {text[found.end() :].lstrip()}".strip()
