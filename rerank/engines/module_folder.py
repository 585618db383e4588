"""Folders of sentence-transformers: a transformer, the modules behind it, and their settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rerank.errors import ModelError

if TYPE_CHECKING:
    from rerank.models import ModelFolder

MODULES = "modules.json"
SETTINGS = "config_sentence_transformers.json"

Json = Mapping[str, Any]


class Modules(NamedTuple):
    """The modules of a sentence-transformers folder."""

    rows: list[tuple[str, Path]]
    """Kind and folder of each."""
    settings: Json
    """Of the transformer."""

    def folders(self, kind: str) -> tuple[Path, ...]:
        return tuple(path for each, path in self.rows if each == kind)

    @property
    def transformer(self) -> Path:
        return self.folders("Transformer")[0]

    @property
    def layers(self) -> tuple[Path, ...]:
        return self.folders("Dense")


def read_modules(
    folder: ModelFolder, known: set[str], kind: str = "a late-interaction checkpoint of this layout"
) -> Modules:
    """The modules of the folder.

    Args:
        folder: the model's.
        known: which kinds of modules there may be behind the transformer.
        kind: what a folder of such modules is called.

    Raises:
        ModelError: it has others.
    """
    rows = [
        (str(row["type"]).rpartition(".")[2], folder.path / str(row["path"]))
        for row in read_json(folder.path / MODULES, folder)
    ]
    kinds = [kind for kind, _ in rows]
    if kinds[:1] != ["Transformer"] or not known.issuperset(kinds) or kinds.count("Transformer") > 1:
        raise ModelError(
            f"model {folder.name!r} is made of {', '.join(kinds)}; {kind} is a "
            f"Transformer with {', '.join(sorted(known - {'Transformer'}))} behind it"
        )
    path = rows[0][1] / "sentence_bert_config.json"
    return Modules(rows, read_json(path, folder) if path.is_file() else {})


def read_json(path: Path, folder: ModelFolder) -> Any:
    """What a file of the model's folder holds.

    Raises:
        ModelError: it is missing, or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"model {folder.name!r}: {path} cannot be read as JSON ({error}); get it again") from error
