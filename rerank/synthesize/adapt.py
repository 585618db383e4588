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

import dataclasses
import json
import logging
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rerank import __version__
from rerank.adapters.lora import LoRA
from rerank.artifact import fingerprint, lock, write_json, write_text
from rerank.config import stage_tree
from rerank.data.dataset import Dataset
from rerank.data.load import load
from rerank.engines.engine import Asked
from rerank.engines.meter import Size, matrix_rate
from rerank.engines.pairs import CrossEncoderEngine
from rerank.errors import ConfigError, DataError
from rerank.evaluation.experiment import evaluate
from rerank.evaluation.results import Results
from rerank.ranking import TextSource
from rerank.ready import find_pipeline
from rerank.reranking import Rerank
from rerank.retrieve.bm25 import BM25
from rerank.retrieve.rescore import Rescore
from rerank.rules.rule import at_least
from rerank.runtime import Runtime
from rerank.stage import Pipeline
from rerank.synthesize.duqgen import DUQGen
from rerank.synthesize.estimate import SynthesisPlan, about, plan_synthesis
from rerank.synthesize.generators import ExtractiveGenerator, KeyphraseGenerator, MixedGenerator
from rerank.synthesize.negatives import HardNegatives
from rerank.synthesize.roundtrip import RoundTrip
from rerank.train.contrastive import Contrastive
from rerank.train.current import CurrentEngine
from rerank.train.recipe import Optimiser, Validation, ValidationSet
from rerank.train.sources import GroupSource, Negatives
from rerank.train.training import Trained, train
from rerank.yamlfile import dump_yaml

logger = logging.getLogger(__name__)

RECORD = "adaptation.json"
MEASURES = ("nDCG@10", "RR@10")
_COLUMNS = 80
_COUNTED = 100
"""Documents whose pairs with a query are tokenised for the estimate."""
_QUERY_CHARACTERS = 40
TRAINING_WORK = 4.0
"""What a training step takes, in forward passes over the same tokens: 4.2 was found with `minilm-l6` on a processor."""
_VALIDATED = 60
"""Queries on which checkpoints are measured."""
_VALIDATION_K = 20


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """What is synthesized, trained and measured for a collection.

    >>> Adaptation(data="stdlib", documents=200).recipe(Path("data")).loss
    SoftmaxLoss()

    Raises:
        ConfigError: numbers that make no sense.
    """

    data: str
    """The collection: an embedded one, a folder, a JSONL file of documents, an id of ir_datasets."""
    documents: int = 1000
    """How many documents get queries, where `synthesis` does not say."""
    titles: bool = True
    """Whether queries are written from documents' titles too, where `synthesis` does not say; identifiers are better
    left out."""
    synthesis: DUQGen | None = None
    """How queries are made; its `data` does not count.  Default key phrases and telling sentences of documents that
    cover the collection, with 7 negatives each, and a tenth kept to choose the checkpoint by."""
    model: str = "minilm-l6"
    """The base of the cross-encoder."""
    first_stage: str = "hybrid"
    """The pipeline, by name or file, whose lists are reranked, and from whose lists default negatives are mined."""
    k: int = 50
    """How many documents of each list are reranked where it is measured, and in the pipeline that is left."""
    optimiser: Optimiser = Optimiser(learning_rate=5e-4, groups=16, epochs=2)  # noqa: RUF009 - frozen
    max_tokens: int = 192
    """Of a query with a document, in training and use."""
    split: str = "test"
    """Which judged queries the result is measured on, where the collection has any."""
    seed: int = 0

    def __post_init__(self) -> None:
        at_least("adapt", 1, documents=self.documents, k=self.k, max_tokens=self.max_tokens)

    def duqgen(self) -> DUQGen:
        """How queries are made."""
        if self.synthesis is not None:
            return dataclasses.replace(self.synthesis, data=self.data)
        return DUQGen(
            data=self.data,
            documents=self.documents,
            title=self.titles,
            generator=MixedGenerator((KeyphraseGenerator(samples=3), ExtractiveGenerator(samples=2))),
            round_trip=RoundTrip(pipeline=self.first_stage),
            negatives=HardNegatives(pipeline=self.first_stage, k=7, from_rank=3, to_rank=50),
            dev=0.1,
            seed=self.seed,
        )

    def recipe(self, data: Path, *, lists: bool = True, negatives: int = 7, dev: bool = True) -> Contrastive:
        """How the adapter is trained.

        Args:
            data: the folder of the synthetic data set.
            lists: whether its negatives come with it.
            negatives: how many a query has.
            dev: whether it has queries to choose the checkpoint by.
        """
        engine = CrossEncoderEngine(self.model)
        mined = Negatives(to_rank=negatives) if lists else Negatives(pipeline=self.first_stage, from_rank=3, to_rank=50)
        source = GroupSource(
            data=str(data),
            candidates="negatives" if lists else None,
            negatives=mined,
            sizes=(negatives + 1,),
            seed=self.seed,
        )
        evaluation = None
        if dev:
            # BM25 alone: whatever else the first stage does, vectors of this copy of the corpus are not needed.
            evaluation = Validation(
                on=(ValidationSet(data=str(data), split="dev", queries=_VALIDATED),),
                stages=(BM25(k=_VALIDATION_K), Rerank(CurrentEngine())),
                every=50,
            )
        return Contrastive(
            engine=engine,
            adapter=LoRA(rank=16, alpha=32, dropout=0.0, targets="attention"),
            groups=(source,),
            optimiser=self.optimiser,
            evaluation=evaluation,
            max_tokens=self.max_tokens,
            dropout=0.0,
            seed=self.seed,
        )

    def pipelines(self, adapter: Path) -> tuple[Pipeline, ...]:
        """What is measured: the first stage, its lists rescored by the encoder of the clusters, and reranked."""
        first = find_pipeline(self.first_stage)
        encoder = self.duqgen().vectors
        rescored = Rescore(encoder.model, encoder.revision, k=self.k, dtype=encoder.dtype)
        engine = CrossEncoderEngine(self.model, adapter=str(adapter))
        return (
            first,
            Pipeline((*first.stages, rescored), name=f"{first.name} rescored"),
            Pipeline((*first.stages, Rerank(engine, k=self.k)), name="adapted"),
        )

    def key(self, corpus: TextSource) -> str:
        """SHA-256 of all that the result depends on."""
        duqgen = stage_tree(self.duqgen(), hashes=True)
        first = stage_tree(find_pipeline(self.first_stage), hashes=True)
        said = {**dataclasses.asdict(dataclasses.replace(self, synthesis=None)), "data": "", "first_stage": ""}
        return fingerprint([__version__, said, duqgen, first, corpus.fingerprint])


