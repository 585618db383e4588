"""BM25: against bm25s itself, on real collections, on damaged indexes, when killed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rerank
from rerank.artifact import MANIFEST, canonical_json
from rerank.data.corpus import MemoryCorpus
from rerank.data.dataset import Dataset
from rerank.data.load import load
from rerank.errors import ArtifactError, ConfigError, CorruptArtifactError, DataError, NewerArtifactError
from rerank.ranking import Ranking, ScoreKind
from rerank.retrieve.analysis import Analyser
from rerank.retrieve.bm25 import BM25
from rerank.retrieve.rm3 import RM3
from rerank.runtime import Runtime

METHODS = ["lucene", "robertson", "atire", "bm25l", "bm25+"]
WORDS = ["stars", "holes", "black", "white", "dwarf", "light", "the", "и", "黑洞", "x1"]

TEXTS = {
    "d3": "black holes bend light; black holes are black",
    "d1": "white dwarfs are stars",
    "d2": "stars give light",
    "d10": "",
    "ä": "the of and",
    "d5": "stars give light",
}
QUERIES = {"q1": "black stars", "q2": "light", "q3": "zebra", "q4": "", "q5": "the stars, the stars"}


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    with Runtime(tmp_path / "home", progress=False, threads=1) as runtime:
        yield runtime


def search(stage: BM25, texts: dict[str, str] | MemoryCorpus, queries: dict[str, str], **columns: Any) -> Ranking:
    corpus = texts if isinstance(texts, MemoryCorpus) else MemoryCorpus(texts)
    return stage(Ranking.start(queries, corpus, columns))


def reference(stage: BM25, texts: dict[str, str], query: str) -> tuple[dict[str, np.float32], np.float32]:
    """Every document's score by bm25s itself, and the constant that bm25l and bm25+ give to all of them."""
    import bm25s

    analyser = stage.analyser or Analyser()
    terms = [analyser(text) for text in texts.values()]
    vocabulary = {term: i for i, term in enumerate(dict.fromkeys(term for row in terms for term in row))}
    scorer = bm25s.BM25(k1=stage.k1, b=stage.b, delta=stage.delta, method=stage.method)
    rows = [[vocabulary[term] for term in row] for row in terms]
    scorer.index((rows, vocabulary), create_empty_token=False, show_progress=False)
    asked = [vocabulary[term] for term in analyser(query) if term in vocabulary]
    scores = scorer.get_scores_from_ids(asked) if asked else np.zeros(len(texts), np.float32)
    absent = scorer.nonoccurrence_array
    constant = np.float32(0) if absent is None else absent[asked].sum()
    return dict(zip(texts, scores, strict=True)), constant


# -- scores ------------------------------------------------------------------------------

_texts = st.lists(st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join), min_size=1, max_size=12)


@pytest.mark.parametrize("method", METHODS)
@given(texts=_texts, query=st.lists(st.sampled_from([*WORDS, "zebra"]), max_size=5).map(" ".join), k=st.integers(1, 15))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_scores_are_those_of_bm25s(method: Any, texts: list[str], query: str, k: int, runtime: Runtime) -> None:
    named = {f"d{i}": text for i, text in enumerate(texts)}
    stage = BM25(k=k, method=method)
    found = search(stage, named, {"q": query})["q"]
    if not any(Analyser()(text) for text in texts):
        assert len(found) == 0
        return
    scores, constant = reference(stage, named, query)
    if constant == 0:
        expected = {docno: score for docno, score in scores.items() if score > 0}
        assert [hit.docno for hit in found] == sorted(expected, key=lambda d: (-expected[d], d))[:k]
        assert {hit.docno: hit.score for hit in found} == {hit.docno: expected[hit.docno] for hit in found}
    else:
        for hit in found:
            assert hit.score + constant == pytest.approx(scores[hit.docno], rel=1e-5)
        for one, two in pairwise(found):
            assert scores[one.docno] >= scores[two.docno] - 1e-5
        least = found[-1].score + constant if len(found) == k else constant
        assert all(score <= least + 1e-5 for docno, score in scores.items() if docno not in found.docnos)


