"""Names of collections, the embedded one, and ir_datasets."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rerank.data import embedded
from rerank.data.embedded import split_of
from rerank.data.load import list_datasets, load, load_corpus
from rerank.data.stdlib import stdlib_id
from rerank.errors import DataError
from rerank.runtime import Runtime


@pytest.fixture(scope="module")
def runtime(session_home: Path) -> Runtime:
    return Runtime(home=session_home, progress=False)


# -- names ------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ir_datasets, where this process imports it, makes its folder here."""
    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path / "irds"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("stdlibb", "stdlibb: no such data set: .*; did you mean 'stdlib'\\?"),
        ("beir/nfcorpsu", "no such data set: .*; did you mean 'beir/nfcorpus'\\?"),
        ("irds:cranfeld", "no such data set: .*; did you mean 'cranfield'\\?"),
        ("qqqqqqqqqqqqq", "no such data set: .*; `rerank data list` shows the names"),
        ("./no/such", "^./no/such: no such file or folder$"),
        ("/not-here/at/all", "^/not-here/at/all: no such file or folder$"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, expected: str) -> None:
    for face in (load, load_corpus):
        with pytest.raises(DataError, match=expected) as caught:
            face(name)
        assert "\n" not in str(caught.value)


def test_a_misspelt_path_is_answered_with_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "collection").mkdir()
    with pytest.raises(DataError, match=r"did you mean '.*/collection'\?"):
        load(tmp_path / "colection")


def test_the_embedded_collection_is_listed_first() -> None:
    names = list_datasets()
    assert names[0] == ("stdlib", "embedded")
    assert ("cranfield", "ir_datasets") in names


def test_a_folder_goes_before_an_id_of_ir_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cranfield").mkdir()
    Path("cranfield/queries.tsv").write_text("q1\tmine\n", encoding="utf-8")
    assert dict(load("cranfield").queries) == {"q1": "mine"}


# -- the embedded collection ------------------------------------------------------------


def test_splits_follow_from_ids_and_a_third_is_dev() -> None:
    assert split_of("order-list-dicts-values") == "test"
    share = sum(split_of(f"question-{i}") == "dev" for i in range(3000)) / 3000
    assert 0.3 < share < 0.37


def test_the_embedded_collection_has_disjoint_splits_types_and_a_name_with_the_version(runtime: Runtime) -> None:
    dev, test, both = (load("stdlib", split, runtime=runtime) for split in ("dev", "test", "all"))
    assert dev.name == stdlib_id()
    assert not set(dev.queries) & set(test.queries)
    assert {**dev.queries, **test.queries} == dict(both.queries)
    assert len(both.queries) >= 200
    assert {"how-to", "concept"} <= set(both.query_columns["type"].values())
    assert dev.corpus is not None and len(dev.corpus.ids) > 4000
    with pytest.raises(DataError, match="stdlib: has no split 'train'; it has dev, test, all"):
        load("stdlib", "train", runtime=runtime)


