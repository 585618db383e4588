"""The fingerprint of a model folder: what its weights, configuration and tokenizer are, whatever the folder is called.

Hashing gigabytes takes seconds, so the SHA-256 of a file is remembered in a small JSON file for as long as the file's
inode, size and times stay the same.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

from rerank.artifact import MANIFEST, file_sha256, fingerprint, write_json

logger = logging.getLogger(__name__)

WEIGHTS = "*.safetensors"
PATTERNS = (WEIGHTS, "*.json", "*.txt", "*.model", "*.jinja", "artifact.metadata")
"""The files that decide what a model computes; nothing else is downloaded from the hub or hashed."""

OTHER_FORMATS = ("onnx", "openvino", "original", "checkpoint-*")
"""Subfolders that hold the same weights in another form, or earlier ones."""


def model_files(folder: Path) -> list[Path]:
    """The files that decide what the model in `folder` computes, by path."""
    return sorted(_walk(folder))


def _walk(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir():
            if not path.name.startswith(".") and not any(path.match(name) for name in OTHER_FORMATS):
                yield from _walk(path)
        elif path.name != MANIFEST and any(path.match(pattern) for pattern in PATTERNS):
            yield path


def model_fingerprint(folder: Path, memory: Path) -> str:
    """SHA-256 (hex) over the paths inside `folder` and the contents of its model files.

    Args:
        folder: a model folder.
        memory: the JSON file that remembers checksums; where it cannot be written, files are hashed every time.
    """
    known = _read(memory)
    now = {str(path.resolve()): _state(path) for path in model_files(folder)}
    stale = [path for path, state in now.items() if known.get(path, ["", ""])[0] != state]
    if stale:
        known |= {path: [now[path], file_sha256(Path(path))] for path in stale}
        _write(memory, known)
    names = (path.relative_to(folder).as_posix() for path in model_files(folder))
    return fingerprint({name: known[str((folder / name).resolve())][1] for name in names})


def _state(path: Path) -> str:
    """Changes whenever the file's content may have; the change time also catches a restored modification time."""
    status = path.stat()
    return f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"


def _read(memory: Path) -> dict[str, list[str]]:
    if not memory.is_file():
        return {}
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
        return {str(path): [str(state), str(sha256)] for path, (state, sha256) in known.items()}
    except (ValueError, TypeError, AttributeError) as error:
        logger.warning("%s: not a memory of checksums (%s); files are hashed again", memory, error)
        return {}


def _write(memory: Path, known: dict[str, list[str]]) -> None:
    try:
        write_json(memory, {path: entry for path, entry in known.items() if Path(path).exists()})
    except OSError as error:
        logger.debug("%s: checksums are not remembered (%s)", memory, error)
