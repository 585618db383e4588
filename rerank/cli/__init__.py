"""The command line: `rerank VERB ...`, one file a verb.

A verb's module imports only typer and the standard library at its top; what the verb needs is imported when it runs,
so that help answers at once.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from rerank import __version__
from rerank.cli import (
    adapt,
    adapters,
    bench_serve,
    cache,
    check,
    compare,
    data,
    evaluate,
    index,
    models,
    prompts,
    rerank_list,
    run,
    schema,
    search,
    serve,
    synthesize,
    train,
)
from rerank.errors import RerankError

BAD_INPUT = 2
"""The exit code for input that cannot be used as given."""
INTERRUPTED = 130
"""The exit code after Ctrl-C: 128 plus the signal's number."""

# The base of what typer's parser raises; typer gives no public name to it.
UsageError: type[Exception] = typer.BadParameter.__bases__[0]

app = typer.Typer(
    name="rerank",
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.command("run")(run.run)
app.command("evaluate")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("search")(search.search)
app.command("rerank")(rerank_list.rerank)
app.command("serve")(serve.serve)
app.command("bench-serve")(bench_serve.bench_serve)
app.add_typer(index.app, name="index", short_help="Builds indexes beforehand; lists and verifies what is on disk.")
app.add_typer(synthesize.app, name="synthesize", short_help="Makes training data from documents.")
app.command("adapt")(adapt.adapt)
app.command("train")(train.train)
app.add_typer(adapters.app, name="adapters", short_help="Shows, merges and exports what training has left.")
app.command("check")(check.check)
app.command("schema")(schema.schema)
app.add_typer(data.app, name="data", short_help="Lists, shows, checks and judges collections.")
app.add_typer(models.app, name="models", short_help="Lists and fetches the models that have short names.")
app.add_typer(cache.app, name="cache", short_help="Shows and prunes what models answered before.")
app.add_typer(prompts.app, name="prompts", short_help="Lists, renders and imports prompts for language models.")


@dataclass
class Switches:
    """What the options before the verb say."""

    traceback: bool = False


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - typer calls it with the option's value
    if wanted:
        typer.echo(f"rerank {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    *,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say what is being done, on standard error.")
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", envvar="RERANK_DEBUG", help="Show where an error arose, not only its line.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Retrieval and reranking pipelines: declare them in YAML, run, evaluate and compare them.

    \b
    Start here:
      rerank search bm25 "walk a directory tree"
      rerank evaluate bm25 hybrid --out runs/first
      rerank evaluate my-pipeline.yaml --data path/to/beir-folder

    PIPELINE is a YAML file or the name of a ready one: bm25, dense, splade, hybrid, hybrid-rescored. --data is
    stdlib (Python's own documentation, which every interpreter carries), a folder in BEIR's layout, or the id of an
    ir_datasets collection.
    """
    context.obj.traceback = traceback
    logging.getLogger("rerank").setLevel(logging.INFO if verbose else logging.WARNING)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code of the command line `arguments` (default: the process's own).

    0 when all went well, 2 for input that cannot be used as given, 130 after Ctrl-C, 1 when the reader of a pipe went
    away.
    """
    switches = Switches()
    log, lines = logging.getLogger("rerank"), _Lines()
    log.addHandler(lines)
    try:
        code = app(arguments, prog_name="rerank", standalone_mode=False, obj=switches)
        sys.stdout.flush()
    except UsageError as error:
        return _misused(error)
    except RerankError as error:
        if switches.traceback:
            raise
        return _complain(str(error))
    except BrokenPipeError:
        # What is left in the buffer must not fail once more when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if switches.traceback or error.filename is None:
            raise
        return _complain(f"{error.filename}: {error.strerror}")
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    finally:
        log.removeHandler(lines)
    if code == INTERRUPTED:
        typer.echo("interrupted; what was finished is kept, and the same command goes on from there", err=True)
    return code or 0


class _Lines(logging.Handler):
    """Log records as lines on standard error, above a progress bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(f"{record.levelname.lower()}: {record.getMessage()}", err=True)


def _complain(message: str) -> int:
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    return BAD_INPUT


def _misused(error: Any) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":  # a command given bare: its message is the help
        error.show()
        return BAD_INPUT
    command = error.ctx.command_path if error.ctx is not None else "rerank"
    return _complain(f"{error.format_message()} (see: {command} --help)")
