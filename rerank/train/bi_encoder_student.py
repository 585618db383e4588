"""A bi-encoder while it is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rerank.engines.bi_encoder import BiEncoder, save_bi_encoder
from rerank.engines.engine import Asker
from rerank.engines.late_interaction import Ids
from rerank.engines.pairs import PairsAsker
from rerank.train.groups import TrainingGroup
from rerank.train.student import Batch, LearningScorer, Student, Uncached

if TYPE_CHECKING:
    from torch import Tensor


class _BiEncoder(LearningScorer, BiEncoder):
    """A bi-encoder through which gradients flow."""

    def vectors_of(self, ids: Sequence[Ids], computing: Callable[[], Any]) -> Tensor:
        """float32 [texts, d]: the vectors of texts, with gradients."""
        import torch

        parts, order = [], []
        for batch in self._text_batches(np.array([len(row) for row in ids], dtype=np.int64)):
            with computing():
                states = self._states([ids[i] for i in batch])
            parts.append(self._pooled(states, [len(ids[i]) for i in batch]))
            order += batch
        back = torch.from_numpy(np.argsort(np.array(order), kind="stable")).to(self.model.device)
        return torch.cat(parts)[back]


class BiEncoderStudent(Student):
    """A bi-encoder to train: scores are cosines or dot products, which a loss wants scaled (a temperature)."""

    scorer: _BiEncoder

    def _load(self, device: str, threads: int) -> _BiEncoder:
        return _BiEncoder(self.folder, device=device, threads=threads, loading=self._rounding(BiEncoder, device))

    def _heads(self, model: Any) -> tuple[str, ...]:
        return ()

    def _wrapped(self) -> None:
        pass

    def inputs(self, groups: Sequence[TrainingGroup]) -> list[tuple[Any, int]]:
        """The tokens of each group's query and documents."""
        queries = self.scorer.tokenise([group.query for group in groups], "query").ids
        texts = [document for group in groups for document in group.documents]
        documents = iter(self.scorer.tokenise(texts, "document", self.max_tokens).ids)
        found = []
        for group, query in zip(groups, queries, strict=True):
            rows = [query, *(next(documents) for _ in group.documents)]
            found.append((rows, sum(map(len, rows))))
        return found

    def scores(self, batch: Batch) -> list[Tensor]:
        """The products of each group's query with its documents."""
        return [some[1:] @ some[0] for some in self._vectors(batch)]

    def products(self, batch: Batch) -> Tensor:
        """float32 [groups, documents of all groups]: the products of all queries with all documents."""
        import torch

        vectors = self._vectors(batch)
        return torch.stack([some[0] for some in vectors]) @ torch.cat([some[1:] for some in vectors]).T

    def _vectors(self, batch: Batch) -> list[Tensor]:
        """Of each group, those of its query and its documents."""
        vectors = self.scorer.vectors_of([row for rows in batch.inputs for row in rows], self.computing)
        return list(vectors.split(list(map(len, batch.inputs))))

    def _save_whole(self, folder: Path) -> None:
        save_bi_encoder(self.folder, folder, super()._save_whole)

    def asker(self) -> Asker:
        """Scores pairs."""
        return PairsAsker(Uncached(self), self.scorer.score_kind, self.max_tokens)  # type: ignore[arg-type]
