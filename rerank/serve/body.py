"""Reading a request's body: only JSON, only so many bytes, only for so long."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from rerank.serve.errors import ApiError, bad_request, too_large


def check_type(headers: Mapping[str, str]) -> None:
    """Refuses bodies that are not declared as JSON: a page of another site cannot post such without being asked.

    Raises:
        ApiError: 415.
    """
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    coding = headers.get("content-encoding", "identity").strip().lower()
    if kind != "application/json" or coding != "identity":
        raise ApiError(
            415,
            "unsupported_media_type",
            "the body must be Content-Type: application/json, without Content-Encoding",
            reason="invalid",
        )


async def read_json(headers: Mapping[str, str], chunks: AsyncIterator[bytes], most: int, seconds: float) -> Any:
    """The value of a body.

    Args:
        headers: the request's.
        chunks: the body as it comes.
        most: bytes; counted while they come, so that a body of undeclared length is stopped too.
        seconds: how long the client may take.

    Raises:
        ApiError: not JSON, too large, or too slow.
    """
    check_type(headers)
    declared = headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > most:
        raise too_large(most)
    data = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in chunks:
                data += chunk
                if len(data) > most:
                    raise too_large(most)
    except TimeoutError:
        message = f"the body did not arrive within {seconds:g} seconds"
        raise ApiError(408, "timeout", message, headers={"Connection": "close"}, reason="timeout") from None
    return parsed(bytes(data))


def parsed(data: bytes) -> Any:
    """The JSON value.

    Raises:
        ApiError: it is none.

    >>> parsed(b'{"query": "rain"}')
    {'query': 'rain'}
    """
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise bad_request(f"the body is not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise bad_request(f"the body is not JSON ({error.msg} at character {error.pos})") from None
    except (ValueError, RecursionError):
        raise bad_request("the body is not JSON that can be read: numbers too long, or lists too deep") from None


def _no_number(name: str) -> float:
    raise ValueError(name)
