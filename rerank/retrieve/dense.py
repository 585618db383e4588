"""Dense retrieval: documents and queries as vectors of one encoder, the nearest documents by dot product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from rerank.artifact import Draft, find_or_build, fingerprint
from rerank.engines.text_model import DType
from rerank.errors import ConfigError
from rerank.extras import need
from rerank.ranking import Ranking, ScoreKind
from rerank.retrieve.first_stage import excluded_codes, need_source, retrieved
from rerank.retrieve.nearest import Search, nearest
from rerank.retrieve.shards import remove_drafts
from rerank.retrieve.vector_index import FlatSearch, IndexSearch, read_index, write_index
from rerank.retrieve.vectors import Vectors, encoder_for, is_stored, query_vectors, vectors_of
from rerank.runtime import Runtime
from rerank.stage import DOCUMENTS, Flow, Stage

if TYPE_CHECKING:
    from rerank.planning import Rehearsal

KIND = "dense-index"
VERSION = 1
_FILE = "index.faiss"


@dataclass(frozen=True)
class IVF:
    """Inverted lists: vectors are clustered, and a query looks into the nearest clusters only."""

    lists: int | None = None
    """How many clusters; by default 4 times the square root of the number of documents, and no more than one to 39
    documents, below which clusters mean little."""
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
    """`flat` compares with every vector and misses nothing: the right one up to about a million documents.  `sq8`
    does so on 8-bit vectors, slower in a quarter of the memory, and scores the found ones exactly.  `ivf` and `hnsw`
    look at a part only; a graph that several threads built differs a little from build to build."""
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
        queries = query_vectors(ranking, encoder, runtime)
        excluded = excluded_codes(ranking, corpus.ids, runtime)
        found = nearest(queries, search, vectors.matrix, self.k, excluded, vectors.longest)
        return retrieved(ranking, found, self.k, encoder.score_kind, corpus.ids, corpus)

    def rehearse(self, ranking: Ranking, rehearsal: Rehearsal) -> Ranking:
        """The nearest documents where the corpus's vectors are stored, else assumed ones."""
        corpus = need_source(ranking, self.label)
        if is_stored((rehearsal.home / "vectors").glob("*"), self.model, corpus):
            return self.transform(ranking, rehearsal)
        reason = f"for {self.model} has no vectors of the corpus yet"
        return rehearsal.assumed(ranking, corpus, self.k, ScoreKind.UNKNOWN, reason)

    # -- indexes ------------------------------------------------------------

    def _search(self, faiss: Any, vectors: Vectors, runtime: Runtime) -> Search:
        if self.index == "flat":
            return FlatSearch(vectors.matrix, runtime.threads, on_gpu=runtime.device.startswith("cuda"))
        settings = self._settings(len(vectors.matrix))
        key = fingerprint([KIND, VERSION, vectors.fingerprint, settings])
        folder = runtime.home / "indexes" / f"dense-{key[:32]}"

        def build(draft: Draft) -> None:
            remove_drafts(draft)
            write_index(faiss, draft.path / _FILE, vectors.matrix, settings, runtime)
            draft.config.update(settings, vectors=vectors.fingerprint, documents=len(vectors.matrix))

        def load() -> Any:
            find_or_build(folder, KIND, VERSION, key, build)
            return read_index(faiss, folder / _FILE, vectors.matrix.shape)

        index = runtime.resource((KIND, key), load)
        parameters = {"ivf": {"nprobe": self.ivf.probes}, "hnsw": {"efSearch": self.hnsw.ef_search}}
        exact = vectors.matrix if self.index == "sq8" else None
        return IndexSearch(index, runtime.threads, parameters.get(self.index, {}), exact)

    def _settings(self, n_documents: int) -> dict[str, Any]:
        """What the index is built from besides the vectors."""
        if self.index == "ivf":
            lists = self.ivf.lists or min(int(4 * n_documents**0.5), n_documents // 39)
            return {"index": "ivf", "lists": max(1, min(lists, n_documents))}
        if self.index == "hnsw":
            return {"index": "hnsw", "links": self.hnsw.links, "ef_construction": self.hnsw.ef_construction}
        return {"index": self.index}
