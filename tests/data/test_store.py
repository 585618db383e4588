"""The corpus store: read once, read again when the source changed or the stored corpus is damaged."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from rerank.data.corpus import Corpus, Document, staging_folder
from rerank.data.store import file_states, stored_corpus
from rerank.errors import DataError, NewerArtifactError
from rerank.runtime import Runtime


class Source:
    """A file of words, each a document, that counts how often it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.n_readings = 0
        self.path.write_text("a b", encoding="utf-8")

    def documents(self) -> Iterator[Document]:
        self.n_readings += 1
        for word in self.path.read_text(encoding="utf-8").split():
            yield Document(word, "", word)

    def corpus(self, runtime: Runtime) -> Corpus:
        return stored_corpus(runtime, "words", lambda: file_states([self.path]), self.documents, "en")


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path / "words.txt")


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    return Runtime(home=tmp_path / "cache", progress=False)


def test_an_unchanged_source_is_read_once(source: Source, runtime: Runtime) -> None:
    first, second = source.corpus(runtime), source.corpus(runtime)
    assert source.n_readings == 1
    assert first.fingerprint == second.fingerprint
    assert [d.id for d in second.documents()] == ["a", "b"]


def test_a_changed_source_is_read_again_even_with_its_old_size_and_time(source: Source, runtime: Runtime) -> None:
    before = source.corpus(runtime).fingerprint
    times = source.path.stat()
    source.path.write_text("a c", encoding="utf-8")
    os.utime(source.path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert source.corpus(runtime).fingerprint != before
    assert source.n_readings == 2


def test_equal_content_from_two_sources_is_stored_once(source: Source, runtime: Runtime, tmp_path: Path) -> None:
    other = Source(tmp_path / "copy.txt")
    assert source.corpus(runtime).folder == other.corpus(runtime).folder


@pytest.mark.parametrize("damage", ["gone", "short", "no manifest", "memo"])
def test_a_damaged_store_is_made_anew(source: Source, runtime: Runtime, damage: str) -> None:
    folder = source.corpus(runtime).folder
    if damage == "gone":
        folder.rename(folder.with_name("elsewhere"))
    elif damage == "short":
        (folder / "bodies.bin").write_bytes(b"a")
    elif damage == "no manifest":
        (folder / "manifest.json").unlink()
    else:
        next((runtime.home / "corpora" / "memo").glob("*.json")).write_text("[", encoding="utf-8")
    assert [d.id for d in source.corpus(runtime).documents()] == ["a", "b"]
    assert source.n_readings == 2


def test_a_store_of_a_later_version_is_left_alone(source: Source, runtime: Runtime) -> None:
    manifest = source.corpus(runtime).folder / "manifest.json"
    tree = json.loads(manifest.read_text(encoding="utf-8"))
    manifest.write_text(json.dumps({**tree, "version": 99}), encoding="utf-8")
    with pytest.raises(NewerArtifactError):
        source.corpus(runtime)


def test_a_source_that_changes_while_it_is_read_is_not_taken_for_read(source: Source, runtime: Runtime) -> None:
    def documents() -> Iterator[Document]:
        yield from source.documents()
        source.path.write_text("a b c", encoding="utf-8")

    stored_corpus(runtime, "words", lambda: file_states([source.path]), documents, "en")
    assert len(source.corpus(runtime)) == 3


def test_nothing_is_left_behind_when_reading_fails(source: Source, runtime: Runtime) -> None:
    source.path.write_text("a a", encoding="utf-8")
    with pytest.raises(DataError, match="words: document id 'a' occurs twice"):
        source.corpus(runtime)
    source.path.write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="words: holds no documents"):
        source.corpus(runtime)
    left = [p for p in (runtime.home / "corpora").rglob("*") if p.is_file() and p.suffix != ".lock"]
    assert left == []


def test_what_a_killed_process_left_is_cleared_away(source: Source, runtime: Runtime) -> None:
    source.corpus(runtime)
    staging = staging_folder(runtime.home / "corpora", "words")
    left = staging.with_name(f".{staging.name}.99999.part")
    left.mkdir()
    source.path.write_text("a b c", encoding="utf-8")
    source.corpus(runtime)
    assert not left.exists()


def read_in_a_process(path: Path, home: Path) -> None:
    def documents() -> Iterator[Document]:
        with path.with_suffix(".log").open("a", encoding="utf-8") as log:
            log.write("read\n")
        yield Document("a", "", "a")

    stored_corpus(Runtime(home=home, progress=False), "words", lambda: file_states([path]), documents, "en")


def test_two_processes_read_a_source_once(source: Source, runtime: Runtime) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=read_in_a_process, args=(source.path, runtime.home)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert source.path.with_suffix(".log").read_text(encoding="utf-8") == "read\n"
