"""A real worker process: what it computes is what the same stages give in Python; how it dies."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from serve.stand_in import QUICK

from rerank.reranker import list_qid
from rerank.serve.app import create_app
from rerank.serve.errors import ApiError
from rerank.serve.jobs import EmbedJob, RerankJob
from rerank.serve.service import Service
from rerank.serve.settings import ServedModel, Settings
from rerank.serve.supervisor import Patience

pytestmark = [pytest.mark.needs("starlette", "prometheus_client", "httpx2"), pytest.mark.filterwarnings("ignore")]

QUERY = "lift of a wing"
TEXTS = (
    "the wing", "a star is mass", "", "moon light and the sun", "drag", "heat flow theory of the boundary layer " * 5,
    "black hole", "shock wave pressure in a layer", "the wing", "dwarf",
)  # fmt: skip
GRADES = (1, 5, 0, 3, 8, 2, 9, 4, 1, 7)
SLOW_START = Patience(heartbeat_seconds=0.2)


def fake_pipeline(folder: Path, name: str, rule: str, form: str = "scores") -> ServedModel:
    """A pipeline whose engine knows the grades of the one list."""
    qid = list_qid(QUERY, TEXTS)
    rows = [f"{qid}\t{place:09d}\t{grade}" for place, grade in enumerate(GRADES)]
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(rows) + "\n", encoding="utf-8")
    path = folder / f"{name}.yaml"
    engine = f"{{fake: {{qrels: qrels.tsv, form: {form}, noise: 0.5}}}}"
    path.write_text(f"stages: [{{rerank: {{engine: {engine}, rule: {rule}, k: null}}}}]\n", encoding="utf-8")
    return ServedModel(str(path))


def write_adapter(folder: Path, base: Path, *, seed: int) -> None:
    """A LoRA adapter of `base` with random weights."""
    import peft
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(base)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = peft.LoraConfig(r=2, lora_alpha=32, target_modules=["query", "value"], init_lora_weights=False)
        wrapped = peft.get_peft_model(model, config)
    wrapped.peft_config["default"].base_model_name_or_path = str(base)
    wrapped.save_pretrained(str(folder))


async def asked(service: Service, name: str | None = None, *texts: str, query: str = QUERY) -> Any:
    return await service.rerank(RerankJob(query, texts or TEXTS, name), "a client")


async def until(holds: Any, seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.01)


# -- equal to Python ------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "form"),
    [
        ("pointwise", "scores"),
        ("{groupwise: {size: 4, passes: 2}}", "scores"),
        ("{setwise: {k: 3, size: 4}}", "pick"),
        ("listwise", "order"),
        ("pairwise", "scores"),
        ("tournament", "order"),
    ],
)
def test_served_orders_and_scores_are_those_of_the_pipeline_in_python(tmp_path, rule, form):
    from rerank import Reranker
    from rerank.ready import find_pipeline

    model = fake_pipeline(tmp_path, "faked", rule, form)
    (stage,) = find_pipeline(model.model).stages
    with Reranker(stage) as reranker:
        expected = reranker.rank(QUERY, TEXTS)

    async def main() -> None:
        service = Service(Settings(models=(model,)))
        await service.open()
        try:
            others = [asked(service, None, f"other {n}", f"another {n}", query=f"q{n}") for n in range(3)]
            found, *_ = await asyncio.gather(asked(service), *others)
            assert [(each.index, each.raw) for each in found.results] == [(doc.index, doc.score) for doc in expected]
            assert all(0 <= each.score <= 1 for each in found.results)
        finally:
            await service.close()

    asyncio.run(main())


@pytest.fixture(scope="module")
def neural(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a server with tiny models answered, and what they give in Python."""
    pytest.importorskip("torch", reason="the extra dense brings it")
    import httpx2 as httpx
    from tiny_models import write_model
    from tiny_scorers import write_chat_lm, write_classifier

    from rerank import Reranker
    from rerank.engines.pairs import CrossEncoderEngine
    from rerank.rules.setwise import Setwise
    from rerank.runtime import Runtime

    root = tmp_path_factory.mktemp("served")
    write_classifier(root / "ce", "bert")
    write_chat_lm(root / "lm")
    write_model(root / "encoder")
    for number, place in enumerate((root / "tuned", root / "hot" / "live", root / "later")):
        write_adapter(place, root / "ce", seed=number + 1)
    pipeline = root / "two.yaml"
    engine = "{engine: {cross_encoder: {model: %s, dtype: float32}}}"
    pipeline.write_text(f"stages: [{{cut: 8}}, {{rerank: {engine % (root / 'ce')}}}]\n", encoding="utf-8")
    models = (
        ServedModel(str(root / "ce"), dtype="float32"),
        ServedModel(str(root / "lm"), rule="{setwise: {k: 3, size: 3}}", prompt="first", dtype="float32"),
        ServedModel(str(root / "encoder"), dtype="float32"),
        ServedModel(str(pipeline)),
        ServedModel(str(root / "ce"), "tuned", str(root / "tuned"), dtype="float32"),
    )
    settings = Settings(
        models=models, models_folder=str(root / "hot"), home=str(root / "home"), device="cpu", threads=1,
        watch_seconds=3600.0,
    )  # fmt: skip
    found: dict[str, Any] = {}

    async def main() -> None:
        service = Service(settings, patience=SLOW_START)
        await service.open()
        try:
            for name in ("ce", "encoder", "two", "lm", "tuned", "live"):
                crowd = [asked(service, name, *TEXTS[n:], query=f"what is {n}") for n in range(1, 5)]
                found[name], *_ = await asyncio.gather(asked(service, name), *crowd)
            found["alone"] = await asked(service, "ce")
            busy = [asyncio.ensure_future(asked(service, "live")) for _ in range(5)]
            shutil.copytree(root / "later", root / "hot" / "live", dirs_exist_ok=True)
            found["while replaced"] = await asyncio.gather(*busy)
            for _ in range(2):
                await service.look()
            found["later"] = await asked(service, "live")
            found["cut"] = await service.rerank(RerankJob("lift", ("the wing of a star",), "ce", per_document=2))
            found["by hand"] = await service.rerank(RerankJob("lift", ("the wing",), "ce"))
            found["vectors"] = (await service.embed(EmbedJob(TEXTS, "encoder"))).vectors
            transport = httpx.ASGITransport(create_app(service))
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                for what, body in {
                    "long query": {"query": "a wing " * 60, "documents": ["x"]},
                    "no truncation": {"query": "wing", "documents": list(TEXTS), "truncation": False},
                    "half": {"query": "\ud800", "documents": ["\udfff"]},
                }.items():
                    found[what] = await client.post(
                        "/v1/rerank",
                        content=_json({**body, "model": "ce"}),
                        headers={"content-type": "application/json"},
                    )
                found["tokens"] = (await client.post("/tokenize", json={"inputs": "the wing", "model": "ce"})).json()
                found["info"] = (await client.get("/info")).json()
        finally:
            await service.close()

    asyncio.run(main())
    with Runtime(root / "home", device="cpu", threads=1, progress=False, cache=False) as runtime:
        setwise = Setwise(k=3, size=3)
        for name, options in (("ce", {}), ("encoder", {}), ("lm", {"rule": setwise, "prompt": "first"})):
            reranker = Reranker(str(root / name), dtype="float32", runtime=runtime, **options)
            found[f"{name} in Python"] = reranker.rank(QUERY, TEXTS)
        for name in ("tuned", "later"):
            engine = CrossEncoderEngine(str(root / "ce"), dtype="float32", adapter=str(root / name))
            found[f"{name} in Python"] = Reranker(engine, runtime=runtime).rank(QUERY, TEXTS)
        found["two in Python"] = Reranker(str(pipeline), runtime=runtime).rank(QUERY, TEXTS)
        from rerank.engines.encoder import load_encoder

        encoder = load_encoder(runtime, str(root / "encoder"), None, "float32")
        found["vectors in Python"] = encoder.encode_documents(TEXTS)
    return found


