"""Adapted rerankers compared on judgments that they have not seen, with intervals and p-values.

    python scripts/figures/adapting.py --task TASK --out FOLDER [--folder ../shared/data] [--seeds 0 1 2]
        [--documents N ...] [--epochs N | --steps N] [--learning-rate R] [--first-stage hybrid] [--weight 0.5]
        [--unadapted 0.4] [--threads N]

  unlabelled   documents drawn from clusters against as many drawn from all alike: beir-nfcorpus and cranfield, as if
               nobody had judged them
  generators   makers of queries, all else equal: key phrases, sentences, both of them, and a language model whose texts
               are taken as they come or chosen by round trip; about two queries a document each; stdlib, dev half
  curve        from how many documents queries are made; stdlib, dev half
  stdlib       the test half of stdlib; --adapter measures one that is there, --supervised one trained on judgments, in
               the same sum; what nobody judged yet of the first ten goes to FOLDER/pool.jsonl, for `rerank data judge`

All are compared with the first stage alone and with its lists rescored by the bi-encoder.  One JSON object a line is
printed as adaptations are done, then one a system, then a table of these.  Means over seeds are taken query by query;
intervals (bootstrap, 95 %) and p-values (paired randomisation test, uncorrected) are over queries.

All that is finished is kept in FOLDER, equal adaptations once for all tasks; the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

for _name, _value in (("OMP_NUM_THREADS", "1"), ("TOKENIZERS_PARALLELISM", "false")):
    os.environ.setdefault(_name, _value)

import numpy as np  # noqa: E402

from rerank.artifact import write_text  # noqa: E402
from rerank.data.load import load  # noqa: E402
from rerank.data.pool import pool  # noqa: E402
from rerank.evaluation.evaluation import Evaluation  # noqa: E402
from rerank.evaluation.experiment import evaluate  # noqa: E402
from rerank.evaluation.significance import bootstrap_interval, randomisation_test  # noqa: E402
from rerank.ranking import Ranking  # noqa: E402
from rerank.runtime import Runtime  # noqa: E402
from rerank.stage import Pipeline  # noqa: E402
from rerank.synthesize.adapt import Adapted, adapt  # noqa: E402
from rerank.synthesize.adaptation import MEASURES, Adaptation  # noqa: E402
from rerank.synthesize.duqgen import DUQGen  # noqa: E402
from rerank.synthesize.generators import ExtractiveGenerator, KeyphraseGenerator  # noqa: E402
from rerank.synthesize.presets import load_synthesis  # noqa: E402

MEASURE = MEASURES[0]
TASKS = {
    "unlabelled": (("beir-nfcorpus", "cranfield"), ("clusters", "uniform"), "uniform"),
    "generators": (("stdlib",), ("keyphrase", "extractive", "mixed", "llm", "llm, best of 4"), "mixed"),
    "curve": (("stdlib",), ("mixed",), ""),
    "stdlib": (("stdlib",), ("mixed",), "supervised"),
}
"""By task its collections, the ways to synthesize, and which of them, or what else, the others are compared with."""


def synthesized(way: str, plain: Adaptation, llm: str) -> DUQGen:
    """How queries are made, by one of the ways of `TASKS` or a file of `rerank synthesize duqgen`."""
    usual = plain.duqgen()
    match way:
        case "uniform":
            return dataclasses.replace(usual, clusters=None)
        case "whole":  # documents keep the words of their queries
            return dataclasses.replace(usual, cloze=0.0)
        case "keyphrase":
            return dataclasses.replace(usual, generator=KeyphraseGenerator(samples=4), queries=2)
        case "extractive":
            return dataclasses.replace(usual, generator=ExtractiveGenerator(samples=4), queries=2)
        case "llm":
            return dataclasses.replace(plain.written_by(llm, samples=1).duqgen(), round_trip=None)
        case "llm, best of 4":
            return plain.written_by(llm, samples=4).duqgen()
        case "clusters" | "mixed":
            return usual
    found = load_synthesis(way).synthesis
    return dataclasses.replace(found, data=usual.data, documents=usual.documents, title=usual.title, seed=usual.seed)


class Systems:
    """What was measured on one collection: by system the values of its queries, once for each seed."""

    def __init__(self, data: str) -> None:
        self.data = data
        self.values: dict[str, list[Any]] = {}
        self.judged: dict[str, list[float]] = {}
        self.queries: dict[str, list[int]] = {}
        """How many were synthesized."""

    def add(self, system: str, found: Evaluation, queries: int | None = None) -> None:
        self.values.setdefault(system, []).append(found.per_query[MEASURE])
        self.judged.setdefault(system, []).append(found.judged_at_10)
        if queries is not None:
            self.queries.setdefault(system, []).append(queries)

    def rows(self, against: Sequence[str]) -> Iterator[dict[str, Any]]:
        """One for each system, compared with those of `against`, or with those before it where it is among them."""
        means = {system: np.mean(values, axis=0) for system, values in self.values.items()}
        for system, values in means.items():
            row: dict[str, Any] = {"data": self.data, "system": system, "n": len(values)}
            if system in self.queries:
                row["synthetic queries"] = round(float(np.mean(self.queries[system])), 1)
                row["by seed"] = [float(each.mean()) for each in self.values[system]]
            row |= {MEASURE: float(values.mean()), "interval": list(bootstrap_interval(values))}
            row["judged@10"] = float(np.mean(self.judged[system]))
            for other in against[: against.index(system)] if system in against else against:
                if other in means:
                    difference = values - means[other]
                    row[f"to {other}"] = float(difference.mean())
                    row[f"interval {other}"] = list(bootstrap_interval(difference))
                    row[f"p {other}"] = randomisation_test(values, means[other])
            yield row


class Arm(NamedTuple):
    """One adaptation, but for its seed."""

    system: str
    collection: str
    way: str
    documents: int


class Workshop:
    """Adapts what is asked for, once."""

    def __init__(self, options: argparse.Namespace, runtime: Runtime) -> None:
        self.options, self.runtime = options, runtime

    def wanted(self, arm: Arm, seed: int) -> Adaptation:
        given, there = self.options, self.options.folder / arm.collection
        plain = Adaptation(data=str(there) if there.exists() else arm.collection)
        plain = dataclasses.replace(
            plain,
            documents=arm.documents,
            titles=given.titles,
            first_stage=given.first_stage,
            k=given.k,
            weight=given.weight,
            unadapted=given.unadapted,
            engine=given.engine,
            epochs=given.epochs,
            steps=given.steps,
            learning_rate=given.learning_rate,
            split="dev" if arm.collection == "stdlib" else "test",
            seed=seed,
        )
        return dataclasses.replace(plain, synthesis=synthesized(arm.way, plain, given.llm))

    def adapted(self, wanted: Adaptation, arm: Arm) -> Adapted:
        key = wanted.key(wanted.duqgen().source(self.runtime))
        folder = self.options.out / f"{arm.collection}-{arm.documents}-seed{wanted.seed}-{key[:8]}"
        print(f"{time.strftime('%H:%M:%S')} {arm.system}, seed {wanted.seed}: {folder}", file=sys.stderr, flush=True)
        return adapt(wanted, folder, self.runtime)

    def compared(self, arms: Sequence[Arm]) -> Systems:
        """The arms on the queries that `Adaptation` measures."""
        systems = Systems(arms[0].collection)
        for seed in self.options.seeds:
            for arm in arms:
                done = self.adapted(self.wanted(arm, seed), arm)
                if done.results is None:
                    sys.exit(f"{arm.collection}: has no judgments to measure by")
                first, rescored, ours = done.results.evaluations
                for found in (first, rescored) if first.run not in systems.values else ():
                    systems.add(found.run, found)
                systems.add(arm.system, ours, self.said(arm, seed, done, ours))
        return systems

    def said(self, arm: Arm, seed: int, done: Adapted, found: Evaluation) -> int:
        """Prints a line of one adaptation; gives back how many queries were synthesized."""
        card = json.loads((done.folder / "data" / "card.json").read_text(encoding="utf-8"))
        line = {"task": self.options.task, **arm._asdict(), "seed": seed, "folder": done.folder.name}
        line |= {"synthetic queries": card["queries"], "with documents": card["documents"]["with queries"]}
        line |= {name: done.trained.facts[name] for name in ("groups", "steps", "best_step", "best", "seconds")}
        print(json.dumps({**line, **found.means, "judged@10": found.judged_at_10}), flush=True)
        return int(card["queries"])

    def tested(self, arm: Arm) -> Systems:
        """Given or new adapters on the test half, beside the supervised one."""
        systems, data = Systems(f"{arm.collection} (test)"), load(arm.collection, "test", runtime=self.runtime)
        rankings = []
        for seed in self.options.seeds[:1] if self.options.adapter else self.options.seeds:
            wanted = self.wanted(arm, seed)
            adapter, out = self.options.adapter, self.options.out / f"test-seed{seed}"
            if adapter is None:
                done = self.adapted(wanted, arm)
                adapter = done.adapter
            pipelines = wanted.pipelines(adapter)
            if self.options.supervised:
                stages = dataclasses.replace(wanted, engine="cross_encoder").adapted(str(self.options.supervised))
                pipelines = (*pipelines, Pipeline(stages, name="supervised"))
            results = evaluate(pipelines, [data], MEASURES, out=out, runtime=self.runtime)
            for found in results.evaluations:
                tops = {qid: {docno: -float(i) for i, docno in enumerate(top)} for qid, top in found.top.items()}
                rankings.append(Ranking.of(tops))
                if found.run == "adapted":
                    queries = None if self.options.adapter else self.said(arm, seed, done, found)
                    systems.add(arm.system, found, queries)
                elif found.run not in systems.values:
                    systems.add(found.run, found)
        unjudged = pool(rankings, 10, data.qrels)
        lines = (json.dumps({"query-id": qid, "documents": some}) for qid, some in unjudged.items())
        write_text(self.options.out / "pool.jsonl", "".join(f"{line}\n" for line in lines))
        print(f"{sum(map(len, unjudged.values()))} documents to judge", file=sys.stderr)
        return systems


def measured(options: argparse.Namespace, runtime: Runtime) -> Iterator[dict[str, Any]]:
    """The rows of a task."""
    collections, ways, other = TASKS[options.task]
    shop = Workshop(options, runtime)
    for collection in options.collections or collections:
        arms = [Arm(way, collection, way, n) for way in options.ways or ways for n in options.documents]
        if len(options.documents) > 1:
            arms = [arm._replace(system=f"{arm.way}, {arm.documents:,} documents") for arm in arms]
        if options.task == "stdlib":
            systems = shop.tested(arms[0]._replace(system="adapted"))
        else:
            systems = shop.compared(arms)
        yield from systems.rows((*list(systems.values)[:2], other))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    others = [
        system for system in dict.fromkeys(row["system"] for row in rows) if any(f"to {system}" in r for r in rows)
    ]
    heads = ["data", "system", "queries made", "by seed", f"{MEASURE} (95 %)", "judged@10"]
    heads += [f"to {other} (95 %; p)" for other in others]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = [row["data"], row["system"], f"{row['synthetic queries']:,.0f}" if "synthetic queries" in row else ""]
        cells.append(" ".join(f"{value:.3f}" for value in row.get("by seed", ())))
        cells.append(f"{row[MEASURE]:.4f} ({row['interval'][0]:.3f} to {row['interval'][1]:.3f})")
        cells.append(f"{row['judged@10']:.2f}")
        cells += [difference(row, other) if f"to {other}" in row else "" for other in others]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def difference(row: dict[str, Any], other: str) -> str:
    low, high = row[f"interval {other}"]
    return f"{row[f'to {other}']:+.4f} ({low:+.3f} to {high:+.3f}; {row[f'p {other}']:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=sorted(TASKS), required=True)
    parser.add_argument("--out", type=Path, required=True, help="where everything is kept")
    parser.add_argument("--folder", type=Path, default=Path("../shared/data"), help="holds the collections")
    parser.add_argument("--collections", nargs="+", help="names in --folder, or stdlib")
    parser.add_argument(
        "--ways", nargs="+", metavar="WAY", help="such as mixed llm, whole (no cloze), or files of rerank synthesize"
    )
    parser.add_argument("--documents", type=int, nargs="+", help="how many get queries; default 1000, of curve several")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--steps", type=int, help="in place of epochs: as many whatever the queries")
    parser.add_argument("--learning-rate", type=float, help="default: that of rerank adapt")
    parser.add_argument("--first-stage", default="hybrid")
    parser.add_argument("--engine", choices=("bi_encoder", "cross_encoder"), default="bi_encoder")
    parser.add_argument("--k", type=int, default=50, help="how many of a list are reranked, and left")
    parser.add_argument("--weight", type=float, default=0.5, help="of all but the first stage in the sum")
    parser.add_argument("--unadapted", type=float, default=0.4, help="the share of it that the encoder as it was has")
    parser.add_argument("--titles", action=argparse.BooleanOptionalAction, default=True, help="make queries of titles")
    parser.add_argument("--llm", default="smollm2-135m", help="the language model of the task generators")
    parser.add_argument("--adapter", type=Path, help="stdlib: measures this one")
    parser.add_argument("--supervised", type=Path, help="stdlib: a cross-encoder's adapter that judgments trained")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.k < 10:
        parser.error("--k: 10 or more, for nDCG@10 looks at as many")
    options.out, options.folder = options.out.resolve(), options.folder.resolve()
    options.documents = options.documents or ([100, 300, 1000] if options.task == "curve" else [1000])
    options.out.mkdir(parents=True, exist_ok=True)
    with Runtime(progress=False, threads=options.threads) as runtime:
        rows = []
        for row in measured(options, runtime):
            rows.append(row)
            print(json.dumps(row), flush=True)
    print(f"\n{table(rows)}")


if __name__ == "__main__":
    main()
