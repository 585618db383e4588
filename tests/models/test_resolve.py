from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from rerank.errors import ModelError, UnknownNameError
from rerank.models import ModelFolder, checksums, resolve_model
from rerank.models import hub as hub_module
from rerank.models.resolve import locate_model
from rerank.models.tensors import write_tensors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A local model folder: configuration and weights."""
    pytest.importorskip("safetensors")
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "bert"}')
    write_tensors(path, {"weight": np.ones((3, 4), dtype=np.float32)})
    return path


def modules(folder: Path, *rows: tuple[str, str]) -> None:
    tree = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(rows)]
    (folder / "modules.json").write_text(json.dumps(tree))


# -- what a name means ---------------------------------------------------------------------------------------------


def test_a_short_name_is_fetched_and_carries_its_pins(tiny, home):
    told: list[str] = []
    found = resolve_model("tiny", home=home, progress=told.append)
    assert found == ModelFolder(
        home / "models" / "tiny", "tiny", "catalogue", "tiny-weights-for-tests==1.0", found.fingerprint
    )
    assert told


def test_what_is_missing_is_not_fetched_when_asked_not_to(tiny, home):
    with pytest.raises(ModelError, match=r"'tiny' is absent in .*rerank models fetch tiny"):
        resolve_model("tiny", home=home, fetch=False)


def test_a_short_name_wins_over_a_folder_of_that_name(tiny, home, folder, monkeypatch):
    shutil.copytree(folder, folder.parent / "tiny")
    monkeypatch.chdir(folder.parent)
    assert resolve_model("tiny", home=home).source == "catalogue"
    assert resolve_model("./tiny", home=home).source == "folder"


@pytest.mark.parametrize("name", ["model", "./model", "../{parent}/model"])
def test_a_folder_is_named_by_its_path(folder, home, monkeypatch, name):
    monkeypatch.chdir(folder.parent)
    found = resolve_model(name.format(parent=folder.parent.name), home=home)
    assert (found.path, found.source, found.revision) == (folder, "folder", None)


def test_a_folder_below_the_home_directory_is_named_with_a_tilde(folder, home, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert resolve_model("~/model", home=home).path == folder


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere", "~/nowhere", "~no-such-user/x", "/a\0b"])
def test_a_path_that_is_no_folder_is_said_to_be_none(name, home):
    with pytest.raises(ModelError, match=r"no such folder|home directory"):
        resolve_model(name, home=home)


@pytest.mark.parametrize("name", ["", "bert", "a/b/c", "a/../b", "owner/na me", "-a/b", "a\0b"])
def test_a_name_that_means_nothing_says_what_names_look_like(name, home):
    with pytest.raises(UnknownNameError, match="a hub id is owner/name"):
        resolve_model(name, home=home)


@pytest.mark.parametrize(("name", "meant"), [("minilm", "minilm-l6"), ("SmolLM2-135M", "smollm2-135m")])
def test_a_nearly_right_name_is_answered_with_the_right_one(name, meant, home):
    with pytest.raises(UnknownNameError, match=f"did you mean '{meant}'"):
        resolve_model(name, home=home)


def test_only_hub_models_take_a_revision(tiny, folder, home):
    for name in ("tiny", str(folder)):
        with pytest.raises(ModelError, match="takes no revision"):
            resolve_model(name, "main", home=home)
    assert not home.exists()


def test_a_hub_model_carries_its_commit(folder, home, monkeypatch):
    monkeypatch.setattr("rerank.models.resolve.download", lambda *_, **__: (folder, "c0ffee"))
    found = resolve_model("owner/name", "main", home=home)
    assert (found.path, found.source, found.revision) == (folder, "hub", "c0ffee")


def test_a_model_is_located_without_a_look_at_its_weights(folder, home):
    (folder / "model.safetensors").unlink()
    found = locate_model(str(folder), home=home)
    assert (found.path, found.source, found.revision) == (folder, "folder", None)
    assert not home.exists()


def test_a_catalogue_model_that_is_not_here_is_not_fetched_for_its_configuration(tiny, home):
    with pytest.raises(ModelError, match="rerank models fetch tiny"):
        locate_model("tiny", home=home, weights=False)


# -- what a folder must have ---------------------------------------------------------------------------------------


def test_a_folder_without_configuration_says_so(folder, home):
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"has no config\.json"):
        resolve_model(str(folder), home=home)


def test_a_folder_without_weights_says_so(folder, home):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no weights \(model\.safetensors\)"):
        resolve_model(str(folder), home=home)


def test_pickled_weights_are_refused(folder, home):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"only pytorch_model\.bin, and pickled weights can run code"):
        resolve_model(str(folder), home=home)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"])
def test_weights_that_are_not_safetensors_are_refused(folder, home, content):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        resolve_model(str(folder), home=home)


def test_weights_cut_short_are_refused(folder, home):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        resolve_model(str(folder), home=home)


def test_a_missing_shard_is_named(folder, home):
    (folder / "model.safetensors").rename(folder / "model-1-of-2.safetensors")
    index = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"names the weights model-2-of-2\.safetensors, which are missing"):
        resolve_model(str(folder), home=home)


@pytest.mark.parametrize("text", ["[]", "{}", '{"weight_map": 3}'])
def test_a_damaged_index_of_shards_is_refused(folder, home, text):
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match="does not say which file has which weights"):
        resolve_model(str(folder), home=home)


def test_the_transformer_may_lie_in_a_module_of_its_own(folder, home):
    inner = folder / "0_Transformer"
    inner.mkdir()
    modules(
        folder,
        ("0_Transformer", "sentence_transformers.models.Transformer"),
        ("1_P", "sentence_transformers.models.Pooling"),
    )
    with pytest.raises(ModelError, match=r"0_Transformer has no config\.json"):
        resolve_model(str(folder), home=home)
    for name in ("config.json", "model.safetensors"):
        (folder / name).rename(inner / name)
    assert resolve_model(str(folder), home=home).path == folder


def test_word_vectors_need_no_configuration(folder, home):
    (folder / "config.json").unlink()
    modules(folder, ("", "sentence_transformers.models.StaticEmbedding"))
    assert resolve_model(str(folder), home=home).path == folder


def test_a_module_with_code_of_its_own_is_refused(folder, home):
    modules(folder, ("", "modeling_custom.Transformer"))
    with pytest.raises(ModelError, match=r"'modeling_custom\.Transformer', code of its own, which is not run"):
        resolve_model(str(folder), home=home)


def test_a_module_outside_the_folder_is_refused(folder, home):
    modules(folder, ("..", "sentence_transformers.models.Transformer"))
    with pytest.raises(ModelError, match="outside the folder"):
        resolve_model(str(folder), home=home)


@pytest.mark.parametrize("text", ["{", "{}[]", "[1]", '[{"path": ""}]', "3"])
def test_a_damaged_list_of_modules_is_refused(folder, home, text):
    (folder / "modules.json").write_text(text)
    with pytest.raises(ModelError, match=r"modules\.json is not"):
        resolve_model(str(folder), home=home)


# -- fingerprints --------------------------------------------------------------------------------------------------


def test_a_fingerprint_depends_on_contents_and_not_on_the_place(folder, home):
    copy = folder.parent / "copy"
    shutil.copytree(folder, copy)
    (copy / "README.md").write_text("not part of the model")
    (copy / "checkpoint-5").mkdir()
    shutil.copy(copy / "model.safetensors", copy / "checkpoint-5")
    assert resolve_model(str(copy), home=home).fingerprint == resolve_model(str(folder), home=home).fingerprint


@pytest.mark.parametrize("change", ["config.json", "model.safetensors", "vocab.txt", "1_Pooling/config.json"])
def test_a_fingerprint_changes_with_every_file_of_the_model(folder, home, change):
    before = resolve_model(str(folder), home=home).fingerprint
    if change == "model.safetensors":
        write_tensors(folder, {"weight": np.zeros((3, 4), dtype=np.float32)})
    else:
        (folder / change).parent.mkdir(exist_ok=True)
        (folder / change).write_text('{"other": 1}')
    assert resolve_model(str(folder), home=home).fingerprint != before


def test_a_second_look_hashes_nothing(folder, home, monkeypatch):
    before = resolve_model(str(folder), home=home).fingerprint

    def refuse(path: Path) -> str:
        raise AssertionError(path)

    monkeypatch.setattr(checksums, "file_sha256", refuse)
    assert resolve_model(str(folder), home=home).fingerprint == before


def test_a_change_of_the_same_size_with_the_old_time_is_seen(folder, home):
    path = folder / "config.json"
    before, status = resolve_model(str(folder), home=home).fingerprint, path.stat()
    path.write_text('{"model_type": "gpt2"}')
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    assert resolve_model(str(folder), home=home).fingerprint != before


def test_a_memory_that_cannot_be_written_costs_only_time(folder, tmp_path):
    (tmp_path / "file").write_text("")
    memory = tmp_path / "file" / "checksums.json"
    assert checksums.model_fingerprint(folder, memory) == checksums.model_fingerprint(folder, memory)


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', '{"a": [1]}'])
def test_a_damaged_memory_is_told_and_written_again(folder, home, caplog, text):
    memory = home / "models" / "checksums.json"
    memory.parent.mkdir(parents=True)
    memory.write_text(text)
    first = checksums.model_fingerprint(folder, memory)
    assert "not a memory of checksums" in caplog.text
    assert set(json.loads(memory.read_text())) == {str(p) for p in checksums.model_files(folder)}
    assert checksums.model_fingerprint(folder, memory) == first


def test_hub_ids_are_told_from_paths_and_short_names():
    assert hub_module.is_hub_id("intfloat/multilingual-e5-small")
    assert not any(map(hub_module.is_hub_id, ["bert", "a/b/c", "../a", "a/..b", "/a/b", "a/", "/b"]))
