"""Learned sparse retrieval: documents and queries as weighted terms of one sparse encoder."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from rerank.artifact import MANIFEST, Draft, Manifest, find_or_build, fingerprint
from rerank.engines.sparse_encoder import SparseEncoder
from rerank.engines.text_model import DType, Identity, loaded
from rerank.errors import ConfigError
from rerank.ranking import Ranking, ScoreKind, TextSource
from rerank.retrieve.first_stage import excluded_codes, need_source, retrieved
from rerank.retrieve.shards import Int64, first_of, in_shards, remove_drafts, text_hashes, work_folder
from rerank.retrieve.sparse_index import SparseIndex, SparseQueries, write_sparse_index
from rerank.retrieve.vectors import is_stored
from rerank.runtime import Runtime
from rerank.stage import DOCUMENTS, Stage

if TYPE_CHECKING:
    from rerank.planning import Rehearsal

KIND = "splade-index"
VERSION = 1


@dataclass(frozen=True, repr=False)
class Splade(Stage):
    """The `k` documents with the highest dot product of term weights; those that share no term are never given.

    >>> Splade(k=100)
    Splade(k=100)

    Source: Formal et al. 2021 (SPLADE v2).  Nothing is pruned: every weight that the model gives is indexed.
    """

    model: str = "splade-tiny"
    """A catalogue name, a folder, or a hub id."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    k: int = 1000
    """How many documents a query gets at most."""
    dtype: DType = "auto"
    """What the encoder computes in; `auto` is that of an index already there, else as for `dense`."""

    needs: ClassVar[frozenset[str]] = frozenset()
    gives: ClassVar[frozenset[str]] = frozenset({DOCUMENTS})
    kind: ClassVar[ScoreKind | None] = ScoreKind.DOT

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"splade: k is {self.k}, at least 1 is needed")

    def transform(self, ranking: Ranking, runtime: Runtime) -> Ranking:
        """The best documents of each query.

        Raises:
            DataError: there is no corpus to search.
            ModelError: the model cannot be loaded.
            CorruptArtifactError: the stored index is damaged.
        """
        corpus = need_source(ranking, self.label)
        encoder = loaded(
            SparseEncoder,
            runtime,
            self.model,
            self.revision,
            self.dtype,
            lambda identity: (_folder(runtime.home, identity, corpus) / MANIFEST).is_file(),
        )
        index = _index(corpus, encoder, runtime)
        rows = encoder.encode_queries(ranking.queries, runtime.count)
        queries = SparseQueries(rows.indices.astype(np.int32), rows.indptr.astype(np.int64), rows.data)
        found = index.search(queries, self.k, excluded_codes(ranking, corpus.ids, runtime), runtime.threads)
        return retrieved(ranking, found, self.k, ScoreKind.DOT, corpus.ids, corpus)

    def rehearse(self, ranking: Ranking, rehearsal: Rehearsal) -> Ranking:
        """The best documents where the corpus's index is stored, else assumed ones."""
        corpus = need_source(ranking, self.label)
        if is_stored((rehearsal.home / "indexes").glob("splade-*"), self.model, corpus):
            return self.transform(ranking, rehearsal)
        reason = f"for {self.model} has no index of the corpus yet"
        return rehearsal.assumed(ranking, corpus, self.k, ScoreKind.DOT, reason)


def _key(identity: Identity, corpus: TextSource) -> str:
    return fingerprint([KIND, VERSION, identity.key, corpus.fingerprint])


def _folder(home: Path, identity: Identity, corpus: TextSource) -> Path:
    return home / "indexes" / f"splade-{_key(identity, corpus)[:32]}"


def _index(corpus: TextSource, encoder: SparseEncoder, runtime: Runtime) -> SparseIndex:
    """The index of `corpus`, built first where need be."""
    identity = encoder.identity("document")
    folder = _folder(runtime.home, identity, corpus)

    def load() -> tuple[SparseIndex, Manifest]:
        key = _key(identity, corpus)
        manifest = find_or_build(folder, KIND, VERSION, key, lambda draft: _build(draft, corpus, encoder, runtime))
        shutil.rmtree(work_folder(folder), ignore_errors=True)
        return SparseIndex.open(folder), manifest

    index, manifest = runtime.resource((KIND, str(folder)), load)
    runtime.count("truncated documents", manifest.config["truncated"])
    return index


def _build(draft: Draft, corpus: TextSource, encoder: SparseEncoder, runtime: Runtime) -> None:
    """Encodes the corpus, equal texts once, and writes their weights by term into `draft`."""
    from scipy.sparse import csr_array, vstack

    remove_drafts(draft)
    total = len(corpus.ids)
    identity = encoder.identity("document")
    first = first_of(text_hashes(corpus, np.arange(total)))
    distinct = np.flatnonzero(first == np.arange(total))
    lengths = np.zeros(total, dtype=np.int64)
    parts = []
    with runtime.progress("encoding", len(distinct), "documents") as advance:

        def compute(positions: Int64) -> dict[str, npt.NDArray[Any]]:
            rows, sizes = encoder.read(corpus.texts(positions), "document")
            runtime.count("tokens", int(np.minimum(sizes, identity.max_tokens).sum()))
            return {"weights": rows.data, "terms": rows.indices, "offsets": rows.indptr, "lengths": sizes}

        for shard in in_shards(work_folder(draft.final), distinct, compute):
            arrays = shard.arrays
            shape = (len(shard.positions), encoder.n_terms)
            parts.append(csr_array((arrays["weights"], arrays["terms"], arrays["offsets"]), shape=shape))
            lengths[shard.positions] = arrays["lengths"]
            runtime.count("resumed documents" if shard.resumed else "encoded documents", len(shard.positions))
            advance(len(shard.positions))
    row_of = np.empty(total, dtype=np.int64)
    row_of[distinct] = np.arange(len(distinct))
    matrix = vstack(parts, format="csr")
    write_sparse_index(draft.path, matrix if len(distinct) == total else matrix[row_of[first]])
    draft.config.update(
        encoder=identity.key,
        **vars(identity),
        name=encoder.folder.name,
        revision=encoder.folder.revision,
        corpus=corpus.fingerprint,
        documents=total,
        truncated=int((lengths[first] > identity.max_tokens).sum()),
    )
