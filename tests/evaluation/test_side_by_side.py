"""Experiments whose pipelines ask one engine: their questions share batches, and each has its own ranking."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest

from rerank.data.corpus import MemoryCorpus
from rerank.data.dataset import Dataset
from rerank.engines.engine import Asked, Asker, Engine
from rerank.engines.passages import Passages, Span, word_passages
from rerank.evaluation.experiment import evaluate
from rerank.ranking import Ranking, ScoreKind
from rerank.reranking import Rerank
from rerank.rules.listwise import Listwise
from rerank.rules.pointwise import Pointwise
from rerank.rules.rule import Answer
from rerank.rules.setwise import Setwise
from rerank.runtime import Runtime
from rerank.stage import Cut, Pipeline

N = 30


@dataclass
class Likes:
    """Prefers documents with a high number, and remembers the sizes of its batches."""

    prompt: str | None
    batches: list[int]
    kind: ScoreKind = ScoreKind.UNKNOWN
    most_documents: int | None = None
    lane: str = "the model"

    def ask(self, questions: Sequence[Asked], runtime: Runtime) -> list[Answer]:
        return self.answers(self.raw(self.requests(questions, runtime), runtime), questions, runtime)

    def requests(self, questions: Sequence[Asked], runtime: Runtime) -> list[Any]:
        runtime.count("prepared", len(questions))
        return [(self.prompt, asked.documents) for asked in questions]

    def raw(self, requests: Sequence[Any], runtime: Runtime) -> Sequence[Any]:
        self.batches.append(len(requests))
        runtime.count("tokens", len(requests))
        return [tuple(float(text.split()[1]) for text in documents) for _, documents in requests]

    def answers(self, raw: Sequence[Any], questions: Sequence[Asked], runtime: Runtime) -> list[Answer]:
        return list(raw)

    def passages(self, texts: Sequence[str], passages: Passages) -> Iterable[tuple[Span, ...]]:
        return word_passages(texts, passages)


@dataclass(frozen=True, repr=False)
class Liking(Engine):
    """The engine of `Likes`."""

    batches: ClassVar[list[int]] = []
    name: str = field(default="liking")

    def asker(self, prompt: str | None, runtime: Runtime) -> Asker:
        return Likes(prompt, self.batches)


@pytest.fixture
def data() -> Dataset:
    Liking.batches.clear()
    texts = {f"d{i}": f"text {i}" for i in range(N)}
    lists = {q: {docno: float(-i) for i, docno in enumerate(texts)} for q in ("q1", "q2")}
    queries = {q: f"query {q}" for q in lists}
    qrels = {q: {"d29": 1} for q in lists}
    candidates = Ranking.of(lists, queries, ScoreKind.BM25, MemoryCorpus(texts))
    return Dataset("toy", queries, qrels=qrels, candidates=candidates)


RULES = [Pointwise(), Listwise(10, 5), Setwise(k=3, size=4)]


def named(*rules: Any) -> list[Pipeline]:
    return [Pipeline((Cut(N), Rerank(Liking(), rule, prompt=rule.label)), name=rule.label) for rule in rules]


class Shared:
    """A data set whose queries are one object, as an experiment's are."""

    def __init__(self, data: Dataset) -> None:
        self._topics = data.topics()

    def topics(self) -> Ranking:
        return self._topics

    def provenance(self) -> dict[str, Any]:
        return {}


def test_three_rules_of_one_engine_share_batches(data: Dataset) -> None:
    questions, waves = 0, []
    with Runtime(progress=False) as runtime:
        for pipeline in named(*RULES):
            runtime.run(pipeline, data)
            questions += sum(Liking.batches)
            waves.append(len(Liking.batches))
            Liking.batches.clear()
    results = evaluate(named(*RULES), [data], ["nDCG@10"])
    assert [found.means["nDCG@10"] for found in results.evaluations] == [1.0] * 3
    assert sum(Liking.batches) == questions
    assert len(Liking.batches) == max(waves) < sum(waves)


def test_stages_that_ran_together_end_as_alone_and_keep_their_own_statistics(data: Dataset) -> None:
    pipelines = named(*RULES)
    with Runtime(progress=False) as runtime:
        alone = [runtime.run(pipeline, data) for pipeline in pipelines]
    topics = Shared(data)
    stages = [pipeline.stages[1] for pipeline in pipelines]
    with Runtime(progress=False) as runtime, runtime.sharing([Cut(N)], [stages]):
        runs = [runtime.run(pipeline, topics) for pipeline in pipelines]
    assert [run.ranking for run in runs] == [run.ranking for run in alone]
    for run, other in zip(runs, alone, strict=True):
        assert run.stats[-1].shared
        for what in ("calls", "waves", "documents shown"):
            assert run.stats[-1].counts[what] == other.stats[-1].counts[what]
        assert run.stats[-1].counts["tokens (3 stages)"] == sum(run.stats[-1].counts["calls"] for run in runs)
