"""Scoring models small enough to be made in a test: random weights, every family that has its own ways."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

from tiny_models import WORDS

SPECIAL = ["<pad>", "<unk>", "<s>", "</s>"]
PAD, UNK, BOS, EOS = range(4)
ENCODERS = ("bert", "xlm-roberta", "modernbert", "deberta")
DECODERS = ("llama", "qwen3", "gemma2", "gemma3")
POSITIONS = 96


def write_pair_tokenizer(folder: Path, *, pairs: bool, types: bool = False, max_tokens: int = 64) -> int:
    """Writes a tokenizer of words and letters; gives the size of its vocabulary.

    Args:
        folder: where.
        pairs: puts special tokens round two texts, as encoders do; else texts get none, as in decoders.
        types: tells the two texts apart by token types.
        max_tokens: what it says of the model's length.
    """
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordPiece
    from transformers import PreTrainedTokenizerFast

    signs = list(string.ascii_letters + string.digits + string.punctuation)
    pieces = [*SPECIAL, *signs, *(f"##{sign}" for sign in signs), *WORDS, "Yes", "No"]
    vocabulary = {piece: code for code, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if pairs:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>",
            pair="<s>:0 $A:0 </s>:0 $B:1 </s>:1",
            special_tokens=[("<s>", BOS), ("</s>", EOS)],
        )
    names = ["input_ids", *(["token_type_ids"] if types else []), "attention_mask"]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=max_tokens,
        model_input_names=names,
    ).save_pretrained(folder)
    return len(vocabulary)


def config_of(kind: str, size: int) -> Any:
    """A configuration of two layers and 32 dimensions, with the family's own traits small enough to matter."""
    import transformers as t

    common = {
        "vocab_size": size,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": POSITIONS,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "initializer_range": 0.3,
    }
    grouped = {**common, "num_key_value_heads": 2}
    makers = {
        "bert": lambda: t.BertConfig(**common),
        "xlm-roberta": lambda: t.XLMRobertaConfig(**common, type_vocab_size=1),
        "modernbert": lambda: t.ModernBertConfig(
            **common, cls_token_id=BOS, sep_token_id=EOS, local_attention=12, global_attn_every_n_layers=2,
            classifier_pooling="mean",
        ),
        "deberta": lambda: t.DebertaV2Config(
            **common, relative_attention=True, pos_att_type=["c2p", "p2c"], pooler_hidden_size=32
        ),
        "llama": lambda: t.LlamaConfig(**grouped),
        "qwen3": lambda: t.Qwen3Config(**grouped, head_dim=8, tie_word_embeddings=True),
        "gemma2": lambda: t.Gemma2Config(**grouped, head_dim=8, sliding_window=6, attn_logit_softcapping=5.0,
            final_logit_softcapping=3.0),
        "gemma3": lambda: t.Gemma3TextConfig(**grouped, head_dim=8, sliding_window=6),
        # Layers that mix neighbouring tokens by convolution cannot be packed.
        "lfm2": lambda: t.Lfm2Config(**grouped, layer_types=["conv", "full_attention"]),
    }  # fmt: skip
    return makers[kind]()


def write_classifier(folder: Path, kind: str, *, labels: int = 1, seed: int = 0, max_tokens: int = 64) -> Path:
    """Writes a sequence classifier with random weights and gives its folder back."""
    import torch
    from transformers import AutoModelForSequenceClassification

    folder.mkdir(parents=True)
    size = write_pair_tokenizer(folder, pairs=kind in ENCODERS, types=kind == "bert", max_tokens=max_tokens)
    config = config_of(kind, size)
    config.num_labels = labels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return folder


def write_causal_lm(folder: Path, kind: str, *, seed: int = 0, max_tokens: int = 64) -> Path:
    """Writes a causal language model with random weights and gives its folder back."""
    import torch
    from transformers import AutoModelForCausalLM

    folder.mkdir(parents=True)
    size = write_pair_tokenizer(folder, pairs=False, max_tokens=max_tokens)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(config_of(kind, size)).save_pretrained(folder)
    return folder


def write_chat_lm(folder: Path, *, seed: int = 0) -> Path:
    """Writes a Llama with random weights and a chat template and gives its folder back."""
    import torch
    from tiny_tokenizers import byte_pairs
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_pairs()
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.3,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder
