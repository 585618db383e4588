"""Haystack's own pipeline runs the ranker, dumps it and loads it again without being told to trust it."""

from __future__ import annotations

import asyncio
import doctest
import tomllib
from pathlib import Path
from typing import Any

import pytest
from overlap_engine import Overlap

import rerank
from rerank.errors import ConfigError, ModelError, PipelineError
from rerank.reranking import Rerank
from rerank.retrieve.bm25 import BM25
from rerank.rules.setwise import Setwise
from rerank.stage import Cut, apply

pytestmark = [
    pytest.mark.needs("haystack"),
    pytest.mark.filterwarnings("ignore"),  # Haystack's own
]

ROOT = Path(rerank.__file__).parents[1]
NAMESPACE = "haystack_integrations/components/rankers/rerank/__init__.py"
TEXTS = {"d1": "a dark hole", "d2": "a black star", "d3": "a black hole", "d4": "light"}


@pytest.fixture(autouse=True)
def no_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAYSTACK_TELEMETRY_ENABLED", "False")


@pytest.fixture
def namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module under the name that Haystack trusts, laid out as the build does."""
    import importlib

    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    source = next(s for s, target in build["targets"]["wheel"]["force-include"].items() if target == NAMESPACE)
    target = tmp_path / "site" / NAMESPACE
    target.parent.mkdir(parents=True)
    target.write_text((ROOT / source).read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return importlib.import_module("haystack_integrations.components.rankers.rerank")


@pytest.fixture
def documents() -> list[Any]:
    from haystack import Document

    return [Document(id=docno, content=text, meta={"title": f"title{docno}"}) for docno, text in TEXTS.items()]


def ranker(stage: Any, **options: Any) -> Any:
    from rerank.integrations.haystack import RerankRanker

    return RerankRanker(stage, **options)


def test_documents_come_back_best_first_as_copies_with_their_score(documents: list[Any]) -> None:
    found = ranker(Rerank(Overlap(), k=None)).run("black hole", documents)["documents"]
    assert [(d.id, d.score) for d in found] == [("d3", 2.0), ("d1", 1.0), ("d2", 1.0), ("d4", 0.0)]
    assert found[0].meta == {"title": "titled3"}
    assert [d.score for d in documents] == [None] * 4


def test_top_k_of_the_call_goes_before_that_of_the_component(documents: list[Any]) -> None:
    component = ranker(Rerank(Overlap(), Setwise(k=2)), top_k=2)
    assert [(d.id, d.score) for d in component.run("black hole", documents)["documents"]] == [("d3", 1.0), ("d1", 0.5)]
    assert len(component.run("black hole", documents, top_k=3)["documents"]) == 3
    with pytest.raises(ValueError, match="top_k is 0, at least 1 is needed"):
        component.run("black hole", documents, top_k=0)
    with pytest.raises(ValueError, match="top_k is -1"):
        ranker(Cut(1), top_k=-1)


def test_equal_ids_and_documents_without_text_do_not_break_it(documents: list[Any]) -> None:
    from haystack import Document

    given = [*documents, Document(id="d3", content="black hole black hole"), Document(id="blank", content=None)]
    found = ranker(Rerank(Overlap(), k=None)).run("black hole", given)["documents"]
    assert [d.id for d in found] == ["d3", "d1", "d2", "d4", "blank"]
    assert found[0].content == "a black hole"
    Overlap.asked.clear()
    assert ranker(Rerank(Overlap())).run("black hole", []) == {"documents": []}
    assert Overlap.asked == []


def test_meta_fields_are_read_before_the_content(documents: list[Any]) -> None:
    component = ranker(Rerank(Overlap(), k=None), meta_fields=["title", "missing"], top_k=1)
    assert [d.id for d in component.run("titled4", documents)["documents"]] == ["d4"]


def test_async_gives_the_same(documents: list[Any]) -> None:
    component = ranker(Rerank(Overlap(), k=None))

    async def all_at_once() -> list[Any]:
        return await asyncio.gather(*(component.run_async(query, documents) for query in ("black hole", "light")))

    assert asyncio.run(all_at_once()) == [component.run(query, documents) for query in ("black hole", "light")]


def pipeline_of(component: Any) -> Any:
    from haystack import Pipeline
    from haystack.components.joiners import DocumentJoiner

    pipeline = Pipeline()
    pipeline.add_component("candidates", DocumentJoiner())
    pipeline.add_component("ranker", component)
    pipeline.connect("candidates.documents", "ranker.documents")
    return pipeline


def answers(pipeline: Any, documents: list[Any]) -> list[tuple[str, float]]:
    given = {"candidates": {"documents": documents}, "ranker": {"query": "Paris on the Seine"}}
    return [(d.id, d.score) for d in pipeline.run(given)["ranker"]["documents"]]


@pytest.mark.needs("torch", "transformers")
def test_a_pipeline_is_loaded_without_an_allow_list_and_ranks_as_before(
    namespace: Any, documents: list[Any], tmp_path: Path
) -> None:
    from haystack import Pipeline
    from tiny_scorers import write_classifier

    from rerank.engines.pairs import CrossEncoderEngine

    folder = write_classifier(tmp_path / "model", "bert")
    stage = Rerank(CrossEncoderEngine(str(folder), dtype="float32"), k=None)
    pipeline = pipeline_of(namespace.RerankRanker(stage, top_k=3, device="cpu"))
    text = pipeline.dumps()
    assert "type: haystack_integrations.components.rankers.rerank.RerankRanker" in text
    assert "allowed_modules" not in text
    loaded = Pipeline.loads(text)
    assert loaded.dumps() == text
    before, after = answers(pipeline, documents), answers(loaded, documents)
    assert len(before) == 3
    assert after == before


@pytest.mark.parametrize("reranker", [Cut(2), "pipeline.yaml", {"stages": [{"cut": 2}]}])
def test_every_form_of_a_stage_is_dumped_as_plain_data(
    reranker: Any, namespace: Any, documents: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from haystack import Pipeline

    monkeypatch.chdir(tmp_path)
    Path("pipeline.yaml").write_text("stages: [{cut: 2}]", encoding="utf-8")
    loaded = Pipeline.loads(pipeline_of(namespace.RerankRanker(reranker)).dumps())
    assert [docno for docno, _ in answers(loaded, documents)] == ["d1", "d2"]


def test_warming_up_loads_and_closing_frees(documents: list[Any]) -> None:
    Overlap.asked.clear()
    component = ranker(Rerank(Overlap(), k=None))
    component.warm_up()
    assert [len(questions) for questions in Overlap.asked] == [1]
    expected = component.run("black hole", documents)
    component.close()
    assert component.run("black hole", documents) == expected


def test_a_name_is_looked_up_no_sooner_than_the_component_warms_up() -> None:
    component = ranker("no-such-model")
    component.close()
    with pytest.raises((ConfigError, ModelError), match="no-such-model"):
        component.warm_up()


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(PipelineError, match="finds documents itself"):
        ranker(BM25())
    with pytest.raises(ConfigError, match="has no YAML form"):
        ranker(apply(lambda ranking: ranking)).to_dict()


def test_its_example_is_true() -> None:
    import rerank.integrations.haystack as module

    (example,) = doctest.DocTestFinder(recurse=False).find(module.RerankRanker, module=False, globs=vars(module).copy())
    assert doctest.DocTestRunner().run(example).failed == 0
