"""Dense retrieval: documents and queries as vectors of one encoder, the nearest documents by dot product."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from rerank.artifact import Draft, find_or_build, fingerprint
from rerank.engines.text_model import DType, FloatMatrix
from rerank.errors import ConfigError, CorruptArtifactError
from rerank.extras import need
from rerank.ranking import Ranking
from rerank.retrieve.first_stage import excluded_codes, need_source, retrieved
from rerank.retrieve.nearest import Int64, Search, exact_scores, nearest
from rerank.retrieve.shards import remove_drafts
from rerank.retrieve.vectors import Vectors, encoder_for, vectors_of
from rerank.runtime import Runtime
from rerank.stage import DOCUMENTS, Flow, Stage

KIND = "dense-index"
VERSION = 1
_FILE = "index.faiss"
_blas = threading.Lock()


@dataclass(frozen=True)
class IVF:
    """Inverted lists: vectors are clustered, and a query looks into the nearest clusters only."""

    lists: int | None = None
    """How many clusters; by default 4 times the square root of the number of documents."""
    probes: int = 32
    """How many clusters a query looks into: more finds more and costs more."""


@dataclass(frozen=True)
class HNSW:
    """A navigable graph over the vectors; the fastest search, and the most memory."""

    links: int = 32
    """Neighbours that a vector keeps on each level."""
    ef_construction: int = 200
    """How widely the graph is searched for neighbours while it is built."""
    ef_search: int = 128
    """How widely it is searched for a query; raised to `k` where that is more."""


@dataclass(frozen=True, repr=False)
class Dense(Stage):
    """The `k` documents whose vectors have the highest cosine (or dot product, if the model says so) with the query's.

    Vectors are kept in the runtime's home and reused by other stages, runs and corpora that share documents.

    >>> Dense("minilm-l6", k=100)
    Dense(model='minilm-l6', k=100)

    Source: Karpukhin et al. 2020 (bi-encoder retrieval); Malkov and Yashunin 2018 (hnsw); Jegou et al. 2011 (ivf).
    """

    model: str
    """A catalogue name, a folder, or a hub id."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    k: int = 1000
    """How many documents a query gets."""
    index: Literal["flat", "sq8", "ivf", "hnsw"] = "flat"
    """`flat` compares with every vector and misses nothing: right up to about a million documents.  `sq8` does so on
    8-bit vectors, a quarter of the memory, and scores the found ones exactly.  `ivf` and `hnsw` look at a part."""
    dtype: DType = "auto"
    """What the encoder computes in; `auto` is that of vectors already there, else bfloat16 where the device has units
    for it and rankings were checked to agree, else float32.  Vectors are stored as float32."""
    ivf: IVF = IVF()
    """For index `ivf`."""
    hnsw: HNSW = HNSW()
    """For index `hnsw`."""

    needs: ClassVar[frozenset[str]] = frozenset()
    gives: ClassVar[frozenset[str]] = frozenset({DOCUMENTS})

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"dense: k is {self.k}, at least 1 is needed")
        for name, options in (("ivf", self.ivf), ("hnsw", self.hnsw)):
            if options != type(options)() and self.index != name:
                raise ConfigError(f"dense: options of {name} are given, but the index is {self.index!r}")
            for option, value in vars(options).items():
                if value is not None and value < 1:
                    raise ConfigError(f"dense: {name}.{option} is {value}, at least 1 is needed")

    def flow(self, before: Flow) -> Flow:
        """Documents; whether their scores are cosines or dot products only the model tells."""
        return Flow(super().flow(before).has, None)

    def transform(self, ranking: Ranking, runtime: Runtime) -> Ranking:
        """The nearest documents of each query.

        Raises:
            DataError: there is no corpus to search.
            ModelError: the model cannot be loaded.
            CorruptArtifactError: stored vectors or their index are damaged.
        """
        faiss = need("faiss", "dense", "dense retrieval")
        corpus = need_source(ranking, self.label)
        encoder = encoder_for(runtime, self.model, self.revision, self.dtype, corpus)
        vectors = vectors_of(corpus, encoder, runtime)
        search = self._search(faiss, vectors, runtime)
        queries = encoder.encode_queries(ranking.queries, runtime.count)
        excluded = excluded_codes(ranking, corpus.ids, runtime)
        found = nearest(queries, search, vectors.matrix, self.k, excluded, vectors.longest)
        return retrieved(ranking, found, self.k, encoder.score_kind, corpus.ids, corpus)

    # -- indexes ------------------------------------------------------------

    def _search(self, faiss: Any, vectors: Vectors, runtime: Runtime) -> Search:
        if self.index == "flat":
            return FlatSearch(vectors.matrix, runtime.threads, on_gpu=runtime.device.startswith("cuda"))
        lists = self.ivf.lists or max(1, min(int(4 * len(vectors.matrix) ** 0.5), len(vectors.matrix) // 39))
        settings: dict[str, Any] = {"index": self.index}
        if self.index == "ivf":
            settings["lists"] = min(lists, len(vectors.matrix))
        elif self.index == "hnsw":
            settings |= {"links": self.hnsw.links, "ef_construction": self.hnsw.ef_construction}
        key = fingerprint([KIND, VERSION, vectors.fingerprint, settings])
        folder = runtime.home / "indexes" / f"dense-{key[:32]}"

        def build(draft: Draft) -> None:
            remove_drafts(draft)
            write_index(faiss, draft.path / _FILE, vectors.matrix, settings, runtime)
            draft.config.update(settings, vectors=vectors.fingerprint, documents=len(vectors.matrix))

        def load() -> Any:
            find_or_build(folder, KIND, VERSION, key, build)
            return read_index(faiss, folder / _FILE, vectors)

        index = runtime.resource((KIND, key), load)
        if self.index == "ivf":
            return IndexSearch(index, runtime.threads, {"nprobe": self.ivf.probes})
        if self.index == "hnsw":
            return IndexSearch(index, runtime.threads, {"efSearch": self.hnsw.ef_search})
        return IndexSearch(index, runtime.threads, {}, exact=vectors.matrix)


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


def read_index(faiss: Any, path: Path, vectors: Vectors) -> Any:
    """The faiss index at `path`.

    Raises:
        CorruptArtifactError: it is not one, or not one of these vectors.
    """
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CorruptArtifactError(f"{path}: faiss cannot read it ({reason[:200]}); build the index again") from error
    if index.ntotal != len(vectors.matrix) or index.d != vectors.matrix.shape[1]:
        raise CorruptArtifactError(f"{path}: is an index of other vectors; build the index again")
    return index


class faiss_threads:  # noqa: N801 - read as a function, like its torch counterpart
    """faiss computes with so many threads inside the block and as before after it."""

    def __init__(self, faiss: Any, threads: int) -> None:
        self._faiss, self._threads = faiss, threads

    def __enter__(self) -> None:
        self._before = self._faiss.omp_get_max_threads()
        self._faiss.omp_set_num_threads(self._threads)

    def __exit__(self, *_: object) -> None:
        self._faiss.omp_set_num_threads(self._before)


class FlatSearch:
    """Exact search over a matrix as it lies, by matrix products.

    faiss multiplies matrices only above `distance_compute_blas_threshold` queries, 128,000 as shipped, and otherwise
    goes vector by vector, some 20 times slower; the threshold is a global of the library, so it is lowered for the
    time of the call only.
    """

    def __init__(self, matrix: FloatMatrix, threads: int, *, on_gpu: bool = False) -> None:
        self._matrix, self._threads, self._on_gpu = matrix, threads, on_gpu

    def __call__(self, queries: FloatMatrix, depth: int) -> tuple[FloatMatrix, Int64]:
        """The `depth` highest dot products and their rows."""
        import faiss

        dot = faiss.METRIC_INNER_PRODUCT
        if self._on_gpu and hasattr(faiss, "StandardGpuResources") and depth <= 2048:
            return faiss.knn_gpu(faiss.StandardGpuResources(), queries, self._matrix, depth, metric=dot)
        with _blas, faiss_threads(faiss, self._threads):
            before = faiss.cvar.distance_compute_blas_threshold
            faiss.cvar.distance_compute_blas_threshold = 1
            try:
                return faiss.knn(queries, self._matrix, depth, metric=dot)
            finally:
                faiss.cvar.distance_compute_blas_threshold = before


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
