"""Is this folder a model that can be loaded without running code of its own?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rerank.errors import ModelError
from rerank.extras import need
from rerank.models.checksums import model_files

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5")
_KNOWN_MODULES = ("sentence_transformers.", "pylate.models.Dense.")


def check_folder(folder: Path, name: str) -> None:
    """Returns when `folder` has a configuration, whole safetensors weights, and needs no code but the libraries'.

    Args:
        folder: the model's folder.
        name: how the user named it, for messages.

    Raises:
        ModelError: naming the file that is missing, damaged or refused.
    """
    encoder = _encoder_folder(folder, name)
    if encoder is not None and not (encoder / "config.json").is_file():
        message = f"model {name!r}: {encoder} has no config.json; it is not a model folder"
        raise ModelError(message)
    _check_weights(folder, name)


def _encoder_folder(folder: Path, name: str) -> Path | None:
    """Where the transformer's own files lie; None for models of word vectors, which have no transformer."""
    path = folder / "modules.json"
    if not path.is_file():
        return folder
    rows = _read_json(path, name)
    try:
        modules = {str(row["path"]): str(row["type"]) for row in rows}
    except (TypeError, KeyError) as error:
        message = f"model {name!r}: {path} is not a list of modules, each with a path and a type; get it again"
        raise ModelError(message) from error
    for place, kind in modules.items():
        if not kind.startswith(_KNOWN_MODULES):
            message = f"model {name!r}: {path} names {kind!r}, code of its own, which is not run"
            raise ModelError(message)
        if not (folder / place).resolve().is_relative_to(folder.resolve()):
            message = f"model {name!r}: {path} names {place!r}, which lies outside the folder; do not use it"
            raise ModelError(message)
    return next((folder / place for place, kind in modules.items() if kind.endswith("Transformer")), None)


def _check_weights(folder: Path, name: str) -> None:
    files = model_files(folder)
    weights = {path for path in files if path.suffix == ".safetensors"}
    for index in (path for path in files if path.name.endswith(".safetensors.index.json")):
        try:
            shards = sorted(set(_read_json(index, name)["weight_map"].values()))
        except (TypeError, KeyError, AttributeError) as error:
            message = f"model {name!r}: {index} does not say which file has which weights; get it again"
            raise ModelError(message) from error
        for shard in shards:
            if index.parent / shard not in weights:
                message = f"model {name!r}: {index} names the weights {shard}, which are missing"
                raise ModelError(message)
    if not weights:
        pickles = [path.name for pattern in _PICKLES for path in folder.rglob(pattern)]
        if pickles:
            message = (
                f"model {name!r}: {folder} has only {pickles[0]}, and pickled weights can run code, so they are not "
                "read; load the model where you trust it and save it again with save_pretrained"
            )
        else:
            message = f"model {name!r}: {folder} has no weights (model.safetensors)"
        raise ModelError(message)
    safetensors = need("safetensors", "dense", "reading model weights")
    for path in sorted(weights):
        try:
            with safetensors.safe_open(path, framework="numpy"):
                pass
        except safetensors.SafetensorError as error:
            message = f"model {name!r}: {path} is not a whole safetensors file ({error}); get it again"
            raise ModelError(message) from error


def _read_json(path: Path, name: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        message = f"model {name!r}: {path} is not JSON ({error}); get it again"
        raise ModelError(message) from error
