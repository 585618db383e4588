"""What an adaptation would do, and for about how long."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

import numpy as np

from rerank.engines.engine import Asked
from rerank.engines.meter import Size, matrix_rate
from rerank.engines.pairs import CrossEncoderEngine
from rerank.ranking import TextSource
from rerank.runtime import Runtime
from rerank.synthesize.adaptation import VALIDATED, VALIDATION_K, Adaptation
from rerank.synthesize.estimate import SynthesisPlan, about, plan_synthesis

_COLUMNS = 80
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
    """Training groups at most: filters leave fewer."""
    pairs: int
    """Pairs of query and document that are trained on, each as often as it is seen."""
    training_tokens: int
    training_seconds: float | None
    """None where the model's files do not tell."""
    queries: int
    """Judged ones that are measured; 0 where there are none."""
    evaluation_seconds: float | None
    remarks: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """About how long all takes, as far as that is known."""
        return self.synthesis.seconds + (self.training_seconds or 0.0) + (self.evaluation_seconds or 0.0)

    def __str__(self) -> str:
        """The plan for people, in 80 columns."""
        lines = [f"{self.synthesis.name}: an estimate", *str(self.synthesis).splitlines()[1:]]
        learning = about(self.training_seconds)
        facts = [
            (
                "training",
                f"{self.groups:,} groups at most, {self.pairs:,} pairs of {self.training_tokens:,} tokens, {learning}",
            ),
            (
                "evaluation",
                f"{self.queries:,} judged queries, {about(self.evaluation_seconds)}"
                if self.queries
                else "none: there are no judgments",
            ),
            ("in all", about(self.seconds)),
        ]
        for title, text in facts:
            lines += textwrap.wrap(text, _COLUMNS, initial_indent=f"  {title:<14}", subsequent_indent=" " * 16)
        for remark in self.remarks:
            lines += textwrap.wrap(remark, _COLUMNS, initial_indent="  note: ", subsequent_indent=" " * 8)
        return "\n".join(lines)


def plan_adaptation(adaptation: Adaptation, runtime: Runtime) -> AdaptationPlan:
    """What `adaptation` would do, found out without training anything.

    Args:
        adaptation: what would run.
        runtime: whose home, device and threads count.

    Raises:
        DataError: no such collection, or no document that could get a query.
    """
    duqgen = adaptation.duqgen()
    corpus = duqgen.source(runtime)
    synthesis = plan_synthesis(duqgen, runtime, corpus, f"adapt {adaptation.short}")
    n_groups = round(synthesis.chosen * duqgen.queries * len(duqgen.generator.prompts) * (1 - duqgen.dev))
    size = 1 + (duqgen.negatives.k if duqgen.negatives is not None else 7)
    steps = adaptation.optimiser.n_steps(max(1, n_groups))
    pairs = steps * min(adaptation.optimiser.groups, max(1, n_groups)) * size
    meter = CrossEncoderEngine(adaptation.model).measure(None, runtime)
    sizes = [Size(min(each.tokens, adaptation.max_tokens)) for each in meter.sizes(_pairs_of(corpus))]
    tokens = sum(each.tokens for each in sizes) / len(sizes)
    seconds: float | None = None
    each_pair: float | None = None
    if meter.work is not None:
        rate = matrix_rate(meter.work.dtype, runtime.device, runtime.threads)
        each_pair = meter.work.seconds(sizes, rate) / len(sizes)
        validated = VALIDATED * VALIDATION_K * (2 + steps // 50) if duqgen.dev else 0
        seconds = each_pair * (TRAINING_WORK * pairs + validated)
    judged, why = adaptation.judged(runtime)
    n_queries = len(judged.queries) if judged is not None else 0
    measuring = None if each_pair is None else n_queries * adaptation.k * each_pair
    remarks = [f"pairs are counted by {meter.counted_by}", *meter.remarks, *([why] if why else [])]
    return AdaptationPlan(
        synthesis, n_groups, pairs, round(tokens * pairs), seconds, n_queries, measuring, tuple(dict.fromkeys(remarks))
    )


def _pairs_of(corpus: TextSource) -> list[Asked]:
    """Documents of the collection, each with its first words for a query."""
    codes = np.linspace(0, len(corpus.ids) - 1, min(_COUNTED, len(corpus.ids)), dtype=np.int64)
    texts = corpus.texts(codes)
    return [Asked(str(i), text[:_QUERY_CHARACTERS], (str(i),), (text,)) for i, text in enumerate(texts)]
