"""Learned sparse encoders: texts to weights over a vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from rerank.engines.text_model import Count, DType, FloatMatrix, Side, TextModel, loaded

if TYPE_CHECKING:
    import scipy.sparse

    from rerank.runtime import Runtime


class SparseEncoder(TextModel):
    """A sentence-transformers sparse encoder, e.g. SPLADE: a row holds the weights of a text's terms.

    Source: Formal et al. 2021, SPLADE v2 (the weight of a term is the maximum over positions of log(1 + relu(logit))).
    """

    library_class: ClassVar[str] = "SparseEncoder"
    # Every token costs a row of the whole vocabulary while its batch runs: 1,024 x 30,522 floats are 125 MB.
    batch_tokens: ClassVar[int] = 1024

    def encode_queries(self, texts: Sequence[str], count: Count | None = None) -> scipy.sparse.csr_array:
        """float32 [n, terms]: the term weights of queries, in the order given."""
        rows: scipy.sparse.csr_array = self._counted(texts, "query", count)
        return rows

    def encode_documents(self, texts: Sequence[str], count: Count | None = None) -> scipy.sparse.csr_array:
        """float32 [n, terms]: the term weights of documents, in the order given."""
        rows: scipy.sparse.csr_array = self._counted(texts, "document", count)
        return rows

    @property
    def n_terms(self) -> int:
        """The size of the vocabulary."""
        return int(self.model.get_embedding_dimension())

    def _open(self, path: str) -> Any:
        import torch
        from sentence_transformers import SparseEncoder as LibraryEncoder

        return LibraryEncoder(path, device=self.device, local_files_only=True, model_kwargs={"dtype": torch.float32})

    @property
    def _form(self) -> str:
        return "sparse"

    def _pool(self, features: dict[str, Any]) -> Any:
        """SPLADE's maximum is taken of the logits: what follows rises with them, so it is done for one row, not all."""
        import torch

        pooling = self.model[-1]
        if len(self.model) != 2 or getattr(pooling, "pooling_strategy", None) != "max":
            return super()._pool(features)
        logits, mask = features["token_embeddings"], features["attention_mask"]
        if bool(mask.all()):
            highest = logits.amax(dim=1)
        else:
            spans = [torch.nonzero(row).flatten() for row in mask]
            highest = torch.stack(
                [row[span[0] : span[-1] + 1].amax(dim=0) for row, span in zip(logits, spans, strict=True)]
            )
        weights = torch.log1p(torch.relu(highest.float()))
        return torch.log1p(weights) if pooling.activation_function == "log1p_relu" else weights

    def _read(self, output: Any) -> Any:
        from scipy.sparse import csr_array

        return csr_array(output.float().cpu().numpy())

    def _join(self, parts: list[Any], order: npt.NDArray[np.int64]) -> scipy.sparse.csr_array:
        from scipy.sparse import csr_array, vstack

        back = np.empty(len(order), dtype=np.int64)
        back[order] = np.arange(len(order))
        stacked: Any = vstack(parts, format="csr") if parts else csr_array((0, self.n_terms), dtype=np.float32)
        rows: scipy.sparse.csr_array = stacked[back]
        return rows

    def _library(self, texts: list[str], side: Side) -> scipy.sparse.csr_array:
        from scipy.sparse import csr_array

        if not texts:
            return self._join([], np.empty(0, dtype=np.int64))
        encode = self.model.encode_query if side == "query" else self.model.encode_document
        found = encode(texts, batch_size=8, show_progress_bar=False, save_to_cpu=True).coalesce()
        place, values = found.indices().numpy(), found.values().float().numpy()
        rows: Any = csr_array((values, (place[0], place[1])), shape=tuple(found.shape))
        return self._join([rows], np.arange(len(texts)))

    def _dense(self, rows: scipy.sparse.csr_array) -> FloatMatrix:
        return rows.toarray()

    def _values(self, rows: scipy.sparse.csr_array) -> npt.NDArray[np.float32]:
        return rows.data


def load_sparse_encoder(
    runtime: Runtime, model: str, revision: str | None = None, dtype: DType = "auto"
) -> SparseEncoder:
    """The sparse encoder of that name, loaded once in `runtime`.

    Raises:
        UnknownNameError: the name means nothing.
        ModelError: its files are missing or do not load.
    """
    return loaded(SparseEncoder, runtime, model, revision, dtype)
