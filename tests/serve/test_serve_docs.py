"""The page about serving says what there is."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the extra serve brings it")

from rerank.cli.serve import serve
from rerank.serve.app import GETS, POSTS
from rerank.serve.settings import ServedModel, Settings, load_settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")


def table(title: str) -> dict[str, list[str]]:
    """The rows of the table whose first heading is `title`, by their first cell."""
    _, _, after = PAGE.partition(f"\n| {title} |")
    rows = [line.strip("| ").split(" | ") for line in after.partition("\n\n")[0].splitlines()[2:]]
    return {cells[0].strip("` "): [cell.strip("` ") for cell in cells[1:]] for cells in rows}


@pytest.mark.parametrize(("title", "kind"), [("setting", Settings), ("key", ServedModel)])
def test_every_setting_is_told_with_its_flag_and_default(title, kind):
    told = table(title)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    assert list(told) == list(fields)
    options = inspect.signature(serve).parameters
    for name, (flag, default, *_) in told.items():
        if name in options and name not in ("data",):
            assert flag.startswith((f"--{name.replace('_', '-')}", "MODEL")), name
        value = fields[name].default
        plain = {"—": None, "none": (), "true": True, "required": dataclasses.MISSING}.get(default, default)
        assert str(plain) == str(int(value) if isinstance(value, float) else value), name


def test_every_route_that_is_told_is_there():
    told = {path for cell in table("route") for path in re.findall(r"/[a-z0-9/_.]*", cell)}
    assert told
    assert told <= {*POSTS, *GETS}


def test_the_example_of_a_settings_file_can_be_read():
    settings = load_settings(file=ROOT / "docs" / "examples" / "settings.yaml")
    assert [each.served_name for each in settings.models] == ["minilm"]


def test_the_settings_in_the_page_can_be_read(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text(PAGE.partition("```yaml\n")[2].partition("```")[0], encoding="utf-8")
    settings = load_settings(file=path)
    assert [each.served_name for each in settings.models] == ["small", "legal"]
