"""Text files read line by line, plain or gzipped, so that every complaint can name its file and line."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rerank.errors import DataError

_BOM = b"\xef\xbb\xbf"


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file that are not blank, with their numbers from 1, without their ends.

    A name that ends in `.gz` is read as gzip. Lines end at `\\n` or `\\r\\n` only.

    Raises:
        DataError: no such file, damaged gzip, or bytes that are not UTF-8.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            yield from decoded(file, str(path))
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(path, error) from error


def decoded(file: Iterable[bytes], origin: str) -> Iterator[tuple[int, str]]:
    """The lines of an open file, as `read_lines` gives them.

    Raises:
        DataError: bytes that are not UTF-8.
    """
    for number, raw in enumerate(file, 1):
        line = raw.removeprefix(_BOM) if number == 1 else raw
        if line.isspace() or not line:
            continue
        try:
            yield number, line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise DataError(f"{origin}:{number}: not UTF-8 ({error.reason}); save the file as UTF-8") from error


def read_bytes(path: Path) -> bytes:
    """All bytes of a file, unpacked where its name ends in `.gz`.

    Raises:
        DataError: no such file, or damaged gzip.
    """
    try:
        raw = path.read_bytes()
        if path.suffix == ".gz":
            raw = gzip.GzipFile(fileobj=io.BytesIO(raw)).read()
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(path, error) from error
    return raw.removeprefix(_BOM)


def unreadable(path: Path, error: Exception) -> DataError:
    """What to raise when `path` cannot be read because of `error`."""
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: no such file")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return DataError(f"{path}: cannot be read ({reason}); check that the file is whole and may be read")


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The JSON objects of a file that holds one a line, with their line numbers.

    Raises:
        DataError: a line that is no JSON object; file and line are named.
    """
    for number, line in read_lines(path):
        yield number, json_object(line, f"{path}:{number}")


def json_object(line: str, place: str) -> dict[str, Any]:
    """The JSON object that a line holds.

    Raises:
        DataError: it holds something else.
    """
    try:
        value = json.loads(line)
    except ValueError as error:
        raise DataError(f"{place}: not JSON ({error}); each line must be one JSON object") from error
    if not isinstance(value, dict):
        message = f"{place}: holds a JSON {type(value).__name__}; each line must be one JSON object"
        raise DataError(message)
    return value


def read_json_object(path: Path) -> dict[str, Any]:
    """The one JSON object that a file holds.

    Raises:
        DataError: it holds something else.
    """
    try:
        value = json.loads(read_bytes(path))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: holds a JSON {type(value).__name__}; one JSON object was expected")
    return value


def first_file(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of `names`, plain or with `.gz`, that `folder` has."""
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    return None


def stem(path: Path) -> str:
    """A file's name without its ending and without `.gz`.

    >>> stem(Path("runs/bm25.trec.gz"))
    'bm25'
    """
    return Path(path.name.removesuffix(".gz")).stem
