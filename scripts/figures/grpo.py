"""Figures of GRPO: supervised training until the model can do the task, GRPO from there, both measured on new groups.

    python scripts/figures/grpo.py --out FOLDER [--folder ../shared/data] [--task groups] [--seeds 0 1 2]
        [--samples 4] [--words-steps N] [--sft-steps N] [--grpo-steps N] [--threads N]

The recipes are smollm2-TASK-words, on words of NFCorpus's documents, then smollm2-TASK-sft and smollm2-TASK-grpo, on
judgments.  The supervised part is trained once; each seed is a GRPO training from there.  The adapters are asked about
groups of NFCorpus's dev split, drawn as the training groups are, two of a query at most: once with the likeliest
answer (greedy) and `--samples` times with drawn ones (sampled, at the temperature of the training, the same random
numbers for all adapters).  One JSON object a line is printed: for each adapter the shares of verdicts, of answers that
tell documents apart (scores_differ) and of groups whose answers were all worth the same (all_equal), and the means of
the reward's parts over all answers; what a reranker that tells nothing apart has; and for each seed the comparison of
its adapter with the start by the ranking part of the reward, over the groups that both answered in the right form; the
interval and the paired randomisation test's p are over queries, each with the mean of its groups.  For the task groups
TREC DL 2019 follows, BM25's first 20 reranked: nothing was chosen on it.

All that is finished is kept in FOLDER; the same command goes on where another stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

for _name, _value in (("OMP_NUM_THREADS", "1"), ("TOKENIZERS_PARALLELISM", "false")):
    os.environ.setdefault(_name, _value)

import numpy as np  # noqa: E402

from rerank.artifact import write_json  # noqa: E402
from rerank.data.load import load  # noqa: E402
from rerank.engines.language_model import Sampling  # noqa: E402
from rerank.engines.text_model import torch_threads  # noqa: E402
from rerank.evaluation.experiment import evaluate  # noqa: E402
from rerank.evaluation.significance import bootstrap_interval, randomisation_test  # noqa: E402
from rerank.prompts.prompt import Prompt, load_prompt  # noqa: E402
from rerank.reranking import Rerank  # noqa: E402
from rerank.rules.groupwise import Groupwise  # noqa: E402
from rerank.runtime import Runtime  # noqa: E402
from rerank.stage import Cut, Pipeline  # noqa: E402
from rerank.synthesize.duqgen import DUQGen  # noqa: E402
from rerank.synthesize.presets import load_synthesis  # noqa: E402
from rerank.train.answers import Reply, Verdict, read_reply  # noqa: E402
from rerank.train.causal_lm_student import CausalLMStudent  # noqa: E402
from rerank.train.groups import Groups, build_groups  # noqa: E402
from rerank.train.grpo import GRPO  # noqa: E402
from rerank.train.recipe import Recipe, load_recipe  # noqa: E402
from rerank.train.rollouts import seed_of, write  # noqa: E402
from rerank.train.sft import SFT  # noqa: E402
from rerank.train.training import train  # noqa: E402

RANKING = {"groups": "ndcg", "pick": "exact_pick"}
"""The part of the reward that is compared."""
_AT_ONCE = 32


def recipes(options: argparse.Namespace) -> tuple[SFT, SFT, GRPO]:
    """The recipes of a task, with the data where they are."""
    paths = {"crops": str(options.out / "crops")}
    paths |= {
        "beir/nfcorpus": str(options.folder / "beir-nfcorpus"),
        "trec-dl-2021": str(options.folder / "trec-dl-2021"),
    }

    def of(kind: str, steps: int | None) -> Recipe:
        recipe = load_recipe(f"smollm2-{options.task}-{kind}").recipe
        named = {source.data for source in recipe.groups}
        recipe = recipe.with_data({name: path for name, path in paths.items() if name in named})
        return (
            dataclasses.replace(recipe, optimiser=dataclasses.replace(recipe.optimiser, steps=steps))
            if steps
            else recipe
        )

    words, sft = of("words", options.words_steps), of("sft", options.sft_steps)
    grpo = of("grpo", options.grpo_steps)
    if not isinstance(words, SFT) or not isinstance(sft, SFT) or not isinstance(grpo, GRPO):
        sys.exit(f"smollm2-{options.task}: the recipes are no sft, sft and grpo")
    return words, sft, grpo


def write_crops(options: argparse.Namespace, runtime: Runtime) -> None:
    """The data set of the first recipe."""
    found = load_synthesis("document-crops").synthesis
    if not isinstance(found, DUQGen):
        sys.exit("document-crops: is no duqgen")
    dataclasses.replace(found, data=str(options.folder / "beir-nfcorpus")).run(options.out / "crops", runtime)


def held_out_groups(recipe: GRPO, runtime: Runtime) -> Groups:
    """Two groups of each query of the dev split at most, drawn like those of the first source."""
    source = recipe.groups[0]
    positives = dataclasses.replace(source.positives, groups=2)
    return build_groups(dataclasses.replace(source, split="dev", positives=positives, seed=1), runtime)


def measure(recipe: GRPO, adapter: Path, groups: Groups, n_samples: int, runtime: Runtime) -> dict[str, Any]:
    """What an adapter answers: for each way to answer, verdicts and the parts of the reward, group by group."""
    with torch_threads(runtime.threads):
        student = dataclasses.replace(recipe, start=str(adapter), beta=0.0).student(runtime)
        if not isinstance(student, CausalLMStudent):
            sys.exit("no language model")
        reward = recipe.reward_for(student.prompt)
        ways = {
            "greedy": (Sampling(max_tokens=recipe.max_new_tokens), 1),
            "sampled": (recipe.sampling, n_samples),
        }
        found: dict[str, Any] = {}
        for way, (sampling, n) in ways.items():
            rows = []
            for start in range(0, len(groups), _AT_ONCE):
                some = groups[start : start + _AT_ONCE]
                prompts = [request.tokens for request in student.asked(some, recipe.max_new_tokens)]
                seeds = [[seed_of(99, start + place, i) for i in range(n)] for place in range(len(some))]
                for group, written in zip(some, write(student, prompts, seeds, sampling), strict=True):
                    replies = [
                        read_reply(student.prompt, each.text, len(group.documents), finished=each.finished)
                        for each in written
                    ]
                    rows.append(
                        {
                            "qid": group.qid,
                            "texts": [each.text for each in written],
                            "valid": [reply.valid for reply in replies],
                            "verdicts": [reply.verdict(group.labels).value for reply in replies],
                            "rewards": [reward(reply, group.labels) for reply in replies],
                            "terms": [reward.terms(reply, group.labels) for reply in replies],
                        }
                    )
            found[way] = rows
    return found


def summary(rows: Sequence[dict[str, Any]], groups: Groups, prompt: Prompt) -> dict[str, Any]:
    """Shares of verdicts, and means over all answers."""
    replies = [
        read_reply(prompt, text, len(group.documents))
        for row, group in zip(rows, groups, strict=True)
        for text in row["texts"]
    ]
    scores = [reply.scores for reply in replies if reply.valid]
    verdicts = Counter(verdict for row in rows for verdict in row["verdicts"])
    n = sum(verdicts.values())
    terms = [term for row in rows for term in row["terms"]]
    return {
        "groups": len(rows),
        "answers": n,
        **{f"share/{verdict.value}": round(verdicts[verdict.value] / n, 4) for verdict in Verdict},
        "share/scores_differ": round(sum(len(set(each)) > 1 for each in scores) / n, 4),
        "share/all_equal": round(statistics.fmean(len(set(row["rewards"])) == 1 for row in rows), 4),
        "reward": round(statistics.fmean(reward for row in rows for reward in row["rewards"]), 4),
        **{name: round(statistics.fmean(term[name] for term in terms), 4) for name in terms[0]},
    }


def compared(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]], part: str) -> dict[str, Any]:
    """The ranking part of the reward before and after, over groups with an answer in the right form on both sides."""
    both: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for one, other in zip(before, after, strict=True):
        first, second = mean_of(one, part), mean_of(other, part)
        if first is not None and second is not None:
            both[one["qid"]].append((first, second))
    if not both:
        return {"groups": 0}
    means = np.array([np.mean(pairs, axis=0) for pairs in both.values()], dtype=np.float64)
    first, second = means.T
    interval = bootstrap_interval(second - first)
    return {
        "groups": sum(map(len, both.values())),
        "queries": len(both),
        "before": round(float(first.mean()), 4),
        "after": round(float(second.mean()), 4),
        "difference": round(float((second - first).mean()), 4),
        "interval": [round(interval.low, 4), round(interval.high, 4)],
        "p": randomisation_test(second, first),
    }


def mean_of(row: dict[str, Any], part: str) -> float | None:
    """The mean of a part of the reward over a group's answers in the right form; None without any."""
    values = [term[part] for term, valid in zip(row["terms"], row["valid"], strict=True) if valid]
    return statistics.fmean(values) if values else None


