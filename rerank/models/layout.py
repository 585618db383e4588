"""The small files that make a folder of weights a sentence-transformers model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path


def write_json(path: Path, value: object) -> None:
    """Writes `value` as JSON; folders of `path` are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_dense_layout(folder: Path, dimension: int, prompts: Mapping[str, str]) -> None:
    """Encoder, mean pooling, vectors of length 1; `prompts` (query, document) are put before every text."""
    _write_modules(
        folder,
        {
            "": "sentence_transformers.models.Transformer",
            "1_Pooling": "sentence_transformers.models.Pooling",
            "2_Normalize": "sentence_transformers.models.Normalize",
        },
    )
    write_json(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": dimension,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    )
    write_json(
        folder / "config_sentence_transformers.json",
        {"prompts": dict(prompts), "default_prompt_name": None, "similarity_fn_name": "cosine"},
    )


def write_sparse_layout(folder: Path, vocabulary_size: int) -> None:
    """Masked language model, then the maximum over positions of log(1 + relu(logit)): SPLADE's vector."""
    _write_modules(
        folder,
        {
            "": "sentence_transformers.sparse_encoder.models.MLMTransformer",
            "1_SpladePooling": "sentence_transformers.sparse_encoder.models.SpladePooling",
        },
    )
    write_json(
        folder / "1_SpladePooling" / "config.json",
        {
            "pooling_strategy": "max",
            "activation_function": "relu",
            "word_embedding_dimension": vocabulary_size,
        },
    )
    write_json(
        folder / "config_sentence_transformers.json",
        {
            "model_type": "SparseEncoder",
            "prompts": {},
            "default_prompt_name": None,
            "similarity_fn_name": "dot",
        },
    )


def _write_modules(folder: Path, modules: Mapping[str, str]) -> None:
    rows = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(modules.items())]
    for path in modules:
        (folder / path).mkdir(exist_ok=True)
    write_json(folder / "modules.json", rows)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 512, "do_lower_case": False})
