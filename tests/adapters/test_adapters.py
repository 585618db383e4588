"""Adapters: which layers, saved with their heads, merged and exported to the same scores, refused under other bases."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import write_model
from tiny_scorers import write_causal_lm, write_chat_lm, write_classifier
from tiny_training import PAIRS, recipe_text, write_collection

from rerank.adapters.artifact import adapter_facts, is_adapter
from rerank.adapters.export import describe, export_adapter, merge_adapter
from rerank.adapters.lora import LoRA
from rerank.adapters.targets import head_modules, linear_layers
from rerank.cli import main
from rerank.config import parse_pipeline
from rerank.data.load import load
from rerank.engines.bi_encoder import load_bi_encoder
from rerank.engines.causal_lm import load_causal_lm
from rerank.engines.cross_encoder import load_cross_encoder
from rerank.engines.encoder import load_encoder
from rerank.engines.engine import Asked
from rerank.engines.pairs import BiEncoderEngine
from rerank.errors import ArtifactError, ConfigError, ModelError
from rerank.prompts.prompt import load_prompt
from rerank.runtime import Runtime
from rerank.train.recipe import recipe_from
from rerank.train.training import train
from rerank.yamlfile import parse_yaml

pytestmark = [
    pytest.mark.needs("peft", "accelerate"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
]
BERT = {"query", "key", "value", "attention.output.dense"}


@pytest.fixture(scope="session")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_collection(tmp_path_factory.mktemp("collection") / "tiny")


@pytest.fixture
def runtime(own_home: Path) -> Runtime:
    return Runtime(own_home, threads=1, device="cpu", progress=False, cache=False)


def trained(model: Path, collection: Path, out: Path, runtime: Runtime, **options: str) -> Path:
    text = recipe_text(
        model,
        collection,
        evaluation=False,
        optimiser="learning_rate: 3.0e-2, groups: 6, steps: 3, warmup: 0.0",
        **options,
    )  # type: ignore[arg-type]
    return train(recipe_from(parse_yaml(text)).recipe, out, runtime).model


def classifier(folder: Path, kind: str) -> object:
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(write_classifier(folder, kind))


# -- layers ------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "attention", "mlp", "heads"),
    [
        ("bert", {*BERT, "pooler.dense"}, {"intermediate.dense", "output.dense", "pooler.dense"}, ["classifier"]),
        ("xlm-roberta", BERT, {"intermediate.dense", "output.dense"}, ["classifier"]),
        ("modernbert", {"attn.Wqkv", "attn.Wo"}, {"mlp.Wi", "mlp.Wo"}, ["head", "classifier"]),
        ("qwen3", {"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj"}, ["score"]),
    ],
)  # fmt: skip
def test_layers_are_found_by_what_they_do(
    tmp_path: Path, kind: str, attention: set[str], mlp: set[str], heads: list[str]
) -> None:
    model = classifier(tmp_path / "m", kind)
    assert head_modules(model) == heads
    found = {role: linear_layers(model, heads, role) for role in ("attention", "mlp", "all-linear")}  # type: ignore[arg-type]
    for role, ends in (("attention", attention), ("mlp", mlp)):
        assert all(any(name.endswith(end) for end in ends) for name in found[role])
        assert all(any(name.endswith(end) for name in found[role]) for end in ends)
    assert set(found["all-linear"]) == {*found["attention"], *found["mlp"]}
    assert not any(name.split(".")[0] in heads for name in found["all-linear"])


def test_a_pooler_that_nobody_asks_is_no_target(tmp_path: Path) -> None:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(write_classifier(tmp_path / "m", "bert"))
    assert any(name.startswith("pooler.") for name, _ in model.named_modules())
    assert not any("pooler" in name for name in linear_layers(model, (), "all-linear"))


def test_the_vocabulary_of_a_language_model_is_no_target(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(write_causal_lm(tmp_path / "m", "llama"))
    assert not any("lm_head" in name for name in linear_layers(model, (), "all-linear"))
    assert {name.rpartition(".")[2] for name in linear_layers(model, (), ("q_proj", "v_proj"))} == {"q_proj", "v_proj"}
    with pytest.raises(ConfigError, match=r"its own are called .*q_proj"):
        linear_layers(model, (), ("query",))


@pytest.mark.parametrize("options", [{}, {"rslora": True}, {"dora": True}, {"targets": "all-linear"}])
def test_a_new_adapter_changes_nothing(tmp_path: Path, options: dict[str, object]) -> None:
    model = classifier(tmp_path / "m", "bert").eval()  # type: ignore[attr-defined]
    ids = torch.tensor([[2, 17, 33, 3]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        wrapped = LoRA(rank=2, **options).wrap(model, ("classifier",), "my/base", 0).eval()  # type: ignore[arg-type]
        assert torch.allclose(wrapped(input_ids=ids).logits, before, atol=1e-6)
    learns = {name for name, weight in wrapped.named_parameters() if weight.requires_grad}
    assert all("lora_" in name or "modules_to_save" in name for name in learns)
    assert any("modules_to_save" in name for name in learns)


@pytest.mark.parametrize("options", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"targets": ()}])
def test_settings_without_sense_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        LoRA(**options)  # type: ignore[arg-type]


# -- folders ------------------------------------------------------------


@pytest.mark.parametrize("kind", ["encoder", "bert", "modernbert", "deberta"])
def test_a_merged_model_scores_the_same_everywhere(
    runtime: Runtime, collection: Path, tmp_path: Path, kind: str
) -> None:
    from sentence_transformers import CrossEncoder

    base = write_model(tmp_path / "base") if kind == "encoder" else write_classifier(tmp_path / "base", kind)
    adapter = trained(base, collection, tmp_path / "out", runtime, adapter="{lora: {rank: 4, dora: true}}")
    scores = load_cross_encoder(runtime, str(base), dtype="float32", adapter=str(adapter)).pairs(PAIRS)
    merge_adapter(adapter, tmp_path / "merged", runtime)
    merged = load_cross_encoder(runtime, str(tmp_path / "merged"), dtype="float32")
    assert merged.pairs(PAIRS) == pytest.approx(scores, abs=1e-5)
    library = CrossEncoder(str(tmp_path / "merged"), device="cpu", max_length=merged.limit)
    assert library.predict(PAIRS, show_progress_bar=False) == pytest.approx(scores, abs=1e-5)


def test_a_merged_language_model_answers_the_same(runtime: Runtime, collection: Path, tmp_path: Path) -> None:
    base = write_chat_lm(tmp_path / "base")
    adapter = trained(base, collection, tmp_path / "out", runtime, engine="causal_lm", more="  prompt: yes-no")
    merge_adapter(adapter, tmp_path / "merged", runtime)
    before = load_causal_lm(runtime, str(base), dtype="float32", adapter=str(adapter))
    after = load_causal_lm(runtime, str(tmp_path / "merged"), dtype="float32")
    asked = [load_prompt("yes-no").bind(before.tokenizer).request("lift", ("a wing",), 512)]
    assert np.asarray(after.choices(asked)) == pytest.approx(np.asarray(before.choices(asked)), abs=1e-5)


def test_a_merged_bi_encoder_is_read_by_all_that_read_its_base(
    runtime: Runtime, collection: Path, tmp_path: Path
) -> None:
    base = write_model(tmp_path / "base", prompts={"query": "query: ", "document": "passage: "})
    softmax = "  loss: {softmax: {temperature: 0.05}}"
    adapter = trained(base, collection, tmp_path / "out", runtime, engine="bi_encoder", more=softmax)
    scores = load_bi_encoder(runtime, str(base), dtype="float32", adapter=str(adapter)).pairs(PAIRS)
    merge_adapter(adapter, tmp_path / "merged", runtime)
    assert load_bi_encoder(runtime, str(tmp_path / "merged"), dtype="float32").pairs(PAIRS) == pytest.approx(
        scores, abs=1e-5
    )
    library = load_encoder(runtime, str(tmp_path / "merged"), dtype="float32")
    queries, documents = zip(*PAIRS, strict=True)
    products = (library.encode_queries(queries) * library.encode_documents(documents)).sum(axis=1)
    assert products == pytest.approx(scores, abs=1e-5)


def test_an_adapter_of_another_engine_is_refused(runtime: Runtime, collection: Path, tmp_path: Path) -> None:
    base = write_model(tmp_path / "base")
    adapter = trained(base, collection, tmp_path / "out", runtime)
    with pytest.raises(ModelError, match="was trained as a cross_encoder, and is given to the engine bi_encoder"):
        BiEncoderEngine(str(base), adapter=str(adapter)).asker(None, runtime)


def test_an_adapter_says_what_it_is(runtime: Runtime, collection: Path, tmp_path: Path) -> None:
    base = write_model(tmp_path / "base")
    adapter = trained(base, collection, tmp_path / "out", runtime)
    facts = adapter_facts(adapter)
    assert facts is not None and is_adapter(adapter)
    assert (facts.engine, facts.base, facts.heads, facts.step) == ("cross_encoder", str(base), ("classifier",), 3)
    assert recipe_from(parse_yaml(facts.recipe)).recipe.adapter == LoRA(rank=4, alpha=8.0, dropout=0.1)
    assert {path.stat().st_mode & 0o777 for path in adapter.iterdir()} == {0o644}
    shown = describe(adapter)
    assert "cross_encoder" in shown and "classifier.weight" in shown and facts.base_fingerprint in shown


def test_an_exported_adapter_is_pefts_own_folder(runtime: Runtime, collection: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    base = write_classifier(tmp_path / "base", "bert")
    adapter = trained(base, collection, tmp_path / "out", runtime)
    export_adapter(adapter, tmp_path / "shared")
    assert not (tmp_path / "shared" / "manifest.json").exists()
    from transformers import AutoModelForSequenceClassification

    plain = AutoModelForSequenceClassification.from_pretrained(base)
    stock = PeftModel.from_pretrained(plain, str(tmp_path / "shared")).eval()
    ours = load_cross_encoder(runtime, str(base), dtype="float32", adapter=str(adapter))
    inputs = ours.tokenizer("sun", "moon", return_tensors="pt")
    with torch.no_grad():
        expected = stock(**inputs).logits[0, 0].item()
    assert ours.pairs([("sun", "moon")])[0] == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ArtifactError, match="has files in it"):
        export_adapter(adapter, tmp_path / "shared")


def test_another_base_of_the_same_shape_is_refused_unless_forced(
    runtime: Runtime, collection: Path, tmp_path: Path
) -> None:
    base, other = (write_classifier(tmp_path / name, "bert", seed=i) for i, name in enumerate(("base", "other")))
    adapter = trained(base, collection, tmp_path / "out", runtime)
    data = load(collection, "dev", runtime=runtime)

    def ranked(model: Path, more: str = "") -> None:
        engine = f"{{cross_encoder: {{model: {model}, dtype: float32, adapter: {adapter}{more}}}}}"
        runtime.run(parse_pipeline(f"stages: [{{bm25: {{k: 3}}}}, {{rerank: {{engine: {engine}}}}}]"), data)

    ranked(base)
    ranked(other, ", force_adapter: true")
    with pytest.raises(ModelError, match=r"was trained on .*base.*, but .*other.* has"):
        ranked(other)
    with pytest.raises(ModelError, match="other weights give other scores"):
        merge_adapter(adapter, tmp_path / "merged", runtime, base=str(other))
    merge_adapter(adapter, tmp_path / "merged", runtime, base=str(other), force=True)


def test_another_prompt_is_refused_unless_forced(runtime: Runtime, collection: Path, tmp_path: Path) -> None:
    base = write_chat_lm(tmp_path / "base")
    adapter = trained(base, collection, tmp_path / "out", runtime, engine="causal_lm", more="  prompt: yes-no")
    data = load(collection, "dev", runtime=runtime)

    def ranked(prompt: str, more: str = "") -> None:
        engine = f"{{causal_lm: {{model: {base}, dtype: float32, max_tokens: 512, adapter: {adapter}{more}}}}}"
        stage = f"{{rerank: {{engine: {engine}, prompt: {prompt}}}}}"
        runtime.run(parse_pipeline(f"stages: [{{bm25: {{k: 2}}}}, {stage}]"), data)

    ranked("yes-no")
    ranked("graded", ", force_adapter: true")
    with pytest.raises(ModelError, match=r"was trained with the prompt 'yes-no' .*asked by 'graded'"):
        ranked("graded")


def test_a_name_of_an_adapter_is_enough_to_rerank(runtime: Runtime, collection: Path, tmp_path: Path) -> None:
    from rerank.engines.pairs import CrossEncoderEngine
    from rerank.engines.prompted import CausalLMEngine
    from rerank.reranking import Rerank
    from rerank.stage_for import stage_for

    base, chat = write_model(tmp_path / "base"), write_chat_lm(tmp_path / "chat")
    pairs = trained(base, collection, tmp_path / "pairs", runtime)
    labels = trained(chat, collection, tmp_path / "labels", runtime, engine="causal_lm", more="  prompt: yes-no")
    assert stage_for(str(pairs)) == Rerank(CrossEncoderEngine(str(base), adapter=str(pairs)), k=None)
    assert stage_for(str(labels)) == Rerank(CausalLMEngine(str(chat), adapter=str(labels)), prompt="yes-no", k=None)


def test_an_adapter_is_used_and_merged_on_the_commit_that_it_was_trained_on(
    runtime: Runtime, collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rerank.engines.pairs import BiEncoderEngine
    from rerank.models import resolve
    from rerank.reranking import Rerank
    from rerank.stage_for import stage_for

    base, asked = write_model(tmp_path / "base"), []

    def download(name: str, revision: str | None, **_: bool) -> tuple[Path, str]:
        asked.append(revision)
        return base, "c0ffee"

    monkeypatch.setattr(resolve, "download", download)
    softmax = "  loss: {softmax: {temperature: 0.05}}"
    adapter = trained("org/base", collection, tmp_path / "out", runtime, engine="bi_encoder", more=softmax)
    assert set(asked) == {None}
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "bi_encoder: {model: org/base, revision: c0ffee, adapter: path/to/adapter}" in card
    asked.clear()
    engine = BiEncoderEngine("org/base", revision="c0ffee", adapter=str(adapter))
    assert stage_for(str(adapter)) == Rerank(engine, k=None)
    merge_adapter(adapter, tmp_path / "merged", runtime)
    assert asked and set(asked) == {"c0ffee"}


def test_an_adapter_reads_as_many_tokens_as_it_was_trained_with(
    runtime: Runtime, collection: Path, tmp_path: Path
) -> None:
    from rerank.engines.pairs import CrossEncoderEngine
    from rerank.engines.prompted import CausalLMEngine

    base, chat = write_model(tmp_path / "base"), write_chat_lm(tmp_path / "chat")
    pairs = trained(base, collection, tmp_path / "pairs", runtime, more="  max_tokens: 12")
    labels = trained(
        chat, collection, tmp_path / "labels", runtime, engine="causal_lm", more="  prompt: yes-no\n  max_tokens: 190"
    )
    words = "lift " * 200
    asked = [Asked("q", "wing", ("d",), (words,))]
    for given, most in ((None, 12), (9, 9), (20, 20)):
        engine = CrossEncoderEngine(str(base), max_tokens=given, adapter=str(pairs))
        with runtime.counting() as counts:
            engine.asker(None, runtime).ask(asked, runtime)
        assert counts["tokens"] == most
    for given, most in ((4096, 190), (170, 170)):
        engine = CausalLMEngine(str(chat), max_tokens=given, adapter=str(labels))
        with runtime.counting() as counts:
            engine.asker("yes-no", runtime).ask(asked, runtime)
        assert most - 8 <= counts["tokens"] <= most


def test_the_command_line_shows_merges_and_exports(
    runtime: Runtime, collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write_model(tmp_path / "base")
    adapter = trained(base, collection, tmp_path / "out", runtime)
    assert main(["adapters", "show", str(adapter)]) == 0
    assert json.dumps({"lora": {"rank": 4, "alpha": 8.0, "dropout": 0.1}}) in capsys.readouterr().out
    assert main(["adapters", "merge", str(adapter), "--out", str(tmp_path / "merged")]) == 0
    assert main(["adapters", "export", str(adapter), "--out", str(tmp_path / "shared")]) == 0
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    assert (tmp_path / "shared" / "adapter_model.safetensors").is_file()
    assert main(["adapters", "show", str(tmp_path)]) == 2
    assert "there is no" in capsys.readouterr().err
