"""Rewards: the method cards' worked values, ties against brute force, compositions in YAML, advantages."""

from __future__ import annotations

import itertools
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rerank.config import build_part, object_schema, stage_tree
from rerank.errors import ConfigError, DataError, UnknownNameError
from rerank.prompts import load_prompt
from rerank.registry import lookup, names_of
from rerank.train.answers import Reply, read_reply
from rerank.train.rewards import (
    GROUPRANK,
    RANK_R1,
    AlignmentReward,
    ExactPickReward,
    FormatReward,
    ImprovementReward,
    NDCGReward,
    OrderReward,
    RBOReward,
    RecallReward,
    ReciprocalRankReward,
    Reward,
    WeightedReward,
    all_equal,
    chance_within,
    distribution,
    gains_of,
    group_advantages,
    jensen_shannon,
    ndcg,
    rank_biased_overlap,
    recall,
    reciprocal_rank,
    relevant,
)
from rerank.yamlfile import dump_yaml, parse_yaml

EXAMPLES: dict[str, Reward] = {
    "format": FormatReward(),
    "format, with penalties": FormatReward(0.0, -0.1, -0.5),
    "exact_pick": RANK_R1,
    "ndcg": NDCGReward(),
    "ndcg, whole": NDCGReward(None, "exponential"),
    "ndcg, binary": NDCGReward(5, top=2),
    "improvement": ImprovementReward(),
    "improvement, at 3": ImprovementReward(3),
    "recall": RecallReward(),
    "recall, at 10": RecallReward(10),
    "recall, of the best": RecallReward(above=1.0, top=3),
    "reciprocal_rank": ReciprocalRankReward(),
    "reciprocal_rank, of grade 2": ReciprocalRankReward(1.0),
    "rbo": RBOReward(),
    "rbo, short": RBOReward(0.5),
    "alignment": AlignmentReward(),
    "alignment, softmax": AlignmentReward("softmax", 0.5),
    "weighted": GROUPRANK,
    "weighted, in weighted": WeightedReward((GROUPRANK, FormatReward()), (1.0, 0.25)),
}
REWARDS = [pytest.param(reward, id=name) for name, reward in EXAMPLES.items()]
ORDERS = [param for param in REWARDS if isinstance(param.values[0], OrderReward)]

grades = st.integers(0, 4).map(float)
pairs = st.lists(st.tuples(grades, grades), min_size=1, max_size=5)
"""(score, label) of each document; whole grades, so that both tie often."""


def valid(scores: Sequence[float]) -> Reply:
    return Reply(tuple(scores))


def answered(reward: Reward, text: str, labels: Sequence[float], prompt: str = "grouprank") -> float:
    """The reward of a completion."""
    return reward(read_reply(load_prompt(prompt), text, len(labels)), labels)


def graded(*grades: object, reason: str = "why") -> str:
    said = ", ".join(f'"[{number}]": {grade}' for number, grade in enumerate(grades, 1))
    return f"<reason>{reason}</reason>\n<answer>\n```json\n{{{said}}}\n```\n</answer>"


# -- Rank-R1 --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("<think>x</think><answer>[6]</answer>", 1.0),
        ("<think>x</think>\n<answer> [6]\n</answer>", 1.0),
        ("Well. <think>x</think><answer>[6]</answer> That is all.", 1.0),
        ("<think>x</think><answer>[5]</answer>", 0.0),
        ("<answer>[6]</answer>", 0.0),
        ("<answer>[6]</answer><think>x</think>", 0.0),
        ("<think>x</think><answer>6</answer>", 0.0),
        ("<think>x</think><answer>[06]</answer>", 0.0),
        ("<think>x</think><answer>[6] and [3]</answer>", 0.0),
        ("<think>x</think><answer>doc [6]</answer>", 0.0),
        ("<think>x</think><answer>[26]</answer>", 0.0),
        ("<think>x</think><answer>[6]</answer><think>y</think><answer>[5]</answer>", 1.0),
        ("<think>x</think><answer>[5]</answer><think>y</think><answer>[6]</answer>", 0.0),
        ("<think>x</think>so<answer>[6]</answer>", 0.0),
        ("<THINK>x</THINK><ANSWER>[6]</ANSWER>", 0.0),
        ("<think>x</think><answer>[6]", 0.0),
        ("", 0.0),
    ],
)
def test_rank_r1_rewards_the_right_pick_in_the_right_form_alone(text: str, reward: float) -> None:
    labels = [float(place == 5) for place in range(20)]
    assert answered(RANK_R1, text, labels, "rank-r1") == reward


