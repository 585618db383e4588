"""What is to be answered: in the form that is asked for, and read back as the labels say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank.errors import ConfigError
from rerank.prompts import list_prompts, load_prompt
from rerank.train.answers import Verdict, read_reply
from rerank.train.targets import target_of

WRITTEN = [name for name in list_prompts() if load_prompt(name).verb == "generate" and load_prompt(name).shows_many]


@pytest.mark.parametrize(
    ("name", "labels", "target"),
    [
        ("short-grades", (0.0, 2.0, 1.0), "A0 B9 C5"),
        ("short-grades", (0.0, 0.0), "A0 B0"),
        ("short-grades", (3.0, 3.0), "A9 B9"),
        ("short-pick", (0.0, 2.0, 1.0), "<answer>[B]</answer>"),
        ("short-pick", (1.0, 2.0, 2.0), "<answer>[B]</answer>"),
        ("rank-r1", (0.0, 1.0), "<think>\n\n</think><answer>[2]</answer>"),
        ("group-scores", (0.0, 2.0, 1.0), '{"[1]": 0, "[2]": 10, "[3]": 5}'),
    ],
)
def test_targets_are_those_worked_out(name: str, labels: tuple[float, ...], target: str) -> None:
    assert target_of(load_prompt(name), labels) == target


def test_the_highest_grade_stands_for_the_label_that_is_given() -> None:
    assert target_of(load_prompt("short-grades"), (0.0, 1.0, 2.0, 3.0, 4.0), top=3.0) == "A0 B3 C6 D9 E9"


def test_labels_beyond_the_grades_of_one_document_want_a_top() -> None:
    graded = load_prompt("graded")
    assert target_of(graded, (2.0,)) == target_of(graded, (7.0,), top=14.0)
    with pytest.raises(ConfigError, match="a label is 7, but the prompt 'graded' has grades up to 4; give top"):
        target_of(graded, (7.0,))


@pytest.mark.parametrize("name", WRITTEN)
@given(labels=st.lists(st.integers(0, 3).map(float), min_size=2, max_size=8))
def test_what_is_to_be_written_is_a_valid_answer_and_right(name: str, labels: list[float]) -> None:
    prompt = load_prompt(name)
    target = target_of(prompt, labels)
    if len(set(labels)) == 1 and prompt.parser not in ("label-grades", "group-scores"):
        assert target is None  # documents that are alike can be graded, not put in order
        return
    assert isinstance(target, str)
    reply = read_reply(prompt, target, len(labels))
    assert reply.valid, (target, reply)
    assert reply.verdict(labels) is Verdict.RIGHT
