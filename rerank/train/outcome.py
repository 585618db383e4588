"""What a training came to, for people: the card of the model, and a report with learning curves."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rerank.evaluation import plots
from rerank.evaluation.report import escaped, html_page, html_table
from rerank.train.answers import Verdict
from rerank.train.card import GroupsCard

_PART, _SHARE = "reward/", "share/"
"""What the log's names of a reward's parts and of shares begin with; as `rerank.train.grpo` writes them."""

Log = Sequence[Mapping[str, Any]]


def card_text(facts: Mapping[str, Any], groups: GroupsCard, log: Log) -> str:
    """The README.md of a trained model, with the metadata that model hubs read.

    Args:
        facts: as `rerank.train.training` collects them.
        groups: what was learnt from.
        log: the lines of metrics.jsonl.
    """
    head = ["---", f"base_model: {json.dumps(facts['base_source'])}", "library_name: peft"]
    if facts["adapter"] is None:
        head[-1] = "library_name: transformers"
    head += ["pipeline_tag: text-ranking", "tags: [rerank, reranker]", "---", ""]
    return "\n".join([*head, *_card(facts, groups, log)]) + "\n"


def _card(facts: Mapping[str, Any], groups: GroupsCard, log: Log) -> Iterator[str]:
    yield f"# {facts['name']}"
    yield ""
    what = "An adapter of" if facts["adapter"] is not None else "Trained from"
    yield f"{what} `{facts['base']}` for the engine `{facts['engine']}`, by the recipe `{facts['kind']}`."
    yield ""
    yield "## Use"
    yield ""
    yield "```yaml"
    yield from _use(facts)
    yield "```"
    if facts["quantised"] is not None:
        yield ""
        yield (
            f"It was trained on layers rounded to {facts['quantised']}, and on the base as it is scores a little "
            "differently; `rerank adapters merge` writes the model that was trained."
        )
    yield ""
    yield "## Quality"
    yield ""
    measured = [(line["step"], value) for line in log if (value := _measured(line)) is not None]
    if measured:
        yield f"{facts['measure']} on {', '.join(facts['measured_on'])}, by `{facts['pipeline']}`:"
        yield ""
        yield f"| step | {facts['measure']} |"
        yield "|---:|---:|"
        for step, value in measured:
            mark = " (kept)" if step == facts["best_step"] else ""
            yield f"| {step:,}{mark} | {value:.4f} |"
        yield ""
        yield "The checkpoint was chosen on these queries; its quality on others must be measured on others."
        if measured[0][0] == 0 and facts["best"] <= measured[0][1]:
            yield ""
            yield "**No checkpoint is better than the weights before training.**"
    else:
        yield "Nothing was measured while it was trained."
    yield ""
    if rewarded := [line for line in log if "reward" in line]:
        yield "## Rewards"
        yield ""
        yield from _rewards_told(rewarded)
        yield ""
    yield "## Training"
    yield ""
    for title, text in training_facts(facts):
        yield f"- {title}: {text}"
    yield ""
    yield "## Data"
    yield ""
    yield "```"
    yield str(groups)
    yield "```"
    yield ""
    yield "## Recipe"
    yield ""
    yield "```yaml"
    yield facts["recipe"].rstrip()
    yield "```"


def _rewards_told(lines: Log) -> Iterator[str]:
    """What the first and the last line of the log say of rewards, in words."""
    first, last = lines[0], lines[-1]
    parts = [name for name in last if name.startswith(_PART)]
    shares = {verdict.value: last[f"{_SHARE}{verdict.value}"] for verdict in Verdict}
    told = ", ".join(f"{share:.1%} {name}" for name, share in shares.items())
    yield f"What the model wrote while it was trained, by the last line of the log (up to step {last['step']:,}):"
    yield ""
    yield f"- mean reward {last['reward']:.4f}; it was {first['reward']:.4f} up to step {first['step']:,}"
    if len(parts) > 1:
        means = ", ".join(f"{name.removeprefix(_PART)} {last[name]:.4f}" for name in parts)
        yield f"- parts of the reward, before weights: {means}"
    yield f"- of the answers {told}"
    yield f"- all answers were worth the same, and taught nothing, for {last[f'{_SHARE}all_equal']:.1%} of the prompts"
    yield f"- length {last['length']:.1f} tokens, the longest {last['length_max']:,.0f}"
    if "kl" in last:
        yield f"- divergence from the weights at the start {last['kl']:.4f} a token"


def _use(facts: Mapping[str, Any]) -> Iterator[str]:
    folder = "adapter" if facts["adapter"] is not None else "model"
    yield "stages:"
    yield "  - bm25: {k: 100}"
    yield "  - rerank:"
    if facts["prompt"] is not None:
        yield f"      prompt: {facts['prompt']}"
    if facts["adapter"] is not None:
        pinned = f", revision: {facts['base_revision']}" if facts["base_source"] == "hub" else ""
        yield f"      engine: {{{facts['engine']}: {{model: {facts['base']}{pinned}, adapter: path/to/{folder}}}}}"
    else:
        yield f"      engine: {{{facts['engine']}: path/to/{folder}}}"


def training_facts(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a card and a report both say of a training."""
    share = facts["trained_weights"] / max(1, facts["weights"])
    rounded = f", its layers rounded to {facts['quantised']}" if facts["quantised"] is not None else ""
    yield "base model", f"{facts['base_source']}, fingerprint {facts['base_fingerprint'][:16]}{rounded}"
    yield "trained weights", f"{facts['trained_weights']:,} of {facts['weights']:,} ({share:.2%})"
    yield "adapter", json.dumps(facts["adapter"]) if facts["adapter"] is not None else "none, all weights"
    yield "loss", json.dumps(facts["loss"])
    if facts["prompt"] is not None:
        yield "prompt", f"{facts['prompt']}, fingerprint {facts['prompt_fingerprint'][:16]}"
    yield "groups", f"{facts['groups']:,}, fingerprint {facts['groups_fingerprint'][:16]}"
    stopped = ", stopped early" if facts["stopped_early"] else ""
    yield "steps", f"{facts['steps']:,}{stopped}; the weights are those of step {facts['best_step']:,}"
    by = f" by {n} processes" if (n := facts["processes"]) > 1 else ""
    by += ", each with a part of the frozen layers" if facts["divided"] else ""
    yield "computed", f"on {facts['device']}{by}, products in {facts['precision']}, {facts['seconds']:,.0f} seconds"
    packages = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    yield "made with", f"rerank {facts['rerank']}, {packages}"