def _json(value: Any) -> bytes:
    import json

    return json.dumps(value).encode()


@pytest.mark.needs("torch", "transformers", "sentence_transformers")
@pytest.mark.parametrize("name", ["ce", "encoder", "two", "lm", "tuned"])
def test_tiny_models_score_as_in_python(neural, name):
    served, expected = neural[name], neural[f"{name} in Python"]
    assert [each.raw for each in served.results] == pytest.approx([doc.score for doc in expected], abs=1e-5)
    by_score: dict[float, set[int]] = {}
    for doc in expected:
        by_score.setdefault(round(doc.score, 4), set()).add(doc.index)
    for each in served.results:
        assert any(each.index in some for score, some in by_score.items() if abs(score - each.raw) < 1e-3)
    assert served.took.tokens > 0


@pytest.mark.needs("torch", "transformers", "sentence_transformers")
def test_pairs_are_cut_where_the_engine_cuts_them(tmp_path):
    from tiny_scorers import write_classifier

    from rerank.engines.engine import Asked
    from rerank.engines.pairs import CrossEncoderEngine
    from rerank.reranking import Rerank
    from rerank.runtime import Runtime
    from rerank.serve.worker import Loaded

    write_classifier(tmp_path / "ce", "bert")
    stage = Rerank(CrossEncoderEngine(str(tmp_path / "ce"), dtype="float32", max_tokens=8), k=None)
    asked = Asked("q", "wing", ("d",), ("the lift of a wing and of a star in the sun",))
    with Runtime(tmp_path / "home", device="cpu", threads=1, progress=False, cache=False) as runtime:
        loaded = Loaded(stage, None, None, runtime)
        answers, used = loaded.ask([asked])
        assert answers == stage.engine.asker(None, runtime).ask([asked], runtime)
        assert loaded.ask([asked], loaded.tokenised([asked])) == (answers, used)
    assert used == [(8, 1)]
    assert loaded.facts["limit"] == 8


