"""Groups from data sets: made once, the same again, with what was counted; bad data is refused."""

from __future__ import annotations

import dataclasses
import json
import logging
import pickle
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rerank.data.corpus import MemoryCorpus
from rerank.data.dataset import Dataset
from rerank.data.load import load
from rerank.data.runs import save_run
from rerank.engines.fake import FakeEngine
from rerank.errors import ArtifactError, ConfigError, CorruptArtifactError, DataError
from rerank.ranking import Ranking
from rerank.reranking import Rerank
from rerank.retrieve.bm25 import BM25
from rerank.rules.groupwise import Groupwise
from rerank.run import Run
from rerank.runtime import Runtime
from rerank.stage import apply
from rerank.train import groups as groups_module
from rerank.train.groups import Groups, TrainingGroup, build_groups
from rerank.train.sources import GroupSource, Interval, Margin, Negatives, Positives, Queries, Teacher

WORDS = ["star", "dwarf", "hole", "light", "core", "dust"]
TEXTS = {f"d{n:02}": f"{WORDS[n % 6]} {WORDS[(n // 2) % 6]} number {n}" for n in range(30)}
QUERIES = {f"q{n}": f"{WORDS[n % 6]} {WORDS[(n + 3) % 6]}" for n in range(8)}
QRELS = {f"q{n}": {f"d{n:02}": 1, f"d{n + 6:02}": 2, f"d{n + 12:02}": 0} for n in range(8)}
TOY = Dataset("toy", QUERIES, MemoryCorpus(TEXTS), QRELS, split="train")
BM = Negatives(stages=(BM25(),))


@pytest.fixture
def runtime(own_home: Path) -> Runtime:
    return Runtime(own_home, progress=False)


def build(runtime: Runtime, data: Dataset = TOY, **fields: Any) -> Groups:
    return build_groups(GroupSource(data="toy", **fields), runtime, data={"toy": data})


def by_query(groups: Groups) -> dict[str, list[TrainingGroup]]:
    return {qid: sorted(g for g in groups if g.qid == qid) for qid in sorted({g.qid for g in groups})}


def write_run(path: Path, lists: Mapping[str, Mapping[str, float]]) -> str:
    rows = [f"{qid} Q0 {docno} 0 {score} x\n" for qid, hits in lists.items() for docno, score in hits.items()]
    path.write_text("".join(rows), encoding="utf-8")
    return str(path)


# -- what a group is ------------------------------------------------------------


def test_a_group_has_a_query_its_documents_and_their_grades(runtime: Runtime) -> None:
    groups = build(runtime, negatives=BM, positives=Positives(k=2), sizes=(5,))
    assert len(groups) == len(QUERIES)
    for group in groups:
        assert group.query == QUERIES[group.qid]
        assert [TEXTS[docno] for docno in group.docnos] == list(group.documents)
        assert [float(QRELS[group.qid].get(docno, 0)) for docno in group.docnos] == list(group.labels)
        assert len(group.docnos) == len(set(group.docnos)) == 5


def test_a_group_knows_what_else_is_relevant_to_its_query(runtime: Runtime) -> None:
    groups = build(runtime, negatives=BM, sizes=(3,))
    for group in groups:
        relevant = {docno for docno, grade in QRELS[group.qid].items() if grade > 0 and docno in TEXTS}
        assert group.related == relevant - set(group.docnos)
    assert any(group.related for group in groups)


def test_groups_are_a_sequence(runtime: Runtime) -> None:
    groups = build(runtime)
    assert list(groups) == groups[:] == [groups[place] for place in range(len(groups))]
    assert groups[-1] == groups[len(groups) - 1]
    assert groups[1:3] == [groups[1], groups[2]]
    with pytest.raises(IndexError):
        _ = groups[len(groups)]


def test_groups_are_pickled_by_reference(runtime: Runtime) -> None:
    groups = build(runtime)
    pickled = pickle.dumps(groups)
    assert len(pickled) < 500
    assert list(pickle.loads(pickled)) == list(groups)  # noqa: S301 - what was pickled right here


# -- the same again ------------------------------------------------------------


