"""A reranker adapted to a collection: queries are synthesized, an adapter is trained on them, and measured.

    data/            the synthetic data set
    training/        the trained adapter (training/adapter) with its card, learning curves and checkpoints
    evaluation/      runs, tables and report, where the collection has judgments
    pipeline.yaml    how the adapter is used
    README.md        what was done and what came of it
    adaptation.json  the same as plain data

Interrupted, even by kill -9, the same call goes on: each part keeps what it has finished.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rerank import __version__
from rerank.artifact import lock, write_json, write_text
from rerank.config import stage_tree
from rerank.errors import ConfigError
from rerank.evaluation.experiment import evaluate
from rerank.evaluation.results import Results
from rerank.runtime import Runtime
from rerank.synthesize.adaptation import MEASURES, VALIDATED, Adaptation
from rerank.train.contrastive import Contrastive
from rerank.train.fitting import read_log
from rerank.train.training import Trained, train
from rerank.yamlfile import dump_yaml

logger = logging.getLogger(__name__)

RECORD = "adaptation.json"


@dataclass(frozen=True)
class Adapted:
    """What an adaptation left."""

    folder: Path
    adapter: Path
    """The folder of the adapter, as engines take it."""
    trained: Trained
    results: Results | None
    """What it is worth; None where there are no judgments."""
    pipeline: Path
    """The file of the pipeline that uses it."""


def adapt(adaptation: Adaptation, out: Path, runtime: Runtime) -> Adapted:
    """Synthesizes, trains and measures, and leaves all of it in the folder `out`.

    Args:
        adaptation: what is done.
        out: a new folder, or that of the same adaptation, which goes on.
        runtime: loads, computes and remembers.

    Raises:
        ConfigError: `out` holds another adaptation, or something else.
        DataError: no query is left to learn from.
        ModelError: there is no such model, or it cannot become what is wanted.
    """
    adaptation.check(runtime)
    corpus = adaptation.duqgen().source(runtime)
    key = adaptation.key(corpus)
    with lock(out, "adapts"):
        _claim(out, key)
        logger.info("synthesizing queries")
        adaptation.duqgen().run(out / "data", runtime, corpus, name=f"{adaptation.short}-synthetic")
        card = json.loads((out / "data" / "card.json").read_text(encoding="utf-8"))
        logger.info("training")
        trained = train(_recipe(adaptation, out / "data", card), out / "training", runtime, name=_name(adaptation))
        write_text(out / "pipeline.yaml", _pipeline(adaptation, trained))
        results, why = None, ""
        judged, why = adaptation.judged(runtime)
        if judged is not None:
            logger.info("measuring on %d judged queries", len(judged.queries))
            results = evaluate(
                adaptation.pipelines(trained.model), [judged], MEASURES, out=out / "evaluation", runtime=runtime,
                name=_name(adaptation),
            )  # fmt: skip
        record = _record(adaptation, key, card, trained, results, why)
        write_json(out / RECORD, record)
        write_text(out / "README.md", _markdown(record, results))
    return Adapted(out, trained.model, trained, results, out / "pipeline.yaml")


# -- parts ------------------------------------------------------------


def _claim(out: Path, key: str) -> None:
    """Takes the folder for this adaptation.

    Raises:
        ConfigError: it holds another one, or something else.
    """
    state = out / RECORD
    if state.is_file():
        found = json.loads(state.read_text(encoding="utf-8"))
        if found.get("fingerprint") != key:
            raise ConfigError(
                f"{out}: holds the adaptation of another collection, or with other options; give another folder "
                "(--out), or delete it"
            )
        return
    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"{out}: has files in it, but no adaptation; give another folder (--out)")
    write_json(state, {"fingerprint": key, "finished": False})


def _recipe(adaptation: Adaptation, data: Path, card: dict[str, Any]) -> Contrastive:
    """The recipe for the data as they came out."""
    counts = [int(size) for size in card["negatives"]]
    lists = bool(card["negatives_in_run"])
    return adaptation.recipe(data, lists=lists, negatives=max(counts) if lists else 7, dev="dev" in card["splits"])


def _name(adaptation: Adaptation) -> str:
    return f"{adaptation.model if '/' not in adaptation.model else Path(adaptation.model).name}-{adaptation.short}"


def _pipeline(adaptation: Adaptation, trained: Trained) -> str:
    """The pipeline that uses the adapter, whose path is relative to the file."""
    said = {"name": _name(adaptation), "description": f"Reranked by an adapter made for {adaptation.data}."}
    stages = adaptation.adapted(f"training/{trained.model.name}")
    return dump_yaml({**said, "stages": [stage_tree(stage) for stage in stages]})


def _record(
    adaptation: Adaptation, key: str, card: dict[str, Any], trained: Trained, results: Results | None, why: str
) -> dict[str, Any]:
    """What was done and what came of it, as plain data."""
    facts = trained.facts
    return {
        "fingerprint": key,
        "finished": True,
        "name": _name(adaptation),
        "data": adaptation.data,
        "model": adaptation.model,
        "engine": adaptation.engine,
        "first_stage": adaptation.first_stage,
        "k": adaptation.k,
        "synthetic": {
            "queries": card["queries"],
            "splits": card["splits"],
            "documents": card["documents"],
            "by_prompt": card["queries_by_prompt"],
            "generator": card["generator"],
            "dropped": card["dropped"],
        },
        "training": {
            name: facts[name]
            for name in ("groups", "steps", "best_step", "measure", "best", "seconds", "trained_weights", "device")
        }
        | {"before": _before(trained)},
        "evaluation": results.to_dict() if results is not None else None,
        "not_measured": why,
        "rerank": __version__,
    }


def _kept_apart(record: dict[str, Any]) -> int:
    """How many synthetic queries the checkpoint was chosen by."""
    return min(VALIDATED, int(record["synthetic"]["splits"]["dev"]))


def _before(trained: Trained) -> float | None:
    """The measure on synthetic queries before the first step; None where there are none."""
    key = f"eval_{trained.facts['measure']}"
    return next((line[key] for line in read_log(trained.folder / "metrics.jsonl") if key in line), None)


def _markdown(record: dict[str, Any], results: Results | None) -> str:
    """The same for people."""
    return "\n".join(_lines(record, results)) + "\n"


def _lines(record: dict[str, Any], results: Results | None) -> Iterator[str]:
    synthetic, training = record["synthetic"], record["training"]
    yield f"# {record['name']}"
    yield ""
    kind = record["engine"].replace("_", "-")
    yield f"A {kind} adapted to `{record['data']}` without a judgment: `{record['model']}` with an adapter."
    yield ""
    documents = synthetic["documents"]
    of = f"{documents['with queries']:,} of {documents['in the collection']:,} documents"
    yield f"- queries: {synthetic['queries']:,} for {of}, by the generator `{synthetic['generator']}` (data/README.md)"
    measured = ""
    if training["best"] is not None:
        found = f"{training['measure']} {training['best']:.4f} ({training['before']:.4f} before training)"
        measured = f", {found} on {_kept_apart(record):,} synthetic queries that were kept apart"
    steps = f"step {training['best_step']:,} of {training['steps']:,}"
    yield f"- training: {training['groups']:,} groups, {steps}{measured} (training/report.html)"
    if training["best"] is not None and training["best"] <= training["before"]:
        yield ""
        yield "**Nothing was learnt that helps on these queries: give more documents, or more epochs.**"
    yield ""
    yield "## Quality"
    yield ""
    if results is None:
        yield f"Not measured: {record['not_measured']}."
        yield "Judge some queries (`rerank data judge`) before you trust it: adapting can make lists worse."
    else:
        yield results.table("markdown").rstrip()
        yield ""
        yield "The judgments were not used before. More in evaluation/report.html."
    yield ""
    yield "## Use"
    yield ""
    yield f'    rerank search pipeline.yaml "..." --data {record["data"]}'
