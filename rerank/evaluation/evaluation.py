"""What one run is worth on one data set: every measure per query, and what a reader must know beside the means."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from rerank.data.dataset import Dataset
from rerank.errors import DataError
from rerank.evaluation.measures import depth_needed, parse_measures
from rerank.evaluation.ties import tie_averaged_ndcg_per_query
from rerank.ranking import Ranking
from rerank.run import Run, StageStats

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

JUDGED_DEPTH = 10
"""How many documents of each list `judged_at_10` and `top` look at."""
TIES_WORTH_SAYING = 0.01
"""The share of tied rows above which a tie-averaged nDCG stands beside each nDCG."""

LARGEST_GRADE = 1_000_000
"""trec_eval counts the documents of each grade up to the highest, and goes wrong in silence beyond 32 bits."""

# Queries whose lists are handed to ir-measures at once: enough to make its start negligible, few enough that the
# dicts of a large run do not fill the memory.
_BLOCK_QUERIES = 1000

# Measures that see only where the judged documents stand and not how long the list is: their ideal list may end
# after its judged documents.
_BLIND_TO_THE_REST = frozenset({"nDCG", "AP", "RR", "R", "P", "Success", "Rprec", "IPrec", "ERR"})


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One run measured on one data set, over all of its judged queries.

    >>> from rerank.ranking import Ranking
    >>> data = Dataset("toy", {"q1": "stars", "q2": "moons"}, qrels={"q1": {"d1": 1}, "q2": {"d2": 1}})
    >>> found = evaluate_run(Run("bm25", Ranking.of({"q1": {"d1": 2.0, "d3": 1.0}})), data, ["RR", "P@1"])
    >>> found.means, found.missing
    ({'RR': 0.5, 'P@1': 0.5}, ('q2',))
    """

    run: str
    data: str
    split: str
    qids: tuple[str, ...]
    """[Q] the data set's queries that have judgments, in its order."""
    per_query: Mapping[str, FloatArray]
    """[Q] values by measure; a query for which the run has no documents has the measure's value for an empty list."""
    upper_bound: Mapping[str, float]
    """Means if the run's own documents stood in ideal order: what no reranker of this list can exceed."""
    tie_averaged: Mapping[str, FloatArray]
    """[Q] values of each plain nDCG averaged over all orders of tied rows, where more than 1 % of the rows tie."""
    judged_at_10: float
    """Share of each list's first ten documents that have a judgment, averaged over the queries with documents."""
    missing: tuple[str, ...]
    """Queries for which the run has no documents."""
    n_unjudged_queries: int
    """Queries of the data set that have no judgments, and so are not measured."""
    n_rows: int
    """Rows of the measured queries, excluded documents not counted."""
    n_unjudged_rows: int
    n_tied_rows: int
    """Rows that share their stored score with a neighbour."""
    n_excluded_rows: int
    """Rows dropped because the data set excludes their document for their query."""
    ties: str
    """How equal scores were put in order; see `Run.ties`."""
    top: Mapping[str, tuple[str, ...]]
    """The first ten documents of each query."""
    ranks: Mapping[str, Mapping[str, int]]
    """Per query the rank (from 1, at any depth) of each judged document that the run has."""
    grades: Mapping[str, Mapping[str, int]]
    """The judgments that were used, by query."""
    n_run_queries: int
    """Queries that the run was made for; `seconds` were spent on them."""
    seconds: float
    """Wall-clock seconds of the run without loading or building models and indexes; 0 for a run from elsewhere."""
    stats: tuple[StageStats, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def means(self) -> dict[str, float]:
        """The mean over all queries by measure; of counts such as `NumRet` too."""
        return {name: _mean(values) for name, values in self.per_query.items()}

    @property
    def seconds_per_query(self) -> float | None:
        """None where the run does not say how long it took."""
        return self.seconds / self.n_run_queries if self.seconds and self.n_run_queries else None


def evaluate_run(run: Run, data: Dataset, measures: Sequence[str]) -> Evaluation:
    """`run` measured on the judged queries of `data`.

    Every measure reads the ranking's row order: providers get strictly decreasing scores, whatever the run's own.

    Raises:
        UnknownNameError, ConfigError: a measure that is not one, or that cannot be computed.
        DataError: the data set has no judgments, the run has none of its queries, or a measure is undefined.
    """
    wanted = parse_measures(measures)
    judged = Judged.of(data)
    ranking, n_excluded = without_excluded(run.ranking, data)
    place = {qid: position for position, qid in enumerate(ranking.qids)}
    if not any(qid in place for qid in judged.qids):
        raise DataError(
            f"run {run.name!r} and data set {data.name!r} ({data.split}) share no query: the run has "
            f"{_example(ranking.qids)}, the judgments {_example(judged.qids)}; give the data that the run was made on"
        )
    lists = _Lists(ranking, judged, [place.get(qid, -1) for qid in judged.qids])
    depth = depth_needed(wanted.values())
    per_query = _measured(wanted, judged, lists.as_ranked(depth), run.name)
    ideal = lists.as_ideal(depth, judged_only=all(m.NAME in _BLIND_TO_THE_REST for m in wanted.values()))
    bounds = _measured(wanted, judged, ideal, run.name)
    n_tied = run.tied_rows()
    averaged: dict[str, FloatArray] = {}
    if n_tied > TIES_WORTH_SAYING * len(run.ranking.docs):
        for name, measure in wanted.items():
            if measure.NAME == "nDCG" and not measure.params.keys() - {"cutoff"}:
                averaged[name] = lists.tie_averaged_ndcg(measure.params.get("cutoff"))
    n_judged_rows = sum(map(len, lists.rows))
    return Evaluation(
        run=run.name,
        data=data.name,
        split=data.split,
        qids=judged.qids,
        per_query=per_query,
        upper_bound={name: _mean(values) for name, values in bounds.items()},
        tie_averaged=averaged,
        judged_at_10=lists.judged_share(JUDGED_DEPTH),
        missing=tuple(qid for qid, size in zip(judged.qids, lists.sizes, strict=True) if size == 0),
        n_unjudged_queries=len(data.queries) - len(judged.qids),
        n_rows=sum(lists.sizes),
        n_unjudged_rows=sum(lists.sizes) - n_judged_rows,
        n_tied_rows=n_tied,
        n_excluded_rows=n_excluded,
        ties=run.ties,
        top=lists.top(JUDGED_DEPTH),
        ranks=lists.ranks(),
        grades=dict(zip(judged.qids, judged.grades, strict=True)),
        n_run_queries=len(run.ranking.qids),
        seconds=run.seconds,
        stats=run.stats,
        provenance=run.provenance,
    )


def interpolated_precision(evaluation: Evaluation, rel: int = 1) -> FloatArray:
    """[11] mean interpolated precision at recall 0.0, 0.1, ... 1.0, relevant from grade `rel`.

    Source: trec_eval's iprec_at_recall, its rounding of the recall levels included.
    """
    levels = np.arange(11) / 10
    totals = np.zeros(11)
    for qid in evaluation.qids:
        grades = evaluation.grades[qid]
        n_relevant = sum(grade >= rel for grade in grades.values())
        ranks = sorted(rank for docno, rank in evaluation.ranks[qid].items() if grades[docno] >= rel)
        if not ranks:
            continue
        precision = np.arange(1, len(ranks) + 1) / np.array(ranks)
        best_from_here = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
        needed = np.floor(levels * n_relevant + 0.9).astype(np.int64)
        totals += best_from_here[np.clip(needed - 1, 0, len(ranks))]
    return totals / len(evaluation.qids)


def without_excluded(ranking: Ranking, data: Dataset) -> tuple[Ranking, int]:
    """The ranking without the documents that `data` excludes for their query, and how many rows that dropped."""
    if not data.excluded:
        return ranking, 0
    kept = np.ones(len(ranking.docs), dtype=bool)
    for position, qid in enumerate(ranking.qids):
        if excluded := data.excluded.get(qid):
            rows = slice(int(ranking.offsets[position]), int(ranking.offsets[position + 1]))
            kept[rows] = ~np.isin(ranking.docs[rows], ranking.ids.find(sorted(excluded)))
    return ranking.keep(kept), int((~kept).sum())


@dataclass(frozen=True, eq=False)
class Judged:
    """The judgments of the queries to measure."""

    qids: tuple[str, ...]
    grades: tuple[Mapping[str, int], ...]

    @classmethod
    def of(cls, data: Dataset) -> Judged:
        """The judged queries of a data set, in its order.

        Raises:
            DataError: it has none, or a grade that is too large to be one.
        """
        qrels = data.qrels or {}
        qids = tuple(qid for qid in data.queries if qrels.get(qid))
        if not qids:
            why = f"none of its {len(data.queries):,} queries is judged" if qrels else "it has no judgments"
            raise DataError(f"{data.name} ({data.split}): cannot be measured, {why}; give judgments (qrels) for it")
        for qid in qids:
            if (grade := max(qrels[qid].values())) > LARGEST_GRADE:
                raise DataError(
                    f"{data.name} ({data.split}): query {qid!r} has a judgment of grade {grade:,}, at most "
                    f"{LARGEST_GRADE:,} can be measured; is that column the grade?"
                )
        return cls(qids, tuple(qrels[qid] for qid in qids))


class _Lists:
    """The lists of a ranking, query by query of the judgments, and where the judged documents stand in them.

    Measures know a document only by its judgment, so lists are made of shared names: `j3` is the query's fourth
    judged document, `u17` an unjudged document at position 17.  That is cheaper than looking up a million ids, and no
    id can upset a provider that writes files.
    """

    def __init__(self, ranking: Ranking, judged: Judged, places: list[int]) -> None:
        self.ranking = ranking
        self.judged = judged
        offsets = ranking.offsets.tolist()
        self.starts = [offsets[place] if place >= 0 else 0 for place in places]
        stops = [offsets[place + 1] if place >= 0 else 0 for place in places]
        self.sizes = [stop - start for start, stop in zip(self.starts, stops, strict=True)]
        self.found: list[IntArray] = []
        """Per query the judged documents that its list has, as positions in its judgments ..."""
        self.rows: list[IntArray] = []
        """... and the position in the list of each, from 0."""
        self._locate()
        longest = max(self.sizes)
        widest = max(map(len, judged.grades))
        self._unjudged = [f"u{position}" for position in range(longest)]
        self._judged = [f"j{position}" for position in range(widest)]
        self._scores = [float(longest - position) for position in range(longest)]

    def _locate(self) -> None:
        codes = self.ranking.ids.find([docno for grades in self.judged.grades for docno in grades])
        # position[code] is where the list at hand has the document; what an earlier list left there is told by
        # looking at that position, so nothing is cleared.
        position = np.zeros(max(1, len(self.ranking.ids)), dtype=np.int64)
        at = 0
        for start, size, grades in zip(self.starts, self.sizes, self.judged.grades, strict=True):
            wanted = codes[at : at + len(grades)]
            at += len(grades)
            if size == 0:
                self.found.append(np.empty(0, dtype=np.int64))
                self.rows.append(np.empty(0, dtype=np.int64))
                continue
            docs = self.ranking.docs[start : start + size]
            position[docs] = np.arange(size)
            rows = position[wanted] % size
            known = np.flatnonzero((docs[rows] == wanted) & (wanted >= 0))
            self.found.append(known)
            self.rows.append(rows[known])

    def qrels(self, first: int, last: int) -> dict[str, dict[str, int]]:
        """The judgments of queries `first` to `last` under the shared names."""
        grades = (self.judged.grades[i].values() for i in range(first, last))
        qrels = {str(i): dict(zip(self._judged, some, strict=False)) for i, some in enumerate(grades, first)}
        for judgments in qrels.values():
            # trec_eval's nDCG reads memory that is not its own, and may never end, where every grade is negative.  A
            # document of grade 0 that no list has changes no measure.
            if max(judgments.values()) < 0:
                judgments["none"] = 0
        return qrels

    def as_ranked(self, depth: int | None) -> Iterator[tuple[dict[str, dict[str, int]], dict[str, dict[str, float]]]]:
        """Blocks of judgments and lists in row order, cut to `depth`."""
        for first in range(0, len(self.sizes), _BLOCK_QUERIES):
            last = min(first + _BLOCK_QUERIES, len(self.sizes))
            run = {}
            for i in range(first, last):
                size = self.sizes[i] if depth is None else min(depth, self.sizes[i])
                names = self._unjudged[:size]
                for j, row in zip(self.found[i].tolist(), self.rows[i].tolist(), strict=True):
                    if row < size:
                        names[row] = self._judged[j]
                if names:
                    run[str(i)] = dict(zip(names, self._scores, strict=False))
            yield self.qrels(first, last), run

    def as_ideal(
        self, depth: int | None, *, judged_only: bool
    ) -> Iterator[tuple[dict[str, dict[str, int]], dict[str, dict[str, float]]]]:
        """Blocks of judgments and lists by falling grade, unjudged documents (left out if `judged_only`) as grade 0."""
        for first in range(0, len(self.sizes), _BLOCK_QUERIES):
            last = min(first + _BLOCK_QUERIES, len(self.sizes))
            run = {}
            for i in range(first, last):
                size = self.sizes[i]
                grades = list(self.judged.grades[i].values())
                have = sorted(self.found[i].tolist(), key=lambda j: -grades[j])
                names = [self._judged[j] for j in have if grades[j] >= 0]
                if not judged_only:
                    names += self._unjudged[: size - len(have)]
                names += [self._judged[j] for j in have if grades[j] < 0]
                if names:
                    run[str(i)] = dict(zip(names[:depth], self._scores, strict=False))
            yield self.qrels(first, last), run

    def tie_averaged_ndcg(self, k: int | None) -> FloatArray:
        """[Q] nDCG averaged over the orders of tied rows."""
        offsets = np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)
        gains = np.zeros(int(offsets[-1]))
        scores = np.empty(int(offsets[-1]), dtype=np.float32)
        ideal: list[int] = []
        for i, grades in enumerate(self.judged.grades):
            values = list(grades.values())
            ideal.extend(values)
            gains[offsets[i] + self.rows[i]] = np.array(values)[self.found[i]]
            scores[offsets[i] : offsets[i + 1]] = self.ranking.scores[self.starts[i] : self.starts[i] + self.sizes[i]]
        bounds = np.concatenate([[0], np.cumsum([len(grades) for grades in self.judged.grades])]).astype(np.int64)
        return tie_averaged_ndcg_per_query(gains, scores, offsets, np.array(ideal), bounds, k)

    def judged_share(self, depth: int) -> float:
        """The share of judged documents among the first `depth`, averaged over the lists that have any."""
        shares = [
            int((rows < depth).sum()) / min(size, depth)
            for rows, size in zip(self.rows, self.sizes, strict=True)
            if size > 0
        ]
        return math.fsum(shares) / len(shares) if shares else 0.0

    def top(self, depth: int) -> dict[str, tuple[str, ...]]:
        """The ids of the first `depth` documents by query."""
        widths = [min(size, depth) for size in self.sizes]
        rows = [np.arange(start, start + width) for start, width in zip(self.starts, widths, strict=True)]
        docnos = iter(self.ranking.ids.take(self.ranking.docs[np.concatenate(rows)]).tolist())
        return {
            qid: tuple(next(docnos) for _ in range(width)) for qid, width in zip(self.judged.qids, widths, strict=True)
        }

    def ranks(self) -> dict[str, dict[str, int]]:
        """The rank of each judged document that is in its query's list."""
        ranks = {}
        for i, qid in enumerate(self.judged.qids):
            docnos = list(self.judged.grades[i])
            ranks[qid] = {
                docnos[j]: row + 1 for j, row in zip(self.found[i].tolist(), self.rows[i].tolist(), strict=True)
            }
        return ranks


