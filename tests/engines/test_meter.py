"""Meters: what questions take, in tokens and in time."""

from __future__ import annotations

import pytest

from rerank.engines.engine import Asked
from rerank.engines.meter import READING_SHARE, WRITING_SHARE, Size, Work, by_characters, by_prompt, matrix_rate
from rerank.prompts import load_prompt

QUESTIONS = [Asked("q", "lift", (str(i),), (f"a wing {'and another ' * i}",)) for i in range(3)]


def test_four_characters_are_a_token_where_nothing_is_known() -> None:
    meter = by_characters(None, remark="not here")
    assert meter.sizes([Asked("q", "abcd", ("1",), ("efghi",))]) == [Size(3)]
    assert meter.remarks == ("not here",)
    prompted = by_characters("monot5", generated=7)
    assert prompted.sizes(QUESTIONS[:1]) == [Size(-(-len("Query: lift Document: a wing Relevant:") // 4), generated=7)]
    assert prompted.most_documents == 1


def test_time_grows_with_what_is_read_and_written_and_falls_with_the_rate() -> None:
    work = Work(weights=1000, vocabulary_weights=500, attention=0, dtype="float32")
    assert work.seconds([Size(10, shared=4)], 1e3) == pytest.approx(2 * 6 * 1000 / READING_SHARE / 1e3)
    assert work.seconds([Size(0, generated=3)], 1e3) == pytest.approx(2 * 3 * 1500 / WRITING_SHARE / 1e3)
    attending = Work(weights=1000, vocabulary_weights=500, attention=10, dtype="float32")
    assert attending.seconds([Size(10)], 1e3) == pytest.approx(2 * 10 * (1000 + 2 * 10 * 10) / READING_SHARE / 1e3)
    assert work.seconds([Size(10)] * 2, 2e3) == pytest.approx(work.seconds([Size(10)], 1e3))


@pytest.mark.needs("transformers")
def test_the_beginning_that_prompts_of_a_query_share_is_told_unless_answers_are_written() -> None:
    from tiny_tokenizers import byte_pairs

    tokenizer = byte_pairs()
    bound = load_prompt("yes-no").bind(tokenizer)
    sizes = by_prompt(bound, 4000).sizes([*QUESTIONS, QUESTIONS[0]._replace(query="drag")])
    requests = bound.requests([(each.query, each.documents) for each in QUESTIONS], 4000)
    more = sum(len(label) - 1 for label in requests[0].continuations)
    assert [size.tokens for size in sizes[:3]] == [len(request.tokens) + more for request in requests]
    assert [size.shared for size in sizes] == [0, requests[0].prefix, requests[0].prefix, 0]
    written = by_prompt(load_prompt("order").bind(tokenizer), 4000, generated=20, samples=2).sizes(QUESTIONS[:2])
    once = by_prompt(load_prompt("order").bind(tokenizer), 4000).sizes(QUESTIONS[:2])
    assert [size.shared for size in written] == [0, 0]
    assert [size.tokens for size in written] == [2 * size.tokens for size in once]
    assert [size.generated for size in written] == [20, 20]


@pytest.mark.needs("torch")
def test_the_rate_of_matrix_products_is_measured() -> None:
    assert matrix_rate("float32", "cpu", 1) > 1e8
