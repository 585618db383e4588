"""Texts to token ids, piece by piece and yet as if the whole prompt had been read at once.

A template is tokenised once and texts are spliced into it as token ids, so that what is cut, shared and scored is known
to the token.  Tokens at the seams still come out as in the whole text: a text is read together with the punctuation
beside its slot, and behind a character that stands for what precedes it.

Texts are data: whatever in them reads as a special token is broken up, so that no text can end a turn or close a
reasoning block.
"""

from __future__ import annotations

import operator
import re
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rerank.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import Encoding

Span = tuple[int, int]
"""Where a token's characters start and end."""

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_LINE_BREAKS = re.compile(r"[\r\n\x85\u2028\u2029]+")


def clean(text: str, *, line_breaks: bool = True) -> str:
    """The text without white space around it; control characters become blanks, halves of surrogate pairs U+FFFD.

    Args:
        text: a query or a document.
        line_breaks: keep them; else each run of them becomes one blank.

    >>> clean(" a\\x00b\\n\\nc ", line_breaks=False)
    'a b c'
    """
    text = _SURROGATE.sub("\ufffd", _CONTROL.sub(" ", text))
    return (text if line_breaks else _LINE_BREAKS.sub(" ", text)).strip()


class Seam(NamedTuple):
    """What is read together with a text, so that its tokens are those it has inside the prompt."""

    before: str
    """A character that stands for what precedes; its tokens are dropped.  Empty at the start."""
    left: str
    """The template's punctuation before the text."""
    right: str
    """The template's punctuation after it."""
    after: str
    """What stands for the word that follows; its tokens are dropped.  Empty before a special token and at the end."""
    line_breaks: bool
    """Whether line breaks inside the text are kept."""


class Piece(NamedTuple):
    """A text between its punctuation, as token ids that can be cut."""

    ids: array[int]
    clean_cuts: bytes
    """1 at i where the first i tokens end with a whole character."""
    first: int
    """How many tokens lie before the text's first one."""
    last: int
    """How many tokens end within the text."""


