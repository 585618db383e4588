r"""Text to index terms, by the rules of a language: `Analyser` for one text, `analyse` for a whole corpus.

A text is normalised, cut into words, freed of stop words, and stemmed:

- Normalised: Unicode NFKC (full-width letters, ligatures, presentation forms and sub- and superscript digits become
  the plain ones), lower case (Turkish and Azeri with their dotless i), decimal digits of every script as 0 to 9.
  Characters that only format (soft hyphen, joiners, direction marks, variation selectors), the Arabic
  tatweel and the optional vowel points of Arabic and Hebrew are left out, without breaking the word they stand in.
- Words: letters, digits and underscores (the regular expression `\w`), with the combining marks that `\w` lacks kept
  inside: the vowel signs of Indic scripts would otherwise cut nearly every word. English drops one-character words,
  as bm25s and scikit-learn do; other languages keep them.
- Scripts written without spaces (Chinese characters, kana, Thai, Lao, Khmer, Burmese) give the overlapping pairs
  of their characters, in a text of any language; so does Hangul, where particles hang on the words and Snowball has no
  stemmer. A character is taken with its marks; one that stands alone is a term by itself.
- Stop words and stems: by default every language with a Snowball stemmer is stemmed, and every language of
  `stopwords.LANGUAGES` loses its stop words.

These defaults were chosen by nDCG@10 of BM25 (k1 0.9, b 0.4) on XQuAD, questions and paragraphs in one language. The
last column drops one-character terms everywhere; the first cuts words at their marks (Hindi) and leaves Chinese
sentences whole. Languages outside the table follow its pattern unmeasured.

               \w+   words    stop    stem    auto  auto 2+
    en      0.9593  0.9577  0.9574  0.9659  0.9639   0.9639
    de      0.9159  0.9159  0.9201  0.9419  0.9452   0.9446
    es      0.9482  0.9482  0.9505  0.9619  0.9632   0.9617
    ru      0.8718  0.8718  0.8759  0.9532  0.9562   0.9557
    tr      0.8932  0.8925  0.8996  0.9372  0.9431   0.9426
    ar      0.8862  0.8862  0.8862  0.9358  0.9358   0.9352
    zh      0.1136  0.9669  0.9669  0.9669  0.9669   0.9654
    hi      0.7688  0.9462  0.9462  0.9560  0.9560   0.9533

    python scripts/figures/xquad.py FOLDER_OF_THE_COLLECTIONS

On ASCII text the English analyser gives exactly the terms of bm25s with its English stop words and
PyStemmer's `english`.
"""

from __future__ import annotations

import difflib
import functools
import re
import threading
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import add
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rerank.errors import ConfigError, DataError, UnknownNameError, nearest
from rerank.retrieve import stopwords

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Raise it whenever some text gives other terms than before: an index built under another number must be rebuilt.
RULES = 1

