"""Labelled lists: candidates, two teachers, fused labels, and groups of several sizes that recipes learn from."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_synthesis import TOPICS, corpus_of, some_documents

from rerank.artifact import verify_artifact
from rerank.cli import main
from rerank.data.corpus import MemoryCorpus
from rerank.data.dataset import Dataset
from rerank.data.load import load
from rerank.engines.fake import FakeEngine
from rerank.errors import ArtifactError, ConfigError, DataError
from rerank.reranking import Rerank
from rerank.retrieve.bm25 import BM25
from rerank.rules.listwise import Listwise
from rerank.runtime import Runtime
from rerank.synthesize.labelled import kendall
from rerank.synthesize.labels import LabelledLists, Labelling, _ranks, labels_from, load_labels
from rerank.train.groups import build_groups
from rerank.train.recipe import recipe_from
from rerank.train.schema import recipe_schema
from rerank.train.sources import GroupSource, Interval, Teacher
from rerank.yamlfile import parse_yaml

TEXTS = some_documents()
QUERIES = {f"q{i}": f"{TOPICS[i]} of {TOPICS[i + 1]}" for i in range(6)}
FOUND = Interval(stages=(BM25(k=60),), first=4, drawn=5, to_rank=30, groups=4)


@pytest.fixture
def grades(tmp_path: Path) -> Path:
    """Judgments of every query and document: the number of the document, modulo 7 or 11 by its query."""
    path = tmp_path / "grades.tsv"
    rows = [f"{qid}\t{docno}\t{int(docno[1:]) * (3 + i) % 7}" for i, qid in enumerate(QUERIES) for docno in TEXTS]
    path.write_text("\n".join(["query-id\tcorpus-id\tscore", *rows]) + "\n", encoding="utf-8")
    return path


def data(order: list[int] | None = None, **changes: Any) -> Dataset:
    made = Dataset("toy", dict(QUERIES), corpus_of(TEXTS, order), split="train")
    return dataclasses.replace(made, **changes)


def labelling(grades: Path, **changes: Any) -> LabelledLists:
    """A good pointwise teacher, and a listwise one that errs."""
    given: dict[str, Any] = {
        "data": "toy",
        "interval": FOUND,
        "pointwise": Teacher(stages=(Rerank(FakeEngine(str(grades)), k=None),)),
        "listwise": Teacher(stages=(Rerank(FakeEngine(str(grades), "order", noise=2.0), Listwise(4, 2), k=None),)),
        "sizes": (3, 5),
    }
    return LabelledLists(**{**given, **changes})


def made(labels: LabelledLists, dataset: Dataset | None = None) -> Labelling:
    with Runtime(progress=False, threads=1, device="cpu") as runtime:
        return labels.made(dataset or data(), runtime)


def run(labels: LabelledLists, out: Path, dataset: Dataset | None = None) -> tuple[GroupSource, ...]:
    with Runtime(progress=False, threads=1, device="cpu") as runtime:
        return labels.run(out, runtime, dataset or data())


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- lists and labels ------------------------------------------------------------


def test_lists_are_the_first_documents_and_some_from_below(grades: Path) -> None:
    for some in made(labelling(grades)).lists.values():
        found = [each.found_at for each in some]
        assert found[:4] == [1, 2, 3, 4] and len(found) == 9
        assert found == sorted(found) and found[4] > 4 and found[-1] <= 30


def test_a_label_is_minus_the_mean_logarithm_of_both_ranks(grades: Path) -> None:
    for some in made(labelling(grades, beta=0.3)).lists.values():
        for what in ("pointwise", "listwise"):
            assert sorted(getattr(each, what) for each in some) == list(range(1, len(some) + 1))
        for each in some:
            expected = -0.3 * math.log(each.pointwise) - 0.7 * math.log(each.listwise)
            assert each.fused == pytest.approx(expected, abs=1e-9)


def test_labels_of_a_list_go_from_0_to_the_top_or_are_left_as_they_are(grades: Path) -> None:
    for some in made(labelling(grades)).lists.values():
        assert (min(each.label for each in some), max(each.label for each in some)) == (0, 10)
        assert sorted(some, key=lambda each: each.label) == sorted(some, key=lambda each: each.fused)
    for some in made(labelling(grades, top=None)).lists.values():
        assert all(each.label == each.fused <= 0 for each in some)
    with pytest.raises(ConfigError, match="top is 0"):
        labelling(grades, top=0.0)


def test_the_pointwise_rank_follows_the_grades_and_equal_ones_the_first_stage(grades: Path) -> None:
    for qid, some in made(labelling(grades)).lists.items():
        by_rank = sorted(some, key=lambda each: each.pointwise)
        keys = [(-(each.score or 0.0), each.found_at) for each in by_rank]
        assert keys == sorted(keys), qid


def test_teachers_are_given_documents_in_the_order_in_which_they_were_found(grades: Path) -> None:
    kept = Teacher(stages=(Rerank(FakeEngine(str(grades), garbage=1.0), k=None),))
    for some in made(labelling(grades, pointwise=kept, listwise=kept)).lists.values():
        assert [each.pointwise for each in some] == [each.listwise for each in some] == list(range(1, len(some) + 1))


def test_excluded_and_empty_documents_are_not_labelled(grades: Path) -> None:
    whole = made(labelling(grades))
    first = {qid: some[0].code for qid, some in whole.lists.items()}
    names = {qid: str(whole.data.corpus.ids.take(np.array([code]))[0]) for qid, code in first.items()}  # type: ignore[union-attr]
    found = made(labelling(grades), data(excluded={"q0": frozenset({names["q0"]})}))
    assert first["q0"] not in [each.code for each in found.lists["q0"]]
    assert first["q1"] in [each.code for each in found.lists["q1"]]


def test_the_order_of_documents_and_queries_decides_nothing(grades: Path, tmp_path: Path) -> None:
    run(labelling(grades), tmp_path / "one" / "lists")
    turned = data(order=list(reversed(range(len(TEXTS)))), queries=dict(reversed(QUERIES.items())))
    run(labelling(grades), tmp_path / "other" / "lists", turned)
    one, other = files(tmp_path / "one" / "lists"), files(tmp_path / "other" / "lists")
    # What the manifest says of the collection is that its order was another.
    assert {name for name in one if one[name] != other[name]} == {"manifest.json"}
    assert one.keys() == other.keys()


@given(st.lists(st.integers(0, 20), unique=True, min_size=1), st.lists(st.integers(0, 20), unique=True))
def test_ranks_are_a_permutation_whatever_a_teacher_says(pool: list[int], order: list[int]) -> None:
    ranks, n_missing = _ranks(order, pool)
    assert sorted(ranks.values()) == list(range(1, len(pool) + 1)) and ranks.keys() == set(pool)
    assert n_missing == len(set(pool) - set(order))
    known = [code for code in order if code in set(pool)]
    assert sorted(known, key=ranks.__getitem__) == known


@given(st.permutations(range(1, 9)))
def test_kendall_is_1_with_itself_and_minus_1_with_the_reverse(order: list[int]) -> None:
    assert kendall(list(zip(order, order, strict=True))) == 1
    assert kendall([(rank, 9 - rank) for rank in order]) == -1


def test_documents_that_a_teacher_does_not_rank_come_last_and_are_counted(grades: Path) -> None:
    some = Teacher(stages=(BM25(k=3),))
    found = made(labelling(grades, listwise=some))
    assert found.counts["documents that the listwise teacher did not rank"] == 6 * 6
    for each in found.lists["q0"]:
        assert each.listwise == each.found_at if each.found_at <= 3 else each.listwise > 3


def test_where_nothing_can_be_labelled_the_reason_is_told(grades: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no list of 6 queries has 2 documents or more"):
        made(labelling(grades), data(queries=dict.fromkeys(QUERIES, "qqqq zzzz")))
    with pytest.raises(DataError, match="has no documents to label"):
        made(labelling(grades), data(corpus=None))
    with pytest.raises(DataError, match="rank no document of any query"):
        made(labelling(grades, listwise=Teacher(run=str(other_run(tmp_path)))))
    with pytest.raises(ConfigError, match="beta is 2"):
        labelling(grades, beta=2)
    with pytest.raises(ConfigError, match="sizes"):
        labelling(grades, sizes=(1,))
    with pytest.raises(ConfigError, match="only_judged"):
        labelling(grades, interval=Interval(only_judged=True))


def other_run(folder: Path) -> Path:
    path = folder / "other.trec"
    path.write_text("q9 Q0 d001 1 1.0 other\n", encoding="utf-8")
    return path


# -- the folder ------------------------------------------------------------


def test_the_folder_gives_groups_of_several_sizes_that_keep_the_order(grades: Path, tmp_path: Path) -> None:
    sources = run(labelling(grades), tmp_path / "out")
    verify_artifact(tmp_path / "out")
    with Runtime(progress=False, threads=1) as runtime:
        groups = build_groups(sources, runtime)
        whole = load(tmp_path / "out", "train", runtime=runtime)
    records = {record["qid"]: record["documents"] for record in lines(tmp_path / "out" / "labels.jsonl")}
    assert set(records) == set(QUERIES) == set(whole.queries)
    assert len(groups) == 4 * 6 and {len(group.docnos) for group in groups} == {3, 5}
    assert len({(group.qid, frozenset(group.docnos)) for group in groups}) == len(groups)
    for group in groups:
        known = {each["docno"]: each["label"] for each in records[group.qid]}
        for docno, label, text in zip(group.docnos, group.labels, group.documents, strict=True):
            assert label == pytest.approx(known[docno], abs=1e-5)
            assert text == TEXTS[docno]
        order = [each["docno"] for each in records[group.qid]]
        steps = np.diff(sorted(order.index(docno) for docno in group.docnos))
        assert len(set(steps.tolist())) == 1 or ties(records[group.qid])


def ties(documents: list[dict[str, Any]]) -> bool:
    labels = [each["label"] for each in documents]
    return len(set(labels)) < len(labels)


def test_equal_labels_stay_equal_on_disk(grades: Path, tmp_path: Path) -> None:
    one = Teacher(stages=(Rerank(FakeEngine(str(grades)), k=None),))
    two = Teacher(stages=(Rerank(FakeEngine(str(grades)), k=None), BM25(k=60)))
    sources = run(labelling(grades, pointwise=one, listwise=two, sizes=(9,)), tmp_path / "out")
    with Runtime(progress=False, threads=1) as runtime:
        groups = build_groups(sources, runtime)
    expected = {r["qid"]: len({d["label"] for d in r["documents"]}) for r in lines(tmp_path / "out" / "labels.jsonl")}
    assert {group.qid: len(set(group.labels)) for group in groups} == expected
    assert min(expected.values()) < 9


def test_a_recipe_names_the_folder(grades: Path, tmp_path: Path) -> None:
    run(labelling(grades), tmp_path / "out")
    text = "distill: {engine: {cross_encoder: my-model}, loss: listnet, groups: %s}"
    for given_as in (
        "out",
        f"[{tmp_path / 'out'}]",
        "[out, {data: stdlib, negatives: {pipeline: bm25}, teacher: {pipeline: bm25}}]",
    ):
        recipe = recipe_from(parse_yaml(text % given_as, "recipe.yaml", tmp_path)).recipe
        source = recipe.groups[0]
        assert source.data == str(tmp_path / "out") and source.sizes == (3, 5)
        assert source.teacher is not None and source.teacher.run == str(tmp_path / "out" / "lists" / "labels")
        again = recipe_from(parse_yaml(recipe.to_yaml(), "again.yaml", tmp_path)).recipe
        assert again == recipe
    with pytest.raises(ConfigError, match=r"recipe.yaml:1.*'there' is no folder that says what groups it gives"):
        recipe_from(parse_yaml(text % "there", "recipe.yaml", tmp_path))
    schema = recipe_schema()["$defs"]["distill"]["properties"]["groups"]
    assert {"type": "string", "description": "a folder of labelled lists"} in schema["anyOf"]


def test_what_is_there_is_not_made_again_and_what_is_something_else_is_kept(grades: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = run(labelling(grades), out)
    stamp = (out / "manifest.json").stat().st_mtime_ns
    assert run(labelling(grades), out) == first
    assert (out / "manifest.json").stat().st_mtime_ns == stamp
    run(labelling(grades, beta=0.4), out)
    assert (out / "manifest.json").stat().st_mtime_ns != stamp
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep", encoding="utf-8")
    with pytest.raises(ArtifactError, match="not an artifact"):
        run(labelling(grades), tmp_path / "mine")


def test_equal_settings_give_equal_bytes(grades: Path, tmp_path: Path) -> None:
    run(labelling(grades), tmp_path / "one" / "lists")
    run(labelling(grades), tmp_path / "other" / "lists")
    assert files(tmp_path / "one" / "lists") == files(tmp_path / "other" / "lists")


def test_the_card_tells_how_far_teachers_agree(grades: Path, tmp_path: Path) -> None:
    same = labelling(grades).pointwise
    run(labelling(grades, listwise=same), tmp_path / "same")
    card = json.loads((tmp_path / "same" / "card.json").read_text(encoding="utf-8"))
    assert card["agreement"]["pointwise and listwise"] == 1 and card["same_first"] == 1
    assert (card["queries"], card["labels"], card["list_sizes"]) == (6, 54, {"9": 6})
    run(labelling(grades), tmp_path / "out")
    card = json.loads((tmp_path / "out" / "card.json").read_text(encoding="utf-8"))
    assert 0 < card["agreement"]["pointwise and listwise"] < 1
    assert "FakeEngine" in card["provenance"]["listwise"]["pipeline"]
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "groups: path/to/this/folder" in text and "Kendall's tau" in text


# -- files and the command ------------------------------------------------------------

CONFIG = """
name: mine
labels:
  data: collection
  split: train
  queries: {k: 4}
  interval: {stages: [{bm25: {k: 60}}], first: 4, drawn: 5, to_rank: 30, groups: 2}
  pointwise: {stages: [{rerank: {engine: {fake: grades.tsv}, k: null}}]}
  listwise:
    stages:
      - rerank: {engine: {fake: {qrels: grades.tsv, form: order}}, rule: {listwise: {window: 4, step: 2}}, k: null}
  sizes: [3, 5]
