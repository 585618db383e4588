"""Folders on disk that are read as whole or not at all: manifests, fingerprints, atomic writes, locks.

An artifact is a folder with a `manifest.json` that names its kind, its format version, its fingerprint, the
configuration it was made from and every file with its size and SHA-256.  It is built under a temporary name beside
its final one and renamed when complete, so a killed process leaves nothing that reads as an artifact.  Opening checks
the manifest, the sizes and the first bytes of every file; `verify` reads every byte.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rerank.errors import ArtifactError, CorruptArtifactError, NewerArtifactError

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_HEAD_BYTES = 4096
_BLOCK_BYTES = 1 << 20


def cache_home() -> Path:
    """The one cache root: `RERANK_HOME`, else `XDG_CACHE_HOME/rerank`, else `~/.cache/rerank`."""
    if home := os.environ.get("RERANK_HOME"):
        return Path(home).expanduser()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg).expanduser() / "rerank"
    return Path("~/.cache/rerank").expanduser()


def canonical_json(value: object) -> str:
    """`value` as JSON with sorted keys and no blanks: equal values give equal text in every process.

    >>> canonical_json({"b": 1, "a": (1.5, None)})
    '{"a":[1.5,null],"b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(value: object) -> str:
    """SHA-256 (hex) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that becomes `path` when the block ends well and vanishes otherwise.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "a.txt"
    >>> with atomic_path(target) as part:
    ...     _ = part.write_text("whole", encoding="utf-8")
    >>> target.read_text(encoding="utf-8")
    'whole'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes `text` as UTF-8 so that `path` holds all of it or is not there."""
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Writes `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def lock(folder: Path, purpose: str) -> Iterator[None]:
    """Holds the right to write `folder`; waits, saying for whom, while another process holds it.

    The lock is the kernel's (`flock` on a file beside the folder) and dies with its process, however it ends.
    """
    path = folder.with_name(f".{folder.name}.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        message = f"{folder.parent}: cannot be written ({error.strerror}); set RERANK_HOME to a writable folder"
        raise ArtifactError(message) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 200, 0).decode("utf-8", "replace").strip()
            logger.warning("%s: waiting for another process (%s)", folder, holder or "unknown")
            fcntl.flock(handle, fcntl.LOCK_EX)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()}: {purpose}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


@dataclass(frozen=True)
class FileEntry:
    """One file of an artifact: its size, the SHA-256 of all of it and of its first 4,096 bytes."""

    size: int
    sha256: str
    head: str


@dataclass(frozen=True)
class Manifest:
    """What an artifact says of itself."""

    kind: str
    """What it is: `bm25-index`, `vectors`, `corpus`, `run`, ..."""
    version: int
    """Version of the kind's format; a reader refuses a later one."""
    fingerprint: str
    """Identifies the content: equal fingerprints, equal use."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """What it was made from and how, with every automatic choice resolved."""
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    """The files by their path inside the folder."""


def _head(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.sha256(file.read(_HEAD_BYTES)).hexdigest()


def _entries(folder: Path) -> dict[str, FileEntry]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {
        path.relative_to(folder).as_posix(): FileEntry(path.stat().st_size, file_sha256(path), _head(path))
        for path in files
    }


def _sync(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@dataclass
class Draft:
    """An artifact while it is being written; what is only known at the end may be set until then."""

    path: Path
    """The temporary folder to fill."""
    final: Path
    """What it will be called."""
    fingerprint: str
    config: dict[str, Any]


@contextlib.contextmanager
def new_artifact(
    folder: Path, kind: str, version: int, key: str = "", config: Mapping[str, Any] | None = None
) -> Iterator[Draft]:
    """A draft whose folder becomes the artifact `folder` when the block ends well.

    An older artifact of the same name is replaced; after an error nothing has changed.  `key` is the fingerprint.
    """
    _check_replaceable(folder)
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
    except OSError as error:
        message = f"{folder}: cannot be written ({error.strerror}); choose a writable folder or set RERANK_HOME"
        raise ArtifactError(message) from error
    draft = Draft(part, folder, key, dict(config or {}))
    try:
        yield draft
        manifest = {
            "kind": kind,
            "version": version,
            "fingerprint": draft.fingerprint,
            "config": draft.config,
            "files": {name: vars(entry) for name, entry in _entries(part).items()},
        }
        write_json(part / MANIFEST, manifest)
        _sync(part)
        _put(part, draft.final)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _check_replaceable(folder: Path) -> None:
    """Whether `folder` is an artifact, empty or not there; anything else may hold what somebody wants to keep."""
    if folder.is_dir() and not (folder / MANIFEST).is_file() and any(folder.iterdir()):
        message = f"{folder}: has files but no {MANIFEST}, so it is not an artifact; delete it or choose another name"
        raise ArtifactError(message)


def _put(part: Path, final: Path) -> None:
    """Renames the folder `part` to `final`, in place of what is there; another process may be doing the same."""
    old = final.with_name(f".{final.name}.{os.getpid()}.old")
    while True:
        shutil.rmtree(old, ignore_errors=True)
        try:
            part.rename(final)
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                message = f"{final}: cannot be put in its place ({error.strerror}); is there a file of that name?"
                raise ArtifactError(message) from error
        with contextlib.suppress(FileNotFoundError):
            final.rename(old)
            if not (old / MANIFEST).is_file():
                old.rename(final)
                _check_replaceable(final)
    shutil.rmtree(old, ignore_errors=True)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an artifact, its form checked but not its files.

    Raises:
        ArtifactError: no such folder, or a folder without a manifest.
        CorruptArtifactError: a manifest that is not one, or that names a file outside the folder.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        message = f"{folder}: no such artifact folder"
        raise ArtifactError(message)
    if not path.is_file():
        message = f"{folder}: not an artifact: it has no {MANIFEST}; delete the folder and build it again"
        raise CorruptArtifactError(message)
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        files = {name: FileEntry(**entry) for name, entry in tree["files"].items()}
        manifest = Manifest(tree["kind"], tree["version"], tree["fingerprint"], tree["config"], files)
        _check_types(manifest)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        message = f"{path}: not a manifest ({type(error).__name__}: {error}); delete the folder and build it again"
        raise CorruptArtifactError(message) from error
    root = folder.resolve()
    for name in manifest.files:
        if "\0" in name or not (folder / name).resolve().is_relative_to(root):
            message = f"{path}: names the file {name!r}, which lies outside the artifact's folder; do not use it"
            raise CorruptArtifactError(message)
    return manifest


def _check_types(manifest: Manifest) -> None:
    texts = [manifest.kind, manifest.fingerprint]
    numbers = [manifest.version]
    for entry in manifest.files.values():
        texts += [entry.sha256, entry.head]
        numbers.append(entry.size)
    if not (all(type(t) is str for t in texts) and all(type(n) is int for n in numbers)):
        raise TypeError("a value has the wrong type")
    if type(manifest.config) is not dict:
        raise TypeError("its config is not an object")


def open_artifact(folder: Path, kind: str, version: int) -> Manifest:
    """The manifest of `folder`, once its kind, version, and every file's size and first bytes were checked.

    Raises:
        ArtifactError: not there, or of another kind.
        NewerArtifactError: of a later format version than `version`.
        CorruptArtifactError: a file is missing, cut short or altered at its head.
    """
    manifest = read_manifest(folder)
    if manifest.kind != kind:
        message = f"{folder}: is an artifact of kind {manifest.kind!r}, {kind!r} was expected"
        raise ArtifactError(message)
    if manifest.version > version:
        message = (
            f"{folder}: has format version {manifest.version} of {kind!r}, this rerank reads up to {version}; "
            "upgrade rerank or build it again"
        )
        raise NewerArtifactError(message)
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.is_file():
            message = f"{path}: missing from the artifact; delete the folder and build it again"
            raise CorruptArtifactError(message)
        size = path.stat().st_size
        if size != entry.size:
            message = (
                f"{path}: has {size:,} bytes, its manifest says {entry.size:,}; delete the folder and build it again"
            )
            raise CorruptArtifactError(message)
        if _head(path) != entry.head:
            message = f"{path}: its first bytes differ from its manifest's; delete the folder and build it again"
            raise CorruptArtifactError(message)
    return manifest


def verify_artifact(folder: Path) -> Manifest:
    """The manifest of `folder`, once every byte of every file was compared with it.

    Raises:
        CorruptArtifactError: naming the first file that differs.
    """
    manifest = read_manifest(folder)
    open_artifact(folder, manifest.kind, manifest.version)
    for name, entry in manifest.files.items():
        if file_sha256(folder / name) != entry.sha256:
            message = (
                f"{folder / name}: its bytes differ from the manifest's checksum; delete the folder and build it again"
            )
            raise CorruptArtifactError(message)
    return manifest


def find_or_build(folder: Path, kind: str, version: int, key: str, build: Callable[[Draft], None]) -> Manifest:
    """The artifact at `folder`, written by `build` when it is not there.

    Two processes that want the same artifact build it once: the second waits and then opens it.
    """
    if not (folder / MANIFEST).is_file():
        with lock(folder, f"builds {kind}"):
            if not (folder / MANIFEST).is_file():
                for left in folder.parent.glob(f".{glob.escape(folder.name)}.*.*"):
                    # Half-written by processes that were killed: whoever writes this folder holds the lock.
                    if left.suffix in (".part", ".old"):
                        shutil.rmtree(left, ignore_errors=True)
                with new_artifact(folder, kind, version, key) as draft:
                    build(draft)
    return open_artifact(folder, kind, version)