def test_documents_that_share_no_term_are_never_given(runtime: Runtime) -> None:
    found = search(BM25(), TEXTS, QUERIES)
    assert {hits.qid: set(hits.docnos) for hits in found} == {
        "q1": {"d3", "d1", "d2", "d5"},
        "q2": {"d3", "d2", "d5"},
        "q3": set(),
        "q4": set(),
        "q5": {"d1", "d2", "d5"},
    }
    assert found.scores.min() > 0
    assert found.kind is ScoreKind.BM25


def test_a_worked_example(runtime: Runtime) -> None:
    """log(1 + (3 - 1 + .5) / (1 + .5)) * 2 / (2 + .9 * (.6 + .4 * 2 / (4 / 3)))"""
    found = search(BM25(), {"a": "whale whale", "b": "sea", "c": "ship"}, {"q": "whale"})
    assert found["q"][0].score == pytest.approx(np.log(1 + 2.5 / 1.5) * 2 / (2 + 0.9 * (0.6 + 0.4 * 2 / (4 / 3))))


def test_a_term_said_twice_counts_twice(runtime: Runtime) -> None:
    once, twice = (search(BM25(), TEXTS, {"q": query}).scores for query in ("stars", "stars stars"))
    assert twice.tolist() == (once * 2).tolist()


def test_ties_at_the_cut_go_by_id_whatever_the_order_of_the_corpus(runtime: Runtime) -> None:
    texts = {f"d{i}": "star" for i in range(20)} | {"top": "star star"}
    for order in (texts, dict(reversed(texts.items()))):
        assert search(BM25(k=4), order, {"q": "star"})["q"].docnos == ["top", "d0", "d1", "d10"]


def test_asking_for_more_than_there_is_gives_what_there_is(runtime: Runtime) -> None:
    assert search(BM25(k=10**9), TEXTS, {"q": "light"})["q"].docnos == search(BM25(), TEXTS, {"q": "light"})["q"].docnos


def test_a_corpus_of_empty_documents_can_be_searched(runtime: Runtime) -> None:
    found = search(BM25(), {"a": "", "b": "the of", "c": " \n"}, {"q": "star", "r": ""})
    assert [len(hits) for hits in found] == [0, 0]


def test_no_queries_give_no_lists(runtime: Runtime) -> None:
    assert len(search(BM25(), TEXTS, {})) == 0


def test_a_first_stage_drops_the_lists_that_came_with_the_queries(runtime: Runtime) -> None:
    corpus = MemoryCorpus(TEXTS)
    given_list = Ranking.of({"q": {"d10": 1.0}}, {"q": "light"}, source=corpus)
    assert set(BM25()(given_list)["q"].docnos) == {"d3", "d2", "d5"}


def test_excluded_documents_are_not_found_and_do_not_take_a_place(runtime: Runtime) -> None:
    excluded = np.array([frozenset({"d2", "d3", "unknown"}), frozenset()], dtype=object)
    found = search(BM25(k=1), TEXTS, {"q": "light", "r": "light"}, excluded=excluded)
    assert [hits.docnos for hits in found] == [["d5"], ["d2"]]
    assert runtime.stats[-1].counts == {"excluded documents": 2}


def test_weighted_terms_are_read_instead_of_the_text(runtime: Runtime) -> None:
    terms = np.fromiter([(("light", 2.0), ("nothing", 1.0)), ()], dtype=object)
    marks = np.array([canonical_json(dataclasses.asdict(Analyser().resolve()))] * 2, dtype=object)
    found = search(BM25(), TEXTS, {"q": "stars", "r": "stars"}, terms=terms, terms_analyser=marks)
    plain = search(BM25(), TEXTS, {"q": "light"})
    assert found["q"].docnos == plain["q"].docnos
    assert found.scores.tolist() == (plain.scores * 2).tolist()
    assert len(found["r"]) == 0


