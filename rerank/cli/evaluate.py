"""`rerank evaluate`: pipelines and runs measured on data sets and compared with a baseline."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rerank.cli.session import Device, Home, NoCache, Progress, Threads, session

if TYPE_CHECKING:
    from rerank.evaluation.experiment import Experiment
    from rerank.evaluation.results import Results, TableFormat
    from rerank.run import Run
    from rerank.stage import Stage


class Format(StrEnum):
    """How results are printed."""

    table = "table"
    json = "json"
    markdown = "markdown"
    latex = "latex"
    csv = "csv"


_TABLES: dict[Format, TableFormat] = {
    Format.table: "text",
    Format.markdown: "markdown",
    Format.latex: "latex",
    Format.csv: "csv",
}


class Test(StrEnum):
    """The paired significance test."""

    randomisation = "randomisation"
    t = "t"


class Ties(StrEnum):
    """What decides between equal scores of a foreign run."""

    trec_eval = "trec_eval"
    file = "file"


def evaluate(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="PIPELINE", help="YAML files, names of ready pipelines, or one experiment file."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME_OR_PATH",
            help="A data set: stdlib (the default), a folder, an ir_datasets id. May be given several times.",
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(metavar="NAME", help="Which of the queries; default test.")] = None,
    measures: Annotated[
        str | None,
        typer.Option(metavar="LIST", help='As ir-measures writes them; default "nDCG@10 R@100". Plots show the first.'),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="PIPELINE", help="What the others are compared with; default the first.")
    ] = None,
    test: Annotated[Test | None, typer.Option(help="The paired test of differences; default randomisation.")] = None,
    steps: Annotated[  # noqa: FBT002 - an option
        bool, typer.Option("--steps", help="Measure the lists after each step and branch of a pipeline too.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Keep runs, tables and the HTML report; a second call goes on from them."),
    ] = None,
    output: Annotated[Format, typer.Option("--format", help="How results are printed.")] = Format.table,
    runs: Annotated[
        list[Path] | None,
        typer.Option("--run", metavar="FILE", help="A run made elsewhere: TREC, Parquet or a run folder."),
    ] = None,
    ties: Annotated[
        Ties, typer.Option(help="What orders equal scores of --run files: trec_eval's rule, or the file's order.")
    ] = Ties.trec_eval,
    candidates: Annotated[
        str | None,
        typer.Option(metavar="NAME_OR_PATH", help="Lists to rerank: a run that comes with the data, or a run file."),
    ] = None,
    home: Home = None,
    device: Device = "auto",
    threads: Threads = None,
    progress: Progress = None,
    *,
    no_cache: NoCache = False,
) -> None:
    """Measures pipelines or runs and compares them with a baseline.

    Pipelines are run over each data set first; runs made elsewhere are given with --run. Every mean comes with its
    95 % interval, every difference with a paired test, corrected for the number of pipelines. With --out, finished
    runs are kept and used again, and report.html shows it all in a browser.

    An experiment file says all of this in YAML (`rerank schema --experiment` describes it); options given beside it
    replace what it says.

    \b
    Examples:
      rerank evaluate bm25 dense hybrid --out runs/first
      rerank evaluate mine.yaml bm25 --data path/to/folder --baseline bm25
      rerank evaluate bm25 --measures "nDCG@10 AP R(rel=2)@100"
      rerank evaluate hybrid --steps
      rerank evaluate --run bm25.trec --run mine.trec --data path/to/folder
      rerank evaluate experiment.yaml --format json
    """
    from rerank.cli.runs import open_run
    from rerank.data.load import load
    from rerank.evaluation.experiment import evaluate as evaluated

    given = {
        "data": tuple(data) if data else None,
        "split": split,
        "measures": split_measures(measures) if measures is not None else None,
        "baseline": baseline,
        "test": test.value if test is not None else None,
        "steps": steps or None,
        "out": str(out) if out is not None else None,
    }
    experiment = _experiment(names or [], {name: value for name, value in given.items() if value is not None})
    folder = Path(experiment.out) if experiment.out is not None else None
    foreign = _told_apart([open_run(path, ties.value) for path in runs or []], runs or [], experiment.systems)
    # Scoring runs reads no documents; a report quotes them.
    with_corpus = bool(experiment.pipelines) or folder is not None
    with session(home, device, threads, progress, no_cache=no_cache) as runtime:
        results = evaluated(
            experiment.systems,
            [
                load(name, experiment.split, runtime=runtime, candidates=candidates, with_corpus=with_corpus)
                for name in experiment.data
            ],
            experiment.measures,
            experiment.baseline,
            experiment.test,
            experiment.split,
            folder,
            runtime,
            foreign,
            experiment.name,
        )
    typer.echo(_printed(results, output), nl=False)
    if folder is not None:
        typer.echo(f"report: {folder / 'report.html'}", err=True)


def split_measures(text: str) -> tuple[str, ...]:
    """The names in a list divided by blanks or commas; those inside parentheses divide nothing.

    >>> split_measures("nDCG@10, R(rel=2, judged_only=True)@100")
    ('nDCG@10', 'R(rel=2, judged_only=True)@100')
    """
    return tuple(re.findall(r"(?:\([^()]*\)|[^\s,()])+", text))


def _experiment(names: list[str], given: dict[str, Any]) -> Experiment:
    """What is to be evaluated: as the experiment file says where there is one, with what the options say instead."""
    from rerank.evaluation.experiment import Experiment, load_experiment
    from rerank.ready import find_pipeline, is_experiment, pipeline_path

    if len(names) == 1 and is_experiment(path := pipeline_path(names[0])):
        return dataclasses.replace(load_experiment(path), **given)
    return Experiment(**{"name": "", "data": ("stdlib",), "pipelines": tuple(map(find_pipeline, names)), **given})


def _told_apart(runs: list[Run], paths: list[Path], systems: tuple[Stage, ...]) -> list[Run]:
    """The runs, called by their paths where a system or another run has the same name."""
    names = Counter([*(stage.label for stage in systems), *(run.name for run in runs)])
    return [
        run if names[run.name] == 1 else dataclasses.replace(run, name=str(path))
        for run, path in zip(runs, paths, strict=True)
    ]


def _printed(results: Results, output: Format) -> str:
    if output is Format.json:
        return json.dumps(results.to_dict(), indent=2, ensure_ascii=False) + "\n"
    return results.table(_TABLES[output])
