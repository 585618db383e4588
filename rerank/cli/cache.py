"""`rerank cache`: what models answered before, and how much of it is kept."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rerank.cli.session import Home, session

if TYPE_CHECKING:
    from rerank.engines.cache import RequestCache
    from rerank.runtime import Runtime

app = typer.Typer(
    no_args_is_help=True,
    help=(
        "Answers of models, kept so that nothing is asked twice.\n\n"
        "Rerankers look here before they compute. The same run again asks nothing, a run that was stopped goes on "
        "where it was, and pipelines that ask the same model the same thing share its answers. An answer is found "
        "again only for the same weights, adapter, type, device, prompt and options.\n\n"
        "All of it may be deleted at any time: answers are then asked for again."
    ),
)


class Format(StrEnum):
    """How it is printed."""

    text = "text"
    json = "json"


Output = Annotated[Format, typer.Option("--format", help="Lines to read, or one JSON object.")]


@app.command()
def show(output: Output = Format.text, home: Home = None) -> None:
    """Shows how many answers are kept, and what they take.

    \b
    Example:
      rerank cache show
    """
    with session(home, "cpu", None, progress=False) as runtime:
        facts = _facts(_cache(runtime))
    if output is Format.json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    since = f", the oldest of {facts['oldest']}" if facts["oldest"] else ""
    typer.echo(f"{facts['answers']:,} answers{since}")
    typer.echo(f"{_megabytes(facts['bytes'])} of at most {_megabytes(facts['max_bytes'])} in {facts['folder']}")


@app.command()
def prune(
    *,
    megabytes: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="What may be left; the least recently used go first.")
    ] = None,
    unused_days: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Remove what was not used for so many days.")
    ] = None,
    output: Output = Format.text,
    home: Home = None,
) -> None:
    """Removes answers, and gives their room back.

    A cache keeps to its bound by itself; this makes it smaller. --megabytes 0 empties it.

    \b
    Examples:
      rerank cache prune --unused-days 30
      rerank cache prune --megabytes 100
    """
    with session(home, "cpu", None, progress=False) as runtime:
        cache = _cache(runtime)
        limit = cache.max_bytes if megabytes is None else megabytes * 1_000_000
        removed = cache.prune(limit, unused_days)
        facts = {"removed": removed, **_facts(cache)}
    if output is Format.json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    typer.echo(f"{removed:,} answers removed; {facts['answers']:,} are left, {_megabytes(facts['bytes'])}")


def _cache(runtime: Runtime) -> RequestCache:
    from rerank.errors import ArtifactError

    cache = runtime.requests
    if cache is None:
        raise ArtifactError(f"{runtime.home}: cannot be written, so no answers are kept; give another folder (--home)")
    return cache


def _facts(cache: RequestCache) -> dict[str, Any]:
    from datetime import datetime

    contents = cache.contents()
    oldest = None if contents.oldest is None else datetime.fromtimestamp(contents.oldest).astimezone()
    return {
        "folder": str(cache.folder),
        "answers": contents.n_answers,
        "bytes": contents.n_bytes,
        "max_bytes": cache.max_bytes,
        "oldest": None if oldest is None else oldest.isoformat(timespec="minutes"),
        "files": [str(path) for path in contents.files],
    }


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.1f} MB"
