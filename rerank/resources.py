"""Where the files lie that travel with the package: ready pipelines, the embedded collection's questions, adapters.

In a clone they are at its top level (`pipelines/`, `data/`); the build copies them into the package, under `shipped/`.
"""

from __future__ import annotations

from pathlib import Path

from rerank.errors import DataError

_PACKAGE = Path(__file__).parent


def shipped(relative: str) -> Path:
    """The path of a shipped file or folder, given by its path from the top level of a clone.

    >>> shipped("data/stdlib/queries.jsonl").name
    'queries.jsonl'

    Raises:
        DataError: this installation lacks it.
    """
    for root in (_PACKAGE / "shipped", _PACKAGE.parent):
        path = root / relative
        if path.exists():
            return path
    message = f"{relative}: not in this installation (looked in {_PACKAGE / 'shipped'}); install the package again"
    raise DataError(message)


def has_shipped(relative: str) -> bool:
    """Whether this installation has the shipped file or folder `relative`.

    >>> has_shipped("data/stdlib/no-such-file.tsv")
    False
    """
    return any((root / relative).exists() for root in (_PACKAGE / "shipped", _PACKAGE.parent))


def shipped_adapter(name: str) -> Path | None:
    """The folder of an adapter that comes with the package; None where none has that name.

    >>> shipped_adapter("no-such-adapter") is None
    True
    """
    relative = f"data/adapters/{name}"
    return shipped(relative) if name and Path(name).name == name and has_shipped(relative) else None


def adapter_folder(name: str) -> Path:
    """Where an adapter is: the path `name`, or where there is nothing, the adapter of that name in the package.

    >>> adapter_folder("runs/mine/adapter").as_posix()
    'runs/mine/adapter'
    """
    path = Path(name).expanduser()
    return path if path.exists() else shipped_adapter(name) or path
