"""What it costs a reranker to read less: lists rescored from condensed documents, by method and budget.

    python scripts/figures/condense.py --data ../shared/data/beir-scifact [--bundle 8] [--queries 150] [--json]

The first documents of BM25 are rescored by a bi-encoder, which reads whole documents as far as it can, or what the
stage `condense` keeps of them within a budget of the same tokens.  For each: nDCG@10 with its 95 % bootstrap interval,
the difference to the lead of the same length with the p-value of the randomisation test, and the tokens that are read.

With `--bundle N` a document is N documents of the collection in a row, put together at random, and as relevant as the
most relevant of them: long documents of many subjects, most of which says nothing about the query.
"""

from __future__ import annotations

import argparse
import json
import sys
from random import Random
from typing import Any, get_args

import numpy as np

from rerank.condense import By, Condense
from rerank.data.corpus import MemoryCorpus
from rerank.data.dataset import Dataset
from rerank.data.load import load
from rerank.evaluation.evaluation import evaluate_run
from rerank.evaluation.significance import bootstrap_interval, randomisation_test
from rerank.retrieve.bm25 import BM25
from rerank.retrieve.rescore import Rescore
from rerank.run import Run
from rerank.runtime import Runtime
from rerank.stage import Pipeline, Stage

MEASURE = "nDCG@10"


def bundled(data: Dataset, n: int, seed: int) -> Dataset:
    """The collection with `n` documents to each."""
    if data.corpus is None or data.qrels is None:
        raise SystemExit("--data: needs documents and judgments")
    ids = data.corpus.ids
    docnos = sorted(map(str, ids.take(np.arange(len(ids)))))
    Random(seed).shuffle(docnos)
    groups = [docnos[start : start + n] for start in range(0, len(docnos), n)]
    texts = {f"b{i:05d}": " ".join(data.corpus.texts(ids.find(some))) for i, some in enumerate(groups)}
    owner = {docno: f"b{i:05d}" for i, some in enumerate(groups) for docno in some}
    qrels: dict[str, dict[str, int]] = {}
    for qid, grades in data.qrels.items():
        found = qrels.setdefault(qid, {})
        for docno, grade in grades.items():
            if docno in owner:
                found[owner[docno]] = max(grade, found.get(owner[docno], grade))
    return Dataset(f"{data.name}, {n} in one", data.queries, MemoryCorpus(texts), qrels, split=data.split)


def sampled(data: Dataset, n: int | None) -> Dataset:
    """The collection with a fixed sample of its queries."""
    if n is None or n >= len(data.queries):
        return data
    return data.with_queries(sorted(Random(0).sample(sorted(data.queries), n)))


def rows(data: Dataset, options: argparse.Namespace, runtime: Runtime) -> list[dict[str, Any]]:
    """One for each method and budget."""
    first = runtime.run(BM25(k=options.k), data)
    rescore = Rescore(options.model)
    systems: dict[tuple[str, int], Stage] = {("BM25", 0): Pipeline((BM25(k=options.k),)), ("whole", 0): rescore}
    for budget in options.tokens:
        for by in ("lead", *(by for by in get_args(By) if by != "lead")):
            systems[by, budget] = Condense(budget, by, options.model, k=None) >> rescore
    found = []
    values: dict[tuple[str, int], Any] = {}
    for (by, budget), stage in systems.items():
        ranking = first.ranking if by == "BM25" else runtime.rank(stage, first.ranking)
        evaluation = evaluate_run(Run(by, ranking), data, [MEASURE])
        values[by, budget] = evaluation.per_query[MEASURE]
        row: dict[str, Any] = {
            "by": by,
            "tokens": budget or None,
            MEASURE: evaluation.means[MEASURE],
            "interval": list(bootstrap_interval(values[by, budget])),
        }
        if budget and by != "lead":
            row["against lead"] = float((values[by, budget] - values["lead", budget]).mean())
            row["p"] = randomisation_test(values[by, budget], values["lead", budget])
        if budget:
            row["against whole"] = float((values[by, budget] - values["whole", 0]).mean())
        found.append(row)
        print(_line(row), file=sys.stderr, flush=True)
    return found


def _line(row: dict[str, Any]) -> str:
    low, high = row["interval"][:2]
    parts = [f"{row['by']:<14}{row['tokens'] or '':>5}  {row[MEASURE]:.4f} [{low:.4f}, {high:.4f}]"]
    if "against whole" in row:
        parts.append(f"whole {row['against whole']:+.4f}")
    if "p" in row:
        parts.append(f"lead {row['against lead']:+.4f} (p {row['p']:.3f})")
    return "  ".join(parts)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", required=True, help="a data set: a folder, or a name")
    parser.add_argument("--split", default="test")
    parser.add_argument("--model", default="minilm-l6", help="the bi-encoder, whose tokens are counted")
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 128], help="budgets")
    parser.add_argument("--k", type=int, default=20, help="documents of a list")
    parser.add_argument("--queries", type=int, help="a sample of so many")
    parser.add_argument("--bundle", type=int, default=1, help="documents to each")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with Runtime(threads=options.threads) as runtime:
        data = load(options.data, options.split, runtime=runtime)
        data = sampled(bundled(data, options.bundle, 0) if options.bundle > 1 else data, options.queries)
        made = rows(data, options, runtime)
    if options.json:
        print(json.dumps({"data": data.name, "queries": len(data.queries), "k": options.k, "rows": made}, indent=2))
    else:
        print(f"{data.name} ({data.split}), {len(data.queries):,} queries, the first {options.k} of BM25, {MEASURE}")
        print("\n".join(map(_line, made)))


if __name__ == "__main__":
    main()
