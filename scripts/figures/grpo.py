"""Figures of GRPO: a cold start by supervised training, GRPO from there, both measured on groups that neither has seen.

    python scripts/figures/grpo.py --out FOLDER [--folder ../shared/data] [--task groups] [--seeds 0 1 2]
        [--samples 4] [--sft-steps N] [--grpo-steps N] [--threads N]

The recipes are smollm2-TASK-sft and smollm2-TASK-grpo.  Each seed trains both; the adapters are asked about one group
of each query of NFCorpus's dev split, drawn as the training groups are, once with the likeliest answer (greedy) and
`--samples` times with drawn ones (sampled, at the temperature of the training, the same random numbers for all
adapters).  One JSON object a line is printed: for each adapter the shares of verdicts and the means of the reward's
parts over all answers, and for each seed the comparison of its two adapters by the ranking part of the reward, over the
groups that both answered in the right form, with the paired randomisation test's p.

All that is finished is kept in FOLDER; the same command goes on where another stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

for _name, _value in (("OMP_NUM_THREADS", "1"), ("TOKENIZERS_PARALLELISM", "false")):
    os.environ.setdefault(_name, _value)

import numpy as np  # noqa: E402

from rerank.artifact import write_json  # noqa: E402
from rerank.engines.language_model import Sampling  # noqa: E402
from rerank.engines.text_model import torch_threads  # noqa: E402
from rerank.evaluation.significance import bootstrap_interval, randomisation_test  # noqa: E402
from rerank.runtime import Runtime  # noqa: E402
from rerank.train.answers import Verdict, read_reply  # noqa: E402
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


def recipes(task: str, folder: Path, sft_steps: int | None, grpo_steps: int | None) -> tuple[SFT, GRPO]:
    """Both recipes of a task, with the data in `folder`."""
    paths = {"beir/nfcorpus": str(folder / "beir-nfcorpus"), "trec-dl-2021": str(folder / "trec-dl-2021")}

    def of(kind: str, steps: int | None) -> Recipe:
        recipe = load_recipe(f"smollm2-{task}-{kind}").recipe
        named = {source.data for source in recipe.groups}
        recipe = recipe.with_data({name: path for name, path in paths.items() if name in named})
        return (
            dataclasses.replace(recipe, optimiser=dataclasses.replace(recipe.optimiser, steps=steps))
            if steps
            else recipe
        )

    sft, grpo = of("sft", sft_steps), of("grpo", grpo_steps)
    if not isinstance(sft, SFT) or not isinstance(grpo, GRPO):
        sys.exit(f"smollm2-{task}: the recipes are no sft and grpo")
    return sft, grpo


def held_out_groups(recipe: GRPO, runtime: Runtime) -> Groups:
    """One group of each query of the dev split, drawn like those of the first source."""
    source = recipe.groups[0]
    positives = dataclasses.replace(source.positives, groups=1)
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


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Shares of verdicts, and means over all answers."""
    verdicts = Counter(verdict for row in rows for verdict in row["verdicts"])
    n = sum(verdicts.values())
    terms = [term for row in rows for term in row["terms"]]
    return {
        "groups": len(rows),
        "answers": n,
        **{f"share/{verdict.value}": round(verdicts[verdict.value] / n, 4) for verdict in Verdict},
        "share/all_equal": round(statistics.fmean(len(set(row["rewards"])) == 1 for row in rows), 4),
        "reward": round(statistics.fmean(reward for row in rows for reward in row["rewards"]), 4),
        **{name: round(statistics.fmean(term[name] for term in terms), 4) for name in terms[0]},
    }


def compared(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]], part: str) -> dict[str, Any]:
    """The ranking part of the reward before and after, over groups with an answer in the right form on both sides."""
    pairs = [(mean_of(one, part), mean_of(other, part)) for one, other in zip(before, after, strict=True)]
    both = [(one, other) for one, other in pairs if one is not None and other is not None]
    first, second = (np.array(values, dtype=np.float64) for values in zip(*both, strict=True))
    interval = bootstrap_interval(second - first)
    return {
        "groups": len(both),
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


def figures(arguments: argparse.Namespace, runtime: Runtime) -> Iterator[dict[str, Any]]:
    """All lines."""
    sft, grpo = recipes(arguments.task, arguments.folder, arguments.sft_steps, arguments.grpo_steps)
    groups = held_out_groups(grpo, runtime)
    part = RANKING[arguments.task]

    def measured(name: str, adapter: Path) -> dict[str, Any]:
        path = arguments.out / f"{name}.json"
        if not path.is_file():
            write_json(path, measure(grpo, adapter, groups, arguments.samples, runtime))
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found

    for seed in arguments.seeds:
        both = {}
        started = train(dataclasses.replace(sft, seed=seed), arguments.out / f"sft-{seed}", runtime)
        both["sft"] = measured(f"measured-sft-{seed}", started.model)
        ended = train(
            dataclasses.replace(grpo, seed=seed, start=str(started.model)), arguments.out / f"grpo-{seed}", runtime
        )
        both["grpo"] = measured(f"measured-grpo-{seed}", ended.model)
        for name, found in both.items():
            for way, rows in found.items():
                yield {"task": arguments.task, "seed": seed, "adapter": name, "answers_are": way, **summary(rows)}
        for way in both["sft"]:
            line = {"task": arguments.task, "seed": seed, "compared": part, "answers_are": way}
            yield line | compared(both["sft"][way], both["grpo"][way], part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where everything is kept")
    parser.add_argument("--folder", type=Path, default=Path("../shared/data"), help="holds the collections")
    parser.add_argument("--task", choices=sorted(RANKING), default="groups")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=4, help="drawn answers to each group")
    parser.add_argument("--sft-steps", type=int, help="instead of the recipe's")
    parser.add_argument("--grpo-steps", type=int, help="instead of the recipe's")
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args()
    arguments.out = arguments.out.resolve()
    arguments.folder = arguments.folder.resolve()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with Runtime(threads=arguments.threads) as runtime:
        for line in figures(arguments, runtime):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
