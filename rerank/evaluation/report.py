"""The HTML report of an experiment: one file that opens from disk, with tables, figures and the queries that moved.

Nothing in it is fetched and no script runs: the content security policy forbids both.  Every text that comes from data,
names or pipelines is escaped.
"""

from __future__ import annotations

import html
import json
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rerank.artifact import write_text
from rerank.evaluation import plots
from rerank.evaluation.compare import MovedQuery, RunComparison, compare_runs, counted
from rerank.evaluation.evaluation import Evaluation, interpolated_precision
from rerank.evaluation.measures import parse_measure
from rerank.ranking import TextSource

if TYPE_CHECKING:
    from rerank.evaluation.results import DataKey, Results, Row

QUERIES_SHOWN = 5
"""Queries that moved most, a system and data set."""
DOCUMENTS_SHOWN = 5
"""First documents of each of the two runs of such a query."""
LONG = 28
"""Characters above which a name in a table may break into lines."""
EXCERPT = 200
"""Characters of a document's text."""


def write_report(results: Results, path: Path) -> None:
    """Writes the report as the file `path`, whole or not at all."""
    write_text(path, report_html(results))


def report_html(results: Results) -> str:
    """The report's text."""
    return html_page(results.name or "Evaluation", "".join(_Page(results).body()))


