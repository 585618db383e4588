"""Long documents as passages: windows of tokens that are judged by themselves, and documents' scores from theirs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rerank.errors import ConfigError

Span = tuple[int, int]
"""Where a passage begins and ends in its document, in characters."""
Merge = Literal["max", "first", "mean", "top_mean"]

_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class Passages:
    """How documents are cut into passages, and passages merged into documents again.

    A document of up to `size` tokens is one passage.  The last passage of a longer one ends where it ends and is as
    long as the others.  Rules that give no scores order all passages of a list; a passage's place then stands for its
    score, so that `max` puts documents in the order of their best passages.

    Source: MaxP and FirstP of Dai & Callan 2019 (arXiv:1905.09217); they cut 150 words at a stride of 75.

    >>> Passages(size=3, stride=2).starts(6)
    [0, 2, 3]
    >>> Passages(merge="top_mean", top=2).merged([0.5, 0.1, 0.7])
    0.6
    """

    size: int = 256
    """Tokens of a passage, by the engine's tokenizer; words where it has none."""
    stride: int = 192
    """Tokens from the beginning of a passage to the next one's."""
    merge: Merge = "max"
    """`max` (the best passage), `mean`, `top_mean` (of the best `top`), or `first`: only the first passage is read."""
    top: int = 3
    """Passages that `top_mean` looks at."""

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.size or self.top < 1:
            raise ConfigError(
                f"passages: size is {self.size}, stride {self.stride} (1 to size) and top {self.top} (1 or more)"
            )

    def starts(self, n_tokens: int) -> list[int]:
        """The first token of each passage of a document of `n_tokens` tokens."""
        if n_tokens <= self.size or self.merge == "first":
            return [0]
        return [*range(0, n_tokens - self.size, self.stride), n_tokens - self.size]

    def spans(self, tokens: Sequence[Span], n_characters: int) -> tuple[Span, ...]:
        """The passages of a document.

        Args:
            tokens: where each of its tokens begins and ends.
            n_characters: its length; the first passage begins at 0, the last one ends here, or where `first` ends.
        """
        starts = self.starts(len(tokens))
        ends = [start + self.size for start in starts]
        return tuple(
            (
                0 if start == 0 else tokens[start][0],
                n_characters if end >= len(tokens) else max(tokens[start][0], tokens[end - 1][1]),
            )
            for start, end in zip(starts, ends, strict=True)
        )

    def merged(self, scores: Sequence[float]) -> float:
        """A document's score from those of its passages, in the order of the text."""
        if self.merge == "max":
            return max(scores)
        if self.merge == "top_mean":
            scores = sorted(scores, reverse=True)[: self.top]
        return sum(scores) / len(scores)


def token_passages(tokenizer: Any, texts: Sequence[str], passages: Passages) -> Iterator[tuple[Span, ...]]:
    """The passages of each text by the tokens of a fast tokenizer of transformers, special tokens split.

    Args:
        tokenizer: says where its tokens lie.
        texts: documents.
        passages: how they are cut.
    """
    for text in texts:
        if len(text) <= passages.size:  # a token has a character at least
            yield ((0, len(text)),)
            continue
        encoded = tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )
        yield passages.spans(encoded["offset_mapping"], len(text))


def word_passages(texts: Sequence[str], passages: Passages) -> Iterator[tuple[Span, ...]]:
    """The passages of each text by its words, for engines whose tokenizer is not here.

    >>> list(word_passages(["one two  three four"], Passages(size=2, stride=2)))
    [((0, 7), (9, 19))]
    """
    for text in texts:
        yield passages.spans([match.span() for match in _WORD.finditer(text)], len(text))
