"""What is served: names to stages, looked up and never joined to a path."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rerank.config import to_yaml
from rerank.errors import ConfigError, PipelineError
from rerank.models.catalogue import CATALOGUE
from rerank.ranking import ScoreKind
from rerank.ready import find_pipeline, ready_names
from rerank.reranking import Rerank
from rerank.retrieve.rescore import Rescore
from rerank.serve.errors import ApiError, unknown_model
from rerank.serve.queueing import Estimate
from rerank.serve.scores import Scale, Scoring, scale_for, scoring_of
from rerank.serve.settings import ServedModel
from rerank.serve.wire import Message
from rerank.stage import DOCUMENTS, FROM_QUERIES, Cut, Pipeline, Stage
from rerank.stage_for import rerank_stage, reranking_only, stage_for

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")


@dataclass(eq=False)
class Served:
    """A model or pipeline under its name."""

    name: str
    spec: ServedModel
    stage: Stage | None
    """What reranks given lists; None where the pipeline only finds documents."""
    search: Stage | None
    """What finds documents for a query."""
    data: str | None = None
    """The collection that is searched."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the worker found out when it loaded it."""
    created: int = field(default_factory=lambda: int(time.time()))
    estimate: Estimate = field(default_factory=Estimate)

    @property
    def is_stepwise(self) -> bool:
        """Whether the front runs the rule; else the worker ranks whole lists."""
        return isinstance(self.stage, Rerank) and self.stage.passages is None

    @property
    def is_encoder(self) -> bool:
        """Whether it makes vectors."""
        return isinstance(self.stage, Rescore)

    @property
    def can_explain(self) -> bool:
        """Whether it can show what a model wrote about the documents."""
        return self.stage is not None and any(isinstance(part, Rerank) and part.explains for part in self.stage.walk())

    @property
    def scoring(self) -> Scoring:
        """How a document's score depends on the others."""
        return "pointwise" if self.stage is None else scoring_of(self.stage)

    @property
    def scale(self) -> Scale:
        """How raw scores are mapped."""
        if self.stage is None:
            raise ConfigError(f"{self.name}: reranks nothing")
        return scale_for(self.stage, self.kind)

    @property
    def kind(self) -> ScoreKind:
        """What raw scores mean."""
        stage = self.stage
        if isinstance(stage, Rerank) and not (stage.rule.gives_scores and stage.k is None):
            return ScoreKind.RANK
        return ScoreKind(self.facts.get("kind", ScoreKind.UNKNOWN))

    @property
    def limit(self) -> int | None:
        """Tokens that the model reads of a pair; None where that is not known beforehand."""
        limit = self.facts.get("limit")
        return None if limit is None else int(limit)

    def load_message(self) -> Message:
        """What the worker needs to know."""
        return {
            "do": "load",
            "target": self.name,
            "stage": None if self.stage is None else to_yaml(self.stage),
            "search": None if self.search is None else to_yaml(self.search),
            "data": self.data,
        }


def resolve(spec: ServedModel, data: str, home: Path | None = None) -> Served:
    """What `spec` says, with what its files tell of it; nothing is loaded.

    Raises:
        RerankError: the name means nothing, or parts do not go together.

    >>> resolve(ServedModel("bm25"), "stdlib").search is not None
    True
    """
    name = spec.served_name
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} is no name to serve a model under; letters, digits and . _ : / - are possible, up to 128: "
            "--model NAME=MODEL"
        )
    if _is_pipeline(spec.model):
        given = {what: getattr(spec, what) for what in ("rule", "prompt", "revision", "adapter")}
        taken = [what for what, value in given.items() if value is not None]
        if taken:
            raise ConfigError(f"{spec.model} is a pipeline, which says everything itself; leave {taken[0]} out")
        pipeline = find_pipeline(spec.model)
        search = pipeline if _starts_from_queries(pipeline) else None
        stage = reranking_tail(pipeline) if search is not None else reranking_only(pipeline)
        return Served(name, spec, stage, search, (spec.data or data) if search is not None else None)
    options: dict[str, Any] = {"revision": spec.revision, "dtype": spec.dtype, "home": home}
    if spec.adapter is None:
        return Served(name, spec, stage_for(spec.model, rule=spec.rule, prompt=spec.prompt, **options), None)
    from rerank.adapters.artifact import adapter_facts

    told = adapter_facts(Path(spec.adapter))
    prompt = spec.prompt or (told.prompt if told is not None else None)
    base = stage_for(spec.model, rule=spec.rule, prompt=prompt, **options)
    if not isinstance(base, Rerank) or not hasattr(base.engine, "adapter"):
        raise ConfigError(f"{spec.model} takes no adapter; leave {spec.adapter} out")
    # An engine is a dataclass, which its base class does not say.
    engine: Any = dataclasses.replace(base.engine, adapter=str(Path(spec.adapter).resolve()))  # type: ignore[type-var]
    return Served(name, spec, rerank_stage(engine, base.rule, base.prompt), None)


def reranking_tail(pipeline: Pipeline) -> Stage | None:
    """The stages of a pipeline after the last that finds documents; None where these only shorten lists.

    >>> from rerank.stage import Cut
    >>> from rerank.retrieve.bm25 import BM25
    >>> reranking_tail(Pipeline((BM25(), Cut(5)))) is None
    True
    """
    tail: list[Stage] = []
    for stage in reversed(pipeline.stages):
        if any(DOCUMENTS in part.gives and not part.parts() for part in stage.walk()):
            break
        tail.insert(0, stage)
    if all(isinstance(stage, Cut) for stage in tail):
        return None
    return tail[0] if len(tail) == 1 else Pipeline(tuple(tail))


def _starts_from_queries(pipeline: Pipeline) -> bool:
    try:
        pipeline.flow(FROM_QUERIES)
    except PipelineError:
        return False
    return True


def _is_pipeline(name: str) -> bool:
    if name.endswith((".yaml", ".yml")):
        return True
    return name not in CATALOGUE and not Path(name).is_dir() and name in ready_names()


class Catalogue:
    """The models that can be asked for.

    >>> Catalogue([Served("one", ServedModel("one"), None, None)]).find("whatever").name
    'one'
    """

    def __init__(self, served: Iterable[Served] = ()) -> None:
        self._served = {each.name: each for each in served}

    def __iter__(self) -> Any:
        return iter(list(self._served.values()))

    def __len__(self) -> int:
        return len(self._served)

    def __contains__(self, name: str) -> bool:
        return name in self._served

    def add(self, served: Served) -> None:
        """Makes it known, in place of one of its name."""
        self._served[served.name] = served

    def remove(self, name: str) -> None:
        """Forgets it."""
        self._served.pop(name, None)

    def find(self, name: object) -> Served:
        """The one of that name; the only one, whatever the name; the first one without a name.

        Raises:
            ApiError: there are several, and none of that name.
        """
        if isinstance(name, str) and name in self._served:
            return self._served[name]
        if not self._served:
            raise ApiError(503, "not_ready", "no model is loaded yet", headers={"Retry-After": "5"})
        if name is None or name == "" or len(self._served) == 1:
            return next(iter(self._served.values()))
        raise unknown_model(len(self._served))
