"""A Llama-family model out of a GGUF file: dequantised to float32, its tokenizer and configuration rebuilt."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rerank.extras import need
from rerank.models.layout import write_json
from rerank.models.tensors import write_tensors

FloatArray = npt.NDArray[np.float32]

_PURPOSE = "reading GGUF weights"
_CONTROL_TOKEN = 3

_OUTSIDE_LAYERS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def build(sources: Mapping[str, Path], folder: Path) -> None:
    """Writes the model from `weights.gguf`.

    Raises:
        MissingExtraError: the package `gguf` is not installed.
    """
    reader = need("gguf", "gguf", _PURPOSE).GGUFReader(sources["weights.gguf"])
    # Lists of tokens and merges are decoded only where they are used.
    fields = reader.fields
    weights = _weights(reader)
    write_json(folder / "config.json", _config(fields, tied="lm_head.weight" not in weights))
    write_tensors(folder, weights)
    special = {
        name: _scalar(fields[f"tokenizer.ggml.{key}_token_id"])
        for name, key in {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}.items()
    }
    generation = {f"{name}_token_id": special[name] for name in ("bos", "eos", "pad")}
    write_json(folder / "generation_config.json", generation)
    tokens = _strings(fields["tokenizer.ggml.tokens"])
    tokenizer = _tokenizer(tokens, fields)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": _scalar(fields["llama.context_length"]),
            **{f"{name}_token": tokens[i] for name, i in special.items()},
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],
            "chat_template": _strings(fields["tokenizer.chat_template"])[0],
        },
    )


def _weights(reader: Any) -> dict[str, FloatArray]:
    """All tensors in float32, under the names and in the row order of a transformers Llama."""
    quants = need("gguf.quants", "gguf", _PURPOSE)
    n_heads = _scalar(reader.fields["llama.attention.head_count"])
    n_key_heads = _scalar(reader.fields["llama.attention.head_count_kv"])
    weights = {}
    for tensor in reader.tensors:
        weight = quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        name = _renamed(tensor.name)
        if name.endswith("q_proj.weight"):
            weight = half_rotation(weight, n_heads)
        elif name.endswith("k_proj.weight"):
            weight = half_rotation(weight, n_key_heads)
        weights[name] = weight
    return weights


def half_rotation(weight: FloatArray, n_heads: int) -> FloatArray:
    """Rows reordered from rotary pairs side by side (GGUF) to first halves, then second halves (transformers).

    >>> half_rotation(np.arange(8, dtype=np.float32)[:, None], 2)[:, 0].tolist()
    [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]
    """
    pairs = weight.reshape(n_heads, -1, 2, weight.shape[1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _renamed(name: str) -> str:
    """The transformers name of a tensor."""
    if found := re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name):
        return f"model.layers.{found[1]}.{_IN_LAYER[found[2]]}.weight"
    return _OUTSIDE_LAYERS[name]


def _config(fields: Mapping[str, Any], *, tied: bool) -> dict[str, Any]:
    def value(key: str) -> Any:
        return _scalar(fields[f"llama.{key}"])

    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": _scalar(fields["tokenizer.ggml.bos_token_id"]),
        "dtype": "float32",
        "eos_token_id": _scalar(fields["tokenizer.ggml.eos_token_id"]),
        "head_dim": value("embedding_length") // value("attention.head_count"),
        "hidden_act": "silu",
        "hidden_size": value("embedding_length"),
        "initializer_range": 0.02,
        "intermediate_size": value("feed_forward_length"),
        "max_position_embeddings": value("context_length"),
        "mlp_bias": False,
        "num_attention_heads": value("attention.head_count"),
        "num_hidden_layers": value("block_count"),
        "num_key_value_heads": value("attention.head_count_kv"),
        "pad_token_id": _scalar(fields["tokenizer.ggml.padding_token_id"]),
        # Kept as a float32 in the file; seven digits give back the number that was meant.
        "rms_norm_eps": float(f"{value('attention.layer_norm_rms_epsilon'):.7g}"),
        "rope_parameters": {"rope_theta": value("rope.freq_base"), "rope_type": "default"},
        "tie_word_embeddings": tied,
        "use_cache": True,
        "vocab_size": value("vocab_size"),
    }


def _tokenizer(tokens: list[str], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Byte-level BPE in the form of `tokenizer.json`.

    SmolLM ("smollm" in the file) splits numbers into digits before the words are split.  Readers that skip this join
    the blanks before a digit in another way than the model was trained with.
    """
    kinds = fields["tokenizer.ggml.token_type"]
    is_control = [int(kinds.parts[i][0]) == _CONTROL_TOKEN for i in kinds.data]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for i, token in enumerate(tokens)
            if is_control[i]
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in _strings(fields["tokenizer.ggml.merges"])],
        },
    }


def _strings(field: Any) -> list[str]:
    """The strings of a metadata field: one, or all of a list."""
    return [bytes(field.parts[i]).decode("utf-8") for i in field.data]


def _scalar(field: Any) -> Any:
    """The number in a metadata field."""
    return field.parts[field.data[0]][0].item()
