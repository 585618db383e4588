"""`rerank schema`: what an editor needs to complete and check pipeline, experiment and recipe files."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def schema(
    *,
    experiment: Annotated[
        bool, typer.Option("--experiment", help="The schema of experiment files instead of pipeline files.")
    ] = False,
    recipe: Annotated[bool, typer.Option("--recipe", help="The schema of recipes, the files of rerank train.")] = False,
) -> None:
    """Prints the JSON schema of pipelines, experiments or recipes.

    With it an editor completes stage names and options and marks what is wrong while you type. Editors with the YAML
    language server read its place from a file's first line.

    \b
    Example:
      rerank schema > pipeline.schema.json
      # then, as the first line of my-pipeline.yaml:
      # yaml-language-server: $schema=pipeline.schema.json
    """
    if recipe:
        from rerank.train.schema import recipe_schema

        typer.echo(json.dumps(recipe_schema(), indent=2))
    elif experiment:
        from rerank.evaluation.experiment import experiment_schema

        typer.echo(json.dumps(experiment_schema(), indent=2))
    else:
        from rerank.config import schema as pipeline_schema

        typer.echo(json.dumps(pipeline_schema(), indent=2))
