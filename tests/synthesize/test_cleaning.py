"""Which documents are clean."""

from __future__ import annotations

import pytest

from rerank.data.corpus import MemoryCorpus
from rerank.errors import ConfigError
from rerank.synthesize.cleaning import Cleaning, cleaned

TEXTS = {
    "z": "the lift of a thin wing in a steady flow",
    "m": "the lift of a thin  wing in a steady flow",
    "a": "",
    "b": " \n ",
    "c": "wing",
    "d": "antidisestablishmentarianism is-long",
    "e": "翼的升力是由压力差产生的，压力差取决于迎角",
}


def test_what_is_left_out_is_counted_and_what_stays_is_in_the_order_of_ids() -> None:
    corpus = MemoryCorpus(TEXTS)
    found = cleaned(corpus, Cleaning(min_characters=10, min_words=4))
    assert corpus.ids.take(found.codes).tolist() == ["e", "m"]
    assert found.dropped == {
        "empty": 2,
        "fewer than 4 words": 1,
        "same text as another document": 1,
        "shorter than 10 characters": 1,
    }


def test_duplicates_may_stay() -> None:
    found = cleaned(MemoryCorpus(TEXTS), Cleaning(min_characters=10, min_words=4, duplicates=True))
    assert len(found.codes) == 3


def test_the_order_of_the_file_does_not_matter() -> None:
    here, there = MemoryCorpus(TEXTS), MemoryCorpus(dict(reversed(TEXTS.items())))
    some = [corpus.ids.take(cleaned(corpus, Cleaning(min_characters=10)).codes).tolist() for corpus in (here, there)]
    assert some[0] == some[1]


def test_limits_that_make_no_sense() -> None:
    with pytest.raises(ConfigError, match="cleaning: min_words is -1"):
        Cleaning(min_words=-1)
