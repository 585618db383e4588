"""`rerank adapters`: what an adapter is, and the whole model that it makes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rerank.cli.session import Home

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Folder = Annotated[Path, typer.Argument(metavar="ADAPTER", help="The adapter's folder, or the name of one that ships.")]
Base = Annotated[
    str | None, typer.Option(metavar="MODEL", help="The base model; default the one that the adapter names.")
]
Force = Annotated[bool, typer.Option("--force", help="Also where the base is not the one that it was trained on.")]


@app.command("show")
def show(adapter: Folder) -> None:
    """Shows what an adapter was trained on, how, and how large it is."""
    from rerank.adapters.export import describe

    typer.echo(describe(adapter))


@app.command("merge")
def merge(
    adapter: Folder,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the model goes.")],
    base: Base = None,
    home: Home = None,
    *,
    force: Force = False,
) -> None:
    """Writes the base model with the adapter's changes in its weights, as a plain Hugging Face folder.

    \b
    Example:
      rerank adapters merge runs/mine/adapter --out models/mine
    """
    from rerank.adapters.export import merge_adapter
    from rerank.cli.session import session

    with session(home, "cpu", None, None) as runtime:
        merge_adapter(adapter, out, runtime, base=base, force=force)
    typer.echo(f"{out}: the whole model; any engine of its kind, transformers and sentence-transformers load it")


@app.command("export")
def export(
    adapter: Folder,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the adapter goes.")],
) -> None:
    """Writes the adapter as peft reads it, without this program's manifest.

    \b
    Example:
      rerank adapters export runs/mine/adapter --out shared/mine
    """
    from rerank.adapters.export import export_adapter

    export_adapter(adapter, out)
    typer.echo(f"{out}: the adapter as peft's save_pretrained writes it")
