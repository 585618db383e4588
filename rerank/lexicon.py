"""How telling words are in a collection, and the sentences and phrases of a text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from rerank.ranking import Ranking, TextSource
from rerank.retrieve.bm25 import BM25
from rerank.runtime import Runtime
from rerank.words import one_line, pieces

_BREAK = re.compile(r"\n\s*\n|\n(?=\s*[-*•>]\s)|(?<=[。！？])")
_STOP = re.compile(r"[.!?؟।…]+[\"')\]]*(\s+)")
_JOINS = re.compile(r"[\s\-'’/]*")
"""What may stand between the words of a phrase."""


class Word(NamedTuple):
    """A word of a text."""

    surface: str
    start: int
    term: str
    """What it is in the index; empty for stop words."""
    weight: float
    """Inverse document frequency; 0 for stop words."""


class Lexicon:
    """The words of a collection with how many documents have them, from the index that `bm25` uses.

    Args:
        corpus: the collection.
        runtime: who holds the index, or builds it.

    >>> from rerank.data.corpus import MemoryCorpus
    >>> with Runtime(progress=False) as runtime:
    ...     words = Lexicon(MemoryCorpus({"d1": "a thin wing", "d2": "a wing"}), runtime).words("the thin wings")
    >>> [(word.surface, word.term, round(word.weight, 2)) for word in words]
    [('the', '', 0.0), ('thin', 'thin', 0.69), ('wings', 'wing', 0.18)]
    """

    def __init__(self, corpus: TextSource, runtime: Runtime) -> None:
        index = BM25().open(Ranking.start({"": ""}, corpus), runtime)
        starts = np.load(index.folder / "starts.npy", mmap_mode="r", allow_pickle=False)
        self._counts = np.diff(starts)
        self._n_documents = max(1, len(corpus.ids))
        self._vocabulary = index.vocabulary
        self._analyser = index.analyser
        self._known: dict[str, tuple[str, float]] = {}

    def words(self, text: str) -> list[Word]:
        """The words of a text, in their order."""
        found = []
        for surface, start in pieces(text):
            if surface not in self._known:
                self._known[surface] = self._looked_up(surface)
            found.append(Word(surface, start, *self._known[surface]))
        return found

    def _looked_up(self, surface: str) -> tuple[str, float]:
        terms = self._analyser(surface)
        if not terms:
            return "", 0.0
        code = self._vocabulary.get(terms[0], -1)
        n = int(self._counts[code]) if code >= 0 else 0
        return terms[0], math.log(1 + (self._n_documents - n + 0.5) / (n + 0.5))


def sentences(text: str) -> Iterator[str]:
    """The sentences of a text, list items and paragraphs apart, each on one line.

    >>> list(sentences("Wings make lift. They stall, e.g. at 15 deg.\\n\\n- flaps help"))
    ['Wings make lift.', 'They stall, e.g. at 15 deg.', '- flaps help']
    """
    return (one_line(text[start:stop]) for start, stop in sentence_spans(text))


def sentence_spans(text: str) -> Iterator[tuple[int, int]]:
    """Where the sentences of a text begin and end, without the white space around them.

    >>> list(sentence_spans("Wings make lift.  They stall."))
    [(0, 16), (18, 29)]
    """
    breaks = [(found.start(), found.end()) for found in _BREAK.finditer(text)]
    for begin, end in pairwise([0, *(place for each in breaks for place in each), len(text)]):
        part, start = text[begin:end], 0
        for stop in _STOP.finditer(part):
            # A small letter goes on with the sentence, unless the stop stands apart as in old abstracts.
            if not part[stop.end() : stop.end() + 1].islower() or part[: stop.start()].endswith(" "):
                yield from _trimmed(text, begin + start, begin + stop.end())
                start = stop.end()
        yield from _trimmed(text, begin + start, end)


def _trimmed(text: str, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """A span without white space around it; none where nothing is left."""
    part = text[start:stop]
    if kept := part.strip():
        first = start + len(part) - len(part.lstrip())
        yield first, first + len(kept)


def phrases(text: str, words: list[Word], longest: int = 3) -> Iterator[list[Word]]:
    """Runs of at most `longest` telling words with nothing between them but blanks, hyphens and apostrophes.

    Args:
        text: what `words` are of.
        words: all of its words, in their order.
        longest: how many words a phrase has at most.
    """
    run: list[Word] = []
    for word in words:
        between = text[run[-1].start + len(run[-1].surface) : word.start] if run else ""
        if not word.term or not _JOINS.fullmatch(between):
            run = []
        if word.term:
            run.append(word)
            for size in range(1, min(longest, len(run)) + 1):
                yield run[-size:]
