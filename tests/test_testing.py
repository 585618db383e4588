"""`check_stage` finds what a stage breaks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

from rerank import registry
from rerank.data.dataset import Dataset
from rerank.ranking import Ranking, ScoreKind
from rerank.runtime import Runtime
from rerank.stage import DOCUMENTS, Cut, Flow, Stage, apply
from rerank.testing import check_stage, check_value, sample_dataset


@dataclass(frozen=True, repr=False)
class Broken(Stage):
    """Breaks the convention that it is told."""

    how: str
    values: Any = ()

    needs: ClassVar[frozenset[str]] = frozenset()
    seen: ClassVar[list[int]] = []

    def flow(self, before: Flow) -> Flow:
        promised = frozenset({"promised"}) if self.how == "column" else frozenset()
        return Flow(before.has | promised, ScoreKind.COSINE if self.how == "kind" else None)

    def transform(self, ranking: Ranking, runtime: Runtime) -> Ranking:
        self.seen.append(len(ranking))
        return getattr(self, f"_{self.how}", lambda r: r)(ranking)  # type: ignore[no-any-return]

    def _queries(self, ranking: Ranking) -> Ranking:
        return ranking.subset([hits.qid for hits in ranking if len(hits)])

    def _input(self, ranking: Ranking) -> Ranking:
        ranking.query_columns["new"] = np.zeros(len(ranking))  # type: ignore[index]
        return ranking

    def _array(self, ranking: Ranking) -> Ranking:
        ranking.scores[:] = 0
        return ranking

    def _batch(self, ranking: Ranking) -> Ranking:
        return ranking.rescored(ranking.scores * len(ranking), ScoreKind.UNKNOWN)

    def _order(self, ranking: Ranking) -> Ranking:
        return ranking.rescored(ranking.scores + ranking.row_queries(), ScoreKind.UNKNOWN)

    def _codes(self, ranking: Ranking) -> Ranking:
        return ranking.rescored(-ranking.docs.astype(np.float32), ScoreKind.UNKNOWN)

    def _twice(self, ranking: Ranking) -> Ranking:
        return ranking.rescored(ranking.scores + len(self.seen), ScoreKind.UNKNOWN)

    def _invariant(self, ranking: Ranking) -> Ranking:
        return ranking._trusted(scores=np.arange(len(ranking.docs), dtype=np.float32))

    def _new(self, ranking: Ranking) -> Ranking:
        assert ranking.source is not None
        sizes = np.arange(len(ranking) + 1)
        docs = np.zeros(len(ranking), dtype=np.int64)
        return ranking.with_documents(sizes, docs, np.ones(len(ranking)), ScoreKind.UNKNOWN, ranking.source.ids)


@dataclass(frozen=True, repr=False)
class Finds(Broken):
    """Finds excluded documents too."""

    gives: ClassVar[frozenset[str]] = frozenset({DOCUMENTS})

    def transform(self, ranking: Ranking, runtime: Runtime) -> Ranking:
        assert ranking.source is not None
        n_documents = len(ranking.source.ids)
        docs = np.tile(np.arange(n_documents), len(ranking))
        offsets = np.arange(len(ranking) + 1) * n_documents
        return ranking.with_documents(offsets, docs, np.ones(len(docs)), ScoreKind.UNKNOWN, ranking.source.ids)


@dataclass(frozen=True, repr=False)
class Near(Broken):
    """Scores that depend on the batch by a little."""

    def transform(self, ranking: Ranking, runtime: Runtime) -> Ranking:
        return ranking.rescored(ranking.scores.astype(np.float64) + 1e-5 * len(ranking), ScoreKind.UNKNOWN)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The broken stages are registered, as those of another package would be."""
    mine = {kind.__name__.lower(): f"{__name__}:{kind.__name__}" for kind in (Broken, Finds, Near)}
    monkeypatch.setattr(registry, "BUILT_IN", {**registry.BUILT_IN, **mine})
    registry.table.cache_clear()
    registry.lookup.cache_clear()
    yield
    monkeypatch.undo()
    registry.table.cache_clear()
    registry.lookup.cache_clear()


