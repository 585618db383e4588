"""The folder of an adapter: what peft saves, and a manifest that says what it was trained on, how, and asked by what.

Any tool that reads peft's folders reads these.  The manifest lets engines refuse an adapter under another base or
another prompt, where it would load and score wrongly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rerank.artifact import MANIFEST, Manifest, open_artifact, read_manifest
from rerank.errors import ArtifactError
from rerank.models.hub import is_hub_id

KIND = "adapter"
VERSION = 1


@dataclass(frozen=True)
class AdapterFacts:
    """What an adapter's manifest says of it."""

    engine: str
    """The engine that it was trained for: `cross_encoder`, `causal_lm`."""
    base: str
    """The base model, as the recipe named it."""
    base_fingerprint: str
    """SHA-256 of the base model's files."""
    base_revision: str | None
    method: Mapping[str, Any]
    """The adapter method and its settings, as in a recipe."""
    prompt: str | None
    """The prompt's name, for language models."""
    prompt_fingerprint: str | None
    """SHA-256 of all of the prompt that requests and scores depend on."""
    max_tokens: int | None
    """What inputs were cut to; None: what the model reads."""
    heads: tuple[str, ...]
    """The modules that it brings whole."""
    recipe: str
    """The recipe, as YAML."""
    step: int
    """After how many optimiser steps the weights were taken."""
    quantised: str | None = None
    """What the base's frozen layers were rounded to while it was trained: `nf4`, `int8`; None: they were not."""

    @property
    def revision(self) -> str | None:
        """The commit of the base to ask a hub for; None where its name alone says which model it is."""
        return self.base_revision if is_hub_id(self.base) else None

    def tree(self) -> dict[str, Any]:
        """Plain data for a manifest."""
        return dataclasses.asdict(self)


def adapter_facts(folder: Path) -> AdapterFacts | None:
    """What the manifest of the adapter in `folder` says; None for one that was trained elsewhere.

    Raises:
        ArtifactError: the folder is an artifact of another kind, or damaged.
    """
    if not (folder / MANIFEST).is_file():
        return None
    return _facts(open_artifact(folder, KIND, VERSION), folder)


def _facts(manifest: Manifest, folder: Path) -> AdapterFacts:
    names = {field.name for field in dataclasses.fields(AdapterFacts)}
    known = {name: value for name, value in manifest.config.items() if name in names}
    try:
        return AdapterFacts(**{**known, "heads": tuple(known.get("heads", ()))})
    except TypeError as error:
        raise ArtifactError(f"{folder / MANIFEST}: lacks what an adapter's manifest says ({error})") from error


def is_adapter(folder: Path) -> bool:
    """Whether `folder` is an adapter artifact of this package."""
    return (folder / MANIFEST).is_file() and read_manifest(folder).kind == KIND
