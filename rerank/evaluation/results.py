"""The results of an experiment: evaluations, comparisons with the baseline, and tables of them."""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

from rerank.data.dataset import Dataset
from rerank.errors import UnknownNameError, nearest
from rerank.evaluation.compare import counted
from rerank.evaluation.evaluation import Evaluation
from rerank.evaluation.significance import Comparison, Interval, TestName, bootstrap_interval, compare_all

TableFormat = Literal["text", "markdown", "latex", "csv"]

ALPHA = 0.05
"""A difference is marked where its corrected p-value is below."""
MARK = "*"
WIDTH = 80
"""Columns of a text table; a name that leaves no room for the numbers gets a line of its own."""


class DataKey(NamedTuple):
    """One data set's name and split."""

    data: str
    split: str

    def __str__(self) -> str:
        return f"{self.data} ({self.split})"


class Row(NamedTuple):
    """What a table says of one system, one measure and one data set."""

    evaluation: Evaluation
    measure: str
    interval: Interval
    comparison: Comparison | None
    """None for the baseline itself, and where the data set has no run of it."""

    @property
    def mean(self) -> float:
        """Over all judged queries."""
        return self.evaluation.means[self.measure]

    @property
    def significant(self) -> bool:
        """Whether it differs from the baseline at the level `ALPHA`, corrected."""
        return self.comparison is not None and self.comparison.p_holm < ALPHA

    @property
    def difference(self) -> str:
        """The signed difference, with a mark where it is significant; empty for the baseline."""
        if self.comparison is None:
            return ""
        return f"{self.comparison.difference:+.4f}" + (MARK if self.significant else "")


