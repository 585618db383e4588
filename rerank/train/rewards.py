"""Rewards: what an answer is worth, from the labels of the documents it was shown; and advantages within a group.

The functions are pure: scores and labels in, a number out.  Scores tie often, because models write whole grades; every
function of an order gives its mean over all orders that the ties leave open, so that nothing is earned by ties and by
the order in which documents were shown.  The classes make the functions parts of a recipe:

    reward:
      weighted:
        of: [{ndcg: 10}, recall, alignment, {format: {valid: 0, invalid: -0.1, formless: -0.5}}]
        weights: [1, 0.2, 0.1, 1]

Every reward but `format` is 0 for a reply that is no valid answer.
"""

from __future__ import annotations

import math
import statistics
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rerank.errors import ConfigError, DataError
from rerank.evaluation.ties import tie_averaged_ndcg
from rerank.prompts.parsers import log_softmax
from rerank.registry import Part
from rerank.rules.rule import at_least, one_of
from rerank.train.answers import Reply, check_labels

Gain = Literal["linear", "exponential"]
Distribution = Literal["sum", "softmax"]

# -- orders with ties ---------------------------------------------------------


def chance_within(scores: Sequence[float], k: int) -> list[float]:
    """For each document the probability that it is among the first `k`, when ties are broken at random.

    >>> chance_within((0.9, 0.5, 0.5), 2)
    [1.0, 0.5, 0.5]
    """
    chances = []
    for score in scores:
        above, tied = sum(other > score for other in scores), sum(other == score for other in scores)
        chances.append(min(max((k - above) / tied, 0.0), 1.0))
    return chances


def gains_of(labels: Sequence[float], gain: Gain = "linear", top: int | None = None) -> list[float]:
    """What each document is worth in a gain-based measure.

    Args:
        labels: 0 or more.
        gain: the label itself, or 2 to the power of the label less 1.
        top: instead, 1 for so many documents of the highest labels and 0 for the rest; labels that tie at the border
            share what is left.

    Raises:
        DataError: a label is negative, or no number.

    >>> gains_of((3.0, 1.0, 0.0), "exponential"), gains_of((3.0, 1.0, 1.0), top=2)
    ([7.0, 1.0, 0.0], [1.0, 0.5, 0.5])
    """
    _check_not_negative(labels)
    if top is not None:
        return chance_within(labels, top)
    return [2.0**label - 1 for label in labels] if gain == "exponential" else [float(label) for label in labels]


def ndcg(
    scores: Sequence[float],
    labels: Sequence[float],
    k: int | None = 10,
    gain: Gain = "linear",
    top: int | None = None,
) -> float:
    """nDCG@k of the order by falling score, the mean over all orders of what ties; 0 where nothing is worth anything.

    Args:
        scores: one a document.
        labels: one a document, 0 or more; the ideal order is that of these documents.
        k: the cut-off; None: the whole list.
        gain: see `gains_of`.
        top: see `gains_of`.

    Raises:
        DataError: a label is negative, or no number.

    Source: Järvelin and Kekäläinen 2002, with the discount 1 / log2(rank + 1); ties: McSherry and Najork 2008.

    >>> round(ndcg((0.0, 0.5, 1.0), (10.0, 5.0, 0.0)), 6)
    0.619906
    """
    gains = gains_of(labels, gain, top)
    order = sorted(range(len(scores)), key=lambda place: -scores[place])
    in_order = np.array([gains[place] for place in order], dtype=np.float64)
    falling = np.array([scores[place] for place in order], dtype=np.float64)
    return tie_averaged_ndcg(in_order, falling, np.array(gains, dtype=np.float64), k)


def relevant(labels: Sequence[float], above: float = 0.0, top: int | None = None) -> list[float]:
    """Which documents count as relevant: 1 or 0, or a share where labels tie at the border of `top`.

    Args:
        labels: one a document.
        above: a label higher than this is relevant.
        top: instead, so many documents of the highest labels are.

    >>> relevant((2.0, 1.0, 0.0), above=1.0), relevant((9.3, 8.7, 0.0), top=2)
    ([1.0, 0.0, 0.0], [1.0, 1.0, 0.0])
    """
    return chance_within(labels, top) if top is not None else [float(label > above) for label in labels]