# -- GroupRank ------------------------------------------------------------------------


def test_grouprank_gives_a_perfect_answer_exactly_its_maximum() -> None:
    assert answered(GROUPRANK, graded(10, 5, 0), (10.0, 5.0, 0.0)) == 1.3


def test_grouprank_of_the_reversed_grades_is_the_cards() -> None:
    reply = read_reply(load_prompt("grouprank"), graded(0, 5, 10), 3)
    labels = (10.0, 5.0, 0.0)
    terms = GROUPRANK.terms(reply, labels)
    assert terms == {
        "ndcg": pytest.approx(0.619906, abs=5e-7),
        "recall": 1.0,
        "alignment": pytest.approx(1 - 0.666667, abs=5e-7),
        "format": 0.0,
    }
    assert GROUPRANK(reply, labels) == pytest.approx(0.853240, abs=5e-7)


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        (f"Here: {graded(10, 5, 0)}", -0.5),
        (graded(10, 5, 0).replace("<reason>", "").replace("</reason>", ""), -0.5),
        ('{"[1]": 10, "[2]": 5, "[3]": 0}', -0.5),
        ("", -0.5),
        (graded(10, 5, "x"), -0.1),
        (graded(10, 5, 0).replace("}", ""), -0.1),
        (graded(10, 5), -0.1),
        (graded(10, 5, 11), -0.1),
        (graded(10, 5, -1), -0.1),
        (graded(10, 5, 0.5), -0.1),
        (graded(10, 5, 5.0), -0.1),
        (graded(10, 5, "true"), -0.1),
        (graded(10, 5, '"0"'), -0.1),
        (graded(10, 5, 0, 0), -0.1),
    ],
)
def test_grouprank_tells_bad_tags_from_bad_grades(text: str, reward: float) -> None:
    assert answered(GROUPRANK, text, (10.0, 5.0, 0.0)) == reward


@given(st.lists(grades, min_size=2, max_size=5))
def test_an_answer_of_equal_grades_earns_the_same_in_any_order_and_less_than_1(labels: list[float]) -> None:
    said = valid([0.0] * len(labels))
    shuffled = sorted(labels)
    assert NDCGReward()(said, labels) == pytest.approx(NDCGReward()(said, shuffled), abs=1e-12)
    assert GROUPRANK(said, labels) == pytest.approx(GROUPRANK(said, shuffled), abs=1e-12)
    assume(max(labels) > 0)
    assert (NDCGReward()(said, labels) > 1 - 1e-9) == (len(set(labels)) == 1)


def test_answering_0_for_everything_in_the_gold_order_is_no_perfect_answer() -> None:
    labels = (10.0, 9.3, 8.7, 0.3, 0.0)
    assert GROUPRANK(valid((0.0,) * 5), labels) < 1.2 < GROUPRANK(valid((1.0, 0.9, 0.8, 0.1, 0.0)), labels)


def test_recall_at_10_of_10_documents_is_1_and_at_their_number_is_not() -> None:
    labels = [1.0] * 3 + [0.0] * 7
    worst = valid([0.0] * 3 + [1.0] * 7)
    assert RecallReward(10)(worst, labels) == 1.0
    assert RecallReward()(worst, labels) == 0.0


# -- orders with ties, against every order --------------------------------------------


