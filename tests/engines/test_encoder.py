"""Encoders: equal to their library, whatever the batch; long texts counted; bad folders refused."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import some_texts, write_model

from rerank.engines import text_model
from rerank.engines.encoder import Encoder, load_encoder
from rerank.engines.sparse_encoder import SparseEncoder, load_sparse_encoder
from rerank.engines.text_model import rank_agreement, token_batches
from rerank.errors import ModelError
from rerank.ranking import ScoreKind
from rerank.runtime import Runtime

pytestmark = pytest.mark.needs("sentence_transformers")

ODD_TEXTS = ["", " ", "naïve café 東京 🦀", "x" * 500, "[SEP] [MASK] <|im_end|>", "tab\tand\nline"]


@pytest.fixture
def runtime(own_home: Path) -> Runtime:
    return Runtime(own_home, threads=1, device="cpu", progress=False)


@pytest.fixture
def encoder(runtime: Runtime, tiny_encoder: Path) -> Encoder:
    return load_encoder(runtime, str(tiny_encoder), dtype="float32")


def stock(folder: Path) -> Any:
    """The library's own model."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu")


@pytest.mark.parametrize("path", ["packed", "tokens"])
def test_vectors_equal_those_of_sentence_transformers(
    runtime: Runtime, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    if path == "tokens":
        monkeypatch.setattr(text_model, "find_packing", lambda *_, **__: None)
    encoder, library = load_encoder(runtime, str(tiny_encoder), dtype="float32"), stock(tiny_encoder)
    texts = some_texts(100)
    assert encoder.path == path
    assert encoder.encode_documents(texts) == pytest.approx(
        library.encode_document(texts, normalize_embeddings=True), abs=1e-5
    )
    assert encoder.encode_queries(texts) == pytest.approx(
        library.encode_query(texts, normalize_embeddings=True), abs=1e-5
    )


@pytest.mark.parametrize("pooling", ["cls_token", "max_tokens", "mean_sqrt_len_tokens", "lasttoken"])
def test_packed_states_are_pooled_as_the_folder_says(runtime: Runtime, tmp_path: Path, pooling: str) -> None:
    folder = write_model(tmp_path / pooling)
    settings = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": False, f"pooling_mode_{pooling}": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    encoder = load_encoder(runtime, str(folder), dtype="float32")
    texts = [*some_texts(30), "sun", "moon"]
    assert encoder.path == "packed"
    expected = stock(folder).encode_document(texts, normalize_embeddings=True)
    assert encoder.encode_documents(texts) == pytest.approx(expected, abs=1e-5)


def test_batches_are_padded_where_packed_ones_give_other_vectors(
    runtime: Runtime, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Encoder._packed

    def wrong(self: Encoder, *args: Any) -> dict[str, Any]:
        features = honest(self, *args)
        return {**features, "token_embeddings": features["token_embeddings"].roll(1, dims=0)}

    monkeypatch.setattr(Encoder, "_packed", wrong)
    encoder = load_encoder(runtime, str(tiny_encoder), dtype="float32")
    assert encoder.path == "tokens"
    texts = some_texts(20)
    expected = stock(tiny_encoder).encode_document(texts, normalize_embeddings=True)
    assert encoder.encode_documents(texts) == pytest.approx(expected, abs=1e-5)


def test_batches_are_padded_where_packed_ones_do_not_hold_in_16_bits(
    runtime: Runtime, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(text_model, "still_agrees", lambda *_, **__: False)
    assert load_encoder(runtime, str(tiny_encoder), dtype="bfloat16").path == "tokens"
    assert "packed batches do not hold in bfloat16" in caplog.text


def test_vectors_of_packed_and_padded_batches_are_not_mixed(
    runtime: Runtime, own_home: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = load_encoder(runtime, str(tiny_encoder), dtype="float32").identity("document")
    monkeypatch.setattr(text_model, "find_packing", lambda *_, **__: None)
    other = Runtime(own_home / "other", threads=1, device="cpu", progress=False)
    padded = load_encoder(other, str(tiny_encoder), dtype="float32").identity("document")
    assert (packed.path, padded.path) == ("packed 1", "tokens 1")
    assert packed.key != padded.key


def test_prompts_of_the_folder_tell_queries_from_documents(encoder: Encoder) -> None:
    query, document = encoder.encode_queries(["black hole"]), encoder.encode_documents(["black hole"])
    assert (encoder.prompt("query"), encoder.prompt("document")) == ("query: ", "passage: ")
    assert not np.allclose(query, document, atol=1e-3)


def test_a_vector_does_not_depend_on_what_else_is_in_the_batch(encoder: Encoder, monkeypatch) -> None:
    texts = [*ODD_TEXTS, *some_texts(60)]
    whole = encoder.encode_documents(texts)
    monkeypatch.setattr(Encoder, "batch_tokens", 50)
    alone = np.concatenate([encoder.encode_documents([text]) for text in texts])
    assert encoder.encode_documents(texts) == pytest.approx(whole, abs=1e-5)
    assert alone == pytest.approx(whole, abs=1e-5)
    assert encoder.encode_documents(texts[::-1])[::-1] == pytest.approx(whole, abs=1e-5)


def test_vectors_have_length_one_where_the_model_compares_by_cosine(encoder: Encoder) -> None:
    assert encoder.score_kind is ScoreKind.COSINE
    assert np.linalg.norm(encoder.encode_documents(some_texts(9)), axis=1) == pytest.approx(1, abs=1e-6)


def test_a_dot_product_model_keeps_its_lengths(runtime: Runtime, tmp_path: Path) -> None:
    encoder = load_encoder(runtime, str(write_model(tmp_path / "dot", similarity="dot")), dtype="float32")
    vectors = encoder.encode_documents(some_texts(9))
    assert encoder.score_kind is ScoreKind.DOT
    assert vectors == pytest.approx(encoder.model.encode_document(some_texts(9)), abs=1e-5)
    assert np.ptp(np.linalg.norm(vectors, axis=1)) > 1e-3


def test_a_model_that_compares_by_distance_is_refused(runtime: Runtime, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "far", similarity="euclidean")
    with pytest.raises(ModelError, match="compares by euclidean distance"):
        load_encoder(runtime, str(folder))


def test_cut_texts_and_tokens_are_counted(encoder: Encoder) -> None:
    counts: Counter[str] = Counter()
    encoder.encode_documents(["sun", "the " * 100, "moon " * 100], lambda what, n: counts.update({what: n}))
    # "passage: " is two tokens, [CLS] and [SEP] are two more.
    assert counts == {"tokens": 5 + 24 + 24, "truncated documents": 2}
    encoder.encode_queries(["the " * 100], lambda what, n: counts.update({what: n}))
    assert counts["truncated queries"] == 1


def test_special_tokens_in_a_text_are_plain_characters(encoder: Encoder) -> None:
    ids = encoder.tokenise(["a [SEP] b"], "document").ids[0]
    separator = encoder.model.tokenizer.sep_token_id
    assert ids.count(separator) == 1
    assert ids[-1] == separator


def test_a_batch_that_does_not_fit_is_halved(encoder: Encoder, monkeypatch) -> None:
    import torch

    honest, texts = Encoder._forward, some_texts(30)
    whole = encoder.encode_documents(texts)

    def small(self: Encoder, ids: list[list[int]]) -> object:
        if len(ids) > 3:
            raise torch.OutOfMemoryError
        return honest(self, ids)

    monkeypatch.setattr(Encoder, "_forward", small)
    assert encoder.encode_documents(texts) == pytest.approx(whole, abs=1e-5)

    def none(self: Encoder, ids: list[list[int]]) -> object:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Encoder, "_forward", none)
    with pytest.raises(ModelError, match="one text of 5 tokens does not fit on cpu"):
        encoder.encode_documents(["sun"])


def test_no_texts_give_an_empty_matrix(encoder: Encoder) -> None:
    assert encoder.encode_queries([]).shape == (0, 32)


def test_the_number_of_threads_is_as_before_after_encoding(encoder: Encoder) -> None:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        encoder.encode_queries(["sun"])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_model_is_loaded_once_in_a_runtime(runtime: Runtime, tiny_encoder: Path) -> None:
    first = load_encoder(runtime, str(tiny_encoder), dtype="float32")
    assert load_encoder(runtime, str(tiny_encoder), dtype="float32") is first


# -- types ------------------------------------------------------------


def test_auto_takes_bfloat16_where_the_processor_has_it_and_rankings_agree(
    runtime: Runtime, tiny_encoder: Path, monkeypatch
) -> None:
    monkeypatch.setattr(text_model, "has_bfloat16", lambda: True)
    monkeypatch.setattr(text_model, "MIN_AGREEMENT", 0.5)
    assert load_encoder(runtime, str(tiny_encoder)).dtype == "bfloat16"


def test_auto_stays_with_float32_where_rankings_would_change(runtime: Runtime, tiny_encoder: Path, monkeypatch) -> None:
    monkeypatch.setattr(text_model, "has_bfloat16", lambda: True)
    monkeypatch.setattr(text_model, "MIN_AGREEMENT", 1.01)
    assert load_encoder(runtime, str(tiny_encoder)).dtype == "float32"


def test_auto_stays_with_float32_where_the_processor_lacks_bfloat16(
    runtime: Runtime, tiny_encoder: Path, monkeypatch
) -> None:
    monkeypatch.setattr(text_model, "has_bfloat16", lambda: False)
    assert load_encoder(runtime, str(tiny_encoder)).dtype == "float32"


def test_a_shorter_type_is_near_and_its_vectors_are_float32_of_length_one(
    runtime: Runtime, tiny_encoder: Path, encoder: Encoder
) -> None:
    short = load_encoder(runtime, str(tiny_encoder), dtype="bfloat16")
    texts = some_texts(20)
    vectors = short.encode_documents(texts)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-6)
    assert vectors == pytest.approx(encoder.encode_documents(texts), abs=0.1)
    assert short.identity("document").key != encoder.identity("document").key


def test_values_that_are_not_finite_are_an_error(encoder: Encoder, monkeypatch) -> None:
    monkeypatch.setattr(encoder, "_read", lambda output: np.full((len(output), 32), np.nan, dtype=np.float32))
    with pytest.raises(ModelError, match="not finite"):
        encoder.encode_documents(["sun"])


def test_rank_agreement_is_kendalls_tau() -> None:
    from scipy.stats import kendalltau

    rng = np.random.default_rng(0)
    left = rng.standard_normal((8, 8))
    right = left + 0.5 * rng.standard_normal((8, 8))
    rows = [kendalltau(np.delete(left[i], i), np.delete(right[i], i)).statistic for i in range(8)]
    assert rank_agreement(left, right) == pytest.approx(np.mean(rows))


# -- batches ------------------------------------------------------------


@given(st.lists(st.integers(0, 40), max_size=60), st.integers(1, 100))
def test_batches_hold_every_text_once_and_keep_to_the_budget(sizes: list[int], budget: int) -> None:
    batches = list(token_batches(np.array(sizes, dtype=np.int64), budget))
    assert sorted(i for batch in batches for i in batch.tolist()) == list(range(len(sizes)))
    for batch in batches:
        widest = max(sizes[i] for i in batch)
        assert len(batch) == 1 or len(batch) * max(1, widest) <= budget


@pytest.mark.parametrize("budget", [1024, 4096, 16 * 4096])
@pytest.mark.parametrize("n", [1000, 4000])
def test_padding_is_at_most_a_twentieth_of_a_call_of_a_thousand_texts(n: int, budget: int) -> None:
    lengths = np.random.default_rng(n).lognormal(4.78, 0.58, n).clip(8, 512).astype(np.int64)
    assert lengths.mean() == pytest.approx(141, abs=4)
    batches = list(token_batches(lengths, budget))
    padded = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
    assert padded <= 1.05 * lengths.sum()
    # Not by making batches small.
    assert len(batches) <= 1.5 * lengths.sum() / min(budget, 4096)


# -- folders that cannot be used ------------------------------------------------------------


def test_a_missing_folder_is_a_model_error(runtime: Runtime, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        load_encoder(runtime, str(tmp_path / "nothing"))


def test_weights_of_another_shape_are_a_model_error(runtime: Runtime, tiny_encoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_encoder, folder)
    config = (folder / "config.json").read_text(encoding="utf-8")
    (folder / "config.json").write_text(config.replace('"hidden_size": 32', '"hidden_size": 64'), encoding="utf-8")
    with pytest.raises(ModelError, match="does not load as a SentenceTransformer"):
        load_encoder(runtime, str(folder))


def test_a_sparse_encoder_is_no_dense_one_nor_the_other_way_round(
    runtime: Runtime, tiny_encoder: Path, tiny_splade: Path
) -> None:
    with pytest.raises(ModelError, match="is a SparseEncoder, a SentenceTransformer is needed"):
        load_encoder(runtime, str(tiny_splade))
    with pytest.raises(ModelError, match="is a SentenceTransformer, a SparseEncoder is needed"):
        load_sparse_encoder(runtime, str(tiny_encoder))


def test_a_model_that_own_batches_read_differently_goes_the_librarys_way(
    runtime: Runtime, tiny_encoder: Path, monkeypatch, caplog
) -> None:
    honest = Encoder._forward
    monkeypatch.setattr(Encoder, "_forward", lambda self, ids: honest(self, ids) + 1)
    encoder = load_encoder(runtime, str(tiny_encoder), dtype="float32")
    texts = some_texts(5)
    assert encoder.path == "library"
    assert "its library's own batches" in caplog.text
    assert encoder.encode_documents(texts) == pytest.approx(
        encoder.model.encode_document(texts, normalize_embeddings=True), abs=1e-6
    )


def test_a_tokenizer_that_cannot_split_special_tokens_goes_the_librarys_way(
    runtime: Runtime, tiny_encoder: Path, monkeypatch
) -> None:
    def tokenise(self: Encoder, texts: list[str], side: str) -> object:
        raise TypeError("got an unexpected keyword argument 'split_special_tokens'")

    monkeypatch.setattr(Encoder, "tokenise", tokenise)
    encoder = load_encoder(runtime, str(tiny_encoder), dtype="bfloat16")
    assert (encoder.path, encoder.dtype) == ("library", "bfloat16")
    assert encoder.encode_queries(["sun", "moon"]).shape == (2, 32)


def test_a_text_without_any_token_has_a_vector(encoder: Encoder) -> None:
    assert np.isfinite(encoder._read(encoder._forward([[]]))).all()
    assert np.isfinite(encoder._read(encoder._forward([[], [5, 6]]))).all()


# -- sparse encoders ------------------------------------------------------------


@pytest.fixture
def sparse(runtime: Runtime, tiny_splade: Path) -> SparseEncoder:
    return load_sparse_encoder(runtime, str(tiny_splade), dtype="float32")


def test_term_weights_equal_those_of_the_library(sparse: SparseEncoder, monkeypatch) -> None:
    texts = some_texts(40)
    expected = sparse.model.encode_document(texts).to_dense().numpy()
    assert sparse.path == "tokens"
    assert sparse.encode_documents(texts).toarray() == pytest.approx(expected, abs=1e-5)
    monkeypatch.setattr(SparseEncoder, "batch_tokens", 60)
    assert sparse.encode_documents(texts).toarray() == pytest.approx(expected, abs=1e-5)


def test_no_texts_give_an_empty_sparse_matrix(sparse: SparseEncoder) -> None:
    assert sparse.encode_queries([]).shape == (0, sparse.n_terms)


def test_the_librarys_way_gives_the_same_term_weights(sparse: SparseEncoder) -> None:
    texts = some_texts(12)
    assert sparse._library(texts, "query").toarray() == pytest.approx(sparse.encode_queries(texts).toarray(), abs=1e-5)


# -- real weights ------------------------------------------------------------


@pytest.mark.network
def test_minilm_tells_related_from_unrelated(session_home: Path) -> None:
    with Runtime(session_home, threads=1, device="cpu", progress=False) as runtime:
        encoder = load_encoder(runtime, "minilm-l6", dtype="float32")
        query = encoder.encode_queries(["How do vaccines work?"])
        documents = encoder.encode_documents(
            ["Vaccines train the immune system to recognise a pathogen.", "The bridge was painted red last summer."]
        )
    related, unrelated = (query @ documents.T)[0]
    assert related > 0.5 > 0.2 > unrelated
