"""A reranker adapted to a collection: synthesized, trained, measured, and gone on with where it stopped."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from tiny_scorers import write_causal_lm
from tiny_training import write_collection

from rerank.cli import main
from rerank.config import load_pipeline
from rerank.data.load import load
from rerank.engines.pairs import BiEncoderEngine
from rerank.engines.prompted import CausalLMEngine
from rerank.errors import ConfigError, DataError, ModelError, UnknownNameError
from rerank.reranking import Rerank
from rerank.runtime import Runtime
from rerank.stage import WeightedSum
from rerank.synthesize.adapt import _lines, adapt
from rerank.synthesize.adaptation import Adaptation
from rerank.synthesize.adaptation_plan import TRAINING_WORK, plan_adaptation
from rerank.synthesize.cleaning import Cleaning
from rerank.synthesize.clusters import Clustering
from rerank.synthesize.duqgen import DUQGen, Vectors
from rerank.synthesize.generators import (
    ExtractiveGenerator,
    KeyphraseGenerator,
    LLMGenerator,
    MixedGenerator,
)
from rerank.synthesize.negatives import HardNegatives
from rerank.synthesize.roundtrip import RoundTrip
from rerank.train.recipe import recipe_from
from rerank.yamlfile import parse_yaml

pytestmark = [
    pytest.mark.needs("peft", "accelerate", "faiss", "sentence_transformers"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
]
MIXED = MixedGenerator((KeyphraseGenerator(), ExtractiveGenerator()))


@pytest.fixture(scope="session")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection whose split `dev` is judged."""
    return write_collection(tmp_path_factory.mktemp("collection") / "tiny")


@pytest.fixture
def documents(judged: Path, tmp_path: Path) -> Path:
    """Its documents alone."""
    path = tmp_path / "documents.jsonl"
    path.write_bytes((judged / "corpus.jsonl").read_bytes())
    return path


def tiny(data: Path, encoder: Path, **changes: Any) -> Adaptation:
    """An adaptation of seconds."""
    synthesis = DUQGen(
        data="",
        documents=24,
        cleaning=Cleaning(min_characters=10),
        vectors=Vectors(str(encoder), dtype="float32"),
        clusters=Clustering(k=4, iterations=5),
        generator=MIXED,
        round_trip=RoundTrip(pipeline="bm25", k=60),
        negatives=HardNegatives(pipeline="bm25", k=3, from_rank=2, to_rank=30),
        dev=0.25,
    )
    given: dict[str, Any] = {
        "data": str(data),
        "synthesis": synthesis,
        "model": str(encoder),
        "first_stage": "bm25",
        "k": 10,
        "split": "dev",
        "learning_rate": 1e-2,
        "steps": 4,
    }
    return Adaptation(**{**given, **changes})


def run(adaptation: Adaptation, out: Path, home: Path) -> Any:
    with Runtime(home, progress=False, threads=1, device="cpu") as runtime:
        return adapt(adaptation, out, runtime)


def record(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "adaptation.json").read_text(encoding="utf-8"))
    return found


def test_a_collection_with_judgments_is_adapted_to_and_measured(
    judged: Path, tiny_encoder: Path, tmp_path: Path, own_home: Path
) -> None:
    done = run(tiny(judged, tiny_encoder), tmp_path / "out", own_home)
    assert done.adapter == tmp_path / "out" / "training" / "adapter"
    assert [each.run for each in done.results.evaluations] == ["bm25", "bm25 rescored", "adapted"]
    assert {len(each.qids) for each in done.results.evaluations} == {6}
    told = record(tmp_path / "out")
    assert told["finished"] and told["evaluation"]["baseline"] == "bm25"
    assert set(told["synthetic"]["by_prompt"]) == {"phrases", "sentence"}
    assert told["training"]["best"] is not None
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "| adapted |" in text and "nDCG@10" in text
    assert (tmp_path / "out" / "training" / "report.html").is_file()
    assert (tmp_path / "out" / "evaluation" / "report.html").is_file()