def orders(scores: Sequence[float]) -> list[list[int]]:
    """Every order of places by falling score, one for each way to break ties."""
    ways = itertools.permutations(range(len(scores)))
    return [list(way) for way in ways if all(scores[a] >= scores[b] for a, b in itertools.pairwise(way))]


def mean_over_orders(scores: Sequence[float], value: Callable[[list[int]], float]) -> float:
    return statistics.fmean(value(order) for order in orders(scores))


def plain_ndcg(gains: Sequence[float], order: Sequence[int], k: int) -> float:
    discounts = [1 / math.log2(rank + 1) for rank in range(1, k + 1)]
    reached = math.fsum(gains[place] * discount for place, discount in zip(order, discounts, strict=False))
    best = math.fsum(g * d for g, d in zip(sorted(gains, reverse=True), discounts, strict=False))
    return reached / best if best else 0.0


def plain_rbo(one: Sequence[int], other: Sequence[int], p: float) -> float:
    n = len(one)
    overlaps = [len({*one[:depth]} & {*other[:depth]}) / depth for depth in range(1, n + 1)]
    return (1 - p) / p * math.fsum(a * p**d for d, a in enumerate(overlaps, 1)) + overlaps[-1] * p**n


@given(pairs, st.integers(1, 6))
def test_ndcg_is_the_mean_over_all_orders_of_ties(documents: list[tuple[float, float]], k: int) -> None:
    scores, labels = zip(*documents, strict=True)
    for gain in ("linear", "exponential"):
        gains = gains_of(labels, gain)  # type: ignore[arg-type]
        expected = mean_over_orders(scores, lambda order, gains=gains: plain_ndcg(gains, order, k))  # type: ignore[misc]
        assert ndcg(scores, labels, k, gain) == pytest.approx(expected, abs=1e-9)  # type: ignore[arg-type]


@given(pairs, st.integers(1, 6))
def test_recall_is_the_mean_over_all_orders_of_ties(documents: list[tuple[float, float]], k: int) -> None:
    scores, labels = zip(*documents, strict=True)
    good = {place for place, label in enumerate(labels) if label > 1}
    for cutoff in (k, None):
        found = [len({*order[: cutoff or len(good)]} & good) for order in orders(scores)]
        expected = statistics.fmean(found) / len(good) if good else 0.0
        assert recall(scores, labels, cutoff, above=1.0) == pytest.approx(expected, abs=1e-9)


@given(pairs)
def test_reciprocal_rank_is_the_mean_over_all_orders_of_ties(documents: list[tuple[float, float]]) -> None:
    scores, labels = zip(*documents, strict=True)

    def plain(order: list[int]) -> float:
        return next((1 / rank for rank, place in enumerate(order, 1) if labels[place] > 2), 0.0)

    assert reciprocal_rank(scores, labels, above=2.0) == pytest.approx(mean_over_orders(scores, plain), abs=1e-9)


@given(st.lists(st.tuples(grades, grades), min_size=1, max_size=4), st.floats(0.05, 0.95))
def test_overlap_is_the_mean_over_all_orders_of_both_sides_ties(documents: list[tuple[float, float]], p: float) -> None:
    scores, labels = zip(*documents, strict=True)
    both = [plain_rbo(one, other, p) for one in orders(scores) for other in orders(labels)]
    assert rank_biased_overlap(scores, labels, p) == pytest.approx(statistics.fmean(both), abs=1e-9)


@given(pairs)
def test_a_pick_of_several_is_the_share_that_is_best(documents: list[tuple[float, float]]) -> None:
    scores, labels = zip(*documents, strict=True)
    expected = mean_over_orders(scores, lambda order: float(labels[order[0]] == max(labels)))
    assert ExactPickReward()(valid(scores), labels) == pytest.approx(expected)


@given(st.lists(grades, min_size=1, max_size=8), st.integers(1, 9))
def test_chances_of_a_place_add_up_to_the_places(scores: list[float], k: int) -> None:
    chances = chance_within(scores, k)
    assert math.fsum(chances) == pytest.approx(min(k, len(scores)))
    assert all(0 <= chance <= 1 for chance in chances)


