"""Clusters: the same for any order of the file, none empty, and as many as the elbow rule says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from rerank.errors import ConfigError
from rerank.synthesize import clusters as module
from rerank.synthesize.clusters import Clustering, Clusters, clustered, knee

pytestmark = pytest.mark.needs("faiss")


def blobs(n: int = 120, k: int = 4, d: int = 6) -> np.ndarray:
    random = np.random.default_rng(2)
    centres = random.normal(size=(k, d)) * 5
    return (centres[np.arange(n) % k] + random.normal(size=(n, d)) * 0.2).astype(np.float32)


def names(places: Sequence[int]) -> list[str]:
    return [f"d{place:05d}" for place in places]


def make(matrix: np.ndarray, clustering: Clustering, seed: int = 0, rows: np.ndarray | None = None) -> Clusters:
    return clustered(matrix, np.arange(len(matrix)) if rows is None else rows, names, clustering, seed)


def test_documents_that_lie_together_are_a_cluster() -> None:
    found = make(blobs(), Clustering(k=4))
    assert found.sizes == [30] * 4
    assert all(len(set((some % 4).tolist())) == 1 for some in found.members())
    for some, medoid in zip(found.members(), found.medoids(), strict=True):
        assert found.cosines[medoid] == found.cosines[some].max()


def test_the_order_of_the_file_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = blobs(200, 5)
    monkeypatch.setattr(module, "_POINTS_A_CLUSTER", 20)  # so that centres are learnt from a sample
    order = np.random.default_rng(0).permutation(200)
    shuffled = np.empty_like(matrix)
    shuffled[order] = matrix  # document i stands at place order[i] of the other file
    here, there = make(matrix, Clustering(k=7), 3), make(shuffled, Clustering(k=7), 3, order)
    assert here.labels.tolist() == there.labels.tolist()
    assert np.array_equal(here.cosines, there.cosines)


def test_another_seed_may_cluster_otherwise_and_the_same_does_not() -> None:
    matrix = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    some = [make(matrix, Clustering(k=20), seed).labels.tolist() for seed in (0, 0, 1)]
    assert some[0] == some[1] != some[2]


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_vectors_are_one_cluster(value: float) -> None:
    found = make(np.full((30, 4), value, dtype=np.float32), Clustering(k=5))
    assert found.sizes == [30]
    assert np.isfinite(found.cosines).all()


def test_fewer_documents_than_clusters_are_a_cluster_each(caplog: pytest.LogCaptureFixture) -> None:
    found = make(blobs(6, 3), Clustering(k=50))
    assert sum(found.sizes) == 6 and len(found) <= 6
    assert "50 are asked for, of 6 documents" in caplog.text


def test_no_documents() -> None:
    with pytest.raises(ConfigError, match="no document is left to be clustered"):
        make(np.zeros((0, 4), dtype=np.float32), Clustering(k=5))


def test_the_elbow_finds_as_many_clusters_as_there_are() -> None:
    found = make(blobs(160, 8, 12), Clustering(elbow=(2, 4, 8, 16, 32, 64), iterations=30))
    assert list(found.curve) == [2, 4, 8, 16, 32, 64]
    assert 8 <= len(found) <= 16  # centres may start badly


def test_the_elbow_tries_only_what_leaves_two_documents_to_a_cluster() -> None:
    assert list(make(blobs(30), Clustering(iterations=5)).curve) == [5, 10]
    assert len(make(blobs(3, 3), Clustering(iterations=5))) == 1


def test_the_knee_of_known_curves() -> None:
    xs = list(range(1, 11))
    assert knee(xs, [1 / x for x in xs], 0.01) == 3  # the farthest from the chord of 1/x on 1 to 10
    assert knee(xs, [10 - x for x in xs], 0.01) in xs  # a straight line has none
    assert knee([5], [3.0], 0.01) == 5
    assert knee([5, 10], [3.0, 3.0], 0.01) == 5


@pytest.mark.parametrize("options", [{"k": 0}, {"iterations": 0}, {"elbow": ()}])
def test_options_that_make_no_sense(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="clusters: "):
        Clustering(**options)  # type: ignore[arg-type]
