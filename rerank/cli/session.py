"""The options that every verb with work to do has, and the runtime that they make."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rerank.runtime import Runtime

Home = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Where indexes, vectors, corpora and models are kept; default RERANK_HOME, else the user's cache folder.",
    ),
]
Device = Annotated[str, typer.Option(metavar="NAME", help="Where models run: auto, cpu, cuda, cuda:1, ...")]
Threads = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Processors to use; default all that this process may use.")
]
Progress = Annotated[
    bool | None,
    typer.Option("--progress/--no-progress", help="Bars on standard error; by default only where that is a terminal."),
]
NoCache = Annotated[
    bool, typer.Option("--no-cache", help="Ask models again what they answered before, and keep no answers.")
]


def session(home: Home, device: Device, threads: Threads, progress: Progress, *, no_cache: NoCache = False) -> Runtime:
    """The runtime of one command."""
    from rerank.runtime import Runtime

    if home is not None:
        # Models are looked up by name without a runtime, and child processes have only the environment.
        os.environ["RERANK_HOME"] = str(home)
    return Runtime(device=device, threads=threads, progress=progress, cache=not no_cache)
