"""Indexes over vectors: how much they find, and that searching leaves the library as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rerank.errors import CorruptArtifactError
from rerank.retrieve.nearest import nearest
from rerank.retrieve.vector_index import FlatSearch, IndexSearch, read_index, write_index
from rerank.runtime import Runtime

pytestmark = pytest.mark.needs("faiss")


@pytest.fixture
def runtime(own_home: Path) -> Runtime:
    return Runtime(own_home, threads=1, device="cpu", progress=False)


def test_the_threshold_of_faiss_is_as_before_after_a_search_and_after_an_error(monkeypatch) -> None:
    import faiss

    before, threads = faiss.cvar.distance_compute_blas_threshold, faiss.omp_get_max_threads()
    matrix = np.eye(3, dtype=np.float32)
    seen = []

    def knn(*args: object, **options: object) -> None:
        seen.append(faiss.cvar.distance_compute_blas_threshold)
        raise MemoryError

    FlatSearch(matrix, 1)(matrix, 2)
    monkeypatch.setattr(faiss, "knn", knn)
    with pytest.raises(MemoryError):
        FlatSearch(matrix, 1)(matrix, 2)
    assert seen == [1]
    assert faiss.cvar.distance_compute_blas_threshold == before
    assert faiss.omp_get_max_threads() == threads


def clustered(n: int = 4000, d: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors in 40 clusters, and queries near some of them."""
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((40, d))[rng.integers(0, 40, n)] + 0.5 * rng.standard_normal((n, d))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    queries = rows[rng.integers(0, n, 50)] + 0.1 * rng.standard_normal((50, d))
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    return rows.astype(np.float32), queries.astype(np.float32)


@pytest.mark.parametrize(
    ("settings", "parameters", "least"),
    [
        ({"index": "sq8"}, {}, 0.97),
        ({"index": "ivf", "lists": 64}, {"nprobe": 16}, 0.9),
        ({"index": "hnsw", "links": 16, "ef_construction": 80}, {"efSearch": 128}, 0.95),
    ],
    ids=["sq8", "ivf", "hnsw"],
)
def test_indexes_find_most_of_what_a_full_comparison_finds(
    runtime: Runtime, tmp_path: Path, settings: dict[str, object], parameters: dict[str, int], least: float
) -> None:
    import faiss

    matrix, queries = clustered()
    write_index(faiss, tmp_path / "index", matrix, settings, runtime)
    exact = matrix if settings["index"] == "sq8" else None
    search = IndexSearch(read_index(faiss, tmp_path / "index", matrix.shape), 1, parameters, exact)
    found = nearest(queries, search, matrix, 50)
    truth = nearest(queries, FlatSearch(matrix, 1), matrix, 50)
    shared = [
        len(np.intersect1d(found.docs[found.offsets[i] :][:50], truth.docs[truth.offsets[i] :][:50])) / 50
        for i in range(len(queries))
    ]
    assert np.mean(shared) >= least
    _, here, there = np.intersect1d(found.docs[:50], truth.docs[:50], return_indices=True)
    assert found.scores[here] == pytest.approx(truth.scores[there], abs=1e-5)


def test_an_index_file_that_faiss_cannot_read_is_told(tmp_path: Path) -> None:
    import faiss

    (tmp_path / "index").write_bytes(b"IxXX not an index")
    with pytest.raises(CorruptArtifactError, match="faiss cannot read it"):
        read_index(faiss, tmp_path / "index", (3, 3))


def test_an_index_of_other_vectors_is_told(runtime: Runtime, tmp_path: Path) -> None:
    import faiss

    write_index(faiss, tmp_path / "index", np.eye(3, dtype=np.float32), {"index": "sq8"}, runtime)
    assert read_index(faiss, tmp_path / "index", (3, 3)).ntotal == 3
    with pytest.raises(CorruptArtifactError, match="index of other vectors"):
        read_index(faiss, tmp_path / "index", (4, 3))
