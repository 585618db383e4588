"""The table and the plot of `docs/choose-a-reranker.md`: quality and cost of rules x prompts x models.

    python scripts/figures/reranking.py --out FOLDER [--folder ../shared/data] [--json] [--plot FILE.svg]

Two collections are reranked: trec-dl-2019 (the head of its BM25 run) and noveleval (its 20 candidates, in the order of
a web search).  Most rows are also fused with the first stage: both scores are brought to 0 .. 1 within each list and
added.  The weight is the one with the best mean nDCG@10 on trec-dl-2021, where each such row is run first, on lists of
at most 30 documents.  Documents below a row's depth keep their order.

Finished rows are kept in FOLDER, and what the model answered in the request cache, so that the same command goes on
where another stopped; `--kept` prints the rows that are there.  Columns, each for one query:

    nDCG@10, AP     means over queries, with a 95 % bootstrap interval and the randomisation test's p against the first
                    stage; AP takes grade 2 or more as relevant
    + first stage   nDCG@10 of the fusion, the weight of the reranker's scores, and p against the first stage
    grade, length   rank correlation of the scores with grades and with lengths, within lists; rules that only order
                    have none
    calls           questions to the model (texts of the lists for encoders), tokens of the prompts and written ones;
                    empty where another row had asked the same
    failed          calls that said nothing usable
    same            calls whose best document is the one shown first, where several are shown
    seconds         CPU time of one thread without loading; of computed answers only

The last lines compare the two ways to merge groups, mean and fitted offsets, which read the same answers.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

for _name, _value in (("OMP_NUM_THREADS", "1"), ("TOKENIZERS_PARALLELISM", "false")):
    os.environ.setdefault(_name, _value)

from rerank.artifact import fingerprint, write_text  # noqa: E402
from rerank.config import stage_fingerprint  # noqa: E402
from rerank.data.dataset import Dataset  # noqa: E402
from rerank.data.load import load  # noqa: E402
from rerank.data.runs import load_run, save_run  # noqa: E402
from rerank.engines.engine import Asked, Asker, Engine  # noqa: E402
from rerank.engines.language_model import Sampling  # noqa: E402
from rerank.engines.prompted import CausalLMEngine  # noqa: E402
from rerank.evaluation.evaluation import Evaluation, evaluate_run  # noqa: E402
from rerank.evaluation.plots import STYLE, Point, scatter  # noqa: E402
from rerank.evaluation.significance import bootstrap_interval, compare_all, randomisation_test  # noqa: E402
from rerank.prompts import load_prompt  # noqa: E402
from rerank.ranking import Ranking, ScoreKind  # noqa: E402
from rerank.reranking import Rerank  # noqa: E402
from rerank.retrieve.rescore import Rescore  # noqa: E402
from rerank.rules.groupwise import Groupwise  # noqa: E402
from rerank.rules.listwise import Listwise  # noqa: E402
from rerank.rules.pairwise import Pairwise  # noqa: E402
from rerank.rules.pointwise import Pointwise  # noqa: E402
from rerank.rules.rule import Answer, Rule, is_failed  # noqa: E402
from rerank.rules.setwise import Setwise  # noqa: E402
from rerank.rules.tournament import Tournament  # noqa: E402
from rerank.runtime import Runtime  # noqa: E402
from rerank.stage import Concatenation, Cut, Stage, apply  # noqa: E402

CANDIDATES = {"trec-dl-2019": "bm25", "trec-dl-2021": "bm25", "noveleval": "initial"}
TUNED_ON, TUNING_DEPTH = "trec-dl-2021", 30
WEIGHTS = [step / 10 for step in range(11)]
NAMES = {
    "query-likelihood": "likelihood",
    "yes-no": "yes/no",
    "graded": "graded",
    "first": "first token",
    "group-scores": "written grades",
}
"""Of rows in the plot, where their rule says too little."""
CORRELATIONS = ("correlation with grade", "correlation with length")
NDCG, AP = MEASURES = ("nDCG@10", "AP(rel=2)")


class Row(NamedTuple):
    """A row of the table."""

    name: str
    rule: Rule | None
    """None: the vectors of an encoder are compared."""
    prompt: str
    model: str
    depth: int = 100
    """Documents of each list that are reranked."""
    tuning_queries: int | None = None
    """Of the collection that weights are tuned on, so many; None: all; 0: no fusion."""
    only: tuple[str, ...] = ()
    """Collections that it is run on, if not on all."""
    sampling: Sampling = Sampling()

    def stage(self, *, recorded: bool) -> Stage:
        """What reorders whole lists."""
        if self.rule is None:
            return Rescore(self.model)
        engine: Engine = CausalLMEngine(self.model, sampling=self.sampling)
        return Rerank(Recorded(engine) if recorded else engine, self.rule, self.prompt, k=None)

    @property
    def key(self) -> str:
        return fingerprint(
            [stage_fingerprint(self.stage(recorded=False)), load_prompt(self.prompt).fingerprint if self.rule else ""]
        )


DL19 = ("trec-dl-2019",)
MERGED = (TUNED_ON, *DL19)
SMOLLM = "smollm2-135m"
GROUPS = Groupwise(size=10, passes=2)
# The dearer a row, the fewer documents: how a model of 135 million parameters answers about several shows soon enough.
ROWS = (
    Row("similarity", None, "", "minilm-l6"),
    Row("similarity", None, "", "me5-small"),
    Row("pointwise", Pointwise(), "query-likelihood", SMOLLM),
    Row("pointwise", Pointwise(), "yes-no", SMOLLM, 50),
    Row("groupwise, mean", GROUPS, "pick", SMOLLM, 20, None, MERGED),
    Row("groupwise, offsets", dataclasses.replace(GROUPS, merge="offsets"), "pick", SMOLLM, 20, None, MERGED),
    Row("groupwise, mean", Groupwise(size=10), "group-scores", SMOLLM, 10, 0, DL19, Sampling(96, stop=("}",))),
    Row("pairwise heap", Pairwise(k=5), "pair", SMOLLM, 5, 0, DL19),
    Row("setwise heap", Setwise(size=10), "pick", SMOLLM, 20, 0, DL19),
    Row("listwise, one token", Listwise(window=10, step=5), "first", SMOLLM, 20, 0, DL19),
    Row("listwise", Listwise(), "order", SMOLLM, 10, 0, DL19, Sampling(80)),
    Row("pointwise", Pointwise(), "graded", SMOLLM, 30, 0, DL19),
    Row("tournament", Tournament(size=10), "pick", SMOLLM, 20, 0, DL19),
    Row("setwise bubble", Setwise("bubble", k=3, size=5), "pick", SMOLLM, 10, 0, DL19),
)


@dataclass(frozen=True, repr=False)
class Recorded(Engine):
    """An engine whose answers are counted by what they say."""

    engine: Engine

    def asker(self, prompt: str | None, runtime: Runtime) -> Asker:
        return _Recorder(self.engine.asker(prompt, runtime))


class _Recorder:
    def __init__(self, asker: Asker) -> None:
        self._asker = asker
        self.kind, self.most_documents, self.passages = asker.kind, asker.most_documents, asker.passages

    def ask(self, questions: Sequence[Asked], runtime: Runtime) -> list[Answer]:
        answers = self._asker.ask(questions, runtime)
        said = [answer for answer in answers if len(answer) > 1 and not is_failed(answer)]
        runtime.count("answers about several", len(said))
        best = [max(score for score in answer if score is not None) for answer in said]
        runtime.count("first shown is best", sum(answer[0] == top for answer, top in zip(said, best, strict=True)))
        runtime.count("distinct scores", sum(len({score for score in answer if score is not None}) for answer in said))
        return answers


class Kept(NamedTuple):
    """A row's run on one collection: the reranked heads, and what they cost."""

    head: Ranking
    counts: Counter[str]
    cpu_seconds: float


