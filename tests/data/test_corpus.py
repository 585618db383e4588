"""Documents on disk and in memory: looked up by code, found by id, whole or refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rerank.artifact import verify_artifact
from rerank.data.corpus import (
    Corpus,
    Document,
    MemoryCorpus,
    StoredIds,
    Strings,
    StringWriter,
    map_array,
    write_corpus,
    write_ids,
)
from rerank.errors import ArtifactError, CorruptArtifactError, DataError
from rerank.ids import MemoryIds

DOCUMENTS = [
    Document("d2", "Title", "body"),
    Document("d10", "", "only a body"),
    Document("ä/ß", "only a title", ""),
    Document("空", "", ""),
    Document(" id with blanks ", "Ünï", "ко́д 😀 \ud800 \x00"),
]


def write(tmp_path: Path, documents: list[Document] | Iterator[Document] = DOCUMENTS, language: str = "en") -> Corpus:
    return write_corpus(documents, tmp_path / "corpora", language, "here.jsonl")


def codes(corpus: Corpus | MemoryCorpus) -> np.ndarray:
    return np.arange(len(corpus))


def test_a_stored_corpus_gives_back_what_was_written(tmp_path: Path) -> None:
    corpus = write(tmp_path)
    assert list(corpus.documents()) == DOCUMENTS
    assert list(corpus.documents(batch=2)) == DOCUMENTS
    assert corpus.titles(codes(corpus)) == [document.title for document in DOCUMENTS]
    assert corpus.bodies(codes(corpus)) == [document.text for document in DOCUMENTS]
    assert corpus.texts(np.array([1, 0, 2, 3, 0])) == ["only a body", "Title body", "only a title", "", "Title body"]
    assert corpus.texts(np.empty(0, dtype=np.int64)) == []
    assert (len(corpus), corpus.language) == (5, "en")
    assert repr(corpus) == "Corpus(5 documents, language 'en')"


def test_a_corpus_opened_again_is_the_same(tmp_path: Path) -> None:
    corpus = write(tmp_path)
    again = Corpus.open(corpus.folder)
    assert again.fingerprint == corpus.fingerprint
    assert again.ids.fingerprint == corpus.ids.fingerprint == MemoryIds([d.id for d in DOCUMENTS]).fingerprint
    assert list(again.documents()) == DOCUMENTS
    verify_artifact(corpus.folder)


def test_equal_content_has_an_equal_fingerprint_and_folder(tmp_path: Path) -> None:
    first = write_corpus(DOCUMENTS, tmp_path, "en", "one place")
    second = write_corpus(iter(DOCUMENTS), tmp_path, "en", "another place")
    assert first.folder == second.folder
    assert {path.name for path in tmp_path.iterdir()} == {first.folder.name}


def test_every_part_of_a_document_and_the_language_count_in_the_fingerprint(tmp_path: Path) -> None:
    documents = [[Document(*parts)] for parts in (("a", "b", "c"), ("ab", "", "c"), ("a", "", "bc"), ("a", "bc", ""))]
    prints = [
        write_corpus(each, tmp_path, language, "x").fingerprint for each in documents for language in ("en", "de")
    ]
    assert len(set(prints)) == 8
    assert write_corpus([*documents[0], *documents[1]], tmp_path, "en", "x").fingerprint not in prints


@given(
    st.lists(st.tuples(st.text(min_size=1, max_size=5), st.text(max_size=20)), unique_by=lambda d: d[0], min_size=1),
    st.lists(st.text(max_size=5), max_size=5),
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_stored_ids_behave_as_those_in_memory(
    tmp_path: Path, documents: list[tuple[str, str]], strangers: list[str]
) -> None:
    names = [docno for docno, _ in documents]
    corpus = write(tmp_path, [Document(docno, "", text) for docno, text in documents])
    stored, memory = corpus.ids, MemoryIds(names)
    asked = [*strangers, *reversed(names)]
    assert stored.find(asked).tolist() == memory.find(asked).tolist()
    every = np.arange(len(names))
    assert stored.take(every).tolist() == names
    assert stored.sort_keys(every).tolist() == memory.sort_keys(every).tolist()
    assert stored.fingerprint == memory.fingerprint
    assert corpus.texts(every) == [text for _, text in documents]


def test_a_large_table_is_searched_on_disk_for_few_ids_and_read_once_for_many(tmp_path: Path) -> None:
    ids = [f"d{i * 7919 % 30011}" for i in range(30011)]
    fingerprint = write_ids(tmp_path, ids)
    table = StoredIds(tmp_path, fingerprint)
    few = table.find(["d0", "d7919", "nothing", "", "d30010", "zzz"])
    assert table._codes is None
    assert few.tolist() == [0, 1, -1, -1, ids.index("d30010"), -1]
    assert table.take(np.array([[3, 1]])).tolist() == [[ids[3], ids[1]]]
    assert table._all is None
    assert table.find(ids).tolist() == list(range(len(ids)))
    assert table.take(np.arange(len(ids))).tolist() == ids
    assert table._codes is not None
    assert table.find(["d0", "nothing"]).tolist() == [0, -1]


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([], "here.jsonl: holds no documents; a corpus needs at least one"),
        ([Document("a", "", "x"), Document("", "", "y")], "here.jsonl: document 2 has an empty id"),
        (
            [Document(i, "", "") for i in "abca"],
            r"here.jsonl: document id 'a' occurs twice \(documents 1 and 4\)",
        ),
    ],
)
def test_a_corpus_that_cannot_be_is_refused_and_leaves_nothing(
    documents: list[Document], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        write(tmp_path, documents)
    assert list((tmp_path / "corpora").iterdir()) == []


def test_a_source_that_fails_on_the_way_leaves_nothing(tmp_path: Path) -> None:
    def failing() -> Iterator[Document]:
        yield DOCUMENTS[0]
        raise DataError("line 2 is broken")

    with pytest.raises(DataError, match="line 2 is broken"):
        write(tmp_path, failing())
    assert list((tmp_path / "corpora").iterdir()) == []


@pytest.mark.parametrize("name", ["bodies.bin", "ids.bin", "ids.order.npy", "titles.offsets.npy"])
def test_a_file_cut_short_is_found_when_opened(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path).folder
    path = folder / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptArtifactError, match=name):
        Corpus.open(folder)


def test_an_artifact_of_another_kind_or_with_a_manifest_that_lacks_something_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path).folder
    path = folder / "manifest.json"
    tree = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**tree, "config": {}}), encoding="utf-8")
    with pytest.raises(CorruptArtifactError, match="its manifest lacks 'language'"):
        Corpus.open(folder)
    path.write_text(json.dumps({**tree, "kind": "run"}), encoding="utf-8")
    with pytest.raises(ArtifactError, match="kind 'run', 'corpus' was expected"):
        Corpus.open(folder)


def test_offsets_that_do_not_fit_their_bytes_are_refused(tmp_path: Path) -> None:
    with StringWriter(tmp_path, "x") as writer:
        writer.add(b"abc")
    assert Strings(tmp_path, "x").at(0) == "abc"
    np.save(tmp_path / "x.offsets.npy", np.array([0, 2]))
    with pytest.raises(CorruptArtifactError, match="does not fit its offsets"):
        Strings(tmp_path, "x")
    np.save(tmp_path / "x.offsets.npy", np.empty(0, dtype=np.int64))
    with pytest.raises(CorruptArtifactError, match="does not fit its offsets"):
        Strings(tmp_path, "x")


def test_arrays_of_objects_are_never_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(CorruptArtifactError, match=r"a.npy: not a readable array"):
        map_array(tmp_path / "a.npy")
    for content in (b"", b"\x93NUMPY", b"no array"):
        (tmp_path / "a.npy").write_bytes(content)
        with pytest.raises(CorruptArtifactError, match=r"a.npy: not a readable array"):
            map_array(tmp_path / "a.npy")


def test_title_and_text_are_joined_by_a_blank_where_both_are() -> None:
    assert [d.joined for d in DOCUMENTS[:4]] == ["Title body", "only a body", "only a title", ""]


# -- in memory -----------------------------------------------------------------------------


def test_a_memory_corpus_looks_texts_up_by_code() -> None:
    corpus = MemoryCorpus({"b": "bee", "a": "aye"}, "de")
    assert corpus.texts(np.array([1, 0, 1])) == ["aye", "bee", "aye"]
    assert (len(corpus), corpus.language) == (2, "de")


def test_a_memory_corpus_needs_a_document_and_good_ids() -> None:
    with pytest.raises(DataError, match="needs at least one document"):
        MemoryCorpus({})
    with pytest.raises(DataError, match="not a non-empty string"):
        MemoryCorpus({"": "text"})


def test_the_fingerprint_of_a_memory_corpus_covers_language_ids_and_texts() -> None:
    corpora = [
        MemoryCorpus({"a": "x", "b": "y"}),
        MemoryCorpus({"b": "y", "a": "x"}),
        MemoryCorpus({"a": "xy", "b": ""}),
        MemoryCorpus({"a": "x", "b": "y"}, "de"),
        MemoryCorpus({"a": "x"}),
    ]
    assert len({corpus.fingerprint for corpus in corpora}) == 5
    assert MemoryCorpus({"a": "x", "b": "y"}).fingerprint == corpora[0].fingerprint
