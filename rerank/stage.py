"""Stages and their algebra.

A stage is a frozen dataclass: its fields are its configuration, its `transform` does the work.  It states what it
needs and what it gives, so a pipeline is checked when it is built, before a model loads.

    a >> b                              a, then b
    a % 100                             the first 100 of each list
    a | b      a & b      a ^ b         union, intersection, concatenation (their scores are ranks)
    .3 * a.minmax() + .7 * b.minmax()   weighted sum of scores brought to one scale
"""

from __future__ import annotations

import dataclasses
import html
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from rerank.errors import PipelineError
from rerank.ranking import Ranking, ScoreKind, merge_tables
from rerank.registry import Part
from rerank.runtime import Runtime

if TYPE_CHECKING:
    from rerank.planning import Rehearsal

DOCUMENTS = "documents"


@dataclass(frozen=True)
class Flow:
    """What is known, at one point of a pipeline and before anything runs, of the ranking that will pass there."""

    has: frozenset[str] = frozenset()
    """`documents`, and the names of query columns that stages leave for later ones."""
    kind: ScoreKind | None = ScoreKind.NONE
    """What the scores mean; None where only the data will tell."""


FROM_QUERIES = Flow()
"""A pipeline's input when the data set has queries only."""
FROM_ANYTHING = Flow(frozenset({DOCUMENTS}), None)
"""A pipeline's input when candidates may come with the data."""


class Stage(Part, ABC):
    """Base of all stages; a subclass is a frozen dataclass with hashable fields and a `transform`.

    Class attributes say what the stage needs of the flow, what it adds, and the kind of its scores (None: as before).
    """

    needs: ClassVar[frozenset[str]] = frozenset({DOCUMENTS})
    gives: ClassVar[frozenset[str]] = frozenset()
    kind: ClassVar[ScoreKind | None] = None

    @abstractmethod
    def transform(self, ranking: Ranking, runtime: Runtime) -> Ranking:
        """The ranking that this stage makes of `ranking`; state and statistics belong to `runtime`."""

    def rehearse(self, ranking: Ranking, rehearsal: Rehearsal) -> Ranking:
        """What `transform` would give, as far as that is known without loading a model; see `rerank.plan`.

        A stage that needs a model overrides this: it tells `rehearsal` what the model would be asked, and gives lists
        like those that would come.
        """
        return self.transform(ranking, rehearsal)

    def __call__(self, ranking: Ranking) -> Ranking:
        """Runs the stage in the runtime of the enclosing `with`, else in one of its own."""
        with Runtime.current_or_new() as runtime:
            return runtime.rank(self, ranking)

    def flow(self, before: Flow) -> Flow:
        """What leaves this stage when `before` enters it.

        Raises:
            PipelineError: something needed is missing; the message names it and the stages that give it.
        """
        missing = sorted(self.needs - before.has)
        if missing:
            raise PipelineError(f"{self.label} needs {' and '.join(missing)}, which nothing before it gives")
        return Flow(before.has | self.gives, before.kind if self.kind is None else self.kind)

    def fits(self, ranking: Ranking) -> None:
        """Returns when the stage, and all after it in a pipeline, can start from `ranking`.

        Raises:
            PipelineError: as `flow` raises it.
        """
        documents = {DOCUMENTS} if len(ranking.docs) else set()
        self.flow(Flow(frozenset({*documents, *ranking.query_columns}), ranking.kind))

    def parts(self) -> tuple[Stage, ...]:
        """The stages inside this one."""
        return ()

    def walk(self) -> Iterator[Stage]:
        """This stage and all stages inside it."""
        yield self
        for part in self.parts():
            yield from part.walk()

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"

    # -- algebra -------------------------------------------------------------

    def __rshift__(self, other: Stage) -> Pipeline:
        return Pipeline((*_chain(self), *_chain(other)))

    def __mod__(self, k: int) -> Pipeline:
        return self >> Cut(k)

    def __or__(self, other: Stage) -> Union:
        return Union((*_operands(self, Union), *_operands(other, Union)))

    def __and__(self, other: Stage) -> Intersection:
        return Intersection((*_operands(self, Intersection), *_operands(other, Intersection)))

    def __xor__(self, other: Stage) -> Concatenation:
        return Concatenation((*_operands(self, Concatenation), *_operands(other, Concatenation)))

    def __rmul__(self, weight: float) -> WeightedSum:
        return WeightedSum((self,), (float(weight),))

    __mul__ = __rmul__

    def __add__(self, other: Stage) -> WeightedSum:
        left, right = (s if isinstance(s, WeightedSum) else WeightedSum((s,), (1.0,)) for s in (self, other))
        return WeightedSum(left.of + right.of, left.weights + right.weights)

    def minmax(self) -> Pipeline:
        """This stage with scores brought to 0 .. 1 within each list."""
        return self >> Normalise("minmax")

    def zscore(self) -> Pipeline:
        """This stage with scores of mean 0 and standard deviation 1 within each list."""
        return self >> Normalise("zscore")


