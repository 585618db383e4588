"""`rerank search`: what a pipeline finds for a query typed on the command line."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rerank.cli.session import Device, Home, NoCache, Progress, Threads, session

if TYPE_CHECKING:
    from rerank.ranking import Hits
    from rerank.stage import Pipeline


class Format(StrEnum):
    """How hits are printed."""

    text = "text"
    json = "json"


def search(
    pipeline: Annotated[str, typer.Argument(metavar="PIPELINE", help="A YAML file, or the name of a ready pipeline.")],
    query: Annotated[
        str, typer.Argument(metavar="QUERY", help="What to look for; - reads one query a line from standard input.")
    ],
    data: Annotated[
        str,
        typer.Option(
            metavar="NAME_OR_PATH", help="The collection: stdlib, a folder, a corpus.jsonl, an ir_datasets id."
        ),
    ] = "stdlib",
    k: Annotated[int, typer.Option("-k", min=1, metavar="N", help="How many documents to show.")] = 10,
    output: Annotated[
        Format, typer.Option("--format", help="Lines to read, or one JSON object a query, each on its line.")
    ] = Format.text,
    home: Home = None,
    device: Device = "auto",
    threads: Threads = None,
    progress: Progress = None,
    *,
    no_cache: NoCache = False,
) -> None:
    """Searches a collection with a pipeline.

    What the pipeline needs, such as an index, is built at the first search and found again by the next.

    \b
    Examples:
      rerank search bm25 "walk a directory tree"
      rerank search hybrid "lift of a delta wing" --data path/to/beir-folder -k 3
      rerank search bm25 - --format json < queries.txt > hits.jsonl
    """
    from rerank.data.load import load_corpus
    from rerank.errors import DataError
    from rerank.ranking import Ranking
    from rerank.ready import find_pipeline

    stages = find_pipeline(pipeline)
    _check_queries_suffice(stages)
    queries = [line.strip() for line in sys.stdin if line.strip()] if query == "-" else [query]
    if not queries:
        raise DataError("standard input holds no queries; write one a line")
    with session(home, device, threads, progress, no_cache=no_cache) as runtime:
        corpus = load_corpus(data, runtime=runtime)
        topics = Ranking.start({str(number): text for number, text in enumerate(queries, 1)}, corpus)
        ranking = runtime.rank(stages, topics)
        if output is Format.json:
            for hits in ranking:
                typer.echo(json.dumps(_json(stages, data, hits, k), ensure_ascii=False))
        else:
            _show(list(ranking), k)


def _check_queries_suffice(pipeline: Pipeline) -> None:
    """Raises where the pipeline reranks lists that a data set brings: a typed query has none."""
    from rerank.errors import PipelineError
    from rerank.stage import FROM_QUERIES

    try:
        pipeline.flow(FROM_QUERIES)
    except PipelineError as error:
        raise PipelineError(f"{pipeline.label}: cannot search, for it reranks given candidates: {error}") from None


def _json(pipeline: Pipeline, data: str, hits: Hits, k: int) -> dict[str, Any]:
    found = [{"rank": hit.rank, "docno": hit.docno, "score": hit.score, "text": hit.text} for hit in hits[:k]]
    return {"pipeline": pipeline.label, "data": data, "query": hits.query, "hits": found}


def _show(lists: list[Hits], k: int) -> None:
    from rerank.cli.hits import console, show_hits

    out = console()
    for number, hits in enumerate(lists):
        if len(lists) > 1:
            out.print(("\n" if number else "") + hits.query, style="bold")
        show_hits(out, hits, k)