"""


@pytest.fixture
def config(grades: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "collection"
    folder.mkdir()
    for name, texts in (("corpus", TEXTS), ("queries", QUERIES)):
        records = [json.dumps({"_id": key, "text": text}) + "\n" for key, text in texts.items()]
        (folder / f"{name}.jsonl").write_text("".join(records), encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(CONFIG, encoding="utf-8")
    return tmp_path / "mine.yaml"


def test_the_command_labels_lists(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["synthesize", "labels", str(config), "--out", str(out), "--device", "cpu"]) == 0
    assert "36 labels for 4 queries" in capsys.readouterr().out
    again = load_labels(out / "labels.yaml")
    assert again.name == "out"
    assert again.labels == load_labels(config).labels


def test_a_dry_run_counts_what_teachers_would_be_asked(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["synthesize", "labels", str(config), "--dry-run", "--device", "cpu"]) == 0
    told = capsys.readouterr().out
    assert "mine: 4 queries with 36 documents to label" in told
    assert "pointwise teacher" in told and "calls         36" in told
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("labels: {data: stdlib, pointwise: {pipeline: bm25}}", "needs the option 'listwise'"),
        ("labels: {data: stdlib, pointwise: {pipeline: bm25}, listwise: {}}", "give a pipeline, stages or a run"),
        ("labels: {data: stdlib, pointwise: {pipeline: bm26}, listwise: {pipeline: bm25}}", "bm26"),
        ("{labels: {}, title: x}", "no option 'title'"),
        ("duqgen: {}", "expected a mapping with 'labels'"),
    ],
)
def test_files_that_are_wrong_are_told_where(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        labels_from(parse_yaml(text, "mine.yaml"))


def test_lists_that_come_with_the_data_are_taken(grades: Path) -> None:
    given_lists = data()
    with Runtime(progress=False, threads=1, device="cpu") as runtime:
        found = runtime.run(BM25(k=7), given_lists).ranking
    own = labelling(grades, interval=Interval(first=3, drawn=2, to_rank=7))
    lists = made(own, dataclasses.replace(given_lists, candidates=found)).lists
    assert {len(some) for some in lists.values()} == {5}


def test_a_collection_without_titles_or_with_few_documents_is_labelled(grades: Path) -> None:
    few = MemoryCorpus({name: TEXTS[name] for name in list(TEXTS)[:40]})
    lists = made(labelling(grades), data(corpus=few)).lists
    assert lists and all(2 <= len(some) <= 9 for some in lists.values())


@pytest.mark.needs("torch", "transformers")
@pytest.mark.filterwarnings("ignore")
def test_a_language_model_is_not_asked_again(tmp_path: Path) -> None:
    from tiny_scorers import write_chat_lm

    from rerank.engines.language_model import Sampling
    from rerank.engines.prompted import CausalLMEngine

    model = str(write_chat_lm(tmp_path / "chat"))
    grading = CausalLMEngine(model, dtype="float32", max_tokens=600)
    ordering = dataclasses.replace(grading, sampling=Sampling(max_tokens=8))
    teachers = {
        "pointwise": Teacher(stages=(Rerank(grading, prompt="yes-no", k=None),)),
        "listwise": Teacher(stages=(Rerank(ordering, Listwise(4, 2), prompt="order", k=None),)),
    }
    labels = labelling(tmp_path, interval=Interval(stages=(BM25(k=60),), first=3, drawn=2, to_rank=20), **teachers)
    counted: list[dict[str, int]] = []
    for name in ("one", "other"):
        with Runtime(tmp_path / "home", progress=False, threads=1, device="cpu") as runtime:
            numbers: dict[str, int] = {}
            runtime.count = lambda what, n=1, to=numbers: to.update({what: to.get(what, 0) + n})  # type: ignore[method-assign]
            labels.run(tmp_path / name / "lists", runtime, data())
            counted.append(numbers)
    assert "cached answers" not in counted[0]
    assert counted[1]["cached answers"] == counted[1]["requests"] == counted[0]["requests"] >= 30
    assert files(tmp_path / "one" / "lists") == files(tmp_path / "other" / "lists")
