"""The stage that reranks: a rule says which documents to compare, an engine compares, the scheduler joins all lists."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
from collections import defaultdict
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from rerank.engines.engine import Asked, Asker, ConcurrentAsker, Engine, ask_together
from rerank.engines.passages import Passages
from rerank.engines.scheduler import Request, Ticket, run_continuously, run_waves
from rerank.errors import ConfigError, DataError
from rerank.ranking import Ranking, ScoreKind
from rerank.retrieve.select import without_excluded
from rerank.rules.pointwise import Pointwise
from rerank.rules.rule import Answer, Outcome, Rule, Steps
from rerank.runtime import Runtime
from rerank.stage import Flow, Stage

if TYPE_CHECKING:
    from rerank.planning import Rehearsal

T = TypeVar("T")

QUESTIONS_AT_ONCE = 4096
"""Questions that an engine gets together: more fill no batch better, and all of a wave's prompts may be many."""


@dataclass(frozen=True, repr=False)
class Rerank(Stage):
    """The first `k` documents of every list in the order that `rule` makes of the answers of `engine`.

    All lists go forward together, and the engine gets everything that can be asked at once in one batch.  What comes
    out is always a permutation of what came in; where nothing usable is answered, the order stays.  Equal scores keep
    the first-stage order.

    >>> from rerank.engines.pairs import CrossEncoderEngine
    >>> Rerank(CrossEncoderEngine("my-cross-encoder"))
    Rerank(engine=CrossEncoderEngine(model='my-cross-encoder'))
    """

    engine: Engine
    """What answers."""
    rule: Rule = Pointwise()
    """How comparisons become an order."""
    prompt: str | None = None
    """How a language model is asked: the name of a profile (`rerank prompts list`) or the path of a prompt file."""
    k: int | None = 100
    """How many documents of each list are reranked; the rest keeps its order below them.  None: all."""
    passages: Passages | None = None
    """How long documents are judged in pieces; None shows the engine whole documents, which it cuts to what it reads.
    """

    def __post_init__(self) -> None:
        if self.k is not None and self.k < 1:
            raise ConfigError(f"rerank: k is {self.k}, at least 1 is needed (null reranks whole lists)")

    def flow(self, before: Flow) -> Flow:
        """The same documents; rank scores unless whole lists get scores that mean the same everywhere."""
        return Flow(super().flow(before).has, None if self._gives_scores else ScoreKind.RANK)

    @property
    def explains(self) -> bool:
        """Whether a model writes what its answers are read from, so that it can be shown."""
        from rerank.prompts.prompt import load_prompt

        return self.prompt is not None and load_prompt(self.prompt).verb == "generate"

    @property
    def _gives_scores(self) -> bool:
        return self.rule.gives_scores and self.k is None

    def transform(self, ranking: Ranking, runtime: Runtime) -> Ranking:
        """The reordered lists; the rule's own scores, where it gives any, are in the column `score:rerank`.

        Raises:
            DataError: the lists came without texts.
            ConfigError: the rule shows more documents at once than the engine or its prompt takes.
        """
        job = _Job(self, ranking, runtime)
        with runtime.progress("reranking", None, "comparisons") as advance:
            if isinstance(job.asker, ConcurrentAsker):
                results = _concurrently(job.lists, job.asker, runtime, advance)
            else:
                results = _in_waves([job], runtime, advance)
        ranking, counts = job.done(results)
        for what, number in counts.items():
            runtime.count(what, number)
        return ranking

    @classmethod
    def transform_together(
        cls, stages: Sequence[Rerank], ranking: Ranking, runtime: Runtime
    ) -> list[tuple[Ranking, dict[str, int]]]:
        """What each of several stages with one engine makes of `ranking`, with its counts; they share batches.

        What the model counts belongs to all of them, and is counted of the runtime's stage.
        """
        jobs = []
        for stage in stages:
            with runtime.counting() as counts:
                jobs.append(_Job(stage, ranking, runtime, counts))
        if any(isinstance(job.asker, ConcurrentAsker) for job in jobs):
            return [job.alone(runtime) for job in jobs]
        with runtime.progress("reranking", None, "comparisons") as advance:
            results = iter(_in_waves(jobs, runtime, advance))
        return [job.done([next(results) for _ in job.lists.sizes]) for job in jobs]

    def rehearse(self, ranking: Ranking, rehearsal: Rehearsal) -> Ranking:
        """The lists in their order, once all was counted that would be asked if answers kept it."""
        engine = rehearsal.stand_in(self.engine, self.prompt, ranking)
        longest = int(np.diff(ranking.offsets).max(initial=0))
        rehearsal.about(self.rule, longest if self.k is None else min(longest, self.k), engine.meter.form)
        return dataclasses.replace(self, engine=engine).transform(ranking, rehearsal)

    def reordered(self, ranking: Ranking, outcomes: Sequence[Outcome], kind: ScoreKind) -> Ranking:
        """The lists in the order of their outcomes."""
        rows = np.arange(len(ranking.docs))
        raw = np.full(len(rows), np.nan, dtype=np.float32)
        for start, outcome in zip(ranking.offsets[:-1].tolist(), outcomes, strict=True):
            stop = start + len(outcome.order)
            rows[start:stop] = start + np.array(outcome.order, dtype=np.int64)
            if outcome.scores is not None:
                raw[start:stop] = outcome.scores
        columns = {name: column[rows] for name, column in ranking.columns.items()}
        moved = dataclasses.replace(ranking.ranked(), docs=ranking.docs[rows], columns=columns)
        if not self.rule.gives_scores:
            return moved
        if self._gives_scores:
            return dataclasses.replace(moved, scores=raw, kind=kind)
        return moved.with_column("score:rerank", raw)