def test_batches_are_tokenised_before_their_turn_to_be_computed():
    import socket

    from rerank.errors import ModelError
    from rerank.serve.worker import Worker, _verbs

    class Model:
        """Tokens are words."""

        def tokenised(self, questions: Any) -> Any:
            if questions[0].query == "bad":
                raise ModelError("no tokens")
            return [asked.documents[0].split() for asked in questions]

        def ask(self, questions: Any, tokens: Any) -> Any:
            return [(float(len(words)),) for words in tokens], [(len(words), 0) for words in tokens]

    ours, theirs = socket.socketpair()
    with ours, theirs:
        worker = Worker(theirs)
        worker._start({"home": None, "device": "cpu", "threads": 1})
        worker._loaded["m"] = Model()
        for number, query in enumerate(["good", "bad", "fine"], 1):
            asked = [["q", query, ["d"], ["one two three"], False]]
            worker._take({"do": "ask", "id": number, "target": "m", "questions": asked})
        worker._tokenising.shutdown()
        worker._loaded.clear()  # what was tokenised is computed by the model that tokenised it
        for expected in ([(3.0,)], None, [(3.0,)]):
            message = worker._computing.get(timeout=5)
            assert message["batch"].done()
            if expected is None:
                with pytest.raises(ModelError, match="no tokens"):
                    _verbs()["ask"](worker, message)
            else:
                assert _verbs()["ask"](worker, message)["answers"] == expected


@pytest.mark.needs("torch", "transformers", "sentence_transformers")
def test_a_score_does_not_depend_on_company_and_is_the_sigmoid_of_its_logit(neural):
    import math

    crowd = {each.index: each for each in neural["ce"].results}
    for each in neural["alone"].results:
        assert each.raw == pytest.approx(crowd[each.index].raw, abs=1e-5)
        assert each.score == pytest.approx(1 / (1 + math.exp(-each.raw)), abs=1e-12)
    assert [each.index for each in neural["alone"].results if TEXTS[each.index] == "the wing"] == [0, 8]