def test_terms_of_another_analyser_are_refused(runtime: Runtime) -> None:
    pipeline = BM25() >> RM3(analyser=Analyser("de")) >> BM25()
    with pytest.raises(ConfigError, match=r"the index analyses text as .* but the weighted terms were made by"):
        pipeline(Ranking.start({"q": "light"}, MemoryCorpus(TEXTS)))


def test_the_corpus_language_chooses_the_analyser(runtime: Runtime) -> None:
    corpus = MemoryCorpus({"a": "die Häuser", "b": "das Haus"}, "de")
    assert set(search(BM25(), corpus, {"q": "Hauses"})["q"].docnos) == {"a", "b"}
    assert set(search(BM25(analyser=Analyser("und")), corpus, {"q": "haus"})["q"].docnos) == {"b"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k is 0, at least 1"),
        ({"k1": -0.1}, r"k1 is -0.1 \(0 or more\)"),
        ({"k1": float("nan")}, "k1 is nan"),
        ({"k1": float("inf")}, "k1 is inf"),
        ({"b": 1.1}, r"b is 1.1 \(0 to 1\)"),
        ({"delta": -1.0}, r"delta is -1.0 \(0 or more\)"),
        ({"index": "x", "k1": 1.0}, "k1 cannot be set beside index"),
        ({"index": "x", "analyser": Analyser(), "b": 0.1}, "b, analyser cannot be set beside index"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BM25(**options)


def test_queries_without_a_corpus_are_refused(runtime: Runtime) -> None:
    with pytest.raises(DataError, match="bm25: the data set has no corpus to search"):
        BM25()(Ranking.start({"q": "light"}))


# -- the index ---------------------------------------------------------------------------


def built(runtime: Runtime) -> list[str]:
    folder = runtime.home / "indexes"
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) if folder.exists() else []


def test_one_index_serves_every_k_and_another_every_other_setting(runtime: Runtime) -> None:
    for stage in (BM25(), BM25(k=3), BM25(delta=7.0), BM25(analyser=Analyser("en")), BM25(k1=0.9)):
        search(stage, TEXTS, QUERIES)
    assert len(built(runtime)) == 1
    for stage in (BM25(k1=1), BM25(k1=1.0), BM25(b=0.5), BM25(method="atire"), BM25(analyser=Analyser(stem=False))):
        search(stage, TEXTS, QUERIES)
    search(BM25(), {**TEXTS, "new": ""}, QUERIES)
    assert len(built(runtime)) == 6


def test_an_index_on_disk_is_used_by_the_next_process(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    first = search(BM25(), TEXTS, QUERIES)
    monkeypatch.setattr(BM25, "write", lambda *_: pytest.fail("built again"))
    with Runtime(runtime.home, progress=False):
        assert search(BM25(), TEXTS, QUERIES) == first


def test_an_index_of_one_s_own_carries_its_settings(runtime: Runtime, tmp_path: Path) -> None:
    corpus = MemoryCorpus(TEXTS)
    stage = BM25(k1=2.0, b=0.1, method="atire", analyser=Analyser(stem=False, stop_words=("light",)))
    index = stage.build(corpus, tmp_path / "mine", runtime)
    assert index.settings["k1"] == 2.0
    assert index.analyser == Analyser("en", stem=False, stop_words=("light",))
    again = search(BM25(index=str(tmp_path / "mine")), corpus, QUERIES)
    assert again == search(stage, corpus, QUERIES)
    assert len(again["q2"]) == 0
    assert built(runtime) != []


def test_an_index_can_be_searched_without_its_corpus(runtime: Runtime, tmp_path: Path) -> None:
    BM25().build(MemoryCorpus(TEXTS), tmp_path / "mine", runtime)
    found = BM25(index=str(tmp_path / "mine"))(Ranking.start({"q": "light"}))
    assert set(found["q"].docnos) == {"d3", "d2", "d5"}
    assert found["q"][0].text is None


def test_an_index_of_another_corpus_is_refused(runtime: Runtime, tmp_path: Path) -> None:
    BM25().build(MemoryCorpus(TEXTS), tmp_path / "mine", runtime)
    with pytest.raises(ArtifactError, match="mine: was built from another corpus than the data set's; build it again"):
        search(BM25(index=str(tmp_path / "mine")), {"other": "light"}, QUERIES)


@pytest.fixture
def index(runtime: Runtime, tmp_path: Path) -> Path:
    BM25().build(MemoryCorpus(TEXTS), tmp_path / "mine", runtime)
    return tmp_path / "mine"


def use(index: Path) -> Ranking:
    return search(BM25(index=str(index)), TEXTS, QUERIES)


@pytest.mark.parametrize(
    "name", ["impacts.npy", "documents.npy", "starts.npy", "shape.npy", "vocabulary.json", "ids.bin", "ids.keys.npy"]
)
def test_a_damaged_file_is_named_in_one_line(name: str, index: Path) -> None:
    path = index / name
    whole = path.read_bytes()
    for damaged in (whole[:-1], b"", whole + b"x", bytes([whole[0] ^ 1]) + whole[1:]):
        path.write_bytes(damaged)
        with pytest.raises(CorruptArtifactError, match=name) as caught:
            use(index)
        assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(CorruptArtifactError, match=f"{name}: missing from the artifact"):
        use(index)


def rewrite(index: Path, name: str, content: bytes) -> None:
    """Puts other content under a manifest that fits it, as an index with a damaged but unread middle would have."""
    (index / name).write_bytes(content)
    path = index / MANIFEST
    tree = json.loads(path.read_text(encoding="utf-8"))
    digest = hashlib.sha256(content).hexdigest()
    tree["files"][name] = {
        "size": len(content),
        "sha256": digest,
        "head": hashlib.sha256(content[:4096]).hexdigest(),
    }
    path.write_text(json.dumps(tree), encoding="utf-8")


@pytest.mark.parametrize("content", [b"", b"\xff", b"[", b'["a"]'])
def test_a_vocabulary_that_cannot_be_is_refused(content: bytes, index: Path) -> None:
    rewrite(index, "vocabulary.json", content)
    with pytest.raises(CorruptArtifactError, match="vocabulary"):
        use(index)


def edit(index: Path, change: Any) -> None:
    path = index / MANIFEST
    tree = json.loads(path.read_text(encoding="utf-8"))
    change(tree)
    path.write_text(json.dumps(tree), encoding="utf-8")


def test_a_newer_another_and_a_half_written_index_are_told_apart(index: Path) -> None:
    edit(index, lambda tree: tree.update(version=99))
    with pytest.raises(NewerArtifactError, match="has format version 99 of 'bm25-index'"):
        use(index)
    edit(index, lambda tree: tree.update(version=1, kind="vectors"))
    with pytest.raises(ArtifactError, match="is an artifact of kind 'vectors', 'bm25-index' was expected"):
        use(index)
    edit(index, lambda tree: tree.update(kind="bm25-index", config={}))
    with pytest.raises(CorruptArtifactError, match="configuration or vocabulary cannot be read"):
        use(index)
    (index / MANIFEST).unlink()
    with pytest.raises(CorruptArtifactError, match=r"it has no manifest.json; delete the folder and build it again"):
        use(index)
    with pytest.raises(ArtifactError, match="no such artifact folder"):
        use(index / "nowhere")


def test_an_index_of_other_rules_for_words_is_refused(index: Path) -> None:
    edit(index, lambda tree: tree["config"]["analyser_versions"].update(rules="0"))
    with pytest.raises(ArtifactError, match="another version of the text analysis; build the index again"):
        use(index)


def test_a_home_that_cannot_be_written_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with (
        Runtime(tmp_path / "file", progress=False),
        pytest.raises(ArtifactError, match=r"cannot be written .*set RERANK_HOME"),
    ):
        search(BM25(), TEXTS, QUERIES)


# -- kill -9, and two at once ------------------------------------------------------------------

INDEX = """
    import sys, time
    from pathlib import Path
    from rerank.data.corpus import MemoryCorpus
    from rerank.ranking import Ranking
    from rerank.retrieve import bm25
    from rerank.runtime import Runtime

    home, where = Path(sys.argv[1]), sys.argv[2]
    write = bm25.write_sparse_index

    def slowly(*arguments):
        write(*arguments)
        print("writing", flush=True)
        if where == "stop":
            time.sleep(600)

    bm25.write_sparse_index = slowly
    corpus = MemoryCorpus({f"d{i}": f"word{i % 7} star{i % 3} common" for i in range(200)})
    with Runtime(home, progress=False, threads=1):
        found = bm25.BM25(k=5)(Ranking.start({"q": "word3 star1"}, corpus))
    print(found.to_dict())
"""


def start(home: Path, where: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(rerank.__file__).parents[1])}
    code = [sys.executable, "-c", textwrap.dedent(INDEX), str(home), where]
    return subprocess.Popen(code, stdout=subprocess.PIPE, text=True, env=environment)


def content(home: Path) -> dict[str, bytes]:
    files = (path for path in home.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(home)): path.read_bytes() for path in files}


