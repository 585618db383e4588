"""What an adaptation would do, and for about how long."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rerank.engines.engine import Asked
from rerank.engines.meter import Size, matrix_rate
from rerank.ranking import TextSource
from rerank.ready import find_pipeline
from rerank.runtime import Runtime
from rerank.synthesize.adaptation import VALIDATED, VALIDATED_EVERY, VALIDATION_K, Adaptation
from rerank.synthesize.estimate import SynthesisPlan, about, facts_lines, notes, plan_synthesis

_COUNTED = 100
"""Documents whose pairs with a query are tokenised for the estimate."""
_QUERY_CHARACTERS = 40
TRAINING_WORK = 4.0
"""What a training step takes, in forward passes over the same tokens: 4.2 was found with `minilm-l6` on a processor."""


@dataclass(frozen=True)
class AdaptationPlan:
    """What an adaptation would do, and for about how long."""

    synthesis: SynthesisPlan
    groups: int
    """Training groups at most, one a query: filters leave fewer."""
    pairs: int
    """Pairs of query and document that are trained on, each as often as it is seen."""
    training_tokens: int
    training_seconds: float | None
    """None where the model's files do not tell."""
    queries: int
    """Judged ones that are measured; 0 where there are none."""
    evaluation_seconds: float | None
    unjudged: str = ""
    """Why nothing is measured, where nothing is."""
    remarks: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """About how long all takes, as far as that is known."""
        return self.synthesis.seconds + (self.training_seconds or 0.0) + (self.evaluation_seconds or 0.0)

    def __str__(self) -> str:
        """The plan for people, in 80 columns."""
        learning = f"{self.pairs:,} pairs with {self.training_tokens:,} tokens, {about(self.training_seconds)}"
        measuring = f"{self.queries:,} judged queries, {about(self.evaluation_seconds)}"
        facts = [
            *self.synthesis.facts(),
            ("training", f"{self.groups:,} queries at most: {learning}"),
            ("evaluation", measuring if self.queries else f"none: {self.unjudged}"),
            ("in all", about(self.seconds)),
        ]
        heading = f"{self.synthesis.name}: an estimate"
        return "\n".join([heading, *facts_lines(facts), *notes((*self.synthesis.remarks, *self.remarks))])


def plan_adaptation(adaptation: Adaptation, runtime: Runtime) -> AdaptationPlan:
    """What `adaptation` would do, found out without training anything.

    Args:
        adaptation: what would run.
        runtime: whose home, device and threads count.

    Raises:
        DataError: no such collection, or no document that could get a query.
        UnknownNameError: no such first stage.
        ModelError: there is no such model, or it cannot become what is wanted.
    """
    find_pipeline(adaptation.first_stage)
    duqgen = adaptation.duqgen()
    corpus = duqgen.source(runtime)
    synthesis = plan_synthesis(duqgen, runtime, corpus, f"adapt {adaptation.short}")
    adaptation.check(runtime)
    n_queries = synthesis.chosen * duqgen.queries * len(duqgen.generator.prompts)
    n_groups = round(n_queries * (1 - duqgen.dev))
    size = 1 + adaptation.shown(duqgen.negatives.k if duqgen.negatives is not None else 7)
    optimiser = adaptation.optimiser()
    steps = optimiser.n_steps(max(1, n_groups))
    pairs = steps * min(optimiser.groups, max(1, n_groups)) * size
    meter = adaptation.engine_class(adaptation.model).measure(None, runtime)
    sizes = [Size(min(each.tokens, adaptation.max_tokens)) for each in meter.sizes(_pairs_of(corpus))]
    tokens = sum(each.tokens for each in sizes) / len(sizes)
    seconds: float | None = None
    each_pair: float | None = None
    if meter.work is not None:
        rate = matrix_rate(meter.work.dtype, runtime.device, runtime.threads)
        each_pair = meter.work.seconds(sizes, rate) / len(sizes)
        measured = min(VALIDATED, n_queries - n_groups)
        validated = measured * VALIDATION_K * (1 + math.ceil(steps / VALIDATED_EVERY))
        seconds = each_pair * (TRAINING_WORK * pairs + validated)
    judged, why = adaptation.judged(runtime)
    n_judged = len(judged.queries) if judged is not None else 0
    measuring = None if each_pair is None else n_judged * adaptation.k * each_pair
    remarks = (f"pairs are counted by {meter.counted_by}", *meter.remarks)
    return AdaptationPlan(synthesis, n_groups, pairs, round(tokens * pairs), seconds, n_judged, measuring, why, remarks)


def _pairs_of(corpus: TextSource) -> list[Asked]:
    """Documents of the collection, each with its first words for a query."""
    codes = np.linspace(0, len(corpus.ids) - 1, min(_COUNTED, len(corpus.ids)), dtype=np.int64)
    texts = corpus.texts(codes)
    return [Asked(str(i), text[:_QUERY_CHARACTERS], (str(i),), (text,)) for i, text in enumerate(texts)]