class _Job:
    """A stage at work on a ranking: all but the asking.

    Args:
        stage: what is done.
        ranking: the lists.
        runtime: holds the engine.
        counts: what was counted of this stage alone.
    """

    def __init__(self, stage: Rerank, ranking: Ranking, runtime: Runtime, counts: dict[str, int] | None = None) -> None:
        if ranking.source is None:
            raise DataError(f"{stage.label}: reads documents, but the lists came without texts; give their corpus")
        self._stage, self._counts = stage, {} if counts is None else counts
        self._ranking = without_excluded(ranking.with_source(ranking.source), runtime)
        self.asker = stage.engine.asker(stage.prompt, runtime)
        self._check(self.asker.most_documents)
        self.lists = _Lists(self._ranking, stage, self.asker)
        runtime.count("passages", self.lists.n_passages)

    def _check(self, most: int | None) -> None:
        stage = self._stage
        if most == 0:
            raise ConfigError(f"rerank: the prompt {stage.prompt!r} shows no documents; it is for the stage rewrite")
        if most is not None and stage.rule.largest_group > most:
            raise ConfigError(
                f"rerank: {stage.rule.label} shows up to {stage.rule.largest_group} documents at once, but "
                f"{stage.engine.label} takes {most}; choose another rule, or a smaller group"
            )

    def alone(self, runtime: Runtime) -> tuple[Ranking, dict[str, int]]:
        """The stage's own ranking and counts."""
        with runtime.counting() as counts:
            return self._stage.transform(self._ranking, runtime), counts

    def done(self, results: Sequence[Outcome | BaseException]) -> tuple[Ranking, dict[str, int]]:
        """The ranking that the lists' results make, and what was counted; the first error among them is raised."""
        outcomes = []
        for number, result in enumerate(results):
            if isinstance(result, BaseException):
                raise result
            outcomes.append(self.lists.of_documents(number, result))
        counts = dict(self._counts)
        for what in sorted({name for outcome in outcomes for name in outcome.counts}):
            # Lists go forward side by side: the waves of all are those of the slowest.
            together = max if what == "waves" else sum
            counts[what] = together(outcome.counts.get(what, 0) for outcome in outcomes)
        return self._stage.reordered(self._ranking, outcomes, self.asker.kind), counts


