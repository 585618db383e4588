"""Two evaluations compared with each other, down to the queries that moved most and the documents that moved them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rerank.errors import DataError, UnknownNameError, nearest
from rerank.evaluation.evaluation import Evaluation
from rerank.evaluation.significance import Comparison, TestName, compare_all, order_by_change

WIDTH = 80
DOCUMENTS_SHOWN = 10
"""How many judged documents of a query are named, those first that count most for the difference."""


class RankChange(NamedTuple):
    """A judged document's rank in both runs, from 1; None where a run lacks it."""

    docno: str
    grade: int
    before: int | None
    after: int | None


@dataclass(frozen=True)
class MovedQuery:
    """A query with its values under both runs, and how its judged documents moved."""

    qid: str
    text: str
    before: float
    after: float
    documents: tuple[RankChange, ...]

    @property
    def difference(self) -> float:
        """Positive where the second run is better."""
        return self.after - self.before


@dataclass(frozen=True)
class RunComparison:
    """The second run against the first, for one measure on their common queries."""

    measure: str
    summary: Comparison
    """Mean values, difference, interval, p-value, effect, wins, ties and losses; seen from the second run."""
    moved: tuple[MovedQuery, ...]
    """The queries that moved most, the largest move first; queries that did not move are not among them."""
    risen: int
    """Relevant documents (grade 1 and above) that stand higher in the second run; those only it has among them."""
    fallen: int
    """Relevant documents that stand lower; those that only the first run has among them."""
    only_before: int
    """Queries that only the first run was measured on, and that are left out."""
    only_after: int
    """Queries that only the second run was measured on, and that are left out."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        found = self.summary
        return {
            "measure": self.measure,
            "baseline": found.baseline,
            "pipeline": found.system,
            "queries": found.n_queries,
            "queries_left_out": {"baseline": self.only_before, "pipeline": self.only_after},
            "means": {"baseline": found.mean_baseline, "pipeline": found.mean_system},
            "difference": found.difference,
            "interval": list(found.interval),
            "test": found.test,
            "p": found.p_value,
            "effect": found.effect_size if math.isfinite(found.effect_size) else None,
            "wins": found.wins,
            "ties": found.ties,
            "losses": found.losses,
            "relevant_documents": {"risen": self.risen, "fallen": self.fallen},
            "moved": [
                {
                    "query": query.qid,
                    "text": query.text,
                    "baseline": query.before,
                    "pipeline": query.after,
                    "difference": query.difference,
                    "documents": [
                        {"document": d.docno, "grade": d.grade, "baseline_rank": d.before, "rank": d.after}
                        for d in query.documents
                    ],
                }
                for query in self.moved
            ],
        }

    def to_text(self) -> str:
        """A page for the terminal."""
        found = self.summary
        test = {"randomisation": "paired randomisation test", "t": "paired t-test"}[found.test]
        effect = f", effect size {found.effect_size:+.2f}" if math.isfinite(found.effect_size) else ""
        low, high = found.interval
        width = max(len(found.baseline), len(found.system), len("difference"))
        lines = [
            f"{self.measure} on {counted(found.n_queries, 'query')}",
            "",
            f"  {found.baseline:<{width}}   {found.mean_baseline:.4f}",
            f"  {found.system:<{width}}   {found.mean_system:.4f}",
            f"  {'difference':<{width}}  {found.difference:+.4f}  95 % interval {low:+.4f} .. {high:+.4f}",
            "",
            f"p {_p_value(found.p_value)} ({test})" + effect,
            f"queries: {found.wins:,} better, {found.ties:,} equal, {found.losses:,} worse",
            f"relevant documents: {self.risen:,} higher, {self.fallen:,} lower",
        ]
        if self.only_before or self.only_after:
            lines.append(
                f"left out: {counted(self.only_before, 'query')} that only {found.baseline} has, "
                f"{self.only_after:,} that only {found.system} has"
            )
        if self.moved:
            lines += ["", "Queries that moved most", ""]
        for query in self.moved:
            head = f"{query.before:.4f} -> {query.after:.4f}  {query.difference:+.4f}  {query.qid}"
            lines.append(f"{head}  {_cut(query.text, WIDTH - len(head) - 2)}".rstrip())
            for document in query.documents[:5]:
                lines.append(
                    f"    grade {document.grade}  rank {_rank(document.before):>5} -> {_rank(document.after):<5}  "
                    f"{document.docno}"
                )
        return "\n".join(lines) + "\n"


def compare_runs(
    a: Evaluation,
    b: Evaluation,
    measure: str,
    queries: Mapping[str, str],
    k: int = 10,
    test: TestName = "randomisation",
) -> RunComparison:
    """How `b` differs from `a`, its baseline, on the queries that both were measured on.

    `queries` are the query texts, where known; `k` is how many queries are named.

    >>> from rerank.data.dataset import Dataset
    >>> from rerank.evaluation.evaluation import evaluate_run
    >>> from rerank.ranking import Ranking
    >>> from rerank.run import Run
    >>> data = Dataset("toy", {"q1": "stars"}, qrels={"q1": {"d1": 1}})
    >>> lists = {"before": {"d2": 2.0, "d1": 1.0}, "after": {"d1": 2.0, "d2": 1.0}}
    >>> a, b = (evaluate_run(Run(name, Ranking.of({"q1": hits})), data, ["RR"]) for name, hits in lists.items())
    >>> compare_runs(a, b, "RR", data.queries).moved[0].documents
    (RankChange(docno='d1', grade=1, before=2, after=1),)

    Raises:
        UnknownNameError: the measure is not among those of both evaluations.
        DataError: the runs have no query in common, or the same name.
    """
    for evaluation in (a, b):
        if measure not in evaluation.per_query:
            known = evaluation.per_query
            raise UnknownNameError(
                f"run {evaluation.run!r} was not measured by {measure!r}{nearest(measure, known)}; "
                f"it has: {', '.join(known)}"
            )
    if a.run == b.run:
        raise DataError(f"both runs are called {a.run!r}; give them different names")
    place_a = {qid: position for position, qid in enumerate(a.qids)}
    place_b = {qid: position for position, qid in enumerate(b.qids)}
    common = [qid for qid in a.qids if qid in place_b]
    if not common:
        raise DataError(
            f"runs {a.run!r} ({a.data}) and {b.run!r} ({b.data}) have no query in common, e.g. {a.qids[0]!r} and "
            f"{b.qids[0]!r}; compare runs over the same data set"
        )
    before = a.per_query[measure][[place_a[qid] for qid in common]]
    after = b.per_query[measure][[place_b[qid] for qid in common]]
    summary = compare_all({a.run: before, b.run: after}, a.run, test=test)[b.run]
    moved = []
    for position in order_by_change(after - before, k).tolist():
        if after[position] != before[position]:
            qid = common[position]
            changes = _rank_changes(qid, a, b)[:DOCUMENTS_SHOWN]
            values = float(before[position]), float(after[position])
            moved.append(MovedQuery(qid, queries.get(qid, ""), *values, tuple(changes)))
    changes = [change for qid in common for change in _rank_changes(qid, a, b) if change.grade > 0]
    gains = np.array([_discount(change.after) - _discount(change.before) for change in changes])
    return RunComparison(
        measure=measure,
        summary=summary,
        moved=tuple(moved),
        risen=int((gains > 0).sum()),
        fallen=int((gains < 0).sum()),
        only_before=len(a.qids) - len(common),
        only_after=len(b.qids) - len(common),
    )


def counted(number: int, noun: str) -> str:
    """A number with its noun.

    >>> counted(1, "query"), counted(1200, "query"), counted(0, "document")
    ('1 query', '1,200 queries', '0 documents')
    """
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{number:,} {noun if number == 1 else plural}"


def _rank_changes(qid: str, a: Evaluation, b: Evaluation) -> list[RankChange]:
    """The judged documents whose rank differs, by how much discounted gain that moves."""
    ranks_a, ranks_b = a.ranks[qid], b.ranks[qid]
    grades = {**a.grades[qid], **b.grades[qid]}
    changes = [
        RankChange(docno, grades[docno], ranks_a.get(docno), ranks_b.get(docno))
        for docno in dict.fromkeys([*ranks_a, *ranks_b])
        if ranks_a.get(docno) != ranks_b.get(docno)
    ]

    def weight(change: RankChange) -> tuple[float, float]:
        moved = abs(_discount(change.before) - _discount(change.after))
        return -max(change.grade, 0) * moved, -moved

    return sorted(changes, key=weight)


def _discount(rank: int | None) -> float:
    return 0.0 if rank is None else 1.0 / math.log2(rank + 1)


def _rank(rank: int | None) -> str:
    return "none" if rank is None else str(rank)


def _p_value(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"= {p:.4f}"


def _cut(text: str, width: int) -> str:
    from rich.cells import cell_len, set_cell_size

    line = " ".join(text.split())
    if width < 8:
        return ""
    return line if cell_len(line) <= width else set_cell_size(line, width - 3).rstrip() + "..."