# ISO 639-1 code: (English name, Snowball algorithm or None).  "und" is BCP 47's code for mixed or unknown.
LANGUAGES: dict[str, tuple[str, str | None]] = {
    "ar": ("arabic", "arabic"),
    "az": ("azerbaijani", None),
    "be": ("belarusian", None),
    "bg": ("bulgarian", None),
    "bn": ("bengali", None),
    "ca": ("catalan", "catalan"),
    "cs": ("czech", "czech"),
    "da": ("danish", "danish"),
    "de": ("german", "german"),
    "el": ("greek", "greek"),
    "en": ("english", "english"),
    "eo": ("esperanto", "esperanto"),
    "es": ("spanish", "spanish"),
    "et": ("estonian", "estonian"),
    "eu": ("basque", "basque"),
    "fa": ("persian", "persian"),
    "fi": ("finnish", "finnish"),
    "fr": ("french", "french"),
    "ga": ("irish", "irish"),
    "gl": ("galician", None),
    "gu": ("gujarati", None),
    "ha": ("hausa", None),
    "he": ("hebrew", None),
    "hi": ("hindi", "hindi"),
    "hr": ("croatian", None),
    "hu": ("hungarian", "hungarian"),
    "hy": ("armenian", "armenian"),
    "id": ("indonesian", "indonesian"),
    "is": ("icelandic", None),
    "it": ("italian", "italian"),
    "ja": ("japanese", None),
    "ka": ("georgian", None),
    "kk": ("kazakh", None),
    "km": ("khmer", None),
    "kn": ("kannada", None),
    "ko": ("korean", None),
    "lo": ("lao", None),
    "lt": ("lithuanian", "lithuanian"),
    "lv": ("latvian", None),
    "mk": ("macedonian", None),
    "ml": ("malayalam", None),
    "mr": ("marathi", None),
    "ms": ("malay", None),
    "my": ("burmese", None),
    "nb": ("bokmål", "norwegian"),
    "ne": ("nepali", "nepali"),
    "nl": ("dutch", "dutch"),
    "nn": ("nynorsk", "norwegian"),
    "no": ("norwegian", "norwegian"),
    "pa": ("punjabi", None),
    "pl": ("polish", "polish"),
    "pt": ("portuguese", "portuguese"),
    "ro": ("romanian", "romanian"),
    "ru": ("russian", "russian"),
    "sk": ("slovak", None),
    "sl": ("slovenian", None),
    "so": ("somali", None),
    "sq": ("albanian", None),
    "sr": ("serbian", "serbian"),
    "st": ("sesotho", "sesotho"),
    "sv": ("swedish", "swedish"),
    "sw": ("swahili", None),
    "ta": ("tamil", "tamil"),
    "te": ("telugu", None),
    "th": ("thai", None),
    "tl": ("tagalog", None),
    "tr": ("turkish", "turkish"),
    "uk": ("ukrainian", None),
    "und": ("undetermined", None),
    "ur": ("urdu", None),
    "uz": ("uzbek", None),
    "vi": ("vietnamese", None),
    "yi": ("yiddish", "yiddish"),
    "yo": ("yoruba", None),
    "zh": ("chinese", None),
}
# Two algorithms are nobody's default: Porter's first English stemmer and the older Dutch one.
ALGORITHMS = frozenset({a for _, a in LANGUAGES.values() if a} | {"porter", "dutch_porter"})

# Longer words (encoded data, sequences) are cut to this many characters: the limit that Lucene uses.
LONGEST_WORD_CHARACTERS = 255


@dataclass(frozen=True)
class Analyser:
    """Text to terms: `analyser(text)`. Its fields are its whole configuration; an index carries it, resolved.

    Raises:
        UnknownNameError: no such language or Snowball algorithm.
        ConfigError: a stemmer or a list is asked for that the language lacks; a stop word that can never occur,
            because it is not one word; a `token_pattern` that is no regular expression, or has groups.

    >>> Analyser()("The cat's 2 kittens were sleeping")
    ['cat', 'kitten', 'were', 'sleep']
    >>> Analyser("zh")("北京大学 of 1898 年")
    ['北京', '京大', '大学', 'of', '1898', '年']
    """

    language: str = "en"
    """ISO 639-1 code, or `und` for a collection in several languages."""
    stem: bool | str = "auto"
    """`true` for the language's Snowball algorithm, `auto` where it has one, or an algorithm by name (`porter`)."""
    stop_words: bool | str | tuple[str, ...] = "auto"
    """`true` for the language's list, `auto` where it has one, or the words themselves."""
    token_pattern: str | None = None
    """A regular expression without groups that finds the words, in place of the rules for words and pairs.

    It sees normalised text in lower case, and is run as given: one that backtracks without bound hangs.
    """

    def __post_init__(self) -> None:
        if self.language not in LANGUAGES:
            raise UnknownNameError(_unknown_language(self.language))
        _, algorithm = LANGUAGES[self.language]
        if isinstance(self.stem, str) and self.stem != "auto" and self.stem not in ALGORITHMS:
            message = (
                f"stem {self.stem!r} is no Snowball algorithm{nearest(self.stem, ALGORITHMS)} "
                f"(expected true, false, auto or one of {', '.join(sorted(ALGORITHMS))})"
            )
            raise UnknownNameError(message)
        if self.stem is True and algorithm is None:
            message = f"language {self.language!r} has no Snowball stemmer: set stem to false or auto"
            raise ConfigError(message)
        if self.stop_words is True and self.language not in stopwords.LANGUAGES:
            message = (
                f"language {self.language!r} has no list of stop words: give the words, or set stop_words to "
                f"false or auto (lists exist for {', '.join(sorted(stopwords.LANGUAGES))})"
            )
            raise ConfigError(message)
        if self.token_pattern is not None:
            try:
                pattern = re.compile(self.token_pattern)
            except re.error as error:
                message = f"token_pattern {self.token_pattern!r} is no regular expression: {error}"
                raise ConfigError(message) from error
            if pattern.groups:
                message = f"token_pattern {self.token_pattern!r} has groups: write (?:...) instead of (...)"
                raise ConfigError(message)
        if isinstance(self.stop_words, tuple):
            self._check_stop_words(self.stop_words)
        elif self.stop_words not in (True, False, "auto"):
            message = f"stop_words is {self.stop_words!r}, expected true, false, auto or the words"
            raise ConfigError(message)

    def _check_stop_words(self, entries: tuple[str, ...]) -> None:
        words_of = _splitter(self.language, self.token_pattern)
        for entry in entries:
            if len(words := words_of(entry)) != 1:
                message = f"stop word {entry!r} is {len(words)} words to this analyser, expected one: {words}"
                raise ConfigError(message)

    def __call__(self, text: str) -> list[str]:
        """The terms of a text, in its order, repeated as often as they stand there."""
        words_of, term_of = _rules(self, threading.get_ident())
        return [term for term in map(term_of, words_of(text)) if term]

    def resolve(self) -> Analyser:
        """The same analyser with every `auto` and True replaced by what it means: what an index writes down.

        >>> Analyser("hi").resolve()
        Analyser(language='hi', stem='hindi', stop_words=(), token_pattern=None)
        """
        return replace(self, stem=self._algorithm() or False, stop_words=self._stop_words())

    def versions(self) -> dict[str, str]:
        """What else decides the terms: an index stores it beside the analyser, and compares when it is opened.

        The Unicode version is the interpreter's; a newer one only adds characters, so a difference there is harmless
        unless the texts hold such.
        """
        versions = {"rules": str(RULES), "unicode": unicodedata.unidata_version}
        if self._algorithm():
            import Stemmer

            versions["PyStemmer"] = Stemmer.version()
        return versions

    def _algorithm(self) -> str:
        """The Snowball algorithm, or an empty string for none."""
        if isinstance(self.stem, str) and self.stem != "auto":
            return self.stem
        return LANGUAGES[self.language][1] or "" if self.stem else ""

    def _stop_words(self) -> tuple[str, ...]:
        if isinstance(self.stop_words, tuple):
            return self.stop_words
        # A token pattern may never let some words of the list through.
        words_of = _splitter(self.language, self.token_pattern)
        listed = stopwords.stop_words(self.language) if self.stop_words else ()
        return tuple(word for word in listed if len(words_of(word)) == 1)


