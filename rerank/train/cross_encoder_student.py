"""A cross-encoder while it is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rerank.adapters.targets import head_modules
from rerank.engines.cross_encoder import CrossEncoder, Head, Rows
from rerank.engines.engine import Asker
from rerank.engines.pairs import PairsAsker
from rerank.errors import ModelError
from rerank.train.groups import TrainingGroup
from rerank.train.student import Batch, LearningScorer, Student, Uncached

if TYPE_CHECKING:
    from torch import Tensor


class _CrossEncoder(LearningScorer, CrossEncoder):
    """A cross-encoder through which gradients flow."""

    def learns(self) -> None:
        """Told once adapter layers are in place."""
        if self._head is not None:
            self._head = Head(self.model, self._head.reads)

    def logits_of(self, rows: Rows, computing: Callable[[], Any]) -> Tensor:
        """float32 [n]: the logits of pairs, with gradients."""
        import torch

        sizes = np.array([len(row) for row in rows.ids], dtype=np.int64)
        parts, order = [], []
        for batch in self._batches(sizes):
            some = Rows([rows.ids[i] for i in batch], rows.types and [rows.types[i] for i in batch])
            if self._head is None:
                with computing():
                    logits = self._logits(some)
            else:
                with computing():
                    states = self._states(some)
                # 16-bit logits tie.
                logits = self._head.logits(states, some, self._pad())
            logits = logits.float()
            parts.append(logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0])
            order += batch
        back = torch.from_numpy(np.argsort(np.array(order), kind="stable")).to(self.model.device)
        return torch.cat(parts)[back]


class CrossEncoderStudent(Student):
    """A cross-encoder to train; an encoder without a head gets a new one."""

    scorer: _CrossEncoder

    def _load(self, device: str, threads: int) -> _CrossEncoder:
        n_labels = None if _is_classifier(self.folder.path) else 1
        loading = self._rounding(CrossEncoder, device)
        return _CrossEncoder(self.folder, device=device, threads=threads, n_labels=n_labels, loading=loading)

    def _heads(self, model: Any) -> tuple[str, ...]:
        return tuple(head_modules(model))

    def _wrapped(self) -> None:
        self.scorer.learns()

    def inputs(self, groups: Sequence[TrainingGroup]) -> list[tuple[Any, int]]:
        """The rows of each group's pairs."""
        pairs = [(group.query, document) for group in groups for document in group.documents]
        tokens = self.scorer.tokenise(pairs, self.max_tokens)
        found, start = [], 0
        for group in groups:
            rows = tokens.take(range(start, start + len(group.documents)))
            found.append((rows, sum(map(len, rows.ids))))
            start += len(group.documents)
        return found

    def scores(self, batch: Batch) -> list[Tensor]:
        """The logits of each group's pairs."""
        ids = [row for rows in batch.inputs for row in rows.ids]
        types = [row for rows in batch.inputs for row in rows.types or ()] or None
        scores = self.scorer.logits_of(Rows(ids, types), self.computing)
        return list(scores.split([len(rows.ids) for rows in batch.inputs]))

    def asker(self) -> Asker:
        """Scores pairs."""
        return PairsAsker(Uncached(self), max_tokens=self.max_tokens)  # type: ignore[arg-type]


def _is_classifier(folder: Path) -> bool:
    from rerank.stage_for import kind_of

    try:
        return kind_of(folder, str(folder)) == "cross_encoder"
    except ModelError:
        return False
