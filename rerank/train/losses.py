"""Losses on the scores of groups: how far a model's scores of documents are from their labels.

A batch is `scores`, `labels` and `mask`, each [groups, documents]; the mask is false where a group has no document, and
what stands there changes neither a loss nor a gradient.  Scores are logits.  Everything is computed in 32 bit.

Every loss is a mean over its items (documents, pairs of documents, or groups), and `total` gives the sum and the
number of items apart: the sum over the micro-batches of a step, divided by their number together, is the loss of the
whole step, however it was cut.  In a recipe:

    loss: {lambda_loss: {weighting: ndcg_loss2++}}

Labels are grades (relevance) for all but `margin_mse`, `kl`, `rank_distil` and `adr_mse`, which learn from a teacher's
scores or order; `mse` and `listnet` serve both.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from rerank.errors import ConfigError, DataError
from rerank.registry import Part
from rerank.rules.rule import at_least, one_of

if TYPE_CHECKING:
    from torch import Tensor


class LossTotal(NamedTuple):
    """A loss before it is divided."""

    total: Tensor
    """The sum over all items; with a gradient."""
    count: Tensor
    """How many items there were; 0 where nothing in the batch teaches anything."""

    @property
    def mean(self) -> Tensor:
        """The loss: 0 for no items."""
        return self.total / self.count.clamp(min=1)


class Loss(Part, ABC):
    """Base of all losses; a subclass is a frozen dataclass of its settings with `items`."""

    per: ClassVar[Literal["document", "pair", "group"]]
    """What the loss is a mean over."""

    def __call__(self, scores: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """The mean over the items of a batch, float32.

        Args:
            scores: [groups, documents], of the model.
            labels: [groups, documents].
            mask: bool [groups, documents], true where there is a document.

        Raises:
            DataError: shapes differ, or labels are of no use to this loss.
        """
        return self.total(scores, labels, mask).mean

    def total(self, scores: Tensor, labels: Tensor, mask: Tensor) -> LossTotal:
        """The sum over the items of a batch, and their number.

        Raises:
            DataError: as above.
        """
        import torch

        if not scores.shape == labels.shape == mask.shape or scores.dim() != 2 or mask.dtype != torch.bool:
            raise DataError(
                f"{self.label}: scores are {[*scores.shape]}, labels {[*labels.shape]}, the mask {[*mask.shape]} of "
                f"{mask.dtype}; all must be [groups, documents], the mask of bool"
            )
        # Chosen, not multiplied: what stands in empty places may be no number.
        scores = torch.where(mask, scores.float(), 0.0)
        labels = torch.where(mask, labels.float(), 0.0)
        values, counted = self.items(scores, labels, mask)
        return LossTotal(torch.where(counted, values, 0.0).sum(), counted.sum())

    @abstractmethod
    def items(self, scores: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of every item, and which of them count; scores and labels are 0 where there is no document."""


# -- one document at a time ---------------------------------------------------


