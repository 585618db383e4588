"""Round trips and hard negatives."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_synthesis import TOPICS, corpus_of, some_documents

from rerank.data.corpus import MemoryCorpus
from rerank.errors import ConfigError
from rerank.ranking import TextSource
from rerank.retrieve.bm25 import BM25
from rerank.runtime import Runtime
from rerank.synthesize.negatives import HardNegatives, Mined
from rerank.synthesize.roundtrip import RoundTrip

TEXTS = {
    "d1": "walk a tree of folders",
    "d2": "walk a tree of  folders",
    "d3": "walk in the park",
    "d4": "",
    "d5": "sea",
}


def code(corpus: TextSource, docno: str) -> int:
    return int(corpus.ids.find([docno])[0])


def mined(
    negatives: HardNegatives, queries: dict[str, str], sources: dict[str, str], corpus: TextSource
) -> tuple[dict[str, list[Mined]], Counter[str]]:
    counts: Counter[str] = Counter()
    codes = {qid: code(corpus, docno) for qid, docno in sources.items()}
    with Runtime(progress=False, threads=1) as runtime:
        return negatives.mined(queries, codes, corpus, runtime, 0, counts), counts


def test_the_rank_of_the_own_document_or_of_one_with_its_text() -> None:
    corpus = MemoryCorpus({**TEXTS, "d2": TEXTS["d1"]})
    sources = {"a": code(corpus, "d1"), "b": code(corpus, "d2"), "c": code(corpus, "d3"), "d": code(corpus, "d5")}
    queries = {"a": "tree of folders", "b": "tree of folders", "c": "tree walk park", "d": "nothing of it"}
    with Runtime(progress=False, threads=1) as runtime:
        found = RoundTrip(stages=(BM25(k=10),), k=2).ranks(queries, sources, corpus, runtime)
        assert RoundTrip(stages=(BM25(k=10),)).ranks({}, {}, corpus, runtime) == {}
    assert found == {"a": 1, "b": 1, "c": 1, "d": None}


def test_a_documents_rank_must_be_among_the_first() -> None:
    texts = {f"d{i}": "wing " * (i + 1) + "lift" for i in range(6)}
    corpus = MemoryCorpus(texts)
    with Runtime(progress=False, threads=1) as runtime:
        ranks = [
            RoundTrip(stages=(BM25(k=10),), k=k).ranks({"q": "wing"}, {"q": code(corpus, "d0")}, corpus, runtime)["q"]
            for k in (1, 6)
        ]
    assert ranks == [None, 6]


@settings(max_examples=25)
@given(st.data())
def test_no_positive_is_among_its_negatives_and_every_query_has_as_many_or_is_counted(data: st.DataObject) -> None:
    texts = some_documents(25, seed=data.draw(st.integers(0, 5)))
    queries = {
        f"q{i}": f"{data.draw(st.sampled_from(TOPICS))} of {data.draw(st.sampled_from(TOPICS))}" for i in range(4)
    }
    sources = {qid: data.draw(st.sampled_from(sorted(texts))) for qid in queries}
    first = data.draw(st.integers(1, 6))
    negatives = HardNegatives(
        stages=(BM25(k=30),), k=3, from_rank=first, to_rank=first + data.draw(st.integers(2, 8)),
        pick=data.draw(st.sampled_from(["random", "top"])),
    )  # fmt: skip
    corpus = corpus_of(texts)
    found, counts = mined(negatives, queries, sources, corpus)
    for qid, some in found.items():
        codes = [each.code for each in some]
        assert code(corpus, sources[qid]) not in codes and len(set(codes)) == len(codes) <= 3
        assert all(first <= each.rank <= negatives.to_rank for each in some)
        assert [each.rank for each in some] == sorted(each.rank for each in some)
    assert counts["queries with fewer than 3 negatives"] == sum(len(some) < 3 for some in found.values())


def test_texts_of_the_positive_and_empty_ones_are_no_negatives() -> None:
    corpus = MemoryCorpus(TEXTS)
    found, counts = mined(HardNegatives(k=2, from_rank=1, to_rank=5), {"q": "walk folders"}, {"q": "d1"}, corpus)
    assert corpus.ids.take([each.code for each in found["q"]]).tolist() == ["d3"]  # type: ignore[arg-type]
    assert counts == {
        "own documents passed over as negatives": 1,
        "negatives with the text of the own document": 1,
        "queries with fewer than 2 negatives": 1,
    }


def test_the_same_negatives_whatever_the_order_of_the_file() -> None:
    texts = some_documents(40)
    queries, sources = {"q": "lift drag wing flow"}, {"q": "d003"}
    some = []
    for order in (None, list(reversed(range(40)))):
        corpus = corpus_of(texts, order)
        found, _ = mined(HardNegatives(from_rank=2, to_rank=20), queries, sources, corpus)
        some.append([(str(corpus.ids.take([each.code])[0]), each.rank) for each in found["q"]])  # type: ignore[arg-type]
    assert some[0] == some[1] and len(some[0]) == 4


def test_a_run_knows_nothing_of_new_queries() -> None:
    with pytest.raises(ConfigError, match="has no lists for queries that are yet to be written"):
        RoundTrip(run="a.trec")
    with pytest.raises(ConfigError, match="have no room for 4 documents"):
        HardNegatives(from_rank=5, to_rank=7)
    assert RoundTrip().made().name == "hybrid"
    assert HardNegatives(pipeline="dense").made().name == "dense"
