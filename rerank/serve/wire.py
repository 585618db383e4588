"""What the front process and its worker say to each other: JSON objects over a socket, each after its length.

JSON and not pickle: a message can be printed, and reading one runs nothing.  Halves of surrogate pairs, which real
texts hold now and then, pass unharmed.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

Message = dict[str, Any]

_LENGTH = struct.Struct(">I")
HEADER = _LENGTH.size
"""Bytes before each message."""


def packed(message: Message) -> bytes:
    """The message as it goes over the wire.

    >>> packed({"do": "ping"})
    b'\\x00\\x00\\x00\\r{"do":"ping"}'
    """
    data = json.dumps(message, separators=(",", ":")).encode("ascii")
    return _LENGTH.pack(len(data)) + data


def length_of(header: bytes) -> int:
    """How many bytes follow a header."""
    (length,) = _LENGTH.unpack(header)
    return int(length)


def unpacked(data: bytes) -> Message:
    """The message that follows a header."""
    message: Message = json.loads(data)
    return message


def read_message(read: Callable[[int], bytes]) -> Message | None:
    """The next message, from what reads up to so many bytes; None at the end of the stream.

    >>> import io
    >>> read_message(io.BytesIO(packed({"do": "ping"})).read)
    {'do': 'ping'}
    """
    header = _exactly(read, HEADER)
    if header is None:
        return None
    data = _exactly(read, length_of(header))
    return None if data is None else unpacked(data)


def _exactly(read: Callable[[int], bytes], n: int) -> bytes | None:
    parts = []
    while n:
        part = read(n)
        if not part:
            return None
        parts.append(part)
        n -= len(part)
    return b"".join(parts)
