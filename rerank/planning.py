"""Dry runs: what a pipeline would ask of its models, counted without loading any, and how long or how dear that is.

Stages that need no model run for real.  Rules are played with a judge that keeps the first-stage order; their questions
are put together, tokenised and cut as in a run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rerank.engines.engine import Asked, Asker, Engine
from rerank.engines.meter import READING_SHARE, WRITING_SHARE, Meter, Size, Work, matrix_rate
from rerank.engines.passages import Passages, Span
from rerank.ranking import Ranking, ScoreKind, TextSource
from rerank.rules.judges import FakeJudge, Form, play
from rerank.rules.rule import Answer, Group, Rule
from rerank.runtime import Runtime, Topics, Transform
from rerank.stage import Stage

_PLAYED = 100
"""Documents of the list on which a rule is tried with other judges."""
_COLUMNS = 80


@dataclass(frozen=True)
class StagePlan:
    """What one stage would do."""

    stage: str
    """Its name; that of a stage inside another carries the other's before its own."""
    queries: int
    documents: int
    """Rows that it would give."""
    counts: Mapping[str, int]
    """`calls`, `waves`, `prompt tokens`, `shared tokens at most` (that begin as an earlier prompt does),
    `generated tokens at most`, `truncated documents`, `truncated queries`, and what the stage counts in any run."""
    seconds: float | None = None
    """About how long models would compute; None where nothing is asked, or not here."""
    price: float | None = None
    """What the tokens would cost; None where the engine has no price."""
    remarks: tuple[str, ...] = ()
    """How the figures came about, and what is assumed."""

    def __str__(self) -> str:
        """The stage for people, in 80 columns."""
        lines = [f"{self.stage}: {self.queries:,} queries, {self.documents:,} documents"]
        for title, text in self._facts():
            lines.append(f"  {title:<14}{text}")
        for remark in self.remarks:
            lines += textwrap.wrap(remark, _COLUMNS, initial_indent="  note: ", subsequent_indent=" " * 8)
        return "\n".join(lines)

    def _facts(self) -> Iterable[tuple[str, str]]:
        counts = self.counts
        if "calls" not in counts:
            return
        waves = f" in {_number(counts['waves'], 'wave')}" if "waves" in counts else ""
        yield "calls", f"{counts['calls']:,}{waves}"
        if shared := counts.get("shared tokens at most", 0):
            shared_text = f", {shared:,} of them shared at most"
        else:
            shared_text = ""
        yield "prompt tokens", f"{counts.get('prompt tokens', 0):,}{shared_text}"
        documents, queries = counts.get("truncated documents", 0), counts.get("truncated queries", 0)
        yield "cut short", f"{_number(documents, 'document')}, {_number(queries, 'query', 'queries')}"
        yield "generated", f"{counts.get('generated tokens at most', 0):,} tokens at most"
        yield "time", "not known" if self.seconds is None else f"about {_duration(self.seconds)}"
        if self.price is not None:
            yield "price", f"{self.price:,.4f}"


@dataclass(frozen=True)
class Plan:
    """What a pipeline would do, stage by stage."""

    name: str
    stages: tuple[StagePlan, ...]

    def __str__(self) -> str:
        """The plan for people, in 80 columns."""
        asking = [stage for stage in self.stages if "calls" in stage.counts]
        lines = [f"{self.name}: a dry run, nothing was asked of a model", *map(str, self.stages)]
        if len(asking) > 1:
            seconds = [stage.seconds for stage in asking if stage.seconds is not None]
            prices = [stage.price for stage in asking if stage.price is not None]
            known = f"about {_duration(sum(seconds))} for {len(seconds)} of {len(asking)} stages that ask a model"
            lines.append(f"in all: {known}" + (f", price {sum(prices):,.4f}" if prices else ""))
        return "\n\n".join(lines)


