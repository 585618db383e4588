"""`rerank check`: whether a pipeline, experiment or recipe is sound, without running it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rerank.stage import Flow, Pipeline, Stage

HEAD = ("stage", "needs", "gives", "scores")


def check(
    names: Annotated[
        list[str], typer.Argument(metavar="FILE", help="Pipeline, experiment or recipe files, or names of ready ones.")
    ],
) -> None:
    """Checks pipelines, experiments and recipes; loads no model.

    Names, types and paths are checked, and that every stage gets what it needs. A sound pipeline is shown stage by
    stage; one that is not costs a line that says where and what to do, and the exit code 2.

    \b
    Examples:
      rerank check my-pipeline.yaml
      rerank check bm25 hybrid pipelines/*.yaml
      rerank check my-recipe.yaml
    """
    from rerank.errors import RerankError

    sound = True
    for name in names:
        try:
            typer.echo(_report(name))
        except RerankError as error:
            sound = False
            typer.echo(f"error: {error}", err=True)
    if not sound:
        raise typer.Exit(2)


def _report(name: str) -> str:
    """What is in the file: lines for people.

    Raises:
        ConfigError, PipelineError: it is not sound.
    """
    from rerank.ready import find_pipeline, is_experiment, is_recipe, pipeline_path, ready_recipes, recipe_path

    if name in ready_recipes() or is_recipe(path := pipeline_path(name)):
        return _recipe(recipe_path(name))
    if not is_experiment(path):
        return f"{path}: OK\n{_table(find_pipeline(name))}"
    from rerank.evaluation.experiment import load_experiment

    experiment = load_experiment(path)
    tables = [_table(pipeline) for pipeline in experiment.pipelines]
    return "\n".join([f"{path}: OK, an experiment with {len(tables)} pipelines", *tables])


def _recipe(path: Path) -> str:
    """What a recipe says, shortly.

    Raises:
        ConfigError: it is not sound.
    """
    from rerank.errors import ConfigError
    from rerank.train.recipe import load_recipe

    recipe = load_recipe(path).recipe
    try:
        recipe.check_before()
    except ConfigError as error:
        raise type(error)(f"{path}: {error}") from error
    lines = [
        f"{path}: OK, a recipe",
        f"  trains  {recipe.engine} by {recipe.label}",
        f"  adapter {recipe.adapter or 'none, all weights'}",
        f"  groups  {', '.join(source.label for source in recipe.groups)}",
    ]
    evaluation = recipe.evaluation
    if evaluation is not None:
        on = ", ".join(f"{one.data} ({one.split})" for one in evaluation.on)
        lines.append(f"  best by {evaluation.measure} on {on}")
    return "\n".join(lines)


def _table(pipeline: Pipeline) -> str:
    """A pipeline's stages with what each needs and gives, and a remark where queries alone are not enough."""
    from rerank.errors import PipelineError
    from rerank.stage import FROM_ANYTHING, FROM_QUERIES

    before, note = FROM_QUERIES, ""
    try:
        pipeline.flow(FROM_QUERIES)
    except PipelineError as error:
        before, note = FROM_ANYTHING, f"\n  note: takes data sets with candidates only; from queries alone, {error}"
    rows = [HEAD, *_rows(pipeline, before, 0)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    lines = [f"  {pipeline.label}{': ' if pipeline.description else ''}{' '.join(pipeline.description.split())}"]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append(f"    {'  '.join(cells)}".rstrip())
    return "\n".join(lines) + note


def _rows(stage: Stage, before: Flow, depth: int) -> Iterator[tuple[str, str, str, str]]:
    """A row for each part of `stage` and the parts in it; `before` is what enters `stage`."""
    from rerank.registry import name_of
    from rerank.stage import Pipeline

    for part in stage.parts():
        after = part.flow(before)
        kind = str(after.kind or "told at run time")
        yield "  " * depth + (name_of(type(part)) or part.label), _listed(part.needs), _listed(part.gives), kind
        yield from _rows(part, before, depth + 1)
        if isinstance(stage, Pipeline):
            before = after


def _listed(names: frozenset[str]) -> str:
    return ", ".join(sorted(names)) or "-"
