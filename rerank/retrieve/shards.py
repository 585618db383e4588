"""A long computation over the documents of a corpus, kept in shards so that a killed one goes on where it stopped.

Shards are fixed by position: shard s holds documents s x 2,048 .. (s + 1) x 2,048 - 1, whoever computes it and
whenever.  What is in a shard depends only on its own documents, so an interrupted run ends with the same bytes as an
undisturbed one.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rerank.artifact import Draft, atomic_path
from rerank.ids import IntArray
from rerank.ranking import TextSource

logger = logging.getLogger(__name__)

SHARD = 512
Int64 = npt.NDArray[np.int64]
Arrays = Mapping[str, npt.NDArray[Any]]
Hashes = npt.NDArray[np.bytes_]


class Shard(NamedTuple):
    """The results for some documents."""

    positions: Int64
    arrays: Arrays
    resumed: bool
    """It was found on disk."""


def in_shards(work: Path, positions: Int64, compute: Callable[[Int64], Arrays]) -> Iterator[Shard]:
    """What `compute` gives for `positions` (rising), shard by shard, kept in the folder `work` from then on.

    `compute` is called with the positions of one shard.
    """
    work.mkdir(parents=True, exist_ok=True)
    for number in np.unique(positions // SHARD).tolist():
        some = positions[np.searchsorted(positions, number * SHARD) : np.searchsorted(positions, (number + 1) * SHARD)]
        path = work / f"{number:06d}.npz"
        found = _read(path, some)
        resumed = found is not None
        if found is None:
            found = compute(some)
            with atomic_path(path) as part, part.open("wb") as file:
                np.savez(file, allow_pickle=False, positions=some, **found)
        yield Shard(some, found, resumed)


def _read(path: Path, positions: Int64) -> Arrays | None:
    """The arrays of a shard file if it is whole and holds these positions."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("%s: cannot be read (%s) and is computed again", path, error)
        return None
    return arrays if np.array_equal(arrays.pop("positions", None), positions) else None


def work_folder(folder: Path) -> Path:
    """Where the shards of the artifact `folder` lie while it is not complete."""
    return folder.with_name(f".{folder.name}.work")


def remove_drafts(draft: Draft) -> None:
    """Deletes what killed processes left of the same artifact; the caller holds its lock."""
    for left in draft.final.parent.glob(f".{draft.final.name}.*.part"):
        if left != draft.path:
            shutil.rmtree(left, ignore_errors=True)


def text_hashes(corpus: TextSource, codes: IntArray) -> Hashes:
    """[codes] 16 bytes each: a hash of every document's text."""
    hashes = np.empty(len(codes), dtype="S16")
    for start in range(0, len(codes), SHARD):
        texts = corpus.texts(codes[start : start + SHARD])
        hashes[start : start + SHARD] = [
            hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in texts
        ]
    return hashes


def first_of(hashes: Hashes) -> Int64:
    """[documents] the position of the first document with the same text: itself for most.

    >>> first_of(np.array([b"a", b"b", b"a"], dtype="S16")).tolist()
    [0, 1, 0]
    """
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    found: Int64 = first[inverse]
    return found


def match(wanted: Hashes, known: Hashes) -> Int64:
    """[wanted] where each hash is in `known`, -1 where it is not.

    >>> match(np.array([b"c", b"a"], dtype="S16"), np.array([b"b", b"c"], dtype="S16")).tolist()
    [1, -1]
    """
    if not len(known):
        return np.full(len(wanted), -1, dtype=np.int64)
    order = np.argsort(known)
    places = np.minimum(np.searchsorted(known, wanted, sorter=order), len(known) - 1)
    rows: Int64 = np.where(known[order[places]] == wanted, order[places], -1)
    return rows