@dataclass(frozen=True, eq=False)
class Terms:
    """The terms of many texts as numbers: text `i` holds `vocabulary[c]` for `c` in `ids[offsets[i]:offsets[i + 1]]`.

    Terms are numbered in the order in which they first occur.

    >>> terms = analyse(["red apple", "the", "Apples"], Analyser())
    >>> terms.vocabulary, terms.ids.tolist(), terms.offsets.tolist()
    (['red', 'appl'], [0, 1, 1], [0, 2, 2, 3])
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    vocabulary: list[str]

    def __len__(self) -> int:
        """How many texts there are."""
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[NDArray[np.int32]]:
        """The numbers of each text, as a view."""
        bounds = self.offsets.tolist()
        return (self.ids[start:end] for start, end in pairwise(bounds))


def analyse(texts: Iterable[str], analyser: Analyser) -> Terms:
    """The terms of many texts, read once and not kept: `analyser(text)` for each, but each distinct word stemmed once.

    Raises:
        DataError: `texts` is one string.

    >>> [row.tolist() for row in analyse(["b c b", "c d"], Analyser("und"))]
    [[0, 1, 0], [1, 2]]
    """
    if isinstance(texts, str):
        message = f"texts is one string ({texts[:40]!r}), expected an iterable of strings: pass [text]"
        raise DataError(message)
    words_of, term_of = _rules(analyser, threading.get_ident())
    codes = _Codes(term_of)
    code_of = codes.__getitem__
    ids, offsets = array("i"), array("q", [0])
    for text in texts:
        ids.fromlist([code for code in map(code_of, words_of(text)) if code >= 0])
        offsets.append(len(ids))
    return Terms(np.asarray(ids), np.asarray(offsets), list(codes.terms))


class _Codes(dict[str, int]):
    """The number of each word's term, worked out when the word is first met; -1 for words that give none."""

    def __init__(self, term_of: Callable[[str], str]) -> None:
        super().__init__()
        self.term_of = term_of
        self.terms: dict[str, int] = {}

    def __missing__(self, word: str) -> int:
        term = self.term_of(word)
        code = self.terms.setdefault(term, len(self.terms)) if term else -1
        if len(word) <= LONGEST_WORD_CHARACTERS:
            self[word] = code
        return code


