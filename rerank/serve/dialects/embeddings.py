"""OpenAI's `/v1/embeddings`."""

from __future__ import annotations

import array
import base64
import sys
from typing import Any

from rerank.serve.dialects.fields import Body, choice, integer, one_or_more, text
from rerank.serve.dialects.objects import usage
from rerank.serve.errors import bad_field
from rerank.serve.jobs import Embedded, EmbedJob


def read_embeddings(body: Body) -> tuple[EmbedJob, bool]:
    """The request that a body says, and whether vectors are wanted as base64.

    Raises:
        ApiError: a field is missing or wrong.
    """
    given = body.get("input")
    if isinstance(given, list) and given and not isinstance(given[0], str):
        raise bad_field("input", "input holds no strings; send texts, not tokens")
    form = choice(body, "encoding_format", ("float", "base64")) or "float"
    side = choice(body, "input_type", ("query", "document", "passage")) or "document"
    text(body, "user")
    job = EmbedJob(
        one_or_more(body, "input"),
        body.get("model"),
        "query" if side == "query" else "document",
        None,
        integer(body, "dimensions", 1),
    )
    return job, form == "base64"


def write_embeddings(found: Embedded, *, as_base64: bool) -> dict[str, Any]:
    """The reply."""
    return {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(vector).decode() if as_base64 else numbers(vector),
            }
            for index, vector in enumerate(found.vectors)
        ],
        "model": found.served.name,
        "usage": usage(found.took.tokens),
    }


def numbers(vector: bytes) -> list[float]:
    """The numbers of a vector of little-endian float32.

    >>> numbers(b"\\x00\\x00\\x80?")
    [1.0]
    """
    values = array.array("f", vector)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tolist()
