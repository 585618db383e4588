from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank.errors import PipelineError
from rerank.prompts.parsers import (
    PARSERS,
    Parsed,
    Shown,
    group_grades,
    has_group_form,
    is_label_grades,
    log_softmax,
    numbers,
    read_answer_pick,
    read_binary,
    read_distribution,
    read_expectation,
    read_group_scores,
    read_label_grades,
    read_likelihood,
    read_logit,
    read_permutation,
    read_think_answer_pick,
    sigmoid,
    think_answer,
)

YES_NO = Shown(1, ("yes", "no"))
GRADES = Shown(1, ("0", "1", "2", "3", "4"), (0.0, 1.0, 2.0, 3.0, 4.0))
finite = st.floats(-50, 50)


def numbered(n: int) -> Shown:
    return Shown(n, numbers(n))


# -- logits ---------------------------------------------------------------------


def test_yes_no_is_the_softmax_over_both_labels():
    # The card's check: (no, yes) = (0, ln 3) -> .75.
    assert read_binary([math.log(3), 0.0], YES_NO).answer == pytest.approx((0.75,))


@given(finite, finite, st.floats(-1000, 1000))
def test_yes_no_is_the_sigmoid_of_the_difference_whatever_constant_is_added(yes, no, constant):
    expected = read_binary([yes, no], YES_NO).answer[0]
    assert expected == sigmoid(yes - no)
    assert read_binary([yes + constant, no + constant], YES_NO).answer[0] == pytest.approx(expected, abs=1e-9)


@given(finite, finite)
def test_yes_no_and_no_yes_sum_to_one(yes, no):
    assert sigmoid(yes - no) + sigmoid(no - yes) == pytest.approx(1)


@given(st.lists(finite, min_size=5, max_size=5))
def test_the_expected_grade_lies_in_the_scale_and_ignores_constants(logits):
    expected = read_expectation(logits, GRADES).answer[0]
    assert 0 <= expected <= 4 + 1e-12
    moved = read_expectation([value - 7.5 for value in logits], GRADES).answer[0]
    assert moved == pytest.approx(expected, abs=1e-9)


def test_a_certain_grade_is_the_expectation():
    assert read_expectation([-90, -90, -90, 90, -90], GRADES).answer == pytest.approx((3.0,))


@given(st.lists(finite, min_size=2, max_size=20))
def test_a_distribution_is_log_probabilities_in_the_order_of_the_logits(logits):
    shown = Shown(len(logits), tuple(map(str, range(len(logits)))))
    answer = read_distribution(np.array(logits, dtype=np.float64), shown).answer
    assert math.fsum(math.exp(score) for score in answer) == pytest.approx(1)
    assert np.argsort(answer, kind="stable").tolist() == np.argsort(log_softmax(logits), kind="stable").tolist()


def test_the_single_label_of_a_tuned_model_is_its_logit_untouched():
    assert read_logit([3.25], Shown(1, ("Yes",))).answer == (3.25,)


@pytest.mark.parametrize("logits", [[math.nan, 0.0], [math.inf, 0.0], [-math.inf, -math.inf]])
def test_logits_that_are_not_finite_say_nothing(logits):
    assert read_binary(logits, YES_NO).answer == (None,)
    assert read_distribution(logits, Shown(2, ("A", "B"))).answer == (None, None)


def test_a_label_that_cannot_come_is_still_an_answer():
    assert read_binary([-math.inf, 0.0], YES_NO).answer == (0.0,)


def test_a_likelihood_is_the_number_itself():
    assert read_likelihood(np.float32(-2.5), Shown(1)).answer == (-2.5,)
    assert read_likelihood(math.nan, Shown(1)).answer == (None,)


def test_logits_of_another_number_of_labels_are_an_engines_error():
    with pytest.raises(PipelineError, match="3 logits were answered for 2 labels"):
        read_binary([1.0, 2.0, 3.0], YES_NO)
    with pytest.raises(PipelineError, match="ask with `choices`"):
        read_binary(0.5, YES_NO)
    with pytest.raises(PipelineError, match="text was expected of `generate`; got list"):
        read_permutation([1.0], numbered(1))


# -- labels as text ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("yes", 1.0),
        (" No.", 0.0),
        ("**Yes**, it does", 1.0),
        ("<think>no, but</think>\n\nYes", 1.0),
        ("<answer>no</answer>", 0.0),
        ("<think>yes", None),
        ("perhaps", None),
        ("", None),
    ],
)
def test_yes_and_no_are_read_from_text_too(text, score):
    assert read_binary(text, YES_NO).answer == (score,)


