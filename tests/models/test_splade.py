from __future__ import annotations

import json

import numpy as np
import pytest

from rerank.models import splade
from rerank.models.tensors import read_tensors, write_tensors


def test_a_splade_folder_has_todays_names_and_loads_as_a_sparse_encoder(tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    transformers = pytest.importorskip("transformers")
    source, out = tmp_path / "source", tmp_path / "out"
    out.mkdir()
    config = transformers.BertConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    original = transformers.BertForMaskedLM(config).eval()
    original.save_pretrained(source)
    tensors = read_tensors(source / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    }
    assert old.keys() != tensors.keys()
    write_tensors(source, old)
    pieces = [("[PAD]", 0.0), ("[UNK]", 0.0), ("[CLS]", 0.0), ("[SEP]", 0.0), ("[MASK]", 0.0), ("a", 0.0), ("b", 0.0)]
    vocabulary = {piece: i for i, (piece, _) in enumerate(pieces)}
    wordpiece = {
        "version": "1.0",
        "truncation": None,
        "padding": {"strategy": {"Fixed": 99}},
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocabulary,
        },
    }
    (source / "tokenizer.json").write_text(json.dumps(wordpiece))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    names = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    splade.build({name: source / name for name in names}, out)

    written = read_tensors(out / "model.safetensors")
    assert written.keys() == tensors.keys()
    assert all(np.array_equal(written[name], tensors[name]) for name in tensors)
    model = sentence_transformers.SparseEncoder(str(out), device="cpu")
    assert model.encode(["a b"]).shape == (1, 8)
