"""`rerank synthesize`: data sets from the command line, and dry runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_synthesis import ScriptedEngine, corpus_of, some_documents

from rerank.cli import main
from rerank.data.load import load
from rerank.errors import ConfigError, UnknownNameError
from rerank.ready import ready_syntheses, synthesis_path
from rerank.runtime import Runtime
from rerank.synthesize.clusters import Clustering
from rerank.synthesize.duqgen import DUQGen, Vectors
from rerank.synthesize.estimate import plan_synthesis
from rerank.synthesize.examples import Examples
from rerank.synthesize.generators import LLMGenerator
from rerank.synthesize.presets import load_synthesis, synthesis_from
from rerank.yamlfile import parse_yaml

CONFIG = """
name: mine
duqgen:
  data: %s
  documents: 20
  cleaning: {min_characters: 10}
  clusters: null
  round_trip: {stages: [{bm25: {k: 60}}]}
  negatives: {k: 2, from_rank: 1}
  generator: %s
"""


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    folder.mkdir()
    records = [{"_id": docno, "text": text} for docno, text in some_documents().items()]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return folder


def config(tmp_path: Path, data: str, generator: str = "keyphrase") -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(CONFIG % (data, generator), encoding="utf-8")
    return path


def test_a_file_makes_a_data_set_and_the_same_again_is_there_already(
    tmp_path: Path, collection: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["synthesize", "duqgen", str(config(tmp_path, "documents")), "--out", str(out), "--threads", "1"]
    assert main(command) == 0
    told = capsys.readouterr()
    assert f"{out}: " in told.out and " queries for " in told.out and " of 20 chosen documents" in told.out
    before = (out / "manifest.json").stat().st_mtime_ns
    assert main(command) == 0
    assert (out / "manifest.json").stat().st_mtime_ns == before
    assert len(load(out, "train").queries) > 10


@pytest.mark.parametrize("given", ["other={}", "{}"])
def test_documents_from_elsewhere(tmp_path: Path, collection: Path, given: str) -> None:
    path, out = config(tmp_path, "other"), tmp_path / "out"
    command = ["synthesize", "duqgen", str(path), "--data", given.format(collection), "--out", str(out)]
    assert main(command) == 0
    assert json.loads((out / "card.json").read_text(encoding="utf-8"))["data"] == str(collection)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.yaml"], "no such file; the ready syntheses are"),
        (["stdlib-sentence"], "did you mean 'stdlib-sentences'"),
        (["stdlib-sentences", "--data", "stdlob=x"], "the file calls its data set 'stdlib', not 'stdlob'"),
        (["stdlib-sentences", "--data", "./nowhere"], "no such file or folder"),
    ],
)
def test_input_that_cannot_be_used(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(["synthesize", "duqgen", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_dry_run_tells_what_would_be_asked_and_writes_nothing(
    tmp_path: Path, collection: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = '{openai: {model: m, url: "http://localhost:1/v1", sampling: {max_tokens: 10, temperature: 1.0}}}'
    path = config(tmp_path, "documents", f"{{llm: {{engine: {engine}, samples: 3}}}}")
    command = ["synthesize", "duqgen", str(path), "--out", str(tmp_path / "out"), "--dry-run"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "mine: a dry run, nothing was written" in shown
    assert "get queries   20" in shown and "calls         60" in shown and "600 tokens at most" in shown
    assert not (tmp_path / "out").exists()


def test_bootstrapping_asks_too(tmp_path: Path) -> None:
    generator = LLMGenerator(
        ScriptedEngine(lambda text, i: text), prompts=("duqgen-question", "duqgen-claim"), samples=2,
        examples=Examples(bootstrap=True, candidates=5),
    )  # fmt: skip
    with Runtime(tmp_path, progress=False, threads=1, device="cpu") as runtime:
        plan = plan_synthesis(
            DUQGen(documents=10, clusters=None, generator=generator), runtime, corpus_of(some_documents())
        )
    assert plan.calls == 2 * 2 * (10 + 5)
    assert plan.generated_tokens == plan.calls * 10
    assert plan.clusters == 0 and plan.seconds == 0


@pytest.mark.needs("sentence_transformers")
@pytest.mark.filterwarnings("ignore")
def test_what_is_to_be_encoded_is_estimated_until_it_is_there(tmp_path: Path, tiny_encoder: Path) -> None:
    synthesis = DUQGen(documents=10, vectors=Vectors(str(tiny_encoder)), clusters=Clustering(k=3))
    corpus = corpus_of(some_documents())
    with Runtime(tmp_path, progress=False, threads=1, device="cpu") as runtime:
        before = plan_synthesis(synthesis, runtime, corpus)
        synthesis.pick(corpus, runtime)
        after = plan_synthesis(synthesis, runtime, corpus)
        unknown = plan_synthesis(DUQGen(vectors=Vectors(str(tmp_path / "no-model"))), runtime, corpus)
    assert (before.clusters, before.to_encode) == (None, 60) and before.seconds > 0
    assert (after.clusters, after.to_encode, after.seconds) == (3, 0, 0)
    assert unknown.encoding_seconds is None and "time not known" in str(unknown)


@pytest.mark.parametrize("name", ready_syntheses())
def test_ready_syntheses_are_read_and_written(name: str) -> None:
    found = load_synthesis(name)
    assert (found.name, bool(found.description)) == (name, True)
    assert synthesis_from(parse_yaml(found.synthesis.to_yaml())).synthesis == found.synthesis


def test_an_unknown_synthesis_is_told_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'smollm2-questions'"):
        synthesis_path("smollm-questions")
    with pytest.raises(ConfigError, match="no such file; the ready syntheses are"):
        synthesis_path("missing.yaml")
