"""How good the weights are while they are trained: a pipeline with the current model over data sets, measured."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from statistics import fmean

from rerank.data.dataset import Dataset
from rerank.data.load import load
from rerank.evaluation.evaluation import evaluate_run
from rerank.ranking import Ranking
from rerank.run import Run
from rerank.runtime import Runtime
from rerank.stage import Pipeline, Stage
from rerank.train.current import CURRENT
from rerank.train.processes import ALONE, Processes
from rerank.train.recipe import Validation, ValidationSet, asks_current
from rerank.train.sources import held_out
from rerank.train.student import Student


def validation_data(one: ValidationSet, seed: int, runtime: Runtime) -> Dataset:
    """The queries of a validation set.

    Raises:
        DataError: no such data set or split, or fewer queries than are held out.
    """
    data = load(one.data, one.split, runtime=runtime, candidates=one.candidates)
    if one.hold_out:
        data = held_out(data, one.hold_out)
    if one.queries is not None and one.queries < len(data.queries):

        def place(qid: str) -> bytes:
            return hashlib.sha256(f"validation {seed}\0{qid}".encode("utf-8", "surrogatepass")).digest()

        some = set(sorted(data.queries, key=place)[: one.queries])
        data = data.with_queries([qid for qid in data.queries if qid in some])
    return data


class Validator:
    """Measures a student's weights as they are.

    What the pipeline does before it asks the model is done once.

    Args:
        validation: the pipeline, data sets and measure.
        student: whose weights change.
        runtime: runs the pipeline; it is told of the student as the engine `current`.
        seed: of samples of queries.
        processes: that share the queries; each has the same weights.
    """

    def __init__(
        self,
        validation: Validation,
        student: Student,
        runtime: Runtime,
        seed: int,
        processes: Processes = ALONE,
    ) -> None:
        self._validation, self._student, self._runtime = validation, student, runtime
        self._processes = processes
        self._data = [validation_data(one, seed, runtime) for one in validation.on]
        self._own = [_part(data, processes) for data in self._data]
        self._topics = [data.topics() for data in self._own]
        for topics in self._topics:
            validation.pipeline.fits(topics)
        self.last: list[float] = []
        """The means of the data sets, as they were measured last."""

    def shared(self) -> frozenset[Stage]:
        """The stages whose results do not depend on the weights."""
        return frozenset(_upstream(self._validation.pipeline))

    def __call__(self) -> float:
        """The mean of the means over the data sets."""
        pipeline, measure = self._validation.pipeline, self._validation.measure
        asker = self._student.asker()
        self.last = []
        for data, topics in zip(self._own, self._topics, strict=True):
            self._runtime.forget(CURRENT)
            self._runtime.resource(CURRENT, lambda: asker)
            # No document, as for a query without candidates, is worth nothing by any measure.
            values = [0.0] * len(data.queries)
            if topics.qids or self._processes.size == 1:
                ranking: Ranking = self._runtime.rank(pipeline, topics)
                found = evaluate_run(Run("current", ranking, {}, ()), data, [measure])
                values = next(iter(found.per_query.values())).tolist()
            self.last.append(fmean([value for some in self._processes.gather(values) for value in some]))
        self._runtime.stats.clear()
        return sum(self.last) / len(self.last)

    def facts(self) -> list[dict[str, object]]:
        """What was measured on: data sets with their size and content hash."""
        return [data.provenance() for data in self._data]

    @property
    def names(self) -> list[str]:
        """The data sets, with their splits."""
        return [f"{data.name} ({data.split})" for data in self._data]


def _part(data: Dataset, processes: Processes) -> Dataset:
    """The queries that this process measures: of those that have judgments each process has as many."""
    if processes.size == 1:
        return data
    judged = [qid for qid in data.queries if (data.qrels or {}).get(qid)]
    return data.with_queries(judged[processes.rank :: processes.size])


def _upstream(stage: Stage) -> Iterator[Stage]:
    """The stages that are always given the same: all of a pipeline's up to the one that asks the model."""
    if not asks_current(stage):
        yield stage
        return
    parts = stage.stages if isinstance(stage, Pipeline) else stage.parts()
    for part in parts:
        yield from _upstream(part)
        if isinstance(stage, Pipeline) and asks_current(part):
            break