def recall(
    scores: Sequence[float],
    labels: Sequence[float],
    k: int | None = None,
    above: float = 0.0,
    top: int | None = None,
) -> float:
    """The share of the relevant documents among the first `k`, the mean over orders of what ties; 0 without any.

    Args:
        scores: one a document.
        labels: one a document.
        k: the cut-off; None: as many as there are relevant documents.  With a `k` that the list is no longer than,
            every answer has recall 1.
        above: see `relevant`.
        top: see `relevant`.

    >>> recall((0.9, 0.1, 0.5), (1.0, 1.0, 0.0)), recall((0.9, 0.1, 0.5), (1.0, 1.0, 0.0), k=3)
    (0.5, 1.0)
    """
    found = relevant(labels, above, top)
    total = math.fsum(found)
    cutoff = round(total) if k is None else k
    chances = chance_within(scores, cutoff)
    return math.fsum(map(math.prod, zip(chances, found, strict=True))) / total if total else 0.0


def reciprocal_rank(scores: Sequence[float], labels: Sequence[float], above: float = 0.0) -> float:
    """1 / rank of the first relevant document, the mean over all orders of what ties; 0 without any.

    Args:
        scores: one a document.
        labels: one a document.
        above: a label higher than this is relevant.

    Source: McSherry and Najork 2008, for ties.

    >>> reciprocal_rank((0.9, 0.5, 0.1), (0.0, 1.0, 1.0)), reciprocal_rank((0.5, 0.5), (1.0, 0.0))
    (0.5, 0.75)
    """
    hits = [score for score, label in zip(scores, labels, strict=True) if label > above]
    if not hits:
        return 0.0
    best = max(hits)
    before, tied, n_relevant = sum(score > best for score in scores), scores.count(best), hits.count(best)
    # The first of the relevant ones stands at place `last` of its tie when the others stand behind it.
    ways = [math.comb(tied - last, n_relevant - 1) for last in range(1, tied + 1)]
    chances = [way / math.comb(tied, n_relevant) for way in ways]
    return math.fsum(chance / (before + last) for last, chance in enumerate(chances, 1))


def rank_biased_overlap(scores: Sequence[float], labels: Sequence[float], p: float = 0.9) -> float:
    """How alike the orders by scores and by labels are, 0 to 1, the head of the lists counting most.

    The extrapolated overlap of two lists of the same documents: 1 for equal orders.  What is given is the mean over all
    ways to break the ties of either side, so two lists with the same ties are not quite equal.

    Args:
        scores: one a document.
        labels: one a document.
        p: how far down one looks, above 0 and below 1; the first 10 ranks carry 86 % of the weight at 0.9.

    Source: Webber, Moffat and Zobel 2010 (RBO_ext); ties: Corsi and Urbano 2024, by the chances of each place.

    >>> rank_biased_overlap((0.9, 0.5, 0.1), (3.0, 2.0, 1.0)), round(rank_biased_overlap((0.9, 0.5), (1.0, 2.0)), 3)
    (1.0, 0.9)
    """
    overlaps = []
    for depth in range(1, len(scores) + 1):
        both = zip(chance_within(scores, depth), chance_within(labels, depth), strict=True)
        overlaps.append(math.fsum(map(math.prod, both)) / depth)
    if not overlaps:
        return 0.0
    seen = math.fsum((1 - p) * p ** (depth - 1) * overlap for depth, overlap in enumerate(overlaps, 1))
    # All documents are in both lists, so the overlap at the end, and of all that could follow, is 1.
    return min(1.0, seen + p ** len(overlaps))


# -- distributions ------------------------------------------------------------


