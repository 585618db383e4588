"""Experiments: data sets x pipelines x measures, run, measured and compared in one call or from one YAML file."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

from rerank.artifact import MANIFEST, fingerprint, read_manifest, verify_artifact, write_json, write_text
from rerank.config import FilePath, build, object_schema, pipeline_from, stage_fingerprint, to_yaml
from rerank.config import schema as pipeline_schema
from rerank.data.dataset import Dataset
from rerank.data.load import load
from rerank.data.runs import KIND as RUN_KIND
from rerank.data.runs import load_run, save_run
from rerank.engines.engine import Engine
from rerank.errors import ArtifactError, ConfigError, CorruptArtifactError, DataError, UnknownNameError, nearest
from rerank.evaluation.evaluation import Evaluation, Judged, evaluate_run
from rerank.evaluation.measures import parse_measures
from rerank.evaluation.report import write_report
from rerank.evaluation.results import DataKey, Results
from rerank.evaluation.significance import TestName
from rerank.evaluation.steps import with_steps
from rerank.ranking import Ranking
from rerank.ready import find_pipeline
from rerank.reranking import Rerank
from rerank.run import Run
from rerank.runtime import Runtime
from rerank.stage import Pipeline, Stage
from rerank.yamlfile import Key, Tree, read_yaml

logger = logging.getLogger(__name__)

MEASURES = ("nDCG@10", "R@100")


@dataclass(frozen=True, kw_only=True)
class ExperimentOptions:
    """What an experiment file says beside its pipelines."""

    name: str
    data: tuple[str, ...]
    """Data sets: names as `rerank data list` shows them, or paths."""
    split: str = "test"
    """Which of the data sets' queries."""
    measures: tuple[str, ...] = MEASURES
    """Names as ir-measures spells them; figures show the first."""
    baseline: str | None = None
    """The pipeline that the others are compared with; default the first."""
    test: TestName = "randomisation"
    """The paired test for differences."""
    steps: bool = False
    """Whether the lists after each step of a pipeline, and of each branch of a combination, are measured too."""
    out: FilePath | None = None
    """The folder for runs, tables and report."""


@dataclass(frozen=True, kw_only=True)
class Experiment(ExperimentOptions):
    """Data sets x pipelines x measures; read from YAML by `load_experiment`."""

    pipelines: tuple[Pipeline, ...]

    @property
    def systems(self) -> tuple[Stage, ...]:
        """What is measured: the pipelines, and their steps where these are wanted."""
        return with_steps(self.pipelines) if self.steps else self.pipelines

    def run(self, runtime: Runtime | None = None) -> Results:
        """The experiment's results."""
        return evaluate(
            self.systems,
            self.data,
            self.measures,
            self.baseline,
            self.test,
            self.split,
            None if self.out is None else Path(self.out),
            runtime,
            name=self.name,
        )


def is_experiment(path: Path) -> bool:
    """Whether a YAML file is an experiment's, and not a pipeline's.

    Raises:
        ConfigError: it cannot be read as YAML.
    """
    value = read_yaml(path).value
    return isinstance(value, dict) and "pipelines" in value


def load_experiment(path: Path | str) -> Experiment:
    """The experiment of a YAML file.

    Its `pipelines` are a list of YAML files, names of ready pipelines, and mappings with `name` and `stages`.  Relative
    paths are relative to the file's folder and stay inside.

    Raises:
        ConfigError: with file, line and key path.
        PipelineError: stages that do not fit.
    """
    tree = read_yaml(Path(path))
    known = [field.name for field in dataclasses.fields(Experiment)]
    if not isinstance(tree.value, dict):
        raise tree.error((), f"expected an experiment: a mapping with {', '.join(known)}")
    for name, value in tree.value.items():
        if name not in known:
            raise tree.error((name,), f"an experiment has no option {name!r}{nearest(name, known)}")
        if name in ("data", "measures", "pipelines") and (not isinstance(value, list) or not value):
            raise tree.error((name,), "expected a list with at least one entry")
    if "pipelines" not in tree.value:
        raise tree.error((), "an experiment needs the option 'pipelines'")
    # Pipelines are built apart, because in an experiment a text is a file or a ready pipeline and not a stage's name.
    others = {name: value for name, value in tree.value.items() if name != "pipelines"}
    options = build(ExperimentOptions, others, tree, ())
    fields = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    fields["data"] = tuple(_data_name(name, tree, ("data", i)) for i, name in enumerate(options.data))
    pipelines = tuple(_pipeline(item, tree, ("pipelines", i)) for i, item in enumerate(tree.value["pipelines"]))
    return Experiment(**fields, pipelines=pipelines)


