"""Bi-encoders: texts to vectors whose dot product is their similarity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from rerank.engines.text_model import Count, DType, FloatMatrix, Side, TextModel, loaded
from rerank.engines.trials import Trials
from rerank.errors import ModelError
from rerank.ranking import ScoreKind

if TYPE_CHECKING:
    from rerank.models import ModelFolder
    from rerank.runtime import Runtime


class Encoder(TextModel):
    """A sentence-transformers model; its vectors have length 1 where it compares by cosine."""

    library_class: ClassVar[str] = "SentenceTransformer"
    # Larger batches gain nothing on a processor: 4,096 tokens keep activations in its caches.
    batch_tokens: ClassVar[int] = 4096
    packs: ClassVar[bool] = True

    def __init__(
        self, folder: ModelFolder, *, device: str, dtype: str, threads: int, trials: Trials | None = None
    ) -> None:
        super().__init__(folder, device=device, dtype=dtype, threads=threads, trials=trials)
        measure = self.model.similarity_fn_name
        if measure not in ("cosine", "dot"):
            raise ModelError(f"model {folder.name!r} compares by {measure} distance; only cosine and dot are searched")

    def encode_queries(self, texts: Sequence[str], count: Count | None = None) -> FloatMatrix:
        """float32 [n, d]: the vectors of queries, in the order given.

        Args:
            texts: without the model's prompt, which is added here.
            count: is told `tokens` and `truncated queries`, e.g. `runtime.count`.
        """
        vectors: FloatMatrix = self._counted(texts, "query", count)
        return vectors

    def encode_documents(self, texts: Sequence[str], count: Count | None = None) -> FloatMatrix:
        """float32 [n, d]: the vectors of documents, in the order given; `count` is told `truncated documents`."""
        vectors: FloatMatrix = self._counted(texts, "document", count)
        return vectors

    @property
    def dimension(self) -> int:
        """The length of a vector."""
        return int(self.model.get_embedding_dimension())

    @property
    def score_kind(self) -> ScoreKind:
        """What a dot product of two vectors is."""
        return ScoreKind.DOT if self.model.similarity_fn_name == "dot" else ScoreKind.COSINE

    def _open(self, path: str) -> Any:
        import torch
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(
            path, device=self.device, local_files_only=True, model_kwargs={"dtype": torch.float32}
        )

    @property
    def _form(self) -> str:
        return "unit" if self.score_kind is ScoreKind.COSINE else "plain"

    def _read(self, output: Any) -> Any:
        if self._form == "unit":
            import torch

            output = torch.nn.functional.normalize(output, dim=-1)
        return output.float().cpu().numpy()

    def _join(self, parts: list[Any], order: npt.NDArray[np.int64]) -> FloatMatrix:
        if not parts:
            return np.empty((0, self.dimension), dtype=np.float32)
        vectors = np.empty((len(order), parts[0].shape[1]), dtype=np.float32)
        vectors[order] = np.concatenate(parts)
        return vectors

    def _library(self, texts: list[str], side: Side) -> FloatMatrix:
        if not texts:
            return self._join([], np.empty(0, dtype=np.int64))
        encode = self.model.encode_query if side == "query" else self.model.encode_document
        vectors: FloatMatrix = encode(
            texts, normalize_embeddings=self._form == "unit", show_progress_bar=False, convert_to_numpy=True
        )
        return vectors.astype(np.float32, copy=False)

    def _dense(self, rows: FloatMatrix) -> FloatMatrix:
        return rows

    def _values(self, rows: FloatMatrix) -> FloatMatrix:
        return rows


def load_encoder(runtime: Runtime, model: str, revision: str | None = None, dtype: DType = "auto") -> Encoder:
    """The encoder of that name, loaded once in `runtime`.

    Raises:
        UnknownNameError: the name means nothing.
        ModelError: its files are missing or do not load.
    """
    return loaded(Encoder, runtime, model, revision, dtype)