@pytest.mark.parametrize(
    ("text", "score"),
    [(" true", 1.0), ("because ...</think> false", 0.0), ("</think> true", 1.0), ("<think> true", None)],
)
def test_true_and_false_after_the_reasoning(text, score):
    assert read_binary(text, Shown(1, (" true", " false"))).answer == (score,)


def test_a_grade_is_read_from_text():
    assert read_expectation("3 - answers most of it", GRADES).answer == (3.0,)
    assert read_expectation("7", GRADES).answer == (None,)


@pytest.mark.parametrize("text", ["B", " [B]", "(b).", "<think>A</think>B"])
def test_a_bare_label_is_a_pick(text):
    assert read_distribution(text, Shown(3, ("A", "B", "C"))).answer == (0.0, 1.0, 0.0)


@pytest.mark.parametrize("text", ["A passage about B", "D", "A or B", ""])
def test_anything_more_than_a_label_is_no_pick(text):
    assert read_distribution(text, Shown(3, ("A", "B", "C"))).answer == (None, None, None)


# -- Rank-R1 -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "truth", "reward"),
    [
        ("<think>x</think><answer>[6]</answer>", "[6]", 1),
        ("<think>x</think>\n <answer> [6]\n</answer>", "[6]", 1),
        ("<think>x</think><answer>[6]</answer>", "[5]", 0),
        ("<answer>[6]</answer>", "[6]", 0),
        ("<answer>[6]</answer><think>x</think>", "[6]", 0),
        ("<think>x</think><answer>6</answer>", "[6]", 0),
        ("<think>x</think><answer>[6]</answer><think>y</think><answer>[5]</answer>", "[6]", 1),
        ("<think>x</think><answer>[6]</answer><think>y</think><answer>[5]</answer>", "[5]", 0),
        ("Well. <think>a\nb</think><answer>[6]</answer> Done.", "[6]", 1),
        ("<THINK>x</THINK><answer>[6]</answer>", "[6]", 0),
        ("<think>x</think> so <answer>[6]</answer>", "[6]", 0),
        ("<think>x</think><answer>[6]", "[6]", 0),
    ],
)
def test_rank_r1_reward_table(completion, truth, reward):
    assert int(think_answer(completion, fold_case=False) == truth) == reward


@pytest.mark.parametrize(
    ("said", "pick"),
    [("[7]", 7), (" [7] ", 7), ("7", None), ("[07]", None), ("[7] and [3]", None), ("doc [7]", None), ("[9]", None)],
)
def test_rank_r1_takes_a_label_in_brackets_and_nothing_else(said, pick):
    answer = read_think_answer_pick(f"<think>...</think><answer>{said}</answer>", numbered(8)).answer
    assert answer == ((None,) * 8 if pick is None else tuple(float(i == pick) for i in range(1, 9)))


def test_rank_r1_inference_ignores_case_in_tags_and_labels():
    shown = Shown(2, ("A", "B"))
    assert read_think_answer_pick("<Think>x</THINK> <Answer>[b]</ANSWER>", shown).answer == (0.0, 1.0)


def test_the_baseline_without_reasoning_needs_no_think_block():
    assert read_answer_pick("<answer>[2]</answer>", numbered(2)).answer == (0.0, 1.0)
    assert read_think_answer_pick("<answer>[2]</answer>", numbered(2)).answer == (None, None)


def test_tags_that_never_close_take_linear_time():
    text = "<think></think><answer>" * 50_000
    assert think_answer(text) is None
    assert think_answer("<think>" * 100_000 + "</answer>") is None


# -- orders --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("[2] > [2] > [9] > [1]", (2, 1, 3)),
        ("[3] > [1] > [2]", (3, 1, 2)),
        ("[3]>[1]>[2]", (3, 1, 2)),
        ("[3], [1]", (3, 1, 2)),
        ("2 > 3 > 1", (2, 3, 1)),
        ("[02] > [0] > [3]", (2, 3, 1)),
        ("Here are the 3 passages ranked: [2] > [1] > [3].", (2, 1, 3)),
        ("<think>[1] is best, then [2]</think> [3] > [2] > [1]", (3, 2, 1)),
        ("<think>...</think><answer>[3] > [2] > [1]</answer>", (3, 2, 1)),
        ("③ > ① > ②", (3, 1, 2)),
        ("[3] > [1", (3, 1, 2)),
        ("3" * 5000 + " [2]", (2, 1, 3)),
    ],
)
def test_rankgpt_repairs_whatever_names_a_document(text, order):
    answer = read_permutation(text, numbered(3)).answer
    assert tuple(sorted(range(1, 4), key=lambda label: -(answer[label - 1] or 0))) == order
    assert sorted(answer) == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("text", ["", "no idea", "<think>[1] > [2] > [3]", "[7] > [9]", "9"])