def _measured(
    measures: Mapping[str, Any],
    judged: Judged,
    blocks: Iterator[tuple[dict[str, dict[str, int]], dict[str, dict[str, float]]]],
    run: str,
) -> dict[str, FloatArray]:
    """[Q] values by measure; a query without a list has the measure's default."""
    import ir_measures

    values = {name: np.full(len(judged.qids), float(measure.DEFAULT)) for name, measure in measures.items()}
    arrays = {measure: values[name] for name, measure in measures.items()}
    # Apart from one another: in one call ir-measures may compute a plain nDCG with the gains of another measure, or
    # NumRet over the judged documents that a `judged_only` measure looks at, depending on the order of a set.
    apart = [measure for measure in measures.values() if {"gains", "judged_only"} & measure.params.keys()]
    groups = [[measure for measure in measures.values() if measure not in apart], *([measure] for measure in apart)]
    for qrels, lists in blocks:
        for group in filter(None, groups):
            try:
                for metric in ir_measures.iter_calc(group, qrels, lists):
                    arrays[metric.measure][int(metric.query_id)] = metric.value
            except ZeroDivisionError as error:
                raise DataError(
                    f"run {run!r}: Accuracy is not defined for a query whose listed documents are all relevant; "
                    "leave it out"
                ) from error
            except subprocess.CalledProcessError as error:
                raise DataError(
                    f"run {run!r}: gdeval, which computes {', '.join(map(str, group))}, failed; it takes grades up to 4"
                ) from error
    for name, array in values.items():
        if not np.isfinite(array).all():
            qid = judged.qids[int(np.argmin(np.isfinite(array)))]
            raise DataError(f"run {run!r}: {name} of query {qid!r} is not a number; leave the measure out")
    return values


def _mean(values: FloatArray) -> float:
    return math.fsum(values) / len(values)


def _example(qids: Sequence[str]) -> str:
    return ", ".join(map(repr, qids[:2])) + (", ..." if len(qids) > 2 else "") if qids else "none"
