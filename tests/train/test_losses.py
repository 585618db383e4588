"""Losses on scores of groups: worked values, published formulas, and what every loss must leave alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank.config import build_part, object_schema, stage_tree
from rerank.errors import ConfigError, DataError, UnknownNameError
from rerank.registry import lookup, name_of, names_of
from rerank.train.losses import (
    ADRMSELoss,
    ApproxNDCGLoss,
    BCELoss,
    HingeLoss,
    KLLoss,
    LambdaLoss,
    ListMLELoss,
    ListNetLoss,
    Loss,
    MarginMSELoss,
    MSELoss,
    RankDistilLoss,
    RankNetLoss,
    SoftmaxLoss,
)
from rerank.yamlfile import dump_yaml, parse_yaml

torch: Any = pytest.importorskip("torch")

EXAMPLES: dict[str, Loss] = {
    "bce": BCELoss(),
    "bce, graded": BCELoss(threshold=2.0),
    "mse": MSELoss(),
    "ranknet": RankNetLoss(),
    "hinge": HingeLoss(),
    "hinge, wide": HingeLoss(margin=2.5),
    "margin_mse": MarginMSELoss(),
    "softmax": SoftmaxLoss(),
    "softmax, sharp": SoftmaxLoss(temperature=0.5),
    "listnet": ListNetLoss(),
    "kl": KLLoss(),
    "kl, soft": KLLoss(temperature=2.0),
    "listmle": ListMLELoss(),
    "rank_distil": RankDistilLoss(),
    "rank_distil, the head": RankDistilLoss(k=2),
    "adr_mse": ADRMSELoss(),
    "approx_ndcg": ApproxNDCGLoss(),
    "approx_ndcg, smooth": ApproxNDCGLoss(temperature=1.0),
    "lambda_loss": LambdaLoss(),
    "lambda_loss, loss 2": LambdaLoss("ndcg_loss2"),
    "lambda_loss, lambdarank": LambdaLoss("lambdarank", k=2),
    "lambda_loss, weighed": LambdaLoss(mu=2.0, k=3),
}
LOSSES = [pytest.param(loss, id=name) for name, loss in EXAMPLES.items()]
POINTWISE_SCALE = (BCELoss, MSELoss)
few = settings(max_examples=15)  # for each of the losses


def batch(*groups: list[tuple[float, float]]) -> tuple[Any, Any, Any]:
    """Scores, labels and mask of groups of (score, label)."""
    n = max(map(len, groups))
    rows = [[*group, *[(0.0, 0.0)] * (n - len(group))] for group in groups]
    mask = [[True] * len(group) + [False] * (n - len(group)) for group in groups]
    values = torch.tensor(rows)
    return values[:, :, 0].clone(), values[:, :, 1].clone(), torch.tensor(mask)


def fitting(loss: Loss, labels: Any) -> Any:
    """Labels that the loss takes: probabilities for the one that wants them."""
    return labels / 4 if isinstance(loss, BCELoss) and loss.threshold is None else labels


@st.composite
def batches(draw: st.DrawFn) -> tuple[Any, Any, Any]:
    """Groups of 1 to 6 documents; the scores of a group are all different, the labels are grades 0 to 4."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    groups = []
    for size in sizes:
        eighths = draw(st.lists(st.integers(-24, 24), min_size=size, max_size=size, unique=True))
        grades = draw(st.lists(st.integers(0, 4), min_size=size, max_size=size))
        groups.append([(eighth / 8, float(grade)) for eighth, grade in zip(eighths, grades, strict=True)])
    return batch(*groups)


def gradient(loss: Loss, scores: Any, labels: Any, mask: Any) -> Any:
    leaf = scores.clone().requires_grad_()
    loss(leaf, labels, mask).backward()
    return leaf.grad


# -- what holds of every loss ---------------------------------------------------------


def test_every_registered_loss_has_an_example() -> None:
    assert {name.split(",")[0] for name in EXAMPLES} == set(names_of(Loss))  # type: ignore[type-abstract]


