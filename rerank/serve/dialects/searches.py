"""Our own `/search`: what a pipeline finds for queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rerank.serve.dialects.fields import Body, flag, integer, one_or_more, query_text
from rerank.serve.dialects.objects import timing, usage
from rerank.serve.errors import bad_field, nothing_given
from rerank.serve.jobs import Took

_DEFAULT_K = 10
_MOST = 1000


@dataclass(frozen=True)
class SearchRequest:
    """A request as it was meant."""

    queries: tuple[str, ...]
    is_batch: bool
    k: int
    model: object
    returns_documents: bool


def read_search(body: Body) -> SearchRequest:
    """The request that a body says: `query`, or `queries`; `k` (also `top_k`, `top_n`) results each.

    Raises:
        ApiError: a field is missing or wrong.

    >>> read_search({"query": "rain", "k": 3}).queries
    ('rain',)
    """
    is_batch = "queries" in body
    queries = one_or_more(body, "queries") if is_batch else (query_text(body),)
    if not queries:
        raise nothing_given("queries")
    if any(not query.strip() for query in queries):
        raise bad_field("queries", "queries must not hold empty ones")
    wanted = [integer(body, name, 0) for name in ("k", "top_k", "top_n")]
    k = next((each for each in wanted if each), _DEFAULT_K)
    if k > _MOST:
        raise bad_field("k", f"k is {k if k < 10**18 else 'far above'}; the limit is {_MOST}")
    returns = flag(body, "return_documents", words=True)
    return SearchRequest(queries, is_batch, k, body.get("model"), returns is None or returns)


def write_search(
    request: SearchRequest, name: str, found: Sequence[dict[str, Any]], took: Took, request_id: str
) -> dict[str, Any]:
    """The reply: `results` of the one query, or a list of them in `data` for several."""
    lists = [_results(each["hits"], with_text=request.returns_documents) for each in found]
    reply: dict[str, Any] = {
        "id": request_id,
        "object": "search",
        "model": name,
        "usage": usage(took.tokens),
        "meta": {"timing": timing(took)},
    }
    if not request.is_batch:
        return {**reply, "results": lists[0]}
    rows = zip(request.queries, lists, strict=True)
    return {**reply, "data": [{"index": index, "results": results} for index, (_, results) in enumerate(rows)]}


def _results(hits: Sequence[dict[str, Any]], *, with_text: bool) -> list[dict[str, Any]]:
    rows = []
    for hit in hits:
        row: dict[str, Any] = {"id": hit["id"], "score": hit["score"]}
        if with_text:
            row["document"] = {"text": hit["text"]}
        rows.append(row)
    return rows
