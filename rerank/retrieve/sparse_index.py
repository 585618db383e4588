"""A sparse index: for every term the documents that hold it with an impact, and search by summing impacts.

BM25 (whose impacts bm25s works out) and learned sparse encoders (whose impacts a model gives) share it.  A search costs
what the query's postings cost: there is no pass over all documents, and documents without a common term never appear.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rerank.data.corpus import map_array
from rerank.errors import CorruptArtifactError

if TYPE_CHECKING:
    import scipy.sparse

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Floats = npt.NDArray[np.floating[Any]]

_BLOCK = 1 << 22


@dataclass(frozen=True)
class SparseQueries:
    """Queries as weighted terms: query i holds `terms[offsets[i]:offsets[i + 1]]`; a term may stand there twice."""

    terms: npt.NDArray[np.int32]
    offsets: Int64
    weights: Float32 | None = None
    """None: every term weighs 1."""

    @classmethod
    def of(cls, terms: Sequence[Sequence[int]], weights: Sequence[Sequence[float]] | None = None) -> SparseQueries:
        """Queries from lists."""
        offsets = np.zeros(len(terms) + 1, dtype=np.int64)
        np.cumsum([len(query) for query in terms], out=offsets[1:])
        flat = np.array([term for query in terms for term in query], dtype=np.int32)
        if weights is None:
            return cls(flat, offsets)
        return cls(flat, offsets, np.array([weight for query in weights for weight in query], dtype=np.float32))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def part(self, start: int, stop: int) -> SparseQueries:
        """Queries `start` .. `stop`."""
        a, b = self.offsets[start], self.offsets[stop]
        weights = None if self.weights is None else self.weights[a:b]
        return SparseQueries(self.terms[a:b], self.offsets[start : stop + 1] - a, weights)


@dataclass(frozen=True)
class Found:
    """Documents per query in no order; those that tie with the k-th are all there, so that ids can decide."""

    offsets: Int64
    docs: Int64
    scores: Floats

    @classmethod
    def of(cls, docs: Sequence[npt.NDArray[np.integer[Any]]], scores: Sequence[Floats]) -> Found:
        """From one array of codes and one of scores per query."""
        offsets = np.zeros(len(docs) + 1, dtype=np.int64)
        np.cumsum([len(part) for part in docs], out=offsets[1:])
        if not len(docs):
            return cls(offsets, np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32))
        return cls(offsets, np.concatenate(docs).astype(np.int64), np.concatenate(scores))

    @classmethod
    def join(cls, parts: Sequence[Found]) -> Found:
        """Several batches of queries one after the other."""
        starts = np.cumsum([0, *(part.offsets[-1] for part in parts)])
        offsets = [part.offsets[1:] + start for part, start in zip(parts, starts[:-1], strict=True)]
        return cls(
            np.concatenate([np.zeros(1, dtype=np.int64), *offsets]),
            np.concatenate([part.docs for part in parts]),
            np.concatenate([part.scores for part in parts]),
        )


def write_sparse_index(folder: Path, matrix: scipy.sparse.csr_array | scipy.sparse.csc_array) -> None:
    """Writes a documents x terms matrix of impacts into an artifact's folder."""
    csc: Any = matrix.tocsc()
    np.save(folder / "impacts.npy", csc.data.astype(np.float32, copy=False))
    np.save(folder / "documents.npy", csc.indices.astype(np.int32, copy=False))
    np.save(folder / "starts.npy", csc.indptr.astype(np.int64, copy=False))
    np.save(folder / "shape.npy", np.array(csc.shape, dtype=np.int64))


