"""Weight files in safetensors form, read and written with numpy alone."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rerank.extras import need

Tensors = Mapping[str, npt.NDArray[Any]]


def write_tensors(folder: Path, tensors: Tensors) -> None:
    """Writes `model.safetensors` beside the folder's `config.json`, with that file's permissions."""
    save_file = need("safetensors.numpy", "dense", "writing model weights").save_file
    path = folder / "model.safetensors"
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    save_file(contiguous, path, metadata={"format": "pt"})
    shutil.copymode(folder / "config.json", path)  # safetensors lets only the owner read what it writes


def read_tensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    """All tensors of a safetensors file by name."""
    loaded: dict[str, npt.NDArray[Any]] = need("safetensors.numpy", "dense", "reading model weights").load_file(path)
    return loaded
