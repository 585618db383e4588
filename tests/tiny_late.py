"""Late-interaction checkpoints small enough to be made in a test, in every layout that is found."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

from tiny_models import WORDS

POSITIONS = 64
WIDTH = 16
PUNCTUATION = list(string.punctuation)


def bert_tokenizer(*added: str) -> Any:
    """A tokenizer of BERT's kind: `[unused0]` and `[unused1]` are words; `added` are added tokens, not special ones."""
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordPiece
    from transformers import PreTrainedTokenizerFast

    signs = list(string.ascii_lowercase + string.digits + string.punctuation)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, "[unused0]", "[unused1]", *signs, *(f"##{sign}" for sign in signs), *WORDS]
    vocabulary = {piece: code for code, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=POSITIONS,
    )
    if added:
        fast.add_tokens(list(added))
    return fast


def transformer(kind: str, size: int, *, seed: int = 0) -> Any:
    """Two layers of 32 dimensions with random weights."""
    import torch
    import transformers as t

    common = {
        "vocab_size": size, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64, "max_position_embeddings": POSITIONS, "pad_token_id": 0, "initializer_range": 0.3,
    }  # fmt: skip
    makers = {
        "bert": lambda: t.BertModel(t.BertConfig(**common)),
        "modernbert": lambda: t.ModernBertModel(
            t.ModernBertConfig(
                **common, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3, local_attention=12,
                global_attn_every_n_layers=2,
            )
        ),
        "deberta": lambda: t.DebertaV2Model(
            t.DebertaV2Config(**common, relative_attention=True, pos_att_type=["c2p", "p2c"])
        ),
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return makers[kind]().eval()


def matrix(rows: int, columns: int, *, seed: int = 1) -> Any:
    """Random weights."""
    import torch

    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) / columns**0.5


def write_stanford(folder: Path, settings: dict[str, Any] | None = None) -> Path:
    """Stanford's layout: a class of its own around BERT, a projection, settings in `artifact.metadata`."""
    from safetensors.torch import load_file, save_file

    folder.mkdir(parents=True)
    tokenizer = bert_tokenizer()
    tokenizer.save_pretrained(folder)
    model = transformer("bert", len(tokenizer))
    model.config.architectures = ["HF_ColBERT"]
    model.save_pretrained(folder)
    weights = {f"bert.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file({**weights, "linear.weight": matrix(WIDTH, 32)}, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", {**config, "architectures": ["HF_ColBERT"]})
    stated = {"query_maxlen": 12, "doc_maxlen": 24, "dim": WIDTH, "mask_punctuation": True, "similarity": "cosine"}
    if settings is not None:
        write_json(folder / "artifact.metadata", {**stated, **settings})
    return folder


def write_pylate(
    folder: Path, settings: dict[str, Any] | None = None, *, kind: str = "bert", layers: Any = (None,)
) -> Path:
    """PyLate's layout: a Transformer and Dense layers, settings in `config_sentence_transformers.json`.

    Args:
        folder: where.
        settings: beside or instead of the usual ones.
        kind: of transformer.
        layers: settings of Dense layers, beside or instead of the usual ones.
    """
    folder.mkdir(parents=True)
    tokenizer = bert_tokenizer("[Q] ", "[D] ")
    tokenizer.save_pretrained(folder)
    transformer(kind, len(tokenizer)).save_pretrained(folder)
    rows = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    width = 32
    for i, own in enumerate(layers, start=1):
        rows.append({"idx": i, "name": str(i), "path": f"{i}_Dense", "type": "pylate.models.Dense.Dense"})
        width = write_dense(folder / f"{i}_Dense", width, **(own or {}))
    write_json(folder / "modules.json", rows)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 23, "do_lower_case": False})
    stated = {
        "model_type": "ColBERT", "prompts": {}, "default_prompt_name": None, "similarity_fn_name": "MaxSim",
        "query_prefix": "[Q] ", "document_prefix": "[D] ", "query_length": 12, "document_length": 24,
        "attend_to_expansion_tokens": False, "skiplist_words": PUNCTUATION, "do_query_expansion": True,
    }  # fmt: skip
    write_json(folder / "config_sentence_transformers.json", {**stated, **(settings or {})})
    return folder


def write_dense(
    folder: Path, width: int, *, out: int = WIDTH, bias: bool = False, activation: str = "linear.Identity", **own: Any
) -> int:
    """A Dense layer; gives how long its vectors are."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    weights = {"linear.weight": matrix(out, width, seed=out)}
    if bias:
        weights["linear.bias"] = matrix(1, out, seed=5)[0].contiguous()
    if own.get("use_residual") and out != width:
        weights["residual.weight"] = matrix(out, width, seed=7)
    save_file({name: tensor.to(torch.float32) for name, tensor in weights.items()}, folder / "model.safetensors")
    settings = {"in_features": width, "out_features": out, "bias": bias, **own}
    write_json(folder / "config.json", {**settings, "activation_function": f"torch.nn.modules.{activation}"})
    return out


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