def test_what_is_relevant_and_what_it_gains() -> None:
    labels = (10.0, 9.3, 9.3, 0.0)
    assert relevant(labels) == [1.0, 1.0, 1.0, 0.0]
    assert relevant(labels, above=9.5) == [1.0, 0.0, 0.0, 0.0]
    assert relevant(labels, top=2) == gains_of(labels, top=2) == [1.0, 0.5, 0.5, 0.0]
    assert gains_of((3.0, 0.0), "exponential") == [7.0, 0.0]


def test_improvement_is_measured_from_the_order_shown() -> None:
    labels = (0.0, 1.0, 0.0)
    assert ImprovementReward()(valid((0.0, 1.0, 0.0)), labels) == pytest.approx(1 - 1 / math.log2(3))
    assert ImprovementReward()(valid((0.9, 0.5, 0.1)), labels) == 0.0
    assert ImprovementReward()(valid((0.9, 0.1, 0.5)), labels) == pytest.approx(0.5 - 1 / math.log2(3))


@given(
    st.lists(st.lists(grades, min_size=4, max_size=4), min_size=2, max_size=6), st.lists(grades, min_size=4, max_size=4)
)
def test_within_a_group_improvement_gives_the_advantages_of_ndcg(
    completions: list[list[float]], labels: list[float]
) -> None:
    plain, improved = (
        [reward(valid(said), labels) for said in completions] for reward in (NDCGReward(), ImprovementReward())
    )
    assert group_advantages(improved) == pytest.approx(group_advantages(plain), abs=1e-6)


# -- distributions --------------------------------------------------------------------

masses = st.lists(st.tuples(grades, grades), min_size=1, max_size=6)


def test_the_cards_divergence() -> None:
    assert jensen_shannon((0, 1 / 3, 2 / 3), (2 / 3, 1 / 3, 0)) == pytest.approx(2 / 3, abs=1e-12)


@given(masses, st.sampled_from(["sum", "softmax"]))
def test_divergence_is_symmetric_from_0_to_1_and_0_for_equals_alone(both: list[tuple[float, float]], how: str) -> None:
    p, q = (distribution(each, how) for each in zip(*both, strict=True))  # type: ignore[arg-type]
    assert math.fsum(p) == pytest.approx(1.0)
    assert jensen_shannon(p, q) == jensen_shannon(q, p)
    assert 0 <= jensen_shannon(p, q) <= 1 + 1e-12
    assert jensen_shannon(p, p) == 0
    assert (jensen_shannon(p, q) > 1e-9) == (max(abs(a - b) for a, b in zip(p, q, strict=True)) > 1e-4)


def test_distributions_with_nothing_in_common_are_1_apart() -> None:
    assert jensen_shannon((1.0, 0.0), (0.0, 1.0)) == 1.0
    assert jensen_shannon((1.0, 0.0), (0.0, 1.0), base=math.e) == pytest.approx(math.log(2))


@given(st.lists(grades, min_size=1, max_size=6), st.floats(0.01, 100), st.sampled_from(["sum", "softmax"]))
def test_the_scale_of_scores_does_not_matter(scores: list[float], factor: float, how: str) -> None:
    stretched = distribution([score * factor for score in scores], how)  # type: ignore[arg-type]
    assert stretched == pytest.approx(distribution(scores, how), abs=1e-9)  # type: ignore[arg-type]


def test_the_softmax_of_grades_to_10_is_the_default() -> None:
    weights = [math.exp(10), math.exp(5), 1]
    expected = [weight / sum(weights) for weight in weights]
    assert distribution((1.0, 0.5, 0.0), "softmax") == pytest.approx(expected)


# -- what holds of every reward -------------------------------------------------------


def test_every_registered_reward_has_an_example() -> None:
    assert {name.split(",")[0] for name in EXAMPLES} == set(names_of(Reward))  # type: ignore[type-abstract]