def judged(row: Row, data: Dataset, depth: int, options: argparse.Namespace, runtime: Runtime) -> Kept | None:
    """The row's run on the first `depth` documents, kept or made now; None with `--kept` where there is none."""
    names = (row.name.replace(",", "").replace(" ", "-"), Path(row.prompt).stem, row.model, str(depth))
    label = "-".join(filter(None, names))
    folder = options.out / data.name / f"{label}-{fingerprint([row.key, data.fingerprint])[:12]}"
    if not folder.exists():
        if options.kept:
            return None
        stage = Cut(depth) >> row.stage(recorded=row.rule is not None)
        # What loads, loads now.
        runtime.run(Cut(2) >> row.stage(recorded=False), data.with_queries(list(data.queries)[:1]))
        print(f"{time.strftime('%H:%M:%S')} {data.name}: {label}", file=sys.stderr, flush=True)
        started = time.process_time()
        run = runtime.run(stage, data)
        seconds = {"cpu_seconds": time.process_time() - started}
        save_run(dataclasses.replace(run, provenance={**run.provenance, **seconds}), folder)
    run = load_run(folder)
    counts: Counter[str] = Counter()
    for stat in run.stats:
        counts.update(stat.counts)
    return Kept(run.ranking, counts, run.provenance["cpu_seconds"])


