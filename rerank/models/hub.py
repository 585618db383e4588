"""Models from the Hugging Face hub: safetensors, configuration and tokenizer at one commit, nothing that runs."""

from __future__ import annotations

import re
from pathlib import Path

from rerank.errors import ModelError
from rerank.extras import need
from rerank.models.catalogue import same_weights
from rerank.models.checksums import OTHER_FORMATS, PATTERNS, WEIGHTS

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_REVISION = re.compile(r"\w[\w./+-]*")


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form `owner/name`.

    >>> is_hub_id("sentence-transformers/all-MiniLM-L6-v2"), is_hub_id("a/../b")
    (True, False)
    """
    return _REPOSITORY.fullmatch(name) is not None and ".." not in name


def download(
    repository: str, revision: str | None, *, only_cached: bool = False, weights: bool = True
) -> tuple[Path, str]:
    """The folder with the repository's files in the hub's own cache, and the commit that they are from.

    Args:
        repository: the hub id.
        revision: branch, tag or commit.
        only_cached: take what the cache has, and ask no server.
        weights: download them too, else only what says how they are used.

    Raises:
        ModelError: not found, gated, or the hub cannot be reached and its cache does not have it.
        MissingExtraError: `huggingface_hub` is not installed.
    """
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        message = f"model {repository!r}: {revision!r} is not a revision (a branch, a tag or a commit hash)"
        raise ModelError(message)
    hub = need("huggingface_hub", "dense", f"the hub model {repository!r}")
    errors = need("huggingface_hub.errors", "dense", f"the hub model {repository!r}")
    try:
        folder = hub.snapshot_download(
            repository,
            revision=revision,
            allow_patterns=[pattern for pattern in PATTERNS if weights or pattern != WEIGHTS],
            ignore_patterns=[f"{name}/*" for name in OTHER_FORMATS],
            local_files_only=only_cached,
        )
    except errors.HFValidationError as error:
        reason = "is not a name that the hub allows"
        raise ModelError(_message(repository, revision, reason)) from error
    except errors.GatedRepoError as error:
        reason = "is gated: accept its terms on the hub's page, then log in with `hf auth login`"
        raise ModelError(_message(repository, revision, reason)) from error
    except errors.RevisionNotFoundError as error:
        reason = "has no such revision; the hub's page lists branches, tags and commits"
        raise ModelError(_message(repository, revision, reason)) from error
    except errors.RepositoryNotFoundError as error:
        reason = "is neither a local folder nor on the hub; if it is private, log in with `hf auth login`"
        raise ModelError(_message(repository, revision, reason)) from error
    except errors.LocalEntryNotFoundError as error:
        reason = "is not in the hub's cache on this machine, and the hub cannot be reached"
        raise ModelError(_message(repository, revision, reason, offline=True)) from error
    except (OSError, errors.HTTPError) as error:
        reason = f"cannot be downloaded ({str(error).strip().partition(chr(10))[0]})"
        raise ModelError(_message(repository, revision, reason, offline=True)) from error
    return Path(folder), Path(folder).name


def _message(repository: str, revision: str | None, reason: str, *, offline: bool = False) -> str:
    name = f"{repository}@{revision}" if revision else repository
    text = f"model {name!r} {reason}"
    if offline:
        twin = same_weights(repository)
        text += (
            f"; the catalogue's {twin.name!r} has these weights ({twin.description}): name that instead"
            if twin
            else "; connect, or give a local folder or a name from `rerank models list`"
        )
    return text
