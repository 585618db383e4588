"""Artifacts: whole or not at all, checked when opened, locked while written."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank import artifact
from rerank.artifact import (
    MANIFEST,
    Draft,
    atomic_path,
    cache_home,
    canonical_json,
    file_sha256,
    find_or_build,
    fingerprint,
    lock,
    new_artifact,
    open_artifact,
    read_manifest,
    verify_artifact,
    write_json,
    write_text,
)
from rerank.errors import ArtifactError, CorruptArtifactError, NewerArtifactError


def make(folder: Path, content: bytes = b"content", **extra: Any) -> Path:
    with new_artifact(folder, "thing", 2, "key", {"a": 1}) as draft:
        (draft.path / "sub").mkdir()
        (draft.path / "sub" / "big.bin").write_bytes(content)
        (draft.path / "small.txt").write_text("small", encoding="utf-8")
        draft.config.update(extra)
    return folder


def change(folder: Path, **fields: Any) -> None:
    path = folder / MANIFEST
    tree = json.loads(path.read_text(encoding="utf-8"))
    tree.update(fields)
    path.write_text(json.dumps(tree), encoding="utf-8")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Another Python process; it says `ready` when it is where the test wants it."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(artifact.__file__).parents[1])},
    )


@pytest.fixture
def kill() -> Iterator[Any]:
    """Starts a child, waits for its `ready`, and kills it as `kill -9` does."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, *arguments: object) -> subprocess.Popen[str]:
        process = child(code, *arguments)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


# -- content ---------------------------------------------------------------------------


def test_a_manifest_tells_all_that_was_given_and_every_file(tmp_path: Path) -> None:
    manifest = open_artifact(make(tmp_path / "x", b"0" * 5000, b=[2]), "thing", 2)
    assert (manifest.kind, manifest.version, manifest.fingerprint) == ("thing", 2, "key")
    assert manifest.config == {"a": 1, "b": [2]}
    assert set(manifest.files) == {"sub/big.bin", "small.txt"}
    entry = manifest.files["sub/big.bin"]
    assert entry.size == 5000
    assert entry.sha256 == hashlib.sha256(b"0" * 5000).hexdigest()
    assert entry.head == hashlib.sha256(b"0" * 4096).hexdigest()
    assert verify_artifact(tmp_path / "x") == manifest


def test_an_artifact_of_no_files_is_one(tmp_path: Path) -> None:
    with new_artifact(tmp_path / "x", "thing", 1):
        pass
    assert open_artifact(tmp_path / "x", "thing", 1).files == {}


def test_an_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), new_artifact(tmp_path / "x", "thing", 1) as draft:
        (draft.path / "file").write_text("half", encoding="utf-8")
        raise ZeroDivisionError
    assert names(tmp_path) == set()


def test_an_error_while_replacing_leaves_the_old_one(tmp_path: Path) -> None:
    make(tmp_path / "x", b"old")
    with pytest.raises(ZeroDivisionError), new_artifact(tmp_path / "x", "thing", 2):
        raise ZeroDivisionError
    verify_artifact(tmp_path / "x")
    assert (tmp_path / "x" / "sub" / "big.bin").read_bytes() == b"old"
    assert names(tmp_path) == {"x"}


def test_an_artifact_is_replaced_as_a_whole(tmp_path: Path) -> None:
    make(tmp_path / "x", b"old")
    with new_artifact(tmp_path / "x", "thing", 2) as draft:
        (draft.path / "other").write_text("new", encoding="utf-8")
    assert set(verify_artifact(tmp_path / "x").files) == {"other"}
    assert names(tmp_path / "x") == {"other", MANIFEST}
    assert names(tmp_path) == {"x"}


def test_a_draft_may_choose_its_final_name_and_fingerprint_at_the_end(tmp_path: Path) -> None:
    with new_artifact(tmp_path / "staging", "thing", 1) as draft:
        draft.fingerprint = "known late"
        draft.final = tmp_path / "final"
    assert open_artifact(tmp_path / "final", "thing", 1).fingerprint == "known late"
    assert names(tmp_path) == {"final"}