@dataclass(frozen=True, eq=False)
class Results:
    """Every system on every data set, and how each compares with the baseline.

    `evaluations` are grouped by data set; every one has the same measures.

    >>> from rerank.evaluation.evaluation import evaluate_run
    >>> from rerank.ranking import Ranking
    >>> from rerank.run import Run
    >>> data = Dataset("toy", {"q1": "stars"}, qrels={"q1": {"d1": 1}})
    >>> lists = {"good": {"d1": 2.0, "d2": 1.0}, "bad": {"d2": 2.0, "d1": 1.0}}
    >>> runs = [Run(name, Ranking.of({"q1": hits})) for name, hits in lists.items()]
    >>> results = Results(tuple(evaluate_run(run, data, ["RR"]) for run in runs), "good")
    >>> results.to_dict()["results"][1]["measures"]
    {'RR': 0.5}
    """

    evaluations: tuple[Evaluation, ...]
    baseline: str
    test: TestName = "randomisation"
    name: str = ""
    datasets: Mapping[DataKey, Dataset] = field(default_factory=dict)
    """What the report takes queries and texts from."""
    pipelines: Mapping[str, str] = field(default_factory=dict)
    """The YAML of each pipeline, or the expression that makes it where it has no YAML form."""

    @property
    def measures(self) -> tuple[str, ...]:
        """The measures' names; the first is the one that figures show."""
        return tuple(self.evaluations[0].per_query)

    @cached_property
    def groups(self) -> dict[DataKey, tuple[Evaluation, ...]]:
        """The evaluations by data set."""
        groups: dict[DataKey, list[Evaluation]] = {}
        for evaluation in self.evaluations:
            groups.setdefault(DataKey(evaluation.data, evaluation.split), []).append(evaluation)
        return {key: tuple(group) for key, group in groups.items()}

    @cached_property
    def comparisons(self) -> dict[tuple[DataKey, str], dict[str, Comparison]]:
        """By data set and measure, every other system against the baseline; one family for Holm's correction each."""
        found: dict[tuple[DataKey, str], dict[str, Comparison]] = {}
        for key, group in self.groups.items():
            for measure in self.measures:
                systems = {evaluation.run: evaluation.per_query[measure] for evaluation in group}
                have = self.baseline in systems
                found[key, measure] = compare_all(systems, self.baseline, test=self.test) if have else {}
        return found

    @cached_property
    def _intervals(self) -> dict[tuple[Evaluation, str], Interval]:
        return {
            (evaluation, measure): bootstrap_interval(values)
            for evaluation in self.evaluations
            for measure, values in evaluation.per_query.items()
        }

    def rows(self, key: DataKey, measure: str) -> list[Row]:
        """One row a system, in the order of the experiment."""
        return [
            Row(
                evaluation,
                measure,
                self._intervals[evaluation, measure],
                self.comparisons[key, measure].get(evaluation.run),
            )
            for evaluation in self.groups[key]
        ]

    def significance(self, key: DataKey) -> str:
        """The sentence that says what a mark means on one data set; empty where nothing is compared."""
        n_systems = len(self.comparisons[key, self.measures[0]])
        if not n_systems:
            return ""
        test = {"randomisation": "paired randomisation test", "t": "paired t-test"}[self.test]
        holm = f", Holm's correction over {n_systems} systems" if n_systems > 1 else ""
        return f"{MARK} differs from {self.baseline}: p < {ALPHA} ({test}{holm})"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `results` has one entry a system and data set."""
        from rerank import __version__

        return {
            "name": self.name,
            "version": __version__,
            "measures": list(self.measures),
            "baseline": self.baseline,
            "test": self.test,
            "correction": "holm",
            "interval": "bootstrap (BCa), 95 %",
            "results": [
                self._entry(key, evaluation) for key, evaluations in self.groups.items() for evaluation in evaluations
            ],
        }

    def _entry(self, key: DataKey, evaluation: Evaluation) -> dict[str, Any]:
        compared = {
            measure: found
            for measure in self.measures
            if (found := self.comparisons[key, measure].get(evaluation.run)) is not None
        }
        return {
            "pipeline": evaluation.run,
            "data": evaluation.data,
            "split": evaluation.split,
            "queries": len(evaluation.qids),
            "measures": dict(evaluation.means),
            "intervals": {measure: list(self._intervals[evaluation, measure]) for measure in self.measures},
            "difference": {measure: found.difference for measure, found in compared.items()},
            "difference_intervals": {measure: list(found.interval) for measure, found in compared.items()},
            "p": {measure: found.p_value for measure, found in compared.items()},
            "p_holm": {measure: found.p_holm for measure, found in compared.items()},
            # JSON has no infinity, which an effect is where every query differs by the same amount.
            "effect": {m: c.effect_size if math.isfinite(c.effect_size) else None for m, c in compared.items()},
            "wins_ties_losses": {measure: [c.wins, c.ties, c.losses] for measure, c in compared.items()},
            "upper_bound": dict(evaluation.upper_bound),
            "judged_at_10": evaluation.judged_at_10,
            "missing_queries": len(evaluation.missing),
            "unjudged_queries": evaluation.n_unjudged_queries,
            "rows": evaluation.n_rows,
            "unjudged_rows": evaluation.n_unjudged_rows,
            "excluded_rows": evaluation.n_excluded_rows,
            "ties": {
                "policy": evaluation.ties,
                "rows": evaluation.n_tied_rows,
                "averaged": {name: float(values.mean()) for name, values in evaluation.tie_averaged.items()},
            },
            "seconds": evaluation.seconds or None,
            "seconds_per_query": evaluation.seconds_per_query,
            "stages": [
                {
                    "stage": stat.stage,
                    "seconds": stat.seconds,
                    "loading_seconds": stat.loading_seconds,
                    "queries": stat.queries,
                    "documents": stat.documents,
                    "counts": dict(stat.counts),
                    "shared": stat.shared,
                }
                for stat in evaluation.stats
            ],
        }

    # -- tables ------------------------------------------------------------

    def table(self, format: TableFormat = "text") -> str:
        """A table with one row a system and data set: mean, 95 % interval, difference to the baseline, judged@10, time.

        `text` fits 80 columns and has one such table a measure; the other forms have all measures in one row.

        Raises:
            UnknownNameError: no such format.
        """
        formats: dict[str, Callable[[], str]] = {
            "text": self._text,
            "markdown": self._markdown,
            "latex": self._latex,
            "csv": self._csv,
        }
        if format not in formats:
            known = ", ".join(formats)
            raise UnknownNameError(f"no table format is called {format!r}{nearest(format, formats)}; known: {known}")
        return formats[format]()

    def notes(self, key: DataKey) -> list[str]:
        """What must be known to read the figures of one data set: ties, missing and unjudged documents and queries."""
        systems: dict[str, list[str]] = {}
        for evaluation in self.groups[key]:
            for note in _notes(evaluation):
                systems.setdefault(note, []).append(evaluation.run)
        found = [f"{', '.join(names)}: {note}" for note, names in systems.items()]
        unjudged = self.groups[key][0].n_unjudged_queries
        verbs = "has no judgments and is" if unjudged == 1 else "have no judgments and are"
        if unjudged:
            found.append(f"{counted(unjudged, 'query')} {verbs} not measured")
        return found + list(self.datasets[key].notes if key in self.datasets else ())

    def per_query_csv(self) -> str:
        """Every value: data, split, pipeline, query, and one column a measure."""
        lines: list[list[Any]] = [["data", "split", "pipeline", "query", *self.measures]]
        for evaluation in self.evaluations:
            columns = [evaluation.per_query[measure].tolist() for measure in self.measures]
            for qid, *values in zip(evaluation.qids, *columns, strict=True):
                lines.append([evaluation.data, evaluation.split, evaluation.run, qid, *values])
        return _csv_text(lines)

    def __repr__(self) -> str:
        return self._text()

    def _repr_html_(self) -> str:
        from rerank.evaluation.report import results_html

        return results_html(self)

    def _text(self) -> str:
        return "\n\n".join("\n".join(self._text_block(key)) for key in self.groups) + "\n"

    def _text_block(self, key: DataKey) -> Iterator[str]:
        from rich.cells import cell_len

        first = self.groups[key][0]
        yield f"{key}: {counted(len(first.qids), 'query')}"
        tables = []
        for measure in self.measures:
            head = (measure, "mean", "95 % interval", "difference", "bound", "judged@10", "s/query")
            tables.append([head, *(_text_cells(row) for row in self.rows(key, measure))])
        cells = [cell for table in tables for cell in table]
        widths = [max(map(len, column)) for column in zip(*(numbers for _, *numbers in cells), strict=True)]
        room = WIDTH - sum(widths) - 2 * len(widths)
        name_width = max((cell_len(name) for name, *_ in cells if cell_len(name) <= room), default=0)
        for table in tables:
            yield ""
            for name, *numbers in table:
                shown = "  ".join(number.rjust(width) for number, width in zip(numbers, widths, strict=True))
                if cell_len(name) > name_width:
                    yield name
                    name = ""
                yield (name + " " * (name_width - cell_len(name)) + "  " + shown).rstrip()
        yield ""
        for text in self._below(key):
            yield from textwrap.wrap(text, WIDTH, subsequent_indent="  ")

    def _markdown(self) -> str:
        head = ["data", "queries", "pipeline"]
        for measure in self.measures:
            head += [measure, "95 % interval", "difference"]
        head += ["judged@10", "s/query"]
        lines = [head, ["---"] * 3 + ["---:"] * (len(head) - 3)]
        for key in self.groups:
            for rows in zip(*(self.rows(key, measure) for measure in self.measures), strict=True):
                evaluation = rows[0].evaluation
                line = [_markdown_escaped(str(key)), f"{len(evaluation.qids)}", _markdown_escaped(evaluation.run)]
                for row in rows:
                    difference = row.difference.replace(MARK, "\\" + MARK)
                    line += [f"{row.mean:.4f}", _interval(row.interval), difference]
                lines.append([*line, f"{evaluation.judged_at_10:.2f}", _seconds(evaluation)])
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        below = [_markdown_escaped(f"{key}: {text}") for key in self.groups for text in self._below(key)]
        return table + "\n" + "".join(f"\n{text}\n" for text in below)

    def _latex(self) -> str:
        escaped = _latex_escaped
        lines = [
            "% needs \\usepackage{booktabs}",
            "\\begin{tabular}{l" + "rcr" * len(self.measures) + "rr}",
            "\\toprule",
            " & ".join(["", *(f"\\multicolumn{{3}}{{c}}{{{escaped(m)}}}" for m in self.measures), "", ""]) + " \\\\",
            " ".join(f"\\cmidrule(lr){{{2 + 3 * i}-{4 + 3 * i}}}" for i in range(len(self.measures))),
            " & ".join(["", *["mean", "95\\,\\% interval", "diff."] * len(self.measures), "judged@10", "s/query"])
            + " \\\\",
        ]
        for key in self.groups:
            n_queries = len(self.groups[key][0].qids)
            title = f"\\textit{{{escaped(str(key))}, {counted(n_queries, 'query')}}}"
            lines += ["\\midrule", f"\\multicolumn{{{3 + 3 * len(self.measures)}}}{{l}}{{{title}}} \\\\"]
            columns = [self.rows(key, measure) for measure in self.measures]
            best = [max(round(row.mean, 4) for row in column) for column in columns]
            for rows in zip(*columns, strict=True):
                evaluation = rows[0].evaluation
                cells = [escaped(evaluation.run)]
                for row, highest in zip(rows, best, strict=True):
                    mean = f"{row.mean:.4f}"
                    low, high = row.interval
                    cells.append(f"\\textbf{{{mean}}}" if round(row.mean, 4) == highest else mean)
                    cells.append(f"[{low:.3f}, {high:.3f}]")
                    signed = row.difference.rstrip(MARK)
                    cells.append(f"${signed}$" + ("\\rlap{*}" if row.significant else "") if signed else "--")
                seconds = _seconds(evaluation) or "--"
                lines.append(" & ".join([*cells, f"{evaluation.judged_at_10:.2f}", seconds]) + " \\\\")
        lines += ["\\bottomrule", "\\end{tabular}"]
        below = ["% " + " ".join(f"{key}: {text}".split()) for key in self.groups for text in self._below(key)]
        return "\n".join(lines + below) + "\n"

    def _below(self, key: DataKey) -> list[str]:
        return [text for text in (self.significance(key), *self.notes(key)) if text]

    def _csv(self) -> str:
        head: list[Any] = ["data", "split", "pipeline", "queries"]
        columns = ("", "low", "high", "difference", "p", "p_holm", "effect", "upper_bound")
        for measure in self.measures:
            head += [f"{measure} {column}".strip() for column in columns]
        lines = [[*head, "judged@10", "seconds_per_query"]]
        for key in self.groups:
            for rows in zip(*(self.rows(key, measure) for measure in self.measures), strict=True):
                evaluation = rows[0].evaluation
                line: list[Any] = [*key, evaluation.run, len(evaluation.qids)]
                for measure, row in zip(self.measures, rows, strict=True):
                    c = row.comparison
                    compared = [c.difference, c.p_value, c.p_holm, c.effect_size] if c is not None else [""] * 4
                    line += [row.mean, *row.interval, *compared, evaluation.upper_bound[measure]]
                seconds = evaluation.seconds_per_query
                lines.append([*line, evaluation.judged_at_10, "" if seconds is None else seconds])
        return _csv_text(lines)


def _notes(evaluation: Evaluation) -> Iterator[str]:
    if evaluation.missing:
        yield (
            f"no documents for {len(evaluation.missing):,} of {len(evaluation.qids):,} queries, "
            f"e.g. {evaluation.missing[0]!r}; they count as 0"
        )
    if evaluation.n_excluded_rows:
        yield f"{evaluation.n_excluded_rows:,} rows of excluded documents dropped"
    for measure, values in evaluation.tie_averaged.items():
        yield (
            f"{evaluation.n_tied_rows:,} of {evaluation.n_rows:,} rows tie; "
            f"{measure} averaged over their orders: {values.mean():.4f}"
        )


def _text_cells(row: Row) -> tuple[str, ...]:
    evaluation = row.evaluation
    return (
        evaluation.run,
        f"{row.mean:.4f}",
        _interval(row.interval),
        row.difference if row.difference.endswith(MARK) else row.difference + " ",
        f"{evaluation.upper_bound[row.measure]:.4f}",
        f"{evaluation.judged_at_10:.2f}",
        _seconds(evaluation),
    )


def _interval(interval: Interval) -> str:
    return f"{interval.low:.3f} .. {interval.high:.3f}"


def _seconds(evaluation: Evaluation) -> str:
    seconds = evaluation.seconds_per_query
    return "" if seconds is None else f"{seconds:.2g}" if seconds < 10 else f"{seconds:.0f}"


def _markdown_escaped(text: str) -> str:
    for character in "\\|*_`<[":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())


_LATEX = {
    "\\": "\\textbackslash{}",
    "&": "\\&",
    "%": "\\%",
    "$": "\\$",
    "#": "\\#",
    "_": "\\_",
    "{": "\\{",
    "}": "\\}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "<": "\\textless{}",
    ">": "\\textgreater{}",
    "\n": " ",
}


def _latex_escaped(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def _csv_text(lines: Sequence[Sequence[Any]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(lines)
    return out.getvalue()