@dataclass(frozen=True)
class AdaptationPlan:
    """What an adaptation would do, and for about how long."""

    synthesis: SynthesisPlan
    groups: int
    """Training groups at most: filters leave fewer."""
    pairs: int
    """Pairs of query and document that are trained on, each as often as it is seen."""
    training_tokens: int
    training_seconds: float | None
    """None where the model's files do not tell."""
    queries: int
    """Judged ones that are measured; 0 where there are none."""
    evaluation_seconds: float | None
    remarks: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """About how long all takes, as far as that is known."""
        return self.synthesis.seconds + (self.training_seconds or 0.0) + (self.evaluation_seconds or 0.0)

    def __str__(self) -> str:
        """The plan for people, in 80 columns."""
        lines = [f"{self.synthesis.name}: an estimate", *str(self.synthesis).splitlines()[1:]]
        learning = about(self.training_seconds)
        facts = [
            (
                "training",
                f"{self.groups:,} groups at most, {self.pairs:,} pairs of {self.training_tokens:,} tokens, {learning}",
            ),
            (
                "evaluation",
                f"{self.queries:,} judged queries, {about(self.evaluation_seconds)}"
                if self.queries
                else "none: there are no judgments",
            ),
            ("in all", about(self.seconds)),
        ]
        for title, text in facts:
            lines += textwrap.wrap(text, _COLUMNS, initial_indent=f"  {title:<14}", subsequent_indent=" " * 16)
        for remark in self.remarks:
            lines += textwrap.wrap(remark, _COLUMNS, initial_indent="  note: ", subsequent_indent=" " * 8)
        return "\n".join(lines)


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


