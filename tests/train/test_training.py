"""Training: from a recipe's file to an adapter that engines load, for every recipe, on tiny models."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_scorers import write_classifier
from tiny_training import PAIRS, recipe_text, train_apart

from rerank.adapters.artifact import adapter_facts
from rerank.engines.bi_encoder import load_bi_encoder
from rerank.engines.causal_lm import load_causal_lm
from rerank.engines.cross_encoder import load_cross_encoder
from rerank.engines.engine import Asked
from rerank.engines.language_model import Sampling
from rerank.engines.pairs import BiEncoderEngine
from rerank.errors import ArtifactError, ConfigError, DataError, ModelError
from rerank.prompts.prompt import load_prompt
from rerank.runtime import Runtime
from rerank.train.contrastive import Contrastive
from rerank.train.fitting import Job, checkpoints, order_of_groups, read_log
from rerank.train.groups import TrainingGroup
from rerank.train.processes import Processes
from rerank.train.recipe import Recipe, Step, load_recipe, recipe_from
from rerank.train.sft import SFT
from rerank.train.training import Trained, train
from rerank.yamlfile import parse_yaml

pytestmark = [
    pytest.mark.needs("peft", "accelerate"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
]


def recipe(text: str) -> Recipe:
    return recipe_from(parse_yaml(text)).recipe


def run(text: str, out: Path, runtime: Runtime) -> Trained:
    return train(recipe(text), out, runtime)


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in read_log(out / "metrics.jsonl") if "loss" in line]


def weights(out: Path) -> dict[str, Any]:
    return load_file(next(out.glob("*/*.safetensors")))


def equal(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# -- what training leaves ------------------------------------------------------------


def test_a_cross_encoder_from_an_encoder_is_saved_with_its_head_and_loads_with_the_same_scores(
    runtime: Runtime, collection: Path, encoder: Path, tmp_path: Path
) -> None:
    made = recipe(recipe_text(encoder, collection))
    trained = train(made, tmp_path / "out", runtime)
    student = made.student(runtime)
    best = checkpoints(tmp_path / "out")
    student.load_weights(
        next(p for p in best if p.name == f"step-{trained.fitted.best_step:07d}") / "weights.safetensors"
    )
    with student.resting():
        expected = student.scorer.pairs(PAIRS)
    loaded = load_cross_encoder(runtime, str(encoder), dtype="float32", adapter=str(trained.model))
    assert loaded.pairs(PAIRS) == pytest.approx(expected, abs=1e-6)
    assert loaded.path == "packed"
    assert loaded.adapter is not None and "classifier.weight" in loaded.adapter.replaced
    told = adapter_facts(trained.model)
    assert told is not None and "data: tiny" in told.recipe and str(collection) not in told.recipe
    config = json.loads((trained.model / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["target_modules"] == sorted(config["target_modules"])
    assert losses(tmp_path / "out")[-1] < losses(tmp_path / "out")[0]


@pytest.mark.parametrize("engine", ["cross_encoder", "bi_encoder"])
def test_training_goes_on_from_an_adapter(
    runtime: Runtime, collection: Path, encoder: Path, tmp_path: Path, engine: str
) -> None:
    text = recipe_text(encoder, collection, engine=engine, evaluation=False)
    first = run(text, tmp_path / "first", runtime)
    more = f"  start: {first.model}"
    hardly = "learning_rate: 1.0e-12, groups: 4, steps: 1"
    again = run(
        recipe_text(encoder, collection, engine=engine, evaluation=False, more=more, optimiser=hardly),
        tmp_path / "again",
        runtime,
    )
    told = adapter_facts(again.model)
    assert told is not None and "start: first/adapter" in told.recipe and str(tmp_path) not in told.recipe
    found, before = weights(again.model.parent), weights(first.model.parent)
    assert found.keys() == before.keys()
    assert all(torch.allclose(found[name], before[name], atol=1e-9) for name in found)
    with pytest.raises(ConfigError, match=r"is no adapter: there is no adapter_config\.json"):
        run(text + "\n  start: /nowhere\n", tmp_path / "other", runtime)
    with pytest.raises(ConfigError, match="but adapter is null"):
        recipe(recipe_text(encoder, collection, engine=engine, adapter="null", more=more))


def test_a_bi_encoder_is_trained_and_loads_with_the_same_scores(
    runtime: Runtime, collection: Path, encoder: Path, tmp_path: Path
) -> None:
    text = recipe_text(
        encoder, collection, engine="bi_encoder", more="  loss: {softmax: {temperature: 0.05}}\n  max_tokens: 16",
        adapter="{lora: {rank: 4, dropout: 0.0, targets: all-linear}}",
    )  # fmt: skip
    made = recipe(text)
    trained = train(made, tmp_path / "out", runtime)
    student = made.student(runtime)
    student.load_weights(
        next(p for p in checkpoints(tmp_path / "out") if p.name == f"step-{trained.fitted.best_step:07d}")
        / "weights.safetensors"
    )
    asker = student.asker()
    asked = [Asked("q", query, ("d",), (document,)) for query, document in PAIRS]
    with student.resting():
        expected = asker.ask(asked, runtime)
    engine = BiEncoderEngine(str(encoder), dtype="float32", adapter=str(trained.model))
    loaded = engine.asker(None, runtime)
    found = np.array(loaded.ask(asked, runtime))
    assert found == pytest.approx(np.array(expected), abs=1e-6)
    plain = BiEncoderEngine(str(encoder), dtype="float32", max_tokens=16).asker(None, runtime)
    assert np.abs(np.array(plain.ask(asked, runtime)) - found).max() > 1e-4
    assert losses(tmp_path / "out")[-1] < losses(tmp_path / "out")[0]


def test_a_query_is_compared_with_the_documents_of_others(
    runtime: Runtime, collection: Path, encoder: Path, tmp_path: Path
) -> None:
    more = "  loss: {softmax: {temperature: 0.5}}\n  in_batch: true"
    text = recipe_text(encoder, collection, engine="bi_encoder", evaluation=False, more=more)
    made = recipe(text)
    assert isinstance(made, Contrastive)
    student = made.student(runtime)
    student.trained.eval()
    groups = [
        TrainingGroup("q1", "lift", ("a", "b"), ("wing", "moon"), (1.0, 0.0)),
        TrainingGroup("q2", "heat", ("b", "c"), ("moon", "sun"), (0.0, 2.0)),
    ]
    (batch,) = made.batches(student, Step(groups))
    assert made.batches(student, Step([])) == []
    with torch.no_grad():
        total, count = made.total(student, batch)
    asked = [Asked(q, q, ("d",), (d,)) for q in ("lift", "heat") for d in ("wing", "moon", "sun")]
    with student.resting():
        lift, heat = np.array(student.asker().ask(asked, runtime)).reshape(2, 3) / 0.5
    # q1 is shown b once, though q2 has it too; q2 is shown a, b and c.
    expected = -(lift[0] - np.logaddexp.reduce(lift)) - (heat[2] - np.logaddexp.reduce(heat))
    assert count == 2 and total.item() == pytest.approx(expected, abs=1e-4)
    # What is shown to the same query elsewhere may be relevant to it.
    again = groups[1]._replace(qid="q1", query="lift")
    (batch,) = made.batches(student, Step([groups[0], again]))
    with torch.no_grad():
        total, _ = made.total(student, batch)
    expected = -(lift[0] - np.logaddexp(lift[0], lift[1])) - (lift[2] - np.logaddexp(lift[1], lift[2]))
    assert total.item() == pytest.approx(expected, abs=1e-4)
    # Nor does what is known to be relevant to it, or too like what is.
    (batch,) = made.batches(student, Step([groups[0]._replace(related=frozenset({"c", "z"})), groups[1]]))
    with torch.no_grad():
        total, _ = made.total(student, batch)
    expected = -(lift[0] - np.logaddexp(lift[0], lift[1])) - (heat[2] - np.logaddexp.reduce(heat))
    assert total.item() == pytest.approx(expected, abs=1e-4)
    trained = run(text, tmp_path / "out", runtime)
    assert trained.model.is_dir()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "cross_encoder"}, "would have to read each pair"),
        ({"engine": "bi_encoder", "kind": "distill", "groups": ", teacher: {pipeline: bm25}"}, "did not score"),
    ],
)
def test_only_a_bi_encoder_is_compared_in_the_batch(
    runtime: Runtime, collection: Path, encoder: Path, tmp_path: Path, options: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(recipe_text(encoder, collection, more="  in_batch: true", **options), tmp_path / "out", runtime)


def test_documents_of_others_are_compared_in_one_process(collection: Path, encoder: Path) -> None:
    made = recipe(recipe_text(encoder, collection, engine="bi_encoder", more="  in_batch: true"))
    made.check_before()
    with pytest.raises(ConfigError, match="in one process, and 2 were started"):
        made.check_before(Processes(1, 2))


def test_a_published_recipe_tells_no_folder(encoder: Path, collection: Path, tmp_path: Path) -> None:
    (tmp_path / "alice" / "adapter").mkdir(parents=True)
    made = recipe(recipe_text(encoder, collection, more=f"  start: {tmp_path}/alice/adapter"))
    assert str(tmp_path) in made.to_yaml() and str(encoder) in made.to_yaml()
    told = made.published("mine")
    assert all(f"{word}\n" in told for word in ("start: alice/adapter", f"cross_encoder: {encoder.name}", "data: tiny"))
    assert str(tmp_path) not in told and str(encoder.parent) not in told and str(collection.parent) not in told


def test_a_whole_bi_encoder_is_a_folder_that_its_library_reads(
    runtime: Runtime, collection: Path, encoder: Path, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    text = recipe_text(
        encoder, collection, engine="bi_encoder", adapter="null", evaluation=False,
        more="  loss: {softmax: {temperature: 0.05}}", optimiser="learning_rate: 1.0e-2, groups: 4, steps: 2",
    )  # fmt: skip
    trained = run(text, tmp_path / "out", runtime)
    queries, documents = zip(*PAIRS, strict=True)
    for folder, same in ((trained.model, True), (encoder, False)):
        library = SentenceTransformer(str(folder), device="cpu")
        expected = (
            library.encode_query(queries, normalize_embeddings=True)
            * library.encode_document(documents, normalize_embeddings=True)
        ).sum(axis=1)
        found = load_bi_encoder(runtime, str(trained.model), dtype="float32").pairs(PAIRS)
        assert np.allclose(found, expected, atol=1e-5) is same


@pytest.mark.parametrize(
    ("kind", "loss", "groups"),
    [
        ("contrastive", "loss: {lambda_loss: {}}", ""),
        ("contrastive", "loss: {bce: {threshold: 1}}", ""),
        ("contrastive", "loss: ranknet", ""),
        ("distill", "loss: {kl: {temperature: 2.0}}", ", teacher: {pipeline: bm25}"),
        ("distill", "loss: margin_mse", ", teacher: {pipeline: bm25}"),
    ],
)
def test_losses_fall(
    runtime: Runtime, collection: Path, encoder: Path, tmp_path: Path, kind: str, loss: str, groups: str
) -> None:
    text = recipe_text(
        encoder, collection, kind=kind, more=f"  {loss}", groups=groups, evaluation=False,
        optimiser="learning_rate: 1.0e-2, groups: 12, steps: 8, warmup: 0.0",
    )  # fmt: skip
    run(text, tmp_path / "out", runtime)
    found = losses(tmp_path / "out")
    assert min(found[-2:]) < found[0]


def test_what_a_teacher_taught_loads_with_the_same_scores(
    runtime: Runtime, collection: Path, encoder: Path, tmp_path: Path
) -> None:
    text = recipe_text(
        encoder, collection, kind="distill", more="  loss: margin_mse", groups=", teacher: {pipeline: bm25}",
        evaluation=False, optimiser="learning_rate: 1.0e-2, groups: 4, steps: 2",
    )  # fmt: skip
    trained = run(text, tmp_path / "out", runtime)
    student = recipe(text).student(runtime)
    student.load_weights(checkpoints(tmp_path / "out")[-1] / "weights.safetensors")
    with student.resting():
        expected = student.scorer.pairs(PAIRS)
    loaded = load_cross_encoder(runtime, str(encoder), dtype="float32", adapter=str(trained.model))
    assert loaded.pairs(PAIRS) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_a_model_that_learnt_to_write_loads_and_writes_the_same(
    runtime: Runtime, collection: Path, chat: Path, tmp_path: Path, kind: str
) -> None:
    more = "  prompt: short-grades\n  max_tokens: 1024" + ("\n  max_new_tokens: 8" if kind == "grpo" else "")
    text = recipe_text(
        chat, collection, kind=kind, engine="causal_lm", evaluation=False, more=more,
        optimiser="learning_rate: 1.0e-2, groups: 2, steps: 2, warmup: 0.0",
    )  # fmt: skip
    trained = run(text, tmp_path / "out", runtime)
    student = recipe(text).student(runtime)
    student.load_weights(checkpoints(tmp_path / "out")[-1] / "weights.safetensors")
    bound = load_prompt("short-grades").bind(student.scorer.tokenizer)
    asked = [bound.request("lift", ("a wing", "the moon"), 1000)]
    loaded = load_causal_lm(runtime, str(chat), dtype="float32", adapter=str(trained.model))
    with student.resting():
        expected = student.scorer.generate(asked, Sampling(max_tokens=8))
    assert loaded.generate(asked, Sampling(max_tokens=8)) == expected


@pytest.mark.parametrize("model_kind", ["xlm-roberta", "modernbert", "deberta", "qwen3"])
def test_classifiers_of_every_family_are_trained_and_load_again(
    runtime: Runtime, collection: Path, tmp_path: Path, model_kind: str
) -> None:
    base = write_classifier(tmp_path / "base", model_kind)
    before = load_cross_encoder(runtime, str(base), dtype="float32").pairs(PAIRS)
    optimiser = "learning_rate: 1.0e-2, groups: 4, steps: 2"
    trained = run(recipe_text(base, collection, evaluation=False, optimiser=optimiser), tmp_path / "out", runtime)
    loaded = load_cross_encoder(runtime, str(base), dtype="float32", adapter=str(trained.model))
    assert not np.allclose(loaded.pairs(PAIRS), before, atol=1e-3)
    assert set(checkpoint_names(tmp_path / "out")) >= {"lora", "modules_to_save"}


def checkpoint_names(out: Path) -> set[str]:
    names = load_file(checkpoints(out)[-1] / "weights.safetensors")
    return {part for name in names for part in ("lora", "modules_to_save") if part in name}


def test_without_an_adapter_all_weights_but_the_vocabulary_are_trained(
    runtime: Runtime, collection: Path, encoder: Path, tmp_path: Path
) -> None:
    from transformers import AutoModel

    text = recipe_text(encoder, collection, adapter="null", optimiser="learning_rate: 1.0e-3, groups: 4, steps: 2")
    trained = run(text, tmp_path / "out", runtime)
    before = AutoModel.from_pretrained(encoder).state_dict()
    after = AutoModel.from_pretrained(trained.model).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "embeddings.word_embeddings.weight" not in changed
    assert "encoder.layer.0.attention.self.query.weight" in changed
    assert len(load_cross_encoder(runtime, str(trained.model), dtype="float32").pairs(PAIRS)) == len(PAIRS)


@pytest.mark.parametrize("prompt", ["yes-no", "pick", "query-likelihood", "graded"])
def test_a_language_model_is_trained_by_its_labels_and_loads_under_its_prompt(
    runtime: Runtime, collection: Path, chat: Path, tmp_path: Path, prompt: str
) -> None:
    text = recipe_text(
        chat, collection, engine="causal_lm", evaluation=False, more=f"  prompt: {prompt}\n  max_tokens: 1024",
        optimiser="learning_rate: 1.0e-2, groups: 12, steps: 3, warmup: 0.0",
    )  # fmt: skip
    trained = run(text, tmp_path / "out", runtime)
    made = recipe(text).student(runtime)
    made.load_weights(checkpoints(tmp_path / "out")[-1] / "weights.safetensors")
    bound = load_prompt(prompt).bind(made.scorer.tokenizer)
    documents = ("a wing", "the moon") if bound.prompt.shows_many else ("a wing",)
    asked = [bound.request("lift", documents, 1024)]
    loaded = load_causal_lm(runtime, str(chat), dtype="float32", adapter=str(trained.model))
    verb = "likelihood" if prompt == "query-likelihood" else "choices"
    with made.resting():
        expected = getattr(made.scorer, verb)(asked)
    assert np.asarray(getattr(loaded, verb)(asked)) == pytest.approx(np.asarray(expected), abs=1e-5)
    assert losses(tmp_path / "out")[-1] < losses(tmp_path / "out")[0]


@pytest.mark.parametrize("prompt", ["rank-r1-sft", "order", "group-scores", "yes-no", "pick"])
def test_answers_are_learnt(runtime: Runtime, collection: Path, chat: Path, tmp_path: Path, prompt: str) -> None:
    text = recipe_text(
        chat, collection, kind="sft", engine="causal_lm", evaluation=False,
        more=f"  prompt: {prompt}\n  max_tokens: 1536",
        optimiser="learning_rate: 1.0e-2, groups: 12, steps: 3, warmup: 0.0",
    )  # fmt: skip
    run(text, tmp_path / "out", runtime)
    assert losses(tmp_path / "out")[-1] < losses(tmp_path / "out")[0]


def test_the_loss_of_an_answer_is_that_of_its_tokens_alone(runtime: Runtime, collection: Path, chat: Path) -> None:
    from rerank.train.causal_lm_student import CausalLMStudent
    from rerank.train.groups import build_groups

    made = recipe(
        recipe_text(chat, collection, kind="sft", engine="causal_lm", more="  prompt: order\n  max_tokens: 1536")
    )
    student = made.student(runtime)
    assert isinstance(student, CausalLMStudent)
    group = build_groups(made.groups, runtime)[0]
    student.trained.eval()
    total, count = made.total(student, made.batches(student, Step([group]))[0])
    answered = student.answers(group, 1.0, None)[0]
    ids = torch.tensor([[*answered.item.tokens.tolist(), answered.continuations[0][-1]]])
    with torch.no_grad():
        logits = student.scorer.model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    targets = torch.tensor(answered.continuations[0])
    expected = -logits[-len(targets) :].gather(1, targets[:, None]).sum()
    assert int(count) == len(targets)
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_groups_are_cut_into_prompts_of_the_sizes_drawn(runtime: Runtime, collection: Path, chat: Path) -> None:
    more = "  prompt: short-grades\n  max_tokens: 1536\n  cut_to: [1, 3, 4]"
    made = recipe(recipe_text(chat, collection, kind="sft", engine="causal_lm", more=more))
    assert isinstance(made, SFT)
    student = made.student(runtime)
    group = TrainingGroup("q", "lift", ("a", "b", "c", "d"), ("wing", "moon", "sun", "heat"), (0.0, 2.0, 0.0, 1.0))
    seen = {}
    for number in range(12):
        (batch,) = made.batches(student, Step([group], number))
        texts = [student.scorer.tokenizer.decode(each.continuations[0][:-1]) for each in batch.inputs]
        seen[len(batch.inputs), len(texts[0])] = [" ".join(text.split()) for text in texts]
        assert made.batches(student, Step([group], number))[0].tokens == batch.tokens
    # Grades are those of the whole group's scale, also where a part has no relevant document.
    assert sorted(seen.values(), key=len) == [["A0 B9 C0 D5"], ["A0 B9 C0", "A5"], ["A0", "A9", "A0", "A5"]]


def test_what_shows_one_document_cannot_be_cut(runtime: Runtime, collection: Path, chat: Path, tmp_path: Path) -> None:
    text = recipe_text(chat, collection, kind="sft", engine="causal_lm", more="  prompt: yes-no\n  cut_to: [1, 2]")
    with pytest.raises(ConfigError, match="one document at a time"):
        run(text, tmp_path / "out", runtime)
    with pytest.raises(ConfigError, match="compares documents; each prompt needs 2 or more"):
        run(text.replace("yes-no", "short-pick"), tmp_path / "out", runtime)
    with pytest.raises(ConfigError, match="1 document or more"):
        recipe(text.replace("cut_to: [1, 2]", "cut_to: [0]"))


# -- steps ------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        # A loss that only differences of scores matter to leaves a head's bias to rounding.
        ("contrastive", "loss: {bce: {threshold: 1}}"),
        ("sft", "prompt: group-scores\n  max_tokens: 1024"),
    ],
)
def test_a_step_is_the_same_however_it_is_cut(
    runtime: Runtime, collection: Path, encoder: Path, chat: Path, tmp_path: Path, kind: str, more: str
) -> None:
    found = []
    writes = kind == "sft"
    for i, tokens in enumerate((1, 64, 100_000)):
        text = recipe_text(
            chat if writes else encoder, collection, kind=kind, engine="causal_lm" if writes else "cross_encoder",
            evaluation=False, adapter="{lora: {rank: 4, dropout: 0.0}}", more=f"  dropout: 0.0\n  {more}",
            optimiser=f"learning_rate: 1.0e-3, groups: 8, steps: 3, batch_tokens: {tokens}",
        )  # fmt: skip
        run(text, tmp_path / str(i), runtime)
        found.append(weights(tmp_path / str(i)))
    for name, weight in found[0].items():
        for other in found[1:]:
            torch.testing.assert_close(other[name], weight, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("engine", ["cross_encoder", "causal_lm"])
def test_packed_and_padded_gradients_agree(
    runtime: Runtime, collection: Path, encoder: Path, chat: Path, engine: str
) -> None:
    from rerank.train.groups import build_groups

    lm = engine == "causal_lm"
    found = []
    for more, path in (("", "packed"), ("  checkpointing: true\n", "padded")):
        prompt = "  prompt: yes-no\n" if lm else ""
        adapter = "{lora: {rank: 4, dropout: 0.0, targets: all-linear}}"
        made = recipe(
            recipe_text(
                chat if lm else encoder,
                collection,
                engine=engine,
                adapter=adapter,
                more=f"  dropout: 0.0\n{more}{prompt}",
            )
        )
        groups = build_groups(made.groups, runtime)[:4]
        student = made.student(runtime)
        # What is new adds nothing yet, and half of it would get no gradient.
        torch.manual_seed(1)
        for weight in student.weights().values():
            torch.nn.init.normal_(weight, std=0.1)
        student.trained.train()
        for batch in made.batches(student, Step(groups)):
            made.total(student, batch)[0].backward()
        found.append({name: weight.grad for name, weight in student.weights().items()})
        assert student.scorer.path == path
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("options", ["", "dora: true, ", "targets: all-linear, "])
def test_in_16_bits_the_frozen_layers_are_rounded_and_what_is_trained_is_not(
    runtime: Runtime, collection: Path, encoder: Path, tmp_path: Path, options: str
) -> None:
    text = recipe_text(encoder, collection, adapter=f"{{lora: {{{options}rank: 4}}}}").replace("float32", "bfloat16")
    trained = run(text, tmp_path / "out", runtime)
    assert {weight.dtype for weight in weights(tmp_path / "out").values()} == {torch.float32}
    student = recipe(text).student(runtime)
    own = dict(student.scorer.model.named_parameters())
    rounded = {name for name, weight in own.items() if weight.dtype == torch.bfloat16}
    assert any("attention.self.query" in name for name in rounded)
    assert not any("pooler" in name or "classifier" in name or "embeddings" in name for name in rounded)
    assert losses(tmp_path / "out")[-1] < losses(tmp_path / "out")[0]
    loaded = load_cross_encoder(runtime, str(encoder), dtype="bfloat16", adapter=str(trained.model))
    assert np.isfinite(loaded.pairs(PAIRS)).all()


def test_every_epoch_has_each_group_once_in_another_order() -> None:
    order = order_of_groups(5, 12, seed=3)
    assert sorted(order[:5]) == sorted(order[5:10]) == list(range(5))
    assert order[:5] != order[5:10]


# -- going on ------------------------------------------------------------


def test_a_killed_run_goes_on_to_the_same_bits(
    runtime: Runtime, collection: Path, encoder: Path, tmp_path: Path, own_home: Path
) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(recipe_text(encoder, collection, optimiser="learning_rate: 1.0e-2, groups: 5, steps: 7"))
    train(load_recipe(path).recipe, tmp_path / "whole", runtime)
    assert train_apart(path, tmp_path / "killed", own_home, "step-0000004") == -signal.SIGKILL
    assert [each.name for each in checkpoints(tmp_path / "killed")][-1] == "step-0000002"
    assert train_apart(path, tmp_path / "killed", own_home) == 0
    assert equal(weights(tmp_path / "killed"), weights(tmp_path / "whole"))
    kept = ("step", "loss", "grad_norm", "eval_nDCG@10")
    logs = [
        [{k: v for k, v in line.items() if k in kept} for line in read_log(tmp_path / out / "metrics.jsonl")]
        for out in ("killed", "whole")
    ]
    assert logs[0] == logs[1]


def test_a_finished_run_is_given_back_and_another_recipe_is_refused(
    runtime: Runtime, collection: Path, encoder: Path, tmp_path: Path
) -> None:
    text = recipe_text(encoder, collection, evaluation=False, optimiser="groups: 4, steps: 2")
    first = run(text, tmp_path / "out", runtime)
    assert run(text, tmp_path / "out", runtime) == first
    with pytest.raises(ConfigError, match="another recipe"):
        run(text.replace("rank: 4", "rank: 2"), tmp_path / "out", runtime)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("keep me")
    with pytest.raises(ConfigError, match="has files in it"):
        run(text, tmp_path / "full", runtime)


# -- measured while it is trained ------------------------------------------------------------


def test_the_best_weights_are_kept_and_training_stops_when_they_get_no_better(
    runtime: Runtime, collection: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rerank.train.validation import Validator

    values = iter([0.1, 0.3, 0.2, 0.3, 0.9])
    monkeypatch.setattr(Validator, "__call__", lambda self: next(values))
    text = recipe_text(encoder, collection, every=1, optimiser="groups: 4, steps: 9").replace(
        "\n    every: 1", "\n    every: 1\n    patience: 2"
    )
    trained = run(text, tmp_path / "out", runtime)
    assert trained.fitted == (3, 1, 0.3, True)
    assert {path.name for path in checkpoints(tmp_path / "out")} == {"step-0000001", "step-0000003"}
    assert json.loads((trained.model / "manifest.json").read_text())["config"]["step"] == 1


def test_what_has_stopped_early_stays_stopped(
    runtime: Runtime, collection: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rerank.train import training
    from rerank.train.validation import Validator

    def killed(*given: Any) -> Path:
        raise KeyboardInterrupt

    values = iter([0.1, 0.3, 0.2, 0.3])
    monkeypatch.setattr(Validator, "__call__", lambda self: next(values))
    text = recipe_text(encoder, collection, every=1, optimiser="groups: 4, steps: 9")
    text = text.replace("\n    every: 1", "\n    every: 1\n    patience: 2")
    with monkeypatch.context() as patch:
        patch.setattr(training, "_save", killed)
        with pytest.raises(KeyboardInterrupt):
            run(text, tmp_path / "out", runtime)
    assert run(text, tmp_path / "out", runtime).fitted == (3, 1, 0.3, True)
    best = load_file(tmp_path / "out" / "checkpoints" / "step-0000001" / "weights.safetensors")
    saved = list(weights(tmp_path / "out").values())
    assert all(any(one.shape == other.shape and torch.equal(one, other) for other in saved) for one in best.values())


def test_where_training_helps_nothing_the_card_says_so_and_tells_the_measure_of_what_is_kept(
    runtime: Runtime, collection: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rerank.train.validation import Validator

    values = iter([0.5, 0.1, 0.3, 0.2])
    monkeypatch.setattr(Validator, "__call__", lambda self: next(values))
    text = recipe_text(encoder, collection, every=1, optimiser="groups: 4, steps: 3")
    assert run(text, tmp_path / "out", runtime).fitted == (3, 2, 0.3, False)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| 2 (kept) | 0.3000 |" in card and "No checkpoint is better than the weights before training" in card


def test_the_measure_is_that_of_the_saved_adapter(
    runtime: Runtime, collection: Path, encoder: Path, tmp_path: Path
) -> None:
    from rerank.config import parse_pipeline
    from rerank.data.load import load
    from rerank.evaluation.evaluation import evaluate_run

    trained = run(recipe_text(encoder, collection), tmp_path / "out", runtime)
    stages = f"""stages: [{{bm25: {{k: 10}}}}, {{rerank: {{engine: {{cross_encoder: {{model: {encoder}, dtype: float32,
        adapter: {trained.model}}}}}}}}}]"""
    data = load(collection, "dev", runtime=runtime)
    found = evaluate_run(runtime.run(parse_pipeline(stages), data), data, ["nDCG@10"])
    assert found.means["nDCG@10"] == pytest.approx(trained.fitted.best)


def test_the_first_stage_is_run_once(
    runtime: Runtime, collection: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rerank.retrieve.bm25 import BM25

    calls = []
    whole = BM25.transform
    monkeypatch.setattr(BM25, "transform", lambda self, *given: calls.append(1) or whole(self, *given))
    run(recipe_text(encoder, collection), tmp_path / "out", runtime)
    assert len(calls) == 2  # for negatives, and for what is measured


@pytest.mark.needs("tensorboard")
def test_a_tracker_is_told_what_the_log_tells(
    runtime: Runtime, collection: Path, encoder: Path, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(recipe_text(encoder, collection, more="  report_to: [tensorboard]"), tmp_path / "out", runtime)
    (events,) = (tmp_path / "out").rglob("events.out.tfevents.*")
    told = EventAccumulator(str(events))
    told.Reload()
    log = read_log(tmp_path / "out" / "metrics.jsonl")
    for name, field in (("train/loss", "loss"), ("eval/nDCG@10", "eval_nDCG@10")):
        expected = [(line["step"], line[field]) for line in log if field in line]
        found = [(event.step, event.value) for event in told.Scalars(name)]
        assert [step for step, _ in found] == [step for step, _ in expected]
        assert [value for _, value in found] == pytest.approx([value for _, value in expected], rel=1e-5)


def test_card_and_report_say_what_happened(runtime: Runtime, collection: Path, encoder: Path, tmp_path: Path) -> None:
    trained = run(recipe_text(encoder, collection), tmp_path / "out", runtime)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| {trained.fitted.best_step} (kept) | {trained.fitted.best:.4f} |" in card
    assert "library_name: peft" in card and "lora" in card and "12 groups" in card
    report = (tmp_path / "out" / "report.html").read_text()
    assert report.count("<svg") == 4 and "default-src 'none'" in report
    steps = [line["step"] for line in read_log(tmp_path / "out" / "metrics.jsonl") if "eval_nDCG@10" in line]
    assert steps == [0, 2, 4, 6]


# -- bad input ------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint(
    runtime: Runtime, collection: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rerank.train.contrastive import Contrastive

    calls = []
    whole = Contrastive.total

    def breaks(self: Any, student: Any, batch: Any) -> Any:
        total, count = whole(self, student, batch)
        calls.append(1)
        return (total * float("nan") if len(calls) > 3 else total), count

    monkeypatch.setattr(Contrastive, "total", breaks)
    text = recipe_text(encoder, collection, evaluation=False)
    with pytest.raises(
        ModelError, match=r"step 4: the loss is not a finite number; the last good checkpoint is .*step-0000002"
    ):
        run(text, tmp_path / "out", runtime)
    assert [path.name for path in checkpoints(tmp_path / "out")] == ["step-0000002"]


@pytest.mark.parametrize("clip", [1.0, 0.0])
def test_a_gradient_that_is_no_number_stops(
    runtime: Runtime, collection: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: float
) -> None:
    whole = Contrastive.total

    def breaks(self: Any, student: Any, batch: Any) -> Any:
        total, count = whole(self, student, batch)
        return total + (total * 0).sqrt(), count

    monkeypatch.setattr(Contrastive, "total", breaks)
    text = recipe_text(encoder, collection, evaluation=False, optimiser=f"groups: 4, steps: 3, clip: {clip}")
    with pytest.raises(ModelError, match="step 1: the gradient is not a finite number; there is no checkpoint yet"):
        run(text, tmp_path / "out", runtime)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_a_log_that_cannot_be_written_is_told(
    runtime: Runtime, collection: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Job, "log", Path("/dev/full"))
    with pytest.raises(
        ArtifactError, match=r"/dev/full: cannot be written \(No space left.*there is no checkpoint yet"
    ):
        run(recipe_text(encoder, collection, evaluation=False), tmp_path / "out", runtime)


def test_a_full_disk_is_told_and_the_last_checkpoint_kept(
    runtime: Runtime, collection: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rerank.train.student import Student

    whole = Student.save_weights

    def full(self: Any, path: Path) -> None:
        if "step-0000004" in str(path):
            raise OSError(28, "No space left on device", str(path))
        whole(self, path)

    text = recipe_text(encoder, collection, evaluation=False)
    with monkeypatch.context() as patch:
        patch.setattr(Student, "save_weights", full)
        said = r"cannot be written .*No space left.*last good checkpoint is .*step-0000002"
        with pytest.raises(ArtifactError, match=said):
            run(text, tmp_path / "out", runtime)
    assert not list((tmp_path / "out" / "checkpoints").glob(".*"))
    assert run(text, tmp_path / "out", runtime).fitted.steps == 6


def test_data_without_positives_is_refused(runtime: Runtime, collection: Path, encoder: Path, tmp_path: Path) -> None:
    text = recipe_text(encoder, collection, groups=", positives: {min_grade: 5}")
    with pytest.raises(DataError, match="min_grade"):
        run(text, tmp_path / "out", runtime)


def test_a_tokenizer_without_a_pad_token_is_no_hindrance(runtime: Runtime, collection: Path, tmp_path: Path) -> None:
    base = write_classifier(tmp_path / "base", "llama")
    settings = json.loads((base / "tokenizer_config.json").read_text())
    settings.pop("pad_token")
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    text = recipe_text(base, collection, evaluation=False, optimiser="groups: 4, steps: 2")
    trained = run(text, tmp_path / "out", runtime)
    loaded = load_cross_encoder(runtime, str(base), dtype="float32", adapter=str(trained.model))
    assert np.isfinite(loaded.pairs(PAIRS)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("loss: softmax", "loss: sofmax"),
            r"<text>:\d+: contrastive.loss: no loss is called 'sofmax'; did you mean 'softmax'",
        ),
        (("rank: 4", "rnk: 4"), r"contrastive.adapter.lora.rnk: lora has no option 'rnk'"),
        (("groups: 4", "groups: 0"), r"contrastive.optimiser: optimiser: groups is 0"),
        (("engine: current", "engine: {fake: {qrels: a}}"), "no stage asks the model in training"),
        (("split: dev", "spilt: dev"), r"contrastive.evaluation.on\[0\].spilt"),
        (("nDCG@10", "nDGC@10"), "no measure is called 'nDGC'"),
        (("contrastive:", "contrastve:"), "no recipe is called 'contrastve'; did you mean 'contrastive'"),
    ],
)
def test_mistakes_in_a_recipe_are_told_with_their_place(change: tuple[str, str], message: str) -> None:
    text = recipe_text(Path("/m"), Path("/d"), more="  loss: softmax").replace(
        "    every", "    measure: nDCG@10\n    every"
    )
    assert change[0] in text
    with pytest.raises(ConfigError, match=message):
        recipe(text.replace(*change))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "sft"}, "sft: trains language models"),
        ({"kind": "distill"}, "have no teacher"),
        ({"engine": "causal_lm"}, "needs a prompt"),
        ({"engine": "causal_lm", "more": "  prompt: order"}, "take the recipe sft"),
        ({"adapter": "{lora: {targets: [q_proj]}}"}, "has no such linear layers; its own are called"),
        ({"more": "  prompt: yes-no"}, "takes no prompt"),
        ({"more": "  report_to: [tensorbord]"}, "report_to tensorbord: .*tensorboard"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    runtime: Runtime, collection: Path, encoder: Path, chat: Path, tmp_path: Path, options: dict[str, str], message: str
) -> None:
    model = chat if options.get("engine") == "causal_lm" else encoder
    with pytest.raises(ConfigError, match=message):
        run(recipe_text(model, collection, **options), tmp_path / "out", runtime)  # type: ignore[arg-type]


def test_recipes_go_to_yaml_and_back() -> None:
    made = recipe(recipe_text(Path("/m"), Path("/d"), kind="distill", groups=", teacher: {pipeline: bm25}"))
    assert recipe(made.to_yaml()) == made
