"""`rerank train`: a recipe to a trained model or adapter."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rerank.cli.session import Device, Home, Progress, Threads, session

if TYPE_CHECKING:
    from rerank.runtime import Runtime
    from rerank.train.recipe import Recipe
    from rerank.train.training import Trained


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a ready recipe.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where the model, its card, report and checkpoints go; default runs/NAME."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH", help="Where a data set of the recipe is: a folder, or another name; may be repeated."
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            metavar="ADAPTER", help="The adapter to go on from: another training's, or one that ships, by name."
        ),
    ] = None,
    home: Home = None,
    device: Device = "auto",
    threads: Threads = None,
    progress: Progress = None,
    *,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show what would be learnt from, rendered and counted; train nothing."),
    ] = False,
    examples: Annotated[int, typer.Option(min=0, metavar="N", help="Examples that --dry-run shows.")] = 2,
) -> None:
    """Trains a reranker by a recipe, and measures it meanwhile.

    A recipe says what is learnt from, which model, how long, and by what it is judged. The folder holds the adapter (or
    model), a card (README.md), a report with learning curves (report.html), and metrics.jsonl. Interrupted, even by
    kill -9, the same command goes on from the last checkpoint.

    \b
    Examples:
      rerank train smollm2-labels --data beir/nfcorpus=path/to/folder --dry-run
      rerank train mine.yaml --out runs/mine
      rerank train smollm2-groups-grpo --start runs/smollm2-groups-sft/adapter
      accelerate launch --num_processes 4 -m rerank train mine.yaml
    """
    from rerank.runtime import cpu_budget
    from rerank.train.processes import launched, own_threads
    from rerank.train.recipe import load_recipe

    rank, size = launched()
    if size > 1:
        threads = threads or own_threads(cpu_budget())
        if rank:
            # What all would say the first one says.
            progress = False
            logging.getLogger("rerank").setLevel(logging.ERROR)
    found = load_recipe(recipe)
    wanted = found.recipe.with_data(_paths(data or []))
    if start is not None:
        wanted = wanted.going_on_from(start)
    with session(home, device, threads, progress) as runtime:
        if dry_run:
            if rank:
                return
            typer.echo(_preview(wanted, runtime, examples))
            return
        from rerank.train.training import train as run

        trained = run(wanted, out or Path("runs") / found.name, runtime, name=found.name)
    if rank == 0:
        _say(trained)


def _paths(given: list[str]) -> dict[str, str]:
    from rerank.errors import ConfigError

    paths = {}
    for one in given:
        name, sign, path = one.partition("=")
        if not (name and sign and path):
            raise ConfigError(f"--data {one}: expected NAME=PATH, where the recipe calls a data set NAME")
        paths[name] = str(Path(path).expanduser().resolve()) if Path(path).expanduser().exists() else path
    return paths


def _preview(recipe: Recipe, runtime: Runtime, examples: int) -> str:
    from rerank.engines.text_model import quiet_loading
    from rerank.extras import need
    from rerank.models import resolve_model
    from rerank.prompts.prompt import load_prompt
    from rerank.train.groups import build_groups
    from rerank.train.preview import preview

    recipe.check_before()
    groups = build_groups(recipe.groups, runtime)
    engine = recipe.engine
    folder = resolve_model(engine.model, engine.revision, runtime.home)  # type: ignore[attr-defined]
    transformers = need("transformers", "train", "counting tokens")
    with quiet_loading():
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder.path), local_files_only=True)
    prompt = load_prompt(recipe.prompt) if recipe.prompt is not None else None
    limits = (recipe.max_tokens, getattr(engine, "max_tokens", None), int(tokenizer.model_max_length))
    room = min(limit for limit in limits if limit is not None)
    steps = recipe.n_steps(len(groups))
    shown = preview(groups, prompt, tokenizer, recipe=recipe, max_tokens=room, examples=examples)
    return f"{shown}\n\n{steps:,} steps of {recipe.optimiser.groups} groups"


def _say(trained: Trained) -> None:
    facts, fitted = trained.facts, trained.fitted
    best = "" if fitted.best is None else f", {facts['measure']} {fitted.best:.4f}"
    typer.echo(
        f"{trained.model}: step {fitted.best_step:,} of {fitted.steps:,}{best}; see {trained.folder}/report.html"
    )