def whole(head: Ranking) -> Stage:
    """The head, then what the list has below it."""
    return Concatenation((apply(lambda _: head), Cut(1_000_000)))


def fused(head: Ranking, depth: int, weight: float) -> Stage:
    """Scores of 0 .. 1 of both, added over the head."""
    both = weight * apply(lambda _: head).minmax() + (1 - weight) * Cut(depth).minmax()
    return Concatenation((both, Cut(1_000_000)))


def measured(name: str, stage: Stage, data: Dataset, runtime: Runtime) -> Evaluation:
    return evaluate_run(runtime.run(stage, data, name), data, MEASURES)


def collection(name: str, options: argparse.Namespace, runtime: Runtime, queries: int | None) -> Dataset:
    data = load(options.folder / name, candidates=CANDIDATES[name], runtime=runtime)
    return data if queries is None else data.with_queries(list(data.queries)[:queries])


def tuned_weight(row: Row, options: argparse.Namespace, runtime: Runtime) -> float | None:
    """The weight of the reranker's scores with the best mean on the tuning collection; the least of equals."""
    if row.tuning_queries == 0:
        return None
    queries = min((n for n in (row.tuning_queries, options.queries) if n is not None), default=None)
    data = collection(TUNED_ON, options, runtime, queries)
    depth = min(row.depth, TUNING_DEPTH, options.depth)
    found = judged(row, data, depth, options, runtime)
    if found is None:
        return None
    means = [measured("fused", fused(found.head, depth, w), data, runtime).means[NDCG] for w in WEIGHTS]
    return WEIGHTS[means.index(max(means))]


def figures(row: Row, data: Dataset, weight: float | None, options: argparse.Namespace, runtime: Runtime) -> Any:
    """One row of the table on one collection, as plain values."""
    depth = min(row.depth, options.depth)
    found = judged(row, data, depth, options, runtime)
    if found is None:
        return None
    first = measured("first stage", Cut(1_000_000), data, runtime)
    own = measured("reranked", whole(found.head), data, runtime)
    n, counts = len(own.qids), found.counts
    several = counts["answers about several"]
    # Answers of an earlier try that was stopped cost nothing now.
    computed = 1 - counts["cached answers"] / max(1, counts["requests"])

    def cost(total: float) -> float | None:
        return total / n / computed if computed > 0.5 else None

    line = {
        "data": data.name,
        "rule": row.name,
        "prompt": row.prompt,
        "model": row.model,
        "depth": int(max(map(len, found.head))),
        **quality(own, first),
        "calls": (counts["calls"] or counts["scored pairs"]) / n,
        "tokens": cost(counts["tokens"]),
        "generated": cost(counts["generated tokens"]),
        "failed": counts["failed answers"] / counts["calls"] if counts["calls"] else 0.0,
        "first shown is best": counts["first shown is best"] / several if several else None,
        "distinct scores": counts["distinct scores"] / several if several else None,
        "documents a call": counts["documents shown"] / counts["calls"] if counts["calls"] else 1.0,
        "seconds": cost(found.cpu_seconds),
        "weight": weight,
        **{f"correlation with {name}": value for name, value in correlations(found.head, data).items()},
    }
    if weight is not None:
        sum_ = measured("fused", fused(found.head, depth, weight), data, runtime)
        line["fused"] = quality(sum_, first)
    line["per query"] = own.per_query[NDCG].tolist()
    return line


