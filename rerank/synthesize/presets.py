"""Synthesis files: a configuration by name, its preset filled in."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from rerank.config import build
from rerank.ready import synthesis_path
from rerank.synthesize.duqgen import DUQGen
from rerank.synthesize.generators import LLMGenerator
from rerank.synthesize.lists import FreshLists
from rerank.synthesize.told import told_by
from rerank.train.sources import beside, located
from rerank.yamlfile import Key, Tree, read_yaml

Preset = Literal["default", "paper"]

_CONTRIEVER = "facebook/contriever-msmarco"
PAPER: dict[str, Any] = {
    "documents": 1000,
    "cleaning": {"min_characters": 300, "min_words": 0, "duplicates": True},
    "vectors": {"model": _CONTRIEVER},
    "clusters": {"k": 1000},
    "choice": {"temperature": 1.0, "draws": 5, "diversity": "mmr", "relevance": 1.0},
    "generator": {
        "llm": {
            "engine": {"causal_lm": {"model": "meta-llama/Llama-2-7b-chat-hf", "sampling": {"max_tokens": 64}}},
            "prompts": ["duqgen-question"],
        }
    },
    "postprocessing": {"min_words": 1, "max_words": 1000, "max_repeated": 1.0, "ascii_only": True},
    "round_trip": None,
    "near_duplicates": None,
    "negatives": {
        "stages": [{"dense": {"model": _CONTRIEVER, "k": 100}}],
        "k": 4,
        "from_rank": 93,
        "to_rank": 100,
        "pick": "top",
    },
}
"""What the paper and its code do, where that is not the default here.

Left out are defects of the code: a document too many from each cluster where the remainder is 0, clusters asked for
more documents than they have, the question mark that is cut off, the document itself among its negatives.
"""
_MERGED = ("cleaning", "vectors", "clusters", "choice", "postprocessing")
"""Parts of which a file may change single options of its preset; others it gives whole."""
_SWITCHED_OFF = ("round_trip", "negatives", "clusters", "near_duplicates")
"""Options that may be null."""


@dataclass(frozen=True)
class NamedSynthesis:
    """A synthesis with what its file calls it."""

    name: str
    description: str
    synthesis: DUQGen


def load_synthesis(name: str | Path) -> NamedSynthesis:
    """The synthesis of a YAML file, or the ready one of that name.

    Raises:
        UnknownNameError: no such file, or a name inside it that means nothing.
        ConfigError: with file, line and key path.
    """
    path = synthesis_path(str(name))
    found = synthesis_from(read_yaml(path))
    return found if found.name else dataclasses.replace(found, name=path.stem)


def synthesis_from(tree: Tree) -> NamedSynthesis:
    """The synthesis of a parsed file.

    >>> from rerank.yamlfile import parse_yaml
    >>> text = "duqgen: {preset: paper, data: stdlib, clusters: {k: 50}, generator: keyphrase}"
    >>> made = synthesis_from(parse_yaml(text)).synthesis
    >>> made.clusters.k, made.choice.temperature, made.round_trip
    (50, 1.0, None)

    Raises:
        ConfigError: with file, line and key path.
    """
    if not isinstance(tree.value, dict) or "duqgen" not in tree.value:
        raise tree.error((), "a synthesis is a mapping with 'duqgen' and perhaps 'name' and 'description'")
    told = told_by(tree, "a synthesis", "duqgen")
    fields = told.body
    if not isinstance(fields, dict):
        raise tree.error(("duqgen",), "expected a mapping of options; 'data' is the least")
    if "data" not in fields:
        raise tree.error(("duqgen",), "needs the option 'data', the collection that queries are written for")
    wanted = _with_preset(fields, tree)
    off = {name: None for name in _SWITCHED_OFF if name in wanted and wanted[name] is None}
    built = build(DUQGen, {name: value for name, value in wanted.items() if name not in off}, tree, ("duqgen",))
    made = _located(dataclasses.replace(built, **off), tree)  # type: ignore[arg-type]
    return NamedSynthesis(told.name, told.description, made)


def _with_preset(fields: dict[str, Any], tree: Tree) -> dict[str, Any]:
    preset = fields.get("preset", "default")
    if preset not in get_args(Preset):
        raise tree.error(("duqgen", "preset"), f"expected default or paper; got {preset!r}")
    given = {name: value for name, value in fields.items() if name != "preset"}
    if preset == "default":
        return given
    made = {**PAPER, **given}
    for name in _MERGED:
        if isinstance(given.get(name), dict):
            made[name] = {**PAPER[name], **given[name]}
    return made


def _located(made: DUQGen, tree: Tree) -> DUQGen:
    """The same with paths made absolute, those of pipelines once they were found."""
    changes: dict[str, Any] = {"data": beside(made.data, tree, ("duqgen", "data"))}
    if isinstance(made.generator, LLMGenerator):
        key: Key = ("duqgen", "generator", "llm", "prompts")
        prompts = (beside(name, tree, key) if _is_file(name) else name for name in made.generator.prompts)
        changes["generator"] = dataclasses.replace(made.generator, prompts=tuple(prompts))
    for name in ("round_trip", "negatives"):
        lists = getattr(made, name)
        if isinstance(lists, FreshLists) and lists.pipeline:
            changes[name] = located(lists, tree, ("duqgen", name))
    return dataclasses.replace(made, **changes)


def _is_file(name: str) -> bool:
    return Path(name).suffix in (".yaml", ".yml")
