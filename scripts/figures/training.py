"""What a trained cross-encoder is worth: alone, added to BM25, and added to BM25 and the untrained bi-encoder.

    python scripts/figures/training.py --out FOLDER --adapter runs/NAME/adapter [--folder ../shared/data]
        [--dtype bfloat16] [--json]

The first 100 documents of BM25 are reordered by sums of scores brought to 0 .. 1 within each list.  The weights
of a sum are those with the best mean over two sets of queries that no test uses: the dev split of beir-nfcorpus, and
150 train queries of beir-scifact that the recipe holds out.  They are then used unchanged on the test splits of both,
and on two collections that training saw nothing of, cranfield and trec-dl-2019 (whose first stage is its own BM25 run).

For each test collection: nDCG@10 with its 95 % bootstrap interval, the difference to BM25 and to BM25 + bi-encoder with
the p-value of the randomisation test.  What a model said of a collection is kept in FOLDER, so that the same command
goes on where another stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

from rerank.artifact import fingerprint
from rerank.config import stage_fingerprint
from rerank.data.dataset import Dataset
from rerank.data.load import load
from rerank.data.runs import load_run, save_run
from rerank.engines.pairs import CrossEncoderEngine
from rerank.engines.text_model import DType
from rerank.evaluation.evaluation import evaluate_run
from rerank.evaluation.significance import bootstrap_interval, randomisation_test
from rerank.ranking import Ranking
from rerank.reranking import Rerank
from rerank.retrieve.bm25 import BM25
from rerank.retrieve.rescore import Rescore
from rerank.runtime import Runtime
from rerank.stage import Cut, Stage, apply
from rerank.train.sources import held_out

MEASURE = "nDCG@10"
STEPS = 10
"""Weights are tenths."""
SYSTEMS = {
    "BM25": ("bm25",),
    "BM25 + bi-encoder": ("bm25", "bi-encoder"),
    "cross-encoder": ("cross-encoder",),
    "cross-encoder + BM25": ("cross-encoder", "bm25"),
    "cross-encoder + BM25 + bi-encoder": ("cross-encoder", "bm25", "bi-encoder"),
}
BASELINES = ("BM25", "BM25 + bi-encoder")


class Collection(NamedTuple):
    """Queries with their first stage."""

    folder: str
    split: str
    held_out: int = 0
    candidates: str | None = None

    def load(self, folder: Path, runtime: Runtime) -> Dataset:
        data = load(folder / self.folder, self.split, candidates=self.candidates, runtime=runtime)
        return held_out(data, self.held_out) if self.held_out else data

    @property
    def first(self) -> Stage:
        return Cut(100) if self.candidates else BM25(k=100)


TUNED_ON = (Collection("beir-nfcorpus", "dev"), Collection("beir-scifact", "train", held_out=150))
TESTED_ON = (
    Collection("beir-nfcorpus", "test"),
    Collection("beir-scifact", "test"),
    Collection("cranfield", "test"),
    Collection("trec-dl-2019", "test", candidates="bm25"),
)


class Scored(NamedTuple):
    """A collection's lists, by each part that scores them."""

    data: Dataset
    lists: Mapping[str, Ranking]

    def values(self, weights: Mapping[str, float]) -> Any:
        """float64 [queries]: the measure of the sum with these weights."""
        parts = [(self.lists[name], weight) for name, weight in weights.items() if weight]
        stage: Stage | None = None
        for ranking, weight in parts:
            part = weight * apply(lambda _, ranking=ranking: ranking).minmax()
            stage = part if stage is None else stage + part
        with Runtime(progress=False) as runtime:
            run = runtime.run(stage, self.data)  # type: ignore[arg-type]
        return evaluate_run(run, self.data, [MEASURE]).per_query[MEASURE]


