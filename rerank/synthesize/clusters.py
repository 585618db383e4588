"""Documents in clusters: K-means over their vectors, and how many clusters there should be."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rerank.errors import ConfigError
from rerank.extras import need
from rerank.rules.rule import at_least

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.floating]
Float32 = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]

_POINTS_A_CLUSTER = 256
"""Documents to a cluster that the centres are learnt from, as in faiss; the others are assigned to them."""
_AT_ONCE = 16_384


@dataclass(frozen=True)
class Clustering:
    """How documents are clustered.

    Raises:
        ConfigError: numbers that make no sense.
    """

    k: int | None = None
    """How many clusters; default by the elbow rule."""
    elbow: tuple[int, ...] = (5, 10, 50, 100, 500, 1000, 5000, 10_000)
    """The numbers that the rule tries, as far as every cluster can have two documents.  Source: the paper's code."""
    sensitivity: float = 0.01
    """Of the knee: how far the curve must fall behind one.  Source: the paper's code."""
    iterations: int = 100
    """Of K-means."""

    def __post_init__(self) -> None:
        at_least("clusters", 1, k=self.k, iterations=self.iterations)
        if not self.elbow or min(self.elbow) < 1:
            raise ConfigError(f"clusters: elbow is {list(self.elbow)}; numbers of 1 or more are needed")


@dataclass(frozen=True, eq=False)
class Clusters:
    """Documents in clusters, the largest first; none is empty."""

    labels: npt.NDArray[np.int32]
    """[documents] which cluster each is in."""
    centres: Float32
    """[clusters, d] the means, brought to length 1."""
    cosines: Float32
    """[documents] of each with its centre."""
    curve: dict[int, float] = field(default_factory=dict)
    """By number of clusters, the sum over documents of (1 - cosine) squared, where the elbow rule chose."""

    def __len__(self) -> int:
        return len(self.centres)

    @property
    def sizes(self) -> list[int]:
        """How many documents each cluster has."""
        sizes: list[int] = np.bincount(self.labels, minlength=len(self)).tolist()
        return sizes

    def members(self) -> list[Places]:
        """The places of each cluster's documents, rising."""
        order = np.argsort(self.labels, kind="stable")
        return np.split(order, np.cumsum(self.sizes)[:-1])

    def medoids(self) -> list[int]:
        """The place of each cluster's document with the highest cosine; of equal ones the first."""
        return [int(some[np.argmax(self.cosines[some])]) for some in self.members()]


def clustered(
    matrix: Float32,
    rows: Places,
    docnos: Callable[[Places], Sequence[str]],
    clustering: Clustering,
    seed: int,
    *,
    on_gpu: bool = False,
) -> Clusters:
    """The documents in clusters.

    Args:
        matrix: float32 [n, d], of any lengths; it may lie on disk, and is read in parts.
        rows: which of its rows, in the order of the documents' ids.
        docnos: the ids of some places of `rows`, asked for where not all documents are learnt from.
        clustering: how.
        seed: of the first centres.
        on_gpu: whether an accelerator computes.

    Raises:
        ConfigError: no documents.
    """
    if not len(rows):
        raise ConfigError("clusters: no document is left to be clustered; clean less (cleaning: min_characters)")
    points = _Points(matrix, rows, docnos)
    if clustering.k is not None:
        k = min(clustering.k, len(rows))
        if k < clustering.k:
            logger.warning("clusters: %d are asked for, of %d documents; each is its own", clustering.k, len(rows))
        return points.clustered(k, clustering, seed, on_gpu=on_gpu)
    tried = [k for k in sorted(set(clustering.elbow)) if 2 * k <= len(rows)] or [1]
    found = {k: points.clustered(k, clustering, seed, on_gpu=on_gpu) for k in tried}
    curve = {k: float(np.sum((1.0 - each.cosines.astype(np.float64)) ** 2)) for k, each in found.items()}
    best = found[knee(list(curve), list(curve.values()), clustering.sensitivity)]
    return Clusters(best.labels, best.centres, best.cosines, curve)


