"""`rerank adapt`: from documents to a reranker adapted to them, in one command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from rerank.cli.session import Device, Home, Progress, Threads, session

if TYPE_CHECKING:
    from rerank.synthesize.duqgen import DUQGen


def adapt(
    corpus: Annotated[
        str, typer.Argument(metavar="CORPUS", help="Documents: a folder, a JSONL file, stdlib, an ir_datasets id.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where everything goes; default runs/adapt-CORPUS.")
    ] = None,
    documents: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="How many documents get queries; default 1000, or what CONFIG says."),
    ] = None,
    model: Annotated[str, typer.Option(metavar="NAME", help="The encoder that becomes a reranker.")] = "minilm-l6",
    engine: Annotated[
        str,
        typer.Option(
            metavar="KIND", help="What it becomes: bi_encoder, or cross_encoder, which wants many more documents."
        ),
    ] = "bi_encoder",
    first_stage: Annotated[
        str, typer.Option(metavar="PIPELINE", help="Whose lists are reranked, and hard negatives mined from.")
    ] = "hybrid",
    llm: Annotated[
        str | None, typer.Option(metavar="MODEL", help="A language model that writes the queries; default none does.")
    ] = None,
    synthesis: Annotated[
        str | None,
        typer.Option(
            metavar="CONFIG", help="How queries are made: a file of rerank synthesize duqgen, or a ready one."
        ),
    ] = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="The judged queries to measure on.")] = "test",
    epochs: Annotated[float, typer.Option(metavar="N", help="How often each query is learnt from.")] = 1.0,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Of everything that is drawn; default 0, or what CONFIG says.")
    ] = None,
    home: Home = None,
    device: Device = "auto",
    threads: Threads = None,
    progress: Progress = None,
    *,
    titles: Annotated[
        bool | None,
        typer.Option(
            "--titles/--no-titles", help="Whether queries are made of titles too; default yes, or what CONFIG says."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and for how long; do nothing.")
    ] = False,
) -> None:
    """Adapts a reranker to documents that nobody judged.

    Queries are made for documents that cover the collection, and kept where they find their document again; an adapter
    is trained on them and on hard negatives. Where the collection has judgments, the result is measured on them. An
    estimate is printed first. Interrupted, even by kill -9, the same command goes on.

    \b
    Examples:
      rerank adapt path/to/documents --dry-run
      rerank adapt path/to/documents --out runs/mine
      rerank adapt stdlib --documents 2000 --no-titles
      rerank adapt mine.jsonl --llm smollm2-135m --documents 200
    """
    import dataclasses

    from rerank.synthesize.adapt import adapt as adapted
    from rerank.synthesize.adaptation import Adaptation
    from rerank.synthesize.adaptation_plan import plan_adaptation

    there = Path(corpus).expanduser()
    data = str(there.resolve()) if there.exists() else corpus
    wanted = Adaptation(
        data=data,
        documents=1000 if documents is None else documents,
        titles=titles is not False,
        model=model,
        engine=cast("Any", engine),
        first_stage=first_stage,
        split=split,
        epochs=epochs,
        seed=seed or 0,
    )
    if synthesis is not None:
        wanted = dataclasses.replace(wanted, synthesis=_synthesis(synthesis, llm, documents, seed, titles=titles))
    elif llm is not None:
        wanted = wanted.written_by(llm)
    with session(home, device, threads, progress) as runtime:
        typer.echo(str(plan_adaptation(wanted, runtime)), err=not dry_run)
        if dry_run:
            return
        done = adapted(wanted, out or Path("runs") / f"adapt-{wanted.short}", runtime)
    if done.results is not None:
        typer.echo(done.results.table())
    typer.echo(f"adapter  {done.adapter}\nreport   {done.folder / 'README.md'}")
    typer.echo(f'use it   rerank search {done.pipeline} "..." --data {corpus}')


def _synthesis(config: str, llm: str | None, documents: int | None, seed: int | None, *, titles: bool | None) -> DUQGen:
    """How queries are made: by a file, and by the options that are given beside it."""
    import dataclasses

    from rerank.errors import ConfigError
    from rerank.synthesize.presets import load_synthesis

    if llm is not None:
        raise ConfigError("--llm and --synthesis: give one of both; a synthesis file says itself what writes")
    found = load_synthesis(config).synthesis
    return dataclasses.replace(
        found,
        documents=found.documents if documents is None else documents,
        title=found.title if titles is None else titles,
        seed=found.seed if seed is None else seed,
    )
