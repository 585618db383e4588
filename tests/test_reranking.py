"""Reranking as a stage: whatever the engine says, a permutation comes out, and good answers make good lists."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from rerank.config import parse_pipeline
from rerank.data.corpus import MemoryCorpus
from rerank.engines.engine import Asked, Asker, Engine
from rerank.engines.fake import FakeEngine
from rerank.engines.passages import Merge, Passages, Span, word_passages
from rerank.errors import ConfigError, DataError, PipelineError
from rerank.ranking import Ranking, ScoreKind
from rerank.reranking import Rerank
from rerank.rules.groupwise import Groupwise
from rerank.rules.listwise import Listwise
from rerank.rules.pairwise import Pairwise
from rerank.rules.pointwise import Pointwise
from rerank.rules.rule import Answer, Rule
from rerank.rules.setwise import Setwise
from rerank.rules.tournament import Tournament
from rerank.runtime import Runtime

RULES = [Pointwise(), Groupwise(), Setwise(), Listwise(), Pairwise(), Tournament()]
N = 30


@pytest.fixture
def lists() -> Ranking:
    corpus = MemoryCorpus({f"d{i}": f"text {i}" for i in range(N)})
    scores = {f"d{i}": float(N - i) for i in range(N)}
    given = {"q1": scores, "q2": dict(list(scores.items())[:4]), "q3": {}}
    return Ranking.of(given, {q: q for q in given}, ScoreKind.BM25, corpus)


@pytest.fixture
def qrels(tmp_path: Path) -> str:
    """The last documents are the best: grade i for the document of place i."""
    path = tmp_path / "qrels.tsv"
    lines = [f"{q}\td{i}\t{i}" for q in ("q1", "q2") for i in range(N)]
    path.write_text("query-id\tcorpus-id\tscore\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.label)
def test_a_perfect_engine_brings_the_best_to_the_top(rule: Rule, lists: Ranking, qrels: str) -> None:
    ranking = Rerank(FakeEngine(qrels), rule)(lists)
    top = ranking["q1"].docnos[: 2 if rule.label == "tournament" else 1]  # a tournament's points can tie at the top
    assert f"d{N - 1}" in top
    assert "d3" in ranking["q2"].docnos[: 2 if rule.label == "tournament" else 1]
    assert len(ranking["q3"]) == 0


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.label)
@pytest.mark.parametrize("garbage", [0.05, 0.5, 1.0])
def test_whatever_is_answered_a_permutation_comes_out(rule: Rule, garbage: float, lists: Ranking, qrels: str) -> None:
    ranking = Rerank(FakeEngine(qrels, noise=5.0, garbage=garbage), rule)(lists)
    for hits in ranking:
        assert sorted(hits.docnos) == sorted(lists[hits.qid].docnos)
    if garbage == 1.0:
        assert [hits.docnos for hits in ranking] == [hits.docnos for hits in lists]


def test_only_the_head_is_reranked_and_its_scores_stay_in_a_column(lists: Ranking, qrels: str) -> None:
    ranking = Rerank(FakeEngine(qrels), k=3)(lists)
    assert ranking["q1"].docnos == ["d2", "d1", "d0", *(f"d{i}" for i in range(3, N))]
    assert ranking.kind == ScoreKind.RANK
    raw = ranking.columns["score:rerank"]
    assert raw[:3].tolist() == [2.0, 1.0, 0.0]
    assert np.isnan(raw[3:N]).all()


def test_whole_lists_get_the_scores_themselves(lists: Ranking, qrels: str) -> None:
    ranking = Rerank(FakeEngine(qrels), k=None)(lists)
    assert ranking["q2"].docnos == ["d3", "d2", "d1", "d0"]
    assert [hit.score for hit in ranking["q2"]] == [3.0, 2.0, 1.0, 0.0]


def test_equal_scores_keep_the_first_stage_order(lists: Ranking, tmp_path: Path) -> None:
    (tmp_path / "q.tsv").write_text("query-id\tcorpus-id\tscore\nother\td1\t1\n", encoding="utf-8")
    ranking = Rerank(FakeEngine(str(tmp_path / "q.tsv")), k=None)(lists)
    assert [hits.docnos for hits in ranking] == [hits.docnos for hits in lists]


def test_an_answer_does_not_depend_on_which_queries_are_together(lists: Ranking, qrels: str) -> None:
    stage = Rerank(FakeEngine(qrels, noise=3.0), Groupwise(passes=2))
    whole = stage(lists)
    for qid in lists.qids:
        assert stage(lists.subset([qid]))[qid].docnos == whole[qid].docnos


def test_calls_and_waves_are_counted(lists: Ranking, qrels: str) -> None:
    with Runtime(progress=False) as runtime:
        runtime.rank(Rerank(FakeEngine(qrels), Listwise()), lists)
    counts = runtime.stats[0].counts
    assert counts["calls"] == 3
    assert counts["waves"] == 2


def test_a_list_without_texts_is_told_what_to_give(qrels: str) -> None:
    with pytest.raises(DataError, match="give their corpus"):
        Rerank(FakeEngine(qrels))(Ranking.of({"q": {"d": 1.0}}))


def test_a_rule_that_shows_too_many_documents_is_refused_before_anything_is_asked(lists: Ranking) -> None:
    class OneAtATime(FakeEngine):
        def asker(self, prompt, runtime):
            class Asker:
                kind, most_documents = ScoreKind.LOGIT, 1

            return Asker()

    with pytest.raises(ConfigError, match=r"shows up to 20 documents at once.* takes 1"):
        Rerank(OneAtATime("unused"), Groupwise())(lists)


def test_a_prompt_for_an_engine_that_takes_none_is_refused(lists: Ranking, qrels: str) -> None:
    with pytest.raises(ConfigError, match="takes no prompt"):
        Rerank(FakeEngine(qrels), prompt="yes-no")(lists)


def test_rules_and_engines_are_declared_by_name(tmp_path: Path) -> None:
    text = f"stages: [{{rerank: {{rule: {{setwise: {{sort: bubble}}}}, engine: {{fake: {tmp_path}/q.tsv}}, k: 20}}}}]"
    (stage,) = parse_pipeline(text).stages
    assert stage == Rerank(FakeEngine(f"{tmp_path}/q.tsv"), Setwise(sort="bubble"), k=20)


@pytest.mark.parametrize(
    ("rerank", "message"),
    [
        ("{rule: setwse, engine: {fake: q}}", r"rerank\.rule: no rule is called 'setwse'; did you mean 'setwise'\?"),
        ("{rule: bm25, engine: {fake: q}}", r"rule: 'bm25' is registered, but is not a rule; known: .*setwise"),
        ("{engine: {fake: {qrels: q, garbage: 2}}}", r"engine\.fake: fake: noise is .* garbage is 2"),
        ("{rule: pointwise}", "rerank needs the option 'engine'"),
    ],
)
def test_a_wrong_name_is_told_with_its_place(rerank: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_pipeline(f"stages: [bm25, {{rerank: {rerank}}}]")


def test_adding_rank_scores_is_refused_when_the_pipeline_is_built(qrels: str) -> None:
    with pytest.raises(PipelineError, match="no common scale"):
        _ = 0.5 * Rerank(FakeEngine(qrels), Setwise()) + 0.5 * Rerank(FakeEngine(qrels), Setwise())


LONG = {"d0": "x " * 40, "d1": "x " * 25 + "best", "d2": "x"}


class Finds:
    """An asker that wants the word `best`, and remembers what it was shown."""

    kind = ScoreKind.UNKNOWN
    most_documents = None

    def __init__(self) -> None:
        self.shown: list[str] = []

    def ask(self, questions: Sequence[Asked], runtime: Runtime) -> list[Answer]:
        self.shown += [text for asked in questions for text in asked.documents]
        return [tuple(float("best" in text) for text in asked.documents) for asked in questions]

    def passages(self, texts: Sequence[str], passages: Passages) -> Iterator[tuple[Span, ...]]:
        return word_passages(texts, passages)


class Waits(Finds):
    """The same, asked concurrently; fails on demand."""

    in_flight = 3
    at_once = 1

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.error, self.calls, self.now, self.most = error, 0, 0, 0

    async def ask_async(self, questions: Sequence[Asked], runtime: Runtime) -> list[Answer]:
        assert len(questions) <= self.at_once
        self.calls += 1
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0)
        self.now -= 1
        if self.error is not None:
            raise self.error
        return self.ask(questions, runtime)


@dataclass(frozen=True, repr=False)
class Given(Engine):
    """An engine whose asker is at hand."""

    given: Asker

    def asker(self, prompt: str | None, runtime: Runtime) -> Asker:
        return self.given


def long_lists() -> Ranking:
    given = {q: {docno: float(-i) for i, docno in enumerate(LONG)} for q in ("q1", "q2")}
    return Ranking.of(given, {q: q for q in given}, ScoreKind.BM25, MemoryCorpus(LONG))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.label)
@pytest.mark.parametrize("merge", ["max", "mean", "top_mean"])
def test_passages_find_what_stands_at_the_end_of_a_long_document(rule: Rule, merge: Merge) -> None:
    asker = Finds()
    ranking = Rerank(Given(asker), rule, passages=Passages(10, 8, merge, top=1))(long_lists())
    assert all(sorted(hits.docnos) == ["d0", "d1", "d2"] for hits in ranking)
    assert max(len(text.split()) for text in asker.shown) == 10
    if merge == "max" or rule.gives_scores:
        assert ranking["q1"].docnos[0] == "d1" or rule.label == "tournament"  # whose points can tie


def test_without_answers_passages_leave_the_order(qrels: str) -> None:
    for rule in RULES:
        ranking = Rerank(FakeEngine(qrels, garbage=1.0), rule, passages=Passages(10, 8))(long_lists())
        assert ranking["q2"].docnos == ["d0", "d1", "d2"]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.label)
def test_an_engine_that_waits_is_kept_busy_and_gives_the_same_lists(rule: Rule) -> None:
    asker = Waits()
    ranking = Rerank(Given(asker), rule)(long_lists())
    assert ranking == Rerank(Given(Finds()), rule)(long_lists())
    assert 1 < asker.most <= asker.in_flight


def test_a_waiting_engine_works_inside_an_event_loop() -> None:
    async def main() -> Ranking:
        return Rerank(Given(Waits()))(long_lists())

    assert asyncio.run(main())["q1"].docnos[0] == "d1"


def test_what_stops_one_call_stops_the_run_without_asking_on() -> None:
    asker = Waits(DataError("no more"))
    with pytest.raises(DataError, match="no more"):
        Rerank(Given(asker))(long_lists())
    assert asker.calls <= asker.in_flight


def test_passages_are_written_in_yaml() -> None:
    text = "stages: [rerank: {engine: {cross_encoder: {model: some-model}}, passages: {size: 100, stride: 50}}]"
    assert "passages=Passages(size=100, stride=50, merge='max', top=3)" in repr(parse_pipeline(text))
