"""The reranking stage that a model's name, address or folder stands for: engine, prompt, rule."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import logging
from pathlib import Path
from typing import Any, Literal, cast

from rerank.adapters.artifact import AdapterFacts, adapter_facts
from rerank.config import build_part
from rerank.engines.colbert import METADATA
from rerank.engines.engine import Engine
from rerank.engines.text_model import DType
from rerank.errors import ConfigError, ModelError, PipelineError
from rerank.models.catalogue import CATALOGUE
from rerank.models.resolve import locate_model
from rerank.prompts.prompt import list_prompts, load_prompt
from rerank.registry import lookup
from rerank.reranking import Rerank
from rerank.retrieve.rescore import Rescore
from rerank.rules.pointwise import Pointwise
from rerank.rules.rule import Rule
from rerank.stage import DOCUMENTS, Stage
from rerank.yamlfile import parse_yaml

logger = logging.getLogger(__name__)

Kind = Literal["cross_encoder", "late_interaction", "bi_encoder", "causal_lm", "encoder_decoder", "dense", "sparse"]

_HEADS: dict[str, Kind] = {
    "ForSequenceClassification": "cross_encoder",
    "ForCausalLM": "causal_lm",
    "LMHeadModel": "causal_lm",
    "ForConditionalGeneration": "encoder_decoder",
    "ColBERT": "late_interaction",
}
"""What the name of a model's class ends with, by what scores with it."""
_LIBRARY_CLASSES: dict[str, Kind] = {
    "CrossEncoder": "cross_encoder",
    "ColBERT": "late_interaction",
    "MultiVectorEncoder": "late_interaction",
    "SparseEncoder": "sparse",
    "SentenceTransformer": "dense",
}
"""What sentence-transformers and PyLate write into the folders that they save."""
_PROMPTS = {
    "setwise": "pick",
    "listwise": "order",
    "groupwise": "group-scores",
    "pairwise": "pair",
    "tournament": "order",
}
"""The prompt for a rule that compares documents; others score them one by one."""


def stage_for(
    model: str,
    *,
    rule: str | Rule | None = None,
    prompt: str | None = None,
    revision: str | None = None,
    dtype: DType = "auto",
    home: Path | None = None,
) -> Stage:
    """The stage that reranks whole lists with `model`; what is not given is read from the model's files.

    A sequence classifier is a cross-encoder; a ColBERT folder scores by late interaction; an encoder of texts by its
    vectors (`Rescore`).  A language model whose published name a prompt knows (`source.names`) is asked by that prompt;
    any other as the rule wants it, without a rule how likely it makes the query: the one prompt that models which were
    not tuned to rank answer usefully (docs/choose-a-reranker.md).  A folder with a LoRA adapter is used on the base
    model that it names.

    Args:
        model: a catalogue name, a folder, a hub id, the http(s) address of a server that reranks, a pipeline's YAML
            file, or the name of a ready pipeline.
        rule: how comparisons become an order, as in YAML (`setwise`, or `{setwise: {k: 5}}`); default the rule that
            the prompt is worded for.
        prompt: a profile's name or a prompt file, for language models.
        revision: of a hub model.
        dtype: what the model computes in.
        home: the cache root of catalogue models.

    Raises:
        UnknownNameError: the name means nothing.
        ConfigError: a rule or prompt that does not go with the model.
        ModelError: the model cannot be had, or is of no kind that reranks.
        PipelineError: a pipeline that starts from queries.
    """
    rule = None if rule is None else _rule(rule)
    options = {"revision": revision, "dtype": None if dtype == "auto" else dtype}
    if _is_pipeline(model):
        from rerank.ready import find_pipeline

        _refuse(f"{model} is a pipeline, which says everything itself", {"rule": rule, "prompt": prompt, **options})
        return reranking_only(find_pipeline(model))
    if model.startswith(("http://", "https://")):
        return rerank_stage(_engine("remote", model, options), rule, prompt)
    found = locate_model(model, revision, home)
    name = model
    if (base := _base_model(found.path)) is not None:
        adapter, told = found.path, adapter_facts(found.path)
        pinned = told.revision if told is not None else None
        model, options = base, {"adapter": str(adapter), "revision": pinned, "dtype": options["dtype"]}
        found = locate_model(model, pinned, home)
        kind = _kind_with(adapter, told) or kind_of(found.path, model)
        prompt = prompt or (told.prompt if told is not None else None)
    else:
        kind = kind_of(found.path, model)
    if kind == "sparse":
        raise ModelError(
            f"model {name!r} is a sparse encoder, which finds documents (the stage splade), not a reranker"
        )
    if kind == "dense":
        _refuse(f"model {name!r} is an encoder, whose vectors alone score", {"rule": rule, "prompt": prompt})
        logger.info("model %s: an encoder; lists are ordered by the similarity of its vectors", name)
        return Rescore(model, revision, dtype=dtype)
    if kind in ("causal_lm", "encoder_decoder"):
        prompt = prompt or _usual_prompt(name, found.path, kind, rule)
    stage = rerank_stage(_engine(kind, model, options), rule, prompt)
    logger.info("model %s: %r", name, stage)
    return stage


