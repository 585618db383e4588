"""The stage that condenses: of long documents, what a reranker shall read, within a budget of tokens.

Rerankers cut what does not fit, and so judge documents by how they begin.  Here sentences are chosen instead: those
that stand for the document and speak of the query.  They stay in the order of the text and are words of it; nothing is
written.  A later `rerank` or `rescore` reads what was kept; ids, and what other stages read, stay as they are.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from rerank.errors import ConfigError, DataError, ModelError
from rerank.lexicon import Lexicon, sentence_spans
from rerank.lexrank import lexrank, similarities, weighted
from rerank.ranking import CONDENSED, Ranking, condensed
from rerank.rules.rule import at_least
from rerank.runtime import Runtime
from rerank.stage import Stage
from rerank.words import pieces

Span = tuple[int, int]
By = Literal["query_lexrank", "lexrank", "passages", "lead"]

_SURROGATES = re.compile(r"[\ud800-\udfff]")
"""Halves of characters, which tokenizers do not read."""
_AT_ONCE = 256


@dataclass(frozen=True, repr=False)
class Condense(Stage):
    """The first `k` documents of every list, each with only so many of its tokens as a reranker shall read.

    Documents that fit are left whole.  Of others `by` says which sentences are kept:

    - `query_lexrank`: sentences that speak of the query, and those that are like these
    - `lexrank`: sentences that stand for the document, whatever the query
    - `passages`: the parts, some sentences long, that have most words in common with the query
    - `lead`: the beginning

    >>> Condense(tokens=200, tokenizer="minilm-l6")
    Condense(tokens=200, tokenizer='minilm-l6')

    Source: Erkan and Radev 2004 (LexRank); Otterbacher, Erkan and Radev 2005 (with a query).

    Raises:
        ConfigError: numbers that make no sense.
    """

    tokens: int = 256
    """How many a document keeps at most."""
    by: By = "query_lexrank"
    """How sentences are chosen."""
    tokenizer: str | None = None
    """The model whose tokens are counted, by name or folder: that of the reranker.  Default words, of which 3 are about
    4 tokens in English."""
    k: int | None = 100
    """How many documents of each list are condensed; None: all."""
    teleport: float | None = None
    """The share of steps that go by the query, or anywhere, and not to a similar sentence, above 0 to 1.  Default 0.5
    with a query, where anything from 0.15 on is much the same, and 0.15 without."""
    redundancy: float = 0.7
    """No sentence is kept that is more similar to one kept before, 0 to 1."""
    passage: int = 64
    """Tokens of a passage at most; longer sentences are divided, whatever `by` says."""

    def __post_init__(self) -> None:
        at_least("condense", 1, tokens=self.tokens, k=self.k, passage=self.passage)
        if self.teleport is not None and not 0 < self.teleport <= 1:
            raise ConfigError(f"condense: teleport is {self.teleport}, above 0 and at most 1 is needed")
        if not 0 <= self.redundancy <= 1:
            raise ConfigError(f"condense: redundancy is {self.redundancy}, from 0 to 1 is needed")

    def transform(self, ranking: Ranking, runtime: Runtime) -> Ranking:
        """The same lists, with spans of the documents' texts in the column `condensed`.

        Raises:
            DataError: the lists came without texts.
            ModelError: the tokenizer cannot be had.
        """
        if ranking.source is None:
            raise DataError(f"{self.label}: reads documents, but the lists came without texts; give their corpus")
        whole = ranking.with_source(ranking.source)
        offsets = _offsets(self.tokenizer, runtime)
        lexicon = None if self.by == "lead" else Lexicon(ranking.source, runtime)
        rows = np.arange(len(whole.docs)) if self.k is None else np.flatnonzero(whole.positions() < self.k)
        kept = np.full(len(whole.docs), None, dtype=object)
        codes, which = np.unique(whole.docs[rows], return_inverse=True)
        of_code = np.argsort(which, kind="stable")
        ends = np.cumsum(np.bincount(which, minlength=len(codes)))
        queries = whole.row_queries()
        terms: dict[str, Words] = {}
        with runtime.progress("condensing", len(codes), "documents") as advance:
            for start in range(0, len(codes), _AT_ONCE):
                some = codes[start : start + _AT_ONCE]
                texts = ranking.source.texts(some)
                for place, text, tokens in zip(range(start, start + len(some)), texts, offsets(texts), strict=True):
                    if len(tokens) <= self.tokens:
                        continue
                    own = rows[of_code[ends[place - 1] if place else 0 : ends[place]]].tolist()
                    if lexicon is None:
                        lead = _cut(text, (0, tokens[self.tokens - 1][1]), self.tokens, offsets)
                        for row in own:
                            kept[row] = (lead,)
                        continue
                    outline = _Outline.of(text, tokens, min(self.passage, self.tokens), self.by, lexicon)
                    for row in own:
                        query = whole.queries[queries[row]]
                        if query not in terms:
                            terms[query] = _terms(query, lexicon)
                        kept[row] = self._fitting(text, outline, terms[query], offsets)
                advance(len(some))
        runtime.count("condensed documents", sum(spans is not None for spans in kept))
        return whole.with_column(CONDENSED, kept)

    def _fitting(self, text: str, outline: _Outline, query: Words, offsets: Offsets) -> tuple[Span, ...]:
        """The spans that are kept: fewer than chosen where their text, read anew, has too many tokens."""
        chosen = self._chosen(outline, query)
        while True:
            spans = outline.joined(chosen)
            if len(chosen) == 1:
                return (_cut(text, spans[0], self.tokens, offsets),)
            (tokens,) = offsets([condensed(text, spans)])
            if len(tokens) <= self.tokens:
                return spans
            chosen = chosen[:-1]

    def _chosen(self, outline: _Outline, query: Words) -> list[int]:
        """The units that are kept, the best first."""
        weights = {**outline.words.weights, **query.weights}
        vectors = weighted([*outline.words.terms, *query.terms], weights)
        relevance = np.clip(vectors[:-1] @ vectors[-1], 0.0, 1.0)
        similar = similarities(vectors[:-1])
        if self.by == "passages":
            scores = relevance
        elif self.by == "lexrank":
            scores = lexrank(similar, 0.15 if self.teleport is None else self.teleport)
        else:
            scores = lexrank(similar, 0.5 if self.teleport is None else self.teleport, relevance)
        # Rounded, so that what differs by the order of sums alone ties, and the earlier of equals is taken.
        order = np.argsort(-scores.round(9), kind="stable").tolist()
        chosen: list[int] = []
        left = self.tokens
        for unit in order:
            size = outline.sizes[unit]
            if size <= left and not (similar[unit, chosen] > self.redundancy).any():
                chosen.append(unit)
                left -= size
        return chosen


class Words(NamedTuple):
    """The terms of some texts, and how telling each is."""

    terms: list[list[str]]
    weights: dict[str, float]


@dataclass(frozen=True)
class _Outline:
    """A document in units, one of which is kept whole or not at all."""

    spans: list[Span]
    sizes: list[int]
    """In tokens."""
    words: Words

    @classmethod
    def of(cls, text: str, tokens: Sequence[Span], most: int, by: By, lexicon: Lexicon) -> _Outline:
        """The sentences of a document, or passages of them.

        Args:
            text: the document.
            tokens: where its tokens lie.
            most: tokens of a unit; longer sentences are divided.
            by: how units are chosen.
            lexicon: weighs words.
        """
        starts = [start for start, _ in tokens]

        def size(span: Span) -> int:
            return bisect_left(starts, span[1]) - bisect_left(starts, span[0])

        spans = [piece for span in sentence_spans(text) for piece in _divided(text, span, tokens, starts, most)]
        if by == "passages":
            spans = list(_grouped(spans, size, most))
        terms: list[list[str]] = [[] for _ in spans]
        weights: dict[str, float] = {}
        ends = [stop for _, stop in spans]
        for word in lexicon.words(text):
            if word.term:
                terms[min(bisect_left(ends, word.start + 1), len(spans) - 1)].append(word.term)
                weights[word.term] = word.weight
        return cls(spans, [size(span) for span in spans], Words(terms, weights))

    def joined(self, units: Sequence[int]) -> tuple[Span, ...]:
        """The spans of some units in the order of the text; those that follow each other are one."""
        found: list[Span] = []
        last = -2
        for unit in sorted(units):
            start, stop = self.spans[unit]
            if unit == last + 1:
                found[-1] = (found[-1][0], stop)
            else:
                found.append((start, stop))
            last = unit
        return tuple(found)


def _terms(query: str, lexicon: Lexicon) -> Words:
    """A query as one text."""
    words = [word for word in lexicon.words(query) if word.term]
    return Words([[word.term for word in words]], {word.term: word.weight for word in words})


def _cut(text: str, span: Span, most: int, offsets: Offsets) -> Span:
    """The beginning of a span, of at most `most` tokens when it is read by itself."""
    while True:
        (tokens,) = offsets([text[slice(*span)]])
        if len(tokens) <= most:
            return span
        stop = span[0] + tokens[most - 1][1]
        span = span[0], min(stop, span[1] - 1)


def _divided(text: str, span: Span, tokens: Sequence[Span], starts: Sequence[int], most: int) -> Iterator[Span]:
    """A sentence, or parts of much the same length of at most `most` tokens, which begin with words."""
    first, stop = bisect_left(starts, span[0]), bisect_left(starts, span[1])
    begin = span[0]
    while stop - first > most:
        cut = first + -(-(stop - first) // -(-(stop - first) // most))
        while cut > first and not text[tokens[cut][0] - 1].isspace():
            cut -= 1
        cut = cut if cut > first else first + most  # no blank: words of scripts without, or one very long word
        end = tokens[cut - 1][1]
        yield begin, max(end, begin + 1)
        first, begin = cut, max(tokens[cut][0], end)
    yield begin, span[1]


def _grouped(spans: Sequence[Span], size: Callable[[Span], int], most: int) -> Iterator[Span]:
    """Passages of following sentences, at most `most` tokens long where no sentence is longer."""
    group: Span | None = None
    for span in spans:
        if group is not None and size((group[0], span[1])) <= most:
            group = (group[0], span[1])
            continue
        if group is not None:
            yield group
        group = span
    if group is not None:
        yield group


# -- tokens ------------------------------------------------------------

Offsets = Callable[[Sequence[str]], list[list[Span]]]
"""Where the tokens of texts begin and end."""


def _offsets(model: str | None, runtime: Runtime) -> Offsets:
    """What finds the tokens of the model of that name, or words.

    Raises:
        ModelError: no such model, or one without a fast tokenizer.
    """
    if model is None:
        return lambda texts: [[(start, start + len(word)) for word, start in pieces(text)] for text in texts]
    tokenizer = runtime.resource(("tokenizer", model), lambda: _tokenizer(model, runtime))

    def find(texts: Sequence[str]) -> list[list[Span]]:
        readable = [_SURROGATES.sub("\ufffd", text) for text in texts]
        encoded = tokenizer(
            readable, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )
        found: list[list[Span]] = encoded["offset_mapping"]
        return found

    return find


def _tokenizer(model: str, runtime: Runtime) -> Any:
    from rerank.engines.text_model import quiet_loading
    from rerank.extras import need
    from rerank.models.resolve import locate_model

    folder = locate_model(model, None, runtime.home, weights=False).path
    transformers = need("transformers", "dense", "counting a model's tokens")
    try:
        with quiet_loading():
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"model {model!r} ({folder}): its tokenizer cannot be loaded: {reason}") from error
    if not tokenizer.is_fast:
        raise ModelError(f"model {model!r}: has no fast tokenizer, which tells where tokens lie; count words instead")
    return tokenizer
