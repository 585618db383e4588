"""Passages cover their document, are as long as asked, and merge as the rule says."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank.engines.passages import Passages, word_passages
from rerank.errors import ConfigError

WORDS = st.lists(st.sampled_from(["one", "zwei", "三", "\x00"]), max_size=60)


@given(WORDS, st.integers(1, 12), st.data())
def test_every_word_is_in_a_passage_and_passages_go_forward(words: list[str], size: int, data: st.DataObject) -> None:
    passages = Passages(size=size, stride=data.draw(st.integers(1, size)))
    text = " ".join(words)
    (spans,) = word_passages([text], passages)
    assert spans[0][0] == 0 and spans[-1][1] == len(text)
    assert all(a < c and b <= d for (a, b), (c, d) in pairwise(spans))
    assert all(c <= b + 1 for (_, b), (c, _) in pairwise(spans))  # the blank between two words
    lengths = [len(text[slice(*span)].split()) for span in spans]
    assert max(lengths) <= size
    assert len(words) < size or set(lengths) == {size}


@given(WORDS, st.integers(1, 12))
def test_first_reads_the_first_passage_only(words: list[str], size: int) -> None:
    text = " ".join(words)
    (spans,) = word_passages([text], Passages(size=size, stride=1, merge="first"))
    assert [text[slice(*span)] for span in spans] == [" ".join(words[:size])]


@pytest.mark.parametrize(("merge", "score"), [("max", 4.0), ("mean", 2.5), ("top_mean", 3.5)])
def test_scores_merge_as_named(merge: str, score: float) -> None:
    assert Passages(merge=merge, top=2).merged([1.0, 4.0, 2.0, 3.0]) == score  # type: ignore[arg-type]


@pytest.mark.parametrize("fields", [{"size": 0}, {"stride": 0}, {"size": 10, "stride": 11}, {"top": 0}])
def test_windows_that_leave_gaps_are_refused(fields: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="passages: size is"):
        Passages(**fields)  # type: ignore[arg-type]
