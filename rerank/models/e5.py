"""multilingual-e5-small out of a 4-bit `.bin` file ("E5S1") and the original tokenizer.

The file, little-endian: the magic "E5S1" and a u32 version; seven i32 (hidden size, layers, heads, feed-forward size,
vocabulary size, positions, token types), an f32 (layer normalisation's epsilon), an i32 (block size).  The vocabulary:
an i32 count n; four i32 (ids of begin, end, padding, unknown); a u64 (bytes of text); n + 1 u32 offsets into the
text; n f32 scores; the text.  A normalisation map (an i32, a u32 length, so many bytes), not needed here.  The
tensors: an i32 count, then per tensor a u16 length and its name, a u8 (0: f32, 1: Q4_0), a u32 (values), a u64 (offset
in the file), a u64 (bytes).

Q4_0 stores 32 weights in 18 bytes: an f16 scale, then 16 bytes whose low halves are the first 16 weights and whose
high halves are the last 16; a weight is (half - 8) * scale.
"""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rerank.models.layout import write_dense_layout, write_json
from rerank.models.tensors import write_tensors

FloatArray = npt.NDArray[np.float32]

_Q4_0 = 1
_BLOCK_WEIGHTS = 32
_BLOCK_BYTES = 18
_PROMPTS = {"query": "query: ", "document": "passage: "}

# The file's name of each linear layer and normalisation -> the name in a BERT encoder layer.
_LINEAR = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "fi": "intermediate.dense",
    "fo": "output.dense",
}
_NORM = {"aln": "attention.output.LayerNorm", "oln": "output.LayerNorm"}


def build(sources: Mapping[str, Path], folder: Path) -> None:
    """Writes the model from `weights.bin` and `tokenizer.json`."""
    file = read_e5(sources["weights.bin"])
    write_json(
        folder / "config.json",
        {
            "architectures": ["BertModel"],
            "model_type": "bert",
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.1,
            "attention_probs_dropout_prob": 0.1,
            "initializer_range": 0.02,
            "position_embedding_type": "absolute",
            "dtype": "float32",
            **file.config,
        },
    )
    write_tensors(folder, file.bert_weights())
    tokenizer = json.loads(sources["tokenizer.json"].read_text(encoding="utf-8"))
    tokenizer = fit_tokenizer(tokenizer, file.pieces, file.unknown_id)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": 512,
            "bos_token": "<s>",
            "eos_token": "</s>",
            "cls_token": "<s>",
            "sep_token": "</s>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "mask_token": "<mask>",
            "model_input_names": ["input_ids", "attention_mask"],
        },
    )
    write_dense_layout(folder, file.config["hidden_size"], _PROMPTS)


def fit_tokenizer(tokenizer: dict[str, Any], pieces: list[tuple[str, float]], unknown_id: int) -> dict[str, Any]:
    """The tokenizer with the vocabulary of a weight file that was cut to fewer languages.

    The file leaves out `<mask>`, so a whole vocabulary is one piece shorter than the tokenizer's.
    """
    fitted = {**tokenizer, "truncation": None, "padding": None}
    if len(pieces) < len(tokenizer["model"]["vocab"]) - 1:
        ids = {piece: i for i, (piece, _) in enumerate(pieces)}
        fitted["model"] = {**tokenizer["model"], "vocab": pieces, "unk_id": unknown_id}
        fitted["added_tokens"] = [
            {**token, "id": ids[token["content"]]} for token in tokenizer["added_tokens"] if token["content"] in ids
        ]
    return fitted


def dequantise_q4_0(blocks: npt.NDArray[np.uint8]) -> FloatArray:
    """float32 [blocks, 32] from uint8 [blocks, 18]."""
    scales = blocks[:, :2].copy().view("<f2").astype(np.float32)
    halves = blocks[:, 2:]
    weights = np.concatenate([halves & 15, halves >> 4], axis=1).astype(np.float32)
    weights -= 8
    weights *= scales
    return weights


