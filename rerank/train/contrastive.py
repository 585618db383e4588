"""The recipe `contrastive`: a model's scores of a group's documents are brought into the order of their labels.

It trains cross-encoders, and causal language models by the logits of a prompt's labels or by likelihoods, on judgments
and mined negatives, with any loss of `rerank.train.losses`: by document, by pair, or by group.  A step's loss is the
mean over all its items, however many batches it took.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rerank.train.losses import Loss, SoftmaxLoss
from rerank.train.recipe import Recipe

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

    def total(self, student: Student, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss of the scores of a batch."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        found = student.scores(batch)
        scores = pad_sequence(found, batch_first=True)
        labels = [torch.tensor(group.labels, dtype=torch.float32) for group in batch.groups]
        sizes = torch.tensor([len(one) for one in found])
        mask = torch.arange(scores.shape[1]) < sizes[:, None]
        given = pad_sequence(labels, batch_first=True).to(scores.device)
        return self.loss.total(scores, given, mask.to(scores.device))
