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


def ready_names() -> list[str]:
    """The names of the ready pipelines.

    >>> "bm25" in ready_names()
    True
    """
    return sorted(path.stem for path in shipped("pipelines").glob("*.yaml"))


def pipeline_path(name: str) -> Path:
    """The file that `name` stands for: a YAML file's path, or the name of a ready pipeline.

    >>> pipeline_path("bm25").name
    'bm25.yaml'

    Raises:
        UnknownNameError: no ready pipeline has that name; the nearest one is given.
        ConfigError: no such file.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise ConfigError(f"{name}: no such file; the ready pipelines are {', '.join(ready_names())}")
        return path
    if name not in ready_names():
        hint = nearest(name, ready_names()) or f"; the ready ones are {', '.join(ready_names())}"
        raise UnknownNameError(f"no ready pipeline and no file is called {name!r}{hint}")
    return shipped("pipelines") / f"{name}.yaml"


def ready_recipes() -> list[str]:
    """The names of the ready recipes for training.

    >>> "minilm-l6-cross-encoder" in ready_recipes()
    True
    """
    return sorted(path.stem for path in shipped("pipelines/recipes").glob("*.yaml"))


def recipe_path(name: str) -> Path:
    """The file that `name` stands for: a recipe's path, or the name of a ready recipe.

    Raises:
        UnknownNameError: no ready recipe has that name; the nearest one is given.
        ConfigError: no such file.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise ConfigError(f"{name}: no such file; the ready recipes are {', '.join(ready_recipes())}")
        return path
    if name not in ready_recipes():
        hint = nearest(name, ready_recipes()) or f"; the ready ones are {', '.join(ready_recipes())}"
        raise UnknownNameError(f"no ready recipe and no file is called {name!r}{hint}")
    return shipped("pipelines/recipes") / f"{name}.yaml"


def ready_syntheses() -> list[str]:
    """The names of the ready configurations for synthesizing training data.

    >>> "stdlib-sentences" in ready_syntheses()
    True
    """
    return sorted(path.stem for path in shipped("pipelines/synthesis").glob("*.yaml"))


def synthesis_path(name: str) -> Path:
    """The file that `name` stands for: a synthesis file's path, or the name of a ready one.

    Raises:
        UnknownNameError: no ready synthesis has that name; the nearest one is given.
        ConfigError: no such file.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise ConfigError(f"{name}: no such file; the ready syntheses are {', '.join(ready_syntheses())}")
        return path
    if name not in ready_syntheses():
        hint = nearest(name, ready_syntheses()) or f"; the ready ones are {', '.join(ready_syntheses())}"
        raise UnknownNameError(f"no ready synthesis and no file is called {name!r}{hint}")
    return shipped("pipelines/synthesis") / f"{name}.yaml"


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