@pytest.mark.parametrize("loss", LOSSES)
@few
@given(given_batch=batches(), data=st.data())
def test_the_order_of_documents_and_groups_does_not_matter(
    loss: Loss, given_batch: tuple[Any, Any, Any], data: st.DataObject
) -> None:
    scores, labels, mask = given_batch
    labels = fitting(loss, labels)
    groups, documents = scores.shape
    rows = torch.tensor(data.draw(st.permutations(range(groups))))
    columns = torch.stack([torch.tensor(data.draw(st.permutations(range(documents)))) for _ in range(groups)])
    shuffled = [each[rows].gather(1, columns) for each in (scores, labels, mask)]
    assert loss(*shuffled).item() == pytest.approx(loss(scores, labels, mask).item(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
@few
@given(given_batch=batches(), fill=st.sampled_from([0.0, 50.0, -1e9, math.nan, math.inf]))
def test_empty_places_change_neither_loss_nor_gradient(
    loss: Loss, given_batch: tuple[Any, Any, Any], fill: float
) -> None:
    scores, labels, mask = given_batch
    labels = fitting(loss, labels)
    more = torch.full((scores.shape[0], 2), fill)
    wider = (
        torch.cat([torch.where(mask, scores, fill), more], 1),
        torch.cat([torch.where(mask, labels, fill), more], 1),
        torch.cat([mask, more.isnan() & False], 1),
    )
    assert loss(*wider).item() == pytest.approx(loss(scores, labels, mask).item(), rel=1e-5, abs=1e-6)
    grown = gradient(loss, *wider)
    assert not grown[~wider[2]].any()
    assert torch.allclose(grown[:, :-2], gradient(loss, scores, labels, mask), atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
@few
@given(given_batch=batches())
def test_the_totals_of_micro_batches_add_up_to_that_of_the_batch(loss: Loss, given_batch: tuple[Any, Any, Any]) -> None:
    scores, labels, mask = given_batch
    labels = fitting(loss, labels)
    whole = loss.total(scores, labels, mask)
    rows = range(len(scores))
    parts = [loss.total(scores[i : i + 1], labels[i : i + 1], mask[i : i + 1]) for i in rows]
    assert sum(part.count.item() for part in parts) == whole.count.item()
    assert sum(part.total.item() for part in parts) == pytest.approx(whole.total.item(), rel=1e-5, abs=1e-6)
    assert loss(scores, labels, mask).item() == pytest.approx(whole.mean.item())


@pytest.mark.parametrize("loss", LOSSES)
@few
@given(given_batch=batches(), by=st.floats(-5, 5, width=32))
def test_only_pointwise_losses_know_where_scores_lie(loss: Loss, given_batch: tuple[Any, Any, Any], by: float) -> None:
    scores, labels, mask = given_batch
    if not isinstance(loss, POINTWISE_SCALE):
        moved = loss(scores + by, labels, mask).item()
        assert moved == pytest.approx(loss(scores, labels, mask).item(), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
@few
@given(
    labels=st.lists(st.integers(0, 2), min_size=1, max_size=5),
    place=st.integers(0, 5),
    scores=st.lists(st.integers(-2, 2), min_size=6, max_size=6),
)
def test_the_gradient_raises_the_best_document_and_most_of_all(
    loss: Loss, labels: list[int], place: int, scores: list[int]
) -> None:
    """At equal scores; and where the best has the lowest score.

    There, a smooth nDCG would often rather leave the second best alone: one of the local optima that it has.
    LambdaRank with a cut-off pulls a second best within it harder than a best behind it, whose pairs with the others
    behind it count nothing.
    """
    graded = [float(label) for label in labels]
    graded.insert(min(place, len(graded)), 3.0)
    best = graded.index(3.0)
    rows = torch.tensor([graded])
    pull = gradient(loss, torch.zeros(1, len(graded)), fitting(loss, rows), torch.ones(1, len(graded)).bool())[0]
    assert pull[best] < 0
    assert pull[best] == pull.min() or loss == LambdaLoss("lambdarank", k=2)
    behind = torch.tensor([[-3.0 if i == best else score / 8 for i, score in enumerate(scores[: len(graded)])]])
    pull = gradient(loss, behind, fitting(loss, rows), torch.ones(1, len(graded)).bool())[0]
    assert pull[best] < 0 or isinstance(loss, ApproxNDCGLoss)


@pytest.mark.parametrize("loss", LOSSES)
def test_steps_against_the_gradient_put_documents_in_order(loss: Loss) -> None:
    scores, labels, mask = batch([(0.2, 0.0), (0.1, 1.0), (0.0, 3.0)], [(0.3, 1.0), (0.1, 2.0)])
    labels = fitting(loss, labels)
    before = loss(scores, labels, mask).item()
    for _ in range(200):
        scores = scores - 0.1 * gradient(loss, scores, labels, mask)
    assert loss(scores, labels, mask).item() < before
    assert scores[0, 2] > max(scores[0, 0], scores[0, 1])
    if not (isinstance(loss, BCELoss) and loss.threshold is not None):
        assert scores[1, 1] > scores[1, 0]


@pytest.mark.parametrize("loss", LOSSES)
def test_groups_that_teach_nothing_are_worth_nothing(loss: Loss) -> None:
    scores = torch.tensor([[1.0, 2.0]], requires_grad=True)
    total = loss.total(scores, torch.zeros(1, 2), torch.zeros(1, 2).bool())
    total.mean.backward()
    assert total.count == 0
    assert total.mean == 0
    assert scores.grad.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("loss", LOSSES)
def test_everything_is_computed_in_32_bit(loss: Loss) -> None:
    scores, labels, mask = batch([(0.5, 0.0), (0.25, 2.0), (-1.5, 1.0)])
    labels = fitting(loss, labels)
    half = loss(scores.bfloat16(), labels, mask)
    assert half.dtype == torch.float32
    assert half == loss(scores, labels, mask)


@pytest.mark.parametrize("loss", LOSSES)
def test_far_scores_give_finite_losses_and_gradients(loss: Loss) -> None:
    scores, labels, mask = batch([(1e4, 0.0), (-1e4, 4.0), (0.0, 1.0)])
    labels = fitting(loss, labels)
    assert math.isfinite(loss(scores, labels, mask).item())
    assert gradient(loss, scores, labels, mask).isfinite().all()


@pytest.mark.parametrize(
    ("scores", "labels", "mask"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), torch.ones(2, 3).bool()),
        (torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(3, 2).bool()),
        (torch.zeros(3), torch.zeros(3), torch.ones(3).bool()),
        (torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, 3)),
    ],
)
def test_shapes_that_do_not_fit_are_named(scores: Any, labels: Any, mask: Any) -> None:
    with pytest.raises(
        DataError, match=r"ranknet: scores are \[.*\], labels \[.*\], the mask \[.*\] of torch\..*; all"
    ):
        RankNetLoss()(scores, labels, mask)


# -- worked values --------------------------------------------------------------------

LN2 = math.log(2)
# Odds 1 : 3 : 2, labels best last.
ODDS = [(0.0, 0.0), (math.log(3), 1.0), (math.log(2), 2.0)]
DISCOUNT = [1 / math.log2(rank + 1) for rank in range(1, 5)]
IDEAL = 3 * DISCOUNT[0] + 1 * DISCOUNT[1]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def lambda_by_hand(weights: dict[tuple[int, int], float]) -> float:
    """The mean over the three pairs (better, worse) of ODDS of weight x log2(1 + odds of worse / odds of better)."""
    odds = [1, 3, 2]
    return sum(weight * math.log2(1 + odds[j] / odds[i]) for (i, j), weight in weights.items()) / 3


# Ranks by score: the second document 1, the third 2, the first 3.
AT_RANKS = {
    (2, 1): (3 - 1) / IDEAL * (DISCOUNT[0] - DISCOUNT[1]),
    (2, 0): (3 - 0) / IDEAL * (DISCOUNT[1] - DISCOUNT[2]),
    (1, 0): (1 - 0) / IDEAL * (DISCOUNT[0] - DISCOUNT[2]),
}
BY_DISTANCE = {
    (2, 1): (3 - 1) / IDEAL * (DISCOUNT[0] - DISCOUNT[1]),
    (2, 0): (3 - 0) / IDEAL * (DISCOUNT[0] - DISCOUNT[1]),
    (1, 0): (1 - 0) / IDEAL * (DISCOUNT[1] - DISCOUNT[2]),
}
TEACHER = [1 / (1 + math.e + math.e**2), math.e / (1 + math.e + math.e**2), math.e**2 / (1 + math.e + math.e**2)]
CROSS = -sum(p * math.log(q / 6) for p, q in zip(TEACHER, (1, 3, 2), strict=True))
# 1 and the odds of every other document against both together.
SMOOTH = [1 + 3 / 4 + 2 / 3, 1 + 1 / 4 + 2 / 5, 1 + 1 / 3 + 3 / 5]


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (BCELoss(threshold=2), (math.log(2) + math.log(4) + math.log(3 / 2)) / 3),
        (MSELoss(), (0 + (math.log(3) - 1) ** 2 + (math.log(2) - 2) ** 2) / 3),
        (RankNetLoss(), (math.log(1 + 3 / 2) + math.log(1 + 1 / 2) + math.log(1 + 1 / 3)) / 3),
        (HingeLoss(), ((1 - math.log(2 / 3)) + (1 - math.log(2)) + 0) / 3),
        (MarginMSELoss(), ((math.log(2 / 3) - 1) ** 2 + (math.log(2) - 2) ** 2 + (math.log(3) - 1) ** 2) / 3),
        (SoftmaxLoss(), -(math.log(3 / 6) + 2 * math.log(2 / 6)) / 3),
        (SoftmaxLoss(0.5), -(math.log(9 / 14) + 2 * math.log(4 / 14)) / 3),
        (ListNetLoss(), CROSS),
        (KLLoss(), CROSS + sum(p * math.log(p) for p in TEACHER)),
        (ListMLELoss(), math.log(6 / 2) + math.log(4 / 3)),
        (RankDistilLoss(k=1), math.log(6 / 2)),
        (RankDistilLoss(k=2), math.log(6 / 2) + math.log(4 / 3)),
        (
            ADRMSELoss(),
            sum((r - s) ** 2 / math.log2(r + 1) for r, s in zip((3, 2, 1), SMOOTH, strict=True)) / 3,
        ),
        (ApproxNDCGLoss(1.0), 1 - (1 / math.log2(SMOOTH[1] + 1) + 3 / math.log2(SMOOTH[2] + 1)) / IDEAL),
        (LambdaLoss("lambdarank"), lambda_by_hand(AT_RANKS)),
        (LambdaLoss("ndcg_loss2"), lambda_by_hand(BY_DISTANCE)),
        (LambdaLoss(), lambda_by_hand({pair: 10 * BY_DISTANCE[pair] + AT_RANKS[pair] for pair in AT_RANKS})),
    ],
)  # fmt: skip
def test_worked_values(loss: Loss, expected: float) -> None:
    assert loss(*batch(ODDS)).item() == pytest.approx(expected, abs=1e-6)


