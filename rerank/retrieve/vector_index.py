"""Indexes over vectors: exact search by matrix products, and faiss's approximate ones on disk."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rerank.engines.text_model import FloatMatrix
from rerank.errors import CorruptArtifactError
from rerank.extras import need
from rerank.retrieve.nearest import Int64, exact_scores
from rerank.runtime import Runtime

_GPU_DEPTH = 2048
"""faiss finds no more than this many on a GPU."""
_blas = threading.Lock()


def write_index(faiss: Any, path: Path, matrix: FloatMatrix, settings: dict[str, Any], runtime: Runtime) -> None:
    """Builds the faiss index that `settings` describe over `matrix` and writes it to `path`."""
    d = matrix.shape[1]
    dot = faiss.METRIC_INNER_PRODUCT
    with faiss_threads(faiss, runtime.threads), runtime.progress("indexing", len(matrix), "vectors") as advance:
        if settings["index"] == "sq8":
            index = faiss.IndexScalarQuantizer(d, faiss.ScalarQuantizer.QT_8bit, dot)
            index.train(np.ascontiguousarray(matrix[:: max(1, len(matrix) // 100_000)]))
        elif settings["index"] == "ivf":
            index = faiss.IndexIVFFlat(faiss.IndexFlatIP(d), d, settings["lists"], dot)
            # faiss clusters on at most 256 vectors a list; fewer than 39 a list it calls too few, and warns.
            index.cp.min_points_per_centroid = 1
            index.train(np.ascontiguousarray(matrix[:: max(1, len(matrix) // (256 * settings["lists"]))]))
        else:
            index = faiss.IndexHNSWFlat(d, settings["links"], dot)
            index.hnsw.efConstruction = settings["ef_construction"]
        for start in range(0, len(matrix), 16_384):
            index.add(np.ascontiguousarray(matrix[start : start + 16_384]))
            advance(min(16_384, len(matrix) - start))
        faiss.write_index(index, str(path))


def read_index(faiss: Any, path: Path, shape: tuple[int, ...]) -> Any:
    """The faiss index at `path`, over a matrix of that shape, mapped into memory where faiss can.

    Raises:
        CorruptArtifactError: it is not one, or not one of these vectors.
    """
    try:
        index = faiss.read_index(str(path), getattr(faiss, "IO_FLAG_MMAP_IFC", 0))
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CorruptArtifactError(f"{path}: faiss cannot read it ({reason[:200]}); build the index again") from error
    if (index.ntotal, index.d) != shape:
        raise CorruptArtifactError(f"{path}: is an index of other vectors; build the index again")
    return index


@contextlib.contextmanager
def faiss_threads(faiss: Any, threads: int) -> Iterator[None]:
    """faiss computes with so many threads inside the block and as before after it."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


class FlatSearch:
    """Exact search over a matrix as it lies, by matrix products.

    faiss multiplies matrices only above `distance_compute_blas_threshold` queries, 128,000 as shipped, and otherwise
    goes vector by vector, some 20 times slower; the threshold is a global of the library, so it is lowered for the
    time of the call only.
    """

    def __init__(self, matrix: FloatMatrix, threads: int, *, on_gpu: bool = False) -> None:
        self._matrix, self._threads = matrix, threads
        self._faiss = need("faiss", "dense", "dense retrieval")
        has_gpu = on_gpu and hasattr(self._faiss, "StandardGpuResources")
        self._gpu = self._faiss.StandardGpuResources() if has_gpu else None

    def __call__(self, queries: FloatMatrix, depth: int) -> tuple[FloatMatrix, Int64]:
        """The `depth` highest dot products and their rows."""
        faiss = self._faiss
        found: tuple[FloatMatrix, Int64]
        if self._gpu is not None and depth <= _GPU_DEPTH:
            found = faiss.knn_gpu(self._gpu, queries, self._matrix, depth, metric=faiss.METRIC_INNER_PRODUCT)
            return found
        with _blas, faiss_threads(faiss, self._threads):
            before = faiss.cvar.distance_compute_blas_threshold
            faiss.cvar.distance_compute_blas_threshold = 1
            try:
                found = faiss.knn(queries, self._matrix, depth, metric=faiss.METRIC_INNER_PRODUCT)
            finally:
                faiss.cvar.distance_compute_blas_threshold = before
        return found


class IndexSearch:
    """Search in a faiss index; with `exact`, what it found is scored and ordered again by the true vectors."""

    def __init__(self, index: Any, threads: int, parameters: dict[str, int], exact: FloatMatrix | None = None) -> None:
        self._index, self._threads, self._parameters, self._exact = index, threads, parameters, exact

    def __call__(self, queries: FloatMatrix, depth: int) -> tuple[FloatMatrix, Int64]:
        """Scores and rows, -1 where fewer were found."""
        faiss = need("faiss", "dense", "dense retrieval")
        chosen = None
        if "nprobe" in self._parameters:
            chosen = faiss.SearchParametersIVF(nprobe=self._parameters["nprobe"])
        elif "efSearch" in self._parameters:
            chosen = faiss.SearchParametersHNSW(efSearch=max(self._parameters["efSearch"], depth))
        with faiss_threads(faiss, self._threads):
            scores, rows = self._index.search(queries, depth, params=chosen)
        if self._exact is not None:
            at = np.repeat(np.arange(len(queries)), depth)
            scores = exact_scores(queries, self._exact, at, rows.reshape(-1)).reshape(rows.shape)
            order = np.argsort(-scores, axis=1, kind="stable")
            scores, rows = np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
        return scores, rows