def test_two_that_write_the_same_artifact_both_succeed(tmp_path: Path) -> None:
    """Both are ready to put it in its place at one moment."""
    barrier = threading.Barrier(2)
    errors: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for _ in range(20):
                with new_artifact(tmp_path / f"staging{number}", "thing", 1) as draft:
                    (draft.path / "file").write_text("same", encoding="utf-8")
                    draft.final = tmp_path / "final"
                    barrier.wait(timeout=60)
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    verify_artifact(tmp_path / "final")
    assert names(tmp_path) == {"final"}


# -- opening -----------------------------------------------------------------------------


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"x: no such artifact folder"):
        open_artifact(tmp_path / "x", "thing", 1)


def test_a_folder_without_a_manifest_is_half_written(tmp_path: Path) -> None:
    make(tmp_path / "x")
    (tmp_path / "x" / MANIFEST).unlink()
    with pytest.raises(CorruptArtifactError, match=r"not an artifact: it has no manifest.json; delete the folder"):
        open_artifact(tmp_path / "x", "thing", 2)


def test_another_kind_and_a_newer_version_are_told_apart(tmp_path: Path) -> None:
    make(tmp_path / "x")
    with pytest.raises(ArtifactError, match=r"kind 'thing', 'corpus' was expected"):
        open_artifact(tmp_path / "x", "corpus", 2)
    with pytest.raises(NewerArtifactError, match=r"has format version 2 of 'thing', this rerank reads up to 1"):
        open_artifact(tmp_path / "x", "thing", 1)
    assert open_artifact(tmp_path / "x", "thing", 3).version == 2


GOOD = {"kind": "thing", "version": 2, "fingerprint": "f", "config": {}, "files": {}}


@pytest.mark.parametrize(
    "manifest",
    [
        "",
        "{",
        "[]",
        "null",
        "7",
        "{}",
        "[" * 100_000,
        json.dumps({**GOOD, "files": []}),
        json.dumps({**GOOD, "files": {"a": {}}}),
        json.dumps({**GOOD, "files": {"a": {"size": "1", "sha256": "x", "head": "y"}}}),
        json.dumps({**GOOD, "files": {"a": {"size": 1, "sha256": None, "head": "y"}}}),
        json.dumps({**GOOD, "version": "2"}),
        json.dumps({**GOOD, "version": True}),
        json.dumps({**GOOD, "config": []}),
        json.dumps({**GOOD, "kind": None}),
        json.dumps({key: value for key, value in GOOD.items() if key != "fingerprint"}),
    ],
)
def test_a_manifest_that_is_none_is_an_error_in_one_line(manifest: str, tmp_path: Path) -> None:
    make(tmp_path / "x")
    (tmp_path / "x" / MANIFEST).write_text(manifest, encoding="utf-8")
    with pytest.raises(CorruptArtifactError, match=r"not a manifest") as caught:
        open_artifact(tmp_path / "x", "thing", 2)
    assert "\n" not in str(caught.value)


def test_a_manifest_that_is_no_text_is_an_error(tmp_path: Path) -> None:
    make(tmp_path / "x")
    (tmp_path / "x" / MANIFEST).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CorruptArtifactError, match=r"not a manifest"):
        open_artifact(tmp_path / "x", "thing", 2)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "sub/../../secret", "link/secret", "nul\0byte"])
def test_a_manifest_that_names_a_file_outside_its_folder_is_refused(name: str, tmp_path: Path) -> None:
    make(tmp_path / "x")
    (tmp_path / "secret").write_text("secret", encoding="utf-8")
    (tmp_path / "x" / "link").symlink_to(tmp_path)
    change(tmp_path / "x", files={name: {"size": 6, "sha256": "", "head": ""}})
    for read in (read_manifest, verify_artifact, lambda folder: open_artifact(folder, "thing", 2)):
        with pytest.raises(CorruptArtifactError, match=r"outside the artifact's folder; do not use it"):
            read(tmp_path / "x")