@dataclass(frozen=True, repr=False)
class BCELoss(Loss):
    """Binary cross-entropy of each document's probability of being relevant, the sigmoid of its score.

    Source: Nogueira and Cho 2019 (arXiv 1901.04085), for cross-encoders.

    >>> import torch
    >>> scores, labels = torch.tensor([[0.0, 5.0]]), torch.tensor([[1.0, 0.0]])
    >>> round(BCELoss()(scores, labels, torch.tensor([[True, False]])).item(), 4)
    0.6931
    """

    threshold: float | None = None
    """Labels from here on count as 1, lower ones as 0; by default labels are probabilities, 0 to 1."""

    per: ClassVar = "document"

    def items(self, scores: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """By document."""
        from torch.nn.functional import binary_cross_entropy_with_logits

        if self.threshold is not None:
            labels = (labels >= self.threshold).float()
        elif ((labels < 0) | (labels > 1)).any():
            raise DataError(
                f"bce: labels are from {labels.min().item():g} to {labels.max().item():g}, 0 to 1 is needed; say which "
                "grades are relevant with 'threshold'"
            )
        return binary_cross_entropy_with_logits(scores, labels, reduction="none"), mask


@dataclass(frozen=True, repr=False)
class MSELoss(Loss):
    """Squared difference of each score and its label.

    Source: Cossock and Zhang 2006 (subset regression); from a teacher's scores, the usual pointwise distillation.

    >>> import torch
    >>> MSELoss()(torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([[True, True]])).item()
    2.5
    """

    per: ClassVar = "document"

    def items(self, scores: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """By document."""
        return (scores - labels) ** 2, mask


# -- pairs of documents -------------------------------------------------------


def _differences(values: Tensor) -> Tensor:
    """[groups, i, j]: of the i-th document less that of the j-th."""
    return values[:, :, None] - values[:, None, :]


def _both(mask: Tensor) -> Tensor:
    return mask[:, :, None] & mask[:, None, :]


def _preferred(labels: Tensor, mask: Tensor) -> Tensor:
    """[groups, i, j]: whether both are documents and the i-th has the higher label."""
    return _both(mask) & (_differences(labels) > 0)


@dataclass(frozen=True, repr=False)
class RankNetLoss(Loss):
    """Cross-entropy of the probability that of two documents the one with the higher label wins.

    Source: Burges et al. 2005 (RankNet), with the target probability 1; natural logarithm.

    >>> import torch
    >>> loss = RankNetLoss()(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([[True, True]]))
    >>> round(loss.item(), 4)
    0.6931
    """

    per: ClassVar = "pair"

    def items(self, scores: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """By pair of different labels."""
        from torch.nn.functional import softplus

        return softplus(-_differences(scores)), _preferred(labels, mask)


@dataclass(frozen=True, repr=False)
class HingeLoss(Loss):
    """How much the document with the higher label lacks of being a margin ahead of the other.

    Source: Herbrich, Graepel and Obermayer 2000; Joachims 2002 (ranking SVM).

    >>> import torch
    >>> HingeLoss()(torch.tensor([[0.25, 0.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([[True, True]])).item()
    0.75
    """

    margin: float = 1.0

    per: ClassVar = "pair"

    def __post_init__(self) -> None:
        _more_than_0("hinge", margin=self.margin)

    def items(self, scores: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """By pair of different labels."""
        return (self.margin - _differences(scores)).clamp(min=0), _preferred(labels, mask)


@dataclass(frozen=True, repr=False)
class MarginMSELoss(Loss):
    """Squared difference of how far two documents' scores, and their labels, lie apart.

    All pairs of a group count, where the paper has triples of a query, a relevant and another document; scores may
    lie anywhere, only their differences are learnt.

    Source: Hofstätter et al. 2020 (arXiv 2010.02666).

    >>> import torch
    >>> MarginMSELoss()(torch.tensor([[3.0, 0.0]]), torch.tensor([[9.0, 7.0]]), torch.tensor([[True, True]])).item()
    1.0
    """

    per: ClassVar = "pair"

    def items(self, scores: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """By pair, each once."""
        return _differences(scores - labels) ** 2, _both(mask).triu(diagonal=1)


# -- whole groups: distributions ----------------------------------------------


def _log_softmax(values: Tensor, mask: Tensor) -> Tensor:
    """Log-probabilities over the documents of each group, 0 where there is none."""
    import torch

    lowest = torch.finfo(values.dtype).min
    return values.masked_fill(~mask, lowest).log_softmax(dim=1).masked_fill(~mask, 0.0)


def _softmax(values: Tensor, mask: Tensor) -> Tensor:
    """Probabilities over the documents of each group, 0 where there is none."""
    return _log_softmax(values, mask).exp().masked_fill(~mask, 0.0)


@dataclass(frozen=True, repr=False)
class SoftmaxLoss(Loss):
    """Cross-entropy of the softmax of the scores with the labels' shares; InfoNCE where one document is relevant.

    A group without a label above 0 teaches nothing and does not count.

    Source: Bruch et al. 2019 (ICTIR); van den Oord et al. 2018 (arXiv 1807.03748) for one relevant document.

    >>> import torch
    >>> loss = SoftmaxLoss()(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]]), torch.tensor([[True, True]]))
    >>> round(loss.item(), 4)
    0.6931
    """

    temperature: float = 1.0
    """Scores are divided by it."""

    per: ClassVar = "group"

    def __post_init__(self) -> None:
        _more_than_0("softmax", temperature=self.temperature)

    def items(self, scores: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """By group with a relevant document."""
        if (labels < 0).any():
            raise DataError(
                f"softmax: a label is {labels.min().item():g}, 0 or more is needed; for a teacher's scores take 'kl'"
            )
        total = labels.sum(dim=1)
        cross = -(labels * _log_softmax(scores / self.temperature, mask)).sum(dim=1)
        return cross / total.clamp(min=1e-30), total > 0


@dataclass(frozen=True, repr=False)
class ListNetLoss(Loss):
    """Cross-entropy of the softmax of the scores with the softmax of the labels.

    Source: Cao et al. 2007 (ListNet), top-one probabilities.

    >>> import torch
    >>> loss = ListNetLoss()(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]]), torch.tensor([[True, True]]))
    >>> round(loss.item(), 4)
    0.6931
    """

    per: ClassVar = "group"

    def items(self, scores: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """By group."""
        return -(_softmax(labels, mask) * _log_softmax(scores, mask)).sum(dim=1), mask.any(dim=1)


@dataclass(frozen=True, repr=False)
class KLLoss(Loss):
    """Kullback-Leibler divergence of the student's distribution from the teacher's, whose scores are the labels.

    Source: Hinton, Vinyals and Dean 2015 (arXiv 1503.02531), with the factor temperature^2, over the documents of a
    group.

    >>> import torch
    >>> scores = torch.tensor([[1.0, 2.0, 0.0]])
    >>> abs(KLLoss()(scores, scores + 5, torch.ones(1, 3, dtype=torch.bool)).item()) < 1e-6
    True
    """

    temperature: float = 1.0
    """Both scores are divided by it."""

    per: ClassVar = "group"

    def __post_init__(self) -> None:
        _more_than_0("kl", temperature=self.temperature)

    def items(self, scores: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """By group."""
        teacher = _log_softmax(labels / self.temperature, mask)
        apart = teacher - _log_softmax(scores / self.temperature, mask)
        return (_softmax(labels / self.temperature, mask) * apart).sum(dim=1) * self.temperature**2, mask.any(dim=1)


# -- whole groups: orders -----------------------------------------------------


def _placements(scores: Tensor, labels: Tensor, mask: Tensor, k: int | None) -> tuple[Tensor, Tensor]:
    """Minus the log-probability of the order by falling label in the Plackett-Luce model, and which groups have one.

    Each document is drawn from those of no higher label.  The lowest label's are what is left, and add nothing; so
    documents that tie are drawn in no order among themselves, each against all of them (Breslow's approximation).

    Args:
        scores: [groups, documents].
        labels: [groups, documents].
        mask: [groups, documents].
        k: only documents with fewer than so many of a higher label add to it.
    """
    import torch

    both = _both(mask)
    not_higher = both & (_differences(labels) >= 0)
    rest = scores[:, None, :].expand_as(not_higher).masked_fill(~not_higher, torch.finfo(scores.dtype).min)
    drawn = rest.logsumexp(dim=2) - scores
    adds = (both & (_differences(labels) > 0)).any(dim=2)
    if k is not None:
        adds = adds & ((both & (_differences(labels) < 0)).sum(dim=2) < k)
    return torch.where(adds, drawn, 0.0).sum(dim=1), adds.any(dim=1)


@dataclass(frozen=True, repr=False)
class ListMLELoss(Loss):
    """Minus the log-likelihood of the order by labels in the Plackett-Luce model.

    Source: Xia et al. 2008 (ListMLE).  Departure: documents of equal labels are left in no order, where it takes any;
    with one relevant document this is `softmax`.

    >>> import torch
    >>> scores, labels = torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([[2.0, 1.0, 0.0]])
    >>> round(ListMLELoss()(scores, labels, torch.ones(1, 3, dtype=torch.bool)).exp().item(), 4)
    6.0
    """

    per: ClassVar = "group"

    def items(self, scores: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """By group with different labels."""
        return _placements(scores, labels, mask, None)


@dataclass(frozen=True, repr=False)
class RankDistilLoss(Loss):
    """Minus the log-likelihood of the first `k` places of the teacher's order.

    It pulls those documents into that order, and pushes all others below them, in no order.

    Source: Reddi et al. 2021 (RankDistil), the loss over k-Plackett models.  Departure: the teacher's most likely
    order stands for orders drawn from it.

    >>> import torch
    >>> scores, teacher = torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([[9.0, 3.0, -2.0]])
    >>> round(RankDistilLoss(k=1)(scores, teacher, torch.ones(1, 3, dtype=torch.bool)).exp().item(), 4)
    3.0
    """

    k: int = 10
    """Places of the teacher's order."""

    per: ClassVar = "group"

    def __post_init__(self) -> None:
        at_least("rank_distil", 1, k=self.k)

    def items(self, scores: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """By group with different labels."""
        return _placements(scores, labels, mask, self.k)


def _approximate_ranks(scores: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """[groups, documents]: 1 and, for every other document, how nearly it is ahead."""
    import torch

    ahead = (-_differences(scores) / temperature).sigmoid()
    others = _both(mask) & ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    return 1 + torch.where(others, ahead, 0.0).sum(dim=2)


@dataclass(frozen=True, repr=False)
class ADRMSELoss(Loss):
    """Squared difference of a document's rank in the teacher's order and a smooth form of its rank by score, less for
    lower ranks.

    Source: Schlatt et al. 2025 (Rank-DistiLLM), with their temperature 1; documents that tie have their mean rank.

    >>> import torch
    >>> loss = ADRMSELoss()(torch.tensor([[0.0, 0.0]]), torch.tensor([[5.0, 1.0]]), torch.tensor([[True, True]]))
    >>> round(loss.item(), 4)
    0.2039
    """

    temperature: float = 1.0
    """Of the sigmoid in the smooth rank; near 0 the rank is exact, and has no gradient."""

    per: ClassVar = "document"

    def __post_init__(self) -> None:
        _more_than_0("adr_mse", temperature=self.temperature)

    def items(self, scores: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """By document."""
        both, apart = _both(mask), _differences(labels)
        ahead, tied = (both & (apart < 0)).sum(dim=2), (both & (apart == 0)).sum(dim=2)
        # Where there is no document, nothing ties: any rank will do.
        ranks = (ahead + (tied + 1) / 2).clamp(min=1)
        missed = (ranks - _approximate_ranks(scores, mask, self.temperature)) ** 2
        return missed / (ranks + 1).log2(), mask


# -- whole groups: nDCG -------------------------------------------------------


def _gains(labels: Tensor, mask: Tensor, k: int | None = None) -> tuple[Tensor, Tensor]:
    """2^label - 1, 0 for labels below 0, as shares of the ideal DCG@k; and which groups gain anything."""
    import torch

    gains = torch.where(mask, labels.clamp(min=0).exp2() - 1, 0.0)
    places = torch.arange(2, labels.shape[1] + 2, device=labels.device)
    ideal = (gains.sort(dim=1, descending=True).values / places.log2())[:, :k].sum(dim=1, keepdim=True)
    return gains / ideal.clamp(min=1e-30), ideal[:, 0] > 0


@dataclass(frozen=True, repr=False)
class ApproxNDCGLoss(Loss):
    """1 - nDCG with the ranks made smooth: every other document counts by how nearly it is ahead.

    A group without a label above 0 teaches nothing and does not count.  Gains are 2^label - 1.

    Source: Qin, Liu and Li 2010; the temperature 0.1 as in Bruch et al. 2019 (SIGIR).

    >>> import torch
    >>> loss = ApproxNDCGLoss()(torch.tensor([[9.0, 0.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([[True, True]]))
    >>> round(loss.item(), 4)
    0.0
    """

    temperature: float = 0.1
    """Of the sigmoid in the smooth rank; near 0 the rank is exact, and has no gradient."""

    per: ClassVar = "group"

    def __post_init__(self) -> None:
        _more_than_0("approx_ndcg", temperature=self.temperature)

    def items(self, scores: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """By group with a relevant document."""
        gains, counted = _gains(labels, mask)
        ranks = _approximate_ranks(scores, mask, self.temperature)
        return 1 - (gains / (ranks + 1).log2()).sum(dim=1), counted


@dataclass(frozen=True, repr=False)
class LambdaLoss(Loss):
    """RankNet's loss, each pair weighted by what it matters to nDCG in the order of the current scores.

    Gains are 2^label - 1.  Scores that tie are ranked as they stand in the batch.  The weights have no gradient.

    Source: Wang et al. 2018 (LambdaLoss), with base-2 logarithms; Burges, Ragno and Le 2006 for `lambdarank`.

    >>> import torch
    >>> loss = LambdaLoss("lambdarank")
    >>> scores, labels = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    >>> round(loss(scores, labels, torch.tensor([[True, True]])).item(), 4)
    0.3691
    """

    weighting: Literal["ndcg_loss2++", "ndcg_loss2", "lambdarank"] = "ndcg_loss2++"
    """By the discounts at the pair's distance (`ndcg_loss2`, the tighter bound), by those at its two ranks
    (`lambdarank`), or `mu` times the former and the latter."""
    mu: float = 10.0
    """For `ndcg_loss2++`."""
    k: int | None = None
    """Only pairs with a document among the first so many count, for nDCG@k."""

    per: ClassVar = "pair"

    def __post_init__(self) -> None:
        one_of("lambda_loss", "weighting", self.weighting, ("ndcg_loss2++", "ndcg_loss2", "lambdarank"))
        at_least("lambda_loss", 1, k=self.k)
        _more_than_0("lambda_loss", mu=self.mu)

    def items(self, scores: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """By pair of different labels."""
        import torch
        from torch.nn.functional import softplus

        # Places that hold no document come last.
        order = scores.detach().masked_fill(~mask, -math.inf).argsort(dim=1, descending=True, stable=True)
        ranks = order.argsort(dim=1) + 1
        gains, _ = _gains(labels, mask, self.k)
        weights = self._discounts(ranks) * _differences(gains).abs()
        counted = _preferred(labels, mask)
        if self.k is not None:
            first = ranks <= self.k
            counted = counted & (first[:, :, None] | first[:, None, :])
        return torch.where(counted, weights, 0.0) * softplus(-_differences(scores)) / math.log(2), counted

    def _discounts(self, ranks: Any) -> Any:
        """[groups, i, j]: what exchanging two ranks changes in the discount."""
        at_ranks = _differences(1 / (ranks + 1.0).log2()).abs()
        if self.weighting == "lambdarank":
            return at_ranks
        apart = _differences(ranks).abs().clamp(min=1)  # a document and itself: no pair
        by_distance = 1 / (apart + 1.0).log2() - 1 / (apart + 2.0).log2()
        return by_distance if self.weighting == "ndcg_loss2" else self.mu * by_distance + at_ranks


def _more_than_0(loss: str, **fields: float) -> None:
    for name, value in fields.items():
        if not 0 < value < math.inf:
            raise ConfigError(f"{loss}: {name} is {value}, a number above 0 is needed")
