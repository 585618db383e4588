"""What a model's files say of how it reranks; no weights are needed to tell."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from rerank import (
    CausalLMEngine,
    CrossEncoderEngine,
    Listwise,
    Pairwise,
    Pointwise,
    RemoteEngine,
    Rerank,
    Rescore,
    Setwise,
)
from rerank.errors import ConfigError, ModelError, UnknownNameError
from rerank.prompts.prompt import imported_folder, list_prompts, load_prompt
from rerank.registry import lookup
from rerank.stage_for import rerank_stage, stage_for

CLASSIFIER = {"config.json": {"architectures": ["BertForSequenceClassification"]}}
DECODER = {
    "config.json": {"architectures": ["Qwen3ForCausalLM"]},
    "tokenizer_config.json": {"chat_template": "{{ x }}"},
}
ENCODER = {
    "config.json": {"architectures": ["BertModel"]},
    "modules.json": [
        {"type": "sentence_transformers.models.Transformer"},
        {"type": "sentence_transformers.models.Pooling"},
    ],
}


def write(folder: Path, files: dict[str, Any]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return str(folder)


def test_a_sequence_classifier_is_a_cross_encoder(tmp_path: Path) -> None:
    model = write(tmp_path / "model", CLASSIFIER)
    assert stage_for(model, dtype="float32") == Rerank(CrossEncoderEngine(model, dtype="float32"), k=None)


@pytest.mark.parametrize(
    "files",
    [
        {"config.json": {"architectures": ["HF_ColBERT"]}},
        {"config.json": {"architectures": ["BertModel"]}, "artifact.metadata": {"dim": 128}},
        {"config.json": {}, "config_sentence_transformers.json": {"query_prefix": "[Q] "}, "modules.json": []},
        {"config.json": {}, "config_sentence_transformers.json": {"model_type": "MultiVectorEncoder"}},
    ],
)
def test_a_colbert_in_any_layout_scores_by_late_interaction(tmp_path: Path, files: dict[str, Any]) -> None:
    model = write(tmp_path / "model", files)
    assert stage_for(model) == Rerank(lookup("late_interaction")(model), k=None)


@pytest.mark.parametrize("settings", [{}, {"model_type": "SentenceTransformer"}])
def test_an_encoder_scores_by_its_vectors(tmp_path: Path, settings: dict[str, str]) -> None:
    model = write(tmp_path / "model", {**ENCODER, "config_sentence_transformers.json": settings})
    assert stage_for(model) == Rescore(model)
    with pytest.raises(ConfigError, match="is an encoder, whose vectors alone score; leave rule and prompt out"):
        stage_for(model, rule="setwise", prompt="pick")


@pytest.mark.parametrize(
    ("name", "prompt", "rule"),
    [
        ("Qwen3-Reranker-0.6B", "qwen3-reranker", Pointwise()),
        ("bge-reranker-v2-gemma", "bge-gemma", Pointwise()),
        ("rank_zephyr_7b_v1_full", "rankzephyr", Listwise()),
        ("rank_vicuna_7b_v1", "rankzephyr", Listwise()),
        ("first_mistral", "first", Listwise()),
        ("rank1-7b", "rank1", Pointwise()),
        ("Diver-GroupRank-7B", "grouprank", lookup("groupwise")()),
    ],
)
def test_a_released_family_gets_its_prompt_and_rule(tmp_path: Path, name: str, prompt: str, rule: object) -> None:
    model = write(tmp_path / name, DECODER)
    assert stage_for(model) == Rerank(CausalLMEngine(model), rule, prompt, k=None)  # type: ignore[arg-type]


def test_a_family_is_known_by_the_name_in_the_configuration_too(tmp_path: Path) -> None:
    config = {**DECODER["config.json"], "_name_or_path": "castorini/first_mistral"}  # type: ignore[dict-item]
    stage = stage_for(write(tmp_path / "mine", {**DECODER, "config.json": config}))
    assert isinstance(stage, Rerank)
    assert (stage.prompt, stage.rule) == ("first", Listwise())


def test_an_encoder_decoder_of_the_monot5_kind_gets_its_prompt(tmp_path: Path) -> None:
    files = {"config.json": {"architectures": ["T5ForConditionalGeneration"]}}
    model = write(tmp_path / "monot5-base-msmarco", files)
    assert stage_for(model) == Rerank(lookup("encoder_decoder")(model), prompt="monot5", k=None)
    with pytest.raises(ConfigError, match="an encoder-decoder of no known family"):
        stage_for(write(tmp_path / "t5-small", files))


def test_a_lora_adapter_is_used_on_its_base_model(tmp_path: Path) -> None:
    base = write(tmp_path / "Qwen2.5-3B-Instruct", DECODER)
    adapter = write(
        tmp_path / "Rank-R1-3B-v0.1", {"adapter_config.json": {"base_model_name_or_path": base, "peft_type": "LORA"}}
    )
    assert stage_for(adapter) == Rerank(CausalLMEngine(base, adapter=adapter), Setwise(), "rank-r1", k=None)
    lost = write(tmp_path / "lost", {"adapter_config.json": {}})
    with pytest.raises(ModelError, match="names no base model"):
        stage_for(lost)


def test_any_other_language_model_is_asked_for_the_querys_likelihood_and_that_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = write(tmp_path / "model", DECODER)
    assert stage_for(model) == Rerank(CausalLMEngine(model), prompt="query-likelihood", k=None)
    (record,) = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert "no known family of rerankers, asked by the prompt 'query-likelihood'" in record.getMessage()


@pytest.mark.parametrize("name", ["setwise", "listwise", "groupwise", "pairwise", "tournament"])
def test_a_rule_without_a_prompt_gets_one_that_shows_enough(tmp_path: Path, name: str) -> None:
    stage = stage_for(write(tmp_path / "model", DECODER), rule=name)
    assert isinstance(stage, Rerank)
    most = load_prompt(str(stage.prompt)).most_documents
    assert stage.rule.label == name
    assert most is None or most >= stage.rule.largest_group


def test_a_given_prompt_brings_its_rule_and_a_given_rule_stands(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = write(tmp_path / "model", DECODER)
    assert stage_for(model, prompt="pair") == Rerank(CausalLMEngine(model), Pairwise(), "pair", k=None)
    setwise = stage_for(model, prompt="pick", rule="setwise: {k: 3}")
    assert setwise == Rerank(CausalLMEngine(model), Setwise(k=3), "pick", k=None)
    assert not caplog.records


def test_an_imported_prompt_with_the_published_wording_goes_before_the_packages_own(tmp_path: Path) -> None:
    imported_folder().mkdir(parents=True)
    text = (list_prompts()["rankzephyr"]).read_text(encoding="utf-8").replace("wording: own", "wording: imported")
    (imported_folder() / "rankzephyr-published.yaml").write_text(text, encoding="utf-8")
    stage = stage_for(write(tmp_path / "rank_zephyr_7b_v1_full", DECODER))
    assert isinstance(stage, Rerank)
    assert stage.prompt == "rankzephyr-published"


def test_the_usual_rule_of_every_prompt_shows_no_more_than_the_prompt() -> None:
    for name in list_prompts():
        prompt = load_prompt(name)
        if prompt.shows_documents:
            stage = rerank_stage(CausalLMEngine("m"), prompt=name)
            assert prompt.most_documents is None or stage.rule.largest_group <= prompt.most_documents, name


def test_an_address_is_a_server(tmp_path: Path) -> None:
    assert stage_for("http://localhost:8080/rerank") == Rerank(RemoteEngine("http://localhost:8080/rerank"), k=None)
    with pytest.raises(ConfigError, match="the engine remote takes no dtype; leave it out"):
        stage_for("https://localhost", dtype="float32")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.json": {"architectures": ["BertModel"]}}, "do not tell how it reranks .*config.json names BertModel"),
        ({}, "do not tell how it reranks"),
        ({"config_sentence_transformers.json": {"model_type": "SparseEncoder"}}, "is a sparse encoder"),
    ],
)
def test_what_does_not_rerank_is_told_apart(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        stage_for(write(tmp_path / "model", files))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    model = write(tmp_path / "model", {})
    (tmp_path / "model" / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match=r"config\.json is not JSON"):
        stage_for(model)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="no model is named 'minilm'; did you mean 'minilm-l6'"):
        stage_for("minilm")
    with pytest.raises(ModelError, match="there is no such folder"):
        stage_for("./nowhere")


def test_a_pipeline_file_says_everything_itself(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("stages: [{cut: 1}]", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"mine\.yaml is a pipeline, which says everything itself; leave rule out"):
        stage_for(str(tmp_path / "mine.yaml"), rule="setwise")