@pytest.mark.needs("torch", "transformers", "sentence_transformers")
def test_texts_are_counted_and_cut_by_the_models_tokens(neural):
    assert neural["ce"].took.truncated == 0
    assert neural["cut"].results[0].raw == pytest.approx(neural["by hand"].results[0].raw, abs=1e-6)
    assert neural["cut"].warnings == ["1 document was truncated"]
    assert neural["by hand"].took.tokens == 6
    assert neural["long query"].status_code == 400
    assert neural["no truncation"].status_code == 200
    assert neural["half"].status_code == 200
    assert [token["text"] for token in neural["tokens"][0]] == ["<s>", "the", "wing", "</s>"]
    assert neural["info"]["max_input_length"] == 64


@pytest.mark.needs("torch", "transformers", "sentence_transformers", "peft")
def test_an_adapter_that_is_replaced_while_in_use_disturbs_nothing_and_is_taken_in(neural):
    before, later = ([each.raw for each in neural[name].results] for name in ("live", "later"))
    for each in neural["while replaced"]:
        assert [one.raw for one in each.results] == pytest.approx(before, abs=1e-2)
    assert later == pytest.approx([doc.score for doc in neural["later in Python"]], abs=1e-2)  # `auto`: 16 bits
    assert later != pytest.approx(before, abs=1e-2)


@pytest.mark.needs("torch", "transformers", "sentence_transformers")
def test_vectors_are_those_of_the_encoder(neural):
    import numpy as np

    found = np.stack([np.frombuffer(vector, dtype="<f4") for vector in neural["vectors"]])
    np.testing.assert_allclose(found, neural["vectors in Python"], atol=1e-5)


@pytest.mark.needs("torch", "transformers")
def test_what_a_tiny_model_writes_is_told_as_in_python(tmp_path):
    from tiny_scorers import write_chat_lm

    from rerank import Reranker
    from rerank.runtime import Runtime

    write_chat_lm(tmp_path / "lm")
    engine = f"{{causal_lm: {{model: {tmp_path / 'lm'}, dtype: float32, sampling: {{max_tokens: 6}}}}}}"
    stages = {
        "alone": f"{{rerank: {{engine: {engine}, prompt: rank1, k: null}}}}",
        "after another": f"{{cut: 3}}, {{rerank: {{engine: {engine}, prompt: pick-reasoning, rule: setwise}}}}",
    }
    models = []
    for name, text in stages.items():
        path = tmp_path / f"{name}.yaml"
        path.write_text(f"stages: [{text}]\n", encoding="utf-8")
        models.append(ServedModel(str(path), name.replace(" ", "-")))
    texts = TEXTS[:5]
    found: dict[str, Any] = {}

    async def main() -> None:
        settings = Settings(models=tuple(models), home=str(tmp_path / "home"), device="cpu", threads=1)
        service = Service(settings, patience=SLOW_START)
        await service.open()
        try:
            for model in models:
                job = RerankJob(QUERY, texts, model.name)
                both = (service.rerank(each, "c") for each in (job, replace(job, explain=True)))
                found[model.name] = await asyncio.gather(*both)
        finally:
            await service.close()

    asyncio.run(main())
    with Runtime(tmp_path / "home", device="cpu", threads=1, progress=False, cache=False) as runtime:
        for model in models:
            silent, told = found[model.name]
            expected = Reranker(model.model, runtime=runtime).rank(QUERY, texts, explain=True)
            assert silent.reasoning is None
            assert told.results == silent.results
            assert [each.raw for each in told.results] == pytest.approx([doc.score for doc in expected], abs=1e-5)
            wanted = [(each.documents, each.text.strip()) for each in expected.reasoning]
            assert [(each.documents, each.text) for each in told.reasoning] == wanted
            assert any(text for _, text in wanted)


def test_no_more_is_told_of_a_text_than_a_person_reads():
    from rerank.serve.worker import MOST_WRITTEN, _cut

    assert _cut("  so \n") == "so"
    assert _cut("x" * MOST_WRITTEN) == "x" * MOST_WRITTEN
    assert _cut("x" * 10**6) == "x" * MOST_WRITTEN + " …"


# -- searching ------------------------------------------------------------


