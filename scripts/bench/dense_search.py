"""Exact dense search as the stage does it against faiss with its BLAS threshold set to 20, and as shipped.

    python scripts/bench/dense_search.py [--documents 100000] [--queries 200]

Vectors are generated: unit length, 384 dimensions, in 300 clusters.  Ours includes the check of ties and the making
of the ranking; both sides give the same documents, but for those that float32 cannot tell apart.
"""

from __future__ import annotations

import argparse

from alternate import one_thread, run_bench

one_thread()

import faiss  # noqa: E402
import numpy as np  # noqa: E402

from rerank.ids import MemoryIds  # noqa: E402
from rerank.ranking import Ranking, ScoreKind  # noqa: E402
from rerank.retrieve.first_stage import retrieved  # noqa: E402
from rerank.retrieve.nearest import nearest  # noqa: E402
from rerank.retrieve.vector_index import FlatSearch  # noqa: E402

DIMENSIONS, CLUSTERS = 384, 300


def vectors(n_documents: int, n_queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Documents and queries of length 1."""
    rng = np.random.default_rng(11)
    centres = rng.standard_normal((CLUSTERS, DIMENSIONS), dtype=np.float32)
    noise = rng.standard_normal((n_documents, DIMENSIONS), dtype=np.float32)
    documents = centres[rng.integers(0, CLUSTERS, n_documents)] + 0.7 * noise
    shift = 0.2 * rng.standard_normal((n_queries, DIMENSIONS), dtype=np.float32)
    queries = documents[rng.integers(0, n_documents, n_queries)] + shift
    for rows in (documents, queries):
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return documents, queries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    documents, queries = vectors(options.documents, options.queries)
    ids = MemoryIds([f"d{i:07d}" for i in range(options.documents)])
    topics = Ranking.start({f"q{i}": "" for i in range(options.queries)})
    search = FlatSearch(documents, threads=1)
    index = faiss.IndexFlatIP(DIMENSIONS)
    index.add(documents)
    shipped = faiss.cvar.distance_compute_blas_threshold

    def ours(k: int) -> Ranking:
        found = nearest(queries, search, documents, k)
        return retrieved(topics, found, k, ScoreKind.COSINE, ids, None)

    def peer(k: int, threshold: int) -> np.ndarray:
        faiss.cvar.distance_compute_blas_threshold = threshold
        try:
            rows: np.ndarray = index.search(queries, k)[1]
        finally:
            faiss.cvar.distance_compute_blas_threshold = shipped
        return rows

    for k, threshold, goal in (
        (10, 20, ">= 0.9"),
        (100, 20, ">= 0.9"),
        (1000, 20, ">= 0.9"),
        (100, shipped, "> 1"),
    ):
        mine = ours(k).docs.reshape(options.queries, k)
        theirs = peer(k, threshold)
        run_bench(
            f"dense_search k={k}",
            lambda k=k: ours(k),
            lambda k=k, threshold=threshold: peer(k, threshold),
            peer_name=f"faiss IndexFlatIP, distance_compute_blas_threshold={threshold}",
            goal=goal,
            faster_is="peer/ours",
            rounds=options.rounds if threshold == 20 else 2,
            documents=options.documents,
            queries=options.queries,
            # Of all that were found; rounding decides at the end of a list in faiss, the true score here.
            different_documents=sum(len(np.setdiff1d(a, b)) for a, b in zip(mine, theirs, strict=True)),
        )


if __name__ == "__main__":
    main()