def _chain(stage: Stage) -> tuple[Stage, ...]:
    return stage.stages if isinstance(stage, Pipeline) and not stage.name and not stage.description else (stage,)


def _operands(stage: Stage, of: type[SetOperator]) -> tuple[Stage, ...]:
    return stage.of if type(stage) is of else (stage,)


@dataclass(frozen=True, repr=False)
class Pipeline(Stage):
    """Stages in a row; itself a stage.

    >>> Cut(10) >> Cut(5)
    Cut(k=10) >> Cut(k=5)

    Raises:
        PipelineError: a stage needs what no stage before it gives and no data set can bring.
    """

    stages: tuple[Stage, ...]
    name: str = ""
    description: str = ""

    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        if not self.stages:
            raise PipelineError("a pipeline needs at least one stage")
        for position, stage in enumerate(self.stages, 1):
            if not isinstance(stage, Stage):
                raise PipelineError(f"stage {position} of the pipeline is {stage!r}, not a stage; wrap it in apply()")
        self.flow(FROM_ANYTHING)

    def flow(self, before: Flow) -> Flow:
        """What leaves the last stage; the error names the stage that does not fit and the one before it."""
        for position, stage in enumerate(self.stages, 1):
            try:
                before = stage.flow(before)
            except PipelineError as error:
                raise PipelineError(self._explain(position, stage, before, str(error))) from None
        return before

    def _explain(self, position: int, stage: Stage, before: Flow, reason: str) -> str:
        from rerank.registry import stages_giving

        after = f" (after {self.stages[position - 2].label})" if position > 1 else " (first)"
        missing = sorted(stage.needs - before.has)
        givers = sorted({name for what in missing for name in stages_giving(what)})
        hint = f"; given by: {', '.join(givers)}" if givers else ""
        return f"stage {position}{after}: {reason}{hint}"

    def transform(self, ranking: Ranking, runtime: Runtime) -> Ranking:
        """The ranking after the last stage."""
        for stage in self.stages:
            ranking = runtime.rank(stage, ranking)
        return ranking

    def parts(self) -> tuple[Stage, ...]:
        """The stages in a row."""
        return self.stages

    @property
    def label(self) -> str:
        """The pipeline's name, else its stages' labels in a row."""
        return self.name or " >> ".join(stage.label for stage in self.stages)

    def __repr__(self) -> str:
        if self.name or self.description or len(self.stages) == 1 or any(_chain(s) != (s,) for s in self.stages):
            return super().__repr__()
        return " >> ".join(f"({s!r})" if isinstance(s, Pipeline | WeightedSum) else repr(s) for s in self.stages)

    def _repr_html_(self) -> str:
        cells = " &rarr; ".join(
            "<code style='border:1px solid;border-radius:4px;padding:2px 6px;white-space:nowrap'>"
            f"{html.escape(repr(stage))}</code>"
            for stage in self.stages
        )
        return f"<p><b>{html.escape(self.name or 'pipeline')}</b></p><p style='line-height:2.2'>{cells}</p>"


@dataclass(frozen=True, repr=False)
class Cut(Stage):
    """The first `k` documents of every list; `a % k` is short for `a >> Cut(k)`."""

    k: int

    def __post_init__(self) -> None:
        if self.k < 1:
            raise PipelineError(f"cut: k is {self.k}, at least 1 is needed")

    def transform(self, ranking: Ranking, runtime: Runtime) -> Ranking:
        """The cut ranking."""
        return ranking.cut(self.k)


