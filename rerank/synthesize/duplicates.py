"""Queries that say nearly the same."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

from rerank.words import pieces


def words_of(text: str) -> frozenset[str]:
    """The different words of a text, whatever their case.

    >>> sorted(words_of("How do I sort? Sort how?"))
    ['do', 'how', 'i', 'sort']
    """
    return frozenset(word.casefold() for word, _ in pieces(text))


def alike(one: str, other: str) -> float:
    """The share of the words of two texts together that both have; 0 where neither has any.

    >>> alike("sort a list", "Sort the list")
    0.5
    """
    first, second = words_of(one), words_of(other)
    return len(first & second) / max(1, len(first | second))


def near_duplicates(texts: Sequence[str], threshold: float) -> list[tuple[int, float] | None]:
    """For each text an earlier one that is kept and shares so many words with it; None for those that are kept.

    Args:
        texts: those to keep first.
        threshold: the share of their words together that both have (Jaccard), above 0 up to 1.

    >>> near_duplicates(["sort a list", "Sort a list!", "walk a tree"], 0.8)
    [None, (0, 1.0), None]

    Source: Chaudhuri et al. 2006 and Bayardo et al. 2007 (prefix filter): of two sets so alike, the few rarest words of
    one are among those of the other, so only texts that share such a word are compared.
    """
    sets = [words_of(text) for text in texts]
    frequency = Counter(word for words in sets for word in words)
    holders: defaultdict[str, list[int]] = defaultdict(list)
    found: list[tuple[int, float] | None] = []
    for place, words in enumerate(sets):
        rarest = sorted(words, key=lambda word: (frequency[word], word))
        prefix = rarest[: len(words) - math.ceil(threshold * len(words)) + 1]
        best: tuple[int, float] | None = None
        for other in sorted({other for word in prefix for other in holders[word]}):
            both = len(words & sets[other])
            alike = both / (len(words) + len(sets[other]) - both)
            if alike >= threshold and (best is None or alike > best[1]):
                best = (other, alike)
        found.append(best)
        if best is None:
            for word in prefix:
                holders[word].append(place)
    return found
