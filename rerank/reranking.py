"""The stage that reranks: a rule says which documents to compare, an engine compares, the scheduler joins all lists."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial

import numpy as np

from rerank.engines.engine import Asked, Asker, Engine
from rerank.engines.scheduler import Request, run_waves
from rerank.errors import ConfigError, DataError
from rerank.ranking import Ranking, ScoreKind, TextSource
from rerank.retrieve.select import without_excluded
from rerank.rules.pointwise import Pointwise
from rerank.rules.rule import Answer, Outcome, Rule
from rerank.runtime import Runtime
from rerank.stage import Flow, Stage


@dataclass(frozen=True, repr=False)
class Rerank(Stage):
    """The first `k` documents of every list in the order that `rule` makes of the answers of `engine`.

    All lists go forward together, and the engine gets everything that can be asked at once in one batch.  What comes
    out is always a permutation of what came in; where nothing usable is answered, the order stays.  Equal scores keep
    the first-stage order.

    >>> from rerank.engines.pairs import CrossEncoderEngine
    >>> Rerank(CrossEncoderEngine("my-cross-encoder"))
    Rerank(engine=CrossEncoderEngine(model='my-cross-encoder'))
    """

    engine: Engine
    """What answers."""
    rule: Rule = Pointwise()
    """How comparisons become an order."""
    prompt: str | None = None
    """How a language model is asked: the name of a profile (`rerank prompts list`) or the path of a prompt file."""
    k: int | None = 100
    """How many documents of each list are reranked; the rest keeps its order below them.  None: all."""

    def __post_init__(self) -> None:
        if self.k is not None and self.k < 1:
            raise ConfigError(f"rerank: k is {self.k}, at least 1 is needed (null reranks whole lists)")

    def flow(self, before: Flow) -> Flow:
        """The same documents; rank scores unless whole lists get scores that mean the same everywhere."""
        return Flow(super().flow(before).has, None if self._gives_scores else ScoreKind.RANK)

    @property
    def _gives_scores(self) -> bool:
        return self.rule.gives_scores and self.k is None

    def transform(self, ranking: Ranking, runtime: Runtime) -> Ranking:
        """The reordered lists; the rule's own scores, where it gives any, are in the column `score:rerank`.

        Raises:
            DataError: the lists came without texts.
            ConfigError: the rule shows more documents at once than the engine or its prompt takes.
        """
        if ranking.source is None:
            raise DataError(f"{self.label}: reads documents, but the lists came without texts; give their corpus")
        source = ranking.source
        ranking = without_excluded(ranking.with_source(source), runtime)
        asker = self.engine.asker(self.prompt, runtime)
        most = asker.most_documents
        if most is not None and self.rule.largest_group > most:
            raise ConfigError(
                f"rerank: {self.rule.label} shows up to {self.rule.largest_group} documents at once, but "
                f"{self.engine.label} takes {most}; choose another rule, or a smaller group"
            )
        outcomes = self._outcomes(ranking, source, asker, runtime)
        for what in sorted({name for outcome in outcomes for name in outcome.counts}):
            # Lists go forward side by side: the waves of all are those of the slowest.
            together = max if what == "waves" else sum
            runtime.count(what, together(outcome.counts.get(what, 0) for outcome in outcomes))
        return self._reordered(ranking, outcomes, asker.kind)

    def _outcomes(self, ranking: Ranking, source: TextSource, asker: Asker, runtime: Runtime) -> list[Outcome]:
        sizes = np.diff(ranking.offsets)
        heads = (sizes if self.k is None else np.minimum(sizes, self.k)).tolist()
        steps = [self.rule.steps(n, qid) for n, qid in zip(heads, ranking.qids, strict=True)]
        with runtime.progress("reranking", None, "comparisons") as advance:

            def ask(requests: list[Request]) -> list[Answer]:
                answers = asker.ask(_questions(requests, ranking, source), runtime)
                advance(len(answers))
                return answers

            results = run_waves(steps, ask)
        for result in results:
            if isinstance(result, Exception):
                raise result
        return [result for result in results if isinstance(result, Outcome)]

    def _reordered(self, ranking: Ranking, outcomes: list[Outcome], kind: ScoreKind) -> Ranking:
        rows = np.arange(len(ranking.docs))
        raw = np.full(len(rows), np.nan, dtype=np.float32)
        for start, outcome in zip(ranking.offsets[:-1].tolist(), outcomes, strict=True):
            stop = start + len(outcome.order)
            rows[start:stop] = start + np.array(outcome.order, dtype=np.int64)
            if outcome.scores is not None:
                raw[start:stop] = outcome.scores
        columns = {name: column[rows] for name, column in ranking.columns.items()}
        moved = dataclasses.replace(ranking.ranked(), docs=ranking.docs[rows], columns=columns)
        if not self.rule.gives_scores:
            return moved
        if self._gives_scores:
            return dataclasses.replace(moved, scores=raw, kind=kind)
        return moved.with_column("score:rerank", raw)


def _questions(requests: list[Request], ranking: Ranking, source: TextSource) -> list[Asked]:
    """What the requests of one wave ask; each document's text is looked up once."""
    rows = [[int(ranking.offsets[each.ticket]) + member for member in each.group.members] for each in requests]
    codes = np.unique(ranking.docs[np.array([row for group in rows for row in group], dtype=np.int64)])
    texts = dict(zip(codes.tolist(), source.texts(codes), strict=True))
    names = dict(zip(codes.tolist(), ranking.ids.take(codes).tolist(), strict=True))
    code = partial(map, ranking.docs.tolist().__getitem__)
    return [
        Asked(
            ranking.qids[each.ticket],
            ranking.queries[each.ticket],
            tuple(names[c] for c in code(group)),
            tuple(texts[c] for c in code(group)),
        )
        for each, group in zip(requests, rows, strict=True)
    ]