def test_a_pipeline_with_an_index_searches_and_reranks(tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"_id": "a", "text": "rain falls"}\n{"_id": "b", "text": "snow falls"}\n', encoding="utf-8")

    async def main() -> None:
        service = Service(Settings(models=(ServedModel("bm25"),), data=str(corpus)))
        await service.open()
        try:
            found = await asyncio.gather(*(service.search(None, [text], 5) for text in ("rain", "snow", "falls")))
            assert [[hit["id"] for hit in each.lists[0]["hits"]] for each in found] == [["a"], ["b"], ["a", "b"]]
            assert service.queue.batches == 1
            assert found[0].lists[0]["hits"][0]["text"] == "rain falls"
        finally:
            await service.close()

    asyncio.run(main())


# -- death ------------------------------------------------------------


def test_a_killed_worker_is_replaced_and_nothing_accepted_is_lost(tmp_path):
    model = fake_pipeline(tmp_path, "faked", "pointwise")

    async def main() -> None:
        service = Service(Settings(models=(model,)), patience=QUICK)
        await service.open()
        try:
            expected = await asked(service)
            for _ in range(2):
                tasks = [asyncio.ensure_future(asked(service)) for _ in range(20)]
                await asyncio.sleep(0)
                os.kill(service.supervisor.worker.pid, signal.SIGKILL)
                found = await asyncio.gather(*tasks)
                assert all(each.results == expected.results for each in found)
            assert service.supervisor.restarts == 2
        finally:
            await service.close()

    asyncio.run(main())


def test_a_stopped_worker_is_noticed_and_replaced(tmp_path):
    model = fake_pipeline(tmp_path, "faked", "pointwise")

    async def main() -> None:
        service = Service(Settings(models=(model,)), patience=Patience(0.05, 0.5))
        await service.open()
        try:
            os.kill(service.supervisor.worker.pid, signal.SIGSTOP)
            assert (await asked(service)).results
            assert service.supervisor.restarts == 1
        finally:
            await service.close()

    asyncio.run(main())


def test_a_model_that_does_not_load_is_an_error_at_start(tmp_path):
    from rerank.errors import ConfigError

    path = tmp_path / "p.yaml"
    path.write_text("stages: [{rerank: {engine: {fake: {qrels: missing.tsv}}, k: null}}]\n", encoding="utf-8")

    async def main() -> None:
        service = Service(Settings(models=(ServedModel(str(path)),)))
        try:
            with pytest.raises(ConfigError, match=r"missing\.tsv"):
                await service.open()
        finally:
            await service.close()

    asyncio.run(main())


def test_a_failing_engine_is_told_without_its_words(tmp_path):
    model = fake_pipeline(tmp_path, "faked", "pointwise")

    async def main() -> None:
        service = Service(Settings(models=(model,)))
        await service.open()
        try:
            await service.supervisor.ask({"do": "unload", "target": "faked"})
            with pytest.raises(ApiError, match="the server's log says more"):
                await asked(service)
        finally:
            await service.close()

    asyncio.run(main())


def test_the_front_loads_no_torch(tmp_path):
    model = fake_pipeline(tmp_path, "faked", "pointwise")
    code = f"""
import asyncio, sys
import rerank.serve.server, rerank.cli
from rerank.serve.jobs import RerankJob
from rerank.serve.service import Service
from rerank.serve.settings import ServedModel, Settings

async def main():
    service = Service(Settings(models=(ServedModel({model.model!r}),)))
    await service.open()
    found = await service.rerank(RerankJob("q", ("a", "b")))
    assert len(found.results) == 2
    await service.close()

asyncio.run(main())
heavy = {{"torch", "transformers", "sentence_transformers", "faiss", "numba", "scipy", "pandas"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_free_memory_goes_back_to_the_system_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    from rerank.serve.worker import Trimming

    now, given = [100.0], []
    monkeypatch.setattr("rerank.serve.worker.time.monotonic", lambda: now[0])
    monkeypatch.setattr("rerank.serve.worker.ctypes.CDLL", lambda _: SimpleNamespace(malloc_trim=given.append))
    trim = Trimming()
    for seconds, times in ((1, 0), (20, 1), (1, 1), (20, 2)):
        now[0] += seconds
        trim()
        assert len(given) == times
    monkeypatch.setattr("rerank.serve.worker.ctypes.CDLL", lambda _: SimpleNamespace())
    now[0] += 20
    Trimming()()
