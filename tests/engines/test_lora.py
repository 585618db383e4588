"""LoRA adapters: the numbers of peft's own model, switched between stages, refused where they do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_scorers import write_causal_lm, write_chat_lm, write_classifier

from rerank.engines.causal_lm import CausalLM, load_causal_lm
from rerank.engines.cross_encoder import CrossEncoder, load_cross_encoder
from rerank.engines.scorer import agreement
from rerank.errors import ModelError
from rerank.runtime import Runtime

pytestmark = [pytest.mark.needs("peft"), pytest.mark.filterwarnings("ignore::FutureWarning")]

PAIRS = [
    ("the lift of a wing", "a wing in a flow has lift and drag"),
    ("black hole", "a star of great mass ends as a black hole or a dwarf"),
    ("sun", "moon"),
    ("heat", "the boundary layer " * 9),
]
PROMPTS = [tuple(int(token) for token in np.random.default_rng(i).integers(5, 150, size=5 + 3 * i)) for i in range(6)]
"""Token ids."""


class Asked:
    def __init__(self, tokens: tuple[int, ...], continuations: Any = ((5,), (9, 11)), verb: str = "choices") -> None:
        self.tokens, self.prefix, self.continuations, self.verb = tokens, 3, continuations, verb


@pytest.fixture
def runtime(own_home: Path) -> Runtime:
    return Runtime(own_home, threads=1, device="cpu", progress=False, cache=False)


def write_adapter(folder: Path, model: Any, *, seed: int, base: str = "my/base", **options: Any) -> Path:
    """Writes a LoRA of random weights for `model` (which is wrapped), head included where there is one."""
    import peft

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = peft.LoraConfig(**{"r": 4, "lora_alpha": 16, "target_modules": "all-linear", **options})
        wrapped = peft.get_peft_model(model, config)
        for name, weight in wrapped.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                torch.nn.init.normal_(weight, std=0.3)
        wrapped.peft_config["default"].base_model_name_or_path = base
        wrapped.save_pretrained(folder, save_embedding_layers=False)
    return folder


def classifier(folder: Path, **options: Any) -> Any:
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(folder, **options)


def decoder(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


@torch.inference_mode()
def stock_pairs(model: Any, scorer: CrossEncoder) -> list[float]:
    """The logits of a model that peft loaded, one pair at a time."""
    scores = []
    for query, document in PAIRS:
        inputs = scorer.tokenizer([query], [document], return_tensors="pt", truncation="only_second", max_length=64)
        inputs = {name: inputs[name] for name in scorer.tokenizer.model_input_names if name in inputs}
        logits = model.eval()(**inputs).logits[0]
        scores.append(float(logits[0] if len(logits) == 1 else logits[1] - logits[0]))
    return scores


@torch.inference_mode()
def stock_choices(model: Any) -> list[list[float]]:
    answers = []
    for tokens in PROMPTS:
        logits = model.eval()(input_ids=torch.tensor([[*tokens, 9]])).logits[0].log_softmax(-1)
        answers.append([float(logits[-2, 5]), float(logits[-2, 9] + logits[-1, 11])])
    return answers


def near(expected: Any) -> Any:
    return pytest.approx(np.asarray(expected), rel=1e-5, abs=1e-5)


# -- the same numbers ------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "modernbert", "deberta", "qwen3", "llama"])
def test_pairs_get_the_logits_of_pefts_own_model(runtime: Runtime, tmp_path: Path, kind: str) -> None:
    from peft import PeftModel

    base = write_classifier(tmp_path / "base", kind)
    head = ["score"] if kind in ("qwen3", "llama") else ["classifier"]
    adapters = [
        write_adapter(tmp_path / f"a{i}", classifier(base), seed=i, task_type=task, modules_to_save=saved)
        for i, (task, saved) in enumerate([("SEQ_CLS", head), (None, None)], start=1)
    ]
    plain = load_cross_encoder(runtime, str(base), dtype="float32")
    before = plain.pairs(PAIRS)
    models = [load_cross_encoder(runtime, str(base), dtype="float32", adapter=str(each)) for each in adapters]
    assert {model.path for model in models} == {plain.path} == {"padded" if kind == "deberta" else "packed"}
    for model, adapter in [*zip(models, adapters, strict=True), (models[0], adapters[0])]:
        stock = PeftModel.from_pretrained(classifier(base), str(adapter))
        expected = stock_pairs(stock, model)
        assert model.pairs(PAIRS) == near(expected)
        assert not np.allclose(expected, before, atol=1e-2)
        assert plain.pairs(PAIRS).tobytes() == before.tobytes()


@pytest.mark.parametrize("kind", ["llama", "gemma3", "lfm2"])
def test_labels_get_the_logits_of_pefts_own_model(runtime: Runtime, tmp_path: Path, kind: str) -> None:
    from peft import PeftModel

    base = write_causal_lm(tmp_path / "base", kind)
    adapters = [
        write_adapter(tmp_path / "a1", decoder(base), seed=1, task_type="CAUSAL_LM"),
        write_adapter(tmp_path / "a2", decoder(base), seed=2, use_dora=True, r=2, target_modules=["q_proj", "v_proj"]),
    ]
    plain = load_causal_lm(runtime, str(base), dtype="float32")
    requests = [Asked(tokens) for tokens in PROMPTS]
    before = np.array(plain.choices(requests))
    models = [load_causal_lm(runtime, str(base), dtype="float32", adapter=str(each)) for each in adapters]
    assert {model.path for model in models} == {"padded" if kind == "lfm2" else "packed"}
    for model, adapter in [*zip(models, adapters, strict=True), (models[0], adapters[0])]:
        expected = stock_choices(PeftModel.from_pretrained(decoder(base), str(adapter)))
        assert np.array(model.choices(requests)) == near(expected)
        assert not np.allclose(expected, before, atol=1e-2)
        assert np.array(plain.choices(requests)).tobytes() == before.tobytes()


def test_text_is_written_with_the_adapter(runtime: Runtime, tmp_path: Path) -> None:
    from peft import PeftModel

    from rerank.engines.causal_lm import Sampling

    base = write_causal_lm(tmp_path / "base", "llama")
    adapter = write_adapter(tmp_path / "a", decoder(base), seed=1)
    model = load_causal_lm(runtime, str(base), dtype="float32", adapter=str(adapter))
    stock = PeftModel.from_pretrained(decoder(base), str(adapter)).eval()
    written = model.generate([Asked(PROMPTS[3], (), "generate")], Sampling(max_tokens=12))[0]
    expected = stock.generate(input_ids=torch.tensor([PROMPTS[3]]), max_new_tokens=12, do_sample=False)[0]
    tokens = expected[len(PROMPTS[3]) :].tolist()
    assert written.tokens == tuple(tokens[: tokens.index(3)] if 3 in tokens else tokens)
    assert written != load_causal_lm(runtime, str(base), dtype="float32").generate(
        [Asked(PROMPTS[3], (), "generate")], Sampling(max_tokens=12)
    )


@pytest.mark.parametrize("kind", ["bert", "qwen3"])
def test_16_bit_types_agree_with_float32(runtime: Runtime, tmp_path: Path, kind: str) -> None:
    base = write_classifier(tmp_path / "base", kind)
    adapter = write_adapter(tmp_path / "a", classifier(base), seed=1, task_type="SEQ_CLS")
    other = write_adapter(tmp_path / "b", classifier(base), seed=2, task_type="SEQ_CLS")
    exact = load_cross_encoder(runtime, str(base), dtype="float32", adapter=str(adapter))
    short = load_cross_encoder(runtime, str(base), dtype="bfloat16", adapter=str(adapter))
    load_cross_encoder(runtime, str(base), dtype="bfloat16", adapter=str(other)).pairs(PAIRS)
    assert short.dtype == "bfloat16"
    assert short.path == "packed"
    assert agreement(exact.trial(), short.trial()) > 0.9
    scores, expected = short.pairs(PAIRS), exact.pairs(PAIRS)
    assert np.abs(scores - expected).max() < 0.2
    assert short._head is not None
    assert {weight.dtype for weight in short._head._model.parameters()} == {torch.float32}


def test_a_type_is_chosen_for_model_and_adapter_together(
    runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rerank.engines import scorer

    monkeypatch.setattr(scorer, "shorter_type", lambda device: "bfloat16")
    monkeypatch.setattr(CrossEncoder, "min_agreement", 0.5)
    base = write_classifier(tmp_path / "base", "bert")
    adapter = write_adapter(tmp_path / "a", classifier(base), seed=1)
    model = load_cross_encoder(runtime, str(base), adapter=str(adapter))
    assert model.dtype == "bfloat16"
    assert load_cross_encoder(runtime, str(base)).model is model.model
    assert load_cross_encoder(runtime, str(base), adapter=str(adapter)) is model
    monkeypatch.setattr(CrossEncoder, "min_agreement", 1.1)
    other = write_adapter(tmp_path / "b", classifier(base), seed=2)
    assert load_cross_encoder(runtime, str(base), adapter=str(other)).dtype == "float32"


# -- heads ------------------------------------------------------------


@pytest.mark.parametrize(("kind", "labels"), [("llama", 1), ("llama", 2), ("bert", 1)])
def test_an_adapter_brings_the_head_that_its_model_lacks(
    runtime: Runtime, tmp_path: Path, kind: str, labels: int
) -> None:
    from peft import PeftModel

    if kind == "llama":
        base = write_causal_lm(tmp_path / "base", kind)
    else:
        base = write_classifier(tmp_path / "base", kind, labels=2)
    adapter = write_adapter(tmp_path / "a", classifier(base, num_labels=labels, ignore_mismatched_sizes=True), seed=1,
                            task_type="SEQ_CLS")  # fmt: skip
    model = load_cross_encoder(runtime, str(base), dtype="float32", adapter=str(adapter))
    stock = classifier(base, num_labels=labels, ignore_mismatched_sizes=True)
    assert model.pairs(PAIRS) == near(stock_pairs(PeftModel.from_pretrained(stock, str(adapter)), model))
    if kind == "llama":
        with pytest.raises(ModelError, match=r"has no weights for score\.weight"):
            load_cross_encoder(runtime, str(base), dtype="float32")


def test_a_head_that_nobody_brings_is_refused(runtime: Runtime, tmp_path: Path) -> None:
    base = write_causal_lm(tmp_path / "base", "llama")
    adapter = write_adapter(tmp_path / "a", decoder(base), seed=1)
    with pytest.raises(ModelError, match=r"has no weights for score\.weight"):
        load_cross_encoder(runtime, str(base), dtype="float32", adapter=str(adapter))


# -- identity ------------------------------------------------------------


def test_weights_are_loaded_once_and_keys_tell_adapters_apart(runtime: Runtime, tmp_path: Path) -> None:
    base = write_causal_lm(tmp_path / "base", "llama")
    adapters = [write_adapter(tmp_path / f"a{i}", decoder(base), seed=i) for i in range(2)]
    plain = load_causal_lm(runtime, str(base), dtype="float32")
    models = [load_causal_lm(runtime, str(base), dtype="float32", adapter=str(each)) for each in adapters]
    assert all(model.model is plain.model for model in models)
    assert len({plain.key, *(model.key for model in models)}) == 3
    copied = tmp_path / "copy"
    copied.mkdir()
    for path in adapters[0].iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    assert load_causal_lm(runtime, str(base), dtype="float32", adapter=str(copied)).key == models[0].key


def test_the_run_says_which_adapter_was_used(own_home: Path, tmp_path: Path) -> None:
    from rerank.data.corpus import MemoryCorpus
    from rerank.engines.prompted import CausalLMEngine
    from rerank.ranking import Ranking
    from rerank.reranking import Rerank
    from rerank.stage import Pipeline

    base = write_chat_lm(tmp_path / "base")
    adapters = [write_adapter(tmp_path / f"a{i}", decoder(base), seed=i) for i in range(2)]
    texts = {f"d{i}": f"Paris lies on the Seine {'very ' * i}" for i in range(5)}
    lists = Ranking.of({"q": dict.fromkeys(texts, 1.0)}, {"q": "where is Paris"}, source=MemoryCorpus(texts))
    stages = [
        Rerank(CausalLMEngine(str(base), dtype="float32", adapter=adapter), prompt="yes-no", k=None)
        for adapter in (None, *map(str, adapters))
    ]
    with Runtime(own_home, threads=1, device="cpu", progress=False) as runtime:
        rankings = [runtime.rank(stage, lists) for stage in stages]
        counts = [stats.counts for stats in runtime.stats]
        facts = [fact for name, fact in runtime._facts.items() if name.startswith("model ")]
    assert [each.get("cached answers", 0) for each in counts] == [0, 0, 0]
    assert len({tuple(sorted(hit.score for hit in ranking["q"])) for ranking in rankings}) == 3
    assert [fact.get("adapter", {}).get("path") for fact in facts] == [None, *map(str, adapters)]
    with Runtime(own_home, threads=1, device="cpu", progress=False) as runtime:
        again = runtime.rank(Pipeline((stages[2],)), lists)
        assert runtime.stats[1].counts["cached answers"] == 5
    assert again["q"].docnos == rankings[2]["q"].docnos


# -- misfits ------------------------------------------------------------


def test_another_models_adapter_is_refused(runtime: Runtime, tmp_path: Path) -> None:
    base = write_causal_lm(tmp_path / "base", "llama")
    larger = decoder(base)
    larger.config.num_hidden_layers = 3
    larger = type(larger)(larger.config)
    smaller = decoder(base)
    smaller.config.num_hidden_layers = 1
    smaller = type(smaller)(smaller.config)
    wider = decoder(base)
    wider.config.intermediate_size = 80
    wider = type(wider)(wider.config)
    cases = [
        (larger, {}, r"changes the layer 'model\.layers\.2\..*_proj', which this model has not"),
        (smaller, {"target_modules": ["q_proj"]}, "no weights for base_model.model.model.layers.1"),
        (wider, {}, r"it changes .* of sizes .*80.*, here it has"),
    ]
    plain = load_causal_lm(runtime, str(base), dtype="float32")
    requests = [Asked(tokens) for tokens in PROMPTS]
    before = np.array(plain.choices(requests))
    for i, (model, options, message) in enumerate(cases):
        adapter = write_adapter(tmp_path / f"a{i}", model, seed=i, **options)
        with pytest.raises(ModelError, match=message + ".*; it was trained on my/base: give that one"):
            load_causal_lm(runtime, str(base), dtype="float32", adapter=str(adapter))
        assert np.array(plain.choices(requests)).tobytes() == before.tobytes()
    fits = write_adapter(tmp_path / "fits", decoder(base), seed=9)
    assert load_causal_lm(runtime, str(base), dtype="float32", adapter=str(fits)).path == "packed"


@pytest.mark.parametrize("options", [{"target_modules": ["lm_head"]}, {"modules_to_save": ["lm_head"]},
                                     {"target_modules": ["embed_tokens"]}])  # fmt: skip
def test_a_changed_vocabulary_is_refused(runtime: Runtime, tmp_path: Path, options: Any) -> None:
    base = write_causal_lm(tmp_path / "base", "llama")
    adapter = write_adapter(tmp_path / "a", decoder(base), seed=1, **options)
    with pytest.raises(ModelError, match=r"the vocabulary of model .*; merge it"):
        load_causal_lm(runtime, str(base), dtype="float32", adapter=str(adapter))


def test_what_is_no_adapter_is_refused(runtime: Runtime, tmp_path: Path) -> None:
    base = write_causal_lm(tmp_path / "base", "llama")

    def load(adapter: Path) -> CausalLM:
        return load_causal_lm(runtime, str(base), dtype="float32", adapter=str(adapter))

    with pytest.raises(ModelError, match=r"there is no .*adapter_config\.json; give a folder that peft"):
        load(base)
    good = write_adapter(tmp_path / "good", decoder(base), seed=1)
    config = json.loads((good / "adapter_config.json").read_text())
    (good / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "PREFIX_TUNING"}))
    with pytest.raises(ModelError, match="of the kind PREFIX_TUNING; LoRA is what can be switched"):
        load(good)
    (good / "adapter_config.json").write_text("[]")
    with pytest.raises(ModelError, match="not an adapter's configuration"):
        load(good)
    (good / "adapter_config.json").write_text(json.dumps(config))
    weights = good / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        load(good)
