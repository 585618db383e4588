"""The recipe `distill`: a model's scores of a group's documents follow those of a teacher.

As `contrastive`, but the labels are a teacher's scores, from a run or from a pipeline (`teacher` in each source of
groups), and the loss compares scores with scores: the distributions over a group (`kl`), or the distances of pairs
(`margin_mse`).
"""

from __future__ import annotations

from dataclasses import dataclass

from rerank.errors import ConfigError
from rerank.train.contrastive import Contrastive
from rerank.train.losses import KLLoss, Loss


@dataclass(frozen=True, kw_only=True, repr=False)
class Distill(Contrastive):
    """Learns from a teacher's scores.

    >>> from rerank.engines.pairs import CrossEncoderEngine
    >>> Distill(engine=CrossEncoderEngine("my-model")).loss
    KLLoss()

    Raises:
        ConfigError: groups without a teacher, or documents compared that no teacher scores.
    """

    loss: Loss = KLLoss()
    """How far the student's scores are from the teacher's.  Source: Hinton, Vinyals and Dean 2015."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.in_batch:
            raise ConfigError("distill: in_batch compares with documents that the teacher did not score; leave it out")
        for source in self.groups:
            if source.teacher is None:
                raise ConfigError(
                    f"distill: the groups of {source.label} have no teacher; add teacher: {{run: ...}} or "
                    "teacher: {pipeline: ...}, or take the recipe contrastive to learn from grades"
                )
