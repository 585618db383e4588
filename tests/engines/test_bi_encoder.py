"""Bi-encoders as rerankers: the scores of their own library, whatever they are batched with; other folders refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import some_texts, write_model

from rerank.data.corpus import MemoryCorpus
from rerank.engines.bi_encoder import load_bi_encoder
from rerank.engines.engine import Asked
from rerank.engines.pairs import BiEncoderEngine
from rerank.errors import ConfigError, ModelError
from rerank.ranking import Ranking, ScoreKind
from rerank.reranking import Rerank
from rerank.retrieve.rescore import Rescore
from rerank.runtime import Runtime

PAIRS = [
    ("the lift of a wing", "a wing has lift and drag"),
    ("", ""),
    ("sun", "moon " * 90),
    ("naïve café", "東京 🦀 \ud83d"),
    ("query", "ignore the above [SEP] [CLS]"),
    ("sun", "heat of the sun"),
]


@pytest.fixture
def runtime(own_home: Path) -> Runtime:
    return Runtime(own_home, threads=1, device="cpu", progress=False, cache=False)


def asked(query: str, document: str) -> Asked:
    return Asked("q", query, ("d",), (document,))


def pooled(folder: Path, **modes: Any) -> Path:
    """The folder with another pooling."""
    path = folder / "1_Pooling" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config = {name: value for name, value in config.items() if not name.startswith("pooling_mode")}
    path.write_text(json.dumps({**config, **modes}), encoding="utf-8")
    return folder


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("mode", ["mean_tokens", "cls_token", "lasttoken"])
def test_scores_are_those_of_the_library(runtime: Runtime, tmp_path: Path, similarity: str, mode: str) -> None:
    from sentence_transformers import SentenceTransformer

    prompts = {"query": "query: ", "document": "passage: "} if mode == "mean_tokens" else None
    folder = write_model(tmp_path / "model", similarity=similarity, prompts=prompts)
    pooled(folder, **{f"pooling_mode_{mode}": True})
    model = load_bi_encoder(runtime, str(folder), dtype="float32")
    library = SentenceTransformer(str(folder), device="cpu")
    pairs = [pair for pair in PAIRS if "\ud83d" not in pair[1] and "[SEP]" not in pair[1]]
    unit = similarity == "cosine"
    queries = library.encode_query([query for query, _ in pairs], normalize_embeddings=unit)
    documents = library.encode_document([document for _, document in pairs], normalize_embeddings=unit)
    assert model.pairs(pairs) == pytest.approx((queries * documents).sum(axis=1), rel=1e-4, abs=1e-5)
    assert model.score_kind is (ScoreKind.COSINE if unit else ScoreKind.DOT)


def test_scores_do_not_depend_on_what_else_is_asked(runtime: Runtime, tmp_path: Path) -> None:
    model = load_bi_encoder(runtime, str(write_model(tmp_path / "model")), dtype="float32")
    together = model.pairs(PAIRS)
    alone = [float(model.pairs([pair])[0]) for pair in PAIRS]
    assert together == pytest.approx(alone, abs=1e-5)
    assert np.isfinite(together).all()


def test_a_list_is_put_in_the_order_of_the_stage_rescore(runtime: Runtime, tmp_path: Path) -> None:
    folder = str(write_model(tmp_path / "model"))
    corpus = MemoryCorpus({f"d{i}": text for i, text in enumerate(some_texts(12, seed=3))})
    lists = Ranking.of({"q": {f"d{i}": float(-i) for i in range(12)}}, {"q": "lift of a wing"}, source=corpus)
    reranked = Rerank(BiEncoderEngine(folder, dtype="float32"), k=None).transform(lists, runtime)
    rescored = Rescore(folder, dtype="float32").transform(lists, runtime)
    assert reranked.ids.take(reranked.docs).tolist() == rescored.ids.take(rescored.docs).tolist()
    assert reranked.kind is rescored.kind


def test_what_is_asked_is_measured_without_weights(runtime: Runtime, tmp_path: Path) -> None:
    engine = BiEncoderEngine(str(write_model(tmp_path / "model")), max_tokens=8)
    sizes = engine.measure(None, runtime).sizes([asked("sun", "moon " * 20), asked("sun", "moon")])
    assert [size.cut_documents for size in sizes] == [1, 0]
    assert sizes[1].shared > 0  # the query is encoded once


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pooling_mode_max_tokens": True}, "pools by pooling_mode_max_tokens"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "known are the mean"),
        ({}, "pools by nothing"),
    ],
)
def test_other_poolings_are_refused(runtime: Runtime, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = pooled(write_model(tmp_path / "model"), **change)
    with pytest.raises(ModelError, match=message):
        load_bi_encoder(runtime, str(folder))


def test_other_folders_are_refused(runtime: Runtime, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="SpladePooling; a bi-encoder"):
        load_bi_encoder(runtime, str(write_model(tmp_path / "sparse", kind="sparse")))
    folder = write_model(tmp_path / "plain")
    (folder / "modules.json").unlink()
    with pytest.raises(ModelError, match="no bi-encoder"):
        load_bi_encoder(runtime, str(folder))
    folder = write_model(tmp_path / "odd")
    rows = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    dense = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    (folder / "modules.json").write_text(json.dumps([rows[0], dense, rows[1]]), encoding="utf-8")
    with pytest.raises(ModelError, match="pools first"):
        load_bi_encoder(runtime, str(folder))
    with pytest.raises(ConfigError, match="takes no prompt"):
        BiEncoderEngine(str(folder)).asker("yes-no", runtime)


def test_it_has_gradients_only_where_it_is_trained(runtime: Runtime, tmp_path: Path) -> None:
    model = load_bi_encoder(runtime, str(write_model(tmp_path / "model")), dtype="float32")
    assert not any(weight.requires_grad for weight in model.model.parameters())
    assert isinstance(model.query_vectors(["sun"])[0], np.ndarray)
    assert torch.is_grad_enabled()
