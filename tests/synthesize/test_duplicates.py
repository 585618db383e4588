"""Near duplicates: what the prefix filter finds is what comparing all with all finds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rerank.synthesize.duplicates import alike, near_duplicates

TEXTS = st.lists(st.lists(st.sampled_from("abcdefg"), min_size=0, max_size=7).map(" ".join), max_size=14)


@given(TEXTS, st.sampled_from([0.3, 0.5, 0.8, 1.0]))
def test_the_filter_loses_nothing(texts: list[str], threshold: float) -> None:
    kept: list[str] = []
    expected = []
    for text in texts:
        expected.append(not any(alike(text, other) >= threshold for other in kept))
        if expected[-1]:
            kept.append(text)
    found = near_duplicates(texts, threshold)
    assert [other is None for other in found] == expected
    for text, other in zip(texts, found, strict=True):
        if other is not None:
            assert alike(text, texts[other[0]]) == other[1] >= threshold


def test_case_and_punctuation_say_nothing_and_other_scripts_are_words_too() -> None:
    assert near_duplicates(["walk a tree", "Walk a tree?", "東京の天気", "東京の天気！"], 0.9) == [
        None,
        (0, 1.0),
        None,
        (2, 1.0),
    ]
