"""Completions read for training: the same parsers as at inference, asked for more; what each answer was."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank.errors import DataError
from rerank.prompts import list_prompts, load_prompt
from rerank.prompts.prompt import parse_prompt
from rerank.prompts.reading import read_answer
from rerank.train.answers import Form, Reply, Verdict, form_of, read_reply

ANSWER_TAGS = """
description: Grades in answer tags.
verb: generate
parser: group-scores
labels: numbers
document: {format: "[{label}] {text}"}
messages:
  - {role: user, content: "{query} {documents} Answer inside <answer> </answer>."}
"""
GRADES = '{"[1]": 7, "[2]": 0}'
GROUP = f"<reason>why</reason><answer>{GRADES}</answer>"


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("rank-r1", "think-answer"),
        ("rank-r1-sft", "answer"),
        ("grouprank", "reason-answer"),
        ("group-scores", "object"),
        ("short-grades", "label-grades"),
        ("short-pick", "answer"),
        ("order", "any"),
        ("pick", "any"),
        ("yes-no", "any"),
    ],
)
def test_the_form_is_the_one_that_the_prompt_asks_for(name: str, form: Form) -> None:
    assert form_of(load_prompt(name)) == form


def test_a_prompt_that_names_answer_tags_alone_asks_for_those() -> None:
    prompt = parse_prompt(ANSWER_TAGS)
    assert form_of(prompt) == "answer-only"
    assert read_reply(prompt, f" <answer>{GRADES}</answer>\n", 2) == Reply((0.7, 0.0))
    for text in (f"So: <answer>{GRADES}</answer>", GROUP, GRADES, f"<answer>{GRADES}"):
        reply = read_reply(prompt, text, 2)
        assert reply.scores == (0.7, 0.0)  # inference reads it
        assert not reply.formed  # training asks for the form


@pytest.mark.parametrize(
    ("text", "formed", "valid"),
    [
        (GROUP, True, True),
        (f" <reason>a\nb</reason>\n\n<answer>\n```json\n{GRADES}\n```\n</answer> ", True, True),
        (f"<think>hm</think>{GROUP}", True, True),
        (f"Sure! {GROUP}", False, False),
        (f"{GROUP} Done.", False, False),
        (f"<answer>{GRADES}</answer><reason>why</reason>", False, False),
        (f"<reason>a</reason><reason>b</reason><answer>{GRADES}</answer>", False, False),
        (f"<reason>a</reason><answer>{GRADES}</answer><answer>{GRADES}</answer>", False, False),
        (f"<answer>{GRADES}</answer>", False, False),
        (GRADES, False, False),
        ("", False, False),
        (f"<think>hm {GROUP}", False, False),
        ('<reason>a</reason><answer>{"[1]": 7}</answer>', True, False),
        ('<reason>a</reason><answer>{"[1]": 7, "[2]": 11}</answer>', True, False),
        ('<reason>a</reason><answer>{"[1]": 7, "[2]": 1.5}</answer>', True, False),
        ('<reason>a</reason><answer>{"[1]": 7, "[2]": "1"}</answer>', True, False),
        ('<reason>a</reason><answer>{"[1]": 7, "[2]": 1, "[3]": 1}</answer>', True, False),
        ('<reason>a</reason><answer>{"[0]": 7, "[1]": 1}</answer>', True, False),
        ('<reason>a</reason><answer>{"[1]": 7, "[2]": 1</answer>', True, False),
        ("<reason>a</reason><answer>[1] is best</answer>", True, False),
    ],
)
def test_grades_of_a_group_need_one_reason_one_answer_and_a_grade_for_each(
    text: str, formed: bool, valid: bool
) -> None:
    reply = read_reply(load_prompt("grouprank"), text, 2)
    assert (reply.formed, reply.valid) == (formed, valid)


@pytest.mark.parametrize(
    ("text", "formed"),
    [
        (GRADES, True),
        (f"\n```json\n{GRADES}\n```\n", True),
        (f"<think>hm</think>\n{GRADES}", True),
        (f"Grades: {GRADES}", False),
        (f"{GRADES} Done.", False),
        (f"{GRADES}{GRADES}", False),
        ("```", False),
        ("", False),
    ],
)
def test_a_prompt_without_tags_asks_for_one_object_alone(text: str, formed: bool) -> None:
    assert read_reply(load_prompt("group-scores"), text, 2).formed == formed


@pytest.mark.parametrize(
    ("text", "formed", "valid"),
    [
        ("A7 B0", True, True),
        ("B0 A7\n", True, True),
        ("<think>hm</think>A7 B0", True, True),
        ("A7", True, False),
        ("A7 B0 C1", True, False),
        ("A: 7 B: 0", False, False),  # inference reads it
        ("Grades: A7 B0", False, False),
        ("<think>A7 B0", False, False),
        ("", False, False),
    ],
)
def test_grades_right_behind_labels_stand_alone(text: str, formed: bool, valid: bool) -> None:
    reply = read_reply(load_prompt("short-grades"), text, 2)
    assert (reply.formed, reply.valid) == (formed, valid)


@pytest.mark.parametrize("opening", ["<think>\n", ""])
def test_what_the_prompt_began_belongs_to_the_answer(opening: str) -> None:
    reply = read_reply(load_prompt("rank-r1"), "B it is</think><answer>[2]</answer>", 3, begun=opening)
    assert reply.valid == bool(opening)


@pytest.mark.parametrize("name", [name for name in list_prompts() if load_prompt(name).verb == "generate"])
@settings(max_examples=30)
@given(
    text=st.one_of(
        st.text(max_size=60),
        st.lists(
            st.sampled_from(
                ["<think>", "</think>", "<answer>", "</answer>", "<reason>", "</reason>", "[2]", GRADES, " "]
            )
        ).map("".join),
    )
)
def test_training_reads_the_scores_that_inference_reads(name: str, text: str) -> None:
    prompt = load_prompt(name)
    if prompt.shows_documents:
        n = 2 if prompt.shows_many else 1
        reply = read_reply(prompt, text, n)
        if reply.valid or form_of(prompt) not in ("think-answer", "answer"):
            assert reply.scores == read_answer(prompt, text, n)


@pytest.mark.parametrize(
    ("name", "text", "picked"),
    [
        ("short-pick", "<answer>[B]</answer>", 1),
        ("short-pick", "<answer>[b]</answer>", None),
        ("rank-r1", "<THINK>x</THINK><ANSWER>[3]</ANSWER> <think>y</think><answer>[2]</answer>", 1),
        ("rank-r1", "<THINK>x</THINK><ANSWER>[2]</ANSWER>", None),
    ],
)
def test_a_pick_is_rewarded_as_it_is_written_and_inference_reads_any_case(
    name: str, text: str, picked: int | None
) -> None:
    reply = read_reply(load_prompt(name), text, 3)
    assert reply.valid == (picked is not None)
    if picked is not None:
        assert reply.scores[picked] == 1.0
    assert 1.0 in read_answer(load_prompt(name), text, 3)


@pytest.mark.parametrize(
    ("reply", "labels", "verdict"),
    [
        (Reply((0.0, 1.0, 0.0)), (0.0, 1.0, 0.0), Verdict.RIGHT),
        (Reply((1.0, 0.0, 0.0)), (0.0, 1.0, 0.0), Verdict.WRONG),
        (Reply((0.9, 0.9, 0.0)), (2.0, 2.0, 0.0), Verdict.RIGHT),
        (Reply((0.9, 0.9, 0.0)), (2.0, 1.0, 0.0), Verdict.WRONG),
        (Reply((0.5, 0.5)), (1.0, 1.0), Verdict.RIGHT),
        (Reply((None, None), False, ("no pick",)), (1.0, 0.0), Verdict.UNPARSABLE),
        (Reply((None, None), False, ("no pick",), finished=False), (1.0, 0.0), Verdict.CUT_OFF),
        (Reply((0.9, 0.0), formed=False), (1.0, 0.0), Verdict.UNPARSABLE),
        (Reply((0.9, 0.0), True, ("closing brace missing",), finished=False), (1.0, 0.0), Verdict.CUT_OFF),
        # It went on after its answer until it was stopped, where the form allows that.
        (Reply((1.0, 0.0), finished=False), (1.0, 0.0), Verdict.RIGHT),
    ],
)
def test_wrong_unparsable_and_cut_off_are_told_apart(reply: Reply, labels: tuple[float, ...], verdict: Verdict) -> None:
    assert reply.verdict(labels) is verdict


def test_labels_are_one_a_document() -> None:
    with pytest.raises(DataError, match="3 labels for 2 documents; give one a document, in order shown"):
        Reply((1.0, 0.0)).verdict((1.0, 0.0, 0.0))