def test_the_order_of_queries_judgments_and_documents_changes_nothing(runtime: Runtime) -> None:
    turned = Dataset(
        "toy",
        dict(reversed(QUERIES.items())),
        MemoryCorpus(dict(reversed(TEXTS.items()))),
        {qid: dict(reversed(grades.items())) for qid, grades in reversed(QRELS.items())},
    )
    for fields in (
        {"negatives": BM, "positives": Positives(groups=2), "sizes": (3, 4, 6)},
        {"negatives": Negatives(random=3), "sizes": (4, 5)},
        {"interval": Interval(stages=(BM25(),), first=3, drawn=5, groups=3), "sizes": (3, 4)},
    ):
        one, two = build(runtime, **fields), build(runtime, turned, **fields)
        assert one.folder != two.folder
        assert list(one) == list(two)


def test_a_query_gives_the_same_groups_whatever_other_queries_there_are(runtime: Runtime) -> None:
    fields: dict[str, Any] = {"negatives": BM, "positives": Positives(groups=2), "sizes": (3, 5)}
    all_groups = by_query(build(runtime, **fields))
    for qid in ("q0", "q5"):
        assert by_query(build(runtime, TOY.with_queries([qid]), **fields)) == {qid: all_groups[qid]}


def test_the_number_of_texts_written_at_once_changes_nothing(
    runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = build(runtime)
    monkeypatch.setattr(groups_module, "_TEXTS_AT_ONCE", 3)
    two = build(Runtime(tmp_path / "other", progress=False))
    assert list(one) == list(two)
    assert (one.folder / "texts.bin").read_bytes() == (two.folder / "texts.bin").read_bytes()


def test_another_seed_gives_other_groups(runtime: Runtime) -> None:
    one, two = (build(runtime, seed=seed) for seed in (0, 1))
    assert one.fingerprint != two.fingerprint
    assert by_query(one) != by_query(two)


def test_groups_are_found_again_and_not_made(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    one = build(runtime, negatives=BM)
    monkeypatch.setattr(groups_module, "Drawing", None)
    two = build(runtime, negatives=BM)
    assert (two.folder, two.fingerprint, list(two)) == (one.folder, one.fingerprint, list(one))
    assert two.card() == one.card()


def test_other_judgments_or_another_run_file_make_other_groups(runtime: Runtime, tmp_path: Path) -> None:
    path = write_run(tmp_path / "run.trec", {"q0": {"d20": 1.0, "d21": 0.5}})
    one = build(runtime, negatives=Negatives(run=path), sizes=(3,))
    write_run(tmp_path / "run.trec", {"q0": {"d22": 1.0, "d23": 0.5}})
    two = build(runtime, negatives=Negatives(run=path), sizes=(3,))
    assert one.fingerprint != two.fingerprint
    assert set(by_query(two)["q0"][0].docnos) >= {"d22", "d23"}
    three = build(runtime, dataclasses.replace(TOY, qrels={"q0": {"d05": 1}}), sizes=(3,))
    assert three.fingerprint not in (one.fingerprint, two.fingerprint)


def test_sources_are_mixed_and_told_apart(runtime: Runtime) -> None:
    other = dataclasses.replace(TOY, name="other", corpus=MemoryCorpus({d: f"other {t}" for d, t in TEXTS.items()}))
    sources = [GroupSource(data="toy", sizes=(3,)), GroupSource(data="other", sizes=(4,), seed=1)]
    groups = build_groups(sources, runtime, data={"toy": TOY, "other": other})
    assert len(groups) == 16
    from_second = [groups.source(place) == 1 for place in range(len(groups))]
    assert from_second != sorted(from_second)
    assert from_second != sorted(from_second, reverse=True)
    for group, is_other in zip(groups, from_second, strict=True):
        assert all(text.startswith("other") == is_other for text in group.documents)
        assert len(group.docnos) == (4 if is_other else 3)
    card = groups.card()
    assert [source.data for source in card.sources] == ["toy (train)", "other (train)"]
    assert (card.groups, card.queries) == (16, 16)


# -- queries ------------------------------------------------------------


def test_held_out_queries_are_not_learned_from(runtime: Runtime) -> None:
    groups = build(runtime, queries=Queries(hold_out=3))
    assert len({group.qid for group in groups}) == 5
    assert groups.card().sources[0].given == 5


def test_queries_without_text_or_positives_are_skipped_and_counted(runtime: Runtime) -> None:
    data = dataclasses.replace(
        TOY,
        queries={**QUERIES, "q0": " ", "n1": "star", "n2": "hole"},
        qrels={**QRELS, "n1": {"d01": 0}, "n2": {"gone": 1}},
    )
    card = build(runtime, data).card().sources[0]
    assert card.skipped == {
        "an empty text": 1,
        "no positive (grade 1 or more)": 1,
        "no positive (grade 1 or more) in the corpus": 1,
    }
    assert card.examples["an empty text"] == ["q0"]
    assert (card.given, card.queries) == (10, 7)


# -- lists ------------------------------------------------------------


def test_lists_may_come_from_a_run_file_a_run_folder_or_with_the_data(runtime: Runtime, tmp_path: Path) -> None:
    lists = {qid: {f"d{n:02}": float(n) for n in range(20, 26)} for qid in QUERIES if qid != "q7"}
    ranking = Ranking.of(lists, QUERIES)
    save_run(Run("mine", ranking), tmp_path / "folder")
    path = write_run(tmp_path / "run.trec", lists)
    fields: dict[str, Any] = {"sizes": (4,)}
    made = [
        build(runtime, negatives=Negatives(run=path, pick="top"), **fields),
        build(runtime, negatives=Negatives(run=str(tmp_path / "folder"), pick="top"), **fields),
        build(runtime, dataclasses.replace(TOY, candidates=ranking), negatives=Negatives(pick="top"), **fields),
    ]
    assert list(made[0]) == list(made[1]) == list(made[2])
    assert set(by_query(made[0])["q3"][0].docnos) >= {"d23", "d24", "d25"}
    assert made[0].card().sources[0].counts == {"random negatives in place of mined ones": 3}
    assert made[0].card().sources[0].provenance["lists"]["run_file"]["path"] == path


def test_a_run_over_other_documents_is_refused(runtime: Runtime, tmp_path: Path) -> None:
    path = write_run(tmp_path / "run.trec", {"q0": {"else": 1.0}})
    with pytest.raises(DataError, match=r"1 of 1 ranked documents are not in the corpus, e.g. 'else'"):
        build(runtime, negatives=Negatives(run=path))
    with pytest.raises(DataError, match="no such run"):
        build(runtime, negatives=Negatives(run=str(tmp_path / "missing.trec")))


def test_excluded_documents_are_in_no_group(runtime: Runtime) -> None:
    out = {qid: frozenset(list(TEXTS)[15:]) for qid in QUERIES}
    data = dataclasses.replace(TOY, excluded=out)
    for fields in ({"negatives": BM}, {}, {"interval": Interval(stages=(BM25(),), first=4, drawn=4)}):
        for group in build(runtime, data, **fields):
            assert not out[group.qid] & set(group.docnos)


def test_a_margin_may_ask_an_engine(runtime: Runtime, tmp_path: Path) -> None:
    # The engine gives d01 as much as the positives: it may well be relevant, nobody looked.
    rows = [f"{qid} 0 {docno} {grade}\n" for qid, grades in QRELS.items() for docno, grade in grades.items()]
    rows += [f"{qid} 0 d01 2\n" for qid in QUERIES if qid != "q1"]
    (tmp_path / "wide.trec").write_text("".join(rows), encoding="utf-8")
    engine = Rerank(FakeEngine(str(tmp_path / "wide.trec")), k=None)
    lists = {qid: {f"d{n:02}": 30.0 - n for n in range(20)} for qid in QUERIES}
    path = write_run(tmp_path / "run.trec", lists)
    fields: dict[str, Any] = {"positives": Positives(min_grade=2), "sizes": (12,)}
    plain = build(runtime, negatives=Negatives(run=path, pick="top"), **fields)
    filtered = build(runtime, negatives=Negatives(run=path, pick="top", margin=Margin(stages=(engine,))), **fields)
    assert all("d01" in group.docnos for group in plain)
    assert all("d01" not in group.docnos for group in filtered if group.qid != "q1")


# -- teachers ------------------------------------------------------------


def test_a_run_teaches_its_scores_and_documents_that_it_lacks_get_its_lowest(runtime: Runtime, tmp_path: Path) -> None:
    scores = {qid: {f"d{n:02}": n / 4 - 2 for n in range(1, 30, 2)} for qid in QUERIES if qid != "q2"}
    groups = build(runtime, negatives=BM, teacher=Teacher(run=write_run(tmp_path / "t.trec", scores)))
    card = groups.card().sources[0]
    assert card.label_kind == "unknown"
    assert card.skipped == {"no document that the teacher scored": 1}
    assert card.counts["documents that the teacher did not score"] > 0
    for group in groups:
        expected = [scores[group.qid].get(docno, -1.75) for docno in group.docnos]
        assert list(group.labels) == expected


def test_an_engine_teaches_the_documents_of_groups(runtime: Runtime, tmp_path: Path) -> None:
    rows = [f"{qid} 0 {docno} {int(docno[1:]) % 7}\n" for qid in QUERIES for docno in TEXTS]
    (tmp_path / "all.trec").write_text("".join(rows), encoding="utf-8")
    teacher = Teacher(stages=(Rerank(FakeEngine(str(tmp_path / "all.trec")), k=None),))
    for fields in ({"negatives": BM}, {"interval": Interval(stages=(BM25(),), first=3, drawn=6, groups=2)}):
        groups = build(runtime, teacher=teacher, **fields)
        for group in groups:
            assert list(group.labels) == [float(int(docno[1:]) % 7) for docno in group.docnos]
        assert "documents that the teacher did not score" not in groups.card().sources[0].counts


def test_a_teacher_needs_no_judgments_where_groups_are_intervals(runtime: Runtime) -> None:
    data = dataclasses.replace(TOY, qrels=None)
    interval = Interval(stages=(BM25(),), first=4, drawn=6, groups=2)
    groups = build(runtime, data, interval=interval, teacher=Teacher(stages=(BM25(),)), sizes=(4,))
    assert len(groups) > 8
    assert groups.card().sources[0].label_kind == "bm25"
    with pytest.raises(DataError, match="no judgments that tell positives; give an interval"):
        build(runtime, data, teacher=Teacher(stages=(BM25(),)))


def test_a_teacher_of_ranks_is_warned_about(runtime: Runtime, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "all.trec").write_text("q0 0 d00 1\n", encoding="utf-8")
    teacher = Teacher(stages=(Rerank(FakeEngine(str(tmp_path / "all.trec")), Groupwise(size=4)),))
    with caplog.at_level(logging.WARNING, "rerank.train"):
        assert build(runtime, negatives=BM, teacher=teacher).card().sources[0].label_kind == "rank"
    assert "the teacher gives ranks" in caplog.text


# -- bad data ------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "fields", "message"),
    [
        (dataclasses.replace(TOY, corpus=None), {}, r"toy \(train\): has no documents to learn from"),
        (dataclasses.replace(TOY, qrels=None), {}, "has no judgments to learn from; give some, or a teacher"),
        (TOY, {"positives": Positives(min_grade=3)}, r"none of 8 queries .*grade 3 .*8 of grade 0, 8 of grade 1, 8 of"),
        (TOY, {"scale": (0, 1)}, "query '.*' gives document '.*' the grade 2, outside the scale 0 to 1"),
        (
            dataclasses.replace(TOY, qrels={"q0": {"d01": -2, "d02": 1}}),
            {},
            "'d01' the grade -2, outside the scale 0 and up; .*state another",
        ),
        (TOY, {"queries": Queries(hold_out=8)}, "of 8 queries none is left"),
        (dataclasses.replace(TOY, qrels={q: {"gone": 1} for q in QUERIES}), {}, "8 have no positive .* in the corpus"),
        (dataclasses.replace(TOY, corpus=MemoryCorpus({"d00": " "})), {}, "1 have no positive with a text"),
        (TOY, {"negatives": Negatives(stages=(BM25() | BM25(k=3),), margin=Margin())}, "but these are rank scores"),
    ],
)
def test_bad_data_is_refused_in_one_line(runtime: Runtime, data: Dataset, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        build(runtime, data, **fields)
    assert "\n" not in str(caught.value)
    assert not list((runtime.home / "groups").glob("[!.]*"))


def test_no_source_is_refused_and_so_is_a_pipeline_without_a_written_form(runtime: Runtime) -> None:
    with pytest.raises(DataError, match="no source of groups was given"):
        build_groups([], runtime)
    stage = apply(lambda ranking: ranking)
    with pytest.raises(ConfigError, match="has no YAML form"):
        build(runtime, negatives=Negatives(stages=(stage,)))


def test_grades_below_zero_are_labels_of_zero_where_the_scale_has_them(runtime: Runtime) -> None:
    data = dataclasses.replace(TOY, qrels={"q0": {"d01": -2, "d02": 1}})
    (group,) = build(runtime, data, scale=(-2, 1), negatives=Negatives(only_judged=True))
    assert dict(zip(group.docnos, group.labels, strict=True)) == {"d01": 0.0, "d02": 1.0}


def test_half_written_or_altered_groups_are_not_read(runtime: Runtime) -> None:
    groups = build(runtime)
    with pytest.raises(ArtifactError, match="no such artifact"):
        Groups(groups.folder.with_name("elsewhere"))
    manifest = json.loads((groups.folder / "manifest.json").read_text())
    manifest["config"]["sources"][0].pop("queries")
    (groups.folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CorruptArtifactError, match="cannot be read as groups"):
        Groups(groups.folder)
    (groups.folder / "texts.bin").unlink()
    with pytest.raises(CorruptArtifactError, match="missing from the artifact"):
        Groups(groups.folder)


def test_texts_of_any_script_and_broken_ones_survive(runtime: Runtime) -> None:
    texts = {"ü": "白色矮星\u2028x", "half": "broken \ud800 half", "z": "النجوم 😀"}
    data = Dataset("toy", {"q": "Stern 星 \ud83d"}, MemoryCorpus(texts), {"q": {"ü": 1}})
    (group,) = build(runtime, data)
    assert group.query == "Stern 星 \ud83d"
    assert dict(zip(group.docnos, group.documents, strict=True)) == texts


# -- cards ------------------------------------------------------------


def test_the_card_counts_and_fits_80_columns(runtime: Runtime) -> None:
    data = dataclasses.replace(TOY, notes=("a note that is long enough to be wrapped over two lines, " * 2,))
    card = build(runtime, data, negatives=BM, positives=Positives(k=2), sizes=(4, 6)).card()
    (source,) = card.sources
    assert sum(source.sizes.values()) == source.groups == card.groups == 8
    assert sum(int(size) * number for size, number in source.sizes.items()) == sum(source.labels.values())
    assert source.labels["2"] == source.labels["1"] == 8
    assert json.loads(json.dumps(dataclasses.asdict(card)))["sources"][0]["label_kind"] == "grade"
    text = str(card)
    assert max(map(len, text.splitlines())) <= 80
    assert "toy (train): 8 groups of 8 queries" in text


# -- real data ------------------------------------------------------------


def test_bm25_negatives_of_real_queries(shared_data: Path, session_home: Path) -> None:
    with Runtime(session_home, progress=False) as runtime:
        folder = str(shared_data / "beir-nfcorpus")
        negatives = Negatives(pipeline="bm25", from_rank=2, to_rank=50)
        source = GroupSource(data=folder, queries=Queries(k=20), positives=Positives(groups=2), negatives=negatives)
        groups = build_groups(source, runtime)
        data = load(folder, "train", runtime=runtime)
        card = groups.card().sources[0]
        lists = runtime.run(BM25(k=50), data.with_queries(sorted({group.qid for group in groups}))).ranking.to_dict()
    assert card.given == 20
    assert 20 <= len(groups) <= 40
    assert data.qrels is not None
    for group in groups:
        judged = data.qrels[group.qid]
        labels = dict(zip(group.docnos, group.labels, strict=True))
        assert len(labels) == 8
        assert [docno for docno, label in labels.items() if label] == [d for d in labels if judged.get(d, 0) >= 1]
        assert sum(labels.values()) == 1
    mined = sum(docno in list(lists[group.qid])[1:] for group in groups for docno in group.docnos)
    n_random = card.counts["random negatives in place of mined ones"]
    assert mined >= len(groups) * 7 - n_random


def test_building_groups_loads_no_torch(own_home: Path) -> None:
    code = (
        "import sys; from rerank.train.groups import build_groups; from rerank.train.sources import *;"
        "from rerank.train.preview import preview;"
        "source = GroupSource(data='stdlib', split='test', negatives=Negatives(pipeline='bm25'));"
        "print('heavy at import:', [m for m in ('torch', 'transformers', 'bm25s', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "heavy at import: []"