def _measured(line: Mapping[str, Any]) -> float | None:
    return next((float(value) for name, value in line.items() if name.startswith("eval_")), None)


def report_text(facts: Mapping[str, Any], groups: GroupsCard, log: Log) -> str:
    """The report as a page of HTML that opens from disk, with learning curves; arguments as for `card_text`."""
    return html_page(facts["name"], "".join(_report(facts, groups, log)))


def _reward_charts(lines: Log, steps: Sequence[int]) -> Iterator[str]:
    """Curves of what answers were worth, and what they were, where the recipe rewards answers."""
    if "reward" not in lines[-1]:
        return

    def chart(names: Mapping[str, str], label: str) -> str:
        series = {shown: [line.get(name, math.nan) for line in lines] for name, shown in names.items()}
        return plots.curves(series, steps, "step", label)

    parts = [name for name in lines[-1] if name.startswith(_PART)]
    shown = {name: name.removeprefix(_PART) for name in parts} if len(parts) > 1 else {}
    yield chart({"reward": "reward", **shown}, "reward")
    yield chart({f"{_SHARE}{verdict.value}": verdict.value for verdict in Verdict}, "share of answers")
    yield chart({f"{_SHARE}all_equal": "all answers worth the same"}, "share of prompts")
    if any("kl" in line for line in lines):
        yield chart({"kl": "divergence"}, "divergence from the start")
    yield chart({"length": "mean", "length_max": "longest"}, "tokens of an answer")


def _report(facts: Mapping[str, Any], groups: GroupsCard, log: Log) -> Iterator[str]:
    yield (
        f"<header><h1>{escaped(facts['name'])}</h1>\n<p>{escaped(facts['base'])} trained by the recipe "
        f"<b>{escaped(facts['kind'])}</b> for {facts['steps']:,} steps; the weights kept are those of step "
        f"{facts['best_step']:,}.</p></header>\n"
    )
    charts = []
    losses = [line for line in log if "loss" in line]
    measured = [(line["step"], value) for line in log if (value := _measured(line)) is not None]
    if measured:
        measure, values = facts["measure"], [value for _, value in measured]
        charts.append(plots.curves({measure: values}, [step for step, _ in measured], "step", measure))
    if losses:
        steps = [line["step"] for line in losses]
        charts.append(plots.curves({"loss": [line["loss"] for line in losses]}, steps, "step", "loss"))
        norms = [float(line.get("grad_norm", math.nan)) for line in losses]
        charts.append(plots.curves({"gradient": norms}, steps, "step", "length of the gradient"))
        rates = [line["tokens_per_second"] for line in losses]
        charts.append(plots.curves({"tokens": rates}, steps, "step", "tokens per second"))
        charts = [*_reward_charts(losses, steps), *charts]
    if charts:
        yield "<section><h2>Learning curves</h2>\n"
        shown = "".join(f'<div class="chart">{chart}</div>' for chart in charts)
        on = f" measured on {', '.join(facts['measured_on'])}" if measured else ""
        yield f'<figure class="charts">{shown}<figcaption>By step{escaped(on)}.</figcaption></figure></section>\n'
    yield "<section><h2>Training</h2>\n"
    yield html_table(("", ""), list(training_facts(facts)), 1, last_is_text=True)
    if losses and (peak := max(line.get("memory_mb", 0.0) for line in losses)):
        yield f"<p>Memory: {peak:,.0f} MB at most.</p>\n"
    yield "</section>\n<section><h2>Data</h2>\n"
    yield f"<pre><code>{escaped(str(groups))}</code></pre></section>\n"
    yield f"<section><h2>Recipe</h2>\n<pre><code>{escaped(facts['recipe'])}</code></pre></section>\n"
