"""A folder of models that is watched: what comes, changes and goes is served, replaced and dropped."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

_PIPELINES = (".yaml", ".yml")
_MODEL_FILES = ("config.json", "adapter_config.json")

State = tuple[tuple[str, int, int, int], ...]
"""Of each file its name, size, time of change and number; another one is another state."""


@dataclass
class _Known:
    path: Path
    seen: State
    """At the last look."""
    taken: State | None
    """When it was handed out last."""


class ModelsFolder:
    """The models, adapters and pipeline files of a folder, by name.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, _Known] = {}

    def first(self) -> dict[str, Path]:
        """What is there when the server starts; all of it counts as taken."""
        found = self._states()
        self._known = {name: _Known(path, state, state) for name, (path, state) in found.items()}
        return {name: path for name, (path, _) in found.items()}

    def look(self) -> tuple[dict[str, Path], list[str]]:
        """What is new or changed since it was taken, by name, and the names of what is gone.

        A change counts once two looks have found the same, so that a half-copied folder is left alone.
        """
        found = self._states()
        gone = [name for name in self._known if name not in found]
        changed = {}
        for name, (path, state) in found.items():
            known = self._known.get(name)
            taken = None if known is None else known.taken
            if known is not None and known.seen == state != taken:
                changed[name] = path
                taken = state
            self._known[name] = _Known(path, state, taken)
        for name in gone:
            del self._known[name]
        return changed, gone

    def _states(self) -> dict[str, tuple[Path, State]]:
        found: dict[str, tuple[Path, State]] = {}
        try:
            entries = sorted(self._path.iterdir())
        except OSError as error:
            logger.error("models_folder: %s cannot be listed (%s)", self._path, error.strerror)
            return found
        for path in entries:
            is_model = path.is_dir() and any((path / name).is_file() for name in _MODEL_FILES)
            is_pipeline = path.suffix in _PIPELINES and path.is_file()
            if path.name.startswith(".") or not (is_model or is_pipeline):
                continue
            with contextlib.suppress(OSError):  # it vanished meanwhile
                found[path.stem if is_pipeline else path.name] = (path, _state(path))
        return found


def _state(path: Path) -> State:
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    stats = ((str(each), each.stat()) for each in files)
    return tuple((name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in stats)
