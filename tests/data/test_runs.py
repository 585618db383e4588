"""Runs as artifacts and as Parquet: what was written is what is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank.artifact import verify_artifact
from rerank.data.columns import column_from_json, column_to_json
from rerank.data.corpus import MemoryCorpus
from rerank.data.parquet import read_parquet, write_parquet
from rerank.data.runs import load_run, save_run
from rerank.errors import ArtifactError, CorruptArtifactError, DataError, NewerArtifactError
from rerank.ranking import Ranking, ScoreKind
from rerank.run import Run, StageStats

CORPUS = MemoryCorpus({"d1": "one", "dé 2": "two", "d3": "three", "never ranked": "x"})


def objects(*values: Any) -> np.ndarray[Any, Any]:
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def a_run() -> Run:
    ranking = Ranking.of(
        {"q2": {"dé 2": 1.0, "d3": 1.0, "d1": 3.5}, "q1": {}, "q0": {"d1": -1.0}},
        {"q2": "what?", "q1": "größe", "q0": ""},
        ScoreKind.BM25,
        CORPUS,
    )
    ranking = ranking.with_column("score", np.array([1.5, np.inf, 2.0, 7.0])).with_column("flag", np.array([True] * 4))
    ranking = ranking.with_column("label", objects("a", None, "ü", ""))
    ranking = ranking.with_query_column("excluded", objects(frozenset({"d9", "d8"}), frozenset(), frozenset({"x"})))
    ranking = ranking.with_query_column("vector", np.arange(6, dtype=np.float32).reshape(3, 2))
    ranking = ranking.with_query_column("terms", objects({"star": 0.5}, ("a", 1), [None, True]))
    stats = (StageStats("bm25", 0.25, 3, 4, {"excluded documents": 2}), StageStats("cut", 0.0, 3, 4, {}, shared=True))
    return Run("my run", ranking, {"data": {"name": "toy", "split": "test"}}, stats, "file")


def same(one: Run, other: Run) -> None:
    assert one.ranking == other.ranking
    assert (one.name, one.provenance, one.stats, one.ties) == (other.name, other.provenance, other.stats, other.ties)
    for name in ("columns", "query_columns"):
        ours, theirs = getattr(one.ranking, name), getattr(other.ranking, name)
        assert list(ours) == list(theirs)
        for column in ours:
            assert ours[column].dtype == theirs[column].dtype
            assert ours[column].tolist() == theirs[column].tolist()


# -- artifacts ------------------------------------------------------------


def test_a_saved_run_is_loaded_equal_and_holds_only_ranked_documents(tmp_path: Path) -> None:
    save_run(a_run(), tmp_path / "run")
    loaded = load_run(tmp_path / "run")
    same(loaded, a_run())
    assert len(loaded.ranking.ids) == 3
    verify_artifact(tmp_path / "run")


def test_a_loaded_run_can_be_given_its_texts(tmp_path: Path) -> None:
    save_run(a_run(), tmp_path / "run")
    assert load_run(tmp_path / "run", CORPUS).ranking["q2"][0].text == "one"


def test_the_fingerprint_is_of_the_ranking_unless_given(tmp_path: Path) -> None:
    run = a_run()
    later = Run(run.name, run.ranking, {"when": "later"}, (), run.ties)
    other = Run(run.name, run.ranking.cut(1), {}, (), run.ties)
    prints = [save_run(r, tmp_path / str(i)).fingerprint for i, r in enumerate([run, later, other])]
    assert prints[0] == prints[1] != prints[2]
    assert save_run(run, tmp_path / "named", "abc").fingerprint == "abc"


def test_saving_again_replaces_and_a_failing_save_changes_nothing(tmp_path: Path) -> None:
    save_run(a_run(), tmp_path / "run")
    bad = Run("bad", a_run().ranking.with_query_column("odd", objects(object(), None, None)))
    with pytest.raises(DataError, match="column 'odd' holds a object, which cannot be written"):
        save_run(bad, tmp_path / "run")
    same(load_run(tmp_path / "run"), a_run())
    save_run(Run("new", a_run().ranking.cut(1)), tmp_path / "run")
    assert load_run(tmp_path / "run").name == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("name", ["docs.npy", "run.json", "ids.bin", "manifest.json"])
def test_a_run_that_is_not_whole_is_refused(tmp_path: Path, name: str) -> None:
    save_run(a_run(), tmp_path / "run")
    path = tmp_path / "run" / name
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CorruptArtifactError):
        load_run(tmp_path / "run")
    path.unlink()
    with pytest.raises(CorruptArtifactError):
        load_run(tmp_path / "run")


def test_no_run_another_kind_and_a_later_version_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such artifact"):
        load_run(tmp_path / "run")
    save_run(a_run(), tmp_path / "run")
    manifest = tmp_path / "run" / "manifest.json"
    tree = json.loads(manifest.read_text(encoding="utf-8"))
    manifest.write_text(json.dumps({**tree, "version": 2}), encoding="utf-8")
    with pytest.raises(NewerArtifactError):
        load_run(tmp_path / "run")
    manifest.write_text(json.dumps({**tree, "kind": "corpus"}), encoding="utf-8")
    with pytest.raises(ArtifactError, match="kind 'corpus'"):
        load_run(tmp_path / "run")


# -- Parquet ------------------------------------------------------------


def test_a_run_written_as_parquet_is_read_equal(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs the extra parquet")
    write_parquet(a_run(), tmp_path / "run.parquet")
    same(read_parquet(tmp_path / "run.parquet"), a_run())
    assert read_parquet(tmp_path / "run.parquet", source=CORPUS).ranking["q2"][0].text == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["run.parquet"]


def test_a_run_without_rows_survives_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs the extra parquet")
    run = Run("empty", Ranking.start({"q1": "a"}))
    write_parquet(run, tmp_path / "run.parquet")
    same(read_parquet(tmp_path / "run.parquet"), run)


def test_other_programs_see_a_plain_table(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra parquet")
    write_parquet(a_run(), tmp_path / "run.parquet")
    table = parquet.read_table(tmp_path / "run.parquet").to_pydict()
    assert list(table) == ["qid", "docno", "rank", "score", "score_", "flag", "label"]
    assert table["qid"] == ["q2", "q2", "q2", "q0"]
    assert table["docno"] == ["d1", "d3", "dé 2", "d1"]
    assert table["rank"] == [1, 2, 3, 1]
    assert table["score"] == [3.5, 1.0, 1.0, -1.0]


def written(tmp_path: Path, **columns: list[Any]) -> Path:
    arrow = pytest.importorskip("pyarrow", reason="needs the extra parquet")
    import pyarrow.parquet

    pyarrow.parquet.write_table(arrow.table(columns), tmp_path / "foreign.parquet")
    return tmp_path / "foreign.parquet"


def test_a_foreign_parquet_file_is_ordered_by_the_tie_rule(tmp_path: Path) -> None:
    path = written(tmp_path, qid=[1, 1, 1], docno=["a", "b", "c"], score=[1, 1, 2])
    assert read_parquet(path).ranking["1"].docnos == ["c", "b", "a"]
    run = read_parquet(path, ties="file", name="x")
    assert (run.name, run.ranking["1"].docnos, run.ranking.kind) == ("x", ["a", "b", "c"], ScoreKind.RANK)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"qid": ["q"], "docno": ["a"]}, "has no column 'score'; it has qid, docno"),
        ({"qid": ["q"], "docno": [None], "score": [1.0]}, "the column 'docno' must hold ids, found None"),
        ({"qid": ["q"], "docno": [1.5], "score": [1.0]}, "the column 'docno' must hold ids, found 1.5"),
        ({"qid": ["q"] * 2, "docno": ["a", "b"], "score": [1.0, None]}, "row 2: the score must be a finite number"),
        ({"qid": ["q"], "docno": ["a"], "score": ["high"]}, "the column 'score' must hold numbers"),
        ({"qid": ["q"] * 2, "docno": ["a"] * 2, "score": [1.0, 2.0]}, "row 2: query 'q' ranks document 'a' a second"),
        ({"qid": [], "docno": [], "score": []}, "holds no rows"),
    ],
)
def test_bad_parquet_contents_are_refused(tmp_path: Path, columns: dict[str, list[Any]], expected: str) -> None:
    path = written(tmp_path, **columns)
    with pytest.raises(DataError) as caught:
        read_parquet(path)
    assert str(caught.value).startswith(f"{path}: {expected}")


def test_what_is_no_parquet_file_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs the extra parquet")
    (tmp_path / "x.parquet").write_text("q1 Q0 d1 1 1.0 t", encoding="utf-8")
    with pytest.raises(DataError, match=r"x\.parquet: cannot be read"):
        read_parquet(tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"y\.parquet: no such file"):
        read_parquet(tmp_path / "y.parquet")


def test_rows_that_no_longer_fit_their_record_are_refused(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra parquet")
    write_parquet(a_run(), tmp_path / "run.parquet")
    table = parquet.read_table(tmp_path / "run.parquet")
    parquet.write_table(table.take([3, 0, 1]), tmp_path / "run.parquet")
    with pytest.raises(DataError, match="is not the run that its metadata tells of"):
        read_parquet(tmp_path / "run.parquet")


def test_columns_of_other_things_do_not_go_into_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs the extra parquet")
    run = Run("x", a_run().ranking.with_column("sets", objects({1}, {2}, {3}, {4})))
    with pytest.raises(DataError, match="column 'sets' holds neither numbers nor text"):
        write_parquet(run, tmp_path / "run.parquet")
    assert list(tmp_path.iterdir()) == []


# -- columns ------------------------------------------------------------

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.frozensets(st.text(max_size=3), max_size=3)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.lists(plain, max_size=4))
def test_object_columns_survive_json(values: list[Any]) -> None:
    record = json.loads(json.dumps(column_to_json("x", objects(*values))))
    assert column_from_json(record).tolist() == objects(*values).tolist()


def test_arrays_inside_a_column_survive_json() -> None:
    record = json.loads(json.dumps(column_to_json("x", objects(np.array([1.5], dtype=np.float32), np.int64(3)))))
    first, second = column_from_json(record)
    assert first.dtype == np.float32 and first.tolist() == [1.5]
    assert second == 3