@dataclass(frozen=True, repr=False)
class Normalise(Stage):
    """Scores on a common scale within each list, so that lists of different kinds may be added.

    `minmax`: (s - min) / (max - min); a list whose scores are all equal, a list of one among them, becomes 1.
    `zscore`: (s - mean) / standard deviation; a list whose scores are all equal becomes 0.
    """

    method: Literal["minmax", "zscore"] = "minmax"

    def __post_init__(self) -> None:
        if self.method not in ("minmax", "zscore"):
            raise PipelineError(f"normalise: method is {self.method!r}, 'minmax' or 'zscore' is needed")

    def flow(self, before: Flow) -> Flow:
        """The same documents with scores of the method's kind."""
        return Flow(super().flow(before).has, ScoreKind(self.method))

    def transform(self, ranking: Ranking, runtime: Runtime) -> Ranking:
        """The ranking with normalised scores; its order does not change."""
        scores = ranking.scores.astype(np.float64)
        sizes = np.diff(ranking.offsets)
        starts = ranking.offsets[:-1][sizes > 0]
        if self.method == "minmax":
            high = np.repeat(scores[starts], sizes[sizes > 0])
            low = np.repeat(scores[ranking.offsets[1:][sizes > 0] - 1], sizes[sizes > 0])
            spread = high - low
            scaled = np.where(spread > 0, (scores - low) / np.where(spread > 0, spread, 1.0), 1.0)
        else:
            mean = (
                np.repeat(np.add.reduceat(scores, starts) / sizes[sizes > 0], sizes[sizes > 0])
                if len(starts)
                else scores
            )
            centred = scores - mean
            variance = np.add.reduceat(centred**2, starts) / sizes[sizes > 0] if len(starts) else scores
            deviation = np.repeat(np.sqrt(variance), sizes[sizes > 0])
            scaled = np.where(deviation > 0, centred / np.where(deviation > 0, deviation, 1.0), 0.0)
        return dataclasses.replace(ranking, scores=scaled.astype(np.float32), kind=ScoreKind(self.method))


@dataclass(frozen=True, repr=False)
class Branches(Stage):
    """Stages that all get the same input, and whose outputs become one list."""

    of: tuple[Stage, ...]

    needs: ClassVar[frozenset[str]] = frozenset()
    gives: ClassVar[frozenset[str]] = frozenset({DOCUMENTS})

    def __post_init__(self) -> None:
        if not self.of:
            raise PipelineError(f"{self.label}: needs at least one stage to combine")
        self.flow(FROM_ANYTHING)

    def parts(self) -> tuple[Stage, ...]:
        """The branches."""
        return self.of

    def flow(self, before: Flow) -> Flow:
        """The input's queries, as they came in, with documents under this stage's kind of scores."""
        for position, branch in enumerate(self.of, 1):
            self._branch_flow(position, branch, before)
        return Flow(before.has | self.gives, self.kind)

    def _branch_flow(self, position: int, branch: Stage, before: Flow) -> Flow:
        if not isinstance(branch, Stage):
            raise PipelineError(f"{self.label}, branch {position} is {branch!r}, not a stage; wrap it in apply()")
        try:
            flow = branch.flow(before)
        except PipelineError as error:
            raise PipelineError(f"{self.label}, branch {position}: {error}") from None
        if DOCUMENTS not in flow.has:
            raise PipelineError(f"{self.label}, branch {position} ({branch.label}) gives no documents to combine")
        return flow

    def transform(self, ranking: Ranking, runtime: Runtime) -> Ranking:
        """The branches' lists, combined; queries and their columns stay as they came in.

        Raises:
            PipelineError: a branch changed which queries there are.
        """
        outputs = merge_tables([runtime.rank(branch, ranking) for branch in self.of])
        for branch, output in zip(self.of, outputs, strict=True):
            if output.qids != ranking.qids:
                raise PipelineError(
                    f"{self.label}: the branch {branch.label} gave {len(output):,} queries for {len(ranking):,}, or in "
                    "another order; a branch keeps every query, if need be with an empty list"
                )
        pool = Pool(outputs)
        scores, columns = self.combine(pool)
        first = outputs[0]
        base = dataclasses.replace(ranking, source=first.source if first.source is not None else ranking.source)
        kept = np.isfinite(scores)
        offsets = np.zeros(len(ranking) + 1, dtype=np.int64)
        np.cumsum(np.bincount(pool.query[kept], minlength=len(ranking)), out=offsets[1:])
        return base.with_documents(
            offsets,
            pool.docs[kept],
            scores[kept],
            self.kind or first.kind,
            first.ids,
            {name: column[kept] for name, column in columns.items()},
        )

    @abstractmethod
    def combine(self, pool: Pool) -> tuple[npt.NDArray[np.float64], dict[str, npt.NDArray[np.float64]]]:
        """Per pooled document its score (NaN: left out) and named columns."""


