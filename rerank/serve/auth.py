"""Who may ask: keys, and the names that a server on a loopback address is called by."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from rerank.serve.errors import ApiError

_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


class Keys:
    """The valid keys; without any, everybody may ask.

    >>> Keys(["secret"]).owner("bearer secret")
    'key 0'
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def __len__(self) -> int:
        return len(self._digests)

    def owner(self, header: str | None) -> str:
        """Which key a request brought; '' where none is needed.

        Raises:
            ApiError: none, or a wrong one.
        """
        if not self._digests:
            return ""
        scheme, _, key = (header or "").strip().partition(" ")
        given = _digest(key.strip())
        # All are compared, each in constant time, so that the time tells nothing.
        matches = [hmac.compare_digest(given, each) for each in self._digests]
        if scheme.lower() != "bearer" or not any(matches):
            message = "a key is needed: Authorization: Bearer KEY" if not header else "the key is not valid"
            raise ApiError(401, "authentication_error", message, headers={"WWW-Authenticate": "Bearer"}, reason="auth")
        return f"key {matches.index(True)}"


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def check_host(header: str | None, allowed: Sequence[str]) -> None:
    """Refuses a request that was meant for another name: a page elsewhere may point its name at this machine.

    Raises:
        ApiError: the name is neither localhost's nor among those allowed.

    >>> check_host("localhost:8080", [])
    """
    name = (header or "").strip().lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.rpartition(":")[0] or name
    if name not in _LOCAL_NAMES and name not in [each.lower() for each in allowed]:
        raise ApiError(
            421, "misdirected_request", "this server is not called by that name; see its setting allowed_hosts"
        )