def plan(pipeline: Stage, data: Topics, runtime: Runtime | None = None) -> Plan:
    """What `pipeline` would do with the queries of `data`, found out without loading a reranking model's weights.

    First stages without a model run, and build their indexes.  `dense`, `splade` and `rescore` run where the corpus's
    vectors are stored, else their lists are assumed.

    Args:
        pipeline: what would run.
        data: a data set.
        runtime: whose home, device and threads count; default that of the enclosing `with`, else a new one.

    Raises:
        PipelineError: the pipeline starts from lists, and the data set has no candidates.
        ConfigError: parts that do not go together, such as a rule that shows more documents than its prompt.

    >>> from rerank import BM25, FakeEngine, Rerank, Setwise
    >>> from rerank.testing import sample_dataset
    >>> with Runtime(progress=False):
    ...     made = plan(BM25() >> Rerank(FakeEngine("unused.tsv"), Setwise(k=2, size=3)), sample_dataset())
    >>> made.stages[-1].counts["calls"]
    4
    """
    with contextlib.nullcontext(runtime) if runtime is not None else Runtime.current_or_new() as active:
        topics = data.topics()
        pipeline.fits(topics)
        rehearsal = Rehearsal(active)
        rehearsal.rank(pipeline, topics)
        return Plan(pipeline.label, rehearsal.plans(pipeline))


@dataclass
class _Notes:
    """What a stage says while it rehearses."""

    seconds: float | None = None
    price: float | None = None
    remarks: dict[str, None] = field(default_factory=dict)


class Rehearsal(Runtime):
    """A runtime in which stages rehearse; it has the home, the device and the loaded resources of another one.

    Args:
        like: that one.
    """

    def __init__(self, like: Runtime) -> None:
        super().__init__(like.home, device=like._device, threads=like.threads, progress=like._show, cache=False)
        self._resources = like._resources
        self._plans: list[StagePlan] = []
        self._notes: list[_Notes] = []
        self._rates: dict[str, float] = {}

    def plans(self, pipeline: Stage) -> tuple[StagePlan, ...]:
        """What every stage said, in their order, without the pipeline that holds them all."""
        if not pipeline.parts():
            return tuple(self._plans)
        cut = len(pipeline.label) + 1
        return tuple(dataclasses.replace(each, stage=each.stage[cut:]) for each in self._plans[1:])

    def _made(self, stage: Transform, ranking: Ranking) -> Ranking:
        place, notes = len(self._plans), _Notes()
        self._plans.append(StagePlan("", 0, 0, {}))
        self._notes.append(notes)
        try:
            result = stage.rehearse(ranking, self) if isinstance(stage, Stage) else stage.transform(ranking, self)
        finally:
            self._notes.pop()
        self._plans[place] = StagePlan(
            "/".join(self._path),
            len(result),
            len(result.docs),
            dict(self._counts[-1]),
            notes.seconds,
            notes.price,
            tuple(notes.remarks),
        )
        return result

    # -- what stages tell it ------------------------------------------------------------

    def remark(self, text: str) -> None:
        """Something that a reader of the running stage's figures should know; said once."""
        self._notes[-1].remarks[text] = None

    def ask(self, meter: Meter, questions: Sequence[Asked]) -> None:
        """Counts what an engine would be asked."""
        sizes = meter.sizes(questions)
        self.count("prompt tokens", sum(size.tokens for size in sizes))
        self.count("shared tokens at most", sum(size.shared for size in sizes))
        self.count("generated tokens at most", sum(size.generated for size in sizes))
        self.count("truncated documents", sum(size.cut_documents for size in sizes))
        self.count("truncated queries", sum(size.cut_queries for size in sizes))
        self.remark(f"tokens are counted by {meter.counted_by}")
        for remark in meter.remarks:
            self.remark(remark)
        notes = self._notes[-1]
        if meter.price is not None:
            tokens = sum(size.tokens for size in sizes), sum(size.generated for size in sizes)
            notes.price = (notes.price or 0.0) + meter.price.of(*tokens)
        if meter.work is not None:
            notes.seconds = (notes.seconds or 0.0) + self._seconds(meter.work, sizes)

    def _seconds(self, work: Work, sizes: Sequence[Size]) -> float:
        if work.dtype not in self._rates:
            self._rates[work.dtype] = matrix_rate(work.dtype, self.device, self.threads)
        rate = self._rates[work.dtype]
        self.remark(
            f"time: {work.weights / 1e6:,.0f} million weights in {work.dtype} at {READING_SHARE:.0%} of the "
            f"{rate / 1e9:,.0f} GFLOP/s that a matrix product reaches here ({WRITING_SHARE:.0%} where text is written)"
        )
        return work.seconds(sizes, rate)

    def stand_in(self, engine: Engine, prompt: str | None, ranking: Ranking) -> StandIn:
        """An engine that counts what `engine` would be asked, and whose answers keep the order of `ranking`."""
        docnos, bounds = ranking.docnos().tolist(), ranking.offsets.tolist()
        places = {
            qid: {docno: place for place, docno in enumerate(docnos[start:stop])}
            for qid, start, stop in zip(ranking.qids, bounds[:-1], bounds[1:], strict=True)
        }
        return StandIn(engine, engine.measure(prompt, self), places, self)

    def about(self, rule: Rule, n: int, form: Form) -> None:
        """Remarks what is to be known of the calls of `rule` on lists of `n` documents."""
        n = min(n, _PLAYED)
        # Orders that keep the list, turn it round, and mix it.
        orders = [range(0, -n, -1), range(n), [place * 37 % 101 for place in range(n)]]
        judges = [FakeJudge(tuple(map(float, grades)), form) for grades in orders]
        calls = [play(rule, n, judge).counts["calls"] for judge in judges]
        if len(set(calls)) > 1:
            self.remark(
                f"how often {rule.label} asks depends on the answers, which here keep the first-stage order: "
                f"{calls[0]:,} times for a list of {n:,}; judges that change it were asked {min(calls[1:]):,} to "
                f"{max(calls[1:]):,} times"
            )

    def assumed(self, ranking: Ranking, source: TextSource, k: int, kind: ScoreKind, reason: str) -> Ranking:
        """Lists of `k` documents from all over `source`, with a remark that they are assumed."""
        n, total = len(ranking), len(source.ids)
        k = min(k, total)
        self.remark(f"not run, {reason}: lists of {k:,} documents from all over the corpus are assumed")
        spread = np.arange(k) * total // max(1, k)
        docs = (spread[None, :] + np.arange(n)[:, None]) % max(1, total)
        offsets = np.arange(n + 1, dtype=np.int64) * k
        scores = np.tile(-np.arange(k, dtype=np.float64), n)
        start = Ranking.start(dict(zip(ranking.qids, ranking.queries, strict=True)), source, ranking.query_columns)
        return start.with_documents(offsets, docs.reshape(-1), scores, kind, source.ids)