class Pool:
    """The distinct documents of several lists per query, and where each list has them.

    Documents are ordered by query; `rows[i]` gives, per pooled document, its row in list i or -1.
    """

    def __init__(self, rankings: list[Ranking]) -> None:
        self.rankings = rankings
        width = max(1, len(rankings[0].ids))
        keys = [ranking.row_queries() * width + ranking.docs for ranking in rankings]
        pooled, inverse = np.unique(np.concatenate(keys), return_inverse=True)
        self.query, self.docs = np.divmod(pooled, width)
        self.rows: list[npt.NDArray[np.int64]] = []
        at = 0
        for key in keys:
            rows = np.full(len(pooled), -1, dtype=np.int64)
            rows[inverse[at : at + len(key)]] = np.arange(len(key))
            self.rows.append(rows)
            at += len(key)

    def ranks(self) -> npt.NDArray[np.float64]:
        """[lists, documents] places from 1; infinite where a list lacks the document."""
        ranks = np.full((len(self.rows), len(self.docs)), np.inf)
        for i, (ranking, rows) in enumerate(zip(self.rankings, self.rows, strict=True)):
            ranks[i, rows >= 0] = ranking.positions()[rows[rows >= 0]] + 1
        return ranks

    def scores(self) -> npt.NDArray[np.float64]:
        """[lists, documents] scores; a list's minimum for a document that it lacks, 0 for an empty list."""
        scores = np.zeros((len(self.rows), len(self.docs)))
        for i, (ranking, rows) in enumerate(zip(self.rankings, self.rows, strict=True)):
            sizes = np.diff(ranking.offsets)
            lowest = np.zeros(len(sizes))
            lowest[sizes > 0] = ranking.scores[ranking.offsets[1:][sizes > 0] - 1]
            scores[i] = lowest[self.query]
            scores[i, rows >= 0] = ranking.scores[rows[rows >= 0]]
        return scores

    def order_scores(self, key: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Rank scores of the order in which `key` rises within each query; NaN where `key` is infinite."""
        kept = np.isfinite(key)
        order = np.lexsort((key, self.query))
        order = order[kept[order]]
        sizes = np.bincount(self.query[order]) if len(order) else np.zeros(0, dtype=np.int64)
        sizes = sizes[sizes > 0]
        starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
        scores = np.full(len(key), np.nan)
        scores[order] = np.repeat(sizes, sizes) - (np.arange(len(order)) - starts)
        return scores


class SetOperator(Branches):
    """Set operators give rank scores; each list's own scores stay in a column, such as `score:bm25`."""

    kind: ClassVar[ScoreKind | None] = ScoreKind.RANK

    def combine(self, pool: Pool) -> tuple[npt.NDArray[np.float64], dict[str, npt.NDArray[np.float64]]]:
        """Rank scores in the operator's order, and each list's raw scores (NaN where it lacks the document)."""
        raw = np.where(np.isfinite(pool.ranks()), pool.scores(), np.nan)
        labels = [branch.label for branch in self.of]
        names = [a if labels.count(a) == 1 else f"{a}:{i}" for i, a in enumerate(labels, 1)]
        columns = {f"score:{name}": column for name, column in zip(names, raw, strict=True)}
        return pool.order_scores(self.key(pool.ranks())), columns

    @abstractmethod
    def key(self, ranks: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """[documents] what rises along the combined list; infinite leaves a document out."""


def _best_rank(ranks: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The best rank in any list, and among equals the earlier list first."""
    best: npt.NDArray[np.float64] = ranks.min(axis=0) + ranks.argmin(axis=0) / len(ranks)
    return best


@dataclass(frozen=True, repr=False)
class Union(SetOperator):
    """The documents of any list, by their best rank, the earlier list first among equals: `a | b`."""

    def key(self, ranks: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Best rank."""
        return _best_rank(ranks)


@dataclass(frozen=True, repr=False)
class Intersection(SetOperator):
    """The documents that every list has, by their best rank: `a & b`."""

    def key(self, ranks: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Best rank where every list has the document."""
        return np.where(np.isfinite(ranks).all(axis=0), _best_rank(ranks), np.inf)


@dataclass(frozen=True, repr=False)
class Concatenation(SetOperator):
    """The first list, then what the next ones add to it, each in its order: `a ^ b`."""

    def key(self, ranks: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The first list that has the document, then the rank in it."""
        first = np.isfinite(ranks).argmax(axis=0)
        longest = np.max(ranks, where=np.isfinite(ranks), initial=0.0) + 1
        key: npt.NDArray[np.float64] = first * longest + ranks[first, np.arange(ranks.shape[1])]
        return key


_ADDABLE = frozenset({ScoreKind.MINMAX, ScoreKind.ZSCORE, ScoreKind.PROBABILITY})


@dataclass(frozen=True, repr=False)
class WeightedSum(Branches):
    """The weighted sum of normalised scores; a document that a list lacks counts there with the list's minimum.

    >>> 0.3 * Cut(5).minmax() + 0.7 * Cut(9).minmax()
    0.3 * (Cut(k=5) >> Normalise()) + 0.7 * (Cut(k=9) >> Normalise())

    Raises:
        PipelineError: branches give scores of different kinds, or of one that has no common scale.
    """

    weights: tuple[float, ...] = ()

    kind: ClassVar[ScoreKind | None] = ScoreKind.SUM

    def __post_init__(self) -> None:
        if len(self.of) != len(self.weights):
            raise PipelineError(f"sum: {len(self.weights)} weights for {len(self.of)} stages")
        if not np.isfinite(self.weights).all():
            raise PipelineError(f"sum: the weights are {self.weights}; finite numbers are needed")
        if len(self.of) != 1:  # one weighted stage is half of an expression, and may be of any kind
            super().__post_init__()

    def flow(self, before: Flow) -> Flow:
        """A sum's flow, once every branch was found to give scores of one normalised kind."""
        kinds = [self._branch_flow(i, branch, before).kind for i, branch in enumerate(self.of, 1)]
        for position, (branch, kind) in enumerate(zip(self.of, kinds, strict=True), 1):
            if kind not in _ADDABLE:
                raise PipelineError(
                    f"sum, branch {position} ({branch.label}): its {kind or 'unknown'} scores have no common scale; "
                    "add .minmax() or .zscore() (YAML: - normalise: minmax)"
                )
        if len(set(kinds)) > 1:
            listed = ", ".join(f"{b.label} {k}" for b, k in zip(self.of, kinds, strict=True))
            raise PipelineError(f"sum: branches give different kinds of scores ({listed}); normalise them alike")
        return super().flow(before)

    def combine(self, pool: Pool) -> tuple[npt.NDArray[np.float64], dict[str, npt.NDArray[np.float64]]]:
        """The sums."""
        # Not a matrix product: equal terms must give equal sums wherever they stand in the batch.
        return np.add.reduce(np.array(self.weights)[:, None] * pool.scores(), axis=0), {}

    def __rmul__(self, weight: float) -> WeightedSum:
        return WeightedSum(self.of, tuple(float(weight) * w for w in self.weights))

    __mul__ = __rmul__

    def __repr__(self) -> str:
        if any(isinstance(stage, WeightedSum) for stage in self.of):
            return super().__repr__()
        return " + ".join(
            f"{w!r} * ({s!r})" if isinstance(s, Pipeline | WeightedSum) else f"{w!r} * {s!r}"
            for w, s in zip(self.weights, self.of, strict=True)
        )


@dataclass(frozen=True)
class Function(Stage):
    """A plain function from ranking to ranking; it has no YAML form and is never cached."""

    function: Callable[[Ranking], Ranking]

    needs: ClassVar[frozenset[str]] = frozenset()

    @property
    def label(self) -> str:
        """The function's name."""
        return getattr(self.function, "__name__", "function")

    def flow(self, before: Flow) -> Flow:
        """Documents with scores of any kind: only running the function tells."""
        return Flow(before.has | {DOCUMENTS}, None)

    def transform(self, ranking: Ranking, runtime: Runtime) -> Ranking:
        """What the function returns.

        Raises:
            PipelineError: it returned something else than a ranking.
        """
        result = self.function(ranking)
        if not isinstance(result, Ranking):
            raise PipelineError(f"{self.label} returned {type(result).__name__}, a Ranking was expected")
        return result


def apply(function: Callable[[Ranking], Ranking]) -> Function:
    """A stage that calls `function`, for what no registered stage does.

    >>> apply(lambda ranking: ranking.cut(3)).label
    '<lambda>'
    """
    return Function(function)
