"""Our evaluation against ir-measures on dicts that are ready: 1,000 queries x 1,000 documents, one JSON line.

    python scripts/bench/evaluation.py [--rounds 5] [--queries 1000] [--depth 1000]

Both sides measure nDCG@10, AP, RR and R@1000 on a run without ties, alternating in one process on one thread; times
are CPU seconds, medians of the rounds.  Ours starts from a `Run` and also gives per-query values, the upper bounds,
judged@10 and the counts.  `ratio` is ours over ir-measures, at most 1.3 is the goal; `largest_difference` is over
all per-query values.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parents[2]))

from rerank.data.dataset import Dataset
from rerank.evaluation.evaluation import evaluate_run
from rerank.ids import MemoryIds
from rerank.ranking import Ranking
from rerank.run import Run

MEASURES = ("nDCG@10", "AP", "RR", "R@1000")
DOCUMENTS = 100_000
JUDGED_IN_LIST, JUDGED_ELSEWHERE = 25, 25


def make(n_queries: int, depth: int, seed: int) -> tuple[Run, Dataset]:
    """A run of random documents without ties, and graded judgments of which half are in its lists."""
    rng = np.random.default_rng(seed)
    names = [f"doc{i:07d}" for i in range(DOCUMENTS)]
    docs = np.stack([rng.choice(DOCUMENTS, depth, replace=False) for _ in range(n_queries)])
    scores = np.arange(depth, 0, -1, dtype=np.float32)
    qids = tuple(f"q{i}" for i in range(n_queries))
    qrels = {}
    for qid, listed in zip(qids, docs, strict=True):
        pool = np.concatenate([rng.choice(listed, JUDGED_IN_LIST, False), rng.choice(DOCUMENTS, JUDGED_ELSEWHERE)])
        qrels[qid] = {names[code]: int(grade) for code, grade in zip(pool, rng.integers(0, 4, len(pool)), strict=True)}
    ranking = Ranking(
        qids,
        ("",) * n_queries,
        np.arange(0, n_queries * depth + 1, depth, dtype=np.int64),
        docs.reshape(-1),
        np.tile(scores, n_queries),
        MemoryIds(names),
    )
    return Run("bench", ranking), Dataset("bench", dict.fromkeys(qids, ""), qrels=qrels)


def seconds(call: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    started = time.process_time()
    call()
    return time.process_time() - started


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the line."""
    import ir_measures

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--depth", type=int, default=1000)
    options = parser.parse_args(arguments)
    run, data = make(options.queries, options.depth, seed=0)
    measures = [ir_measures.parse_measure(name) for name in MEASURES]
    ready = run.ranking.to_dict()

    found = evaluate_run(run, data, MEASURES)
    place = {qid: i for i, qid in enumerate(found.qids)}
    worst = max(
        abs(metric.value - found.per_query[str(metric.measure)][place[metric.query_id]])
        for metric in ir_measures.iter_calc(measures, data.qrels, ready)
    )
    ours, theirs = [], []
    for _ in range(options.rounds):
        ours.append(seconds(lambda: evaluate_run(run, data, MEASURES)))
        theirs.append(seconds(lambda: ir_measures.calc_aggregate(measures, data.qrels, ready)))
    line = {
        "bench": "evaluation",
        "queries": options.queries,
        "depth": options.depth,
        "measures": MEASURES,
        "ours_seconds": round(statistics.median(ours), 4),
        "ir_measures_seconds": round(statistics.median(theirs), 4),
        "ratio": round(statistics.median(ours) / statistics.median(theirs), 3),
        "largest_difference": float(worst),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
