"""Folders and files as collections: the BEIR layout, one's own texts, and what is wrong with them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from rerank.data.corpus import Corpus
from rerank.data.load import load, load_corpus
from rerank.errors import DataError

CORPUS = [
    {"_id": "d1", "title": "Stars", "text": "white dwarfs"},
    {"_id": "d2", "title": "", "text": "black holes"},
    {"_id": "d3", "text": "Größe"},
]
QUERIES = [{"_id": "q1", "text": "stars"}, {"_id": "q2", "text": "holes"}, {"_id": "q3", "text": "unjudged"}]
QRELS = "query-id\tcorpus-id\tscore\nq2\td2\t1\nq1\td1\t2\nq1\td2\t0\n"


def write(folder: Path, files: dict[str, Any]) -> Path:
    """A folder of files: strings as they are, lists as JSONL, dicts as JSON; gzipped where the name says so."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            content = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in content)
        elif isinstance(content, dict):
            content = json.dumps(content)
        raw = content.encode("utf-8")
        path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return folder


def beir(folder: Path, **more: Any) -> Path:
    files = {"corpus.jsonl": CORPUS, "queries.jsonl": QUERIES, "qrels/test.tsv": QRELS}
    return write(folder, {**files, **more})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "toy"


def test_a_beir_folder_gives_judged_queries_in_their_order_with_documents(folder: Path) -> None:
    data = load(beir(folder))
    assert (data.name, data.split, data.language) == ("toy", "test", "en")
    assert dict(data.queries) == {"q1": "stars", "q2": "holes"}
    assert data.qrels == {"q1": {"d1": 2, "d2": 0}, "q2": {"d2": 1}}
    assert isinstance(data.corpus, Corpus)
    assert data.corpus.texts(data.corpus.ids.find(["d1", "d3"])) == ["Stars white dwarfs", "Größe"]
    assert data.candidates is None
    assert data.notes == ("1 of 3 queries are not judged and left out",)


def test_gzipped_and_plain_folders_are_equal(folder: Path, tmp_path: Path) -> None:
    packed = {"corpus.jsonl.gz": CORPUS, "queries.jsonl.gz": QUERIES, "qrels/test.tsv.gz": QRELS}
    assert load(write(tmp_path / "packed" / "toy", packed)).fingerprint == load(beir(folder)).fingerprint


def test_a_split_is_a_file_of_judgments_and_an_unknown_one_is_answered_with_those_there(folder: Path) -> None:
    beir(folder, **{"qrels/test_fixed.trec": "q3 0 d3 1\n"})
    assert list(load(folder, "test_fixed").queries) == ["q3"]
    with pytest.raises(DataError, match="has no split 'test_fix'; it has test, test_fixed; did you mean 'test_fixed'"):
        load(folder, "test_fix")


def test_a_folder_without_judgments_gives_all_queries(folder: Path) -> None:
    data = load(write(folder, {"corpus.jsonl": CORPUS, "queries.jsonl": QUERIES}), "whatever")
    assert list(data.queries) == ["q1", "q2", "q3"]
    assert data.qrels is None


def test_meta_json_names_the_collection_and_its_languages(folder: Path) -> None:
    data = load(beir(folder, **{"meta.json": {"name": "my-set", "language": "en", "query_language": "de"}}))
    assert data.name == "my-set"
    assert data.query_columns == {"language": {"q1": "de", "q2": "de"}}
    assert data.corpus is not None and data.corpus.language == "en"
    assert load(beir(folder, **{"meta.json": {"language": "ru"}})).language == "ru"


def test_a_language_that_is_no_code_is_noted(folder: Path) -> None:
    data = load(beir(folder, **{"meta.json": {"language": "en queries, Python code"}}))
    assert data.language == "en"
    assert "meta.json: language 'en queries, Python code' is no ISO 639-1 code; taken for 'en'" in data.notes


