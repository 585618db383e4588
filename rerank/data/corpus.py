"""A collection's documents: ids and texts, looked up by code from a store on disk or from memory.

A corpus is written once, as a stream, into an artifact of plain arrays (offsets and UTF-8 bytes) and then mapped into
memory: opening it costs the same for a thousand documents and for ten million, and only the texts that a stage asks
for are read.
"""

from __future__ import annotations

import hashlib
import itertools
import shutil
from array import array
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rerank.artifact import MANIFEST, Manifest, new_artifact, open_artifact
from rerank.errors import CorruptArtifactError, DataError
from rerank.ids import IntArray, MemoryIds, ObjectArray

KIND = "corpus"
VERSION = 1
_BLOCK = 1 << 22


class Document(NamedTuple):
    """One document as a reader gives it."""

    id: str
    title: str
    text: str

    @property
    def joined(self) -> str:
        """Title and text joined by a blank: what stages read."""
        return f"{self.title} {self.text}" if self.title and self.text else self.title or self.text


class Strings:
    """Many strings on disk: `name.bin` with their UTF-8 bytes and `name.offsets.npy` with where each begins."""

    def __init__(self, folder: Path, name: str) -> None:
        self._offsets = map_array(folder / f"{name}.offsets.npy")
        path = folder / f"{name}.bin"
        self._bytes: npt.NDArray[np.uint8] = (
            np.memmap(path, dtype=np.uint8, mode="r") if path.stat().st_size else np.empty(0, dtype=np.uint8)
        )
        if len(self._offsets) == 0 or int(self._offsets[-1]) != len(self._bytes):
            raise CorruptArtifactError(f"{path}: does not fit its offsets; build the artifact again")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def at(self, position: int) -> str:
        """One string."""
        raw = self._bytes[self._offsets[position] : self._offsets[position + 1]]
        return raw.tobytes().decode("utf-8", "surrogatepass")

    def take(self, positions: IntArray) -> list[str]:
        """The strings at `positions`."""
        return [self.at(position) for position in positions.tolist()]


class StringWriter:
    """Writes strings one after the other in the form that `Strings` reads; both files are whole when its block ends."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._file = (folder / f"{name}.bin").open("wb", buffering=_BLOCK)
        self._lengths = array("q")

    def __enter__(self) -> StringWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is None:
            offsets = np.zeros(len(self._lengths) + 1, dtype=np.int64)
            np.cumsum(self._lengths, out=offsets[1:])
            np.save(self._folder / f"{self._name}.offsets.npy", offsets)

    def add(self, raw: bytes) -> None:
        """One more string, encoded."""
        self._file.write(raw)
        self._lengths.append(len(raw))


def map_array(path: Path) -> npt.NDArray[Any]:
    """A `.npy` file mapped into memory.

    Raises:
        CorruptArtifactError: its header does not fit its bytes.
    """
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise CorruptArtifactError(f"{path}: not a readable array ({error}); build the artifact again") from error
    return array


class StoredIds:
    """The id table of an artifact: strings on disk, found by binary search in their sorted order."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self._strings = Strings(folder, "ids")
        self._order = map_array(folder / "ids.order.npy")
        self._keys = map_array(folder / "ids.keys.npy")
        self._all: ObjectArray | None = None
        self._codes: dict[str, int] | None = None

    def __len__(self) -> int:
        return len(self._strings)

    def take(self, codes: IntArray) -> ObjectArray:
        """The ids of `codes`; all are decoded once when many are asked for."""
        if self._all is None and codes.size > 1000 and codes.size * 20 > len(self):
            self._all = np.array(self._strings.take(np.arange(len(self))), dtype=object)
        if self._all is not None:
            return self._all[codes]
        found = np.empty(codes.size, dtype=object)
        found[:] = self._strings.take(codes.reshape(-1))
        return found.reshape(codes.shape)

    def find(self, ids: Iterable[str]) -> npt.NDArray[np.int64]:
        """The code of each id, -1 where the table lacks it."""
        wanted = list(ids)
        if self._codes is None and len(wanted) * 20 > len(self):
            names = self.take(np.arange(len(self)))
            self._codes = {docno: code for code, docno in enumerate(names.tolist())}
        if self._codes is not None:
            get = self._codes.get
            return np.fromiter((get(docno, -1) for docno in wanted), dtype=np.int64, count=len(wanted))
        return np.fromiter((self._search(docno) for docno in wanted), dtype=np.int64, count=len(wanted))

    def _search(self, docno: str) -> int:
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            if self._strings.at(int(self._order[middle])) < docno:
                low = middle + 1
            else:
                high = middle
        if low < len(self) and self._strings.at(int(self._order[low])) == docno:
            return int(self._order[low])
        return -1

    def sort_keys(self, codes: IntArray) -> npt.NDArray[np.int64]:
        """Integers that sort as the ids of `codes` do."""
        return np.asarray(self._keys[codes], dtype=np.int64)