def experiment_schema() -> dict[str, Any]:
    """The JSON schema of an experiment file: what an editor needs to complete and check one."""
    pipelines = pipeline_schema()
    definitions = pipelines.pop("$defs")
    definitions["pipeline"] = {key: value for key, value in pipelines.items() if key not in ("$schema", "title")}
    options = object_schema(ExperimentOptions)
    item = {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/pipeline"}]}
    description = "YAML files, names of ready pipelines, or mappings with `name` and `stages`."
    listed = {"type": "array", "items": item, "minItems": 1, "description": description}
    return {
        "$schema": pipelines["$schema"],
        "title": "rerank experiment",
        "type": "object",
        "properties": {**options["properties"], "pipelines": listed},
        "required": [*options["required"], "pipelines"],
        "additionalProperties": False,
        "$defs": definitions,
    }


def _pipeline(item: Any, tree: Tree, key: Key) -> Pipeline:
    if not isinstance(item, str):
        return pipeline_from(tree, key, item)
    try:
        return find_pipeline(str(_inside(item, tree, key)) if Path(item).suffix in (".yaml", ".yml") else item)
    except ConfigError as error:
        if str(error).startswith(tree.origin):
            raise
        raise type(error)(f"{tree.place(key)}: {error}") from error


def _data_name(name: str, tree: Tree, key: Key) -> str:
    is_path = name.startswith((".", "/", "~")) or (tree.folder / name).exists()
    return str(_inside(name, tree, key)) if is_path else name


def _inside(written: str, tree: Tree, key: Key) -> Path:
    """A path made absolute; a relative one must stay inside the folder of the file that names it."""
    path = Path(written).expanduser()
    if path.is_absolute():
        return path
    resolved = (tree.folder / path).resolve()
    if not resolved.is_relative_to(tree.folder):
        raise tree.error(
            key, f"the path {written!r} leaves the file's folder {tree.folder}; write it as an absolute path"
        )
    return resolved


def evaluate(
    pipelines: Sequence[Stage],
    data: Sequence[Dataset | str],
    measures: Sequence[str] = MEASURES,
    baseline: str | None = None,
    test: TestName = "randomisation",
    split: str = "test",
    out: Path | None = None,
    runtime: Runtime | None = None,
    runs: Sequence[Run] = (),
    name: str = "",
) -> Results:
    """Every pipeline run on every data set, measured, and compared with the baseline.

    Stages that several pipelines have in common run once.  With `out`, each run is kept there as soon as it is done,
    and a later call with the same pipelines, data and version of this package reads it instead of running again; the
    results are written there too, as JSON, tables and an HTML report.

    >>> from rerank.stage import Cut
    >>> lists = Ranking.of({"q1": {"d1": 2.0, "d2": 1.0}})
    >>> data = Dataset("toy", {"q1": "white dwarfs"}, qrels={"q1": {"d2": 1}}, candidates=lists)
    >>> results = evaluate([Cut(1) >> Cut(1), Cut(2)], [data], ["R@100"])
    >>> [(found.run, found.means) for found in results.evaluations]
    [('cut >> cut', {'R@100': 0.0}), ('cut', {'R@100': 1.0})]

    Args:
        pipelines: stages or pipelines; each is known by its label.
        data: data sets, or names that are loaded with the split `split`.
        measures: names as `rerank.evaluation.measures` reads them; figures show the first.
        baseline: the label of the pipeline that the others are compared with; default the first.
        test: the paired test, two-sided.
        split: the split of the data sets given by name.
        out: the folder for runs, tables and report.
        runtime: default that of the enclosing `with`, else a new one.
        runs: runs from elsewhere, measured on every data set with which they share a query.
        name: the report's title.

    Raises:
        ConfigError: two systems or data sets of one name, a measure that cannot be computed; nothing has run then.
        UnknownNameError: the baseline, the test or a measure does not exist.
        DataError: a data set without judgments, or a run that shares no query with any data set.
    """
    systems = _names(pipelines, runs)
    chosen = systems[0] if baseline is None else baseline
    if chosen not in systems:
        raise UnknownNameError(f"the baseline {chosen!r} is not among {', '.join(systems)}{nearest(chosen, systems)}")
    if test not in get_args(TestName):
        raise UnknownNameError(f"no significance test is called {test!r}; known: {', '.join(get_args(TestName))}")
    parse_measures(measures)
    if isinstance(data, str | Dataset):
        raise ConfigError(f"data must be a list of data sets; got {data!r}, write [{data!r}]")
    with contextlib.ExitStack() as stack:
        active = runtime if runtime is not None else stack.enter_context(Runtime.current_or_new())
        datasets = _datasets(data, split, active)
        evaluations: list[Evaluation] = []
        for key, dataset in datasets.items():
            for run in _runs(pipelines, dataset, _folder(out, key), active):
                logger.info("%s on %s: measuring", run.name, key)
                evaluations.append(evaluate_run(run, dataset, measures))
            evaluations.extend(evaluate_run(run, dataset, measures) for run in runs if _shares(run, dataset))
    for run in runs:
        if not any(evaluation.run == run.name for evaluation in evaluations):
            raise DataError(
                f"run {run.name!r} shares no query with {' or '.join(map(str, datasets))} (its queries are "
                f"{', '.join(map(repr, run.ranking.qids[:2]))}, ...); give the data set that it was made on"
            )
    results = Results(
        tuple(evaluations), chosen, test, name, datasets, {stage.label: _written(stage) for stage in pipelines}
    )
    if out is not None:
        _write(results, out)
    return results


def _names(pipelines: Sequence[Stage], runs: Sequence[Run]) -> list[str]:
    names = [*(stage.label for stage in pipelines), *(run.name for run in runs)]
    if not names:
        raise ConfigError("nothing to evaluate: give at least one pipeline or run")
    for name, count in Counter(names).items():
        if count > 1:
            raise ConfigError(f"{count} pipelines or runs are called {name!r}; name them: Pipeline((stage,), name=...)")
    return names


def _datasets(data: Sequence[Dataset | str], split: str, runtime: Runtime) -> dict[DataKey, Dataset]:
    datasets: dict[DataKey, Dataset] = {}
    for item in data:
        dataset = load(item, split, runtime=runtime) if isinstance(item, str) else item
        key = DataKey(dataset.name, dataset.split)
        if key in datasets:
            raise ConfigError(f"two data sets are called {key}; give each once, or rename one with dataclasses.replace")
        Judged.of(dataset)
        datasets[key] = dataset
    if not datasets:
        raise ConfigError("no data set was given; give at least one, e.g. 'stdlib'")
    return datasets


@dataclass(frozen=True)
class _Topics:
    """A data set's queries as one object, so that the runtime sees that pipelines start from the same."""

    ranking: Ranking
    record: dict[str, Any]

    def topics(self) -> Ranking:
        return self.ranking

    def provenance(self) -> dict[str, Any]:
        return self.record


def _runs(pipelines: Sequence[Stage], data: Dataset, folder: Path | None, runtime: Runtime) -> Iterator[Run]:
    """Each pipeline's run on `data`, from `folder` where it is there."""
    keys = {stage: _key(stage, data) for stage in pipelines} if folder is not None else {}
    kept = {stage for stage, key in keys.items() if folder is not None and _is_kept(_place(folder, stage), key)}
    uses = Counter(part for stage in pipelines if stage not in kept for part in dict.fromkeys(stage.walk()))
    topics = _Topics(data.topics(), data.provenance())
    together = _side_by_side([stage for stage in pipelines if stage not in kept])
    with runtime.sharing((part for part, count in uses.items() if count > 1), together):
        for stage in pipelines:
            run = _loaded(_place(folder, stage)) if folder is not None and stage in kept else None
            if run is None:
                logger.info("%s on %s (%s): running", stage.label, data.name, data.split)
                run = runtime.run(stage, topics, stage.label)
                if folder is not None and (key := keys[stage]) is not None:
                    save_run(run, _place(folder, stage), key)
            yield run


def _side_by_side(pipelines: Sequence[Stage]) -> list[tuple[Rerank, ...]]:
    """Reranking stages of one engine that are given the same lists: their questions fill the same batches."""
    groups: dict[tuple[tuple[Stage, ...], Engine], dict[Rerank, None]] = {}
    for pipeline in pipelines:
        stages = pipeline.stages if isinstance(pipeline, Pipeline) else (pipeline,)
        for position, stage in enumerate(stages):
            if isinstance(stage, Rerank):
                groups.setdefault((stages[:position], stage.engine), {})[stage] = None
                break
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _key(stage: Stage, data: Dataset) -> str | None:
    """What a kept run must agree in to be used again; None for a pipeline that has no YAML form."""
    from rerank import __version__

    try:
        return fingerprint([stage_fingerprint(stage), data.fingerprint, __version__])
    except ConfigError as error:
        logger.warning("%s: its run is not kept: %s", stage.label, error)
        return None


def _is_kept(folder: Path, key: str | None) -> bool:
    """Whether `folder` holds a whole run that was made under `key`."""
    if not (folder / MANIFEST).is_file():
        if folder.exists():
            raise ArtifactError(f"{folder}: is in the way of a run of that name; move it, or choose another folder")
        return False
    try:
        return read_manifest(folder).fingerprint == key and verify_artifact(folder).kind == RUN_KIND
    except CorruptArtifactError as error:
        logger.warning("%s; running again", error)
        return False


def _loaded(folder: Path) -> Run | None:
    """The run in `folder`; None where it is whole but not readable as one."""
    try:
        return load_run(folder)
    except CorruptArtifactError as error:
        logger.warning("%s; running again", error)
        return None


def _folder(out: Path | None, key: DataKey) -> Path | None:
    if out is None:
        return None
    return out / "runs" / file_name(key.data if key.split == "test" else f"{key.data}-{key.split}")


def _place(folder: Path, stage: Stage) -> Path:
    return folder / file_name(stage.label)


def file_name(name: str) -> str:
    """`name` as the name of a file or folder: unchanged where that is safe, else with a hash so that none collide.

    >>> file_name("bm25-k1.2"), file_name("../x")
    ('bm25-k1.2', 'x-d6b96a97')
    """
    safe = re.sub(r"[^A-Za-z0-9._+=,-]+", "-", name).strip(".-")[:80]
    if safe and safe == name:
        return name
    return f"{safe}-{sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}".lstrip("-")


def _shares(run: Run, data: Dataset) -> bool:
    return any(qid in data.queries for qid in run.ranking.qids)


def _written(stage: Stage) -> str:
    try:
        return to_yaml(stage)
    except ConfigError:
        return repr(stage)


def _write(results: Results, out: Path) -> None:
    write_json(out / "results.json", results.to_dict())
    write_text(out / "per_query.csv", results.per_query_csv())
    write_text(out / "table.txt", results.table("text"))
    write_text(out / "table.md", results.table("markdown"))
    write_text(out / "table.tex", results.table("latex"))
    write_text(out / "table.csv", results.table("csv"))
    write_report(results, out / "report.html")