def test_excluded_documents_count_neither_as_judged_nor_as_candidates(folder: Path) -> None:
    queries = [{**QUERIES[0], "excluded_ids": ["d1", "unknown"]}, QUERIES[1], QUERIES[2]]
    qrels = QRELS + "q2\td3\t-100\n"
    run = "q1 Q0 d1 1 3 t\nq1 Q0 d3 2 2 t\nq2 Q0 d3 1 1 t\n"
    data = load(beir(folder, **{"queries.jsonl": queries, "qrels/test.tsv": qrels, "runs/a.trec": run}), candidates="a")
    assert data.excluded == {"q1": frozenset({"d1", "unknown"}), "q2": frozenset({"d3"})}
    assert data.qrels == {"q1": {"d2": 0}, "q2": {"d2": 1}}
    assert data.candidates is not None
    assert data.candidates.to_dict() == {"q1": {"d3": 2.0}, "q2": {}}
    assert "1 judgments are of documents excluded for their query and do not count" in data.notes
    assert "2 excluded documents were taken out of the candidate lists" in data.notes


@pytest.mark.parametrize("name", ["meta", "ArguAna"])
def test_a_query_that_is_a_document_does_not_find_itself_where_the_collection_says_so(folder: Path, name: str) -> None:
    corpus = [*CORPUS, {"_id": "q1", "text": "stars"}]
    meta = {"exclude_own_id": True} if name == "meta" else {"name": name}
    data = load(beir(folder, **{"corpus.jsonl": corpus, "meta.json": meta}))
    assert data.excluded == {"q1": frozenset({"q1"})}
    assert load(beir(folder, **{"corpus.jsonl": corpus, "meta.json": {"name": "other"}})).excluded == {}


def test_candidates_are_read_only_on_request_by_name_or_path(folder: Path, tmp_path: Path) -> None:
    beir(folder, **{"runs/bm25.trec": "q1 Q0 d2 1 3 t\nq1 Q0 d1 2 2 t\nq9 Q0 d1 1 1 t\n"})
    assert load(folder).candidates is None
    data = load(folder, candidates="bm25")
    assert data.topics()["q1"].docnos == ["d2", "d1"]
    assert data.topics()["q1"][1].text == "Stars white dwarfs"
    assert "1 of 2 queries have no candidates" in data.notes
    (tmp_path / "other.run").write_text("q1 Q0 d1 1 3 t\n", encoding="utf-8")
    assert load(folder, candidates=str(tmp_path / "other.run")).topics()["q1"].docnos == ["d1"]
    with pytest.raises(DataError, match=r"candidates 'bm26': no such run in .*runs \(it has bm25; did you mean 'bm25'"):
        load(folder, candidates="bm26")


def test_candidates_that_the_corpus_lacks_are_refused(folder: Path) -> None:
    beir(folder, **{"runs/bm25.trec": "q1 Q0 d9 1 3 t\n"})
    with pytest.raises(DataError, match=r"toy \(test\): candidates: 1 of 1 ranked documents are not in the corpus"):
        load(folder, candidates="bm25")
    assert load(folder, candidates="bm25", with_corpus=False).topics()["q1"].docnos == ["d9"]