@pytest.mark.parametrize("reward", ORDERS)
@given(documents=pairs, data=st.data())
def test_the_order_shown_earns_nothing(
    reward: OrderReward, documents: list[tuple[float, float]], data: st.DataObject
) -> None:
    if isinstance(reward, ImprovementReward):
        return
    shuffled = data.draw(st.permutations(documents))
    one, other = (
        reward(valid(scores), labels) for scores, labels in (zip(*each, strict=True) for each in (documents, shuffled))
    )
    assert one == pytest.approx(other, abs=1e-9)


@pytest.mark.parametrize("reward", ORDERS)
@given(labels=st.lists(grades, min_size=1, max_size=6), scores=st.lists(grades, min_size=6, max_size=6))
def test_no_answer_is_worth_more_than_the_labels_themselves(
    reward: OrderReward, labels: list[float], scores: list[float]
) -> None:
    assume(len(set(labels)) == len(labels))  # two lists with the same ties are not quite equal to the overlap
    best = reward(valid(labels), labels)
    assert reward(valid(scores[: len(labels)]), labels) <= best + 1e-9
    assert best <= 1 + 1e-9


@pytest.mark.parametrize("reward", ORDERS)
@pytest.mark.parametrize(
    "reply",
    [
        Reply((1.0, 0.0), formed=False),
        Reply((1.0, 0.0), problems=("closing brace missing",)),
        Reply((1.0, None), problems=("no grade of [2]",)),
        Reply((None, None), False, ("no pick",), finished=False),
    ],
)
def test_what_is_no_valid_answer_is_worth_nothing(reward: OrderReward, reply: Reply) -> None:
    assert reward(reply, (1.0, 0.0)) == 0.0


@pytest.mark.parametrize("reward", REWARDS)
def test_labels_are_one_a_document(reward: Reward) -> None:
    with pytest.raises(DataError, match="1 labels for 2 documents"):
        reward(Reply((None, None), formed=False), (1.0,))


@pytest.mark.parametrize("reward", [NDCGReward(), AlignmentReward(), ImprovementReward(), GROUPRANK])
@pytest.mark.parametrize("label", [-1.0, math.nan, math.inf])
def test_labels_without_a_gain_are_named_with_what_helps(reward: Reward, label: float) -> None:
    with pytest.raises(DataError, match=r"a label is (-1\.0|nan|inf), a number from 0 is needed .*labels\.rescaled"):
        reward(valid((1.0, 0.0)), (label, 1.0))


@pytest.mark.parametrize("reward", REWARDS)
def test_a_group_without_a_relevant_document_has_a_reward(reward: Reward) -> None:
    assert math.isfinite(reward(valid((1.0, 0.0)), (0.0, 0.0)))


# -- in YAML --------------------------------------------------------------------------

GROUPRANK_YAML = """
reward:
  weighted:
    of:
      - ndcg
      - recall: 10
      - alignment
      - format: {valid: 0, invalid: -0.1, formless: -0.5}
    weights: [1, 0.2, 0.1, 1]
"""


def read(text: str) -> Reward:
    tree = parse_yaml(text, "recipe.yaml")
    return build_part(Reward, tree.value["reward"], tree, ("reward",))  # type: ignore[type-abstract]


def test_the_papers_rewards_can_be_written() -> None:
    assert read("reward: exact_pick") == RANK_R1
    assert read(GROUPRANK_YAML) == GROUPRANK