def test_a_file_that_is_missing_cut_short_or_altered_is_named(tmp_path: Path) -> None:
    big = tmp_path / "x" / "sub" / "big.bin"
    whole = bytes(range(256)) * 40
    make(tmp_path / "x", whole)
    for content, message in (
        (whole[:-1], "has 10,239 bytes, its manifest says 10,240"),
        (whole + b"x", "has 10,241 bytes"),
        (b"", "has 0 bytes"),
        (b"X" + whole[1:], "its first bytes differ"),
    ):
        big.write_bytes(content)
        with pytest.raises(CorruptArtifactError, match=f"big.bin: {message}"):
            open_artifact(tmp_path / "x", "thing", 2)
    big.unlink()
    with pytest.raises(CorruptArtifactError, match=r"big.bin: missing from the artifact"):
        open_artifact(tmp_path / "x", "thing", 2)


def test_verify_finds_a_flipped_bit_in_the_middle_of_a_big_file(tmp_path: Path) -> None:
    content = bytearray(os.urandom(3 << 20))
    make(tmp_path / "x", bytes(content))
    verify_artifact(tmp_path / "x")
    content[1 << 20] ^= 1
    (tmp_path / "x" / "sub" / "big.bin").write_bytes(content)
    open_artifact(tmp_path / "x", "thing", 2)
    with pytest.raises(CorruptArtifactError, match=r"big.bin: its bytes differ from the manifest's checksum"):
        verify_artifact(tmp_path / "x")


# -- folders that cannot be written ---------------------------------------------------------


def test_a_file_in_place_of_a_folder_is_an_error_that_names_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file", encoding="utf-8")
    folder = tmp_path / "home" / "indexes" / "x"
    with pytest.raises(ArtifactError, match=r"cannot be written .*set RERANK_HOME"), new_artifact(folder, "thing", 1):
        pass
    with pytest.raises(ArtifactError, match=r"cannot be written .*set RERANK_HOME"), lock(folder, "test"):
        pass
    with pytest.raises(ArtifactError, match=r"cannot be written .*set RERANK_HOME"):
        find_or_build(folder, "thing", 1, "key", lambda draft: None)


def test_a_file_in_place_of_the_artifact_is_named_and_kept(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("a file", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"x: cannot be put in its place .*is there a file of that name"):
        make(tmp_path / "x")
    assert (tmp_path / "x").read_text(encoding="utf-8") == "a file"
    assert names(tmp_path) == {"x"}


# -- kill -9 ------------------------------------------------------------------------------

BUILD = """
    import sys
    from pathlib import Path
    from rerank import artifact
    def say(*_):
        print("ready", flush=True)
        sys.stdin.read()
    folder, where = Path(sys.argv[1]), sys.argv[2]
    if where == "before rename":
        artifact._put = say
    def build(draft):
        (draft.path / "file").write_text("half")
        if where == "middle":
            say()
        (draft.path / "file").write_text("whole")
        if where == "before manifest":
            artifact.write_json = say
    artifact.find_or_build(folder, "thing", 1, "key", build)
"""


def build_whole(draft: Draft) -> None:
    (draft.path / "file").write_text("whole", encoding="utf-8")


@pytest.mark.parametrize("where", ["middle", "before manifest", "before rename"])
def test_a_build_that_was_killed_is_built_again_and_leaves_no_trace(where: str, tmp_path: Path, kill: Any) -> None:
    process = kill(BUILD, tmp_path / "x", where)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "x").exists()
    with pytest.raises(ArtifactError):
        open_artifact(tmp_path / "x", "thing", 1)
    find_or_build(tmp_path / "x", "thing", 1, "key", build_whole)
    verify_artifact(tmp_path / "x")
    assert (tmp_path / "x" / "file").read_text(encoding="utf-8") == "whole"
    assert names(tmp_path) == {"x", ".x.lock"}


