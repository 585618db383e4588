"""What comes with the package, by name: pipelines such as `bm25` and `hybrid`, recipes for training."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from rerank.config import load_pipeline
from rerank.errors import ConfigError, UnknownNameError, nearest
from rerank.resources import shipped
from rerank.yamlfile import read_yaml

if TYPE_CHECKING:
    from rerank.stage import Pipeline


_PIPELINE, _RECIPE, _SYNTHESIS = ("pipeline", "pipelines"), ("recipe", "recipes"), ("synthesis", "syntheses")
_FOLDERS = {_PIPELINE: "pipelines", _RECIPE: "pipelines/recipes", _SYNTHESIS: "pipelines/synthesis"}


def ready_names() -> list[str]:
    """The names of the ready pipelines.

    >>> "bm25" in ready_names()
    True
    """
    return _names(_PIPELINE)


def ready_recipes() -> list[str]:
    """The names of the ready recipes for training.

    >>> "minilm-l6-cross-encoder" in ready_recipes()
    True
    """
    return _names(_RECIPE)


def ready_syntheses() -> list[str]:
    """The names of the ready configurations for synthesizing training data.

    >>> "stdlib-sentences" in ready_syntheses()
    True
    """
    return _names(_SYNTHESIS)


def pipeline_path(name: str) -> Path:
    """The file that `name` stands for: a YAML file's path, or the name of a ready pipeline.

    >>> pipeline_path("bm25").name
    'bm25.yaml'

    Raises:
        UnknownNameError: no ready pipeline has that name; the nearest one is given.
        ConfigError: no such file.
    """
    return _path(name, _PIPELINE)


def recipe_path(name: str) -> Path:
    """The file that `name` stands for, as `pipeline_path` finds it: a recipe."""
    return _path(name, _RECIPE)


def synthesis_path(name: str) -> Path:
    """The file that `name` stands for, as `pipeline_path` finds it: a configuration for synthesizing training data."""
    return _path(name, _SYNTHESIS)


def _names(kind: tuple[str, str]) -> list[str]:
    return sorted(path.stem for path in shipped(_FOLDERS[kind]).glob("*.yaml"))


def _path(name: str, kind: tuple[str, str]) -> Path:
    path, names, (one, several) = Path(name), _names(kind), kind
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise ConfigError(f"{name}: no such file; the ready {several} are {', '.join(names)}")
        return path
    if name not in names:
        hint = nearest(name, names) or f"; the ready ones are {', '.join(names)}"
        raise UnknownNameError(f"no ready {one} and no file is called {name!r}{hint}")
    return shipped(_FOLDERS[kind]) / f"{name}.yaml"


def is_experiment(path: Path) -> bool:
    """Whether a YAML file says an experiment and not a pipeline: it has the key `pipelines`.

    >>> is_experiment(pipeline_path("bm25"))
    False

    Raises:
        ConfigError: it cannot be read as YAML.
    """
    value = read_yaml(path).value
    return isinstance(value, dict) and "pipelines" in value


def is_recipe(path: Path) -> bool:
    """Whether a YAML file says a recipe for training: it has the key of one, such as `contrastive`.

    >>> is_recipe(recipe_path("minilm-l6-cross-encoder")), is_recipe(pipeline_path("bm25"))
    (True, False)

    Raises:
        ConfigError: it cannot be read as YAML.
    """
    from rerank.registry import names_of
    from rerank.train.recipe import Recipe

    value = read_yaml(path).value
    return isinstance(value, dict) and any(name in value for name in names_of(Recipe))


def find_pipeline(name: str) -> Pipeline:
    """The pipeline of a YAML file or of a ready pipeline's name; without a name of its own it gets the file's.

    >>> find_pipeline("bm25").name
    'bm25'

    Raises:
        ConfigError: as `pipeline_path` and `rerank.config.load_pipeline` raise it.
        PipelineError: stages that do not fit.
    """
    path = pipeline_path(name)
    pipeline = load_pipeline(path)
    return pipeline if pipeline.name else dataclasses.replace(pipeline, name=path.stem)
