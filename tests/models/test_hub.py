from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rerank.errors import ModelError
from rerank.models import resolve_model
from rerank.models.hub import download

hub = pytest.importorskip("huggingface_hub")
errors = pytest.importorskip("huggingface_hub.errors")
constants = pytest.importorskip("huggingface_hub.constants")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def http_error(name: str) -> Exception:
    """One of the hub's own errors, without the answer of a server."""
    kind = getattr(errors, name)
    error = kind.__new__(kind)
    error.args = ("404 Client Error.\n\nSecond line.",)
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (http_error("GatedRepoError"), r"'owner/name@v1' is gated: accept its terms .*hf auth login"),
        (http_error("RepositoryNotFoundError"), "neither a local folder nor on the hub"),
        (http_error("RevisionNotFoundError"), "has no such revision"),
        (http_error("HfHubHTTPError"), r"cannot be downloaded \(404 Client Error\.\); connect"),
        (errors.LocalEntryNotFoundError("offline"), "not in the hub's cache .*; connect, or give a local folder"),
        (errors.HFValidationError("bad"), "is not a name that the hub allows"),
        (ConnectionError("proxy\nrefused"), r"cannot be downloaded \(proxy\)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_goes_wrong_is_said_in_one_line_with_a_remedy(monkeypatch, error, said):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(ModelError, match=said) as caught:
        download("owner/name", "v1")
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is error


def test_the_short_name_with_the_same_weights_is_offered_when_the_hub_is_out_of_reach(monkeypatch):
    def fail(*_, **__):
        raise errors.LocalEntryNotFoundError("offline")

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(ModelError, match="the catalogue's 'minilm-l6' has these weights"):
        download("sentence-transformers/all-MiniLM-L6-v2", None)


@pytest.mark.parametrize("revision", ["", "../x", "a/../../b", "-x", "a b"])
def test_a_revision_cannot_leave_the_cache(revision):
    with pytest.raises(ModelError, match="is not a revision"):
        download("owner/name", revision)


def test_only_data_files_are_asked_for(monkeypatch, tmp_path):
    asked = {}

    def answer(repository, **options):
        asked.update(options, repository=repository)
        return str(tmp_path / COMMIT)

    monkeypatch.setattr(hub, "snapshot_download", answer)
    assert download("owner/name", "main", only_cached=True) == (tmp_path / COMMIT, COMMIT)
    assert (asked["repository"], asked["revision"], asked["local_files_only"]) == ("owner/name", "main", True)
    assert not [p for p in asked["allow_patterns"] if p.endswith(("bin", "py", "pt", "pkl"))]


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model in the hub's own cache, as an earlier download left it, and no network."""
    safetensors = pytest.importorskip("safetensors.numpy")
    repository = tmp_path / "hub" / "models--owner--name"
    folder = repository / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (folder / "config.json").write_text("{}")
    safetensors.save_file({"weight": np.ones(2)}, folder / "model.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_cached_model_is_found_without_a_network_and_its_commit_is_told(cached, home, revision):
    found = resolve_model("owner/name", revision, home)
    assert (found.path, found.source, found.revision) == (cached, "hub", COMMIT)


def test_a_revision_that_is_not_cached_is_an_error_without_a_network(cached, home):
    with pytest.raises(ModelError, match="'owner/name@v2' is not in the hub's cache"):
        resolve_model("owner/name", "v2", home)


def test_code_in_the_cache_is_not_used(cached, home):
    (cached / "modules.json").write_text('[{"path": "", "type": "custom.Transformer"}]')
    with pytest.raises(ModelError, match="code of its own"):
        resolve_model("owner/name", home=home)


def test_without_weights_only_small_files_are_asked_for(monkeypatch, tmp_path):
    asked = []

    def snapshot(_, **options):
        asked.append(options["allow_patterns"])
        return str(tmp_path / COMMIT)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    assert download("owner/name", None, weights=False) == (tmp_path / COMMIT, COMMIT)
    download("owner/name", None)
    assert [pattern for pattern in asked[1] if pattern not in asked[0]] == ["*.safetensors"]