def test_the_published_example_of_rank_distil() -> None:
    """Two lists, teacher's order 3, 1, 2 in both: tensorflow-ranking works out these probabilities."""
    first = [(0.0, -5.1), (math.log(3), -5.8), (math.log(2), 0.0)]
    second = [(0.0, -4.3), (math.log(2), -4.4), (math.log(3), 0.0)]
    one = math.log(2 / (2 + 1 + 3)) + math.log(1 / (1 + 3)) + math.log(3 / 3)
    other = math.log(3 / (3 + 1 + 2)) + math.log(1 / (1 + 2)) + math.log(2 / 2)
    assert RankDistilLoss()(*batch(first, second)).item() == pytest.approx(-(one + other) / 2, abs=1e-6)


def test_pairs_and_groups_are_what_the_mean_is_over() -> None:
    """A group of three has three pairs, a group of two one; a group without a positive is no group to softmax."""
    both = batch(ODDS, [(0.0, 1.0), (0.0, 0.0)])
    assert RankNetLoss().total(*both).count == 4
    assert ListMLELoss().total(*both).count == 2
    assert BCELoss(threshold=1).total(*both).count == 5
    assert SoftmaxLoss().total(*batch(ODDS, [(0.0, 0.0), (1.0, 0.0)])).count == 1
    assert ApproxNDCGLoss().total(*batch(ODDS, [(0.0, -1.0), (1.0, 0.0)])).count == 1
    assert ListMLELoss().total(*batch(ODDS, [(0.0, 2.0), (1.0, 2.0)])).count == 1


