"""The request cache: what engines answered, kept on disk, so that nothing is asked twice.

One SQLite file holds the answers of every engine and pipeline; several processes read and write it at once, and a
process that is killed leaves it whole.  The first answer that is stored for a key stays: whoever computes another one,
perhaps with other last bits, is given the stored one and goes on with that.

SQLite's write-ahead log needs memory that processes share, which network file systems do not give.  There every process
writes a file of its own and reads those of all.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import socket
import sqlite3
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from rerank.errors import ArtifactError, CorruptArtifactError, LockedError, NewerArtifactError

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_BYTES = 1 << 30
"""What a cache may hold: some 12 million scores.  Beyond it, what was not used for longest goes."""
VERSION = 1
"""Of a file's layout."""
_KEPT = 0.98
"""Share of the bound that is left after it was reached, so that not every new answer removes an old one."""
_WAIT_SECONDS = 60.0
"""How long another process's transaction is waited for."""
_KEYS_AT_ONCE = 1_000
_REMOVED_AT_ONCE = 250_000
"""Answers that one transaction removes: some seconds, for which other processes wait."""
_DAY_SECONDS = 86_400
_IDLE_DAYS = 7
"""On a network file system, files that nobody wrote for so long may be removed to keep the bound."""
_NETWORK = re.compile(
    r"nfs|cifs|smb|9p|afs|ceph|lustre|gpfs|beegfs|panfs|orangefs|pvfs2|ocfs2|gfs2|glusterfs|fuse\.|davfs|ncpfs|acfs"
)
_ROW_BYTES = 85
"""What an answer takes besides its own bytes: key, times, and room that is left in pages."""
_LAYOUT = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS answers (
    key BLOB PRIMARY KEY, answer BLOB NOT NULL, created REAL NOT NULL, used INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS size AS SELECT 0 AS bytes;
CREATE TRIGGER IF NOT EXISTS added AFTER INSERT ON answers BEGIN
    UPDATE size SET bytes = bytes + {_ROW_BYTES} + length(NEW.answer);
END;
CREATE TRIGGER IF NOT EXISTS changed AFTER UPDATE OF answer ON answers BEGIN
    UPDATE size SET bytes = bytes + length(NEW.answer) - length(OLD.answer);
END;
CREATE TRIGGER IF NOT EXISTS removed AFTER DELETE ON answers BEGIN
    UPDATE size SET bytes = bytes - {_ROW_BYTES} - length(OLD.answer);
END;
PRAGMA user_version = {VERSION};
COMMIT;
"""


def request_key(engine: str, verb: str, *parts: bytes | str) -> bytes:
    """32 bytes that stand for a request: equal ones for requests whose answers may stand for each other.

    Args:
        engine: all that the answer depends on besides the request: weights, adapters, type, path; or URL and model.
        verb: what is asked.
        parts: the request: token ids after truncation, continuations, sampling options with their seed, ...

    >>> request_key("model", "pairs", "a", "bc") == request_key("model", "pairs", "ab", "c")
    False
    """
    digest = hashlib.sha256()
    for part in (engine, verb, *parts):
        # Texts are data: halves of characters in them are no reason to fail.
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest()


class Form(NamedTuple, Generic[T]):
    """How answers of one kind are written as bytes."""

    pack: Callable[[T], bytes]
    unpack: Callable[[bytes], T]


_FLOAT32, _FLOAT64 = struct.Struct("<f"), struct.Struct("<d")
SCORE: Form[float] = Form(_FLOAT32.pack, lambda data: float(_FLOAT32.unpack(data)[0]))
"""A number that is a float32 one."""
NUMBER: Form[float] = Form(_FLOAT64.pack, lambda data: float(_FLOAT64.unpack(data)[0]))
VECTOR: Form[npt.NDArray[np.float32]] = Form(
    lambda row: row.astype("<f4").tobytes(), lambda data: np.frombuffer(data, np.dtype("<f4"))
)


class Contents(NamedTuple):
    """What a cache holds."""

    n_answers: int
    n_bytes: int
    """Of the files, log included."""
    oldest: float | None
    """When the oldest answer was stored, in seconds since 1970; None: there is none."""
    files: tuple[Path, ...]


class RequestCache:
    """Answers on disk, by 32-byte keys (`request_key`).

    May be used by several threads and processes.

    Args:
        folder: where the files lie; made where it is not there.
        max_bytes: what the answers may take; the least recently used are removed beyond it.

    Raises:
        CorruptArtifactError: a file that SQLite cannot read.  It is left as it is, because other processes may have it
            open; whoever deletes it loses nothing but time.
        ArtifactError: a folder that cannot be written, or a file of a later version.

    >>> import tempfile
    >>> cache = RequestCache(Path(tempfile.mkdtemp()))
    >>> key = request_key("my-model", "pairs", "walk a directory", "os.walk")
    >>> cache.put({key: b"0.75"}), cache.put({key: b"0.76"}), cache.get([key])
    ([b'0.75'], [b'0.75'], [b'0.75'])
    >>> cache.close()
    """

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArtifactError(
                f"{folder}: cannot be made ({error.strerror}); set RERANK_HOME to a writable folder, or run with "
                "--no-cache"
            ) from error
        self._alone = _NETWORK.match(file_system(folder)) is not None
        """Whether this process writes a file of its own."""
        name = f"answers.{socket.gethostname()}.{os.getpid()}.sqlite" if self._alone else "answers.sqlite"
        self._lock = threading.Lock()
        self._open: dict[Path, sqlite3.Connection] = {}
        self.close = weakref.finalize(self, _close, self._open)
        """Closes the files."""
        self._own = folder / name
        self._connection(self._own)
        if self._alone:
            self._drop_idle_files()

    # -- answers ------------------------------------------------------------

    def get(self, keys: Sequence[bytes], not_before: float | None = None) -> list[bytes | None]:
        """The answer to each key, None where there is none.

        Args:
            keys: as `request_key` makes them.
            not_before: in seconds since 1970; answers that were stored earlier do not count.
        """
        since = not_before or 0.0
        with self._lock:
            with self._using(self._own) as own:
                rows = _select(own, keys, since)
            found = {key: answer for key, answer, _ in rows}
            # The time of use is a day, so that reading writes once a day and no more.
            stale = [(key,) for key, _, used in rows if used < _today()]
            if stale:
                with self._transaction(self._own) as own:
                    own.executemany(f"UPDATE answers SET used = {_today()} WHERE key = ?", stale)
            found = {**self._elsewhere([key for key in keys if key not in found], since), **found}
        return [found.get(key) for key in keys]

    def put(self, answers: Mapping[bytes, bytes], not_before: float | None = None) -> list[bytes]:
        """What is stored now for each key, in their order: `answers`, or what was there before them.

        They are stored in one transaction: all or none.

        Args:
            answers: by key.
            not_before: as for `get`; answers that were stored earlier are replaced.
        """
        now, since = time.time(), not_before or 0.0
        with self._lock:
            elsewhere = self._elsewhere(list(answers), since)
            new = [(key, answer, now, _today()) for key, answer in answers.items() if key not in elsewhere]
            with self._transaction(self._own) as own:
                own.executemany(
                    "INSERT INTO answers VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE "
                    "SET answer = excluded.answer, created = excluded.created, used = excluded.used "
                    f"WHERE created < {since}",
                    new,
                )
                stored = elsewhere | {key: answer for key, answer, _ in _select(own, [key for key, *_ in new])}
                is_full = _size(own) > self.max_bytes
            if is_full:
                self._shrink(self._own, int(self.max_bytes * _KEPT))
        return [stored[key] for key in answers]

    def _elsewhere(self, keys: Sequence[bytes], since: float) -> dict[bytes, bytes]:
        """Answers in the files of other processes."""
        found: dict[bytes, bytes] = {}
        for path in self._files():
            missing = [key for key in keys if key not in found]
            if path != self._own and missing:
                with self._using(path) as connection:
                    found |= {key: answer for key, answer, _ in _select(connection, missing, since)}
        return found

    # -- upkeep ------------------------------------------------------------

    def contents(self) -> Contents:
        """How many answers there are, and what they take."""
        n, stored = 0, []
        with self._lock:
            files = self._files()
            for path in files:
                with self._using(path) as connection:
                    more, oldest = connection.execute("SELECT count(*), min(created) FROM answers").fetchone()
                n += more
                stored += [] if oldest is None else [oldest]
        logs = [Path(f"{path}{ending}") for path in files for ending in ("", "-wal", "-journal")]
        n_bytes = sum(path.stat().st_size for path in logs if path.exists())
        return Contents(n, n_bytes, min(stored, default=None), tuple(files))

    def prune(self, max_bytes: int | None = None, unused_days: int | None = None) -> int:
        """Removes answers and gives the room back to the file system; tells how many went.

        Args:
            max_bytes: what may be left; the least recently used go first.
            unused_days: those that were not used for so many days go.
        """
        removed = 0
        with self._lock:
            files = self._files()
            for path in files:
                if unused_days is not None:
                    with self._transaction(path) as connection:
                        before = _today() - unused_days
                        removed += connection.execute("DELETE FROM answers WHERE used <= ?", (before,)).rowcount
                if max_bytes is not None:
                    removed += self._shrink(path, max_bytes // len(files))
                with self._using(path) as connection:
                    connection.execute("VACUUM")
                    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return removed

    def _shrink(self, path: Path, max_bytes: int) -> int:
        """Removes the least recently used answers until at most `max_bytes` are taken; how many went."""
        removed = 0
        while True:
            with self._transaction(path) as connection:
                size = _size(connection)
                if size <= max_bytes:
                    return removed
                n = connection.execute("SELECT count(*) FROM answers").fetchone()[0]
                n_gone = min(_REMOVED_AT_ONCE, max(1, round(n * (1 - max_bytes / size))))
                removed += connection.execute(
                    "DELETE FROM answers WHERE key IN (SELECT key FROM answers ORDER BY used, created LIMIT ?)",
                    (n_gone,),
                ).rowcount

    # -- files ------------------------------------------------------------

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("answers.*.sqlite")) if self._alone else [self._own]

    def _connection(self, path: Path) -> sqlite3.Connection:
        if path in self._open:
            return self._open[path]
        with _errors(path):
            connection = sqlite3.connect(path, timeout=_WAIT_SECONDS, isolation_level=None, check_same_thread=False)
            self._open[path] = connection
            # A commit survives the process without waiting for the disk; a power cut may take the last ones along.
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA journal_mode = " + ("DELETE" if self._alone else "WAL"))
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                connection.executescript(_LAYOUT)
            elif version != VERSION:
                raise NewerArtifactError(
                    f"{path}: a request cache of layout {version}, this rerank reads {VERSION}; upgrade rerank, "
                    "delete the file, or run with --no-cache"
                )
        return connection

    @contextlib.contextmanager
    def _using(self, path: Path) -> Iterator[sqlite3.Connection]:
        """The connection to a file; SQLite's errors are this package's."""
        connection = self._connection(path)
        with _errors(path):
            yield connection

    @contextlib.contextmanager
    def _transaction(self, path: Path) -> Iterator[sqlite3.Connection]:
        """All that is written inside the block, or nothing."""
        with self._using(path) as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    def _drop_idle_files(self) -> None:
        """Removes the oldest files that nobody writes any more while all together are over the bound."""
        states = {path: path.stat() for path in self._files() if path != self._own}
        size = sum(state.st_size for state in states.values())
        idle = time.time() - _IDLE_DAYS * _DAY_SECONDS
        for path, state in sorted(states.items(), key=lambda item: item[1].st_mtime):
            if size > self.max_bytes and state.st_mtime < idle:
                path.unlink(missing_ok=True)
                size -= state.st_size


class Stored(Generic[T]):
    """The places of one call's answers in a cache.

    Args:
        cache: where they are kept.
        keys: of all requests.
        form: how answers are written.
    """

    def __init__(self, cache: RequestCache, keys: Sequence[bytes], form: Form[T]) -> None:
        self._cache, self._keys, self._form = cache, keys, form

    def get(self, batch: Sequence[int]) -> list[T] | None:
        """The answers to the requests with these numbers; None unless all are there.

        An engine's last bits depend on what it computes together, so a part of a batch is computed as the whole of it.
        """
        found = [answer for answer in self._cache.get([self._keys[i] for i in batch]) if answer is not None]
        return list(map(self._form.unpack, found)) if len(found) == len(batch) else None

    def put(self, batch: Sequence[int], answers: Sequence[T]) -> list[T]:
        """What is stored now for these requests: `answers`, or what was there before them."""
        new: dict[bytes, bytes] = {}
        for i, answer in zip(batch, answers, strict=True):
            new.setdefault(self._keys[i], self._form.pack(answer))
        kept = dict(zip(new, self._cache.put(new), strict=True))
        return [self._form.unpack(kept[self._keys[i]]) for i in batch]


def open_cache(folder: Path) -> RequestCache | None:
    """The cache in `folder`; None, with a warning, where that cannot be written: answers are not kept then."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(place, os.W_OK):
        logger.warning("%s cannot be written: answers are not kept, and asked for again next time", place)
        return None
    return RequestCache(folder)


def file_system(folder: Path) -> str:
    """The type of the file system that `folder` lies on, e.g. `ext4` or `nfs4`; "" where the system does not say."""
    table = Path("/proc/self/mountinfo")
    if not table.is_file():
        return ""
    resolved, best, kind = folder.resolve(), -1, ""
    for line in table.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        # Blanks and the like are written as octal numbers.
        place = Path(re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), before.split(" ")[4]))
        # Of two on the same place, the later one is seen.
        if resolved.is_relative_to(place) and len(place.parts) >= best:
            best, kind = len(place.parts), after.split(" ")[0]
    return kind


