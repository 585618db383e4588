"""Who gets how much room when not everything fits: documents are cut first, then the query."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rerank.prompts.prompt import Truncation


def allotted(
    kinds: Sequence[str], sizes: Sequence[int], least: Sequence[int], limits: Truncation, room: int, unit: int = 1
) -> tuple[list[int], bool] | int:
    """What each text gets of the room, and whether the query was cut for want of it; or how much is needed at least.

    Documents share what there is, and none gets more than it wants.  They are cut to `least_document_tokens` before the
    query is cut, and further only where the query is cut to nothing.  Texts that are neither get what they want, and
    are no part of `room`.

    Args:
        kinds: of each text: `query`, `document` or another.
        sizes: what each text wants.
        least: what each takes when it is cut to nothing.
        limits: the prompt's.
        room: for queries and documents together.
        unit: what a token is worth in `sizes` and `room`.

    >>> from rerank.prompts.prompt import Truncation
    >>> allotted(["query", "document", "document"], [5, 10, 90], [0, 0, 0], Truncation(), 85)
    ([5, 10, 70], False)
    """
    caps = {"document": limits.document_tokens, "query": limits.query_tokens}
    wanted = {}
    for i, (kind, size) in enumerate(zip(kinds, sizes, strict=True)):
        if kind in caps:
            cap = caps[kind]
            wanted[i] = size if cap is None else min(size, cap * unit + least[i])
    queries = [i for i in wanted if kinds[i] == "query"]
    documents = [i for i in wanted if kinds[i] == "document"]
    floor = {i: min(wanted[i], least[i]) for i in wanted}
    enough = {i: min(wanted[i], limits.least_document_tokens * unit + least[i]) for i in documents}
    free = room - sum(wanted[i] for i in queries)
    squeezed = free < sum(enough.values())
    if not squeezed:
        given = {**wanted, **_shared(wanted, enough, documents, free)}
    elif room - sum(enough.values()) >= sum(floor[i] for i in queries):
        given = {**enough, **_shared(wanted, floor, queries, room - sum(enough.values()))}
    else:
        free = room - sum(floor[i] for i in queries)
        if free < sum(floor[i] for i in documents):
            return sum(floor.values())
        given = {**floor, **_shared(wanted, floor, documents, free)}
    return [given.get(i, size) for i, size in enumerate(sizes)], squeezed


def _shared(wanted: dict[int, int], least: dict[int, int], slots: Sequence[int], room: int) -> dict[int, int]:
    """The largest equal share that fits: what each slot wants, cut to it, but never below its least."""
    low, high = 0, max((wanted[i] for i in slots), default=0)
    while low < high:
        middle = (low + high + 1) // 2
        used = sum(min(wanted[i], max(least[i], middle)) for i in slots)
        low, high = (middle, high) if used <= room else (low, middle - 1)
    return {i: min(wanted[i], max(least[i], low)) for i in slots}