@given(given_batch=batches())
def test_with_one_relevant_document_listmle_is_softmax(given_batch: tuple[Any, Any, Any]) -> None:
    scores, _, mask = given_batch
    labels = torch.zeros_like(scores)
    labels[:, 0] = 1.0
    several = mask.sum(dim=1) > 1  # a single document has no order, and its softmax is 1
    one = ListMLELoss()(scores[several], labels[several], mask[several]).item()
    assert one == pytest.approx(SoftmaxLoss()(scores[several], labels[several], mask[several]).item(), abs=1e-5)


@given(given_batch=batches())
def test_the_divergence_and_the_cross_entropy_pull_alike(given_batch: tuple[Any, Any, Any]) -> None:
    pulls = [gradient(loss, *given_batch) for loss in (KLLoss(), ListNetLoss())]
    assert torch.allclose(*pulls, atol=1e-6)


def test_documents_that_tie_are_put_in_no_order() -> None:
    scores, labels, mask = batch([(0.5, 1.0), (0.5, 1.0), (0.0, 0.0), (0.0, 0.0)])
    for loss in (RankNetLoss(), ListMLELoss(), RankDistilLoss(), SoftmaxLoss()):
        pull = gradient(loss, scores, labels, mask)[0]
        assert pull[0] == pytest.approx(pull[1].item())
        assert pull[2] == pytest.approx(pull[3].item())
        assert pull[0] < 0 < pull[2]