@dataclass(frozen=True)
class E5File:
    """What a `.bin` file says."""

    config: dict[str, Any]
    """The sizes, under the names of a BERT configuration."""
    pieces: list[tuple[str, float]]
    """The vocabulary with its unigram scores."""
    unknown_id: int
    content: bytes
    directory: dict[str, tuple[int, int, int]]
    """Type, number of values and offset of each tensor."""

    def tensor(self, name: str) -> FloatArray:
        """float32 [values], dequantised."""
        kind, n_values, offset = self.directory[name]
        if kind != _Q4_0:
            return np.frombuffer(self.content, "<f4", n_values, offset).astype(np.float32, copy=False)
        n_blocks = n_values // _BLOCK_WEIGHTS
        raw = np.frombuffer(self.content, np.uint8, n_blocks * _BLOCK_BYTES, offset)
        return dequantise_q4_0(raw.reshape(n_blocks, _BLOCK_BYTES)).reshape(-1)

    def bert_weights(self) -> dict[str, FloatArray]:
        """The weights under the names and in the shapes of a BERT encoder."""
        hidden = self.config["hidden_size"]
        weights = {
            "embeddings.word_embeddings.weight": self.tensor("emb.word").reshape(-1, hidden),
            "embeddings.position_embeddings.weight": self.tensor("emb.pos").reshape(-1, hidden),
            "embeddings.token_type_embeddings.weight": self.tensor("emb.type").reshape(-1, hidden),
            "embeddings.LayerNorm.weight": self.tensor("emb.ln.w"),
            "embeddings.LayerNorm.bias": self.tensor("emb.ln.b"),
        }
        for layer in range(self.config["num_hidden_layers"]):
            for short, name in {**_LINEAR, **_NORM}.items():
                weight, bias = self.tensor(f"l{layer}.{short}.w"), self.tensor(f"l{layer}.{short}.b")
                if short in _LINEAR:
                    weight = weight.reshape(len(bias), -1)
                weights[f"encoder.layer.{layer}.{name}.weight"] = weight
                weights[f"encoder.layer.{layer}.{name}.bias"] = bias
        return weights


class _Cursor:
    """Reads one value after another."""

    def __init__(self, content: bytes, position: int) -> None:
        self.content = content
        self.position = position

    def values(self, layout: str) -> tuple[Any, ...]:
        found = struct.unpack_from("<" + layout, self.content, self.position)
        self.position += struct.calcsize("<" + layout)
        return found

    def skip(self, n_bytes: int) -> int:
        """Where the cursor was before it moved on."""
        before = self.position
        self.position += n_bytes
        return before


def read_e5(path: Path) -> E5File:
    """The parts of an "E5S1" file."""
    content = path.read_bytes()
    cursor = _Cursor(content, position=8)
    hidden, layers, heads, feed_forward, vocabulary, positions, token_types = cursor.values("7i")
    epsilon, _block = cursor.values("fi")
    (n_pieces,) = cursor.values("i")
    _begin, _end, padding, unknown = cursor.values("4i")
    (text_bytes,) = cursor.values("Q")
    offsets = np.frombuffer(content, "<u4", n_pieces + 1, cursor.skip(4 * (n_pieces + 1))).tolist()
    scores = np.frombuffer(content, "<f4", n_pieces, cursor.skip(4 * n_pieces)).tolist()
    start = cursor.skip(text_bytes)
    texts = [content[start + a : start + b].decode("utf-8") for a, b in itertools.pairwise(offsets)]
    _, map_bytes = cursor.values("iI")
    cursor.skip(map_bytes)
    directory = {}
    (n_tensors,) = cursor.values("i")
    for _ in range(n_tensors):
        (length,) = cursor.values("H")
        start = cursor.skip(length)
        name = content[start : start + length].decode("ascii")
        kind, n_values, offset, _n_bytes = cursor.values("BIQQ")
        directory[name] = (kind, n_values, offset)
    config = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": feed_forward,
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
        "type_vocab_size": token_types,
        # The file keeps 1e-12 as a float32, which is not the same number any more.
        "layer_norm_eps": float(f"{epsilon:.7g}"),
        "pad_token_id": padding,
    }
    return E5File(config, list(zip(texts, scores, strict=True)), unknown, content, directory)
