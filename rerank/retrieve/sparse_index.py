"""A sparse index: for every term the documents that hold it with an impact, and search by summing impacts.

BM25 (whose impacts bm25s works out) and learned sparse encoders (whose impacts a model gives) share it.  Two kernels
give the same float32 sums, bit for bit: SciPy's sparse product, which costs nothing to start and wins for short
queries, and bm25s's compiled one, which wins for long queries but takes seconds to compile in a new process.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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

POSTINGS_PER_CHUNK = 4_000_000
"""Postings that one sparse product may touch: bounds its result to some 50 MB."""
POSTINGS_WORTH_COMPILING = 400_000_000
"""A batch below this is done by SciPy before bm25s's kernel would have been compiled."""
DENSE_SHARE = 0.2
"""Where a query touches more postings than this share of the documents, the compiled kernel is the faster one."""

_compiled = threading.Event()


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
    def join(cls, parts: Sequence[Found]) -> Found:
        """Several batches of queries one after the other."""
        sizes = np.concatenate([np.diff(part.offsets) for part in parts]) if parts else np.zeros(0, dtype=np.int64)
        offsets = np.zeros(len(sizes) + 1, dtype=np.int64)
        np.cumsum(sizes, out=offsets[1:])
        docs = np.concatenate([part.docs for part in parts]) if parts else np.zeros(0, dtype=np.int64)
        scores = np.concatenate([part.scores for part in parts]) if parts else np.zeros(0, dtype=np.float32)
        return cls(offsets, docs, scores)


def write_sparse_index(folder: Path, matrix: scipy.sparse.csr_array | scipy.sparse.csc_array) -> None:
    """Writes a documents x terms matrix of impacts into an artifact's folder."""
    csc: Any = matrix.tocsc()
    np.save(folder / "impacts.npy", csc.data.astype(np.float32, copy=False))
    np.save(folder / "documents.npy", csc.indices.astype(np.int32, copy=False))
    np.save(folder / "starts.npy", csc.indptr.astype(np.int64, copy=False))
    np.save(folder / "shape.npy", np.array(csc.shape, dtype=np.int64))