def test_indexing_that_was_killed_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    killed = start(tmp_path / "killed", "stop")
    assert killed.stdout is not None
    assert killed.stdout.readline() == "writing\n"
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert content(tmp_path / "killed") != {}
    again, undisturbed = start(tmp_path / "killed", "go"), start(tmp_path / "undisturbed", "go")
    assert again.communicate() == undisturbed.communicate()
    assert content(tmp_path / "killed") == content(tmp_path / "undisturbed")


def test_two_processes_build_one_index(tmp_path: Path) -> None:
    processes = [start(tmp_path / "home", "go") for _ in range(3)]
    printed = [process.communicate()[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sum(line == "writing" for lines in printed for line in lines) == 1
    assert len({lines[-1] for lines in printed}) == 1


# -- real collections -----------------------------------------------------------------------------


def ndcg_at_10(data: Dataset, ranking: Ranking) -> float:
    """By ir_measures, over scores that fall strictly, so that it sees the order of the rows."""
    import ir_measures

    assert data.qrels is not None
    run = {hits.qid: {hit.docno: float(-hit.rank) for hit in hits} for hits in ranking}
    measure = ir_measures.nDCG @ 10
    return float(ir_measures.calc_aggregate([measure], {q: dict(g) for q, g in data.qrels.items()}, run)[measure])


@pytest.mark.parametrize(
    ("name", "least"), [("beir-nfcorpus", 0.315), ("beir-scifact", 0.672), ("cranfield", 0.345), ("vaswani", 0.44)]
)
def test_real_collections_give_the_known_figures(
    name: str, least: float, shared_data: Path, session_home: Path
) -> None:
    with Runtime(session_home, progress=False) as runtime:
        data = load(shared_data / name)
        ranking = runtime.run(BM25(k=100), data).ranking
    assert ndcg_at_10(data, ranking) >= least
    assert ranking.scores.min() > 0
    assert np.diff(ranking.offsets).max() <= 100


def test_a_real_collection_is_searched_as_bm25s_does(shared_data: Path, session_home: Path) -> None:
    with Runtime(session_home, progress=False) as runtime:
        data = load(shared_data / "cranfield")
        ranking = runtime.run(BM25(k=50), data).ranking
    corpus = data.corpus
    assert corpus is not None
    docnos = corpus.ids.take(np.arange(len(corpus.ids))).tolist()
    texts = dict(zip(docnos, corpus.texts(np.arange(len(docnos))), strict=True))
    for qid in ranking.qids[:5]:
        scores, _ = reference(BM25(), texts, data.queries[qid])
        best = sorted(scores, key=lambda docno: (-scores[docno], docno))[:50]
        assert ranking[qid].docnos == best
        assert [hit.score for hit in ranking[qid]] == [scores[docno] for docno in best]