def test_below_the_teachers_head_there_is_no_order() -> None:
    scores, labels, mask = batch([(0.0, 9.0), (0.0, 5.0), (0.0, 1.0), (0.0, 0.0)])
    pull = gradient(RankDistilLoss(k=1), scores, labels, mask)[0].tolist()
    assert pull == pytest.approx([-0.75, 0.25, 0.25, 0.25])


def test_lambdarank_at_k_leaves_pairs_below_alone() -> None:
    scores, labels, mask = batch([(3.0, 0.0), (2.0, 1.0), (1.0, 0.0), (0.0, 2.0)])
    assert LambdaLoss(k=1).total(scores, labels, mask).count == 2  # of 5 pairs, those with the first document
    assert LambdaLoss(k=4).total(scores, labels, mask).count == 5


# -- the same formulas elsewhere ------------------------------------------------------


def from_sentence_transformers(name: str, scores: Any, labels: Any, mask: Any, **settings: Any) -> float:
    """What a loss of sentence-transformers gives for these scores."""
    losses = pytest.importorskip("sentence_transformers.cross_encoder.losses")

    class Given(torch.nn.Module):  # type: ignore[misc, name-defined]
        num_labels = 1
        device = torch.device("cpu")

        def preprocess(self, pairs: list[tuple[str, str]], **_: Any) -> dict[str, Any]:
            return {"at": torch.tensor([int(document) for _, document in pairs])}

        def forward(self, tokens: dict[str, Any]) -> dict[str, Any]:
            return {"scores": scores[mask][tokens["at"]]}

    places = iter(range(int(mask.sum())))
    documents = [[str(next(places)) for _ in range(int(row.sum()))] for row in mask]
    loss = getattr(losses, name)(Given(), **settings)
    found = loss([["q"] * len(documents), documents], [row[kept] for row, kept in zip(labels, mask, strict=True)])
    return float(found.item())


@st.composite
def ordered_batches(draw: st.DrawFn) -> tuple[Any, Any, Any]:
    """Groups of 2 to 5 documents, no two labels of a group alike."""
    groups = []
    for size in draw(st.lists(st.integers(2, 5), min_size=1, max_size=3)):
        eighths = draw(st.lists(st.integers(-24, 24), min_size=size, max_size=size, unique=True))
        grades = draw(st.lists(st.integers(0, 6), min_size=size, max_size=size, unique=True))
        groups.append([(eighth / 8, float(grade)) for eighth, grade in zip(eighths, grades, strict=True)])
    return batch(*groups)