@contextlib.contextmanager
def _errors(path: Path) -> Iterator[None]:
    """SQLite's errors as this package's, with what to do."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise CorruptArtifactError(
                f"{path}: the request cache is damaged ({error}); delete the file (its answers are asked for again), "
                "or run with --no-cache"
            ) from error
        if code == sqlite3.SQLITE_BUSY:
            raise LockedError(
                f"{path}: another process has been writing for {_WAIT_SECONDS:.0f} seconds; try again when it is done, "
                "or run with --no-cache"
            ) from error
        raise ArtifactError(
            f"{path}: the request cache cannot be used ({error}); make room (rerank cache prune) or make the folder "
            "writable, or run with --no-cache"
        ) from error


def _close(connections: dict[Path, sqlite3.Connection]) -> None:
    for connection in connections.values():
        connection.close()


def _select(
    connection: sqlite3.Connection, keys: Sequence[bytes], since: float = 0.0
) -> list[tuple[bytes, bytes, int]]:
    """Key, answer and day of last use, of the keys that are there."""
    rows: list[tuple[bytes, bytes, int]] = []
    for start in range(0, len(keys), _KEYS_AT_ONCE):
        some = keys[start : start + _KEYS_AT_ONCE]
        marks = ", ".join("?" * len(some))
        query = f"SELECT key, answer, used FROM answers WHERE key IN ({marks}) AND created >= ?"
        rows += connection.execute(query, (*some, since))
    return rows


def _size(connection: sqlite3.Connection) -> int:
    """Bytes that answers take.  Pages are no measure: what is removed here and there frees few of them."""
    return int(connection.execute("SELECT bytes FROM size").fetchone()[0])


def _today() -> int:
    return int(time.time() // _DAY_SECONDS)