def distribution(scores: Sequence[float], how: Distribution = "sum", temperature: float = 0.1) -> list[float]:
    """Scores as probabilities; the scale of the scores does not matter, so grades may be from 0 to 1 or to 10.

    Args:
        scores: 0 or more.
        how: divided by their sum; or the softmax of the scores divided by the highest of them.
        temperature: of the softmax; 0.1 is the softmax of grades from 0 to 10 where the best has 10.

    Raises:
        DataError: a score is negative, or no number.

    >>> distribution((6.0, 2.0, 0.0)), distribution((0.0, 0.0))
    ([0.75, 0.25, 0.0], [0.5, 0.5])
    """
    _check_not_negative(scores)
    highest = max(scores, default=0.0)
    if not highest:
        return [1 / len(scores)] * len(scores)
    if how == "softmax":
        return [math.exp(log) for log in log_softmax([score / highest / temperature for score in scores])]
    total = math.fsum(scores)
    return [score / total for score in scores]


def jensen_shannon(p: Sequence[float], q: Sequence[float], base: float = 2.0) -> float:
    """The divergence of two distributions: 0 where they are equal, 1 (with base 2) where they have nothing in common.

    Source: Lin 1991, the mean of both Kullback-Leibler divergences from the mean distribution.

    >>> round(jensen_shannon((0.0, 1 / 3, 2 / 3), (2 / 3, 1 / 3, 0.0)), 12)
    0.666666666667
    """
    terms = []
    for one, other in zip(p, q, strict=True):
        middle = (one + other) / 2
        terms += [each / 2 * math.log(each / middle, base) for each in (one, other) if each > 0]
    return max(0.0, math.fsum(terms))


def _check_not_negative(values: Sequence[float]) -> None:
    wrong = next((value for value in values if not 0 <= value < math.inf), None)  # NaN neither
    if wrong is not None:
        raise DataError(
            f"a label is {wrong}, a number from 0 is needed for gains and distributions; "
            "bring teachers' scores there with rerank.train.labels.rescaled"
        )


# -- rewards as parts of a recipe ---------------------------------------------


class Reward(Part, ABC):
    """Base of all rewards; a subclass is a frozen dataclass of its settings."""

    @abstractmethod
    def __call__(self, reply: Reply, labels: Sequence[float]) -> float:
        """What the reply is worth, for documents with these labels in the order shown.

        Raises:
            DataError: there are not as many labels as documents, or labels are of no use to this reward.
        """

    def terms(self, reply: Reply, labels: Sequence[float]) -> dict[str, float]:
        """The values that the reward is made of, by name, before they are weighted: what logs show."""
        return {self.label: self(reply, labels)}


class OrderReward(Reward):
    """Base of rewards for the scores that a valid answer gives; anything else is worth 0."""

    @abstractmethod
    def value(self, scores: Sequence[float], labels: Sequence[float]) -> float:
        """What scores are worth for documents with these labels."""

    def __call__(self, reply: Reply, labels: Sequence[float]) -> float:
        """The value of the scores; 0 for what is no valid answer."""
        check_labels(reply, labels)
        if not reply.valid:
            return 0.0
        return self.value([score for score in reply.scores if score is not None], labels)


@dataclass(frozen=True, repr=False)
class FormatReward(Reward):
    """What the form alone is worth: of a valid answer, of the right form around no usable answer, of anything else.

    Source: GroupRank (arXiv 2511.11653v3) adds 0, -0.1 and -0.5 to what its other rewards give.

    >>> FormatReward()(Reply((None, None), formed=True, problems=("no JSON object",)), (1.0, 0.0))
    0.0
    """

    valid: float = 1.0
    invalid: float = 0.0
    """In the form asked for, but what it holds is no answer about every document."""
    formless: float = 0.0

    def __call__(self, reply: Reply, labels: Sequence[float]) -> float:
        """The value of the form."""
        check_labels(reply, labels)
        if reply.valid:
            return self.valid
        return self.invalid if reply.formed else self.formless


@dataclass(frozen=True, repr=False)
class ExactPickReward(OrderReward):
    """1 where the document put first is one of the best, else 0; of several put first, the share that is.

    Source: Rank-R1 (arXiv 2503.06034), whose groups hold one relevant document.

    >>> ExactPickReward()(Reply((0.0, 1.0, 0.0)), (0.0, 1.0, 0.0))
    1.0
    """

    def value(self, scores: Sequence[float], labels: Sequence[float]) -> float:
        """The share of the first that are best."""
        first = [label for score, label in zip(scores, labels, strict=True) if score == max(scores)]
        return first.count(max(labels)) / len(first) if first else 0.0