class SparseIndex:
    """An index mapped from an artifact's folder."""

    def __init__(self, impacts: Float32, documents: npt.NDArray[np.int32], starts: Int64, n_documents: int) -> None:
        self._impacts, self._documents, self._starts = impacts, documents, starts
        self.n_documents = n_documents
        self.n_terms = len(starts) - 1

    @classmethod
    def open(cls, folder: Path) -> SparseIndex:
        """The index in `folder`.

        Raises:
            CorruptArtifactError: its arrays do not fit each other.
        """
        impacts, documents = map_array(folder / "impacts.npy"), map_array(folder / "documents.npy")
        starts, shape = map_array(folder / "starts.npy"), np.load(folder / "shape.npy", allow_pickle=False)
        if len(starts) != int(shape[1]) + 1 or int(starts[-1]) != len(impacts) or len(impacts) != len(documents):
            raise CorruptArtifactError(f"{folder}: the index's arrays do not fit each other; build it again")
        return cls(impacts, documents, starts, int(shape[0]))

    def search(
        self, queries: SparseQueries, k: int, excluded: Sequence[npt.NDArray[np.int64]] | None = None, threads: int = 1
    ) -> Found:
        """At least the best `k` documents of each query that share a term with it, less the `excluded` codes.

        Which kernel runs changes nothing in the result.
        """
        lengths = self._starts[queries.terms + 1] - self._starts[queries.terms]
        ends = np.concatenate([[0], np.cumsum(lengths)])[queries.offsets]
        touched = np.diff(ends)
        dense = (
            queries.weights is None and float(touched.mean() if len(touched) else 0) > DENSE_SHARE * self.n_documents
        )
        if dense and (_compiled.is_set() or ends[-1] > POSTINGS_WORTH_COMPILING):
            return self._search_compiled(queries, k, excluded, threads)
        bounds = [0]
        for position in range(len(queries)):
            if ends[position + 1] - ends[bounds[-1]] > POSTINGS_PER_CHUNK and position > bounds[-1]:
                bounds.append(position)
        if len(queries):
            bounds.append(len(queries))
        chunks = list(itertools.pairwise(bounds))
        if len(chunks) == 1 and threads > 1 and len(queries) >= 2 * threads:
            marks = np.linspace(0, len(queries), threads + 1).astype(int).tolist()
            chunks = list(itertools.pairwise(marks))

        def one(chunk: tuple[int, int]) -> Found:
            start, stop = chunk
            return self._search_product(queries.part(start, stop), k, excluded[start:stop] if excluded else None)

        if len(chunks) < 2 or threads < 2:
            return Found.join([one(chunk) for chunk in chunks])
        with ThreadPoolExecutor(threads) as pool:
            return Found.join(list(pool.map(one, chunks)))

    def _search_product(self, queries: SparseQueries, k: int, excluded: Sequence[Int64] | None) -> Found:
        from scipy.sparse import csr_array

        weights = np.ones(len(queries.terms), dtype=np.float32) if queries.weights is None else queries.weights
        left = csr_array((weights, queries.terms, queries.offsets), shape=(len(queries), self.n_terms))
        right = csr_array((self._impacts, self._documents, self._starts), shape=(self.n_terms, self.n_documents))
        product = left @ right
        bounds = product.indptr.tolist()
        parts = []
        for position in range(len(queries)):
            docs = product.indices[bounds[position] : bounds[position + 1]]
            scores = product.data[bounds[position] : bounds[position + 1]]
            parts.append(_best(docs, scores, k, excluded[position] if excluded else None))
        return Found.join(parts)

    def _search_compiled(self, queries: SparseQueries, k: int, excluded: Sequence[Int64] | None, threads: int) -> Found:
        """bm25s's kernel gives k documents, ties at the end cut anywhere: those queries are searched again in SciPy."""
        import bm25s

        kernel = bm25s.BM25(backend="numba", auto_compile=False)
        kernel.scores = {
            "data": self._impacts,
            "indices": self._documents,
            "indptr": self._starts,
            "num_docs": self.n_documents,
        }
        kernel.vocab_dict, kernel.nonoccurrence_array = {}, None
        kernel.unique_token_ids_set = range(self.n_terms)
        most = max((len(codes) for codes in excluded), default=0) if excluded else 0
        depth = min(self.n_documents, k + most + 1)

        def one(span: tuple[int, int]) -> list[Found]:
            terms = [queries.terms[queries.offsets[i] : queries.offsets[i + 1]].tolist() for i in range(*span)]
            asked = [i for i, query in enumerate(terms) if query]
            found = [_best(np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.float32), k, None)] * len(terms)
            if asked:
                # One thread a call: the serial kernel frees the interpreter, so calls run side by side here.
                docs, scores = kernel.retrieve([terms[i] for i in asked], k=depth, n_threads=1, show_progress=False)
                for row, i in enumerate(asked):
                    position = span[0] + i
                    if depth < self.n_documents and scores[row, -1] > 0 and scores[row, -1] == scores[row, -2]:
                        again = excluded[position : position + 1] if excluded else None
                        found[i] = self._search_product(queries.part(position, position + 1), k, again)
                    else:
                        hit = scores[row] > 0
                        found[i] = _best(docs[row][hit], scores[row][hit], k, excluded[position] if excluded else None)
            return found

        marks = np.linspace(0, len(queries), min(threads, max(1, len(queries))) + 1).astype(int).tolist()
        spans = list(itertools.pairwise(marks))
        if len(spans) == 1:
            parts = one(spans[0])
        else:
            with ThreadPoolExecutor(len(spans)) as pool:
                parts = [part for span in pool.map(one, spans) for part in span]
        _compiled.set()
        return Found.join(parts)


def _best(docs: npt.NDArray[np.int32], scores: Float32, k: int, excluded: Int64 | None) -> Found:
    """The documents of one query whose score is at least the k-th best, above 0 and not excluded."""
    keep = scores > 0
    if excluded is not None and len(excluded):
        keep &= ~np.isin(docs, excluded)
    if not keep.all():
        docs, scores = docs[keep], scores[keep]
    if len(scores) > k:
        least = np.partition(scores, len(scores) - k)[len(scores) - k]
        keep = scores >= least
        docs, scores = docs[keep], scores[keep]
    return Found(np.array([0, len(docs)], dtype=np.int64), docs.astype(np.int64), scores)