def plan_adaptation(adaptation: Adaptation, runtime: Runtime) -> AdaptationPlan:
    """What `adaptation` would do, found out without training anything.

    Args:
        adaptation: what would run.
        runtime: whose home, device and threads count.

    Raises:
        DataError: no such collection, or no document that could get a query.
    """
    duqgen = adaptation.duqgen()
    corpus = duqgen.source(runtime)
    synthesis = plan_synthesis(duqgen, runtime, corpus, f"adapt {_short(adaptation.data)}")
    n_groups = round(synthesis.chosen * duqgen.queries * len(duqgen.generator.prompts) * (1 - duqgen.dev))
    size = 1 + (duqgen.negatives.k if duqgen.negatives is not None else 7)
    steps = adaptation.optimiser.n_steps(max(1, n_groups))
    pairs = steps * min(adaptation.optimiser.groups, max(1, n_groups)) * size
    meter = CrossEncoderEngine(adaptation.model).measure(None, runtime)
    sizes = [Size(min(each.tokens, adaptation.max_tokens)) for each in meter.sizes(_pairs_of(corpus))]
    tokens = sum(each.tokens for each in sizes) / len(sizes)
    seconds: float | None = None
    each_pair: float | None = None
    if meter.work is not None:
        rate = matrix_rate(meter.work.dtype, runtime.device, runtime.threads)
        each_pair = meter.work.seconds(sizes, rate) / len(sizes)
        validated = _VALIDATED * _VALIDATION_K * (2 + steps // 50) if duqgen.dev else 0
        seconds = each_pair * (TRAINING_WORK * pairs + validated)
    judged, why = _judged(adaptation, runtime)
    n_queries = len(judged.queries) if judged is not None else 0
    measuring = None if each_pair is None else n_queries * adaptation.k * each_pair
    remarks = [f"pairs are counted by {meter.counted_by}", *meter.remarks, *([why] if why else [])]
    return AdaptationPlan(
        synthesis, n_groups, pairs, round(tokens * pairs), seconds, n_queries, measuring, tuple(dict.fromkeys(remarks))
    )


def adapt(adaptation: Adaptation, out: Path, runtime: Runtime) -> Adapted:
    """Synthesizes, trains and measures, and leaves all of it in the folder `out`.

    Args:
        adaptation: what is done.
        out: a new folder, or that of the same adaptation, which goes on.
        runtime: loads, computes and remembers.

    Raises:
        ConfigError: `out` holds another adaptation, or something else.
        DataError: no query is left to learn from.
    """
    corpus = adaptation.duqgen().source(runtime)
    key = adaptation.key(corpus)
    with lock(out, "adapts"):
        _claim(out, key)
        logger.info("synthesizing queries")
        adaptation.duqgen().run(out / "data", runtime, corpus, name=f"{_short(adaptation.data)}-synthetic")
        card = json.loads((out / "data" / "card.json").read_text(encoding="utf-8"))
        logger.info("training")
        trained = train(_recipe(adaptation, out / "data", card), out / "training", runtime, name=_name(adaptation))
        write_text(out / "pipeline.yaml", _pipeline(adaptation, trained))
        results, why = None, ""
        judged, why = _judged(adaptation, runtime)
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


def _judged(adaptation: Adaptation, runtime: Runtime) -> tuple[Dataset | None, str]:
    """The judged queries of the collection, else why there are none."""
    try:
        data = load(adaptation.data, adaptation.split, runtime=runtime)
    except DataError as error:
        return None, f"not measured: {error}"
    if not data.qrels or data.corpus is None:
        return None, "not measured: the collection has no judgments"
    return data, ""


def _pairs_of(corpus: TextSource) -> list[Asked]:
    """Documents of the collection, each with its first words for a query."""
    codes = np.linspace(0, len(corpus.ids) - 1, min(_COUNTED, len(corpus.ids)), dtype=np.int64)
    texts = corpus.texts(codes)
    return [Asked(str(i), text[:_QUERY_CHARACTERS], (str(i),), (text,)) for i, text in enumerate(texts)]


def _short(data: str) -> str:
    """A collection's name without its folder."""
    return Path(data).name.removesuffix(".gz").removesuffix(".jsonl") or data


def _name(adaptation: Adaptation) -> str:
    return (
        f"{adaptation.model if '/' not in adaptation.model else Path(adaptation.model).name}-{_short(adaptation.data)}"
    )


def _pipeline(adaptation: Adaptation, trained: Trained) -> str:
    """The pipeline that uses the adapter, whose path is relative to the file."""
    engine = {"model": adaptation.model, "adapter": f"training/{trained.model.name}"}
    first = [stage_tree(stage) for stage in find_pipeline(adaptation.first_stage).stages]
    rerank = {"rerank": {"engine": {"cross_encoder": engine}, "k": adaptation.k}}
    said = {"name": _name(adaptation), "description": f"Reranked by an adapter made for {adaptation.data}."}
    return dump_yaml({**said, "stages": [*first, rerank]})


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
        },
        "evaluation": results.to_dict() if results is not None else None,
        "not_measured": why,
        "rerank": __version__,
    }


def _markdown(record: dict[str, Any], results: Results | None) -> str:
    """The same for people."""
    return "\n".join(_lines(record, results)) + "\n"


def _lines(record: dict[str, Any], results: Results | None) -> Iterator[str]:
    synthetic, training = record["synthetic"], record["training"]
    yield f"# {record['name']}"
    yield ""
    yield f"A cross-encoder adapted to `{record['data']}` without a judgment: `{record['model']}` with an adapter."
    yield ""
    documents = synthetic["documents"]
    of = f"{documents['with queries']:,} of {documents['in the collection']:,} documents"
    yield f"- queries: {synthetic['queries']:,} for {of}, by the generator `{synthetic['generator']}` (data/README.md)"
    measured = ""
    if training["best"] is not None:
        measured = f", {training['measure']} {training['best']:.4f} on synthetic queries that were kept apart"
    steps = f"step {training['best_step']:,} of {training['steps']:,}"
    yield f"- training: {training['groups']:,} groups, {steps}{measured} (training/report.html)"
    yield ""
    yield "## Quality"
    yield ""
    if results is None:
        yield f"{record['not_measured'][:1].upper()}{record['not_measured'][1:]}."
        yield "Judge some queries (`rerank data judge`) before you trust it: adapting can make lists worse."
    else:
        yield results.table("markdown").rstrip()
        yield ""
        yield "The judgments were not used before. More in evaluation/report.html."
    yield ""
    yield "## Use"
    yield ""
    yield f'    rerank search pipeline.yaml "..." --data {record["data"]}'