@cache
def _kernel() -> Callable[..., int]:
    """The compiled search of one query; kept on disk between processes where numba finds a writable folder."""
    from numba import njit

    def search(
        terms: npt.NDArray[np.int32],
        weights: Float32,
        starts: Int64,
        documents: npt.NDArray[np.int32],
        impacts: Float32,
        excluded: Int64,
        sums: Float32,
        found: npt.NDArray[np.int32],
        values: Float32,
        best: Float32,
    ) -> int:
        """How many of `found` (with `values`) may be among the best len(best); best[0] becomes the least that is."""
        postings = 0
        for term in terms:
            postings += starts[term + 1] - starts[term]
        count = 0
        # A list of the touched documents saves a pass over all of them, but costs a test a posting.
        sparse = postings < len(sums) // 8
        for i in range(len(terms)):
            weight = weights[i]
            if sparse:
                for posting in range(starts[terms[i]], starts[terms[i] + 1]):
                    document = documents[posting]
                    if sums[document] == 0.0:
                        found[count] = document
                        count += 1
                    sums[document] += weight * impacts[posting]
            else:
                for posting in range(starts[terms[i]], starts[terms[i] + 1]):
                    sums[documents[posting]] += weight * impacts[posting]
        for document in excluded:
            sums[document] = 0.0
        # `best` is a heap of the k best scores so far, its least first; who falls below it is out for good.
        k = len(best)
        best[:] = 0.0
        least = np.float32(1e-45)
        kept = 0
        for position in range(count if sparse else len(sums)):
            document = found[position] if sparse else position
            score = sums[document]
            if score >= least:
                found[kept] = document
                values[kept] = score
                kept += 1
                hole = 0
                child = 1
                while child < k:
                    if child + 1 < k and best[child + 1] < best[child]:
                        child += 1
                    if best[child] >= score:
                        break
                    best[hole] = best[child]
                    hole = child
                    child = 2 * hole + 1
                best[hole] = score
                least = max(least, best[0])
            if sparse:
                sums[document] = 0.0
        if not sparse:
            sums[:] = 0.0
        return kept

    try:
        compiled: Callable[..., int] = njit(nogil=True, cache=True)(search)
    except RuntimeError:
        compiled = njit(nogil=True)(search)
    return compiled


class SparseIndex:
    """An index mapped from an artifact's folder."""

    def __init__(self, impacts: Float32, documents: npt.NDArray[np.int32], starts: Int64, n_documents: int) -> None:
        self._impacts, self._documents, self._starts = impacts, documents, starts
        self.n_documents = n_documents
        self.n_terms = len(starts) - 1
        self._checked = False

    @classmethod
    def open(cls, folder: Path) -> SparseIndex:
        """The index in `folder`.

        Raises:
            CorruptArtifactError: its arrays do not fit each other.
        """
        impacts, documents = map_array(folder / "impacts.npy"), map_array(folder / "documents.npy")
        starts, shape = map_array(folder / "starts.npy"), map_array(folder / "shape.npy")
        fits = len(starts) == int(shape[1]) + 1 and starts[0] == 0 and len(impacts) == len(documents) == starts[-1]
        if not fits or np.any(np.diff(starts) < 0):
            raise CorruptArtifactError(f"{folder}: the index's arrays do not fit each other; build it again")
        return cls(impacts, documents, starts, int(shape[0]))

    def _check_documents(self) -> None:
        """Reads every posting once, before the first search: compiled code must not write outside its arrays."""
        if not self._checked:
            for start in range(0, len(self._documents), _BLOCK):
                block = self._documents[start : start + _BLOCK]
                if block.min() < 0 or block.max() >= self.n_documents:
                    raise CorruptArtifactError("the index names documents that it does not have; build it again")
            self._checked = True

    def search(
        self, queries: SparseQueries, k: int, excluded: Sequence[npt.NDArray[np.int64]] | None = None, threads: int = 1
    ) -> Found:
        """At least the best `k` documents of each query that share a term with it, less the `excluded` codes.

        Impacts and weights are taken as positive.  Sums are float32, in the order of the query's terms.
        """
        marks = np.linspace(0, len(queries), min(threads, max(1, len(queries))) + 1).astype(int).tolist()
        spans = list(itertools.pairwise(marks))
        if len(spans) == 1:
            return self._search(queries, k, excluded, spans[0])
        with ThreadPoolExecutor(len(spans)) as pool:
            return Found.join(list(pool.map(lambda span: self._search(queries, k, excluded, span), spans)))

    def _search(self, queries: SparseQueries, k: int, excluded: Sequence[Int64] | None, span: tuple[int, int]) -> Found:
        """The queries `span` on one thread, with one array of sums that every query leaves clean."""
        self._check_documents()
        search = _kernel()
        weights = np.ones(len(queries.terms), dtype=np.float32) if queries.weights is None else queries.weights
        sums = np.zeros(self.n_documents, dtype=np.float32)
        found = np.empty(self.n_documents, dtype=np.int32)
        values = np.empty(self.n_documents, dtype=np.float32)
        best = np.empty(min(k, self.n_documents), dtype=np.float32)
        none = np.empty(0, dtype=np.int64)
        bounds = queries.offsets.tolist()
        docs, scores = [], []
        for i in range(*span):
            part = slice(bounds[i], bounds[i + 1])
            out = excluded[i] if excluded else none
            postings = (self._starts, self._documents, self._impacts)
            kept = search(queries.terms[part], weights[part], *postings, out, sums, found, values, best)
            among = values[:kept] >= best[0]
            docs.append(found[:kept][among])
            scores.append(values[:kept][among])
        return Found.of(docs, scores)