@dataclass(frozen=True, repr=False)
class NDCGReward(OrderReward):
    """Tie-averaged nDCG of the group.

    >>> NDCGReward()(Reply((1.0, 0.5, 0.0)), (10.0, 5.0, 0.0))
    1.0
    """

    k: int | None = 10
    """The cut-off; none: the whole group."""
    gain: Gain = "linear"
    """The label itself, or `exponential`: 2 to its power, less 1."""
    top: int | None = None
    """Instead of the labels: gain 1 for so many of the best documents, 0 for the rest."""

    def __post_init__(self) -> None:
        at_least("ndcg", 1, k=self.k, top=self.top)
        one_of("ndcg", "gain", self.gain, ("linear", "exponential"))

    def value(self, scores: Sequence[float], labels: Sequence[float]) -> float:
        """See `ndcg`."""
        return ndcg(scores, labels, self.k, self.gain, self.top)


@dataclass(frozen=True, repr=False)
class ImprovementReward(NDCGReward):
    """Tie-averaged nDCG of the answer, less that of the order in which the documents were shown.

    Completions for the same group are compared with the same number, so the advantages within a group are those of
    `ndcg`; what it changes is the level that is logged, and rewards that are not compared within groups.

    >>> round(ImprovementReward()(Reply((0.0, 0.5, 1.0)), (0.0, 5.0, 10.0)), 6)
    0.380094
    """

    def value(self, scores: Sequence[float], labels: Sequence[float]) -> float:
        """The difference of two nDCG."""
        return super().value(scores, labels) - super().value(range(len(scores), 0, -1), labels)


@dataclass(frozen=True, repr=False)
class RecallReward(OrderReward):
    """Tie-averaged recall of the group's relevant documents.

    >>> RecallReward()(Reply((0.9, 0.1, 0.5)), (1.0, 1.0, 0.0))
    0.5
    """

    k: int | None = None
    """The cut-off; by default as many as there are relevant documents.  A group of no more than `k` documents has
    recall 1 whatever is answered."""
    above: float = 0.0
    """Labels higher than this are relevant."""
    top: int | None = None
    """Instead, so many documents of the highest labels are."""

    def __post_init__(self) -> None:
        at_least("recall", 1, k=self.k, top=self.top)

    def value(self, scores: Sequence[float], labels: Sequence[float]) -> float:
        """See `recall`."""
        return recall(scores, labels, self.k, self.above, self.top)


@dataclass(frozen=True, repr=False)
class ReciprocalRankReward(OrderReward):
    """Tie-averaged reciprocal rank of the first relevant document.

    >>> ReciprocalRankReward()(Reply((0.9, 0.5, 0.1)), (0.0, 1.0, 1.0))
    0.5
    """

    above: float = 0.0
    """Labels higher than this are relevant."""

    def value(self, scores: Sequence[float], labels: Sequence[float]) -> float:
        """See `reciprocal_rank`."""
        return reciprocal_rank(scores, labels, self.above)


@dataclass(frozen=True, repr=False)
class RBOReward(OrderReward):
    """Tie-averaged rank-biased overlap of the answer's order with that of the labels.

    >>> RBOReward()(Reply((0.9, 0.5, 0.1)), (3.0, 2.0, 1.0))
    1.0
    """

    p: float = 0.9
    """How far down one looks, above 0 and below 1."""

    def __post_init__(self) -> None:
        if not 0 < self.p < 1:
            raise ConfigError(f"rbo: p is {self.p}, above 0 and below 1 is needed")

    def value(self, scores: Sequence[float], labels: Sequence[float]) -> float:
        """See `rank_biased_overlap`."""
        return rank_biased_overlap(scores, labels, self.p)