@pytest.mark.needs("sentence_transformers")
@pytest.mark.parametrize(
    ("loss", "name", "settings", "factor"),
    [
        (RankNetLoss(), "RankNetLoss", {}, LN2),  # theirs has base-2 logarithms
        (LambdaLoss(), "LambdaLoss", {}, 1.0),
        (LambdaLoss(k=2), "LambdaLoss", {"k": 2}, 1.0),
        (ListNetLoss(), "ListNetLoss", {}, 1.0),
        (ListMLELoss(), "ListMLELoss", {"respect_input_order": False}, 1.0),
        (ADRMSELoss(), "ADRMSELoss", {}, 1.0),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
@few
@given(given_batch=ordered_batches())
def test_the_loss_is_that_of_sentence_transformers(
    loss: Loss, name: str, settings: dict[str, Any], factor: float, given_batch: tuple[Any, Any, Any]
) -> None:
    theirs = from_sentence_transformers(name, *given_batch, **settings)
    assert loss(*given_batch).item() == pytest.approx(theirs * factor, rel=1e-4, abs=1e-5)


@given(given_batch=ordered_batches())
def test_the_pointwise_losses_are_those_of_torch(given_batch: tuple[Any, Any, Any]) -> None:
    scores, labels, mask = given_batch
    bce = torch.nn.BCEWithLogitsLoss()(scores[mask], labels[mask] / 6)
    assert BCELoss()(scores, labels / 6, mask).item() == pytest.approx(bce.item(), abs=1e-6)
    mse = torch.nn.MSELoss()(scores[mask], labels[mask])
    assert MSELoss()(scores, labels, mask).item() == pytest.approx(mse.item(), rel=1e-6)
    cross = torch.nn.CrossEntropyLoss()(scores[:1][mask[:1]][None], torch.tensor([1]))
    positive = torch.zeros_like(labels)
    positive[:, 1] = 1
    assert SoftmaxLoss()(scores[:1], positive[:1], mask[:1]).item() == pytest.approx(cross.item(), abs=1e-6)


def test_with_two_documents_margin_mse_is_the_published_one() -> None:
    scores, labels, mask = batch([(2.0, 9.0), (0.5, 8.0)], [(1.0, 3.0), (4.0, -1.0)])
    published = torch.nn.MSELoss()(scores[:, 0] - scores[:, 1], labels[:, 0] - labels[:, 1])
    assert MarginMSELoss()(scores, labels, mask) == published


# -- labels and settings --------------------------------------------------------------


def test_grades_are_no_probabilities() -> None:
    with pytest.raises(DataError, match=r"bce: labels are from 0 to 3, 0 to 1 is needed; say which .* 'threshold'"):
        BCELoss()(*batch([(0.0, 0.0), (1.0, 3.0)]))


def test_a_teachers_negative_scores_are_no_shares() -> None:
    with pytest.raises(DataError, match=r"softmax: a label is -2, 0 or more is needed; for a teacher's .* 'kl'"):
        SoftmaxLoss()(*batch([(0.0, -2.0), (1.0, 3.0)]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{softmax: 0}", "loss.softmax: softmax: temperature is 0.0, a number above 0 is needed"),
        ("{hinge: -1.0}", "loss.hinge: hinge: margin is -1.0, a number above 0 is needed"),
        ("{lambda_loss: ndcg}", "loss.lambda_loss: expected 'ndcg_loss2++', 'ndcg_loss2' or 'lambdarank'; got 'ndcg'"),
        ("{lambda_loss: {k: 0}}", "loss.lambda_loss: lambda_loss: k is 0, at least 1 is needed"),
        ("{rank_distil: 0}", "loss.rank_distil: rank_distil: k is 0, at least 1 is needed"),
        ("{kl: {temp: 1}}", "loss.kl.temp: kl has no option 'temp'; did you mean 'temperature'?"),
        ("ndcg", "loss: 'ndcg' is registered, but is not a loss; known: adr_mse, "),
    ],
)
def test_a_setting_that_cannot_be_is_named_with_its_place(text: str, message: str) -> None:
    tree = parse_yaml(f"loss: {text}", "recipe.yaml")
    with pytest.raises(ConfigError) as caught:
        build_part(Loss, tree.value["loss"], tree, ("loss",))  # type: ignore[type-abstract]
    assert str(caught.value).startswith("recipe.yaml:1: ")
    assert message in str(caught.value)


def test_a_misspelt_loss_is_answered_with_the_nearest() -> None:
    tree = parse_yaml("loss: ranknt", "recipe.yaml")
    with pytest.raises(UnknownNameError, match=r"no loss is called 'ranknt'; did you mean 'ranknet'\?; known: adr_mse"):
        build_part(Loss, tree.value["loss"], tree, ("loss",))  # type: ignore[type-abstract]


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_is_read_back_from_what_is_written(loss: Loss) -> None:
    tree = parse_yaml(dump_yaml({"loss": stage_tree(loss)}))
    assert build_part(Loss, tree.value["loss"], tree, ("loss",)) == loss  # type: ignore[type-abstract]


@pytest.mark.parametrize("name", names_of(Loss))  # type: ignore[type-abstract]
def test_every_option_of_a_loss_is_documented(name: str) -> None:
    kind = lookup(name)
    described = object_schema(kind)
    assert name_of(kind) == name
    options = {option for option, of in described["properties"].items() if "description" not in of}
    assert options <= {"margin"}
