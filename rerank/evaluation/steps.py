"""What a pipeline's own steps are worth: the lists before and after reranking, and before and after fusion."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from rerank.errors import PipelineError
from rerank.stage import DOCUMENTS, FROM_ANYTHING, Branches, Normalise, Pipeline, Stage

Chain = tuple[Stage, ...]


def with_steps(pipelines: Sequence[Stage]) -> tuple[Stage, ...]:
    """The pipelines, each behind those of its steps that make other lists: prefixes, and the branches of combinations.

    A step is called after its pipeline and the stages up to it, with a number where two would be called the same.  What
    several pipelines begin with comes once.

    >>> from rerank.retrieve.bm25 import BM25
    >>> from rerank.stage import Cut
    >>> first = BM25() % 100
    >>> [stage.label for stage in with_steps([Pipeline((first >> Cut(10)).stages, name="mine")])]
    ['mine: bm25', 'mine: bm25 >> cut', 'mine']
    """
    found: list[Stage] = []
    known: set[Chain] = set()
    names: Counter[str] = Counter()
    for pipeline in pipelines:
        *inner, whole = dict.fromkeys(_chains((), pipeline))
        for chain in inner:
            if chain not in known and chain != whole and _gives_lists(chain):
                name = f"{pipeline.label}: {' >> '.join(stage.label for stage in chain)}"
                names[name] += 1
                found.append(Pipeline(chain, name=name if names[name] == 1 else f"{name} ({names[name]})"))
        known.update(inner, [whole])
        found.append(pipeline)
    return tuple(found)


def _chains(before: Chain, stage: Stage) -> Iterator[Chain]:
    """The stages up to each step of `stage`, the last of them all of it."""
    if isinstance(stage, Pipeline):
        for part in stage.stages:
            yield from _chains(before, part)
            before = (*before, *(part.stages if isinstance(part, Pipeline) else (part,)))
        return
    if isinstance(stage, Branches):
        for branch in stage.of:
            yield from _chains(before, branch)
    yield (*before, stage)


def _gives_lists(chain: Chain) -> bool:
    """Whether the last stage gives documents in an order that may be another one."""
    if isinstance(chain[-1], Normalise):
        return False
    try:
        return DOCUMENTS in Pipeline(chain).flow(FROM_ANYTHING).has
    except PipelineError:  # half of a sum by itself
        return False
