"""Counting and cutting texts by a model's tokens, before they are asked about."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_SURROGATES = re.compile(r"[\ud800-\udfff]")


class Fitter:
    """A tokenizer of one's own: tokenizers may not be used by two threads at once.

    Args:
        tokenizer: a fast one of transformers.
        limit: tokens that the model reads of a pair, or of a text, special ones included.
        special: how many special tokens there are.
    """

    def __init__(self, tokenizer: Any, limit: int, special: int) -> None:
        self._tokenizer, self.limit, self.special = tokenizer, limit, special

    @classmethod
    def of_texts(cls, tokenizer: Any, limit: int) -> Fitter:
        """For a model that reads texts one by one."""
        special = len(tokenizer("", verbose=False)["input_ids"])
        return cls(tokenizer, limit, special)

    def fit(
        self, query: str, documents: Sequence[str], *, per_document: int | None, per_pair: int | None, side: str
    ) -> dict[str, Any]:
        """The documents, cut where a limit is given or the left side is to go, and what would have been cut anyway.

        Args:
            query: is never cut.
            documents: what it is paired with.
            per_document: tokens of a document at most, without special ones.
            per_pair: tokens of a pair at most, where the model would read more.
            side: `right` keeps the beginning of what is cut, `left` its end.

        Returns:
            `documents`; `query_tokens`; `limit`, that of pairs; `long`, how many pairs are longer than it; `cut`, how
            many documents lost something here; `fits`, whether the query leaves room for a document, and loses nothing
            to it.
        """
        limit = self.limit if per_pair is None else min(self.limit, per_pair)
        (query_tokens,) = map(len, self._spans([query]))
        room = limit - self.special
        # The engine keeps a quarter of the room for the document.
        fits = query_tokens <= (room - room // 4 if per_pair is None else room - 1)
        most = max(0, room - query_tokens)
        kept, long, n_cut = [], 0, 0
        for text, spans in zip(documents, self._spans(documents), strict=True):
            allowed = len(spans) if per_document is None else min(len(spans), per_document)
            long += allowed > most
            if allowed > most and (side == "left" or per_pair is not None):
                allowed = most
            n_cut += allowed < len(spans)
            kept.append(_cut(text, spans, allowed, side))
        return {
            "documents": kept,
            "query_tokens": query_tokens,
            "limit": limit,
            "long": long,
            "cut": n_cut,
            "fits": fits,
        }

    def tokens(self, texts: Sequence[str], *, special: bool) -> list[list[dict[str, Any]]]:
        """Each text's tokens as TEI tells of them."""
        options = {"return_offsets_mapping": True, "return_special_tokens_mask": True, "verbose": False}
        whole = [_SURROGATES.sub("\ufffd", text) for text in texts]
        encoded = self._tokenizer(whole, add_special_tokens=special, split_special_tokens=True, **options)
        found = []
        for number, text in enumerate(whole):
            ids, spans = encoded["input_ids"][number], encoded["offset_mapping"][number]
            marks = encoded["special_tokens_mask"][number] if special else [0] * len(ids)
            names = self._tokenizer.convert_ids_to_tokens(ids)
            found.append(
                [
                    {
                        "id": code,
                        "text": name if mark else text[start:stop],
                        "special": bool(mark),
                        "start": None if mark else start,
                        "stop": None if mark else stop,
                    }
                    for code, (start, stop), mark, name in zip(ids, spans, marks, names, strict=True)
                ]
            )
        return found

    def _spans(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """Where the tokens of each text lie."""
        if not texts:
            return []
        whole = [_SURROGATES.sub("\ufffd", text) for text in texts]
        options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        spans: list[list[tuple[int, int]]] = self._tokenizer(whole, return_offsets_mapping=True, **options)[
            "offset_mapping"
        ]
        return spans


def _cut(text: str, spans: Sequence[tuple[int, int]], allowed: int, side: str) -> str:
    """The first, or the last, so many tokens of a text.

    >>> _cut("one two three", [(0, 3), (4, 7), (8, 13)], 2, "left")
    'two three'
    """
    if allowed >= len(spans):
        return text
    if allowed <= 0:
        return ""
    return text[spans[-allowed][0] :] if side == "left" else text[: spans[allowed - 1][1]]
