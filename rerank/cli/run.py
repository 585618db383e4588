"""`rerank run`: one pipeline over the queries of one data set."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rerank.cli.session import Device, Home, NoCache, Progress, Threads, session

if TYPE_CHECKING:
    from rerank.run import Run

QUERIES_SHOWN = 3
DOCUMENTS_SHOWN = 3


def run(
    pipeline: Annotated[str, typer.Argument(metavar="PIPELINE", help="A YAML file, or the name of a ready pipeline.")],
    data: Annotated[
        str, typer.Option(metavar="NAME_OR_PATH", help="The data set: stdlib, a folder, an ir_datasets id.")
    ] = "stdlib",
    split: Annotated[str, typer.Option(metavar="NAME", help="Which of its queries.")] = "test",
    candidates: Annotated[
        str | None,
        typer.Option(metavar="NAME_OR_PATH", help="Lists to rerank: a run that comes with the data, or a run file."),
    ] = None,
    depth: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Keep at most N documents a query; default all.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="Where to write the run: FILE.trec, FILE.trec.gz, FILE.parquet, or a folder to make."
        ),
    ] = None,
    home: Home = None,
    device: Device = "auto",
    threads: Threads = None,
    progress: Progress = None,
    *,
    no_cache: NoCache = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what models would be asked, and for how long; load none.")
    ] = False,
) -> None:
    """Runs one pipeline over the queries of a data set.

    Without --out the first lists are shown, so that you see what the pipeline does, and how long each stage took. A
    folder keeps more than a file: where the run came from, statistics of each stage, and every named column.

    \b
    Examples:
      rerank run bm25
      rerank run mine.yaml --data path/to/beir-folder --out runs/mine.trec
      rerank run reranker.yaml --data path/to/trec-dl-2019 --candidates bm25
      rerank run reranker.yaml --data path/to/beir-folder --dry-run
    """
    from rerank.data.load import load
    from rerank.ready import find_pipeline
    from rerank.stage import Cut

    stages = find_pipeline(pipeline)
    if depth is not None:
        stages = dataclasses.replace(stages, stages=(*stages.stages, Cut(depth)))
    with session(home, device, threads, progress, no_cache=no_cache) as runtime:
        dataset = load(data, split, runtime=runtime, candidates=candidates)
        if dry_run:
            from rerank.planning import plan

            typer.echo(plan(stages, dataset, runtime))
            return
        made = runtime.run(stages, dataset)
        if out is None:
            _show(made)
        else:
            from rerank.cli.runs import put_run

            put_run(made, out)
            size = f"{len(made.ranking):,} queries, {len(made.ranking.docs):,} documents"
            typer.echo(f"{out}: {size}, {made.seconds:.2f} seconds", err=True)


def _show(run: Run) -> None:
    """What the run did, and the beginning of it."""
    from rerank.cli.hits import console, show_hits

    out, ranking = console(), run.ranking
    out.print(f"{run.name}: {len(ranking):,} queries, {len(ranking.docs):,} documents, {run.seconds:.2f} seconds\n")
    # The first entry is the pipeline itself, whose sums stand above.
    names = [stat.stage.partition("/")[2] for stat in run.stats]
    for name, stat in zip(names, run.stats, strict=True):
        if name:
            counted = "".join(f", {number:,} {what}" for what, number in stat.counts.items())
            line = f"  {name:<{max(map(len, names))}} {stat.seconds:8.2f} s  {stat.documents:,} documents{counted}"
            out.print(line, soft_wrap=True)
    for hits in list(ranking)[:QUERIES_SHOWN]:
        out.print(f"\n{hits.qid}: {hits.query}", style="bold")
        show_hits(out, hits, DOCUMENTS_SHOWN)
    if len(ranking) > QUERIES_SHOWN:
        out.print(f"\n... and {len(ranking) - QUERIES_SHOWN:,} more queries; --out FILE.trec writes everything")