@functools.lru_cache(maxsize=256)
def _rules(analyser: Analyser, _thread: int) -> tuple[Callable[[str], list[str]], Callable[[str], str]]:
    """The two steps of an analyser: text to words, and word to term (empty for a word that gives none).

    They belong to one thread, because a Snowball stemmer may not be shared.
    """
    words_of = _splitter(analyser.language, analyser.token_pattern)
    removed = frozenset(word for entry in analyser._stop_words() for word in words_of(entry))
    shortest = 2 if analyser.language == "en" and analyser.token_pattern is None else 1
    algorithm = analyser._algorithm()
    stem = _stemmer(algorithm) if algorithm else str
    persian = analyser.language == "fa"

    def term_of(word: str) -> str:
        if word in removed or (len(word) < shortest and not _is_unspaced(word)):
            return ""
        word = word[:LONGEST_WORD_CHARACTERS]
        return stem(word.strip(_NON_JOINER)).replace(_NON_JOINER, "") if persian else stem(word)

    return words_of, term_of


def _stemmer(algorithm: str) -> Callable[[str], str]:
    """A new Snowball stemmer of that name."""
    import Stemmer

    if algorithm not in Stemmer.algorithms():
        message = (
            f"the Snowball algorithm {algorithm!r} is not in the installed PyStemmer {Stemmer.version()}: "
            "pip install -U PyStemmer, or set stem to false"
        )
        raise ConfigError(message)
    stem: Callable[[str], str] = Stemmer.Stemmer(algorithm, 0).stemWord
    return stem


_ASCII_WORDS = str.maketrans(
    {code: chr(code).lower() if chr(code).isalnum() or chr(code) == "_" else " " for code in range(128)}
)
_WORD = re.compile(r"\w+")
_NON_JOINER = "\u200c"
_DIGIT_BEYOND_ASCII = re.compile(r"[^\D0-9]")
# NFKC would glue these to the word before them: "Lipitor™" to "LipitorTM", "2½" to "21⁄2".
_GLUED_BY_NFKC = re.compile("[™℠¼-¾⅐-⅞]")


@functools.cache
def _splitter(language: str, token_pattern: str | None) -> Callable[[str], list[str]]:
    """The function that cuts a text into the words of a language, normalised and in lower case."""
    dotless_i = language in ("az", "tr")
    pattern = None if token_pattern is None else re.compile(token_pattern)

    def words_of(text: str) -> list[str]:
        if text.isascii() and not (dotless_i and "I" in text):
            return text.translate(_ASCII_WORDS).split() if pattern is None else pattern.findall(text.lower())
        characters = _characters(keep_non_joiner=language == "fa")
        text = unicodedata.normalize("NFKC", _GLUED_BY_NFKC.sub(_set_off, text))
        if dotless_i:
            text = text.replace("I", "ı")
        # "İ".lower() is an i with a second dot as a combining mark.
        text = text.replace("İ", "i").lower()
        if not characters.special.search(text):
            return (pattern or _WORD).findall(text)
        text, n_removed = characters.silent.subn("", text)
        if n_removed:
            text = unicodedata.normalize("NFKC", text)
        text = _DIGIT_BEYOND_ASCII.sub(_ascii_digit, text)
        if pattern is not None:
            return pattern.findall(text)
        words: list[str] = characters.word.findall(text)
        return _pairs_in(words, characters) if characters.unspaced.search(text) else words

    return words_of


def _pairs_in(words: list[str], characters: _Characters) -> list[str]:
    """The words, with the runs of unspaced script among and inside them as pairs of characters."""
    terms: list[str] = []
    for word in words:
        if word.isascii():
            terms.append(word)
            continue
        # Splitting at a group gives the words between at even places and the runs at odd ones.
        for place, part in enumerate(characters.run.split(word)):
            if place % 2:
                run = part if part.isalnum() else characters.cluster.findall(part)
                terms.extend(map(add, run, run[1:]) if len(run) > 1 else run)
            elif part:
                terms.append(part)
    return terms


def _set_off(match: re.Match[str]) -> str:
    return " " if match[0] in "™℠" else " " + match[0]


def _ascii_digit(match: re.Match[str]) -> str:
    return str(unicodedata.decimal(match[0]))


def _is_unspaced(word: str) -> bool:
    return not word.isascii() and _characters(keep_non_joiner=False).unspaced.match(word) is not None


