"""Stop words by language: the short English list, and those that bm25s carries for eleven more languages.

English has the 33 words that Lucene and bm25s remove.  The others (articles, pronouns, prepositions, question words;
101 to 313 words each) are read from the installed bm25s only when they are asked for.  An analyser
that is resolved holds the words themselves, so an index does not change when such a list does.
"""

from __future__ import annotations

import functools

ENGLISH = (
    *("a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is", "it", "no", "not"),
    *("of", "on", "or", "such", "that", "the", "their", "then", "there", "these", "they", "this", "to", "was"),
    *("will", "with"),
)

# The name of each language's list in bm25s.  Its Chinese and Korean lists are left out: they hold words, and those
# languages are indexed by character pairs (measured on XQuAD Chinese: nDCG@10 0.9651 with the list, 0.9669 without).
_IN_BM25S = {
    "da": "STOPWORDS_DANISH",
    "de": "STOPWORDS_GERMAN",
    "es": "STOPWORDS_SPANISH",
    "fr": "STOPWORDS_FRENCH",
    "it": "STOPWORDS_ITALIAN",
    "nb": "STOPWORDS_NORWEGIAN",
    "nl": "STOPWORDS_DUTCH",
    "nn": "STOPWORDS_NORWEGIAN",
    "no": "STOPWORDS_NORWEGIAN",
    "pt": "STOPWORDS_PORTUGUESE",
    "ru": "STOPWORDS_RUSSIAN",
    "sv": "STOPWORDS_SWEDISH",
    "tr": "STOPWORDS_TURKISH",
}

LANGUAGES = frozenset({"en", *_IN_BM25S})


@functools.cache
def stop_words(language: str) -> tuple[str, ...]:
    """The stop words of a language of `LANGUAGES`, in lower case; empty for any other.

    >>> stop_words("en")[:3]
    ('a', 'an', 'and')
    >>> stop_words("hi")
    ()
    """
    if language == "en":
        return ENGLISH
    if language not in _IN_BM25S:
        return ()
    from bm25s import stopwords

    words: tuple[str, ...] = tuple(getattr(stopwords, _IN_BM25S[language]))
    return words