def test_a_lock_dies_with_its_process(tmp_path: Path, kill: Any, caplog: pytest.LogCaptureFixture) -> None:
    process = kill(BUILD, tmp_path / "x", "middle")
    taken = threading.Event()

    def take() -> None:
        with lock(tmp_path / "x", "waits"):
            taken.set()

    with caplog.at_level(logging.WARNING):
        thread = threading.Thread(target=take)
        thread.start()
        while not caplog.records and thread.is_alive():
            thread.join(0.01)
        assert not taken.is_set()
        process.send_signal(signal.SIGKILL)
        thread.join(30)
    assert taken.is_set()
    assert f"waiting for another process (process {process.pid}: builds thing)" in caplog.text


def test_two_processes_that_want_an_artifact_build_it_once(tmp_path: Path, kill: Any) -> None:
    first = kill(BUILD, tmp_path / "x", "middle")
    calls: list[Draft] = []
    thread = threading.Thread(target=find_or_build, args=(tmp_path / "x", "thing", 1, "key", calls.append))
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()
    first.communicate("")
    thread.join(30)
    assert calls == []
    assert first.returncode == 0
    assert verify_artifact(tmp_path / "x").fingerprint == "key"


def test_find_or_build_builds_only_what_is_not_there(tmp_path: Path) -> None:
    built: list[Draft] = []
    for _ in range(2):
        manifest = find_or_build(tmp_path / "x", "thing", 1, "key", built.append)
        assert manifest.fingerprint == "key"
    assert len(built) == 1


def test_leftovers_of_other_artifacts_are_left_alone(tmp_path: Path) -> None:
    others = [".y.1.part", ".xy.1.part", ".x.work", ".x[1].1.part"]
    for name in [*others, ".x.1.part", ".x.2.old"]:
        (tmp_path / name).mkdir()
    find_or_build(tmp_path / "x", "thing", 1, "key", build_whole)
    assert names(tmp_path) == {"x", ".x.lock", *others}


# -- small files ------------------------------------------------------------------------------


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.txt"
    write_text(target, "old ü")
    with pytest.raises(ZeroDivisionError), atomic_path(target) as part:
        part.write_text("half", encoding="utf-8")
        raise ZeroDivisionError
    assert target.read_text(encoding="utf-8") == "old ü"
    write_json(target, {"b": 1, "ü": None})
    assert json.loads(target.read_text(encoding="utf-8")) == {"b": 1, "ü": None}
    assert names(target.parent) == {"a.txt"}


def test_json_has_no_numbers_that_json_lacks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert names(tmp_path) == set()


@given(
    st.dictionaries(
        st.text(), st.one_of(st.integers(), st.text(), st.none(), st.floats(allow_nan=False, allow_infinity=False))
    )
)
def test_canonical_json_does_not_depend_on_the_order_of_keys(value: dict[str, Any]) -> None:
    turned = dict(reversed(value.items()))
    assert canonical_json(turned) == canonical_json(value)
    assert fingerprint(turned) == fingerprint(value)
    assert json.loads(canonical_json(value)) == value


def test_fingerprints_tell_values_apart() -> None:
    values: list[Any] = [1, "1", 1.0, [1], {"1": 1}, None, "", [], {}, [[1]], True]
    assert len({fingerprint(value) for value in values}) == len(values)
    assert fingerprint((1, 2)) == fingerprint([1, 2])


def test_a_file_s_checksum_is_of_all_its_bytes(tmp_path: Path) -> None:
    content = os.urandom((1 << 20) + 17)
    (tmp_path / "f").write_bytes(content)
    assert file_sha256(tmp_path / "f") == hashlib.sha256(content).hexdigest()


def test_the_cache_root_goes_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("RERANK_HOME", "~/mine")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_home() == Path("/home/someone/mine")
    monkeypatch.setenv("RERANK_HOME", "")
    assert cache_home() == Path("/xdg/rerank")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_home() == Path("/home/someone/.cache/rerank")


def test_a_folder_of_somebody_s_files_is_never_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter-1.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(ArtifactError, match="is not an artifact; delete it or choose another name"):
        make(folder)
    assert (folder / "chapter-1.txt").read_text(encoding="utf-8") == "years of work"