def scored(one: Collection, stages: Mapping[str, Stage], options: argparse.Namespace, runtime: Runtime) -> Scored:
    """The lists by each part, kept or made now."""
    data = one.load(options.folder, runtime)
    lists = {}
    for name, stage in stages.items():
        whole = one.first >> stage if name != "bm25" else one.first
        folder = options.out / f"{one.folder}-{one.split}" / f"{name}-{key(whole, data, options, name)}"
        if not folder.exists():
            print(f"{time.strftime('%H:%M:%S')} {one.folder} ({one.split}): {name}", file=sys.stderr, flush=True)
            save_run(runtime.run(whole, data), folder)
        lists[name] = load_run(folder).ranking
    return Scored(data, lists)


def key(stage: Stage, data: Dataset, options: argparse.Namespace, name: str) -> str:
    facts = [stage_fingerprint(stage), data.fingerprint, *(sorted(data.queries))]
    return fingerprint(facts)[:12]


def mixtures(n: int) -> Iterator[tuple[float, ...]]:
    """All weights of `n` parts in tenths that sum to 1; none is 0, for that is another system."""
    for tenths in itertools.product(range(1, STEPS + 1), repeat=n):
        if sum(tenths) == STEPS:
            yield tuple(tenth / STEPS for tenth in tenths)


def tuned(parts: Sequence[str], sets: Sequence[Scored]) -> dict[str, float]:
    """The weights with the best mean of means."""

    def mean(weights: tuple[float, ...]) -> float:
        given = dict(zip(parts, weights, strict=True))
        return float(sum(one.values(given).mean() for one in sets)) / len(sets)

    return dict(zip(parts, max(mixtures(len(parts)), key=mean), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder that keeps what was scored")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parents[3] / "shared" / "data")
    parser.add_argument("--model", default="minilm-l6", help="the cross-encoder's base, or the bi-encoder")
    parser.add_argument("--adapter", type=Path, help="the trained adapter; default: only what needs none")
    parser.add_argument("--dtype", choices=get_args(DType), default="auto", help="what the cross-encoder computes in")
    parser.add_argument("--threads", type=int, help="default: all processors that may be used")
    parser.add_argument("--json", action="store_true", help="print a JSON object a row")
    options = parser.parse_args()
    stages: dict[str, Stage] = {"bm25": Cut(100), "bi-encoder": Rescore("minilm-l6")}
    if options.adapter is not None:
        engine = CrossEncoderEngine(options.model, adapter=str(options.adapter), dtype=options.dtype)
        stages["cross-encoder"] = Rerank(engine, k=None)
    systems = {name: parts for name, parts in SYSTEMS.items() if set(parts) <= set(stages)}
    lines = []
    with Runtime(progress=False, threads=options.threads) as runtime:
        tuning = [scored(one, stages, options, runtime) for one in TUNED_ON]
        weights = {name: tuned(parts, tuning) for name, parts in systems.items()}
        for one in TESTED_ON:
            found = scored(one, stages, options, runtime)
            values = {name: found.values(weights[name]) for name in systems}
            for name in systems:
                line: dict[str, Any] = {"data": f"{one.folder} ({one.split})", "system": name, "weights": weights[name]}
                line |= {MEASURE: float(values[name].mean()), "interval": list(bootstrap_interval(values[name]))}
                for baseline in BASELINES:
                    if name != baseline:
                        line[f"to {baseline}"] = float((values[name] - values[baseline]).mean())
                        line[f"p {baseline}"] = randomisation_test(values[name], values[baseline])
                lines.append({**line, "queries": len(values[name])})
    print("\n".join(map(json.dumps, lines)) if options.json else table(lines))


def table(lines: Sequence[dict[str, Any]]) -> str:
    rows = [
        "| data | system | weights | nDCG@10 (95 %) | to BM25 (p) | to BM25 + bi-encoder (p) |",
        "|---|---|---|---|---|---|",
    ]
    for line in lines:
        low, high = line["interval"]
        cells = [line["data"], line["system"], " ".join(f"{weight:.1f}" for weight in line["weights"].values())]
        cells.append(f"{line[MEASURE]:.3f} ({low:.3f} to {high:.3f})")
        for baseline in BASELINES:
            shown = f"{line[f'to {baseline}']:+.3f} ({line[f'p {baseline}']:.3f})" if f"to {baseline}" in line else ""
            cells.append(shown)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
