"""A collection's one face: topics, candidates, exclusions, fingerprints."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from rerank.data.corpus import MemoryCorpus
from rerank.data.dataset import Dataset
from rerank.errors import DataError
from rerank.ranking import Ranking, ScoreKind

CORPUS = MemoryCorpus({"c": "see", "b": "bee", "a": "aye"})
QUERIES = {"q2": "two", "q1": "one", "q3": "three"}


def test_topics_are_the_queries_in_their_order_over_the_corpus() -> None:
    topics = Dataset("toy", QUERIES, CORPUS).topics()
    assert topics.qids == ("q2", "q1", "q3")
    assert topics.queries == ("two", "one", "three")
    assert len(topics.docs) == 0
    assert topics.source is CORPUS
    assert topics.kind is ScoreKind.NONE
    assert topics.query_columns == {}


def test_a_data_set_without_queries_is_refused() -> None:
    with pytest.raises(DataError, match=r"toy \(dev\): has no queries"):
        Dataset("toy", {}, CORPUS, split="dev")


def test_excluded_documents_and_other_values_are_query_columns() -> None:
    data = Dataset(
        "toy",
        QUERIES,
        CORPUS,
        excluded={"q1": frozenset({"a"})},
        query_columns={"language": {"q2": "de", "q1": "en"}, "terms": {"q1": (("x", 1.0), ("y", 2.0))}},
    )
    columns = data.topics().query_columns
    assert columns["excluded"].tolist() == [frozenset(), frozenset({"a"}), frozenset()]
    assert columns["language"].tolist() == ["de", "en", None]
    assert columns["terms"].tolist() == [None, (("x", 1.0), ("y", 2.0)), None]


def test_a_column_of_sequences_of_one_length_stays_one_value_a_query() -> None:
    pairs = {"q1": ("a", "b"), "q2": ("c", "d"), "q3": ("e", "f")}
    column = Dataset("toy", QUERIES, query_columns={"pair": pairs}).topics().query_columns["pair"]
    assert column.shape == (3,)
    assert column.tolist() == [("c", "d"), ("a", "b"), ("e", "f")]


def test_candidates_come_in_the_order_of_the_queries_in_the_codes_of_the_corpus() -> None:
    candidates = Ranking.of({"q1": {"a": 1.0, "b": 2.0}, "other": {"zzz": 1.0}, "q2": {"c": 3.0}})
    data = Dataset(
        "toy",
        QUERIES,
        CORPUS,
        candidates=candidates.subset(["q1", "q2"]),
        excluded={"q2": frozenset({"a"})},
        query_columns={"language": {"q1": "en", "q2": "de", "q3": "fr"}},
    )
    topics = data.topics()
    assert topics.qids == ("q2", "q1")
    assert topics.queries == ("two", "one")
    assert topics.to_dict() == {"q2": {"c": 3.0}, "q1": {"b": 2.0, "a": 1.0}}
    assert topics.ids is CORPUS.ids
    assert topics.texts() == ["see", "bee", "aye"]
    assert topics.query_columns["language"].tolist() == ["de", "en"]
    assert topics.query_columns["excluded"].tolist() == [frozenset({"a"}), frozenset()]


def test_candidates_need_no_corpus() -> None:
    candidates = Ranking.of({"q1": {"a": 1.0}})
    topics = Dataset("toy", QUERIES, candidates=candidates).topics()
    assert topics.to_dict() == {"q1": {"a": 1.0}}
    assert topics.source is None


def test_some_queries_of_a_data_set_are_one() -> None:
    data = Dataset("toy", QUERIES, CORPUS, {"q1": {"a": 1}})
    some = data.with_queries(["q3", "q2"])
    assert list(some.queries) == ["q3", "q2"]
    assert some.corpus is CORPUS
    with pytest.raises(DataError, match=r"toy \(test\): has no query 'q9'; did you mean"):
        data.with_queries(["q9"])


BASE: dict[str, Any] = {
    "queries": QUERIES,
    "corpus": CORPUS,
    "qrels": {"q1": {"a": 1}},
    "candidates": Ranking.of({"q1": {"a": 1.0, "b": 0.5}}),
    "excluded": {"q1": frozenset({"a", "b"})},
    "query_columns": {"language": {"q1": "de"}},
}


@pytest.mark.parametrize(
    "change",
    [
        {"queries": {"q1": "one"}},
        {"queries": dict(reversed(QUERIES.items()))},
        {"queries": {**QUERIES, "q1": "won"}},
        {"corpus": None},
        {"corpus": MemoryCorpus({"c": "see", "b": "bee", "a": "I"})},
        {"qrels": None},
        {"qrels": {"q1": {"a": 2}}},
        {"candidates": None},
        {"candidates": Ranking.of({"q1": {"a": 1.0, "b": 0.25}})},
        {"excluded": {}},
        {"excluded": {"q1": frozenset({"a"})}},
        {"query_columns": {}},
        {"query_columns": {"language": {"q1": "en"}}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_can_change_a_result_changes_the_fingerprint(change: dict[str, Any]) -> None:
    assert Dataset("toy", **{**BASE, **change}).fingerprint != Dataset("toy", **BASE).fingerprint


def test_names_notes_and_the_order_of_judgments_do_not_change_the_fingerprint() -> None:
    base = Dataset("toy", **{**BASE, "qrels": {"q1": {"a": 1, "b": 2}, "q2": {"a": 1}}})
    turned = Dataset("other", **{**BASE, "qrels": {"q2": {"a": 1}, "q1": {"b": 2, "a": 1}}}, split="dev", notes=("x",))
    assert base.fingerprint == turned.fingerprint
    assert dataclasses.replace(base, name="new").fingerprint == base.fingerprint


def test_provenance_names_the_data_and_its_content() -> None:
    data = Dataset("toy", QUERIES, CORPUS, split="dev", language="de")
    assert data.provenance() == {
        "name": "toy",
        "split": "dev",
        "language": "de",
        "queries": 3,
        "fingerprint": data.fingerprint,
    }


def test_a_data_set_shows_its_sizes() -> None:
    assert repr(Dataset("toy", **BASE)) == "Dataset('toy', 'test': 3 queries, 3 documents, 1 judgments)"
    assert repr(Dataset("toy", QUERIES)) == "Dataset('toy', 'test': 3 queries, no corpus, 0 judgments)"