def test_an_order_without_any_label_says_nothing(text):
    assert read_permutation(text, numbered(3)).answer == (None, None, None)


def test_orders_of_letters():
    shown = Shown(3, ("A", "B", "C"))
    assert read_permutation("[B] > [C] > [A]", shown).answer == (1.0, 3.0, 2.0)
    assert read_permutation("C > A", shown).answer == (2.0, 1.0, 3.0)


def test_only_a_whole_order_is_without_problems():
    assert read_permutation("[2] > [1] > [3]", numbered(3)).problems == ()
    assert read_permutation("[2] > [1]", numbered(3)).problems == ("labels missing",)
    assert len(read_permutation("[2] > [2] > [4] > [1]", numbered(3)).problems) == 2


@given(st.permutations(range(1, 21)))
def test_a_permutation_comes_back_as_it_was_written(order):
    answer = read_permutation(" > ".join(f"[{label}]" for label in order), numbered(20)).answer
    assert [answer[label - 1] for label in order] == [float(score) for score in range(20, 0, -1)]


# -- GroupRank ---------------------------------------------------------------------


def test_a_well_formed_group_answer_is_tenths():
    text = '<reason>[1] helps.</reason>\n<answer>\n```json\n{"[1]": 10, "[2]": 0, "[3]": 7}\n```\n</answer>'
    assert read_group_scores(text, numbered(3)) == Parsed((1.0, 0.0, 0.7))


@pytest.mark.parametrize(
    ("text", "grades"),
    [
        ('{"[0]": 9, "[1]": 5, "[2]": 3}', [5, 3]),  # key 0 is nobody, not the last document
        ('{"[1]": 5}', [5, None]),
        ('{"[1]": 5, "[2]": 11}', [5, None]),
        ('{"[1]": 5, "[2]": -1}', [5, None]),
        ('{"[1]": 5, "[2]": 7.5}', [5, None]),
        ('{"[1]": 5, "[2]": "7"}', [5, None]),
        ('{"[1]": 5, "[2]": true}', [5, None]),
        ('{"[1]": 5, "[2]": null}', [5, None]),
        ('{"[1]": 5, "[2]": NaN}', [5, None]),
        ('{"[1]": 5, "[2]": ' + "9" * 6000 + "}", [5, None]),
        ('{"[1]": 5, "[2]]": 7}', [5, 7]),
        ('{"1": 5, "[2].": 7}', [5, 7]),
        ('{"[1]": 5, "[2]": 7', [5, 7]),
        ('```json\n{"[1]": 5, "[2]": 7\n```', [5, 7]),
        ('{"[1]": 5, "[2]": 7, "[2]": 3}', [5, None]),
        ('{"[1]": 5, "[2]": 7, "[3]": 1}', [5, 7]),
        ('{"[1]": 5, "[x]": 7}', [5, None]),
        ('{"scores": {"[1]": 5, "[2]": 7}}', [5, 7]),
    ],
)
def test_what_is_wrong_costs_only_the_documents_that_it_is_about(text, grades):
    found, problems = group_grades(text, 2)
    assert found == grades
    assert bool(problems) == (text != '{"scores": {"[1]": 5, "[2]": 7}}')


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no",
        "{",
        '{"[1]": 5,, "[2]": 7}',
        "{'[1]': 5}",
        '["[1]", 5]',
        "{" * 100_000,
        '{"[1]": ' * 50_000,
        "```json```",
    ],
)
def test_a_broken_group_answer_says_nothing(text):
    assert read_group_scores(text, numbered(2)).answer == (None, None)


def test_the_answer_tags_are_read_then_the_last_block_then_the_last_object():
    inside = '{"[1]": 1, "[2]": 2}'
    other = '{"[1]": 9, "[2]": 9}'
    for text in (
        f"{other} <answer>{inside}</answer> {other}",
        f"<reason>{other}</reason><answer>{inside}",
        f"<think>{other}</think>{inside}",
        f"```json\n{other}\n```\nor rather\n```json\n{inside}\n``` {other}",
        f"{other} or rather {inside}",
    ):
        assert group_grades(text, 2)[0] == [1, 2], text


