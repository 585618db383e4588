"""The dialect of text-embeddings-inference: `texts` in, a bare list out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rerank.serve.dialects.fields import (
    Body,
    choice,
    flag,
    integer,
    kind_of,
    limited,
    one_or_more,
    query_text,
    strings,
    text,
)
from rerank.serve.errors import bad_field, nothing_given
from rerank.serve.jobs import EmbedJob, Reranked, RerankJob, Took

_SIDES = ("Left", "left", "Right", "right")


@dataclass(frozen=True)
class TeiRequest:
    """A request as it was meant."""

    job: RerankJob
    top_n: int | None
    returns_text: bool
    raw_scores: bool


def read_rerank(body: Body) -> TeiRequest:
    """The request that a body says.

    Raises:
        ApiError: a field is missing or wrong.
    """
    query, texts = query_text(body), strings(body, "texts")
    if not texts:
        raise nothing_given("texts")
    job = RerankJob(query, texts, body.get("model"), side=_side(body), truncate=flag(body, "truncate"))
    return TeiRequest(
        job, integer(body, "top_n", 0), flag(body, "return_text") or False, flag(body, "raw_scores") or False
    )


def _side(body: Body) -> str:
    return (choice(body, "truncation_direction", _SIDES) or "right").lower()


def write_rerank(request: TeiRequest, found: Reranked) -> list[dict[str, Any]]:
    """The reply."""
    rows = []
    for each in found.results[: limited(request.top_n, len(found.results))]:
        row: dict[str, Any] = {"index": each.index, "score": each.raw if request.raw_scores else each.score}
        if request.returns_text:
            row["text"] = request.job.documents[each.index]
        rows.append(row)
    return rows


def headers(took: Took, total_seconds: float, characters: int, device: str) -> dict[str, str]:
    """What TEI tells of the work; times in whole milliseconds."""
    return {
        "x-compute-type": "cpu" if device.startswith("cpu") else "gpu",
        "x-compute-time": _milliseconds(took.tokenize_seconds + took.inference_seconds),
        "x-compute-characters": str(characters),
        "x-compute-tokens": str(took.tokens),
        "x-total-time": _milliseconds(total_seconds),
        "x-tokenization-time": _milliseconds(took.tokenize_seconds),
        "x-queue-time": _milliseconds(took.queue_seconds),
        "x-inference-time": _milliseconds(took.inference_seconds),
    }


def _milliseconds(seconds: float) -> str:
    return str(round(1000 * seconds))


@dataclass(frozen=True)
class PredictRequest:
    """Pairs to score."""

    pairs: tuple[tuple[str, str], ...]
    is_batch: bool
    raw_scores: bool
    truncate: bool | None
    side: str


def read_predict(body: Body) -> PredictRequest:
    """The request that a body says: a text alone is paired with an empty one."""
    given = body.get("inputs")
    is_batch = isinstance(given, list) and bool(given) and isinstance(given[0], list)
    if given == []:
        raise nothing_given("inputs")
    rows = given if is_batch and isinstance(given, list) else [given]
    pairs = tuple(_pair(row, place) for place, row in enumerate(rows))
    return PredictRequest(pairs, is_batch, flag(body, "raw_scores") or False, flag(body, "truncate"), _side(body))


def _pair(row: Any, place: int) -> tuple[str, str]:
    parts = [row] if isinstance(row, str) else row
    if isinstance(parts, list) and len(parts) in (1, 2) and all(isinstance(part, str) for part in parts):
        return (parts[0], parts[1] if len(parts) == 2 else "")
    raise bad_field("inputs", f"inputs[{place}] is {kind_of(row)}; a string or a pair of strings is expected")


def write_predict(request: PredictRequest, scores: Sequence[float]) -> list[Any]:
    """The reply."""
    rows = [[{"score": score, "label": "LABEL_0"}] for score in scores]
    return rows if request.is_batch else rows[0]


def read_embed(body: Body) -> EmbedJob:
    """The request that a body says; `prompt_name` tells queries from documents."""
    if flag(body, "normalize") is False:
        raise bad_field("normalize", "normalize is false; this server gives vectors as the model compares them")
    side = choice(body, "prompt_name", ("query", "document", "passage")) or "document"
    return EmbedJob(
        one_or_more(body, "inputs"),
        body.get("model"),
        "query" if side == "query" else "document",
        flag(body, "truncate"),
        integer(body, "dimensions", 1),
    )


def read_tokenize(body: Body) -> tuple[tuple[str, ...], bool]:
    """Texts, and whether special tokens are wanted."""
    text(body, "prompt_name")
    wanted = flag(body, "add_special_tokens")
    return one_or_more(body, "inputs"), wanted is None or wanted
