"""Id tables: document ids and the integer codes that stand for them in a frame."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rerank.errors import DataError

IntArray = npt.NDArray[np.integer[Any]]
ObjectArray = npt.NDArray[np.object_]


class IdTable(Protocol):
    """A table of distinct ids; a code is a position in it.

    Nothing may depend on the values of the codes: order and ties go by `sort_keys`.
    """

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the ids in table order: equal fingerprints, equal codes."""
        ...

    def __len__(self) -> int: ...

    def take(self, codes: IntArray) -> ObjectArray:
        """The ids (str) of `codes`, in their shape."""
        ...

    def find(self, ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """The code of each id, -1 where the table lacks it."""
        ...

    def sort_keys(self, codes: IntArray) -> npt.NDArray[np.int64]:
        """Integers that sort as the ids of `codes` do (by code point)."""
        ...


class MemoryIds:
    """An id table in memory.

    >>> table = MemoryIds(["b", "a"])
    >>> table.find(["a", "z"]).tolist(), table.take(np.array([0, 1])).tolist()
    ([1, -1], ['b', 'a'])

    Raises:
        DataError: an id that is not a string, is empty, or occurs twice.
    """

    def __init__(self, ids: Sequence[str]) -> None:
        for docno in ids:
            if type(docno) is not str or not docno:
                message = f"id {docno!r} is not a non-empty string; convert ids to strings first"
                raise DataError(message)
        self._ids = np.empty(len(ids), dtype=object)
        self._ids[:] = ids
        self._codes = {docno: code for code, docno in enumerate(ids)}
        if len(self._codes) != len(ids):
            seen: set[str] = set()
            twice = next(docno for docno in ids if docno in seen or seen.add(docno))  # type: ignore[func-returns-value]
            message = f"id {twice!r} occurs more than once; ids must be distinct"
            raise DataError(message)

    def __len__(self) -> int:
        return len(self._ids)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the ids in table order."""
        return ids_fingerprint(self._ids.tolist())

    @cached_property
    def _keys(self) -> npt.NDArray[np.int64]:
        keys = np.empty(len(self._ids), dtype=np.int64)
        keys[sorted(range(len(self._ids)), key=self._ids.__getitem__)] = np.arange(len(self._ids))
        return keys

    def take(self, codes: IntArray) -> ObjectArray:
        """The ids of `codes`."""
        return self._ids[codes]

    def find(self, ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """The code of each id, -1 where the table lacks it."""
        get = self._codes.get
        return np.fromiter((get(docno, -1) for docno in ids), dtype=np.int64, count=len(ids))

    def sort_keys(self, codes: IntArray) -> npt.NDArray[np.int64]:
        """Integers that sort as the ids of `codes` do."""
        return self._keys[codes]


def ids_fingerprint(ids: Sequence[str]) -> str:
    """SHA-256 (hex) of a list of ids; lengths are hashed too, so no two lists collide by concatenation."""
    digest = hashlib.sha256()
    for docno in ids:
        raw = docno.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return digest.hexdigest()


def common_table(tables: Sequence[IdTable]) -> tuple[IdTable, list[npt.NDArray[np.int64] | None]]:
    """One table that holds the ids of all `tables`, and per table the new code of each old one (None: unchanged)."""
    first = tables[0]
    if all(table is first or table.fingerprint == first.fingerprint for table in tables):
        return first, [None] * len(tables)
    ids: dict[str, int] = {}
    maps: list[npt.NDArray[np.int64] | None] = []
    for table in tables:
        names = table.take(np.arange(len(table)))
        maps.append(np.fromiter((ids.setdefault(n, len(ids)) for n in names), dtype=np.int64, count=len(names)))
    return MemoryIds(list(ids)), maps
