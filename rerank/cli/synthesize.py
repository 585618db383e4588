"""`rerank synthesize`: training data from documents."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from rerank.cli.session import Device, Home, NoCache, Progress, Threads, session

Out = Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where the result goes; default runs/NAME.")]
Data = Annotated[
    str | None,
    typer.Option(metavar="[NAME=]PATH", help="What to take in place of the file's data set: a folder or a name."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be asked, and for how long; write nothing.")]

app = typer.Typer(no_args_is_help=True, help="Makes training data from documents.")


@app.callback()
def synthesize() -> None:
    """Makes training data from documents: data sets that recipes train on as they are."""


@app.command()
def duqgen(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a ready synthesis.")],
    out: Out = None,
    data: Data = None,
    home: Home = None,
    device: Device = "auto",
    threads: Threads = None,
    progress: Progress = None,
    *,
    no_cache: NoCache = False,
    dry_run: DryRun = False,
) -> None:
    """Writes queries for documents that cover a collection, filters them, and mines negatives.

    The folder is a data set in BEIR's layout, with where every pair comes from (provenance.jsonl), what was dropped
    and why (drops.jsonl), a data card (README.md) and a map of the clusters (map.svg). Interrupted, even by kill -9,
    the same command goes on, and what a model has answered is not asked again.

    \b
    Examples:
      rerank synthesize duqgen stdlib-sentences
      rerank synthesize duqgen smollm2-questions --data path/to/folder --dry-run
      rerank synthesize duqgen mine.yaml --out data/mine
    """
    from rerank.synthesize.presets import load_synthesis

    found = load_synthesis(config)
    wanted = dataclasses.replace(found.synthesis, data=_data(found.synthesis.data, data))
    with session(home, device, threads, progress, no_cache=no_cache) as runtime:
        if dry_run:
            from rerank.synthesize.estimate import plan_synthesis

            typer.echo(plan_synthesis(wanted, runtime, name=found.name))
            return
        folder = out or Path("runs") / found.name
        wanted.run(folder, runtime, name=folder.name)
    _say(folder)


@app.command()
def labels(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file.")],
    out: Out = None,
    data: Data = None,
    home: Home = None,
    device: Device = "auto",
    threads: Threads = None,
    progress: Progress = None,
    *,
    no_cache: NoCache = False,
    dry_run: DryRun = False,
) -> None:
    """Labels candidate lists of given queries by a pointwise and a listwise teacher.

    A first stage finds candidates, the first ones are taken and some from below at random; two pipelines put them in
    order, and both ranks become one label. The folder holds the lists with their labels (labels.jsonl), a data card
    (README.md), and what a recipe learns from: `groups: FOLDER`. What a model has answered is not asked again.

    \b
    A file mine.yaml:
      labels:
        data: path/to/folder
        split: train
        pointwise: {pipeline: grades.yaml}
        listwise: {pipeline: order.yaml}
        interval: {pipeline: hybrid, first: 10, drawn: 40, groups: 3}
        sizes: [5, 10, 20]
    \b
    Examples:
      rerank synthesize labels mine.yaml --dry-run
      rerank synthesize labels mine.yaml --out data/mine-labelled
    """
    from rerank.synthesize.labels import load_labels

    found = load_labels(config)
    wanted = dataclasses.replace(found.labels, data=_data(found.labels.data, data))
    with session(home, device, threads, progress, no_cache=no_cache) as runtime:
        if dry_run:
            typer.echo(f"{found.name}: {wanted.plan(runtime)}")
            return
        folder = out or Path("runs") / found.name
        wanted.run(folder, runtime, name=folder.name)
    _say_labels(folder)


def _data(named: str, given: str | None) -> str:
    """The data set to take: as `--data` gives it, where it does."""
    from rerank.errors import ConfigError

    if given is None:
        return named
    name, sign, path = given.rpartition("=")
    if sign and name != named:
        raise ConfigError(f"--data {given}: the file calls its data set {named!r}, not {name!r}")
    there = Path(path).expanduser()
    return str(there.resolve()) if there.exists() else path


def _say_labels(folder: Path) -> None:
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    typer.echo(
        f"{folder}: {card['labels']:,} labels for {card['queries']:,} queries; the teachers agree by a Kendall's "
        f"tau of {card['agreement']['pointwise and listwise']:.2f}; in a recipe: groups: {folder}"
    )
    for what, number in card["counted"].items():
        typer.echo(f"counted: {number:,} {what}", err=True)


def _say(folder: Path) -> None:
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    documents = card["documents"]
    dropped = ", ".join(f"{n:,} {reason}" for reason, n in sorted(card["dropped"].items(), key=lambda each: -each[1]))
    typer.echo(
        f"{folder}: {card['queries']:,} queries for {documents['with queries']:,} of {documents['chosen']:,} chosen "
        f"documents; see {folder}/README.md"
    )
    if dropped:
        typer.echo(f"dropped: {dropped}", err=True)