def test_given_judgments_replace_the_folders_own(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.trec").write_text("q3 0 d3 1\n", encoding="utf-8")
    assert load(beir(folder), qrels=tmp_path / "mine.trec").qrels == {"q3": {"d3": 1}}


def test_judgments_of_unknown_documents_and_queries_are_counted(folder: Path) -> None:
    qrels = "q1 0 d1 1\nq1 0 x1 1\nq2 0 x2 0\nq8 0 d1 1\nq9 0 d1 1\nq9 0 d2 1\n"
    data = load(write(folder, {"corpus.jsonl": CORPUS, "queries.jsonl": QUERIES, "qrels/test.trec": qrels}))
    assert data.qrels == {"q1": {"d1": 1, "x1": 1}, "q2": {"x2": 0}}
    assert data.notes == (
        "3 judgments of 2 queries that the collection lacks are left out",
        "1 of 3 queries are not judged and left out",
        "2 of 3 judgments are of documents that the corpus lacks",
    )


def test_empty_query_texts_are_counted(folder: Path) -> None:
    data = load(write(folder, {"queries.tsv": "q1\t \nq2\ta\n"}))
    assert data.notes == ("1 of 2 queries have an empty text",)
    assert data.corpus is None


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"qrels/test.tsv": "q1 0 x1 1\n"}, "no document of the 1 judgments is in the corpus"),
        ({"qrels/test.tsv": "x1 0 d1 1\n"}, "none of the 1 judged queries is in the collection"),
        ({"corpus.jsonl": [*CORPUS, CORPUS[0]]}, "corpus.jsonl: document id 'd1' occurs twice"),
        ({"corpus.jsonl": ""}, "corpus.jsonl: holds no documents"),
        ({"corpus.jsonl": '{"_id": "d1", "text": "a"}\n{"_id"\n'}, "corpus.jsonl:2: not JSON"),
        ({"queries.jsonl": ""}, "queries.jsonl: holds no queries"),
        ({"qrels/test.tsv": "q1 d1 high\n"}, "test.tsv:1: the grade must be an integer, found 'high'"),
        ({"meta.json": "[]"}, "meta.json: holds a JSON list"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line_that_names_the_place(
    folder: Path, files: dict[str, Any], expected: str
) -> None:
    with pytest.raises(DataError) as caught:
        load(beir(folder, **files))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


# -- one's own ------------------------------------------------------------


def test_a_folder_of_texts_is_a_corpus_whose_ids_are_paths(folder: Path) -> None:
    write(
        folder,
        {
            "b.txt": "second",
            "sub/a.md": "# First\nligne ä",
            "README.md": "about",
            ".hidden.txt": "no",
            "queries.tsv": "qid\tquery\nq1\tfirst\n",
            "qrels.tsv": "q1\tsub/a.md\t1\n",
            "sub/picture.png": "no",
            "runs/x.txt": "no",
        },
    )
    corpus = load_corpus(folder)
    assert {d.id: d.text for d in corpus.documents()} == {"b.txt": "second", "sub/a.md": "# First\nligne ä"}
    data = load(folder)
    assert data.qrels == {"q1": {"sub/a.md": 1}}
    with pytest.raises(DataError, match="has no split 'dev'; it has test"):
        load(folder, "dev")


def test_a_text_that_is_added_or_changed_is_seen(folder: Path) -> None:
    write(folder, {"a.txt": "a"})
    assert len(load_corpus(folder)) == 1
    write(folder, {"b.txt": "b"})
    assert len(load_corpus(folder)) == 2
    write(folder, {"b.txt": "c"})
    assert [d.text for d in load_corpus(folder).documents()] == ["a", "c"]


def test_a_jsonl_file_is_a_corpus(folder: Path) -> None:
    write(folder, {"docs.jsonl": CORPUS})
    assert len(load_corpus(folder / "docs.jsonl")) == 3


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a.txt": "a"}, "has no queries .*; its documents can be indexed and searched"),
        ({"inner/queries.tsv": "q\ta\n"}, "has no queries .*; folders in it have: inner"),
        ({"x.csv": "a"}, "has no queries .* and no documents"),
    ],
)
def test_a_folder_without_queries_says_what_it_has(folder: Path, files: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        load(write(folder, files))


def test_a_folder_without_documents_has_no_corpus_to_load(folder: Path) -> None:
    with pytest.raises(DataError, match="holds no documents"):
        load_corpus(write(folder, {"queries.tsv": "q\ta\n"}))


# -- single files ------------------------------------------------------------


def test_a_file_of_topics_is_a_data_set_with_judgments_given(folder: Path) -> None:
    write(folder, {"topics.trec": "<top><num> Number: 1 <title> a b</top>", "my.qrels": "1 0 d1 1\n"})
    data = load(folder / "topics.trec", qrels=folder / "my.qrels")
    assert (data.name, dict(data.queries), data.qrels) == ("topics", {"1": "a b"}, {"1": {"d1": 1}})


@pytest.mark.parametrize("text", ["q1 0 d1 1\nq2 0 d1 0\n", QRELS])
def test_a_file_of_judgments_is_a_data_set_without_texts(folder: Path, text: str) -> None:
    write(folder, {"my.qrels": text})
    data = load(folder / "my.qrels")
    assert set(data.queries) == {"q1", "q2"}
    assert data.notes == ("2 of 2 queries have an empty text",)
    with pytest.raises(DataError, match="holds judgments itself"):
        load(folder / "my.qrels", qrels=folder / "my.qrels")