class _Lists:
    """What the rule orders: the first documents of each list, or the passages that these are made of."""

    def __init__(self, ranking: Ranking, stage: Rerank, asker: Asker) -> None:
        self._ranking, self._rule, self._passages = ranking, stage.rule, stage.passages
        self._keys = ranking.text_keys()
        sizes = np.diff(ranking.offsets)
        self._heads: list[int] = (sizes if stage.k is None else np.minimum(sizes, stage.k)).tolist()
        self.sizes = self._heads
        """How many documents or passages each list has."""
        self.n_passages = 0
        if stage.passages is not None:
            self._cut(stage.passages, asker)

    def steps(self) -> list[Steps]:
        """The rule's steps for each list."""
        return [self._rule.steps(n, qid) for n, qid in zip(self.sizes, self._ranking.qids, strict=True)]

    def _cut(self, passages: Passages, asker: Asker) -> None:
        starts = self._ranking.offsets[:-1].tolist()
        lists = [range(start, start + head) for start, head in zip(starts, self._heads, strict=True)]
        rows = np.array([row for some in lists for row in some], dtype=np.int64)
        distinct, first = np.unique(self._keys[rows], return_index=True)
        spans = dict(zip(distinct.tolist(), asker.passages(self._ranking.texts(rows[first]), passages), strict=True))
        of_rows = [[spans[int(self._keys[row])] for row in some] for some in lists]
        self._spans = [[span for document in some for span in document] for some in of_rows]
        self._owners = [[place for place, document in enumerate(some) for _ in document] for some in of_rows]
        self.sizes = [len(owners) for owners in self._owners]
        self.n_passages = sum(self.sizes)

    def questions(self, requests: Sequence[Request]) -> list[Asked]:
        """What the requests ask; each document's text is looked up once."""
        ranking = self._ranking
        places: list[list[tuple[int, tuple[int, int] | None]]] = []
        for each in requests:
            members = each.group.members
            if self._passages is None:
                places.append([(member, None) for member in members])
            else:
                owners, spans = self._owners[each.ticket], self._spans[each.ticket]
                places.append([(owners[member], spans[member]) for member in members])
        starts = [int(ranking.offsets[each.ticket]) for each in requests]
        rows = np.array(
            [start + place for start, group in zip(starts, places, strict=True) for place, _ in group], dtype=np.int64
        )
        _, first, which = np.unique(self._keys[rows], return_index=True, return_inverse=True)
        texts = ranking.texts(rows[first])
        names = ranking.ids.take(ranking.docs[rows[first]]).tolist()
        number = iter(which.tolist())
        asked = []
        for each, group in zip(requests, places, strict=True):
            shown = [next(number) for _ in group]
            documents = tuple(
                texts[i] if span is None else texts[i][slice(*span)] for i, (_, span) in zip(shown, group, strict=True)
            )
            docnos = tuple(names[i] for i in shown)
            asked.append(Asked(ranking.qids[each.ticket], ranking.queries[each.ticket], docnos, documents))
        return asked

    def of_documents(self, number: int, outcome: Outcome) -> Outcome:
        """The outcome of list `number` in documents, where passages were ordered."""
        if self._passages is None:
            return outcome
        scores = range(len(outcome.order), 0, -1) if outcome.scores is None else outcome.scores
        of_document: defaultdict[int, list[float]] = defaultdict(list)
        for item, score in sorted(zip(outcome.order, scores, strict=True)):
            of_document[self._owners[number][item]].append(score)
        merged = [self._passages.merged(of_document[place]) for place in range(self._heads[number])]
        order = sorted(range(len(merged)), key=lambda place: (-merged[place], place))
        kept = None if outcome.scores is None else tuple(merged[place] for place in order)
        return Outcome(tuple(order), kept, outcome.counts)


Advance = Callable[[int], None]


def _in_waves(jobs: Sequence[_Job], runtime: Runtime, advance: Advance) -> list[Outcome | Exception]:
    """The results of all lists of all jobs, whose questions are asked together."""
    steps = [job.lists.steps() for job in jobs]
    owner = [number for number, some in enumerate(steps) for _ in some]
    first = [owner.index(number) if steps[number] else 0 for number in range(len(jobs))]

    def ask(requests: list[Request]) -> list[Answer]:
        answers: list[Answer] = []
        for start in range(0, len(requests), QUESTIONS_AT_ONCE):
            answers += some(requests[start : start + QUESTIONS_AT_ONCE])
            advance(len(answers) - start)
        return answers

    def some(requests: list[Request]) -> list[Answer]:
        of_job: defaultdict[int, list[Request]] = defaultdict(list)
        for each in requests:
            number = owner[each.ticket]
            of_job[number].append(dataclasses.replace(each, ticket=Ticket(each.ticket - first[number])))
        parts = [(jobs[number].asker, jobs[number].lists.questions(own)) for number, own in of_job.items()]
        answers = {number: iter(found) for number, found in zip(of_job, ask_together(parts, runtime), strict=True)}
        return [next(answers[owner[each.ticket]]) for each in requests]

    return run_waves([each for some in steps for each in some], ask)


def _concurrently(
    lists: _Lists, asker: ConcurrentAsker, runtime: Runtime, advance: Advance
) -> Sequence[Outcome | BaseException]:
    failed: list[Exception] = []

    async def ask(requests: list[Request]) -> list[Answer]:
        if failed:  # what stopped one call would stop the others too
            raise failed[0]
        try:
            answers = await asker.ask_async(lists.questions(requests), runtime)
        except Exception as error:
            failed.append(error)
            raise
        advance(len(answers))
        return answers

    return to_the_end(run_continuously(lists.steps(), ask, batches=asker.in_flight, budget=asker.at_once))


def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives; in a thread of its own where an event loop runs here already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(contextvars.copy_context().run, asyncio.run, work).result()
