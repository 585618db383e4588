"""Dense retrieval: what it finds, what it keeps on disk, and what happens when it is killed or its files are hurt."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tiny_models import some_texts

from rerank.artifact import verify_artifact
from rerank.data.corpus import MemoryCorpus
from rerank.engines.encoder import Encoder, load_encoder
from rerank.errors import ConfigError, CorruptArtifactError, DataError, ModelError
from rerank.ranking import Ranking, ScoreKind
from rerank.retrieve import shards
from rerank.retrieve.dense import HNSW, IVF, Dense
from rerank.retrieve.vectors import vectors_of
from rerank.runtime import Runtime

pytestmark = pytest.mark.needs("sentence_transformers", "faiss")

QUERIES = {"q1": "black hole", "q2": "lift and drag of the wing", "q3": "sun"}


@pytest.fixture
def runtime(own_home: Path) -> Runtime:
    return Runtime(own_home, threads=1, device="cpu", progress=False)


def some_corpus() -> MemoryCorpus:
    return MemoryCorpus({f"d{i:03d}": text for i, text in enumerate(some_texts(120))})


@pytest.fixture
def corpus() -> MemoryCorpus:
    return some_corpus()


def dense(model: Path, k: int = 10, **options: object) -> Dense:
    return Dense(str(model), k=k, dtype="float32", **options)  # type: ignore[arg-type]


def counted(runtime: Runtime) -> Counter[str]:
    """The counts of everything that ran in `runtime`."""
    total: Counter[str] = Counter()
    for stats in runtime.stats:
        total.update(stats.counts)
    return total


def test_it_finds_the_documents_of_highest_cosine(runtime: Runtime, tiny_encoder: Path, corpus: MemoryCorpus) -> None:
    encoder = load_encoder(runtime, str(tiny_encoder), dtype="float32")
    found = runtime.rank(dense(tiny_encoder), Ranking.start(QUERIES, corpus))
    scores = (
        encoder.encode_queries(list(QUERIES.values()))
        @ encoder.encode_documents(corpus.texts(np.arange(len(corpus)))).T
    )
    assert found.kind is ScoreKind.COSINE
    for row, hits in zip(scores, found, strict=True):
        best = np.argsort(-row)[:10]
        assert hits.docnos == [f"d{i:03d}" for i in best]
        assert [hit.score for hit in hits] == pytest.approx(row[best].tolist(), abs=1e-5)


def test_more_than_the_corpus_holds_may_be_asked_for(runtime: Runtime, tiny_encoder: Path) -> None:
    small = MemoryCorpus({"a": "sun", "b": "moon"})
    found = runtime.rank(dense(tiny_encoder, k=1000), Ranking.start(QUERIES, small))
    assert [len(hits) for hits in found] == [2, 2, 2]


def test_no_queries_give_no_rows(runtime: Runtime, tiny_encoder: Path, corpus: MemoryCorpus) -> None:
    found = runtime.rank(dense(tiny_encoder), Ranking.start({}, corpus))
    assert (len(found), len(found.docs)) == (0, 0)


def test_equal_texts_at_the_end_of_a_list_are_taken_by_id(runtime: Runtime, tiny_encoder: Path) -> None:
    names = [f"x{i}" for i in np.random.default_rng(0).permutation(40)]
    twins = MemoryCorpus({**dict.fromkeys(names, "black hole"), "far": "the 7 & 8"})
    found = runtime.rank(dense(tiny_encoder, k=5), Ranking.start({"q": "black hole"}, twins))
    assert found["q"].docnos == sorted(names)[:5]
    assert len(set(found.scores.tolist())) == 1


def test_excluded_documents_are_never_found_and_k_others_are(
    runtime: Runtime, tiny_encoder: Path, corpus: MemoryCorpus
) -> None:
    everything = runtime.rank(dense(tiny_encoder, k=120), Ranking.start(QUERIES, corpus))
    banned = [frozenset(everything[qid].docnos[:n]) for qid, n in (("q1", 3), ("q2", 30), ("q3", 0))]
    start = Ranking.start(QUERIES, corpus).with_query_column("excluded", np.array(banned, dtype=object))
    found = runtime.rank(dense(tiny_encoder), start)
    for qid, n in (("q1", 3), ("q2", 30), ("q3", 0)):
        assert found[qid].docnos == everything[qid].docnos[n : n + 10]
    assert counted(runtime)["excluded documents"] == 33


def test_the_lists_are_the_same_for_any_batch_of_queries(
    runtime: Runtime, tiny_encoder: Path, corpus: MemoryCorpus
) -> None:
    queries = {f"q{i}": text for i, text in enumerate(some_texts(30, seed=7))}
    together = runtime.rank(dense(tiny_encoder), Ranking.start(queries, corpus))
    for qid, text in queries.items():
        alone = runtime.rank(dense(tiny_encoder), Ranking.start({qid: text}, corpus))[qid]
        assert alone.docnos == together[qid].docnos
        assert [h.score for h in alone] == pytest.approx([h.score for h in together[qid]], abs=1e-6)


def test_a_corpus_is_needed(runtime: Runtime, tiny_encoder: Path) -> None:
    with pytest.raises(DataError, match="no corpus to search"):
        runtime.rank(dense(tiny_encoder), Ranking.start(QUERIES))


def test_a_missing_model_is_an_error(runtime: Runtime, corpus: MemoryCorpus, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        runtime.rank(Dense(str(tmp_path / "none")), Ranking.start(QUERIES, corpus))


def test_options_of_another_index_are_refused() -> None:
    with pytest.raises(ConfigError, match="options of hnsw are given, but the index is 'flat'"):
        Dense("minilm-l6", hnsw=HNSW(links=8))
    with pytest.raises(ConfigError, match=r"ivf\.probes is 0"):
        Dense("minilm-l6", index="ivf", ivf=IVF(probes=0))
    with pytest.raises(ConfigError, match="k is 0"):
        Dense("minilm-l6", k=0)


# -- vectors on disk ------------------------------------------------------------


def stored(home: Path) -> Path:
    [folder] = [path for path in (home / "vectors").iterdir() if not path.name.startswith(".")]
    return folder


def test_documents_are_encoded_once_and_cut_ones_counted_every_time(
    own_home: Path, tiny_encoder: Path, corpus: MemoryCorpus
) -> None:
    with Runtime(own_home, threads=1, device="cpu", progress=False) as first:
        before = first.rank(dense(tiny_encoder), Ranking.start(QUERIES, corpus))
        once = counted(first)
    with Runtime(own_home, threads=1, device="cpu", progress=False) as second:
        after = second.rank(dense(tiny_encoder), Ranking.start(QUERIES, corpus))
        again = counted(second)
    assert after == before
    assert (once["encoded documents"], again["encoded documents"]) == (120, 0)
    assert once["truncated documents"] == again["truncated documents"] > 0
    verify_artifact(stored(own_home))


def test_only_new_documents_are_encoded(
    runtime: Runtime, tiny_encoder: Path, corpus: MemoryCorpus, monkeypatch
) -> None:
    texts = {f"d{i:03d}": text for i, text in enumerate(some_texts(120))}
    runtime.rank(dense(tiny_encoder), Ranking.start(QUERIES, corpus))
    grown = MemoryCorpus({"new1": "a new star", **texts, "new2": "earth and moon", "twin": texts["d007"]})
    runtime.stats.clear()
    found = runtime.rank(dense(tiny_encoder), Ranking.start(QUERIES, grown))
    assert counted(runtime)["encoded documents"] == 2
    assert counted(runtime)["reused vectors"] == 120
    monkeypatch.setenv("RERANK_HOME", str(runtime.home / "other"))
    with Runtime(threads=1, device="cpu", progress=False) as fresh:
        anew = fresh.rank(dense(tiny_encoder), Ranking.start(QUERIES, grown))
    assert [hits.docnos for hits in found] == [hits.docnos for hits in anew]
    assert found.scores == pytest.approx(anew.scores, abs=1e-6)


def test_vectors_of_another_type_are_not_reused_but_auto_follows_them(
    runtime: Runtime, tiny_encoder: Path, corpus: MemoryCorpus
) -> None:
    Dense(str(tiny_encoder), dtype="bfloat16")
    runtime.rank(Dense(str(tiny_encoder), dtype="bfloat16"), Ranking.start(QUERIES, corpus))
    runtime.stats.clear()
    runtime.rank(Dense(str(tiny_encoder)), Ranking.start(QUERIES, corpus))
    assert counted(runtime)["encoded documents"] == 0
    runtime.rank(Dense(str(tiny_encoder), dtype="float32"), Ranking.start(QUERIES, corpus))
    assert counted(runtime)["encoded documents"] == 120


def small_shards(monkeypatch) -> None:
    monkeypatch.setattr(shards, "SHARD", 16)


def vector_bytes(home: Path) -> bytes:
    return (stored(home) / "vectors.npy").read_bytes()


def test_an_interrupted_encoding_goes_on_and_ends_with_the_same_bytes(
    tmp_path: Path, tiny_encoder: Path, corpus: MemoryCorpus, monkeypatch
) -> None:
    small_shards(monkeypatch)
    start = Ranking.start(QUERIES, corpus)
    with Runtime(tmp_path / "whole", threads=1, device="cpu", progress=False) as runtime:
        runtime.rank(dense(tiny_encoder), start)
    honest, calls = Encoder.read, []

    def breaks(self: Encoder, texts: list[str], side: str) -> object:
        calls.append(len(texts))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return honest(self, texts, side)  # type: ignore[arg-type]

    with Runtime(tmp_path / "broken", threads=1, device="cpu", progress=False) as runtime:
        monkeypatch.setattr(Encoder, "read", breaks)
        with pytest.raises(KeyboardInterrupt):
            runtime.rank(dense(tiny_encoder), start)
        monkeypatch.setattr(Encoder, "read", honest)
        runtime.stats.clear()
        runtime.rank(dense(tiny_encoder), start)
        assert counted(runtime)["resumed documents"] == 48
        assert counted(runtime)["encoded documents"] == 72
    assert vector_bytes(tmp_path / "broken") == vector_bytes(tmp_path / "whole")
    assert [path.name for path in (tmp_path / "broken" / "vectors").iterdir() if path.is_dir()] == [
        stored(tmp_path / "broken").name
    ]


def killed_while_encoding(folder: Path, model: Path) -> None:
    """Encodes in a process that is killed at its third batch."""
    honest, calls = Encoder.read, []

    def dies(self: Encoder, texts: list[str], side: str) -> object:
        calls.append(len(texts))
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return honest(self, texts, side)  # type: ignore[arg-type]

    Encoder.read = dies  # type: ignore[assignment, method-assign]
    shards.SHARD = 16
    with Runtime(folder / "killed", threads=1, device="cpu", progress=False) as runtime:
        vectors_of(some_corpus(), load_encoder(runtime, str(model), dtype="float32"), runtime)


def test_a_killed_process_leaves_nothing_that_harms_the_next(
    tmp_path: Path, tiny_encoder: Path, corpus: MemoryCorpus, monkeypatch
) -> None:
    small_shards(monkeypatch)
    with Runtime(tmp_path / "whole", threads=1, device="cpu", progress=False) as runtime:
        encoder = load_encoder(runtime, str(tiny_encoder), dtype="float32")
        vectors_of(corpus, encoder, runtime)
    # A fork of a process in which torch has threads may wait for them without end.
    child = multiprocessing.get_context("spawn").Process(target=killed_while_encoding, args=(tmp_path, tiny_encoder))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert list((tmp_path / "killed" / "vectors").glob(".*.part"))
    with Runtime(tmp_path / "killed", threads=1, device="cpu", progress=False) as runtime:
        runtime.rank(dense(tiny_encoder), Ranking.start(QUERIES, corpus))
        assert counted(runtime)["resumed documents"] == 32
    assert vector_bytes(tmp_path / "killed") == vector_bytes(tmp_path / "whole")
    assert not list((tmp_path / "killed" / "vectors").glob(".*.part"))


def test_a_damaged_shard_is_computed_again(
    own_home: Path, tiny_encoder: Path, corpus: MemoryCorpus, monkeypatch
) -> None:
    small_shards(monkeypatch)
    done: list[shards.Shard] = []
    compute = lambda positions: {"double": positions * 2}  # noqa: E731
    done.extend(shards.in_shards(own_home / "work", np.arange(40), compute))
    (own_home / "work" / "000001.npz").write_bytes(b"PK not a zip")
    again = list(shards.in_shards(own_home / "work", np.arange(40), compute))
    assert [shard.resumed for shard in again] == [True, False, True]
    for one, other in zip(done, again, strict=True):
        assert np.array_equal(one.arrays["double"], other.arrays["double"])
    # Shards that were made for other documents do not count.
    assert not any(shard.resumed for shard in shards.in_shards(own_home / "work", np.arange(0, 40, 2), compute))


@pytest.mark.parametrize("harm", ["cut", "header", "no manifest"])
def test_damaged_vectors_are_told_not_used(own_home: Path, tiny_encoder: Path, corpus: MemoryCorpus, harm: str) -> None:
    with Runtime(own_home, threads=1, device="cpu", progress=False) as runtime:
        runtime.rank(dense(tiny_encoder), Ranking.start(QUERIES, corpus))
    path = stored(own_home) / "vectors.npy"
    if harm == "cut":
        os.truncate(path, path.stat().st_size - 8)
    elif harm == "header":
        path.write_bytes(b"x" * path.stat().st_size)
    else:
        (stored(own_home) / "manifest.json").write_text("{", encoding="utf-8")
    with (
        Runtime(own_home, threads=1, device="cpu", progress=False) as runtime,
        pytest.raises(CorruptArtifactError, match="delete the folder and build it again"),
    ):
        runtime.rank(dense(tiny_encoder), Ranking.start(QUERIES, corpus))


# -- indexes ------------------------------------------------------------


@pytest.mark.parametrize("index", ["sq8", "ivf", "hnsw"])
def test_an_index_is_built_once_and_gives_k_documents(
    own_home: Path, tiny_encoder: Path, corpus: MemoryCorpus, index: str
) -> None:
    stage = dense(tiny_encoder, k=5, index=index)
    with Runtime(own_home, threads=1, device="cpu", progress=False) as runtime:
        found = runtime.rank(stage, Ranking.start(QUERIES, corpus))
        assert [len(hits) for hits in found] == [5, 5, 5]
        exact = runtime.rank(dense(tiny_encoder, k=120), Ranking.start(QUERIES, corpus)).to_dict()
    for qid, hits in found.to_dict().items():
        for docno, score in hits.items():
            assert score == pytest.approx(exact[qid][docno], abs=1e-5)
    [folder] = [path for path in (own_home / "indexes").iterdir() if path.is_dir()]
    before = (folder / "manifest.json").stat().st_mtime_ns
    with Runtime(own_home, threads=1, device="cpu", progress=False) as runtime:
        assert runtime.rank(stage, Ranking.start(QUERIES, corpus)) == found
    assert (folder / "manifest.json").stat().st_mtime_ns == before


# -- real weights ------------------------------------------------------------


@pytest.mark.network
def test_minilm_ranks_scientific_abstracts(shared_data: Path, session_home: Path) -> None:
    from ir_measures import calc_aggregate, nDCG

    from rerank.data.load import load

    with Runtime(session_home, threads=2, device="cpu", progress=False) as runtime:
        data = load(shared_data / "cranfield", runtime=runtime)
        run = runtime.run(Dense("minilm-l6", k=100, dtype="float32"), data)
    # nDCG@10 0.3817 was reached when this was written.
    assert calc_aggregate([nDCG @ 10], data.qrels, run.ranking.to_dict())[nDCG @ 10] == pytest.approx(0.3817, abs=0.002)
