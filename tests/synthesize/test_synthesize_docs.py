"""The page about synthesis says what there is."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from tiny_synthesis import corpus_of, some_documents

from rerank.cli import app
from rerank.config import pipeline_from
from rerank.registry import BUILT_IN
from rerank.retrieve.bm25 import BM25
from rerank.runtime import Runtime
from rerank.synthesize.cleaning import Cleaning
from rerank.synthesize.duqgen import DUQGen
from rerank.synthesize.generators import KeyphraseGenerator, LLMGenerator
from rerank.synthesize.labels import labels_from
from rerank.synthesize.negatives import HardNegatives
from rerank.synthesize.presets import PAPER, synthesis_from
from rerank.synthesize.roundtrip import RoundTrip
from rerank.train.recipe import recipe_from
from rerank.yamlfile import parse_yaml

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "synthesize.md").read_text(encoding="utf-8")
SOURCE = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "rerank" / "synthesize").glob("*.py"))
WHOLE, RECIPE, LABELS, CONDENSED = (block.partition("```")[0] for block in PAGE.split("```yaml\n")[1:])


def table(title: str) -> list[list[str]]:
    """The rows of the table whose first heading is `title`."""
    _, _, after = PAGE.partition(f"\n| {title} |")
    return [line.strip("| ").split(" | ") for line in after.partition("\n\n")[0].splitlines()[2:]]


def quoted(cells: list[list[str]]) -> list[str]:
    """What stands in quotes in the first cells."""
    return [text for cell in cells for text in re.findall("`([^`]+)`", cell[0])]


# -- files ------------------------------------------------------------


def test_the_whole_file_can_be_read_and_is_the_default_but_for_its_generator() -> None:
    made = synthesis_from(parse_yaml(WHOLE)).synthesis
    plain = DUQGen(data="stdlib", generator=made.generator)
    assert dataclasses.replace(made, round_trip=plain.round_trip, negatives=plain.negatives) == plain
    for lists in ("round_trip", "negatives"):
        told, usual = getattr(made, lists), getattr(plain, lists)
        assert told.pipeline == usual.usual and dataclasses.replace(told, pipeline=None) == usual


def test_the_whole_file_names_every_option() -> None:
    told = parse_yaml(WHOLE).value["duqgen"]
    made = synthesis_from(parse_yaml(WHOLE)).synthesis
    assert set(told) - {"preset"} == {field.name for field in dataclasses.fields(DUQGen)}
    for part in ("cleaning", "clusters", "choice", "postprocessing"):
        assert set(told[part]) == {field.name for field in dataclasses.fields(getattr(made, part))}, part
    assert isinstance(made.generator, LLMGenerator)
    written = told["generator"]["llm"]
    assert set(written) == {field.name for field in dataclasses.fields(made.generator)}
    assert set(written["examples"]) == {field.name for field in dataclasses.fields(made.generator.examples)}


def test_the_recipe_the_labels_and_the_pipeline_can_be_read() -> None:
    recipe = recipe_from(parse_yaml(RECIPE)).recipe
    assert recipe.groups[0].sizes == (5,)
    assert labels_from(parse_yaml(LABELS)).labels.interval.groups == 3
    assert [stage.label for stage in pipeline_from(parse_yaml(CONDENSED)).stages] == ["bm25", "condense", "rescore"]


# -- tables ------------------------------------------------------------


def test_the_presets_differ_as_told() -> None:
    usual: Any = DUQGen(data="stdlib")
    told = {cells[0].strip("`"): cells[1:3] for cells in table("option")}
    assert told.keys() >= {"generator", "round_trip", "near_duplicates"}
    for option, (default, paper) in told.items():
        part, _, name = option.partition(".")
        ours, theirs = getattr(usual, part), PAPER[part]
        if name:
            ours, theirs = getattr(ours, name), theirs[name]
        elif part == "generator":
            ours, theirs = ours.label, next(iter(theirs))
        elif part == "round_trip":
            ours = ours.usual
        assert [ours, theirs] == [parse_yaml(f"v: {text}").value["v"] for text in (default, paper)], option


def test_every_difference_of_the_presets_is_told() -> None:
    usual: Any = DUQGen(data="stdlib")
    told = {cells[0].strip("`") for cells in table("option")}
    for part in ("cleaning", "choice", "postprocessing"):
        for name, value in PAPER[part].items():
            assert (getattr(getattr(usual, part), name) != value) == (f"{part}.{name}" in told), f"{part}.{name}"
    assert {part for part in PAPER if not hasattr(usual, part)} == set()


def test_the_generators_are_those_that_there_are() -> None:
    there = {name for name, where in BUILT_IN.items() if where.startswith("rerank.synthesize.generators:")}
    assert set(quoted(table("generator"))) == there


def test_the_reasons_are_those_that_are_counted() -> None:
    reasons = [*quoted(table("document")), *quoted(table("text"))]
    assert len(reasons) > 14
    for reason in reasons:
        # A number in a reason is an option's value where it is made.
        pattern = re.escape(reason).replace("N", r"\{[^}]+\}")
        assert re.search(f'"{pattern}"', SOURCE), reason


def test_the_files_and_the_fields_of_their_lines_are_those_that_are_written(tmp_path: Path) -> None:
    lists = (BM25(k=60),)
    synthesis = DUQGen(
        documents=30,
        cleaning=Cleaning(min_characters=10),
        clusters=None,
        generator=KeyphraseGenerator(samples=2),
        round_trip=RoundTrip(stages=lists),
        negatives=HardNegatives(stages=lists, k=3),
        dev=0.3,
    )
    with Runtime(tmp_path / "home", progress=False, threads=1, device="cpu") as runtime:
        synthesis.run(tmp_path / "out", runtime, corpus_of(some_documents()))
    written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert set(quoted(table("file"))) == written | {"map.svg"}
    told = {cells[0].strip("`"): cells[1] for cells in table("file")}
    for name in ("provenance.jsonl", "drops.jsonl"):
        record = json.loads((tmp_path / "out" / name).read_text(encoding="utf-8").splitlines()[0])
        assert re.findall(r"`(\w+)`", told[name]) == list(record), name


# -- commands ------------------------------------------------------------


def commands() -> list[list[str]]:
    """The words of every call of `rerank` in the page."""
    blocks = [block.partition("```")[0] for block in PAGE.split("```sh\n")[1:]]
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("rerank ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_and_their_options_exist(words: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    there = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in words if word.startswith("--")} <= there


@pytest.mark.parametrize("path", sorted(set(re.findall(r"scripts/figures/\w+\.py", PAGE))))
def test_scripts_that_are_named_exist(path: str) -> None:
    assert (ROOT / path).is_file()
