"""What a recipe says of its groups: fields, checks, YAML, which queries."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank.config import object_schema
from rerank.data.corpus import MemoryCorpus
from rerank.data.dataset import Dataset
from rerank.errors import ConfigError, DataError, UnknownNameError
from rerank.retrieve.bm25 import BM25
from rerank.train.lists import Lists
from rerank.train.sources import (
    GroupSource,
    Interval,
    Margin,
    Negatives,
    Positives,
    Queries,
    Teacher,
    held_out,
    sources_from,
)
from rerank.yamlfile import parse_yaml

QIDS = [f"q{number}" for number in range(50)]


def read(text: str, folder: Path | None = None) -> tuple[GroupSource, ...]:
    tree = parse_yaml(text, "recipe.yaml", folder)
    return sources_from(tree, (), tree.value)


# -- queries ------------------------------------------------------------


@given(st.permutations(QIDS), st.integers(0, 5), st.integers(1, 30), st.integers(0, 49))
def test_the_choice_of_queries_does_not_depend_on_their_order(order: list[str], seed: int, k: int, out: int) -> None:
    queries = Queries(k=k, hold_out=out)
    assert queries.chosen(order, seed) == queries.chosen(QIDS, seed)


def test_held_out_queries_are_the_same_for_every_seed_and_the_complement_of_the_others() -> None:
    data = Dataset("toy", dict.fromkeys(QIDS, "text"), MemoryCorpus({"d": "x"}))
    out = set(held_out(data, 20).queries)
    assert len(out) == 20
    for seed in range(3):
        assert set(Queries(hold_out=20).chosen(QIDS, seed)) == set(QIDS) - out


def test_a_smaller_sample_is_part_of_a_larger_one_and_another_seed_takes_others() -> None:
    assert set(Queries(k=5).chosen(QIDS, 1)) < set(Queries(k=10).chosen(QIDS, 1))
    assert Queries(k=5).chosen(QIDS, 1) != Queries(k=5).chosen(QIDS, 2)


@pytest.mark.parametrize(
    "text", ["q1\nq2\n", "q1\tsome text\nq2\tmore text\n", "query-id\tx\nq1\t0\tq2 0\nq2 0\td\t1\n"]
)
def test_excluded_queries_are_read_from_the_first_column(tmp_path: Path, text: str) -> None:
    (tmp_path / "out.tsv").write_text(text, encoding="utf-8")
    left = Queries(exclude=str(tmp_path / "out.tsv")).chosen(QIDS, 0)
    assert "q1" not in left
    assert "q3" in left


def test_excluding_ids_of_another_data_set_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "out.txt").write_text("PLAIN-1\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"none of its 1 query ids, e.g. 'PLAIN-1', is among the 50 queries"):
        Queries(exclude=str(tmp_path / "out.txt")).chosen(QIDS, 0)


def test_holding_everything_out_is_an_error() -> None:
    with pytest.raises(DataError, match="of 50 queries none is left"):
        Queries(hold_out=50).chosen(QIDS, 0)
    data = Dataset("toy", dict.fromkeys(QIDS, "text"))
    with pytest.raises(DataError, match="51 held-out queries of 50"):
        held_out(data, 51)


# -- checks ------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Queries(k=0), "k is 0, at least 1"),
        (lambda: Positives(k=0), "positives: k is 0"),
        (lambda: Negatives(from_rank=5, to_rank=4), "to_rank is 4, before from_rank 5"),
        (lambda: Negatives(random=1, only_judged=True), "only_judged leaves no place"),
        (lambda: Negatives(pipeline="bm25", run="x.trec"), "pipeline and run are given; keep one"),
        (lambda: Margin(share=1.5), "share is 1.5, a number from 0 to 1"),
        (lambda: Interval(first=1, drawn=0), "must be 2 documents or more"),
        (lambda: Interval(first=10, drawn=40, to_rank=49), "lie within to_rank 49"),
        (lambda: Teacher(), "give a pipeline, stages or a run"),
        (lambda: GroupSource(data="x", sizes=(1, 4)), "each needs 2 documents or more"),
        (lambda: GroupSource(data="x", sizes=(4, 4)), "name one twice"),
        (lambda: GroupSource(data="x", sizes=(4, 8), weights=(1.0,)), "1 weights for 2 sizes"),
        (lambda: GroupSource(data="x", sizes=(4,), weights=(0.0,)), "not all 0"),
        (lambda: GroupSource(data="x", scale=(3, 0)), "the wrong way round"),
        (lambda: GroupSource(data="x", interval=Interval(), positives=Positives(k=2)), "takes the place of positives"),
    ],
)
def test_parts_that_do_not_fit_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


# -- YAML ------------------------------------------------------------


def test_a_recipe_says_all_of_it_and_paths_are_relative_to_its_file(tmp_path: Path) -> None:
    (tmp_path / "collection").mkdir()
    (tmp_path / "mine.yaml").write_text("stages: [{bm25: {k: 7}}]", encoding="utf-8")
    (tmp_path / "bm25.trec").write_text("q1 Q0 d1 1 2.0 x\n", encoding="utf-8")
    text = """
    - data: collection
      queries: {k: 100, hold_out: 10}
      positives: {min_grade: 2, k: 2, groups: 3, ranked: true}
      negatives:
        pipeline: mine.yaml
        from_rank: 3
        margin: {stages: [{rescore: minilm-l6}], share: 0.1}
      teacher: {run: bm25.trec}
      sizes: [4, 8]
      weights: [1, 2.5]
    - data: beir/nfcorpus
      interval: {stages: [{bm25: {k: 200}}]}
    """
    first, second = read(text, tmp_path)
    assert first.data == str(tmp_path / "collection")
    assert first.negatives.pipeline == str(tmp_path / "mine.yaml")
    assert first.negatives.made().stages == (BM25(k=7),)
    assert first.negatives.margin is not None
    assert first.negatives.margin.share == 0.1
    assert first.teacher == Teacher(run=str(tmp_path / "bm25.trec"))
    assert (first.sizes, first.weights) == ((4, 8), (1, 2.5))
    assert second == GroupSource(data="beir/nfcorpus", interval=Interval(stages=(BM25(k=200),)))


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("data: x\nsize: [4]", ConfigError, "recipe.yaml:2: size: .*did you mean 'sizes'"),
        ("data: x\nnegatives: {pipeline: bm52}", UnknownNameError, "recipe.yaml:2: negatives.pipeline: .*'bm25'"),
        ("data: x\nnegatives: {pipeline: not-here.yaml}", ConfigError, "recipe.yaml:2: .*no such file"),
        ("- data: x\n- split: train", ConfigError, r"recipe.yaml:2: \[1\]: GroupSource needs the option 'data'"),
        ("data: ../x", ConfigError, "recipe.yaml:1: data: the path '../x' leaves the file's folder"),
        ("[]", ConfigError, "expected a mapping"),
        ("data: x\nteacher: {}", ConfigError, "recipe.yaml:2: teacher: teacher: give a pipeline"),
        ("data: x\nnegatives: {stages: [exclude, {cut: a}]}", ConfigError, r"recipe.yaml:2: negatives.stages\[1\]"),
    ],
)
def test_mistakes_are_told_with_their_place(tmp_path: Path, text: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        read(text, tmp_path)


def test_sources_have_a_schema() -> None:
    schema = object_schema(GroupSource)
    assert schema["required"] == ["data"]
    assert schema["properties"]["positives"]["properties"]["min_grade"]["default"] == 1
    assert "seeded sample" in schema["properties"]["queries"]["properties"]["k"]["description"]


# -- content ------------------------------------------------------------


def test_equal_content_whatever_the_pipeline_is_called_and_wherever_files_lie(tmp_path: Path) -> None:
    named = GroupSource(data="here", negatives=Negatives(pipeline="bm25"))
    written = GroupSource(data="there", negatives=Negatives(stages=(BM25(),)))
    assert named.content() == written.content()
    for name in ("a.trec", "b.trec"):
        (tmp_path / name).write_text("q1 Q0 d1 1 2.0 x\n", encoding="utf-8")
    one, two = (Lists(run=str(tmp_path / name)).content() for name in ("a.trec", "b.trec"))
    assert one == two
    (tmp_path / "b.trec").write_text("q1 Q0 d1 1 2.5 x\n", encoding="utf-8")
    assert Lists(run=str(tmp_path / "b.trec")).content() != one


def test_whatever_changes_groups_changes_content() -> None:
    plain = GroupSource(data="x", negatives=Negatives(pipeline="bm25"))
    negatives = plain.negatives
    others = [
        dataclasses.replace(plain, seed=1),
        dataclasses.replace(plain, sizes=(4,)),
        dataclasses.replace(plain, scale=(0, 2)),
        dataclasses.replace(plain, queries=Queries(hold_out=3)),
        dataclasses.replace(plain, positives=Positives(ranked=True)),
        dataclasses.replace(plain, teacher=Teacher(pipeline="bm25")),
        dataclasses.replace(plain, negatives=dataclasses.replace(negatives, to_rank=50)),
        dataclasses.replace(plain, negatives=dataclasses.replace(negatives, margin=Margin())),
        dataclasses.replace(plain, negatives=dataclasses.replace(negatives, margin=Margin(share=0.1))),
        dataclasses.replace(plain, negatives=dataclasses.replace(negatives, pipeline=None)),
    ]
    contents = [repr(source.content()) for source in (plain, *others)]
    assert len(set(contents)) == len(contents)
