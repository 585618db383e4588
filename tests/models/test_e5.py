from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank.models import e5
from rerank.models.tensors import read_tensors

HIDDEN, FEED_FORWARD, LAYERS = 32, 64, 1
PIECES = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁a", -1.5), ("▁b", -2.0)]


@given(st.binary(min_size=16, max_size=16), st.floats(-8, 8, width=16))
def test_q4_0_follows_its_definition_weight_by_weight(halves, scale):
    block = np.frombuffer(struct.pack("<e", scale) + halves, np.uint8)[None, :]
    low = [(byte & 15) - 8 for byte in halves]
    high = [(byte >> 4) - 8 for byte in halves]
    expected = np.array(low + high, np.float32) * np.float32(scale)
    assert np.array_equal(e5.dequantise_q4_0(block)[0], expected)


def e5_file(path: Path, seed: int = 0) -> dict[str, np.ndarray]:
    """Writes a small "E5S1" file; the tensors that a reader must find, by the file's names."""
    random = np.random.default_rng(seed)
    shapes = {"emb.word": (len(PIECES), HIDDEN), "emb.pos": (16, HIDDEN), "emb.type": (2, HIDDEN)}
    shapes |= {"emb.ln.w": (HIDDEN,), "emb.ln.b": (HIDDEN,)}
    for short in ("q", "k", "v", "ao", "fi", "fo"):
        rows, columns = {"fi": (FEED_FORWARD, HIDDEN), "fo": (HIDDEN, FEED_FORWARD)}.get(short, (HIDDEN, HIDDEN))
        shapes |= {f"l0.{short}.w": (rows, columns), f"l0.{short}.b": (rows,)}
    for short in ("aln", "oln"):
        shapes |= {f"l0.{short}.w": (HIDDEN,), f"l0.{short}.b": (HIDDEN,)}

    text = "".join(piece for piece, _ in PIECES).encode()
    ends = np.cumsum([0] + [len(piece.encode()) for piece, _ in PIECES])
    head = b"E5S1" + struct.pack("<I7ifi", 1, HIDDEN, LAYERS, 2, FEED_FORWARD, len(PIECES), 16, 2, 1e-12, 32)
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, len(text))
    head += ends.astype("<u4").tobytes() + np.array([s for _, s in PIECES], "<f4").tobytes() + text
    head += struct.pack("<iI", 0, 3) + b"map"

    tensors, blobs, rows = {}, [], []
    for name, shape in shapes.items():
        values = random.normal(size=shape).astype(np.float32)
        kind = int(len(shape) == 2 and name not in ("emb.pos", "emb.type"))
        if kind:
            n_blocks = values.size // 32
            halves = random.integers(0, 256, (n_blocks, 16), dtype=np.uint8)
            scales = random.normal(size=(n_blocks, 1)).astype("<f2")
            blob = np.concatenate([scales.view(np.uint8), halves], axis=1)
            values = e5.dequantise_q4_0(blob).reshape(shape)
            blobs.append(blob.tobytes())
        else:
            blobs.append(values.tobytes())
        tensors[name] = values
        rows.append((name.encode(), kind, values.size, len(blobs[-1])))
    offset = len(head) + 4 + sum(2 + len(name) + 21 for name, *_ in rows)
    directory = struct.pack("<i", len(rows))
    for name, kind, n_values, n_bytes in rows:
        directory += struct.pack("<H", len(name)) + name + struct.pack("<BIQQ", kind, n_values, offset, n_bytes)
        offset += n_bytes
    path.write_bytes(head + directory + b"".join(blobs))
    return tensors


def unigram_tokenizer(pieces: list[tuple[str, float]]) -> dict[str, Any]:
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    ids = {piece: i for i, (piece, _) in enumerate(pieces)}
    return {
        "version": "1.0",
        "truncation": {"max_length": 8, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": None,
        "added_tokens": [{"id": ids[t], "content": t, **special} for t in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")],
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "Unigram", "unk_id": ids["<unk>"], "vocab": pieces, "byte_fallback": False},
    }


@pytest.fixture
def e5_sources(tmp_path: Path) -> dict[str, Path]:
    pytest.importorskip("safetensors")
    whole = [PIECES[0], ("▁c", -3.0), *PIECES[1:], ("<mask>", 0.0)]
    (tmp_path / "tokenizer.json").write_text(json.dumps(unigram_tokenizer(whole)), encoding="utf-8")
    return {"weights.bin": tmp_path / "weights.bin", "tokenizer.json": tmp_path / "tokenizer.json"}


def test_an_e5_file_becomes_a_bert_with_the_same_numbers(e5_sources, tmp_path):
    tensors = e5_file(e5_sources["weights.bin"])
    e5.build(e5_sources, tmp_path)
    written = read_tensors(tmp_path / "model.safetensors")
    assert len(written) == len(tensors)
    assert np.array_equal(written["embeddings.word_embeddings.weight"], tensors["emb.word"])
    assert np.array_equal(written["encoder.layer.0.intermediate.dense.weight"], tensors["l0.fi.w"])
    assert np.array_equal(written["encoder.layer.0.output.dense.weight"], tensors["l0.fo.w"])
    assert np.array_equal(written["encoder.layer.0.output.LayerNorm.bias"], tensors["l0.oln.b"])
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["layer_norm_eps"], config["vocab_size"], config["pad_token_id"]) == (1e-12, len(PIECES), 1)


def test_the_tokenizer_follows_a_vocabulary_that_was_cut(e5_sources):
    whole = json.loads(e5_sources["tokenizer.json"].read_text(encoding="utf-8"))
    fitted = e5.fit_tokenizer(whole, PIECES, unknown_id=3)
    assert fitted["model"]["vocab"] == PIECES
    assert fitted["model"]["unk_id"] == 3
    assert {t["content"]: t["id"] for t in fitted["added_tokens"]} == {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    assert fitted["truncation"] is None


def test_the_tokenizer_of_a_whole_vocabulary_stays_as_it_was(e5_sources):
    whole = json.loads(e5_sources["tokenizer.json"].read_text(encoding="utf-8"))
    vocabulary = [tuple(entry) for entry in whole["model"]["vocab"]]
    fitted = e5.fit_tokenizer(whole, vocabulary[:-1], unknown_id=0)
    assert (fitted["model"], fitted["added_tokens"]) == (whole["model"], whole["added_tokens"])


def test_an_e5_folder_loads_with_its_prompts(e5_sources, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    e5_file(e5_sources["weights.bin"])
    e5.build(e5_sources, tmp_path)
    model = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    assert model.prompts == {"query": "query: ", "document": "passage: "}
    vectors = model.encode(["a b", "b"])
    assert vectors.shape == (2, HIDDEN)
    assert np.allclose((vectors**2).sum(axis=1), 1, atol=1e-5)
