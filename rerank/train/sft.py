"""The recipe `sft`: a causal language model learns to answer a prompt as the labels say.

The answer is rendered in the form that the prompt asks for (`rerank.train.targets`): a pick, an order, grades.  The
loss is the cross-entropy of the answer's tokens and the end, never of the prompt's.  Where the prompt has labels to
choose from, only they compete: the loss is that of the label among the labels, at one position.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rerank.errors import ConfigError
from rerank.rules.rule import seeded
from rerank.train.recipe import Recipe, Step

if TYPE_CHECKING:
    from torch import Tensor

    from rerank.prompts.prompt import Prompt
    from rerank.train.groups import Shown, TrainingGroup
    from rerank.train.student import Batch, Student


@dataclass(frozen=True, kw_only=True, repr=False)
class SFT(Recipe):
    """Learns answers as they should be.

    >>> from rerank.engines.prompted import CausalLMEngine
    >>> SFT(engine=CausalLMEngine("my-model"), prompt="yes-no").relevant
    1.0
    """

    relevant: float = 1.0
    """The label from which on a document is relevant, for prompts that ask yes or no."""
    top: float | None = None
    """The label that the highest grade stands for; default the highest of each group, and where a prompt shows one
    document, as many as it has grades."""
    cut_to: tuple[int, ...] = ()
    """Groups are cut into prompts of so many documents, one of these sizes drawn for each group and step; default
    whole.  Small models learn to weigh one document before they learn to compare several, and a prompt that may hold
    any number of relevant documents, also none, cannot be answered by counting."""

    trains_text: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cut_to and min(self.cut_to) < 1:
            raise ConfigError(f"sft: cut_to is {list(self.cut_to)}; each prompt needs 1 document or more")

    def check(self, student: Student) -> None:
        """Returns when the student writes answers.

        Raises:
            ConfigError: it does not.
        """
        from rerank.train.causal_lm_student import CausalLMStudent
        from rerank.train.targets import ORDERS, target_of

        if not isinstance(student, CausalLMStudent):
            raise ConfigError(
                f"sft: trains language models, and {student.engine.label} gives scores; take the recipe contrastive"
            )
        target_of(student.prompt, (1.0,))
        if self.cut_to and not student.prompt.shows_many:
            raise ConfigError(
                f"sft: the prompt {student.prompt.name!r} shows one document at a time, so there is nothing to cut; "
                "leave cut_to out"
            )
        if self.cut_to and min(self.cut_to) < 2 and student.prompt.parser in ORDERS:
            raise ConfigError(
                f"sft: cut_to is {list(self.cut_to)}, but the prompt {student.prompt.name!r} compares documents; each "
                "prompt needs 2 or more"
            )

    def batches(self, student: Student, step: Step) -> list[Batch]:
        """The prompts of a step with their answers, in batches of one query or several."""
        from rerank.train.causal_lm_student import CausalLMStudent
        from rerank.train.student import Batch

        if not isinstance(student, CausalLMStudent):
            raise ConfigError("sft: trains language models only")
        made: list[Batch] = []
        for group in step.own_groups():
            parts, top = self._parts(group, step.number), self._top(group)
            answered = [each for part in parts for each in student.answers(part, self.relevant, top)]
            cost = student.cost([each.item for each in answered])
            if made and made[-1].tokens + cost <= student.scorer.batch_tokens:
                last = made[-1]
                made[-1] = Batch((*last.groups, group), [*last.inputs, *answered], last.tokens + cost)
            elif answered:
                made.append(Batch((group,), list(answered), cost))
        return made

    def shown(self, group: TrainingGroup, prompt: Prompt) -> list[Shown]:
        """What the first step shows of a group at once, with what is to be written; without what teaches nothing."""
        from rerank.train.targets import target_of

        found = []
        for each in (each for part in self._parts(group, 0) for each in part.shown(many=prompt.shows_many)):
            target = target_of(prompt, each.labels, self.relevant, self._top(group))
            if target is not None:
                found.append(each._replace(answer=target if isinstance(target, str) else ""))
        return found

    def _top(self, group: TrainingGroup) -> float | None:
        return max(group.labels) if self.cut_to and self.top is None else self.top

    def _parts(self, group: TrainingGroup, step: int) -> list[TrainingGroup]:
        """What prompts show of a group: all of it, or parts of one size, the last of them smaller."""
        if not self.cut_to:
            return [group]
        n = seeded(self.seed, "\0".join(["cut", str(step), group.qid, *group.docnos])).choice(self.cut_to)
        return [
            group._replace(
                docnos=group.docnos[start : start + n],
                documents=group.documents[start : start + n],
                labels=group.labels[start : start + n],
            )
            for start in range(0, len(group.documents), n)
        ]

    def total(self, student: Student, batch: Batch) -> tuple[Tensor, Tensor]:
        """The cross-entropy of a batch's answers."""
        import torch

        from rerank.train.causal_lm_student import CausalLMStudent

        if not isinstance(student, CausalLMStudent):
            raise ConfigError("sft: trains language models only")
        total, count = student.answer_loss(batch.inputs)
        return total, torch.tensor(count, device=total.device)
