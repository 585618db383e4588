"""The vectors of a corpus on disk: found by corpus and encoder, built in shards, reused where only documents came."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rerank.artifact import MANIFEST, Draft, find_or_build, fingerprint, open_artifact, read_manifest
from rerank.data.corpus import map_array
from rerank.engines.encoder import Encoder
from rerank.engines.text_model import DType, FloatMatrix, Identity, loaded
from rerank.errors import ArtifactError, CorruptArtifactError
from rerank.ranking import Ranking, ScoreKind, TextSource
from rerank.retrieve.rewrite import PASSAGES
from rerank.retrieve.shards import (
    Hashes,
    Int64,
    first_of,
    in_shards,
    match,
    remove_drafts,
    text_hashes,
    work_folder,
)
from rerank.runtime import Runtime

logger = logging.getLogger(__name__)

KIND = "vectors"
VERSION = 1
_ROWS = 16_384


@dataclass(frozen=True, eq=False)
class Vectors:
    """One vector per document of a corpus, mapped from disk."""

    folder: Path
    fingerprint: str
    matrix: FloatMatrix
    """float32 [documents, d], rows in the corpus's code order."""
    longest: float
    """No vector is longer than this."""
    truncated: int
    """Documents that were longer than the encoder reads."""

    @classmethod
    def open(cls, folder: Path) -> Vectors:
        """The vectors at `folder`.

        Raises:
            ArtifactError: not there, of another kind or a later version.
            CorruptArtifactError: half-written or altered.
        """
        manifest = open_artifact(folder, KIND, VERSION)
        matrix = map_array(folder / "vectors.npy")
        if matrix.ndim != 2 or matrix.dtype != np.float32 or len(matrix) != manifest.config["documents"]:
            raise CorruptArtifactError(f"{folder / 'vectors.npy'}: not one float32 vector a document; build it again")
        config = manifest.config
        return cls(folder, manifest.fingerprint, matrix, float(config["longest"]), int(config["truncated"]))


def vectors_key(identity: Identity, corpus: TextSource) -> str:
    """What identifies the vectors of `corpus` under that encoder."""
    return fingerprint([KIND, VERSION, identity.key, corpus.fingerprint])


def vectors_folder(home: Path, identity: Identity, corpus: TextSource) -> Path:
    """Where the vectors of `corpus` under that encoder belong."""
    return home / "vectors" / vectors_key(identity, corpus)[:32]


def has_vectors(home: Path, identity: Identity, corpus: TextSource) -> bool:
    """Whether they are there."""
    return (vectors_folder(home, identity, corpus) / MANIFEST).is_file()


def is_stored(indexes: Iterable[Path], model: str, corpus: TextSource) -> bool:
    """Whether one of these folders holds what the model of that name made of `corpus`, in whatever type."""
    for path in indexes:
        try:
            config = read_manifest(path).config
        except ArtifactError:
            continue
        if (config.get("name"), config.get("corpus")) == (model, corpus.fingerprint):
            return True
    return False


def encoder_for(runtime: Runtime, model: str, revision: str | None, dtype: DType, corpus: TextSource) -> Encoder:
    """The encoder of that name, in the type of the vectors that `corpus` already has when `dtype` leaves it open."""
    return loaded(
        Encoder, runtime, model, revision, dtype, lambda identity: has_vectors(runtime.home, identity, corpus)
    )


def query_vectors(ranking: Ranking, encoder: Encoder, runtime: Runtime) -> FloatMatrix:
    """float32 [Q, d]: the vector of each query; where passages were written for it, the mean of its own and theirs.

    Source: Gao et al. 2022 (HyDE), equation 8; brought back to length 1 where the model's vectors are.
    """
    written = ranking.query_columns.get(PASSAGES)
    if written is None:
        return encoder.encode_queries(ranking.queries, runtime.count)
    own = encoder.encode_queries([query for query, *_ in written], runtime.count)
    theirs = encoder.encode_documents([passage for _, *passages in written for passage in passages], runtime.count)
    sizes = [len(each) - 1 for each in written]
    sums = own.astype(np.float64)
    np.add.at(sums, np.repeat(np.arange(len(own)), sizes), theirs)
    means = sums / (1 + np.array(sizes, dtype=np.float64)[:, None])
    if encoder.score_kind is ScoreKind.COSINE:
        means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return means.astype(np.float32)


