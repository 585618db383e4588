"""The dialect of Cohere, Jina, Voyage, vLLM, infinity and llama.cpp: `documents` in, an object with `results` out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rerank.serve.dialects.fields import Body, choice, flag, integer, kind_of, limited, query_text, strings, text
from rerank.serve.errors import bad_field, bad_request, nothing_given
from rerank.serve.jobs import Reranked, RerankJob, Took


@dataclass(frozen=True)
class ObjectRequest:
    """A request as it was meant."""

    job: RerankJob
    documents: tuple[Any, ...]
    """As they were given."""
    top_n: int | None
    returns_documents: bool
    raw_scores: bool
    version: str
    remarks: tuple[str, ...] = ()
    """What was not done as asked."""


def read_rerank(body: Body, version: str = "1") -> ObjectRequest:
    """The request that a body says.

    Raises:
        ApiError: a field is missing or wrong.

    >>> read_rerank({"query": "q", "documents": "one", "top_n": 0}).job.documents
    ('one',)
    """
    if "texts" in body and "documents" in body:
        raise bad_request("both texts and documents are given; send one of them")
    query = query_text(body)
    given = body.get("documents")
    documents = [given] if isinstance(given, str) else given
    if not isinstance(documents, list):
        said = "is missing" if "documents" not in body else f"is {kind_of(given)}"
        raise bad_field("documents", f"documents {said}; a list of strings is expected")
    if not documents:
        raise nothing_given("documents")
    names = None if body.get("rank_fields") is None else strings(body, "rank_fields")
    texts = tuple(_document(document, place, names) for place, document in enumerate(documents))
    top_n, top_k = integer(body, "top_n", 0), integer(body, "top_k", 0)
    pair = integer(body, "truncate_prompt_tokens", -1)
    remarks = ["instruction was not used: the model takes none"] if text(body, "instruction") else []
    integer(body, "max_chunks_per_doc", 0)
    job = RerankJob(
        query,
        texts,
        body.get("model"),
        per_document=integer(body, "max_tokens_per_doc", 0) or None,
        per_pair=None if pair == -1 else pair,
        side=choice(body, "truncation_side", ("left", "right")) or "right",
        truncate=flag(body, "truncation"),
        explain=flag(body, "explain") or False,
    )
    returns = flag(body, "return_documents", words=True) or False
    return ObjectRequest(
        job,
        tuple(documents),
        top_k if top_n is None else top_n,
        returns and version != "2",
        flag(body, "raw_scores") or False,
        version,
        tuple(remarks),
    )


def _document(document: Any, place: int, names: tuple[str, ...] | None) -> str:
    """The text of a document."""
    if isinstance(document, str):
        return document
    if not isinstance(document, Mapping):
        raise bad_field("documents", f"documents[{place}] is {kind_of(document)}; a string or an object is expected")
    if names is not None:
        values = (document[name] for name in names if document.get(name) is not None)
        return "\n".join(value if isinstance(value, str) else str(value) for value in values)
    if isinstance(document.get("text"), str):
        return str(document["text"])
    parts = document.get("content")
    if isinstance(parts, list) and parts and all(_is_text_part(part) for part in parts):
        return "\n".join(part["text"] for part in parts)
    if isinstance(parts, list) and any(
        isinstance(part, Mapping) and "image" in str(part.get("type")) for part in parts
    ):
        raise bad_field("documents", f"documents[{place}] holds an image; this model reads texts")
    raise bad_field("documents", f"documents[{place}] has no text: neither 'text' nor 'content' with parts of text")


def _is_text_part(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def write_rerank(request: ObjectRequest, found: Reranked, request_id: str) -> dict[str, Any]:
    """The reply."""
    results: list[dict[str, Any]] = []
    for each in found.results[: limited(request.top_n, len(found.results))]:
        row: dict[str, Any] = {"index": each.index, "relevance_score": each.raw if request.raw_scores else each.score}
        if request.returns_documents:
            given = request.documents[each.index]
            rest = given if isinstance(given, Mapping) else {}
            row["document"] = {**rest, "text": request.job.documents[each.index]}
        results.append(row)
    tokens = found.took.tokens
    meta: dict[str, Any] = {
        "api_version": {"version": request.version},
        "billed_units": {"search_units": 1},
        "tokens": {"input_tokens": tokens, "output_tokens": 0},
        "timing": timing(found.took),
    }
    if found.counts:
        meta["counts"] = dict(found.counts)
    if found.reasoning is not None:
        meta["reasoning"] = [each._asdict() for each in found.reasoning]
    if warnings := [*found.warnings, *request.remarks]:
        meta["warnings"] = warnings
    return {
        "id": request_id,
        "object": "rerank",
        "model": found.served.name,
        "results": results,
        "data": results,
        "usage": usage(tokens),
        "meta": meta,
    }


def timing(took: Took) -> dict[str, float]:
    """What answering took; of inference, the batches that the request was part of."""
    return {
        "queue_seconds": round(took.queue_seconds, 6),
        "tokenize_seconds": round(took.tokenize_seconds, 6),
        "inference_seconds": round(took.inference_seconds, 6),
    }


def usage(tokens: int) -> dict[str, int]:
    """Tokens that were fed to the model."""
    return {"prompt_tokens": tokens, "total_tokens": tokens}
