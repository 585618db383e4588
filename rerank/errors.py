"""The one tree of exceptions.

Every error that a user can cause is a `RerankError`; each is also the built-in kind that a caller would catch.
A message says what was given, what was expected, where, and what to do next.

    RerankError
    ├── ConfigError            ValueError    a pipeline or experiment file that cannot be read as one
    │   └── UnknownNameError   LookupError   a name that is not registered
    ├── PipelineError          TypeError     stages that do not fit together
    ├── DataError              ValueError    collections, judgments, runs
    │   └── RankingError                     a frame that breaks an invariant
    ├── ArtifactError          OSError       a folder on disk that cannot be used
    │   ├── CorruptArtifactError             half-written, altered or truncated
    │   ├── NewerArtifactError               written by a later version
    │   └── LockedError                      another process holds it
    ├── ModelError             OSError       weights that are missing or do not load
    ├── ServerError            ConnectionError  a model server that refuses, or does not answer
    └── MissingExtraError      ImportError   an optional package that is not installed
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RerankError(Exception):
    """Base of every error that `rerank` raises on purpose."""


class ConfigError(RerankError, ValueError):
    """A configuration that cannot be read: wrong type, wrong place, unsafe or malformed YAML."""


class UnknownNameError(ConfigError, LookupError):
    """A name that nothing is registered under."""


class PipelineError(RerankError, TypeError):
    """Stages that do not fit: one needs what nothing before it gives."""


class DataError(RerankError, ValueError):
    """A collection, judgments or a run that cannot be used as given."""


class RankingError(DataError):
    """A ranking that breaks one of the frame's invariants."""


class ArtifactError(RerankError, OSError):
    """A folder on disk that cannot be used as the artifact it should be."""


class CorruptArtifactError(ArtifactError):
    """An artifact that is half-written, altered or cut short."""


class NewerArtifactError(ArtifactError):
    """An artifact that a later version of `rerank` wrote."""


class LockedError(ArtifactError):
    """An artifact that another process is writing."""


class ModelError(RerankError, OSError):
    """Model weights that are missing or cannot be loaded."""


class ServerError(RerankError, ConnectionError):
    """A model server that cannot be reached, refuses what is asked, or does not answer any more."""


class MissingExtraError(RerankError, ImportError):
    """An optional package that is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed: pip install 'rerank-pipelines[{extra}]'"
        )
        self.package = package
        self.extra = extra


def nearest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'bm25'?"` for the known name nearest to `name`, or an empty string.

    >>> nearest("bm52", ["bm25", "dense"])
    "; did you mean 'bm25'?"
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
