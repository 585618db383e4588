"""vLLM's `/score`: pairs of texts, scored in the order given."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rerank.serve.dialects.fields import Body, choice, flag, integer, one_or_more
from rerank.serve.dialects.objects import usage
from rerank.serve.errors import bad_field, bad_request, nothing_given

_NAMES = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))


@dataclass(frozen=True)
class ScoreRequest:
    """A request as it was meant."""

    queries: tuple[str, ...]
    """One, or as many as documents."""
    documents: tuple[str, ...]
    model: object
    per_pair: int | None
    raw_scores: bool
    truncate: bool | None
    side: str


def read_score(body: Body) -> ScoreRequest:
    """The request that a body says.

    Raises:
        ApiError: a side is missing or empty, or the sizes are not 1:1, 1:N or N:N.

    >>> read_score({"text_1": "q", "text_2": ["a", "b"]}).documents
    ('a', 'b')
    """
    pair = next(((left, right) for left, right in _NAMES if left in body and right in body), None)
    if pair is None:
        raise bad_request("two inputs are expected: text_1 and text_2, or queries and documents")
    left, right = pair
    queries, documents = one_or_more(body, left), one_or_more(body, right)
    for name, side in ((left, queries), (right, documents)):
        if not side:
            raise nothing_given(name)
    if len(queries) not in (1, len(documents)):
        raise bad_field(
            left,
            f"{left} has {len(queries)} entries and {right} {len(documents)}; 1 to 1, 1 to N or N to N is possible",
        )
    most = integer(body, "truncate_prompt_tokens", -1)
    return ScoreRequest(
        queries,
        documents,
        body.get("model"),
        None if most == -1 else most,
        flag(body, "raw_scores") or False,
        flag(body, "truncation"),
        choice(body, "truncation_side", ("left", "right")) or "right",
    )


def write_score(name: str, scores: Sequence[float], tokens: int, request_id: str) -> dict[str, Any]:
    """The reply."""
    data = [{"index": index, "object": "score", "score": score} for index, score in enumerate(scores)]
    return {
        "id": request_id,
        "object": "list",
        "created": int(time.time()),
        "model": name,
        "data": data,
        "usage": usage(tokens),
    }
