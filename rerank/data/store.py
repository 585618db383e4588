"""The corpora under the cache root: each is written once and opened from there while its source is unchanged.

`<home>/corpora/<fingerprint>/` is a corpus; `<home>/corpora/memo/<key>.json` says which one a source gave. The key is
made of the version of the readers and of the state of the source: for files their paths, sizes, inodes and times.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from rerank.artifact import canonical_json, fingerprint, lock, write_json
from rerank.data.corpus import Corpus, Document, staging_folder, write_corpus
from rerank.data.lines import unreadable
from rerank.errors import NewerArtifactError
from rerank.runtime import Runtime

logger = logging.getLogger(__name__)

READERS = 1
"""Raised when a reader gives other documents for the same source."""


def file_states(paths: Sequence[Path]) -> list[list[str | int]]:
    """What changes when one of the files changes: absolute path, size, inode, times of change in nanoseconds.

    Raises:
        DataError: a file that is not there.
    """
    states: list[list[str | int]] = []
    for path in paths:
        try:
            found = path.stat()
        except OSError as error:
            raise unreadable(path, error) from error
        states.append([str(path.absolute()), found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns])
    return states


def stored_corpus(
    runtime: Runtime,
    origin: str,
    state: Callable[[], object],
    documents: Callable[[], Iterable[Document]],
    language: str,
) -> Corpus:
    """The corpus that `documents()` gives, read only if the store does not have it.

    Two processes that want the same corpus read it once: the second waits.

    Args:
        runtime: whose home holds the store and who shows progress.
        origin: what the documents are read from, for messages.
        state: gives plain JSON that differs whenever the documents may differ; asked again after reading, so that a
            source that changed meanwhile is not taken for read.
        documents: streams the documents.
        language: ISO 639-1 code of the texts.

    Raises:
        DataError: no documents, an empty id, an id that occurs twice, or what `documents` raises.
        ArtifactError: the cache root cannot be written.
    """
    home = runtime.home / "corpora"
    before = state()
    memo = home / "memo" / f"{fingerprint([READERS, language, before])[:32]}.json"
    corpus = _remembered(memo, home)
    if corpus is not None:
        return corpus
    staging = staging_folder(home, origin)
    with lock(staging, f"reads {origin}"):
        corpus = _remembered(memo, home)
        if corpus is not None:
            return corpus
        for left in home.glob(f".{staging.name}.*.part"):
            # Half-written by a process that was killed: whoever writes under this name holds the lock.
            shutil.rmtree(left, ignore_errors=True)
        with runtime.progress("reading corpus", total=None, unit="documents") as advance:
            corpus = write_corpus(_counted(documents(), advance), home, language, origin)
        if canonical_json(state()) == canonical_json(before):
            write_json(memo, {"corpus": corpus.folder.name, "origin": origin})
        return corpus


def _remembered(memo: Path, home: Path) -> Corpus | None:
    """The corpus that `memo` names; None where memo or corpus is missing or damaged, so that it is read again."""
    try:
        name = json.loads(memo.read_text(encoding="utf-8"))["corpus"]
        return Corpus.open(home / Path(name).name)
    except FileNotFoundError:
        return None
    except NewerArtifactError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:  # an ArtifactError is an OSError
        logger.warning("%s: read again, because the stored corpus cannot be used: %s", memo, error)
        return None


def _counted(documents: Iterable[Document], advance: Callable[[int], None]) -> Iterator[Document]:
    for number, document in enumerate(documents, 1):
        if number % 1000 == 0:
            advance(1000)
        yield document