class StandIn(Engine):
    """Counts what an engine would be asked."""

    def __init__(
        self, engine: Engine, meter: Meter, places: Mapping[str, Mapping[str, int]], rehearsal: Rehearsal
    ) -> None:
        self.meter = meter
        self._engine, self._places, self._rehearsal = engine, places, rehearsal

    @property
    def label(self) -> str:
        """That of the engine."""
        return self._engine.label

    def __repr__(self) -> str:
        return repr(self._engine)

    def asker(self, prompt: str | None, runtime: Runtime) -> Asker:
        """What counts, and answers so that the order stays."""
        return _Keeper(self.meter, self._places, self._rehearsal)


class _Keeper:
    kind = ScoreKind.UNKNOWN

    def __init__(self, meter: Meter, places: Mapping[str, Mapping[str, int]], rehearsal: Rehearsal) -> None:
        self._meter, self._places, self._rehearsal = meter, places, rehearsal
        self.most_documents = meter.most_documents

    def ask(self, questions: Sequence[Asked], runtime: Runtime) -> list[Answer]:
        self._rehearsal.ask(self._meter, questions)
        return [self._kept(asked) for asked in questions]

    def _kept(self, asked: Asked) -> Answer:
        grades = tuple(-float(self._places[asked.qid][docno]) for docno in asked.docnos)
        return FakeJudge(grades, self._meter.form)(Group(tuple(range(len(grades)))))

    def passages(self, texts: Sequence[str], passages: Passages) -> Iterable[tuple[Span, ...]]:
        return self._meter.passages(texts, passages)


# -- printing ------------------------------------------------------------


def _number(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _duration(seconds: float) -> str:
    """A time in its two largest units.

    >>> _duration(0.25), _duration(75), _duration(7260)
    ('0.2 seconds', '1 minute 15 seconds', '2 hours 1 minute')
    """
    if seconds < 60:
        return f"{seconds:.1f} seconds"
    units = (("day", 86_400), ("hour", 3_600), ("minute", 60), ("second", 1))
    at = next(i for i, (_, size) in enumerate(units) if seconds >= size)
    (large, size), (small, part) = units[at], units[at + 1]
    return f"{_number(int(seconds // size), large)} {_number(int(seconds % size // part), small)}"