def write_ids(folder: Path, ids: list[str]) -> str:
    """Writes an id table into an artifact's folder and gives its fingerprint.

    Raises:
        DataError: an id that occurs twice.
    """
    digest = hashlib.sha256()
    with StringWriter(folder, "ids") as writer:
        for docno in ids:
            raw = docno.encode("utf-8", "surrogatepass")
            writer.add(raw)
            digest.update(len(raw).to_bytes(8, "little"))
            digest.update(raw)
    order = np.array(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.int64)
    for before, after in itertools.pairwise(order.tolist()):
        if ids[before] == ids[after]:
            raise DataError(f"document id {ids[after]!r} occurs twice (documents {before + 1:,} and {after + 1:,})")
    keys = np.empty(len(ids), dtype=np.int64)
    keys[order] = np.arange(len(ids))
    np.save(folder / "ids.order.npy", order)
    np.save(folder / "ids.keys.npy", keys)
    return digest.hexdigest()


class Corpus:
    """A collection on disk.

    `titles(codes)`, `bodies(codes)` and `texts(codes)` look texts up; `documents()` streams all of them in code order.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.fingerprint = manifest.fingerprint
        try:
            self.language: str = manifest.config["language"]
            self.ids = StoredIds(folder, manifest.config["ids"])
        except KeyError as error:
            raise CorruptArtifactError(f"{folder}: its manifest lacks {error}; build the artifact again") from error
        self._titles = Strings(folder, "titles")
        self._bodies = Strings(folder, "bodies")

    @classmethod
    def open(cls, folder: Path) -> Corpus:
        """The corpus at `folder`.

        Raises:
            ArtifactError: it is not one, or not whole.
        """
        return cls(folder, open_artifact(folder, KIND, VERSION))

    def __len__(self) -> int:
        return len(self.ids)

    def titles(self, codes: IntArray) -> list[str]:
        """The titles of `codes`."""
        return self._titles.take(codes)

    def bodies(self, codes: IntArray) -> list[str]:
        """The texts of `codes` without their titles."""
        return self._bodies.take(codes)

    def texts(self, codes: IntArray) -> list[str]:
        """Title and text of each code, joined by a blank."""
        return [Document("", t, b).joined for t, b in zip(self.titles(codes), self.bodies(codes), strict=True)]

    def documents(self, batch: int = 1024) -> Iterator[Document]:
        """All documents in code order, read `batch` at a time."""
        for start in range(0, len(self), batch):
            codes = np.arange(start, min(start + batch, len(self)))
            yield from map(Document, self.ids.take(codes), self.titles(codes), self.bodies(codes))

    def __repr__(self) -> str:
        return f"Corpus({len(self):,} documents, language {self.language!r})"


def staging_folder(home: Path, origin: str) -> Path:
    """The name under which `write_corpus` builds what it reads from `origin`, whose content it does not know yet."""
    return home / hashlib.sha256(origin.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def write_corpus(documents: Iterable[Document], home: Path, language: str, origin: str) -> Corpus:
    """Streams `documents` into a store under `home` and opens it; equal content has an equal fingerprint.

    Raises:
        DataError: no documents, an empty id, or an id that occurs twice; `origin` is named.
    """
    digest = hashlib.sha256(language.encode())
    with new_artifact(staging_folder(home, origin), KIND, VERSION) as draft:
        ids: list[str] = []
        with StringWriter(draft.path, "titles") as titles, StringWriter(draft.path, "bodies") as bodies:
            for document in documents:
                if not document.id:
                    raise DataError(f"{origin}: document {len(ids) + 1:,} has an empty id")
                ids.append(document.id)
                raws = [part.encode("utf-8", "surrogatepass") for part in document]
                for raw in raws:
                    digest.update(len(raw).to_bytes(8, "little"))
                    digest.update(raw)
                titles.add(raws[1])
                bodies.add(raws[2])
        if not ids:
            raise DataError(f"{origin}: holds no documents; a corpus needs at least one")
        try:
            table = write_ids(draft.path, ids)
        except DataError as error:
            raise DataError(f"{origin}: {error}") from None
        draft.fingerprint = digest.hexdigest()
        draft.config.update(language=language, ids=table, documents=len(ids))
        draft.final = home / draft.fingerprint[:32]
        if not (draft.final / MANIFEST).is_file():
            # Named by content, so what is left there without a manifest is this corpus, damaged.
            shutil.rmtree(draft.final, ignore_errors=True)
    return Corpus.open(draft.final)


class MemoryCorpus:
    """Texts held in memory: an ad hoc collection, as in a request to rerank a few documents.

    >>> corpus = MemoryCorpus({"d1": "black holes", "d2": "white dwarfs"})
    >>> corpus.texts(corpus.ids.find(["d2"]))
    ['white dwarfs']

    Raises:
        DataError: no documents.
    """

    def __init__(self, texts: Mapping[str, str], language: str = "en") -> None:
        if not texts:
            raise DataError("a corpus needs at least one document; none was given")
        self.ids = MemoryIds(list(texts))
        self.language = language
        self._texts = list(texts.values())

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of language, ids and texts."""
        digest = hashlib.sha256(self.language.encode())
        digest.update(self.ids.fingerprint.encode())
        for text in self._texts:
            raw = text.encode("utf-8", "surrogatepass")
            digest.update(len(raw).to_bytes(8, "little"))
            digest.update(raw)
        return digest.hexdigest()

    def texts(self, codes: IntArray) -> list[str]:
        """The text of each code."""
        return [self._texts[code] for code in codes.tolist()]