def html_page(title: str, body: str) -> str:
    """A page of its own in the style of reports; `body` is HTML, nothing in it is fetched and no script in it runs."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{escaped(title)}</title>\n<style>{_STYLE}</style>\n'
        f"</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )


def results_html(results: Results) -> str:
    """The tables alone, for a notebook."""
    tables = "".join(
        f"<p><b>{escaped(str(key))}</b>, {counted(len(group[0].qids), 'query')}</p>{_results_table(results, key)}"
        for key, group in results.groups.items()
    )
    notes = "".join(f"<p><small>{escaped(text)}</small></p>" for key in results.groups for text in _marks(results, key))
    return tables + notes


class _Page:
    """The report while it is written: it numbers tables and figures."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.primary = results.measures[0]
        self._systems = list(dict.fromkeys(evaluation.run for evaluation in results.evaluations))
        self._tables = 0
        self._figures = 0

    def body(self) -> Iterator[str]:
        results = self.results
        yield self._head()
        for position, key in enumerate(results.groups):
            yield f'<section id="data-{position}">\n<h2>{escaped(key.data)} <span>{escaped(key.split)}</span></h2>\n'
            yield f"<p>{self._about(key)}</p>\n"
            yield self._results(key)
            yield self._means(key)
            yield self._significance(key)
            yield self._differences(key)
            yield self._precision_and_cost(key)
            yield self._moved(key)
            yield self._stages(key)
            yield self._notes(key)
            yield "</section>\n"
        yield self._pipelines()
        yield self._provenance()

    def _head(self) -> str:
        results = self.results
        links = ""
        if len(results.groups) > 1:
            names = enumerate(map(str, results.groups))
            items = "".join(f'<li><a href="#data-{i}">{escaped(name)}</a></li>' for i, name in names)
            links = f"<nav><ul>{items}</ul></nav>\n"
        return (
            f"<header><h1>{escaped(results.name or 'Evaluation')}</h1>\n"
            f"<p>{counted(len(self._systems), 'system')} on {counted(len(results.groups), 'data set')}, measured by "
            f"{_listed(map(escaped, results.measures))}; the baseline is <b>{escaped(results.baseline)}</b>.</p>\n"
            f"{links}</header>\n"
        )

    def _about(self, key: DataKey) -> str:
        group = self.results.groups[key]
        grades = group[0].grades
        parts = [counted(len(grades), "query"), counted(sum(map(len, grades.values())), "judgment")]
        data = self.results.datasets.get(key)
        if data is not None and data.corpus is not None:
            parts.insert(1, counted(len(data.corpus.ids), "document"))
        return ", ".join(parts) + "."

    # -- tables and figures ------------------------------------------------------------

    def _table(self, caption: str, table: str) -> str:
        self._tables += 1
        above = f"<figcaption><b>Table {self._tables}.</b> {caption}</figcaption>"
        return f'<figure class="table">{above}<div class="wide" tabindex="0">{table}</div></figure>\n'

    def _figure(self, caption: str, *charts: str) -> str:
        self._figures += 1
        shown = "".join(f'<div class="chart">{chart}</div>' for chart in charts)
        below = f"<figcaption><b>Figure {self._figures}.</b> {caption}</figcaption>"
        return f'<figure class="charts">{shown}{below}</figure>\n'

    def _results(self, key: DataKey) -> str:
        compared = ""
        if sentence := self.results.significance(key):
            compared = f", and differences to {escaped(self.results.baseline)}. {escaped(sentence)}"
        caption = (
            f"Means over all judged queries with 95 % bootstrap intervals (BCa){compared}. The best means are bold. "
            "<i>Bound</i> is what the same documents would score in ideal order; <i>judged@10</i> is the share of the "
            "first ten documents that have a judgment."
        )
        return self._table(caption, _results_table(self.results, key))

    def _means(self, key: DataKey) -> str:
        charts = []
        for measure in self.results.measures:
            rows = self.results.rows(key, measure)
            shown = [
                plots.Row(r.evaluation.run, r.mean, *r.interval, r.significant if r.comparison is not None else None)
                for r in rows
            ]
            charts.append(plots.forest(shown, measure))
        n_queries = counted(len(self.results.groups[key][0].qids), "query")
        text = f"Means over {n_queries}, with 95 % bootstrap intervals (BCa)."
        if self.results.comparisons[key, self.primary]:
            baseline = escaped(self.results.baseline)
            text += f" The dashed line is {baseline}'s mean; filled dots and bold means differ from it significantly, "
            text += "as in the table."
        return self._figure(text, *charts)

    def _precision_and_cost(self, key: DataKey) -> str:
        group = self.results.groups[key]
        level = _relevance_level(self.results.measures)
        recall = [i / 10 for i in range(11)]
        lines = {e.run: interpolated_precision(e, level).tolist() for e in group}
        charts = [plots.curves(lines, recall, "recall", "interpolated precision")]
        text = (
            f"Interpolated precision at eleven levels of recall, averaged over queries; documents of grade {level} and "
            "above are relevant."
        )
        rows = self.results.rows(key, self.primary)
        points = [
            plots.Point(row.evaluation.run, seconds, row.mean, *row.interval)
            for row in rows
            if (seconds := row.evaluation.seconds_per_query) is not None
        ]
        if points:
            charts.append(plots.scatter(points, "seconds per query", self.primary, log_x=True))
            text += (
                f" Beside it {escaped(self.primary)}, with its intervals, against cost: wall-clock seconds a query on "
                "a logarithmic scale, without loading or building models and indexes."
            )
            if len(points) < len(group):
                text += f" {counted(len(group) - len(points), 'run')} came without times."
        return self._figure(text, *charts)

    def _significance(self, key: DataKey) -> str:
        results = self.results
        if not any(results.comparisons[key, measure] for measure in results.measures):
            return ""
        head = ["measure", "system", "difference", "95 % interval", "p", "p (Holm)", "effect"]
        head += ["better", "equal", "worse"]
        lines = []
        for measure in results.measures:
            for found in results.comparisons[key, measure].values():
                low, high = found.interval
                effect = _minus(f"{found.effect_size:+.2f}".replace("inf", "∞"))
                lines.append(
                    [
                        measure,
                        found.system,
                        _minus(f"{found.difference:+.4f}"),
                        _minus(f"{low:+.3f} to {high:+.3f}"),
                        _p(found.p_value),
                        _p(found.p_holm),
                        effect,
                        f"{found.wins:,}",
                        f"{found.ties:,}",
                        f"{found.losses:,}",
                    ]
                )
        n_systems = len(results.comparisons[key, results.measures[0]])
        test = {
            "randomisation": "Fisher's paired randomisation test, two-sided, on the mean difference",
            "t": "Student's paired t-test, two-sided",
        }[results.test]
        caption = (
            f"Differences to {escaped(results.baseline)}. p: {test}; p (Holm): corrected for the "
            f"{counted(n_systems, 'system')} compared on this data set, each measure by itself. Intervals: bootstrap "
            "(BCa) of the mean difference. Effect: mean difference in standard deviations of the differences "
            "(Cohen's <i>d<sub>z</sub></i>). The last three columns count queries."
        )
        return self._table(caption, html_table(head, lines, text_columns=2))

    def _differences(self, key: DataKey) -> str:
        baseline = self._baseline(key)
        others = [e for e in self.results.groups[key] if e is not baseline]
        if baseline is None or not others:
            return ""
        texts = self._queries(key)
        names = [f"{qid}: {_cut(texts[qid], 60)}" if texts.get(qid) else qid for qid in baseline.qids]
        charts = []
        for evaluation in others:
            gains = evaluation.per_query[self.primary] - baseline.per_query[self.primary]
            charts.append(plots.difference_bars(gains.tolist(), names, f"{evaluation.run}: {self.primary}"))
        text = (
            f"Difference in {escaped(self.primary)} to {escaped(self.results.baseline)}, query by query, sorted for "
            "each system by itself and on its own scale; upward bars are queries on which the system is better."
        )
        return self._figure(text, *charts)

    # -- queries ------------------------------------------------------------

    def _baseline(self, key: DataKey) -> Evaluation | None:
        return next((e for e in self.results.groups[key] if e.run == self.results.baseline), None)

    def _queries(self, key: DataKey) -> Mapping[str, str]:
        data = self.results.datasets.get(key)
        return data.queries if data is not None else {}

    def _moved(self, key: DataKey) -> str:
        baseline = self._baseline(key)
        data = self.results.datasets.get(key)
        corpus = data.corpus if data is not None else None
        parts = []
        for evaluation in self.results.groups[key]:
            if baseline is None or evaluation is baseline:
                continue
            texts = self._queries(key)
            found = compare_runs(baseline, evaluation, self.primary, texts, QUERIES_SHOWN, self.results.test)
            if found.moved:
                shown = "".join(_moved_query(query, baseline, evaluation, corpus) for query in found.moved)
                parts.append(f"<h4>{escaped(evaluation.run)}</h4>\n<p>{_summary(found)}</p>\n{shown}")
        if not parts:
            return ""
        return f"<h3>Queries that moved most, by {escaped(self.primary)}</h3>\n{''.join(parts)}"

    # -- the rest ------------------------------------------------------------

    def _stages(self, key: DataKey) -> str:
        lines = []
        for evaluation in self.results.groups[key]:
            for stat in evaluation.stats:
                depth = stat.stage.count("/")
                counts = [f"{number:,} {what}" for what, number in stat.counts.items()]
                if stat.shared:
                    counts.append("computed once for several pipelines")
                lines.append(
                    [
                        evaluation.run,
                        "\u2003" * depth + stat.stage.rpartition("/")[2],
                        f"{stat.seconds:.3f}",
                        f"{stat.loading_seconds:.3f}",
                        f"{stat.queries:,}",
                        f"{stat.documents:,}",
                        "; ".join(counts),
                    ]
                )
        if not lines:
            return ""
        head = ("system", "stage", "seconds", "loading", "queries", "documents", "counted")
        caption = (
            "What each stage did: wall-clock seconds of work, and before it of loading or building models and indexes; "
            "documents given, and what it counted."
        )
        return self._table(caption, html_table(head, lines, text_columns=2, last_is_text=True))

    def _notes(self, key: DataKey) -> str:
        results = self.results
        head = ["system", "queries without documents", "rows", "unjudged rows", "tied rows", "excluded rows"]
        head += ["order of ties"]
        lines = [
            [
                e.run,
                f"{len(e.missing):,}",
                f"{e.n_rows:,}",
                f"{e.n_unjudged_rows:,}",
                f"{e.n_tied_rows:,}",
                f"{e.n_excluded_rows:,}",
                _TIES.get(e.ties, e.ties),
            ]
            for e in results.groups[key]
        ]
        caption = "Data notes. Unjudged documents count as not relevant; queries without documents count as 0."
        notes = results.notes(key)
        listed = "<ul>" + "".join(f"<li>{escaped(note)}</li>" for note in notes) + "</ul>\n" if notes else ""
        return self._table(caption, html_table(head, lines, text_columns=1, last_is_text=True)) + listed

    def _pipelines(self) -> str:
        shown = "".join(
            f"<details><summary>{escaped(name)}</summary><pre><code>{escaped(written)}</code></pre></details>\n"
            for name, written in self.results.pipelines.items()
        )
        return f"<section><h2>Pipelines</h2>\n{shown}</section>\n" if shown else ""

    def _provenance(self) -> str:
        lines = []
        for key, data in self.results.datasets.items():
            documents = f"{len(data.corpus.ids):,}" if data.corpus is not None else ""
            lines.append([str(key), f"{len(data.queries):,}", documents, data.fingerprint[:16]])
        head = ("data set", "queries", "documents", "fingerprint")
        caption = "Data sets, by the SHA-256 of their content (first 16 digits)."
        datasets = self._table(caption, html_table(head, lines, 1)) if lines else ""
        packages = ", ".join(f"{name} {number}" for name, number in _versions())
        runs = "".join(
            f"<details><summary>{escaped(e.run)} on {escaped(str(key))}</summary><pre><code>"
            f"{escaped(json.dumps(_plain(e.provenance), indent=2, ensure_ascii=False))}</code></pre></details>\n"
            for key, group in self.results.groups.items()
            for e in group
            if e.provenance
        )
        made = f"<p>Made with {escaped(packages)}.</p>\n"
        return f"<section><h2>Provenance</h2>\n{datasets}{made}{runs}</section>\n"


