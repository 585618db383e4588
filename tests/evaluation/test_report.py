from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest

from rerank.data.corpus import MemoryCorpus
from rerank.data.dataset import Dataset
from rerank.evaluation.evaluation import evaluate_run
from rerank.evaluation.report import EXCERPT, QUERIES_SHOWN, report_html, write_report
from rerank.evaluation.results import DataKey, Results
from rerank.ranking import Ranking
from rerank.run import Run, StageStats

NASTY = "<script>alert(1)</script></style><img src=x onerror=alert(2)>\"'&amp; --> ]]>"
VOID = {"meta", "br", "hr", "img", "link", "input"}
SVG = {"svg", "g", "path", "rect", "circle", "line", "polyline", "polygon", "text", "tspan", "title", "use", "defs"}
HTML = {"html", "head", "meta", "title", "style", "body", "main", "header", "nav", "section", "div", "span", "br"}
HTML |= {"h1", "h2", "h3", "h4", "h5", "p", "ul", "ol", "li", "a", "b", "i", "small", "sub", "bdi", "pre", "code"}
HTML |= {"figure", "figcaption", "table", "thead", "tbody", "tr", "th", "td", "details", "summary"}


class Checker(HTMLParser):
    """Every element, and whether elements are closed in the order in which they were opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: Counter[str] = Counter()
        self.attributes: set[str] = set()
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.seen[tag] += 1
        self.attributes |= {name for name, _ in attrs}
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen[tag] += 1
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "title"):
            self.text.append(data)


def checked(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    return checker


def make(
    prefix="", n_queries=12, *, corpus=True, datasets=("toy",), systems=("bm25", "dense", "hybrid"), name="A study"
):
    rng = np.random.default_rng(0)
    texts = {f"{prefix}d{j}": f"{prefix} text of document {j} " + "word " * 100 for j in range(15)}
    evaluations, data = [], {}
    for dataset in datasets:
        qrels = {f"{prefix}q{i}": {d: int(rng.integers(0, 4)) for d in list(texts)[:8]} for i in range(n_queries)}
        queries = {qid: f"{prefix} what is {qid}?" for qid in qrels}
        found = Dataset(
            prefix + dataset, queries, MemoryCorpus(texts) if corpus else None, qrels, notes=(f"{prefix} 3 dropped",)
        )
        data[DataKey(prefix + dataset, "test")] = found
        for position, system in enumerate(systems):
            lists = {q: {d: float(qrels[q].get(d, 0) + 3 * rng.random()) for d in texts} for q in qrels}
            stats = (
                StageStats(system, 0.5 + position, n_queries, 100, {f"{prefix}truncated documents": 3}),
                StageStats(f"{system}/inner", 0.2, n_queries, 100, shared=True),
            )
            provenance = {"model": f"{prefix}sentence-transformers/x", "revision": "abc123"}
            run = Run(f"{prefix}{system}", Ranking.of(lists), provenance, stats)
            evaluations.append(evaluate_run(run, found, ["nDCG@10", "R(rel=2)@5"]))
    pipelines = {f"{prefix}{system}": f"name: {prefix}\nstages: [bm25]" for system in systems}
    return Results(tuple(evaluations), prefix + systems[0], "randomisation", name, data, pipelines)


def test_the_report_is_one_well_formed_file_that_fetches_and_runs_nothing(tmp_path):
    write_report(make(datasets=("one", "two")), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    found = checked(page)
    assert set(found.seen) <= HTML | SVG
    assert not {name for name in found.attributes if name.startswith("on")}
    assert not found.attributes & {"src", "srcset", "data", "poster", "background"}
    assert set(re.findall(r'(?:href|url\()="?([^")]+)', page)) == {"#data-0", "#data-1"}
    assert "@import" not in page
    assert "default-src 'none'" in page
    assert 'name="viewport" content="width=device-width' in page
    assert "prefers-color-scheme: dark" in page
    assert page.startswith("<!doctype html>")
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)


def test_texts_ids_and_names_cannot_add_markup():
    page = report_html(make(NASTY, name=NASTY))
    found = checked(page)
    assert set(found.seen) <= HTML | SVG
    assert found.seen["script"] == 0
    assert found.seen["style"] == 1
    assert page.count("</style>") == 1
    assert "<script" not in page
    assert "<img" not in page
    assert NASTY in "".join(found.text)


def test_texts_that_utf8_or_html_cannot_hold_do_not_stop_the_report():
    page = report_html(make("\ud800\x00\x1b[31m\u202e"))
    page.encode("utf-8")
    assert "\x00" not in page
    assert "\x1b" not in page
    checked(page)


def test_the_report_holds_the_figures_the_sentences_and_the_sources():
    results = make()
    page = report_html(results)
    text = " ".join("".join(checked(page).text).split())
    key = DataKey("toy", "test")
    for evaluation in results.evaluations:
        for value in evaluation.means.values():
            assert f"{value:.4f}" in text
    for said in (
        "paired randomisation test",
        "Holm's correction over 2 systems",
        "bootstrap intervals (BCa)",
        "documents of grade 2 and above are relevant",
        "seconds a query on a logarithmic scale",
        "3 truncated documents",
        "computed once for several pipelines",
        "sentence-transformers/x",
        "abc123",
        "3 dropped",
        "name: stages: [bm25]",
        results.datasets[key].fingerprint[:16],
        "ir-measures",
        "12 queries, 15 documents, 96 judgments.",
    ):
        assert said in text, said
    assert [f"Table {i}." in text for i in range(1, 7)] == [True] * 5 + [False]
    assert [f"Figure {i}." in text for i in range(1, 5)] == [True] * 3 + [False]


def test_the_queries_that_moved_most_show_both_runs_first_documents_cut_to_an_excerpt():
    results = make()
    page = report_html(results)
    assert page.count('<details class="query">') == 2 * QUERIES_SHOWN
    excerpts = re.findall(r'<p dir="auto">([^<]+)</p>', page)
    assert len(excerpts) == 2 * QUERIES_SHOWN * 2 * 5
    assert all(text.startswith("text of document") or "text of document" in text for text in excerpts)
    assert all(len(text) <= EXCERPT + 2 for text in excerpts)
    assert all(text.endswith("\u00a0…") for text in excerpts)
    assert "grade 3" in page
    assert "unjudged" in page


def test_a_report_without_corpus_comparison_or_times_leaves_those_parts_out():
    results = make(corpus=False, systems=("bm25",))
    bare = Results(
        tuple(
            evaluate_run(Run("bm25", Ranking.of({"q0": {"d0": 1.0}})), data, ["nDCG@10"])
            for data in results.datasets.values()
        ),
        "bm25",
    )
    page = report_html(bare)
    text = "".join(checked(page).text)
    assert "Evaluation" in text
    assert "Queries that moved" not in text
    assert "seconds" not in text
    assert "difference" not in text
    assert "Pipelines" not in text
    assert page.count("<svg") == 2


def test_a_run_of_many_queries_makes_a_report_of_bounded_size():
    assert len(report_html(make(n_queries=1200, systems=("bm25", "dense")))) < 400_000


@pytest.mark.parametrize("n_queries", [1, 2])
def test_few_queries_are_enough(n_queries):
    checked(report_html(make(n_queries=n_queries)))


def test_notebooks_show_the_tables_alone():
    html = make(NASTY)._repr_html_()
    found = checked(html)
    assert found.seen["table"] == 1
    assert set(found.seen) <= HTML
    assert "differs from" in html