def test_the_pipeline_that_is_left_gives_the_measured_run(
    judged: Path, tiny_encoder: Path, tmp_path: Path, own_home: Path
) -> None:
    run(tiny(judged, tiny_encoder), tmp_path / "out", own_home)
    moved = (tmp_path / "out").rename(tmp_path / "moved")
    pipeline = load_pipeline(moved / "pipeline.yaml")
    with Runtime(own_home, progress=False, threads=1, device="cpu") as runtime:
        data = load(judged, "dev", runtime=runtime)
        from rerank.evaluation.experiment import evaluate

        found = evaluate([pipeline], [data], ["nDCG@10"], runtime=runtime).evaluations[0]
    measured = {each["pipeline"]: each["measures"] for each in record(moved)["evaluation"]["results"]}
    assert found.means["nDCG@10"] == pytest.approx(measured["adapted"]["nDCG@10"])


def test_documents_alone_are_enough(documents: Path, tiny_encoder: Path, tmp_path: Path, own_home: Path) -> None:
    done = run(tiny(documents, tiny_encoder), tmp_path / "out", own_home)
    assert done.results is None and done.adapter.is_dir()
    assert "no judgments" in record(tmp_path / "out")["not_measured"]
    assert "Not measured" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert not (tmp_path / "out" / "evaluation").exists()


def test_without_dev_queries_and_negatives_in_the_data_it_trains_all_the_same(
    documents: Path, tiny_encoder: Path, tmp_path: Path, own_home: Path
) -> None:
    plain = tiny(documents, tiny_encoder)
    assert plain.synthesis is not None
    bare = dataclasses.replace(plain.synthesis, dev=0.0, negatives=None, generator=KeyphraseGenerator())
    done = run(dataclasses.replace(plain, synthesis=bare), tmp_path / "out", own_home)
    assert done.trained.fitted.best is None
    recipe = recipe_from(parse_yaml((tmp_path / "out" / "training" / "recipe.yaml").read_text(encoding="utf-8"))).recipe
    assert recipe.evaluation is None and recipe.groups[0].negatives.pipeline == "bm25"


def test_the_same_call_goes_on_and_another_is_refused(
    documents: Path, tiny_encoder: Path, tmp_path: Path, own_home: Path
) -> None:
    adaptation, out = tiny(documents, tiny_encoder), tmp_path / "out"
    run(adaptation, out, own_home)
    stamps = {
        path: path.stat().st_mtime_ns for path in (out / "data" / "manifest.json", out / "training" / "facts.json")
    }
    run(adaptation, out, own_home)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    with pytest.raises(ConfigError, match="another collection, or with other options"):
        run(dataclasses.replace(adaptation, seed=1), out, own_home)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep", encoding="utf-8")
    with pytest.raises(ConfigError, match="no adaptation"):
        run(adaptation, tmp_path / "mine", own_home)