def test_a_stage_that_does_nothing_passes() -> None:
    check_stage(Broken("not at all"))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("kind", "on lists: gave bm25 scores where its flow says cosine"),
        ("column", "on queries only: left no query column 'promised', which its flow says it gives"),
        ("queries", r"on queries only: gave the queries \[\] for \['q1', 'q2', .*\]; each keeps its place"),
        ("input", "on queries only: changed its input"),
        ("batch", "on lists, query 'q1' alone: gave other lists"),
        ("order", "on lists, in the reverse order: gave other lists"),
        ("codes", "on lists, over the same corpus in another order: gave other lists"),
        ("twice", "on lists, a second time: gave other lists"),
        ("new", "on queries only: gave the document 'd2', which it was not given"),
    ],
)
def test_what_is_broken_is_named(how: str, message: str) -> None:
    with pytest.raises(AssertionError, match=rf"Broken\(how='{how}'\) {message}"):
        check_stage(Broken(how))


def test_an_array_that_is_written_to_and_a_broken_invariant_fail_by_themselves() -> None:
    with pytest.raises(ValueError, match="read-only"):
        check_stage(Broken("array"))
    with pytest.raises(ValueError, match="has a higher score than the document before it"):
        check_stage(Broken("invariant"))


def test_an_excluded_document_that_is_found_is_named() -> None:
    with pytest.raises(AssertionError, match="gave 'd10', which query 'q1' excludes"):
        check_stage(Finds("x"))


def test_a_tolerance_lets_near_scores_pass_and_no_others() -> None:
    check_stage(Near("x"), tolerance=1e-4)
    with pytest.raises(AssertionError, match="gave other lists"):
        check_stage(Near("x"))
    with pytest.raises(AssertionError, match="the score"):
        check_stage(Near("x"), tolerance=1e-6)


def test_a_data_set_of_one_s_own_needs_a_corpus() -> None:
    data = sample_dataset()
    check_stage(Cut(2), dataclasses.replace(data, candidates=None, excluded={}))
    with pytest.raises(ValueError, match="needs a data set with a corpus"):
        check_stage(Cut(2), Dataset("x", {"q": ""}))


# -- values ----------------------------------------------------------------------------------


def test_a_field_that_is_not_hashable_is_named() -> None:
    with pytest.raises(AssertionError, match=r"is not hashable \(unhashable type: 'list'\); fields must be"):
        check_value(Broken("x", [1]))


def test_a_class_that_is_no_frozen_dataclass_is_named() -> None:
    class Plain(Stage):
        def transform(self, ranking: Ranking, runtime: Runtime) -> Ranking:
            return ranking

    @dataclass
    class Thawed(Plain):
        pass

    for kind in (Plain, Thawed):
        with pytest.raises(AssertionError, match=rf"{kind.__name__} is not a frozen dataclass"):
            check_value(kind())


def test_a_stage_that_is_not_registered_is_named_with_the_remedy() -> None:
    with pytest.raises(
        AssertionError, match=r"has no YAML form: .*register it under the entry-point group rerank.stages"
    ):
        check_value(apply(len))  # type: ignore[arg-type]


def test_a_repr_that_makes_another_stage_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Broken, "__repr__", lambda self: "Broken('other')")
    with pytest.raises(AssertionError, match=r"its repr gives Broken\('other'\), which is not equal"):
        check_value(Broken("x"))


def test_the_sample_is_what_it_says() -> None:
    data = sample_dataset()
    assert data.corpus is not None
    assert data.candidates is not None
    texts = data.corpus.texts(np.arange(len(data.corpus.ids)))
    assert len(set(texts)) < len(texts)
    assert "" in texts
    assert any(not docno.isascii() for docno in data.corpus.ids.take(np.arange(len(texts))))
    assert len({hit.score for hit in data.candidates["q2"]}) == 1
    assert "nothing" not in data.candidates
    assert data.topics().query_columns["excluded"].tolist()[0] == frozenset({"d10"})
