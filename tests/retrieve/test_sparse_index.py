"""Search by summing impacts: against a loop over all documents, at every boundary."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csc_array, csr_array

from rerank.errors import CorruptArtifactError
from rerank.retrieve.sparse_index import Found, SparseIndex, SparseQueries, write_sparse_index

Matrix = npt.NDArray[np.float32]


def index_of(matrix: Matrix) -> SparseIndex:
    csc = csc_array(matrix)
    return SparseIndex(
        csc.data.astype(np.float32), csc.indices.astype(np.int32), csc.indptr.astype(np.int64), matrix.shape[0]
    )


def naive(
    matrix: Matrix, terms: list[int], weights: list[float] | None, k: int, excluded: set[int]
) -> dict[int, np.float32]:
    """The documents above 0 that are among the best k or tie with the last of them."""
    sums = np.zeros(len(matrix), dtype=np.float32)
    for term, weight in zip(terms, weights or [1.0] * len(terms), strict=True):
        sums += np.float32(weight) * matrix[:, term]
    sums[list(excluded)] = 0
    hits = {doc: score for doc, score in enumerate(sums) if score > 0}
    least = sorted(hits.values(), reverse=True)[:k]
    return {doc: score for doc, score in hits.items() if score >= least[-1]} if least else {}


def as_dicts(found: Found) -> list[dict[int, np.float32]]:
    bounds = found.offsets.tolist()
    lists = [dict(zip(found.docs[a:b].tolist(), found.scores[a:b], strict=True)) for a, b in pairwise(bounds)]
    assert sum(map(len, lists)) == len(found.docs), "a document stands twice in a list"
    return lists


@st.composite
def cases(draw: st.DrawFn) -> tuple[Matrix, list[list[int]], list[list[float]] | None, int, list[set[int]], int]:
    n_documents, n_terms = draw(st.integers(1, 40)), draw(st.integers(1, 6))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    # Impacts are few, so that sums tie; 0 stands for a term that weighs nothing (a robertson idf of 0).
    matrix = random.choice(np.array([0.25, 0.5, 0.1, 1.7, 3.0], np.float32), (n_documents, n_terms))
    matrix *= random.random(matrix.shape) < draw(st.sampled_from([0.02, 0.1, 0.5, 1.0]))
    queries = draw(st.lists(st.lists(st.integers(0, n_terms - 1), max_size=5), max_size=6))
    weighted = draw(st.booleans())
    weights = [[draw(st.sampled_from([0.5, 1.0, 0.3])) for _ in query] for query in queries] if weighted else None
    excluded = [set(draw(st.lists(st.integers(0, n_documents - 1), max_size=4))) for _ in queries]
    return matrix, queries, weights, draw(st.integers(1, 45)), excluded, draw(st.integers(1, 3))


@given(cases())
@settings(max_examples=200)
def test_search_agrees_bit_for_bit_with_a_sum_over_all_documents(case: Any) -> None:
    matrix, queries, weights, k, excluded, threads = case
    found = index_of(matrix).search(
        SparseQueries.of(queries, weights),
        k,
        [np.array(sorted(codes), dtype=np.int64) for codes in excluded],
        threads,
    )
    lists = as_dicts(found)
    assert len(lists) == len(queries)
    for i, query in enumerate(queries):
        assert lists[i] == naive(matrix, query, weights[i] if weights else None, k, excluded[i])


@pytest.mark.parametrize("n_documents", [4, 400])
def test_all_that_tie_with_the_last_are_given_so_that_ids_can_decide(n_documents: int) -> None:
    """Both ways through the kernel: a query that touches most documents, and one that touches few."""
    matrix = np.zeros((n_documents, 1), dtype=np.float32)
    matrix[:4, 0] = [2, 1, 1, 1]
    found = index_of(matrix).search(SparseQueries.of([[0]]), 2)
    assert as_dicts(found) == [{0: 2, 1: 1, 2: 1, 3: 1}]


def test_a_term_of_no_weight_finds_nothing() -> None:
    matrix = csc_array((np.zeros(3, np.float32), np.array([0, 1, 2]), np.array([0, 3])), shape=(100, 1))
    index = SparseIndex(matrix.data, matrix.indices.astype(np.int32), matrix.indptr.astype(np.int64), 100)
    assert as_dicts(index.search(SparseQueries.of([[0, 0]]), 5)) == [{}]


def test_no_queries_and_empty_queries_give_empty_lists() -> None:
    index = index_of(np.ones((3, 2), dtype=np.float32))
    assert as_dicts(index.search(SparseQueries.of([]), 5)) == []
    assert as_dicts(index.search(SparseQueries.of([[], [0], []]), 5, threads=8)) == [{}, {0: 1, 1: 1, 2: 1}, {}]


def test_a_query_leaves_no_trace_in_the_next() -> None:
    index = index_of(np.eye(50, dtype=np.float32))
    queries = SparseQueries.of([[i % 50] for i in range(200)])
    assert as_dicts(index.search(queries, 3)) == [{i % 50: 1} for i in range(200)]


def test_the_number_of_threads_changes_nothing() -> None:
    random = np.random.default_rng(0)
    matrix = (random.random((500, 30)) * (random.random((500, 30)) < 0.2)).astype(np.float32)
    queries = SparseQueries.of([random.integers(0, 30, 4).tolist() for _ in range(37)])
    one = index_of(matrix).search(queries, 10)
    for threads in (2, 3, 64):
        many = index_of(matrix).search(queries, 10, threads=threads)
        assert as_dicts(many) == as_dicts(one)


def test_a_part_of_the_queries_is_those_queries() -> None:
    queries = SparseQueries.of([[1, 2], [], [3]], [[0.5, 1.0], [], [2.0]])
    part = queries.part(1, 3)
    assert len(part) == 2
    assert (part.terms.tolist(), part.offsets.tolist()) == ([3], [0, 0, 1])
    assert part.weights is not None
    assert part.weights.tolist() == [2.0]


# -- on disk -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", [csc_array, csr_array])
def test_an_index_on_disk_is_the_one_in_memory(form: Any, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    matrix = (random.random((40, 7)) * (random.random((40, 7)) < 0.3)).astype(np.float32)
    write_sparse_index(tmp_path, form(matrix))
    index = SparseIndex.open(tmp_path)
    queries = SparseQueries.of([[0, 1, 6], [3]])
    assert (index.n_documents, index.n_terms) == (40, 7)
    assert as_dicts(index.search(queries, 5)) == as_dicts(index_of(matrix).search(queries, 5))


def test_an_index_without_terms_finds_nothing(tmp_path: Path) -> None:
    write_sparse_index(tmp_path, csc_array((3, 0), dtype=np.float32))
    index = SparseIndex.open(tmp_path)
    assert (index.n_documents, index.n_terms) == (3, 0)
    assert as_dicts(index.search(SparseQueries.of([[], []]), 5)) == [{}, {}]


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("starts", np.array([0, 1])),
        ("starts", np.array([0, 3, 1])),
        ("starts", np.array([1, 2, 3])),
        ("starts", np.array([0, 1, 4])),
        ("starts", np.array([0, 4, 3])),
        ("impacts", np.ones(2, np.float32)),
        ("documents", np.zeros(4, np.int32)),
        ("shape", np.array([2, 3])),
    ],
)
def test_arrays_that_do_not_fit_are_refused(name: str, array: npt.NDArray[Any], tmp_path: Path) -> None:
    write_sparse_index(tmp_path, csc_array(np.array([[1, 1], [0, 1]], dtype=np.float32)))
    SparseIndex.open(tmp_path)
    np.save(tmp_path / f"{name}.npy", array)
    with pytest.raises(CorruptArtifactError, match="arrays do not fit each other; build it again"):
        SparseIndex.open(tmp_path)


def test_a_damaged_array_is_named(tmp_path: Path) -> None:
    write_sparse_index(tmp_path, csc_array(np.ones((2, 2), dtype=np.float32)))
    for name in ("impacts", "documents", "starts", "shape"):
        path = tmp_path / f"{name}.npy"
        whole = path.read_bytes()
        path.write_bytes(whole[:40])
        with pytest.raises(CorruptArtifactError, match=rf"{name}.npy: not a readable array"):
            SparseIndex.open(tmp_path)
        path.write_bytes(whole)


@pytest.mark.parametrize("code", [-1, 4, 2**31 - 1])
@pytest.mark.parametrize("n_documents", [4, 400])
def test_a_posting_of_a_document_that_is_not_there_is_told_not_written_to(code: int, n_documents: int) -> None:
    documents = np.array([0, code if code != 4 else n_documents], dtype=np.int32)
    index = SparseIndex(np.ones(2, np.float32), documents, np.array([0, 2], dtype=np.int64), n_documents)
    with pytest.raises(CorruptArtifactError, match="names documents that it does not have"):
        index.search(SparseQueries.of([[0]]), 1)
