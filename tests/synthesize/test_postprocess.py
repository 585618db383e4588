"""From what models write to queries."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank.errors import ConfigError
from rerank.synthesize.postprocess import PostProcessing

QUERY = "how do wings make lift?"


@pytest.mark.parametrize(
    ("raw", "query"),
    [
        # The mark stays, other than in the paper's code.
        ("How is X?\nExample 5: Document: y", "How is X?"),
        (f" {QUERY}", QUERY),
        (f"{QUERY} The document says so. Answer: by", QUERY),
        ("wings make lift\nDocument: another", "wings make lift"),
        ("wings make lift Document: another", "wings make lift"),
        ("wings and lift Example 5: Document: y", "wings and lift"),
        (f"Relevant Query: {QUERY}", QUERY),
        (f'1. "{QUERY}"', QUERY),
        (f"- **{QUERY}**", QUERY),
        (f"Sure! Here is a relevant query:\n\n{QUERY}", QUERY),
        (f"Here's one: {QUERY}", QUERY),
        ("wings and lift (Note: the text speaks of wings)", "wings and lift"),
        ("wings and lift Explanation: it is about lift", "wings and lift"),
        # Other scripts and their question marks.
        ("翼はどのように揚力を生むのか？ はい", "翼はどのように揚力を生むのか？"),
        ("كيف يعمل الجناح؟ نعم", "كيف يعمل الجناح؟"),
        ("как крыло создаёт подъёмную силу", "как крыло создаёт подъёмную силу"),
        ("what's Python's walrus operator", "what's Python's walrus operator"),
        ("note taking apps", "note taking apps"),
    ],
)
def test_queries_are_cut_out_of_what_was_written(raw: str, query: str) -> None:
    assert PostProcessing()(raw) == (query, None)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("", "empty"),
        (" \n\t ", "empty"),
        ("Example 5: Document: y", "empty"),
        ("Sure, here is a query:", "no query, only talk"),
        ("I hope this helps!", "no query, only talk"),
        ("...\n--", "no query, only talk"),
        ("wings", "fewer than 2 words"),
        ("w " + " ".join(f"word{i}" for i in range(40)), "more than 32 words"),
        ("lift lift lift lift wing lift", "repeats itself"),
        ("traceback traceback", "repeats itself"),
        ("how to make lift with the", "breaks off"),
    ],
)
def test_what_is_no_query_is_told_why(raw: str, reason: str) -> None:
    assert PostProcessing()(raw).reason == reason


def test_the_filter_of_the_papers_code_is_there_for_who_wants_it() -> None:
    assert PostProcessing(ascii_only=True)("naïve café music").reason == "not ASCII"
    assert PostProcessing()("naïve café music").reason is None


@given(st.text(max_size=200))
def test_any_text_gives_one_line_or_a_reason(raw: str) -> None:
    text, reason = PostProcessing()(raw)
    assert "\n" not in text and text == text.strip()
    assert bool(text) or reason in ("empty", "no query, only talk")


@given(st.text(max_size=80))
def test_a_query_cut_once_more_stays_or_is_none(raw: str) -> None:
    text, reason = PostProcessing(min_words=1)(raw)
    if reason is None:
        again = PostProcessing(min_words=1)(text)
        assert len(again.text) <= len(text)


@pytest.mark.parametrize("options", [{"min_words": 0}, {"max_words": 1}, {"max_repeated": 2.0}])
def test_limits_that_make_no_sense(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="postprocessing: "):
        PostProcessing(**options)  # type: ignore[arg-type]
