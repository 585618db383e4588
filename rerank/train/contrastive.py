"""The recipe `contrastive`: a model's scores of a group's documents are brought into the order of their labels.

It trains cross-encoders, and causal language models by the logits of a prompt's labels or by likelihoods, on judgments
and mined negatives, with any loss of `rerank.train.losses`: by document, by pair, or by group.  A step's loss is the
mean over all its items, however many batches it took.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rerank.errors import ConfigError
from rerank.train.losses import Loss, SoftmaxLoss
from rerank.train.processes import ALONE, Processes
from rerank.train.recipe import Recipe, Step

if TYPE_CHECKING:
    from torch import Tensor

    from rerank.train.student import Batch, Student


@dataclass(frozen=True, kw_only=True, repr=False)
class Contrastive(Recipe):
    """Learns from grades: relevant documents against others.

    >>> from rerank.engines.pairs import CrossEncoderEngine
    >>> Contrastive(engine=CrossEncoderEngine("my-model")).loss
    SoftmaxLoss()
    """

    loss: Loss = SoftmaxLoss()
    """How far scores are from the order of labels."""
    in_batch: bool = False
    """Whether the documents of all groups of a step are compared with each query, those of other groups as irrelevant
    ones: a bi-encoder has encoded them anyway.  A step is then computed as a whole.  Source: Karpukhin et al. 2020
    (DPR, arXiv 2004.04906), section 3.2."""

    def check_before(self, processes: Processes = ALONE) -> None:
        """Returns when what the recipe says fits together, as far as that is known before anything is loaded.

        Raises:
            ConfigError: parts that do not fit.
        """
        super().check_before(processes)
        if self.in_batch and processes.size > 1:
            raise ConfigError(
                f"{self.label}: in_batch compares all groups of a step in one process, and {processes.size} were "
                "started; start one, or leave in_batch out"
            )

    def check(self, student: Student) -> None:
        """Returns when the student can be trained by this recipe.

        Raises:
            ConfigError: it cannot.
        """
        from rerank.train.bi_encoder_student import BiEncoderStudent

        super().check(student)
        if self.in_batch and not isinstance(student, BiEncoderStudent):
            raise ConfigError(
                f"{self.label}: in_batch compares each query with the documents of others, and {student.engine.label} "
                "would have to read each pair; take a bi_encoder, or leave in_batch out"
            )

    def batches(self, student: Student, step: Step) -> list[Batch]:
        """The groups of a step in batches, or in one where all are compared."""
        if not self.in_batch:
            return super().batches(student, step)
        return student.batches(step.groups, whole=True)

    def total(self, student: Student, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss of the scores of a batch."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        if self.in_batch:
            return self.loss.total(*_compared(student, batch))
        found = student.scores(batch)
        scores = pad_sequence(found, batch_first=True)
        labels = [torch.tensor(group.labels, dtype=torch.float32) for group in batch.groups]
        sizes = torch.tensor([len(one) for one in found])
        mask = torch.arange(scores.shape[1]) < sizes[:, None]
        given = pad_sequence(labels, batch_first=True).to(scores.device)
        return self.loss.total(scores, given, mask.to(scores.device))


def _compared(student: Student, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """[groups, documents of all groups]: scores, labels, and which of them count.

    A document that is shown to several queries counts once for each; where it is a query's own, with its own label.
    Documents of another group of the same query do not count, nor what is judged relevant to it or excluded for it.
    """
    import torch

    from rerank.train.bi_encoder_student import BiEncoderStudent

    if not isinstance(student, BiEncoderStudent):
        raise ConfigError("in_batch: trains bi-encoders only")
    scores = student.products(batch)
    columns = [
        (group.qid, docno, document)
        for group in batch.groups
        for docno, document in zip(group.docnos, group.documents, strict=True)
    ]
    labels, counted = torch.zeros(scores.shape), []
    start = 0
    for row, group in enumerate(batch.groups):
        own = range(start, start + len(group.docnos))
        seen = {columns[column][-1] for column in own}
        for column, (qid, docno, document) in enumerate(columns):
            # What another group shows to the same query may be relevant to it.
            other = qid != group.qid and docno not in group.related and document not in seen
            counted.append(column in own or other)
            seen.add(document)
        labels[row, own.start : own.stop] = torch.tensor(group.labels, dtype=torch.float32)
        start = own.stop
    mask = torch.tensor(counted).reshape(scores.shape)
    return scores, labels.to(scores.device), mask.to(scores.device)
