"""Adapters on a base that is rounded to 4 or 8 bits a weight."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import write_model
from tiny_scorers import write_classifier
from tiny_training import PAIRS, recipe_text

from rerank.adapters.artifact import adapter_facts
from rerank.adapters.export import describe, merge_adapter
from rerank.engines.causal_lm import load_causal_lm
from rerank.engines.cross_encoder import load_cross_encoder
from rerank.errors import ConfigError, MissingExtraError
from rerank.prompts.prompt import load_prompt
from rerank.runtime import Runtime
from rerank.train.fitting import checkpoints, read_log
from rerank.train.recipe import Recipe, recipe_from
from rerank.train.students import load_student
from rerank.train.training import train
from rerank.yamlfile import parse_yaml

pytestmark = [
    pytest.mark.needs("peft", "accelerate"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
]
rounds = pytest.mark.needs("bitsandbytes")
ALL_LINEAR = "{lora: {rank: 4, alpha: 8, dropout: 0.0, targets: all-linear}}"
OPTIMISER = "learning_rate: 1.0e-2, groups: 12, steps: 3, warmup: 0.0"


def recipe(model: Path, collection: Path, more: str, **options: Any) -> Recipe:
    options = {"adapter": ALL_LINEAR, "evaluation": False, "optimiser": OPTIMISER, **options}
    return recipe_from(parse_yaml(recipe_text(model, collection, more=f"  dropout: 0.0\n{more}", **options))).recipe


@rounds
@pytest.mark.parametrize(("kind", "close"), [("nf4", 1e-4), ("int8", 0.2)])
def test_a_language_model_is_trained_and_merges_into_what_was_trained(
    runtime: Runtime, collection: Path, chat: Path, tmp_path: Path, kind: str, close: float
) -> None:
    """LLM.int8() rounds the inputs of layers too, which the merged model does not."""
    import torch

    text = f"  prompt: yes-no\n  max_tokens: 1024\n  quantise: {kind}\n"
    made = recipe(chat, collection, text, engine="causal_lm")
    before = made.student(runtime)
    assert all("lora_" in name for name in before.weights())
    assert before.n_weights()[1] == 47392 + before.n_weights()[0]
    trained = train(made, tmp_path / "out", runtime)
    losses = [line["loss"] for line in read_log(tmp_path / "out" / "metrics.jsonl")]
    assert losses[-1] < losses[0]
    after = made.student(runtime)
    after.load_weights(checkpoints(tmp_path / "out")[-1] / "weights.safetensors")
    frozen = {name: weight for name, weight in after.trained.named_parameters() if not weight.requires_grad}
    for name, weight in before.trained.named_parameters():
        assert weight.requires_grad or torch.equal(weight, frozen[name])
    assert {str(weight.dtype) for weight in frozen.values()} > {"torch.uint8" if kind == "nf4" else "torch.int8"}
    bound = load_prompt("yes-no").bind(after.scorer.tokenizer)
    asked = [bound.request(query, (document,), 1024) for query, document in PAIRS]

    def answers(scorer: Any) -> Any:
        return np.array(scorer.choices(asked))

    with after.resting():
        expected = answers(after.scorer)
    options = {"method": made.adapter, "precision": "float32", "quantise": kind, "dropout": 0.0, "seed": 0}
    options |= {"checkpointing": False, "freeze_embeddings": True, "max_tokens": 1024, "batch_tokens": None}
    again = load_student(made.engine, runtime, "yes-no", start=trained.model, **options)
    with again.resting():
        assert answers(again.scorer) == pytest.approx(expected, abs=1e-6)
    merge_adapter(trained.model, tmp_path / "merged", runtime)
    assert "quantization" not in (tmp_path / "merged" / "config.json").read_text(encoding="utf-8")
    merged = load_causal_lm(runtime, str(tmp_path / "merged"), dtype="float32")
    assert answers(merged) == pytest.approx(expected, abs=close)
    whole = load_causal_lm(runtime, str(chat), dtype="float32", adapter=str(trained.model))
    assert not np.allclose(answers(whole), expected, atol=1e-3)
    facts = adapter_facts(trained.model)
    assert facts is not None and facts.quantised == kind
    assert f"base rounded to   {kind}" in describe(trained.model)
    assert f"its layers rounded to {kind}" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


@rounds
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["bert", "modernbert", "qwen3"])
def test_heads_and_poolers_of_cross_encoders_are_not_rounded(
    runtime: Runtime, collection: Path, tmp_path: Path, family: str, precision: str
) -> None:
    base = write_model(tmp_path / "base") if family == "bert" else write_classifier(tmp_path / "base", family)
    made = recipe(base, collection, "  quantise: nf4\n", optimiser="learning_rate: 1.0e-2, groups: 4, steps: 2")
    made = recipe_from(parse_yaml(made.to_yaml().replace("precision: float32", f"precision: {precision}"))).recipe
    trained = train(made, tmp_path / "out", runtime)
    student = made.student(runtime)
    student.load_weights(checkpoints(tmp_path / "out")[-1] / "weights.safetensors")
    types = {name: str(weight.dtype) for name, weight in student.scorer.model.named_parameters()}
    assert {kind for name, kind in types.items() if name.partition(".")[0] in student.heads} == {"torch.float32"}
    assert {kind for name, kind in types.items() if "pooler" in name} <= {"torch.float32"}
    with student.resting():
        expected = student.scorer.pairs(PAIRS)
    merge_adapter(trained.model, tmp_path / "merged", runtime)
    merged = load_cross_encoder(runtime, str(tmp_path / "merged"), dtype="float32")
    assert merged.pairs(PAIRS) == pytest.approx(expected, abs=1e-5 if precision == "float32" else 0.1)


@rounds
def test_answers_are_written_and_learnt_from_on_a_rounded_base(
    runtime: Runtime, collection: Path, chat: Path, tmp_path: Path
) -> None:
    text = "  prompt: short-grades\n  max_tokens: 1536\n  max_new_tokens: 6\n  completions: 4\n  quantise: nf4\n"
    optimiser = "learning_rate: 1.0e-2, groups: 2, steps: 2"
    made = recipe(chat, collection, text, kind="grpo", engine="causal_lm", optimiser=optimiser)
    assert train(made, tmp_path / "out", runtime).fitted.steps == 2


def test_rounded_weights_are_not_trained_themselves(collection: Path, chat: Path) -> None:
    with pytest.raises(ConfigError, match="quantise is nf4, but adapter is null: rounded weights cannot be trained"):
        recipe(chat, collection, "  quantise: nf4\n", adapter="null")
    with pytest.raises(ConfigError, match="quantise: expected 'nf4' or 'int8'; got 'nf3'"):
        recipe(chat, collection, "  quantise: nf3\n")


def test_without_bitsandbytes_the_extra_is_named(
    runtime: Runtime, chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before groups are drawn: there is no such data."""
    find = importlib.util.find_spec
    made = recipe(chat, tmp_path / "data", "  prompt: yes-no\n  quantise: nf4\n", engine="causal_lm")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    with pytest.raises(MissingExtraError, match=r"a base in nf4 needs .*'bitsandbytes'.*rerank-pipelines\[quantise\]"):
        train(made, tmp_path / "out", runtime)
