"""`rerank bench-serve`: how much a server that reranks can take."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rerank.cli.session import Home, session

if TYPE_CHECKING:
    from rerank.serve.load import Question


class Format(StrEnum):
    """How the figures are printed."""

    text = "text"
    json = "json"


def bench_serve(
    url: Annotated[str, typer.Argument(metavar="URL", help="The server's address, or that of its /rerank.")],
    clients: Annotated[
        list[int] | None,
        typer.Option("--clients", "-c", metavar="N", help="Closed loop of N clients; may be repeated."),
    ] = None,
    rate: Annotated[
        list[float] | None,
        typer.Option("--rate", "-r", metavar="R", help="Open loop of R requests a second; may be repeated."),
    ] = None,
    seconds: Annotated[float, typer.Option(metavar="S", help="How long each is measured.")] = 10.0,
    warm_up: Annotated[float, typer.Option(metavar="S", help="Before each closed loop.")] = 1.0,
    documents: Annotated[int, typer.Option(min=1, metavar="N", help="Documents of a request.")] = 20,
    data: Annotated[
        str | None, typer.Option(metavar="NAME_OR_PATH", help="Take texts from a collection; default made-up ones.")
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="What the server calls the model.")] = None,
    api_key_env: Annotated[
        str | None, typer.Option(metavar="VARIABLE", help="The environment variable that holds the key.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the latency curve: an SVG file.")] = None,
    output: Annotated[Format, typer.Option("--format", help="A table, or one JSON object.")] = Format.text,
    home: Home = None,
) -> None:
    """Measures what a server answers, and how fast.

    By default 1, 2, 4, ... 64 clients, each of which sends its next request when its last is answered. With --rate
    requests come at random whether or not others are answered, and are timed from the moment they were due. Made-up
    texts have lengths as web search has them: most some 55 words, three of ten some 150.

    \b
    Examples:
      rerank bench-serve http://localhost:8080
      rerank bench-serve http://localhost:8080 -c 1 -c 32 --plot curve.svg
      rerank bench-serve http://localhost:8080 --rate 50 --seconds 600
    """
    from rerank.engines.http_client import read_key
    from rerank.errors import ConfigError
    from rerank.extras import need
    from rerank.serve.load import Level, Target, latency_curve, measure, mixed_questions, table_head, table_row

    need("httptools", "serve", "rerank bench-serve")
    if not clients and not rate:
        clients = [1, 2, 4, 8, 16, 32, 64]
    if min(clients or [1]) < 1 or min(rate or [1]) <= 0 or seconds <= 0 or warm_up < 0:
        raise ConfigError("bench-serve: --clients are at least 1, --rate and --seconds above 0, --warm-up not below")
    key = read_key("bench-serve", api_key_env)
    questions = mixed_questions(256, documents) if data is None else _questions(data, documents, home)
    target = Target(url, questions, model=model, key=key)

    def show(level: Level) -> None:
        if output is Format.text:
            typer.echo(table_row(level))

    if output is Format.text:
        typer.echo(table_head())
    levels = measure(
        target, clients=clients or (), rates=rate or (), seconds=seconds, warm_up_seconds=warm_up, on_level=show
    )
    if output is Format.json:
        found = {"url": url, "documents": documents, "levels": [level.to_dict() for level in levels]}
        typer.echo(json.dumps(found, indent=2))
    if plot is not None:
        partial = plot.with_name(plot.name + ".partial")
        partial.write_text(latency_curve(levels), encoding="utf-8")
        partial.replace(plot)


def _questions(data: str, n_documents: int, home: Path | None) -> list[Question]:
    """The collection's queries, each with documents drawn from it."""
    import numpy as np

    from rerank.data.load import load
    from rerank.errors import DataError
    from rerank.serve.load import Question

    draws = np.random.default_rng(0)
    with session(home, "cpu", None, progress=False) as runtime:
        dataset = load(data, runtime=runtime)
        corpus = dataset.corpus
        if corpus is None or not len(corpus.ids) or not dataset.queries:
            raise DataError(f"bench-serve: {data} has no documents or no queries to send")
        return [
            Question(query, corpus.texts(draws.integers(len(corpus.ids), size=n_documents)))
            for query in list(dataset.queries.values())[:256]
        ]