@dataclass(frozen=True, repr=False)
class AlignmentReward(OrderReward):
    """1 less the Jensen-Shannon divergence (base 2) of the distributions that scores and labels make.

    Source: GroupRank (arXiv 2511.11653v3), which leaves open how scores become a distribution.

    >>> AlignmentReward()(Reply((0.6, 0.2, 0.0)), (3.0, 1.0, 0.0))
    1.0
    """

    distribution: Distribution = "sum"
    """Divided by their sum, or `softmax`."""
    temperature: float = 0.1
    """Of the softmax, of scores divided by the highest of them."""

    def __post_init__(self) -> None:
        one_of("alignment", "distribution", self.distribution, ("sum", "softmax"))
        if not self.temperature > 0:
            raise ConfigError(f"alignment: temperature is {self.temperature}, more than 0 is needed")

    def value(self, scores: Sequence[float], labels: Sequence[float]) -> float:
        """1 - JS."""
        said = distribution(scores, self.distribution, self.temperature)
        return 1 - jensen_shannon(said, distribution(labels, self.distribution, self.temperature))


@dataclass(frozen=True, repr=False)
class WeightedReward(Reward):
    """The weighted sum of other rewards.

    >>> both = WeightedReward((FormatReward(), ExactPickReward()), (0.25, 0.75))
    >>> both(Reply((1.0, 0.0)), (0.0, 1.0)), both.terms(Reply((1.0, 0.0)), (0.0, 1.0))
    (0.25, {'format': 1.0, 'exact_pick': 0.0})
    """

    of: tuple[Reward, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.of or len(self.of) != len(self.weights):
            raise ConfigError(f"weighted: {len(self.weights)} weights for {len(self.of)} rewards; give one for each")
        if not all(map(math.isfinite, self.weights)):
            raise ConfigError(f"weighted: the weights are {self.weights}; finite numbers are needed")
        if len(set(self.of)) < len(self.of):
            raise ConfigError("weighted: a reward is given twice; give it once, with the sum of its weights")

    def __call__(self, reply: Reply, labels: Sequence[float]) -> float:
        """The weighted sum."""
        return math.fsum(weight * reward(reply, labels) for weight, reward in zip(self.weights, self.of, strict=True))

    def terms(self, reply: Reply, labels: Sequence[float]) -> dict[str, float]:
        """The value of each reward by its name; by its expression where two have the same name."""
        names = [reward.label for reward in self.of]
        return {
            name if names.count(name) == 1 else repr(reward): reward(reply, labels)
            for name, reward in zip(names, self.of, strict=True)
        }


RANK_R1: Reward = ExactPickReward()
"""Rank-R1's: 1 for the right pick in the right form, else 0.  Source: arXiv 2503.06034 and its repository."""

GROUPRANK: Reward = WeightedReward(
    (NDCGReward(10), RecallReward(10), AlignmentReward(), FormatReward(0.0, -0.1, -0.5)), (1.0, 0.2, 0.1, 1.0)
)
"""GroupRank's, as published: at most 1.3, -0.1 for the right tags around no usable grades, -0.5 for anything else.

Its recall is 1 for every answer about 10 documents or fewer: `recall` without a `k` is not.
Source: arXiv 2511.11653v3; ties are averaged here.
"""

# -- within a group of completions --------------------------------------------


def group_advantages(rewards: Sequence[float], *, scale: bool = True) -> list[float]:
    """How much better each completion of one prompt is than their mean, in standard deviations (n - 1) plus 1e-4.

    Args:
        rewards: of the completions of one prompt.
        scale: divide by the standard deviation; else the differences alone (Dr. GRPO).

    Source: DeepSeekMath (arXiv 2402.03300, section 4.1.2); the 1e-4 and n - 1 as in TRL.

    >>> [round(advantage, 3) for advantage in group_advantages((1.0, 0.0, 0.0, 0.0))]
    [1.5, -0.5, -0.5, -0.5]
    """
    if not rewards:
        return []
    mean = math.fsum(rewards) / len(rewards)
    spread = statistics.stdev(rewards) if len(rewards) > 1 else 0.0
    return [(reward - mean) / (spread + 1e-4 if scale else 1.0) for reward in rewards]


def all_equal(rewards: Sequence[float]) -> bool:
    """Whether the completions of one prompt teach nothing: their rewards differ by no more than rounding.

    >>> all_equal((0.1 + 0.2, 0.3)), all_equal((0.0, 1.0))
    (True, False)
    """
    return max(rewards, default=0.0) - min(rewards, default=0.0) < 1e-8