def figures(options: argparse.Namespace, runtime: Runtime) -> Iterator[dict[str, Any]]:
    """All lines."""
    words, sft, grpo = recipes(options)
    write_crops(options, runtime)
    groups = held_out_groups(grpo, runtime)
    task, part, prompt = options.task, RANKING[options.task], load_prompt(str(grpo.prompt))

    def trained(name: str, recipe: Recipe, start: Path | None) -> Path:
        told(name)
        wanted = recipe if start is None else recipe.going_on_from(start)
        return train(wanted, options.out / name, runtime, name=name).model

    def measured(name: str, adapter: Path) -> dict[str, Any]:
        path = options.out / f"measured-{name}-{options.samples}.json"
        if not path.is_file():
            told(f"{name}: asked about {len(groups)} groups")
            write_json(path, measure(grpo, adapter, groups, options.samples, runtime))
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found

    start = trained(f"{task}-sft", sft, trained(f"{task}-words", words, None))
    adapters = {f"{task}-sft": start}
    value = grpo.reward_for(prompt).terms
    ties = [value(Reply((0.0,) * len(group.documents)), group.labels)[part] for group in groups]
    yield {"task": task, "adapter": "none, all documents alike", part: round(statistics.fmean(ties), 4)}
    before = measured(f"{task}-sft", start)
    for way, rows in before.items():
        yield {"task": task, "adapter": "sft", "answers_are": way, **summary(rows, groups, prompt)}
    for seed in options.seeds:
        name = f"{task}-grpo-{seed}"
        adapters[name] = trained(name, dataclasses.replace(grpo, seed=seed), start)
        after = measured(name, adapters[name])
        for way, rows in after.items():
            line = {"task": task, "adapter": "grpo", "seed": seed, "answers_are": way}
            yield line | summary(rows, groups, prompt)
            line = {"task": task, "seed": seed, "compared": part, "answers_are": way}
            yield line | compared(before[way], rows, part)
    if task == "groups":
        yield from reranked(adapters, grpo, options, runtime)