@pytest.mark.parametrize(
    ("text", "keeps"),
    [
        ("<reason>a</reason><answer>{}</answer>", True),
        (" <reason>a\nb</reason>\n\n<answer>{}</answer>\n", True),
        ("<answer>{}</answer><reason>a</reason>", False),
        ("<reason>a</reason> so <answer>{}</answer>", False),
        ("<reason>a</reason><answer>{}</answer> done", False),
        ("<reason>a</reason><answer>{}</answer><answer>{}</answer>", False),
        ("<reason><reason>a</reason><answer>{}</answer>", False),
        ("<reason>a</reason>", False),
        ("", False),
    ],
)
def test_group_tags_are_one_reason_and_one_answer_with_white_space_around(text, keeps):
    assert has_group_form(text) is keeps


@given(st.lists(st.integers(0, 10), min_size=1, max_size=20))
def test_grades_come_back_as_they_were_written(grades):
    text = json.dumps({f"[{i}]": grade for i, grade in enumerate(grades, 1)})
    assert group_grades(text, len(grades)) == (grades, [])


# -- grades right behind labels ---------------------------------------------------------


def lettered(n: int) -> Shown:
    return Shown(n, tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:n]))


@pytest.mark.parametrize(
    ("text", "grades", "problems"),
    [
        ("A9 B0 C3", [9, 0, 3], 0),
        ("C3 A9 B0", [9, 0, 3], 0),
        ("A 9, B: 0; C=3", [9, 0, 3], 0),
        ("A9\nB0\nC3", [9, 0, 3], 0),
        ("A9B0C3", [9, 0, 3], 0),
        ("<think>A1 B1 C1</think>A9 B0 C3", [9, 0, 3], 0),
        ("A9 B0", [9, 0, None], 1),
        ("A9 B10 C3", [9, None, 3], 1),
        ("A9 B0 C3 D7", [9, 0, 3], 1),  # a label that was not shown
        ("A9 B0 C3 A9", [None, 0, 3], 1),  # even where both say the same
        ("a9 B0 C3", [None, 0, 3], 2),
        ("A-9 B0 C3", [None, 0, 3], 1),
        ("grade A9 B0 C3", [9, 0, 3], 0),
        ("9 0 3", [None, None, None], 3),
        ("", [None, None, None], 3),
    ],
)
def test_grades_right_behind_labels(text, grades, problems):
    found = read_label_grades(text, lettered(3))
    assert found.answer == tuple(None if grade is None else grade / 9 for grade in grades)
    assert len(found.problems) == problems


@given(st.lists(st.integers(0, 9), min_size=1, max_size=26), st.randoms(use_true_random=False))
def test_grades_behind_labels_come_back_whatever_their_order(grades, random):
    shown = lettered(len(grades))
    pairs = [f"{label}{grade}" for label, grade in zip(shown.labels, grades, strict=True)]
    random.shuffle(pairs)
    text = " ".join(pairs)
    assert read_label_grades(text, shown) == Parsed(tuple(grade / 9 for grade in grades))
    assert is_label_grades(text)


@pytest.mark.parametrize(
    ("text", "keeps"),
    [
        ("A9 B0", True),
        (" A9 B0\n", True),
        ("A9", True),
        ("A9  B0", False),
        ("A9, B0", False),
        ("A 9 B0", False),
        ("A10 B0", False),
        ("A9 B0.", False),
        ("A9\nB0", False),
        ("", False),
    ],
)
def test_the_form_is_one_blank_between_pairs_and_nothing_else(text, keeps):
    assert is_label_grades(text) is keeps


# -- any parser -------------------------------------------------------------------


@given(st.text() | st.from_regex(r"(<think>|</think>|<answer>|\[[0-9]\]|\{|\}|yes|\"|:|```|[0-9]| ){1,20}"))
def test_no_parser_raises_over_a_text_and_each_answers_for_every_document(text):
    for name, parser in PARSERS.items():
        if name == "likelihood":
            continue
        n = (3 if parser.many else 1) if parser.documents else 0
        shown = numbered(3) if parser.many else {"binary": YES_NO, "expectation": GRADES}.get(name, Shown(1, ("Yes",)))
        answer = parser.read(text, shown).answer
        assert len(answer) == n
        assert all(score is None or math.isfinite(score) for score in answer)
