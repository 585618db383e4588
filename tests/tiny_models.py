"""Model folders small enough to be made in a test: random weights, a tokenizer that reads any ASCII text."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Literal

# fmt: off
WORDS = [
    "the", "of", "and", "to", "in", "is", "a", "for", "wing", "lift", "drag", "flow", "shock", "wave", "heat",
    "boundary", "layer", "pressure", "theory", "query", "passage", "star", "dwarf", "black", "hole", "light", "mass",
    "earth", "moon", "sun", "##ing", "##ed", "##s",
]
# fmt: on


def write_tokenizer(folder: Path) -> int:
    """Writes a WordPiece tokenizer of letters and a few words; gives the size of its vocabulary."""
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordPiece
    from transformers import PreTrainedTokenizerFast

    signs = list(string.ascii_lowercase + string.digits + string.punctuation)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *signs, *(f"##{sign}" for sign in signs), *WORDS]
    vocabulary = {piece: code for code, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)
    return len(vocabulary)


def write_model(
    folder: Path,
    kind: Literal["dense", "sparse"] = "dense",
    *,
    max_tokens: int = 24,
    similarity: str = "cosine",
    prompts: dict[str, str] | None = None,
    seed: int = 0,
) -> Path:
    """Writes a two-layer BERT of 32 dimensions as a sentence-transformers folder and gives it back."""
    import torch
    from transformers import BertConfig, BertForMaskedLM, BertModel

    folder.mkdir(parents=True)
    size = write_tokenizer(folder)
    config = BertConfig(
        vocab_size=size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        (BertModel(config) if kind == "dense" else BertForMaskedLM(config)).save_pretrained(folder)
    pooling = "1_Pooling" if kind == "dense" else "1_SpladePooling"
    library = "sentence_transformers.models." if kind == "dense" else "sentence_transformers.sparse_encoder.models."
    modules = {"": "Transformer", pooling: "Pooling"}
    if kind == "sparse":
        modules = {"": "MLMTransformer", pooling: "SpladePooling"}
    rows = [
        {"idx": i, "name": str(i), "path": path, "type": library + m} for i, (path, m) in enumerate(modules.items())
    ]
    _write(folder / "modules.json", rows)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": max_tokens, "do_lower_case": False})
    if kind == "dense":
        _write(folder / pooling / "config.json", {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True})
    else:
        settings = {"pooling_strategy": "max", "activation_function": "relu", "word_embedding_dimension": size}
        _write(folder / pooling / "config.json", settings)
    settings = {
        "model_type": "SentenceTransformer" if kind == "dense" else "SparseEncoder",
        "prompts": prompts or {},
        "default_prompt_name": None,
        "similarity_fn_name": similarity if kind == "dense" else "dot",
    }
    _write(folder / "config_sentence_transformers.json", settings)
    return folder


def _write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def some_texts(n: int, seed: int = 0) -> list[str]:
    """Distinct texts of mixed lengths over the tokenizer's words."""
    import numpy as np

    rng = np.random.default_rng(seed)
    words = [word for word in WORDS if not word.startswith("#")]
    return [f"{i} " + " ".join(rng.choice(words, size=int(rng.integers(1, 40)))) for i in range(n)]
