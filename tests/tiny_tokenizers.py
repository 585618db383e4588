"""Tokenizers of every kind, small enough to be trained in a test: byte pairs, pieces of sentences, unigrams."""

from __future__ import annotations

import json
import string
from typing import Any

TEXT = (
    "The capital of France is Paris, which lies on the Seine. Query and document: which passage answers the question? "
    "A wing makes lift when air flows over it; drag grows with speed. Answer yes or no, true or false, with one word. "
    "Here are 20 documents, each marked with a number in square brackets, such as [1] > [2] > [3].\n\n"
    "Rank them by their relevance to the search query, the most relevant first.\nReply with nothing else. "
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Knows no system turn, strips what it is given.
STRICT = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<start>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<start>model\n{% endif %}"
)
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def byte_pairs(pattern: str | None = None, template: str = CHATML) -> Any:
    """A byte-level tokenizer: split as GPT-2 does, or by `pattern`; thinking tags are added tokens, but not special."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    if pattern is None:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), split])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), split])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in ("<think>", "</think>")])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token="<|endoftext|>"
    )
    fast.chat_template = template
    return fast


def sentence_pieces(*, prefix: bool = True, crossing: bool = False) -> Any:
    """Blanks are written as letters, as sentencepiece does.

    Args:
        prefix: put a blank before a text, as Llama 2 does.
        crossing: have tokens of letters and punctuation together, which sentencepiece leaves out.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    trained = Tokenizer(models.BPE())
    if not crossing:
        trained.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Punctuation("isolated")]
        )
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=list(string.printable[:95]), show_progress=False, special_tokens=[]
    )
    trained.train_from_iterator([f"▁{word}" for word in TEXT.replace("\n", " ").split()], trainer)
    model = json.loads(trained.to_str())["model"]
    special = ["<unk>", "<s>", "</s>", "<start>", "<end>"]
    # A byte that no piece covers is a token of the model, not an added one.
    pieces = [*special, *(f"<0x{i:02X}>" for i in range(256)), *model["vocab"]]
    vocabulary = {piece: code for code, piece in enumerate(pieces)}
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    steps = [normalizers.Prepend("▁")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = STRICT
    return fast


def unigrams() -> Any:
    """A tokenizer of T5's kind: unigrams whose vocabulary holds the end-of-text token, which it puts after a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=250,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        initial_alphabet=list(string.printable[:94]),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT, TEXT], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
