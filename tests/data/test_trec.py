"""TREC files: topics, judgments, runs; the order that trec_eval gives to ties."""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank.data.corpus import MemoryCorpus
from rerank.data.trec import read_qrels, read_run, read_topics, spaced_scores, write_qrels, write_run
from rerank.errors import DataError
from rerank.ranking import Ranking, ScoreKind
from rerank.run import Run

CLASSIC = """
<top>
<num> Number: 301
<title> International Organized
   Crime

<desc> Description:
Identify organizations.

<narr> Narrative:
A relevant document ...
</top>
<top><num>302</num><title>Topic: Poliomyelitis</title></top>
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# -- topics ------------------------------------------------------------


def test_classic_topics_give_number_and_title(tmp_path: Path) -> None:
    path = write(tmp_path / "topics.txt", CLASSIC)
    assert read_topics(path).texts == {"301": "International Organized Crime", "302": "Poliomyelitis"}


def test_another_field_can_be_the_query_and_must_be_there(tmp_path: Path) -> None:
    path = write(tmp_path / "topics.txt", CLASSIC)
    with pytest.raises(DataError, match="topic 2 has no <desc>; it has <num>, <title>"):
        read_topics(path, "desc")


@pytest.mark.parametrize("head", ["", "qid\tquery\n", "query-id\ttext\n"])
def test_tabbed_topics_may_have_a_header(tmp_path: Path, head: str) -> None:
    path = write(tmp_path / "q.tsv", head + "q1\twhat is  this\nq2\t\n")
    assert read_topics(path).texts == {"q1": "what is  this", "q2": ""}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("q1\ta\nq2 b\n", ":2: expected a query id, a tab and the query"),
        ("q1\ta\nq1\tb\n", ":2: query id 'q1' occurs twice"),
    ],
)
def test_bad_topics_are_named_by_file_and_line(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        read_topics(write(tmp_path / "q.tsv", text))


# -- judgments ------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "q1 0 d1 2\nq1\t0\td2\t-1\nq2 Q0 d1 0\n",
        "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t-1\nq2\td1\t0\n",
        "q1 d1 2\nq1 d2 -1\nq1 d2 -1\n\nq2 d1 0\n",
    ],
)
def test_judgments_are_read_in_both_forms(tmp_path: Path, text: str) -> None:
    assert read_qrels(write(tmp_path / "q.tsv", text)) == {"q1": {"d1": 2, "d2": -1}, "q2": {"d1": 0}}


def test_document_ids_with_blanks_are_read_in_judgments(tmp_path: Path) -> None:
    text = "4 0 torch/Memory Management_2.txt 1\n4 0 plain 0\n"
    assert read_qrels(write(tmp_path / "q.txt", text)) == {"4": {"torch/Memory Management_2.txt": 1, "plain": 0}}
    text = "query-id\tcorpus-id\tscore\n4\ta b\t1\n"
    assert read_qrels(write(tmp_path / "q.tsv", text)) == {"4": {"a b": 1}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("q1 0 d1 2\nq1 0 d2 1.0\n", ":2: the grade must be an integer, found '1.0'"),
        ("q1 d1 relevant\n", ":1: the grade must be an integer, found 'relevant'"),
        ("q1 0 d1 2\nq1 d2 1\n", ":2: has 3 columns; expected 4 as in the first line"),
        ("q1 d1\n", ":1: has 2 columns; expected 3 or 4"),
        ("q1 0 d1 2\nq1 0 d1 1\n", ":2: query 'q1' judges document 'd1' again: 2, then 1"),
        ("q1\t\t1\n", ":1: has an empty document id"),
        ("query-id\tcorpus-id\tscore\n", ": holds no judgments"),
    ],
)
def test_bad_judgments_are_named_by_file_and_line(tmp_path: Path, text: str, expected: str) -> None:
    path = write(tmp_path / "q.tsv", text)
    with pytest.raises(DataError) as caught:
        read_qrels(path)
    assert str(caught.value).startswith(f"{path}{expected}")


@pytest.mark.parametrize("name", ["q.trec", "q.trec.gz"])
def test_judgments_written_are_judgments_read(tmp_path: Path, name: str) -> None:
    qrels = {"q1": {"d1": 2, "dé": -1}, "q2": {"d1": 0}}
    write_qrels(qrels, tmp_path / name)
    assert read_qrels(tmp_path / name) == qrels


# -- reading runs ------------------------------------------------------------


def test_a_run_is_read_with_queries_in_the_files_order(tmp_path: Path) -> None:
    path = write(tmp_path / "my.trec", "q2 Q0 d1 1 3.5 tag\nq1 Q0 d2 9 1 tag\n\nq2\tQ0\td3\t2\t4\ttag\r\n")
    run = read_run(path)
    assert run.name == "my"
    assert run.ranking.qids == ("q2", "q1")
    assert run.ranking.to_dict() == {"q2": {"d3": 4.0, "d1": 3.5}, "q1": {"d2": 1.0}}
    assert run.ranking.kind is ScoreKind.UNKNOWN
    assert run.ties == "trec_eval"
    assert run.provenance["run_file"]["tag"] == "tag"


def test_gzipped_runs_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "my.trec.gz"
    path.write_bytes(gzip.compress(b"q1 Q0 d1 1 3.5 tag\n"))
    assert read_run(path).ranking.to_dict() == {"q1": {"d1": 3.5}}


def test_document_ids_with_blanks_are_read_in_runs(tmp_path: Path) -> None:
    path = write(tmp_path / "r.trec", "4 Q0 torch/Memory  Management_2.txt 7 0.6 reasonir\n4 Q0 d 8 0.5 reasonir\n")
    assert read_run(path).ranking["4"].docnos == ["torch/Memory  Management_2.txt", "d"]


def test_documents_are_coded_by_a_given_source(tmp_path: Path) -> None:
    corpus = MemoryCorpus({"d1": "one", "d2": "two"})
    path = write(tmp_path / "r.trec", "q1 Q0 d2 1 3 t\n")
    assert read_run(path, source=corpus).ranking["q1"][0].text == "two"
    path = write(tmp_path / "r.trec", "q1 Q0 d9 1 3 t\n")
    with pytest.raises(DataError, match="1 of 1 ranked documents are not in the corpus"):
        read_run(path, source=corpus)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("q1 Q0 d2 2 nan t", "the score must be a finite number, found nan"),
        ("q1 Q0 d2 2 -inf t", "the score must be a finite number, found -inf"),
        ("q1 Q0 d2 2 high t", "the score must be a number, found 'high'"),
        ("q1 Q0 d2 2 0.5", "has 5 columns; a run has 6: qid Q0 docno rank score tag"),
        ("q1 Q0 d2 2 0.5 my tag", "has 7 columns; a run has 6"),
        ("q1 Q0 d1 2 0.5 t", "query 'q1' ranks document 'd1' a second time"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, line: str, expected: str) -> None:
    path = write(tmp_path / "r.trec", f"q1 Q0 d1 1 1.0 t\n\nq2 Q0 d1 1 1.0 t\n{line}\n")
    with pytest.raises(DataError) as caught:
        read_run(path)
    assert str(caught.value).startswith(f"{path}:4: {expected}")


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_a_run_without_rows_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match="holds no rows"):
        read_run(write(tmp_path / "r.trec", text))


def test_scores_that_differ_only_beyond_32_bits_are_ties_and_the_greater_id_wins(tmp_path: Path) -> None:
    rows = ["d1 1 1.000000003", "d2 2 1.000000002", "d3 3 1.000000001"]
    path = write(tmp_path / "r.trec", "".join(f"q Q0 {row} t\n" for row in rows))
    assert read_run(path).ranking["q"].docnos == ["d3", "d2", "d1"]
    assert read_run(path, ties="file").ranking["q"].docnos == ["d1", "d2", "d3"]
    assert read_run(path).tied_rows() == 3


def test_the_files_order_is_kept_on_request_with_ranks_where_its_scores_rise(tmp_path: Path) -> None:
    path = write(tmp_path / "r.trec", "q1 Q0 a 1 1 t\nq1 Q0 b 2 3 t\nq1 Q0 c 3 2 t\nq2 Q0 a 1 5 t\n")
    run = read_run(path, ties="file")
    assert run.ties == "file"
    assert run.ranking.kind is ScoreKind.RANK
    assert run.ranking.to_dict() == {"q1": {"a": 3.0, "b": 2.0, "c": 1.0}, "q2": {"a": 1.0}}
    assert run.ranking.columns["score"].tolist() == [1, 3, 2, 5]


def test_scores_beyond_32_bits_are_held_at_the_largest(tmp_path: Path) -> None:
    path = write(tmp_path / "r.trec", "q Q0 a 1 1e300 t\nq Q0 b 2 1e301 t\nq Q0 c 3 -1e300 t\n")
    assert read_run(path).ranking["q"].docnos == ["b", "a", "c"]


scores_with_ties = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, 1.0 + 2**-24, 1.0 + 2**-23, 0.1, 1e-46]),
    st.floats(-1e6, 1e6, allow_nan=False),
)
docnos = st.text(st.characters(blacklist_categories=["Cs", "Z", "C"]), min_size=1, max_size=4)


@given(st.dictionaries(docnos, scores_with_ties, min_size=1, max_size=12))
def test_the_order_is_that_of_trec_eval(tmp_path_factory: pytest.TempPathFactory, scores: dict[str, float]) -> None:
    import pytrec_eval

    path = tmp_path_factory.mktemp("run") / "r.trec"
    path.write_text("".join(f"q Q0 {d} 0 {s!r} t\n" for d, s in scores.items()), encoding="utf-8")
    ours = read_run(path).ranking["q"].docnos
    evaluators = {d: pytrec_eval.RelevanceEvaluator({"q": {d: 1}}, {"recip_rank"}) for d in scores}
    ranks = {d: round(1 / e.evaluate({"q": scores})["q"]["recip_rank"]) for d, e in evaluators.items()}
    assert ours == sorted(scores, key=ranks.__getitem__)


# -- writing runs ------------------------------------------------------------


def run_of(lists: dict[str, dict[str, float]], name: str = "my run") -> Run:
    return Run(name, Ranking.of(lists))


@pytest.mark.parametrize("name", ["r.trec", "r.trec.gz"])
def test_a_run_is_written_in_trecs_form(tmp_path: Path, name: str) -> None:
    run = run_of({"q1": {"d1": 0.1, "d2": 0.2}, "q2": {"dé": 1}})
    write_run(run, tmp_path / name)
    raw = (tmp_path / name).read_bytes()
    text = (gzip.decompress(raw) if name.endswith(".gz") else raw).decode("utf-8")
    assert text == (
        "q1 Q0 d2 1 0.20000000298023224 my-run\nq1 Q0 d1 2 0.10000000149011612 my-run\nq2 Q0 dé 1 1.0 my-run\n"
    )
    assert read_run(tmp_path / name).ranking == run.ranking.with_query_column("x", np.zeros(2))
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_run_is_cut_and_tagged_on_request(tmp_path: Path) -> None:
    write_run(run_of({"q1": {"d1": 0.1, "d2": 0.2}}), tmp_path / "r.trec", tag="x", depth=1)
    assert (tmp_path / "r.trec").read_text(encoding="utf-8") == "q1 Q0 d2 1 0.20000000298023224 x\n"


@pytest.mark.parametrize(
    ("qid", "docno", "tag"),
    [("q 1", "d", "t"), ("q", "d\u00a01", "t"), ("q", "d\n", "t"), ("q", "d", "a b"), ("q", "d", "")],
)
def test_ids_that_the_form_cannot_carry_are_refused_and_nothing_is_written(
    tmp_path: Path, qid: str, docno: str, tag: str
) -> None:
    with pytest.raises(DataError, match="TREC's form cannot carry"):
        write_run(run_of({qid: {docno: 1.0}}), tmp_path / "r.trec", tag=tag)
    assert list(tmp_path.iterdir()) == []


float32 = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, -0.0, 1.0, 1e-45, -1e-45, float(np.finfo(np.float32).max), float(np.finfo(np.float32).min)]),
)


@given(st.lists(st.lists(float32, max_size=8), max_size=4))
def test_spaced_scores_fall_strictly_in_both_precisions_and_stay_near(lists: list[list[float]]) -> None:
    scores = np.array([s for values in lists for s in sorted(values, reverse=True)], dtype=np.float32)
    offsets = np.cumsum([0, *map(len, lists)])
    spaced = spaced_scores(scores, offsets)
    assert np.isfinite(spaced).all()
    largest = float(np.finfo(np.float32).max)
    for start, stop in itertools.pairwise(offsets.tolist()):
        given_, got = scores[start:stop], spaced[start:stop]
        assert (got[1:] < got[:-1]).all()
        tiny = np.finfo(np.float32).tiny
        assert not ((np.abs(got) < tiny) & (got != 0)).any()
        if len(given_) and given_[-1] > -largest / 2:
            assert (got <= np.where(np.abs(given_) < tiny, tiny, given_)).all()
            room = (stop - start) * np.maximum(np.spacing(np.abs(given_) / 2).astype(np.float64) * 4, tiny * 1.1)
            assert (given_.astype(np.float64) - got <= room).all()


@given(st.lists(float32, min_size=1, max_size=8))
def test_every_reader_sees_the_order_that_was_written(
    tmp_path_factory: pytest.TempPathFactory, values: list[float]
) -> None:
    path = tmp_path_factory.mktemp("run") / "r.trec"
    run = run_of({"q": {f"d{i}": value for i, value in enumerate(values)}})
    write_run(run, path)
    rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    wide = [float(row[4]) for row in rows]
    narrow = [float(np.float32(row[4])) for row in rows]
    assert wide == narrow == sorted(set(wide), reverse=True)
    assert [row[2] for row in rows] == run.ranking["q"].docnos == read_run(path).ranking["q"].docnos


def test_scores_without_ties_are_written_as_they_are() -> None:
    scores = np.array([3.0, 1.5, -2.0, 7.0], dtype=np.float32)
    assert spaced_scores(scores, np.array([0, 3, 4])).tolist() == scores.tolist()