def test_judgments_of_names_that_this_python_lacks_are_dropped_and_counted(
    runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = load("stdlib", "all", runtime=runtime).queries
    dev, *_ = (qid for qid in queries if split_of(qid) == "dev")
    first, second, *_ = (qid for qid in queries if split_of(qid) == "test")
    rows = [(first, "os.walk", 2), (first, "os.no_such_name", 1), (second, "os.no_such_name", 2), (dev, "sorted", 1)]
    path = tmp_path / "qrels.tsv"
    path.write_text("".join(f"{q}\t{d}\t{g}\n" for q, d, g in rows), encoding="utf-8")
    monkeypatch.setattr(embedded, "_QRELS", str(path))
    data = load("stdlib", runtime=runtime)
    assert data.qrels == {first: {"os.walk": 2}}
    assert "2 judgments of names that this Python lacks are left out" in data.notes


# -- ir_datasets, in a process of its own because it reads its folder's name when it is imported ---------------------


IRDS = """
import json, sys
from rerank.data.load import load, load_corpus
from rerank.errors import DataError

def facts(name, **more):
    try:
        data = load(name, **more)
    except DataError as error:
        return str(error)
    texts = None
    if data.corpus is not None:
        codes = data.corpus.ids.find([next(iter(d.id for d in data.corpus.documents()))])
        texts = [data.corpus.titles(codes)[0][:30], data.corpus.texts(codes)[0][:60]]
    return {
        "name": data.name, "split": data.split, "queries": len(data.queries), "language": data.language,
        "documents": len(data.corpus.ids) if data.corpus is not None else None, "texts": texts,
        "judgments": sum(map(len, data.qrels.values())), "notes": list(data.notes),
        "grades": sorted({g for j in data.qrels.values() for g in j.values()}),
    }

asked = json.loads(sys.argv[1])
json.dump({key: facts(name, **more) for key, (name, more) in asked.items()}, open(sys.argv[2], "w"))
"""


@pytest.fixture(scope="module")
def irds(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("irds") / "home"
    shutil.copytree(shared_data / "ir_datasets_home", home, copy_function=shutil.copyfile)
    for folder in [home, *(p for p in home.rglob("*") if p.is_dir())]:
        folder.chmod(0o755)
    asked = {
        "nfcorpus": ("beir/nfcorpus", {}),
        "nfcorpus dev": ("beir/nfcorpus/dev", {}),
        "nfcorpus none": ("beir/nfcorpus", {"split": "val"}),
        "cranfield": ("irds:cranfield", {}),
        "vaswani": ("vaswani", {}),
        "vaswani dev": ("vaswani", {"split": "dev"}),
        "dl19": ("msmarco-passage/trec-dl-2019/judged", {"with_corpus": False}),
        "dl21": ("msmarco-passage-v2/trec-dl-2021", {"with_corpus": False}),
        "dl19 documents": ("msmarco-passage/trec-dl-2019/judged", {}),
        "no candidates": ("cranfield", {"candidates": "scoreddocs"}),
        "no queries": ("msmarco-passage", {}),
    }
    out = home.parent / "facts.json"
    nowhere = "http://127.0.0.1:9"
    environment = {
        **os.environ,
        "IR_DATASETS_HOME": str(home),
        "IR_DATASETS_DL_TRIES": "1",
        "RERANK_HOME": str(home.parent / "cache"),
        "HTTPS_PROXY": nowhere,
        "HTTP_PROXY": nowhere,
        "NO_PROXY": "",
        "no_proxy": "",
        "https_proxy": nowhere,
        "http_proxy": nowhere,
    }
    command = [sys.executable, "-c", IRDS, json.dumps(asked), str(out)]
    subprocess.run(command, env=environment, check=True, capture_output=True, cwd=Path(__file__).parents[2])
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def test_ir_datasets_ids_give_the_published_counts(irds: dict[str, Any]) -> None:
    def counts(key: str) -> tuple[int, ...]:
        return tuple(irds[key][what] for what in ("documents", "queries", "judgments"))

    assert counts("nfcorpus") == (3633, 323, 12334)
    assert counts("nfcorpus dev") == (3633, 324, 11385)
    assert counts("cranfield") == (1400, 225, 1837)
    assert counts("vaswani") == (11429, 93, 2083)
    assert counts("dl19") == (None, 43, 9260)
    assert counts("dl21") == (None, 53, 10828)


def test_the_split_is_appended_where_the_id_has_no_judgments(irds: dict[str, Any]) -> None:
    assert (irds["nfcorpus"]["name"], irds["nfcorpus"]["split"]) == ("beir/nfcorpus", "test")
    assert (irds["nfcorpus dev"]["name"], irds["nfcorpus dev"]["split"]) == ("beir/nfcorpus/dev", "dev")
    assert irds["dl19"]["split"] == "trec-dl-2019/judged"
    assert irds["vaswani"]["split"] == "test"
    assert "vaswani: has no split 'dev'" in irds["vaswani dev"]
    assert "beir/nfcorpus: has no split 'val'; give one of beir/nfcorpus/dev" in irds["nfcorpus none"]
    assert "msmarco-passage: has no split 'test'" in irds["no queries"] or "give one of" in irds["no queries"]


def test_titles_are_kept_apart_from_texts(irds: dict[str, Any]) -> None:
    title, text = irds["nfcorpus"]["texts"]
    assert title == "Statin Use and Breast Cancer S"
    assert text.startswith(title)


def test_cranfields_codes_become_grades_and_that_is_said(irds: dict[str, Any]) -> None:
    assert irds["cranfield"]["grades"] == [0, 1, 2, 3, 4]
    assert any("grades here are 5 - code" in note for note in irds["cranfield"]["notes"])


def test_queries_without_judgments_are_left_out_and_counted(irds: dict[str, Any]) -> None:
    assert "424 of 477 queries are not judged and left out" in irds["dl21"]["notes"]


def test_documents_that_cannot_be_downloaded_are_one_line_with_a_remedy(irds: dict[str, Any]) -> None:
    message = irds["dl19 documents"]
    assert message.startswith("msmarco-passage: ir_datasets cannot give its documents (")
    assert message.endswith("connect to the internet or put the files there")
    assert "\n" not in message


def test_candidates_that_ir_datasets_lacks_are_refused(irds: dict[str, Any]) -> None:
    assert "cranfield: ir_datasets has no candidate lists" in irds["no candidates"]