def reranked(
    adapters: Mapping[str, Path], recipe: GRPO, options: argparse.Namespace, runtime: Runtime
) -> Iterator[dict[str, Any]]:
    """TREC DL 2019: BM25's first 20 documents, and these reranked by each adapter."""
    data = load(str(options.folder / "trec-dl-2019"), "test", runtime=runtime, candidates="bm25")
    given = Cut(20)
    pipelines = [Pipeline((given,), name="bm25")]
    for name, adapter in adapters.items():
        engine = dataclasses.replace(recipe.engine, adapter=str(adapter))  # type: ignore[call-arg]
        rule = Groupwise(size=recipe.groups[0].sizes[0], passes=4)
        pipelines.append(Pipeline((given, Rerank(engine, rule, recipe.prompt, k=None)), name=name))
    told("reranking trec-dl-2019")
    found = evaluate(pipelines, [data], ["nDCG@10"], out=options.out / "trec-dl-2019", runtime=runtime)
    first = found.evaluations[0].per_query["nDCG@10"]
    for each in found.evaluations:
        values = each.per_query["nDCG@10"]
        interval = bootstrap_interval(values)
        yield {
            "data": "trec-dl-2019",
            "system": each.run,
            "nDCG@10": round(float(values.mean()), 4),
            "interval": [round(interval.low, 4), round(interval.high, 4)],
            "to bm25": round(float((values - first).mean()), 4),
            "p": randomisation_test(values, first),
        }


def told(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where everything is kept")
    parser.add_argument("--folder", type=Path, default=Path("../shared/data"), help="holds the collections")
    parser.add_argument("--task", choices=sorted(RANKING), default="groups")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=4, help="drawn answers to each group")
    parser.add_argument("--words-steps", type=int, help="instead of the recipe's")
    parser.add_argument("--sft-steps", type=int, help="instead of the recipe's")
    parser.add_argument("--grpo-steps", type=int, help="instead of the recipe's")
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    options.out = options.out.resolve()
    options.folder = options.folder.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    with Runtime(threads=options.threads) as runtime:
        for line in figures(options, runtime):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