class Reader:
    """Reads template and texts with a private copy of a tokenizer, which nobody else sets to truncate or to pad.

    Raises:
        ConfigError: the tokenizer is not a fast one.
    """

    def __init__(self, tokenizer: Any) -> None:
        from tokenizers import Tokenizer

        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            kind = type(tokenizer).__name__
            raise ConfigError(f"prompts need a fast tokenizer of transformers (one with a tokenizer.json); got {kind}")
        self._tokenizer = Tokenizer.from_str(backend.to_str())
        # Its only work is special tokens and, for some, offsets without the blanks that belong to tokens.
        self._tokenizer.post_processor = None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = {code: token.content for code, token in tokenizer.added_tokens_decoder.items()}
        # White space that a tokenizer keeps as added tokens is ordinary text.
        special = {code for code, content in added.items() if content.strip()}
        self.barred = frozenset(special | set(tokenizer.all_special_ids))
        """The ids that no text may become."""
        self._unknown = _unknown(tokenizer)
        self._broken: dict[str, tuple[list[int], list[Span]]] = {}

    # -- the template -------------------------------------------------------

    def template(self, text: str, before: str = "", after: str = "") -> list[int]:
        """The ids of a piece of template, its special tokens read as such, as they are between `before` and `after`."""
        return self._between(before, text, after)[0]

    def plain_edges(self, text: str) -> tuple[int, int]:
        """Where the first special token of a template's piece starts, and where its last one ends.

        Without any: the length of the text, and 0.
        """
        encoding = self._encode(text)
        special = [span for code, span in zip(encoding.ids, encoding.offsets, strict=True) if code in self.barred]
        return (special[0][0], special[-1][1]) if special else (len(text), 0)

    # -- texts --------------------------------------------------------------

    def pieces(self, asked: Sequence[tuple[Seam, str]]) -> list[Piece]:
        """The token ids of many texts, cleaned, each within its seam."""
        asked = [(seam, clean(text, line_breaks=seam.line_breaks)) for seam, text in asked]
        whole = [seam.before + seam.left + text + seam.right + seam.after for seam, text in asked]
        encodings = self._tokenizer.encode_batch(whole, add_special_tokens=False)
        return [self._piece(seam, text, encoding) for (seam, text), encoding in zip(asked, encodings, strict=True)]

    def _piece(self, seam: Seam, text: str, encoding: Encoding) -> Piece:
        whole = seam.left + text + seam.right
        ids, spans = self._between(seam.before, whole, seam.after, encoding)
        if not self.barred.isdisjoint(ids):
            ids, spans = self._plain(ids, spans, whole)
        starts, ends = [start for start, _ in spans], [end for _, end in spans]
        clean_cuts = bytes([1, *map(operator.ge, starts[1:], ends), 1])
        first = bisect_right(ends, len(seam.left))
        last = bisect_right(ends, len(seam.left) + len(text))
        return Piece(array("i", ids), clean_cuts, first, last)

    def _encode(self, text: str) -> Encoding:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _between(
        self, before: str, text: str, after: str, encoding: Encoding | None = None
    ) -> tuple[list[int], list[Span]]:
        """The tokens of `text` in `before + text + after`, with their places in `text`.

        Where a token crosses a border, the text is read without what follows, then behind a line break, then alone.

        Args:
            before: what precedes.
            text: what is read.
            after: what follows.
            encoding: of all three, where it is there already.
        """
        for left, right in dict.fromkeys([(before, after), (before, ""), (before and "\n", ""), ("", "")]):
            found = encoding or self._encode(left + text + right)
            encoding = None
            ids, spans = found.ids, found.offsets
            start, stop = len(left), len(left) + len(text)
            first = next((i for i, (_, end) in enumerate(spans) if end > start), len(ids)) if left else 0
            last = next((i for i in range(len(ids), first, -1) if spans[i - 1][0] < stop), first) if right else len(ids)
            if first == last or (spans[first][0] >= start and spans[last - 1][1] <= stop):
                break
        return ids[first:last], [(begin - start, end - start) for begin, end in spans[first:last]]

    def _plain(self, ids: list[int], spans: list[Span], text: str) -> tuple[list[int], list[Span]]:
        """The same tokens, those that stand for special ones broken up."""
        plain: list[int] = []
        places: list[Span] = []
        for code, (start, end) in zip(ids, spans, strict=True):
            # A character that the tokenizer does not know is no special token that somebody wrote.
            unknown = code == self._unknown[0] and text[start:end].strip() != self._unknown[1]
            if unknown or code not in self.barred:
                plain.append(code)
                places.append((start, end))
                continue
            inner_ids, inner_spans = self._break(text[start:end])
            plain += inner_ids
            places += [(start + begin, start + stop) for begin, stop in inner_spans]
        return plain, places

    def _break(self, text: str) -> tuple[list[int], list[Span]]:
        """The tokens of what reads as a special one: of its first character, then of the rest; none of a single one."""
        if text not in self._broken:
            ids: list[int] = []
            spans: list[Span] = []
            for at, part in ((0, text[:1]), (1, text[1:])) if len(text) > 1 else ():
                # Behind a letter, or a tokenizer would put a blank before the part.
                found = self._plain(*self._between("x", part, ""), part)
                ids += found[0]
                spans += [(at + start, at + end) for start, end in found[1]]
            self._broken[text] = ids, spans
        return self._broken[text]


def cut(piece: Piece, room: int, empty: array[int], right: array[int]) -> array[int]:
    """At most `room` of a piece's ids: all, or as many of the text's as fit before the punctuation after it.

    Args:
        piece: a text between its punctuation.
        room: at least the length of `empty`.
        empty: the ids of the punctuation alone.
        right: the ids of the punctuation after the text.
    """
    if len(piece.ids) <= room:
        return piece.ids
    keep = min(room - len(right), piece.last)
    while keep > piece.first and not piece.clean_cuts[keep]:
        keep -= 1
    return piece.ids[:keep] + right if keep > piece.first else empty


def _unknown(tokenizer: Any) -> tuple[int | None, str]:
    """The token for what a tokenizer does not know, and how it is written; none where the same token ends texts."""
    code = tokenizer.unk_token_id
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.sep_token_id}
    return (None, "") if code is None or code in ends else (code, str(tokenizer.unk_token))