def run_until(place: str, adaptation: Adaptation, out: Path, home: Path) -> None:
    """Runs it in a process that is killed when it comes to that function."""
    from rerank.synthesize import adapt as module

    setattr(module, place, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
    run(adaptation, out, home)


def test_killed_after_each_part_it_ends_as_if_it_had_not_been(
    documents: Path, tiny_encoder: Path, tmp_path: Path, own_home: Path
) -> None:
    adaptation, out = tiny(documents, tiny_encoder), tmp_path / "killed"
    run(adaptation, tmp_path / "whole", own_home)
    for place in ("train", "_pipeline", "_record"):
        # A fork of a process in which torch has threads may wait for them without end.
        child = multiprocessing.get_context("spawn").Process(target=run_until, args=(place, adaptation, out, own_home))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL, place
        assert not record(out)["finished"]
    run(adaptation, out, own_home)
    for name in ("data/queries.jsonl", "data/provenance.jsonl", "training/adapter/adapter_model.safetensors"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


# -- what it does by default, and for how long ------------------------------------------------------------


def test_by_default_queries_of_two_kinds_cover_the_collection() -> None:
    duqgen = Adaptation(data="stdlib", documents=300, seed=3).duqgen()
    assert (duqgen.data, duqgen.documents, duqgen.seed, duqgen.dev) == ("stdlib", 300, 3, 0.1)
    assert duqgen.generator.prompts == ("phrases", "sentence")
    assert duqgen.negatives is not None and duqgen.negatives.pipeline == "hybrid"
    own = Adaptation(data="stdlib", synthesis=DUQGen(data="other", documents=7))
    assert (own.duqgen().data, own.duqgen().documents) == ("stdlib", 7)


def test_the_default_recipe_is_read_back_from_its_file(tmp_path: Path) -> None:
    recipe = Adaptation(data="stdlib").recipe(tmp_path)
    assert recipe_from(parse_yaml(recipe.to_yaml("mine"))).recipe == recipe
    assert recipe.engine == BiEncoderEngine("minilm-l6") and recipe.optimiser.learning_rate == 1e-4
    assert recipe.groups[0].sizes == (3,) and recipe.groups[0].candidates == "negatives" and recipe.in_batch
    cross = Adaptation(data="stdlib", engine="cross_encoder").recipe(tmp_path)
    assert cross.groups[0].sizes == (8,) and not cross.in_batch


def test_an_estimate_comes_first(judged: Path, tiny_encoder: Path, own_home: Path) -> None:
    adaptation = tiny(judged, tiny_encoder, engine="cross_encoder")
    with Runtime(own_home, progress=False, threads=1, device="cpu") as runtime:
        plan = plan_adaptation(adaptation, runtime)
        longer = plan_adaptation(dataclasses.replace(adaptation, steps=8), runtime)
        alone = plan_adaptation(dataclasses.replace(adaptation, split="no-such-split"), runtime)
    assert plan.groups == round(24 * 2 * 0.75) and plan.pairs == 4 * 16 * 4
    assert plan.training_tokens == pytest.approx(plan.pairs * 24, rel=0.2)  # what the model reads at most
    assert longer.pairs == 2 * plan.pairs
    assert plan.queries == 6 and plan.seconds > 0 and TRAINING_WORK > 1
    assert alone.queries == 0 and "no split 'no-such-split'" in alone.unjudged
    assert max(map(len, str(plan).splitlines())) <= 80


def test_an_estimate_refuses_what_would_be_refused_later(tmp_path: Path, own_home: Path) -> None:
    words = tmp_path / "words.jsonl"
    words.write_text('{"_id": "1", "text": "one"}\n', encoding="utf-8")
    with Runtime(own_home, progress=False, threads=1, device="cpu") as runtime:
        with pytest.raises(DataError, match=r"no document is left of 1 \(1 shorter than 80 characters\)"):
            plan_adaptation(Adaptation(data=str(words)), runtime)
        with pytest.raises(UnknownNameError, match="did you mean 'hybrid'"):
            plan_adaptation(Adaptation(data=str(words), first_stage="hybird"), runtime)


def test_a_model_that_cannot_become_what_is_wanted_is_refused_before_anything_is_made(
    judged: Path, tmp_path: Path, own_home: Path
) -> None:
    causal = write_causal_lm(tmp_path / "causal", "llama")
    wanted = tiny(judged, causal)
    with (
        Runtime(own_home, progress=False, threads=1, device="cpu") as runtime,
        pytest.raises(ModelError, match=r"is no bi-encoder: it has no modules\.json"),
    ):
        plan_adaptation(dataclasses.replace(wanted, synthesis=None), runtime)
    with pytest.raises(ModelError, match="is no bi-encoder"):
        run(wanted, tmp_path / "out", own_home)
    assert not (tmp_path / "out").exists()


def test_queries_that_a_language_model_writes_are_questions_and_search_words() -> None:
    duqgen = Adaptation(data="stdlib", documents=70).written_by("my-model", samples=2).duqgen()
    assert duqgen.generator.prompts == ("duqgen-question", "duqgen-keyword") and duqgen.documents == 70


def test_where_training_helps_nothing_the_report_says_so(
    documents: Path, tiny_encoder: Path, tmp_path: Path, own_home: Path
) -> None:
    run(tiny(documents, tiny_encoder), tmp_path / "out", own_home)
    told = record(tmp_path / "out")
    for before, is_said in ((told["training"]["best"], True), (told["training"]["best"] - 0.1, False)):
        lines = list(_lines({**told, "training": {**told["training"], "before": before}}, None))
        assert any("Nothing was learnt" in line for line in lines) is is_said
        assert any(f"({before:.4f} before training)" in line for line in lines)


def test_the_command_says_what_it_would_do_and_does_it(
    documents: Path, tiny_encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    synthesis = tmp_path / "synthesis.yaml"
    adaptation = tiny(documents, tiny_encoder)
    assert adaptation.synthesis is not None
    synthesis.write_text(dataclasses.replace(adaptation.synthesis, data="x").to_yaml("mine"), encoding="utf-8")
    options = [
        "--synthesis",
        str(synthesis),
        "--model",
        str(tiny_encoder),
        "--first-stage",
        "bm25",
        "--device",
        "cpu",
        "--threads",
        "1",
    ]
    out = tmp_path / "out"
    assert main(["adapt", str(documents), "--out", str(out), *options, "--epochs", "0.5", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "training" in told and "get queries   24" in told and not out.exists()
    assert main(["adapt", str(documents), *options, "--documents", "9", "--dry-run"]) == 0
    assert "get queries   9" in capsys.readouterr().out
    assert main(["adapt", str(documents), "--out", str(out), *options, "--epochs", "0.5"]) == 0
    told = capsys.readouterr()
    assert f"{out}/training/adapter" in told.out and "in all" in told.err
    assert main(["adapt", str(documents), "--llm", "x", "--synthesis", str(synthesis)]) == 2
    assert "give one of both" in capsys.readouterr().err


def test_a_mixture_is_of_generators_without_a_model() -> None:
    with pytest.raises(ConfigError, match="without a model"):
        MixedGenerator((LLMGenerator(CausalLMEngine("my-model")), KeyphraseGenerator()))
    with pytest.raises(ConfigError, match="each once"):
        MixedGenerator((KeyphraseGenerator(), KeyphraseGenerator(samples=2)))
    with pytest.raises(ConfigError, match="name one or more"):
        MixedGenerator(())


def test_the_reranker_is_added_to_the_first_stage_or_takes_its_place() -> None:
    added = Adaptation(data="stdlib", weight=0.25, unadapted=0).adapted("adapter")[-1]
    assert isinstance(added, WeightedSum) and added.weights == (0.75, 0.25)
    assert isinstance(Adaptation(data="stdlib", weight=1, unadapted=0).adapted("adapter")[-1], Rerank)
    second = Adaptation(data="stdlib", weight=1, unadapted=0.25).adapted("adapter")[-1]
    assert isinstance(second, WeightedSum) and second.weights == (0.25, 0.75)
    other = Adaptation(data="stdlib", model="me5-small").pipelines(Path("adapter"))
    assert "Rescore(model='me5-small')" in repr(other[1]) and "Rescore(model='me5-small')" in repr(other[2])
    with pytest.raises(ConfigError, match="'bi_encoder' or 'cross_encoder' is needed"):
        Adaptation(data="stdlib", engine="cross-encoder")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="unadapted is 1"):
        Adaptation(data="stdlib", unadapted=1)
    for weight in (0.0, 1.5):
        with pytest.raises(ConfigError, match="above 0 and at most 1"):
            Adaptation(data="stdlib", weight=weight)