def vectors_of(corpus: TextSource, encoder: Encoder, runtime: Runtime) -> Vectors:
    """The vectors of `corpus`, encoded now as far as they are not on disk.

    Raises:
        CorruptArtifactError: they are on disk, but altered or cut short.
    """
    identity = encoder.identity("document")
    folder = vectors_folder(runtime.home, identity, corpus)
    key = vectors_key(identity, corpus)

    def load() -> Vectors:
        find_or_build(folder, KIND, VERSION, key, lambda draft: _build(draft, corpus, encoder, runtime))
        shutil.rmtree(work_folder(folder), ignore_errors=True)
        return Vectors.open(folder)

    vectors = runtime.resource((KIND, str(folder)), load)
    runtime.count("truncated documents", vectors.truncated)
    return vectors


def _build(draft: Draft, corpus: TextSource, encoder: Encoder, runtime: Runtime) -> None:
    """Writes the vectors of `corpus` into `draft`.

    A text that occurs twice is encoded once, so that equal texts have equal vectors to the last bit.
    """
    remove_drafts(draft)
    total = len(corpus.ids)
    identity = encoder.identity("document")
    hashes = text_hashes(corpus, np.arange(total))
    first = first_of(hashes)
    missing = np.flatnonzero(first == np.arange(total))
    matrix = np.lib.format.open_memmap(
        draft.path / "vectors.npy", mode="w+", dtype=np.float32, shape=(total, encoder.dimension)
    )
    lengths = np.zeros(total, dtype=np.int32)
    longest = 0.0
    for rows, there, old in _reusable(draft, identity, hashes, missing):
        for start in range(0, len(rows), _ROWS):
            matrix[rows[start : start + _ROWS]] = old.matrix[there[start : start + _ROWS]]
        lengths[rows] = map_array(old.folder / "lengths.npy")[there]
        longest = max(longest, old.longest)
        missing = np.setdiff1d(missing, rows, assume_unique=True)
        runtime.count("reused vectors", len(rows))
    with runtime.progress("encoding", len(missing), "documents") as advance:

        def compute(positions: Int64) -> dict[str, npt.NDArray[Any]]:
            vectors, sizes = encoder.read(corpus.texts(positions), "document")
            runtime.count("tokens", int(np.minimum(sizes, identity.max_tokens).sum()))
            return {"vectors": vectors, "lengths": sizes.astype(np.int32)}

        for shard in in_shards(work_folder(draft.final), missing, compute):
            vectors = shard.arrays["vectors"]
            matrix[shard.positions] = vectors
            lengths[shard.positions] = shard.arrays["lengths"]
            longest = max(longest, float(np.linalg.norm(vectors, axis=1).max()))
            runtime.count("resumed documents" if shard.resumed else "encoded documents", len(vectors))
            advance(len(vectors))
    twice = np.flatnonzero(first != np.arange(total))
    for start in range(0, len(twice), _ROWS):
        some = twice[start : start + _ROWS]
        matrix[some], lengths[some] = matrix[first[some]], lengths[first[some]]
    matrix.flush()
    np.save(draft.path / "hashes.npy", hashes)
    np.save(draft.path / "lengths.npy", lengths)
    draft.config.update(
        encoder=identity.key,
        **vars(identity),
        name=encoder.folder.name,
        revision=encoder.folder.revision,
        corpus=corpus.fingerprint,
        documents=total,
        dimension=encoder.dimension,
        truncated=int((lengths > identity.max_tokens).sum()),
        longest=longest,
    )


def _reusable(draft: Draft, identity: Identity, hashes: Hashes, missing: Int64) -> list[tuple[Int64, Int64, Vectors]]:
    """From other corpora's vectors under the same encoder: rows wanted here, their rows there, and the vectors."""
    found: list[tuple[Int64, Int64, Vectors]] = []
    for path in sorted(draft.final.parent.glob(f"*/{MANIFEST}")):
        folder = path.parent
        if folder.name.startswith(".") or not len(missing):
            continue
        try:
            if read_manifest(folder).config.get("encoder") != identity.key:
                continue
            old = Vectors.open(folder)
            rows = match(hashes[missing], map_array(folder / "hashes.npy"))
        except ArtifactError as error:
            logger.warning("%s: not reused: %s", folder, error)
            continue
        found.append((missing[rows >= 0], rows[rows >= 0], old))
        missing = missing[rows < 0]
    return found