class _Characters(NamedTuple):
    """Patterns over classes of characters that `re` has no name for."""

    special: re.Pattern[str]  # any character that the patterns below are about, or that is beyond plane 0
    silent: re.Pattern[str]  # characters that are left out
    word: re.Pattern[str]  # a word, with the marks in it
    unspaced: re.Pattern[str]  # a letter of a script written without spaces
    run: re.Pattern[str]  # such letters in a row, with their marks, as a group
    cluster: re.Pattern[str]  # one character with its marks


_UNSPACED_BLOCKS = (
    *((0x0E00, 0x0EFF), (0x1000, 0x109F), (0xA9E0, 0xA9FF), (0xAA60, 0xAA7F), (0x1780, 0x17FF)),  # Thai to Khmer
    *((0x3005, 0x312F), (0x31A0, 0x31BF), (0x31F0, 0x31FF)),  # kana, Bopomofo
    *((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF)),  # Chinese characters
    *((0x1100, 0x11FF), (0x3131, 0x318E), (0xA960, 0xA97F), (0xAC00, 0xD7FF)),  # Hangul
)
_UNSPACED_BEYOND = "\\U0001b000-\\U0001b16f\\U00020000-\\U0003fffd"  # rare kana and Chinese characters
# Unicode's default ignorables, less the fillers, with the Arabic tatweel.
_SILENT = (
    *(0x00AD, 0x034F, 0x0640, 0x061C, 0x17B4, 0x17B5, *range(0x180B, 0x1810), 0x200D, 0x200E, 0x200F),
    *(*range(0x202A, 0x202F), *range(0x2060, 0x2070), *range(0xFE00, 0xFE10), 0xFEFF, *range(0xE0100, 0xE01F0)),
)
_POINTED_BLOCKS = ((0x0590, 0x06FF), (0x0898, 0x08FF))  # Hebrew and Arabic


@functools.cache
def _characters(*, keep_non_joiner: bool) -> _Characters:
    """The patterns, made when the first text needs them: a walk over 200,000 characters.

    Persian keeps the zero-width non-joiner in its words, because the stemmer finds affixes by it.
    """
    marks = {code for code in range(0x20000) if unicodedata.category(chr(code)) in ("Mn", "Mc")}
    points = {code for start, end in _POINTED_BLOCKS for code in range(start, end + 1)} & marks
    silent = {*_SILENT, *points}
    (marks if keep_non_joiner else silent).add(ord(_NON_JOINER))
    marks -= silent
    digits = {code for code in range(0x80, 0x10000) if chr(code).isdecimal()}
    unspaced = {
        code
        for start, end in _UNSPACED_BLOCKS
        for code in range(start, end + 1)
        if chr(code).isalnum() and code not in digits
    }
    plane_0 = range(0x10000)
    mark_0, mark_1 = _class(marks.intersection(plane_0)), _class(marks.difference(plane_0))
    letter = _class(unspaced) + _UNSPACED_BEYOND
    common = _class((silent | digits | marks | unspaced).intersection(plane_0))
    # A class within plane 0 is a table look-up, one beyond it a walk over its ranges: hence the guards.
    beyond = r"\U00010000-\U0010ffff"
    return _Characters(
        special=re.compile(f"[{common}{beyond}]"),
        silent=re.compile(f"[{_class(silent)}]"),
        word=re.compile(rf"\w++(?:[{mark_0}]++\w*+|(?=[{beyond}])[{mark_1}]++\w*+)*+"),
        unspaced=re.compile(f"[{letter}]"),
        run=re.compile(f"([{letter}][{letter}{mark_0}{mark_1}]*+)"),
        cluster=re.compile(f"[^{mark_0}{mark_1}][{mark_0}{mark_1}]*+"),
    )


def _class(codes: set[int]) -> str:
    """The inside of a regular expression's character class that matches exactly these code points."""
    ranges: list[list[int]] = []
    for code in sorted(codes):
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(f"\\U{start:08x}-\\U{end:08x}" for start, end in ranges)


def _unknown_language(given: str) -> str:
    """The message for a language that is none, with the code that its name or its longer tag stands for."""
    code_of = {name: code for code, (name, _) in LANGUAGES.items()}
    wanted = given.lower().replace("_", "-").split("-")[0]
    hint = f"; did you mean {code_of.get(wanted, wanted)!r}?"
    if wanted not in code_of and wanted not in LANGUAGES:
        close = difflib.get_close_matches(wanted, [*code_of, *LANGUAGES], n=1, cutoff=0.5)
        hint = f"; did you mean {code_of.get(close[0], close[0])!r}?" if close else ""
    return f"unknown language {given!r}{hint} (expected a code of ISO 639-1: {', '.join(LANGUAGES)})"
