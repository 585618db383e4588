"""The name under which a rule knows a list: the same for the same texts, whoever else is asking."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def list_qid(query: str, documents: Sequence[str]) -> str:
    """A text that sets the seed of rules that shuffle; the one that `rerank.Reranker` uses, so that orders agree.

    >>> list_qid("rain", ["It rains."]) == list_qid("rain", ["It rains."]) != list_qid("rain", ["It snows."])
    True
    """
    digest = hashlib.sha256()
    for text in query, *documents:
        raw = text.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return f"{query[:40]} ({digest.hexdigest()[:16]})"