@pytest.mark.parametrize("reward", REWARDS)
def test_a_reward_is_read_back_from_what_is_written(reward: Reward) -> None:
    assert read(dump_yaml({"reward": stage_tree(reward)})) == reward


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("ndgc", UnknownNameError, "recipe.yaml:1: reward: no reward is called 'ndgc'; did you mean 'ndcg'?; known: "),
        ("bm25", ConfigError, "reward: 'bm25' is registered, but is not a reward; known: alignment, "),
        ("{ndcg: 0}", ConfigError, "reward.ndcg: ndcg: k is 0, at least 1 is needed"),
        ("{ndcg: {gain: log}}", ConfigError, "reward.ndcg.gain: expected 'linear' or 'exponential'; got 'log'"),
        ("{recall: {top: 0}}", ConfigError, "reward.recall: recall: top is 0, at least 1 is needed"),
        ("{rbo: 1}", ConfigError, "reward.rbo: rbo: p is 1.0, above 0 and below 1 is needed"),
        ("{alignment: {temperature: 0}}", ConfigError, "temperature is 0.0, more than 0 is needed"),
        ("{weighted: {of: [ndcg], weights: [1, 2]}}", ConfigError, "weighted: 2 weights for 1 rewards; give one for"),
        ("{weighted: {of: [], weights: []}}", ConfigError, "weighted: 0 weights for 0 rewards"),
        ("{weighted: {of: [rbo, rbo], weights: [1, 2]}}", ConfigError, "weighted: a reward is given twice"),
        ("{weighted: {of: [rbo], weights: [.nan]}}", ConfigError, "weights[0]: expected a finite number; got nan"),
        ("{weighted: {of: rbo, weights: [1]}}", ConfigError, ".of: expected a list of rewards; got 'rbo' (str)"),
        ("{weighted: {of: [bm25], weights: [1]}}", ConfigError, "reward.weighted.of[0]: 'bm25' is registered, but is"),
    ],
)  # fmt: skip
def test_a_reward_that_cannot_be_is_named_with_its_place(text: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        read(f"reward: {text}")
    assert message in str(caught.value)
    assert str(caught.value).startswith("recipe.yaml:1: ")


def test_weights_are_finite_numbers() -> None:
    with pytest.raises(ConfigError, match=r"weighted: the weights are \(inf,\); finite numbers are needed"):
        WeightedReward((RBOReward(),), (math.inf,))


def test_terms_of_one_name_are_told_apart() -> None:
    both = WeightedReward((NDCGReward(1), NDCGReward(5), RBOReward()), (1.0, 1.0, 1.0))
    assert both.terms(valid((1.0, 0.0)), (1.0, 0.0)) == {"NDCGReward(k=1)": 1.0, "NDCGReward(k=5)": 1.0, "rbo": 1.0}


@pytest.mark.parametrize("name", names_of(Reward))  # type: ignore[type-abstract]
def test_every_option_of_a_reward_is_in_the_schema(name: str) -> None:
    schema = object_schema(lookup(name))
    assert schema["description"]
    if name == "weighted":
        assert schema["properties"]["of"] == {"type": "array", "items": {"$ref": "#/$defs/reward"}}


def test_rewards_need_no_torch() -> None:
    code = "import sys, rerank.train.rewards; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# -- within a group of completions ----------------------------------------------------


def test_the_advantage_is_worked_out() -> None:
    """Mean 0.25, standard deviation (n - 1) 0.5."""
    assert group_advantages((1.0, 0.0, 0.0, 0.0)) == pytest.approx([0.75 / 0.5001, *[-0.25 / 0.5001] * 3])
    assert group_advantages((1.0, 0.0, 0.0, 0.0), scale=False) == [0.75, -0.25, -0.25, -0.25]


@given(st.lists(st.floats(-2, 2), max_size=8), st.booleans())
def test_advantages_cancel_out_and_keep_the_order_of_rewards(rewards: list[float], scale: bool) -> None:
    advantages = group_advantages(rewards, scale=scale)
    assert math.fsum(advantages) == pytest.approx(0.0, abs=1e-9)
    ranked = sorted(range(len(rewards)), key=lambda place: rewards[place])
    assert [advantages[place] for place in ranked] == sorted(advantages)


@pytest.mark.parametrize("rewards", [(), (0.7,), (0.3, 0.3, 0.3)])
def test_completions_with_equal_rewards_teach_nothing(rewards: tuple[float, ...]) -> None:
    assert group_advantages(rewards) == pytest.approx([0.0] * len(rewards), abs=1e-9)
    assert all_equal(rewards)