_TIES = {
    "rank": "by score in full precision, then by id",
    "trec_eval": "trec_eval's rule",
    "file": "as in the file",
}


def _marks(results: Results, key: DataKey) -> list[str]:
    sentence = results.significance(key)
    return ([sentence] if sentence else []) + results.notes(key)


def _results_table(results: Results, key: DataKey) -> str:
    columns = [results.rows(key, measure) for measure in results.measures]
    # Where the data set has no run of the baseline, or no other one, there is nothing to compare.
    compared = any(row.comparison is not None for row in columns[0])
    timed = any(evaluation.seconds_per_query is not None for evaluation in results.groups[key])
    heads = ["mean<br><small>95 % interval</small>", *(["diff."] if compared else []), "bound"]
    first = "".join(f'<th colspan="{len(heads)}" scope="colgroup">{escaped(m)}</th>' for m in results.measures)
    second = "".join(f'<th scope="col">{head}</th>' for head in heads * len(results.measures))
    best = [max(round(row.mean, 4) for row in column) for column in columns]
    lines = []
    for rows in zip(*columns, strict=True):
        evaluation = rows[0].evaluation
        cells = [f'<th scope="row"{_breaks(evaluation.run)}>{escaped(evaluation.run)}</th>']
        for row, highest in zip(rows, best, strict=True):
            mean = f"<b>{row.mean:.4f}</b>" if round(row.mean, 4) == highest else f"{row.mean:.4f}"
            low, high = row.interval
            cells.append(f"<td>{mean}<br><small>{low:.3f}–{high:.3f}</small></td>")
            if compared:
                cells.append(f"<td>{_signed(row)}</td>")
            cells.append(f'<td class="quiet">{evaluation.upper_bound[row.measure]:.4f}</td>')
        cells.append(f"<td>{evaluation.judged_at_10:.2f}</td>")
        if timed:
            seconds = evaluation.seconds_per_query
            cells.append(f"<td>{'' if seconds is None else _seconds(seconds)}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<table><thead><tr><th rowspan="2" scope="col">system</th>{first}'
        '<th rowspan="2" scope="col">judged<br>@10</th>'
        + ('<th rowspan="2" scope="col">s/query</th>' if timed else "")
        + f"</tr><tr>{second}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    )


def _signed(row: Row) -> str:
    if row.comparison is None:
        return ""
    mark = "*" if row.significant else '<span style="visibility:hidden">*</span>'
    return _minus(f"{row.comparison.difference:+.4f}") + mark


def html_table(
    head: Sequence[str], lines: Iterable[Sequence[str]], text_columns: int, *, last_is_text: bool = False
) -> str:
    """A table of texts, the first columns (and perhaps the last) set left, the others right."""

    def cells(line: Sequence[str], tag: str) -> str:
        left = {*range(text_columns), *([len(line) - 1] if last_is_text else [])}
        return "".join(
            f"<{tag}{_breaks(cell, 'left') if i in left else ''}>{escaped(cell)}</{tag}>" for i, cell in enumerate(line)
        )

    body = "".join(f"<tr>{cells(line, 'td')}</tr>" for line in lines)
    return f"<table><thead><tr>{cells(head, 'th')}</tr></thead><tbody>{body}</tbody></table>"


def _breaks(text: str, kind: str = "") -> str:
    """The class of a cell on the left, which may break into lines only where its text is long."""
    kinds = " ".join(filter(None, (kind, "long" if len(text) > LONG else "")))
    return f' class="{kinds}"' if kinds else ""


def _summary(found: RunComparison) -> str:
    summary = found.summary
    return (
        f"{counted(summary.wins, 'query')} better, {summary.ties:,} equal, {summary.losses:,} worse than "
        f"{escaped(summary.baseline)}; of the relevant documents {found.risen:,} stand higher and "
        f"{found.fallen:,} lower."
    )


def _moved_query(query: MovedQuery, baseline: Evaluation, system: Evaluation, corpus: TextSource | None) -> str:
    sides = "".join(
        f"<div><h5>{escaped(e.run)} <span>{value:.4f}</span></h5>{_documents(query.qid, e, corpus)}</div>"
        for e, value in ((baseline, query.before), (system, query.after))
    )
    kind = "gain" if query.difference > 0 else "loss"
    return (
        f'<details class="query"><summary><b class="{kind}">{_minus(f"{query.difference:+.4f}")}</b> '
        f'<bdi dir="auto">{escaped(query.text) or "(no text)"}</bdi> <small>{escaped(query.qid)}</small></summary>'
        f'<div class="sides">{sides}</div></details>\n'
    )


def _documents(qid: str, evaluation: Evaluation, corpus: TextSource | None) -> str:
    docnos = evaluation.top[qid][:DOCUMENTS_SHOWN]
    if not docnos:
        return "<p>no documents</p>"
    texts = _excerpts(docnos, corpus)
    grades = evaluation.grades[qid]
    items = "".join(
        f'<li><p class="docno">{_grade(grades.get(docno))} <code>{escaped(docno)}</code></p>'
        + (f'<p dir="auto">{escaped(text)}</p>' if text else "")
        + "</li>"
        for docno, text in zip(docnos, texts, strict=True)
    )
    return f"<ol>{items}</ol>"


def _excerpts(docnos: Sequence[str], corpus: TextSource | None) -> list[str]:
    if corpus is None:
        return [""] * len(docnos)
    codes = corpus.ids.find(docnos)
    texts = iter(corpus.texts(codes[codes >= 0]))
    return [_cut(next(texts), EXCERPT) if code >= 0 else "" for code in codes.tolist()]


def _cut(text: str, width: int) -> str:
    """The beginning of a text in one line."""
    line = " ".join(text[: 4 * width].split())
    if len(line) <= width:
        return line
    cut = line[:width]
    # At the last blank, where that does not lose much: texts without blanks are cut where they are.
    return (cut.rpartition(" ")[0] if " " in cut[width // 2 :] else cut) + "\u00a0…"


def _grade(grade: int | None) -> str:
    if grade is None:
        return '<span class="grade none">unjudged</span>'
    return f'<span class="grade{" relevant" if grade > 0 else ""}">grade {grade}</span>'


def _relevance_level(measures: Sequence[str]) -> int:
    """The grade from which the experiment's measures call a document relevant: the first that any of them names."""
    levels = [parse_measure(measure).params.get("rel") for measure in measures]
    return next((level for level in levels if level is not None), 1)


def _versions() -> list[tuple[str, str]]:
    from rerank import __version__

    installed = [(name, version(name)) for name in ("ir-measures", "numpy", "scipy")]
    return [("rerank", __version__), *installed, ("Python", platform.python_version())]


def _plain(value: Any) -> Any:
    """A record as JSON can say it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _minus(number: str) -> str:
    return number.replace("-", "\u2212")


def _p(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2g}" if seconds < 10 else f"{seconds:,.0f}"


def _listed(items: Iterable[str]) -> str:
    every = list(items)
    return every[0] if len(every) == 1 else f"{', '.join(every[:-1])} and {every[-1]}"


def escaped(text: str) -> str:
    """Escaped for HTML, without control characters, and with a question mark for what UTF-8 cannot hold."""
    clean = "".join(c for c in text if (c >= " " and not "\x7f" <= c <= "\x9f") or c in "\n\t")
    return html.escape(clean.encode("utf-8", "replace").decode("utf-8"))


_STYLE = (
    plots.STYLE
    + """
:root { --quiet: #5f656d; --soft: #f5f6f8; --gain: var(--c0); --loss: var(--c1); }
@media (prefers-color-scheme: dark) { :root { --quiet: #a2a9b3; --soft: #1e2228; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 1.0625rem/1.55 "Iowan Old Style", "Palatino Linotype", Palatino, Charter, "Liberation Serif", Georgia, serif;
}
main { max-width: 64rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
a { color: var(--c0); }
h1, h2, h3, h4, h5 { line-height: 1.25; margin: 0; text-wrap: balance; overflow-wrap: anywhere; }
h1 { font-size: 2rem; font-weight: 600; }
h2 { font-size: 1.5rem; font-weight: 600; margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--grid); }
h2 span, h5 span { color: var(--quiet); font-weight: 400; }
h3 { font-size: 1.15rem; font-weight: 600; margin-top: 2.25rem; }
h4 { font-size: 1rem; font-weight: 600; margin-top: 1.5rem; }
h5 { font-size: .95rem; font-weight: 600; }
p { margin: .5rem 0; overflow-wrap: anywhere; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: .75rem 0 0; padding: 0; }
figure { margin: 2rem 0; }
figcaption { font-size: .92rem; line-height: 1.45; color: var(--quiet); max-width: 46rem; overflow-wrap: anywhere; }
figcaption b { color: var(--ink); font-weight: 600; }
.table figcaption { margin-bottom: .6rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1.5rem 2rem; }
.charts figcaption { grid-column: 1 / -1; }
.chart { max-width: 30rem; font-family: system-ui, "Liberation Sans", Arial, sans-serif; }
.chart svg { display: block; width: 100%; height: auto; }
/* A shade at the side on which a wide table goes on. */
.wide {
  overflow-x: auto;
  background:
    linear-gradient(to right, var(--paper) 40%, transparent) left / 2.5rem 100% no-repeat local,
    linear-gradient(to left, var(--paper) 40%, transparent) right / 2.5rem 100% no-repeat local,
    linear-gradient(to right, var(--grid), transparent) left / .75rem 100% no-repeat scroll,
    linear-gradient(to left, var(--grid), transparent) right / .75rem 100% no-repeat scroll;
}
.wide > table { min-width: min(100%, 30rem); }
table {
  border-collapse: collapse; border-top: 1.5px solid var(--ink); border-bottom: 1.5px solid var(--ink);
  font: .875rem/1.35 system-ui, "Liberation Sans", Arial, sans-serif; font-variant-numeric: tabular-nums lining-nums;
}
th, td { padding: .32rem .48rem; text-align: right; font-weight: 400; white-space: nowrap; vertical-align: baseline; }
tr > :first-child { padding-left: .15rem; position: sticky; left: 0; background: var(--paper); }
thead tr + tr > :first-child { position: static; padding-left: .48rem; }
tr > :last-child { padding-right: .15rem; }
thead tr + tr > :last-child { padding-right: .48rem; }
thead th { color: var(--quiet); vertical-align: bottom; }
thead th[colspan] { text-align: center; color: var(--ink); border-bottom: 1px solid var(--grid); }
tbody tr:first-child > * { border-top: 1px solid var(--ink); }
tbody th, .left, thead tr:first-child > th:first-child { text-align: left; }
.long { white-space: normal; overflow-wrap: anywhere; min-width: 12rem; max-width: 20rem; }
td small, th small { color: var(--quiet); font-size: .9em; font-weight: 400; }
td.quiet { color: var(--quiet); }
td b { font-weight: 650; }
ul { padding-left: 1.2rem; font-size: .95rem; }
details { margin: .4rem 0; }
summary { cursor: pointer; overflow-wrap: anywhere; }
summary small { color: var(--quiet); }
.query { border-bottom: 1px solid var(--grid); padding-bottom: .4rem; }
.query summary b { font: .875rem system-ui, "Liberation Sans", Arial, sans-serif; font-variant-numeric: tabular-nums; }
.gain { color: var(--gain); }
.loss { color: var(--loss); }
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: .5rem 2.5rem; }
.sides { padding: .75rem 0; }
.sides ol { margin: .25rem 0; padding-left: 1.4rem; font-size: .9rem; line-height: 1.4; }
.sides li { margin: .5rem 0; }
.sides li p { margin: 0; }
.docno { font-size: .8rem; color: var(--quiet); }
code, pre { font: .82rem/1.45 ui-monospace, "Liberation Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
pre { background: var(--soft); padding: .8rem 1rem; margin: .5rem 0; border-radius: 4px; white-space: pre-wrap; }
.grade {
  display: inline-block; font: .72rem/1.3 system-ui, "Liberation Sans", Arial, sans-serif; padding: 0 .4rem;
  border: 1px solid var(--grid); border-radius: 3px; margin-right: .3rem; color: var(--quiet);
}
.grade.relevant { color: var(--ink); border-color: var(--quiet); }
.grade.none { border-style: dashed; }
@media (max-width: 34rem) {
  body { font-size: 1rem; }
  main { padding: 1.25rem .9rem 3rem; }
  h1 { font-size: 1.6rem; }
  h2 { margin-top: 2.25rem; }
  table { font-size: .8125rem; }
  th, td { padding: .3rem .5rem; }
}
@media print { .query, figure { break-inside: avoid; } }
"""
)