def rerank_stage(engine: Engine, rule: str | Rule | None = None, prompt: str | None = None) -> Rerank:
    """The stage that reranks whole lists with `engine`, by default under the rule that the prompt is worded for.

    >>> from rerank.engines.prompted import CausalLMEngine
    >>> rerank_stage(CausalLMEngine("my-model"), prompt="order")
    Rerank(engine=CausalLMEngine(model='my-model'), rule=Listwise(), prompt='order', k=None)
    """
    if rule is None:
        rule = Pointwise() if prompt is None else load_prompt(prompt).usual_rule
    return Rerank(engine, _rule(rule), prompt, k=None)


def _rule(rule: str | Rule) -> Rule:
    if isinstance(rule, Rule):
        return rule
    tree = parse_yaml(rule, "rule")
    return build_part(Rule, tree.value, tree, ())  # type: ignore[type-abstract]


def reranking_only(stage: Stage) -> Stage:
    """`stage`, when it starts from lists.

    Raises:
        PipelineError: it finds documents itself.
    """
    for part in stage.walk():
        if DOCUMENTS in part.gives and not part.parts():
            raise PipelineError(
                f"{stage.label}: cannot rerank given documents, for {part.label} finds documents itself; leave it out, "
                "or use the pipeline with rerank search or rerank run"
            )
    return stage


def kind_of(folder: Path, name: str) -> Kind:
    """What the model in `folder` is, as far as reranking goes.

    Raises:
        ModelError: its files do not tell, or nothing here reranks with such a model.
    """
    config = _read(folder / "config.json", name)
    classes = [str(each) for each in config.get("architectures") or ()]
    for ending, kind in _HEADS.items():
        if any(each.endswith(ending) for each in classes):
            return kind
    modules = _read(folder / "modules.json", name)
    settings = _read(folder / "config_sentence_transformers.json", name)
    if (folder / METADATA).is_file() or "query_prefix" in settings:
        return "late_interaction"
    if settings.get("model_type") in _LIBRARY_CLASSES:
        return _LIBRARY_CLASSES[settings["model_type"]]
    types = [str(module.get("type")) for module in modules] if isinstance(modules, list) else []
    if any(each.endswith("SpladePooling") for each in types):
        return "sparse"
    if any(each.endswith("Pooling") for each in types):
        return "dense"
    raise ModelError(
        f"model {name!r} ({folder}): its files do not tell how it reranks (config.json names "
        f"{', '.join(classes) or 'no class'}); give the engine, e.g. "
        "Reranker(CrossEncoderEngine(...)), or a pipeline file"
    )


def _is_pipeline(name: str) -> bool:
    from rerank.ready import ready_names

    is_file = name.endswith((".yaml", ".yml"))
    return is_file or (name not in CATALOGUE and not Path(name).is_dir() and name in ready_names())


def _refuse(what: str, given: dict[str, Any]) -> None:
    taken = [name for name, value in given.items() if value is not None]
    if taken:
        raise ConfigError(f"{what}; leave {' and '.join(taken)} out")


def _engine(kind: str, model: str, options: dict[str, str | None]) -> Engine:
    """The engine registered as `kind`, with the options that are not None."""
    made = lookup(kind)
    fields = dataclasses.fields(made)
    given = {option: value for option, value in options.items() if value is not None}
    for option in given:
        if option not in {field.name for field in fields}:
            raise ConfigError(f"{model}: the engine {kind} takes no {option}; leave it out")
    engine: Engine = made(**{fields[0].name: model}, **given)
    return engine


def _base_model(folder: Path) -> str | None:
    """The model that the adapter in `folder` was made for; None where it holds a model of its own."""
    path = folder / "adapter_config.json"
    if not path.is_file() or (folder / "config.json").is_file():
        return None
    base = _read(path, str(folder)).get("base_model_name_or_path")
    if not base:
        raise ModelError(
            f"{path}: names no base model (base_model_name_or_path); name the base model and give the adapter"
        )
    return str(base)


def _kind_with(adapter: Path, told: AdapterFacts | None) -> Kind | None:
    """What an adapter makes of its base, by its manifest or its head; None where it is what the base is."""
    if told is not None:
        return cast("Kind", told.engine)
    task = _read(adapter / "adapter_config.json", str(adapter)).get("task_type")
    return "cross_encoder" if task == "SEQ_CLS" else None


def _usual_prompt(name: str, folder: Path, kind: Kind, rule: Rule | None) -> str:
    """The prompt for a language model that none was given for."""
    said = str(_read(folder / "config.json", name).get("_name_or_path") or "")
    called = {Path(each).name.casefold() for each in (name, said) if each}
    # Imported prompts have the wording that the checkpoints were trained with.
    for prompt in map(load_prompt, reversed(list_prompts())):
        patterns = prompt.source.names if prompt.source is not None else ()
        if any(fnmatch.fnmatchcase(each, pattern.casefold()) for pattern in patterns for each in called):
            return prompt.name
    if kind == "encoder_decoder":
        raise ConfigError(
            f"model {name!r} is an encoder-decoder of no known family; say how it is asked: prompt='monot5'"
        )
    chosen = "query-likelihood" if rule is None else _PROMPTS.get(rule.label, "query-likelihood")
    logger.warning(
        "model %s: a language model of no known family of rerankers, asked by the prompt %r; another can be given "
        "(rerank prompts list)", name, chosen,
    )  # fmt: skip
    return chosen


def _read(path: Path, name: str) -> Any:
    """What a JSON file of a model's folder holds; an empty mapping where there is none."""
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"model {name!r}: {path} is not JSON ({error}); get it again") from error