def correlations(head: Ranking, data: Dataset) -> dict[str, float]:
    """Spearman's correlation of scores with grades and with numbers of words within lists, the mean over lists."""
    from scipy.stats import spearmanr

    if head.kind is ScoreKind.RANK or data.corpus is None or data.qrels is None:
        return {}
    found: dict[str, list[float]] = {"grade": [], "length": []}
    head = head.with_source(data.corpus)
    lengths = [len(text.split()) for text in head.texts()]
    for hits, start in zip(head, head.offsets.tolist(), strict=False):
        scores = [hit.score for hit in hits]
        grades = [data.qrels[hits.qid].get(hit.docno, 0) for hit in hits]
        for name, values in (("grade", grades), ("length", lengths[start : start + len(grades)])):
            if len(set(values)) > 1 and len(set(scores)) > 1:
                found[name].append(float(spearmanr(scores, values).statistic))
    return {name: sum(values) / len(values) for name, values in found.items() if values}


def quality(found: Evaluation, first: Evaluation) -> dict[str, Any]:
    values = found.per_query[NDCG]
    return {
        NDCG: found.means[NDCG],
        "interval": list(bootstrap_interval(values)),
        "p": randomisation_test(values, first.per_query[NDCG]),
        AP: found.means[AP],
    }


def markdown(lines: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The table of each collection."""
    for name in dict.fromkeys(line["data"] for line in lines):
        yield f"### {name}"
        yield ""
        yield (
            "| rule | prompt | model | depth | nDCG@10 (95 %) | p | AP | + first stage (weight) | p "
            "| grade | length | calls | prompt tokens | written | failed | same | seconds |"
        )
        yield "|---|---|---|--:|---|--:|--:|---|" + "--:|" * 9
        for line in lines:
            if line["data"] == name:
                yield "| " + " | ".join(cells(line)) + " |"
        yield ""


def cells(line: dict[str, Any]) -> list[str]:
    sum_ = line.get("fused")
    same = line["first shown is best"]
    return [
        line["rule"],
        line["prompt"],
        line["model"],
        str(line["depth"]),
        f"{line[NDCG]:.3f} ({line['interval'][0]:.3f} to {line['interval'][1]:.3f})",
        "" if line["rule"] == "first stage" else p_value(line["p"]),
        f"{line[AP]:.3f}",
        "" if sum_ is None else f"{sum_[NDCG]:.3f} ({line['weight']:.1f})",
        "" if sum_ is None else p_value(sum_["p"]),
        *(f"{line[name]:.2f}" if name in line else "" for name in CORRELATIONS),
        f"{line['calls']:,.0f}",
        *("" if line[name] is None else f"{line[name]:,.0f}" for name in ("tokens", "generated")),
        f"{line['failed']:.0%}",
        "" if same is None else f"{same:.0%}",
        "" if line["seconds"] is None else f"{line['seconds']:.2g}",
    ]


def p_value(p: float) -> str:
    return "<.001" if p < 0.001 else f"{p:.3f}".lstrip("0") if p < 1 else "1"


def first_stage(data: Dataset, runtime: Runtime) -> dict[str, Any]:
    found = measured("first stage", Cut(1_000_000), data, runtime)
    nothing = dict.fromkeys(("calls", "tokens", "generated", "failed", "seconds", "documents a call"), 0.0)
    absent = dict.fromkeys(("first shown is best", "distinct scores", "weight"))
    name = {"rule": "first stage", "prompt": "", "model": "BM25" if CANDIDATES[data.name] == "bm25" else "web search"}
    return {"data": data.name, **name, "depth": 0, **quality(found, found), **nothing, **absent}


def merges(lines: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The fitted offsets against the mean, on the same answers."""
    rows = {(line["data"], line["rule"], line["prompt"]): line for line in lines}
    for (data, rule, prompt), line in rows.items():
        mean = rows.get((data, "groupwise, mean", prompt))
        if rule == "groupwise, offsets" and mean is not None:
            import numpy as np

            values = {"mean": np.array(mean["per query"]), "offsets": np.array(line["per query"])}
            found = compare_all(values, "mean")["offsets"]
            yield (
                f"{data}, {prompt}: offsets {line[NDCG]:.4f} - mean {mean[NDCG]:.4f} = {found.difference:+.4f} "
                f"({found.interval.low:+.4f} to {found.interval.high:+.4f}), p {found.p_value:.3f}, "
                f"{found.wins} better, {found.ties} equal, {found.losses} worse"
            )


def plot(lines: Sequence[dict[str, Any]]) -> str:
    """Quality against cost as an SVG file; names tell what the fusion reaches where it is better."""
    points = []
    cheapest = min(line["seconds"] for line in lines if line["seconds"])
    for line in lines:
        if line["rule"] == "first stage":
            points.append(Point("BM25 (no further cost)", cheapest / 3, line[NDCG]))
        elif line["seconds"]:
            label = NAMES.get(line["prompt"], line["rule"].split(",")[0]) if line["prompt"] else line["model"]
            depth = "" if line["depth"] == 100 else f", {line['depth']}"
            sum_ = line["fused"][NDCG] if line["weight"] else 0.0
            better = f", fused {sum_:.3f}" if sum_ > line[NDCG] + 0.001 else ""
            points.append(Point(f"{label}{depth}{better}", line["seconds"], line[NDCG]))
    svg = scatter(points, "CPU seconds a query, one thread", NDCG, log_x=True)
    opening, inside = svg.split(">", 1)
    return f'{opening}><style>{STYLE}</style><rect width="100%" height="100%" fill="var(--paper)"/>{inside}\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder that keeps finished rows")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parents[3] / "shared" / "data")
    parser.add_argument("--data", nargs="+", choices=list(CANDIDATES), default=["trec-dl-2019", "noveleval"])
    parser.add_argument("--models", nargs="+", help="rows with these models only")
    parser.add_argument("--rows", nargs="+", help="rows in whose rule, prompt and model one of these texts is found")
    parser.add_argument("--prompts", nargs="+", default=[], help="more pointwise rows: prompt files or names")
    parser.add_argument("--depth", type=int, default=100, help="at most so many documents of each list")
    parser.add_argument("--queries", type=int, help="only the first so many queries")
    parser.add_argument("--no-fusion", action="store_true", help="tune no weights")
    parser.add_argument("--kept", action="store_true", help="run nothing, print what is kept")
    parser.add_argument("--json", action="store_true", help="print a JSON object a row")
    parser.add_argument("--plot", type=Path, help="where the plot of trec-dl-2019 goes")
    options = parser.parse_args()
    rows = [*ROWS, *(Row("pointwise", Pointwise(), name, SMOLLM) for name in options.prompts)]
    if options.models:
        rows = [row for row in rows if row.model in options.models]
    if options.rows:
        names = {row: f"{row.name} {row.prompt} {row.model}" for row in rows}
        rows = [row for row in rows if any(text in names[row] for text in (*options.rows, *options.prompts))]
    lines: list[dict[str, Any]] = []
    with Runtime(threads=1, device="cpu", progress=False) as runtime:
        datasets = [collection(name, options, runtime, options.queries) for name in options.data]
        lines = [first_stage(data, runtime) for data in datasets]
        for row in rows:
            weight = None if options.no_fusion else tuned_weight(row, options, runtime)
            for data in datasets:
                if not row.only or data.name in row.only:
                    line = figures(row, data, weight, options, runtime)
                    lines += [line] if line else []
    if options.plot:
        write_text(options.plot, plot([line for line in lines if line["data"] == "trec-dl-2019"]))
    if options.json:
        print("\n".join(map(json.dumps, lines)))
    else:
        print("\n".join([*markdown(lines), *merges(lines)]))


if __name__ == "__main__":
    main()
