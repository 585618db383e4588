"""splade-tiny: a BERT masked language model, given today's parameter names and a sparse encoder's layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from rerank.models.layout import write_json, write_sparse_layout
from rerank.models.tensors import read_tensors, write_tensors

_LAYER_NORM = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


def build(sources: Mapping[str, Path], folder: Path) -> None:
    """Writes the model from its own folder's files."""
    config = json.loads(sources["config.json"].read_text(encoding="utf-8"))
    write_json(folder / "config.json", config)
    write_tensors(folder, {_renamed(name): t for name, t in read_tensors(sources["model.safetensors"]).items()})
    tokenizer = json.loads(sources["tokenizer.json"].read_text(encoding="utf-8"))
    # What is cut and padded is the encoder's choice, not the file's.
    tokenizer["truncation"] = tokenizer["padding"] = None
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    shutil.copyfile(sources["tokenizer_config.json"], folder / "tokenizer_config.json")
    write_sparse_layout(folder, config["vocab_size"])


def _renamed(name: str) -> str:
    """The parameter's name since 2019, when layer normalisation had `gamma` and `beta`."""
    for old, new in _LAYER_NORM.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name