class _Points:
    """Rows of a matrix, as K-means reads them."""

    def __init__(self, matrix: Float32, rows: Places, docnos: Callable[[Places], Sequence[str]]) -> None:
        self._matrix, self._rows, self._docnos = matrix, rows, docnos
        self._hashes: npt.NDArray[np.uint64] | None = None

    def clustered(self, k: int, clustering: Clustering, seed: int, *, on_gpu: bool) -> Clusters:
        faiss = need("faiss", "dense", "clustering documents")
        means = faiss.Kmeans(
            self._matrix.shape[1],
            k,
            niter=clustering.iterations,
            # Its own limits would draw by place, and warn of small clusters.
            min_points_per_centroid=1,
            max_points_per_centroid=len(self._rows),
            seed=seed,
            gpu=on_gpu and faiss.get_num_gpus() > 0,
        )
        means.train(np.ascontiguousarray(self._matrix[self._rows[self._learnt_from(k)]], dtype=np.float32))
        return self._numbered(means.centroids, self._assigned(faiss, means.centroids))

    def _learnt_from(self, k: int) -> Places:
        """Places of the documents that centres are learnt from: a sample that the ids decide."""
        n, most = len(self._rows), _POINTS_A_CLUSTER * k
        if n <= most:
            return np.arange(n)
        if self._hashes is None:
            names = self._docnos(np.arange(n))
            digests = (hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest() for name in names)
            self._hashes = np.frombuffer(b"".join(digests), dtype="<u8")
        return np.sort(np.argpartition(self._hashes, most)[:most])

    def _assigned(self, faiss: Any, centres: Float32) -> npt.NDArray[np.int32]:
        index = faiss.IndexFlatL2(centres.shape[1])
        index.add(centres)
        labels = np.empty(len(self._rows), dtype=np.int32)
        for start in range(0, len(self._rows), _AT_ONCE):
            some = np.ascontiguousarray(self._matrix[self._rows[start : start + _AT_ONCE]], dtype=np.float32)
            labels[start : start + _AT_ONCE] = index.search(some, 1)[1][:, 0]
        return labels

    def _numbered(self, centres: Float32, labels: npt.NDArray[np.int32]) -> Clusters:
        """Clusters by falling size, of equal ones that with the first document, without empty ones."""
        names, first, sizes = np.unique(labels, return_index=True, return_counts=True)
        order = np.lexsort((first, -sizes))
        number = np.empty(len(centres), dtype=np.int32)
        number[names[order]] = np.arange(len(order))
        kept, found = unit(centres[names[order]]), number[labels]
        cosines = np.empty(len(labels), dtype=np.float32)
        for start in range(0, len(labels), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            cosines[some] = np.einsum("nd,nd->n", unit(self._matrix[self._rows[some]]), kept[found[some]])
        return Clusters(found, kept, cosines)


def unit(vectors: Float32) -> Float32:
    """float32 [n, d]: the vectors brought to length 1; one of zeros stays as it is."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, np.finfo(np.float32).tiny), dtype=np.float32)


def knee(xs: Sequence[int], ys: Sequence[float], sensitivity: float) -> int:
    """The x at which a falling, convex curve bends most: the first knee, else the point farthest from the chord.

    >>> knee([1, 2, 3, 4, 10], [10.0, 4.0, 2.0, 1.8, 1.0], 0.01)
    3

    Source: Satopaa et al. 2011 (Kneedle).
    """
    x = _scaled(np.array(xs, dtype=np.float64))
    # Turned upside down the curve rises and is concave.
    difference = (1.0 - _scaled(np.array(ys, dtype=np.float64))) - x
    if len(xs) < 3 or difference.max() <= 0:
        return xs[0]
    fall = sensitivity * float(np.mean(np.diff(x)))
    for place in range(1, len(xs) - 1):
        if difference[place] < difference[place - 1] or difference[place] <= difference[place + 1]:
            continue
        for later in range(place + 1, len(xs)):
            if difference[later] > difference[place]:
                break
            if difference[later] < difference[place] - fall:
                return xs[place]
    return xs[int(np.argmax(difference))]


def _scaled(values: Floats) -> Floats:
    span = values.max() - values.min()
    return (values - values.min()) / span if span > 0 else np.zeros_like(values)
