"""Pipelines from YAML and back: round trip, places in errors, paths, fingerprints, JSON schema."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank import registry
from rerank.artifact import new_artifact
from rerank.config import (
    FilePath,
    load_pipeline,
    parse_pipeline,
    schema,
    stage_fingerprint,
    stage_tree,
    to_yaml,
)
from rerank.engines.engine import Engine
from rerank.errors import ConfigError, PipelineError, RerankError, UnknownNameError
from rerank.ranking import Ranking
from rerank.resources import shipped
from rerank.retrieve.analysis import Analyser
from rerank.retrieve.bm25 import BM25
from rerank.retrieve.candidates import Candidates
from rerank.retrieve.fusion import RRF
from rerank.retrieve.select import Exclude, Filter
from rerank.rules.rule import Rule
from rerank.runtime import Runtime
from rerank.stage import Concatenation, Cut, Intersection, Normalise, Pipeline, Stage, Union, WeightedSum, apply
from rerank.yamlfile import dump_yaml, parse_yaml

# -- round trip -----------------------------------------------------------------------

_analysers = st.builds(
    Analyser,
    language=st.sampled_from(["en", "de", "zh"]),
    stem=st.sampled_from(["auto", False, "porter"]),
    stop_words=st.sampled_from(["auto", False, (), ("no", "off"), ("und",)]),
    token_pattern=st.sampled_from([None, r"\w+", r"(?:\S+)"]),
)
_leaves = st.one_of(
    st.builds(Cut, st.integers(1, 10**9)),
    st.builds(Normalise, st.sampled_from(["minmax", "zscore"])),
    st.just(Exclude()),
    st.builds(
        BM25,
        k=st.integers(1, 2000),
        k1=st.one_of(st.floats(0, 3), st.integers(0, 3)),
        b=st.floats(0, 1),
        method=st.sampled_from(["lucene", "robertson", "atire", "bm25l", "bm25+"]),
        analyser=st.one_of(st.none(), _analysers),
    ),
    st.builds(Filter, min_score=st.floats(allow_nan=False, allow_infinity=False)),
    st.builds(Candidates, run=st.sampled_from(["/runs/no", "/runs/1e-5", "/runs/ü: x"])),
)


def _combined(inner: st.SearchStrategy[Stage]) -> st.SearchStrategy[Stage]:
    stages = st.lists(inner, min_size=1, max_size=3).map(tuple)
    names = st.sampled_from(["", "", "no", "1e-5", "two\nlines", "ü"])
    addable = inner.map(lambda stage: stage.minmax())
    return st.one_of(
        st.builds(Pipeline, stages, names, names),
        st.builds(Union, stages),
        st.builds(Intersection, stages),
        st.builds(Concatenation, stages),
        st.builds(RRF, stages, st.integers(0, 100)),
        st.builds(lambda one, two, w: w * one + 0.25 * two, addable, addable, st.floats(-5, 5)),
    )


STAGES = st.recursive(_leaves, _combined, max_leaves=6)


def as_pipeline(stage: Stage) -> Pipeline:
    return stage if isinstance(stage, Pipeline) else Pipeline((stage,))


@given(STAGES)
def test_yaml_of_any_pipeline_is_read_back_as_an_equal_one(stage: Stage) -> None:
    text = to_yaml(stage)
    again = parse_pipeline(text)
    assert again == as_pipeline(stage)
    assert to_yaml(again) == text
    assert stage_fingerprint(again) == stage_fingerprint(as_pipeline(stage))


@given(STAGES)
def test_what_is_written_fits_the_json_schema(stage: Stage) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator(SCHEMA).validate(parse_yaml(to_yaml(stage)).value)


SCHEMA = schema()
PARTS = [name for kind in (Stage, Rule, Engine) for name in registry.names_of(kind)]
"""What a pipeline is made of; training has parts of its own."""


@pytest.mark.parametrize(
    ("stage", "tree"),
    [
        (Exclude(), "exclude"),
        (Cut(10), {"cut": 10}),
        (Normalise(), "normalise"),
        (Normalise("zscore"), {"normalise": "zscore"}),
        (BM25(k=5), {"bm25": 5}),
        (BM25(k1=1.2), {"bm25": {"k1": 1.2}}),
        (BM25(analyser=Analyser("de")), {"bm25": {"analyser": {"language": "de"}}}),
        (Cut(5) >> Cut(3), [{"cut": 5}, {"cut": 3}]),
        (Pipeline((Cut(5),), name="n"), {"pipeline": {"stages": [{"cut": 5}], "name": "n"}}),
        (Union((Cut(5), Cut(3))), {"union": {"of": [{"cut": 5}, {"cut": 3}]}}),
    ],
)
def test_only_what_differs_from_the_defaults_is_written(stage: Stage, tree: Any) -> None:
    assert stage_tree(stage) == tree


def test_a_stage_without_a_yaml_form_is_named() -> None:
    with pytest.raises(ConfigError, match=r"has no YAML form: Function is not registered"):
        to_yaml(Cut(5) >> apply(lambda ranking: ranking))


@pytest.mark.parametrize("path", sorted(shipped("pipelines").glob("*.yaml")))
def test_ready_pipelines_read_and_write(path: Path) -> None:
    pipeline = load_pipeline(path)
    assert parse_pipeline(to_yaml(pipeline)) == pipeline


# -- forms ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "pipeline"),
    [
        ("stages: [bm25]", Pipeline((BM25(),))),
        ("stages:\n  - bm25:", Pipeline((BM25(),))),
        ("stages: [{bm25: {}}]", Pipeline((BM25(),))),
        ("stages: [{bm25: 7}]", Pipeline((BM25(7),))),
        ("stages: [[bm25, {cut: 3}], {cut: 2}]", Pipeline((BM25() >> Cut(3), Cut(2)))),
        ("stages: [{union: [bm25, [bm25, {cut: 3}]]}]", Pipeline((Union((BM25(), BM25() >> Cut(3))),))),
        ("stages: [{rrf: {k: 1, of: [bm25]}}]", Pipeline((RRF((BM25(),), 1),))),
        (
            "stages: [{sum: {of: [[bm25, normalise], [bm25, normalise]], weights: [1, 0.5]}}]",
            Pipeline((WeightedSum((BM25().minmax(), BM25().minmax()), (1.0, 0.5)),)),
        ),
        ("name: n\ndescription: d\nstages: [bm25]", Pipeline((BM25(),), "n", "d")),
        ("stages: [{bm25: {k1: 1}}]", Pipeline((BM25(k1=1.0),))),
        (
            "stages: [{bm25: {analyser: {stop_words: [no, off]}}}]",
            Pipeline((BM25(analyser=Analyser(stop_words=("no", "off"))),)),
        ),
        ("x: &first {bm25: 5}\nstages: [*first]", None),
        (
            "stages: [&first {bm25: 5}, {cut: 3}, {union: [*first, *first]}]",
            Pipeline((BM25(5), Cut(3), Union((BM25(5), BM25(5))))),
        ),
    ],
)
def test_forms_of_a_pipeline_file(text: str, pipeline: Pipeline | None) -> None:
    if pipeline is None:
        with pytest.raises(ConfigError, match="pipeline has no option 'x'"):
            parse_pipeline(text)
    else:
        assert parse_pipeline(text) == pipeline


# -- errors ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("", ConfigError, "f.yaml:1: a pipeline is a mapping with the key 'stages'"),
        ("- bm25", ConfigError, "f.yaml:1: a pipeline is a mapping"),
        ("name: x", ConfigError, "f.yaml:1: a pipeline is a mapping"),
        ("stages: []", PipelineError, "f.yaml:1: a pipeline needs at least one stage"),
        ("stages: bm25", ConfigError, "f.yaml:1: stages: expected a list of stages; got 'bm25' (str)"),
        ("name: 5\nstages: [bm25]", ConfigError, "f.yaml:1: name: expected a string; got 5 (int)"),
        ("stages: [bm25]\nnam: x", ConfigError, "f.yaml:2: nam: pipeline has no option 'nam'; did you mean 'name'?"),
        (
            "stages:\n- cut: 3\n- bm52",
            UnknownNameError,
            "f.yaml:3: stages[1]: no stage is called 'bm52'; did you mean 'bm25'?; known: ",
        ),
        ("stages:\n- bm25:\n    kk: 5", ConfigError, "f.yaml:3: stages[0].bm25.kk: bm25 has no option 'kk'; did you"),
        ("stages: [{cut: {zzz: 5}}]", ConfigError, "f.yaml:1: stages[0].cut.zzz: cut has no option 'zzz'; it has: k"),
        ("stages:\n- bm25:\n    k: '5'", ConfigError, "f.yaml:3: stages[0].bm25.k: expected an integer; got '5' (str)"),
        ("stages: [{bm25: {k: 5.0}}]", ConfigError, "f.yaml:1: stages[0].bm25.k: expected an integer; got 5.0 (float)"),
        ("stages: [{bm25: {k: true}}]", ConfigError, "stages[0].bm25.k: expected an integer; got True (bool)"),
        ("stages: [{bm25: {b: '1'}}]", ConfigError, "stages[0].bm25.b: expected a number; got '1' (str)"),
        ("stages: [{bm25: {k: }}]", ConfigError, "stages[0].bm25.k: expected an integer; got None (NoneType)"),
        ("stages: [{bm25: no}]", ConfigError, "stages[0].bm25: expected an integer; got 'no' (str)"),
        ("stages: [{cut: 0}]", PipelineError, "stages[0].cut: cut: k is 0, at least 1 is needed"),
        ("stages: [cut]", ConfigError, "stages[0]: cut needs the option 'k'"),
        ("stages: [{exclude: 5}]", ConfigError, "stages[0].exclude: exclude takes no options; got 5 (int)"),
        ("stages: [{bm25: 5, cut: 3}]", ConfigError, "stages[0]: expected a stage: a name, or one 'name: fields' pair"),
        ("stages: [{}]", ConfigError, "stages[0]: expected a stage"),
        ("stages: [5]", ConfigError, "stages[0]: expected a stage"),
        (
            "stages: [{bm25: {method: bm52}}]",
            ConfigError,
            "stages[0].bm25.method: expected 'lucene', 'robertson', 'atire', 'bm25l' or 'bm25+'; got 'bm52' (str)",
        ),
        (
            "stages: [{bm25: {analyser: en}}]",
            ConfigError,
            "stages[0].bm25.analyser: expected a mapping with language, stem, stop_words, token_pattern; got 'en'",
        ),
        (
            "stages: [{bm25: {analyser: {stem: 5}}}]",
            ConfigError,
            "stages[0].bm25.analyser.stem: expected a boolean or a string; got 5 (int)",
        ),
        (
            "stages:\n- bm25:\n    analyser:\n      stop_words:\n      - a\n      - 5",
            ConfigError,
            "f.yaml:6: stages[0].bm25.analyser.stop_words[1]: expected a string; got 5 (int)",
        ),
        (
            "stages: [{bm25: {analyser: {stop_words: 5}}}]",
            ConfigError,
            "stop_words: expected a boolean or a string or a list; got 5 (int)",
        ),
        ("stages: [{bm25: {analyser: {language: english}}}]", UnknownNameError, "[0].bm25.analyser: unknown language"),
        ("stages:\n- rrf:\n  - bm25\n  - cut: 0", PipelineError, "f.yaml:4: stages[0].rrf[1].cut: cut: k is 0"),
        ("stages: [original_query]", PipelineError, "stage 1 (first): original_query needs original_query"),
        (
            "stages:\n- sum:\n    of: [bm25, bm25]\n    weights: [1, 1]",
            PipelineError,
            "f.yaml:2: stages[0].sum: sum, branch 1 (bm25): its bm25 scores have no common scale",
        ),
        ("stages: [{bm25: {k1: .nan}}]", ConfigError, "stages[0].bm25.k1: expected a finite number; got nan (float)"),
        ("stages: [{bm25: {k1: .inf}}]", ConfigError, "stages[0].bm25.k1: expected a finite number; got inf (float)"),
        (
            "stages: [{sum: {of: [[bm25, normalise], [bm25, normalise]], weights: [1, .nan]}}]",
            ConfigError,
            "stages[0].sum.weights[1]: expected a finite number; got nan (float)",
        ),
    ],
)  # fmt: skip
def test_an_error_names_file_line_key_path_and_what_was_expected(
    text: str, kind: type[RerankError], message: str
) -> None:
    with pytest.raises(kind) as caught:
        parse_pipeline(text, "f.yaml")
    assert message in str(caught.value)
    assert str(caught.value).startswith("f.yaml:")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


@given(
    st.recursive(
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(),
            st.floats(),
            st.sampled_from([*registry.BUILT_IN, "stages", "of", "k", "name", "zz"]),
        ),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(
                st.sampled_from([*registry.BUILT_IN, "k", "of", "weights", "analyser", "method", "run", "file"]),
                inner,
                max_size=2,
            ),
        ),
        max_leaves=8,
    )
)
def test_any_configuration_builds_or_is_a_rerank_error(value: Any) -> None:
    try:
        pipeline = parse_pipeline(dump_yaml({"stages": [value]}))
    except RerankError as error:
        assert str(error).startswith("<text>:")
    else:
        assert parse_pipeline(to_yaml(pipeline)) == pipeline


# -- paths ------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Reads(Stage):
    """For these tests: a stage with paths."""

    file: FilePath
    other: FilePath | None = None
    text: str = ""

    needs: ClassVar[frozenset[str]] = frozenset()

    def transform(self, ranking: Ranking, runtime: Runtime) -> Ranking:
        return ranking


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BUILT_IN, "reads", f"{__name__}:Reads")
    monkeypatch.setattr(registry, "table", lambda: registry.BUILT_IN)


@pytest.mark.usefixtures("reads")
def test_a_relative_path_is_relative_to_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    file = tmp_path / "p.yaml"
    file.write_text("stages: [{reads: {file: sub/../x.txt, other: sub/y, text: ../z}}]", encoding="utf-8")
    monkeypatch.chdir(tmp_path / "sub")
    stage = load_pipeline(file).stages[0]
    assert stage == Reads(str(tmp_path.resolve() / "x.txt"), str(tmp_path.resolve() / "sub" / "y"), "../z")
    assert parse_pipeline(to_yaml(stage)).stages[0] == stage


@pytest.mark.usefixtures("reads")
@pytest.mark.parametrize("path", ["../x", "sub/../../x", "link/x"])
def test_a_relative_path_that_leaves_the_folder_is_refused(path: str, tmp_path: Path) -> None:
    (tmp_path / "here" / "sub").mkdir(parents=True)
    (tmp_path / "here" / "link").symlink_to(tmp_path)
    file = tmp_path / "here" / "p.yaml"
    file.write_text(f"stages:\n- reads: {path}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"p.yaml:2: stages\[0\].reads: the path .* leaves the file's folder"):
        load_pipeline(file)


@pytest.mark.usefixtures("reads")
def test_an_absolute_or_home_path_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_pipeline("stages: [{reads: /etc/../x}]").stages[0] == Reads("/etc/../x")
    assert parse_pipeline("stages: [{reads: ~/x}]").stages[0] == Reads(str(tmp_path / "x"))


# -- fingerprints ---------------------------------------------------------------------------


def test_a_fingerprint_changes_with_every_option() -> None:
    changed = [
        BM25(),
        BM25(k=5),
        BM25(k1=1.0),
        BM25(b=0.5),
        BM25(method="atire"),
        BM25(delta=1.0),
        BM25(analyser=Analyser()),
        BM25(analyser=Analyser("de")),
        BM25() >> Cut(5),
        Pipeline((BM25(),)),
        Union((BM25(),)),
    ]
    assert len({stage_fingerprint(stage) for stage in changed}) == len(changed)
    assert stage_fingerprint(BM25(k=1000, k1=0.9)) == stage_fingerprint(BM25())


@pytest.mark.usefixtures("reads")
def test_a_fingerprint_follows_the_content_of_files_and_artifacts(tmp_path: Path) -> None:
    path, moved = tmp_path / "a.txt", tmp_path / "b.txt"
    path.write_text("one", encoding="utf-8")
    moved.write_text("one", encoding="utf-8")
    first = stage_fingerprint(Reads(str(path)))
    assert stage_fingerprint(Reads(str(moved))) == first
    path.write_text("two", encoding="utf-8")
    assert stage_fingerprint(Reads(str(path))) != first

    prints = set()
    for content in ("x", "y"):
        with new_artifact(tmp_path / "artifact", "thing", 1) as draft:
            (draft.path / "file").write_text(content, encoding="utf-8")
        prints.add(stage_fingerprint(Reads(str(tmp_path / "artifact"))))
    assert len(prints) == 2


@pytest.mark.usefixtures("reads")
def test_a_fingerprint_follows_the_content_of_folders(tmp_path: Path) -> None:
    prints = []
    for folder, content in (("a", "x"), ("b", "x"), ("a", "y")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "weights").write_text(content, encoding="utf-8")
        prints.append(stage_fingerprint(Reads(str(tmp_path / folder))))
    assert prints[0] == prints[1] != prints[2]


# -- schema --------------------------------------------------------------------------------


def test_the_schema_is_one_and_knows_every_part_with_its_words() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert {*PARTS, "stage", "rule", "engine"} == set(SCHEMA["$defs"])
    bm25 = SCHEMA["$defs"]["bm25"]
    assert bm25["description"].startswith("The `k` documents")
    assert bm25["properties"]["k"] == {
        "type": "integer",
        "description": "How many documents a query gets at most.",
        "default": 1000,
    }
    assert bm25["required"] == []
    assert SCHEMA["$defs"]["cut"]["required"] == ["k"]
    assert bm25["properties"]["analyser"]["properties"]["language"]["default"] == "en"


@pytest.mark.parametrize(
    "text",
    [
        "stages: [bm52]",
        "stages: [{bm25: {kk: 5}}]",
        "stages: [{bm25: {k: '5'}}]",
        "stages: [cut]",
        "stages: [{exclude: 5}]",
        "stages: []",
        "stages: bm25",
        "nam: x\nstages: [bm25]",
        "stages: [{bm25: {method: bm52}}]",
        "stages: [{union: [bm52]}]",
        "stages: [{bm25: {analyser: {language: 5}}}]",
    ],
)
def test_the_schema_refuses_what_the_reader_refuses(text: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    with pytest.raises(RerankError):
        parse_pipeline(text)
    assert not jsonschema.Draft202012Validator(SCHEMA).is_valid(parse_yaml(text).value)


def test_every_option_of_every_stage_is_in_the_schema() -> None:
    for name in PARTS:
        fields = {field.name for field in dataclasses.fields(registry.lookup(name))}
        assert set(SCHEMA["$defs"][name]["properties"]) == fields
